"""Word embedding: copies of rows, and sums into rows.

A long running sum loses accuracy with every addition, and languages have words that stand everywhere. The sums of a
frequent word are therefore taken in parts, cut where csrc/cpu/embedding.cpp cuts them.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import contiguous, jit

# A word with more positions than this, and than this part of all, is summed in parts.
_SMALLEST_PART = 128
_MOST_PARTS = 128


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
    ids, dout = contiguous(ids), contiguous(dout)
    part = _part(len(ids))
    if len(ids) <= part:  # no word can be frequent
        _add_rows(ids, dout, dW)
        return
    counts = np.zeros(len(dW), np.int32 if len(ids) < 2**31 else np.int64)
    frequent = np.empty(len(ids) // part, np.int64)
    found = _count(ids, part, counts, frequent)
    if found:
        _add_parts(ids, dout, part, counts, frequent[:found], dW)
    else:
        _add_rows(ids, dout, dW)


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
    _list_rows(order, words, contiguous(dout), _part(len(dout)), rows, values)


def _part(n: int) -> int:
    return max(_SMALLEST_PART, -(-n // _MOST_PARTS))


@jit
def _add_rows(ids, dout, dW):
    for k in range(ids.shape[0]):
        v = np.uint64(ids[k])  # a signed index could count from the end, which takes time to find out
        for j in range(dout.shape[1]):
            dW[v, j] += dout[k, j]


@jit
def _count(ids, part, counts, frequent):
    """Positions of each word, added to counts (V,), and how many words with more than `part` are now in `frequent`."""
    found = 0
    for k in range(ids.shape[0]):
        v = np.uint64(ids[k])
        counts[v] += 1
        if counts[v] == part + 1:
            frequent[found] = v
            found += 1
    return found


@jit
def _add_parts(ids, dout, part, counts, frequent, dW):
    """As `_add_rows`, with the words of `frequent` in parts; `counts` is overwritten.

    The row of a frequent word holds the sum of one part, and `whole` that of those before it. Counts go down, to -1
    where a part ends; those of other words end at 0.
    """
    size, parts, added = np.empty_like(frequent), np.empty_like(frequent), np.zeros_like(frequent)
    whole = np.empty((frequent.shape[0], dW.shape[1]), dW.dtype)
    for f in range(frequent.shape[0]):
        v = frequent[f]
        size[f], parts[f] = counts[v], counts[v] // part
        counts[v] = size[f] // parts[f] - 1
        whole[f] = dW[v]
        dW[v] = 0
    for k in range(ids.shape[0]):
        v = np.uint64(ids[k])
        for j in range(dout.shape[1]):
            dW[v, j] += dout[k, j]
        counts[v] -= 1
        if counts[v] == -1:
            f = 0
            while frequent[f] != v:
                f += 1
            added[f] += 1
            counts[v] = size[f] * (added[f] + 1) // parts[f] - size[f] * added[f] // parts[f] - 1
            for j in range(dout.shape[1]):
                whole[f, j] += dW[v, j]
                dW[v, j] = 0
    for f in range(frequent.shape[0]):
        dW[frequent[f]] = whole[f]


@jit
def _list_rows(order, words, dout, part, rows, values):
    values[:] = 0
    n = order.shape[0]
    r, k = -1, 0
    while k < n:
        if k == 0 or words[k] != words[k - 1]:
            r += 1
            rows[r] = words[k]
            if k + part < n and words[k + part] == words[k]:
                end = k + part + 1
                while end < n and words[end] == words[k]:
                    end += 1
                _sum_parts(order[k:end], dout, (end - k) // part, values[r])
                k = end
                continue
        at, to = np.uint64(order[k]), np.uint64(r)
        for j in range(dout.shape[1]):
            values[to, j] += dout[at, j]
        k += 1


@jit
def _sum_parts(order, dout, parts, whole):
    n = order.shape[0]
    for p in range(parts):
        total = np.zeros_like(whole)
        for k in range(n * p // parts, n * (p + 1) // parts):
            at = np.uint64(order[k])
            for j in range(dout.shape[1]):
                total[j] += dout[at, j]
        for j in range(dout.shape[1]):
            whole[j] += total[j]
