"""The products that the Numba column's recurrent layers stand on."""

import numpy as np
import pytest

from fastrnn import conformance

pytest.importorskip("numba")

from fastrnn.numba_cpu import products
from fastrnn.numba_cpu.jit import contiguous

# Every number of rows of a tile, and more; K around slices and blocks; columns around vectors and panels.
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 300)
DEPTHS = (0, 1, 63, 64, 65, 257)
COLUMNS = (1, 7, 16, 17, 33, 64, 100, 130)


def matrices(M, K, columns, dtype):
    rng = np.random.default_rng(M + 7 * K + 11 * columns)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, columns), (M, columns), (columns,))]


def empty(count, dtype):
    """What no kernel may leave in a result."""
    return np.full(count, np.nan, dtype)


def in_parts(columns, dtype, parts):
    count = products.panel_count(columns, np.dtype(dtype).itemsize)
    return [products.share(part, parts, count) for part in range(parts)]


def assert_right(result, a, b, before, dtype):
    wide = conformance.EXACT[dtype]
    exact = before.astype(wide) + a.astype(wide) @ b.astype(wide)
    assert conformance.within(*conformance.error_and_bound(result, before + a @ b, exact, dtype))


@pytest.mark.parametrize("dtype", conformance.DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_add_product(columns, dtype):
    tile = products.tile_for(np.dtype(dtype))
    for M in ROWS:
        for K in DEPTHS:
            a, b, c, start = matrices(M, K, columns, dtype)
            packed = empty(products.packed_size(K, columns, a.itemsize), dtype)
            results = []
            for parts in (1, 3):
                added, begun = c.copy(), empty((M, columns), dtype)
                for first, last in in_parts(columns, dtype, parts):
                    products.pack(b, first, last, K, packed)
                    spill = empty(products.SPILL, dtype)
                    products.add_product(tile, a, packed, first, last, start[:0], added, spill)
                    products.add_product(tile, a, packed, first, last, start, begun, spill)
                results.append((added, begun))
            assert_right(results[0][0], a, b, c, dtype)
            assert_right(results[0][1], a, b, np.broadcast_to(start, (M, columns)), dtype)
            for one, other in zip(*results, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", conformance.DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_transposed_product(columns, dtype):
    tile = products.tile_for(np.dtype(dtype))
    zeros = np.zeros(columns, dtype)
    for M in ROWS:
        for K in DEPTHS:
            a, b, c, _ = matrices(M, K, columns, dtype)
            block = empty(products.packed_size(products.K_BLOCK, columns, a.itemsize), dtype)
            results = []
            for parts in (1, 2):
                result = empty((M, columns), dtype)
                for first, last in in_parts(columns, dtype, parts):
                    spill = empty(products.SPILL, dtype)
                    products.transposed_product(tile, contiguous(a.T), b, first, last, zeros, block, result, spill)
                results.append(result)
            assert_right(results[0], a, b, 0 * c, dtype)
            np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", conformance.DTYPES)
def test_packing_the_transpose_is_packing_what_is_transposed(dtype):
    for K in DEPTHS:
        for columns in COLUMNS:
            b = matrices(0, K, columns, dtype)[1]
            plain, transposed = (empty(products.packed_size(K, columns, b.itemsize), dtype) for _ in range(2))
            for first, last in in_parts(columns, dtype, 2):
                products.pack(b, first, last, K, plain)
                products.pack_transposed(contiguous(b.T), first, last, transposed)
            np.testing.assert_array_equal(plain, transposed)
            assert np.isfinite(plain).all()
