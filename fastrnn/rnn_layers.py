"""Drop-in for the `rnn_layers` module of NumPy course projects: ``from fastrnn.rnn_layers import *``."""

from fastrnn.ops.affine import affine_backward, affine_forward, temporal_affine_backward, temporal_affine_forward
from fastrnn.ops.embedding import word_embedding_backward, word_embedding_forward
from fastrnn.ops.gru import gru_backward, gru_forward, gru_step_backward, gru_step_forward
from fastrnn.ops.lstm import lstm_backward, lstm_forward, lstm_step_backward, lstm_step_forward
from fastrnn.ops.rnn import rnn_backward, rnn_forward, rnn_step_backward, rnn_step_forward
from fastrnn.ops.softmax_loss import temporal_softmax_loss, vocab_softmax_loss
from fastrnn.reference.lstm import sigmoid

__all__ = [
    "affine_backward",
    "affine_forward",
    "gru_backward",
    "gru_forward",
    "gru_step_backward",
    "gru_step_forward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sigmoid",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "vocab_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]
