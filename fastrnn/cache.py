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
        # The longest unused first: bytes, the first that starts a cache line, and the block. One list, so that no
        # signal handler that raises, as that of Ctrl-C does, can leave a half of an entry behind.
        self._entries: list[tuple[int, int, np.ndarray]] = []
        # Taken again by a signal handler or a finalizer that calls a kernel while this very thread is in here.
        self._lock = threading.RLock()
        self._taking = False
        # How many references a block has that only the list holds differs between versions of Python: it is measured.
        self._entries.append((1, 0, np.empty(1, np.uint8)))
        self._free = self._references(0)
        self._entries.clear()

    def _references(self, i: int) -> int:
        return sys.getrefcount(self._entries[i][2])

    def take(self, size: int) -> tuple[np.ndarray, int]:
        """A block that nobody else refers to, and where in it `size` bytes begin on a cache line."""
        size += ALIGNMENT
        if size < _SMALL or not _COUNTS_REFERENCES:
            return _fresh(size)
        with self._lock:
            if self._taking:
                return _fresh(size)
            self._taking = True
            try:
                return self._take(size)
            finally:
                self._taking = False

    def _take(self, size: int) -> tuple[np.ndarray, int]:
        most = size * 3 // 2  # at most a third of a block is wasted
        for i, entry in enumerate(self._entries):
            if size <= entry[0] <= most and self._references(i) == self._free:
                self._entries.append(self._entries.pop(i))
                return entry[2], entry[1]
        try:
            block, start = _fresh(size)
        except MemoryError:
            self._drop_free()
            block, start = _fresh(size)
        if size <= self.limit:
            self._entries.append((size, start, block))
            total = sum(entry[0] for entry in self._entries)
            while total > self.limit:
                total -= self._entries.pop(0)[0]
        return block, start

    def _drop_free(self) -> None:
        for i in reversed(range(len(self._entries))):
            if self._references(i) == self._free:
                del self._entries[i]


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


def _forget() -> None:
    """The child of a fork has none of the threads that may have been taking a block: it begins with no blocks."""
    global _pool
    _pool = _Pool(_pool.limit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


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
