"""The memory that kernels are handed: aligned, used again when nobody refers to it, and bounded."""

import numpy as np
import pytest
from harness import USABLE

import fastrnn
from fastrnn import cache


@pytest.fixture
def pool(monkeypatch):
    fresh = cache._Pool(16 << 20)
    monkeypatch.setattr(cache, "_pool", fresh)
    return fresh


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("count", [0, 1, 1000, 1 << 20])
def test_buffers_start_on_a_cache_line(pool, count):
    array = cache.buffer(count, np.float32)
    assert array.shape == (count,) and array.dtype == np.float32 and (count == 0 or address(array) % 64 == 0)


@pytest.mark.skipif(not cache._COUNTS_REFERENCES, reason="reference counts are not exact here")
def test_a_block_is_used_again_only_when_it_is_free(pool):
    first = cache.buffer(1 << 20, np.float32)
    inner = first[100:200]
    where = address(first)
    del first
    second = cache.buffer(1 << 20, np.float32)
    assert address(second) != where, "a view still refers to the first block"
    del inner
    third = cache.buffer(1 << 20, np.float32)
    assert address(third) == where


def test_the_pool_is_bounded(pool):
    rng = np.random.default_rng(0)
    kept = [cache.buffer(int(rng.integers(1, 3 << 20)), np.float32) for _ in range(20)]
    assert sum(block.nbytes for _, _, block in pool._entries) <= pool.limit
    for array in kept:  # what was dropped from the pool still belongs to its holders
        array[:] = 1
    assert all((array == 1).all() for array in kept)


def test_caches_outlive_later_calls(backend_with_kernels):
    rng = np.random.default_rng(0)
    shapes = [(40, 12, 64), (40, 128), (64, 512), (128, 512), (512,)]
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    dh = rng.standard_normal((40, 12, 128)).astype(np.float32)
    h, kept = fastrnn.lstm_forward(*inputs)
    expected = fastrnn.lstm_backward(dh, kept)
    for _ in range(4):
        _, other = fastrnn.lstm_forward(*(2 * a for a in inputs))
        fastrnn.lstm_backward(dh, other)
    for a, b in zip(expected, fastrnn.lstm_backward(dh, kept), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=[name for name in USABLE if name != "reference"])
def backend_with_kernels(request):
    with fastrnn.backend(request.param):
        yield request.param
