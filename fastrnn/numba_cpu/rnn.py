"""Vanilla recurrent network over packed sequences.

The input projection of all steps is one product, the time loop does the recurrent product and the tanh of one step,
and the gradients of the weights are one product each after the loop: `recurrent.py` says who does what.

With R = N * T rows at most, the `reserve` holds the states a (R, H) that each row made and prev (R, H) that it started
from.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .activations import tanh
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
    """a, prev."""
    return (N * T, H), (N * T, H)


@lru_cache(maxsize=256)
def _forward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `forward_shapes`."""
    return forward_shapes(N, T, D, H, H, itemsize)


@lru_cache(maxsize=256)
def _backward_workspace(N: int, T: int, D: int, H: int, itemsize: int) -> Shapes:
    """Those of `backward_shapes`, da, dstate."""
    return *backward_shapes(N, T, D, H, H, itemsize), (N * T, H), (N, H)


@lru_cache(maxsize=256)
def rnn_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Numbers of elements of reserve, forward workspace and backward workspace."""
    forward, backward = (w(N, T, D, H, itemsize) for w in (_forward_workspace, _backward_workspace))
    return room(_reserve(N, T, H), itemsize), room(forward, itemsize), room(backward, itemsize)


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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    a, prev = carve(reserve, _reserve(N, T, H))
    xp, packed_Wx, packed_Wh, spare = carve(workspace, _forward_workspace(N, T, D, H, x.itemsize))
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    cut = project(tile, packing, x, xp, Wx, b, packed_Wx, a, Wh, packed_Wh, h)
    run(len(cut) - 1, _forward, tile, cut, contiguous(h0), Wh, packed_Wh, *packing, h, h_n, a, prev, spare)


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
    tile, packing = tile_for(x.dtype), Packing.of(N, T, lengths, reverse)
    R = packing.rows
    a, prev = carve(reserve, _reserve(N, T, H))
    xp, dxp, packed_Wx, packed_Wh, block, spare, da, dstate = carve(
        workspace, _backward_workspace(N, T, D, H, x.itemsize)
    )
    Wx, Wh = contiguous(Wx), contiguous(Wh)
    parts = parts_for(packing, 2 * (D + H), H)
    dstate[...] = 0 if dh_n is None else dh_n[packing.order]
    run(parts, prepare, packing, x, xp[:R], Wh, packed_Wh)
    cut = cuts(packing, parts)
    run(len(cut) - 1, _backward, tile, cut, contiguous(dh), dstate, Wh, packed_Wh, *packing, a, da, spare)
    run(
        parts, gradients, tile, xp[:R], prev[:R], da[:R], da[:R], Wx, packing, packed_Wx, block, dxp[:R], dx, dWx,
        dWh, db, db,
    )  # fmt: skip
    dh0[packing.order] = dstate


@jit
def _forward(part, parts, tile, cut, h0, Wh, packed_Wh, order, lengths, offsets, reverse, h, h_n, a, prev, spare):
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
        multiply(tile, prev[first + begin : first + stop], packed_Wh, Wh, a[first + begin : first + stop], spare, spill)
        for r in range(begin, stop):
            n, row = order[r], a[first + r]
            tanh(row)
            copy(row, h[n, lengths[r] - 1 - s if reverse else s])
            copy(row, prev[last + r] if r < going_on else h_n[n])


@jit
def _backward(part, parts, tile, cut, dh, dstate, Wh, packed_Wh, order, lengths, offsets, reverse, a, da, spare):
    """On return dstate is the gradient of the initial states, in packed order."""
    one = a.dtype.type(1)
    begin, end = cut[part], cut[part + 1]
    spill = np.empty(SPILL, a.dtype)
    for s in range(offsets.shape[0] - 2, -1, -1):
        first, last = offsets[s], offsets[s + 1]
        stop = min(end, last - first)
        if stop <= begin:
            continue
        for r in range(begin, stop):
            out, total = dh[order[r], lengths[r] - 1 - s if reverse else s], dstate[r]
            row, drow = a[first + r], da[first + r]
            for j in range(row.shape[0]):
                drow[j] = (out[j] + total[j]) * (one - row[j] * row[j])
            total[:] = 0
        multiply(tile, da[first + begin : first + stop], packed_Wh, Wh.T, dstate[begin:stop], spare, spill)
