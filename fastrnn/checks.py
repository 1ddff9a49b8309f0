"""Argument checks: every argument error of the library is worded here.

Each public function opens one :class:`Arguments`, which learns the sizes of named dimensions from the arrays that it
is shown and holds every later array against them, so that a message can say what was expected, why, and what came.
Arrays leave with one floating dtype, in native byte order and aligned; strides are kept, and nothing is copied that
is right already.

All arrays of a call are in one place, in the computer's memory or on a CUDA device: whatever is elsewhere is an error,
and nothing is moved but what is small and looked at on the host anyway. Ids, masks and lengths may be NumPy arrays in a
call on a device.
"""

from __future__ import annotations

import math
import operator
import re
from functools import lru_cache
from typing import Any

import numpy as np

from fastrnn.arrays import HOST, Place, on_device, to_host
from fastrnn.backend import get_backend
from fastrnn.cache import Cache

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
WITH_HALVES = (np.dtype(np.float16), *FLOATS)


@lru_cache(maxsize=256)
def _pattern(text: str) -> tuple[tuple[int, str], ...]:
    """``"D 4H"`` as ``((1, "D"), (4, "H"))``."""
    axes = []
    for token in text.removesuffix("?").split():
        match = re.fullmatch(r"(\d*)([A-Z]\w*)", token)
        assert match, f"a pattern of dimensions cannot hold {token!r}"
        axes.append((int(match[1] or 1), match[2]))
    return tuple(axes)


