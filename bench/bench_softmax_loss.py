"""Benchmark of the softmax_loss row: the loss over a vocabulary and its gradient, which are one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Arrays, Benchmark, Call, Shape, rng

SHAPES = ((25, 16, 1004), (100, 16, 1004), (64, 32, 10_000))


def inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng()
    return {
        "x": draw.standard_normal(shape).astype(dtype),
        "y": draw.integers(0, shape[2], shape[:2]),
        "mask": draw.random(shape[:2]) < 0.8,
    }


def flops(shape: Shape, mode: str) -> float:
    return 5.0 * np.prod(shape)  # maximum, subtraction, exp, sum, division: each counted as one


def moved(shape: Shape, mode: str) -> float:
    return 2.0 * np.prod(shape)


def run(m: Any, a: Arrays, mode: str) -> Call:
    return lambda: m.temporal_softmax_loss(a["x"], a["y"], a["mask"])


def torch_cross_entropy(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    N, T, V = a["x"].shape
    x = torch.from_numpy(a["x"]).requires_grad_()
    y = torch.from_numpy(np.where(a["mask"], a["y"], -100)).reshape(-1)

    def call() -> tuple[Any, Any]:
        loss = torch.nn.functional.cross_entropy(x.reshape(N * T, V), y, reduction="sum") / N
        return loss, torch.autograd.grad(loss, x)[0]

    return call, lambda result: (result[0].detach().numpy()[()], result[1].numpy())


BENCHMARKS = (
    Benchmark(
        "temporal_softmax_loss",
        "N T V",
        SHAPES,
        inputs,
        flops,
        moved,
        run,
        {"torch": torch_cross_entropy},
        modes=("both",),
    ),
)
