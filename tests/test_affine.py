"""The affine layers on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn


@conformance_grid("affine")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("affine", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def test_samples_are_flattened(backend):
    x = np.arange(24.0).reshape(2, 3, 4)
    w = np.arange(24.0).reshape(12, 2)
    out, cache = fastrnn.affine_forward(x, w, [100, 200])
    assert np.array_equal(out, x.reshape(2, 12) @ w + [100, 200])
    assert fastrnn.affine_backward(np.ones((2, 2)), cache)[0].shape == (2, 3, 4)


def test_what_ran_is_told(backend):
    fastrnn.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    assert fastrnn.last_backend() == backend and fastrnn.last_backend().function == "affine_forward"


def test_results_share_no_memory(backend):
    x, w, b = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)
    out, cache = fastrnn.affine_forward(x, w, b)
    for result in (out, *fastrnn.affine_backward(np.ones((2, 4)), cache)):
        assert not any(np.shares_memory(result, given) for given in (x, w, b))


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "b", "name", "words"),
    [
        ((2, 3), (4, 5), (5,), "w", ("(D, M)", "D from x", "(4, 5)")),
        ((2, 3, 4), (3, 5), (5,), "w", ("12", "(3, 5)")),
        ((2, 3), (3, 5), (4,), "b", ("(M,) = (5,)", "(4,)")),
        ((2, 3), (3,), (5,), "w", ("2-dimensional", "(3,)")),
        ((), (3, 5), (5,), "x", ("()",)),
    ],
)
def test_affine_of_the_wrong_shapes(backend, x, w, b, name, words):
    with complains(ValueError, "affine_forward", f"'{name}'", *words):
        fastrnn.affine_forward(np.ones(x), np.ones(w), np.ones(b))


@pytest.mark.parametrize(
    ("x", "w", "b", "name", "words"),
    [
        ((2, 3), (3, 5), (5,), "x", ("3-dimensional, (N, T, D)", "(2, 3)")),
        ((2, 4, 3), (4, 5), (5,), "w", ("D from x", "(4, 5)")),
        ((2, 4, 3), (3, 5), (5, 1), "b", ("1-dimensional", "(5, 1)")),
    ],
)
def test_temporal_affine_of_the_wrong_shapes(backend, x, w, b, name, words):
    with complains(ValueError, "temporal_affine_forward", f"'{name}'", *words):
        fastrnn.temporal_affine_forward(np.ones(x), np.ones(w), np.ones(b))


@pytest.mark.parametrize("function", ["affine_forward", "temporal_affine_forward"])
@pytest.mark.parametrize("dtype", [complex, object, np.float16])
def test_wrong_dtypes(backend, function, dtype):
    x = np.ones((2, 3) if function == "affine_forward" else (2, 4, 3), dtype)
    with complains(TypeError, function, "'x'", np.dtype(dtype).name):
        getattr(fastrnn, function)(x, np.ones((3, 5)), np.ones(5))


def test_a_gradient_of_the_wrong_shape(backend):
    _, cache = fastrnn.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    with complains(ValueError, "affine_backward", "'dout'", "(N, M) = (2, 4)", "(2, 3)"):
        fastrnn.affine_backward(np.ones((2, 3)), cache)
    _, cache = fastrnn.temporal_affine_forward(np.ones((2, 5, 3)), np.ones((3, 4)), np.ones(4))
    with complains(ValueError, "temporal_affine_backward", "'dout'", "(N, T, M) = (2, 5, 4)", "(2, 5, 3)"):
        fastrnn.temporal_affine_backward(np.ones((2, 5, 3)), cache)


def test_the_cache_of_the_other_function(backend):
    _, cache = fastrnn.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    with complains(ValueError, "temporal_affine_backward", "'cache'", "temporal_affine_forward", "that affine_forward"):
        fastrnn.temporal_affine_backward(np.ones((2, 5, 4)), cache)
