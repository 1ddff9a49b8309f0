"""What a forward pass keeps for its backward pass, and the memory that kernels are handed."""

from __future__ import annotations

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


def buffer(count: int, dtype: np.dtype | type) -> np.ndarray:
    """An uninitialised 1-D array of `count` elements that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.empty(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * dtype.itemsize].view(dtype)
