"""Gram matrices on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn
from fastrnn import conformance


@conformance_grid("gram")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("gram", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def features(dtype=np.float64):
    return np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(dtype)


def assert_within(result, function, *arrays):
    """The result is as close to the oracle's from these float64 arrays as the tolerance rule asks."""
    oracle = getattr(fastrnn.reference, function)(*arrays)
    exact = getattr(fastrnn.reference, function)(*(a.astype(conformance.EXACT["float64"]) for a in arrays))
    error, bound = conformance.error_and_bound(result, oracle, exact, "float64")
    assert result.shape == oracle.shape and conformance.within(error, bound), f"off by {error:.3g}, allowed {bound:.3g}"


def test_by_hand(backend):
    gram = fastrnn.gram_matrix([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert np.array_equal(gram, np.array([[[5.0, 11.0], [11.0, 25.0]]]) / 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_symmetric(backend, dtype):
    gram = fastrnn.gram_matrix(features(dtype))
    assert gram.dtype == dtype and np.array_equal(gram, gram.transpose(0, 2, 1))


def test_options_change_the_result(backend):
    f = np.random.default_rng(1).standard_normal((2, 2, 4, 8))
    plain = fastrnn.gram_matrix(f)
    # 64 numbers: a division by them is exact, so that it may come before the sums or after them.
    assert np.array_equal(fastrnn.gram_matrix(f, normalize=False), 64 * plain)
    assert_within(fastrnn.gram_matrix(f.transpose(0, 2, 3, 1), layout="NHWC"), "gram_matrix", f)
    assert fastrnn.gram_matrix(f, layout="NHWC").shape == (2, 8, 8)
    dgram = np.random.default_rng(2).standard_normal((2, 2, 2))
    df = fastrnn.gram_backward(dgram, f)
    assert np.array_equal(fastrnn.gram_backward(dgram, f, False), 64 * df)
    df_last = fastrnn.gram_backward(dgram, f.transpose(0, 2, 3, 1), layout="NHWC")
    assert_within(df_last.transpose(0, 3, 1, 2), "gram_backward", dgram, f)


def test_the_gradient_of_an_unsymmetric_gradient(backend):
    """G is symmetric, so dG and its transpose pull alike: not twice the one, but the sum of both."""
    f, dgram = features(), np.random.default_rng(3).standard_normal((2, 3, 3))
    df = fastrnn.gram_backward(dgram, f)
    assert np.array_equal(fastrnn.gram_backward(dgram.transpose(0, 2, 1), f), df)  # a + b is b + a


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 2, 3, 4, 5), ()])
def test_wrong_rank(backend, shape):
    with complains(ValueError, "gram_matrix", "'features'", "4-dimensional, (N, C, H, W)", shape):
        fastrnn.gram_matrix(np.ones(shape))
    with complains(ValueError, "gram_backward", "'features'", "4-dimensional, (N, H, W, C)", shape):
        fastrnn.gram_backward(np.ones((1, 3, 3)), np.ones(shape), layout="NHWC")


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 3), (3, 3), (2, 3, 4)])
def test_a_gradient_of_the_wrong_shape(backend, shape):
    with complains(ValueError, "gram_backward", "'dgram'", "(N, C, C)", shape):
        fastrnn.gram_backward(np.ones(shape), features())


@pytest.mark.parametrize("layout", ["NCWH", "nchw", None, 0])
def test_an_unknown_layout(backend, layout):
    with complains(ValueError, "gram_matrix", "'layout'", "'NCHW', 'NHWC'", repr(layout)):
        fastrnn.gram_matrix(features(), layout=layout)


@pytest.mark.parametrize("normalize", ["NHWC", 1, None])
def test_normalize_is_true_or_false(backend, normalize):
    with complains(TypeError, "gram_matrix", "'normalize'", "True or False"):
        fastrnn.gram_matrix(features(), normalize)


@pytest.mark.parametrize("dtype", [complex, object, np.float16])
def test_wrong_dtypes(backend, dtype):
    with complains(TypeError, "gram_matrix", "'features'", np.dtype(dtype).name):
        fastrnn.gram_matrix(features().astype(dtype))


def test_nothing_cannot_be_normalized(backend):
    with complains(ValueError, "gram_matrix", "'features'", "(2, 3, 0, 5)"):
        fastrnn.gram_matrix(np.ones((2, 3, 0, 5)))
    assert np.array_equal(fastrnn.gram_matrix(np.ones((2, 3, 0, 5)), normalize=False), np.zeros((2, 3, 3)))
