"""How far every kernel is from the exact result where rounding hurts most, beside PyTorch: `make accuracy`.

Each trial runs on every instruction set of the C++ kernels that this machine has, on Numba, in NumPy (the oracle) and
in PyTorch, in float32 and float64, and in precision medium where kernels have it. All are held against the same
mathematics in long double, where long sums are added in slices. The bits of our results are compared between 1, 2, 3
and 4 threads, two runs, two processes, and the instruction sets.

Exit code: 0; 1 if a kernel breaks the tolerance rule, or results differ that must be the same; 2 for bad usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastrnn
from bench import bench_embedding, bench_gram, bench_softmax_loss, recurrent
from bench.common import Arrays, Peer, array, rng, tensor
from fastrnn import conformance, reference
from fastrnn.cli import common
from fastrnn.runs import write_whole

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
THREADS = (1, 2, 3, 4)
COUNTS = (*THREADS, THREADS[-1])
SECOND = "a second run"
# Kinds of arithmetic: the dtype, and the precision of float32 products.
KINDS = {"float32": ("float32", "highest"), "float64": ("float64", "highest"), "medium": ("float32", "medium")}
WIDE = np.longdouble
Outputs = tuple[Any, ...]


# ---- what is tried ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One computation on inputs that are hard on it.

    Attributes
    ----------
    name, title, about : str
        In keys and on the command line; as a heading; what the inputs are.
    outputs : tuple of str
        Names of the results.
    inputs : callable
        ``inputs()`` makes the arrays, floating ones in float64; two calls make the same.
    run : callable
        ``run(m, arrays)`` computes the results by the functions of `m`, ``fastrnn`` or its reference.
    peers : mapping of str to callable
        PyTorch's way, by kind of arithmetic, as `bench.common.Peer` in mode ``"both"``.
    exact : callable, optional
        ``exact(arrays)`` on arrays in long double, where the reference in long double would not be exact enough.
    ulp : bool
        Whether errors are told element by element, in units in the last place of the exact result. There are no
        products to round in lower precision, then.
    mode : str
        Of the benchmark that `peers` are of.
    """

    name: str
    title: str
    about: str
    outputs: tuple[str, ...]
    inputs: Callable[[], Arrays]
    run: Callable[[Any, Arrays], Outputs]
    peers: dict[str, Peer] = field(default_factory=dict)
    exact: Callable[[Arrays], Outputs] | None = None
    ulp: bool = False
    mode: str = "both"

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if not (self.ulp and kind == "medium")]


def cast(arrays: Arrays, dtype: Any) -> Arrays:
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def every_exponent(dtype: str, mantissas: int) -> np.ndarray:
    """Numbers of both signs with every exponent that the dtype has, denormal ones included, as a column."""
    limits = np.finfo(dtype)
    exponents = np.repeat(np.arange(limits.minexp - limits.nmant, limits.maxexp), mantissas)
    mantissa = rng().uniform(1, 2 - float(limits.eps), exponents.shape)  # what is more would round to an infinity
    x = np.ldexp(mantissa, exponents)
    return np.concatenate([x, -x])[:, None]


def activation_inputs(mantissas: int) -> Arrays:
    """Numbers of float32's range for every dtype; beyond it sigmoid and tanh are 0, 1 or x."""
    return {"x": every_exponent("float32", mantissas)}


def sigmoid(m: Any, a: Arrays) -> Outputs:
    """As the forget gate of an LSTM whose cell state is 1, and to which nothing is added."""
    x, zero = a["x"], np.zeros_like(a["x"])
    wx = np.array([[0, 1, 0, 0]], x.dtype)
    return (m.lstm_step_forward(x, zero, zero + 1, wx, 0 * wx, 0 * wx[0])[1],)


def tanh(m: Any, a: Arrays) -> Outputs:
    x, one = a["x"], np.ones((1, 1), a["x"].dtype)
    return (m.rnn_step_forward(x, np.zeros_like(x), one, 0 * one, 0 * one[0])[0],)


def torch_function(name: str, a: Arrays, mode: str) -> tuple[Any, Any]:
    import torch

    return lambda: getattr(torch, name)(tensor(a["x"])), lambda result: (array(result),)


