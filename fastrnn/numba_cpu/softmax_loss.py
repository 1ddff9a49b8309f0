"""Softmax loss over rows: one row of scores at a time, in the first-level cache.

With the projection onto the vocabulary, some rows at a time: products by SciPy's BLAS.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np

from .activations import exp
from .jit import contiguous, jit
from .products import dot


def temporal_softmax_loss(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, count: int, row_loss: np.ndarray, dx: np.ndarray
) -> None:
    """For rows where mask (R,) is True: row_loss = -log softmax(x)[y] and dx (R, V) = (softmax(x) - onehot(y)) / count.

    Both are 0 for the other rows, whose y (R,) is not read.
    """
    _rows(contiguous(x), contiguous(y), contiguous(mask), int(count), row_loss, dx)


def vocab_softmax_loss_buffers(R: int, H: int, V: int, itemsize: int) -> tuple[int]:
    """Number of elements of the workspace."""
    return (sum(_parts(R, H, V)),)


def vocab_softmax_loss(
    h: np.ndarray,
    W: np.ndarray,
    b: np.ndarray,
    y: np.ndarray,
    mask: np.ndarray,
    workspace: np.ndarray,
    loss: np.ndarray,
    dh: np.ndarray,
    dW: np.ndarray,
    db: np.ndarray,
) -> None:
    """loss (1,) of rows h (N, T, H) with scores h W + b, summed; dh, dW (H, V) and db (V,) of it over N.

    y and mask are (N T,). Rows where mask is False add nothing, and their dh is 0.
    """
    N, T, H = h.shape
    V = W.shape[1]
    parts = np.split(workspace, np.cumsum(_parts(N * T, H, V))[:-1])
    rows = np.flatnonzero(mask)
    h, dh = contiguous(h).reshape(N * T, H), dh.reshape(N * T, H)
    loss[0] = _vocab(h, contiguous(W), contiguous(b), contiguous(y), rows, N, *parts, dh, dW, db)


def _parts(R: int, H: int, V: int) -> tuple[int, int, int, int]:
    """Elements of scores, of part of what they add to dW, of rows of h and of the same turned.

    With a copy that Numba's product makes, a tenth of all scores where H is about V / 2, and less where it is less.
    """
    rows = min(max(R // 36, 8), 256)
    return rows * V, rows // 2 * V, rows * H, rows * H


@jit
def _vocab(h, W, b, y, rows, count, scores, part, states, turned, dh, dW, db):
    dh[:] = 0
    dW[:] = 0
    total = np.zeros(db.shape[0])
    loss = 0.0
    size_h, size_v = W.shape
    if size_v == 0:
        return loss
    most, height = scores.shape[0] // size_v, part.shape[0] // size_v
    for start in range(0, rows.shape[0], most):
        n = min(most, rows.shape[0] - start)
        x, p = scores[: n * size_v].reshape(n, size_v), part.reshape(height, size_v)
        s, t = states[: n * size_h].reshape(n, size_h), turned[: n * size_h].reshape(size_h, n)
        for i in range(n):
            s[i] = h[rows[start + i]]
        for k in range(size_h):
            for i in range(n):
                t[k, i] = s[i, k]
        dot(s, W, x)
        x += b
        of_chunk = 0.0  # so that rounding grows with the number of chunks plus rows of a chunk
        for i in range(n):
            of_chunk += _row(x[i], x[i], y[rows[start + i]], count)
        loss += of_chunk
        for k in range(0, size_h, height):
            m = min(height, size_h - k)
            np.dot(t[k : k + m], x, p[:m])
            dW[k : k + m] += p[:m]
        for v in range(size_v):
            for i in range(n):
                total[v] += x[i, v]
        np.dot(x, W.T, s)
        for i in range(n):
            dh[rows[start + i]] = s[i]
    db[:] = total
    return loss


@jit
def _rows(x, y, mask, count, row_loss, dx):
    for r in range(x.shape[0]):
        if mask[r]:
            row_loss[r] = _row(x[r], dx[r], y[r], count)
        else:
            row_loss[r] = 0
            dx[r, :] = 0


@jit
def _row(scores, out, right, count):
    """Loss of one row; out = (softmax(scores) - onehot(right)) / count. `out` may be `scores`."""
    real = scores.dtype.type
    top = _largest(scores)
    chosen = scores[right]
    for v in range(out.shape[0]):
        out[v] = scores[v] - top
    exp(out)
    total = _sum(out)
    # In float64 because p - 1 cancels where the model is sure and right.
    dright = (np.float64(out[right]) - total) / (total * count)
    factor = real(1 / (total * count))
    for v in range(out.shape[0]):
        out[v] *= factor
    out[right] = real(dright)
    return math.log(total) - (np.float64(chosen) - np.float64(top))


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
