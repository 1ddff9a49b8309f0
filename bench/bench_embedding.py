"""Benchmark of the embedding row: lookup, and the scatter-add of its gradient."""

from __future__ import annotations

from typing import Any

from .common import Arrays, Benchmark, Call, Shape, arrays_of, autograd, by_mode, rng

SHAPES = ((100, 16, 1004, 256), (128, 128, 50_000, 512), (512, 512, 100_000, 128))


def inputs(shape: Shape, dtype: Any) -> Arrays:
    N, T, V, D = shape
    draw = rng()
    return {
        "ids": draw.integers(0, V, (N, T)),
        "W": draw.standard_normal((V, D)).astype(dtype),
        "dout": draw.standard_normal((N, T, D)).astype(dtype),
    }


def flops(shape: Shape, mode: str) -> float:
    N, T, _, D = shape
    return by_mode(0, N * T * D, mode)  # one addition for each element of the gradient


def moved(shape: Shape, mode: str) -> float:
    N, T, V, D = shape
    return by_mode(2 * N * T * D, N * T * D + V * D, mode)


def run(m: Any, a: Arrays, mode: str) -> Call:
    if mode == "forward":
        return lambda: m.word_embedding_forward(a["ids"], a["W"])[:1]
    if mode == "backward":
        cache = m.word_embedding_forward(a["ids"], a["W"])[1]
        return lambda: (m.word_embedding_backward(a["dout"], cache),)

    def both() -> tuple[Any, ...]:
        out, cache = m.word_embedding_forward(a["ids"], a["W"])
        return out, m.word_embedding_backward(a["dout"], cache)

    return both


def torch_embedding(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    ids, W = torch.from_numpy(a["ids"]), torch.from_numpy(a["W"]).requires_grad_(mode != "forward")
    forward = torch.nn.functional.embedding
    return autograd(lambda: forward(ids, W), [W], torch.from_numpy(a["dout"]), mode), arrays_of


def torch_index_add(a: Arrays, mode: str) -> tuple[Call, Any]:
    """The other way to write it in PyTorch, without autograd."""
    import torch

    W, dout = torch.from_numpy(a["W"]), torch.from_numpy(a["dout"]).reshape(-1, a["W"].shape[1])
    flat = torch.from_numpy(a["ids"]).reshape(-1)
    shape = (*a["ids"].shape, a["W"].shape[1])

    def call() -> list[Any]:
        out = [] if mode == "backward" else [W.index_select(0, flat).reshape(shape)]
        return out + ([] if mode == "forward" else [torch.zeros_like(W).index_add_(0, flat, dout)])

    return call, arrays_of


BENCHMARKS = (
    Benchmark(
        "word_embedding",
        "N T V D",
        SHAPES,
        inputs,
        flops,
        moved,
        run,
        {"torch": torch_embedding, "torch:index_add": torch_index_add},
        quick=1,
    ),
)
