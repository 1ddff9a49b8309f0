"""Word embeddings on the simulator of a CUDA device: skewed ids, the check of ids, orders of threads."""

import os

import numpy as np
import pytest

if os.environ.get("FASTRNN_CUDA_ON_HOST") != "1":
    pytest.skip("needs FASTRNN_CUDA_ON_HOST=1 (make test)", allow_module_level=True)
simulator = pytest.importorskip("fastrnn._cuda_on_host", reason="the simulator of CUDA kernels was not built")
embedding = pytest.importorskip("fastrnn.cuda.embedding")


def workspace(n, size_v, size_d, dtype):
    size = embedding.word_embedding_buffers(n, size_v, size_d, np.dtype(dtype).itemsize)
    return np.full(size, -1, np.int64)


def dense(ids, dout, size_v):
    dw = np.full((size_v, dout.shape[1]), np.nan, dout.dtype)
    embedding.word_embedding_backward(ids, dout, workspace(len(ids), size_v, dout.shape[1], dout.dtype), dw, False)
    return dw


def exact(ids, dout, size_v):
    dw = np.zeros((size_v, dout.shape[1]), dout.dtype)
    np.add.at(dw, ids, dout)
    return dw


# Whole numbers, whose sums are exact in any order: what is missing or counted twice shows.
def numbers(n, size_d, dtype=np.float32):
    return np.random.default_rng(n).integers(-9, 9, (n, size_d)).astype(dtype)


def runs(*lengths):
    return np.repeat(np.arange(len(lengths)), lengths)


SKEWED = {
    "one chunk": runs(32),
    "less than a chunk": runs(31),
    "a chunk that is not aligned": runs(1, 32, 31),
    "one aligned chunk in a run": runs(5, 60, 3),
    "chunks of chunks": runs(7, 2100, 40, 3, 1024, 1),
    "all equal": runs(5000),
    "three sizes of chunks": runs(33_000, 5),
    "one place short of chunks of chunks": runs(31, 32_767, 2, 33),
}


@pytest.mark.parametrize("name", SKEWED)
@pytest.mark.parametrize("size_d", [3, 8])
def test_long_runs(name, size_d):
    ids = np.random.default_rng(0).permutation(SKEWED[name])
    size_v = int(ids.max()) + 3
    dout = numbers(len(ids), size_d)
    expected = exact(ids, dout, size_v)
    assert np.array_equal(dense(ids, dout, size_v), expected)
    space = workspace(len(ids), size_v, size_d, np.float32)
    k = embedding.word_embedding_sort(ids, size_v, size_d, 4, space)
    rows, values = np.full(k, -1), np.full((k, size_d), np.nan, np.float32)
    embedding.word_embedding_sparse(dout, size_v, space, rows, values)
    assert np.array_equal(rows, np.unique(ids)) and np.array_equal(values, expected[rows])
    out = np.ones((size_d, size_v), np.float32).T  # strides the other way round
    embedding.word_embedding_backward(ids, dout, workspace(len(ids), size_v, size_d, np.float32), out, True)
    assert np.array_equal(out, expected + 1)


def test_a_large_vocabulary_with_few_words():
    ids = np.array([2**40, 5, 2**40, 7])
    space = workspace(4, 2**41, 4, np.float64)
    k = embedding.word_embedding_sort(ids, 2**41, 4, 8, space)
    assert k == 3
    rows, values = np.empty(k, np.int64), np.empty((k, 4))
    dout = numbers(4, 4, np.float64)
    embedding.word_embedding_sparse(dout, 2**41, space, rows, values)
    assert rows.tolist() == [5, 7, 2**40] and np.array_equal(values, [dout[1], dout[3], dout[0] + dout[2]])
    assert len(space) < 1000  # memory does not grow with V


def test_no_ids():
    space = workspace(0, 5, 3, np.float32)
    assert embedding.word_embedding_sort(np.empty(0, np.int64), 5, 3, 4, space) == 0
    assert np.array_equal(dense(np.empty(0, np.int64), np.empty((0, 3)), 5), np.zeros((5, 3)))


def test_the_order_of_threads_does_not_matter():
    rng = np.random.default_rng(3)
    ids = np.where(rng.random(3000) < 0.5, 4, rng.integers(0, 90, 3000))
    dout = rng.standard_normal((3000, 12)).astype(np.float32)
    results = []
    for seed in (0, 1, 2):
        simulator.simulate(seed=seed)
        results.append(dense(ids, dout, 90).tobytes())
    simulator.simulate()
    assert len(set(results)) == 1


@pytest.mark.parametrize("n", [1, 33, 1500, 40_000])
def test_the_first_bad_id(n):
    ids = np.random.default_rng(n).integers(0, 10, n)
    assert embedding.first_bad_id(ids, 10) == -1
    for bad in (-1, 10, 2**62, -(2**63)):
        for positions in ((0,), (n - 1,), (n // 2, n - 1)):
            broken = ids.copy()
            broken[list(positions)] = bad
            assert embedding.first_bad_id(broken, 10) == positions[0]
    assert embedding.first_bad_id(np.full(2 * n, 10)[::-2], 10) == 0
    assert embedding.first_bad_id(ids[:0], 10) == -1
