"""What the benchmarks of rnn, lstm and gru have in common: only the cell differs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastrnn.conformance import GATES

from . import common
from .common import Arrays, Benchmark, Call, Shape, arrays_of, autograd, by_mode, rng

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
RAGGED_SHAPES = ((25, 16, 256, 512), (100, 16, 256, 200), (64, 32, 256, 256), (64, 128, 512, 512))
# Our gates in PyTorch's order, which swaps the LSTM's last two (i, f, g, o), and in that of ONNX (i, o, f, c; z, r, h).
TORCH_ORDER = {"rnn": (0,), "lstm": (0, 1, 3, 2), "gru": (0, 1, 2)}
ONNX_ORDER = {"rnn": (0,), "lstm": (0, 2, 1, 3), "gru": (1, 0, 2)}


def benchmarks(cell: str) -> tuple[Benchmark, Benchmark]:
    """The benchmarks of a cell: whole sequences, and sequences of different lengths."""
    run = partial(_run, cell)
    whole = Benchmark(
        cell,
        "N T D H",
        SHAPES,
        partial(_inputs, cell),
        partial(_flops, cell, _all_steps),
        partial(_moved, cell, _all_steps),
        run,
        {
            "torch": partial(_torch_peer, cell, False),
            "torch:bf16": partial(_torch_peer, cell, True),
            "onnxruntime": partial(_onnx_peer, cell),
        },
        steps="T",
    )
    ragged = Benchmark(
        f"{cell}_lengths",
        "N T D H",
        RAGGED_SHAPES,
        partial(_ragged_inputs, cell),
        partial(_flops, cell, _valid_steps),
        partial(_moved, cell, _valid_steps),
        run,
        {"torch": partial(_torch_peer, cell, False), "onnxruntime": partial(_onnx_peer, cell)},
        steps="T",
        stays=("lengths",),
    )
    return whole, ragged


# ---- inputs and costs ----------------------------------------------------------------------------------------------


def _inputs(cell: str, shape: Shape, dtype: Any) -> Arrays:
    N, T, D, H = shape
    gates = GATES[cell]
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


def _ragged_inputs(cell: str, shape: Shape, dtype: Any) -> Arrays:
    return _inputs(cell, shape, dtype) | {"lengths": _lengths(shape)}


def _lengths(shape: Shape) -> np.ndarray:
    """Lengths drawn uniformly from 1 to T."""
    N, T = shape[:2]
    return rng().integers(1, T + 1, N)


def _all_steps(shape: Shape) -> int:
    return shape[0] * shape[1]


def _valid_steps(shape: Shape) -> int:
    return int(_lengths(shape).sum())


def _flops(cell: str, steps: Callable[[Shape], int], shape: Shape, mode: str) -> float:
    # The products only: x Wx and h Wh of the steps that exist, and in backward two more of each.
    D, H = shape[2:]
    product = 2.0 * steps(shape) * (D + H) * GATES[cell] * H
    return by_mode(product, 2 * product, mode)


def _moved(cell: str, steps: Callable[[Shape], int], shape: Shape, mode: str) -> float:
    N, _, D, H = shape
    weights, x, h, states = (D + H + 1) * GATES[cell] * H, steps(shape) * D, steps(shape) * H, N * H
    return by_mode(x + weights + states + h, 2 * x + 2 * weights + 2 * states + 2 * h, mode)


# ---- ours and the oracle -------------------------------------------------------------------------------------------


def _run(cell: str, m: Any, a: Arrays, mode: str) -> Call:
    forward, backward = getattr(m, f"{cell}_forward"), getattr(m, f"{cell}_backward")
    arguments = (a["x"], a["h0"], a["Wx"], a["Wh"], a["b"])
    options = {"lengths": a["lengths"]} if "lengths" in a else {}
    if mode == "forward":
        return lambda: forward(*arguments, **options)[:1]
    if mode == "backward":
        cache = forward(*arguments, **options)[1]
        return lambda: backward(a["dh"], cache)

    def both() -> tuple[Any, ...]:
        h, cache = forward(*arguments, **options)
        return (h, *backward(a["dh"], cache))

    return both


# ---- peers ---------------------------------------------------------------------------------------------------------


def _columns(order: tuple[int, ...], H: int) -> np.ndarray:
    """Indices that bring the columns of our gates into another order."""
    return np.concatenate([np.arange(gate * H, (gate + 1) * H) for gate in order])


def _torch_peer(cell: str, bf16: bool, a: Arrays, mode: str) -> tuple[Call, Any]:
    """torch.nn's module of the cell; with lengths on a PackedSequence, which is packed and padded again in the call."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    def tensor(array: np.ndarray) -> Any:
        return common.tensor(array).bfloat16() if bf16 else common.tensor(array)

    (_, T, D), H = a["x"].shape, a["h0"].shape[1]
    x, h0 = (tensor(array).requires_grad_(mode != "forward") for array in (a["x"], a["h0"][None]))
    made = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    module = made(D, H, batch_first=True, dtype=x.dtype, device=x.device)
    order = _columns(TORCH_ORDER[cell], H)
    weights = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
    with torch.no_grad():
        for weight, key in zip(weights, ("Wx", "Wh", "b"), strict=True):
            weight.copy_(tensor(np.ascontiguousarray(a[key][..., order].T)))
        module.bias_hh_l0.zero_()
    state = (h0, torch.zeros_like(h0)) if cell == "lstm" else h0

    def whole() -> Any:
        return module(x, state)[0]

    def packed() -> Any:
        sequences = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(module(sequences, state)[0], batch_first=True, total_length=T)[0]

    lengths: Any = torch.from_numpy(a["lengths"]) if "lengths" in a else None
    forward = whole if lengths is None else packed
    call = autograd(forward, [x, h0, *weights], tensor(a["dh"]), mode)

    def convert(tensors: list[Any]) -> tuple[np.ndarray, ...]:
        arrays = arrays_of(tensors)
        if mode == "forward":
            return arrays
        *h, dx, dh0, dWx, dWh, db = arrays
        back = np.argsort(order)
        return (*h, dx, dh0[0], dWx[back].T, dWh[back].T, db[back])

    return call, convert


