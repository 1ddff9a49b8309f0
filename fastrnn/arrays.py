"""Where arrays live: NumPy's in the computer's memory, CuPy's on a CUDA device.

The arrays of a call are all in one place. CuPy is not imported here, nor before an array on a device
or backend ``cuda`` was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from fastrnn import cache

# What DLPack calls memory of a CUDA device, and memory that it shares with the host.
_DLPACK_CUDA = (2, 13)
_NEVER_ON_DEVICE = (np.ndarray, np.generic, list, tuple, int, float, type(None))


class Unavailable(Exception):
    """Why a backend cannot run, in words for the user."""


class Place:
    """Where the arrays of a call live, and what makes arrays there.

    Attributes
    ----------
    xp : module
        Namespace of its arrays: ``numpy`` or ``cupy``.
    plain : type or None
        Arrays of exactly this type need no look at where they are.
    on_device : bool
        Whether it is a CUDA device.
    empty, buffer : callable
        ``empty(shape, dtype)`` and ``buffer(count, dtype)``: uninitialised arrays for results and for scratch.
    """

    on_device = False
    plain: Any = np.ndarray

    def __init__(self, xp: ModuleType, empty: Callable[..., Any], buffer: Callable[..., Any]) -> None:
        self.xp: Any = xp
        self.empty = empty
        self.buffer = buffer

    def number(self, value: Any, dtype: np.dtype) -> Any:
        """A result that is one number: a NumPy scalar; on a device a 0-d array, since reading it would mean waiting."""
        return dtype.type(value)

    def moved(self, array: Any) -> Any:
        """An array of either place as one of this place."""
        return array

    def adopted(self, value: Any) -> Any:
        """An array of any library that lives here as one of `xp`, without a copy."""
        raise NotImplementedError

    def first_bad_id(self, ids: Any, upper: int) -> int:
        """Position in the flat `ids` of the first outside of ``[0, upper)``, or -1; reads it back from a device."""
        raise NotImplementedError

    def memory(self, array: Any) -> np.ndarray:
        """An array that lies where `array` does, for questions about addresses; its elements cannot be looked at."""
        return np.asarray(array)


HOST = Place(np, cache.empty, cache.buffer)


def device() -> Place:
    """The place of backend ``cuda``: a CUDA device, or the host where the simulator stands for one."""
    place: Place = import_module("fastrnn.cuda.arrays").PLACE
    return place


def on_device(value: Any) -> bool:
    """Whether `value` is an array on a CUDA device, of whichever library: DLPack or the CUDA array interface tells."""
    if isinstance(value, _NEVER_ON_DEVICE):
        return False
    try:
        where = getattr(value, "__dlpack_device__", None)
        # DLPack first: PyTorch's tensors raise for the other one while they ask for gradients.
        return where()[0] in _DLPACK_CUDA if where is not None else hasattr(value, "__cuda_array_interface__")
    except Exception:  # neither is told: whoever takes the array next will say what is wrong with it
        return False


def place_of(value: Any) -> Place:
    """Where an array lives."""
    return device() if on_device(value) else HOST


def to_host(value: Any) -> Any:
    """A NumPy array of one on a device, which is waited for; anything else is returned as it is."""
    if not on_device(value):
        return value
    place = device()
    return place.xp.asnumpy(place.adopted(value))
