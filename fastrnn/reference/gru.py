"""Gated recurrent unit: one step, and a loop of steps over time. Gate order r, z, n."""

from __future__ import annotations

from typing import Any

import numpy as np

from .lstm import sigmoid
from .rnn import running_rows


def gru_step_forward(
    x: np.ndarray,
    prev_h: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    bh: np.ndarray | None = None,
) -> tuple[np.ndarray, Any]:
    """One step of a GRU whose reset gate acts after the recurrent product::

        p = x Wx + b        q = h Wh + bh           (each: r, z, n, H columns apiece)
        r = sigmoid(p_r + q_r)                      reset gate
        z = sigmoid(p_z + q_z)                      update gate
        n = tanh(p_n + r q_n)                       candidate
        h' = (1 - z) n + z h

    Parameters
    ----------
    x : (N, D) input, or (D,) for one input that all N sequences share
    prev_h : (N, H) hidden state before the step
    Wx : (D, 3H) input weights
    Wh : (H, 3H) recurrent weights
    b : (3H,) bias of the input product
    bh : (3H,) bias of the recurrent product, or None for zero

    Returns
    -------
    next_h : (N, H) hidden state after the step
    cache : what `gru_step_backward` needs

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    EMNLP 2014, equations 5 to 8. There the reset gate multiplies h before the product and z is 1 - z; the form
    here is that of cuDNN and PyTorch, whose recurrent product can be computed in one piece.
    """
    p = x @ Wx + b
    q = prev_h @ Wh if bh is None else prev_h @ Wh + bh
    p_r, p_z, p_n = np.split(p, 3, axis=-1)
    q_r, q_z, q_n = np.split(q, 3, axis=-1)
    r, z = sigmoid(p_r + q_r), sigmoid(p_z + q_z)
    n = np.tanh(p_n + r * q_n)
    next_h = (1 - z) * n + z * prev_h
    return next_h, (x, prev_h, Wx, Wh, bh is not None, r, z, n, q_n)


def gru_step_backward(dnext_h: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    """Gradients of one step::

        dp_n = dh' (1 - z) (1 - n^2)          dq_n = dp_n r
        dp_z = dq_z = dh' (h - n) z (1 - z)   dp_r = dq_r = dp_n q_n r (1 - r)

    Parameters
    ----------
    dnext_h : (N, H) gradient of the loss with respect to next_h
    cache : from `gru_step_forward`

    Returns
    -------
    dx : like x; summed over the batch where one input was shared
    dprev_h : (N, H)
    dWx : (D, 3H)
    dWh : (H, 3H)
    db : (3H,)
    dbh : (3H,); only where bh was given to forward
    """
    x, prev_h, Wx, Wh, bh_given, r, z, n, q_n = cache
    dp_n = dnext_h * (1 - z) * (1 - n**2)
    dp_z = dnext_h * (prev_h - n) * z * (1 - z)
    dp_r = dp_n * q_n * r * (1 - r)
    dp = np.concatenate([dp_r, dp_z, dp_n], axis=1)
    dq = np.concatenate([dp_r, dp_z, dp_n * r], axis=1)

    dx = dp @ Wx.T
    if x.ndim == 1:
        dx = dx.sum(axis=0)
    dprev_h = dnext_h * z + dq @ Wh.T
    dWx = np.broadcast_to(x, (len(dp), len(Wx))).T @ dp
    dWh = prev_h.T @ dq
    gradients = (dx, dprev_h, dWx, dWh, dp.sum(axis=0))
    return (*gradients, dq.sum(axis=0)) if bh_given else gradients


def gru_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    bh: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """Run a GRU over N sequences of T steps.

    Parameters
    ----------
    x : (N, T, D) inputs
    h0 : (N, H) initial hidden state
    Wx : (D, 3H) input weights
    Wh : (H, 3H) recurrent weights
    b : (3H,) bias of the input product
    bh : (3H,) bias of the recurrent product, or None for zero
    lengths : (N,) integers 0..T; step t of sequence n is run only where t < lengths[n]
    reverse : run each sequence from its last step to its first; outputs stay at their own t
    return_state : also return the state after the last step that was run

    Returns
    -------
    h : (N, T, H) hidden states, 0 at steps that were not run
    h_n : (N, H) final hidden state, h0 for sequences of length 0; only with `return_state`
    cache : what `gru_backward` needs
    """
    N, T, _ = x.shape
    arrays = (x, h0, Wx, Wh, b) if bh is None else (x, h0, Wx, Wh, b, bh)
    h = np.zeros((N, T, h0.shape[1]), np.result_type(*arrays, np.float16))  # float16: integers become floats
    state = h0.astype(h.dtype)
    steps = []
    for t, rows in running_rows(T, lengths, reverse):
        next_h, step_cache = gru_step_forward(x[rows, t], state[rows], Wx, Wh, b, bh=bh)
        h[rows, t] = next_h
        state = state.copy()  # the step's cache still refers to the state before it
        state[rows] = next_h
        steps.append((t, rows, step_cache))
    cache = (x, Wx, Wh, b, state, bh is not None, steps)
    return (h, state.copy(), cache) if return_state else (h, cache)


def gru_backward(dh: np.ndarray, cache: Any, *, dh_n: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Backpropagation through time.

    Parameters
    ----------
    dh : (N, T, H) gradient of the loss with respect to each output h[:, t] itself, not what flows between steps;
        ignored at steps that were not run
    cache : from `gru_forward`
    dh_n : (N, H) gradient with respect to the final state, or None for zero

    Returns
    -------
    dx : (N, T, D), 0 at steps that were not run
    dh0 : (N, H)
    dWx : (D, 3H)
    dWh : (H, 3H)
    db : (3H,)
    dbh : (3H,); only where bh was given to forward
    """
    x, Wx, Wh, b, h_n, bh_given, steps = cache
    dtype = h_n.dtype
    dx, dWx, dWh, db, dbh = (np.zeros(array.shape, dtype) for array in (x, Wx, Wh, b, b))
    dstate = np.zeros(h_n.shape, dtype) if dh_n is None else dh_n.astype(dtype)
    for t, rows, step_cache in reversed(steps):
        # A state is used twice: as the output at t and as the input of the step after it.
        gradients = gru_step_backward(dh[rows, t] + dstate[rows], step_cache)
        dx[rows, t] = gradients[0]
        dstate[rows] = gradients[1]
        dWx += gradients[2]
        dWh += gradients[3]
        db += gradients[4]
        if bh_given:
            dbh += gradients[5]
    gradients = (dx, dstate, dWx, dWh, db)
    return (*gradients, dbh) if bh_given else gradients
