"""What the operations of ``torch.library`` have in common: arguments, streams, dtypes and ``vmap``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from fastrnn.checks import Arguments
from fastrnn.torch.tensors import as_tensor


def floating(function: str, name: str, value: Any, ndim: int = 0, pattern: str = "") -> None:
    """Hold an argument against what it must be: a tensor of real floating numbers, of `ndim` axes if that is not 0."""
    if not isinstance(value, torch.Tensor):
        raise Arguments(function).fail(TypeError, name, "be a tensor", type(value).__name__)
    if not value.is_floating_point():
        raise Arguments(function).fail(TypeError, name, "have a floating dtype", f"dtype {value.dtype}")
    if ndim and value.ndim != ndim:
        actual = f"shape {tuple(value.shape)}"
        raise Arguments(function).fail(ValueError, name, f"be {ndim}-dimensional, {pattern}", actual)


def integers(function: str, name: str, value: Any) -> None:
    """Hold an argument against what it must be: a tensor of integers."""
    if not isinstance(value, torch.Tensor):
        raise Arguments(function).fail(TypeError, name, "be a tensor", type(value).__name__)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise Arguments(function).fail(TypeError, name, "hold integers", f"dtype {value.dtype}")


def number(function: str, name: str, value: Any) -> float:
    """A weight of a loss: a Python number, for which there is no gradient."""
    if isinstance(value, torch.Tensor):
        expected = "be a number (multiply the loss by a tensor instead)"
        raise Arguments(function).fail(TypeError, name, expected, "a tensor")
    return float(value)


def same_device(function: str, **tensors: torch.Tensor) -> None:
    """All tensors are where the first is."""
    (first, leader), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != leader.device:
            expected = f"be on the device of '{first}', {leader.device}"
            raise Arguments(function).fail(ValueError, name, expected, f"device {tensor.device}")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the kernels for tensors of `dtype`: float32 for bfloat16 and float16, which have no own ones."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def autocast_to_float32(*tensors: Any) -> tuple[Any, ...]:
    """Inside of ``torch.autocast`` tensors of lower precision as float32, as PyTorch does for its own losses."""
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(t.float() if t is not None and t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors)


@contextmanager
def stream_of(tensor: torch.Tensor) -> Iterator[None]:
    """Let CuPy work on PyTorch's current stream of a tensor's device until the end of the block; nothing on the CPU.

    Not run on a device so far.
    """
    if tensor.device.type != "cuda":
        yield
        return
    cuda = import_module("cupy").cuda
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    with cuda.Device(tensor.device.index), cuda.ExternalStream(stream):
        yield


def _openmp_pause() -> Any:
    try:
        return ctypes.CDLL(None).omp_pause_resource_all  # of the library that PyTorch loaded for everybody to see
    except (AttributeError, OSError, TypeError):
        return None


_pause = _openmp_pause()
# Operations of a kernel, some 0.2 ms on two cores, from which on letting go of those threads, 0.1 ms, pays.
WORTH_A_PAUSE = 5e7
_SOFT = 1  # omp_pause_soft of OpenMP 5.0: settings are kept


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def bare(tensors: tuple[torch.Tensor | None, ...]) -> bool:
    """Whether plain tensors with memory are all there is, and nobody records what is called."""
    if torch._C._len_torch_dispatch_stack():
        return False
    for t in tensors:
        if t is not None and (type(t) not in _PLAIN or t.is_meta):
            return False
    return True


def eager(tensors: tuple[torch.Tensor | None, ...]) -> bool:
    """Whether this is a call of kernels and nothing more: no tracing, no transformation, :func:`bare` tensors.

    Then a ``torch.autograd.Function`` can stand for an operation of ``torch.library``, which has more to do.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or not bare(tensors):
        return False
    # Under a transformation of torch.func, plain tensors can be wrappers.
    return torch._C._functorch.peek_interpreter_stack() is None


def pause_openmp(tensor: torch.Tensor) -> None:
    """Before a kernel that takes milliseconds, on a tensor on the CPU, let go of this thread's idle OpenMP threads.

    After each parallel operation of PyTorch they spin for some milliseconds on the cores that the kernel wants: a call
    of 7 ms took 14 on two cores. To let go of them, and to start them again when they are needed, takes 0.1 ms.
    ``OMP_WAIT_POLICY=passive`` in the environment keeps them from spinning at all.
    """
    if _pause is not None and tensor.device.type == "cpu" and torch.get_num_threads() > 1:
        _pause(_SOFT)


def scalar_tensor(value: Any) -> torch.Tensor:
    """A loss, which is a NumPy scalar or a 0-d array on a device, as a tensor of no axes."""
    return as_tensor(np.asarray(value) if isinstance(value, np.generic) else value)


def slice_by_slice(call: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for ``torch.vmap`` that calls for each slice of the batch: right for every argument, not the fastest."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        dims = tuple(in_dims) + (None,) * (len(args) - len(in_dims))
        results = []
        for i in range(info.batch_size):
            one = (a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True))
            results.append(call(*one))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        columns = list(zip(*results, strict=True))
        return tuple(torch.stack(column) for column in columns), (0,) * len(columns)

    return rule


def vmap_by_loop(operation: Any) -> None:
    """Register :func:`slice_by_slice` as ``torch.vmap`` of an operation."""
    torch.library.register_vmap(operation, slice_by_slice(operation))


def refuse(message: str) -> Callable[..., Any]:
    """A backward pass that is an error with a way around it."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(message)

    return backward
