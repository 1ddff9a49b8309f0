"""Affine layers, on products and threads of our own.

With products by BLAS, its threads would spin after each of them on the cores that the recurrent layers' threads need:
a training step of a captioner took up to 1.8 times as long.
"""

from __future__ import annotations

import numpy as np

from .jit import contiguous
from .products import (
    FEW_ROWS,
    K_BLOCK,
    affine,
    dot,
    input_gradient,
    packed_size,
    sum_columns,
    tile_for,
    weight_gradient,
)
from .threads import leave_to_blas, parts_for, run
from .threads import threads_used as threads_used


def affine_buffers(N: int, D: int, M: int, itemsize: int) -> tuple[int, int]:
    """Numbers of elements of the forward and the backward workspace."""
    if N <= FEW_ROWS:
        return 0, 0
    return packed_size(D, M, itemsize), packed_size(M, D, itemsize) + packed_size(K_BLOCK, M, itemsize)


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray, workspace: np.ndarray, out: np.ndarray) -> None:
    """out (N, M) = x (N, D) w (D, M) + b (M,)."""
    N, D = x.shape
    x, w, b = contiguous(x), contiguous(w), contiguous(b)
    if N <= FEW_ROWS:
        leave_to_blas()
        dot(x, w, out)
        out += b
    else:
        run(
            parts_for(2.0 * N * w.size),
            affine,
            tile_for(x.dtype),
            x,
            w,
            b,
            workspace[: packed_size(D, w.shape[1], x.itemsize)],
            out,
        )


def affine_backward(
    dout: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    workspace: np.ndarray,
    dx: np.ndarray,
    dw: np.ndarray,
    db: np.ndarray,
) -> None:
    """dx (N, D), dw (D, M) and db (M,) for dout (N, M)."""
    dout, x, w = contiguous(dout), contiguous(x), contiguous(w)
    (N, D), M = x.shape, w.shape[1]
    rows = np.array([0, N], np.int64)
    if N <= FEW_ROWS:
        leave_to_blas()
        dot(dout, w.T, dx)
        dot(x.T, dout, dw)
        sum_columns(0, 1, dout, rows, db)
    else:
        size = packed_size(M, D, x.itemsize)
        packed, block = workspace[:size], workspace[size : size + packed_size(K_BLOCK, M, x.itemsize)]
        run(parts_for(4.0 * N * w.size), _gradients, tile_for(x.dtype), dout, x, w, rows, packed, block, dx, dw, db)


def _gradients(
    part: int,
    parts: int,
    tile: int,
    dout: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    rows: np.ndarray,
    packed: np.ndarray,
    block: np.ndarray,
    dx: np.ndarray,
    dw: np.ndarray,
    db: np.ndarray,
) -> None:
    sum_columns(part, parts, dout, rows, db)
    weight_gradient(part, parts, tile, x, dout, block, dw)
    input_gradient(part, parts, tile, dout, w, packed, dx)
