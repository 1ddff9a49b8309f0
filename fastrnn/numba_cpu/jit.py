"""How functions of this column are compiled, and the one form of array that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, njit

# Of fastmath only what lets a * b + c round once: the rest drops the meaning of NaN. No parallel=True: Numba's own
# threading layers survive neither a fork nor calls from several threads (threads.py has ours).
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def jit(function: Callable[..., Any]) -> Any:
    """Compile at first use, once per dtype, and keep the machine code on disk.

    The cache on disk notices changes of a function's own file, but not of what it calls in other files: after editing
    `activations.py`, `products.py` or `recurrent.py`, delete ``fastrnn/numba_cpu/__pycache__``.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no writable folder for the cache: compile in every process
        return njit(**_OPTIONS)(function)


def compile_c(signature: Any, function: Callable[..., None]) -> Any:
    """Compile for a call by address, at once, and keep the machine code on disk."""
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:
        return cfunc(signature)(function)


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order and writable, copied only where it is not.

    Numba compiles anew for each layout and for read-only arrays; with this, twice is all: float32 and float64.
    """
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()
