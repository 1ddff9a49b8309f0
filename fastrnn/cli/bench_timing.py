"""Measuring for ``fastrnn bench``: who does a job, whether their results are right, and how long they take."""

from __future__ import annotations

import datetime
import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

import fastrnn
from fastrnn import conformance, reference
from fastrnn.arrays import device, to_host
from fastrnn.backend import EMPTY
from fastrnn.cli import common

# Thread pools of other libraries keep spinning after a call (OpenMP's for 200 ms by default); wait until they sleep.
PAUSE_SECONDS = 0.25
FEWEST_CALLS = 3
MOST_CALLS = 500
# Relative precision of float32 products: "high" may use TF32, or sums of two bfloat16 numbers.
EPS = {"highest": float(np.finfo(np.float32).eps), "high": 2.0**-10, "medium": conformance.BF16_EPS}


@dataclass(frozen=True)
class Settings:
    """What holds for the whole run."""

    ours: str
    peers: tuple[str, ...]
    threads: int
    rounds: int
    seconds: float
    precision: str
    gpu: str = ""
    """Name of the GPU that is timed; empty for the processor."""
    peaks: dict[str, float] = field(default_factory=dict)
    """FLOP/s measured so far, by dtype."""


@dataclass(frozen=True)
class Job:
    """One kernel at one shape, in one mode and dtype. `benchmark` is a ``fastrnn.bench.common.Benchmark``."""

    row: str
    benchmark: Any
    shape: tuple[int, ...]
    mode: str
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.benchmark.kernel} {self.mode} {self.benchmark.axes} = {self.size} {self.dtype}"

    @property
    def size(self) -> str:
        return ",".join(map(str, self.shape))


@dataclass(frozen=True)
class Group:
    """Jobs that are timed together: one alone, or a sweep, the same job over the sizes of one axis."""

    jobs: tuple[Job, ...]
    axis: str = ""
    """The axis that is swept; empty for a job alone."""

    @property
    def title(self) -> str:
        job = self.jobs[0]
        if not self.axis:
            return job.title
        kernel = job.benchmark.kernel
        return f"{kernel} {job.mode} over {self.axis}, {job.benchmark.axes} = {self.base} {job.dtype}"

    @property
    def base(self) -> str:
        """The shape, with the name of the swept axis for its size."""
        place = self.place
        return ",".join(self.axis if at == place else str(size) for at, size in enumerate(self.jobs[0].shape))

    @property
    def place(self) -> int:
        """Position of the swept axis in a shape."""
        names: list[str] = self.jobs[0].benchmark.axes.split()
        return names.index(self.axis)


@dataclass(frozen=True)
class Provider:
    """Somebody who does the job: a call without arguments, and how its result becomes our outputs."""

    name: str
    call: Callable[[], Any]
    convert: Callable[[Any], tuple[Any, ...]]
    eps: float
    """Relative precision of its products."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Complaint(NamedTuple):
    """Why a provider was not timed at a size."""

    provider: str
    size: str
    reason: str


@dataclass
class Measured:
    """What came of a group."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[Complaint] = field(default_factory=list)
    """Results that are wrong, and a failure of ours."""
    failed: list[Complaint] = field(default_factory=list)
    """Peers that do not run."""


def measure(group: Group, settings: Settings, number: str) -> Measured:
    """Verify everybody who does the jobs of a group, and time in turns those who are right.

    In a sweep all sizes take turns too: a spell in which the machine is slow then falls on all of them, and no size
    looks worse than its neighbours because of it.
    """
    measured = Measured()
    racers: list[tuple[Job, Provider, list[float]]] = []
    with Progress(console=Console(stderr=True), transient=True, disable=not common.interactive()) as progress:
        task = progress.add_task(f"{number} {group.title}", total=None)
        for job in group.jobs:
            racers += [(job, provider, []) for provider in verified(job, settings, measured)]
        progress.update(task, total=settings.rounds * len(racers))
        for turn in range(settings.rounds):
            peak = None if settings.gpu else peak_of(group.jobs[0].dtype, settings)
            first = turn % max(len(racers), 1)
            for _, provider, times in racers[first:] + racers[:first]:
                times += _block(provider, settings.seconds, _gpu_times if settings.gpu else _times)
                progress.advance(task)
    for job, provider, times in racers:
        row = row_of(job, provider, times, settings, peak)
        if job.benchmark.memory and not settings.gpu:
            row["memory_mb"] = extra_memory(job, provider.name, settings)
        measured.rows.append(row)
    return measured


# ---- who takes part ------------------------------------------------------------------------------------------------


