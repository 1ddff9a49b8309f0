"""Long short-term memory over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the gates of one step,
and the weight gradients are one product each after the loop.

Buffers, with R = N * T rows at most: `reserve` holds the gates (R, 4, H), tanh_c (R, H), and the states prev_h and
prev_c (R, H) that each row started from; the workspaces hold the packed x (R, D), and the recurrent product (N, 4, H)
or the gradients da (R, 4, H), dh_state and dc_state (N, H).
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .activations import sigmoid, tanh
from .jit import contiguous, jit
from .packing import Packing, add_column_sums


def lstm_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    return 7 * N * T * H, N * T * D + 4 * N * H, N * T * (D + 4 * H) + 2 * N * H


def _carve_reserve(reserve: np.ndarray, R: int, H: int) -> tuple[np.ndarray, ...]:
    """The arrays gates, tanh_c, prev_h and prev_c in `reserve`."""
    gates, *states = np.split(reserve[: 7 * R * H], [4 * R * H, 5 * R * H, 6 * R * H])
    return gates.reshape(R, 4, H), *(state.reshape(R, H) for state in states)


def lstm_forward(
    x: np.ndarray,
    h0: np.ndarray,
    c0: np.ndarray | None,
    Wx: np.ndarray,
    Wh: np.ndarray,
    b: np.ndarray,
    lengths: np.ndarray | None,
    reverse: bool,
    h: np.ndarray,
    h_n: np.ndarray,
    c_n: np.ndarray,
    reserve: np.ndarray,
    workspace: np.ndarray,
) -> None:
    """Hidden states h (N, T, H), final states h_n and c_n (N, H); fills `reserve` for `lstm_backward`."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, tanh_c, prev_h, prev_c = _carve_reserve(reserve, R, H)
    xp, product = workspace[: R * D].reshape(R, D), workspace[R * D : R * D + 4 * N * H].reshape(N, 4 * H)
    packing.pack(x, xp)
    if R < N * T:
        h[...] = 0
    _forward(
        xp, contiguous(h0), np.zeros_like(h_n) if c0 is None else contiguous(c0), contiguous(Wx), contiguous(Wh),
        contiguous(b), *packing, h, h_n, c_n, gates, tanh_c, prev_h, prev_c, product,
    )  # fmt: skip


def lstm_backward(
    dh: np.ndarray,
    dh_n: np.ndarray | None,
    dc_n: np.ndarray | None,
    x: np.ndarray,
    h0: np.ndarray,
    c0: np.ndarray | None,
    Wx: np.ndarray,
    Wh: np.ndarray,
    lengths: np.ndarray | None,
    reverse: bool,
    reserve: np.ndarray,
    workspace: np.ndarray,
    dx: np.ndarray,
    dh0: np.ndarray,
    dc0: np.ndarray,
    dWx: np.ndarray,
    dWh: np.ndarray,
    db: np.ndarray,
) -> None:
    """Gradients dx (N, T, D), dh0 and dc0 (N, H), dWx (D, 4H), dWh (H, 4H), db (4H,)."""
    (N, T, D), H = x.shape, h0.shape[1]
    packing = Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, tanh_c, prev_h, prev_c = _carve_reserve(reserve, R, H)
    xp, da = workspace[: R * D].reshape(R, D), workspace[R * D : R * (D + 4 * H)].reshape(R, 4 * H)
    dh_state, dc_state = workspace[R * (D + 4 * H) : R * (D + 4 * H) + 2 * N * H].reshape(2, N, H)
    sums = np.zeros((2, 4 * H))
    packing.pack(x, xp)
    dh_state[...] = 0 if dh_n is None else dh_n[packing.order]
    dc_state[...] = 0 if dc_n is None else dc_n[packing.order]
    _backward(
        contiguous(dh), dh_state, dc_state, xp, contiguous(Wx), contiguous(Wh), *packing, gates, tanh_c, prev_h,
        prev_c, da, sums, dWx, dWh,
    )  # fmt: skip
    packing.unpack(xp, dx)
    dh0[packing.order] = dh_state
    dc0[packing.order] = dc_state
    db[...] = sums[1]


@jit
def _forward(
    xp, h0, c0, Wx, Wh, b, order, lengths, offsets, reverse, h, h_n, c_n, gates, tanh_c, prev_h, prev_c, product
):  # fmt: skip
    H = h0.shape[1]
    flat_gates = gates.reshape(gates.shape[0], 4 * H)
    np.dot(xp, Wx, flat_gates)
    for r in range(order.shape[0]):
        n = order[r]
        start_h, start_c = (prev_h[r], prev_c[r]) if lengths[r] > 0 else (h_n[n], c_n[n])
        start_h[:] = h0[n]
        start_c[:] = c0[n]
    steps = offsets.shape[0] - 1
    for s in range(steps):
        first, last = offsets[s], offsets[s + 1]
        going_on = offsets[s + 2] - last if s + 1 < steps else 0
        np.dot(prev_h[first:last], Wh, product[: last - first])
        for r in range(last - first):
            n, row = order[r], first + r
            a, recurrent = flat_gates[row], product[r]
            for k in range(a.shape[0]):
                a[k] = a[k] + recurrent[k] + b[k]
            sigmoid(a[: 3 * H])
            tanh(a[3 * H :])
            i, f, o, g = gates[row, 0], gates[row, 1], gates[row, 2], gates[row, 3]
            c, before = tanh_c[row], prev_c[row]
            end_h, end_c = (prev_h[last + r], prev_c[last + r]) if r < going_on else (h_n[n], c_n[n])
            for j in range(H):
                next_c = f[j] * before[j] + i[j] * g[j]
                c[j] = next_c
                end_c[j] = next_c
            tanh(c)
            out = h[n, lengths[r] - 1 - s if reverse else s]
            for j in range(H):
                next_h = o[j] * c[j]
                end_h[j] = next_h
                out[j] = next_h


@jit
def _backward(
    dh, dh_state, dc_state, xp, Wx, Wh, order, lengths, offsets, reverse, gates, tanh_c, prev_h, prev_c, da, sums,
    dWx, dWh,
):  # fmt: skip
    """On return dh_state and dc_state are the gradients of the initial states, in packed order, and xp that of x."""
    one = da.dtype.type(1)
    H = tanh_c.shape[1]
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        for r in range(last - first):
            row = first + r
            out = dh[order[r], lengths[r] - 1 - s if reverse else s]
            i, f, o, g = gates[row, 0], gates[row, 1], gates[row, 2], gates[row, 3]
            t, before, state_h, state_c, d = tanh_c[row], prev_c[row], dh_state[r], dc_state[r], da[row]
            d_i, d_f, d_o, d_g = d[:H], d[H : 2 * H], d[2 * H : 3 * H], d[3 * H :]
            for j in range(H):
                total = out[j] + state_h[j]
                dc = state_c[j] + total * o[j] * (one - t[j] * t[j])
                d_i[j] = dc * g[j] * i[j] * (one - i[j])
                d_f[j] = dc * before[j] * f[j] * (one - f[j])
                d_o[j] = total * t[j] * o[j] * (one - o[j])
                d_g[j] = dc * i[j] * (one - g[j] * g[j])
                state_c[j] = dc * f[j]
        np.dot(da[first:last], Wh.T, dh_state[: last - first])
        add_column_sums(da[first:last], sums[0], sums[1])
    np.dot(xp.T, da, dWx)
    np.dot(prev_h.T, da, dWh)
    np.dot(da, Wx.T, xp)
