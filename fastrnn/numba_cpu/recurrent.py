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

from fastrnn.cache import ALIGNMENT

from . import threads
from .jit import contiguous, jit
from .packing import Packing
from .products import (
    FEW_ROWS,
    K_BLOCK,
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

# Elements whose copy takes longer than handing it over to threads.
_LARGE = 1 << 18
# A thread has at least this many sequences: with fewer it would wait for weights, which each thread reads in full.
_SEQUENCES = 2

Shapes = tuple[tuple[int, ...], ...]


def _few(N: int, T: int) -> bool:
    """Whether the products go to BLAS: those of a single sequence too, which its threads share in every step."""
    return N == 1 or (T == 1 and N <= FEW_ROWS)


# ---- buffers -------------------------------------------------------------------------------------------------------


def forward_shapes(N: int, T: int, D: int, H: int, columns: int, itemsize: int) -> Shapes:
    """What forward needs for weights of so many columns: x, Wx and Wh packed, and the product of a step by BLAS."""
    Wx, Wh = (_packed_shape(N, T, K, columns, itemsize) for K in (D, H))
    return (N * T, D), Wx, Wh, (N if _few(N, T) else 0, columns)


def backward_shapes(N: int, T: int, D: int, H: int, columns: int, itemsize: int) -> Shapes:
    """What backward needs: x and its gradient, Wx^T, Wh^T and a block of gradients packed, a step's product by BLAS."""
    Wx, Wh = (_packed_shape(N, T, columns, K, itemsize) for K in (D, H))
    block = _packed_shape(N, T, K_BLOCK, columns, itemsize)
    return (N * T, D), (N * T, D), Wx, Wh, block, (N if _few(N, T) else 0, H)


def _packed_shape(N: int, T: int, K: int, columns: int, itemsize: int) -> tuple[int]:
    """Shape of the buffer for packed weights (K, columns): empty where they are not packed."""
    return (0 if _few(N, T) else packed_size(K, columns, itemsize),)


def room(shapes: Shapes, itemsize: int) -> int:
    """Number of elements from which `carve` can take `shapes`."""
    line = ALIGNMENT // itemsize
    return sum([-(-math.prod(shape) // line) * line for shape in shapes])


def carve(buffer: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
    """Arrays of `shapes` out of the flat `buffer`, each on a cache line if the buffer is."""
    arrays, start, line = [], 0, ALIGNMENT // buffer.itemsize
    for shape in shapes:
        end = start + math.prod(shape)
        arrays.append(buffer[start:end].reshape(shape))
        start = -(-end // line) * line
    return arrays


# ---- threads -------------------------------------------------------------------------------------------------------


def parts_for(packing: Packing, K: int, columns: int) -> int:
    """Number of threads for the product of all rows with weights (K, columns)."""
    N, T = len(packing.order), len(packing.offsets) - 1
    return threads.leave_to_blas() if _few(N, T) else threads.parts_for(2.0 * packing.rows * K * columns)


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


# ---- the products --------------------------------------------------------------------------------------------------


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
    tile: int,
    packing: Packing,
    x: np.ndarray,
    xp: np.ndarray,
    Wx: np.ndarray,
    b: np.ndarray,
    packed_Wx: np.ndarray,
    out: np.ndarray,
    Wh: np.ndarray,
    packed_Wh: np.ndarray,
    h: np.ndarray,
) -> np.ndarray:
    """All that comes before the time loop of forward; the result is where it is to be cut.

    The rows that are run of out = x Wx + b, both weights packed, and zero in h (N, T, H) where no row is run.
    """
    (N, T, D), R, H = x.shape, packing.rows, Wh.shape[0]
    parts = parts_for(packing, D + H, Wx.shape[1])
    threads.run(parts if xp.size > _LARGE else 1, packing.pack, x, xp[:R])
    if R < N * T:
        h[...] = 0
    threads.run(parts, _project, tile, xp[:R], Wx, contiguous(b), packed_Wx, out[:R], Wh, packed_Wh)
    return cuts(packing, parts)


def _project(
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
