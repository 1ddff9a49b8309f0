"""Losses of style transfer (Gatys, Ecker, Bethge 2016): content, style and total variation, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import fastrnn
from fastrnn.checks import Arguments
from fastrnn.torch.gram import gram_matrix
from fastrnn.torch.library import (
    WORTH_A_PAUSE,
    autocast_to_float32,
    computed_in,
    eager,
    floating,
    number,
    pause_openmp,
    same_device,
    scalar_tensor,
    stream_of,
    vmap_by_loop,
)
from fastrnn.torch.tensors import as_array, as_tensor


def content_loss(content_weight: float, content_current: torch.Tensor, content_original: torch.Tensor) -> torch.Tensor:
    """``content_weight · Σ (content_current - content_original)²``.

    Parameters
    ----------
    content_weight : float
        Weight of the loss.
    content_current, content_original : Tensor, one shape
        Features of the image being made and of the content image, in float32 or float64, or both of them in bfloat16 or
        float16, which are computed in float32.

    Returns
    -------
    Tensor of no axes
        In the promoted dtype of the features; float32 inside of ``torch.autocast``.

    Raises
    ------
    ValueError, TypeError
        Shapes or devices differ, or a dtype does not fit.

    Notes
    -----
    It can be differentiated twice. CUDA tensors go through CuPy on PyTorch's current stream; that was not run on a
    device so far.
    """
    return _distance("content_loss", content_weight, content_current, content_original)


def style_loss(
    feats: Sequence[torch.Tensor],
    style_layers: Sequence[int],
    style_targets: Sequence[torch.Tensor],
    style_weights: Sequence[float],
) -> torch.Tensor:
    """``Σ_l style_weights[l] · Σ (G_l - style_targets[l])²``, with G_l the normalized Gram matrix of
    ``feats[style_layers[l]]``.

    Parameters
    ----------
    feats : sequence of Tensor, shape (N, C_i, H_i, W_i)
        Feature maps of the image being made.
    style_layers : sequence of int
        Indices into `feats`.
    style_targets : sequence of Tensor, shape (N, C_i, C_i)
        Gram matrices of the style image, one for each of `style_layers`.
    style_weights : sequence of float
        One weight for each of `style_layers`.

    Returns
    -------
    Tensor of no axes

    Raises
    ------
    ValueError, TypeError, IndexError
        Lists of different lengths, an index outside `feats`, or a shape, dtype or device that does not fit.

    Notes
    -----
    :func:`gram_matrix` and :func:`content_loss` of each layer: what is said there holds here.
    """
    function = "style_loss"
    for name, value in (("style_targets", style_targets), ("style_weights", style_weights)):
        if len(value) != len(style_layers):
            expected = f"have one entry for each of the {len(style_layers)} style_layers"
            raise Arguments(function).fail(ValueError, name, expected, f"{len(value)} entries")
    maps: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    weights = []
    for i, (layer, target, weight) in enumerate(zip(style_layers, style_targets, style_weights, strict=True)):
        if not 0 <= layer < len(feats):
            expected = f"hold ids in [0, {len(feats)}), the {len(feats)} feats"
            raise Arguments(function).fail(IndexError, "style_layers", expected, f"{layer} at position {i}")
        floating(function, f"feats[{layer}]", feats[layer], 4, "(N, C, H, W)")
        floating(function, f"style_targets[{i}]", target)
        N, C = feats[layer].shape[:2]
        if target.shape != (N, C, C):
            expected = f"have the shape of the Gram matrix of feats[{layer}], {(N, C, C)}"
            raise Arguments(function).fail(ValueError, f"style_targets[{i}]", expected, f"shape {tuple(target.shape)}")
        same_device(function, **{f"feats[{layer}]": feats[layer], f"style_targets[{i}]": target})
        # In float32 up to the end: the difference of two Gram matrices that were rounded would be all rounding.
        for t, of in ((feats[layer], maps), (target, targets)):
            of.append(t.to(computed_in(t.dtype)))
        weights.append(number(function, f"style_weights[{i}]", weight))
    if not maps:
        return torch.zeros(())
    dtype = feats[style_layers[0]].dtype
    loss = _style(maps, targets, weights)
    return loss if torch.is_autocast_enabled(maps[0].device.type) else loss.to(dtype)


def tv_loss(img: torch.Tensor, tv_weight: float) -> torch.Tensor:
    """Total variation: `tv_weight` times the sum of squared differences of vertical and of horizontal neighbours.

    Parameters
    ----------
    img : Tensor, shape (N, C, H, W), usually (1, 3, H, W)
        Images, in float32 or float64; bfloat16 and float16 are computed in float32. All images and channels are summed.
    tv_weight : float
        Weight of the loss.

    Returns
    -------
    Tensor of no axes
        In the dtype of `img`; float32 inside of ``torch.autocast``.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.

    Notes
    -----
    It can be differentiated twice. CUDA tensors go through CuPy on PyTorch's current stream; that was not run on a
    device so far.
    """
    function = "tv_loss"
    floating(function, "img", img, 4, "(N, C, H, W)")
    weight = number(function, "tv_weight", tv_weight)
    (img,) = autocast_to_float32(img)

    def value(img: np.ndarray) -> Any:
        return fastrnn.tv_loss(img, weight), []

    def gradients(scale: float, needed: Sequence[bool], img: np.ndarray) -> list[Any]:
        return [fastrnn.tv_loss_backward(img, scale * weight)]

    return _loss(value, gradients, lambda img: _tv_loss(img, weight), img)


def _distance(
    function: str,
    weight: float,
    a: torch.Tensor,
    b: torch.Tensor,
    names: tuple[str, str, str] = ("content_weight", "content_current", "content_original"),
) -> torch.Tensor:
    factor = number(function, names[0], weight)
    floating(function, names[1], a)
    floating(function, names[2], b)
    if a.shape != b.shape:
        expected = f"have the shape of {names[1]}, {tuple(a.shape)}"
        raise Arguments(function).fail(ValueError, names[2], expected, f"shape {tuple(b.shape)}")
    same_device(function, **{names[1]: a, names[2]: b})
    a, b = autocast_to_float32(a, b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)

    def value(a: np.ndarray, b: np.ndarray) -> Any:
        return fastrnn.content_loss(factor, a, b), []

    def gradients(scale: float, needed: Sequence[bool], a: np.ndarray, b: np.ndarray) -> list[Any]:
        pairs = ((a, b), (b, a))
        weight = scale * factor
        return [fastrnn.content_loss_backward(weight, *pairs[i]) if needed[i] else None for i in range(2)]

    return _loss(value, gradients, lambda a, b: _content_loss(factor, a, b), a, b)


def _style(maps: list[torch.Tensor], targets: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The style loss of feature maps and targets in the kernels' dtypes."""
    L = len(maps)

    def value(*arrays: np.ndarray) -> Any:
        grams = [fastrnn.gram_matrix(f) for f in arrays[:L]]
        layers = zip(weights, grams, arrays[L:], strict=True)
        return sum(fastrnn.content_loss(w, g, a) for w, g, a in layers), grams

    def gradients(scale: float, needed: Sequence[bool], *arrays: np.ndarray) -> list[Any]:
        found: list[Any] = [None] * (2 * L)
        for i, weight in enumerate(weights):
            if needed[i]:
                dgram = fastrnn.content_loss_backward(scale * weight, arrays[2 * L + i], arrays[L + i])
                found[i] = fastrnn.gram_backward(dgram, arrays[i])
        return found

    def composed(*tensors: torch.Tensor) -> torch.Tensor:
        loss: Any = 0.0
        for f, target, weight in zip(tensors[:L], tensors[L:], weights, strict=True):
            gram = gram_matrix(f)
            dtype = torch.promote_types(gram.dtype, target.dtype)
            loss = loss + _content_loss(weight, gram.to(dtype), target.to(dtype))
        return loss

    if len({t.dtype for t in (*maps, *targets)}) > 1 or any(t.requires_grad for t in targets):
        return composed(*maps, *targets)
    return _loss(
        value, gradients, composed, *maps, *targets, operations=sum(float(f.numel()) * f.shape[1] for f in maps)
    )


