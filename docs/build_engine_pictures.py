"""Draw the pictures of docs/engine.md: docs/engine/*.svg.

Everything but the last is a drawing; the last shows the rows that bench/results.csv has. Colours change with the
reader's dark mode: each is a CSS variable with two values.

    python docs/build_engine_pictures.py
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from fastrnn.runs import write_whole

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "engine"
RESULTS = DOCS.parent / "bench" / "results.csv"

# Name: by day, in the dark. Matplotlib draws with the first; `themed` puts variables in its place.
COLOURS = {
    "paper": ("#fdfdfc", "#15181d"),
    "ink": ("#1c2025", "#e8eaed"),
    "faint": ("#8a9099", "#8d949e"),
    "first": ("#2f6fb0", "#6aa9e6"),
    "second": ("#c2571a", "#f0935a"),
    "third": ("#3b8651", "#74c48c"),
    "fourth": ("#8b56a8", "#c394de"),
    "soft1": ("#cfe0f2", "#21405f"),
    "soft2": ("#f6d9c6", "#5c351d"),
    "soft3": ("#d0e8d6", "#234a30"),
    "soft4": ("#e6d6ef", "#47305a"),
}
DAY = {name: pair[0] for name, pair in COLOURS.items()}
GATES = (("i", "soft1"), ("f", "soft2"), ("o", "soft3"), ("g", "soft4"))
WIDTH = 5.0  # inches: on a phone the letters are still two thirds of their size


def page(height: float, right: float, top: float) -> tuple[Any, Any]:
    """An empty picture whose unit is the same in both directions, but for its height."""
    figure, axes = plt.subplots(figsize=(WIDTH, height), facecolor=DAY["paper"])
    axes.set_position((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, right), ylim=(0, top))
    axes.axis("off")
    return figure, axes


def box(axes: Any, x: float, y: float, w: float, h: float, colour: str, text: str = "", edge: str = "ink") -> None:
    """A rectangle with a word in it."""
    axes.add_patch(Rectangle((x, y), w, h, facecolor=DAY[colour], edgecolor=DAY[edge], linewidth=0.8))
    if text:
        write(axes, x + w / 2, y + h / 2, text, ha="center", va="center")


def write(axes: Any, x: float, y: float, text: str, colour: str = "ink", size: float = 12, **how: Any) -> None:
    axes.text(x, y, text, color=DAY[colour], fontsize=size, **how)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = "ink") -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=DAY[colour], linewidth=1.3, shrinkB=0)
    )


def draw_owners() -> Any:
    """Who owns which columns of the weights."""
    figure, axes = page(4.1, 40, 33)
    write(axes, 0, 31, "as you have it: [Wx; Wh], 4H columns")
    for gate, (name, colour) in enumerate(GATES):
        for group in range(4):
            box(axes, gate * 10 + group * 2.5, 22, 2.5, 7.5, colour, f"{name}{group + 1}")
    write(axes, 0, 19.3, "packed: the four gates of a group side by side")
    owners = ("first", "first", "second", "second")
    for group in range(4):
        for gate, (name, colour) in enumerate(GATES):
            box(axes, group * 10 + gate * 2.35, 10.5, 2.35, 7.5, colour, f"{name}{group + 1}")
        axes.add_patch(Rectangle((group * 10, 10.5), 9.4, 7.5, fill=False, edgecolor=DAY[owners[group]], linewidth=2.4))
    for x, name, colour in ((0, "thread 1", "first"), (20, "thread 2", "second")):
        axes.plot([x, x + 19.4], [8.9, 8.9], color=DAY[colour], linewidth=3)
        write(axes, x + 9.7, 5.6, name, colour, ha="center", weight="bold")
    write(axes, 0, 2.6, "Every thread keeps its panels for all steps, in its own L2.", size=11)
    write(axes, 0, 0, "No two threads write the same element.", size=11)
    return figure


def draw_steps() -> Any:
    """The time loop and its barriers."""
    figure, axes = page(4.3, 40, 36)
    for row, (name, colour, soft) in enumerate((("thread 1", "first", "soft1"), ("thread 2", "second", "soft2"))):
        y = 22 - row * 9
        write(axes, 0, y + 2.4, name, colour, weight="bold", va="center")
        for step in range(2):
            x = 9 + step * 15.5
            box(axes, x, y, 7.2, 5, soft, "product")
            box(axes, x + 7.2, y, 4.6, 5, "soft3", "gates")
            arrow(axes, (x + 11.8, y + 2.5), (x + 13.9, y + 2.5), colour)
    for step in range(2):
        x = 9 + step * 15.5
        axes.plot([x + 14.1] * 2, [11.5, 29], color=DAY["ink"], linewidth=3)
        write(axes, x + 5.9, 30.2, f"step {step + 1}", ha="center")
    write(axes, 39.8, 30.2, "barrier", "faint", ha="right")
    write(axes, 0, 7.6, "product: [x h] times the thread's own columns", size=11)
    write(axes, 0, 4.6, "gates: sigmoid, tanh; c stays, h is written", size=11)
    write(axes, 0, 1.6, "barrier: all of h is there, the next step may read it", size=11)
    return figure


def draw_tile() -> Any:
    """The micro-kernel's tile of 6 rows and 4 vectors."""
    figure, axes = page(4.6, 40, 38)
    x0, y0, w, h = 13, 4.5, 6.5, 3
    for row in range(6):
        for vector, (_, colour) in enumerate(GATES):
            box(axes, x0 + vector * w, y0 + (5 - row) * h, w, h, colour)
        box(axes, 5.5, y0 + (5 - row) * h, 3, h, "paper")
        write(axes, 7, y0 + (5 - row) * h + h / 2, "a", ha="center", va="center", style="italic")
    for vector, (name, colour) in enumerate(GATES):
        box(axes, x0 + vector * w, 27.5, w, 3, colour, f"16 {name}")
    write(axes, x0, 35.2, "one k of the panel: 4 loads from the L2", size=11)
    write(axes, x0, 32.2, "64 columns, the gates of 16 hidden units", size=11)
    write(axes, 0, 25.3, "one k of 6 rows", size=11)
    write(axes, 0, 23, "of [x h]", size=11)
    for vector in range(4):
        arrow(axes, (x0 + (vector + 0.5) * w, 27.3), (x0 + (vector + 0.5) * w, 22.8), "faint")
    for row in range(6):
        arrow(axes, (8.7, y0 + (row + 0.5) * h), (12.8, y0 + (row + 0.5) * h), "faint")
    write(axes, 0, 1.2, "24 sums stay in registers: 24 multiply-adds for a k", size=11)
    return figure


