"""Pictures of ``fastrnn bench``: bars of speed by shape, and curves of time and speed over the sizes of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrnn.cli.bench_tables import Row, largest_fall, rate_of
from fastrnn.cli.bench_timing import Group

GREY = "#6e7781"
RED = "#cf222e"
# Ours stands out; peers keep their colour from picture to picture.
COLORS = {"numpy": "#9a6700", "numba": "#1a7f37", "torch": "#bc4c00", "onnxruntime": "#8250df", "torch:bf16": "#bf3989"}
OURS = "#0969da"


def save_bars(path: Path, rows: list[Row], ours: str) -> None:
    """Bars of GFLOP/s (or of GB/s where there is no arithmetic), one panel for each kernel, mode and dtype."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        panels.setdefault((row["kernel"], row["mode"], row["dtype"]), []).append(row)
    bars = max(len(panel) for panel in panels.values())
    figure = Figure(figsize=(max(7.0, 0.5 * bars + 3), 3.2 * len(panels) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)
    for axis, (key, panel) in zip(axes[:, 0], panels.items(), strict=True):
        shapes = list(dict.fromkeys(row["shape"] for row in panel))
        providers = list(dict.fromkeys(row["provider"] for row in panel))
        width = 0.8 / len(providers)
        rate, unit = rate_of(panel)
        for index, provider in enumerate(providers):
            found = {row["shape"]: row[rate] for row in panel if row["provider"] == provider}
            place = [at + (index + 0.5) * width - 0.4 for at, shape in enumerate(shapes) if shape in found]
            drawn = axis.bar(place, list(found.values()), width, label=provider, color=_color(provider, ours))
            axis.bar_label(drawn, [f"{value:.3g}" for value in found.values()], fontsize=7)
        axis.set_xticks(range(len(shapes)), [f"({shape.replace(',', ', ')})" for shape in shapes], fontsize=8)
        axis.set_ylabel(unit)
        axis.margins(y=0.18)
        axis.set_title(" ".join(key), loc="left", fontsize=10)
        axis.legend(frameon=False, ncols=len(providers), loc="upper right", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{_machine(rows)}; higher is better", fontsize=9)
    figure.savefig(path, dpi=150)


def save_sweeps(path: Path, sweeps: list[tuple[Group, list[Row]]], ours: str) -> None:
    """Time and speed over size: a column for each swept axis, a pair of panels for each kernel, mode and dtype.

    Time is drawn on logarithmic axes, beside a line of constant speed: a cliff is a step that is steeper than that. Its
    shade goes from the 20th to the 80th percentile. Our largest fall is marked where the speed is drawn.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(_name(group) for group, _ in sweeps))
    axes_swept = list(dict.fromkeys(group.axis for group, _ in sweeps))
    size = (max(5.2 * len(axes_swept), 6.5), 6.2 * len(names) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2 * len(names), len(axes_swept), squeeze=False)
    for panel in grid.flat:
        panel.set_visible(False)
    for group, rows in sweeps:
        place = 2 * names.index(_name(group)), axes_swept.index(group.axis)
        _draw_sweep(grid[place], grid[place[0] + 1, place[1]], group, rows, ours)
    figure.suptitle(_machine(sweeps[0][1]), fontsize=10)
    figure.savefig(path, dpi=150)


def _draw_sweep(above: Any, below: Any, group: Group, rows: list[Row], ours: str) -> None:
    rate, unit = rate_of(rows)
    sizes = {job.size: job.shape[group.place] for job in group.jobs}
    highest = 0.0
    # Ours last, and so on top.
    for provider in sorted(dict.fromkeys(row["provider"] for row in rows), key=lambda name: name == ours):
        found = [row for row in rows if row["provider"] == provider]
        x = [sizes[row["shape"]] for row in found]
        style = {"color": _color(provider, ours), "marker": "o", "markersize": 3.5, "linewidth": 1.2, "label": provider}
        style |= {"linewidth": 2.0, "markersize": 4.5} if provider == ours else {}
        low, middle, high = ([row[key] for row in found] for key in ("p20_ms", "p50_ms", "p80_ms"))
        above.plot(x, middle, **style)
        above.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        below.plot(x, [row[rate] for row in found], **style)
        highest = max(highest, *(row[rate] for row in found))
    best = max((row for row in rows if row["provider"] == ours), key=lambda row: row[rate], default=None)
    if best is not None:
        # The time at the best speed of ours: work as a multiple of the work there.
        mine = [row for row in rows if row["provider"] == ours]
        x = [sizes[row["shape"]] for row in mine]
        constant = [row["p50_ms"] * row[rate] / best[rate] for row in mine]
        above.plot(
            x,
            constant,
            color=GREY,
            linestyle=":",
            linewidth=1.2,
            zorder=0,
            label=f"the work at {best[rate]:.3g} {unit}",
        )
        fraction = best["fraction_of_peak"]
        if fraction and unit == "GFLOP/s":
            peak = best["gflops"] / fraction
            below.axhline(peak, color=GREY, linestyle="--", linewidth=1)
            note = f"peak of the machine: {peak:.0f}"
            below.annotate(note, (x[0], peak), (0, 3), textcoords="offset points", color=GREY, fontsize=8)
            highest = max(highest, peak)
    _mark_fall(below, group, rows, ours)
    job = group.jobs[0]
    above.set_title(f"{_name(group)}\n{job.benchmark.axes} = {group.base}", loc="left", fontsize=10)
    above.set_yscale("log")
    above.set_ylabel("time, ms (median)")
    above.yaxis.set_major_formatter("{x:g}")
    below.set_ylabel(unit)
    below.set_ylim(0, 1.12 * highest)
    below.set_xlabel(group.axis)
    for panel in (above, below):
        panel.set_visible(True)
        panel.set_xscale("log", base=2)
        ticks = _ticks(list(sizes.values()))
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False, fontsize=8, loc="upper left")


def _mark_fall(panel: Any, group: Group, rows: list[Row], ours: str) -> None:
    fall = largest_fall(group, rows, ours)
    if fall is None:
        return
    panel.plot([fall.before, fall.after], [fall.high, fall.low], color=RED, linewidth=2.5, zorder=5)
    sizes = sorted(job.shape[group.place] for job in group.jobs)
    in_the_left_half = fall.after < (sizes[0] * sizes[-1]) ** 0.5
    panel.annotate(
        f"largest fall: {fall.before:,} → {fall.after:,}, −{100 * (1 - fall.low / fall.high):.0f} %",
        (fall.after, fall.low),
        (fall.after, 0.03),
        textcoords=panel.get_xaxis_transform(),
        ha="left" if in_the_left_half else "right",
        color=RED,
        fontsize=8,
        arrowprops={
            "arrowstyle": "-",
            "color": RED,
            "linewidth": 0.7,
            "linestyle": ":",
            "relpos": (0.0 if in_the_left_half else 1.0, 1.0),
        },
    )


def _ticks(sizes: list[int]) -> list[int]:
    """The sizes that have room for a label: each at least a third of an octave from the one before it."""
    ticks: list[int] = []
    for size in sorted(set(sizes), key=lambda size: (size & (size - 1) != 0, size)):  # powers of two first
        if all(max(size, tick) >= 1.45 * min(size, tick) for tick in ticks):
            ticks.append(size)
    return sorted(ticks)


def _name(group: Group) -> str:
    job = group.jobs[0]
    return f"{job.benchmark.kernel} {job.mode} {job.dtype}"


def _color(provider: str, ours: str) -> str:
    return OURS if provider == ours else COLORS.get(provider, GREY)


def _machine(rows: list[Row]) -> str:
    first = rows[0]
    precision = "" if first["precision"] == "highest" else f", precision {first['precision']}"
    isa = next((f", {row['isa']}" for row in rows if row["isa"]), "")
    threads = f"{first['threads']} {'thread' if first['threads'] == 1 else 'threads'}"
    return f"{first['hardware']}{isa}, {threads}{precision}"
