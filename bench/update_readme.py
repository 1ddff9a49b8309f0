"""Write the speed tables of README.md and docs/speed.md anew from bench/results.csv; ``make readme`` runs it.

Of each kernel, mode, shape, dtype, precision and number of threads the rows recorded last count, losses as well as
wins. docs/speed.md has them all; the README has a line for each kernel, and the table of GPUs, or that there is none.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.csv"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "speed.md"
START, END = "<!-- speed: written by `make readme` from bench/results.csv -->", "<!-- end of speed -->"
GPU_START, GPU_END = "<!-- GPU speed: written by `make readme` from bench/results.csv -->", "<!-- end of GPU speed -->"
NOT_RUN = "Not yet run: nothing was timed on a GPU so far, so that no speed is claimed for one."
# Peers in the order of their columns; the last two have one only where something was measured against them.
PEERS = {
    "numba": "Numba",
    "numpy": "NumPy",
    "torch": "PyTorch",
    "torch:bf16": "PyTorch bf16",
    "onnxruntime": "ONNX Runtime",
}
ALWAYS = ("numba", "numpy", "torch")
GPU_PEERS = {"torch": "PyTorch", "torch:bf16": "PyTorch bf16"}
RECURRENT = ("rnn", "lstm", "gru")  # the second size is that of the steps

Row = dict[str, str]
Key = tuple[str, ...]


def latest(rows: list[Row], ours: str = "cpu") -> dict[Key, dict[str, Row]]:
    """For each measurement its providers' rows of the run recorded last: that of the last row of ours."""
    runs: dict[Key, dict[str, Row]] = {}
    present: Key = ()
    for row in rows:
        key = tuple(row[name] for name in ("kernel", "mode", "shape", "dtype", "precision", "threads", "hardware"))
        if row["provider"] == ours:
            runs[key], present = {}, key  # ours comes first in every run that it is in: what follows belongs to it
        if key == present:
            runs[key][row["provider"]] = row
        else:
            present = ()
    return runs


def milliseconds(row: Row | None) -> str:
    """Three significant digits, or a dash."""
    if row is None:
        return "–"
    value = float(row["p50_ms"])
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f}"


def ratio(ours: Row, theirs: Row | None) -> str:
    """How many times faster ours is, or a dash."""
    return "–" if theirs is None else f"{float(theirs['p50_ms']) / float(ours['p50_ms']):.2g}×"


def machines(rows: list[Row]) -> list[tuple[str, dict[Key, dict[str, Row]]]]:
    """For each machine what it is and when it was measured, and its measurements, those of a kernel together."""
    runs, made = latest(rows), []
    for hardware in dict.fromkeys(key[-1] for key in runs):
        mine = {key: run for key, run in runs.items() if key[-1] == hardware}
        facts = sorted({(run["cpu"]["isa"], key[5]) for key, run in mine.items()})
        dates = sorted(row["date"] for run in mine.values() for row in run.values())
        versions = sorted({word for run in mine.values() for row in run.values() for word in row["versions"].split()})
        how = " and ".join(f"{isa}, {threads} threads" for isa, threads in facts)
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        kinds = list(dict.fromkeys(key[:2] for key in mine))  # shapes of one kernel together, whenever recorded
        ordered = dict(sorted(mine.items(), key=lambda item: kinds.index(item[0][:2])))
        made.append((f"{hardware} ({how}), {when}, {', '.join(versions)}.", ordered))
    return made


def named(key: Key) -> list[str]:
    """Kernel with its mode, and dtype with its precision."""
    kernel, mode, _, dtype, precision, *_ = key
    return [
        kernel if mode == "both" else f"{kernel} {mode}",
        dtype if precision == "highest" else f"{dtype} {precision}",
    ]


