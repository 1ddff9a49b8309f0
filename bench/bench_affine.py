"""Benchmark of the affine row: the projection onto the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Arrays, Benchmark, Call, Peer, Shape, arrays_of, autograd, by_mode, rng, tensor

SHAPES = ((25, 16, 512, 1004), (100, 16, 200, 1004), (64, 32, 512, 10_000))


def inputs(shape: Shape, dtype: Any) -> Arrays:
    N, T, D, M = shape
    draw = rng().standard_normal
    a = {"x": draw((N, T, D)), "w": draw((D, M)) / np.sqrt(D), "b": draw(M), "dout": draw((N, T, M))}
    return {key: value.astype(dtype) for key, value in a.items()}


def flops(shape: Shape, mode: str) -> float:
    N, T, D, M = shape
    product = 2.0 * N * T * D * M
    return by_mode(product, 2 * product, mode)


def moved(shape: Shape, mode: str) -> float:
    N, T, D, M = shape
    x, w, out = N * T * D, (D + 1) * M, N * T * M
    return by_mode(x + w + out, 2 * x + 2 * w + out, mode)


def run(m: Any, a: Arrays, mode: str) -> Call:
    arguments = (a["x"], a["w"], a["b"])
    if mode == "forward":
        return lambda: m.temporal_affine_forward(*arguments)[:1]
    if mode == "backward":
        cache = m.temporal_affine_forward(*arguments)[1]
        return lambda: m.temporal_affine_backward(a["dout"], cache)

    def both() -> tuple[Any, ...]:
        out, cache = m.temporal_affine_forward(*arguments)
        return (out, *m.temporal_affine_backward(a["dout"], cache))

    return both


def torch_linear(bf16: bool) -> Peer:
    def peer(a: Arrays, mode: str) -> tuple[Call, Any]:

        x, w, b, dout = (tensor(a[key]) for key in ("x", "w", "b", "dout"))
        if bf16:
            x, w, b, dout = (t.bfloat16() for t in (x, w, b, dout))
        wanted = [t.requires_grad_(mode != "forward") for t in (x, w, b)]
        return autograd(lambda: x @ w + b, wanted, dout, mode), arrays_of

    return peer


PEERS = {"torch": torch_linear(False), "torch:bf16": torch_linear(True)}
BENCHMARKS = (Benchmark("temporal_affine", "N T D M", SHAPES, inputs, flops, moved, run, PEERS),)
