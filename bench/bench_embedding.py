"""Benchmark of the embedding row: lookup, and the scatter-add of its gradient in its three forms.

NumPy's way to do the latter, and so that of the reference which is the provider ``numpy``, is `np.add.at`.
"""

from __future__ import annotations

from typing import Any

from .common import Arrays, Benchmark, Call, Shape, array, arrays_of, autograd, by_mode, rng, tensor

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


def used(shape: Shape) -> float:
    """Words that are drawn at least once, to be expected."""
    N, T, V, _ = shape
    return V * (1 - (1 - 1 / V) ** (N * T))


def out_moved(shape: Shape, mode: str) -> float:
    N, T, _, D = shape
    return N * T * D + 2 * used(shape) * D


def sparse_moved(shape: Shape, mode: str) -> float:
    N, T, _, D = shape
    return N * T * D + used(shape) * D


def run_out(m: Any, a: Arrays, mode: str) -> Call:
    """Into one array again and again, whose values grow; the results of the first call are verified."""
    cache = m.word_embedding_forward(a["ids"], a["W"])[1]
    out = a["W"].copy()
    return lambda: (m.word_embedding_backward(a["dout"], cache, out=out),)


def run_sparse(m: Any, a: Arrays, mode: str) -> Call:
    cache = m.word_embedding_forward(a["ids"], a["W"])[1]
    return lambda: m.word_embedding_backward(a["dout"], cache, sparse=True)


def torch_embedding(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    ids, W = tensor(a["ids"]), tensor(a["W"]).requires_grad_(mode != "forward")
    forward = torch.nn.functional.embedding
    return autograd(lambda: forward(ids, W), [W], tensor(a["dout"]), mode), arrays_of


def torch_index_add(a: Arrays, mode: str) -> tuple[Call, Any]:
    """The other way to write it in PyTorch, without autograd."""
    import torch

    W, dout = tensor(a["W"]), tensor(a["dout"]).reshape(-1, a["W"].shape[1])
    flat = tensor(a["ids"]).reshape(-1)
    shape = (*a["ids"].shape, a["W"].shape[1])

    def call() -> list[Any]:
        out = [] if mode == "backward" else [W.index_select(0, flat).reshape(shape)]
        return out + ([] if mode == "forward" else [torch.zeros_like(W).index_add_(0, flat, dout)])

    return call, arrays_of


def torch_index_add_out(a: Arrays, mode: str) -> tuple[Call, Any]:

    out, dout = tensor(a["W"].copy()), tensor(a["dout"]).reshape(-1, a["W"].shape[1])
    flat = tensor(a["ids"]).reshape(-1)
    return lambda: [out.index_add_(0, flat, dout)], arrays_of


def torch_sparse(a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    ids, W = tensor(a["ids"]), tensor(a["W"]).requires_grad_(True)
    call = autograd(lambda: torch.nn.functional.embedding(ids, W, sparse=True), [W], tensor(a["dout"]), "backward")

    def arrays(gradient: Any) -> tuple[Any, ...]:
        return array(gradient.indices()[0]), array(gradient.values())

    return lambda: call()[0].coalesce(), arrays


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
    Benchmark(
        "word_embedding_out",
        "N T V D",
        SHAPES,
        inputs,
        flops,
        out_moved,
        run_out,
        {"torch:index_add": torch_index_add_out},
        quick=1,
        modes=("backward",),
    ),
    Benchmark(
        "word_embedding_sparse",
        "N T V D",
        SHAPES,
        inputs,
        flops,
        sparse_moved,
        run_sparse,
        {"torch:sparse": torch_sparse},
        quick=1,
        modes=("backward",),
    ),
)
