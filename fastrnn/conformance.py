"""Every kernel against the oracle: the one tolerance rule, and the cases that ``fastrnn check`` and the tests run.

Adding an operation: write one generator that yields a :class:`Case` for each thing worth trying, and name it in
:data:`CASES`. A case says how to call one public function on a module `m`, which is ``fastrnn`` (under the backend
that is tried) or ``fastrnn.reference`` (the oracle); dtypes, thread counts and comparisons are not its concern.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

import fastrnn
from fastrnn import reference
from fastrnn.arrays import HOST, Place, device
from fastrnn.backend import EMPTY

# Dtypes that are tried, and the dtype in which the oracle then is exact. It has to be a wider one: beside an oracle in
# float64 a float64 kernel would have to make the oracle's own rounding errors to be right, and a correctly rounded
# result would fail. (Where long double is no wider than double, as with MSVC, float64 is held to just that.)
EXACT: dict[str, Any] = {"float16": np.float64, "float32": np.float64, "float64": np.longdouble}
DTYPES = ("float32", "float64")
# Float16 is for these rows on backend cuda, and has to be asked for.
WITH_HALVES = ("float16", *DTYPES)
HALVES = frozenset((("cuda", "rnn"), ("cuda", "lstm"), ("cuda", "gru")))
# An operand rounded to bfloat16 is off by at most half of this, relatively; so is one split into the sum of two: the
# first takes 8 bits, the sign of the second one more, and it has 8 bits itself.
BF16_EPS = 2.0**-7
SPLIT_EPS = 2.0**-16
TF32_EPS = 2.0**-10

# ---- the rule ------------------------------------------------------------------------------------------------------


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0))  # np.max hands a NaN on


def error_and_bound(result: Any, oracle: Any, exact: Any, dtype: Any, eps: float | None = None) -> tuple[float, float]:
    """Error of `result`, and the bound that it may reach.

    Parameters
    ----------
    result : array_like
        What the kernel computed.
    oracle : array_like
        What the oracle computed from the same inputs, in the kernel's dtype.
    exact : array_like
        What the oracle computed from the same inputs, in the wider dtype of :data:`EXACT`.
    dtype : dtype
        The kernel's dtype, whose eps enters the bound.
    eps : float, optional
        That of products of lower precision; the oracle then rounds the operands of its products likewise.

    Returns
    -------
    error : float
        ``max|result - exact|``.
    bound : float
        ``2 max|oracle - exact| + 4 eps max|exact|``. A NaN anywhere makes one of the two NaN.
    """
    error, naive = _largest(np.subtract(result, exact)), _largest(np.subtract(oracle, exact))
    return error, 2 * naive + 4 * (eps or float(np.finfo(dtype).eps)) * _largest(np.asarray(exact))


def within(error: float, bound: float) -> bool:
    """Whether the rule is met; False for a NaN, and where a bound that is not finite would let anything pass."""
    return error <= bound < np.inf


def ratio_of(error: float, bound: float) -> float:
    """Error over its bound: at most 1 where the rule is met; infinite for a NaN, or any error where none is allowed."""
    if not (np.isfinite(error) and np.isfinite(bound)):
        return np.inf
    return error / bound if bound > 0 else 0.0 if error == 0 else np.inf


def complaint(result: Any, oracle: Any, dtype: Any) -> str:
    """What is wrong with the kind of `result`, whatever its values: dtype or shape. Empty if nothing is.

    Floating results have `dtype`, others (indices) that of the oracle.
    """
    if np.shape(result) != np.shape(oracle):
        return f"has shape {np.shape(result)}, expected {np.shape(oracle)}"
    if not isinstance(oracle, np.ndarray):
        return "" if type(result) is type(oracle) else f"is {type(result).__name__}, expected {type(oracle).__name__}"
    if not isinstance(result, np.ndarray):
        return f"is {type(result).__name__}, expected an array"
    wanted = np.dtype(dtype) if oracle.dtype.kind == "f" else oracle.dtype
    return "" if result.dtype == wanted else f"has dtype {result.dtype}, expected {wanted}"


# ---- cases ---------------------------------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]
Outputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call of one public function.

    Attributes
    ----------
    operation : str
        Row of the grid.
    function : str
        The function that is tried: the last that `call` calls.
    name : str
        Sizes and options; unique within the function.
    arrays : dict of ndarray
        Inputs. Floating ones are given in float64 and cast to the dtype that is tried, integers and bools stay.
    call : callable
        ``call(m, arrays)`` returns the named outputs.
    layout : str
        How the arrays lie in memory: a key of :data:`LAYOUTS`.
    """

    operation: str
    function: str
    name: str
    arrays: Arrays
    call: Callable[[Any, Arrays], Outputs]
    layout: str = "contiguous"

    def __str__(self) -> str:
        return f"{self.function}[{self.name}]"


def _strided(a: np.ndarray) -> np.ndarray:
    """Every second element along every axis, with poison between."""
    wide = np.empty(tuple(2 * size + 1 for size in a.shape), a.dtype)
    wide.fill(np.nan if a.dtype.kind == "f" else 1)
    every_second: Any = (*(slice(1, 2 * size + 1, 2) for size in a.shape), ...)  # the ellipsis: a view even of a scalar
    view = wide[every_second]
    view[...] = a
    return view


def _reversed(a: np.ndarray) -> np.ndarray:
    """Negative strides along every axis."""
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def _readonly(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a: np.ndarray) -> np.ndarray:
    """One byte past an address that suits the dtype."""
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _swapped(a: np.ndarray) -> np.ndarray:
    return a.astype(a.dtype.newbyteorder("S"))


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda a: np.array(a, order="C"),
    "strided": _strided,
    "fortran": lambda a: np.array(a, order="F"),
    "reversed": _reversed,
    "readonly": _readonly,
    "unaligned": _unaligned,
    "byteswapped": _swapped,
}
# CuPy's arrays are native and aligned, and cannot be protected.
DEVICE_LAYOUTS = ("contiguous", "strided", "fortran", "reversed")


