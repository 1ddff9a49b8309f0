"""A stand-in for CuPy and a CUDA device, in the computer's memory: what runs on CuPy's arrays can be run without a GPU.

Its arrays are not NumPy's and do not become NumPy's by themselves: `numpy.asarray`, `numpy.sum` and the like raise, as
does arithmetic with NumPy arrays. What CuPy's arrays lack (`flags.writeable`, say) is not there. Whatever would wait
for a device is noted in :data:`waits`, and the streams that kernels were queued on in :data:`queued`.
"""

import operator
import sys
import time
import types
from importlib import import_module
from importlib.machinery import ModuleSpec

import numpy as np

NUMBER = 0  # of the device that is current; tests set another one
waits: list[str] = []
_compute_types: dict = {}
queued: list[tuple[str, int]] = []


class MemoryPointer:
    def __init__(self, owner, offset=0, device_id=0):
        self.owner, self.offset, self.device_id = owner, offset, device_id

    @property
    def ptr(self):
        return self.owner.__array_interface__["data"][0] + self.offset

    def __add__(self, offset):
        return MemoryPointer(self.owner, self.offset + offset, self.device_id)


class ndarray:
    """CuPy's array, as far as anything of ours looks at one."""

    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        if memptr is None:
            self._a = np.ndarray(shape, dtype, strides=strides, order=order)
        else:
            owner = memptr.owner if np.prod(shape) else np.empty(1, np.uint8)
            self._a = np.ndarray(shape, dtype, owner, memptr.offset if np.prod(shape) else 0, strides, order)
        self._device_id = NUMBER

    @staticmethod
    def _of(a):
        """A NumPy array or scalar as one on the device, without a copy."""
        array = ndarray.__new__(ndarray)
        array._a, array._device_id = np.asarray(a), NUMBER
        return array

    shape = property(lambda self: self._a.shape)
    strides = property(lambda self: self._a.strides)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    T = property(lambda self: ndarray._of(self._a.T))
    data = property(lambda self: MemoryPointer(self._a, 0, self._device_id))
    device = property(lambda self: Device(self._device_id))

    @property
    def flags(self):
        flags = self._a.flags
        return types.SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )

    @property
    def __cuda_array_interface__(self):
        return dict(self._a.__array_interface__, version=3, stream=1)

    def __dlpack_device__(self):
        return (2, self._device_id)

    def __dlpack__(self, **options):
        return self

    # What would be a copy to the host that nobody asked for.
    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` instead.")

    def __array_function__(self, function, kinds, args, options):
        raise TypeError(f"numpy.{function.__name__} was called on an array on the device")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return _lifted(getattr(ufunc, method))(*inputs, **options)

    # What waits for the device.
    def get(self):
        waits.append("get")
        return self._a.copy()

    def item(self, *args):
        waits.append("item")
        return self._a.item(*args)

    def tolist(self):
        waits.append("tolist")
        return self._a.tolist()

    def __bool__(self):
        waits.append("bool")
        return bool(self._a)

    def __float__(self):
        waits.append("float")
        return float(self._a)

    def __int__(self):
        waits.append("int")
        return int(self._a)

    def __index__(self):
        waits.append("index")
        return operator.index(self._a[()])

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, key):
        return ndarray._of(self._a[_key(key)])

    def __setitem__(self, key, value):
        self._a[_key(key)] = _operand(value)

    def __repr__(self):
        return f"on the device: {self._a!r}"

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        return ndarray._of(self._a.astype(dtype, order=order, copy=copy))


def _key(key):
    if isinstance(key, tuple):
        return tuple(_key(k) for k in key)
    return key._a if isinstance(key, ndarray) else key


def _operand(value):
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _wrapped(result):
    if isinstance(result, tuple):
        return tuple(map(_wrapped, result))
    return ndarray._of(result) if isinstance(result, (np.ndarray, np.generic)) else result


def _lifted(function):
    """A NumPy function or method for arrays on the device, which takes no others."""

    def call(*args, **options):
        out = options.get("out")
        options = {key: _out(value) if key == "out" else _operand(value) for key, value in options.items()}
        lists = [tuple(map(_operand, a)) if isinstance(a, (tuple, list)) else _operand(a) for a in args]
        result = function(*lists, **options)
        return (out[0] if isinstance(out, tuple) else out) if out is not None else _wrapped(result)

    return call


def _out(value):
    return tuple(map(_operand, value)) if isinstance(value, tuple) else _operand(value)


def _method(name):
    return lambda self, *args, **options: _lifted(getattr(np.ndarray, name))(self, *args, **options)


def _operator(name):
    if name[0] == "r" and name not in ("rshift",):
        function = getattr(operator, name[1:])
        return lambda self, value: _lifted(function)(value, self)
    function = getattr(operator, {"and": "and_", "or": "or_"}.get(name, name))
    return lambda self, *args: _lifted(function)(self, *args)


METHODS = """all any argmax argmin argsort copy cumsum dot fill max mean min nonzero prod ravel repeat reshape sort
squeeze std sum swapaxes take trace transpose var view"""
OPERATORS = """add sub mul truediv floordiv mod pow matmul neg pos abs invert and or xor lshift rshift lt le eq ne gt ge
radd rsub rmul rtruediv"""
FUNCTIONS = """add argmax argsort ascontiguousarray broadcast_to concatenate cumsum divide dot empty_like exp
flatnonzero log matmul maximum minimum multiply nonzero searchsorted sort sqrt square stack subtract sum swapaxes tanh
transpose where zeros_like"""
for _name in METHODS.split():
    setattr(ndarray, _name, _method(_name))
for _name in OPERATORS.split():
    setattr(ndarray, f"__{_name}__", _operator(_name))


def _in_place(name):
    function = getattr(np.ndarray, name)

    def change(self, value):
        function(self._a, _operand(value))
        return self

    return change


for _name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"):
    setattr(ndarray, _name, _in_place(_name))
ndarray.__module__ = "cupy"  # what messages name it


# ---- the module ------------------------------------------------------------------------------------------------------


class Device:
    def __init__(self, number=None):
        self.id = NUMBER if number is None else number
        self.compute_capability = "90"

    def synchronize(self):
        waits.append("synchronize")


class Stream:
    _stack: list["Stream"] = []
    _count = 0

    def __init__(self, null=False, non_blocking=False):
        Stream._count += not null
        self.ptr = 0 if null else 1000 + Stream._count

    def __enter__(self):
        Stream._stack.append(self)
        return self

    def __exit__(self, *exc):
        Stream._stack.pop()

    def synchronize(self):
        waits.append("synchronize")


class Event:
    def record(self, stream=None):
        self.when = time.perf_counter()

    def synchronize(self):
        waits.append("synchronize")


def _maker(function):
    return lambda *args, **options: ndarray._of(function(*args, **options))


def _asarray(value, dtype=None, order=None):
    if isinstance(value, ndarray):
        array = value
    elif hasattr(value, "on_the_device"):  # a foreign one
        array = value.on_the_device
    else:
        array = ndarray._of(np.array(value))
    return array if dtype is None else array.astype(dtype, copy=False)


def _array(value, dtype=None, copy=True, order="K"):
    inner = value._a if isinstance(value, ndarray) else value
    return ndarray._of(np.array(inner, dtype=dtype, order=order))


def _asnumpy(array):
    return array.get() if isinstance(array, ndarray) else np.asarray(array)


def _gemm(trans_a, trans_b, a, b, out=None, alpha=1.0, beta=0.0):
    product = alpha * (a._a.T if trans_a == "T" else a._a) @ (b._a.T if trans_b == "T" else b._a)
    out._a[...] = product + (beta * out._a if beta else 0)
    return out


def cupy_module():
    """A module to stand for CuPy, and its submodules by name."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.asarray, cupy.array, cupy.asnumpy = ndarray, _asarray, _array, _asnumpy
    cupy.from_dlpack = _asarray
    cupy.__version__ = "0 (the tests' stand-in)"
    for name in ("empty", "zeros", "ones", "full", "arange"):
        setattr(cupy, name, _maker(getattr(np, name)))
    for name in FUNCTIONS.split():
        setattr(cupy, name, _lifted(getattr(np, name)))
    for name in ("bool_", "float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "uint64"):
        setattr(cupy, name, getattr(np, name))

    cuda = types.ModuleType("cupy.cuda")
    cuda.Device, cuda.Stream, cuda.Event = Device, Stream, Event
    default = Stream(null=True)
    cuda.get_current_stream = lambda: Stream._stack[-1] if Stream._stack else default
    cuda.get_elapsed_time = lambda start, stop: 1e3 * (stop.when - start.when)
    cuda.runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDevice=lambda: NUMBER,
        getDeviceProperties=lambda number: {"name": b"Pretend GPU"},
        driverGetVersion=lambda: 13000,
    )
    cupy.cuda = cuda
    cublas = types.ModuleType("cupy.cublas")
    cublas.gemm = _gemm
    cupy.cublas = cublas
    core = types.ModuleType("cupy._core")
    core.get_compute_type = lambda dtype: _compute_types.get(np.dtype(dtype), 0)
    core.set_compute_type = lambda dtype, kind: _compute_types.__setitem__(np.dtype(dtype), kind)
    linalg = types.ModuleType("cupy._core._routines_linalg")
    linalg.COMPUTE_TYPE_DEFAULT, linalg.COMPUTE_TYPE_TF32 = 1, 2
    return {module.__name__: module for module in (cupy, cuda, cublas, core, linalg)}


# ---- kernels ---------------------------------------------------------------------------------------------------------


class Kernels(types.ModuleType):
    """The functions of a compiled module over arrays on the device."""

    def __init__(self, name, compiled, streams):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self._compiled, self._streams = compiled, streams

    def __getattr__(self, name):
        if name.startswith("__") or self._compiled is None:
            raise AttributeError(name)
        function = getattr(self._compiled, name)

        def call(*args):
            if self._streams:
                queued.append((name, args[0]))
            return function(*map(_plain, args))

        return call


def _plain(value):
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value._a if isinstance(value, ndarray) else value


def first_bad_id(ids, upper):
    """What `fastrnn.cuda.embedding` has beside its kernels."""
    waits.append("first_bad_id")
    bad = np.flatnonzero((ids._a < 0) | (ids._a >= upper))
    return int(bad[0]) if bad.size else -1


def install(monkeypatch, rows, simulated):
    """Let this process have a device until the test is over.

    Its kernels are the project's own, run by the simulator, if `simulated`; else those of the C++ backend, which take
    the same arguments.
    """
    backend = sys.modules["fastrnn.backend"]
    for name in [name for name in sys.modules if name.split(".")[0] == "cupy" or name.startswith("fastrnn.cuda")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["fastrnn"], "cuda", raising=False)
    for name, module in cupy_module().items():
        monkeypatch.setitem(sys.modules, name, module)
    compiled = import_module("fastrnn._cuda_on_host") if simulated else None
    monkeypatch.setitem(sys.modules, "fastrnn._cuda", Kernels("fastrnn._cuda", compiled, True))
    monkeypatch.delenv("FASTRNN_CUDA_ON_HOST", raising=False)
    monkeypatch.setattr(backend, "_reasons", {k: v for k, v in backend._reasons.items() if k != "cuda"})
    monkeypatch.setattr(backend, "_chosen", {k: v for k, v in backend._chosen.items() if k[0] != "cuda"})
    import_module("fastrnn.cuda.arrays")
    if not simulated:
        cpu = import_module("fastrnn._cpu")
        for row in rows:
            module = Kernels(f"fastrnn.cuda.{row}", cpu, False)
            module.first_bad_id = first_bad_id
            module.vocab_softmax_loss = lambda *args, m=module: m.__getattr__("vocab_softmax_loss")(*args[:10])
            module.precision_used = lambda: "highest"
            module.chose = lambda *sizes: "persistent"
            monkeypatch.setitem(sys.modules, f"fastrnn.cuda.{row}", module)
    waits.clear()
    queued.clear()
