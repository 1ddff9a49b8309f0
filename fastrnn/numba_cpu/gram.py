"""Gram matrix: the products are BLAS's; what is around them touches only the small matrices, never the features."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import jit


def gram_buffers(N: int, C: int, P: int, itemsize: int) -> tuple[int, int]:
    """Numbers of elements of the forward and the backward workspace."""
    return 0, N * C * C


def gram_matrix(f: np.ndarray, scale: float, workspace: np.ndarray, g: np.ndarray) -> None:
    """g (N, C, C) = scale * f f^T for f (N, C, P); exactly symmetric."""
    f = _for_blas(f)
    np.matmul(f, f.transpose(0, 2, 1), out=g)
    _scale_symmetric(g, float(scale))


def gram_backward(dg: np.ndarray, f: np.ndarray, scale: float, workspace: np.ndarray, df: np.ndarray) -> None:
    """df (N, C, P), of any strides, = scale * (dg + dg^T) f for dg (N, C, C)."""
    both = workspace[: dg.size].reshape(dg.shape)
    np.add(dg, dg.transpose(0, 2, 1), out=both)
    both *= float(scale)
    np.matmul(both, _for_blas(f), out=df)


def _for_blas(f: np.ndarray) -> np.ndarray:
    """f itself if it is contiguous with either channels or positions last, as BLAS takes it; else a copy."""
    return f if f.flags.c_contiguous or f.transpose(0, 2, 1).flags.c_contiguous else np.ascontiguousarray(f)


@jit
def _scale_symmetric(g, scale):
    factor = g.dtype.type(scale)
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            for j in range(i + 1):
                value = g[n, i, j] * factor
                g[n, i, j] = value
                g[n, j, i] = value
