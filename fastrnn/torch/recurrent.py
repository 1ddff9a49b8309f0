"""Operations ``torch.ops.fastrnn.rnn``, ``.lstm`` and ``.gru``: one layer in one direction over whole sequences.

Each is one call of a kernel forward and one backward. There are two ways in, with the same code below them:

- the operations of `torch.library`, which ``torch.compile``, ``torch.export``, ``vmap`` and ``torch.func`` see;
- :func:`sequence`, which takes a `torch.autograd.Function` instead while none of those is at work: the dispatch of an
  operation written in Python costs several times what a small layer does.

Tensors on a CUDA device go to CuPy by DLPack, on PyTorch's current stream. That path was never run on a device.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

import fastrnn
from fastrnn.backend import Chosen, choose, ran, rouse

from .library import WORTH_A_PAUSE, bare, pause_openmp, slice_by_slice, stream_of, vmap_by_loop
from .tensors import as_array, as_tensor

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
_DTYPES = (torch.float32, torch.float64)
_ARRAY_DTYPES = (np.float32, np.float64)
_SMALL = 1 << 16
_WAY_AROUND = "set backend = 'torch' on the module (or fastrnn.torch.revert the model), which then runs torch.nn"


# ---- PyTorch's layout and fastrnn's ----------------------------------------------------------------------------------


def _takes_ours(chosen: Chosen) -> bool:
    """Whether weights go through :func:`_to_ours`: the C++ kernels alone read and write PyTorch's layout in place."""
    return bool(chosen.column != "cpu")


def _swapped(W: Any, xp: Any) -> Any:
    """The third and the last quarter of the rows swapped: gates i, f, g, o for i, f, o, g, and back."""
    third, last = W.shape[0] // 2, W.shape[0] // 4 * 3
    return xp.concatenate((W[:third], W[last:], W[third:last]))


def _to_ours(cell: str, W: Any, xp: Any = np) -> Any:
    """Weights (gates H, D) as (D, gates H), or biases (gates H,), in fastrnn's order of gates."""
    return (_swapped(W, xp) if cell == "lstm" else W).T


def _to_torch(cell: str, dW: Any, xp: Any) -> Tensor:
    """Gradients of what :func:`_to_ours` gave, contiguous in PyTorch's layout."""
    return _tensor(xp.ascontiguousarray(_swapped(dW.T, xp) if cell == "lstm" else dW.T))


def _biases(cell: str, bias_ih: Any, bias_hh: Any, columns: int, dtype: np.dtype, chosen: Chosen) -> Any:
    """b and bh of the kernels: the sum where only the sum matters, that is everywhere but in the GRU's candidate."""
    if bias_ih is None:
        return chosen.xp.zeros(columns, dtype), None
    if cell == "gru":
        return bias_ih, bias_hh
    b = bias_ih + bias_hh
    return (_to_ours(cell, b, chosen.xp) if _takes_ours(chosen) else b), None


def _weights(cell: str, weight_ih: Any, weight_hh: Any, chosen: Chosen) -> tuple[Any, Any]:
    """Wx and Wh as the kernels take them."""
    if _takes_ours(chosen):
        return _to_ours(cell, weight_ih, chosen.xp), _to_ours(cell, weight_hh, chosen.xp)
    return weight_ih.T, weight_hh.T


def _quiet(x: Tensor, operations: float) -> None:
    """Let go of PyTorch's spinning threads before a kernel that is long enough for that to pay."""
    if operations >= WORTH_A_PAUSE:
        pause_openmp(x)


# ---- precision -------------------------------------------------------------------------------------------------------


