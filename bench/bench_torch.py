"""Benchmarks of a system, the PyTorch layer: our modules and operations against PyTorch's own, autograd included.

Both sides are called in the same way, on tensors; gradients are returned rather than accumulated. The oracle is the
NumPy reference, composed to the same mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from fastrnn.conformance import GATES

from . import bench_embedding, bench_softmax_loss
from .common import Arrays, Benchmark, Call, Shape, array, arrays_of, autograd, by_mode, rng, tensor
from .recurrent import RAGGED_SHAPES, SHAPES, TORCH_ORDER, _columns

# Layers and directions of the deep network, and its size.
DEEP = (2, 2)
DEEP_SHAPES = ((64, 64, 256, 256),)
CELLS = ("lstm", "gru", "rnn")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


# ---- recurrent modules ---------------------------------------------------------------------------------------------


def _passes(layers: int, directions: int) -> list[tuple[int, bool, str]]:
    """Layer, whether it is run backwards, and the ending of its parameters' names, in PyTorch's order."""
    ends = ("", "_reverse")[:directions]
    return [(layer, end != "", f"_l{layer}{end}") for layer in range(layers) for end in ends]


def _inputs(cell: str, layers: int, directions: int, ragged: bool, shape: Shape, dtype: Any) -> Arrays:
    """What a module sees, and its parameters under their own names."""
    N, T, D, H = shape
    draw, rows = rng(), GATES[cell] * H
    a = {"x": draw.standard_normal((N, T, D)), "dh": draw.standard_normal((N, T, directions * H))}
    for layer, _, end in _passes(layers, directions):
        width = directions * H if layer else D
        a[f"weight_ih{end}"] = draw.standard_normal((rows, width)) / np.sqrt(width)
        a[f"weight_hh{end}"] = draw.standard_normal((rows, H)) / np.sqrt(H)
        a[f"bias_ih{end}"], a[f"bias_hh{end}"] = draw.standard_normal((2, rows)) / 10
    a = {key: value.astype(dtype) for key, value in a.items()}
    # Drawn anew, so that they are those of the flops.
    return a | ({"lengths": _lengths(shape)} if ragged else {})


def _lengths(shape: Shape) -> np.ndarray:
    N, T = shape[:2]
    return rng().integers(1, T + 1, N)


def _steps(ragged: bool, shape: Shape) -> int:
    return int(_lengths(shape).sum()) if ragged else shape[0] * shape[1]


def _flops(cell: str, layers: int, directions: int, ragged: bool, shape: Shape, mode: str) -> float:
    D, H = shape[2:]
    widths = [D] * directions + [directions * H] * directions * (layers - 1)
    product = sum(2.0 * _steps(ragged, shape) * (width + H) * GATES[cell] * H for width in widths)
    return by_mode(product, 2 * product, mode)


def _moved(cell: str, layers: int, directions: int, ragged: bool, shape: Shape, mode: str) -> float:
    D, H = shape[2:]
    steps = _steps(ragged, shape)
    forward = 0.0
    for layer in range(layers):
        width = directions * H if layer else D
        weights = directions * (width + H + 2) * GATES[cell] * H
        forward += weights + steps * (width + directions * H)
    return by_mode(forward, 2 * forward, mode)


def _oracle(cell: str, layers: int, directions: int, m: Any, a: Arrays, mode: str) -> Call:
    """The module's mathematics by the functions of `m`, the reference; parameters and gradients as PyTorch has them."""
    forward, backward = getattr(m, f"{cell}_forward"), getattr(m, f"{cell}_backward")
    H = a["weight_hh_l0"].shape[1]
    order = _columns(TORCH_ORDER[cell], H)
    back = np.argsort(order)
    h0 = np.zeros((len(a["x"]), H), a["x"].dtype)
    shared = {"lengths": a["lengths"]} if "lengths" in a else {}

    def run_forward() -> tuple[np.ndarray, list[Any]]:
        x, caches = a["x"], []
        for layer in range(layers):
            outputs = []
            for _, reverse, end in (one for one in _passes(layers, directions) if one[0] == layer):
                w_ih, w_hh, b_ih, b_hh = (a[f"{name}{end}"][back] for name in PARAMETERS)
                bias = {"b": b_ih, "bh": b_hh} if cell == "gru" else {"b": b_ih + b_hh}
                h, cache = forward(x, h0, w_ih.T, w_hh.T, **bias, **shared, reverse=reverse)
                outputs.append(h)
                caches.append(cache)
            x = np.concatenate(outputs, axis=2)
        return x, caches

    def run_backward(caches: list[Any]) -> list[np.ndarray]:
        dh = a["dh"]
        gradients: dict[str, np.ndarray] = {}
        for layer in reversed(range(layers)):
            parts = np.split(dh, directions, axis=2)
            dx: Any = 0
            for part, (index, one) in zip(
                parts,
                [(i, p) for i, p in enumerate(_passes(layers, directions)) if p[0] == layer],
                strict=True,
            ):
                found = backward(part, caches[index])
                db, db_hh = found[4], found[5] if cell == "gru" else found[4]
                made = (found[2].T[order], found[3].T[order], db[order], db_hh[order])
                gradients |= {f"{name}{one[2]}": value for name, value in zip(PARAMETERS, made, strict=True)}
                dx = dx + found[0]
            dh = dx
        return [dh, *(gradients[f"{name}{end}"] for *_, end in _passes(layers, directions) for name in PARAMETERS)]

    if mode == "forward":
        return lambda: (run_forward()[0],)
    if mode == "backward":
        _, caches = run_forward()
        return lambda: tuple(run_backward(caches))

    def both() -> tuple[Any, ...]:
        h, caches = run_forward()
        return (h, *run_backward(caches))

    return both


