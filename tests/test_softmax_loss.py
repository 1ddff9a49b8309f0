"""The softmax loss over time, of given scores and over a vocabulary, on every backend."""

import tracemalloc

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn
from fastrnn import cache


@conformance_grid("softmax_loss")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("softmax_loss", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def problem():
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, 3, 5)), rng.integers(0, 5, (2, 3)), np.array([[1, 1, 0], [1, 0, 0]], bool)


def test_the_loss_is_summed_over_time_and_averaged_over_the_batch(backend):
    ones = np.ones((2, 3), bool)
    loss, _ = fastrnn.temporal_softmax_loss(np.zeros((2, 3, 5)), np.zeros((2, 3), int), ones)
    assert loss == pytest.approx(3 * np.log(5), rel=1e-15)
    x, y, mask = problem()
    doubled = fastrnn.temporal_softmax_loss(np.tile(x, (2, 1, 1)), np.tile(y, (2, 1)), np.tile(mask, (2, 1)))
    assert doubled[0] == pytest.approx(fastrnn.temporal_softmax_loss(x, y, mask)[0], rel=1e-15)


def test_masked_steps_count_for_nothing(backend):
    x, y, mask = problem()
    loss, dx = fastrnn.temporal_softmax_loss(x, y, mask)
    assert not dx[~mask].any() and dx[mask].all()
    x[~mask], y[~mask] = np.nan, 10**6
    again, dx_again = fastrnn.temporal_softmax_loss(x, y, mask)
    assert again == loss and np.array_equal(dx_again, dx)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64])
def test_a_mask_of_zeros_and_ones(backend, dtype):
    x, y, mask = problem()
    expected = fastrnn.temporal_softmax_loss(x, y, mask)
    loss, dx = fastrnn.temporal_softmax_loss(x, y, mask.astype(dtype))
    assert loss == expected[0] and np.array_equal(dx, expected[1])


