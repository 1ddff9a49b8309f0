"""Benchmark of the gram row: feature maps of the sizes that style transfer has."""

from __future__ import annotations

from typing import Any

from .common import Arrays, Benchmark, Call, Shape, arrays_of, autograd, by_mode, rng, tensor

SHAPES = (
    (1, 64, 111, 111),
    (1, 512, 13, 13),
    (1, 128, 55, 55),
    (1, 256, 27, 27),
    (8, 512, 28, 28),
    (4, 256, 64, 64),
    (1, 64, 512, 512),
)


def inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng().standard_normal
    N, C, _, _ = shape
    return {"features": draw(shape).astype(dtype), "dgram": draw((N, C, C)).astype(dtype)}


def flops(shape: Shape, mode: str) -> float:
    N, C, H, W = shape
    # Forward is symmetric: C (C + 1) / 2 entries. Backward is a full product with dG + dG^T.
    return by_mode(1.0 * N * C * (C + 1) * H * W, 2.0 * N * C * C * H * W, mode)


def moved(shape: Shape, mode: str) -> float:
    N, C, H, W = shape
    return by_mode(N * C * (H * W + C), N * C * (2 * H * W + C), mode)


def run(m: Any, a: Arrays, mode: str) -> Call:
    if mode == "forward":
        return lambda: (m.gram_matrix(a["features"]),)
    if mode == "backward":
        return lambda: (m.gram_backward(a["dgram"], a["features"]),)
    return lambda: (m.gram_matrix(a["features"]), m.gram_backward(a["dgram"], a["features"]))


def torch_bmm(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    N, C, H, W = a["features"].shape
    features = tensor(a["features"]).requires_grad_(mode != "forward")

    def forward() -> Any:
        flat = features.reshape(N, C, H * W)
        return torch.bmm(flat, flat.transpose(1, 2)) / (C * H * W)

    return autograd(forward, [features], tensor(a["dgram"]), mode), arrays_of


BENCHMARKS = (Benchmark("gram", "N C H W", SHAPES, inputs, flops, moved, run, {"torch": torch_bmm}),)
