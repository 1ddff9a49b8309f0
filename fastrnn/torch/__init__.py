"""The same kernels for PyTorch: modules that stand in for ``torch.nn``'s, and operations with autograd."""

from fastrnn.torch.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.torch.convert import Report, convert, revert
from fastrnn.torch.embedding import Embedding, embedding
from fastrnn.torch.gram import gram_matrix
from fastrnn.torch.image_losses import content_loss, style_loss, tv_loss
from fastrnn.torch.modules import GRU, LSTM, RNN
from fastrnn.torch.packing import pack_padded_sequence, pad_packed_sequence
from fastrnn.torch.selection import last_backend
from fastrnn.torch.softmax_loss import vocab_cross_entropy

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "content_loss",
    "convert",
    "embedding",
    "gram_matrix",
    "last_backend",
    "pack_padded_sequence",
    "pad_packed_sequence",
    "revert",
    "style_loss",
    "tv_loss",
    "vocab_cross_entropy",
]
