"""``fastrnn bench``: how fast the kernels are beside NumPy, Numba, PyTorch and ONNX Runtime, measured in one run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

import fastrnn
from fastrnn import conformance
from fastrnn.backend import PRECISIONS
from fastrnn.cli import bench_instructions as instructions
from fastrnn.cli import bench_pictures as pictures
from fastrnn.cli import bench_tables as tables
from fastrnn.cli import common
from fastrnn.cli.bench_timing import Group, Job, Settings, measure

PEERS = ("numpy", "numba", "torch", "onnxruntime")
MODES = ("forward", "backward", "both")
# Benchmarks of whole systems, which are no operations.
SYSTEMS = ("captioner", "torch", "style")
# Those whose own code needs PyTorch.
ON_TORCH = ("torch", "style")

# From where to where `--sweep` goes; other axes are sizes of vectors.
RANGES = {"N": (1, 128), "T": (1, 128), "K": (1_000, 10_000_000)}
VECTOR_RANGE = (16, 1024)


def bench(
    operations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OP]...",
            help=f"Of {', '.join((*conformance.CASES, *SYSTEMS))}; or one kernel of an operation, as tables name it: "
            "lstm_lengths, adam, torch_lstm. Default: all.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,T,…", help="Sizes, in the order that the table shows; can be repeated. With --sweep: the others."
        ),
    ] = None,
    all_shapes: Annotated[bool, typer.Option("--all", help="All default shapes, not only the quick ones.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS[=SIZES]",
            help="Time a range of one size, the others fixed: N, or H=100,128,200; can be repeated. Names the largest "
            "fall of speed between neighbours.",
        ),
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="forward, backward, both (together). Default: both.")] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float64; float16 for rnn, lstm and gru on cuda. Default: float32."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="Precision of float32 products in fastrnn: highest, high, medium. With medium, PyTorch in bfloat16 "
            "takes part too. Default: the one that is set, highest at first.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="The backend called ours. Default: the first that runs here; cuda times on the GPU."),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(PEERS)}; numpy is the reference. Default: those installed."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of every provider. Default: fastrnn's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each provider gets.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time of the calls of one turn.")] = 0.3,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as JSON.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save a picture, .png, .svg or .pdf: bars, or the curves of a sweep."),
    ] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Append the rows to a table.")] = None,
    count: Annotated[
        bool,
        typer.Option(
            "--instructions",
            help="Count the instructions of each call instead of timing it, on one thread, with valgrind: steady where "
            "times are not, as in CI.",
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="BASELINE.json", help="Compare counts with those of an earlier --instructions --json."),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="RATIO", help="With --compare: exit with 1 if a baseline / now is less. Default: 0.9."
        ),
    ] = None,
) -> None:
    """Time the kernels and their peers at the same number of threads, results verified first.

    Providers take turns: each turn is a block of calls after a pause and uncounted warm-up calls, and the order rotates
    from round to round. Times are medians with the 20th and 80th percentile. GFLOP/s counts what the mathematics needs;
    the machine's peak, a loop of multiply-adds in registers, is measured in the same run. With --backend cuda arrays
    are on the GPU, times are those of CUDA events around each call, and the peer is PyTorch on the same GPU, in TF32 if
    precision high or medium allows it.

    Lists are separated by commas, or their option is repeated. Ctrl-C ends the run with what was measured so far, files
    included.

    Exit code: 0, or 1 if a provider's results are wrong or a count is worse than --fail-below, 2 for bad usage, 130
    after Ctrl-C.
    """
    benchmarks = _benchmarks(operations)
    dtypes = common.chosen(dtype or ["float32"], conformance.WITH_HALVES, "dtype")
    modes = common.chosen(mode or ["both"], MODES, "mode")
    if precision is not None:
        common.one(precision, PRECISIONS, "precision")
    ours = _ours(backend)
    if "float16" in dtypes:
        for row, _ in benchmarks:
            if (ours, row) not in conformance.HALVES:
                common.fail(f"--dtype float16 is for gru, lstm, rnn on backend cuda, not for {row} on {ours}")
    if fail_below is not None and compare is None:
        common.fail("--fail-below is for --compare BASELINE.json")
    if count or compare is not None:
        timing = {"--peers": peers, "--threads": threads, "--precision": precision, "--plot": plot, "--record": record}
        for name, given in (timing | {"--sweep": sweep}).items():
            if given is not None:
                common.fail(f"{name} is for times, not for --instructions")
        _check_files(as_json, None, None)
        jobs = [group.jobs[0] for group in _groups(benchmarks, shape, all_shapes, None, modes, dtypes)]
        if not (shape or all_shapes):
            jobs = instructions.smaller(jobs)
        raise typer.Exit(_count(jobs, ours, as_json, compare, fail_below))
    wanted = _peers(peers, ours)
    _check_files(as_json, plot, record)
    groups = _groups(benchmarks, shape, all_shapes, sweep, modes, dtypes)

    rows: list[dict[str, Any]] = []
    sweeps: list[tuple[Group, list[dict[str, Any]]]] = []
    wrong, interrupted, told = False, False, set()
    console = common.console()
    with same_conditions(threads, precision, wanted, ours):
        settings = Settings(
            ours,
            wanted,
            fastrnn.get_num_threads(),
            rounds,
            seconds,
            precision or fastrnn.get_float32_matmul_precision(),
            common.gpu()["device"] if common.on_gpu(ours) else "",
        )
        tables.print_settings(console, settings)
        try:
            for number, group in enumerate(groups, 1):
                measured = measure(group, settings, f"{number}/{len(groups)}")
                rows += measured.rows
                wrong |= bool(measured.wrong)
                told |= {complaint.provider for complaint in (*measured.wrong, *measured.failed)}
                if group.axis and measured.rows:
                    sweeps.append((group, measured.rows))
                tables.print_group(console, group, measured, ours)
        except KeyboardInterrupt:
            interrupted = True
            console.print(f"\n[yellow]interrupted: {number - 1} of {len(groups)} were measured, and count[/]")
    tables.print_means(console, rows, ours)
    if settings.peaks:
        peaks = ", ".join(f"{peak / 1e9:.0f} ({dtype})" for dtype, peak in settings.peaks.items())
        console.print(f"\npeak of the machine in GFLOP/s: {peaks}")
    told |= {row["provider"] for row in rows}
    if peers is not None and not interrupted:
        for name in wanted:
            if name not in {provider.partition(":")[0] for provider in told}:
                console.print(f"{name} took no part: it has nothing for these kernels and modes")

    if as_json:
        as_json.write_text(json.dumps(rows, indent=1))
    if record:
        tables.append(record, rows)
        console.print(f"{len(rows)} rows appended to {record}")
    if plot and rows:
        if sweeps:
            pictures.save_sweeps(plot, sweeps, ours)
        else:
            pictures.save_bars(plot, rows, ours)
        console.print(f"picture saved as {plot}")
    raise typer.Exit(common.INTERRUPTED if interrupted else int(wrong))


def _count(jobs: list[Job], ours: str, as_json: Path | None, compare: Path | None, fail_below: float | None) -> int:
    """Count instructions; the exit code."""
    jobs = instructions.check(jobs, ours)
    baseline = None if compare is None else instructions.read_baseline(compare)
    below = 0.9 if fail_below is None else fail_below
    console = common.console()
    try:
        rows = instructions.count(jobs)
    except KeyboardInterrupt:
        console.print("interrupted: nothing was counted")
        return common.INTERRUPTED
    console.print(
        f"instructions of a call on one thread, instruction set {rows[0]['isa']}, compiler {rows[0]['compiler']}"
    )
    worse = instructions.report(console, rows, baseline, below)
    if as_json:
        as_json.write_text(json.dumps(rows, indent=1) + "\n")
    if baseline is not None:
        instructions.check_conditions(rows, baseline)
    for row in worse:
        typer.echo(
            f"fastrnn: {row['kernel']} {row['mode']} {row['shape']} {row['dtype']} needs more instructions", err=True
        )
    return int(bool(worse))


# ---- what to run ---------------------------------------------------------------------------------------------------


def load(row: str) -> tuple[Any, ...]:
    """The benchmarks of a row: ``fastrnn.bench.bench_<row>`` of the installed package, or of the checkout."""
    _bench_package()
    return tuple(import_module(f"fastrnn.bench.bench_{row}").BENCHMARKS)


def _bench_package() -> ModuleType:
    """``fastrnn.bench`` is the folder ``bench`` of the checkout; installing puts it into the package.

    The checkout's own comes first: that of another one may be installed.
    """
    if "fastrnn.bench" in sys.modules:
        return sys.modules["fastrnn.bench"]
    root = common.checkout()
    if root is None:
        if importlib.util.find_spec("fastrnn.bench") is None:
            common.fail("the benchmarks are not part of this installation")
        return import_module("fastrnn.bench")
    folder = root / "bench"
    spec = importlib.util.spec_from_file_location(
        "fastrnn.bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastrnn.bench"] = module
    spec.loader.exec_module(module)
    return module


def _benchmarks(given: list[str] | None) -> list[tuple[str, Any]]:
    """Rows with their benchmarks. A name is that of a kernel, or of a row: then all of its kernels are meant."""
    without = _missing("torch", "its modules need PyTorch (pip install torch)")
    rows = [row for row in (*conformance.CASES, *SYSTEMS) if given or not (row in ON_TORCH and without)]
    there = [(row, benchmark) for row in rows for benchmark in load(row)]
    kernels = [benchmark.kernel for _, benchmark in there]
    known = dict.fromkeys([*rows, *kernels])
    names = common.chosen(given, list(known), "operation")
    found = [
        (row, benchmark)
        for row, benchmark in there
        if benchmark.kernel in names or (row in names and row not in kernels)
    ]
    for row, _ in found:
        if without and row in ON_TORCH:
            common.fail(f"{row!r} cannot be timed here: {without}")
    return found


def _groups(
    benchmarks: list[tuple[str, Any]],
    shape: list[str] | None,
    everything: bool,
    sweep: list[str] | None,
    modes: list[str],
    dtypes: list[str],
) -> list[Group]:
    """What is timed together: every job alone, or the jobs of each sweep."""
    shapes = [_shape(text, [benchmark for _, benchmark in benchmarks]) for text in shape or ()]
    sweeps = _sweeps(sweep or (), [benchmark for _, benchmark in benchmarks])
    if sweeps and everything:
        common.fail("--all is not for --sweep, which has one base shape")
    if sweeps and len(shapes) > 1:
        common.fail(f"--sweep has one base shape, but --shape was given {len(shapes)} times")
    groups = []
    for row, benchmark in benchmarks:
        chosen = shapes or benchmark.shapes[: None if everything else benchmark.quick]
        for dtype in dtypes:
            for mode in modes:
                if mode not in benchmark.modes:
                    continue
                for axis, sizes in sweeps.items():
                    place = benchmark.axes.split().index(axis)
                    every = [(*chosen[0][:place], size, *chosen[0][place + 1 :]) for size in sizes]
                    groups.append(Group(tuple(Job(row, benchmark, one, mode, dtype) for one in every), axis))
                if not sweeps:
                    groups += [Group((Job(row, benchmark, one, mode, dtype),)) for one in chosen]
    if not groups:
        kernels = ", ".join(f"{benchmark.kernel} ({', '.join(benchmark.modes)})" for _, benchmark in benchmarks)
        common.fail(f"nothing to time: no mode {' or '.join(modes)} among {kernels}")
    return groups


def _shape(text: str, benchmarks: list[Any]) -> tuple[int, ...]:
    sizes = _sizes(text.replace("x", ","), f"--shape {text!r}")
    for benchmark in benchmarks:
        if len(benchmark.axes.split()) != len(sizes):
            common.fail(f"--shape {text!r} has {len(sizes)} sizes; {benchmark.kernel} takes {benchmark.axes}")
    if len({benchmark.axes for benchmark in benchmarks}) > 1:
        common.fail("--shape is for operations with the same axes; name one operation")
    return sizes


def _sweeps(given: list[str] | tuple[()], benchmarks: list[Any]) -> dict[str, tuple[int, ...]]:
    """The sizes of each axis that is swept."""
    sweeps = {}
    for text in given:
        names, equals, sizes = text.partition("=")
        for axis in [names] if equals else names.split(","):
            for benchmark in benchmarks:
                if axis not in benchmark.axes.split():
                    common.fail(f"--sweep {text!r}: {benchmark.kernel} has no axis {axis!r}; it has {benchmark.axes}")
            sweeps[axis] = tuple(sorted(set(_sizes(sizes, f"--sweep {text!r}")))) if equals else _steps(axis)
            if len(sweeps[axis]) < 2:
                common.fail(f"--sweep {text!r} must have at least two sizes")
    return sweeps


def _sizes(text: str, where: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        common.fail(f"{where} must be whole numbers separated by commas")
    if min(sizes) < 1:
        common.fail(f"{where} must be positive")
    return sizes


def _steps(axis: str) -> tuple[int, ...]:
    """Powers of two, which kernels like; their multiples of 3, halfway between; and of 25, which fit no tile."""
    low, high = RANGES.get(axis, VECTOR_RANGE)
    sizes = {factor << power for factor in (1, 3, 25) for power in range(high.bit_length())}
    return tuple(sorted(size for size in sizes if low <= size <= high))


def _peers_on(device: str) -> AbstractContextManager[None]:
    _bench_package()
    where: AbstractContextManager[None] = import_module("fastrnn.bench.common").peers_on(device)
    return where


# ---- who takes part, and under which conditions --------------------------------------------------------------------


def _ours(given: str | None) -> str:
    if given is None:
        return common.timed_backends()[0]
    (name,) = common.usable_backends([common.one(given, list(fastrnn.backend_status()), "backend")])
    if name not in common.timed_backends():
        common.fail(f"backend {name!r} runs on the simulator here, whose times say nothing")
    return name


def _peers(given: list[str] | None, ours: str) -> tuple[str, ...]:
    reasons = {
        "numpy": "",
        "numba": fastrnn.backend_status()["numba"],
        "torch": _missing("torch", "PyTorch is not installed (pip install torch)"),
        "onnxruntime": _missing("onnxruntime", "ONNX Runtime is not installed (pip install onnx onnxruntime)")
        or _missing("onnx", "it needs the package onnx to make models (pip install onnx)"),
    }
    if common.on_gpu(ours):
        for name in PEERS:
            reasons[name] = reasons[name] or ("" if name == "torch" else f"it is not timed beside {ours}, on the GPU")
        reasons["torch"] = reasons["torch"] or _torch_without_gpu()
    if given is None:
        return tuple(name for name in PEERS if not reasons[name] and name != ours)
    names = common.chosen(given, PEERS, "peer")
    for name in names:
        if reasons[name]:
            common.fail(f"peer {name!r} cannot run here: {reasons[name]}")
    return tuple(name for name in names if name != ours)


def _torch_without_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "this PyTorch finds no GPU"


def _missing(module: str, reason: str) -> str:
    return reason if importlib.util.find_spec(module) is None else ""


def _check_files(as_json: Path | None, plot: Path | None, record: Path | None) -> None:
    """End the command before anything is measured if a file cannot be written."""
    common.check_files(as_json, plot, record)
    if record is not None:
        tables.check_header(record)
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        common.fail(f"cannot save a picture as {plot}: name it .png, .svg or .pdf")
    if plot is not None and _missing("matplotlib", "missing"):
        common.fail("--plot needs Matplotlib: pip install matplotlib")


@contextmanager
def same_conditions(threads: int | None, precision: str | None, peers: tuple[str, ...], ours: str) -> Iterator[None]:
    """Everybody at the same number of threads, NumPy's BLAS, OpenMP and PyTorch too; ours at that precision.

    Peers compute where ours does; on a GPU PyTorch may use TF32 where precision is less than the highest.
    """
    from threadpoolctl import threadpool_limits

    threads_before = fastrnn.get_num_threads()
    if threads is not None:
        fastrnn.set_num_threads(threads)
    if precision is not None:
        before = fastrnn.get_float32_matmul_precision()
        fastrnn.set_float32_matmul_precision(precision)
    if "torch" in peers:
        import torch

        torch.set_num_threads(fastrnn.get_num_threads())
        if common.on_gpu(ours):
            tf32 = fastrnn.get_float32_matmul_precision() != "highest"
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        with threadpool_limits(fastrnn.get_num_threads()), _peers_on("cuda" if common.on_gpu(ours) else "cpu"):
            yield
    finally:
        fastrnn.set_num_threads(threads_before)
        if precision is not None:
            fastrnn.set_float32_matmul_precision(before)
