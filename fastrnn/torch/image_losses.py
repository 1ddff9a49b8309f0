"""Losses of style transfer (Gatys, Ecker, Bethge 2016): content, style and total variation, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import fastrnn
from fastrnn.checks import Arguments
from fastrnn.torch.gram import gram_matrix
from fastrnn.torch.library import (
    autocast_to_float32,
    computed_in,
    floating,
    number,
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
    loss: Any = torch.zeros(())
    for i, (layer, target, weight) in enumerate(zip(style_layers, style_targets, style_weights, strict=True)):
        if not 0 <= layer < len(feats):
            expected = f"hold ids in [0, {len(feats)}), the {len(feats)} feats"
            raise Arguments(function).fail(IndexError, "style_layers", expected, f"{layer} at position {i}")
        floating(function, f"feats[{layer}]", feats[layer], 4, "(N, C, H, W)")
        floating(function, f"style_targets[{i}]", target)
        # In float32 up to the end: the difference of two Gram matrices that were rounded would be all rounding.
        features, wanted = (t.to(computed_in(t.dtype)) for t in (feats[layer], target))
        names = (f"style_weights[{i}]", f"the Gram matrix of feats[{layer}]", f"style_targets[{i}]")
        layer_loss = _distance(function, weight, gram_matrix(features), wanted, names)
        loss = layer_loss if i == 0 else loss + layer_loss
    used = [feats[layer] for layer in style_layers]
    return loss.to(used[0].dtype) if used and not torch.is_autocast_enabled(used[0].device.type) else loss


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
    return _tv_loss(img, weight)


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
    return _content_loss(factor, a.to(dtype), b.to(dtype))


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
