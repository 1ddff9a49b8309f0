"""The softmax loss over time on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn


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
