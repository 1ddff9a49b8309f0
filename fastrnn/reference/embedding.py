"""Word embedding: a table look-up, whose gradient is a scatter-add."""

from __future__ import annotations

from typing import Any

import numpy as np


def word_embedding_forward(x: np.ndarray | int, W: np.ndarray) -> tuple[np.ndarray, Any]:
    """Replace each word by its vector: ``out[n, t] = W[x[n, t]]``.

    Parameters
    ----------
    x : integer word ids 0..V-1 of any shape, a scalar included; usually (N, T)
    W : (V, D) one vector for each word of the vocabulary

    Returns
    -------
    out : x.shape + (D,), a copy of the rows
    cache : what `word_embedding_backward` needs

    References
    ----------
    Y. Bengio, R. Ducharme, P. Vincent and C. Jauvin, "A neural probabilistic language model", JMLR 3 (2003):
    the shared matrix C.
    """
    ids = np.array(x).astype(np.intp, casting="same_kind")  # a copy; float ids are an error
    return np.take(W, ids, axis=0), (ids, W)


def word_embedding_backward(dout: np.ndarray, cache: Any) -> np.ndarray:
    """Gradient of the table: ``dW[v]`` is the sum of ``dout[n, t]`` over all places where ``x[n, t] == v``.

    Parameters
    ----------
    dout : x.shape + (D,) gradient of the loss with respect to out
    cache : from `word_embedding_forward`

    Returns
    -------
    dW : (V, D), 0 in the rows of words that did not occur
    """
    ids, W = cache
    dW = np.zeros(W.shape, W.dtype)
    np.add.at(dW, ids, dout)  # unlike dW[ids] += dout, this counts repeated words each time
    return dW