class _Precision:
    """Calls at precision ``"medium"``, which bfloat16 asks for, and calls at the precision set, never at once.

    Precision is a setting of the process, which kernels read as they start. Without turns, a bfloat16 layer in one
    thread would lower the precision of a float32 layer in another. Calls of one kind do run side by side.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._running = {False: 0, True: 0}
        self._before = ""

    def enter(self, medium: bool) -> None:
        with self._turn:
            while self._running[not medium]:
                self._turn.wait()
            self._running[medium] += 1
            if medium and self._running[True] == 1:
                self._before = fastrnn.get_float32_matmul_precision()
                fastrnn.set_float32_matmul_precision("medium")

    def leave(self, medium: bool) -> None:
        with self._turn:
            self._running[medium] -= 1
            if not self._running[medium]:
                if medium:
                    fastrnn.set_float32_matmul_precision(self._before)
                self._turn.notify_all()

    def after_fork(self) -> None:
        """In a child there are no other threads whose calls could end."""
        if self._running[True]:
            fastrnn.set_float32_matmul_precision(self._before)
        self.__init__()  # type: ignore[misc]


class _Turn:
    """A block in which a kernel may start; products of float64 have one precision only."""

    __slots__ = ("medium", "needed")

    def __init__(self, dtype: np.dtype, medium: bool) -> None:
        self.medium, self.needed = medium, dtype.itemsize == 4

    def __enter__(self) -> None:
        if self.needed:
            _precision.enter(self.medium)

    def __exit__(self, *_: object) -> None:
        if self.needed:
            _precision.leave(self.medium)


_precision = _Precision()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_precision.after_fork)


# ---- one call of a kernel --------------------------------------------------------------------------------------------


def _require(cell: str, name: str, given: Tensor | None, shape: tuple[Any, ...], like: Tensor, letters: str) -> None:
    if given is None:
        return
    if given.shape != shape:
        raise ValueError(
            f"torch.ops.fastrnn.{cell}: argument '{name}' must have shape ({letters}) = {tuple(shape)}, "
            f"got {tuple(given.shape)}"
        )
    if given.dtype != like.dtype:
        raise TypeError(
            f"torch.ops.fastrnn.{cell}: argument '{name}' must have the dtype of 'x', {like.dtype}, got {given.dtype}"
        )
    if given.device != like.device:
        raise ValueError(
            f"torch.ops.fastrnn.{cell}: argument '{name}' must be on the device of 'x', {like.device}, "
            f"got {given.device}"
        )


def _check(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
) -> None:
    """Everything but the values of `lengths`, so that kernels for real and for fake tensors share it."""
    if x.dim() != 3 or h0.dim() != 2:
        name, given, letters = ("x", x, "N, T, D") if x.dim() != 3 else ("h0", h0, "N, H")
        raise ValueError(
            f"torch.ops.fastrnn.{cell}: argument '{name}' must have shape ({letters}), got {tuple(given.shape)}"
        )
    if x.dtype not in _DTYPES:
        raise TypeError(
            f"torch.ops.fastrnn.{cell}: argument 'x' must be float32 or float64, got {x.dtype}; for bfloat16 convert "
            f"with .float() and pass medium=True, as the modules of fastrnn.torch do"
        )
    N, _, D = x.shape
    H = h0.shape[1]
    columns = GATES[cell] * H
    gates = f"{GATES[cell]}H" if GATES[cell] > 1 else "H"
    _require(cell, "h0", h0, (N, H), x, "N, H")
    _require(cell, "c0", c0, (N, H), x, "N, H")
    _require(cell, "weight_ih", weight_ih, (columns, D), x, f"{gates}, D")
    _require(cell, "weight_hh", weight_hh, (columns, H), x, f"{gates}, H")
    if (bias_ih is None) != (bias_hh is None):
        missing, other = ("bias_ih", "bias_hh") if bias_ih is None else ("bias_hh", "bias_ih")
        raise ValueError(f"torch.ops.fastrnn.{cell}: argument '{missing}' must be given with '{other}', got None")
    _require(cell, "bias_ih", bias_ih, (columns,), x, gates)
    _require(cell, "bias_hh", bias_hh, (columns,), x, gates)
    if lengths is not None and (lengths.shape != (N,) or lengths.dtype != torch.int64 or lengths.device.type == "cuda"):
        raise ValueError(
            f"torch.ops.fastrnn.{cell}: argument 'lengths' must be int64 of shape (N) = ({N},) in the computer's "
            f"memory, got {lengths.dtype} of shape {tuple(lengths.shape)} on {lengths.device}"
        )


def _steps(cell: str, lengths: Tensor | None, T: int, chosen: Chosen) -> Any:
    """`lengths` as the kernels take them."""
    if lengths is None:
        return None
    steps = np.ascontiguousarray(as_array(lengths))
    if steps.size and not (steps.min() >= 0 and steps.max() <= T):
        raise ValueError(
            f"torch.ops.fastrnn.{cell}: argument 'lengths' must lie between 0 and T = {T}, "
            f"got {steps.min()} to {steps.max()}"
        )
    return chosen.place.moved(steps)


def _arrays(cell: str, tensors: tuple[Any, ...], lengths: Tensor | None) -> list[Any]:
    """x, h0, c0, weight_ih, weight_hh, bias_ih and bias_hh as arrays whose shapes and dtypes fit each other.

    Shapes of arrays are looked at, since those of tensors take five times as long.
    """
    if tensors[0].is_cpu and lengths is None:
        try:
            arrays = [None if t is None else t.detach().numpy() if t.requires_grad else t.numpy() for t in tensors]
            if _fit(cell, *arrays):
                return arrays
        except (TypeError, ValueError, RuntimeError, IndexError):
            pass  # what is wrong is said below
    x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh = tensors
    _check(cell, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, lengths)
    return [None if t is None else as_array(t) for t in tensors]


def _fit(cell: str, x: Any, h0: Any, c0: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> bool:
    (N, _, D), (_, H), dtype = x.shape, h0.shape, x.dtype
    columns = GATES[cell] * H
    if not (h0.shape == (N, H) and weight_ih.shape == (columns, D) and weight_hh.shape == (columns, H)):
        return False
    if not (dtype == h0.dtype == weight_ih.dtype == weight_hh.dtype and dtype in _ARRAY_DTYPES):
        return False
    if c0 is not None and not (c0.shape == (N, H) and c0.dtype == dtype):
        return False
    if bias_ih is None or bias_hh is None:
        return bias_ih is bias_hh
    return bool(bias_ih.shape == bias_hh.shape == (columns,) and bias_ih.dtype == bias_hh.dtype == dtype)


def _forward(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    medium: bool = False,
    repeatable: bool = False,
) -> tuple[Tensor, ...]:
    """output (N, T, H), h_n, of the LSTM c_n (N, H), and what backward needs."""
    tensors = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
    if x.is_cuda:
        with stream_of(x):
            return _run(cell, tensors, lengths, reverse, medium, repeatable)
    return _run(cell, tensors, lengths, reverse, medium, repeatable)


def _run(
    cell: str, tensors: tuple[Any, ...], lengths: Tensor | None, reverse: bool, medium: bool, repeatable: bool
) -> tuple[Tensor, ...]:
    x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh = _arrays(cell, tensors, lengths)
    chosen = choose(cell, x)
    (N, T, D), H, dtype = x.shape, h0.shape[1], x.dtype
    columns = GATES[cell] * H
    rouse(chosen, 2.0 * N * T * D * columns)
    steps = _steps(cell, lengths, T, chosen)
    Wx, Wh = _weights(cell, weight_ih, weight_hh, chosen)
    b, bh = _biases(cell, bias_ih, bias_hh, columns, dtype, chosen)
    if chosen.is_reference:
        h, states, _ = _reference_forward(cell, x, h0, c0, Wx, Wh, b, bh, steps, reverse)
        h = _by_time(h, chosen) if _time_first(tensors[0]) else h
        return tuple(map(torch.from_numpy, (h, *states, np.empty(0, dtype))))
    kernels, buffer = chosen.kernels, chosen.buffer
    kept, scratch, _ = getattr(kernels, f"{cell}_buffers")(N, T, D, H, dtype.itemsize)
    h, h_n = chosen.empty((N, T, H), dtype), chosen.empty((N, H), dtype)
    c_n = (chosen.empty((N, H), dtype),) if cell == "lstm" else ()
    results = (h, h_n, *c_n, buffer(kept, dtype))
    if repeatable and _to_be_filled(kept):
        results[-1].fill(0)
    _quiet(tensors[0], 2.0 * N * T * (D + H) * columns)
    with _Turn(dtype, medium):
        if cell == "lstm":
            run = kernels.lstm_forward if _takes_ours(chosen) else kernels.lstm_forward_ifgo
            run(x, h0, c0, Wx, Wh, b, steps, reverse, *results, buffer(scratch, dtype))
        elif cell == "gru":
            kernels.gru_forward(x, h0, Wx, Wh, b, bh, steps, reverse, *results, buffer(scratch, dtype))
        else:
            kernels.rnn_forward(x, h0, Wx, Wh, b, steps, reverse, *results, buffer(scratch, dtype))
        ran(f"{cell}_forward", chosen, dtype, {"N": N, "T": T, "D": D, "H": H})
    if _time_first(tensors[0]):
        results = (_by_time(h, chosen), *results[1:])
    return tuple([_tensor(array) for array in results])


def _time_first(x: Tensor) -> bool:
    """Whether x (N, T, D) is the view of time-major sequences, whose outputs then are one too."""
    N, T, _ = x.shape
    return bool(N > 1 and T > 1 and x.stride(0) < x.stride(1))


def _by_time(h: Any, chosen: Chosen) -> Any:
    """A copy of h (N, T, H) in memory by time."""
    copied = chosen.empty((h.shape[1], h.shape[0], h.shape[2]), h.dtype).transpose(1, 0, 2)
    copied[...] = h
    return copied


def _to_be_filled(count: int) -> bool:
    """Whether the padding of a reserve, which no kernel writes, shall be the same from call to call.

    Where `torch.library` sees it, it is a result, and compared like one. Clearing a large one takes a pass over memory
    that no gradient needs: that is left out unless deterministic algorithms were asked for.
    """
    asked = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return count <= _SMALL or bool(asked)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array) if type(array) is np.ndarray else as_tensor(array)


def _reference_forward(
    cell: str, x: Any, h0: Any, c0: Any, Wx: Any, Wh: Any, b: Any, bh: Any, steps: Any, reverse: bool
) -> tuple[Any, tuple[Any, ...], Any]:
    """The oracle's outputs, states and cache; the latter is no tensor, so that backward runs this again."""
    more = {"lstm": {"c0": c0}, "gru": {"bh": bh}, "rnn": {}}[cell]
    function = getattr(fastrnn, f"{cell}_forward")
    h, states, cache = function(x, h0, Wx, Wh, b, lengths=steps, reverse=reverse, return_state=True, **more)
    return h, states if cell == "lstm" else (states,), cache


