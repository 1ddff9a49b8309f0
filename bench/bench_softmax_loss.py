"""Benchmarks of the softmax_loss row: the loss over a vocabulary and its gradient, which are one call; of given scores,
and together with the projection that makes the scores, where all steps count and where four of five do."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Arrays, Benchmark, Call, Shape, array, rng, tensor

SHAPES = ((25, 16, 1004), (100, 16, 1004), (64, 32, 10_000))
VOCAB_SHAPES = ((25, 16, 512, 1004), (100, 16, 200, 1004), (64, 32, 512, 10_000))
COUNTED = 0.8


def inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng()
    return {
        "x": draw.standard_normal(shape).astype(dtype),
        "y": draw.integers(0, shape[2], shape[:2]),
        "mask": draw.random(shape[:2]) < COUNTED,
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
    x = tensor(a["x"]).requires_grad_()
    y = tensor(np.where(a["mask"], a["y"], -100)).reshape(-1)

    def call() -> tuple[Any, Any]:
        loss = torch.nn.functional.cross_entropy(x.reshape(N * T, V), y, reduction="sum") / N
        return loss, torch.autograd.grad(loss, x)[0]

    return call, lambda result: (array(result[0])[()], array(result[1]))


def vocab_inputs(shape: Shape, dtype: Any) -> Arrays:
    N, T, H, V = shape
    draw = rng()
    a = {
        "h": draw.standard_normal((N, T, H)),
        "W": draw.standard_normal((H, V)) / np.sqrt(H),
        "b": draw.standard_normal(V),
    }
    return {key: value.astype(dtype) for key, value in a.items()} | {
        "y": draw.integers(0, V, (N, T)),
        "mask": np.ones((N, T), bool),
    }


def masked_inputs(shape: Shape, dtype: Any) -> Arrays:
    return vocab_inputs(shape, dtype) | {"mask": rng().random(shape[:2]) < COUNTED}


def vocab_flops(shape: Shape, mode: str) -> float:
    N, T, H, V = shape
    return 6.0 * N * T * H * V + flops((N, T, V), mode)


def masked_flops(shape: Shape, mode: str) -> float:
    return COUNTED * vocab_flops(shape, mode)


def vocab_moved(shape: Shape, mode: str) -> float:
    N, T, H, V = shape
    return 2.0 * N * T * H + 2.0 * (H + 1) * V


def run_vocab(m: Any, a: Arrays, mode: str) -> Call:
    return lambda: m.vocab_softmax_loss(a["h"], a["W"], a["b"], a["y"], a["mask"])


def _torch_vocab(a: Arrays, select: bool) -> tuple[Call, Any]:
    """Linear layer, with its weight as PyTorch keeps it, and cross-entropy; of the rows that count, if `select`."""
    import torch

    N, T, H = a["h"].shape
    h, weight, b = (tensor(x).requires_grad_() for x in (a["h"], np.ascontiguousarray(a["W"].T), a["b"]))
    y = tensor(np.where(a["mask"], a["y"], -100)).reshape(-1)
    rows = tensor(np.flatnonzero(a["mask"]))

    def call() -> tuple[Any, ...]:
        flat = h.reshape(N * T, H)
        scores = torch.nn.functional.linear(flat[rows] if select else flat, weight, b)
        loss = torch.nn.functional.cross_entropy(scores, y[rows] if select else y, reduction="sum") / N
        return (loss, *torch.autograd.grad(loss, (h, weight, b)))

    def arrays(result: tuple[Any, ...]) -> tuple[Any, ...]:
        loss, dh, dweight, db = result
        return array(loss)[()], array(dh), array(dweight).T, array(db)

    return call, arrays


def torch_vocab(a: Arrays, mode: str) -> tuple[Call, Any]:
    return _torch_vocab(a, select=False)


def torch_vocab_of_rows(a: Arrays, mode: str) -> tuple[Call, Any]:
    return _torch_vocab(a, select=True)


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
    Benchmark(
        "vocab_softmax_loss",
        "N T H V",
        VOCAB_SHAPES,
        vocab_inputs,
        vocab_flops,
        vocab_moved,
        run_vocab,
        {"torch": torch_vocab},
        modes=("both",),
    ),
    Benchmark(
        "vocab_softmax_loss_masked",
        "N T H V",
        VOCAB_SHAPES,
        masked_inputs,
        masked_flops,
        vocab_moved,
        run_vocab,
        {"torch": torch_vocab, "torch:rows": torch_vocab_of_rows},
        modes=("both",),
        stays=("y", "mask"),  # so that a GPU is told which steps count, as the peer is
    ),
)
