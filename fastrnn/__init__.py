"""Fast recurrent-network kernels behind the NumPy API that people already write."""

from fastrnn.backend import (
    available_backends,
    backend,
    backend_status,
    get_backend,
    get_float32_matmul_precision,
    get_num_threads,
    last_backend,
    set_float32_matmul_precision,
    set_num_threads,
)
from fastrnn.ops.affine import affine_backward, affine_forward, temporal_affine_backward, temporal_affine_forward
from fastrnn.ops.embedding import word_embedding_backward, word_embedding_forward
from fastrnn.ops.gram import gram_backward, gram_matrix
from fastrnn.ops.gru import gru_backward, gru_forward, gru_step_backward, gru_step_forward
from fastrnn.ops.image_losses import (
    content_loss,
    content_loss_backward,
    style_loss,
    style_loss_backward,
    tv_loss,
    tv_loss_backward,
)
from fastrnn.ops.lstm import lstm_backward, lstm_forward, lstm_step_backward, lstm_step_forward
from fastrnn.ops.optim import adam, rmsprop, sgd, sgd_momentum
from fastrnn.ops.rnn import rnn_backward, rnn_forward, rnn_step_backward, rnn_step_forward
from fastrnn.ops.softmax_loss import temporal_softmax_loss, vocab_softmax_loss
from fastrnn.patch import patch
from fastrnn.version import __version__

__all__ = [
    "__version__",
    "adam",
    "affine_backward",
    "affine_forward",
    "available_backends",
    "backend",
    "backend_status",
    "content_loss",
    "content_loss_backward",
    "get_backend",
    "get_float32_matmul_precision",
    "get_num_threads",
    "gram_backward",
    "gram_matrix",
    "gru_backward",
    "gru_forward",
    "gru_step_backward",
    "gru_step_forward",
    "last_backend",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "patch",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "set_float32_matmul_precision",
    "set_num_threads",
    "sgd",
    "sgd_momentum",
    "style_loss",
    "style_loss_backward",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "tv_loss",
    "tv_loss_backward",
    "vocab_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]
