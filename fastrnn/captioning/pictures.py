"""Pictures of a training run and of what a model says, drawn by Matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["contact_sheet", "loss_curve"]

GREY = "#6e7781"
GREEN = "#1a7f37"
RED = "#cf222e"
BLUE = "#0969da"
ORANGE = "#bc4c00"
FORMATS = ("png", "jpg", "jpeg", "pdf", "svg", "webp")

# The contact sheet, in inches; text is so many points high.
CELL = 2.3
GAP = 0.3
MARGIN = 0.3
TITLE = 0.55
FONT = 9.0
LINE = 1.25 * FONT / 72
MAX_LINES = 4


def _figure(function: str, path: str | os.PathLike[str], size: tuple[float, float]) -> Any:
    """A figure to be saved as `path`, or the reason why there can be none."""
    suffix = Path(path).suffix[1:].lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{function}: argument 'path' must end in one of .{', .'.join(FORMATS)}, got {os.fspath(path)!r}"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{function}: pictures need Matplotlib: pip install 'fastrnn[plot]'") from error
    return Figure(figsize=size, dpi=110, facecolor="white")


def _series(records: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have `name`, by step; what is no finite number is left out."""
    found = {}
    for record in records:
        value = record.get(name)
        with suppress(OverflowError):  # JSON has whole numbers that are beyond those of floating point
            if isinstance(value, (int, float)) and math.isfinite(value):
                found[int(record["step"])] = float(value)
    steps = sorted(found)
    return np.array(steps, dtype=np.int64), np.array([found[step] for step in steps], dtype=np.float64)