def _backward(
    cell: str,
    dh: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    reserve: Tensor,
    reverse: bool = False,
    medium: bool = False,
) -> tuple[Tensor, ...]:
    """dx, dh0, of the LSTM dc0, dweight_ih, dweight_hh, dbias, and of the GRU the other bias's."""
    tensors, gradients = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh), (dh, dh_n, dc_n)
    if x.is_cuda:
        with stream_of(x):
            return _run_backward(cell, gradients, tensors, lengths, reserve, reverse, medium)
    return _run_backward(cell, gradients, tensors, lengths, reserve, reverse, medium)


def _run_backward(
    cell: str,
    gradients: tuple[Any, ...],
    tensors: tuple[Any, ...],
    lengths: Tensor | None,
    reserve: Tensor,
    reverse: bool,
    medium: bool,
) -> tuple[Tensor, ...]:
    x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh = _arrays(cell, tensors, lengths)
    chosen = choose(cell, x)
    (N, T, D), H, dtype = x.shape, h0.shape[1], x.dtype
    columns = GATES[cell] * H
    rouse(chosen, 4.0 * N * T * (D + H) * columns)
    dh, dh_n, dc_n = _gradient_arrays(cell, gradients, tensors[0], H)
    if dh is None:
        dh = chosen.xp.broadcast_to(chosen.xp.zeros((), dtype), (N, T, H))
    steps = _steps(cell, lengths, T, chosen)
    Wx, Wh = _weights(cell, weight_ih, weight_hh, chosen)
    if chosen.is_reference:
        b, bh = _biases(cell, bias_ih, bias_hh, columns, dtype, chosen)
        dx, dh0, dWx, dWh, db, *rest = _reference_backward(
            cell, dh, dh_n, dc_n, x, h0, c0, Wx, Wh, b, bh, steps, reverse
        )
    else:
        kernels, empty = chosen.kernels, chosen.empty
        size, _, scratch = getattr(kernels, f"{cell}_buffers")(N, T, D, H, dtype.itemsize)
        if reserve.shape != (size,) or reserve.dtype != tensors[0].dtype:
            raise RuntimeError(
                f"torch.ops.fastrnn.{cell}_backward: argument 'reserve' must be what forward gave on backend "
                f"{chosen.column!r}, {size} elements of {dtype}, got {tuple(reserve.shape)} of {reserve.dtype}; was "
                f"another backend set then?"
            )
        kept, workspace = as_array(reserve), chosen.buffer(scratch, dtype)
        dx, dh0, db = empty((N, T, D), dtype), empty((N, H), dtype), empty((columns,), dtype)
        ours = _takes_ours(chosen)
        if ours:
            dWx, dWh = empty((D, columns), dtype), empty((H, columns), dtype)
        else:
            dWx, dWh = empty((columns, D), dtype).T, empty((columns, H), dtype).T
        rest = [empty((columns,) if cell == "gru" else (N, H), dtype)] if cell != "rnn" else []
        _quiet(tensors[0], 4.0 * N * T * (D + H) * columns)
        with _Turn(dtype, medium):
            if cell == "lstm":
                run = kernels.lstm_backward if ours else kernels.lstm_backward_ifgo
                run(dh, dh_n, dc_n, x, h0, c0, Wx, Wh, steps, reverse, kept, workspace, dx, dh0, *rest, dWx, dWh, db)
            elif cell == "gru":
                kernels.gru_backward(
                    dh, dh_n, x, h0, Wx, Wh, bias_hh, steps, reverse, kept, workspace, dx, dh0, dWx, dWh, db, *rest
                )
            else:
                kernels.rnn_backward(
                    dh, dh_n, x, h0, Wx, Wh, steps, reverse, kept, workspace, dx, dh0, dWx, dWh, db
                )  # fmt: skip
            ran(f"{cell}_backward", chosen, dtype, {"N": N, "T": T, "D": D, "H": H})
    if _time_first(tensors[0]):  # as x is: PyTorch would copy a gradient that is not laid out as its leaf
        dx = _by_time(dx, chosen)
    if _takes_ours(chosen):
        weights = [_to_torch(cell, dW, chosen.xp) for dW in (dWx, dWh, db)]
    else:
        weights = [_tensor(dW.T) for dW in (dWx, dWh, db)]
    last = [_tensor(array) for array in rest]
    if cell == "lstm":
        # The reference gives dc0 last, the kernels where it was put.
        return _tensor(dx), _tensor(dh0), *last, *weights
    return _tensor(dx), _tensor(dh0), *weights, *last


