"""Packed sequences as padded ones, for the kernels, and back.

PyTorch's own two functions copy step by step, on its OpenMP threads, and their gradients likewise: at (25, 16, 256,
512) they took as long as a vanilla RNN. Here rows are gathered by their numbers, by NumPy; PyTorch's functions stay for
tensors on a device and for ``torch.compile`` and ``torch.func``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import _VF, Tensor

from .recurrent import bare


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
            sizes = self.batch_sizes.numpy()
            T, N, total = len(sizes), int(sizes[0]), int(sizes.sum())
            step = np.repeat(np.arange(T), sizes)
            sequence = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            to_padded = sequence * T + step
            to_packed = np.zeros(N * T, np.int64)
            to_packed[to_padded] = np.arange(total)
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
