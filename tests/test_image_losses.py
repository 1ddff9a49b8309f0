"""Content, style and total-variation loss on every backend."""

import inspect

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn
from fastrnn import reference


@conformance_grid("image_losses")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("image_losses", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


A = np.random.default_rng(1).standard_normal((1, 3, 4, 5))
B = np.random.default_rng(2).standard_normal((1, 3, 4, 5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_have_the_dtype_of_the_images(backend, dtype):
    a, b = A.astype(dtype), B.astype(dtype)
    # A NumPy float64 weight does not turn float32 into float64.
    for weight in (0.5, np.float64(0.5), 1, np.array(0.5)):
        assert type(fastrnn.content_loss(weight, a, b)) is dtype
        assert type(fastrnn.tv_loss(a, weight)) is dtype
        assert type(fastrnn.style_loss([a], [0], [fastrnn.gram_matrix(b)], [weight])) is dtype
        assert fastrnn.content_loss_backward(weight, a, b).dtype == dtype
        assert fastrnn.tv_loss_backward(a, weight).dtype == dtype
        assert fastrnn.style_loss_backward([a], [0], [fastrnn.gram_matrix(b)], [weight])[0].dtype == dtype


def test_by_hand(backend):
    assert fastrnn.content_loss(2.0, [1.0, 2.0], [0.0, 4.0]) == 10.0
    assert fastrnn.content_loss_backward(2.0, [1.0, 2.0], [0.0, 4.0]).tolist() == [4.0, -8.0]
    image = np.zeros((1, 3, 2, 2))
    image[0, :, 0, 1] = (1, 2, 3)  # each has one neighbour below and one to the left
    assert fastrnn.tv_loss(image, 0.5) == 14.0
    assert fastrnn.tv_loss_backward(image, 0.5)[0, 2].tolist() == [[-3.0, 6.0], [0.0, -3.0]]
    targets = [np.zeros((1, 1, 1))]
    assert fastrnn.style_loss([np.full((1, 1, 1, 2), 2.0)], [0], targets, [3.0]) == 48.0


def test_unused_layers_have_no_gradient(backend):
    gradients = fastrnn.style_loss_backward([A, B], [1], [np.zeros((1, 3, 3))], [1.0])
    assert len(gradients) == 2
    assert gradients[0].shape == A.shape and not gradients[0].any()
    assert gradients[1].all()


def test_a_layer_may_be_used_twice(backend):
    target = np.zeros((1, 3, 3))
    once = fastrnn.style_loss_backward([A], [0], [target], [1.0])[0]
    twice = fastrnn.style_loss_backward([A], [0, 0], [target, target], [1.0, 2.0])[0]
    np.testing.assert_allclose(twice, 3 * once, rtol=1e-14)


@pytest.mark.parametrize("function", [fastrnn.tv_loss, reference.tv_loss])
def test_notebooks_see_no_loop_in_the_source(function):
    words = inspect.getsource(function).replace("`", " ").split()
    assert "for" not in words and "while" not in words


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["content_loss", "content_loss_backward"])
def test_content_of_another_shape(backend, function):
    with complains(ValueError, function, "'content_original'", "(1, 3, 4, 5)", "(1, 3, 5, 4)"):
        getattr(fastrnn, function)(1.0, A, np.ones((1, 3, 5, 4)))


@pytest.mark.parametrize("function", ["tv_loss", "tv_loss_backward"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (1, 1, 3, 4, 5)])
def test_images_of_the_wrong_rank(backend, function, shape):
    with complains(ValueError, function, "'img'", "4-dimensional", shape):
        getattr(fastrnn, function)(np.ones(shape), 1.0)


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        ("heavy", TypeError, ("real number",)),
        (1j, TypeError, ("complex",)),
        (None, TypeError, ("NoneType",)),
        ([1.0, 2.0], ValueError, ("(2,)",)),
    ],
)
def test_weights_are_single_numbers(backend, weight, error, words):
    with complains(error, "content_loss", "'content_weight'", *words):
        fastrnn.content_loss(weight, A, B)
    with complains(error, "tv_loss", "'tv_weight'", *words):
        fastrnn.tv_loss(A, weight)
    with complains(error, "style_loss", "style_weights[0]", *words):
        fastrnn.style_loss([A], [0], [np.zeros((1, 3, 3))], [weight])


