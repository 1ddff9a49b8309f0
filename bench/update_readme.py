"""Write the speed table of README.md anew from bench/results.csv; ``make readme`` runs it.

Of each kernel, mode, shape, dtype and number of threads the rows recorded last count, losses as well as wins.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.csv"
README = ROOT / "README.md"
START, END = "<!-- speed: written by `make readme` from bench/results.csv -->", "<!-- end of speed -->"
PROVIDERS = ("cpu", "numba", "numpy", "torch")

Row = dict[str, str]
Key = tuple[str, ...]


def latest(rows: list[Row]) -> dict[Key, dict[str, Row]]:
    """For each measurement its providers' rows of the run recorded last: that of the last row of ours."""
    runs: dict[Key, dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("kernel", "mode", "shape", "dtype", "threads", "hardware"))
        if row["provider"] == "cpu":
            runs[key] = {}  # ours comes first in every run: what follows belongs to it
        if key in runs:
            runs[key][row["provider"]] = row
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


def table(rows: list[Row]) -> str:
    """The tables in Markdown, one for each machine."""
    runs = latest(rows)
    lines = []
    for hardware in dict.fromkeys(key[-1] for key in runs):
        mine = {key: run for key, run in runs.items() if key[-1] == hardware}
        facts = sorted({(run["cpu"]["isa"], key[4]) for key, run in mine.items()})
        dates = sorted(row["date"] for run in mine.values() for row in run.values())
        versions = sorted({word for run in mine.values() for row in run.values() for word in row["versions"].split()})
        how = " and ".join(f"{isa}, {threads} threads" for isa, threads in facts)
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines += [
            f"{hardware} ({how}), {when}, {', '.join(versions)}. Medians in ms; sizes in the order of the API.",
            "",
        ]
        lines += ["| kernel | sizes | dtype | fastrnn | of peak | Numba | NumPy | PyTorch | × NumPy | × PyTorch |"]
        lines += ["|---|---|---|--:|--:|--:|--:|--:|--:|--:|"]
        for (kernel, mode, shape, dtype, *_), run in mine.items():
            ours, numba, numpy, torch = (run.get(name) for name in PROVIDERS)
            assert ours is not None
            name = kernel if mode == "both" else f"{kernel} {mode}"
            peak = f"{100 * float(ours['fraction_of_peak']):.0f} %" if ours["fraction_of_peak"] else "–"
            times = (milliseconds(ours), peak, *(milliseconds(row) for row in (numba, numpy, torch)))
            cells = (name, shape.replace(",", ", "), dtype, *times, ratio(ours, numpy), ratio(ours, torch))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def written(readme: str, rows: list[Row]) -> str:
    """The README with the table between its two marks."""
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold the lines {START!r} and {END!r} once each")
    head, rest = readme.split(START)
    return f"{head}{START}\n\n{table(rows)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Read the rows, write the README."""
    if not RESULTS.exists():
        sys.exit(f"{RESULTS} is missing: `make bench` records rows")
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    README.write_text(written(README.read_text(), rows))
    print(f"README.md: speed table written from {len(rows)} rows")


if __name__ == "__main__":
    main()
