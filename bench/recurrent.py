"""What the benchmarks of rnn, lstm and gru have in common: only the cell differs."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Arrays, Benchmark, Call, Shape, autograd, by_mode, rng

# The two of the captioning model come first: they are the quick ones.
SHAPES = (
    (25, 16, 256, 512),
    (100, 16, 256, 200),
    (128, 16, 512, 512),
    (32, 64, 128, 128),
    (64, 32, 256, 256),
    (1, 64, 256, 256),
    (256, 32, 512, 1024),
    (64, 128, 512, 512),
)
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# Our gates in PyTorch's order, which swaps the LSTM's last two: i, f, g, o.
ORDER = {"rnn": (0,), "lstm": (0, 1, 3, 2), "gru": (0, 1, 2)}


def benchmark(cell: str) -> Benchmark:
    """The benchmark of a cell: whole sequences."""
    gates = GATES[cell]

    def inputs(shape: Shape, dtype: Any) -> Arrays:
        N, T, D, H = shape
        draw = rng().standard_normal
        a = {
            "x": draw((N, T, D)),
            "h0": draw((N, H)),
            "Wx": draw((D, gates * H)) / np.sqrt(D),
            "Wh": draw((H, gates * H)) / np.sqrt(H),
            "b": draw(gates * H) / 10,
            "dh": draw((N, T, H)),
        }
        return {key: value.astype(dtype) for key, value in a.items()}

    def flops(shape: Shape, mode: str) -> float:
        # The products only: x Wx and h Wh, and in backward two more of each.
        N, T, D, H = shape
        product = 2.0 * N * T * (D + H) * gates * H
        return by_mode(product, 2 * product, mode)

    def moved(shape: Shape, mode: str) -> float:
        N, T, D, H = shape
        weights, x, h, states = (D + H + 1) * gates * H, N * T * D, N * T * H, N * H
        return by_mode(x + weights + states + h, 2 * x + 2 * weights + 2 * states + 2 * h, mode)

    def run(m: Any, a: Arrays, mode: str) -> Call:
        forward, backward = getattr(m, f"{cell}_forward"), getattr(m, f"{cell}_backward")
        arguments = (a["x"], a["h0"], a["Wx"], a["Wh"], a["b"])
        if mode == "forward":
            return lambda: forward(*arguments)[:1]
        if mode == "backward":
            cache = forward(*arguments)[1]
            return lambda: backward(a["dh"], cache)

        def both() -> tuple[Any, ...]:
            h, cache = forward(*arguments)
            return (h, *backward(a["dh"], cache))

        return both

    def torch_peer(a: Arrays, mode: str) -> tuple[Call, Any]:
        import torch

        D, H = a["x"].shape[2], a["h0"].shape[1]
        made = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
        module = made(D, H, batch_first=True, dtype=torch.from_numpy(a["x"]).dtype)
        order = np.concatenate([np.arange(gate * H, (gate + 1) * H) for gate in ORDER[cell]])
        weights = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
        with torch.no_grad():
            for weight, key in zip(weights, ("Wx", "Wh", "b"), strict=True):
                weight.copy_(torch.from_numpy(np.ascontiguousarray(a[key][..., order].T)))
            module.bias_hh_l0.zero_()
        x = torch.from_numpy(a["x"]).requires_grad_(mode != "forward")
        h0 = torch.from_numpy(a["h0"][None]).requires_grad_(mode != "forward")
        state = (h0, torch.zeros_like(h0)) if cell == "lstm" else h0
        wanted = [x, h0, *weights]
        call = autograd(lambda: module(x, state)[0], wanted, torch.from_numpy(a["dh"]), mode)

        def convert(tensors: list[Any]) -> tuple[np.ndarray, ...]:
            arrays = [tensor.detach().numpy() for tensor in tensors]
            if mode == "forward":
                return tuple(arrays)
            *h, dx, dh0, dWx, dWh, db = arrays
            back = np.argsort(order)
            return (*h, dx, dh0[0], dWx[back].T, dWh[back].T, db[back])

        return call, convert

    return Benchmark(cell, "N T D H", SHAPES, inputs, flops, moved, run, {"torch": torch_peer})
