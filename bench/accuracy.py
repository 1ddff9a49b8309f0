"""How far every kernel is from the exact result where rounding hurts most, beside PyTorch: `make accuracy`.

Each trial runs on every instruction set of the C++ kernels that this machine has, on Numba, in NumPy (the oracle) and
in PyTorch, in float32 and float64, and in precisions medium and high where kernels have them. All are held against the
same mathematics in long double, where long sums are added in slices. The bits of our results are compared between
numbers of threads, two runs, a process and its fork, two processes, and the instruction sets.

Exit code: 0; 1 if a kernel breaks the tolerance rule, or results differ that must be the same; 2 for bad usage.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
from bench import bench_embedding, bench_gram, bench_softmax_loss, evidence, recurrent
from bench.common import Arrays, Peer, array, rng, tensor
from fastrnn import conformance, reference
from fastrnn.cli import common
from fastrnn.runs import write_whole

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
# More of them than a small machine has: what they compute must not depend on that.
THREADS = (1, 2, 3, 4)
SECOND, FORK, PROCESS = "in a second run", "in a fork of the process", "in another process"
# Kinds of arithmetic: the dtype, and the precision of float32 products.
KINDS = {
    "float32": ("float32", "highest"),
    "float64": ("float64", "highest"),
    "medium": ("float32", "medium"),
    "high": ("float32", "high"),
}
LOWER = [kind for kind in KINDS if ("cpu", kind) in conformance.LOWER_PRECISION]
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
    threads : tuple of int
        Numbers of threads that may take part, the first alone and each of the others in its turn.
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
    threads: tuple[int, ...] = THREADS

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if not (self.ulp and kind in LOWER)]


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


def recurrent_trial(
    cell: str, name: str, title: str, shape: tuple[int, ...], saturated: bool, threads: tuple[int, ...] = THREADS
) -> Trial:
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
        threads=threads,
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
            "in a gate of one unit. Errors are element by element, in units in the last place (ULP) of the exact "
            "result, where that is a normal number."
        )
        make = partial(activation_inputs, mantissas)
        yield Trial(name, f"{name} over the whole range", about, ("y",), make, function, peer, ulp=True)
    for cell in ("lstm", "gru", "rnn"):
        size = (40, 3, 72, 100) if quick else (96, 8, 64, 96)
        yield recurrent_trial(cell, "saturated", "Saturated gates", size, True)
    for cell in ("lstm", "gru", "rnn"):
        steps = 100 if quick else 10_000
        # Threads meet at every step: with more of them than processors, most of the time is waiting.
        yield recurrent_trial(cell, "long", f"{steps:,} steps", (2, steps, 8, 16), False, threads=(1, 2))

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
        "512 weights, a new gradient in each step, of sizes from 1e-4 to 10; weights and both running means. The "
        "constants count as exact: most of the error in float32 is that 0.999 is rounded, which everyone does.",
        ("w", "m", "v"),
        partial(adam_inputs, steps, 512),
        adam,
        in_both(torch_adam),
        adam_exact,
    )


# ---- running our kernels ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a backend computed in one trial and kind of arithmetic.

    Attributes
    ----------
    results : tuple of ndarray
        Of the first run, on one thread.
    threads : int
        The most that took part in any run; 0 if the kernels do not say.
    same : dict of str to bool
        By circumstance of another run, whether it had the same bits.
    """

    results: Outputs
    threads: int
    same: dict[str, bool]

    def beside(self, circumstance: str, digest: str) -> Ran:
        return replace(self, same=self.same | {circumstance: digest == digest_of(self.results)})


def digest_of(results: Outputs) -> str:
    """The same for the same bits."""
    return hashlib.sha256(b"".join(np.asarray(one).tobytes() for one in results)).hexdigest()


