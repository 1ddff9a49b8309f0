"""The backends, in the order in which ``"auto"`` tries them; which one is set, and which one ran last.

A backend is a column of the grid: one set of kernels for every operation. Where a column has no kernel of its own for
an operation (`EMPTY`), one call of NumPy or CuPy is the best kernel, and the table falls through to the reference.

The arrays decide between the host and the device: under ``"auto"``, arrays on a CUDA device run on ``cuda``, all others
on the first backend before it.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar, Token
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import HOST, Place, Unavailable, device, on_device
from fastrnn.cache import Cache


def _load_cpu(row: str) -> ModuleType:
    module = import_module("fastrnn._cpu")
    module.set_num_threads(_threads)
    module.set_precision(_precision)
    return module


def _load_numba(row: str) -> ModuleType:
    return import_module(f"fastrnn.numba_cpu.{row}")


def _load_cuda(row: str) -> ModuleType:
    return import_module(f"fastrnn.cuda.{row}")


def _load_reference(row: str) -> ModuleType:
    return import_module(f"fastrnn.reference.{row}")


class Column(NamedTuple):
    """A row of the table: a backend's name, how its kernels are loaded, and what must import for it to run."""

    name: str
    load: Callable[[str], ModuleType]
    needs: str
    missing: str


TABLE = (
    Column("cpu", _load_cpu, "fastrnn._cpu", "the C++ kernels were not built (no C++ compiler at install time?)"),
    Column("numba", _load_numba, "numba", "Numba is not installed (pip install numba)"),
    Column("reference", _load_reference, "fastrnn.reference", ""),
    Column("cuda", _load_cuda, "fastrnn.cuda.arrays", ""),  # which says itself what is missing
)
COLUMNS = {column.name: column for column in TABLE}

# (backend, operation) -> why there is no kernel. tests/test_layout.py holds the tree against this.
EMPTY: dict[tuple[str, str], str] = {
    ("cuda", "affine"): "CuPy's product, which is cuBLAS's, is the best kernel already: the reference on CuPy arrays",
}


class LastBackend(str):
    """Name of the backend that ran last in this thread, with what else is to be known about that run.

    Attributes
    ----------
    function : str
        The public function that ran.
    isa : str
        Instruction set of the kernel (``"avx512"``, …), or architecture of the CUDA device (``"sm_90"``); ``""`` where
        the backend has no say in it.
    precision : str
        Precision of float32 products.
    threads : int
        Threads that took part; 0 where the backend cannot tell, since NumPy or a BLAS library decides.
    path : str
        How backend ``cuda`` ran the steps of a recurrent layer, as its kernels say; ``""`` elsewhere.
    """

    function: str
    isa: str
    precision: str
    threads: int
    path: str

    def __new__(cls, name: str, function: str, isa: str, precision: str, threads: int, path: str = "") -> LastBackend:
        self = super().__new__(cls, name)
        self.function, self.isa, self.precision, self.threads, self.path = function, isa, precision, threads, path
        return self

    def __repr__(self) -> str:
        return (
            f"<{self.function} ran on {str(self)!r}: isa={self.isa or '-'}, "
            f"precision={self.precision}, threads={self.threads or '-'}{f', path={self.path}' if self.path else ''}>"
        )


class Chosen:
    """What was picked for one call: the backend, its kernels of the row, and where its arrays live.

    Attributes
    ----------
    name : str
        The backend whose kernels run: the reference where the cell is empty.
    column : str
        The backend that was picked.
    kernels : module
        With the functions of the row.
    place : Place
        Where the arrays live, in whose namespace `xp`; `empty`, `buffer` and `number` are its own.
    """

    __slots__ = ("buffer", "column", "empty", "is_reference", "kernels", "name", "number", "place", "xp")

    def __init__(self, name: str, column: str, kernels: Any, place: Place) -> None:
        self.name, self.column, self.kernels, self.place = name, column, kernels, place
        self.is_reference = name == "reference"
        self.xp, self.empty, self.buffer, self.number = place.xp, place.empty, place.buffer, place.number