def verified(job: Job, settings: Settings, measured: Measured) -> list[Provider]:
    """Those whose results are right, ours first; the others are named in `measured`."""
    benchmark = job.benchmark
    arrays = benchmark.inputs(job.shape, np.dtype(job.dtype))
    upcast = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in arrays.items()}
    naive = arrays
    if job.dtype == "float16":  # NumPy's own products of halves would take minutes: its rounding alone, then
        naive = {key: a.astype(np.float32) if a.dtype.kind == "f" else a for key, a in arrays.items()}
    oracle, exact = (_results(benchmark.run(reference, a, job.mode), tuple, benchmark.calls) for a in (naive, upcast))
    if job.dtype == "float16":
        oracle = tuple(result.astype(np.float16) for result in oracle)
    right = []
    for name in _names(job, settings):
        try:
            provider = provider_of(name, job, arrays, settings)
            if provider is None:
                continue
            wrong = _what_is_wrong(provider, oracle, exact, job)
        except Exception as error:  # a library can raise anything where it cannot do a job; the others still can
            words = " ".join(str(error).split())
            reason = f"{type(error).__name__}: {words if len(words) <= 200 else words[:200] + '…'}"
            found = measured.wrong if name in fastrnn.backend_status() else measured.failed
            found.append(Complaint(name, job.size, reason))
            continue
        if wrong:
            measured.wrong.append(Complaint(name, job.size, wrong))
        else:
            right.append(provider)
    return right


def _names(job: Job, settings: Settings) -> list[str]:
    """Providers that may do a job: ours, Numba, NumPy, and the benchmark's own peers."""
    names = [settings.ours]
    if job.dtype != "float16":  # which Numba does not take, and NumPy has no BLAS for
        names += [name for name in ("numba", "numpy") if name in settings.peers]
    for name in job.benchmark.peers:
        library, _, variant = name.partition(":")
        # Everything in bfloat16 is a peer of float32 whose products are, and of nothing else.
        fits = variant != "bf16" or (settings.precision == "medium" and job.dtype == "float32")
        if library in settings.peers and fits:
            names.append(name)
    return names


def provider_of(name: str, job: Job, arrays: dict[str, Any], settings: Settings) -> Provider | None:
    """A provider that is ready to be called, or None where it has nothing for the job's mode."""
    run, eps = job.benchmark.run, float(np.finfo(job.dtype).eps)
    if name in fastrnn.backend_status():
        eps = EPS[settings.precision] if job.dtype == "float32" else eps
        with fastrnn.backend(name):
            if job.benchmark.ours is not None:
                call, convert = job.benchmark.ours(arrays, job.mode)
                return Provider(name, call, convert, eps, partial(fastrnn.backend, name))
            call = run(fastrnn, _placed(arrays, job, settings), job.mode)
        return Provider(name, call, _fetched if settings.gpu else tuple, eps, partial(fastrnn.backend, name))
    if name == "numpy":
        return Provider(name, run(reference, arrays, job.mode), tuple, eps)
    made = job.benchmark.peers[name](arrays, job.mode)
    if made is None:
        return None
    call, convert = made
    if settings.gpu and job.dtype == "float32" and settings.precision != "highest":
        eps = EPS["high"]  # PyTorch's products are TF32 then
    return Provider(name, call, convert, conformance.BF16_EPS if name.endswith(":bf16") else eps)


def _placed(arrays: dict[str, Any], job: Job, settings: Settings) -> dict[str, Any]:
    """Inputs where ours computes: on a GPU, but for what is looked at on the host."""
    stays = job.benchmark.stays
    if not settings.gpu or stays == ("*",):
        return arrays
    return {key: a if key in stays else device().moved(a) for key, a in arrays.items()}


def _fetched(results: Iterable[Any]) -> tuple[Any, ...]:
    """Results from a GPU, as the oracle gives them."""
    there = [to_host(result) for result in results]
    return tuple(a[()] if isinstance(a, np.ndarray) and a.ndim == 0 else a for a in there)


# ---- verifying -----------------------------------------------------------------------------------------------------


def _results(call: Callable[[], Any], convert: Callable[[Any], tuple[Any, ...]], calls: int) -> tuple[Any, ...]:
    """The results of some calls in a row, one after another."""
    return tuple(result for _ in range(calls) for result in convert(call()))


def _what_is_wrong(provider: Provider, oracle: tuple[Any, ...], exact: tuple[Any, ...], job: Job) -> str:
    """What is wrong with a provider's results, or nothing; `exact` is the oracle's in float64.

    Ours meet the tolerance rule in float32, with the products' own eps where a lower precision was asked for. Of
    peers, in float64, whose rule needs an oracle that is too slow at these sizes, and of calls that build on each other
    it is asked that they compute the same thing in the same dtype: half of the digits right.
    """
    dtype = job.dtype
    with provider.context():
        results = _results(provider.call, provider.convert, job.benchmark.calls)
        ran = str(fastrnn.last_backend())
    ours = provider.name in fastrnn.backend_status()
    if ours and ran != ("reference" if (provider.name, job.row) in EMPTY else provider.name):
        return f"ran on {ran}"
    if len(results) != len(oracle):
        return f"{len(results)} results, expected {len(oracle)}"
    strict = ours and conformance.EXACT[dtype] is np.float64 and job.benchmark.calls == 1
    for position, (result, naive, true) in enumerate(zip(results, oracle, exact, strict=True)):
        where = f"result {position + 1} of {len(oracle)}"
        wrong = conformance.complaint(result, naive, dtype)
        if wrong:
            return f"{where} {wrong}"
        error, bound = conformance.error_and_bound(result, naive, true, dtype)
        largest = float(np.max(np.abs(true), initial=0.0))
        if not strict:
            bound = math.sqrt(provider.eps) * largest
        elif provider.eps > np.finfo(dtype).eps:
            bound += 4 * provider.eps * largest
        if not conformance.within(error, bound):
            return f"{where} is off by {error:.3g}, allowed {bound:.3g}"
    return ""


