"""Vanilla (Elman) recurrent network: one step, and a loop of steps over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def running_rows(T: int, lengths: np.ndarray | None, reverse: bool) -> Iterator[tuple[int, Any]]:
    """The order in which a padded batch is run: which sequences run at which time step.

    Parameters
    ----------
    T : number of time steps of the padded batch
    lengths : (N,) valid steps of each sequence, or None where all are full
    reverse : run time backwards; sequence n then starts at its own last step, lengths[n] - 1

    Yields
    ------
    t : time step
    rows : what selects, in an array whose first axis is the batch, the sequences that run step t
    """
    for t in reversed(range(T)) if reverse else range(T):
        yield t, slice(None) if lengths is None else np.flatnonzero(t < np.asarray(lengths))


def rnn_step_forward(
    x: np.ndarray, prev_h: np.ndarray, Wx: np.ndarray, Wh: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, Any]:
    """One step of a vanilla RNN: ``h' = tanh(x Wx + h Wh + b)``.

    Parameters
    ----------
    x : (N, D) input, or (D,) for one input that all N sequences share
    prev_h : (N, H) hidden state before the step
    Wx : (D, H) input weights
    Wh : (H, H) recurrent weights
    b : (H,) bias

    Returns
    -------
    next_h : (N, H) hidden state after the step
    cache : what `rnn_step_backward` needs

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
    """
    next_h = np.tanh(x @ Wx + prev_h @ Wh + b)
    # A copy: the caller owns next_h and may change it before backward.
    return next_h, (x, prev_h, Wx, Wh, next_h.copy())


def rnn_step_backward(dnext_h: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    """Gradients of one step; ``a`` is the argument of the tanh, so ``da = dh' (1 - h'^2)``.

    Parameters
    ----------
    dnext_h : (N, H) gradient of the loss with respect to next_h
    cache : from `rnn_step_forward`

    Returns
    -------
    dx : like x; summed over the batch where one input was shared
    dprev_h : (N, H)
    dWx : (D, H)
    dWh : (H, H)
    db : (H,)
    """
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)
    dx = da @ Wx.T
    if x.ndim == 1:
        dx = dx.sum(axis=0)
    dprev_h = da @ Wh.T
    dWx = np.broadcast_to(x, (len(da), len(Wx))).T @ da
    dWh = prev_h.T @ da
    db = da.sum(axis=0)
    return dx, dprev_h, dWx, dWh, db


def rnn_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    *,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
    return_state: bool = False,
) -> tuple[Any, ...]:
    """Run a vanilla RNN over N sequences of T steps.

    Parameters
    ----------
    x : (N, T, D) inputs
    h0 : (N, H) initial hidden state
    Wx : (D, H) input weights
    Wh : (H, H) recurrent weights
    b : (H,) bias
    lengths : (N,) integers 0..T; step t of sequence n is run only where t < lengths[n]
    reverse : run each sequence from its last step to its first; outputs stay at their own t
    return_state : also return the state after the last step that was run

    Returns
    -------
    h : (N, T, H) hidden states, 0 at steps that were not run
    h_n : (N, H) final hidden state, h0 for sequences of length 0; only with `return_state`
    cache : what `rnn_backward` needs
    """
    N, T, _ = x.shape
    h = np.zeros((N, T, h0.shape[1]), np.result_type(x, h0, Wx, Wh, b, np.float16))  # float16: integers become floats
    state = h0.astype(h.dtype)
    steps = []
    for t, rows in running_rows(T, lengths, reverse):
        next_h, step_cache = rnn_step_forward(x[rows, t], state[rows], Wx, Wh, b)
        h[rows, t] = next_h
        state = state.copy()  # the step's cache still refers to the state before it
        state[rows] = next_h
        steps.append((t, rows, step_cache))
    cache = (x, Wx, Wh, b, state, steps)
    return (h, state.copy(), cache) if return_state else (h, cache)


def rnn_backward(dh: np.ndarray, cache: Any, *, dh_n: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Backpropagation through time.

    Parameters
    ----------
    dh : (N, T, H) gradient of the loss with respect to each output h[:, t] itself, not what flows between steps;
        ignored at steps that were not run
    cache : from `rnn_forward`
    dh_n : (N, H) gradient with respect to the final state, or None for zero

    Returns
    -------
    dx : (N, T, D), 0 at steps that were not run
    dh0 : (N, H)
    dWx : (D, H)
    dWh : (H, H)
    db : (H,)

    References
    ----------
    P. J. Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE 78 (1990).
    """
    x, Wx, Wh, b, h_n, steps = cache
    dtype = h_n.dtype
    dx, dWx, dWh, db = (np.zeros(array.shape, dtype) for array in (x, Wx, Wh, b))
    dstate = np.zeros(h_n.shape, dtype) if dh_n is None else dh_n.astype(dtype)
    for t, rows, step_cache in reversed(steps):
        # A state is used twice: as the output at t and as the input of the step after it.
        gradients = rnn_step_backward(dh[rows, t] + dstate[rows], step_cache)
        dx[rows, t] = gradients[0]
        dstate[rows] = gradients[1]
        dWx += gradients[2]
        dWh += gradients[3]
        db += gradients[4]
    return dx, dstate, dWx, dWh, db