_reasons: dict[str, str] = {}
_chosen: dict[tuple[str, str], Chosen] = {}
_setting: backend | None = None  # None: not set since the start; FASTRNN_BACKEND decides
_override: ContextVar[str | None] = ContextVar("fastrnn_backend", default=None)
_local = threading.local()
_warned = False


def _reason(name: str) -> str:
    """Why a backend cannot run; empty if it can."""
    if name not in _reasons:
        column = COLUMNS[name]
        try:
            import_module(column.needs)
            _reasons[name] = ""
        except ModuleNotFoundError:
            _reasons[name] = column.missing
        except Unavailable as reason:
            _reasons[name] = str(reason)
        except Exception as error:  # a broken install can raise anything; the reason is reported, never lost
            _reasons[name] = f"{type(error).__name__}: {error}"
    return _reasons[name]


def _checked(name: Any, where: str) -> str:
    known = ("auto", *COLUMNS)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{where} must be one of {', '.join(map(repr, known))}, got {name!r}")
    if name != "auto" and _reason(name):
        raise RuntimeError(f"{where}: backend {name!r} cannot run here: {_reason(name)}")
    return name


class backend:
    """Set the backend: for the process, or with ``with`` for a block of this thread (or async task) only.

    Parameters
    ----------
    name : {"auto", "cpu", "numba", "reference", "cuda"}
        ``"auto"`` picks ``cuda`` for arrays on a CUDA device, and for all others the first of the rest that runs here.
        The environment variable ``FASTRNN_BACKEND`` gives the initial one.

    Raises
    ------
    ValueError
        The name is unknown.
    RuntimeError
        The backend cannot run here; the message says why. There is no silent fallback for a backend asked by name.

    Examples
    --------
    >>> import fastrnn
    >>> with fastrnn.backend("reference"):
    ...     h, cache = fastrnn.rnn_forward([[[1.0]]], [[0.0]], [[1.0]], [[1.0]], [0.0])
    >>> print(fastrnn.last_backend())
    reference

    Notes
    -----
    No backend moves arrays between the computer's memory and a device: under ``"cuda"`` NumPy arrays are a `TypeError`
    (``cupy.asarray`` moves them), under every other name arrays on a device are.
    """

    def __init__(self, name: str) -> None:
        global _setting
        self.name = _checked(name, "backend: argument 'name'")
        self._before = _setting
        self._token: Token[str | None] | None = None
        _setting = self

    def __enter__(self) -> backend:
        global _setting
        # What was set for the process becomes a setting of the block. In between, other threads could see it; what they
        # set themselves stands.
        if _setting is self:
            _setting = self._before
        self._token = _override.set(self.name)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._token is not None
        _override.reset(self._token)
        self._token = None

    def __repr__(self) -> str:
        return f"fastrnn.backend({self.name!r})"


def get_backend() -> str:
    """Name of the backend that is set (``"auto"`` unless one was asked for)."""
    name = _override.get() or (_setting.name if _setting else None)
    if name is None:
        name = _checked(os.environ.get("FASTRNN_BACKEND") or "auto", "environment variable FASTRNN_BACKEND")
    return name


def backend_status() -> dict[str, str]:
    """Every backend with the reason why it cannot run here; an empty reason where it can."""
    return {name: _reason(name) for name in COLUMNS}


def available_backends() -> tuple[str, ...]:
    """Names of the backends that run here, in the order in which ``"auto"`` tries them."""
    return tuple(name for name in COLUMNS if not _reason(name))


def _kernels(name: str, row: str) -> Chosen:
    chosen = _chosen.get((name, row))
    if chosen is None:
        ran = "reference" if (name, row) in EMPTY else name
        place = device() if name == "cuda" else HOST
        chosen = _chosen[name, row] = Chosen(ran, name, COLUMNS[ran].load(row), place)
    return chosen


