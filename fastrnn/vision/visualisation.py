"""What a classifier looks at, what deceives it and what it has in mind: pictures made from the gradients of its scores.

All functions here take the gradient with respect to an image, and only that: parameters and their ``.grad``, and the
mode of the model (training or evaluation, which is what it computes in here), are afterwards as they were before. They
may be called where gradients are turned off: ``torch.inference_mode(False)`` turns them on, after `torch.no_grad` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from fastrnn.checks import Arguments, is_whole
from fastrnn.vision.images import MEAN, STD

__all__ = ["blur", "compute_saliency_maps", "create_class_visualization", "image_bounds", "make_fooling_image"]

Model = Callable[[torch.Tensor], torch.Tensor]
Bounds = tuple[Any, Any]

BLUR_SIGMA = 0.5  # pixels
_SIGMAS = 4.0  # how far the kernel of a blur reaches


@torch.inference_mode(False)
def compute_saliency_maps(
    X: torch.Tensor,
    y: torch.Tensor | Sequence[int],
    model: Model,
    *,
    smooth: int = 0,
    noise: float = 0.15,
    seed: int = 0,
) -> torch.Tensor:
    """How strongly the score of a class depends on each pixel: ``max over channels of |∂ score_y / ∂X|``.

    Parameters
    ----------
    X : floating Tensor, shape (N, C, H, W)
        Images, as the model takes them.
    y : integer Tensor or sequence of int, shape (N,)
        For each image the class whose score is looked at; most often the true one, or the one that the model gives it.
    model : callable
        Gives class scores (logits) of shape (N, num_classes), those of an image from this image alone. An `nn.Module`
        computes in evaluation mode.
    smooth : int
        Average the gradient over so many copies of each image with noise (SmoothGrad); 0: the gradient at `X` itself.
    noise : float
        Of `smooth`: standard deviation of the noise, as a part of the range of values in an image.
    seed : int
        Of the noise.

    Returns
    -------
    Tensor, shape (N, H, W)
        At least 0, in the dtype and on the device of `X`, in units of score per unit of `X`.

    Raises
    ------
    ValueError, TypeError, IndexError
        A shape, dtype or class does not fit.

    Notes
    -----
    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", section 3; `smooth` is Smilkov et al. 2017,
    "SmoothGrad": the signed gradients are averaged, so that those that change from copy to copy cancel.
    """
    check = Arguments("compute_saliency_maps")
    images = _images(check, "X", X)
    classes = _classes(check, "y", y, images)
    if len(classes) != len(images):
        raise check.fail(ValueError, "y", f"have one class for each of the {len(images)} images", f"{len(classes)}")
    check.whole("smooth", smooth, 0)
    check.finite("noise", noise)
    with _evaluating(model):
        if not smooth:
            gradient = _gradient(check, model, images, classes)
        else:
            generator = torch.Generator(images.device).manual_seed(check.whole("seed", seed, 0))
            low, high = torch.aminmax(images.flatten(1), dim=1)
            sigma = (noise * (high - low))[:, None, None, None]
            gradient = torch.zeros_like(images)
            for _ in range(smooth):
                drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
                gradient += _gradient(check, model, images + sigma * drawn, classes) / smooth
    return gradient.abs().amax(dim=1)


@torch.inference_mode(False)
def make_fooling_image(
    X: torch.Tensor,
    target_y: int,
    model: Model,
    learning_rate: float = 1.0,
    max_iter: int = 100,
    *,
    bounds: Bounds | None = None,
    callback: Callable[[int], Any] | None = None,
) -> torch.Tensor:
    """Change an image a little, until the model takes it for something else.

    Each step goes up the score of class `target_y`: ``X += learning_rate · g / ‖g‖`` with ``g = ∂ score / ∂X``. The
    first image for which the score of `target_y` is the highest is returned.

    Parameters
    ----------
    X : floating Tensor, shape (1, C, H, W)
        An image, as the model takes it. It is not changed.
    target_y : int
        The class that the model is to see in it.
    model : callable
        Gives class scores (logits) of shape (1, num_classes). An `nn.Module` computes in evaluation mode.
    learning_rate : float
        Length of a step, in units of `X` (the L2 norm over all of its values).
    max_iter : int
        Most steps.
    bounds : pair of float or Tensor, optional
        Least and greatest value, each a number or a tensor that broadcasts against `X`: the image stays within, as an
        image in a file has to.
    callback : callable, optional
        Called with the number of steps taken, after each.

    Returns
    -------
    Tensor, shape (1, C, H, W)
        The changed image; a copy of `X` if the model sees `target_y` in that already.

    Raises
    ------
    ValueError
        The model does not see `target_y` after `max_iter` steps, or the score does not depend on the image; or a shape
        does not fit.
    TypeError, IndexError
        A dtype or class does not fit.

    Notes
    -----
    Szegedy et al. 2014, "Intriguing properties of neural networks", found that such images exist, Goodfellow, Shlens,
    Szegedy 2015, "Explaining and Harnessing Adversarial Examples", that the gradient leads to them. The score of
    another class may rise faster than that of `target_y`. With log-probabilities as scores
    (``model(X).log_softmax(1)``) those of the others have to fall, and less of a change is needed.
    """
    check = Arguments("make_fooling_image")
    images = _images(check, "X", X)
    if len(images) != 1:
        raise check.fail(ValueError, "X", "hold one image, (1, C, H, W)", f"shape {tuple(images.shape)}")
    classes = _class(check, target_y, images)
    target = int(classes)
    check.finite("learning_rate", learning_rate, above=True)
    check.whole("max_iter", max_iter, 1)
    limits = _limits(check, bounds, images)
    image = images.clone()
    with _evaluating(model):
        for step in range(max_iter + 1):
            image.requires_grad_()
            scores = _scores(check, model, image, classes)
            seen = int(scores.argmax(dim=1))
            if seen == target:
                return image.detach()
            if step == max_iter:
                break
            (gradient,) = _differentiated(check, scores[0, target], image)
            length = torch.linalg.vector_norm(gradient)
            if length == 0:
                raise ValueError(
                    f"make_fooling_image: the score of class {target} does not depend on the image any more "
                    f"after {step} steps: its gradient is 0 everywhere"
                )
            image = _clamped(image.detach() + learning_rate * (gradient / length), limits)
            if callback is not None:
                callback(step + 1)
    raise ValueError(
        f"make_fooling_image: expected the model to see class {target} after at most max_iter = {max_iter} "
        f"steps of learning_rate = {learning_rate:g}, got class {seen}, whose score is higher by "
        f"{(scores[0, seen] - scores[0, target]).item():.3g}; allow more steps, or longer ones"
    )


@torch.inference_mode(False)
def create_class_visualization(
    target_y: int | Sequence[int],
    model: Model,
    l2_reg: float = 1e-3,
    learning_rate: float = 25.0,
    num_iterations: int = 100,
    blur_every: int = 10,
    max_jitter: int = 16,
    *,
    shape: tuple[int, int, int] = (3, 224, 224),
    start: torch.Tensor | None = None,
    bounds: Bounds | None = None,
    blur_sigma: float = BLUR_SIGMA,
    seed: int = 0,
    callback: Callable[[int], Any] | None = None,
) -> torch.Tensor:
    """Make an image from noise in which the model sees a class as strongly as possible.

    Each of the iterations goes up ``score_y(I) - l2_reg · ‖I‖²`` by a step of length `learning_rate`, on an image
    shifted at random, cyclically; after it the shift is undone and the values are held within `bounds`. Shifts and
    blurring favour what is large and smooth over patterns of single pixels.

    Parameters
    ----------
    target_y : int, or sequence of N int
        The class, or several: their images are made beside each other, each as if it was made alone.
    model : callable
        Gives class scores (logits) of shape (N, num_classes), those of an image from this image alone. An `nn.Module`
        computes in evaluation mode.
    l2_reg : float
        Weight of the squared L2 norm of the image.
    learning_rate : float
        Length of a step, in units of the image (the L2 norm over all of its values).
    num_iterations : int
        Number of steps.
    blur_every : int
        The image is blurred after so many steps, time and again, but not after the last; 0: never.
    max_jitter : int
        Largest shift, in pixels.
    shape : tuple of int, (C, H, W)
        Of the image.
    start : floating Tensor, shape (1 or N, C, H, W), optional
        The image to begin with, in the place of standard normal noise. It is not changed.
    bounds : pair of float or Tensor, optional
        Least and greatest value, each a number or a tensor that broadcasts against the image. Default: those of
        images, as `fastrnn.vision.images.preprocess` makes them, if C is 3; 0 and 1 otherwise.
    blur_sigma : float
        Standard deviation of the blur, in pixels.
    seed : int
        Of the noise and the shifts.
    callback : callable, optional
        Called with the number of steps taken, after each.

    Returns
    -------
    Tensor, shape (N, C, H, W)
        N is 1 for a single class. In the dtype and on the device of the model's parameters; float32 on the CPU if it
        has none.

    Raises
    ------
    ValueError, TypeError, IndexError
        A shape, dtype, number or class does not fit.

    Notes
    -----
    Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", section 2; blurring is from Yosinski et
    al. 2015, "Understanding Neural Networks Through Deep Visualization", the shifts from Mordvintsev, Olah, Tyka 2015,
    "Inceptionism". Steps have one length whatever the gradient's, as in `make_fooling_image`.
    """
    check = Arguments("create_class_visualization")
    channels, height, width = _shape(check, shape)
    check.finite("l2_reg", l2_reg)
    check.finite("learning_rate", learning_rate, above=True)
    check.finite("blur_sigma", blur_sigma)
    for name, value, least in (
        ("num_iterations", num_iterations, 0),
        ("blur_every", blur_every, 0),
        ("max_jitter", max_jitter, 0),
        ("seed", seed, 0),
    ):
        check.whole(name, value, least)
    dtype, device = _place(model)
    # Drawn on the CPU, so that every device begins with the same noise.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, channels, height, width), generator=generator)
    classes = _classes(check, "target_y", [target_y] if is_whole(target_y) else target_y, noise.to(device))
    if not len(classes):
        raise check.fail(ValueError, "target_y", "be a class, or hold at least one", "none")
    if start is None:
        first = noise
    else:
        first = _images(check, "start", start)
        if len(first) not in (1, len(classes)) or tuple(first.shape[1:]) != (channels, height, width):
            expected = f"have shape (1 or {len(classes)}, {channels}, {height}, {width})"
            raise check.fail(ValueError, "start", expected, f"shape {tuple(first.shape)}")
    first = first.to(device, dtype)
    limits = _limits(check, image_bounds(channels) if bounds is None else bounds, first)
    images = _clamped(first.expand(len(classes), -1, -1, -1), limits).clone()
    with _evaluating(model):
        for step in range(1, num_iterations + 1):
            dy, dx = torch.randint(-max_jitter, max_jitter + 1, (2,), generator=generator).tolist()
            shifted = images.roll((dy, dx), dims=(2, 3)).requires_grad_()
            scores = _scores(check, model, shifted, classes)
            objective = scores.gather(1, classes[:, None]).sum() - l2_reg * shifted.square().sum()
            (gradient,) = _differentiated(check, objective, shifted)
            length = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
            # Where nothing is to be gained the gradient is 0, and the image stays as it is.
            shifted = shifted.detach() + learning_rate * gradient / length.clamp_min(torch.finfo(dtype).tiny)
            images = _clamped(shifted.roll((-dy, -dx), dims=(2, 3)), limits)
            if blur_every and step % blur_every == 0 and step < num_iterations:
                images = blur(images, blur_sigma)
            if callback is not None:
                callback(step)
    return images


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur with a Gaussian; beyond the border the values of the border go on.

    Parameters
    ----------
    images : floating Tensor, shape (N, C, H, W)
        Images. They are not changed.
    sigma : float
        Standard deviation, in pixels; 0 gives a copy.

    Returns
    -------
    Tensor, shape (N, C, H, W)

    Raises
    ------
    ValueError, TypeError
        A shape, dtype or number does not fit.
    """
    check = Arguments("blur")
    images = _images(check, "images", images)
    radius = math.ceil(_SIGMAS * check.finite("sigma", sigma) - 0.5)
    if radius < 1:
        return images.clone()
    places = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel /= kernel.sum()
    flat = images.reshape(-1, 1, *images.shape[2:])
    # Rows, then columns: padded one after the other, as a border may be shorter than the kernel reaches.
    for pad, weight in (
        ((0, 0, radius, radius), kernel.reshape(1, 1, -1, 1)),
        ((radius, radius, 0, 0), kernel.reshape(1, 1, 1, -1)),
    ):
        flat = functional.conv2d(functional.pad(flat, pad, mode="replicate"), weight)
    return flat.reshape(images.shape)