def test_verbose_prints_the_well_known_line(backend, capsys):
    x, y, mask = problem()
    quiet = fastrnn.temporal_softmax_loss(x, y, mask)
    assert capsys.readouterr().out == ""
    loud = fastrnn.temporal_softmax_loss(x, y, mask, verbose=True)
    assert capsys.readouterr().out == "dx_flat:  (6, 5)\n"
    assert quiet[0] == loud[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_has_the_dtype_of_the_scores(backend, dtype):
    x, y, mask = problem()
    loss, dx = fastrnn.temporal_softmax_loss(x.astype(dtype), y, mask)
    assert type(loss) is dtype and dx.dtype == dtype


# ---- with the projection onto the vocabulary -----------------------------------------------------------------------

# Sizes of captioning and of a larger vocabulary: N, T, H, V.
VOCABULARIES = [(25, 16, 512, 1004), (100, 16, 200, 1004), (64, 32, 512, 10_000)]


def vocabulary_problem(shape=(2, 3, 4, 5), dtype=np.float64):
    N, T, H, V = shape
    rng = np.random.default_rng(2)
    h, W, b = (rng.standard_normal(size).astype(dtype) for size in ((N, T, H), (H, V), V))
    mask = rng.random((N, T)) < 0.8
    mask[0, :2] = True, False
    return {"h": h, "W": W / np.sqrt(H).astype(dtype), "b": b, "y": rng.integers(0, V, (N, T)), "mask": mask}


def test_the_vocabulary_loss_is_its_parts_one_after_the_other(backend):
    a = vocabulary_problem()
    loss, dh, dW, db = fastrnn.vocab_softmax_loss(**a)
    scores, made = fastrnn.temporal_affine_forward(a["h"], a["W"], a["b"])
    of_scores, dscores = fastrnn.temporal_softmax_loss(scores, a["y"], a["mask"])
    assert loss == pytest.approx(of_scores, rel=1e-14)
    for gradient, expected in zip((dh, dW, db), fastrnn.temporal_affine_backward(dscores, made), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-15)


def test_masked_steps_of_the_vocabulary_loss_count_for_nothing(backend):
    a = vocabulary_problem()
    results = fastrnn.vocab_softmax_loss(**a)
    assert not results[1][~a["mask"]].any() and results[1][a["mask"]].all()
    for anything in (1e3, np.inf, np.nan):
        a["h"][~a["mask"]], a["y"][~a["mask"]] = anything, 10**6
        for result, again in zip(results, fastrnn.vocab_softmax_loss(**a), strict=True):
            assert np.array_equal(result, again)


def test_where_all_is_masked_weights_that_are_not_finite_do_not_matter(backend):
    a = vocabulary_problem()
    a["mask"][:] = False
    a["W"][0], a["b"][1] = np.nan, np.inf
    for result in fastrnn.vocab_softmax_loss(**a):
        assert not np.any(result)


def test_lists_without_words(backend):
    """Of an empty list NumPy makes floats; that it holds no integers is nobody's mistake."""
    loss, dx = fastrnn.temporal_softmax_loss(np.ones((2, 0, 5)), [[], []], np.ones((2, 0), bool))
    assert loss == 0 and dx.shape == (2, 0, 5)
    loss, dh, dW, db = fastrnn.vocab_softmax_loss(
        np.ones((2, 0, 4)), np.ones((4, 5)), np.ones(5), [[], []], np.ones((2, 0), bool)
    )
    assert loss == 0 and dh.shape == (2, 0, 4) and not dW.any() and not db.any()
    with complains(TypeError, "temporal_softmax_loss", "'y'", "integers", "float64"):
        fastrnn.temporal_softmax_loss(np.ones((2, 0, 5)), np.ones((2, 0)), np.ones((2, 0), bool))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_a_mask_of_zeros_and_ones_for_the_vocabulary_loss(backend, dtype):
    a = vocabulary_problem()
    results = fastrnn.vocab_softmax_loss(**a)
    for result, again in zip(results, fastrnn.vocab_softmax_loss(**a | {"mask": a["mask"].astype(dtype)}), strict=True):
        assert np.array_equal(result, again)


def test_dtypes_of_the_vocabulary_loss_promote(backend):
    a = vocabulary_problem(dtype=np.float32)
    loss, *gradients = fastrnn.vocab_softmax_loss(**a)
    assert type(loss) is np.float32 and {g.dtype for g in gradients} == {np.dtype(np.float32)}
    loss, *gradients = fastrnn.vocab_softmax_loss(**a | {"b": a["b"].astype(np.float64)})
    assert type(loss) is np.float64 and {g.dtype for g in gradients} == {np.dtype(np.float64)}
    assert fastrnn.last_backend() == backend and fastrnn.last_backend().function == "vocab_softmax_loss"


def test_the_gradient_of_the_words_lies_as_the_words_do():
    if fastrnn.backend_status()["cpu"]:
        pytest.skip("no C++ kernels")
    a = vocabulary_problem()
    with fastrnn.backend("cpu"):
        assert fastrnn.vocab_softmax_loss(**a)[2].flags.c_contiguous
        assert fastrnn.vocab_softmax_loss(**a | {"W": np.asfortranarray(a["W"])})[2].flags.f_contiguous


def test_results_of_the_vocabulary_loss_are_the_callers(backend):
    a = vocabulary_problem()
    first = fastrnn.vocab_softmax_loss(**a)
    kept = [np.copy(result) for result in first]
    again = fastrnn.vocab_softmax_loss(**a)
    for result in again[1:]:
        assert result.flags.c_contiguous and result.flags.writeable
        result.fill(np.nan)
    for result, copy in zip(first, kept, strict=True):
        assert np.array_equal(result, copy)


def test_the_vocabulary_loss_gives_the_same_bits_each_time_and_at_any_number_of_threads():
    """Often, because threads that do not wait for each other go wrong seldom; the last chunk of rows is narrower."""
    if fastrnn.backend_status()["cpu"]:
        pytest.skip(fastrnn.backend_status()["cpu"])
    a = vocabulary_problem((20, 21, 96, 700), np.float32)
    before = fastrnn.get_num_threads()
    try:
        with fastrnn.backend("cpu"):
            fastrnn.set_num_threads(1)
            expected = fastrnn.vocab_softmax_loss(**a)
            for threads in (2, 3, 5):
                fastrnn.set_num_threads(threads)
                for _ in range(60 if threads == 2 else 5):
                    results = fastrnn.vocab_softmax_loss(**a)
                    assert fastrnn.last_backend().threads == threads
                    assert all(np.array_equal(x, y) for x, y in zip(results, expected, strict=True))
    finally:
        fastrnn.set_num_threads(before)


def extra_bytes(call):
    """The most memory that is held at once during the call, less what its results take."""
    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        results = call()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return peak - sum(np.asarray(result).nbytes for result in results)


@pytest.mark.parametrize("shape", VOCABULARIES[:2])
def test_extra_memory_is_below_a_tenth_of_the_scores(backend, shape, monkeypatch):
    monkeypatch.setattr(cache, "_pool", cache._Pool(0))  # or memory of earlier calls would not be counted
    a = vocabulary_problem(shape, np.float32)
    tenth = shape[0] * shape[1] * shape[3] * 4 / 10
    extra = extra_bytes(lambda: fastrnn.vocab_softmax_loss(**a))
    if backend == "reference":
        assert extra > 10 * tenth, "what is measured does not see the scores"
    else:
        assert 0 < extra < tenth


@pytest.mark.parametrize("kernels", ["_cpu", "numba_cpu.softmax_loss"])
@pytest.mark.parametrize("shape", VOCABULARIES)
def test_workspace_is_below_a_tenth_of_the_scores(kernels, shape):
    module = pytest.importorskip(f"fastrnn.{kernels}")
    N, T, H, V = shape
    for itemsize in (4, 8):
        (size,) = module.vocab_softmax_loss_buffers(N * T, H, V, itemsize)
        assert 0 < size < N * T * V / 10


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("h", (2, 4), ("3-dimensional, (N, T, H)",)),
        ("W", (3, 5), ("(H, V)", "H from h", "(3, 5)")),
        ("b", (4,), ("(V,) = (5,)", "V from W")),
        ("y", (3, 2), ("(N, T) = (2, 3)",)),
        ("mask", (6,), ("2-dimensional",)),
    ],
)
def test_wrong_shapes_for_the_vocabulary_loss(backend, name, shape, words):
    a = vocabulary_problem()
    with complains(ValueError, "vocab_softmax_loss", f"'{name}'", shape, *words):
        fastrnn.vocab_softmax_loss(**a | {name: np.ones(shape, a[name].dtype)})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"h": np.ones((2, 3, 4), complex)}, TypeError, ("'h'", "complex128")),
        ({"W": np.ones((4, 5), "U1")}, TypeError, ("'W'", "<U1")),
        ({"y": np.ones((2, 3))}, TypeError, ("'y'", "integers", "float64")),
        ({"mask": np.full((2, 3), 2)}, TypeError, ("'mask'", "int64")),
        ({"y": np.full((2, 3), 5)}, IndexError, ("'y'", "[0, 5)", "the V = 5 columns of W", "5 at position (0, 0)")),
        ({"y": np.full((2, 3), -1)}, IndexError, ("'y'", "-1 at position (0, 0)")),
    ],
)
def test_bad_arguments_of_the_vocabulary_loss(backend, change, error, words):
    with complains(error, "vocab_softmax_loss", *words):
        fastrnn.vocab_softmax_loss(**vocabulary_problem() | change)