def choose(row: str, array: Any = None) -> Chosen:
    """The kernels of operation `row` under the present setting, for a call on `array`.

    One floating array decides for all of them: checks.py has them all in one place.
    """
    global _warned
    name = get_backend()
    if name == "auto" and type(array) is not np.ndarray and on_device(array):
        name = "cuda"
        if _reason(name):
            raise RuntimeError(f"arrays on a CUDA device need backend {name!r}, which cannot run here: {_reason(name)}")
    elif name == "auto":
        name = next(name for name in COLUMNS if not _reason(name))
        if name != TABLE[0].name:
            if os.environ.get("FASTRNN_ISA"):  # asked for by name: no other kernels instead
                raise RuntimeError(f"backend {TABLE[0].name!r} cannot run here: {_reason(TABLE[0].name)}")
            if not _warned:
                _warned = True
                warnings.warn(
                    f"fastrnn runs on {name!r}: {_reason(TABLE[0].name)}", RuntimeWarning, stacklevel=_callers_level()
                )
    return _kernels(name, row)


def _callers_level() -> int:
    """The `stacklevel` at which a warning of the function that asks names the line that called fastrnn."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fastrnn":
        level, frame = level + 1, frame.f_back
    return level


def follow(row: str, function: str, cache: Cache) -> Chosen:
    """The kernels that made `cache`; another backend set by name is an error, since caches are not exchangeable."""
    name = get_backend()
    if name not in ("auto", cache.backend):
        raise ValueError(
            f"{function}: argument 'cache' was made by backend {cache.backend!r}, but backend {name!r} is set; "
            f"run the forward pass under {name!r} too, or set backend('auto')"
        )
    return _kernels(cache.backend, row)


def rouse(chosen: Chosen, operations: float) -> None:
    """Wake the C++ workers for a call of so many operations, while its arguments are still being checked."""
    if chosen.name == "cpu":
        chosen.kernels.rouse(operations)


def product_operations(x: Any, W: Any) -> float:
    """Floating-point operations of ``x @ W``; 0 where they are not arrays, whose sizes are not worth finding out."""
    return 2.0 * x.size * W.shape[-1] if type(x) is np.ndarray and type(W) is np.ndarray and W.ndim else 0.0


def ran(function: str, chosen: Chosen, products: np.dtype | None = None, dims: dict[str, int] | None = None) -> None:
    """Note for :func:`last_backend` what ran; `products` is the dtype of products that follow the precision set, and
    `dims` are the sizes of a recurrent layer."""
    used, precision = getattr(chosen.kernels, "threads_used", None), "highest"
    threads = used() if used else 0
    if _precision != "highest" and products == np.float32 and chosen.name == "cpu":
        precision = _precision if chosen.kernels.has_precision(_precision) else "highest"
    elif products == np.float32 and chosen.name == "cuda":
        told = getattr(chosen.kernels, "precision_used", None)
        precision = told() if told else _precision
    _local.last = (chosen, function, precision, threads, products, dims)


def last_backend() -> LastBackend | None:
    """What ran the last operation of this thread: the backend's name, with ``.function``, ``.isa``, ``.precision``,
    ``.threads`` and ``.path``; None before the first operation."""
    last = getattr(_local, "last", None)
    if last is None:
        return None
    chosen, function, precision, threads, products, dims = last
    isa, path = chosen.kernels.isa() if chosen.name == "cpu" else "", ""
    if chosen.name == "cuda":
        isa = sys.modules["fastrnn.cuda.arrays"].isa()
        if dims is not None:
            path = chosen.kernels.chose(dims["N"], dims.get("T", 1), dims["D"], dims["H"], products.itemsize)
    return LastBackend(chosen.name, function, isa, precision, threads, path)


# ---- precision -----------------------------------------------------------------------------------------------------

PRECISIONS = ("highest", "high", "medium")


def _initial_precision() -> str:
    name = os.environ.get("FASTRNN_FLOAT32_MATMUL_PRECISION") or "highest"
    if name not in PRECISIONS:
        known = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"environment variable FASTRNN_FLOAT32_MATMUL_PRECISION must be one of {known}, got {name!r}")
    return name


_precision = _initial_precision()


def set_float32_matmul_precision(precision: str) -> None:
    """Set how float32 matrix products inside of recurrent layers may be computed; PyTorch's words for the same choice.

    Parameters
    ----------
    precision : {"highest", "high", "medium"}
        ``"highest"``, the default: float32 throughout. ``"high"``: each operand of a product is split into the sum of
        two bfloat16 numbers (16 bits of mantissa), and three products, without that of the two lesser parts, are
        summed in float32 (``amx``; elsewhere float32 itself is as fast). ``"medium"``: operands are rounded to bfloat16
        (8 bits of mantissa) and their products summed in float32 (``avx512_bf16``, ``amx``). Gates, states, sums and
        everything that is returned stay float32. Where the instruction set has no such products it is ``"highest"``;
        :func:`last_backend` tells in its ``precision`` which one ran. The environment variable
        ``FASTRNN_FLOAT32_MATMUL_PRECISION`` gives the initial setting.

    Raises
    ------
    ValueError
        The word is none of these.

    Notes
    -----
    It holds for the process, for :func:`rnn_forward`, :func:`lstm_forward`, :func:`gru_forward`, their step functions
    and their backward passes on the ``cpu`` backend; float64 is never affected. The error of both obeys the
    tolerance rule of every kernel, ``2 * error of the oracle + 4 * eps * max|exact|``, with the oracle's own products
    of operands rounded or split likewise, and eps = 2^-7 for ``"medium"``, 2^-16 for ``"high"``.

    Numbers from 3.39e38 on (the largest float32 is 3.40e38) round to an infinity, and denormal ones to zero.

    On backend ``cuda`` tensor cores multiply: ``"high"`` rounds the operands of products to TF32 (10 bits of mantissa;
    eps = 2^-10, and the oracle rounds likewise), ``"medium"`` to bfloat16.
    """
    global _precision
    if not isinstance(precision, str) or precision not in PRECISIONS:
        known = ", ".join(map(repr, PRECISIONS))
        raise ValueError(
            f"set_float32_matmul_precision: argument 'precision' must be one of {known}, got {precision!r}"
        )
    _precision = precision
    if not _reason("cpu"):
        _load_cpu("")


def get_float32_matmul_precision() -> str:
    """The precision that was asked for; what ran is in :func:`last_backend`."""
    return _precision


# ---- threads -------------------------------------------------------------------------------------------------------


def _cpus() -> int:
    """CPUs this process may use: its affinity, and the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # no such file: not Linux, or no quota
    return count


