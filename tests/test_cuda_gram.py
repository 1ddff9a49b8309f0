"""Gram matrices on the simulator of a CUDA device: how sums are cut, devices, orders of threads."""

import os

import numpy as np
import pytest

if os.environ.get("FASTRNN_CUDA_ON_HOST") != "1":
    pytest.skip("needs FASTRNN_CUDA_ON_HOST=1 (make test)", allow_module_level=True)
simulator = pytest.importorskip("fastrnn._cuda_on_host", reason="the simulator of CUDA kernels was not built")
gram = pytest.importorskip("fastrnn.cuda.gram")


@pytest.fixture(autouse=True)
def device():
    yield
    simulator.simulate()


def forward(f):
    n, c, p = f.shape
    space = np.full(gram.gram_buffers(n, c, p, f.itemsize)[0], np.nan, f.dtype)
    g = np.full((n, c, c), np.nan, f.dtype)
    gram.gram_matrix(f, 1.0, space, g)
    return g


def backward(dg, f):
    space = np.full(gram.gram_buffers(*f.shape, f.itemsize)[1], np.nan, f.dtype)
    df = np.full(f.shape, np.nan, f.dtype)
    gram.gram_backward(dg, f, 1.0, space, df)
    return df


@pytest.mark.parametrize("sms", [1, 4, 108, 132, 148])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_the_parts_cover_all_positions(sms, itemsize):
    for capability in ((7, 5), (8, 0), (8, 6), (9, 0), (12, 0)):
        simulator.simulate(sms=sms, major=capability[0], minor=capability[1])
        for n, c, p in ((1, 64, 512**2), (8, 512, 28**2), (1, 1, 1), (1, 1000, 49), (3, 65, 12_345), (1, 64, 0)):
            tiles, parts, part_k = simulator.gram_cut(n, c, p, itemsize)
            side = -(-c // 64)
            assert tiles == side * (side + 1) // 2
            assert parts * part_k >= p > (parts - 1) * part_k or (p == 0 and parts == 1)
            assert gram.gram_buffers(n, c, p, itemsize)[0] == (n * tiles * parts * 4096 if parts > 1 else 0)


def test_one_large_image_fills_an_h100():
    simulator.simulate(sms=132)
    tiles, parts, _ = simulator.gram_cut(1, 64, 512**2, 4)
    assert 264 >= tiles * parts >= 250  # two blocks an SM


# Small whole numbers, whose sums are exact in any order and in TF32.
def numbers(*shape, dtype=np.float32):
    return np.random.default_rng(shape).integers(-9, 9, shape).astype(dtype)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (9, 0)])
@pytest.mark.parametrize("shape", [(2, 67, 33), (1, 130, 36), (1, 5, 4500), (2, 64, 64)])
@pytest.mark.parametrize("by_channel", [False, True])
def test_on_every_kind_of_device(capability, shape, by_channel):
    simulator.simulate(major=capability[0], minor=capability[1], seed=7)
    f = numbers(*shape)
    if by_channel:
        f = f.transpose(0, 2, 1).copy().transpose(0, 2, 1)
    expected = f @ f.transpose(0, 2, 1)
    assert np.array_equal(forward(f), expected)
    dg = numbers(shape[0], shape[1], shape[1])
    assert np.array_equal(backward(dg, f), (dg + dg.transpose(0, 2, 1)) @ f)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_threads_does_not_matter(dtype):
    f = np.random.default_rng(5).standard_normal((1, 70, 2100)).astype(dtype)
    results = []
    for seed in (0, 1, 2):
        simulator.simulate(seed=seed)
        results.append(forward(f).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("capability", [(8, 6), (9, 0)])
def test_accurate_to_float32(capability):
    """Numbers that TF32 alone would round by 2^-12 each."""
    simulator.simulate(major=capability[0], minor=capability[1])
    f = (1 + np.random.default_rng(6).random((1, 20, 3000))).astype(np.float32)
    exact = f.astype(np.float64) @ f.astype(np.float64).transpose(0, 2, 1)
    assert np.max(np.abs(forward(f) - exact)) < 4 * np.finfo(np.float32).eps * exact.max()