def draw_scatter() -> Any:
    """The gradient of an embedding: rows and their owners."""
    figure, axes = page(4.5, 40, 38)
    words = (3, 1, 3, 0, 1, 3)
    softs = ("soft1", "soft2", "soft3", "soft4")
    write(axes, 0, 36, "dout, as it comes")
    for i, word in enumerate(words):
        box(axes, 0, 30.2 - i * 4.6, 9.5, 3.8, softs[word], f"word {word}")
    order = sorted(range(len(words)), key=lambda i: words[i])
    write(axes, 15, 36, "sorted by word")
    for place, i in enumerate(order):
        box(axes, 15, 30.2 - place * 4.6, 9.5, 3.8, softs[words[i]], f"word {words[i]}")
        axes.plot([9.7, 14.8], [32.1 - i * 4.6, 32.1 - place * 4.6], color=DAY["faint"], linewidth=1)
    write(axes, 30, 36, "dW")
    for word, owner in ((0, "first"), (1, "first"), (2, "second"), (3, "second")):
        y = 29.4 - word * 6.6
        box(axes, 30, y, 9.5, 4.6, softs[word], "0" if word == 2 else f"row {word}", owner)
        axes.patches[-1].set_linewidth(2.4)
        for place, i in enumerate(order):
            if words[i] == word:
                axes.plot([24.7, 29.8], [32.1 - place * 4.6, y + 2.3], color=DAY["faint"], linewidth=1)
    write(axes, 0, 2.8, "Each row of dW belongs to one thread, which adds in", size=11)
    write(axes, 0, 0.2, "order of position: no atomics, always the same bits.", size=11)
    return figure


SHOWN = {
    "lstm": ("LSTM", "first", "o"),
    "gru": ("GRU", "second", "s"),
    "rnn": ("RNN", "third", "^"),
    "gram": ("Gram matrix", "fourth", "D"),
    "vocab_softmax_loss": ("vocabulary loss", "ink", "P"),
    "word_embedding": ("embedding", "faint", "v"),
    "adam": ("Adam", "second", "X"),
}