def _gradient_arrays(cell: str, gradients: tuple[Any, ...], x: Tensor, H: int) -> list[Any]:
    """dh, dh_n and dc_n as arrays, None where there is none."""
    N, T, _ = x.shape
    shapes = (("dh", (N, T, H), "N, T, H"), ("dh_n", (N, H), "N, H"), ("dc_n", (N, H), "N, H"))
    for (name, shape, letters), gradient in zip(shapes, gradients, strict=True):
        _require(f"{cell}_backward", name, gradient, shape, x, letters)
    return [None if gradient is None else as_array(gradient) for gradient in gradients]


def _reference_backward(
    cell: str, dh: Any, dh_n: Any, dc_n: Any, x: Any, h0: Any, c0: Any, *rest: Any
) -> tuple[Any, ...]:
    *_, cache = _reference_forward(cell, x, h0, c0, *rest)
    states = {"dh_n": dh_n, "dc_n": dc_n} if cell == "lstm" else {"dh_n": dh_n}
    gradients = getattr(fastrnn, f"{cell}_backward")(dh, cache, **states)
    if cell == "gru" and rest[3] is None:  # no bias: its gradient is not asked for, but has a place
        gradients = (*gradients, np.zeros_like(gradients[-1]))
    return gradients


def _reserve_size(chosen: Chosen, cell: str, N: int, T: int, D: int, H: int, itemsize: int) -> int:
    if chosen.is_reference:
        return 0
    return int(getattr(chosen.kernels, f"{cell}_buffers")(N, T, D, H, itemsize)[0])