def recurrent_inputs(cell: str, shape: tuple[int, ...], saturated: bool) -> Arrays:
    a = recurrent._inputs(cell, shape, np.float64)
    if saturated:
        draw = rng()
        rows, columns = a["Wx"].shape
        # Each gate takes one input as it is: a sum of several near 100 would round those that come out near 0, and
        # which of two equally good sums does so less is chance.
        a["Wx"] = np.zeros((rows, columns))
        a["Wx"][draw.integers(0, rows, columns), np.arange(columns)] = 1
        a["x"] = draw.uniform(-100, 100, a["x"].shape)
    if cell == "rnn" and not saturated:
        a["Wh"] = a["Wh"] / 2  # so that it forgets: at a gain of 1 errors grow from step to step, in any arithmetic
    return a


def recurrent_trial(cell: str, name: str, title: str, shape: tuple[int, ...], saturated: bool) -> Trial:
    size = "N, T, D, H = " + ", ".join(f"{one:,}" for one in shape)
    about = f"Forward and backward over whole sequences; {size}."
    if saturated:
        about += " Inputs are uniform between -100 and 100, and each gate takes one of them as it is."
    return Trial(
        f"{cell}_{name}",
        f"{title}: {'vanilla RNN' if cell == 'rnn' else cell.upper()}",
        about,
        ("h", "dx", "dh0", "dWx", "dWh", "db"),
        partial(recurrent_inputs, cell, shape, saturated),
        lambda m, a: recurrent._run(cell, m, a, "both")(),
        {
            "float32": partial(recurrent._torch_peer, cell, False),
            "float64": partial(recurrent._torch_peer, cell, False),
            "medium": partial(recurrent._torch_peer, cell, True),
        },
    )


