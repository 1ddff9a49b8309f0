"""Word embedding: rows of a table looked up, and their gradients added back."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import choose, follow, ran
from fastrnn.cache import Cache, buffer, empty
from fastrnn.checks import Arguments

_ROW = "embedding"


def word_embedding_forward(x: Any, W: Any) -> tuple[np.ndarray, Cache]:
    """Look up the vector of each word.

    Parameters
    ----------
    x : array_like of int, any shape, usually (N, T)
        Word ids, each in ``[0, V)``; any integer dtype and strides.
    W : array_like, shape (V, D)
        One vector a word.

    Returns
    -------
    out : ndarray, shape (*x.shape, D)
        ``W[x]``, in the floating dtype of `W`.
    cache : Cache
        For :func:`word_embedding_backward`.

    Raises
    ------
    IndexError
        An id is negative or not below V; the message gives it and its position.
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    function = "word_embedding_forward"
    check = Arguments(function)
    (W,) = check.floats(("W", W, "V D"))
    ids = check.ids("x", x, check["V"], f"the V = {check['V']} rows of W")
    chosen = choose(_ROW)
    if chosen.is_reference:
        out, kept = chosen.kernels.word_embedding_forward(ids, W)
    else:
        out = empty((*ids.shape, check["D"]), W.dtype)
        kept = ids
        chosen.kernels.word_embedding_forward(ids.reshape(-1), W, out.reshape(ids.size, check["D"]))
    ran(function, chosen)
    return out, Cache(function, chosen.name, W.dtype, check.dims, (ids.shape, kept))


def word_embedding_backward(dout: Any, cache: Cache) -> np.ndarray:
    """Gradient of the embedding table: repeated words add up.

    Parameters
    ----------
    dout : array_like, shape (*x.shape, D)
        Gradient of the loss with respect to the vectors that were looked up.
    cache : Cache
        From :func:`word_embedding_forward`; it can be used again.

    Returns
    -------
    dW : ndarray, shape (V, D)
        0 where a word was not used. Each row is summed by one thread in the order of its words' positions: the result
        is bitwise the same at any number of threads.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`word_embedding_forward`.
    """
    function = "word_embedding_backward"
    cache = Arguments(function).cache(cache, "word_embedding_forward")
    check = Arguments(function)
    V, D = cache.dims["V"], cache.dims["D"]
    shape, kept = cache.kept
    dout = check.raw("dout", dout)
    if dout.shape != (*shape, D):
        raise check.fail(ValueError, "dout", f"have the shape of the output, {(*shape, D)}", f"shape {dout.shape}")
    dout = check.settle(dout, cache.dtype)
    chosen = follow(_ROW, function, cache)
    if chosen.is_reference:
        dW = chosen.kernels.word_embedding_backward(dout, kept)
    else:
        dW = empty((V, D), cache.dtype)
        workspace = buffer(V + 1 + kept.size, np.int64)
        chosen.kernels.word_embedding_backward(kept.reshape(-1), dout.reshape(kept.size, D), workspace, dW)
    ran(function, chosen)
    return dW