# ---- calls that nobody records ---------------------------------------------------------------------------------------


def _loss(
    value: Callable[..., Any],
    gradients: Callable[..., list[Any]],
    composed: Callable[..., torch.Tensor],
    *tensors: torch.Tensor,
    operations: float = 0.0,
) -> torch.Tensor:
    """A loss of tensors.

    ``value(*arrays)`` computes it, and arrays that are kept; ``gradients(scale, needed, *arrays, *kept)`` the gradients
    that are needed, times a number. Where a call is recorded or transformed, or has no kernel, all this is done by
    ``composed(*tensors)``, of operations of ``torch.library``.
    """
    if not eager(tensors) or any(computed_in(t.dtype) != t.dtype for t in tensors):
        return composed(*tensors)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Loss.apply(value, gradients, composed, operations, *tensors)
    return _computed(value, operations, tensors)[0]


def _computed(
    value: Any, operations: float, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    if operations > WORTH_A_PAUSE:
        pause_openmp(tensors[0])
    with stream_of(tensors[0]):
        loss, kept = value(*map(as_array, tensors))
        return scalar_tensor(loss), [as_tensor(a) for a in kept]


class _Loss(torch.autograd.Function):
    """A loss whose gradients are written once, already multiplied by that of the loss.

    Operations of ``torch.library`` multiply afterwards, by PyTorch's own threads, which then spin on the cores that the
    next kernel wants: style loss over five layers of a 192x192 image took 28 ms so, and takes 15.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Any, gradients: Any, composed: Any, operations: float, *tensors: torch.Tensor
    ) -> torch.Tensor:
        loss, kept = _computed(value, operations, tensors)
        ctx.gradients, ctx.composed, ctx.operations = gradients, composed, operations
        ctx.save_for_backward(*tensors, *kept)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():  # as parts of a graph, to be differentiated again
            tensors = saved[: len(needed)]
            wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
            found = iter(torch.autograd.grad(ctx.composed(*tensors), wanted, grad, create_graph=True))
            return None, None, None, None, *(next(found) if need else None for need in needed)
        if 2 * ctx.operations > WORTH_A_PAUSE:
            pause_openmp(grad)
        on_host = grad.device.type == "cpu"  # to read it from a device would be to wait for that
        with stream_of(grad):
            arrays = ctx.gradients(float(grad) if on_host else 1.0, needed, *map(as_array, saved))
            made = [None if a is None else as_tensor(a) for a in arrays]
        return None, None, None, None, *(t if on_host or t is None else t.mul_(grad) for t in made)


# ---- the operations ------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastrnn::content_loss", mutates_args=(), schema="(float weight, Tensor current, Tensor original) -> Tensor"
)
def _content_loss(weight: float, current: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    dtype = current.dtype
    with stream_of(current):
        a, b = (as_array(t.to(computed_in(dtype))) for t in (current, original))
        return scalar_tensor(fastrnn.content_loss(weight, a, b)).to(dtype)


@_content_loss.register_fake
def _(weight: float, current: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    return current.new_empty(())


@torch.library.custom_op(
    "fastrnn::content_loss_backward",
    mutates_args=(),
    schema="(float weight, Tensor current, Tensor original) -> Tensor",
)
def _content_loss_backward(weight: float, current: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    dtype = current.dtype
    with stream_of(current):
        a, b = (as_array(t.to(computed_in(dtype))) for t in (current, original))
        return as_tensor(fastrnn.content_loss_backward(weight, a, b)).to(dtype)


@_content_loss_backward.register_fake
def _(weight: float, current: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    return current.new_empty(current.shape)


@torch.library.custom_op("fastrnn::tv_loss", mutates_args=(), schema="(Tensor img, float weight) -> Tensor")
def _tv_loss(img: torch.Tensor, weight: float) -> torch.Tensor:
    with stream_of(img):
        return scalar_tensor(fastrnn.tv_loss(as_array(img.to(computed_in(img.dtype))), weight)).to(img.dtype)


@_tv_loss.register_fake
def _(img: torch.Tensor, weight: float) -> torch.Tensor:
    return img.new_empty(())


@torch.library.custom_op("fastrnn::tv_loss_backward", mutates_args=(), schema="(Tensor img, float weight) -> Tensor")
def _tv_loss_backward(img: torch.Tensor, weight: float) -> torch.Tensor:
    with stream_of(img):
        return as_tensor(fastrnn.tv_loss_backward(as_array(img.to(computed_in(img.dtype))), weight)).to(img.dtype)


@_tv_loss_backward.register_fake
def _(img: torch.Tensor, weight: float) -> torch.Tensor:
    return img.new_empty(img.shape)


def _keep_content(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.weight, current, original = inputs
    ctx.save_for_backward(current, original)


def _content_gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    dcurrent = grad * _content_loss_backward(ctx.weight, *ctx.saved_tensors)
    return None, dcurrent, -dcurrent


def _keep_content_weight(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.weight = inputs[0]


def _content_second_gradient(ctx: Any, x: torch.Tensor) -> tuple[Any, ...]:
    return None, 2 * ctx.weight * x, -2 * ctx.weight * x


def _keep_tv(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    img, ctx.weight = inputs
    ctx.save_for_backward(img)


def _tv_gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (img,) = ctx.saved_tensors
    return grad * _tv_loss_backward(img, ctx.weight), None


def _keep_tv_weight(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.weight = inputs[1]


def _tv_second_gradient(ctx: Any, x: torch.Tensor) -> tuple[Any, ...]:
    # The loss is a quadratic form: its gradient is a symmetric linear map, and so its own gradient.
    return _tv_loss_backward(x.contiguous(), ctx.weight), None


_content_loss.register_autograd(_content_gradient, setup_context=_keep_content)
_content_loss_backward.register_autograd(_content_second_gradient, setup_context=_keep_content_weight)
_tv_loss.register_autograd(_tv_gradient, setup_context=_keep_tv)
_tv_loss_backward.register_autograd(_tv_second_gradient, setup_context=_keep_tv_weight)
for _operation in (_content_loss, _content_loss_backward, _tv_loss, _tv_loss_backward):
    vmap_by_loop(_operation)
