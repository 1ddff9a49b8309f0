"""Word embedding: copies of rows, and sums into rows."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import contiguous, jit


def word_embedding_forward(ids: np.ndarray, W: np.ndarray, out: np.ndarray) -> None:
    """out (n, D) = W[ids]; ids (n,) are within the V rows of W."""
    np.take(W, ids, axis=0, out=out, mode="clip")  # not "raise": that would go through a buffer


def word_embedding_backward(ids: np.ndarray, dout: np.ndarray, workspace: np.ndarray, dW: np.ndarray) -> None:
    """dW (V, D): row v is the sum of all dout (n, D) whose id is v, in their order; `workspace` is not needed."""
    _add_rows(contiguous(ids), contiguous(dout), dW)


@jit
def _add_rows(ids, dout, dW):
    dW[:] = 0
    for k in range(ids.shape[0]):
        total, row = dW[ids[k]], dout[k]
        for j in range(row.shape[0]):
            total[j] += row[j]