def ran_on(backend: str, trial: Trial, arrays: Arrays, kind: str, once: bool = False) -> Ran | None:
    """A trial on a backend, once for each number of threads, and again; or only once, on most threads.

    None if the backend has no kernel of that kind.
    """
    dtype, precision = KINDS[kind]
    given = cast(arrays, dtype)
    runs = [(f"on {count} threads", count) for count in trial.threads] + [(SECOND, trial.threads[-1])]
    threads, before = fastrnn.get_num_threads(), fastrnn.get_float32_matmul_precision()
    ran: Ran | None = None
    fastrnn.set_float32_matmul_precision(precision)
    try:
        with fastrnn.backend(backend):
            for circumstance, count in runs[-1:] if once else runs:
                fastrnn.set_num_threads(count)
                results = trial.run(fastrnn, given)
                last: Any = fastrnn.last_backend()
                if str(last) != backend:
                    raise RuntimeError(f"{trial.name} ran on {last}, not on {backend}")
                if last.precision != precision:
                    return None  # a kernel without products, or without such ones
                if ran is None:
                    ran = Ran(results, last.threads, {})
                else:
                    ran = replace(ran.beside(circumstance, digest_of(results)), threads=max(ran.threads, last.threads))
    finally:
        fastrnn.set_num_threads(threads)
        fastrnn.set_float32_matmul_precision(before)
    return ran


def key(trial: Trial, kind: str) -> str:
    return f"{trial.name} {kind}"


def each_on(backend: str, quick: bool, once: bool = False) -> Iterator[tuple[str, Ran]]:
    """All trials on a backend, by trial and kind."""
    for trial in trials(quick):
        arrays = trial.inputs()
        for kind in trial.kinds:
            ran = ran_on(backend, trial, arrays, kind, once)
            if ran is not None:
                yield key(trial, kind), ran


def digests(backend: str, quick: bool) -> dict[str, str]:
    """Digests of all results, each computed once, by trial and kind."""
    return {name: digest_of(ran.results) for name, ran in each_on(backend, quick, once=True)}