def _type_name(value: Any) -> str:
    """``cupy.ndarray``, ``torch.Tensor``, ``list``."""
    kind = type(value)
    if kind is np.ndarray:
        return "NumPy array"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def is_whole(value: Any) -> bool:
    """Whether a value is one whole number, NumPy's and PyTorch's among them, and no truth value."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return False
    if getattr(value, "ndim", 0):  # arrays of one element have an index for some libraries
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _tuple_text(parts: list[str]) -> str:
    return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"


class Arguments:
    """The arguments of one call.

    Parameters
    ----------
    function : str
        Name of the public function, which opens every message.
    dims : dict, optional
        Sizes known beforehand (those of the forward pass, say).
    source : str, optional
        Where those sizes come from.
    place : Place, optional
        Where the arrays of the call live.
    halves : bool, optional
        Whether the kernels of the call take float16 too.
    """

    __slots__ = ("dims", "dtypes", "function", "place", "plain", "sources")

    def __init__(
        self,
        function: str,
        dims: dict[str, int] | None = None,
        source: str = "the forward pass",
        place: Place = HOST,
        halves: bool = False,
    ) -> None:
        self.function = function
        self.dtypes = WITH_HALVES if halves else FLOATS
        self.place = place
        self.plain = place.plain
        self.dims: dict[str, int] = dict(dims or {})
        self.sources: dict[str, str] = dict.fromkeys(self.dims, source)

    def fail(self, error: type[Exception], name: str, expected: str, actual: str) -> Exception:
        """The exception for argument `name`, to be raised by the caller."""
        return error(f"{self.function}: argument '{name}' must {expected}, got {actual}")

    def __getitem__(self, dim: str) -> int:
        return self.dims[dim]

    # ---- where arrays are ------------------------------------------------------------------------------------------

    def array(self, name: str, value: Any) -> Any:
        """`value` as an array in the place of the call."""
        if self.place.on_device:
            return self._adopted(name, value)
        if on_device(value):
            expected = "be an array in the computer's memory, where this call's are (cupy.asnumpy copies it there)"
            setting = get_backend()
            if setting != "auto":
                expected = f"be an array in the computer's memory, where backend {setting!r} computes"
            raise self.fail(TypeError, name, expected, f"a {_type_name(value)} on a CUDA device")
        try:
            return np.asarray(value)
        except ValueError as error:
            raise self.fail(ValueError, name, "be an array of numbers", f"a ragged {type(value).__name__}") from error
        except Exception as error:  # an array of another library can raise anything, and often says what to do instead
            actual = f"{type(value).__name__}, which NumPy cannot read: {error}"
            raise self.fail(TypeError, name, "be an array of numbers", actual) from error

    def _adopted(self, name: str, value: Any) -> Any:
        """An array that is on the device, as CuPy's."""
        if not on_device(value):
            expected = "be an array on the CUDA device, where this call computes (cupy.asarray copies it there)"
            raise self.fail(TypeError, name, expected, f"a {_type_name(value)}")
        try:
            return self.place.adopted(value)
        except Exception as error:  # it is on another device, or its library does not hand it out, and says why
            actual = " ".join(f"a {_type_name(value)}: {error}".split())
            raise self.fail(ValueError, name, "be an array on the current CUDA device", actual) from error

    def either(self, name: str, value: Any) -> Any:
        """`value` as an array in the computer's memory, or also on the device if the call is there."""
        if self.place.on_device and not on_device(value):
            return Arguments(self.function).array(name, value)
        return self.array(name, value)

    # ---- floating arrays -------------------------------------------------------------------------------------------

    def raw(self, name: str, value: Any) -> Any:
        """`value` as an array of real numbers, its dtype not yet settled."""
        if type(value) is self.plain and value.dtype in self.dtypes and value.dtype.isnative:
            return value
        array = self.array(name, value)
        if array.dtype.kind not in "fiub":
            raise self.fail(TypeError, name, "be an array of real numbers", self._kind(value, array))
        if array.dtype.kind == "f" and array.dtype.newbyteorder("=") not in self.dtypes:
            *names, last = (dtype.name for dtype in self.dtypes)
            raise self.fail(TypeError, name, f"have dtype {', '.join(names)} or {last}", f"dtype {array.dtype}")
        return array

    def floats(self, *named: tuple[str, Any, str], dtype: np.dtype | None = None) -> list[Any]:
        """Arrays ``(name, value, pattern)`` with their shapes checked, all in one dtype.

        That dtype is `dtype` or else what NumPy's promotion makes of the arrays' dtypes; where all are integers,
        float64. Where the pattern ends in ``?``, ``None`` may be given, and stays ``None``.
        """
        arrays = [
            None if value is None and pattern.endswith("?") else self.raw(name, value) for name, value, pattern in named
        ]
        for (name, _, pattern), array in zip(named, arrays, strict=True):
            if array is not None:
                self.shape(name, array.shape, pattern)
        if dtype is None:
            dtype = np.result_type(*{array.dtype for array in arrays if array is not None})
            if dtype not in self.dtypes:
                dtype = np.dtype(np.float64)
        return [array if array is None else self.settle(array, dtype) for array in arrays]

    def destination(
        self, name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, other_name: str, other: np.ndarray
    ) -> None:
        """Hold an array that is written to against what it must be; it may share no memory with `other`."""
        if not isinstance(value, self.place.xp.ndarray):
            library = "CuPy" if self.place.on_device else "NumPy"
            raise self.fail(TypeError, name, f"be a {library} array, which is written to", _type_name(value))
        if value.shape != shape:
            raise self.fail(ValueError, name, f"have shape {shape}", f"shape {value.shape}")
        if value.dtype != dtype:
            raise self.fail(TypeError, name, f"have dtype {dtype}", f"dtype {value.dtype}")
        if not self.place.on_device and not value.flags.writeable:  # CuPy's all are
            raise self.fail(ValueError, name, "be writeable", "a read-only array")
        if not value.flags.c_contiguous and self._overlaps_itself(value):
            raise self.fail(ValueError, name, "have each element in a place of its own", f"strides {value.strides}")
        if self._share_memory(self.place.memory(value), self.place.memory(other)):
            raise self.fail(ValueError, name, f"share no memory with '{other_name}'", "an overlapping array")

    @staticmethod
    def _overlaps_itself(a: np.ndarray) -> bool:
        """Also True for the oddest arrays that as_strided can make without an overlap."""
        room = a.itemsize
        for stride, size in sorted((abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True)):
            if size > 1 and stride < room and a.size:
                return True
            room = max(room, stride * size)
        return False

    @staticmethod
    def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
        try:
            return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:  # assume the worst
            return True

    def settle(self, array: Any, dtype: np.dtype) -> Any:
        """`array` in `dtype`, native byte order and aligned: itself, or a copy where it is not so already."""
        if array.dtype == dtype and array.dtype.isnative and (self.place.on_device or array.flags.aligned):
            # A stride that is no multiple of the item (a field of a packed record) cannot be counted in elements.
            if array.flags.c_contiguous or all(stride % array.itemsize == 0 for stride in array.strides):
                return array
        return self.place.xp.array(array, dtype=dtype.newbyteorder("="), order="C")

    def shape(self, name: str, shape: tuple[int, ...], pattern: str) -> None:
        """Hold `shape` against `pattern`, learning the dimensions that are new."""
        axes = _pattern(pattern)
        if len(shape) != len(axes):
            raise self._mismatch(name, shape, axes)
        for size, (factor, dim) in zip(shape, axes, strict=True):
            known = self.dims.get(dim)
            if known is None:
                if size % factor:
                    raise self._mismatch(name, shape, axes)
                self.dims[dim] = size // factor
                self.sources[dim] = name
            elif size != factor * known:
                raise self._mismatch(name, shape, axes)

    def _mismatch(self, name: str, shape: tuple[int, ...], axes: tuple[tuple[int, str], ...]) -> Exception:
        """The exception for a `shape` that does not fit."""
        text = _tuple_text([(str(factor) if factor > 1 else "") + dim for factor, dim in axes])
        if len(shape) != len(axes):
            actual = f"shape {shape} ({len(shape)}-dimensional)"
            return self.fail(ValueError, name, f"be {len(axes)}-dimensional, {text}", actual)
        for size, (factor, dim) in zip(shape, axes, strict=True):
            if dim not in self.dims and size % factor:
                wrong = f"shape {shape}: {size} is no multiple of {factor}"
                return self.fail(ValueError, name, f"have shape {text}", wrong)
        want = _tuple_text([str(factor * self.dims[dim]) if dim in self.dims else dim for factor, dim in axes])
        given = [dim for _, dim in axes if self.sources.get(dim, name) != name]
        why = ", ".join(dict.fromkeys(f"{dim} from {self.sources[dim]}" for dim in given))
        return self.fail(
            ValueError, name, f"have shape {text} = {want}" + (f" ({why})" if why else ""), f"shape {shape}"
        )

    @staticmethod
    def _kind(value: Any, array: Any) -> str:
        if isinstance(value, type(array)):
            return f"dtype {array.dtype}"
        return f"{type(value).__name__} (dtype {array.dtype})"

    # ---- integers --------------------------------------------------------------------------------------------------

    def ids(self, name: str, value: Any, upper: int, of: str, where: Any = None) -> Any:
        """Integer indices in ``[0, upper)`` as int64; with `where`, only the positions that it marks are looked at.

        On a device the position of the first one outside is read back, which waits for the device; where ids and
        `where` are NumPy arrays they are checked before they are moved, and nothing is waited for.

        Parameters
        ----------
        of : str
            What the indices point into, for the message (``"the V = 1004 rows of W"``).
        """
        array = self.either(name, value)
        if array.dtype.kind not in "iu":
            if array.size or array.dtype.kind not in "f" or isinstance(value, type(array)):
                raise self.fail(TypeError, name, "hold integers", self._kind(value, array))
        if array.size:
            both_on_host = type(array) is np.ndarray and (where is None or type(where) is np.ndarray)
            if not self.place.on_device or both_on_host:
                position = self._first_bad_id(array, upper, where)
            else:
                array = self.place.moved(array)
                position = self._first_bad_id_on_device(array, upper, where)
            if position is not None:
                at = "" if array.ndim == 0 else f" at position {position if array.ndim > 1 else position[0]}"
                raise self.fail(IndexError, name, f"hold ids in [0, {upper}), {of}", f"{int(array[position])}{at}")
        return self.place.moved(array.astype(np.int64))

    @staticmethod
    def _first_bad_id(array: np.ndarray, upper: int, where: np.ndarray | None) -> tuple[int, ...] | None:
        low, high = (array.min(), array.max()) if where is None else (-1, 0)
        if low >= 0 and high < upper:
            return None
        bad = (array < 0) | (array >= upper)
        if where is not None:
            bad &= where
        return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None

    def _first_bad_id_on_device(self, array: Any, upper: int, where: Any) -> tuple[int, ...] | None:
        ids = array.astype(np.int64).reshape(-1)  # unsigned ones beyond its range become negative
        if where is not None:  # id 0 stands where it does not matter which; of no words none may be counted
            counted = self.place.moved(where).reshape(-1)
            ids = self.place.xp.where(counted, ids if upper else -1, 0)
            upper = max(upper, 1)
        first = self.place.first_bad_id(ids, upper)
        return None if first < 0 else tuple(int(i) for i in np.unravel_index(first, array.shape))

    def mask(self, name: str, value: Any) -> Any:
        """An array of booleans, or of numbers that are all 0 or 1; on the host or the device, as it was given."""
        array = self.either(name, value)
        if array.dtype.kind != "b":
            if array.dtype.kind not in "iuf" or not bool(((array == 0) | (array == 1)).all()):
                raise self.fail(TypeError, name, "be boolean, or all 0 and 1", f"dtype {array.dtype}")
            array = array.astype(bool)
        return array

    def lengths(self, value: Any, name: str = "lengths") -> Any:
        """Numbers of valid steps ``(N,)`` between 0 and T as int64, or None.

        They are looked at on the host: those on a device are read back once, which waits for the device.
        """
        if value is None:
            return None
        array = to_host(self.either(name, value))
        if array.dtype.kind not in "iu" and array.size:
            raise self.fail(TypeError, name, "hold integers", self._kind(value, array))
        self.shape(name, array.shape, "N")
        steps = self.dims["T"]
        bad = (array < 0) | (array > steps)
        if bad.any():
            position = int(np.argmax(bad))
            raise self.fail(
                ValueError, name, f"lie between 0 and T = {steps}", f"{array[position]} at position {position}"
            )
        return self.place.moved(np.require(array, np.int64, ("C", "A")))

    # ---- single values ---------------------------------------------------------------------------------------------

    def number(self, name: str, value: Any) -> float:
        """A real number as a Python float."""
        if on_device(value):  # float() would wait for it
            actual = f"a {_type_name(value)} on a CUDA device"
            raise self.fail(TypeError, name, "be a number in the computer's memory", actual)
        array = Arguments(self.function).array(name, value)
        if array.dtype.kind not in "fiub":
            raise self.fail(TypeError, name, "be a real number", self._kind(value, array))
        if array.size != 1:
            raise self.fail(ValueError, name, "be a single number", f"shape {array.shape}")
        return float(array.reshape(())[()])

    def finite(self, name: str, value: Any, above: bool = False) -> float:
        """A real number of at least 0, or above it, that is not infinite."""
        number = self.number(name, value)
        if not (0 < number if above else 0 <= number) or number == math.inf:
            raise self.fail(ValueError, name, f"be finite and {'above' if above else 'at least'} 0", f"{number:g}")
        return number

    def whole(self, name: str, value: Any, least: int | None = 1) -> int:
        """A whole number of at least 1, or what `least` says; None: any."""
        if not is_whole(value):
            shown = _type_name(value)
            if isinstance(value, (bool, float)):
                shown = f"{value!r} ({shown})"
            raise self.fail(TypeError, name, "be a whole number", shown)
        number = operator.index(value)
        if least is not None and number < least:
            raise self.fail(ValueError, name, f"be at least {least}", str(number))
        return number

    def flag(self, name: str, value: Any) -> bool:
        """True or False; anything else is likelier a misplaced argument than a truth value."""
        if not isinstance(value, (bool, np.bool_)):
            actual = repr(value) if np.isscalar(value) else type(value).__name__
            raise self.fail(TypeError, name, "be True or False", actual)
        return bool(value)

    def choice(self, name: str, value: Any, allowed: tuple[str, ...]) -> str:
        """One of the `allowed` words."""
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(ValueError, name, f"be one of {', '.join(map(repr, allowed))}", repr(value))
        return value

    def cache(self, value: Any, made_by: str) -> Cache:
        """The cache that `made_by` returned."""
        if not isinstance(value, Cache):
            raise self.fail(TypeError, "cache", f"be the cache that {made_by} returned", type(value).__name__)
        if value.function != made_by:
            raise self.fail(
                ValueError, "cache", f"be the cache that {made_by} returned", f"one that {value.function} returned"
            )
        return value
