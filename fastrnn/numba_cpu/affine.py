"""Affine layers: SciPy's BLAS, through Numba like every other product of this column.

NumPy's own matmul would do as well, but brings NumPy's copy of OpenBLAS and so a second pool of threads, which spin
after each product on the cores that the next one, on SciPy's pool, needs.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import contiguous, jit
from .packing import add_column_sums


def affine_buffers(N: int, D: int, M: int, itemsize: int) -> tuple[int, int]:
    """Numbers of elements of the forward and the backward workspace."""
    return 0, 0


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray, workspace: np.ndarray, out: np.ndarray) -> None:
    """out (N, M) = x (N, D) w (D, M) + b (M,)."""
    _forward(contiguous(x), contiguous(w), contiguous(b), out)


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
    _backward(contiguous(dout), contiguous(x), contiguous(w), dx, dw, db)


@jit
def _forward(x, w, b, out):
    if x.shape[1] > 0:
        np.dot(x, w, out)
        out += b
    else:  # BLAS leaves the result alone where there is nothing to sum
        out[:] = b


@jit
def _backward(dout, x, w, dx, dw, db):
    if dout.shape[1] > 0:
        np.dot(dout, w.T, dx)
    else:
        dx[:] = 0
    if dout.shape[0] > 0:
        np.dot(x.T, dout, dw)
    else:
        dw[:] = 0
    total = np.zeros(dout.shape[1])
    add_column_sums(dout, np.empty(dout.shape[1]), total)
    db[:] = total