def _module(
    cell: str, layers: int, directions: int, padded: bool, library: Callable[[], ModuleType], a: Arrays, mode: str
) -> tuple[Call, Any]:
    """A library's module; with lengths from one PackedSequence to another, or `padded` around them."""
    import torch
    from torch.nn.utils import rnn

    (_, T, D), H = a["x"].shape, a["weight_hh_l0"].shape[1]
    x, dh = tensor(a["x"]), tensor(a["dh"])
    options: Any = {"batch_first": True, "bidirectional": directions == 2, "dtype": x.dtype, "device": x.device}
    module = getattr(library(), cell.upper())(D, H, layers, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensor(a[name]))
    if "lengths" not in a:
        x.requires_grad_(mode != "forward")
        return autograd(lambda: module(x)[0], [x, *module.parameters()], dh, mode), arrays_of

    lengths = torch.from_numpy(a["lengths"])
    ragged = {"batch_first": True, "enforce_sorted": False}
    if padded:
        x.requires_grad_(mode != "forward")
        theirs = rnn if library is _nn else library()

        def whole() -> Any:
            output = module(theirs.pack_padded_sequence(x, lengths, **ragged))[0]
            return theirs.pad_packed_sequence(output, batch_first=True, total_length=T)[0]

        return autograd(whole, [x, *module.parameters()], dh, mode), arrays_of

    packed, dh = (rnn.pack_padded_sequence(one, lengths, **ragged) for one in (x, dh))
    packed.data.requires_grad_(mode != "forward")

    def as_padded(results: list[Any]) -> tuple[np.ndarray, ...]:
        """Outputs and the gradient of x as the oracle has them."""
        count = 2 if mode == "both" else 1
        sequences = [packed._replace(data=one.detach()) for one in results[:count]]
        outer = [rnn.pad_packed_sequence(one, batch_first=True, total_length=T)[0] for one in sequences]
        return arrays_of([*outer, *results[count:]])

    leaves = [packed.data, *module.parameters()]
    return autograd(lambda: module(packed)[0].data, leaves, dh.data, mode), as_padded


def _nn() -> ModuleType:
    import torch

    return torch.nn