@pytest.mark.parametrize("function", ["style_loss", "style_loss_backward"])
@pytest.mark.parametrize(
    ("layers", "targets", "weights", "error", "words"),
    [
        ([2], 1, [1.0], IndexError, ("'style_layers'", "2 at position 0", "[0, 2)")),
        ([-1], 1, [1.0], IndexError, ("'style_layers'", "-1 at position 0")),
        ([0.0], 1, [1.0], TypeError, ("'style_layers'", "integers")),
        ([0, 1], 1, [1.0, 1.0], ValueError, ("'style_targets'", "2 style_layers", "1 entries")),
        ([0], 1, [1.0, 2.0], ValueError, ("'style_weights'", "1 style_layers", "2 entries")),
    ],
)
def test_style_lists_that_do_not_fit(backend, function, layers, targets, weights, error, words):
    with complains(error, function, *words):
        getattr(fastrnn, function)([A, B], layers, [np.zeros((1, 3, 3))] * targets, weights)


@pytest.mark.parametrize("function", ["style_loss", "style_loss_backward"])
def test_style_targets_of_the_wrong_shape(backend, function):
    with complains(ValueError, function, "'style_targets", "(N, C, C) = (1, 3, 3)", "(1, 4, 4)"):
        getattr(fastrnn, function)([A], [0], [np.zeros((1, 4, 4))], [1.0])


@pytest.mark.parametrize("function", ["style_loss", "style_loss_backward"])
def test_style_features_of_the_wrong_rank(backend, function):
    with complains(ValueError, function, "feats[1]", "4-dimensional", "(3, 4)"):
        getattr(fastrnn, function)([A, np.ones((3, 4))], [1], [np.zeros((1, 3, 3))], [1.0])


@pytest.mark.parametrize("dtype", [complex, object, np.float16])
def test_wrong_dtypes(backend, dtype):
    named = np.dtype(dtype).name
    with complains(TypeError, "content_loss", "'content_current'", named):
        fastrnn.content_loss(1.0, A.astype(dtype), B)
    with complains(TypeError, "tv_loss", "'img'", named):
        fastrnn.tv_loss(A.astype(dtype), 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 4, 0), (1, 3, 0, 4), (2, 0, 4, 5), (0, 3, 4, 5)])
def test_images_without_pixels(backend, shape):
    with fastrnn.backend(backend):
        assert fastrnn.tv_loss(np.ones(shape), 0.5) == 0
        assert fastrnn.tv_loss_backward(np.ones(shape), 0.5).shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [0, 1, 3])
def test_an_infinite_pixel_pulls_on_its_neighbours_alone(backend, row):
    """At the border, where no neighbour is, nothing is taken from it: infinity less infinity would be NaN."""
    img = np.ones((1, 1, 4, 5))
    img[0, 0, row, 2] = np.inf
    with fastrnn.backend(backend):
        assert np.array_equal(fastrnn.tv_loss_backward(img, 0.5), reference.tv_loss_backward(img, 0.5), equal_nan=True)
        assert not np.isnan(fastrnn.tv_loss_backward(img, 0.5)).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", ["style_loss", "style_loss_backward"])
def test_style_features_without_pixels_are_named(backend, function):
    features = [np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 0))]
    with fastrnn.backend(backend), complains(ValueError, function, "'feats[1]'", "C*H*W > 0", "(1, 2, 3, 0)"):
        getattr(fastrnn, function)(features, [1], [np.ones((1, 2, 2))], [1.0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_number_is_an_array(backend):
    with fastrnn.backend(backend):
        gradient = fastrnn.content_loss_backward(1.0, np.float32(3), np.float32(2))
    assert type(gradient) is np.ndarray and gradient.shape == () and gradient == 2
