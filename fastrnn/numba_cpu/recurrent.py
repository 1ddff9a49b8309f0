"""What rnn, lstm and gru have in common: buffers, cuts of the work between threads, and the products around the loop.

A pass is a few pieces of work, each of which the threads do side by side and then wait for each other:

forward     x is packed, by steps; then the weights, and x Wx + b computed for all rows, by columns; then the time loop,
            by sequences
backward    x is packed, by steps, and Wh^T, by columns; then the time loop, by sequences; then the gradients of the
            weights, of the bias and of x, by columns

A thread runs its sequences through all steps without waiting for anybody. No cut changes the order of any sum.
"""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np

from . import threads
from .jit import jit
from .packing import Packing
from .products import (
    add_product,
    affine,
    dot,
    input_gradient,
    pack,
    pack_transposed,
    packed_size,
    panel_count,
    share,
    sum_columns,
    weight_gradient,
)

# A single step of up to this many rows goes to BLAS: packing the weights would cost more than the product.
_FEW_ROWS = 24
# Elements whose copy takes longer than handing it over to threads.
LARGE = 1 << 18
# A thread has at least this many sequences: with fewer it would wait for weights, which each thread reads in full.
_SEQUENCES = 2

Shapes = tuple[tuple[int, ...], ...]


def few(N: int, T: int) -> bool:
    """Whether the products go to BLAS: those of a single sequence too, which its threads share in every step."""
    return N == 1 or (T == 1 and N <= _FEW_ROWS)


def packed_shape(N: int, T: int, K: int, columns: int, itemsize: int) -> tuple[int]:
    """Shape of the buffer for packed weights (K, columns): empty where they are not packed."""
    return (0 if few(N, T) else packed_size(K, columns, itemsize),)


def room(shapes: Shapes, itemsize: int) -> int:
    """Number of elements from which `carve` can take `shapes`."""
    line = 64 // itemsize
    return sum([-(-math.prod(shape) // line) * line for shape in shapes])


def carve(buffer: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
    """Arrays of `shapes` out of the flat `buffer`, each on a cache line if the buffer is."""
    arrays, start, line = [], 0, 64 // buffer.itemsize
    for shape in shapes:
        end = start + math.prod(shape)
        arrays.append(buffer[start:end].reshape(shape))
        start = -(-end // line) * line
    return arrays


def parts_for(rows: int, K: int, columns: int, is_few: bool) -> int:
    """Number of threads for so many rows of a product with weights (K, columns)."""
    return threads.leave_to_blas() if is_few else threads.parts_for(2.0 * rows * K * columns)


def cuts(packing: Packing, parts: int) -> np.ndarray:
    """Where the sequences of a packed batch are cut, so that all parts have about as many steps: (parts + 1,) int64."""
    N = len(packing.order)
    parts = max(1, min(parts, N // _SEQUENCES))
    if parts == 1:
        return np.array([0, N], np.int64)
    until = np.cumsum(packing.lengths)
    cut = np.searchsorted(until, packing.rows * np.arange(parts + 1) // parts)
    cut[-1] = N  # sequences of length 0 come last
    return cut.astype(np.int64, copy=False)


@jit
def copy(a, out):
    """out = a, of one length. (NumPy's out[:] = a takes a second to compile, for the sake of its error message.)"""
    for j in range(out.shape[0]):
        out[j] = a[j]


@jit
def multiply(tile, a, packed_W, W, c, spare, spill):
    """c (M, columns) += a (M, K) W; by BLAS, by way of `spare` (M or more, columns), if `packed_W` is empty."""
    if packed_W.shape[0] > 0:
        add_product(tile, a, packed_W, np.int64(0), panel_count(c.shape[1], c.itemsize), spill[:0], c, spill)
    elif a.shape[1] > 0:
        product = spare[: a.shape[0]]
        np.dot(a, W, product)
        for r in range(c.shape[0]):
            out, row = c[r], product[r]
            for j in range(out.shape[0]):
                out[j] += row[j]


def project(
    part: int,
    parts: int,
    tile: int,
    x: np.ndarray,
    Wx: np.ndarray,
    b: np.ndarray,
    packed_Wx: np.ndarray,
    out: np.ndarray,
    Wh: np.ndarray,
    packed_Wh: np.ndarray,
) -> None:
    """out (R, columns) = x (R, D) Wx + b, and both weights packed; with empty packed arrays by BLAS."""
    if packed_Wh.size == 0:
        dot(x, Wx, out)
        out += b
        return
    affine(part, parts, tile, x, Wx, b, packed_Wx, out)
    pack(Wh, *share(part, parts, panel_count(Wh.shape[1], Wh.itemsize)), Wh.shape[0], packed_Wh)


def prepare(
    part: int, parts: int, packing: Packing, x: np.ndarray, xp: np.ndarray, Wh: np.ndarray, packed_Wh: np.ndarray
) -> None:
    """Pack x, and the transpose of Wh."""
    packing.pack(part, parts, x, xp)
    if packed_Wh.size > 0:
        pack_transposed(Wh, *share(part, parts, panel_count(Wh.shape[0], Wh.itemsize)), packed_Wh)


def gradients(
    part: int,
    parts: int,
    tile: int,
    x: np.ndarray,
    prev: np.ndarray,
    dp: np.ndarray,
    dq: np.ndarray,
    Wx: np.ndarray,
    packing: Packing,
    packed_Wx: np.ndarray,
    block: np.ndarray,
    dxp: np.ndarray,
    dx: np.ndarray,
    dWx: np.ndarray,
    dWh: np.ndarray,
    db: np.ndarray,
    dbh: np.ndarray,
) -> None:
    """dWx = x^T dp, dWh = prev^T dq, db and dbh the sums of the rows of dp and dq, and dx (N, T, D) = dp Wx^T.

    dp and dq (R, columns) are the gradients of the input and of the recurrent product. They may be one array, as may db
    and dbh. `dxp` (R, D) takes the packed dx.
    """
    sum_columns(part, parts, dp, packing.offsets, db)
    if dbh is not db:
        sum_columns(part, parts, dq, packing.offsets, dbh)
    if packed_Wx.size == 0:
        dot(x.T, dp, dWx)
        dot(prev.T, dq, dWh)
        dot(dp, Wx.T, dxp)
        packing.unpack(dxp, dx)
        return
    weight_gradient(part, parts, tile, x, dp, block, dWx)
    weight_gradient(part, parts, tile, prev, dq, block, dWh)
    begin, end = input_gradient(part, parts, tile, dp, Wx, packed_Wx, dxp)
    packing.unpack(dxp[:, begin:end], dx[:, :, begin:end])
