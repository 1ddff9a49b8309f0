"""Affine (fully connected) layers, of whole samples and of every step of a sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrnn.backend import Chosen, choose, follow, product_operations, ran, rouse
from fastrnn.cache import Cache
from fastrnn.checks import Arguments

_ROW = "affine"


def affine_forward(x: Any, w: Any, b: Any) -> tuple[np.ndarray, Cache]:
    """``out = x w + b``, each sample of `x` flattened.

    Parameters
    ----------
    x : array_like, shape (N, d1, …, dk)
        Samples; D = d1 · … · dk.
    w : array_like, shape (D, M)
        Weights.
    b : array_like, shape (M,)
        Biases.

    Returns
    -------
    out : ndarray, shape (N, M)
        In the promoted floating dtype of the inputs.
    cache : Cache
        For :func:`affine_backward`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit; the message names the argument.
    """
    function = "affine_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, w))
    check = Arguments(function, place=chosen.place)
    x = check.raw("x", x)
    if x.ndim < 1:
        raise check.fail(ValueError, "x", "have shape (N, d1, ..., dk)", f"shape {x.shape}")
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    flat, w, b = check.floats(("x", flat, "N D"), ("w", w, "D M"), ("b", b, "M"))
    return _forward(function, chosen, check, flat.reshape(x.shape), flat, w, b, (x.shape[0],))


def affine_backward(dout: Any, cache: Cache) -> tuple[np.ndarray, ...]:
    """Gradients of :func:`affine_forward`.

    Parameters
    ----------
    dout : array_like, shape (N, M)
        Gradient of the loss with respect to the output.
    cache : Cache
        From :func:`affine_forward`; it can be used again.

    Returns
    -------
    dx, dw, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`affine_forward`.
    """
    return _backward("affine_backward", "affine_forward", "N M", dout, cache)


def temporal_affine_forward(x: Any, w: Any, b: Any) -> tuple[np.ndarray, Cache]:
    """The same affine layer at every time step: ``out[n, t] = x[n, t] w + b``.

    Parameters
    ----------
    x : array_like, shape (N, T, D)
        Sequences of vectors.
    w : array_like, shape (D, M)
        Weights.
    b : array_like, shape (M,)
        Biases.

    Returns
    -------
    out : ndarray, shape (N, T, M)
        In the promoted floating dtype of the inputs.
    cache : Cache
        For :func:`temporal_affine_backward`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit; the message names the argument.
    """
    function = "temporal_affine_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, w))
    check = Arguments(function, place=chosen.place)
    x, w, b = check.floats(("x", x, "N T D"), ("w", w, "D M"), ("b", b, "M"))
    N, T, D = x.shape
    return _forward(function, chosen, check, x, x.reshape(N * T, D), w, b, (N, T))


def temporal_affine_backward(dout: Any, cache: Cache) -> tuple[np.ndarray, ...]:
    """Gradients of :func:`temporal_affine_forward`.

    Parameters
    ----------
    dout : array_like, shape (N, T, M)
        Gradient of the loss with respect to the output.
    cache : Cache
        From :func:`temporal_affine_forward`; it can be used again.

    Returns
    -------
    dx, dw, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`temporal_affine_forward`.
    """
    return _backward("temporal_affine_backward", "temporal_affine_forward", "N T M", dout, cache)


def _forward(
    function: str,
    chosen: Chosen,
    check: Arguments,
    x: np.ndarray,
    flat: np.ndarray,
    w: Any,
    b: Any,
    rows: tuple[int, ...],
) -> tuple[np.ndarray, Cache]:
    """`x` as it was given, and `flat`, its rows (rows, D)."""
    if chosen.is_reference:
        out, kept = getattr(chosen.kernels, function)(x, w, b)
    else:
        (n, D), M = flat.shape, check["M"]
        sizes = chosen.kernels.affine_buffers(n, D, M, x.itemsize)
        out, kept = chosen.empty((*rows, M), x.dtype), (flat, w, x.shape, sizes[1])
        chosen.kernels.affine_forward(flat, w, b, chosen.buffer(sizes[0], x.dtype), out.reshape(n, M))
    ran(function, chosen)
    return out, Cache(function, chosen.column, x.dtype, check.dims, kept)


def _backward(function: str, forward: str, pattern: str, dout: Any, cache: Any) -> tuple[np.ndarray, ...]:
    cache = Arguments(function).cache(cache, forward)
    chosen = follow(_ROW, function, cache)
    d = cache.dims
    rouse(chosen, 4.0 * d["N"] * d.get("T", 1) * d["D"] * d["M"])
    (dout,) = Arguments(function, d, place=chosen.place).floats(("dout", dout, pattern), dtype=cache.dtype)
    out: tuple[np.ndarray, ...]
    if chosen.is_reference:
        out = getattr(chosen.kernels, function)(dout, cache.kept)
    else:
        x, w, shape, size = cache.kept
        out = tuple(chosen.empty(s, cache.dtype) for s in (shape, w.shape, w.shape[1:]))
        flat = dout.reshape(len(x), w.shape[1])
        chosen.kernels.affine_backward(flat, x, w, chosen.buffer(size, cache.dtype), out[0].reshape(x.shape), *out[1:])
    ran(function, chosen)
    return out
