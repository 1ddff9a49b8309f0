"""What a benchmark is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Shape = tuple[int, ...]
Call = Callable[[], Any]
# Makes, from the inputs and the mode, the call that is timed, and what turns its result into our outputs; None where
# the library has nothing for the mode.
Peer = Callable[[Arrays, str], tuple[Call, Callable[[Any], tuple[Any, ...]]] | None]

MODES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Benchmark:
    """One kernel's benchmark.

    Attributes
    ----------
    kernel : str
        Its name in tables and records.
    axes : str
        Names of the sizes in a shape, as in ``"N T D H"``.
    shapes : tuple of tuple of int
        Default shapes, the quick ones first.
    inputs : callable
        ``inputs(shape, dtype)`` makes the arrays; two calls make the same.
    flops, moved : callable
        ``flops(shape, mode)`` operations that the mathematics needs; ``moved(shape, mode)`` elements that must at least
        be read and written.
    run : callable
        ``run(m, arrays, mode)`` makes the call for `m`, ``fastrnn`` or its reference: no arguments, a tuple back.
    peers : mapping of str to callable
        Other libraries' ways to do the same, by provider: ``"torch"``, ``"torch:index_add"``, … What stands before the
        colon is the library that must be installed; ``":bf16"`` behind it means that all is in bfloat16, for runs of
        that precision.
    quick : int
        How many of `shapes` are run without ``--all``.
    modes : tuple of str
        Modes that make sense: ``"both"`` is forward and backward together, or all there is.
    calls : int
        How many calls in a row are verified, where each begins from what the one before it left, as in training.
        Rounding errors then grow from call to call, and ours too is held to what is asked of peers.
    steps : str
        Axis of the steps that are done one after another, whose time is told beside the whole.
    stays : tuple of str
        Inputs that stay in the computer's memory where the others are on a GPU; ``("*",)``: all.
    ours : callable, optional
        What stands for our library where that is not its functions, as `peers` are given; `run` is the oracle's alone.
    memory : bool
        Whether the peak of the memory that a call takes is told, too.
    """

    kernel: str
    axes: str
    shapes: tuple[Shape, ...]
    inputs: Callable[[Shape, Any], Arrays]
    flops: Callable[[Shape, str], float]
    moved: Callable[[Shape, str], float]
    run: Callable[[Any, Arrays, str], Call]
    peers: Mapping[str, Peer] = field(default_factory=dict)
    quick: int = 2
    modes: tuple[str, ...] = MODES
    calls: int = 1
    steps: str = ""
    stays: tuple[str, ...] = ()
    ours: Peer | None = None
    memory: bool = False


def rng() -> np.random.Generator:
    """Where all inputs come from: the same numbers in every run."""
    return np.random.default_rng(20240607)


def by_mode(forward: float, backward: float, mode: str) -> float:
    """The one, the other, or their sum."""
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def autograd(forward: Callable[[], Any], wanted: list[Any], gradient: Any, mode: str) -> Call:
    """PyTorch's call for a mode: `forward()` alone, its gradients with respect to `wanted` alone, or all of it.

    Gradients are returned rather than accumulated, as ours are. The result is a list of tensors.
    """
    import torch

    if mode == "forward":

        def infer() -> list[Any]:
            with torch.inference_mode():
                return [forward()]

        return infer
    if mode == "backward":
        output = forward()
        return lambda: list(torch.autograd.grad(output, wanted, gradient, retain_graph=True))

    def train() -> list[Any]:
        output = forward()
        return [output, *torch.autograd.grad(output, wanted, gradient)]

    return train


def arrays_of(tensors: list[Any]) -> tuple[np.ndarray, ...]:
    """Tensors as arrays; those in bfloat16, which NumPy does not have, in float32."""
    import torch

    return tuple((t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy() for t in tensors)


_device = "cpu"


@contextmanager
def peers_on(device: str) -> Iterator[None]:
    """Let PyTorch compute on a device, ``"cpu"`` or ``"cuda"``, until the end of the block."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


def peers_device() -> str:
    """Where PyTorch computes."""
    return _device


def tensor(array: np.ndarray) -> Any:
    """An array as PyTorch's, where PyTorch computes: on the processor it shares the array's memory."""
    import torch

    return torch.from_numpy(array).to(_device)


def array(result: Any) -> np.ndarray:
    """A tensor as an array."""
    return np.asarray(result.detach().cpu().numpy())
