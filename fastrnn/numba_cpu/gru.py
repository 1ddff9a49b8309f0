"""Gated recurrent unit over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the gates of one step,
and the gradients of the weights are one product each after the loop: `recurrent.py` says who does what.

With R = N * T rows at most, the `reserve` holds the gates (R, 3H), the recurrent part q_n (R, H) of the candidate, and
the states prev (R, H) that each row started from.
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
    """gates, q_n, prev."""
    R = N * T
    return (R, 3 * H), (R, H), (R, H)


@lru_cache(maxsize=256)
def _forward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `forward_shapes`, and the recurrent product of a step."""
    return *forward_shapes(N, T, D, H, 3 * H, itemsize), (N, 3 * H)


@lru_cache(maxsize=256)
def _backward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `backward_shapes`, dp, dq, dstate."""
    return *backward_shapes(N, T, D, H, 3 * H, itemsize), (N * T, 3 * H), (N * T, 3 * H), (N, H)


@lru_cache(maxsize=256)
def gru_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    forward, backward = (w(N, T, D, H, itemsize) for w in (_forward_workspace, _backward_workspace))
    return room(_reserve(N, T, H), itemsize), room(forward, itemsize), room(backward, itemsize)


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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    gates, q_n, prev = carve(reserve, _reserve(N, T, H))
    xp, packed_Wx, packed_Wh, spare, q = carve(workspace, _forward_workspace(N, T, D, H, x.itemsize))
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    cut = project(tile, packing, x, xp, Wx, b, packed_Wx, gates, Wh, packed_Wh, h)
    run(
        len(cut) - 1, _forward, tile, cut, contiguous(h0), Wh, packed_Wh, np.zeros_like(b) if bh is None else
        contiguous(bh), *packing, h, h_n, gates, q_n, prev, q, spare,
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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    R = packing.rows
    gates, q_n, prev = carve(reserve, _reserve(N, T, H))
    xp, dxp, packed_Wx, packed_Wh, block, spare, dp, dq, dstate = carve(
        workspace, _backward_workspace(N, T, D, H, x.itemsize)
    )
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    parts = parts_for(packing, 2 * (D + H), 3 * H)
    dstate[...] = 0 if dh_n is None else dh_n[packing.order]
    run(parts, prepare, packing, x, xp[:R], Wh, packed_Wh)
    cut = cuts(packing, parts)
    run(
        len(cut) - 1, _backward, tile, cut, contiguous(dh), dstate, Wh, packed_Wh, *packing, gates, q_n, prev, dp, dq,
        spare,
    )  # fmt: skip
    run(
        parts, gradients, tile, xp[:R], prev[:R], dp[:R], dq[:R], Wx, packing, packed_Wx, block, dxp[:R], dx, dWx,
        dWh, db, dbh,
    )  # fmt: skip
    dh0[packing.order] = dstate


# The loops over j below are many rather than one: before it vectorises a loop, LLVM must check at run time that what
# is written overlaps with nothing that is read, and gives up beyond a few arrays.


@jit
def _forward(
    part, parts, tile, cut, h0, Wh, packed_Wh, bh, order, lengths, offsets, reverse, h, h_n, gates, q_n, prev, q, spare
):  # fmt: skip
    one = h.dtype.type(1)
    H = h0.shape[1]
    begin, end = cut[part], cut[part + 1]
    for r in range(begin, end):
        copy(h0[order[r]], prev[r] if lengths[r] > 0 else h_n[order[r]])
    spill = np.empty(SPILL, h.dtype)
    steps = offsets.shape[0] - 1
    for s in range(steps):
        first, last = offsets[s], offsets[s + 1]
        going_on = offsets[s + 2] - last if s + 1 < steps else 0
        stop = min(end, last - first)
        if stop <= begin:
            break
        for r in range(begin, stop):
            copy(bh, q[r])
        multiply(tile, prev[first + begin : first + stop], packed_Wh, Wh, q[begin:stop], spare, spill)
        for r in range(begin, stop):
            n, row = order[r], first + r
            p, product = gates[row], q[r]
            reset, z, candidate = p[:H], p[H : 2 * H], p[2 * H :]
            recurrent, product_n, before = q_n[row], product[2 * H :], prev[row]
            end_h = prev[last + r] if r < going_on else h_n[n]
            out = h[n, lengths[r] - 1 - s if reverse else s]
            for k in range(2 * H):
                p[k] += product[k]
            sigmoid(p[: 2 * H])
            for j in range(H):
                candidate[j] += reset[j] * product_n[j]
            copy(product_n, recurrent)
            tanh(candidate)
            for j in range(H):
                out[j] = (one - z[j]) * candidate[j] + z[j] * before[j]
            copy(out, end_h)


@jit
def _backward(
    part, parts, tile, cut, dh, dstate, Wh, packed_Wh, order, lengths, offsets, reverse, gates, q_n, prev, dp, dq, spare
):  # fmt: skip
    """On return dstate is the gradient of the initial states, in packed order."""
    one = dp.dtype.type(1)
    H = q_n.shape[1]
    begin, end = cut[part], cut[part + 1]
    spill = np.empty(SPILL, dp.dtype)
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        stop = min(end, last - first)
        if stop <= begin:
            continue
        for r in range(begin, stop):
            row = first + r
            p, d, d_q = gates[row], dp[row], dq[row]
            reset, z, candidate = p[:H], p[H : 2 * H], p[2 * H :]
            d_r, d_z, d_n, dq_n = d[:H], d[H : 2 * H], d[2 * H :], d_q[2 * H :]
            recurrent, before, total = q_n[row], prev[row], dstate[r]
            out = dh[order[r], lengths[r] - 1 - s if reverse else s]
            for j in range(H):
                total[j] += out[j]
            for j in range(H):
                d_n[j] = total[j] * (one - z[j]) * (one - candidate[j] * candidate[j])
            for j in range(H):
                d_z[j] = total[j] * (before[j] - candidate[j]) * z[j] * (one - z[j])
            for j in range(H):
                d_r[j] = d_n[j] * recurrent[j] * reset[j] * (one - reset[j])
            copy(d[: 2 * H], d_q[: 2 * H])
            for j in range(H):
                dq_n[j] = d_n[j] * reset[j]
            for j in range(H):
                total[j] *= z[j]
        multiply(tile, dq[first + begin : first + stop], packed_Wh, Wh.T, dstate[begin:stop], spare, spill)