def forked(function: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process."""
    context: Any = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(function()))
    process.start()
    sending.close()  # so that the end of the fork is seen
    try:
        return receiving.recv()
    except EOFError:
        raise RuntimeError("a fork of the process ended without results") from None
    finally:
        process.join()


def everything_on(backend: str, quick: bool) -> dict[str, Ran]:
    """All trials on a backend, by trial and kind, in this process and then in a fork of it."""
    found = dict(each_on(backend, quick))
    if "fork" in multiprocessing.get_all_start_methods():
        there = forked(partial(digests, backend, quick))
        found = {name: ran.beside(FORK, there[name]) for name, ran in found.items()}
    return found


def save(path: Path, every: dict[str, Ran]) -> None:
    saved: dict[str, Any] = {f"{name} {i}": one for name, ran in every.items() for i, one in enumerate(ran.results)}
    saved["facts"] = json.dumps({name: (len(ran.results), ran.threads, ran.same) for name, ran in every.items()})
    np.savez(path, **saved)


def load(path: Path) -> dict[str, Ran]:
    with np.load(path) as saved:
        facts = json.loads(str(saved["facts"]))
        return {
            name: Ran(tuple(saved[f"{name} {i}"] for i in range(count)), threads, same)
            for name, (count, threads, same) in facts.items()
        }


def in_a_process(backend: str, quick: bool, isa: str = "") -> dict[str, Ran]:
    """All trials in a new process: the instruction set is chosen once, when the kernels are imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.npz"
        script = str(Path(__file__).resolve())
        command = [sys.executable, script, "--results", str(path), "--backend", backend, *(["--quick"] * quick)]
        environment = os.environ | ({"FASTRNN_ISA": isa} if isa else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            where = f"instruction set {isa}" if isa else f"backend {backend}"
            raise RuntimeError(f"on {where}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
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


def eps_of(kind: str) -> float:
    return conformance.LOWER_PRECISION["cpu", kind][1] if kind in LOWER else float(np.finfo(KINDS[kind][0]).eps)


def error_of(trial: Trial, results: Outputs, oracle: Outputs, exact: Outputs, kind: str) -> Error:
    dtype = np.dtype(KINDS[kind][0])
    eps = eps_of(kind)
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
    """NumPy's results in the dtype; operands of its products rounded as the kernels' are in a lower precision."""
    given = cast(arrays, KINDS[kind][0])
    if kind in LOWER:
        rounded = conformance.LOWER_PRECISION["cpu", kind][0]
        given = {name: a.view(rounded) if a.dtype.kind == "f" else a for name, a in given.items()}
    return tuple(np.asarray(one) for one in trial.run(reference, given))


def exact_of(trial: Trial, arrays: Arrays, kind: str) -> Outputs:
    """On the inputs as they are in the dtype, in long double."""
    wide = cast(cast(arrays, KINDS[kind][0]), WIDE)
    return trial.exact(wide) if trial.exact else trial.run(reference, wide)


def torch_of(trial: Trial, arrays: Arrays, kind: str) -> Outputs | None:
    """PyTorch's results; on one thread, for the sake of time where it splits small steps."""
    if kind not in trial.peers:
        return None
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call, convert = trial.peers[kind](cast(arrays, KINDS[kind][0]), trial.mode) or (None, None)
        return None if call is None or convert is None else convert(call())
    finally:
        torch.set_num_threads(threads)


# ---- all of it -------------------------------------------------------------------------------------------------------


# Whose results the page names together, and how to tell them.
GROUPS: dict[str, Callable[[str], bool]] = {
    "C++": lambda who: who.startswith("cpu, "),
    "Numba": lambda who: who == "numba",
    "NumPy": lambda who: who == "NumPy",
    "PyTorch": lambda who: who == "PyTorch",
}


@dataclass
class Findings:
    """What was measured.

    Attributes
    ----------
    ours : dict
        By provider, ``"cpu, avx2"`` or ``"numba"``, and by trial and kind.
    errors : dict
        By trial and kind, and by provider, NumPy and PyTorch among them.
    """

    trials: list[Trial]
    ours: dict[str, dict[str, Ran]]
    errors: dict[str, dict[str, Error]]

    def results(self) -> Iterator[tuple[str, str, Ran]]:
        """All of ours, with trial and kind, and provider."""
        for provider, every in self.ours.items():
            for name, ran in every.items():
                yield name, provider, ran

    def complaints(self) -> list[str]:
        """Where a kernel breaks the rule, or bits differ that must be the same."""
        found = []
        for name, provider, ran in self.results():
            error = self.errors[name][provider]
            if not error.good:
                found.append(f"{name}: {provider} is off by {error.ratio:.2f} of what the tolerance rule allows")
            found += [f"{name}: {provider} has other bits {what}" for what, same in ran.same.items() if not same]
        for name in ("embedding float32", "embedding float64"):
            if self.different(name) > 1:
                found.append(f"{name}: the kernels' bits differ, although all add in the same order")
        return found

    def different(self, name: str) -> int:
        """How many different results our kernels have in a trial and kind."""
        return len({digest_of(every[name].results) for every in self.ours.values() if name in every})

    def worst(self, name: str) -> dict[str, float]:
        """By group, the largest error in a trial and kind: in eps, or in ULP of normal results."""
        (trial,) = [trial for trial in self.trials if name.startswith(f"{trial.name} ")]
        found: dict[str, float] = {}
        for group, belongs in GROUPS.items():
            errors = [error for who, error in self.errors[name].items() if belongs(who)]
            if errors:
                found[group] = max(error.normal_ulp if trial.ulp else error.eps for error in errors)
        return found

    def compared(self) -> dict[str, list[bool]]:
        """By circumstance of another run, whether each result had the same bits."""
        found: dict[str, list[bool]] = {}
        for _, _, ran in self.results():
            for circumstance, same in ran.same.items():
                found.setdefault(circumstance, []).append(same)
        return found


def measure(quick: bool, say: Callable[[str], None] = lambda text: None) -> Findings:
    """Run everything, and compare it."""
    ours: dict[str, dict[str, Ran]] = {}
    usable = []
    if common.compiled() is not None:
        for isa in common.compiled().isa_supported():
            say(f"C++ kernels, {isa}")
            ours[f"cpu, {isa}"] = in_a_process("cpu", quick, isa)
        usable.append(("cpu", f"cpu, {common.isa()}"))
    if not fastrnn.backend_status()["numba"]:
        say("Numba kernels")
        ours["numba"] = in_a_process("numba", quick)
        usable.append(("numba", "numba"))
    for backend, provider in usable:
        say(f"the same in another process: {provider}")
        here = digests(backend, quick)
        ours[provider] = {name: ran.beside(PROCESS, here[name]) for name, ran in ours[provider].items()}
    with_torch = importlib.util.find_spec("torch") is not None
    errors: dict[str, dict[str, Error]] = {}
    listed = list(trials(quick))
    for trial in listed:
        say(f"exact results: {trial.title}")
        arrays = trial.inputs()
        exacts: dict[str, Outputs] = {}  # lower precisions have float32's
        for kind in trial.kinds:
            name, dtype = key(trial, kind), KINDS[kind][0]
            computed = {provider: every[name].results for provider, every in ours.items() if name in every}
            if kind in LOWER and not computed:
                continue
            if dtype not in exacts:
                exacts[dtype] = exact_of(trial, arrays, kind)
            exact, oracle = exacts[dtype], oracle_of(trial, arrays, kind)
            computed["NumPy"] = oracle
            theirs = torch_of(trial, arrays, kind) if with_torch else None
            if theirs is not None:
                computed["PyTorch"] = theirs
            errors[name] = {who: error_of(trial, one, oracle, exact, kind) for who, one in computed.items()}
    return Findings(listed, ours, errors)


# ---- the page --------------------------------------------------------------------------------------------------------


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def point(text: str) -> list[str]:
    """An item of a list."""
    return textwrap.wrap(
        text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def amount(value: float) -> str:
    """Two digits, and all of those before the point."""
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, with numbers in all columns but the first."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def section_of(trial: Trial, findings: Findings) -> list[str]:
    """What a trial is, and every provider's error in each kind of arithmetic."""
    kinds = [kind for kind in KINDS if key(trial, kind) in findings.errors]
    rows, nearest, denormal = [], (0.0, ""), (0.0, "")
    for provider in (*findings.ours, "NumPy", "PyTorch"):
        cells = []
        for kind in kinds:
            error = findings.errors[key(trial, kind)].get(provider)
            if error is None:
                cells.append("–")
                continue
            cells.append(amount(error.normal_ulp if trial.ulp else error.eps))
            if provider in findings.ours:
                cells[-1] += " ✓" if error.good else " ✗"
                nearest = max(nearest, (error.ratio, f"{provider} in {kind}"))
                denormal = max(denormal, (error.ulp, f"{provider} in {kind}"))
        if set(cells) != {"–"}:
            rows.append([provider, *cells])
    lines = ["", f"### {trial.title}", "", *wrapped(trial.about), "", *table(["", *kinds], rows), ""]
    told = f"Nearest to what the rule allows: {nearest[1]}, at {amount(nearest[0])} of it."
    if trial.ulp:
        told += f" With results that are denormal numbers, ours are off by at most {amount(denormal[0])} ULP."
    return lines + wrapped(told)


def glance(findings: Findings) -> list[str]:
    """A table for each kind of arithmetic, one line a trial."""
    lines = []
    for kind in KINDS:
        found = {
            trial.title: findings.worst(key(trial, kind))
            for trial in findings.trials
            if key(trial, kind) in findings.errors
        }
        groups = [group for group in GROUPS if any(group in worst for worst in found.values())]
        rows = [
            [title, *(amount(worst[group]) if group in worst else "–" for group in groups)]
            for title, worst in found.items()
        ]
        if rows:
            lines += ["", *table([kind, *groups], rows)]
    return lines


def beside_torch(findings: Findings) -> list[str]:
    """Where PyTorch's error is smaller than ours, and how often."""
    rows, fewer, more = [], 0, 0
    for trial in findings.trials:
        for kind in KINDS:
            worst = findings.worst(key(trial, kind)) if key(trial, kind) in findings.errors else {}
            theirs = worst.get("PyTorch")
            for group in ("C++", "Numba"):
                if theirs is None or group not in worst:
                    continue
                fewer += worst[group] < theirs
                if worst[group] > theirs:
                    more += 1
                    factor = worst[group] / theirs if theirs else np.inf
                    where = f"{trial.title}: {kind}, {group}"
                    rows.append((factor, [where, amount(worst[group]), amount(theirs)]))
    if not fewer + more:
        return []
    told = (
        f"C++ at its worst and Numba, each beside PyTorch in all that is above: our error is the smaller one in "
        f"{fewer} comparisons, PyTorch's in {more}."
    )
    lines = ["", "## Where PyTorch is nearer", "", *wrapped(told + " These, the largest factor first:" * bool(rows))]
    rows.sort(key=lambda row: -row[0])
    return lines + (["", *table(["", "ours", "PyTorch"], [row for _, row in rows])] if rows else [])


def repeatable(findings: Findings) -> list[str]:
    lines = ["", "## Repeatable", ""]
    lines += wrapped(
        "A result must not depend on the number of threads, and must have the same bits when it is computed again. "
        "Each of the results above was computed on one thread, and compared bit by bit with what came otherwise. (Of "
        "the longest sequences 3 and 4 threads were not tried: they meet at every step, and would mostly wait here.)"
    )
    rows = [[what, str(len(same)), str(len(same) - sum(same))] for what, same in findings.compared().items()]
    lines += ["", *table(["the same result", "compared", "different"], rows), ""]
    lines += wrapped(
        "A second run, a fork and another process are on the most threads, the fork after its parent's have worked. "
        "Small problems use fewer threads than they may; the kernels say how many took part:"
    )
    rows = []
    for provider, every in findings.ours.items():
        threads = [ran.threads for ran in every.values()]
        rows.append([provider, str(len(every)), str(sum(count > 1 for count in threads)), str(max(threads))])
    lines += ["", *table(["", "results", "by several threads", "most threads"], rows), ""]
    count = sum(name in findings.errors for name in ("embedding float32", "embedding float64"))
    same = sum(findings.different(name) == 1 for name in ("embedding float32", "embedding float64"))
    lines += wrapped(
        "**What is not the same.** Instruction sets hold numbers in registers of other widths, and backends add in "
        "other orders; a new version may change an order, too. Results then differ, within the tolerance rule. One "
        "operation is the same on all instruction sets and on Numba: the gradient of word embeddings, whose additions "
        f"have one order everywhere ({same} of {count} are the same here). Whether two models of processor give the "
        "same bits on one instruction set was not tried. Results with the same bits, of those that both compute:"
    )
    rows = []
    for one, two in combinations(findings.ours, 2):
        shared = [name for name in findings.ours[one] if name in findings.ours[two]]
        alike = sum(
            digest_of(findings.ours[one][n].results) == digest_of(findings.ours[two][n].results) for n in shared
        )
        rows.append([f"{one} and {two}", str(len(shared)), str(alike)])
    return [*lines, "", *table(["", "results", "the same"], rows)]


def outcome(findings: Findings) -> tuple[str, str]:
    """What was tried, and what came of it, in half a line each."""
    count = sum(1 for _ in findings.results())
    tried = f"{len(findings.trials)} trials, {count} results of {len(findings.ours)} variants of the kernels"
    wrong = findings.complaints()
    if wrong:
        return tried, f"{len(wrong)} complaints"
    nearest = max(findings.errors[name][provider].ratio for name, provider, _ in findings.results())
    compared = sum(len(same) for same in findings.compared().values())
    return tried, (
        f"all within the tolerance rule, at most {amount(nearest)} of what it allows; "
        f"{compared:,} repetitions with the same bits"
    )


def page(findings: Findings, commit: str) -> str:
    of = f"commit {commit}" if commit else f"version {fastrnn.__version__}"
    versions = ", ".join(f"{name}={version}" for name, version in common.versions().items() if version)
    wrong = findings.complaints()
    lines = ["# Accuracy", ""]
    lines += wrapped(
        "Floating-point results are rounded at every step, and fast code rounds in another order than simple code. "
        "This page shows how far fastrnn's results are from exact ones in the cases where that hurts most: saturated "
        "gates, sequences of 10,000 steps, sums of a million terms, logits of 10,000. NumPy and PyTorch compute the "
        "same on the same inputs. The last part shows what has the same bits each time, and what has not."
    )
    tried, found = outcome(findings)
    lines += ["", *wrapped(f"**{tried}: {found}.**")]
    lines += [f"- ✗ {one}" for one in wrong]
    lines += [
        "",
        "## How to read it",
        "",
        *point(
            "The largest error of any element is divided by the largest element; of a trial's results, gradients "
            "included, the worst counts. The unit is eps, the distance from 1 to the next number: 2^-23 in float32 "
            "(1.2e-7), 2^-52 in float64 (2.2e-16). To round the exact result costs up to half an eps. Less is better."
        ),
        *point(
            f"Exact is the same mathematics in long double, {np.finfo(WIDE).nmant + 1} bits of mantissa here against "
            f"{np.finfo(np.float32).nmant + 1} and {np.finfo(np.float64).nmant + 1}, on the same inputs; sums of a "
            "million terms are added there in slices."
        ),
        *point(
            "NumPy is the plain reference implementation in the same dtype. ✓: at most twice NumPy's error and 4 eps, "
            "the [rule](../CONTRIBUTING.md#the-tolerance-rule) for every kernel. ✗: more. PyTorch is on one thread."
        ),
        *point(
            "cpu is the C++ kernels, on each instruction set that this machine has; where one figure stands for them, "
            "it is their worst. numba is what runs where nothing is compiled. Backend cuda is not on this page."
        ),
        *point(
            "medium and high are float32 with products of lower precision: operands of medium are bfloat16, and its "
            "eps is 2^-7; those of high are two bfloat16 each, and its eps is 2^-16. NumPy's operands are rounded "
            f"likewise; PyTorch's medium is all in bfloat16. {lower_kernels()}"
        ),
        *point(f"Of {of}, {date.today().isoformat()}; {common.hardware()}; {versions}."),
        *point("`make accuracy` writes this page."),
        "",
        "## At a glance",
        "",
    ]
    lines += wrapped("Errors in eps; those of sigmoid and tanh in units in the last place (ULP) of each result.")
    lines += [*glance(findings), *beside_torch(findings), "", "## One by one"]
    for trial in findings.trials:
        lines += section_of(trial, findings)
    return "\n".join([*lines, *repeatable(findings)]) + "\n"


def lower_kernels() -> str:
    """Which of the lower precisions have kernels here."""
    lacking = [kind for kind in LOWER if common.compiled() is None or not common.compiled().has_precision(kind)]
    return f"No kernels here: {' and '.join(lacking)}." if lacking else "Both have kernels here."


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, some seconds; the page is printed unless --out is given")
    add("--out", type=Path, metavar="FILE", help="where the page goes; docs/accuracy.md unless given")
    add("--results", type=Path, help=argparse.SUPPRESS)  # what a process of one backend writes
    add("--backend", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if np.finfo(WIDE).nmant <= np.finfo(np.float64).nmant:
        parser.error("long double is no wider than double here: there is nothing to hold float64 against")
    out = options.out if options.quick or options.out else PAGE
    try:
        common.check_files(out, options.results)
        if options.results:
            save(options.results, everything_on(options.backend, options.quick))
            sys.exit(0)
        start, commit = time.monotonic(), common.commit()
        findings = measure(options.quick, lambda text: print(text, file=sys.stderr, flush=True))
        text = page(findings, commit)
        if out is None:
            print(text, end="")
        else:
            write_whole(out, text.encode())
            print(f"page  {out.resolve()}")
        if out == PAGE and not options.quick and not findings.complaints():
            path = evidence.record("accuracy", *outcome(findings), time.monotonic() - start)
            print(f"record  {path}")
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
