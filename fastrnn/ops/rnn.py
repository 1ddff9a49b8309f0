"""Vanilla (Elman) recurrent network: one step, and whole sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import Chosen, choose, follow, product_operations, ran, rouse
from fastrnn.cache import Cache
from fastrnn.checks import Arguments

_ROW = "rnn"


def rnn_step_forward(x: Any, prev_h: Any, Wx: Any, Wh: Any, b: Any) -> tuple[np.ndarray, Cache]:
    """One step of a vanilla RNN: ``h' = tanh(x Wx + h Wh + b)`` (Elman 1990).

    Parameters
    ----------
    x : array_like, shape (N, D)
        Inputs; a vector ``(D,)`` is broadcast against the N states.
    prev_h : array_like, shape (N, H)
        Hidden state before the step.
    Wx : array_like, shape (D, H)
        Input weights.
    Wh : array_like, shape (H, H)
        Recurrent weights.
    b : array_like, shape (H,)
        Biases.

    Returns
    -------
    next_h : ndarray, shape (N, H)
        State after the step, in the promoted floating dtype of the inputs.
    cache : Cache
        For :func:`rnn_step_backward`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit; the message names the argument.
    """
    function = "rnn_step_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, Wx))
    check = Arguments(function, place=chosen.place, halves=chosen.column == "cuda")
    x = check.raw("x", x)
    vector = x.ndim == 1
    x, prev_h, Wx, Wh, b = check.floats(
        ("x", x, "D" if vector else "N D"),
        ("prev_h", prev_h, "N H"),
        ("Wx", Wx, "D H"),
        ("Wh", Wh, "H H"),
        ("b", b, "H"),
    )
    if chosen.is_reference:
        next_h, kept = chosen.kernels.rnn_step_forward(x, prev_h, Wx, Wh, b)
    else:
        rows = chosen.xp.broadcast_to(x, (check["N"], check["D"]))[:, None]
        h, _, kept = _run(chosen, check, rows, prev_h, Wx, Wh, b, None, False)
        next_h = h[:, 0]
    ran(function, chosen, x.dtype, check.dims)
    return next_h, Cache(function, chosen.column, x.dtype, check.dims, (vector, kept))


def rnn_step_backward(dnext_h: Any, cache: Cache) -> tuple[np.ndarray, ...]:
    """Gradients of one step of a vanilla RNN.

    Parameters
    ----------
    dnext_h : array_like, shape (N, H)
        Gradient of the loss with respect to the state after the step.
    cache : Cache
        From :func:`rnn_step_forward`; it can be used again.

    Returns
    -------
    dx, dprev_h, dWx, dWh, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`rnn_step_forward`.
    """
    function = "rnn_step_backward"
    cache = Arguments(function).cache(cache, "rnn_step_forward")
    chosen = follow(_ROW, function, cache)
    rouse(chosen, _operations(cache))
    check = Arguments(function, cache.dims, place=chosen.place, halves=chosen.column == "cuda")
    (dnext_h,) = check.floats(("dnext_h", dnext_h, "N H"), dtype=cache.dtype)
    vector, kept = cache.kept
    if chosen.is_reference:
        dx, dh0, dWx, dWh, db = chosen.kernels.rnn_step_backward(dnext_h, kept)
    else:
        dx, dh0, dWx, dWh, db = _run_backward(chosen, cache, dnext_h[:, None], None, kept)
        dx = dx[:, 0].sum(axis=0) if vector else dx[:, 0]
    ran(function, chosen, cache.dtype, cache.dims)
    return dx, dh0, dWx, dWh, db


def rnn_forward(
    x: Any,
    h0: Any,
    Wx: Any,
    Wh: Any,
    b: Any,
    *,
    lengths: Any = None,
    reverse: bool = False,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """A vanilla RNN over whole sequences, in one call.

    Parameters
    ----------
    x : array_like, shape (N, T, D)
        Input sequences, batch first.
    h0 : array_like, shape (N, H)
        Initial hidden state.
    Wx : array_like, shape (D, H)
        Input weights.
    Wh : array_like, shape (H, H)
        Recurrent weights.
    b : array_like, shape (H,)
        Biases.
    lengths : array_like of int, shape (N,), optional
        Valid steps of each sequence, 0 to T. Later steps are not run: their `h` is 0. A NumPy array serves in a call on
        a CUDA device too, and is better there: it is looked at on the host, and an array on the device waited for.
    reverse : bool, optional
        Run each sequence from its last valid step to its first. Outputs stay at their own step.
    return_state : bool, optional
        Also return the state after the last step that was run.

    Returns
    -------
    h : ndarray, shape (N, T, H)
        Hidden states of all steps.
    h_n : ndarray, shape (N, H)
        Final state, only with `return_state`.
    cache : Cache
        For :func:`rnn_backward`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit; the message names the argument.

    Notes
    -----
    Inputs may have any strides and byte order and are never modified. All are computed in their promoted floating
    dtype, float32 or float64; an input of another dtype is copied once.

    On backend ``cuda`` that may be float16 too. The operands of products are then halves, multiplied on tensor cores
    and summed in float32; gates, the states that pass from step to step and all that is kept for the backward pass are
    float32, and results are rounded to float16 at the end. Gradients by the pre-activations are operands as well:
    below 6e-8 they are 0, from 65520 on infinite, as elsewhere in half precision (losses are scaled for that).
    """
    function = "rnn_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, Wx))
    check = Arguments(function, place=chosen.place, halves=chosen.column == "cuda")
    x, h0, Wx, Wh, b = check.floats(
        ("x", x, "N T D"), ("h0", h0, "N H"), ("Wx", Wx, "D H"), ("Wh", Wh, "H H"), ("b", b, "H")
    )
    lengths = check.lengths(lengths)
    reverse = check.flag("reverse", reverse)
    return_state = check.flag("return_state", return_state)
    if chosen.is_reference:
        h, h_n, kept = chosen.kernels.rnn_forward(x, h0, Wx, Wh, b, lengths=lengths, reverse=reverse, return_state=True)
    else:
        h, h_n, kept = _run(chosen, check, x, h0, Wx, Wh, b, lengths, reverse)
    ran(function, chosen, x.dtype, check.dims)
    cache = Cache(function, chosen.column, x.dtype, check.dims, kept)
    return (h, h_n, cache) if return_state else (h, cache)


def rnn_backward(dh: Any, cache: Cache, *, dh_n: Any = None) -> tuple[np.ndarray, ...]:
    """Gradients of :func:`rnn_forward`.

    Parameters
    ----------
    dh : array_like, shape (N, T, H)
        Gradient of the loss with respect to each `h`: the per-step losses' own, not what steps pass to each other.
        It is not looked at beyond a sequence's length.
    cache : Cache
        From :func:`rnn_forward`; it can be used again.
    dh_n : array_like, shape (N, H), optional
        Gradient with respect to the returned final state.

    Returns
    -------
    dx, dh0, dWx, dWh, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`rnn_forward`.
    """
    function = "rnn_backward"
    cache = Arguments(function).cache(cache, "rnn_forward")
    chosen = follow(_ROW, function, cache)
    rouse(chosen, _operations(cache))
    check = Arguments(function, cache.dims, place=chosen.place, halves=chosen.column == "cuda")
    dh, dh_n = check.floats(("dh", dh, "N T H"), ("dh_n", dh_n, "N H?"), dtype=cache.dtype)
    if chosen.is_reference:
        out = chosen.kernels.rnn_backward(dh, cache.kept, dh_n=dh_n)
    else:
        out = _run_backward(chosen, cache, dh, dh_n, cache.kept)
    ran(function, chosen, cache.dtype, cache.dims)
    return out


def _run(
    chosen: Chosen, check: Arguments, x: Any, h0: Any, Wx: Any, Wh: Any, b: Any, lengths: Any, reverse: bool
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Allocate, and run the sequence kernel: h, the final state, and what backward needs."""
    N, H = h0.shape
    T, D, dtype = x.shape[1], check["D"], x.dtype
    h, h_n = chosen.empty((N, T, H), dtype), chosen.empty((N, H), dtype)
    sizes = chosen.kernels.rnn_buffers(N, T, D, H, dtype.itemsize)
    reserve = chosen.buffer(sizes[0], dtype)
    chosen.kernels.rnn_forward(x, h0, Wx, Wh, b, lengths, reverse, h, h_n, reserve, chosen.buffer(sizes[1], dtype))
    return h, h_n, (x, h0, Wx, Wh, lengths, reverse, reserve, sizes[2])


def _run_backward(chosen: Chosen, cache: Cache, dh: Any, dh_n: Any, kept: Any) -> tuple[np.ndarray, ...]:
    x, h0, Wx, Wh, lengths, reverse, reserve, size = kept
    dtype = cache.dtype
    dx, dWx, dWh = chosen.empty(x.shape, dtype), chosen.empty(Wx.shape, dtype), chosen.empty(Wh.shape, dtype)
    dh0, db = chosen.empty(h0.shape, dtype), chosen.empty(Wx.shape[1:], dtype)
    chosen.kernels.rnn_backward(
        dh, dh_n, x, h0, Wx, Wh, lengths, reverse, reserve, chosen.buffer(size, dtype), dx, dh0, dWx, dWh, db
    )
    return dx, dh0, dWx, dWh, db


def _operations(cache: Cache) -> float:
    """Floating-point operations of a backward pass."""
    d = cache.dims
    return 4.0 * d["N"] * d.get("T", 1) * (d["D"] + d["H"]) * d["H"]
