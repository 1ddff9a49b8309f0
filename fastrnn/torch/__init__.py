"""The same kernels for PyTorch: modules that stand in for ``torch.nn``'s, and operations with autograd."""

from fastrnn.torch.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.torch.convert import Report, convert, revert
from fastrnn.torch.modules import GRU, LSTM, RNN
from fastrnn.torch.selection import last_backend

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "convert",
    "last_backend",
    "revert",
]