def _rng(*key: object) -> np.random.Generator:
    """A generator of its own for each case, so that adding one changes no other."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _in_layouts(case: Case) -> Iterator[Case]:
    """`case` once for each way in which its arrays can lie in memory."""
    for layout in LAYOUTS:
        yield replace(case, layout=layout, name=case.name if layout == "contiguous" else f"{case.name} {layout}")


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


# ---- rnn, lstm, gru ------------------------------------------------------------------------------------------------

GATES = {"rnn": 1, "lstm": 4, "gru": 3}  # columns of the weights, as multiples of H
# N, T, D, H: ones, odd sizes, and sizes around the tiles that kernels are cut into (6 rows, 8, 16 and 64 columns).
SEQUENCES = (
    (1, 1, 1, 1),
    (3, 5, 7, 9),
    (1, 7, 16, 16),
    (5, 3, 8, 15),
    (6, 2, 17, 8),
    (7, 4, 5, 17),
    (13, 3, 16, 33),
    (16, 4, 32, 64),
    (4, 12, 63, 65),
    (2, 40, 3, 10),
)
EMPTY_SEQUENCES = ((0, 3, 4, 5), (3, 0, 4, 5), (3, 4, 0, 5), (3, 4, 5, 0))
STEPS = (
    (1, 1, 1),
    (3, 7, 9),
    (1, 16, 16),
    # Few rows use weights without packing them: one, two and three rows, several groups of units and part of one.
    (1, 70, 160),
    (2, 65, 90),
    (3, 20, 144),
    (6, 8, 17),
    (13, 65, 64),
    (64, 100, 120),
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
)
TWO_THREADS = (40, 4, 72, 100)  # enough work for a second thread; what the oracle takes over it is most of a check
# Pre-activations at which a sigmoid or tanh saturates, and at which careless formulas overflow or divide 0 by 0.
EXTREMES = np.array([sign * size for size in (0, 0.5, 9, 18, 50, 88.8, 104, 710, 746, 1000) for sign in (1, -1)])


def _weights(rng: np.random.Generator, cell: str, size_d: int, size_h: int) -> Arrays:
    columns = GATES[cell] * size_h
    return {
        "Wx": rng.normal(size=(size_d, columns)) / np.sqrt(max(size_d, 1)),
        "Wh": rng.normal(size=(size_h, columns)) / np.sqrt(max(size_h, 1)),
        "b": rng.normal(size=columns) / 4,
    }


def _saturating(a: Arrays, cell: str, rng: np.random.Generator) -> Arrays:
    """`a` with every pre-activation one of EXTREMES, exactly: each gate copies one input, nothing recurs."""
    inputs, columns = a["Wx"].shape
    wx = np.zeros((inputs, columns))
    wx[rng.integers(0, inputs, columns), np.arange(columns)] = 1
    return a | {"x": rng.choice(EXTREMES, a["x"].shape), "Wx": wx, "Wh": 0 * a["Wh"], "b": 0 * a["b"]}


def _large(a: Arrays) -> Arrays:
    """`a` with inputs a hundred times as large, rounded so that x Wx is exact.

    Where it is not, the rounding errors of pre-activations near 100 fall on the few that come out near 0, and which
    of two equally good kernels does worse is a lottery.
    """
    return a | {"x": np.rint(100 * a["x"]), "Wx": np.rint(8 * a["Wx"]) / 8}


def _sequence(cell: str, shape: tuple[int, ...], *options: str) -> Iterator[Case]:
    """Forward and backward over a whole sequence, with `options` out of
    c0, bh, lengths, reverse, return_state, overwritten, twice, saturated, large."""
    size_n, size_t, size_d, size_h = shape
    name = " ".join((_sizes(shape), *options))
    rng = _rng(cell, name)
    a = _weights(rng, cell, size_d, size_h)
    a["x"] = rng.normal(size=(size_n, size_t, size_d))
    a["h0"] = rng.normal(size=(size_n, size_h)) / 2
    if "saturated" in options:
        a = _saturating(a, cell, rng)
    if "large" in options:
        a = _large(a)
    if "c0" in options:
        a["c0"] = rng.normal(size=(size_n, size_h))
    if "bh" in options:
        a["bh"] = rng.normal(size=GATES[cell] * size_h) / 4
    if "lengths" in options:
        a["lengths"] = rng.integers(0, size_t + 1, size_n)
        a["lengths"][: min(2, size_n)] = (0, size_t)[: min(2, size_n)]
    flags = {flag: True for flag in ("reverse", "return_state") if flag in options}
    states = ("h_n", "c_n") if cell == "lstm" else ("h_n",)

    def run_forward(m: Any, a: Arrays) -> tuple[Outputs, Any]:
        extras = {key: a[key] for key in ("c0", "bh", "lengths") if key in a}
        h, *state, cache = getattr(m, f"{cell}_forward")(a["x"], a["h0"], a["Wx"], a["Wh"], a["b"], **extras, **flags)
        final = state[0] if state and cell == "lstm" else state
        return {"h": h, **dict(zip(states, final, strict=False))}, cache

    def forward(m: Any, a: Arrays) -> Outputs:
        return run_forward(m, a)[0]

    def backward(m: Any, a: Arrays) -> Outputs:
        outputs, cache = run_forward(m, a)
        if "overwritten" in options:  # results belong to the caller, who may write into them
            for output in outputs.values():
                output.fill(np.nan)
        finals = {key: a[key] for key in ("dh_n", "dc_n") if key in a}
        run = getattr(m, f"{cell}_backward")
        if "twice" in options:
            run(a["dh"], cache, **finals)
        names = ["dx", "dh0", "dWx", "dWh", "db", *(f"d{key}" for key in ("c0", "bh") if key in a)]
        return dict(zip(names, run(a["dh"], cache, **finals), strict=True))

    if "twice" not in options and "overwritten" not in options:
        yield Case(cell, f"{cell}_forward", name, a, forward)
    a = a | {"dh": rng.normal(size=(size_n, size_t, size_h))}
    if "return_state" in options:
        a |= {f"d{state}": rng.normal(size=(size_n, size_h)) for state in states}
    yield Case(cell, f"{cell}_backward", name, a, backward)


def _step(cell: str, shape: tuple[int, ...], *options: str) -> Iterator[Case]:
    """Forward and backward of one step, with `options` out of bh, one x, twice, saturated, large."""
    size_n, size_d, size_h = shape
    name = " ".join((_sizes(shape), *options))
    rng = _rng(cell, "step", name)
    a = _weights(rng, cell, size_d, size_h)
    a["x"] = rng.normal(size=size_d if "one x" in options else (size_n, size_d))
    a["prev_h"] = rng.normal(size=(size_n, size_h)) / 2
    if "saturated" in options:
        a = _saturating(a, cell, rng)
    if "large" in options:
        a = _large(a)
    if cell == "lstm":
        a["prev_c"] = rng.normal(size=(size_n, size_h))
    if "bh" in options:
        a["bh"] = rng.normal(size=GATES[cell] * size_h) / 4
    states = ("h", "c") if cell == "lstm" else ("h",)

    def run_forward(m: Any, a: Arrays) -> tuple[Any, ...]:
        extras = {key: a[key] for key in ("bh",) if key in a}
        previous = [a[f"prev_{state}"] for state in states]
        return getattr(m, f"{cell}_step_forward")(a["x"], *previous, a["Wx"], a["Wh"], a["b"], **extras)

    def forward(m: Any, a: Arrays) -> Outputs:
        return dict(zip([f"next_{state}" for state in states], run_forward(m, a)[:-1], strict=True))

    def backward(m: Any, a: Arrays) -> Outputs:
        cache = run_forward(m, a)[-1]
        run = getattr(m, f"{cell}_step_backward")
        gradients = [a[f"dnext_{state}"] for state in states]
        if "twice" in options:
            run(*gradients, cache)
        names = ["dx", *(f"dprev_{state}" for state in states), "dWx", "dWh", "db", *(["dbh"] if "bh" in a else [])]
        return dict(zip(names, run(*gradients, cache), strict=True))

    if "twice" not in options:
        yield Case(cell, f"{cell}_step_forward", name, a, forward)
    a = a | {f"dnext_{state}": rng.normal(size=(size_n, size_h)) for state in states}
    yield Case(cell, f"{cell}_step_backward", name, a, backward)


def _recurrent_cases(cell: str) -> Iterator[Case]:
    extra = {"rnn": (), "lstm": ("c0",), "gru": ("bh",)}[cell]
    odd = (4, 5, 7, 9)
    for shape in (*SEQUENCES, *EMPTY_SEQUENCES, TWO_THREADS):
        yield from _sequence(cell, shape)
    yield from _sequence(cell, TWO_THREADS, *extra, "lengths", "reverse", "return_state")
    for lengths, reverse, state in product(("", "lengths"), ("", "reverse"), ("", "return_state")):
        yield from _sequence(cell, odd, *filter(None, (lengths, reverse, state)))
        if extra:
            yield from _sequence(cell, odd, *extra, *filter(None, (lengths, reverse, state)))
    for options in (("overwritten", "return_state"), ("twice", "return_state"), ("saturated",), ("large",)):
        yield from _sequence(cell, (19, 3, 6, 21), *options)
    for case in _sequence(cell, (3, 4, 6, 10), *extra, "lengths", "return_state"):
        yield from _in_layouts(case)

    for sizes in STEPS:
        yield from _step(cell, sizes)
    for options in (("one x",), ("twice",), ("saturated",), ("large",)):
        yield from _step(cell, (19, 6, 21), *options)
    if cell == "gru":
        yield from _step(cell, (5, 6, 7), "bh")
        yield from _step(cell, (5, 6, 7), "bh", "one x")
    for case in _step(cell, (3, 6, 10)):
        yield from _in_layouts(case)


# ---- embedding -----------------------------------------------------------------------------------------------------


def _embedding(name: str, ids: np.ndarray, size_v: int, size_d: int) -> Iterator[Case]:
    """Forward, and backward in its three forms: a whole gradient, one added to an array, the rows of used words."""
    rng = _rng("embedding", name)
    a = {"x": ids, "W": rng.normal(size=(size_v, size_d))}

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"out": m.word_embedding_forward(a["x"], a["W"])[0]}

    def backward(m: Any, a: Arrays) -> Outputs:
        cache = m.word_embedding_forward(a["x"], a["W"])[1]
        return {"dW": m.word_embedding_backward(a["dout"], cache)}

    def added(m: Any, a: Arrays) -> Outputs:
        cache = m.word_embedding_forward(a["x"], a["W"])[1]
        start = a["start"]
        out = start.astype(start.dtype.newbyteorder("="), order="K")  # a copy: inputs are not modified
        result = m.word_embedding_backward(a["dout"], cache, out=out)
        assert result is out
        return {"out": out}

    def sparse(m: Any, a: Arrays) -> Outputs:
        cache = m.word_embedding_forward(a["x"], a["W"])[1]
        return dict(zip(("rows", "values"), m.word_embedding_backward(a["dout"], cache, sparse=True), strict=True))

    name = f"ids {_sizes(ids.shape) or 'scalar'} of {size_v}x{size_d} {name}".strip()
    yield Case("embedding", "word_embedding_forward", name, a, forward)
    a = a | {"dout": rng.normal(size=(*ids.shape, size_d))}
    yield Case("embedding", "word_embedding_backward", name, a, backward)
    yield Case("embedding", "word_embedding_backward", f"{name} sparse", a, sparse)
    a = a | {"start": rng.normal(size=(size_v, size_d))}
    yield Case("embedding", "word_embedding_backward", f"{name} out", a, added)


def _zipf(size_v: int, *shape: int) -> np.ndarray:
    """Ids as frequent as words are: the r-th has 1 / r of the positions of the first."""
    weights = 1 / np.arange(1, size_v + 1)
    rng = _rng("zipf", size_v, shape)
    return rng.permutation(size_v)[rng.choice(size_v, shape, p=weights / weights.sum())]


def embedding_cases() -> Iterator[Case]:
    def draw(size_v: int, *shape: int) -> np.ndarray:
        return _rng("ids", size_v, shape).integers(0, size_v, shape)

    for shape in ((), (1,), (5,), (4, 6), (2, 3, 4), (0,), (3, 0)):
        yield from _embedding("", draw(11, *shape), 11, 7)
    # Ones, nothing, widths around those of vectors and of groups of vectors.
    for size_v, size_d in ((1, 1), (2, 16), (30, 65), (5, 0), (7, 8), (7, 31), (7, 129), (7, 256), (7, 391)):
        yield from _embedding("", draw(size_v, 6, 5), size_v, size_d)
    for kind in "bhilBHIL":
        ids = draw(120, 9, 4).astype(kind)
        yield from _embedding(str(ids.dtype), ids, 120, 5)
    yield from _embedding("above 8192", draw(9000, 50, 3).astype(np.int16), 9000, 3)
    yield from _embedding("the last word", np.array([2999, 0, 2999]), 3000, 17)
    yield from _embedding("all the same", np.full((40, 30), 3), 9, 17)
    mixed = np.where(draw(2, 50, 40) == 1, 3, draw(200, 50, 40))
    yield from _embedding("half of them the same", mixed, 200, 33)
    yield from _embedding("as frequent as words", _zipf(1004, 100, 16), 1004, 20)
    # Two threads: with ids that one of them sorts, and with so many that both do, in two passes; results so large that
    # they are written past the caches.
    yield from _embedding("", draw(1004, 128, 65), 1004, 256)
    yield from _embedding("as frequent as words", _zipf(3000, 150, 128), 3000, 32)
    yield from _embedding("", draw(63_000, 40, 25), 63_000, 65)
    for base in _embedding("", draw(20, 6, 1).astype(np.int32), 20, 6):
        yield from _in_layouts(base)


# ---- affine --------------------------------------------------------------------------------------------------------


def _affine(prefix: str, shape: tuple[int, ...], size_m: int) -> Iterator[Case]:
    rng = _rng(prefix, shape, size_m)
    size_d = shape[-1] if prefix else int(np.prod(shape[1:]))
    a = {
        "x": rng.normal(size=shape),
        "w": rng.normal(size=(size_d, size_m)) / np.sqrt(max(size_d, 1)),
        "b": rng.normal(size=size_m),
    }

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"out": getattr(m, f"{prefix}affine_forward")(a["x"], a["w"], a["b"])[0]}

    def backward(m: Any, a: Arrays) -> Outputs:
        cache = getattr(m, f"{prefix}affine_forward")(a["x"], a["w"], a["b"])[1]
        return dict(zip(("dx", "dw", "db"), getattr(m, f"{prefix}affine_backward")(a["dout"], cache), strict=True))

    name = f"{_sizes(shape)} to {size_m}"
    yield Case("affine", f"{prefix}affine_forward", name, a, forward)
    a = a | {"dout": rng.normal(size=(*(shape[:-1] if prefix else shape[:1]), size_m))}
    yield Case("affine", f"{prefix}affine_backward", name, a, backward)


def affine_cases() -> Iterator[Case]:
    for shape, size_m in (((1, 1), 1), ((5, 7), 3), ((4, 3, 2, 5), 17), ((0, 4), 3), ((3, 0), 4), ((3, 4), 0)):
        yield from _affine("", shape, size_m)
    for sizes, size_m in (((1, 1, 1), 1), ((3, 5, 7), 9), ((16, 8, 64), 33), ((0, 3, 4), 5), ((3, 0, 4), 5)):
        yield from _affine("temporal_", sizes, size_m)
    # Several blocks of k in every product, a part of the result that does not fill vectors, work for two threads.
    yield from _affine("", (260, 40), 1030)
    for base in (*_affine("", (4, 2, 3), 5), *_affine("temporal_", (4, 2, 3), 5)):
        yield from _in_layouts(base)


# ---- softmax_loss --------------------------------------------------------------------------------------------------

# For three sequences of five steps.
PLACES = np.arange(15).reshape(3, 5)
MASKS = {"all": PLACES >= 0, "none": PLACES < 0, "one": PLACES == 7, "a row": PLACES < 5}


def _targets(size_v: int) -> Iterator[tuple[str, Arrays]]:
    """Names and arrays of masks, ids of every integer dtype, and ids that no mask lets count."""
    for name, mask in MASKS.items():
        yield f"mask {name}", {"mask": mask}
    for kind in "bhilBHIL":
        yield f"y {np.dtype(kind)}", {"y": (PLACES % size_v).astype(kind)}
    odd = PLACES % 2 == 1
    yield "y out of range where masked", {"y": np.where(odd, PLACES % size_v, -99), "mask": odd}


def _softmax(name: str, shape: tuple[int, ...], **given: Any) -> Iterator[Case]:
    """Random scores, targets and mask of that shape, unless given."""
    rng = _rng("softmax_loss", name, shape)
    a: Arrays = {"x": 3 * rng.normal(size=shape), "y": rng.integers(0, shape[2], shape[:2])}
    a |= {"mask": rng.random(shape[:2]) < 0.7, **given}

    def call(m: Any, a: Arrays) -> Outputs:
        return dict(zip(("loss", "dx"), m.temporal_softmax_loss(a["x"], a["y"], a["mask"]), strict=True))

    yield Case("softmax_loss", "temporal_softmax_loss", f"{_sizes(shape)} {name}".strip(), a, call)


def softmax_loss_cases() -> Iterator[Case]:
    for shape in ((1, 1, 1), (3, 4, 1), (2, 3, 7), (5, 4, 16), (4, 6, 33), (3, 0, 5), (16, 16, 1004)):
        yield from _softmax("", shape)
    shape = (3, 5, 11)
    for name, given in _targets(11):
        yield from _softmax(name, shape, **given)
    yield from _softmax("extreme scores", shape, x=_rng("extreme scores").choice(EXTREMES, shape))
    yield from _softmax("scores far from 0", shape, x=1e4 + _rng("far scores").normal(size=shape))
    for base in _softmax("", (4, 3, 9)):
        yield from _in_layouts(base)
    yield from _vocab_cases()


def _vocab(name: str, shape: tuple[int, ...], **given: Any) -> Iterator[Case]:
    """Random hidden states, vocabulary, targets and mask for N, T, H, V, unless given."""
    rng = _rng("vocab_softmax_loss", name, shape)
    size_n, size_t, size_h, size_v = shape
    a: Arrays = {
        "h": rng.normal(size=(size_n, size_t, size_h)),
        "W": 2 * rng.normal(size=(size_h, size_v)) / np.sqrt(max(size_h, 1)),
        "b": rng.normal(size=size_v),
        "y": rng.integers(0, max(size_v, 1), (size_n, size_t)),
        "mask": rng.random((size_n, size_t)) < 0.7,
        **given,
    }

    def call(m: Any, a: Arrays) -> Outputs:
        results = m.vocab_softmax_loss(*(a[key] for key in ("h", "W", "b", "y", "mask")))
        return dict(zip(("loss", "dh", "dW", "db"), results, strict=True))

    yield Case("softmax_loss", "vocab_softmax_loss", f"{_sizes(shape)} {name}".strip(), a, call)


def _vocab_cases() -> Iterator[Case]:
    # Around tiles, vectors and panels of words; then several chunks of rows, the last one narrower, of each width.
    for shape in ((1, 1, 1, 1), (3, 4, 2, 1), (2, 3, 5, 7), (5, 4, 16, 16), (4, 6, 13, 33), (3, 7, 65, 130)):
        yield from _vocab("", shape)
    # With the units of a word side by side the gradient of W is another product.
    for shape in ((10, 17, 70, 300), (15, 37, 40, 700), (44, 25, 24, 300), (1, 1300, 70, 257), (3, 50, 100, 1100)):
        for case in _vocab("", shape):
            yield from (case, replace(case, layout="fortran", name=f"{case.name} fortran"))
    for shape in ((3, 0, 4, 5), (3, 4, 0, 5), (2, 90, 0, 70)):
        yield from _vocab("", shape)
    shape = (3, 5, 6, 11)
    for name, given in _targets(11):
        yield from _vocab(name, shape, **given)
    yield from _vocab("no words, none counted", (3, 5, 6, 0), y=PLACES, mask=MASKS["none"])
    rng = _rng("vocabulary", "extreme")
    copying = {"W": np.eye(8)[rng.integers(0, 8, 150)].T, "b": np.zeros(150)}  # each score is one of h, exactly
    yield from _vocab("extreme scores", (4, 9, 8, 150), h=rng.choice(EXTREMES, (4, 9, 8)), **copying)
    yield from _vocab("scores far from 0", shape, b=1e4 + rng.normal(size=11))
    never = np.where(np.arange(150) % 3, rng.normal(size=150), -np.inf)  # words that cannot be said, whole vectors too
    never[64:130] = -np.inf
    yield from _vocab("words of no chance", (4, 9, 8, 150), b=never, y=rng.choice([1, 2, 4, 149], (4, 9)))
    for base in _vocab("", (4, 3, 5, 9)):
        yield from _in_layouts(base)


# ---- gram ----------------------------------------------------------------------------------------------------------


def _gram(shape: tuple[int, ...], **options: Any) -> Iterator[Case]:
    rng = _rng("gram", shape, options)
    size_n, size_c = shape[0], shape[3 if options.get("layout") == "NHWC" else 1]
    a = {"features": rng.normal(size=shape)}

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"gram": m.gram_matrix(a["features"], **options)}

    def backward(m: Any, a: Arrays) -> Outputs:
        return {"dfeatures": m.gram_backward(a["dgram"], a["features"], **options)}

    name = " ".join([_sizes(shape), *(f"{key}={value}" for key, value in options.items())])
    yield Case("gram", "gram_matrix", name, a, forward)
    # Not symmetric: backward must add the two halves itself.
    a = a | {"dgram": rng.normal(size=(size_n, size_c, size_c))}
    yield Case("gram", "gram_backward", name, a, backward)


def gram_cases() -> Iterator[Case]:
    for shape in ((1, 1, 1, 1), (2, 3, 5, 7), (1, 16, 8, 8), (3, 6, 4, 9), (1, 17, 13, 15), (2, 65, 7, 9)):
        yield from _gram(shape)
    yield from _gram((1, 96, 40, 40))
    # One stretch of positions that threads share, several blocks of channels; stretches of several blocks.
    yield from _gram((1, 1030, 8, 9))
    yield from _gram((1, 20, 130, 130))
    yield from _gram((1, 19, 17, 70), layout="NHWC")
    for layout, normalize in product(("NCHW", "NHWC"), (True, False)):
        yield from _gram((2, 5, 6, 7), layout=layout, normalize=normalize)
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5), (2, 0, 4, 5)):
        yield from _gram(shape, normalize=False)
    for base in (*_gram((2, 3, 4, 5)), *_gram((2, 4, 5, 3), layout="NHWC")):
        yield from _in_layouts(base)


# ---- image_losses --------------------------------------------------------------------------------------------------


def _content(shape: tuple[int, ...], weight: float) -> Iterator[Case]:
    rng = _rng("content", shape, weight)
    a = {"current": rng.normal(size=shape), "original": rng.normal(size=shape)}

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"loss": m.content_loss(weight, a["current"], a["original"])}

    def backward(m: Any, a: Arrays) -> Outputs:
        return {"dcurrent": m.content_loss_backward(weight, a["current"], a["original"])}

    yield Case("image_losses", "content_loss", f"{_sizes(shape)} w={weight}", a, forward)
    yield Case("image_losses", "content_loss_backward", f"{_sizes(shape)} w={weight}", a, backward)


def _style(shapes: tuple[tuple[int, ...], ...], layers: tuple[int, ...]) -> Iterator[Case]:
    rng = _rng("style", shapes, layers)
    weights = [10.0 ** (i + 1) for i in range(len(layers))]
    a = {f"feature{i}": rng.normal(size=shape) for i, shape in enumerate(shapes)}
    a |= {f"target{i}": rng.normal(size=(shapes[k][0], shapes[k][1], shapes[k][1])) for i, k in enumerate(layers)}

    def arguments(a: Arrays) -> tuple[Any, ...]:
        features = [a[f"feature{i}"] for i in range(len(shapes))]
        return features, list(layers), [a[f"target{i}"] for i in range(len(layers))], weights

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"loss": m.style_loss(*arguments(a))}

    def backward(m: Any, a: Arrays) -> Outputs:
        return {f"dfeature{i}": gradient for i, gradient in enumerate(m.style_loss_backward(*arguments(a)))}

    name = f"{' '.join(map(_sizes, shapes))} layers {','.join(map(str, layers)) or 'none'}"
    yield Case("image_losses", "style_loss", name, a, forward)
    yield Case("image_losses", "style_loss_backward", name, a, backward)


def _tv(shape: tuple[int, ...], weight: float) -> Iterator[Case]:
    a = {"img": _rng("tv", shape, weight).normal(size=shape)}

    def forward(m: Any, a: Arrays) -> Outputs:
        return {"loss": m.tv_loss(a["img"], weight)}

    def backward(m: Any, a: Arrays) -> Outputs:
        return {"dimg": m.tv_loss_backward(a["img"], weight)}

    yield Case("image_losses", "tv_loss", f"{_sizes(shape)} w={weight}", a, forward)
    yield Case("image_losses", "tv_loss_backward", f"{_sizes(shape)} w={weight}", a, backward)


def image_losses_cases() -> Iterator[Case]:
    for shape, weight in (((1, 1), 1.0), ((3, 5, 7), 0.37), ((1, 64, 129, 127), 6e-2), ((0, 4), 1.0), ((2, 3), 0.0)):
        yield from _content(shape, weight)
    yield from _style(((1, 3, 4, 5), (1, 6, 3, 3), (1, 9, 2, 2)), (0, 2))
    yield from _style(((2, 4, 5, 6),), (0,))
    yield from _style(((1, 3, 4, 5), (1, 6, 3, 3)), (1, 1))
    yield from _style(((1, 3, 4, 5),), ())
    for size_h, size_w, weight in ((1, 1, 1.0), (1, 7, 2.0), (9, 1, 2.0), (5, 6, 0.02), (33, 65, 0.02), (4, 4, 0.0)):
        yield from _tv((1, 3, size_h, size_w), weight)
    yield from _tv((1, 3, 320, 353), 1.5)
    for base in (*_content((3, 4, 5), 0.37), *_style(((1, 3, 4, 5), (1, 2, 3, 3)), (1,)), *_tv((1, 3, 6, 7), 0.5)):
        yield from _in_layouts(base)


# ---- optim ---------------------------------------------------------------------------------------------------------

# Arrays that each rule keeps in its config.
OPTIM_STATE = {"sgd": (), "sgd_momentum": ("velocity",), "rmsprop": ("cache",), "adam": ("m", "v")}
OPTIM_SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1},
    "sgd_momentum": {"learning_rate": 0.1, "momentum": 0.5},
    "rmsprop": {"learning_rate": 0.03, "decay_rate": 0.8, "epsilon": 1e-4},
    "adam": {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-5},
}


def _optim(
    rule: str, shape: tuple[int, ...], name: str, settings: Mapping[str, Any] | None, state: bool
) -> Iterator[Case]:
    """Three updates from the `settings` (None: no config at first), from a given state or from none."""
    rng = _rng("optim", rule, shape, name)
    a = {"w": rng.normal(size=shape), "dw": rng.normal(size=(3, *shape))}
    if state:
        a |= {key: np.square(rng.normal(size=shape)) for key in OPTIM_STATE[rule]}

    def call(m: Any, a: Arrays) -> Outputs:
        w: Any = a["w"]
        config: Any = None if settings is None else dict(settings)
        if config is not None and state:
            config |= {key: a[key] for key in OPTIM_STATE[rule]}
            if rule == "adam":
                config["t"] = 5
        for dw in a["dw"]:
            w, config = getattr(m, rule)(w, dw, config)
        kept = {key: config[key] for key in (*OPTIM_STATE[rule], *(("t",) if rule == "adam" else ()))}
        return {"w": w, **kept}

    yield Case("optim", rule, f"{_sizes(shape) or 'scalar'} {name}".strip(), a, call)


def optim_cases() -> Iterator[Case]:
    for rule, settings in OPTIM_SETTINGS.items():
        for shape in ((1,), (3, 5), (2, 3, 4), (0,), (4097,), (1003, 999)):
            yield from _optim(rule, shape, "", None, False)
        yield from _optim(rule, (3, 5), "settings", settings, False)
        yield from _optim(rule, (3, 5), "settings and state", settings, True)
        for key in settings:  # one at a time, so that none of them can be left unread
            yield from _optim(rule, (3, 5), f"{key} alone", {key: settings[key]}, False)
        numpy_scalars = {key: np.float64(value) for key, value in settings.items()}
        yield from _optim(rule, (3, 5), "settings of NumPy", numpy_scalars, True)
        for base in _optim(rule, (4, 6), "settings and state", settings, True):
            yield from _in_layouts(base)


# ---- the table -----------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "rnn": lambda: _recurrent_cases("rnn"),
    "lstm": lambda: _recurrent_cases("lstm"),
    "gru": lambda: _recurrent_cases("gru"),
    "embedding": embedding_cases,
    "affine": affine_cases,
    "softmax_loss": softmax_loss_cases,
    "gram": gram_cases,
    "image_losses": image_losses_cases,
    "optim": optim_cases,
}


# ---- running them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one case on one backend in one dtype."""

    operation: str
    function: str
    case: str
    backend: str
    dtype: str
    isa: str
    ran_on: str
    """The backend that `last_backend()` named: another one only where `backend` has no kernel, on purpose."""
    ratio: float
    """Worst error over its bound, among all outputs."""
    output: str
    """The output with that error."""
    error: float
    bound: float
    failure: str
    """What went wrong; empty if nothing did."""
    seconds: float
    precision: str
    """Of float32 products, as `last_backend()` named it."""


