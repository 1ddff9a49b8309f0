"""Long short-term memory: one step, and a loop of steps over time. Gate order i, f, o, g."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rnn import running_rows


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function ``1 / (1 + exp(-x))``, with no overflow at either end.

    Both numerator and denominator are multiplied by exp(x) where x < 0, so that exp only ever sees arguments <= 0.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    array of the same shape, between 0 and 1
    """
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def lstm_step_forward(
    x: np.ndarray, prev_h: np.ndarray, prev_c: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Any]:
    """One step of an LSTM::

        a = x Wx + h Wh + b                                     (a_i, a_f, a_o, a_g: each H columns)
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      input, forget and output gate
        g = tanh(a_g)                                           candidate
        c' = f c + i g
        h' = o tanh(c')

    Parameters
    ----------
    x : (N, D) input, or (D,) for one input that all N sequences share
    prev_h : (N, H) hidden state before the step
    prev_c : (N, H) cell state before the step
    Wx : (D, 4H) input weights
    Wh : (H, 4H) recurrent weights
    b : (4H,) bias

    Returns
    -------
    next_h : (N, H) hidden state after the step
    next_c : (N, H) cell state after the step
    cache : what `lstm_step_backward` needs

    References
    ----------
    S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997);
    the forget gate: F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget", Neural Computation 12 (2000).
    """
    a_i, a_f, a_o, a_g = np.split(x @ Wx + prev_h @ Wh + b, 4, axis=1)
    i, f, o, g = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o), np.tanh(a_g)
    next_c = f * prev_c + i * g
    # backward needs tanh(c') itself: next_h / o would be 0 / 0 where o underflows.
    tanh_c = np.tanh(next_c)
    next_h = o * tanh_c
    return next_h, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c)


def lstm_step_backward(dnext_h: np.ndarray, dnext_c: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    """Gradients of one step.

    With ``dc = dc' + dh' o (1 - tanh(c')^2)`` the total gradient of the new cell state::

        da_i = dc g i (1 - i)            da_o = dh' tanh(c') o (1 - o)
        da_f = dc c f (1 - f)            da_g = dc i (1 - g^2)

    Parameters
    ----------
    dnext_h : (N, H) gradient of the loss with respect to next_h
    dnext_c : (N, H) gradient of the loss with respect to next_c
    cache : from `lstm_step_forward`

    Returns
    -------
    dx : like x; summed over the batch where one input was shared
    dprev_h : (N, H)
    dprev_c : (N, H)
    dWx : (D, 4H)
    dWh : (H, 4H)
    db : (4H,)
    """
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c = cache
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)  # a new array: dnext_c stays the caller's
    da_i = dc * g * i * (1 - i)
    da_f = dc * prev_c * f * (1 - f)
    da_o = dnext_h * tanh_c * o * (1 - o)
    da_g = dc * i * (1 - g**2)
    da = np.concatenate([da_i, da_f, da_o, da_g], axis=1)

    dx = da @ Wx.T
    if x.ndim == 1:
        dx = dx.sum(axis=0)
    dprev_h = da @ Wh.T
    dprev_c = dc * f
    dWx = np.broadcast_to(x, (len(da), len(Wx))).T @ da
    dWh = prev_h.T @ da
    db = da.sum(axis=0)
    return dx, dprev_h, dprev_c, dWx, dWh, db


def lstm_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    c0: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """Run an LSTM over N sequences of T steps.

    Parameters
    ----------
    x : (N, T, D) inputs
    h0 : (N, H) initial hidden state
    Wx : (D, 4H) input weights
    Wh : (H, 4H) recurrent weights
    b : (4H,) bias
    c0 : (N, H) initial cell state, or None for zero
    lengths : (N,) integers 0..T; step t of sequence n is run only where t < lengths[n]
    reverse : run each sequence from its last step to its first; outputs stay at their own t
    return_state : also return the states after the last step that was run

    Returns
    -------
    h : (N, T, H) hidden states, 0 at steps that were not run
    (h_n, c_n) : (N, H) each, final states, the initial ones for sequences of length 0; only with `return_state`
    cache : what `lstm_backward` needs
    """
    N, T, _ = x.shape
    arrays = (x, h0, Wx, Wh, b) if c0 is None else (x, h0, Wx, Wh, b, c0)
    h = np.zeros((N, T, h0.shape[1]), np.result_type(*arrays, np.float16))  # float16: integers become floats
    h_state = h0.astype(h.dtype)
    c_state = np.zeros(h0.shape, h.dtype) if c0 is None else c0.astype(h.dtype)
    steps = []
    for t, rows in running_rows(T, lengths, reverse):
        next_h, next_c, step_cache = lstm_step_forward(x[rows, t], h_state[rows], c_state[rows], Wx, Wh, b)
        h[rows, t] = next_h
        h_state, c_state = h_state.copy(), c_state.copy()  # the step's cache still refers to the states before it
        h_state[rows], c_state[rows] = next_h, next_c
        steps.append((t, rows, step_cache))
    cache = (x, Wx, Wh, b, h_state, c0 is not None, steps)
    return (h, (h_state.copy(), c_state), cache) if return_state else (h, cache)


def lstm_backward(
    dh: np.ndarray, cache: Any, *, dh_n: np.ndarray | None = None, dc_n: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """Backpropagation through time.

    Parameters
    ----------
    dh : (N, T, H) gradient of the loss with respect to each output h[:, t] itself, not what flows between steps;
        ignored at steps that were not run
    cache : from `lstm_forward`
    dh_n, dc_n : (N, H) gradients with respect to the final states, or None for zero

    Returns
    -------
    dx : (N, T, D), 0 at steps that were not run
    dh0 : (N, H)
    dWx : (D, 4H)
    dWh : (H, 4H)
    db : (4H,)
    dc0 : (N, H); only where c0 was given to forward
    """
    x, Wx, Wh, b, h_n, c0_given, steps = cache
    dtype = h_n.dtype
    dx, dWx, dWh, db = (np.zeros(array.shape, dtype) for array in (x, Wx, Wh, b))
    dh_state = np.zeros(h_n.shape, dtype) if dh_n is None else dh_n.astype(dtype)
    dc_state = np.zeros(h_n.shape, dtype) if dc_n is None else dc_n.astype(dtype)
    for t, rows, step_cache in reversed(steps):
        # A hidden state is used twice: as the output at t and as the input of the step after it.
        gradients = lstm_step_backward(dh[rows, t] + dh_state[rows], dc_state[rows], step_cache)
        dx[rows, t] = gradients[0]
        dh_state[rows] = gradients[1]
        dc_state[rows] = gradients[2]
        dWx += gradients[3]
        dWh += gradients[4]
        db += gradients[5]
    gradients = (dx, dh_state, dWx, dWh, db)
    return (*gradients, dc_state) if c0_given else gradients
