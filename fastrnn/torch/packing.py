"""Packed sequences as padded ones, and back: for callers, and for the kernels.

PyTorch's own two functions copy step by step, on its OpenMP threads, and their gradients likewise: at (25, 16, 256,
512) they took as long as a vanilla RNN, and of (64, 128, 512, 512) the gradient of padding alone takes 74 ms of the 77
that our RNN takes. Here rows are gathered by their numbers, by NumPy; PyTorch's functions stay for tensors on a device
and for ``torch.compile`` and ``torch.func``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import _VF, Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from .library import bare


def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """The same as `torch.nn.utils.rnn.pack_padded_sequence`, faster on the CPU, its gradient above all.

    Parameters
    ----------
    input : Tensor, shape (T, N, ...), or (N, T, ...) with `batch_first`
        Padded sequences.
    lengths : Tensor or list of int, N of them
        Steps of each sequence, 1 to T, on the CPU.
    batch_first : bool, optional
        Whether N is the first axis of `input`.
    enforce_sorted : bool, optional
        Whether the lengths must fall; otherwise the sequences are sorted by them, and the result knows how.

    Returns
    -------
    PackedSequence

    Raises
    ------
    RuntimeError, ValueError
        What PyTorch's function raises, and says.
    """
    steps = torch.as_tensor(lengths) if isinstance(lengths, (list, tuple)) else lengths
    N, T = _sizes(input, batch_first)
    fits = isinstance(steps, Tensor) and steps.is_cpu and steps.dtype == torch.int64 and steps.shape == (N,) and N > 0
    fits = fits and input.dim() > 1 and _by_numbers(input) and bool((steps >= 1).all() and (steps <= T).all())
    if not fits or (enforce_sorted and bool((steps[1:] > steps[:-1]).any())):
        return rnn.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    order = unsorted = None
    if not enforce_sorted:
        steps, order = torch.sort(steps, descending=True)
        unsorted = rnn.invert_permutation(order)
    sizes = np.cumsum(np.bincount(steps.numpy(), minlength=T + 1)[::-1])[::-1][1 : int(steps[0]) + 1]
    batch_sizes = torch.from_numpy(np.ascontiguousarray(sizes))
    rows = _padded_rows(batch_sizes, order, N, T, batch_first)
    data = _Packed.apply(input, rows)
    return PackedSequence(data, batch_sizes, order, unsorted)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `torch.nn.utils.rnn.pad_packed_sequence`, faster on the CPU, its gradient above all.

    Parameters
    ----------
    sequence : PackedSequence
    batch_first : bool, optional
        Whether the result is ``(N, T, ...)`` rather than ``(T, N, ...)``.
    padding_value : float, optional
        What stands after the end of a sequence.
    total_length : int, optional
        T; if not given that of the longest sequence.

    Returns
    -------
    padded : Tensor, shape (T, N, ...), or (N, T, ...) with `batch_first`
    lengths : Tensor of int64, shape (N,)

    Raises
    ------
    ValueError
        What PyTorch's function raises, and says.
    """
    data, batch_sizes, order, unsorted = sequence
    longest = len(batch_sizes)
    T = longest if total_length is None else total_length
    if T < longest or not _by_numbers(data) or len(data) != int(batch_sizes.sum()):
        return rnn.pad_packed_sequence(sequence, batch_first, padding_value, total_length)
    N = int(batch_sizes[0])
    lengths = torch.from_numpy(np.bincount(_places(batch_sizes)[1], minlength=N))
    rows = _padded_rows(batch_sizes, order, N, T, batch_first)
    shape = ((N, T) if batch_first else (T, N)) + tuple(data.shape[1:])
    return _Padded.apply(data, rows, shape, padding_value), lengths if unsorted is None else lengths[unsorted]


def _sizes(input: Tensor, batch_first: bool) -> tuple[int, int]:
    """N and T of padded sequences; nothing if that is not what it is."""
    if not isinstance(input, Tensor) or input.dim() < 2:
        return 0, 0
    return (input.shape[0], input.shape[1]) if batch_first else (input.shape[1], input.shape[0])


