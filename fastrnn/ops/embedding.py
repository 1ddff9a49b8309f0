"""Word embedding: rows of a table looked up, and their gradients added back."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from fastrnn.backend import Chosen, choose, follow, ran, rouse
from fastrnn.cache import Cache
from fastrnn.checks import Arguments

_ROW = "embedding"


def word_embedding_forward(x: Any, W: Any) -> tuple[np.ndarray, Cache]:
    """Look up the vector of each word.

    Parameters
    ----------
    x : array_like of int, any shape, usually (N, T)
        Word ids, each in ``[0, V)``; any integer dtype and strides. With `W` on a CUDA device they may be a NumPy array
        too; those on the device are checked there, and the call waits for the answer.
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
    chosen = choose(_ROW, W)
    rouse(chosen, _copy_operations(x, W))
    check = Arguments(function, place=chosen.place)
    (W,) = check.floats(("W", W, "V D"))
    ids = check.ids("x", x, check["V"], f"the V = {check['V']} rows of W")
    if chosen.is_reference:
        out, kept = chosen.kernels.word_embedding_forward(ids, W)
    else:
        out = chosen.empty((*ids.shape, check["D"]), W.dtype)
        kept = ids
        chosen.kernels.word_embedding_forward(ids.reshape(-1), W, out.reshape(ids.size, check["D"]))
    ran(function, chosen)
    return out, Cache(function, chosen.column, W.dtype, check.dims, (ids.shape, kept))


@overload
def word_embedding_backward(
    dout: Any, cache: Cache, *, out: np.ndarray | None = None, sparse: Literal[False] = False
) -> np.ndarray: ...


@overload
def word_embedding_backward(
    dout: Any, cache: Cache, *, out: None = None, sparse: Literal[True]
) -> tuple[np.ndarray, np.ndarray]: ...


def word_embedding_backward(
    dout: Any, cache: Cache, *, out: np.ndarray | None = None, sparse: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Gradient of the embedding table: repeated words add up.

    Parameters
    ----------
    dout : array_like, shape ``(*x.shape, D)``
        Gradient of the loss with respect to the vectors that were looked up.
    cache : Cache
        From :func:`word_embedding_forward`; it can be used again.
    out : ndarray, shape (V, D), optional
        An array of the cache's dtype, of any strides, into which the gradient is added. Only the rows of words that
        were used are read or written: the time does not depend on V.
    sparse : bool, optional
        Return the rows of the words that were used, alone. The time and the memory do not depend on V.

    Returns
    -------
    dW : ndarray, shape (V, D)
        0 where a word was not used; or `out` itself.
    rows, values : ndarray of int64, shape (k,), and ndarray, shape (k, D)
        With `sparse`: the k different ids in ascending order, and their rows of the gradient, so that
        ``dW[rows] == values``. On a CUDA device the call waits for k.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, the cache is not one of :func:`word_embedding_forward`, `out` cannot be written
        to or shares memory with `dout`, or `out` is given with `sparse`. Nothing has been modified then.

    Notes
    -----
    The additions and their order depend on the ids alone, so that the result is bitwise the same at any number of
    threads. A row is summed in the order of its word's positions, and in parts, which are then added up in that order,
    where the word has more than 128 positions and more than a 128th of all.
    """
    function = "word_embedding_backward"
    cache = Arguments(function).cache(cache, "word_embedding_forward")
    chosen = follow(_ROW, function, cache)
    check = Arguments(function, place=chosen.place)
    V, D = cache.dims["V"], cache.dims["D"]
    shape, kept = cache.kept
    dout = given = check.raw("dout", dout)
    if dout.shape != (*shape, D):
        raise check.fail(ValueError, "dout", f"have the shape of the output, {(*shape, D)}", f"shape {dout.shape}")
    dout = check.settle(dout, cache.dtype)
    sparse = check.flag("sparse", sparse)
    if out is not None:
        check.destination("out", out, (V, D), cache.dtype, "dout", given)
        if sparse:
            raise check.fail(ValueError, "sparse", "be False where 'out' is given", "True")
    result: Any
    if chosen.is_reference:
        result = chosen.kernels.word_embedding_backward(dout, kept, out=out, sparse=sparse)
    else:
        result = _backward(check, chosen, kept.reshape(-1), dout.reshape(kept.size, D), V, out, sparse)
    ran(function, chosen)
    return result


def _copy_operations(x: Any, W: Any) -> float:
    """Operations that take as long as the copying of ``W[x]`` (csrc/cpu/embedding.cpp); 0 where they are no arrays."""
    return 8.0 * x.size * W.shape[1] if type(x) is np.ndarray and type(W) is np.ndarray and W.ndim == 2 else 0.0


def _backward(
    check: Arguments, chosen: Chosen, ids: np.ndarray, dout: np.ndarray, V: int, out: np.ndarray | None, sparse: bool
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    kernels, empty = chosen.kernels, chosen.empty
    D, dtype = dout.shape[1], dout.dtype
    n = len(ids)
    if max(n - 1, 0).bit_length() + max(V - 1, 0).bit_length() > 64:  # kernels sort numbers made of both
        raise check.fail(ValueError, "cache", "be of ids whose number and range fit 64 bits together", f"{n} below {V}")
    workspace = empty((kernels.word_embedding_buffers(n, V, D, dtype.itemsize),), np.dtype(np.int64))
    if sparse:
        k = kernels.word_embedding_sort(ids, V, D, dtype.itemsize, workspace)
        rows, values = empty((k,), np.dtype(np.int64)), empty((k, D), dtype)
        kernels.word_embedding_sparse(dout, V, workspace, rows, values)
        return rows, values
    if out is None:
        dW = empty((V, D), dtype)
        kernels.word_embedding_backward(ids, dout, workspace, dW, False)
        return dW
    dW = check.settle(out, dtype)  # a copy if it is not aligned
    kernels.word_embedding_backward(ids, dout, workspace, dW, True)
    if dW is not out:
        out[...] = dW
    return out
