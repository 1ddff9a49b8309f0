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


def word_embedding_backward(
    dout: np.ndarray, cache: Any, *, out: np.ndarray | None = None, sparse: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Gradient of the table: ``dW[v]`` is the sum of ``dout[n, t]`` over all places where ``x[n, t] == v``.

    Parameters
    ----------
    dout : x.shape + (D,) gradient of the loss with respect to out
    cache : from `word_embedding_forward`
    out : (V, D) an array to which the gradient is added
    sparse : return only the rows of the k different words that occur

    Returns
    -------
    dW : (V, D), 0 in the rows of words that did not occur; or `out`
    rows, values : with `sparse`, (k,) the words in ascending order, and (k, D) their rows of dW
    """
    ids, W = cache
    if sparse:
        rows, index = np.unique(ids, return_inverse=True)
        values = np.zeros((len(rows), W.shape[1]), W.dtype)
        np.add.at(values, index.reshape(ids.shape), dout)
        return rows.astype(np.int64), values
    dW = np.zeros(W.shape, W.dtype) if out is None else out
    np.add.at(dW, ids, dout)  # unlike dW[ids] += dout, this counts repeated words each time
    return dW
