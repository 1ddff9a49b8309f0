"""Long short-term memory over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the gates of one step,
and the gradients of the weights are one product each after the loop: `recurrent.py` says who does what.

With R = N * T rows at most, the `reserve` holds the gates (R, 4H), tanh_c (R, H), and the states prev_h and prev_c
(R, H) that each row started from.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .activations import sigmoid, tanh
from .jit import contiguous, jit
from .packing import Packing
from .products import SPILL, tile_for
from .recurrent import (
    Shapes,
    backward_shapes,
    carve,
    copy,
    cuts,
    forward_shapes,
    gradients,
    multiply,
    parts_for,
    prepare,
    project,
    room,
)
from .threads import run
from .threads import threads_used as threads_used


@lru_cache(maxsize=256)
def _reserve(N: int, T: int, H: int) -> Shapes:
    """gates, tanh_c, prev_h, prev_c."""
    R = N * T
    return (R, 4 * H), (R, H), (R, H), (R, H)


@lru_cache(maxsize=256)
def _forward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `forward_shapes`."""
    return forward_shapes(N, T, D, H, 4 * H, itemsize)


@lru_cache(maxsize=256)
def _backward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `backward_shapes`, da, dh_state, dc_state."""
    return *backward_shapes(N, T, D, H, 4 * H, itemsize), (N * T, 4 * H), (N, H), (N, H)


@lru_cache(maxsize=256)
def lstm_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    forward, backward = (w(N, T, D, H, itemsize) for w in (_forward_workspace, _backward_workspace))
    return room(_reserve(N, T, H), itemsize), room(forward, itemsize), room(backward, itemsize)


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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    gates, tanh_c, prev_h, prev_c = carve(reserve, _reserve(N, T, H))
    xp, packed_Wx, packed_Wh, spare = carve(workspace, _forward_workspace(N, T, D, H, x.itemsize))
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    cut = project(tile, packing, x, xp, Wx, b, packed_Wx, gates, Wh, packed_Wh, h)
    run(
        len(cut) - 1, _forward, tile, cut, contiguous(h0), np.zeros_like(h_n) if c0 is None else contiguous(c0), Wh,
        packed_Wh, *packing, h, h_n, c_n, gates, tanh_c, prev_h, prev_c, spare,
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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, tanh_c, prev_h, prev_c = carve(reserve, _reserve(N, T, H))
    xp, dxp, packed_Wx, packed_Wh, block, spare, da, dh_state, dc_state = carve(
        workspace, _backward_workspace(N, T, D, H, x.itemsize)
    )
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    parts = parts_for(packing, 2 * (D + H), 4 * H)
    dh_state[...] = 0 if dh_n is None else dh_n[packing.order]
    dc_state[...] = 0 if dc_n is None else dc_n[packing.order]
    run(parts, prepare, packing, x, xp[:R], Wh, packed_Wh)
    cut = cuts(packing, parts)
    run(
        len(cut) - 1, _backward, tile, cut, contiguous(dh), dh_state, dc_state, Wh, packed_Wh, *packing, gates, tanh_c,
        prev_c, da, spare,
    )  # fmt: skip
    run(
        parts, gradients, tile, xp[:R], prev_h[:R], da[:R], da[:R], Wx, packing, packed_Wx, block, dxp[:R], dx, dWx,
        dWh, db, db,
    )  # fmt: skip
    dh0[packing.order] = dh_state
    dc0[packing.order] = dc_state


# The loops over j below are many rather than one: before it vectorises a loop, LLVM must check at run time that what
# is written overlaps with nothing that is read, and gives up beyond a few arrays.


@jit
def _forward(
    part, parts, tile, cut, h0, c0, Wh, packed_Wh, order, lengths, offsets, reverse, h, h_n, c_n, gates, tanh_c, prev_h,
    prev_c, spare,
):  # fmt: skip
    H = h0.shape[1]
    begin, end = cut[part], cut[part + 1]
    for r in range(begin, end):
        n = order[r]
        start_h, start_c = (prev_h[r], prev_c[r]) if lengths[r] > 0 else (h_n[n], c_n[n])
        copy(h0[n], start_h)
        copy(c0[n], start_c)
    spill = np.empty(SPILL, h.dtype)
    steps = offsets.shape[0] - 1
    for s in range(steps):
        first, last = offsets[s], offsets[s + 1]
        going_on = offsets[s + 2] - last if s + 1 < steps else 0
        stop = min(end, last - first)
        if stop <= begin:
            break
        multiply(
            tile, prev_h[first + begin : first + stop], packed_Wh, Wh, gates[first + begin : first + stop], spare, spill
        )
        for r in range(begin, stop):
            n, row = order[r], first + r
            a, c = gates[row], tanh_c[row]
            i, f, o, g, before = a[:H], a[H : 2 * H], a[2 * H : 3 * H], a[3 * H :], prev_c[row]
            end_h, end_c = (prev_h[last + r], prev_c[last + r]) if r < going_on else (h_n[n], c_n[n])
            out = h[n, lengths[r] - 1 - s if reverse else s]
            sigmoid(a[: 3 * H])
            tanh(g)
            for j in range(H):
                c[j] = f[j] * before[j] + i[j] * g[j]
            copy(c, end_c)
            tanh(c)
            for j in range(H):
                out[j] = o[j] * c[j]
            copy(out, end_h)


@jit
def _backward(
    part, parts, tile, cut, dh, dh_state, dc_state, Wh, packed_Wh, order, lengths, offsets, reverse, gates, tanh_c,
    prev_c, da, spare,
):  # fmt: skip
    """On return dh_state and dc_state are the gradients of the initial states, in packed order."""
    one = da.dtype.type(1)
    H = tanh_c.shape[1]
    begin, end = cut[part], cut[part + 1]
    spill = np.empty(SPILL, da.dtype)
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        stop = min(end, last - first)
        if stop <= begin:
            continue
        for r in range(begin, stop):
            row = first + r
            a, d = gates[row], da[row]
            i, f, o, g = a[:H], a[H : 2 * H], a[2 * H : 3 * H], a[3 * H :]
            d_i, d_f, d_o, d_g = d[:H], d[H : 2 * H], d[2 * H : 3 * H], d[3 * H :]
            t, before, total, dc = tanh_c[row], prev_c[row], dh_state[r], dc_state[r]
            out = dh[order[r], lengths[r] - 1 - s if reverse else s]
            for j in range(H):
                total[j] += out[j]
            for j in range(H):
                dc[j] += total[j] * o[j] * (one - t[j] * t[j])
            for j in range(H):
                d_i[j] = dc[j] * g[j] * i[j] * (one - i[j])
            for j in range(H):
                d_f[j] = dc[j] * before[j] * f[j] * (one - f[j])
            for j in range(H):
                d_o[j] = total[j] * t[j] * o[j] * (one - o[j])
            for j in range(H):
                d_g[j] = dc[j] * i[j] * (one - g[j] * g[j])
            for j in range(H):
                dc[j] *= f[j]
            total[:] = 0
        multiply(tile, da[first + begin : first + stop], packed_Wh, Wh.T, dh_state[begin:stop], spare, spill)
