"""What a forward pass keeps for its backward pass, and the memory that kernels are handed."""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import Any

import numpy as np

# One cache line, and one AVX-512 vector.
ALIGNMENT = 64


class Cache:
    """Opaque result of a forward function; its backward function takes it any number of times.

    Parameters
    ----------
    function : str
        The public function that made it. No other function's backward takes it.
    backend : str
        The backend that ran, and that backward will run on.
    dtype : numpy.dtype
        Floating dtype of the pass, and so of its gradients.
    dims : dict
        Sizes by letter (N, T, D, H, …), against which the gradients are checked.
    kept : object
        What the backend wants back. Inputs are held by reference, as in plain NumPy; outputs never are, so that a
        caller may change a returned array before backward runs.
    """

    __slots__ = ("backend", "dims", "dtype", "function", "kept")

    def __init__(self, function: str, backend: str, dtype: np.dtype, dims: dict[str, int], kept: Any) -> None:
        self.function = function
        self.backend = backend
        self.dtype = dtype
        self.dims = dims
        self.kept = kept

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}={size}" for dim, size in self.dims.items())
        return f"<cache of {self.function}: {sizes}, {self.dtype}, backend {self.backend}>"


class _Pool:
    """Blocks of memory that are used again once nobody refers to them.

    A fresh block of megabytes costs a page fault and a clearing for each of its pages: a tenth of the time of an LSTM
    of moderate size, and two thirds of an Adam step's. The pool sees that a block is free by its reference count, so
    that nobody has to give one back: scratch is free when a call returns, what a cache keeps when the cache is gone, a
    result when its last view is. It holds at most `limit` bytes, dropping what has been free longest.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: list[np.ndarray] = []  # the longest unused first
        self._spans: list[tuple[int, int]] = []  # of each block: its bytes, and the first that starts a cache line
        self._lock = threading.Lock()
        # How many references a block has that only the list holds differs between versions of Python: it is measured.
        self._blocks.append(np.empty(1, np.uint8))
        self._free = self._references(0)
        self._blocks.clear()

    def _references(self, i: int) -> int:
        return sys.getrefcount(self._blocks[i])

    def take(self, size: int) -> tuple[np.ndarray, int]:
        """A block that nobody else refers to, and where in it `size` bytes begin on a cache line."""
        size += ALIGNMENT
        if size < _SMALL or size > self.limit or not _COUNTS_REFERENCES:
            return _fresh(size)
        with self._lock:
            most = size * 3 // 2  # at most a third of a block is wasted
            for i, (held, start) in enumerate(self._spans):
                if size <= held <= most and self._references(i) == self._free:
                    block = self._blocks.pop(i)
                    self._blocks.append(block)
                    self._spans.append(self._spans.pop(i))
                    return block, start
            block, start = _fresh(size)
            self._blocks.append(block)
            self._spans.append((size, start))
            total = sum(held for held, _ in self._spans)
            while total > self.limit:
                total -= self._spans.pop(0)[0]
                self._blocks.pop(0)
            return block, start


def _fresh(size: int) -> tuple[np.ndarray, int]:
    block = np.empty(size, np.uint8)
    return block, -block.__array_interface__["data"][0] % ALIGNMENT


# Where reference counts are exact, that is where there is a global lock, free blocks can be told.
_COUNTS_REFERENCES = getattr(sys, "_is_gil_enabled", lambda: True)() and hasattr(sys, "getrefcount")
_SMALL = 1 << 18


def _pool_limit() -> int:
    """A sixteenth of the machine's memory, at most 1 GiB.

    Two passes of the largest LSTM that is benchmarked, (256, 32, 512, 1024), hold 0.75 GiB: a training loop still has
    the results of the pass before. With 256 MiB a quarter of its forward's time went into clearing fresh pages.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not told by this system
        memory = 4 << 30
    return min(1 << 30, memory // 16)


_pool = _Pool(_pool_limit())


def buffer(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised 1-D array of `count` elements that starts on a cache line."""
    block, start = _pool.take(count * np.dtype(dtype).itemsize)
    return np.ndarray((count,), dtype, block, start)


def empty(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised array for a result: as `numpy.empty`, out of the pool where it is large."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    block, start = _pool.take(size)
    return np.ndarray(shape, dtype, block, start)
