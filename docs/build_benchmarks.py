"""Write docs/benchmarks.md and its pictures from bench/results.csv; ``make benchmarks`` runs it.

Which rows count, and how they are named, is what bench/update_readme.py says: of each measurement those recorded last.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))

from bench import update_readme as recorded  # noqa: E402
from fastrnn.runs import write_whole  # noqa: E402

PAGE = DOCS / "benchmarks.md"
PICTURES = DOCS / "benchmarks"
PEERS = {name: title for name, title in recorded.PEERS.items() if name != "numba"}  # Numba's kernels are ours too
FASTER, SLOWER, PALE, INK = "#0072b2", "#d55e00", "#c4c9d0", "#24292f"


# Label, least, mean and greatest ratio of each kernel.
Kernels = list[tuple[str, float, float, float]]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than a peer ours was in one measurement; below 1 it was slower."""

    kernel: str
    dtype: str
    sizes: str
    peer: str
    ours_ms: str
    theirs_ms: str
    value: float


def ratios(mine: dict[recorded.Key, dict[str, recorded.Row]]) -> list[Ratio]:
    """All comparisons of a machine's measurements with peers."""
    made = []
    for key, run in mine.items():
        ours = run["cpu"]
        kernel, dtype = recorded.named(key)
        for name in PEERS:
            if name in run:
                value = float(run[name]["p50_ms"]) / float(ours["p50_ms"])
                times = recorded.milliseconds(ours), recorded.milliseconds(run[name])
                made.append(Ratio(kernel, dtype, key[2], name, *times, value))
    return made


