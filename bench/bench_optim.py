"""Benchmarks of the optim row: one update of K weights by each rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .common import Arrays, Benchmark, Call, Peer, Shape, array, rng, tensor

SHAPES = ((1_000_000,), (10_000,), (10_000_000,))
# Arithmetic for each weight, a square root or a division counted as one; arrays read and written.
COSTS = {"sgd": (2, 3), "sgd_momentum": (4, 5), "rmsprop": (8, 5), "adam": (13, 7)}


def inputs(shape: Shape, dtype: Any) -> Arrays:
    draw = rng().standard_normal
    return {"w": draw(shape).astype(dtype), "dw": draw(shape).astype(dtype)}


def runner(rule: str) -> Callable[[Any, Arrays, str], Call]:
    def run(m: Any, a: Arrays, mode: str) -> Call:
        # Call after call the state goes on, as in training; the weights stay, so that they cannot run away.
        config: dict[str, Any] = {}
        return lambda: getattr(m, rule)(a["w"], a["dw"], config)[:1]

    return run


def torch_rule(rule: str) -> Peer:
    def peer(a: Arrays, mode: str) -> tuple[Call, Any]:
        import torch

        w = tensor(a["w"].copy()).requires_grad_()
        w.grad = tensor(a["dw"])
        optim = torch.optim
        optimizer: Any = {
            "sgd": lambda: optim.SGD([w], lr=1e-2, fused=True),
            "sgd_momentum": lambda: optim.SGD([w], lr=1e-2, momentum=0.9, fused=True),
            "rmsprop": lambda: optim.RMSprop([w], lr=1e-2, alpha=0.99, eps=1e-8),
            "adam": lambda: optim.Adam([w], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True),
        }[rule]()

        def call() -> Any:
            optimizer.step()
            return w

        return call, lambda result: (array(result).copy(),)

    return peer


def benchmark(rule: str) -> Benchmark:
    operations, arrays = COSTS[rule]
    return Benchmark(
        rule,
        "K",
        SHAPES,
        inputs,
        lambda shape, mode: float(operations * shape[0]),
        lambda shape, mode: float(arrays * shape[0]),
        runner(rule),
        {"torch": torch_rule(rule)},
        quick=1,
        modes=("both",),
    )


BENCHMARKS = tuple(benchmark(rule) for rule in COSTS)
