"""Long short-term memory: one step, and whole sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import Chosen, choose, follow, product_operations, ran, rouse
from fastrnn.cache import Cache
from fastrnn.checks import Arguments

_ROW = "lstm"


def lstm_step_forward(
    x: Any, prev_h: Any, prev_c: Any, Wx: Any, Wh: Any, b: Any
) -> tuple[np.ndarray, np.ndarray, Cache]:
    """One LSTM step.

    ``a = x Wx + h Wh + b`` split in four gives ``i, f, o = sigmoid(a_i, a_f, a_o)`` and ``g = tanh(a_g)``; then
    ``c' = f c + i g`` and ``h' = o tanh(c')`` (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

    Parameters
    ----------
    x : array_like, shape (N, D)
        Inputs; a vector ``(D,)`` is broadcast against the N states.
    prev_h, prev_c : array_like, shape (N, H)
        Hidden and cell state before the step.
    Wx : array_like, shape (D, 4H)
        Input weights, gate order i, f, o, g.
    Wh : array_like, shape (H, 4H)
        Recurrent weights.
    b : array_like, shape (4H,)
        Biases.

    Returns
    -------
    next_h, next_c : ndarray, shape (N, H)
        States after the step, in the promoted floating dtype of the inputs.
    cache : Cache
        For :func:`lstm_step_backward`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit; the message names the argument.
    """
    function = "lstm_step_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, Wx))
    check = Arguments(function, place=chosen.place, halves=chosen.column == "cuda")
    x = check.raw("x", x)
    vector = x.ndim == 1
    x, prev_h, prev_c, Wx, Wh, b = check.floats(
        ("x", x, "D" if vector else "N D"),
        ("prev_h", prev_h, "N H"),
        ("prev_c", prev_c, "N H"),
        ("Wx", Wx, "D 4H"),
        ("Wh", Wh, "H 4H"),
        ("b", b, "4H"),
    )
    if chosen.is_reference:
        next_h, next_c, kept = chosen.kernels.lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b)
    else:
        rows = chosen.xp.broadcast_to(x, (check["N"], check["D"]))[:, None]
        h, states, kept = _run(chosen, check, rows, prev_h, prev_c, Wx, Wh, b, None, False)
        next_h, next_c = h[:, 0], states[1]
    ran(function, chosen, x.dtype, check.dims)
    return next_h, next_c, Cache(function, chosen.column, x.dtype, check.dims, (vector, kept))


def lstm_step_backward(dnext_h: Any, dnext_c: Any, cache: Cache) -> tuple[np.ndarray, ...]:
    """Gradients of one LSTM step.

    Parameters
    ----------
    dnext_h, dnext_c : array_like, shape (N, H)
        Gradients of the loss with respect to the states after the step.
    cache : Cache
        From :func:`lstm_step_forward`; it can be used again.

    Returns
    -------
    dx, dprev_h, dprev_c, dWx, dWh, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`lstm_step_forward`.
    """
    function = "lstm_step_backward"
    cache = Arguments(function).cache(cache, "lstm_step_forward")
    chosen = follow(_ROW, function, cache)
    rouse(chosen, _operations(cache))
    check = Arguments(function, cache.dims, place=chosen.place, halves=chosen.column == "cuda")
    dnext_h, dnext_c = check.floats(("dnext_h", dnext_h, "N H"), ("dnext_c", dnext_c, "N H"), dtype=cache.dtype)
    vector, kept = cache.kept
    if chosen.is_reference:
        dx, dh0, dc0, dWx, dWh, db = chosen.kernels.lstm_step_backward(dnext_h, dnext_c, kept)
    else:
        dx, dh0, dc0, dWx, dWh, db = _run_backward(chosen, cache, dnext_h[:, None], None, dnext_c, kept)
        dx = dx[:, 0].sum(axis=0) if vector else dx[:, 0]
    ran(function, chosen, cache.dtype, cache.dims)
    return dx, dh0, dc0, dWx, dWh, db


def lstm_forward(
    x: Any,
    h0: Any,
    Wx: Any,
    Wh: Any,
    b: Any,
    *,
    c0: Any = None,
    lengths: Any = None,
    reverse: bool = False,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """An LSTM over whole sequences, in one call.

    The step is that of :func:`lstm_step_forward`; the cell state starts at zero unless `c0` is given.

    Parameters
    ----------
    x : array_like, shape (N, T, D)
        Input sequences, batch first.
    h0 : array_like, shape (N, H)
        Initial hidden state.
    Wx : array_like, shape (D, 4H)
        Input weights, gate order i, f, o, g (PyTorch's is i, f, g, o).
    Wh : array_like, shape (H, 4H)
        Recurrent weights.
    b : array_like, shape (4H,)
        Biases.
    c0 : array_like, shape (N, H), optional
        Initial cell state; :func:`lstm_backward` then also returns its gradient.
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
    (h_n, c_n) : tuple of ndarray, shape (N, H)
        Final states, only with `return_state`.
    cache : Cache
        For :func:`lstm_backward`.

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
    function = "lstm_forward"
    chosen = choose(_ROW, x)
    rouse(chosen, product_operations(x, Wx))
    check = Arguments(function, place=chosen.place, halves=chosen.column == "cuda")
    x, h0, Wx, Wh, b, c0 = check.floats(
        ("x", x, "N T D"),
        ("h0", h0, "N H"),
        ("Wx", Wx, "D 4H"),
        ("Wh", Wh, "H 4H"),
        ("b", b, "4H"),
        ("c0", c0, "N H?"),
    )
    lengths = check.lengths(lengths)
    reverse = check.flag("reverse", reverse)
    return_state = check.flag("return_state", return_state)
    if chosen.is_reference:
        h, (h_n, c_n), kept = chosen.kernels.lstm_forward(
            x, h0, Wx, Wh, b, c0=c0, lengths=lengths, reverse=reverse, return_state=True
        )
    else:
        h, (h_n, c_n), kept = _run(chosen, check, x, h0, c0, Wx, Wh, b, lengths, reverse)
    ran(function, chosen, x.dtype, check.dims)
    cache = Cache(function, chosen.column, x.dtype, check.dims, (c0 is not None, kept))
    return (h, (h_n, c_n), cache) if return_state else (h, cache)


def lstm_backward(dh: Any, cache: Cache, *, dh_n: Any = None, dc_n: Any = None) -> tuple[np.ndarray, ...]:
    """Gradients of :func:`lstm_forward`.

    Parameters
    ----------
    dh : array_like, shape (N, T, H)
        Gradient of the loss with respect to each `h`: the per-step losses' own, not what steps pass to each other.
        It is not looked at beyond a sequence's length.
    cache : Cache
        From :func:`lstm_forward`; it can be used again.
    dh_n, dc_n : array_like, shape (N, H), optional
        Gradients with respect to the returned final states.

    Returns
    -------
    dx, dh0, dWx, dWh, db : ndarray
        Gradients, each of its argument's shape, in the dtype of the forward pass.
    dc0 : ndarray, shape (N, H)
        Last, and only if `c0` was given to the forward pass.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit, or the cache is not one of :func:`lstm_forward`.
    """
    function = "lstm_backward"
    cache = Arguments(function).cache(cache, "lstm_forward")
    chosen = follow(_ROW, function, cache)
    rouse(chosen, _operations(cache))
    check = Arguments(function, cache.dims, place=chosen.place, halves=chosen.column == "cuda")
    dh, dh_n, dc_n = check.floats(
        ("dh", dh, "N T H"), ("dh_n", dh_n, "N H?"), ("dc_n", dc_n, "N H?"), dtype=cache.dtype
    )
    given_c0, kept = cache.kept
    if chosen.is_reference:
        out = chosen.kernels.lstm_backward(dh, kept, dh_n=dh_n, dc_n=dc_n)
    else:
        dx, dh0, dc0, dWx, dWh, db = _run_backward(chosen, cache, dh, dh_n, dc_n, kept)
        out = (dx, dh0, dWx, dWh, db) + ((dc0,) if given_c0 else ())
    ran(function, chosen, cache.dtype, cache.dims)
    return out


def _run(
    chosen: Chosen, check: Arguments, x: Any, h0: Any, c0: Any, Wx: Any, Wh: Any, b: Any, lengths: Any, reverse: bool
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Allocate, and run the sequence kernel: h, the final states stacked (2, N, H), and what backward needs."""
    N, H = h0.shape
    T, D, dtype = x.shape[1], check["D"], x.dtype
    h = chosen.empty((N, T, H), dtype)
    states = chosen.empty((2, N, H), dtype)
    sizes = chosen.kernels.lstm_buffers(N, T, D, H, dtype.itemsize)
    reserve = chosen.buffer(sizes[0], dtype)
    chosen.kernels.lstm_forward(
        x, h0, c0, Wx, Wh, b, lengths, reverse, h, states[0], states[1], reserve, chosen.buffer(sizes[1], dtype)
    )
    return h, states, (x, h0, c0, Wx, Wh, lengths, reverse, reserve, sizes[2])


def _run_backward(chosen: Chosen, cache: Cache, dh: Any, dh_n: Any, dc_n: Any, kept: Any) -> tuple[np.ndarray, ...]:
    x, h0, c0, Wx, Wh, lengths, reverse, reserve, size = kept
    dtype = cache.dtype
    dx, dWx, dWh = chosen.empty(x.shape, dtype), chosen.empty(Wx.shape, dtype), chosen.empty(Wh.shape, dtype)
    dh0, dc0, db = chosen.empty(h0.shape, dtype), chosen.empty(h0.shape, dtype), chosen.empty(Wx.shape[1:], dtype)
    workspace = chosen.buffer(size, dtype)
    chosen.kernels.lstm_backward(
        dh, dh_n, dc_n, x, h0, c0, Wx, Wh, lengths, reverse, reserve, workspace, dx, dh0, dc0, dWx, dWh, db
    )
    return dx, dh0, dc0, dWx, dWh, db


def _operations(cache: Cache) -> float:
    """Floating-point operations of a backward pass."""
    d = cache.dims
    return 4.0 * d["N"] * d.get("T", 1) * (d["D"] + d["H"]) * d["H"] * 4
