"""Sums of squared differences, for content, style and total variation, and their gradients."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .jit import contiguous, jit

# Elements of one partial sum of `squared_distance`: fastrnn/ops/image_losses.py allocates by the same number.
_CHUNK = 4096
_LANES = 64


def squared_distance(a: np.ndarray, b: np.ndarray, partial: np.ndarray) -> None:
    """partial (ceil(n / 4096),) float64: sums of (a - b)^2 over each 4096 elements of a and b (n,)."""
    _squared_distance(contiguous(a), contiguous(b), partial)


def scaled_difference(a: np.ndarray, b: np.ndarray, scale: float, out: np.ndarray) -> None:
    """out (n,) = scale * (a - b)."""
    _scaled_difference(contiguous(a), contiguous(b), float(scale), out)


def tv_loss(img: np.ndarray, partial: np.ndarray) -> None:
    """partial (P,) float64: sum of the squared differences of vertical and of horizontal neighbours, for each plane of
    img (P, H, W)."""
    _tv_loss(contiguous(img), partial)


def tv_loss_backward(img: np.ndarray, scale: float, dimg: np.ndarray) -> None:
    """dimg (P, H, W): scale times the gradient of the sum of all that `tv_loss` gives."""
    _tv_loss_backward(contiguous(img), float(scale), dimg)


@jit
def _add_squares(a, b, sums):
    """Add the squares of the elements of a - b to `sums` (_LANES,) float64, in turn.

    LLVM does not split one running sum into several by itself, since that changes the result.
    """
    for start in range(0, a.shape[0], _LANES):
        a_part, b_part = a[start : start + _LANES], b[start : start + _LANES]
        for k in range(a_part.shape[0]):
            difference = np.float64(a_part[k]) - np.float64(b_part[k])
            sums[k] += difference * difference


@jit
def _squared_distance(a, b, partial):
    sums = np.empty(_LANES)
    for k in range(partial.shape[0]):
        sums[:] = 0
        _add_squares(a[k * _CHUNK : (k + 1) * _CHUNK], b[k * _CHUNK : (k + 1) * _CHUNK], sums)
        partial[k] = sums.sum()


@jit
def _scaled_difference(a, b, scale, out):
    factor = out.dtype.type(scale)
    for j in range(out.shape[0]):
        out[j] = factor * (a[j] - b[j])


@jit
def _tv_loss(img, partial):
    P, H, W = img.shape
    sums = np.empty(_LANES)
    for p in range(P):
        sums[:] = 0
        for i in range(H):
            if i + 1 < H:
                _add_squares(img[p, i + 1], img[p, i], sums)
            if W > 1:
                _add_squares(img[p, i, 1:], img[p, i, : W - 1], sums)
        partial[p] = sums.sum()


@jit
def _tv_loss_backward(img, scale, dimg):
    factor = dimg.dtype.type(2 * scale)
    P, H, W = img.shape
    for p in range(P):
        for i in range(H):
            row, out = img[p, i], dimg[p, i]
            if i > 0:
                above = img[p, i - 1]
                for j in range(W):
                    out[j] = row[j] - above[j]
            else:
                out[:] = 0
            if i + 1 < H:
                below = img[p, i + 1]
                for j in range(W):
                    out[j] -= below[j] - row[j]
            for j in range(1, W):
                out[j] += row[j] - row[j - 1]
            for j in range(W - 1):
                out[j] -= row[j + 1] - row[j]
            for j in range(W):
                out[j] *= factor
