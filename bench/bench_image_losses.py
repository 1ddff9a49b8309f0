"""Benchmarks of the image_losses row: content and total variation. Style is Gram matrices: see bench_gram.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .common import Arrays, Benchmark, Call, Shape, array, by_mode, rng, tensor

WEIGHT = 0.05


def content_inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng().standard_normal
    return {"current": draw(shape).astype(dtype), "original": draw(shape).astype(dtype)}


def content_flops(shape: Shape, mode: str) -> float:
    return by_mode(3, 2, mode) * float(np.prod(shape))


def content_moved(shape: Shape, mode: str) -> float:
    return by_mode(2, 3, mode) * float(np.prod(shape))


def content_run(m: Any, a: Arrays, mode: str) -> Call:
    arguments = (WEIGHT, a["current"], a["original"])
    return _calls(lambda: m.content_loss(*arguments), lambda: m.content_loss_backward(*arguments), mode)


def content_torch(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    current, original = tensor(a["current"]), tensor(a["original"])
    return _torch_calls(lambda x: WEIGHT * torch.sum((x - original) ** 2), current, mode)


def tv_inputs(shape: Shape, dtype: Any) -> Arrays:
    return {"img": rng().standard_normal(shape).astype(dtype)}


def tv_flops(shape: Shape, mode: str) -> float:
    return by_mode(6, 6, mode) * float(np.prod(shape))


def tv_moved(shape: Shape, mode: str) -> float:
    return by_mode(1, 2, mode) * float(np.prod(shape))


def tv_run(m: Any, a: Arrays, mode: str) -> Call:
    return _calls(lambda: m.tv_loss(a["img"], WEIGHT), lambda: m.tv_loss_backward(a["img"], WEIGHT), mode)


def tv_torch(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    def loss(x: Any) -> Any:
        vertical, horizontal = x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]
        return WEIGHT * (torch.sum(vertical**2) + torch.sum(horizontal**2))

    return _torch_calls(loss, tensor(a["img"]), mode)


def _calls(loss: Callable[[], Any], gradient: Callable[[], Any], mode: str) -> Call:
    if mode == "forward":
        return lambda: (loss(),)
    if mode == "backward":
        return lambda: (gradient(),)
    return lambda: (loss(), gradient())


def _torch_calls(loss: Callable[[Any], Any], x: Any, mode: str) -> tuple[Call, Any]:
    """PyTorch has no gradient without the loss: its backward is both."""
    import torch

    if mode == "forward":
        return lambda: (loss(x),), lambda result: (array(result[0])[()],)
    x = x.requires_grad_()

    def call() -> tuple[Any, Any]:
        value = loss(x)
        return value, torch.autograd.grad(value, x)[0]

    def convert(result: tuple[Any, Any]) -> tuple[Any, ...]:
        outputs = (array(result[0])[()], array(result[1]))
        return outputs if mode == "both" else outputs[1:]

    return call, convert


BENCHMARKS = (
    Benchmark(
        "content_loss",
        "N C H W",
        ((1, 128, 56, 56), (1, 64, 256, 256)),
        content_inputs,
        content_flops,
        content_moved,
        content_run,
        {"torch": content_torch},
        quick=1,
    ),
    Benchmark(
        "tv_loss",
        "N C H W",
        ((1, 3, 192, 192), (1, 3, 512, 512)),
        tv_inputs,
        tv_flops,
        tv_moved,
        tv_run,
        {"torch": tv_torch},
        quick=1,
    ),
)