def losses(compared: list[Ratio]) -> str:
    """The table of what is slower, the worst first."""
    slower = sorted((one for one in compared if one.value < 1), key=lambda one: one.value)
    if not slower:
        return f"None of {len(compared)} comparisons.\n"
    lines = [
        f"{len(slower)} of {len(compared)} comparisons, the worst first. Medians in ms; sizes in the order of the API.",
        "",
        "| kernel | sizes | dtype | beside | fastrnn | the other | × |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for one in slower:
        peer = PEERS[one.peer].replace(" ", "&nbsp;")  # rows of one line are easier to compare
        cells = [one.kernel, one.sizes, one.dtype, peer, one.ours_ms, one.theirs_ms, f"{one.value:.3g}×"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_kernel(compared: list[Ratio], peer: str) -> Kernels:
    """Label, least, geometric mean and greatest ratio of each kernel; the slowest first."""
    kernels: dict[str, list[float]] = {}
    for one in compared:
        if one.peer == peer:
            label = one.kernel if one.dtype == "float32" else f"{one.kernel}, {one.dtype.removeprefix('float32 ')}"
            kernels.setdefault(label, []).append(one.value)
    means = [(label, min(v), math.exp(math.fsum(map(math.log, v)) / len(v)), max(v)) for label, v in kernels.items()]
    return sorted(means, key=lambda kernel: kernel[2])


def picture(kernels: Kernels, title: str) -> bytes:
    """An SVG: for each kernel a dot at the mean ratio, and a line from the least to the greatest.

    Its width is that of a phone, so that its letters need not shrink there.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {
        "svg.fonttype": "none",  # letters stay letters
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        width, height = 4.4, 0.75 + 0.19 * len(kernels)  # in inches
        left, right = 0.1 + 0.077 * max(len(kernel[0]) for kernel in kernels), 0.5  # for labels and numbers
        figure = pyplot.figure(figsize=(width, height))
        axes = figure.add_axes((left / width, 0.45 / height, 1 - (left + right) / width, 1 - 0.75 / height))
        for row, (_, least, mean, greatest) in enumerate(kernels):
            axes.plot([least, greatest], [row, row], color=PALE, linewidth=4, solid_capstyle="round", zorder=1)
            axes.plot([mean], [row], "o", markersize=5, color=FASTER if mean >= 1 else SLOWER, zorder=2)
            axes.annotate(
                f"{mean:.2f}×" if mean < 9.95 else f"{mean:.0f}×",
                (1.02, row),
                xycoords=("axes fraction", "data"),
                va="center",
                color=INK if mean >= 1 else SLOWER,
                annotation_clip=False,
            )
        axes.axvline(1, color=INK, linewidth=0.8, zorder=0)
        axes.set_xscale("log", base=2)
        lowest, highest = min(kernel[1] for kernel in kernels), max(kernel[3] for kernel in kernels)
        powers = range(math.floor(math.log2(min(lowest, 0.75))), math.ceil(math.log2(max(highest, 1.9))) + 1)
        axes.set_xlim(2.0 ** powers[0] * 0.92, 2.0 ** powers[-1] * 1.08)
        axes.set_xticks([2.0**power for power in powers], [f"{2.0**power:g}" for power in powers])
        axes.minorticks_off()
        axes.set_ylim(len(kernels) - 0.4, -0.6)
        axes.set_yticks(range(len(kernels)), [kernel[0] for kernel in kernels])
        axes.tick_params(length=0)
        axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(f"times as fast as {title}")
        axes.annotate("← slower", (1, 1), (-4, 3), ("data", "axes fraction"), "offset points", ha="right", color=SLOWER)
        axes.annotate("faster →", (1, 1), (4, 3), ("data", "axes fraction"), "offset points", ha="left", color=FASTER)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue()


def sections(number: int, compared: list[Ratio]) -> tuple[str, dict[str, tuple[Kernels, str]]]:
    """A part for each peer, and what its pictures show, by their names."""
    lines, pictures = [], {}
    for peer, title in PEERS.items():
        kernels = by_kernel(compared, peer)
        if kernels:
            name = f"{peer.replace(':', '-')}{f'-{number}' if number else ''}.svg"
            pictures[name] = kernels, title
            slower = sum(mean < 1 for _, _, mean, _ in kernels)
            count = "1 kernel" if len(kernels) == 1 else f"{len(kernels)} kernels"
            alt = f"{count} beside {title}: mean ratios from {kernels[0][2]:.2g} to {kernels[-1][2]:.2g}"
            lines += [f"### Beside {title}", "", f"![{alt}](benchmarks/{name})", ""]
            lines += [f"{count}, of which {slower or 'none'} slower on the mean.", ""]
    return "\n".join(lines), pictures


def page(rows: list[recorded.Row]) -> tuple[str, dict[str, tuple[Kernels, str]]]:
    """The text of docs/benchmarks.md, and what its pictures show, by their names."""
    parts: list[str] = []
    pictures: dict[str, tuple[Kernels, str]] = {}
    for number, (about, mine) in enumerate(recorded.machines(rows)):
        compared = ratios(mine)
        charts, drawn = sections(number, compared)
        pictures |= drawn
        parts.append(
            f"""{about}

## Where fastrnn is slower

{losses(compared)}
## Every kernel

Dots are geometric means over the sizes of a kernel, bars reach from its worst size to its best, and the slowest kernels
stand first. Blue is faster, orange slower.

{charts}"""
        )
    text = f"""# Benchmarks

How many times as fast as other libraries the kernels are: below 1 is slower, and is shown first. Medians of forward and
backward together where nothing else is said, everybody at the same number of threads and with the same dtype, results
verified before anything is timed, providers taking turns in one run.

{"".join(parts)}
## On a GPU

{recorded.gpu_table(rows)}
## Numbers

A line for each kernel: geometric means over its sizes, the smallest in brackets; "of peak" is the fraction of the
multiply-adds that the machine can do at most. [Every size with its times](speed.md) is a page of its own, and
[Contributing](../CONTRIBUTING.md) says what bounds the recurrent layers.

{recorded.summary(rows)}
## Your own machine

    fastrnn bench                                            # every kernel, quick sizes
    fastrnn bench lstm --all                                 # all sizes of one kernel
    fastrnn bench lstm --shape 25,16,256,512 --mode forward  # your own size, inference
    fastrnn bench lstm --sweep N,T,H --plot lstm.png         # speed over size

In a checkout `make bench` appends rows to [`bench/results.csv`](../bench/results.csv), and `make benchmarks` writes
this page from them.
"""
    return text, pictures


def main() -> int:
    """Read the rows, write the page and its pictures."""
    with recorded.RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text, pictures = page(rows)
    PICTURES.mkdir(exist_ok=True)
    for stale in set(PICTURES.glob("*.svg")) - {PICTURES / name for name in pictures}:
        stale.unlink()
    for name, (kernels, title) in pictures.items():
        write_whole(PICTURES / name, picture(kernels, title))
    write_whole(PAGE, text.encode())
    print(f"docs/benchmarks.md: written from {len(rows)} rows, with {len(pictures)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