def cast(case: Case, dtype: Any) -> Arrays:
    """The case's inputs in `dtype`, contiguous."""
    return {key: a.astype(dtype) if a.dtype.kind == "f" else a.copy() for key, a in case.arrays.items()}


def expected(case: Case, dtype: Any) -> tuple[Outputs, Outputs]:
    """The oracle's outputs in `dtype`, and on the same inputs in the wider dtype."""
    inputs = cast(case, dtype)
    wide = EXACT[np.dtype(dtype).name]
    exact = {key: a.astype(wide) if a.dtype.kind == "f" else a.copy() for key, a in inputs.items()}
    with np.errstate(all="ignore") if dtype == np.float16 else nullcontext():  # its range is small
        oracle = case.call(reference, inputs)
    return oracle, case.call(reference, exact)


class RoundedProducts(np.ndarray):
    """An array whose matrix products round their operands to bfloat16, as has everything that is computed from it.

    The oracle on such inputs is the oracle in the precision that ``set_float32_matmul_precision("medium")`` asks for.
    """

    @staticmethod
    def product(a: np.ndarray, b: np.ndarray, **options: Any) -> Any:
        return np.matmul(_to_bf16(a), _to_bf16(b), **options)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        plain = [np.asarray(x) for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        run = self.product if ufunc is np.matmul else getattr(ufunc, method)
        result = run(*plain, **options)
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


class SplitProducts(RoundedProducts):
    """The same for ``"high"``: operands are sums of two bfloat16 numbers, whose lesser parts are not multiplied."""

    @staticmethod
    def product(a: np.ndarray, b: np.ndarray, **options: Any) -> Any:
        (a_hi, a_lo), (b_hi, b_lo) = _split(a), _split(b)
        return np.add(a_hi @ b_hi, a_hi @ b_lo + a_lo @ b_hi, **options)


class Tf32Products(RoundedProducts):
    """The same for TF32, which ``"high"`` is on backend ``cuda``."""

    @staticmethod
    def product(a: np.ndarray, b: np.ndarray, **options: Any) -> Any:
        return np.matmul(_to_tf32(a), _to_tf32(b), **options)


# Of each backend that has products of less than float32 precision: what the oracle is run on, and their eps.
LOWER_PRECISION: dict[tuple[str, str], tuple[type[RoundedProducts], float]] = {
    ("cpu", "high"): (SplitProducts, SPLIT_EPS),
    ("cpu", "medium"): (RoundedProducts, BF16_EPS),
    ("cuda", "high"): (Tf32Products, TF32_EPS),
    ("cuda", "medium"): (RoundedProducts, BF16_EPS),
}


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even; what is not finite stays."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 as the sum of two bfloat16 numbers; the second is 0 where the first is not finite."""
    hi = _to_bf16(x)
    return hi, _to_bf16(np.subtract(x, hi, out=np.zeros_like(hi), where=np.isfinite(hi)))


def _to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 bits of mantissa, ties away from zero as tensor cores' operands are."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x1000) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def _rounded_oracle(case: Case, kind: type[RoundedProducts]) -> Outputs:
    """The oracle's outputs in float32 with products of rounded operands."""
    inputs = {key: a.view(kind) if a.dtype.kind == "f" else a for key, a in cast(case, np.float32).items()}
    return {key: np.asarray(value) for key, value in case.call(reference, inputs).items()}


def _whole(a: np.ndarray) -> np.ndarray:
    """All of the memory that `a` is a view of, what lies between its elements included, as bytes."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a.ravel(order="K").view(np.uint8)


def _placed(a: np.ndarray, place: Place) -> tuple[Any, Callable[[], bytes]]:
    """`a` where a backend wants it, lying in memory as it does here; and what reads all of that memory."""
    whole = _whole(a)
    if not place.on_device:
        return a, lambda: _whole(a).tobytes()
    xp = place.xp
    memory = xp.asarray(whole)
    offset = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0] if a.size else 0
    there = xp.ndarray(a.shape, a.dtype, memory.data + offset, a.strides)
    return there, lambda: xp.asnumpy(memory).tobytes()


def _fetched(results: Outputs, place: Place) -> tuple[Outputs, list[str]]:
    """Results as the oracle gives them, in the computer's memory; and complaints about those that were there before."""
    if not place.on_device:
        return results, []
    fetched, complaints = {}, []
    for key, value in results.items():
        if isinstance(value, place.xp.ndarray):
            value = place.xp.asnumpy(value)
            value = value[()] if value.ndim == 0 else value
        elif isinstance(value, (np.ndarray, np.generic)):
            complaints.append(f"{key} is {type(value).__name__} of NumPy, not an array on the device")
        fetched[key] = value
    return fetched, complaints


def _bits(outputs: Outputs) -> dict[str, bytes]:
    return {key: np.asarray(value).tobytes() for key, value in outputs.items()}


def _judge(
    results: Outputs, oracle: Outputs, exact: Outputs, dtype: Any, eps: float | None
) -> tuple[float, str, float, float, str]:
    """Worst ratio, its output, error and bound, and the complaints about all outputs."""
    if results.keys() != oracle.keys():
        return np.inf, "", np.nan, np.nan, f"gives {', '.join(results)}; expected {', '.join(oracle)}"
    worst: tuple[float, str, float, float] = (-1.0, "", 0.0, 0.0)
    complaints = []
    for key, result in results.items():
        wrong = complaint(result, oracle[key], dtype)
        if wrong:
            complaints.append(f"{key} {wrong}")
            worst = max(worst, (np.inf, key, np.nan, np.nan))
            continue
        error, bound = error_and_bound(result, oracle[key], exact[key], dtype, eps)
        if not within(error, bound):
            complaints.append(f"{key} is off by {error:.3g}, allowed {bound:.3g}")
        worst = max(worst, (ratio_of(error, bound), key, error, bound))
    return *worst, "; ".join(complaints)


def thread_counts() -> list[int]:
    """The default, the default again (a repeat must give the same bits), 1 and 2."""
    default = fastrnn.get_num_threads()
    return [default, *dict.fromkeys((default, 1, 2))]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(count)
    try:
        yield
    finally:
        fastrnn.set_num_threads(before)


@contextmanager
def _own_stream(place: Place) -> Iterator[None]:
    """A stream that does not wait for the default one; the inputs are there by then."""
    place.xp.cuda.Device().synchronize()
    with place.xp.cuda.Stream(non_blocking=True) as stream:
        yield
        stream.synchronize()


def _repeats(backend: str, place: Place) -> list[tuple[str, AbstractContextManager[Any]]]:
    """The circumstances in which a case is run, all with the same results, bit for bit."""
    if place.on_device:
        return [("", nullcontext()), ("in another call", nullcontext()), ("on another stream", _own_stream(place))]
    if backend == "cuda":  # the simulator has neither threads nor streams, and is slow
        return [("", nullcontext()), ("in another call", nullcontext())]
    before = fastrnn.get_num_threads()
    counts = thread_counts()
    return [(f"with {count} threads as with {before} before", _threads(count)) for count in counts]


def runs_on(case: Case, backend: str, dtype: str = "float32") -> bool:
    """Whether the case makes sense on a backend: some layouts of memory do not exist on a device, and few kernels take
    float16."""
    if dtype == "float16" and (backend, case.operation) not in HALVES:
        return False
    return case.layout in DEVICE_LAYOUTS or not _place(backend).on_device


def _place(backend: str) -> Place:
    return device() if backend == "cuda" and not fastrnn.backend_status()[backend] else HOST


def run_case(case: Case, backend: str, dtype: Any, oracle_and_exact: tuple[Outputs, Outputs] | None = None) -> Outcome:
    """Run one case on one backend and hold it against the oracle.

    Besides the tolerance rule it must be that dtypes and shapes are the oracle's, that no input was modified, that
    the backend asked for is the one that ran, and that the results are the same bits at every thread count and when
    repeated. On a device inputs are moved there as they lie in memory, results must be there, and are the same bits on
    a stream of their own. Whatever goes wrong, an exception included, stands in the outcome's `failure`.
    """
    dtype = np.dtype(dtype)
    start = time.perf_counter()
    ran_on, isa, precision, failures = "", "", "highest", []
    worst: tuple[float, str, float, float] = (np.inf, "", np.nan, np.nan)
    try:
        place = _place(backend)
        oracle, exact = oracle_and_exact or expected(case, dtype)
        laid = {key: LAYOUTS[case.layout](a) for key, a in cast(case, dtype).items()}
        given, memory = {}, {}
        for key, a in laid.items():
            given[key], memory[key] = _placed(a, place)
        untouched = {key: read() for key, read in memory.items()}
        first: dict[str, bytes] | None = None
        with fastrnn.backend(backend):
            for circumstances, context in _repeats(backend, place):
                with context:
                    results, elsewhere = _fetched(case.call(fastrnn, given), place)
                bits = _bits(results)
                if first is None:
                    first = bits
                    last = fastrnn.last_backend()
                    ran_on, isa = str(last), getattr(last, "isa", "")
                    precision = getattr(last, "precision", "highest")
                    kind, eps = LOWER_PRECISION.get((ran_on, precision), (None, None))
                    if kind is not None:
                        oracle = _rounded_oracle(case, kind)
                    *worst, complaints = _judge(results, oracle, exact, dtype, eps)  # type: ignore[assignment]
                    failures += [*elsewhere, complaints] if complaints else elsewhere
                    failures += _who_ran(case, backend)
                elif bits != first:
                    changed = ", ".join(key for key in first if bits.get(key) != first[key])
                    failures.append(f"{changed} not the same bits {circumstances}")
        failures += [f"modified its input {key}" for key, read in memory.items() if read() != untouched[key]]
    except Exception as error:  # reported as this case's failure; the other cases go on
        failures.append(f"{type(error).__name__}: {error}")
    return Outcome(
        operation=case.operation,
        function=case.function,
        case=case.name,
        backend=backend,
        dtype=dtype.name,
        isa=isa,
        ran_on=ran_on,
        ratio=worst[0],
        output=worst[1],
        error=worst[2],
        bound=worst[3],
        failure="; ".join(failures),
        seconds=time.perf_counter() - start,
        precision=precision,
    )


def _who_ran(case: Case, backend: str) -> list[str]:
    """Complaint where not the function and backend that were asked for ran last."""
    last = fastrnn.last_backend()
    wanted = "reference" if (backend, case.operation) in EMPTY else backend
    if last is None or str(last) != wanted:
        return [f"ran on {last!s}, not on {wanted}"]
    return [] if last.function == case.function else [f"last_backend() says that {last.function} ran"]


def check(operations: Iterable[str], backends: Iterable[str], dtypes: Iterable[str] = DTYPES) -> Iterator[Outcome]:
    """Run every case of the `operations` on every one of the `backends` in every one of the `dtypes`."""
    backends, dtypes = tuple(backends), tuple(dtypes)
    for operation in operations:
        for case in CASES[operation]():
            for dtype in dtypes:
                takers = [backend for backend in backends if runs_on(case, backend, dtype)]
                try:
                    oracle = expected(case, dtype) if takers else None
                except Exception:
                    oracle = None  # run_case meets the exception again and reports it
                for backend in takers:
                    yield run_case(case, backend, dtype, oracle)


def count(operations: Iterable[str], backends: Iterable[str], dtypes: Iterable[str] = DTYPES) -> int:
    """Number of outcomes that :func:`check` will yield."""
    cases, backends = [case for operation in operations for case in CASES[operation]()], tuple(backends)
    return sum(runs_on(case, *where) for case in cases for where in product(backends, dtypes))
