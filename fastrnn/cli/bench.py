"""``fastrnn bench``: how fast the kernels are beside NumPy, Numba and PyTorch, measured in one run."""

from __future__ import annotations

import csv
import datetime
import gc
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import fastrnn
from fastrnn import conformance, reference
from fastrnn.backend import EMPTY
from fastrnn.cli import common

# Thread pools of other libraries keep spinning after a call (OpenMP's for 200 ms by default); wait until they sleep.
PAUSE_SECONDS = 0.25
FEWEST_CALLS = 3
MOST_CALLS = 500
PEERS = ("numpy", "numba", "torch")
MODES = ("forward", "backward", "both")

COLUMNS = (
    "kernel",
    "provider",
    "mode",
    "shape",
    "dtype",
    "threads",
    "p50_ms",
    "p20_ms",
    "p80_ms",
    "gflops",
    "fraction_of_peak",
    "gbytes_per_s",
    "hardware",
    "isa",
    "versions",
    "commit",
    "date",
)


def bench(
    operations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OP]...", help=f"Of {', '.join(conformance.CASES)}. Default: all."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="N,T,…", help="Sizes, in the order that the table shows; can be repeated. For one OP."),
    ] = None,
    all_shapes: Annotated[bool, typer.Option("--all", help="All default shapes, not only the quick ones.")] = False,
    backend: Annotated[
        str | None, typer.Option(help="The backend called ours. Default: the first that runs here.")
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(help="Of numpy (the reference), numba, torch; separated by commas. Default: those installed."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, float64. Default: float32.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="forward, backward, both (together). Default: both.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every provider. Default: fastrnn's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each provider gets.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time of the calls of one turn.")] = 0.3,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Save a picture: .png, .svg or .pdf.")] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Append the rows to a table.")] = None,
) -> None:
    """Time the kernels and their peers at the same number of threads, results verified first.

    Providers take turns: each turn is a block of calls after a pause and uncounted warm-up calls, and the order rotates
    from round to round. Times are medians with the 20th and 80th percentile. GFLOP/s counts what the mathematics needs;
    the machine's peak, a loop of multiply-adds in registers, is measured in the same run.

    Exit code: 0, or 1 if a provider's results are wrong, 2 for bad usage.
    """
    names = common.chosen(operations, list(conformance.CASES), "operation")
    dtypes = common.chosen(dtype or ["float32"], conformance.DTYPES, "dtype")
    modes = common.chosen(mode or ["both"], MODES, "mode")
    ours = _ours(backend)
    wanted = _peers(peers, ours)
    for path in (as_json, plot, record):
        if path is not None and not path.absolute().parent.is_dir():
            common.fail(f"cannot write {path}: there is no folder {path.absolute().parent}")
    if record is not None:
        _check_header(record)
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        common.fail(f"cannot save a picture as {plot}: name it .png, .svg or .pdf")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        common.fail("--plot needs Matplotlib: pip install matplotlib")

    jobs = _jobs(names, shape, all_shapes, modes, dtypes)
    if threads is not None:
        fastrnn.set_num_threads(threads)
    settings = Settings(ours, wanted, fastrnn.get_num_threads(), rounds, seconds)
    console = common.console()
    _print_settings(console, settings)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with _same_threads(settings.threads, "torch" in wanted):
        for number, job in enumerate(jobs, 1):
            found, complaints = _measure(job, settings, f"{number}/{len(jobs)}")
            rows += found
            wrong += complaints
            _print_job(console, job, found, complaints, ours)
    _print_means(console, rows, ours)
    if settings.peaks:
        peaks = ", ".join(f"{peak / 1e9:.0f} ({dtype})" for dtype, peak in settings.peaks.items())
        console.print(f"\npeak of the machine in GFLOP/s: {peaks}")

    if as_json:
        as_json.write_text(json.dumps(rows, indent=1))
    if record:
        _append(record, rows)
        console.print(f"{len(rows)} rows appended to {record}")
    if plot:
        _save_picture(plot, rows)
        console.print(f"picture saved as {plot}")
    raise typer.Exit(1 if wrong else 0)