def recorded(path: Path) -> tuple[str, float, dict[str, list[tuple[float, float]]]]:
    """Of the recorded rows in float32: the machine, its peak in GFLOP/s, and for each kernel (FLOP a byte, GFLOP/s).

    A row's bytes are those that the kernel must at least read and write; its peak is what `fastrnn bench` measured.
    """
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["provider"] == "cpu" and row["mode"] == "both"]
    rows = [row for row in rows if row["dtype"] == "float32" and row["precision"] == "highest"]
    machine = rows[-1]["hardware"]
    rows = [row for row in rows if row["hardware"] == machine and row["kernel"] in SHOWN]
    last = {(row["kernel"], row["shape"], row["threads"]): row for row in rows}
    most = max(row["threads"] for row in rows)
    points: dict[str, list[tuple[float, float]]] = {}
    peaks = []
    for row in last.values():
        speed, bytes_per_s, part = (float(row[name] or 0) for name in ("gflops", "gbytes_per_s", "fraction_of_peak"))
        if row["threads"] == most and speed and bytes_per_s and part:
            points.setdefault(row["kernel"], []).append((speed / bytes_per_s, speed))
            peaks.append(speed / part)
    return f"{machine}, {most} threads", float(np.median(peaks)), points


def draw_roofline() -> Any:
    """What the machine allows, and where the recorded kernels are."""
    machine, peak, points = recorded(RESULTS)
    memory = max(speed / intensity for kernel in points.values() for intensity, speed in kernel)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.8), facecolor=DAY["paper"])
    axes.set_facecolor(DAY["paper"])
    axes.set_position((0.14, 0.13, 0.84, 0.78))
    x = np.geomspace(0.05, 3000, 200)
    axes.loglog(x, np.minimum(peak, memory * x), color=DAY["ink"], linewidth=1.6)
    for kernel, (name, colour, marker) in SHOWN.items():
        if kernel in points:
            at = np.array(points[kernel])
            axes.loglog(at[:, 0], at[:, 1], marker, color=DAY[colour], markersize=6, label=name, alpha=0.9)
    write(axes, 2900, peak * 1.1, f"{peak:.0f} GFLOP/s: all multiply-adds", ha="right", size=11)
    write(axes, 0.8, peak / 13, f"{memory:.0f} GB/s: the most that", size=11)
    write(axes, 0.8, peak / 19.5, "any of these moves", size=11)
    axes.set(xlim=(0.05, 3000), ylim=(0.5, peak * 2))
    axes.set_xlabel("FLOP for each byte that must move", color=DAY["ink"], fontsize=11)
    axes.set_ylabel("GFLOP/s", color=DAY["ink"], fontsize=11)
    axes.set_title(machine, color=DAY["ink"], fontsize=12, loc="left")
    axes.tick_params(which="both", colors=DAY["ink"], labelsize=11)
    for spine in axes.spines.values():
        spine.set_color(DAY["faint"])
    legend = axes.legend(loc="lower right", fontsize=11, facecolor=DAY["paper"], edgecolor=DAY["faint"])
    for text in legend.get_texts():
        text.set_color(DAY["ink"])
    return figure


PICTURES: dict[str, Callable[[], Any]] = {
    "owners": draw_owners,
    "steps": draw_steps,
    "tile": draw_tile,
    "scatter": draw_scatter,
    "roofline": draw_roofline,
}


def themed(svg: str) -> str:
    """Colours as variables that follow the reader's dark mode, and a picture as wide as its place."""
    day = "".join(f"--{name}:{pair[0]};" for name, pair in COLOURS.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in COLOURS.items())
    for name, pair in COLOURS.items():
        svg = re.sub(re.escape(pair[0]), f"var(--{name})", svg, flags=re.IGNORECASE)
    style = f"<style>:root{{{day}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg [^>]*>)", rf"\1\n {style}", svg, count=1)


def picture(name: str) -> bytes:
    """An SVG file, the same from run to run."""
    settings = {
        "svg.fonttype": "none",  # text stays text: smaller, and found by a search
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
    }
    with matplotlib.rc_context(settings):
        figure = PICTURES[name]()
        file = io.BytesIO()
        figure.savefig(file, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None, "Creator": None})
        plt.close(figure)
    text = "\n".join(line.rstrip() for line in file.getvalue().decode().splitlines()) + "\n"
    return themed(text).encode()


def main() -> int:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder; docs/engine unless named")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        write_whole(folder / f"{name}.svg", picture(name))
        print(f"picture  {folder / name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
