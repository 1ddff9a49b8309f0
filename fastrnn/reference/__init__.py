"""The oracle: every operation as textbook NumPy.

It defines what the fast backends must compute, and is written to be read. Inputs are taken as they are, without checks;
results take the inputs' floating dtype; no argument is ever modified.
"""

from .affine import affine_backward, affine_forward, temporal_affine_backward, temporal_affine_forward
from .embedding import word_embedding_backward, word_embedding_forward
from .gram import gram_backward, gram_matrix
from .gru import gru_backward, gru_forward, gru_step_backward, gru_step_forward
from .image_losses import (
    content_loss,
    content_loss_backward,
    style_loss,
    style_loss_backward,
    tv_loss,
    tv_loss_backward,
)
from .lstm import lstm_backward, lstm_forward, lstm_step_backward, lstm_step_forward, sigmoid
from .optim import adam, rmsprop, sgd, sgd_momentum
from .rnn import rnn_backward, rnn_forward, rnn_step_backward, rnn_step_forward
from .softmax_loss import temporal_softmax_loss, vocab_softmax_loss

__all__ = [
    "adam",
    "affine_backward",
    "affine_forward",
    "content_loss",
    "content_loss_backward",
    "gram_backward",
    "gram_matrix",
    "gru_backward",
    "gru_forward",
    "gru_step_backward",
    "gru_step_forward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "rmsprop",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "sgd",
    "sgd_momentum",
    "sigmoid",
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