def test_an_empty_batch_has_no_average_over_a_vocabulary(backend):
    with complains(ValueError, "vocab_softmax_loss", "'h'", "(0, 3, 4)"):
        nothing = np.zeros((0, 3), int)
        fastrnn.vocab_softmax_loss(np.zeros((0, 3, 4)), np.zeros((4, 5)), np.zeros(5), nothing, nothing)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [(5, ("5 at position (1, 0)", "[0, 5)", "V = 5")), (-1, ("-1 at position (1, 0)",))],
)
def test_a_word_out_of_range_where_it_counts(backend, value, words):
    x, y, mask = problem()
    y[1, 0] = value
    with complains(IndexError, "temporal_softmax_loss", "'y'", *words):
        fastrnn.temporal_softmax_loss(x, y, mask)


@pytest.mark.parametrize("dtype", [float, complex, object, bool])
def test_words_that_are_no_integers(backend, dtype):
    x, y, mask = problem()
    with complains(TypeError, "temporal_softmax_loss", "'y'", "integers", np.dtype(dtype).name):
        fastrnn.temporal_softmax_loss(x, y.astype(dtype), mask)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x", (2, 3), ("3-dimensional, (N, T, V)",)),
        ("y", (3, 2), ("(N, T) = (2, 3)",)),
        ("y", (2, 3, 1), ("2-dimensional",)),
        ("mask", (2, 2), ("(N, T) = (2, 3)",)),
        ("mask", (6,), ("2-dimensional",)),
    ],
)
def test_wrong_shapes(backend, name, shape, words):
    given = dict(zip(("x", "y", "mask"), problem(), strict=True))
    given[name] = np.ones(shape, given[name].dtype)
    with complains(ValueError, "temporal_softmax_loss", f"'{name}'", shape, *words):
        fastrnn.temporal_softmax_loss(**given)


@pytest.mark.parametrize(
    "mask", [np.full((2, 3), 0.5), np.full((2, 3), 2), np.full((2, 3), np.nan), np.ones((2, 3), "U1")]
)
def test_a_mask_that_is_none(backend, mask):
    x, y, _ = problem()
    with complains(TypeError, "temporal_softmax_loss", "'mask'", mask.dtype):
        fastrnn.temporal_softmax_loss(x, y, mask)


def test_an_empty_batch_has_no_average(backend):
    with complains(ValueError, "temporal_softmax_loss", "'x'", "(0, 3, 5)"):
        fastrnn.temporal_softmax_loss(np.zeros((0, 3, 5)), np.zeros((0, 3), int), np.zeros((0, 3), bool))


def test_scores_of_the_wrong_dtype(backend):
    x, y, mask = problem()
    with complains(TypeError, "temporal_softmax_loss", "'x'", "complex128"):
        fastrnn.temporal_softmax_loss(x.astype(complex), y, mask)