def _initial_threads() -> int:
    text = os.environ.get("FASTRNN_NUM_THREADS")
    if not text:
        return _cpus()
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"environment variable FASTRNN_NUM_THREADS must be a whole number >= 1, got {text!r}")
    return int(text)


_threads = _initial_threads()


def set_num_threads(n: int) -> None:
    """Set the most threads that a kernel may use; small problems use fewer, and results are the same with any number.

    Parameters
    ----------
    n : int
        At least 1. The default is the number of CPUs that this process may use, or ``FASTRNN_NUM_THREADS``.

    Notes
    -----
    The threads are one team, which sleeps between calls. A call that finds it at work for another Python thread runs on
    its own thread alone, and so does one to which the system gives no more threads; the child of a fork makes its own.

    A kernel runs to its end: what Ctrl-C and other signals raise in Python is raised after it, its results are lost,
    and the next call is as any other. Threads of the team take no signals, so that a program can wait for one.
    """
    global _threads
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"set_num_threads: argument 'n' must be an int, got {type(n).__name__}")
    if n.__index__() < 1:
        raise ValueError(f"set_num_threads: argument 'n' must be at least 1, got {n}")
    _threads = n.__index__()
    if not _reason("cpu"):
        _load_cpu("")


def get_num_threads() -> int:
    """The most threads that a kernel may use."""
    return _threads
