"""The softmax loss on the CUDA column, on the simulator: rows too long for the conformance grid, chunks, known rows."""

import os

import numpy as np
import pytest

from fastrnn import conformance, reference

if os.environ.get("FASTRNN_CUDA_ON_HOST") != "1":
    pytest.skip("needs FASTRNN_CUDA_ON_HOST=1 (make test)", allow_module_level=True)
kernels = pytest.importorskip("fastrnn._cuda_on_host", reason="the simulator of CUDA kernels was not built")
cuda = pytest.importorskip("fastrnn.cuda.softmax_loss")

DTYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    kernels.simulate()


def assert_within(result, oracle, exact):
    error, bound = conformance.error_and_bound(result, oracle, exact, result.dtype)
    assert conformance.within(error, bound), f"off by {error:.3g}, allowed {bound:.3g}"


def temporal(x, y, mask, count):
    row_loss, dx = np.full(len(x), np.nan), np.full(x.shape, np.nan, x.dtype)
    cuda.temporal_softmax_loss(x, y, mask, count, row_loss, dx)
    loss = np.full(1, np.nan, x.dtype)
    cuda.total_loss(row_loss, count, loss)
    return loss[0], dx, row_loss


def rows_of_scores(V, dtype, kind):
    """Seven rows, the second and the last of which do not count."""
    rng = np.random.default_rng(V)
    x = (3 * rng.normal(size=(7, V))).astype(dtype)
    y = rng.integers(0, V, 7)
    if kind == "far from 0":
        x += 1e4
    elif kind == "of no chance":  # whole stretches, at the beginning too; never the right word
        x[:, : V // 2] = -np.inf
        x[3, :] = -np.inf
        y = rng.integers(V // 2, V, 7)
        x[3, y[3]] = 2
    elif kind == "rising":  # the running maximum changes all the time
        x = np.sort(x, axis=1)
    mask = np.array([1, 0, 1, 1, 1, 1, 0], bool)
    return x, np.where(mask, y, 10**9), mask


@pytest.mark.parametrize("kind", ["random", "far from 0", "of no chance", "rising"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_shared_memory", [True, False])
@pytest.mark.parametrize("V", [1025, 2500, 9000])
def test_rows_too_long_for_registers(V, in_shared_memory, dtype, kind):
    x, y, mask = rows_of_scores(V, dtype, kind)
    given = x[None], y[None], mask[None]
    with np.errstate(divide="ignore"):
        oracle = reference.temporal_softmax_loss(*given)
        exact = reference.temporal_softmax_loss(x[None].astype(conformance.EXACT[x.dtype.name]), *given[1:])
    results = []
    for seed in (0, 1, 2):
        kernels.simulate(shared=232448 if in_shared_memory else 4096, seed=seed)
        results.append(temporal(x, y, mask, 1))
    for loss, dx, row_loss in results[1:]:
        assert loss == results[0][0] and np.array_equal(dx, results[0][1]) and np.array_equal(row_loss, results[0][2])
    loss, dx, row_loss = results[0]
    assert_within(np.array(loss), np.array(oracle[0]), np.array(exact[0]))
    assert_within(dx, oracle[1][0], exact[1][0])
    assert not dx[~mask].any() and not row_loss[~mask].any()


@pytest.mark.parametrize("shared", [232448, 4096])
@pytest.mark.parametrize("V", [100, 500, 1000, 1500])
def test_rows_of_any_strides(V, shared):
    x, y, mask = rows_of_scores(V, np.float32, "random")
    kernels.simulate(shared=shared)
    expected = temporal(x, y, mask, 3)
    wide = np.full((14, 2 * V), np.nan, np.float32)
    for view in (wide[::2, ::2], wide[::-2, ::-2], np.full((V, 7), np.nan, np.float32).T):
        view[:] = x
        for result, same in zip(
            temporal(view, np.repeat(y, 2)[::2], np.repeat(mask, 3)[::3], 3), expected, strict=True
        ):
            assert np.array_equal(result, same)


@pytest.mark.parametrize("V", [300, 1500])
@pytest.mark.parametrize("shared", [232448, 4096])
def test_scores_that_are_not_finite_give_what_the_reference_gives(V, shared):
    kernels.simulate(shared=shared)
    rng = np.random.default_rng(3)
    for bad in (np.nan, np.inf, -np.inf):
        x = rng.normal(size=(1, 3, V)).astype(np.float32)
        x[0, 1, V // 3] = bad
        x[0, 2] = bad
        y = np.array([[5, 6, 7]])
        with np.errstate(all="ignore"):
            _, expected = reference.temporal_softmax_loss(x, y, np.ones((1, 3), bool))
        _, dx, _ = temporal(x[0], y[0], np.ones(3, bool), 1)
        assert np.array_equal(np.isnan(dx), np.isnan(expected[0]))
        np.testing.assert_allclose(dx, expected[0], rtol=1e-5, atol=1e-7)


def test_the_total_is_the_same_bits_for_any_order_of_threads():
    losses = np.random.default_rng(0).exponential(size=5001)
    totals = []
    for seed in range(4):
        kernels.simulate(seed=seed)
        loss = np.full(1, np.nan, np.float32)
        cuda.total_loss(losses, 7, loss)
        totals.append(loss[0])
    assert len(set(totals)) == 1 and totals[0] == pytest.approx(losses.sum() / 7, rel=1e-7)
    cuda.total_loss(losses[:0], 7, loss)
    assert loss[0] == 0


# ---- over a vocabulary ---------------------------------------------------------------------------------------------


def vocabulary(shape, dtype, share=0.6):
    N, T, H, V = shape
    rng = np.random.default_rng(5)
    h, b = rng.normal(size=(N, T, H)).astype(dtype), rng.normal(size=V).astype(dtype)
    W = (rng.normal(size=(H, V)) / np.sqrt(H)).astype(dtype)
    mask = rng.random((N, T)) < share
    return h, W, b, np.where(mask, rng.integers(0, V, (N, T)), -(10**9)), mask


def run(h, W, b, y, mask, rows, dtype):
    N, T, H = h.shape
    V = W.shape[1]
    (size,) = cuda.vocab_softmax_loss_buffers(N * T, H, V, h.itemsize)
    workspace, total = np.full(size, np.nan, dtype), np.full(1, np.nan)
    outputs = [np.full(a.shape, np.nan, dtype) for a in (h, W, b)]
    cuda.vocab_softmax_loss(h, W, b, y.reshape(-1), mask.reshape(-1), workspace, total, *outputs, rows=rows)
    return (dtype(total[0] / N), *outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 1.0])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (11, 37, 24, 130), (1, 400, 3, 1100)])
def test_rows_that_count_known_or_not(shape, known, share, dtype):
    a = vocabulary(shape, dtype, share)
    mask = a[-1]
    rows = np.flatnonzero(mask) if known else None
    with np.errstate(all="ignore"):
        oracle = reference.vocab_softmax_loss(*a)
        wide = conformance.EXACT[np.dtype(dtype).name]
        exact = reference.vocab_softmax_loss(*(x.astype(wide) for x in a[:3]), *a[3:])
    results = []
    for seed in (0, 1):
        kernels.simulate(seed=seed)
        results.append(run(*a, rows, dtype))
    for once, again, expected, right in zip(*results, oracle, exact, strict=True):
        assert np.array_equal(once, again)
        assert_within(np.asarray(once), np.asarray(expected), np.asarray(right))
    assert not results[0][1][~mask].any()


@pytest.mark.parametrize("known", [True, False])
def test_what_stands_at_masked_steps_does_not_matter(known):
    a = vocabulary((4, 9, 6, 40), np.float32)
    mask = a[-1]
    rows = np.flatnonzero(mask) if known else None
    expected = run(*a, rows, np.float32)
    a[0][~mask] = np.nan
    for result, same in zip(run(*a, rows, np.float32), expected, strict=True):
        assert np.array_equal(result, same)


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize(
    ("R", "H", "V"),
    [(400, 512, 1004), (1600, 200, 1004), (2048, 512, 10_000), (300, 2000, 300), (16_384, 1024, 50_257)],
)
def test_chunks_stay_within_a_tenth_of_the_scores(R, H, V, itemsize):
    (size,) = cuda.vocab_softmax_loss_buffers(R, H, V, itemsize)
    least = 16 * (V + H) + R * 8 // itemsize
    assert 0 < size <= max(R * V / 10, least)
    for gathered in (True, False):
        rows = cuda.chunk_rows(R, H, V, size, itemsize, gathered)
        assert 16 <= rows <= R
        assert rows * (V + H * gathered) + R * 8 // itemsize <= size


@pytest.mark.parametrize(("R", "H", "V"), [(1, 1, 1), (5, 3, 0), (5, 0, 7), (20, 9, 4), (3, 400, 2)])
def test_chunks_of_small_problems_fit_their_workspace(R, H, V):
    for itemsize in (4, 8):
        (size,) = cuda.vocab_softmax_loss_buffers(R, H, V, itemsize)
        for gathered in (True, False):
            rows = cuda.chunk_rows(R, H, V, size, itemsize, gathered)
            assert 1 <= rows <= R and rows * (V + H * gathered) + R * 8 // itemsize <= size