def _places(batch_sizes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The step of each packed row, and its sequence among the sorted ones."""
    sizes = batch_sizes.numpy()
    step = np.repeat(np.arange(len(sizes)), sizes)
    return step, np.arange(len(step)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _padded_rows(batch_sizes: Tensor, order: Tensor | None, N: int, T: int, batch_first: bool) -> np.ndarray:
    """The padded row of each packed one."""
    step, sequence = _places(batch_sizes)
    if order is not None:
        sequence = order.numpy()[sequence]
    return sequence * T + step if batch_first else step * N + sequence


def _take(x: Tensor, rows: np.ndarray) -> Tensor:
    """Rows of x, whose first two axes are one."""
    return torch.from_numpy(x.detach().numpy().reshape(-1, *x.shape[2:]).take(rows, 0))


def _put(data: Tensor, rows: np.ndarray, shape: tuple[int, ...], padding: float) -> Tensor:
    """The opposite, into new memory."""
    out = np.full(shape, padding, data.detach().numpy().dtype)
    out.reshape(-1, *shape[2:])[rows] = data.detach().numpy()
    return torch.from_numpy(out)


class _Packed(torch.autograd.Function):
    """Rows of padded sequences (·, ·, ...), by their numbers over both axes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: np.ndarray) -> Tensor:
        ctx.rows, ctx.shape = rows, tuple(x.shape)
        return _take(x, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Padded.apply(gradient, ctx.rows, ctx.shape, 0.0), None


class _Padded(torch.autograd.Function):
    """The opposite."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, rows: np.ndarray, shape: tuple[int, ...], padding: float) -> Tensor:
        ctx.rows = rows
        return _put(data, rows, shape, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Packed.apply(gradient, ctx.rows), None, None, None


class Packing:
    """Where the rows of packed data (R, ·) stand in padded sequences (N, T, ·).

    Parameters
    ----------
    batch_sizes : Tensor of int64, shape (T,)
        Sequences that are still running at each step, as in a PackedSequence.
    """

    def __init__(self, batch_sizes: Tensor) -> None:
        self.batch_sizes = batch_sizes
        self._rows: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def _numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each packed row its padded row; of each padded row its packed one, or 0; the lengths."""
        if self._rows is None:
            N, T = int(self.batch_sizes[0]), len(self.batch_sizes)
            step, sequence = _places(self.batch_sizes)
            to_padded = sequence * T + step
            to_packed = np.zeros(N * T, np.int64)
            to_packed[to_padded] = np.arange(len(step))
            self._rows = to_padded, to_packed, np.bincount(sequence, minlength=N)
        return self._rows

    def pad(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Padded x (N, T, ·), and lengths (N,).

        Kernels do not look at what x holds beyond a sequence's length: here that is another row.
        """
        T = len(self.batch_sizes)
        if not (_by_numbers(data) and len(data) == int(self.batch_sizes.sum())):
            return _VF._pad_packed_sequence(data, self.batch_sizes, True, 0.0, T)
        to_padded, to_packed, lengths = self._numbers()
        x = _gather(data, to_packed, to_padded)
        return x.view(len(lengths), T, -1), torch.from_numpy(lengths)

    def pack(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Packed data (R, ·) of padded x (N, T, ·)."""
        if not _by_numbers(x):
            return _VF._pack_padded_sequence(x, lengths, True)[0]
        to_padded, to_packed, _ = self._numbers()
        return _gather(x.reshape(len(to_packed), -1), to_padded, to_packed)


def _by_numbers(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and bare((x,))
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _gather(x: Tensor, rows: np.ndarray, back: np.ndarray) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        return _Gather.apply(x, rows, back)
    return torch.from_numpy(x.detach().numpy().take(rows, 0))


class _Gather(torch.autograd.Function):
    """Rows of x by their numbers; backwards by those in `back`, since no gradient of a padded row counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: np.ndarray, back: np.ndarray) -> Tensor:
        ctx.rows, ctx.back = rows, back
        return torch.from_numpy(x.numpy().take(rows, 0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _gather(gradient, ctx.back, ctx.rows), None, None