# ---- memory --------------------------------------------------------------------------------------------------------


def extra_memory(job: Job, provider: str, settings: Settings) -> float | None:
    """Megabytes by which a call raises the peak of a process that has its inputs, results included.

    In a process of its own, since memory that earlier calls have left to an allocator would not be seen. None where the
    system does not tell.
    """
    words = [job.row, job.benchmark.kernel, provider, job.mode, job.size, job.dtype, str(settings.threads)]
    command = [sys.executable, "-m", "fastrnn.cli.bench_memory", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


# ---- timing --------------------------------------------------------------------------------------------------------


def _block(provider: Provider, seconds: float, clock: Callable[[Callable[[], Any], int], list[float]]) -> list[float]:
    """One turn: a pause, warm-up calls that are not counted, and then calls one by one for about `seconds`."""
    call = provider.call
    time.sleep(PAUSE_SECONDS)
    with provider.context():
        call()
        (once,) = clock(call, 1)
        count = min(MOST_CALLS, max(FEWEST_CALLS, int(seconds / max(once, 1e-7))))
        collecting = gc.isenabled()
        gc.disable()
        try:
            return clock(call, count)
        finally:
            if collecting:
                gc.enable()


def _times(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each call."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _gpu_times(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each call on the GPU, by events before and after it on the default stream, which all providers use.

    The host is not held up between calls: where queueing them takes longer than running them, that shows.
    """
    cuda = device().xp.cuda
    events = [(cuda.Event(), cuda.Event()) for _ in range(count)]
    cuda.Device().synchronize()
    for start, stop in events:
        start.record()
        call()
        stop.record()
    cuda.Device().synchronize()
    return [1e-3 * cuda.get_elapsed_time(start, stop) for start, stop in events]


def peak_of(dtype: str, settings: Settings) -> float | None:
    """FLOP/s of multiply-adds in registers alone; None where the C++ kernels, which measure it, were not built."""
    cpu = common.compiled()
    if cpu is None:
        return None
    # Whatever else the machine does can only lower it: the largest of the run counts.
    settings.peaks[dtype] = max(settings.peaks.get(dtype, 0.0), float(cpu.measure_peak(dtype, settings.threads)))
    return settings.peaks[dtype]


def row_of(job: Job, provider: Provider, times: list[float], settings: Settings, peak: float | None) -> dict[str, Any]:
    """What is printed and recorded: ``bench_tables.COLUMNS``."""
    p20, p50, p80 = (float(value) for value in np.percentile(times, (20, 50, 80)))
    flops = job.benchmark.flops(job.shape, job.mode)
    # The peak is that of the dtype: products of lower precision have another one.
    comparable = peak is not None and provider.eps <= np.finfo(job.dtype).eps
    moved = job.benchmark.moved(job.shape, job.mode) * np.dtype(job.dtype).itemsize
    installed = common.versions()
    library = provider.name.partition(":")[0]
    used = ["python", "fastrnn", "numpy", *([library] if library in ("numba", "torch", "onnxruntime") else [])]
    used += ["cupy"] if provider.name == "cuda" else []
    return {
        "kernel": job.benchmark.kernel,
        "provider": provider.name,
        "mode": job.mode,
        "shape": job.size,
        "dtype": job.dtype,
        "precision": settings.precision,
        "threads": 0 if settings.gpu else settings.threads,
        "p50_ms": round(p50 * 1e3, 5),
        "p20_ms": round(p20 * 1e3, 5),
        "p80_ms": round(p80 * 1e3, 5),
        "gflops": round(flops / p50 / 1e9, 3),
        "fraction_of_peak": round(flops / p50 / peak, 4) if comparable else None,
        "gbytes_per_s": round(moved / p50 / 1e9, 3),
        "hardware": settings.gpu or common.hardware(),
        "isa": _isa(provider.name),
        "versions": " ".join(f"{name}={installed[name]}" for name in used),
        "commit": common.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def _isa(provider: str) -> str:
    """Instruction set of the C++ kernels, architecture of the GPU; nothing for others."""
    if provider == "cuda":
        return f"sm_{common.gpu()['compute capability'].replace('.', '')}"
    return common.isa() if provider == "cpu" else ""
