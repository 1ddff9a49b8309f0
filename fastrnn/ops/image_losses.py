"""Losses of style transfer (Gatys, Ecker, Bethge 2016): content, style, total variation; each with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrnn.backend import Chosen, choose, ran
from fastrnn.checks import Arguments
from fastrnn.ops.gram import gram_backward, gram_matrix

_ROW = "image_losses"
# Sums are taken over chunks of this many elements, one partial sum each, so that they are the same at any number of
# threads. The kernels know the same number (csrc/kernels.h).
_CHUNK = 4096


def content_loss(content_weight: Any, content_current: Any, content_original: Any) -> Any:
    """``content_weight · Σ (content_current - content_original)²``.

    Parameters
    ----------
    content_weight : float
        Weight of the loss.
    content_current, content_original : array_like, one shape
        Features of the image being made and of the content image.

    Returns
    -------
    loss : floating scalar
        In the promoted dtype of the features; on a CUDA device an array of no axes.

    Raises
    ------
    ValueError, TypeError
        Shapes differ, or a dtype does not fit.
    """
    function = "content_loss"
    chosen = choose(_ROW, content_current)
    weight, a, b = _pair(function, chosen, content_weight, content_current, content_original)
    if chosen.is_reference:
        loss = chosen.kernels.content_loss(weight, a, b)
    else:
        loss = chosen.number(weight * _squared_distance(chosen, a, b), a.dtype)
    ran(function, chosen)
    return loss


def content_loss_backward(content_weight: Any, content_current: Any, content_original: Any) -> np.ndarray:
    """Gradient of :func:`content_loss` with respect to `content_current`.

    Parameters
    ----------
    content_weight, content_current, content_original
        As given to :func:`content_loss`.

    Returns
    -------
    dcurrent : ndarray
        Of the shape of `content_current`.

    Raises
    ------
    ValueError, TypeError
        As :func:`content_loss`.
    """
    function = "content_loss_backward"
    chosen = choose(_ROW, content_current)
    weight, a, b = _pair(function, chosen, content_weight, content_current, content_original)
    if chosen.is_reference:
        da = chosen.kernels.content_loss_backward(weight, a, b)
    else:
        da = chosen.empty(a.shape, a.dtype)
        chosen.kernels.scaled_difference(a.reshape(-1), b.reshape(-1), 2.0 * weight, da.reshape(-1))
    ran(function, chosen)
    return da


def style_loss(
    feats: Sequence[Any], style_layers: Sequence[int], style_targets: Sequence[Any], style_weights: Sequence[float]
) -> Any:
    """``Σ_l style_weights[l] · Σ (G_l - style_targets[l])²``, with G_l the normalized Gram matrix of
    ``feats[style_layers[l]]``.

    Parameters
    ----------
    feats : sequence of array_like, shape (N, C_i, H_i, W_i)
        Feature maps of the image being made.
    style_layers : sequence of int
        Indices into `feats`.
    style_targets : sequence of array_like, shape (N, C_i, C_i)
        Gram matrices of the style image, one for each of `style_layers`.
    style_weights : sequence of float
        One weight for each of `style_layers`.

    Returns
    -------
    loss : floating scalar
        In the promoted dtype of the features; on a CUDA device an array of no axes.

    Raises
    ------
    ValueError, TypeError, IndexError
        Lists of different lengths, an index outside `feats`, or a shape or dtype that does not fit.
    """
    function = "style_loss"
    chosen, maps, layers = _style(function, feats, style_layers, style_targets, style_weights)
    loss: Any = 0.0
    for index, target, weight in layers:
        gram = gram_matrix(maps[index])
        if chosen.is_reference:
            loss += weight * float(chosen.kernels.content_loss(1.0, gram, target))
        else:
            loss += weight * _squared_distance(chosen, gram, target)
    ran(function, chosen)
    return chosen.number(loss, maps[0].dtype if maps else np.dtype(np.float64))


def style_loss_backward(
    feats: Sequence[Any], style_layers: Sequence[int], style_targets: Sequence[Any], style_weights: Sequence[float]
) -> list[np.ndarray]:
    """Gradients of :func:`style_loss` with respect to each of `feats`.

    Parameters
    ----------
    feats, style_layers, style_targets, style_weights
        As given to :func:`style_loss`.

    Returns
    -------
    dfeats : list of ndarray
        One gradient for each of `feats`, of its shape; 0 where no style layer uses it.

    Raises
    ------
    ValueError, TypeError, IndexError
        As :func:`style_loss`.
    """
    function = "style_loss_backward"
    chosen, maps, layers = _style(function, feats, style_layers, style_targets, style_weights)
    dfeats: list[np.ndarray | None] = [None] * len(maps)
    for index, target, weight in layers:
        dgram = content_loss_backward(weight, gram_matrix(maps[index]), target)
        gradient, before = gram_backward(dgram, maps[index]), dfeats[index]
        dfeats[index] = gradient if before is None else before + gradient
    ran(function, chosen)
    return [chosen.xp.zeros(f.shape, f.dtype) if d is None else d for f, d in zip(maps, dfeats, strict=True)]


def tv_loss(img: Any, tv_weight: Any) -> Any:
    """Total variation: `tv_weight` times the sum of squared differences of vertical and of horizontal neighbours.

    Parameters
    ----------
    img : array_like, shape (N, C, H, W), usually (1, 3, H, W)
        Images; all of them and all channels are summed.
    tv_weight : float
        Weight of the loss.

    Returns
    -------
    loss : floating scalar
        In the dtype of `img`; on a CUDA device an array of no axes.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    chosen = choose(_ROW, img)
    weight, img = _image("tv_loss", chosen, img, tv_weight)
    if chosen.is_reference:
        loss = chosen.kernels.tv_loss(img, weight)
    else:
        planes = img.reshape(_planes(img))
        partial = chosen.empty((len(planes),), np.float64)
        chosen.kernels.tv_loss(planes, partial)
        loss = chosen.number(weight * partial.sum(), img.dtype)
    ran("tv_loss", chosen)
    return loss