# ---- autograd without dispatch ---------------------------------------------------------------------------------------


def _no_double_backward(cell: str) -> RuntimeError:
    return RuntimeError(
        f"torch.ops.fastrnn.{cell}: second derivatives (create_graph=True, gradgradcheck, torch.func.hessian) have no "
        f"kernel; {_WAY_AROUND}"
    )


def _no_forward_mode(cell: str) -> RuntimeError:
    return RuntimeError(
        f"torch.ops.fastrnn.{cell}: forward-mode differentiation (forward_ad, torch.func.jvp) has no kernel; use "
        f"reverse mode, or {_WAY_AROUND}"
    )


class _Sequence(torch.autograd.Function):
    """Outputs, states and reserve. Its parts are apart, as torch.func wants them."""

    @staticmethod
    def forward(cell: str, *arguments: Any) -> tuple[Tensor, ...]:
        return _forward(cell, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, *tensors, reverse, medium = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*tensors, output[-1])
        ctx.options = cell, reverse, medium

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dh_n: Tensor | None, *others: Tensor | None) -> Any:
        cell, reverse, medium = ctx.options
        dc_n = others[0] if cell == "lstm" else None
        arguments = (cell, dh, dh_n, dc_n, *ctx.saved_tensors, reverse, medium)
        gradients = _SequenceBackward.apply(*arguments) if torch.is_grad_enabled() else _backward(*arguments)
        return None, *_by_argument(cell, gradients, ctx.needs_input_grad[1:8]), None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _no_forward_mode("sequence")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return slice_by_slice(_Sequence.apply)(info, in_dims, *arguments)