def embedding_inputs(count: int) -> Arrays:
    draw = rng()
    shape = (count // 100, 100)
    return {"ids": np.ones(shape, np.int64), "W": np.zeros((3, 8)), "dout": 1 + draw.standard_normal((*shape, 8))}


def embedding_exact(a: Arrays) -> Outputs:
    dW = np.zeros(a["W"].shape, WIDE)
    dW[1] = a["dout"].sum(axis=1).sum(axis=0)
    return (dW,)


def gram_exact(a: Arrays) -> Outputs:
    _, C, H, W = a["features"].shape
    rows = a["features"][0].transpose(1, 0, 2)  # a row of positions a slice
    return ((rows @ rows.transpose(0, 2, 1)).sum(axis=0)[None] / (C * H * W),)


def gram_inputs(side: int) -> Arrays:
    return {"features": np.maximum(rng().standard_normal((1, 8, side, side)), 0), "dgram": np.zeros((1, 8, 8))}


def softmax_inputs(shape: tuple[int, ...], draw: Callable[[np.random.Generator], np.ndarray]) -> Arrays:
    generator = rng()
    return {
        "x": draw(generator),
        "y": generator.integers(0, shape[2], shape[:2]),
        "mask": generator.random(shape[:2]) < 0.8,
    }


def adam_inputs(steps: int, weights: int) -> Arrays:
    draw = rng()
    scale = 10.0 ** draw.uniform(-4, 1, weights)  # gradients of many sizes, as layers have them
    return {"w": draw.standard_normal(weights), "dw": (draw.standard_normal((steps, weights)) + 0.3) * scale}


def adam(m: Any, a: Arrays) -> Outputs:
    w: Any = a["w"]
    config: Any = {}
    for dw in a["dw"]:
        w, config = m.adam(w, dw, config)
    return w, config["m"], config["v"]


def adam_exact(a: Arrays) -> Outputs:
    """Kingma and Ba, algorithm 1, the constants of float64 taken as exact."""
    w, m, v = a["w"].copy(), np.zeros_like(a["w"]), np.zeros_like(a["w"])
    rate, beta1, beta2, epsilon = map(WIDE, (1e-3, 0.9, 0.999, 1e-8))
    for t, dw in enumerate(a["dw"], 1):
        m = beta1 * m + (1 - beta1) * dw
        v = beta2 * v + (1 - beta2) * dw * dw
        w = w - rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
    return w, m, v


def torch_adam(a: Arrays, mode: str) -> tuple[Any, Any]:
    import torch

    w = tensor(a["w"].copy()).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def call() -> Any:
        for dw in a["dw"]:
            w.grad = tensor(dw)
            optimizer.step()
        return w, optimizer.state[w]["exp_avg"], optimizer.state[w]["exp_avg_sq"]

    return call, lambda result: tuple(map(array, result))


def in_both(peer: Peer) -> dict[str, Peer]:
    return {"float32": peer, "float64": peer}


def trials(quick: bool) -> Iterator[Trial]:
    """All of them; `quick`: the same at sizes for tests."""
    mantissas = 8 if quick else 256
    for function in (sigmoid, tanh):
        name = function.__name__
        peer = in_both(partial(torch_function, name))
        about = (
            f"Of numbers of both signs with every exponent of float32, denormal ones included, {mantissas} of each, "
            "in a gate of one unit. Errors element by element, in units in the last place (ULP) of the exact result: "
            "of all results, and without those that are denormal numbers."
        )
        make = partial(activation_inputs, mantissas)
        yield Trial(name, f"{name} over the whole range", about, ("y",), make, function, peer, ulp=True)
    for cell in ("lstm", "gru", "rnn"):
        size = (40, 3, 72, 100) if quick else (96, 8, 64, 96)
        yield recurrent_trial(cell, "saturated", "Saturated gates", size, True)
    for cell in ("lstm", "gru", "rnn"):
        steps = 100 if quick else 10_000
        yield recurrent_trial(cell, "long", f"{steps:,} steps", (2, steps, 8, 16), False)

    count = 20_000 if quick else 1_000_000
    yield Trial(
        "embedding",
        f"{count:,} ids in one row of an embedding gradient",
        "Every id is the same word; the gradients added have mean 1 and variance 1, (V, D) = (3, 8).",
        ("dW",),
        partial(embedding_inputs, count),
        lambda m, a: bench_embedding.run(m, a, "backward")(),
        in_both(bench_embedding.torch_embedding),
        embedding_exact,
        mode="backward",
    )
    size_v = 1_000 if quick else 10_000
    shape = (4, 8, size_v)

    def loss(m: Any, a: Arrays) -> Outputs:
        return tuple(bench_softmax_loss.run(m, a, "both")())

    peer = in_both(bench_softmax_loss.torch_cross_entropy)
    for name, what, draw in (
        ("softmax_wide", "between -10,000 and 10,000", lambda g: g.uniform(-1e4, 1e4, shape)),
        ("softmax_far", "near 10,000, standard deviation 1", lambda g: 1e4 + g.standard_normal(shape)),
    ):
        title = f"Softmax loss, logits {what}"
        about = f"temporal_softmax_loss, loss and gradient; N, T, V = 4, 8, {size_v:,}."
        make = partial(softmax_inputs, shape, draw)
        yield Trial(name, title, about, ("loss", "dx"), make, loss, peer)
    yield Trial(
        "vocab",
        f"Loss over a vocabulary of {size_v:,} words",
        f"vocab_softmax_loss, the projection to the vocabulary included; N, T, H, V = 4, 8, 64, {size_v:,}.",
        ("loss", "dh", "dW", "db"),
        lambda: bench_softmax_loss.masked_inputs((4, 8, 64, size_v), np.float64),
        lambda m, a: bench_softmax_loss.run_vocab(m, a, "both")(),
        in_both(bench_softmax_loss.torch_vocab),
    )
    side = 100 if quick else 1_000
    yield Trial(
        "gram",
        f"Gram matrix of {side * side:,} positions",
        "Eight channels of features that are 0 in half of the places, as after a ReLU.",
        ("gram",),
        partial(gram_inputs, side),
        lambda m, a: bench_gram.run(m, a, "forward")(),
        in_both(bench_gram.torch_bmm),
        gram_exact,
        mode="forward",
    )
    steps = 100 if quick else 1_000
    yield Trial(
        "adam",
        f"{steps:,} steps of Adam",
        "512 weights, a new gradient in each step, of sizes from 1e-4 to 10; weights and both running means.",
        ("w", "m", "v"),
        partial(adam_inputs, steps, 512),
        adam,
        in_both(torch_adam),
        adam_exact,
    )


# ---- running our kernels ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a backend computed in one trial and kind of arithmetic, and what other thread counts did to it."""

    results: Outputs
    threads: int
    """The most that took part."""
    changed: tuple[str, ...] = ()
    """Circumstances in which the bits were others."""


def bits(results: Outputs) -> list[bytes]:
    return [np.asarray(one).tobytes() for one in results]


def ran_on(backend: str, trial: Trial, arrays: Arrays, kind: str, counts: tuple[int, ...]) -> Ran | None:
    """A trial on a backend, once for each number of threads; None if it has no kernel of that kind."""
    dtype, precision = KINDS[kind]
    given = cast(arrays, dtype)
    threads, before = fastrnn.get_num_threads(), fastrnn.get_float32_matmul_precision()
    first: Outputs | None = None
    most, changed = 0, []
    fastrnn.set_float32_matmul_precision(precision)
    try:
        with fastrnn.backend(backend):
            for run, count in enumerate(counts):
                fastrnn.set_num_threads(count)
                results = trial.run(fastrnn, given)
                last: Any = fastrnn.last_backend()
                if str(last) != backend:
                    raise RuntimeError(f"{trial.name} ran on {last}, not on {backend}")
                if last.precision != precision:
                    return None  # a kernel without products, or without such ones
                most = max(most, last.threads)
                first = results if first is None else first
                if bits(results) != bits(first):
                    changed.append(SECOND if count in counts[:run] else f"a run on {count} threads")
    finally:
        fastrnn.set_num_threads(threads)
        fastrnn.set_float32_matmul_precision(before)
    assert first is not None
    return Ran(first, most, tuple(changed))


def key(trial: Trial, kind: str) -> str:
    return f"{trial.name} {kind}"


def everything_on(backend: str, quick: bool, counts: tuple[int, ...] = COUNTS) -> dict[str, Ran]:
    """All trials on a backend, by trial and kind."""
    found = {}
    for trial in trials(quick):
        arrays = trial.inputs()
        for kind in trial.kinds:
            ran = ran_on(backend, trial, arrays, kind, counts)
            if ran is not None:
                found[key(trial, kind)] = ran
    return found


def save(path: Path, every: dict[str, Ran]) -> None:
    saved: dict[str, Any] = {f"{name} {i}": one for name, ran in every.items() for i, one in enumerate(ran.results)}
    saved["facts"] = json.dumps({name: (len(ran.results), ran.threads, ran.changed) for name, ran in every.items()})
    np.savez(path, **saved)


def load(path: Path) -> dict[str, Ran]:
    with np.load(path) as saved:
        facts = json.loads(str(saved["facts"]))
        return {
            name: Ran(tuple(saved[f"{name} {i}"] for i in range(count)), threads, tuple(changed))
            for name, (count, threads, changed) in facts.items()
        }


def forced(isa: str, quick: bool) -> dict[str, Ran]:
    """All trials in a new process: the instruction set is chosen once, when the kernels are imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.npz"
        command = [sys.executable, str(Path(__file__).resolve()), "--results", str(path), *(["--quick"] * quick)]
        environment = os.environ | {"FASTRNN_ISA": isa, "FASTRNN_BACKEND": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"on instruction set {isa}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        return load(path)


# ---- errors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """How far a provider's results are from the exact ones, the worst of a trial's outputs."""

    relative: float
    """``max|result - exact| / max|exact|``."""
    eps: float
    """The same in units of the arithmetic's eps."""
    ratio: float
    """Of the error over the bound of the tolerance rule."""
    ulp: float
    """Of the worst element, in units in its last place; NaN where it was not asked for."""
    normal_ulp: float
    """The same where the exact result is not denormal."""

    @property
    def good(self) -> bool:
        return self.ratio <= 1  # which NaN is not


def error_of(trial: Trial, results: Outputs, oracle: Outputs, exact: Outputs, kind: str) -> Error:
    dtype = np.dtype(KINDS[kind][0])
    eps = conformance.BF16_EPS if kind == "medium" else float(np.finfo(dtype).eps)
    relative = ratio = ulp = normal_ulp = 0.0
    for result, naive, right in zip(results, oracle, exact, strict=True):
        error, bound = conformance.error_and_bound(result, naive, right, dtype, eps)
        largest = float(np.max(np.abs(right)))
        relative = max(relative, error / largest if np.isfinite(error) else np.inf)
        ratio = max(ratio, conformance.ratio_of(error, bound))
        if trial.ulp:
            unit = np.maximum(np.spacing(np.abs(right).astype(dtype)), np.finfo(dtype).smallest_subnormal)
            off = np.abs(result - right) / unit
            ulp = max(ulp, float(np.max(off)))
            normal_ulp = max(normal_ulp, float(np.max(off[np.abs(right) >= np.finfo(dtype).tiny])))
    if not trial.ulp:
        ulp = normal_ulp = float("nan")
    return Error(relative, relative / eps, ratio, ulp, normal_ulp)


def oracle_of(trial: Trial, arrays: Arrays, kind: str) -> Outputs:
    """NumPy's results in the dtype; its products rounded as the kernels' are in precision medium."""
    given = cast(arrays, KINDS[kind][0])
    if kind == "medium":
        rounded = conformance.LOWER_PRECISION["cpu", kind][0]
        given = {name: a.view(rounded) if a.dtype.kind == "f" else a for name, a in given.items()}
    return tuple(np.asarray(one) for one in trial.run(reference, given))


def exact_of(trial: Trial, arrays: Arrays, kind: str) -> Outputs:
    """On the inputs as they are in the dtype, in long double."""
    wide = cast(cast(arrays, KINDS[kind][0]), WIDE)
    return trial.exact(wide) if trial.exact else trial.run(reference, wide)


def torch_of(trial: Trial, arrays: Arrays, kind: str) -> Outputs | None:
    if kind not in trial.peers:
        return None
    call, convert = trial.peers[kind](cast(arrays, KINDS[kind][0]), trial.mode) or (None, None)
    return None if call is None or convert is None else convert(call())


# ---- all of it -------------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What was measured.

    Attributes
    ----------
    ours : dict
        By provider, ``"cpu, avx2"`` or ``"numba"``, and by trial and kind.
    again : dict
        Results of the instruction set that is picked by itself, computed in this process instead of one of their own.
    errors : dict
        By trial and kind, and by provider, NumPy and PyTorch among them.
    """

    trials: list[Trial]
    ours: dict[str, dict[str, Ran]]
    again: dict[str, Ran]
    errors: dict[str, dict[str, Error]]

    def complaints(self) -> list[str]:
        """Where a kernel breaks the rule, or bits differ that must be the same."""
        found = []
        for name, by_provider in self.errors.items():
            for provider, error in by_provider.items():
                if provider in self.ours and not error.good:
                    found.append(f"{name}: {provider} is off by {error.ratio:.2f} of what the tolerance rule allows")
        for provider, every in self.ours.items():
            for name, ran in every.items():
                found += [f"{name}: {provider} has other bits in {what}" for what in ran.changed]
        found += [f"{name}: other bits in another process" for name in self.other_process()[1]]
        return found

    def other_process(self) -> tuple[int, list[str]]:
        """How many results there are of two processes, and those whose bits differ."""
        if not self.again:
            return 0, []
        there = self.ours[f"cpu, {common.isa()}"]
        return len(there), [name for name, ran in there.items() if bits(ran.results) != bits(self.again[name].results)]


def measure(quick: bool, say: Callable[[str], None] = lambda text: None) -> Findings:
    """Run everything, and compare it."""
    ours: dict[str, dict[str, Ran]] = {}
    again: dict[str, Ran] = {}
    if common.compiled() is not None:
        for isa in common.compiled().isa_supported():
            say(f"C++ kernels, {isa}")
            ours[f"cpu, {isa}"] = forced(isa, quick)
        say("C++ kernels, in this process")
        again = everything_on("cpu", quick, THREADS[-1:])
    if not fastrnn.backend_status()["numba"]:
        say("Numba kernels")
        ours["numba"] = everything_on("numba", quick)
    with_torch = importlib.util.find_spec("torch") is not None
    errors: dict[str, dict[str, Error]] = {}
    listed = list(trials(quick))
    for trial in listed:
        say(f"exact results: {trial.title}")
        arrays = trial.inputs()
        exacts: dict[str, Outputs] = {}  # medium has float32's
        for kind in trial.kinds:
            name, dtype = key(trial, kind), KINDS[kind][0]
            computed = {provider: every[name].results for provider, every in ours.items() if name in every}
            if kind == "medium" and not computed:
                continue
            if dtype not in exacts:
                exacts[dtype] = exact_of(trial, arrays, kind)
            exact, oracle = exacts[dtype], oracle_of(trial, arrays, kind)
            computed["NumPy"] = oracle
            theirs = torch_of(trial, arrays, kind) if with_torch else None
            if theirs is not None:
                computed["PyTorch"] = theirs
            errors[name] = {who: error_of(trial, one, oracle, exact, kind) for who, one in computed.items()}
    return Findings(listed, ours, again, errors)


# ---- the page --------------------------------------------------------------------------------------------------------


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def table_of(trial: Trial, findings: Findings) -> list[str]:
    kinds = [kind for kind in KINDS if key(trial, kind) in findings.errors]
    columns = " {}, ULP | of normal results | of the bound |" if trial.ulp else " {} | eps | of the bound |"
    head = "".join(columns.format(kind) for kind in kinds)
    lines = [f"| |{head}", f"|---|{'--:|' * 3 * len(kinds)}"]
    for provider in (*findings.ours, "NumPy", "PyTorch"):
        cells = []
        for kind in kinds:
            error = findings.errors[key(trial, kind)].get(provider)
            if error is None:
                cells += ["–"] * 3
                continue
            wrong = " ✗" if provider in findings.ours and not error.good else ""
            told = [f"{error.relative:.1e}", amount(error.eps)]
            if trial.ulp:
                told = [amount(error.ulp), amount(error.normal_ulp)]
            cells += [*told, f"{amount(error.ratio)}{wrong}"]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {provider} | {' | '.join(cells)} |")
    return lines


def summary(findings: Findings) -> list[str]:
    """One line a trial: the worst of the instruction sets, and the others, in eps or ULP."""
    kinds = ("float32", "float64")
    names = ("C++", "Numba", "NumPy", "PyTorch")
    lines = [f"| |{''.join(f' {kind}: {names[0]} | Numba | NumPy | PyTorch |' for kind in kinds)}"]
    lines.append(f"|---|{'--:|' * len(kinds) * len(names)}")
    for trial in findings.trials:
        cells = []
        for kind in kinds:
            errors = findings.errors[key(trial, kind)]
            groups = [[who for who in errors if who.startswith("cpu, ")], ["numba"], ["NumPy"], ["PyTorch"]]
            for group in groups:
                there = [errors[who].normal_ulp if trial.ulp else errors[who].eps for who in group if who in errors]
                cells.append(amount(max(there)) if there else "–")
        lines.append(f"| {trial.title} | {' | '.join(cells)} |")
    return lines


def amount(value: float) -> str:
    """Two digits, and all of those before the point."""
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def repeatable(findings: Findings) -> list[str]:
    lines = ["## Repeatable", ""]
    lines += wrapped(
        f"The bits of all results above, compared. Thread counts are {', '.join(map(str, THREADS))}, and "
        f"{THREADS[-1]} once more; small problems use fewer than they may, and how many took part is what the kernels "
        "say (0: they cannot tell)."
    )
    lines += ["", "| | results | the same at all thread counts | in a second run | most threads that took part |"]
    lines += ["|---|--:|--:|--:|--:|"]
    for provider, every in findings.ours.items():
        second = sum(SECOND not in ran.changed for ran in every.values())
        counts = sum(not set(ran.changed) - {SECOND} for ran in every.values())
        most = max(ran.threads for ran in every.values())
        lines.append(f"| {provider} | {len(every)} | {counts} | {second} | {most} |")
    count, others = findings.other_process()
    if count:
        lines += ["", f"In another process, {common.isa()}: {count - len(others)} of {count} are the same."]
    lines += ["", *wrapped("Between instruction sets, and between C++ and Numba, sums are added in another order:"), ""]
    lines += ["| | | results | the same |", "|---|---|--:|--:|"]
    for one, two in combinations(findings.ours, 2):
        shared = [name for name in findings.ours[one] if name in findings.ours[two]]
        alike = sum(bits(findings.ours[one][name].results) == bits(findings.ours[two][name].results) for name in shared)
        lines.append(f"| {one} | {two} | {len(shared)} | {alike} |")
    return lines


def page(findings: Findings, commit: str) -> str:
    of = f"commit {commit}" if commit else f"version {fastrnn.__version__}"
    versions = ", ".join(f"{name}={version}" for name, version in common.versions().items() if version)
    lines = ["# Accuracy", ""]
    lines += wrapped(
        "How far the kernels are from the exact result where rounding hurts most: saturated gates, long sequences, "
        "long sums. `make accuracy` measures it and writes this page."
    )
    lines += [
        "",
        *wrapped(f"Of {of}, {date.today().isoformat()}; {common.hardware()}; {versions}."),
        "",
        *wrapped(
            f"Exact is the same mathematics in long double, {np.finfo(WIDE).nmant + 1} bits of mantissa here, on the "
            "inputs as they are in the dtype; long sums are added there in slices. The error is norm-wise, "
            "max|result - exact| / max|exact|, of the worst output of each trial, gradients included; beside it the "
            "same in units of eps, 2^-23 for float32, 2^-52 for float64, and 2^-7 in precision medium, whose products "
            "take operands in bfloat16. NumPy is the reference implementation in the same dtype, with operands rounded "
            "likewise in precision medium; PyTorch's medium is all in bfloat16."
        ),
        "",
        *wrapped(
            "The bound is that of the [tolerance rule](../CONTRIBUTING.md#the-tolerance-rule), twice NumPy's error and "
            "4 eps of the largest: at most 1 of it is right, for ours. PyTorch's part of it is only told for "
            "comparison. Backend cuda is not on this page."
        ),
    ]
    wrong = findings.complaints()
    tried = sum(provider in findings.ours for errors in findings.errors.values() for provider in errors)
    lines += ["", f"**{tried} results of our kernels: {f'{len(wrong)} complaints' if wrong else 'all are right'}.**"]
    lines += [f"- ✗ {one}" for one in wrong]
    lines += ["", "## At a glance", ""]
    lines += wrapped(
        "Errors in eps; those of sigmoid and tanh in ULP, where results are normal numbers. C++ is the worst of the "
        "instruction sets that ran here. Less is better."
    )
    lines += ["", *summary(findings)]
    for trial in findings.trials:
        lines += ["", f"## {trial.title}", "", *wrapped(trial.about), "", *table_of(trial, findings)]
    return "\n".join([*lines, "", *repeatable(findings)]) + "\n"


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, some seconds; the page is printed unless --out is given")
    add("--out", type=Path, metavar="FILE", help="where the page goes; docs/accuracy.md unless given")
    add("--results", type=Path, help=argparse.SUPPRESS)  # what a process of one instruction set writes
    options = parser.parse_args()
    if np.finfo(WIDE).nmant <= np.finfo(np.float64).nmant:
        parser.error("long double is no wider than double here: there is nothing to hold float64 against")
    out = options.out if options.quick or options.out else PAGE
    try:
        common.check_files(out, options.results)
        if options.results:
            save(options.results, everything_on("cpu", options.quick))
            sys.exit(0)
        commit = common.commit()  # before a page is written, which counts as a change
        findings = measure(options.quick, lambda text: print(text, file=sys.stderr, flush=True))
        text = page(findings, commit)
        if out is None:
            print(text, end="")
        else:
            write_whole(out, text.encode())
            print(f"page  {out.resolve()}")
    except typer.Exit as ended:  # what is wrong was said
        sys.exit(ended.exit_code)
    except (OSError, RuntimeError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("accuracy: interrupted", file=sys.stderr)
        sys.exit(common.INTERRUPTED)
    wrong = findings.complaints()
    for one in wrong:
        print(f"accuracy: {one}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
