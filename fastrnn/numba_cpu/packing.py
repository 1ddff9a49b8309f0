"""A padded batch as the rows that are really run, in the order in which they are run.

Sequences are sorted by length, longest first, so that those which still run at a step are a prefix of those that ran at
the step before it. Row ``offsets[s] + r`` of a packed array belongs to the s-th step that sequence ``order[r]`` runs.
All rows of a step are then one matrix, and so are all rows of all steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """Where each row of a padded (N, T, ·) batch is in a packed (rows, ·) array.

    Attributes
    ----------
    order : (N,) int64, the sequences by falling length; those of one length in their own order
    lengths : (N,) int64, the lengths in that order
    offsets : (T + 1,) int64, first packed row of each step; the last is the number of rows
    reverse : each sequence is run from its last step to its first
    """

    order: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    reverse: bool

    @classmethod
    def of(cls, N: int, T: int, lengths: np.ndarray | None, reverse: bool) -> Packing:
        if lengths is None:
            return cls(_range(N), np.full(N, T, np.int64), N * _range(T + 1), bool(reverse))
        order = np.argsort(-lengths, kind="stable")
        counts = N - np.searchsorted(np.sort(lengths), _range(T), side="right")  # sequences longer than each step
        offsets = np.zeros(T + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(order.astype(np.int64, copy=False), lengths[order], offsets, bool(reverse))

    @property
    def rows(self) -> int:
        return int(self.offsets[-1])

    def pack(self, part: int, parts: int, padded: np.ndarray, packed: np.ndarray) -> None:
        """Copy the rows that are run from `padded` (N, T, D), of any strides, to `packed` (rows, D): a part of them."""
        N, T, D = padded.shape
        if self.rows == N * T:
            steps = padded[:, ::-1] if self.reverse else padded
            some = slice(part * T // parts, (part + 1) * T // parts)
            packed.reshape(T, N, D)[some] = steps.transpose(1, 0, 2)[some]
        else:
            some = slice(part * self.rows // parts, (part + 1) * self.rows // parts)
            sequence, step = self._places()
            packed[some] = padded[sequence[some], step[some]]

    def unpack(self, packed: np.ndarray, padded: np.ndarray) -> None:
        """Copy `packed` (rows, D) to its places in `padded` (N, T, D), and zero to all others."""
        N, T, D = padded.shape
        if self.rows == N * T:
            steps = padded[:, ::-1] if self.reverse else padded
            steps[...] = packed.reshape(T, N, D).transpose(1, 0, 2)
        else:
            padded[...] = 0
            padded[self._places()] = packed

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Sequence and time step of every packed row."""
        step = np.repeat(_range(len(self.offsets) - 1), np.diff(self.offsets))
        rank = _range(self.rows) - self.offsets[step]
        return self.order[rank], self.lengths[rank] - 1 - step if self.reverse else step


def _range(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)  # by default it is int32 on some systems
