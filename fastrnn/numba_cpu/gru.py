"""Gated recurrent unit over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the gates of one step,
and the weight gradients are one product each after the loop.

Buffers, with R = N * T rows at most: `reserve` holds the gates (R, 3, H), the recurrent part q_n (R, H) of the
candidate, and the states prev (R, H) that each row started from; the workspaces hold the packed x (R, D), and the
recurrent product (N, 3, H) or the gradients dp (R, 3, H) of the input product, dq (R, 3, H) of the recurrent product,
dstate (N, H) and what flows to it through the weights (N, H).
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .activations import sigmoid, tanh
from .jit import contiguous, jit
from .packing import Packing, add_column_sums


def gru_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    return 5 * N * T * H, N * T * D + 3 * N * H, N * T * (D + 6 * H) + 2 * N * H


def _carve_reserve(reserve: np.ndarray, R: int, H: int) -> tuple[np.ndarray, ...]:
    """The arrays gates, q_n and prev in `reserve`."""
    gates, q_n, prev = np.split(reserve[: 5 * R * H], [3 * R * H, 4 * R * H])
    return gates.reshape(R, 3, H), q_n.reshape(R, H), prev.reshape(R, H)


def gru_forward(
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    bh: np.ndarray | None,
    lengths: np.ndarray | None,
    reverse: bool,
    h: np.ndarray,
    h_n: np.ndarray,
    reserve: np.ndarray,
    workspace: np.ndarray,
) -> None:
    """Hidden states h (N, T, H) and h_n (N, H); fills `reserve` for `gru_backward`."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, q_n, prev = _carve_reserve(reserve, R, H)
    xp, product = workspace[: R * D].reshape(R, D), workspace[R * D : R * D + 3 * N * H].reshape(N, 3 * H)
    packing.pack(x, xp)
    if R < N * T:
        h[...] = 0
    b = contiguous(b)
    _forward(
        xp, contiguous(h0), contiguous(Wx), contiguous(Wh), b, np.zeros_like(b) if bh is None else contiguous(bh),
        *packing, h, h_n, gates, q_n, prev, product,
    )  # fmt: skip


def gru_backward(
    dh: np.ndarray,
    dh_n: np.ndarray | None,
    x: np.ndarray,
    h0: np.ndarray,
    Wx: np.ndarray,
    Wh: np.ndarray,
    bh: np.ndarray | None,
    lengths: np.ndarray | None,
    reverse: bool,
    reserve: np.ndarray,
    workspace: np.ndarray,
    dx: np.ndarray,
    dh0: np.ndarray,
    dWx: np.ndarray,
    dWh: np.ndarray,
    db: np.ndarray,
    dbh: np.ndarray,
) -> None:
    """Gradients dx (N, T, D), dh0 (N, H), dWx (D, 3H), dWh (H, 3H), db and dbh (3H,)."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, q_n, prev = _carve_reserve(reserve, R, H)
    xp, rest = workspace[: R * D].reshape(R, D), workspace[R * D :]
    dp, dq = rest[: 6 * R * H].reshape(2, R, 3 * H)
    dstate, through_weights = rest[6 * R * H : 6 * R * H + 2 * N * H].reshape(2, N, H)
    sums_p, sums_q = np.zeros((2, 2, 3 * H))
    packing.pack(x, xp)
    dstate[...] = 0 if dh_n is None else dh_n[packing.order]
    _backward(
        contiguous(dh), dstate, through_weights, xp, contiguous(Wx), contiguous(Wh), *packing, gates, q_n, prev, dp, dq,
        sums_p, sums_q, dWx, dWh,
    )  # fmt: skip
    packing.unpack(xp, dx)
    dh0[packing.order] = dstate
    db[...] = sums_p[1]
    dbh[...] = sums_q[1]


@jit
def _forward(xp, h0, Wx, Wh, b, bh, order, lengths, offsets, reverse, h, h_n, gates, q_n, prev, product):
    one = h.dtype.type(1)
    H = h0.shape[1]
    flat_gates = gates.reshape(gates.shape[0], 3 * H)
    np.dot(xp, Wx, flat_gates)
    for r in range(order.shape[0]):
        start = prev[r] if lengths[r] > 0 else h_n[order[r]]
        start[:] = h0[order[r]]
    steps = offsets.shape[0] - 1
    for s in range(steps):
        first, last = offsets[s], offsets[s + 1]
        going_on = offsets[s + 2] - last if s + 1 < steps else 0
        np.dot(prev[first:last], Wh, product[: last - first])
        for r in range(last - first):
            n, row = order[r], first + r
            p, q = flat_gates[row], product[r]
            for k in range(2 * H):
                p[k] = (p[k] + b[k]) + (q[k] + bh[k])
            sigmoid(p[: 2 * H])
            reset, z, candidate, recurrent = gates[row, 0], gates[row, 1], gates[row, 2], q_n[row]
            b_n, bh_n, product_n = b[2 * H :], bh[2 * H :], q[2 * H :]
            for j in range(H):
                with_bias = product_n[j] + bh_n[j]
                recurrent[j] = with_bias
                candidate[j] = (candidate[j] + b_n[j]) + reset[j] * with_bias
            tanh(candidate)
            out, before = h[n, lengths[r] - 1 - s if reverse else s], prev[row]
            end = prev[last + r] if r < going_on else h_n[n]
            for j in range(H):
                next_h = (one - z[j]) * candidate[j] + z[j] * before[j]
                end[j] = next_h
                out[j] = next_h


@jit
def _backward(
    dh, dstate, through_weights, xp, Wx, Wh, order, lengths, offsets, reverse, gates, q_n, prev, dp, dq, sums_p, sums_q,
    dWx, dWh,
):  # fmt: skip
    """On return dstate is the gradient of the initial states, in packed order, and xp that of x."""
    one = dp.dtype.type(1)
    H = q_n.shape[1]
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        for r in range(last - first):
            row = first + r
            out = dh[order[r], lengths[r] - 1 - s if reverse else s]
            reset, z, candidate = gates[row, 0], gates[row, 1], gates[row, 2]
            recurrent, before, state = q_n[row], prev[row], dstate[r]
            dp_r, dp_z, dp_n = dp[row, :H], dp[row, H : 2 * H], dp[row, 2 * H :]
            dq_r, dq_z, dq_n = dq[row, :H], dq[row, H : 2 * H], dq[row, 2 * H :]
            for j in range(H):
                total = out[j] + state[j]
                d_n = total * (one - z[j]) * (one - candidate[j] * candidate[j])
                d_z = total * (before[j] - candidate[j]) * z[j] * (one - z[j])
                d_r = d_n * recurrent[j] * reset[j] * (one - reset[j])
                dp_r[j], dp_z[j], dp_n[j] = d_r, d_z, d_n
                dq_r[j], dq_z[j], dq_n[j] = d_r, d_z, d_n * reset[j]
                state[j] = total * z[j]
        np.dot(dq[first:last], Wh.T, through_weights[: last - first])
        for r in range(last - first):
            total, flow = dstate[r], through_weights[r]
            for j in range(H):
                total[j] += flow[j]
        add_column_sums(dp[first:last], sums_p[0], sums_p[1])
        add_column_sums(dq[first:last], sums_q[0], sums_q[1])
    np.dot(xp.T, dp, dWx)
    np.dot(prev.T, dq, dWh)
    np.dot(dp, Wx.T, xp)
