"""Where arrays live: CuPy's on the device, or NumPy's under the simulator; and the compiled module that goes with it.

Importing this raises :class:`fastrnn.arrays.Unavailable` where something is missing, and says what.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import numpy as np

from fastrnn.arrays import HOST, Place, Unavailable

ON_HOST = os.environ.get("FASTRNN_CUDA_ON_HOST") == "1"


def _kernels() -> Any:
    name = "fastrnn._cuda_on_host" if ON_HOST else "fastrnn._cuda"
    try:
        return import_module(name)
    except ModuleNotFoundError:
        how = "cmake -DFASTRNN_CUDA_ON_HOST=ON builds it" if ON_HOST else "no nvcc at install time?"
        what = "the simulator of CUDA kernels was" if ON_HOST else "the CUDA kernels were"
        raise Unavailable(f"{what} not built ({how})") from None


def _cupy() -> Any:
    try:
        cupy = import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise Unavailable(f"CuPy cannot be imported: {error}") from error
        raise Unavailable(
            "CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x for a driver of CUDA 12)"
        ) from None
    except ImportError as error:
        raise Unavailable(f"CuPy cannot be imported: {' '.join(str(error).split())}") from error
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return cupy
        words = "it finds no device"
    except Exception as error:  # CUDA's own words
        words = str(error)
    raise Unavailable(f"no NVIDIA driver or no device here: {words}")


# The compiled kernels, and the namespace of the arrays that they are over. What was not built is said before what was
# not installed.
kernels: Any = _kernels()
xp: Any = np if ON_HOST else _cupy()


def stream() -> int:
    """The caller's current stream, as a number."""
    return 0 if ON_HOST else int(xp.cuda.get_current_stream().ptr)


def isa() -> str:
    """Architecture of the current device: ``"sm_90"``, …"""
    return "simulator" if ON_HOST else f"sm_{xp.cuda.Device().compute_capability}"


def facts() -> dict[str, str]:
    """What the current device is."""
    if ON_HOST:
        return {"device": "simulator on the host", "compute capability": "", "driver": ""}
    current = xp.cuda.Device()
    name = xp.cuda.runtime.getDeviceProperties(current.id)["name"]
    capability, version = str(current.compute_capability), int(xp.cuda.runtime.driverGetVersion())
    return {
        "device": name.decode() if isinstance(name, bytes) else str(name),
        "compute capability": f"{capability[:-1]}.{capability[-1]}",
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
    }


class _Addresses:
    """What NumPy reads of an array that it shall not look into: its address, shape and strides."""

    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            "data": (array.data.ptr, False),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "version": 3,
        }


class Device(Place):
    """The current CUDA device: CuPy's arrays, out of CuPy's memory pool, on CuPy's current stream."""

    on_device = True
    plain = None  # an array may be on another device

    def number(self, value: Any, dtype: np.dtype) -> Any:
        """A 0-d array: reading it would mean waiting for the device."""
        return self.xp.asarray(value).astype(dtype, copy=False)

    def moved(self, array: Any) -> Any:
        """`array` itself if it is on the device, else a copy of it there."""
        return array if isinstance(array, self.xp.ndarray) else self.xp.asarray(array)

    def adopted(self, value: Any) -> Any:
        """A CuPy array of an array of any library on the current device; no copy, and the host does not wait."""
        if isinstance(value, self.xp.ndarray):
            array = value
        elif hasattr(value, "__dlpack__"):  # the streams of the two libraries wait for each other
            array = self.xp.from_dlpack(value)
        else:
            array = self.xp.asarray(value)
        current = self.xp.cuda.runtime.getDevice()
        if array.data.device_id != current:
            raise ValueError(f"an array on device {array.data.device_id}, while device {current} is current")
        return array

    def first_bad_id(self, ids: Any, upper: int) -> int:
        """Position of the first id outside of ``[0, upper)``, or -1: one small copy from the device, waited for."""
        return int(import_module("fastrnn.cuda.embedding").first_bad_id(ids, upper))

    def memory(self, array: Any) -> np.ndarray:
        """An array of the same addresses."""
        return np.asarray(_Addresses(array)) if array.size else np.empty(array.shape, array.dtype)


# Where the kernels' arrays are.
PLACE = HOST if ON_HOST else Device(xp, xp.empty, xp.empty)