def table(rows: list[Row]) -> str:
    """All measurements in Markdown, a table for each machine."""
    lines = []
    for about, mine in machines(rows):
        lines += [f"{about} Medians in ms; sizes in the order of the API.", ""]
        peers = [name for name in PEERS if name in ALWAYS or any(name in run for run in mine.values())]
        compared = [name for name in peers if name != "numba"]  # Numba's kernels are ours too
        titles = ["kernel", "sizes", "dtype", "fastrnn", "of peak"]
        titles += [*(PEERS[name] for name in peers), *(f"× {PEERS[name]}" for name in compared)]
        lines += [f"| {' | '.join(titles)} |", "|---|---|---|" + "--:|" * (len(titles) - 3)]
        for key, run in mine.items():
            ours = run["cpu"]
            kernel, dtype = named(key)
            cells = [kernel, key[2].replace(",", ", "), dtype, milliseconds(ours)]
            cells.append(f"{100 * float(ours['fraction_of_peak']):.0f} %" if ours["fraction_of_peak"] else "–")
            cells += [milliseconds(run.get(name)) for name in peers]
            cells += [ratio(ours, run.get(name)) for name in compared]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """A line for each kernel: how many times faster ours is, as geometric means over its sizes, and the smallest."""
    lines = []
    for about, mine in machines(rows):
        lines += [about, ""]
        peers = [name for name in PEERS if name != "numba"]
        peers = [name for name in peers if name in ALWAYS or any(name in run for run in mine.values())]
        titles = ["kernel", "dtype", "sizes", "of peak", *(f"× {PEERS[name]}" for name in peers)]
        lines += [f"| {' | '.join(titles)} |", "|---|---|" + "--:|" * (len(titles) - 2)]
        kernels: dict[tuple[str, ...], list[dict[str, Row]]] = {}
        for key, run in mine.items():
            kernels.setdefault(tuple(named(key)), []).append(run)
        for (kernel, dtype), runs in kernels.items():
            parts = [100 * float(run["cpu"]["fraction_of_peak"]) for run in runs if run["cpu"]["fraction_of_peak"]]
            peak = (
                "–"
                if not parts
                else f"{min(parts):.0f} to {max(parts):.0f} %"
                if len(parts) > 1
                else f"{parts[0]:.0f} %"
            )
            cells = [kernel, dtype, str(len(runs)), peak, *(mean_ratio(runs, name) for name in peers)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def mean_ratio(runs: list[dict[str, Row]], peer: str) -> str:
    """Geometric mean of how many times faster ours is, the smallest in brackets; or a dash."""
    ratios = [float(run[peer]["p50_ms"]) / float(run["cpu"]["p50_ms"]) for run in runs if peer in run]
    if not ratios:
        return "–"
    mean = f"{math.exp(math.fsum(map(math.log, ratios)) / len(ratios)):.3g}×"
    return mean if len(ratios) == 1 else f"{mean} ({min(ratios):.2g})"


def gpu_table(rows: list[Row]) -> str:
    """The tables of GPUs, one for each; or that there is none."""
    runs = latest(rows, "cuda")
    lines: list[str] = []
    for hardware in dict.fromkeys(key[-1] for key in runs):
        mine = {key: run for key, run in runs.items() if key[-1] == hardware}
        isas = " and ".join(sorted({run["cuda"]["isa"] for run in mine.values()}))
        dates = sorted(row["date"] for run in mine.values() for row in run.values())
        versions = sorted({word for run in mine.values() for row in run.values() for word in row["versions"].split()})
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines += [f"{hardware} ({isas}), {when}, {', '.join(versions)}. Medians; sizes in the order of the API.", ""]
        peers = [name for name in GPU_PEERS if name == "torch" or any(name in run for run in mine.values())]
        titles = ["kernel", "sizes", "dtype", "fastrnn ms", "µs a step"]
        titles += [*(f"{GPU_PEERS[name]} ms" for name in peers), *(f"× {GPU_PEERS[name]}" for name in peers)]
        lines += [f"| {' | '.join(titles)} |", "|---|---|---|" + "--:|" * (len(titles) - 3)]
        for (kernel, mode, shape, dtype, precision, *_), run in mine.items():
            ours = run["cuda"]
            steps = int(shape.split(",")[1]) if kernel.partition("_")[0] in RECURRENT else 0
            cells = [kernel if mode == "both" else f"{kernel} {mode}", shape.replace(",", ", ")]
            cells.append(dtype if precision == "highest" else f"{dtype} {precision}")
            cells += [milliseconds(ours), f"{1e3 * float(ours['p50_ms']) / steps:.2f}" if steps else "–"]
            cells += [milliseconds(run.get(name)) for name in peers]
            cells += [ratio(ours, run.get(name)) for name in peers]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines) if lines else f"{NOT_RUN}\n"


def written(readme: str, rows: list[Row]) -> str:
    """The README with each table between its two marks."""
    for start, end, made in ((START, END, summary), (GPU_START, GPU_END, gpu_table)):
        if readme.count(start) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md must hold the lines {start!r} and {end!r} once each")
        head, rest = readme.split(start)
        readme = f"{head}{start}\n\n{made(rows)}\n{end}{rest.split(end)[1]}"
    return readme


def page(rows: list[Row]) -> str:
    """docs/speed.md, with everything that was measured."""
    return f"""# Speed: every measurement

What `fastrnn bench --record` wrote to [`bench/results.csv`](../bench/results.csv), the last of each; `make readme`
writes this page and the summary in the [README](../README.md). Medians of forward and backward together where nothing
else is said, everybody at the same number of threads and with the same dtype, results verified first, providers taking
turns in one run. "of peak" is the fraction of the multiply-adds that the machine can do at most, measured in that run.

{table(rows)}
On GPUs:

{gpu_table(rows)}"""


def main() -> None:
    """Read the rows, write the README and the page."""
    if not RESULTS.exists():
        sys.exit(f"{RESULTS} is missing: `make bench` records rows")
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    README.write_text(written(README.read_text(), rows))
    PAGE.write_text(page(rows))
    print(f"README.md, docs/speed.md: speed tables written from {len(rows)} rows")


if __name__ == "__main__":
    main()
