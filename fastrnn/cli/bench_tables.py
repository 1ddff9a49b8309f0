"""What ``fastrnn bench`` prints and records: tables, ratios, falls, rows of a CSV file."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fastrnn.cli import common
from fastrnn.cli.bench_timing import Group, Measured, Settings

COLUMNS = (
    "kernel",
    "provider",
    "mode",
    "shape",
    "dtype",
    "precision",
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

Row = dict[str, Any]


# ---- on the screen -------------------------------------------------------------------------------------------------


def print_settings(console: Console, settings: Settings) -> None:
    """The machine, who is timed, and what may disturb them."""
    installed = common.versions()
    peers = [f"{name} {installed.get(name, '')}".strip() for name in settings.peers]
    against = f" against {', '.join(peers)}" if peers else ""
    precision = "" if settings.precision == "highest" else f", float32 products at precision {settings.precision}"
    threads = f"{settings.threads} {'thread' if settings.threads == 1 else 'threads'}"
    where = f"{settings.gpu} in {common.hardware()}" if settings.gpu else f"{common.hardware()}; {threads}"
    console.print(f"{where}; {settings.ours}{against}{precision}", soft_wrap=True)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        console.print(f"[yellow]load average {busy:.1f}: other work is running here, and these times will show it[/]")
    isa = common.isa()
    if isa and not settings.gpu:
        console.print(f"instruction set {isa}")


def print_group(console: Console, group: Group, measured: Measured, ours: str) -> None:
    """The table of a job or of a sweep, who was wrong, and who could not run."""
    console.print()
    console.print(_sweep_table(group, measured.rows, ours) if group.axis else _table(group, measured.rows, ours))
    for what, color, complaints in (
        ("✗ wrong result, not timed", "red", measured.wrong),
        ("does not run", "yellow", measured.failed),
    ):
        sizes: dict[tuple[str, str], list[str]] = {}
        for complaint in complaints:
            sizes.setdefault((complaint.provider, complaint.reason), []).append(complaint.size)
        for (provider, reason), found in sizes.items():
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            line = f"{what}: {provider} at {found[0]}{more}: {reason}"
            console.print(line, style=color, markup=False, soft_wrap=True)
    if group.axis:
        for provider in dict.fromkeys(row["provider"] for row in measured.rows):
            console.print(_fall_line(group, measured.rows, provider), soft_wrap=True)


def _new_table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")


def _table(group: Group, rows: list[Row], ours: str) -> Table:
    table = _new_table(group.title)
    table.add_column("provider")
    job = group.jobs[0]
    steps = job.shape[job.benchmark.axes.split().index(job.benchmark.steps)] if job.benchmark.steps else 0
    per_step = ("us/step",) if steps else ()
    memory = ("extra MB",) if any(row.get("memory_mb") is not None for row in rows) else ()
    for name in ("median ms", *per_step, "20 to 80 %", "GFLOP/s", "of peak", "GB/s", *memory, "ours is"):
        table.add_column(name, justify="right")
    for row, ratio in _with_ratios(rows, ours):
        table.add_row(
            row["provider"],
            f"{row['p50_ms']:.3f}",
            *(f"{1e3 * row['p50_ms'] / steps:.2f}" for _ in per_step),
            f"{row['p20_ms']:.3f} to {row['p80_ms']:.3f}",
            f"{row['gflops']:.1f}",
            _percent(row["fraction_of_peak"]),
            f"{row['gbytes_per_s']:.1f}",
            *(f"{row['memory_mb']:.0f}" if row.get("memory_mb") is not None else "–" for _ in memory),
            "" if ratio is None else f"{ratio:.2f} x",
        )
    return table


def _sweep_table(group: Group, rows: list[Row], ours: str) -> Table:
    """A line for each size; ours first, then each peer with our speed over its."""
    table = _new_table(group.title)
    table.add_column(group.axis, justify="right")
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    rate, unit = rate_of(rows)
    for provider in providers:
        for name in (f"{provider} ms", unit, "of peak" if provider == ours else "ours is"):
            table.add_column(name, justify="right")
    found = {(row["shape"], row["provider"]): (row, ratio) for row, ratio in _with_ratios(rows, ours)}
    for job in group.jobs:
        cells = [str(job.shape[group.place])]
        for provider in providers:
            row, ratio = found.get((job.size, provider), (None, None))
            if row is None:
                cells += ["–", "", ""]
                continue
            third = _percent(row["fraction_of_peak"]) if provider == ours else "" if ratio is None else f"{ratio:.2f} x"
            cells += [f"{row['p50_ms']:.3f}", f"{row[rate]:.1f}", third]
        table.add_row(*cells)
    return table


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.0f} %"


def print_means(console: Console, rows: list[Row], ours: str) -> None:
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


def _with_ratios(rows: list[Row], ours: str) -> Iterator[tuple[Row, float | None]]:
    """Each row with our speed over its provider's: None for ours, and where ours was not timed."""
    keys = ("kernel", "mode", "shape", "dtype")
    fastest = {tuple(row[key] for key in keys): row["p50_ms"] for row in rows if row["provider"] == ours}
    for row in rows:
        our_time = fastest.get(tuple(row[key] for key in keys))
        yield row, None if our_time is None or row["provider"] == ours else row["p50_ms"] / our_time