# ---- gradients -------------------------------------------------------------------------------------------------------


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """A module is in evaluation mode within, and afterwards in the mode that it was in."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _scores(check: Arguments, model: Model, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The model's class scores, which must have the `classes` looked at."""
    scores = model(images)
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or len(scores) != len(images):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise check.fail(ValueError, "model", f"give class scores of shape ({len(images)}, num_classes)", got)
    highest = int(classes.max())
    if highest >= scores.shape[1]:
        name = "y" if check.function == "compute_saliency_maps" else "target_y"
        raise check.fail(IndexError, name, f"be one of the model's classes, in [0, {scores.shape[1]})", str(highest))
    return scores


def _differentiated(check: Arguments, value: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor]:
    """The gradient of `value`, with respect to the image alone: nothing is added to the parameters' ``.grad``."""
    if not value.requires_grad:
        raise check.fail(ValueError, "model", "be differentiable", "scores that no gradient leads back from")
    (gradient,) = torch.autograd.grad(value, image)
    if not gradient.isfinite().all():
        raise check.fail(ValueError, "model", "have finite gradients on these images", "NaN or infinity")
    return (gradient,)


def _gradient(check: Arguments, model: Model, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """``∂ score_y / ∂X`` of each image."""
    images = images.detach().clone().requires_grad_()
    if not len(images):
        return torch.zeros_like(images)
    scores = _scores(check, model, images, classes)
    return _differentiated(check, scores.gather(1, classes[:, None]).sum(), images)[0]


def _clamped(images: torch.Tensor, limits: Bounds | None) -> torch.Tensor:
    return images if limits is None else torch.minimum(torch.maximum(images, limits[0]), limits[1])


# ---- arguments -------------------------------------------------------------------------------------------------------


def _images(check: Arguments, name: str, value: Any) -> torch.Tensor:
    """Images apart from the caller's graph."""
    if not isinstance(value, torch.Tensor):
        raise check.fail(TypeError, name, "be a torch.Tensor", type(value).__name__)
    if not value.is_floating_point():
        expected = "have a floating dtype (fastrnn.vision.images.preprocess makes such of pictures)"
        raise check.fail(TypeError, name, expected, f"dtype {value.dtype}")
    if value.ndim != 4:
        raise check.fail(ValueError, name, "be 4-dimensional, (N, C, H, W)", f"shape {tuple(value.shape)}")
    if 0 in value.shape[1:]:
        raise check.fail(ValueError, name, "have at least one channel, row and column", f"shape {tuple(value.shape)}")
    # A tensor made in inference mode cannot take part in a graph, but its copy can.
    return value.clone() if value.is_inference() else value.detach()


def _classes(check: Arguments, name: str, value: Any, images: torch.Tensor) -> torch.Tensor:
    """Classes (N,) where the images are; none is below 0."""
    try:
        classes = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise check.fail(TypeError, name, "hold integers", type(value).__name__) from error
    if classes.numel() and (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool):
        raise check.fail(TypeError, name, "hold integers", f"dtype {classes.dtype}")
    if classes.ndim != 1:
        raise check.fail(ValueError, name, "be 1-dimensional, (N,)", f"shape {tuple(classes.shape)}")
    if classes.numel() and int(classes.min()) < 0:
        raise check.fail(IndexError, name, "hold classes from 0 on", str(int(classes.min())))
    return classes.to(images.device, torch.int64, copy=True)  # a copy for the same reason as in `_images`


def _class(check: Arguments, value: Any, images: torch.Tensor) -> torch.Tensor:
    if not is_whole(value):
        got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise check.fail(TypeError, "target_y", "be an integer", got)
    return _classes(check, "target_y", [int(value)], images)


def _shape(check: Arguments, shape: Any) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or not all(is_whole(size) and size > 0 for size in sizes):
        raise check.fail(ValueError, "shape", "be (C, H, W), three integers above 0", repr(shape))
    channels, height, width = map(int, sizes)
    return channels, height, width


def image_bounds(channels: int) -> Bounds:
    """The least and the greatest values of images, as networks take them."""
    if channels != 3:
        return 0.0, 1.0
    mean, std = (torch.as_tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return -mean / std, (1 - mean) / std


def _limits(check: Arguments, bounds: Any, images: torch.Tensor) -> Bounds | None:
    """`bounds` as tensors beside the images."""
    if bounds is None:
        return None
    try:
        low, high = (torch.as_tensor(bound, dtype=images.dtype, device=images.device) for bound in bounds)
        fits = torch.broadcast_shapes(low.shape, high.shape, images.shape) == images.shape and bool((low <= high).all())
    except (TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        expected = f"be two values that broadcast against {tuple(images.shape)}, the least and the greatest"
        raise check.fail(ValueError, "bounds", expected, repr(bounds))
    return low, high


def _place(model: Model) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the model's parameters."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
    return torch.float32, torch.device("cpu")