class _PlainSequence(_Sequence):
    """The same in one part, for calls that no transformation of torch.func sees.

    For parts that are apart PyTorch binds each call's arguments to a signature: 60 microseconds.
    """

    @staticmethod
    def forward(ctx: Any, cell: str, *arguments: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        output = _forward(cell, *arguments)
        _Sequence.setup_context(ctx, (cell, *arguments), output)
        return output

    setup_context = torch.autograd.Function.setup_context


class _SequenceBackward(torch.autograd.Function):
    """Gradients that are themselves part of a graph; only to say, when that is run, that there is no kernel for it."""

    @staticmethod
    def forward(cell: str, *arguments: Any) -> tuple[Tensor, ...]:
        return _backward(cell, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_double_backward(ctx.cell)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _no_double_backward("sequence")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return slice_by_slice(_SequenceBackward.apply)(info, in_dims, *arguments)


def _by_argument(cell: str, gradients: Any, needed: Any) -> tuple[Tensor | None, ...]:
    """Gradients of x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, those that are `needed`."""
    if cell == "lstm":
        dx, dh0, dc0, dweight_ih, dweight_hh, dbias_ih = gradients
        dbias_hh = dbias_ih
    else:
        dx, dh0, dweight_ih, dweight_hh, dbias_ih, *rest = gradients
        dc0, dbias_hh = None, rest[0] if rest else dbias_ih
    every = (dx, dh0, dc0, dweight_ih, dweight_hh, dbias_ih, dbias_hh)
    return tuple(gradient if need else None for gradient, need in zip(every, needed, strict=True))


# ---- the operations --------------------------------------------------------------------------------------------------


def _define(cell: str) -> tuple[Any, Any]:
    """``torch.ops.fastrnn.<cell>`` and ``.<cell>_backward``, with what PyTorch's transformations need to know."""
    lstm, gru = cell == "lstm", cell == "gru"
    states = "Tensor h0, Tensor c0" if lstm else "Tensor h0"
    weights = "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh"
    options = "bool reverse=False, bool medium=False"
    gradients = "Tensor dh, Tensor? dh_n, Tensor? dc_n" if lstm else "Tensor dh, Tensor? dh_n"

    def spread(arguments: tuple[Any, ...], before: int) -> tuple[Any, ...]:
        """Arguments of the op with the c0 (and before it the dc_n) that only an LSTM has."""
        if lstm:
            return arguments
        head, x_h0, tail = arguments[:before], arguments[before : before + 2], arguments[before + 2 :]
        return (*head, None, *x_h0, None, *tail) if before else (*x_h0, None, *tail)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        call: Any = _forward
        return call(cell, *spread(arguments, 0), repeatable=True)

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        return _backward(cell, *spread(arguments, 2))

    outputs = ", ".join(["Tensor"] * (4 if lstm else 3))
    operation = torch.library.custom_op(
        f"fastrnn::{cell}",
        forward,
        mutates_args=(),
        device_types=("cpu", "cuda"),
        schema=f"(Tensor x, {states}, {weights}, Tensor? lengths=None, {options}) -> ({outputs})",
    )
    results = ", ".join(["Tensor"] * (6 if lstm or gru else 5))
    operation_backward = torch.library.custom_op(
        f"fastrnn::{cell}_backward",
        backward,
        mutates_args=(),
        device_types=("cpu", "cuda"),
        schema=f"({gradients}, Tensor x, {states}, {weights}, Tensor? lengths, Tensor reserve, {options}) "
        f"-> ({results})",
    )

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, *rest = spread(arguments, 0)
        _check(cell, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, rest[0] if rest else None)
        (N, T, D), H = x.shape, h0.shape[1]
        if any(isinstance(size, torch.SymInt) for size in (N, T, D, H)):
            kept: Any = torch.library.get_ctx().new_dynamic_size()
        else:
            # Meta tensors may stand for a device; only NumPy's arrays are at hand to choose by, and are told apart.
            row = "cuda" if x.device.type == "cuda" else ""
            chosen = choose(cell, None if not row else _OnDevice())
            kept = _reserve_size(chosen, cell, N, T, D, H, x.dtype.itemsize)
        h = x.new_empty((T, N, H)).transpose(0, 1) if _time_first(x) else x.new_empty((N, T, H))
        return h, *(x.new_empty((N, H)) for _ in range(2 if lstm else 1)), x.new_empty(kept)

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        _, _, _, x, h0, _, weight_ih, weight_hh, *_ = spread(arguments, 2)
        columns, like = weight_ih.shape[:1], x.new_empty
        states = [like(h0.shape) for _ in range(2 if lstm else 1)]
        biases = [like(columns) for _ in range(2 if gru else 1)]
        dx = like((x.shape[1], x.shape[0], x.shape[2])).transpose(0, 1) if _time_first(x) else like(x.shape)
        return dx, *states, like(weight_ih.shape), like(weight_hh.shape), *biases

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, reverse, medium = spread(inputs, 0)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[-1])
        ctx.options = reverse, medium

    def differentiate(ctx: Any, dh: Any, dh_n: Any, *others: Any) -> Any:
        tensors, (reverse, medium) = ctx.saved_tensors, ctx.options
        x, h0, c0, *rest = tensors
        if dh is None:
            dh = x.new_zeros(()).expand(x.shape[0], x.shape[1], h0.shape[1])
        given = (dh, dh_n, others[0], x, h0, c0) if lstm else (dh, dh_n, x, h0)
        gradients = operation_backward(*given, *rest, reverse, medium)
        needed = spread(ctx.needs_input_grad, 0)[:7]
        dx, dh0, dc0, *dweights = _by_argument(cell, gradients, needed)
        return (dx, dh0, *((dc0,) if lstm else ()), *dweights, None, None, None)

    def refuse(ctx: Any, *_: Any) -> Any:
        raise _no_double_backward(cell)

    operation.register_fake(fake)
    operation_backward.register_fake(fake_backward)
    operation.register_autograd(differentiate, setup_context=setup_context)
    operation_backward.register_autograd(refuse)
    for each in (operation, operation_backward):
        vmap_by_loop(each)
    return operation, operation_backward


class _OnDevice:
    """Stands for an array on a CUDA device where there is only a tensor without memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


_OPERATIONS = {cell: _define(cell)[0] for cell in GATES}


def _wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    for t in tensors:
        if t is not None and t.requires_grad:
            return torch.is_grad_enabled()
    return False


def sequence(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    medium: bool = False,
) -> tuple[Tensor, ...]:
    """One layer in one direction over whole sequences, differentiable.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
        The step is that of :func:`fastrnn.rnn_step_forward` and its like.
    x : Tensor, shape (N, T, D), float32 or float64
        Input sequences, batch first, of any strides.
    h0, c0 : Tensor, shape (N, H)
        Initial states; c0 is the LSTM's, and None for the others.
    weight_ih, weight_hh : Tensor, shape (gates H, D) and (gates H, H)
        In PyTorch's layout and order of gates.
    bias_ih, bias_hh : Tensor, shape (gates H,), or None
    lengths : Tensor of int64, shape (N,), optional
        Valid steps of each sequence, in the computer's memory.
    reverse : bool, optional
        Run each sequence from its last valid step to its first.
    medium : bool, optional
        Products of float32 tensors at precision ``"medium"``, whatever is set.

    Returns
    -------
    output : Tensor, shape (N, T, H)
        Contiguous, or the view of a contiguous (T, N, H) where x is time-major.
    h_n, c_n : Tensor, shape (N, H)
        Final states; c_n of the LSTM only. What backward needs is kept only where it will run.

    Raises
    ------
    ValueError, TypeError
        A shape, dtype or device does not fit; the message names the argument.
    """
    tensors = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
    if not torch.compiler.is_compiling():
        if forward_ad._current_level >= 0:
            _refuse_tangents(cell, tensors)
        if bare(tensors):
            # Under a transformation of torch.func, plain tensors can be wrappers.
            if torch._C._functorch.peek_interpreter_stack() is not None:
                return _Sequence.apply(cell, *tensors, lengths, reverse, medium)[:-1]
            if _wants_gradient(tensors):
                return _PlainSequence.apply(cell, *tensors, lengths, reverse, medium)[:-1]
            return _forward(cell, *tensors, lengths, reverse, medium)[:-1]
    given = tensors if cell == "lstm" else (x, h0, *tensors[3:])
    outputs: tuple[Tensor, ...] = _OPERATIONS[cell](*given, lengths, reverse, medium)[:-1]
    return outputs


def _refuse_tangents(cell: str, tensors: tuple[Tensor | None, ...]) -> None:
    """Without this, tangents would be dropped where no gradient is asked for."""
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise _no_forward_mode(cell)