def _ours() -> ModuleType:
    import fastrnn.torch

    return fastrnn.torch


def _recurrent(
    kernel: str,
    cell: str,
    shapes: tuple[Shape, ...] = SHAPES,
    sizes: tuple[int, int] = (1, 1),
    ragged: bool = False,
    padded: bool = False,
) -> Benchmark:
    return Benchmark(
        kernel,
        "N T D H",
        shapes,
        partial(_inputs, cell, *sizes, ragged),
        partial(_flops, cell, *sizes, ragged),
        partial(_moved, cell, *sizes, ragged),
        partial(_oracle, cell, *sizes),
        {"torch": partial(_module, cell, *sizes, padded, _nn)},
        quick=min(2, len(shapes)),
        steps="T",
        stays=("*",),
        ours=partial(_module, cell, *sizes, padded, _ours),
    )


# ---- the vocabulary ------------------------------------------------------------------------------------------------


def _vocab_oracle(m: Any, a: Arrays, mode: str) -> Call:
    N, T, H = a["h"].shape
    # One position a sequence: the mean of sequences is that of positions.
    given = (a["h"].reshape(N * T, 1, H), a["W"], a["b"], a["y"].reshape(-1, 1), a["mask"].reshape(-1, 1))

    def call() -> tuple[Any, ...]:
        loss, dh, dW, db = m.vocab_softmax_loss(*given)
        return loss, dh.reshape(N, T, H), dW.T, db

    return call


def _vocab_loss(library: str, a: Arrays, mode: str) -> tuple[Call, Any]:
    import torch

    h, weight, bias = (tensor(x).requires_grad_() for x in (a["h"], np.ascontiguousarray(a["W"].T), a["b"]))
    y = tensor(a["y"])

    def theirs() -> Any:
        scores = torch.nn.functional.linear(h, weight, bias)
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())

    loss = theirs if library == "torch" else lambda: _ours().vocab_cross_entropy(h, weight, bias, y)

    def call() -> tuple[Any, ...]:
        found = loss()
        return (found.detach(), *torch.autograd.grad(found, (h, weight, bias)))

    return call, lambda result: (array(result[0])[()], *map(array, result[1:]))


# ---- the embedding -------------------------------------------------------------------------------------------------


def _embedding(a: Arrays, mode: str) -> tuple[Call, Any]:
    ids, W = tensor(a["ids"]), tensor(a["W"]).requires_grad_(mode != "forward")
    embedding = _ours().embedding
    return autograd(lambda: embedding(ids, W), [W], tensor(a["dout"]), mode), arrays_of


BENCHMARKS = (
    *(_recurrent(f"torch_{cell}", cell) for cell in CELLS),
    *(_recurrent(f"torch_{cell}_packed", cell, RAGGED_SHAPES, ragged=True) for cell in CELLS),
    # From padded sequences to padded ones, packed in between.
    *(_recurrent(f"torch_{cell}_ragged", cell, RAGGED_SHAPES, ragged=True, padded=True) for cell in CELLS),
    _recurrent("torch_lstm_deep", "lstm", DEEP_SHAPES, DEEP),
    Benchmark(
        "torch_vocab_cross_entropy",
        "N T H V",
        bench_softmax_loss.VOCAB_SHAPES,
        bench_softmax_loss.vocab_inputs,
        bench_softmax_loss.vocab_flops,
        bench_softmax_loss.vocab_moved,
        _vocab_oracle,
        {"torch": partial(_vocab_loss, "torch")},
        modes=("both",),
        stays=("*",),
        ours=partial(_vocab_loss, "fastrnn"),
        memory=True,
    ),
    Benchmark(
        "torch_embedding",
        "N T V D",
        bench_embedding.SHAPES,
        bench_embedding.inputs,
        bench_embedding.flops,
        bench_embedding.moved,
        bench_embedding.run,
        {"torch": bench_embedding.torch_embedding},
        quick=1,
        stays=("*",),
        ours=_embedding,
    ),
)