def _onnx_peer(cell: str, a: Arrays, mode: str) -> tuple[Call, Any] | None:
    """A model of one recurrent node, for inference only. It is time-major: what turns the axes is outside the call."""
    if mode != "forward":
        return None
    import onnxruntime
    from onnx import helper, numpy_helper

    import fastrnn

    H = a["h0"].shape[1]
    order = _columns(ONNX_ORDER[cell], H)
    # One direction comes first; of the two biases, the input's and the recurrent one, ours is the first.
    weights = {key: np.ascontiguousarray(a[key][:, order].T)[None] for key in ("Wx", "Wh")}
    weights["b"] = np.concatenate([a["b"][order], np.zeros_like(a["b"])])[None]
    feeds = {"x": np.ascontiguousarray(a["x"].swapaxes(0, 1)), "h0": a["h0"][None]}
    if "lengths" in a:
        feeds["lengths"] = a["lengths"].astype(np.int32)
    # What stands in the GRU's candidate is r * (h Wh), not (r * h) Wh.
    options: dict[str, Any] = {"linear_before_reset": 1} if cell == "gru" else {}
    names = ["x", "Wx", "Wh", "b", "lengths" if "lengths" in a else "", "h0"]
    graph = helper.make_graph(
        [helper.make_node(cell.upper(), names, ["h"], cell, hidden_size=H, **options)],
        cell,
        [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for key, array in feeds.items()
        ],
        [helper.make_tensor_value_info("h", helper.np_dtype_to_tensor_dtype(a["x"].dtype), None)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = fastrnn.get_num_threads(), 1
    settings.log_severity_level = 4  # an error comes as an exception too
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds), lambda results: (results[0][:, 0].swapaxes(0, 1),)