def tv_loss_backward(img: Any, tv_weight: Any) -> np.ndarray:
    """Gradient of :func:`tv_loss` with respect to `img`.

    Parameters
    ----------
    img, tv_weight
        As given to :func:`tv_loss`.

    Returns
    -------
    dimg : ndarray
        Of the shape of `img`.

    Raises
    ------
    ValueError, TypeError
        As :func:`tv_loss`.
    """
    function = "tv_loss_backward"
    chosen = choose(_ROW, img)
    weight, img = _image(function, chosen, img, tv_weight)
    if chosen.is_reference:
        dimg = chosen.kernels.tv_loss_backward(img, weight)
    else:
        dimg = chosen.empty(img.shape, img.dtype)
        chosen.kernels.tv_loss_backward(img.reshape(_planes(img)), weight, dimg.reshape(_planes(img)))
    ran(function, chosen)
    return dimg


def _pair(
    function: str, chosen: Chosen, weight: Any, current: Any, original: Any
) -> tuple[float, np.ndarray, np.ndarray]:
    check = Arguments(function, place=chosen.place)
    weight = check.number("content_weight", weight)
    a = check.raw("content_current", current)
    b = check.raw("content_original", original)
    if a.shape != b.shape:
        raise check.fail(
            ValueError, "content_original", f"have the shape of content_current, {a.shape}", f"shape {b.shape}"
        )
    flat = check.floats(("content_current", a.reshape(-1), "K"), ("content_original", b.reshape(-1), "K"))
    return weight, flat[0].reshape(a.shape), flat[1].reshape(b.shape)


def _image(function: str, chosen: Chosen, img: Any, weight: Any) -> tuple[float, np.ndarray]:
    check = Arguments(function, place=chosen.place)
    weight = check.number("tv_weight", weight)
    (img,) = check.floats(("img", img, "N C H W"))
    return weight, img


def _planes(img: np.ndarray) -> tuple[int, int, int]:
    """The shape of all channels of all images in a row; -1 could not be told where an image is empty."""
    N, C, H, W = img.shape
    return N * C, H, W


def _style(
    function: str, feats: Sequence[Any], layers: Sequence[int], targets: Sequence[Any], weights: Sequence[float]
) -> tuple[Chosen, list[np.ndarray], list[tuple[int, np.ndarray, float]]]:
    """The kernels, all feature maps in their promoted dtype, and ``(index, target, weight)`` of each style layer."""
    host = Arguments(function)
    feats, targets, weights = (
        _list(host, name, value)
        for name, value in (("feats", feats), ("style_targets", targets), ("style_weights", weights))
    )
    chosen = choose(_ROW, feats[0] if feats else None)
    check = Arguments(function, place=chosen.place)
    raw = [check.raw(f"feats[{i}]", f) for i, f in enumerate(feats)]
    for i, f in enumerate(raw):
        Arguments(function).shape(f"feats[{i}]", f.shape, "N C H W")
    wanted = host.array("style_layers", layers)
    host.shape("style_layers", wanted.shape, "L")
    for name, value in (("style_targets", targets), ("style_weights", weights)):
        if len(value) != len(wanted):
            raise check.fail(
                ValueError, name, f"have one entry for each of the {len(wanted)} style_layers", f"{len(value)} entries"
            )
    indices = host.ids("style_layers", wanted if wanted.size else [], len(feats), f"the {len(feats)} feats")
    dtype = np.result_type(np.float32, *[f.dtype for f in raw])
    maps = [check.settle(f, dtype) for f in raw]
    out = []
    for i, index in enumerate(indices):
        N, C, H, W = maps[index].shape
        if C * H * W == 0:
            raise check.fail(
                ValueError,
                f"feats[{index}]",
                "have C*H*W > 0, by which its Gram matrix is divided",
                f"shape {(N, C, H, W)}",
            )
        own = Arguments(function, {"N": N, "C": C}, f"feats[{index}]", chosen.place)
        (target,) = own.floats((f"style_targets[{i}]", targets[i], "N C C"), dtype=dtype)
        out.append((int(index), target, check.number(f"style_weights[{i}]", weights[i])))
    return chosen, maps, out


def _list(check: Arguments, name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError as error:
        raise check.fail(TypeError, name, "be a sequence", type(value).__name__) from error


def _squared_distance(chosen: Chosen, a: np.ndarray, b: np.ndarray) -> Any:
    """A float64 number of the place of the arrays."""
    partial = chosen.empty((-(-a.size // _CHUNK),), np.float64)
    chosen.kernels.squared_distance(a.reshape(-1), b.reshape(-1), partial)
    return partial.sum()