def loss_curve(records: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the loss of a training run over its steps.

    The training loss is drawn as it was recorded, and as a running mean over a twentieth of the records, 50 at most;
    the validation loss as points, the best of them marked. The axis of the loss is logarithmic.

    Parameters
    ----------
    records : iterable of mappings
        The lines of a metrics file: each has ``step``, and ``loss`` or ``val_loss`` or both. Other entries, and losses
        that are no finite numbers, are passed over. Of several records of one step the last one counts.
    path : path
        The file to write; its ending says which kind: png, jpg, pdf, svg or webp.

    Raises
    ------
    ValueError
        There is no record to draw, or `path` ends in something else.
    ImportError
        Matplotlib is not installed.
    """
    records = list(records)
    (steps, losses), (val_steps, val_losses) = _series(records, "loss"), _series(records, "val_loss")
    if not len(steps) and not len(val_steps):
        raise ValueError(
            "loss_curve: argument 'records' must hold a record with a step and a finite 'loss' or 'val_loss', "
            f"got {len(records)} without one"
        )
    figure = _figure("loss_curve", path, (8, 4.5))
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    if len(steps):
        window = min(50, 1 + len(losses) // 20)
        lone = len(steps) == 1
        axes.plot(
            steps,
            losses,
            color=BLUE,
            alpha=1 if window == 1 else 0.25,
            linewidth=2 if window == 1 else 0.7,
            marker="o" if lone else None,
            label="training" if window == 1 else None,
        )
        if window > 1:
            mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
            label = f"training, mean of {window} records"
            # Each mean stands in the middle of its records, so that it does not lag behind the validation's.
            axes.plot(steps[(window - 1) // 2 :][: len(mean)], mean, color=BLUE, linewidth=2, label=label)
    if len(val_steps):
        axes.plot(val_steps, val_losses, color=ORANGE, marker="o", markersize=4, linewidth=1.5, label="validation")
        best = int(np.argmin(val_losses))
        axes.plot(
            val_steps[best],
            val_losses[best],
            linestyle="none",
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=ORANGE,
            markeredgewidth=1.5,
            label=f"best: {val_losses[best]:.4g} at step {val_steps[best]:,}",
        )
    if min(losses.min(initial=math.inf), val_losses.min(initial=math.inf)) > 0:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # Within a decade or two the powers of ten alone would be too few labels.
        labelled = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5) if high < 300 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=labelled))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    every = np.concatenate([steps, val_steps])
    if every.min() == every.max():  # or the axis would go over a part of one step
        axes.set_xlim(every[0] - 1, every[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a caption")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path)


def contact_sheet(
    pictures: Sequence[Any], captions: Sequence[str], truths: Sequence[Sequence[str]], path: str | os.PathLike[str]
) -> None:
    """Draw images with what was said about them, and with the truth where that is another.

    A caption that is one of the true ones, word for word, is green; any other is red, with the first true one below it
    in grey.

    Parameters
    ----------
    pictures : sequence of arrays
        Images: (height, width) in shades of grey, 0 for paper and 1 for ink, or (height, width, 3 or 4) in colour as
        Matplotlib and Pillow have them.
    captions : sequence of str
        One for each image.
    truths : sequence of sequences of str
        The true captions of each image; none is allowed, and then the caption is neither right nor wrong.
    path : path
        The file to write; its ending says which kind: png, jpg, pdf, svg or webp.

    Raises
    ------
    ValueError
        There are no pictures, not as many captions or truths, an image is of another shape, or `path` ends in something
        else.
    ImportError
        Matplotlib is not installed.
    """
    images = [np.asarray(picture) for picture in pictures]
    if not images:
        raise ValueError("contact_sheet: argument 'pictures' must hold at least one image, got none")
    for name, values in (("captions", captions), ("truths", truths)):
        if len(values) != len(images):
            raise ValueError(
                f"contact_sheet: argument '{name}' must have an entry for each of the {len(images)} pictures, "
                f"got {len(values)}"
            )
    for n, image in enumerate(images):
        if image.size == 0 or (image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (3, 4))):
            raise ValueError(
                "contact_sheet: argument 'pictures' must hold images of shape (height, width), (height, width, 3) or "
                f"(height, width, 4), got shape {image.shape} at {n}"
            )
    columns = min(len(images), max(3, math.ceil(math.sqrt(len(images) / 2))) if len(images) > 3 else 4)
    probe = _figure("contact_sheet", path, (1, 1))
    wrap = _Wrapping(probe)
    texts = []
    for caption, true in zip(captions, truths, strict=True):
        right = caption in true if len(true) else None
        said = wrap.lines(caption if caption else "(no words)")
        texts.append((right, said, wrap.lines(true[0]) if right is False else []))

    # Rows are as high as their highest picture and their longest text.
    shown = [min(CELL * image.shape[0] / image.shape[1], CELL) for image in images]
    rows = [range(at, min(at + columns, len(images))) for at in range(0, len(images), columns)]
    heights = [max(shown[n] for n in row) for row in rows]
    below = [LINE * (max(len(texts[n][1]) + len(texts[n][2]) for n in row) + 0.5) for row in rows]
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    width = max(width, 4.0)
    height = TITLE + MARGIN + sum(heights) + sum(below) + GAP * (len(rows) - 1)

    figure = _figure("contact_sheet", path, (width, height))
    judged = [right for right, *_ in texts if right is not None]
    title = f"{len(images)} images" if len(images) > 1 else "1 image"
    if judged:
        title += f", {sum(judged)} captioned word for word"
    figure.text(MARGIN / width, 1 - 0.55 * TITLE / height, title, fontsize=12, weight="bold", va="center")
    top = TITLE
    for row, tall, text_height in zip(rows, heights, below, strict=True):
        for column, n in enumerate(row):
            left = MARGIN + column * (CELL + GAP)
            place = (left / width, 1 - (top + tall) / height, CELL / width, tall / height)
            _draw_picture(figure.add_axes(place), images[n], texts[n][0])
            _draw_text(figure, left / width, top + tall, height, texts[n])
        top += tall + text_height + GAP
    figure.savefig(path)


def _draw_picture(axes: Any, image: np.ndarray, right: bool | None) -> None:
    """An image at the bottom of its cell, framed in the colour of its caption."""
    if image.ndim == 2:
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic")
    else:
        axes.imshow(image)
    axes.set_anchor("SW")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_color(right), linewidth=1.2)


def _draw_text(figure: Any, left: float, top: float, height: float, text: tuple[Any, list[str], list[str]]) -> None:
    right, said, truth = text
    # Captions are no formulas: a dollar sign in one is a dollar sign.
    style = {"fontsize": FONT, "ha": "left", "va": "top", "parse_math": False}
    colors = [_color(right) if right is not None else "black"] * len(said) + [GREY] * len(truth)
    for line, (words, color) in enumerate(zip(said + truth, colors, strict=True)):
        figure.text(left, 1 - (top + LINE * (line + 0.4)) / height, words, color=color, **style)


def _color(right: bool | None) -> str:
    return GREY if right is None else GREEN if right else RED


class _Wrapping:
    """Breaks text into lines as wide as a cell, by the measure of the font that draws them."""

    def __init__(self, figure: Any) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.font_manager import FontProperties

        self._renderer = FigureCanvasAgg(figure).get_renderer()
        self._font = FontProperties(size=FONT)
        self._room = CELL * figure.dpi

    def _fits(self, text: str) -> bool:
        return bool(self._renderer.get_text_width_height_descent(text, self._font, False)[0] <= self._room)

    def lines(self, text: str) -> list[str]:
        lines: list[str] = []
        for word in text.split():
            if lines and self._fits(f"{lines[-1]} {word}"):
                lines[-1] += f" {word}"
            else:
                lines.append(self._cut(word))
        if len(lines) > MAX_LINES:
            lines = [*lines[: MAX_LINES - 1], self._cut(f"{lines[MAX_LINES - 1]} …", keep=" …")]
        return lines

    def _cut(self, word: str, keep: str = "…") -> str:
        """A word too long for a line, ended where the line ends."""
        if self._fits(word):
            return word
        body = word.removesuffix(keep)
        while body and not self._fits(body + keep):
            body = body[:-1]
        return body + keep