# ---- what a sweep shows --------------------------------------------------------------------------------------------


def rate_of(rows: list[Row]) -> tuple[str, str]:
    """The column that says how fast a kernel works, and its unit: bytes where it does no arithmetic."""
    return ("gflops", "GFLOP/s") if any(row["gflops"] for row in rows) else ("gbytes_per_s", "GB/s")


class Fall(NamedTuple):
    """A step of a sweep at which the time grows more than the work does."""

    before: int
    after: int
    """The sizes."""
    high: float
    low: float
    """The rates at them."""
    time: float
    work: float
    """Factors by which time and work grow."""


def largest_fall(group: Group, rows: list[Row], provider: str) -> Fall | None:
    """Between which neighbouring sizes a provider's rate drops most; None where it never drops."""
    rate, _ = rate_of(rows)
    found = {row["shape"]: row for row in rows if row["provider"] == provider}
    there = [(job.shape[group.place], found[job.size]) for job in group.jobs if job.size in found]
    falls = []
    for (before, one), (after, other) in zip(there, there[1:], strict=False):
        if other[rate] < one[rate]:
            time = other["p50_ms"] / one["p50_ms"]
            work = time * other[rate] / one[rate]
            falls.append(Fall(before, after, one[rate], other[rate], time, work))
    return min(falls, key=lambda fall: fall.low / fall.high, default=None)


def _fall_line(group: Group, rows: list[Row], provider: str) -> str:
    fall, (_, unit) = largest_fall(group, rows, provider), rate_of(rows)
    if fall is None:
        return f"{provider} never falls over {group.axis}"
    return (
        f"{provider}: largest fall over {group.axis} from {fall.before} to {fall.after}, {fall.high:.1f} to "
        f"{fall.low:.1f} {unit} ({100 * (1 - fall.low / fall.high):.0f} % less: {fall.time:.2f} x the time for "
        f"{fall.work:.2f} x the work)"
    )


# ---- in a file -----------------------------------------------------------------------------------------------------


def check_header(path: Path) -> None:
    """End the command if `path` is a table of something else."""
    if path.exists() and path.stat().st_size:
        try:
            with path.open(newline="") as file:
                header = next(csv.reader(file), [])
        except (UnicodeDecodeError, csv.Error):
            header = []
        if tuple(header) != COLUMNS:
            common.fail(f"{path} has other columns than the rows to be appended")


def append(path: Path, rows: list[Row]) -> None:
    """Append rows to a table, or begin one."""
    fresh = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        # Memory is told by few benchmarks, on the screen and in JSON alone.
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
