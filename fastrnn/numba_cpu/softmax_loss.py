"""Softmax loss over rows: one row of scores at a time, in the first-level cache."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np

from .activations import exp
from .jit import contiguous, jit


def temporal_softmax_loss(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, count: int, row_loss: np.ndarray, dx: np.ndarray
) -> None:
    """For rows where mask (R,) is True: row_loss = -log softmax(x)[y] and dx (R, V) = (softmax(x) - onehot(y)) / count.

    Both are 0 for the other rows, whose y (R,) is not read.
    """
    _rows(contiguous(x), contiguous(y), contiguous(mask), int(count), row_loss, dx)


@jit
def _rows(x, y, mask, count, row_loss, dx):
    real = x.dtype.type
    for r in range(x.shape[0]):
        scores, out = x[r], dx[r]
        if not mask[r]:
            row_loss[r] = 0
            out[:] = 0
            continue
        top = _largest(scores)
        for v in range(out.shape[0]):
            out[v] = scores[v] - top
        exp(out)
        total = _sum(out)
        right = y[r]
        row_loss[r] = math.log(total) - (np.float64(scores[right]) - np.float64(top))
        # In float64 because p - 1 cancels where the model is sure and right.
        dright = (np.float64(out[right]) - total) / (total * count)
        factor = real(1 / (total * count))
        for v in range(out.shape[0]):
            out[v] *= factor
        out[right] = real(dright)


# Four running values each: LLVM does not split a reduction into several by itself, since that changes the result.


@jit
def _largest(a):
    """The largest element of a, where NaN counts as smallest unless it comes first: it comes back through exp."""
    top0 = top1 = top2 = top3 = a[0]
    whole = a.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        top0 = a[j] if a[j] > top0 else top0
        top1 = a[j + 1] if a[j + 1] > top1 else top1
        top2 = a[j + 2] if a[j + 2] > top2 else top2
        top3 = a[j + 3] if a[j + 3] > top3 else top3
    for j in range(whole, a.shape[0]):
        top0 = a[j] if a[j] > top0 else top0
    top0 = top1 if top1 > top0 else top0
    top2 = top3 if top3 > top2 else top2
    return top2 if top2 > top0 else top0


@jit
def _sum(a):
    sum0 = sum1 = sum2 = sum3 = 0.0
    whole = a.shape[0] // 4 * 4
    for j in range(0, whole, 4):
        sum0 += a[j]
        sum1 += a[j + 1]
        sum2 += a[j + 2]
        sum3 += a[j + 3]
    for j in range(whole, a.shape[0]):
        sum0 += a[j]
    return (sum0 + sum1) + (sum2 + sum3)
