"""Gram matrices of feature maps, with their gradient."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn
from fastrnn.checks import Arguments
from fastrnn.torch.library import autocast_to_float32, computed_in, floating, stream_of, vmap_by_loop
from fastrnn.torch.tensors import as_array, as_tensor

_AXES = {"NCHW": "(N, C, H, W)", "NHWC": "(N, H, W, C)"}


def gram_matrix(features: torch.Tensor, normalize: bool = True, layout: str = "NCHW") -> torch.Tensor:
    """Gram matrix of each image's feature map, ``G[n, c, d] = Σ_p F[n, c, p] F[n, d, p]`` over positions p
    (Gatys, Ecker, Bethge 2016, eq. 3).

    Parameters
    ----------
    features : Tensor, shape (N, C, H, W)
        Feature maps of any strides, in float32 or float64; bfloat16 and float16 are computed in float32, and the result
        rounded. With ``layout="NHWC"`` of shape (N, H, W, C). A tensor in ``torch.channels_last`` is (N, C, H, W).
    normalize : bool, optional
        Divide by C·H·W.
    layout : {"NCHW", "NHWC"}, optional
        Order of the axes.

    Returns
    -------
    Tensor, shape (N, C, C)
        Symmetric, of the dtype of `features`; float32 inside of ``torch.autocast``.

    Raises
    ------
    ValueError, TypeError
        A shape, dtype or layout does not fit, or `normalize` would divide by zero.

    Notes
    -----
    It can be differentiated twice. CUDA tensors go through CuPy on PyTorch's current stream; that was not run on a
    device so far.
    """
    function = "gram_matrix"
    if layout not in _AXES:
        raise Arguments(function).fail(ValueError, "layout", "be one of 'NCHW', 'NHWC'", repr(layout))
    floating(function, "features", features, 4, _AXES[layout])
    (features,) = autocast_to_float32(features)
    return _gram_matrix(features, normalize, layout)


# ---- the operations ------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "fastrnn::gram_matrix", mutates_args=(), schema="(Tensor features, bool normalize, str layout) -> Tensor"
)
def _gram_matrix(features: torch.Tensor, normalize: bool, layout: str) -> torch.Tensor:
    dtype = features.dtype
    with stream_of(features):
        f = as_array(features.to(computed_in(dtype)))
        return as_tensor(fastrnn.gram_matrix(f, normalize, layout)).to(dtype)


@_gram_matrix.register_fake
def _(features: torch.Tensor, normalize: bool, layout: str) -> torch.Tensor:
    C = features.shape[1 if layout == "NCHW" else 3]
    return features.new_empty((features.shape[0], C, C))


@torch.library.custom_op(
    "fastrnn::gram_backward",
    mutates_args=(),
    schema="(Tensor dgram, Tensor features, bool normalize, str layout) -> Tensor",
)
def _gram_backward(dgram: torch.Tensor, features: torch.Tensor, normalize: bool, layout: str) -> torch.Tensor:
    dtype = features.dtype
    with stream_of(features):
        dg, f = (as_array(t.to(computed_in(dtype))) for t in (dgram, features))
        return as_tensor(fastrnn.gram_backward(dg, f, normalize, layout)).to(dtype)


@_gram_backward.register_fake
def _(dgram: torch.Tensor, features: torch.Tensor, normalize: bool, layout: str) -> torch.Tensor:
    return features.new_empty(features.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    features, ctx.normalize, ctx.layout = inputs
    ctx.save_for_backward(features)


def _gradient(ctx: Any, dgram: torch.Tensor) -> tuple[Any, ...]:
    (features,) = ctx.saved_tensors
    return _gram_backward(dgram, features, ctx.normalize, ctx.layout), None, None


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    dgram, features, ctx.normalize, ctx.layout = inputs
    ctx.save_for_backward(dgram, features)


def _second_gradient(ctx: Any, x: torch.Tensor) -> tuple[Any, ...]:
    # Of s (dG + dG^T) F: with respect to F the same product of x; with respect to dG, s (x F^T + F x^T).
    dgram, features = ctx.saved_tensors
    equation = "nchw,ndhw->ncd" if ctx.layout == "NCHW" else "nhwc,nhwd->ncd"
    product = torch.einsum(equation, x, features)
    scale = 1.0 / features[0].numel() if ctx.normalize else 1.0
    ddgram = scale * (product + product.mT)
    return ddgram, _gram_backward(dgram, x.contiguous(), ctx.normalize, ctx.layout), None, None


_gram_matrix.register_autograd(_gradient, setup_context=_keep)
_gram_backward.register_autograd(_second_gradient, setup_context=_keep_both)
for _operation in (_gram_matrix, _gram_backward):
    vmap_by_loop(_operation)