@dataclass(frozen=True)
class Settings:
    """What holds for the whole run."""

    ours: str
    peers: tuple[str, ...]
    threads: int
    rounds: int
    seconds: float
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
class Provider:
    """Somebody who does the job: a call without arguments, and how its result becomes our outputs."""

    name: str
    call: Callable[[], Any]
    convert: Callable[[Any], tuple[Any, ...]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


# ---- what to run ---------------------------------------------------------------------------------------------------


def load(row: str) -> tuple[Any, ...]:
    """The benchmarks of a row: ``fastrnn.bench.bench_<row>`` of the installed package, or of the checkout."""
    _bench_package()
    return tuple(import_module(f"fastrnn.bench.bench_{row}").BENCHMARKS)


def _bench_package() -> ModuleType:
    """``fastrnn.bench`` is the folder ``bench`` of the checkout; installing puts it into the package."""
    if importlib.util.find_spec("fastrnn.bench") is not None:
        return import_module("fastrnn.bench")
    root = common.checkout()
    if root is None:
        common.fail("the benchmarks are not part of this installation")
    folder = root / "bench"
    spec = importlib.util.spec_from_file_location(
        "fastrnn.bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastrnn.bench"] = module
    spec.loader.exec_module(module)
    return module


def _ours(given: str | None) -> str:
    if given is None:
        return fastrnn.available_backends()[0]
    if given not in fastrnn.backend_status():
        common.fail(f"unknown backend {given!r}; there are {', '.join(fastrnn.backend_status())}")
    return common.usable_backends([given])[0]


def _peers(given: list[str] | None, ours: str) -> tuple[str, ...]:
    installed = ["numpy"]
    if not fastrnn.backend_status()["numba"]:
        installed.append("numba")
    if importlib.util.find_spec("torch") is not None:
        installed.append("torch")
    if given is None:
        return tuple(name for name in installed if name != ours)
    names = common.chosen(given, PEERS, "peer")
    for name in names:
        if name not in installed:
            why = fastrnn.backend_status().get(name) or "PyTorch is not installed (pip install torch)"
            common.fail(f"peer {name!r} cannot run here: {why}")
    return tuple(name for name in names if name != ours)


def _jobs(
    names: list[str], shape: list[str] | None, everything: bool, modes: list[str], dtypes: list[str]
) -> list[Job]:
    rows = {name: load(name) for name in names}
    benchmarks = [benchmark for row in rows.values() for benchmark in row]
    shapes = [_shape(text, benchmarks) for text in shape or ()]
    jobs = [
        Job(row, benchmark, sizes, mode, dtype)
        for row in rows
        for benchmark in rows[row]
        for dtype in dtypes
        for mode in modes
        if mode in benchmark.modes
        for sizes in shapes or benchmark.shapes[: None if everything else benchmark.quick]
    ]
    if not jobs:
        kernels = ", ".join(f"{benchmark.kernel} ({', '.join(benchmark.modes)})" for benchmark in benchmarks)
        common.fail(f"nothing to time: no mode {' or '.join(modes)} among {kernels}")
    return jobs


def _shape(text: str, benchmarks: list[Any]) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        common.fail(f"--shape {text!r} must be whole numbers separated by commas")
    if min(sizes) < 1:
        common.fail(f"--shape {text!r} must be positive")
    for benchmark in benchmarks:
        if len(benchmark.axes.split()) != len(sizes):
            common.fail(f"--shape {text!r} has {len(sizes)} sizes; {benchmark.kernel} takes {benchmark.axes}")
    if len({benchmark.axes for benchmark in benchmarks}) > 1:
        common.fail("--shape is for operations with the same axes; name one operation")
    return sizes


def _providers(job: Job, arrays: dict[str, Any], settings: Settings) -> list[Provider]:
    run = job.benchmark.run
    providers = []
    for backend in (settings.ours, *("numba" for peer in settings.peers if peer == "numba")):
        with fastrnn.backend(backend):
            call = run(fastrnn, arrays, job.mode)
        providers.append(Provider(backend, call, tuple, partial(fastrnn.backend, backend)))
    if "numpy" in settings.peers:
        providers.append(Provider("numpy", run(reference, arrays, job.mode), tuple))
    for name, make in job.benchmark.peers.items():
        if name.partition(":")[0] in settings.peers:
            providers.append(Provider(name, *make(arrays, job.mode)))
    return providers


@contextmanager
def _same_threads(threads: int, with_torch: bool) -> Iterator[None]:
    """Everybody at the same number of threads: NumPy's BLAS, OpenMP, PyTorch."""
    from threadpoolctl import threadpool_limits

    if with_torch:
        import torch

        torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield


# ---- verifying and timing ------------------------------------------------------------------------------------------


def _measure(job: Job, settings: Settings, number: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one job, and what is wrong with whose results; who is wrong is not timed."""
    arrays = job.benchmark.inputs(job.shape, np.dtype(job.dtype))
    providers = _providers(job, arrays, settings)
    wrong = []
    right: list[Provider] = []
    with Progress(console=Console(stderr=True), transient=True, disable=not common.interactive()) as progress:
        task = progress.add_task(f"{number} {job.title}", total=1 + settings.rounds * len(providers))
        oracle = job.benchmark.run(reference, arrays, job.mode)()
        upcast = {key: a.astype(np.float64) if a.dtype.kind == "f" else a for key, a in arrays.items()}
        exact = job.benchmark.run(reference, upcast, job.mode)()
        for provider in providers:
            complaint = _verify(provider, oracle, exact, job)
            if complaint:
                wrong.append(f"{provider.name}: {complaint}")
            else:
                right.append(provider)
        del oracle, exact, upcast
        progress.advance(task)
        times: dict[str, list[float]] = {provider.name: [] for provider in right}
        for turn in range(settings.rounds):
            peak = _peak(job.dtype, settings)
            first = turn % max(len(right), 1)
            for provider in right[first:] + right[:first]:
                times[provider.name] += _block(provider, settings.seconds)
                progress.advance(task)
    return [_row(job, provider, times[provider.name], settings, peak) for provider in right], wrong


def _verify(provider: Provider, oracle: tuple[Any, ...], exact: tuple[Any, ...], job: Job) -> str:
    """What is wrong with a provider's results; `exact` is the oracle's in float64.

    Ours meet the tolerance rule in float32. Of peers, and in float64, whose rule needs an oracle that is too slow at
    these sizes, it is asked that they compute the same thing in the same dtype: half of the digits right.
    """
    dtype = job.dtype
    with provider.context():
        results = provider.convert(provider.call())
        ran = str(fastrnn.last_backend())
    ours = provider.name in fastrnn.backend_status()
    if ours and ran != ("reference" if (provider.name, job.row) in EMPTY else provider.name):
        return f"ran on {ran}"
    if len(results) != len(oracle):
        return f"{len(results)} results, expected {len(oracle)}"
    for position, (result, naive, true) in enumerate(zip(results, oracle, exact, strict=True)):
        where = f"result {position + 1} of {len(oracle)}"
        wrong = conformance.complaint(result, naive, dtype)
        if wrong:
            return f"{where} {wrong}"
        error, bound = conformance.error_and_bound(result, naive, true, dtype)
        if not ours or conformance.EXACT[dtype] is not np.float64:
            bound = math.sqrt(np.finfo(dtype).eps) * float(np.max(np.abs(true), initial=0.0))
        if not conformance.within(error, bound):
            return f"{where} is off by {error:.3g}, allowed {bound:.3g}"
    return ""


def _block(provider: Provider, seconds: float) -> list[float]:
    """One turn: a pause, warm-up calls that are not counted, and then calls one by one for about `seconds`."""
    call = provider.call
    time.sleep(PAUSE_SECONDS)
    with provider.context():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        count = min(MOST_CALLS, max(FEWEST_CALLS, int(seconds / max(once, 1e-7))))
        times = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(count):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
        finally:
            if collecting:
                gc.enable()
    return times


def _peak(dtype: str, settings: Settings) -> float | None:
    """FLOP/s of multiply-adds in registers alone; None where the C++ kernels, which measure it, were not built."""
    cpu = common.compiled()
    if cpu is None:
        return None
    # Whatever else the machine does can only lower it: the largest of the run counts.
    settings.peaks[dtype] = max(settings.peaks.get(dtype, 0.0), float(cpu.measure_peak(dtype, settings.threads)))
    return settings.peaks[dtype]


def _row(job: Job, provider: Provider, times: list[float], settings: Settings, peak: float | None) -> dict[str, Any]:
    p20, p50, p80 = (float(value) for value in np.percentile(times, (20, 50, 80)))
    flops = job.benchmark.flops(job.shape, job.mode)
    moved = job.benchmark.moved(job.shape, job.mode) * np.dtype(job.dtype).itemsize
    installed = common.versions()
    library = provider.name.partition(":")[0]
    used = ["python", "fastrnn", "numpy", *([library] if library in ("numba", "torch") else [])]
    return {
        "kernel": job.benchmark.kernel,
        "provider": provider.name,
        "mode": job.mode,
        "shape": job.size,
        "dtype": job.dtype,
        "threads": settings.threads,
        "p50_ms": round(p50 * 1e3, 5),
        "p20_ms": round(p20 * 1e3, 5),
        "p80_ms": round(p80 * 1e3, 5),
        "gflops": round(flops / p50 / 1e9, 3),
        "fraction_of_peak": round(flops / p50 / peak, 4) if peak else None,
        "gbytes_per_s": round(moved / p50 / 1e9, 3),
        "hardware": common.hardware(),
        "isa": common.isa() if provider.name == "cpu" else "",
        "versions": " ".join(f"{name}={installed[name]}" for name in used),
        "commit": common.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


# ---- showing and keeping -------------------------------------------------------------------------------------------


def _print_settings(console: Console, settings: Settings) -> None:
    torch = common.versions()["torch"]
    peers = [f"torch {torch}" if name == "torch" else name for name in settings.peers]
    against = f" against {', '.join(peers)}" if peers else ""
    console.print(f"{common.hardware()}; {settings.threads} threads; {settings.ours}{against}", soft_wrap=True)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        console.print(f"[yellow]load average {busy:.1f}: other work is running here, and these times will show it[/]")
    isa = common.isa()
    if isa:
        console.print(f"instruction set {isa}")


def _print_job(console: Console, job: Job, rows: list[dict[str, Any]], wrong: list[str], ours: str) -> None:
    table = Table(title=job.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("provider")
    for name in ("median ms", "20 to 80 %", "GFLOP/s", "of peak", "GB/s", "ours is"):
        table.add_column(name, justify="right")
    for row, ratio in _with_ratios(rows, ours):
        fraction = row["fraction_of_peak"]
        table.add_row(
            row["provider"],
            f"{row['p50_ms']:.3f}",
            f"{row['p20_ms']:.3f} to {row['p80_ms']:.3f}",
            f"{row['gflops']:.1f}",
            "" if fraction is None else f"{100 * fraction:.0f} %",
            f"{row['gbytes_per_s']:.1f}",
            "" if ratio is None else f"{ratio:.2f} x",
        )
    console.print()
    console.print(table)
    for complaint in wrong:
        console.print(f"[red]✗ wrong result, not timed: {complaint}[/]", soft_wrap=True)


def _print_means(console: Console, rows: list[dict[str, Any]], ours: str) -> None:
    """Geometric means of our speed over each peer's, by kernel, mode and dtype, where there are several shapes."""
    ratios: dict[tuple[str, ...], list[float]] = {}
    for row, ratio in _with_ratios(rows, ours):
        if ratio is not None:
            ratios.setdefault((row["kernel"], row["mode"], row["dtype"], row["provider"]), []).append(ratio)
    lines = [
        f"{' '.join(key[:3])}: {math.exp(np.mean(np.log(values))):.2f} x {key[3]} "
        f"(geometric mean of {len(values)} shapes, smallest {min(values):.2f})"
        for key, values in ratios.items()
        if len(values) > 1
    ]
    if lines:
        console.print()
    for line in lines:
        console.print(line, soft_wrap=True)


def _with_ratios(rows: list[dict[str, Any]], ours: str) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Each row with our speed over its provider's: None for ours, and where ours was not timed."""
    keys = ("kernel", "mode", "shape", "dtype")
    fastest = {tuple(row[key] for key in keys): row["p50_ms"] for row in rows if row["provider"] == ours}
    for row in rows:
        our_time = fastest.get(tuple(row[key] for key in keys))
        yield row, None if our_time is None or row["provider"] == ours else row["p50_ms"] / our_time


def _check_header(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if tuple(header) != COLUMNS:
            common.fail(f"{path} has other columns than the rows to be appended")


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    fresh = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def _save_picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Bars of speed over NumPy's (or over the slowest's), one panel for each kernel, mode and dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["kernel"], row["mode"], row["dtype"]), []).append(row)
    widest = max(len({row["shape"] for row in panel}) for panel in panels.values())
    size = (max(7.0, 1.4 * widest + 3), 3.2 * len(panels))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (key, panel) in zip(axes[:, 0], panels.items(), strict=True):
        shapes = list(dict.fromkeys(row["shape"] for row in panel))
        providers = list(dict.fromkeys(row["provider"] for row in panel))
        width = 0.8 / len(providers)
        unit = "gflops" if any(row["gflops"] for row in panel) else "gbytes_per_s"
        for index, provider in enumerate(providers):
            found = {row["shape"]: row for row in panel if row["provider"] == provider}
            place = [position + (index + 0.5) * width - 0.4 for position in range(len(shapes))]
            height = [found[shape][unit] if shape in found else 0 for shape in shapes]
            bars = axis.bar(place, height, width, label=provider)
            axis.bar_label(bars, [f"{value:.3g}" for value in height], fontsize=7)
        axis.set_xticks(range(len(shapes)), [f"({shape})" for shape in shapes], fontsize=8)
        axis.set_ylabel("GFLOP/s" if unit == "gflops" else "GB/s")
        axis.set_title(" ".join(key), loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    figure.suptitle(f"{rows[0]['hardware']}, {rows[0]['threads']} threads; higher is better", fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
