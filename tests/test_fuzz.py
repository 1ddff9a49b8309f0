"""Random input to every function of the NumPy API: the oracle's result or the documented error, on every backend.

Which of the two is predicted here from one table of argument shapes, apart from `fastrnn.checks`. The conformance cases
hold kernels to the last bit on chosen sizes; these look for the argument that nobody thought of. `make fuzz` tries
many more of them.
"""

import os
import re
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from harness import USABLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import conformance, reference
from fastrnn.cache import Cache

# Of each function. FASTRNN_FUZZ=n asks for n others on every run; pytest's --hypothesis-seed repeats such a run.
EXAMPLES = int(os.environ.get("FASTRNN_FUZZ", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
BACKENDS = [name for name in USABLE if name != "cuda"]  # the simulator is too slow for this

# ---- what each function takes --------------------------------------------------------------------------------------

# Argument: its kind where it is no floating array, and its shape. Named sizes agree throughout a call; `*k` is any
# number of axes, `#k` their product; `|` parts alternatives; `?` may be left out.
Takes = dict[str, str]


def _cell(cell: str, gates: int) -> dict[str, tuple[Takes, ...]]:
    columns = f"{gates}H".removeprefix("1")
    weights = {"Wx": f"D {columns}", "Wh": f"H {columns}", "b": columns}
    recurrent_bias = {"bh?": columns} if cell == "gru" else {}
    lstm = cell == "lstm"
    return {
        f"{cell}_step_forward": (
            {"x": "N D|D", "prev_h": "N H"} | ({"prev_c": "N H"} if lstm else {}) | weights | recurrent_bias,
        ),
        f"{cell}_step_backward": (
            {"dnext_h": "N H"} | ({"dnext_c": "N H"} if lstm else {}) | {"cache": f"cache: {cell}_step_forward"},
        ),
        f"{cell}_forward": (
            {"x": "N T D", "h0": "N H", **weights, **recurrent_bias, **({"c0?": "N H"} if lstm else {})}
            | {"lengths?": "lengths: N", "reverse?": "flag:", "return_state?": "flag:"},
        ),
        f"{cell}_backward": (
            {"dh": "N T H", "cache": f"cache: {cell}_forward", "dh_n?": "N H", **({"dc_n?": "N H"} if lstm else {})},
        ),
    }


def _rule(*settings: str, state: tuple[str, ...] = ()) -> tuple[Takes, ...]:
    given = {f"config['{key}']?": "count:" if key == "t" else "number:" for key in settings}
    # Mean squares are squares.
    return (
        {"w": "*k", "dw": "*k"}
        | given
        | {f"config['{key}']?": ("squares: " if key in ("cache", "v") else "") + "*k" for key in state},
    )


_GRAMS = tuple(
    {"dgram": "N C C", "features": axes, "normalize?": "flag:", "layout?" if layout == "NCHW" else "layout": layout}
    for layout, axes in (("word: NCHW", "N C H W"), ("word: NHWC", "N H W C"))
)
_STYLES = tuple(
    {"feats[0]": "N C H W", "feats[1]": "K E I J", "style_layers": f"layers: {layer}"}
    | {"style_targets[0]": target, "style_weights[0]": "number:"}
    for layer, target in enumerate(("N C C", "K E E"))
)
_CONTENT = ({"content_weight": "number:", "content_current": "*k", "content_original": "*k"},)
_TV = ({"img": "N C H W", "tv_weight": "number:"},)

TAKES: dict[str, tuple[Takes, ...]] = {
    **_cell("rnn", 1),
    **_cell("lstm", 4),
    **_cell("gru", 3),
    "word_embedding_forward": ({"x": "ids: *k", "W": "V D"},),
    "word_embedding_backward": ({"dout": "*k D", "cache": "cache: word_embedding_forward", "sparse?": "flag:"},),
    "affine_forward": ({"x": "N *k", "w": "#k M", "b": "M"},),
    "affine_backward": ({"dout": "N M", "cache": "cache: affine_forward"},),
    "temporal_affine_forward": ({"x": "N T D", "w": "D M", "b": "M"},),
    "temporal_affine_backward": ({"dout": "N T M", "cache": "cache: temporal_affine_forward"},),
    "temporal_softmax_loss": ({"x": "N T V", "y": "targets: N T", "mask": "mask: N T"},),
    "vocab_softmax_loss": ({"h": "N T H", "W": "H V", "b": "V", "y": "targets: N T", "mask": "mask: N T"},),
    "gram_matrix": tuple({name: shape for name, shape in takes.items() if name != "dgram"} for takes in _GRAMS),
    "gram_backward": _GRAMS,
    "content_loss": _CONTENT,
    "content_loss_backward": _CONTENT,
    "style_loss": _STYLES,
    "style_loss_backward": _STYLES,
    "tv_loss": _TV,
    "tv_loss_backward": _TV,
    "sgd": _rule("learning_rate"),
    "sgd_momentum": _rule("learning_rate", "momentum", state=("velocity",)),
    "rmsprop": _rule("learning_rate", "decay_rate", "epsilon", state=("cache",)),
    "adam": _rule("learning_rate", "beta1", "beta2", "epsilon", "t", state=("m", "v")),
}
# Arguments that have a shape.
SHAPED = ("floats", "squares", "ids", "targets", "mask", "lengths")
ARRAYS = ("floats", "squares")


def _kind(text: str) -> tuple[str, str]:
    kind, colon, rest = text.partition(":")
    return (kind, rest.strip()) if colon else ("floats", text)


def _bind(pattern: str, shape: tuple[int, ...], sizes: dict[str, Any]) -> bool:
    """Whether the shape fits; new sizes are put into `sizes`."""
    tokens = pattern.split()
    for at, token in enumerate(tokens):
        if token[0] == "*":
            many = len(shape) - len(tokens) + 1
            if many < 0 or sizes.setdefault(token, shape[at : at + many]) != shape[at : at + many]:
                return False
            tokens[at : at + 1] = [f"={size}" for size in shape[at : at + many]]
            break
    if len(tokens) != len(shape):
        return False
    for token, size in zip(tokens, shape, strict=True):
        factor, name = re.fullmatch(r"(\d*)(.*)", token).groups()
        factor = int(factor or 1)
        if token[0] == "#":
            fits = size == prod(sizes[f"*{token[1:]}"])
        elif token[0] == "=":
            fits = True
        else:
            fits = size % factor == 0 and sizes.setdefault(name, size // factor) == size // factor
        if not fits:
            return False
    return True


def _fit(patterns: dict[str, str], shapes: dict[str, tuple[int, ...]], sizes: dict[str, Any]) -> dict[str, Any] | None:
    """All sizes if the shapes fit together, else None."""
    names = list(shapes)
    for choice in product(*(patterns[name].split("|") for name in names)):
        learned = dict(sizes)
        if all(_bind(pattern, shapes[name], learned) for name, pattern in zip(names, choice, strict=True)):
            return learned
    return None


def _shape(pattern: str, sizes: dict[str, Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for token in pattern.split():
        factor, name = re.fullmatch(r"(\d*)(.*)", token).groups()
        if token[0] == "*":
            shape += sizes[token]
        else:
            shape += (prod(sizes[f"*{token[1:]}"]) if token[0] == "#" else int(factor or 1) * sizes[name],)
    return shape


# ---- drawing arguments ---------------------------------------------------------------------------------------------

LARGEST = 2.0  # of the values in arrays
SIZES = (1, 2, 3, 4, 5, 8, 17, 0)
USUAL = ("float32", "float64")
UNUSUAL = (*USUAL, "int8", "int64", "uint16", "bool")
REFUSED = ("float16", "longdouble", "complex64", "object", "U3", "S2", "datetime64[s]", "timedelta64[D]", "V4")
BAD_IDS = (-1, -(2**31), 2**31, 2**32, 2**40, -(2**63), 2**63 - 1, 2**63, 2**64 - 1)
JUNK = (None, "words", b"bytes", 1 + 2j, [[1.0], [2.0, 3.0]], [None, 1.0], {"a": 1}, {1}, object(), [2**70], len)


class Foreign:
    """An array of another library, which NumPy can read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)

    def __repr__(self) -> str:
        return f"Foreign({self.array!r})"


def _permuted(a: np.ndarray) -> np.ndarray:
    """The first axis is the one whose elements are side by side, then the last, then the others."""
    order = np.roll(np.arange(a.ndim), 1)
    return np.array(a.transpose(order), order="F").transpose(np.argsort(order))


def _broadcast(a: np.ndarray) -> np.ndarray:
    """One stride of 0: other values, which are all the same along an axis."""
    return np.broadcast_to(a[:1], a.shape) if a.ndim else a


def _field(a: np.ndarray) -> np.ndarray:
    """A field of packed records, whose strides are no multiples of the item."""
    records = np.zeros(a.shape, [("before", "u1"), ("field", a.dtype)])
    records["field"] = a
    return records["field"]


def _memmap(a: np.ndarray) -> np.ndarray:
    if not a.size or a.dtype.hasobject:  # a file of no bytes cannot be mapped
        return a
    with tempfile.TemporaryFile() as file:
        file.write(a.tobytes())
        file.flush()
        return np.memmap(file, a.dtype, "r", shape=a.shape or (1,)).reshape(a.shape)


LAYOUTS = {
    **conformance.LAYOUTS,
    "permuted": _permuted,
    "broadcast": _broadcast,
    "field": _field,
    "memmap": _memmap,
    "masked": lambda a: np.ma.masked_array(a, mask=False),
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a.tolist()) if a.ndim else a.tolist(),
    "foreign": Foreign,
}


@dataclass
class Call:
    """Arguments of one call; of a backward function also those of the forward pass before it."""

    function: str
    takes: Takes
    given: dict[str, Any]
    sizes: dict[str, Any]
    """Of the forward pass."""
    forward: "Call | None" = None

    def __repr__(self) -> str:
        given = {
            name: f"{value.dtype.str} {value.shape} strides {value.strides}: {value.tolist()}"
            if isinstance(value, np.ndarray)
            else value
            for name, value in self.given.items()
        }
        lines = [f"  {name} = {value!r}" for name, value in given.items()]
        return "\n".join([self.function, *lines, *([f"after {self.forward!r}"] if self.forward else [])])


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str = "floats") -> np.ndarray:
    """Quarters between -2 and 2: products and short sums are exact, and nothing hangs on their order."""
    if dtype in REFUSED:
        return np.zeros(shape, dtype)
    values = rng.integers(-8, 9, shape) / 4
    if kind == "squares" or np.dtype(dtype).kind in "ub":
        values = np.abs(values)
    return np.asarray(values).astype(dtype)


def _good(draw: Any, rng: np.random.Generator, kind: str, rest: str, sizes: dict[str, Any], dtype: str) -> Any:
    """A value that an argument can have."""
    if kind == "flag":
        return draw(st.sampled_from((True, False, np.True_, np.False_)))
    if kind == "word":
        return rest
    if kind == "number":
        return draw(
            st.sampled_from((0.5, 0.25, np.float32(0.125), np.float64(0.75), np.array([[0.5]]), np.float16(0.5)))
        )
    if kind == "count":
        return draw(st.sampled_from((0, 3, np.int8(2), 5.0, np.array([1]))))
    if kind == "layers":
        return draw(st.sampled_from(([int(rest)], (int(rest),), np.array([rest], np.uint8), np.array([rest], ">i4"))))
    shape = _shape(draw(st.sampled_from(rest.split("|"))), sizes)
    if kind in ARRAYS:
        return _values(rng, shape, draw(st.sampled_from((dtype,) * 6 + UNUSUAL)), kind)
    if kind == "mask":
        return np.asarray(rng.random(shape) < 0.7).astype(
            draw(st.sampled_from(("bool", "bool", "uint8", "int64", "float32")))
        )
    # As many ids as there are, none of which is looked at where there are none.
    upper = sizes["T"] + 1 if kind == "lengths" else max(sizes["V"], 1)
    integers = draw(st.sampled_from(("int64", "int32", "uint64", "int8", "uint8")))
    return np.asarray(rng.integers(0, upper, shape), integers)


def _spoilt(draw: Any, rng: np.random.Generator, kind: str, value: Any, sizes: dict[str, Any]) -> Any:
    """Another value, which most likely cannot be right."""
    if kind in ("flag", "word"):
        return draw(st.sampled_from((0, 1, "yes", "nchw", None, 1.0, [True], np.array(True), ["NCHW", "NHWC"])))
    if kind == "cache":
        return draw(st.sampled_from((None, (), {}, "cache", np.zeros((2, 2)), "another")))
    junk = st.sampled_from(JUNK)
    if kind in ("number", "count"):
        numbers = (
            -1,
            2.5,
            float("nan"),
            float("inf"),
            [],
            [0.5, 0.5],
            np.zeros((2, 1)),
            1j,
            "0.5",
            np.datetime64(1, "s"),
        )
        return draw(junk | st.sampled_from(numbers[4:] if kind == "number" else numbers))
    if kind == "layers":
        bad = ([-1], [2], [2**40], [-(2**63)], [True], [0.0], ["0"], [[0]], 0, [0, 1], [], np.array([2**64 - 1]))
        return draw(junk | st.sampled_from(bad))
    how = draw(st.sampled_from(("size", "size", "axes", "dtype", "junk", "ids", "special")))
    shape = list(value.shape)
    if how == "junk":
        return draw(junk)
    if how == "dtype":
        refused = REFUSED if kind in ARRAYS else (*REFUSED, "bool", "float32", "float64")
        return np.zeros(shape, draw(st.sampled_from(refused)))
    if how == "axes":
        return draw(
            st.sampled_from(
                (value[None], value[..., None], value.reshape(-1), np.atleast_1d(value)[:1].sum(axis=0), value.T)
            )
        )
    if how == "size" and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = draw(st.sampled_from((shape[axis] + 1, max(shape[axis] - 1, 0), 1, 0, 4 * shape[axis])))
        return np.resize(value, shape) if value.size else np.zeros(shape, value.dtype)
    if kind in ARRAYS:
        if value.size and value.dtype.kind == "f" and kind == "floats":
            value = value.copy()
            value.flat[rng.integers(value.size)] = draw(st.sampled_from((np.nan, np.inf, -np.inf)))
        return value
    if value.size:
        upper = sizes["T"] + 1 if kind == "lengths" else sizes["V"]
        bad = draw(st.sampled_from((upper, upper + 1, *BAD_IDS)))
        value = value.astype("uint64" if bad >= 2**63 else "int64")
        value.flat[rng.integers(value.size)] = bad
    return value


@st.composite
def calls(draw: Any, function: str, right: bool = False) -> Call:
    """Arguments of the function: right ones, or with one or two of them spoilt."""
    takes = draw(st.sampled_from(TAKES[function]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    forward = None
    sizes: dict[str, Any] = {}
    for text in takes.values():
        if text.startswith("cache:"):
            forward = draw(calls(text.removeprefix("cache: "), right=True))
            sizes = forward.sizes
    drawn = dict(sizes)
    for name in re.findall(
        r"\*\w|[A-Z]", " ".join(_kind(text)[1] for text in takes.values() if _kind(text)[0] in SHAPED)
    ):
        if name not in drawn:
            many = draw(st.integers(0, 3)) if name[0] == "*" else None
            size = st.sampled_from(SIZES)
            drawn[name] = draw(size) if many is None else tuple(draw(size) % 6 for _ in range(many))
    if right:  # what no forward pass refuses
        drawn["V"] = max(drawn.get("V", 1), 1)
    dtype = draw(st.sampled_from(USUAL))
    plain: dict[str, Any] = {}
    kinds = {name.removesuffix("?"): _kind(text) for name, text in takes.items()}
    for name, (kind, rest) in kinds.items():
        if kind != "cache" and (f"{name}?" not in takes or draw(st.booleans())):
            plain[name] = _good(draw, rng, kind, rest, drawn, dtype)
    names = [name for name in kinds if name in plain or kinds[name][0] == "cache"]
    spoilt = [] if right else draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    values = {}
    for name in names:
        value = plain.get(name)
        if name in spoilt:
            value = _spoilt(draw, rng, kinds[name][0], value, drawn)
        elif kinds[name][0] == "cache":
            continue
        # A list without elements has lost its shape, and might have a forward pass fail.
        lasting = isinstance(value, np.ndarray) and (value.size or not right)
        if lasting and kinds[name][0] in SHAPED and value.dtype.kind in "fiub":
            value = LAYOUTS[draw(st.sampled_from(("contiguous",) * 4 + tuple(LAYOUTS)))](value)
        values[name] = value
    return Call(function, takes, values, drawn if right else sizes, forward)


# ---- what must come of it ------------------------------------------------------------------------------------------

Faults = dict[type[Exception], set[str]]


def _is_real(dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return dtype.newbyteorder("=") in (np.float32, np.float64)
    return dtype.kind in "iub"


def _predict(call: Call) -> tuple[Faults, dict[str, Any], Any]:
    """The errors that may be raised, each with the arguments that it may name; none: what the oracle is given, and the
    dtype of the results."""
    faults: Faults = {}
    kinds = {name.removesuffix("?"): _kind(text) for name, text in call.takes.items()}
    clean: dict[str, Any] = {}
    shapes = {}
    readable = True

    def fault(error: type[Exception], *names: str) -> None:
        faults.setdefault(error, set()).update(names)

    for name, value in call.given.items():
        kind, rest = kinds[name]
        clean[name] = value
        if kind == "cache":
            fault(ValueError if isinstance(value, str) and value == "another" else TypeError, name)
        elif kind == "flag":
            if not isinstance(value, (bool, np.bool_)):
                fault(TypeError, name)
        elif kind == "word":
            if not (isinstance(value, str) and value in ("NCHW", "NHWC")):
                fault(ValueError, name)
        elif value is None and f"{name}?" in call.takes and kind in SHAPED:
            del clean[name]
        else:
            try:
                seen = np.asarray(value)
            except ValueError:
                fault(ValueError, name)  # it is ragged
                readable = False
                continue
            clean[name] = seen
            if kind in ("number", "count"):
                if seen.dtype.kind not in "fiub":
                    fault(TypeError, name)
                elif seen.size != 1:
                    fault(ValueError, name)
                elif kind == "count" and not (seen.item() >= 0 and float(seen.item()).is_integer()):
                    fault(ValueError, name)
                else:
                    clean[name] = float(seen.reshape(())[()])
                continue
            if kind in ARRAYS:
                wrong = not _is_real(seen.dtype)
            elif kind == "mask":
                wrong = seen.dtype.kind not in "fiub" or not bool(np.isin(seen, (0, 1)).all())
            elif isinstance(value, np.ndarray) or seen.size or seen.dtype.kind != "f":
                wrong = seen.dtype.kind not in "iu" and not (kind in ("lengths", "layers") and not seen.size)
            else:
                wrong = False  # an empty list
            if wrong:
                fault(TypeError, name)
            if kind == "layers":
                if seen.ndim != 1:
                    fault(ValueError, name)
                elif len(seen) != 1:
                    fault(ValueError, "style_targets", "style_weights")
                elif not wrong and not 0 <= seen[0] < 2:
                    fault(IndexError, name)
                elif not wrong and seen[0] != int(rest):
                    kinds["style_targets[0]"] = _kind(_STYLES[int(seen[0])]["style_targets[0]"])
            else:
                shapes[name] = seen.shape
    sizes = _fit({name: kind[1] for name, kind in kinds.items()}, shapes, call.sizes)
    if sizes is None:
        fault(ValueError, *shapes)
    elif readable:
        _check_values(call, kinds, clean, sizes, fault)
    return faults, clean, None if faults else _dtype(call, clean, kinds)


def _check_values(call: Call, kinds: Any, clean: dict[str, Any], sizes: dict[str, Any], fault: Any) -> None:
    """Ids and lengths against their ranges, and sizes that a mean cannot be taken over."""
    for name, seen in clean.items():
        kind = kinds[name][0]
        if kind in ("ids", "targets", "lengths") and seen.dtype.kind in "iu":
            upper = sizes["T"] + 1 if kind == "lengths" else sizes["V"]
            bad = np.array([not 0 <= int(i) < upper for i in seen.flat], bool).reshape(seen.shape)
            if kind == "targets":
                counted = clean["mask"]
                if counted.dtype.kind not in "fiub":
                    continue
                bad &= counted.astype(bool)
            if bad.any():
                fault(ValueError if kind == "lengths" else IndexError, name)
    function = call.function
    if function.endswith("softmax_loss") and sizes["N"] == 0:
        fault(ValueError, "x", "h")
    if function.startswith("gram") and clean.get("normalize", True) and 0 in (sizes["C"], sizes["H"], sizes["W"]):
        fault(ValueError, "features")
    if function.startswith("style"):
        for index, axes in enumerate(("CHW", "EIJ")):
            if list(np.asarray(clean["style_layers"]).flat) == [index] and 0 in (sizes[axis] for axis in axes):
                fault(ValueError, f"feats[{index}]")


def _dtype(call: Call, clean: dict[str, Any], kinds: Any) -> np.dtype:
    function = call.function
    if call.forward:
        return _predict(call.forward)[2]
    arrays = {name: seen.dtype for name, seen in clean.items() if kinds[name][0] in ARRAYS}
    if function in conformance.OPTIM_STATE:
        arrays = {"w": arrays["w"]}
    elif function == "gram_backward":
        arrays = {"features": arrays["features"]}
    elif function.startswith("style"):
        arrays = {name: dtype for name, dtype in arrays.items() if name.startswith("feats")} | {"": np.dtype("f4")}
    dtype = np.result_type(*arrays.values())
    return dtype.newbyteorder("=") if dtype.kind == "f" else np.dtype("f8")


def _run(m: Any, call: Call, given: dict[str, Any], cache: Any = None) -> Any:
    """The call on module `m`; entries of lists and of the config are put together."""
    positional = {}
    lists: dict[str, list[Any]] = {}
    config: dict[str, Any] = {}
    for name in call.takes:
        name = name.removesuffix("?")
        if name == "cache":
            positional[name] = given.get(name, cache)
        elif name in given:
            whole, _, key = name.partition("[")
            if whole == "config":
                config[key.strip("']")] = given[name]
            elif key:
                lists.setdefault(whole, []).append(given[name])
                positional[whole] = lists[whole]
            else:
                positional[name] = given[name]
    if call.function not in conformance.OPTIM_STATE:
        return getattr(m, call.function)(**positional)
    before = dict(config)
    try:
        return getattr(m, call.function)(**positional, config=config)
    except Exception:
        assert config.keys() == before.keys() and all(config[key] is before[key] for key in config), "config changed"
        raise


def _results(call: Call, raw: Any) -> list[Any]:
    """All arrays and numbers of the results; the cache is left out."""
    if call.function.endswith("_forward"):
        raw = raw[:-1]
    if call.function in conformance.OPTIM_STATE:
        state = (*conformance.OPTIM_STATE[call.function], *(("t",) if call.function == "adam" else ()))
        raw = (raw[0], *(raw[1][key] for key in state))

    def flat(value: Any) -> list[Any]:
        return [part for item in value for part in flat(item)] if isinstance(value, (tuple, list)) else [value]

    return flat(raw)


def _as_oracle_takes(call: Call, clean: dict[str, Any], dtype: Any) -> dict[str, Any]:
    kinds = {name.removesuffix("?"): _kind(text)[0] for name, text in call.takes.items()}
    cast = {**dict.fromkeys(ARRAYS, dtype), **dict.fromkeys(("ids", "targets", "lengths", "layers"), np.int64)}
    cast["mask"] = bool
    return {name: np.array(v, cast[kinds[name]]) if kinds[name] in cast else v for name, v in clean.items()}


def _oracle(call: Call, clean: dict[str, Any], dtype: Any) -> list[tuple[Any, Any]]:
    """What the oracle gives in the dtype and in a wider one, from the same inputs."""
    both = []
    for wide in (dtype, conformance.EXACT[dtype.name]):
        cache = None
        if call.forward:
            before = _as_oracle_takes(call.forward, _predict(call.forward)[1], dtype)
            before = _as_oracle_takes(call.forward, before, wide)
            *_, cache = _run(reference, call.forward, before)
        inputs = _as_oracle_takes(call, _as_oracle_takes(call, clean, dtype), wide)
        both.append(_results(call, _run(reference, call, inputs, cache)))
    return list(zip(*both, strict=True))


def _judge(results: list[Any], expected: list[tuple[Any, Any]], dtype: np.dtype) -> str:
    """What is wrong with the results.

    The tolerance rule for all of them together, and the inputs with them: of a single number, whose rounding errors
    may cancel in the oracle, it would ask for as much luck.
    """
    if len(results) != len(expected):
        return f"gives {len(results)} results instead of {len(expected)}"
    columns: list[list[np.ndarray]] = [[], [], []]
    for at, (result, (oracle, exact)) in enumerate(zip(results, expected, strict=True)):
        wrong = conformance.complaint(result, oracle, dtype)
        if wrong:
            return f"result {at} {wrong}"
        # Where the oracle is not finite, the result is the same thing that is not finite.
        special = ~np.isfinite(np.asarray(oracle, np.float64))
        if not np.array_equal(np.asarray(result)[special], np.asarray(oracle)[special], equal_nan=True):
            return f"result {at} is {np.asarray(result).tolist()}, expected {np.asarray(oracle).tolist()}"
        for column, value in zip(columns, (result, oracle, exact), strict=True):
            column.append(np.where(special, 0, np.asarray(value)).ravel())
    whole = [np.concatenate([*column, [LARGEST]]) for column in columns]
    error, bound = conformance.error_and_bound(*whole, dtype)
    return "" if conformance.within(error, bound) else f"off by {error:.3g}, allowed {bound:.3g}"


def _photograph(value: Any) -> Any:
    """What must be the same after the call: all memory behind an array, what lies between its elements included."""
    if isinstance(value, Foreign):
        value = value.array
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return conformance._whole(value.view(np.ndarray)).tobytes()
    return repr(value)


def _another_cache(function: str) -> Cache:
    if function == "affine_backward":
        return fastrnn.temporal_affine_forward(np.ones((1, 1, 1)), np.ones((1, 1)), np.ones(1))[1]
    return fastrnn.affine_forward(np.ones((1, 1)), np.ones((1, 1)), np.ones(1))[1]


def _attempt(call: Call, backend: str) -> Any:
    """Results, or the exception."""
    given = dict(call.given)
    with fastrnn.backend(backend):
        if isinstance(given.get("cache"), str) and given["cache"] == "another":
            given["cache"] = _another_cache(call.function)
        cache = None
        if call.forward:
            *_, cache = _run(fastrnn, call.forward, call.forward.given)
        try:
            return _results(call, _run(fastrnn, call, given, cache))
        except Exception as error:
            return error


def _complaint(call: Call) -> str:
    """What is wrong with what comes of the call, on any backend."""
    faults, clean, dtype = _predict(call)
    before = {name: _photograph(value) for name, value in call.given.items()}
    messages = set()
    finite = all(
        np.isfinite(value).all() for value in clean.values() if getattr(value, "dtype", np.dtype("?")).kind == "f"
    )
    with nullcontext() if finite else np.errstate(all="ignore"):
        expected = [] if faults else _oracle(call, clean, dtype)
        outcomes = {backend: _attempt(call, backend) for backend in BACKENDS}
    for backend, outcome in outcomes.items():
        failed = isinstance(outcome, Exception)
        if failed:
            message = f"{type(outcome).__name__}: {outcome}"
            messages.add(message)
            found = re.match(rf"{call.function}: argument '(.*?)' must .+, got .+", str(outcome), re.DOTALL)
            if not faults:
                return f"{backend}: refused: {message}"
            if not found:
                return f"{backend}: names not the function, the argument, expected and actual: {message}"
            if type(outcome) not in faults or found[1] not in faults[type(outcome)]:
                return f"{backend}: expected one of {faults}, got {message}"
        elif faults:
            return f"{backend}: accepted; expected one of {faults}"
        else:
            wrong = _judge(outcome, expected, dtype)
            if wrong:
                return f"{backend}: {wrong}"
    if len(messages) > 1:
        return f"backends disagree: {messages}"
    changed = [name for name, value in call.given.items() if _photograph(value) != before[name]]
    return f"modified {changed}" if changed else ""


# ---- tests ---------------------------------------------------------------------------------------------------------


def test_every_function_is_here():
    assert set(TAKES) == set(reference.__all__) - {"sigmoid"}


@pytest.mark.parametrize("function", TAKES)
def test_the_result_or_the_documented_error(function):
    @PROFILE
    @given(calls(function))
    def attempt(call):
        wrong = _complaint(call)
        assert not wrong, f"{wrong}\n{call!r}"

    attempt()
