"""Word embedding: copies of rows, and sums into rows."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import contiguous, jit


def word_embedding_forward(ids: np.ndarray, W: np.ndarray, out: np.ndarray) -> None:
    """out (n, D) = W[ids]; ids (n,) are within the V rows of W."""
    np.take(W, ids, axis=0, out=out, mode="clip")  # not "raise": that would go through a buffer


def word_embedding_buffers(n: int, V: int, D: int, itemsize: int) -> int:
    """Elements (int64) of the workspace."""
    return 2 * n


def word_embedding_backward(
    ids: np.ndarray, dout: np.ndarray, workspace: np.ndarray, dW: np.ndarray, add: bool
) -> None:
    """dW (V, D): row v is the sum of all dout (n, D) whose id is v, in their order, added to what is there if `add`."""
    if not add:
        dW[:] = 0
    _add_rows(contiguous(ids), contiguous(dout), dW)


def word_embedding_sort(ids: np.ndarray, V: int, D: int, itemsize: int, workspace: np.ndarray) -> int:
    """Number of different ids; their positions in the order of the ids, and the sorted ids, stay in the workspace."""
    order, words = workspace.reshape(2, len(ids))
    order[:] = np.argsort(ids, kind="stable")
    words[:] = ids[order]
    return int(np.count_nonzero(words[1:] != words[:-1])) + (len(ids) > 0)


def word_embedding_sparse(
    dout: np.ndarray, V: int, workspace: np.ndarray, rows: np.ndarray, values: np.ndarray
) -> None:
    """rows (k,): the different ids in ascending order; values (k, D): the sums of their rows of dout (n, D)."""
    order, words = workspace.reshape(2, len(dout))
    _list_rows(order, words, contiguous(dout), rows, values)


@jit
def _add_rows(ids, dout, dW):
    for k in range(ids.shape[0]):
        total, row = dW[ids[k]], dout[k]
        for j in range(row.shape[0]):
            total[j] += row[j]


@jit
def _list_rows(order, words, dout, rows, values):
    values[:] = 0
    r = -1
    for k in range(order.shape[0]):
        if k == 0 or words[k] != words[k - 1]:
            r += 1
            rows[r] = words[k]
        total, row = values[r], dout[order[k]]
        for j in range(row.shape[0]):
            total[j] += row[j]
