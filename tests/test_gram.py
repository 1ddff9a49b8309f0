"""Gram matrices on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn


@conformance_grid("gram")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("gram", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def features(dtype=np.float64):
    return np.random.default_rng(1).standard_normal((2, 3, 4, 5)).astype(dtype)


def test_by_hand(backend):
    gram = fastrnn.gram_matrix([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert np.array_equal(gram, np.array([[[5.0, 11.0], [11.0, 25.0]]]) / 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_symmetric(backend, dtype):
    gram = fastrnn.gram_matrix(features(dtype))
    assert gram.dtype == dtype and np.array_equal(gram, gram.transpose(0, 2, 1))


def test_options_change_the_result(backend):
    f = features()
    plain = fastrnn.gram_matrix(f)
    np.testing.assert_allclose(fastrnn.gram_matrix(f, normalize=False), 60 * plain, rtol=1e-14)
    np.testing.assert_allclose(fastrnn.gram_matrix(f.transpose(0, 2, 3, 1), layout="NHWC"), plain, rtol=1e-14)
    assert fastrnn.gram_matrix(f, layout="NHWC").shape == (2, 5, 5)
    dgram = np.random.default_rng(2).standard_normal((2, 3, 3))
    df = fastrnn.gram_backward(dgram, f)
    np.testing.assert_allclose(fastrnn.gram_backward(dgram, f, False), 60 * df, rtol=1e-14)
    df_last = fastrnn.gram_backward(dgram, f.transpose(0, 2, 3, 1), layout="NHWC")
    np.testing.assert_allclose(df_last, df.transpose(0, 2, 3, 1), rtol=1e-13, atol=1e-17)


def test_the_gradient_of_an_unsymmetric_gradient(backend):
    """G is symmetric, so dG and its transpose pull alike: not twice the one, but the sum of both."""
    f, dgram = features(), np.random.default_rng(3).standard_normal((2, 3, 3))
    df = fastrnn.gram_backward(dgram, f)
    np.testing.assert_allclose(fastrnn.gram_backward(dgram.transpose(0, 2, 1), f), df, rtol=1e-14)


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
