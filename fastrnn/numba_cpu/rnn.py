"""Vanilla recurrent network over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the tanh of one step,
and the weight gradients are one product each after the loop.

Buffers, with R = N * T rows at most: `reserve` holds the states a (R, H) that each row made and prev (R, H) that it
started from; the workspaces hold the packed x (R, D), and the recurrent product (N, H) or the gradients da (R, H),
dstate (N, H).
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .activations import tanh
from .jit import contiguous, jit
from .packing import Packing, add_column_sums


def rnn_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    return 2 * N * T * H, N * T * D + N * H, N * T * (D + H) + N * H


def rnn_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    lengths: np.ndarray | None,
    reverse: bool,
    h: np.ndarray,
    h_n: np.ndarray,
    reserve: np.ndarray,
    workspace: np.ndarray,
) -> None:
    """Hidden states h (N, T, H) and h_n (N, H); fills `reserve` for `rnn_backward`."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    a, prev = reserve[: R * H].reshape(R, H), reserve[R * H : 2 * R * H].reshape(R, H)
    xp, product = workspace[: R * D].reshape(R, D), workspace[R * D : R * D + N * H].reshape(N, H)
    packing.pack(x, xp)
    if R < N * T:
        h[...] = 0
    _forward(xp, contiguous(h0), contiguous(Wx), contiguous(Wh), contiguous(b), *packing, h, h_n, a, prev, product)


def rnn_backward(
    dh: np.ndarray,
    dh_n: np.ndarray | None,
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    lengths: np.ndarray | None,
    reverse: bool,
    reserve: np.ndarray,
    workspace: np.ndarray,
    dx: np.ndarray,
    dh0: np.ndarray,
    dWx: np.ndarray,
    dWh: np.ndarray,
    db: np.ndarray,
) -> None:
    """Gradients dx (N, T, D), dh0 (N, H), dWx (D, H), dWh (H, H), db (H,)."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    a, prev = reserve[: R * H].reshape(R, H), reserve[R * H : 2 * R * H].reshape(R, H)
    xp, da = workspace[: R * D].reshape(R, D), workspace[R * D : R * (D + H)].reshape(R, H)
    dstate = workspace[R * (D + H) : R * (D + H) + N * H].reshape(N, H)
    sums = np.zeros((2, H))
    packing.pack(x, xp)
    dstate[...] = 0 if dh_n is None else dh_n[packing.order]
    _backward(contiguous(dh), dstate, xp, contiguous(Wx), contiguous(Wh), *packing, a, prev, da, sums, dWx, dWh)
    packing.unpack(xp, dx)
    dh0[packing.order] = dstate
    db[...] = sums[1]


@jit
def _forward(xp, h0, Wx, Wh, b, order, lengths, offsets, reverse, h, h_n, a, prev, product):
    np.dot(xp, Wx, a)
    for r in range(order.shape[0]):
        start = prev[r] if lengths[r] > 0 else h_n[order[r]]
        start[:] = h0[order[r]]
    steps = offsets.shape[0] - 1
    for s in range(steps):
        first, last = offsets[s], offsets[s + 1]
        going_on = offsets[s + 2] - last if s + 1 < steps else 0
        np.dot(prev[first:last], Wh, product[: last - first])
        for r in range(last - first):
            n = order[r]
            row = a[first + r]
            recurrent = product[r]
            for j in range(row.shape[0]):
                row[j] = row[j] + recurrent[j] + b[j]
            tanh(row)
            out, end = h[n, lengths[r] - 1 - s if reverse else s], prev[last + r] if r < going_on else h_n[n]
            for j in range(row.shape[0]):
                out[j] = row[j]
                end[j] = row[j]


@jit
def _backward(dh, dstate, xp, Wx, Wh, order, lengths, offsets, reverse, a, prev, da, sums, dWx, dWh):
    """On return dstate is the gradient of the initial states, in packed order, and xp that of x."""
    one = a.dtype.type(1)
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        for r in range(last - first):
            out, state = dh[order[r], lengths[r] - 1 - s if reverse else s], dstate[r]
            row, drow = a[first + r], da[first + r]
            for j in range(row.shape[0]):
                drow[j] = (out[j] + state[j]) * (one - row[j] * row[j])
        np.dot(da[first:last], Wh.T, dstate[: last - first])
        add_column_sums(da[first:last], sums[0], sums[1])
    np.dot(xp.T, da, dWx)
    np.dot(prev.T, da, dWh)
    np.dot(da, Wx.T, xp)
