"""Benchmark of a system: what one iteration of style transfer computes beside the network.

Style loss over five layers and total variation, forward and backward, by the PyTorch layer against plain PyTorch. The
feature maps are those of VGG-16 (relu1_1 to relu5_1) for an image of the size given, made up instead of computed: the
convolutions are PyTorch's on both sides.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from . import bench_gram, bench_image_losses
from .common import Arrays, Benchmark, Call, Shape, array, rng, tensor

# Channels of a layer, and by how much it is smaller than the image.
LAYERS = ((64, 1), (128, 2), (256, 4), (512, 8), (512, 16))
STYLE_WEIGHTS = (2e4, 5e2, 1e2, 12.0, 1.0)
TV_WEIGHT = 0.05


def _maps(shape: Shape) -> list[Shape]:
    H, W = shape
    return [(1, C, H // smaller, W // smaller) for C, smaller in LAYERS]


def inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng().standard_normal
    a: Arrays = {"img": draw((1, 3, *shape), np.float32)}
    for i, size in enumerate(_maps(shape)):
        # As after a ReLU.
        a[f"feats{i}"] = np.maximum(draw(size, np.float32), 0)
        other = np.maximum(draw((size[1], 2 * size[1]), np.float32), 0)
        a[f"target{i}"] = (other @ other.T / (2 * size[1] * size[1]))[None]
    return {name: value.astype(dtype) for name, value in a.items()}


def flops(shape: Shape, mode: str) -> float:
    gram = sum(bench_gram.flops(size, mode) for size in _maps(shape))
    return gram + bench_image_losses.tv_flops((1, 3, *shape), mode)


def moved(shape: Shape, mode: str) -> float:
    gram = sum(bench_gram.moved(size, mode) for size in _maps(shape))
    return gram + bench_image_losses.tv_moved((1, 3, *shape), mode)


def run(m: Any, a: Arrays, mode: str) -> Call:
    """The oracle: the same mathematics by the functions of `m`."""
    layers = range(len(LAYERS))
    feats = [a[f"feats{i}"] for i in layers]
    targets = [a[f"target{i}"] for i in layers]

    def loss() -> Any:
        style = m.style_loss(feats, list(layers), targets, STYLE_WEIGHTS)
        return a["img"].dtype.type(style + m.tv_loss(a["img"], TV_WEIGHT))

    def gradients() -> tuple[Any, ...]:
        dfeats = m.style_loss_backward(feats, list(layers), targets, STYLE_WEIGHTS)
        return *dfeats, m.tv_loss_backward(a["img"], TV_WEIGHT)

    return (lambda: (loss(),)) if mode == "forward" else (lambda: (loss(), *gradients()))


def _plain(feats: list[Any], targets: list[Any], img: Any) -> Any:
    """As it is written in PyTorch: one product a Gram matrix, and sums of squares."""
    import torch

    loss: Any = 0.0
    for weight, features, target in zip(STYLE_WEIGHTS, feats, targets, strict=True):
        N, C, H, W = features.shape
        flat = features.reshape(N, C, H * W)
        loss = loss + weight * torch.sum((torch.bmm(flat, flat.transpose(1, 2)) / (C * H * W) - target) ** 2)
    vertical, horizontal = img[:, :, 1:] - img[:, :, :-1], img[:, :, :, 1:] - img[:, :, :, :-1]
    return loss + TV_WEIGHT * (torch.sum(vertical**2) + torch.sum(horizontal**2))


def _ours(feats: list[Any], targets: list[Any], img: Any) -> Any:
    import fastrnn.torch

    style = fastrnn.torch.style_loss(feats, range(len(feats)), targets, STYLE_WEIGHTS)
    return style + fastrnn.torch.tv_loss(img, TV_WEIGHT)


def _torch(library: str, a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    loss = _plain if library == "torch" else _ours
    feats, targets = ([tensor(a[f"{name}{i}"]) for i in range(len(LAYERS))] for name in ("feats", "target"))
    wanted = [*feats, tensor(a["img"])]

    def call() -> tuple[Any, ...]:
        value = loss(feats, targets, wanted[-1])
        return (value.detach(),) if mode == "forward" else (value.detach(), *torch.autograd.grad(value, wanted))

    if mode != "forward":
        for one in wanted:
            one.requires_grad_()
    return call, lambda result: (array(result[0])[()], *map(array, result[1:]))


BENCHMARKS = (
    Benchmark(
        "style",
        "H W",
        ((512, 512), (192, 192)),
        inputs,
        flops,
        moved,
        run,
        {"torch": partial(_torch, "torch")},
        modes=("both", "forward"),
        stays=("*",),
        ours=partial(_torch, "fastrnn"),
    ),
)
