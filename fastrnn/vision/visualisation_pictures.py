"""Figures of what `fastrnn.vision.visualisation` finds, drawn by Matplotlib, as images that `save_image` writes.

Images come as people look at them: uint8, (H, W) in shades of grey or (H, W, 3) in colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["class_picture", "fooling_picture", "saliency_picture"]

GREY = "#6e7781"
RED = "#cf222e"
DPI = 110

# Inches; text is so many points high.
MARGIN = 0.25
GAP = 0.12
TITLE = 0.52
LINE = 0.2
ROW_LABEL = 1.25
FONT = 9.0
CHARACTER = 0.078  # of that font, on average
WIDEST = 11.0

_MAP = "Reds"
_CHANGE = "RdBu"
_FACTORS = (1, 2, 5, 10, 20, 50, 100, 200)


def saliency_picture(
    images: Sequence[np.ndarray], maps: Sequence[np.ndarray], captions: Sequence[str], subtitle: str
) -> np.ndarray:
    """Images, their saliency maps, and the maps over the images.

    Parameters
    ----------
    images : sequence of uint8 (H, W) or (H, W, 3)
    maps : sequence of float (H, W)
        At least 0; of the size of their images.
    captions : sequence of str
        Said below each image.
    subtitle : str
        Said below the title.

    Returns
    -------
    uint8 (H', W', 3)
        Each map has its own scale: full red is its 99th percentile.
    """
    shades = [_scaled(values) for values in maps]
    none = [""] * len(images)
    rows = [
        (["image", "the network sees"], list(images), list(captions)),
        (["saliency"], [_colored(shade, _MAP) for shade in shades], none),
        (["over the image"], [_over(*pair) for pair in zip(images, shades, strict=True)], none),
    ]
    return _table("What the network looks at", subtitle, rows)


def fooling_picture(
    images: Sequence[np.ndarray],
    fooling: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    seen: Sequence[str],
    fooled: Sequence[str],
    subtitle: str,
) -> np.ndarray:
    """Images, the images that fool a network, and what is the difference, magnified.

    Parameters
    ----------
    images, fooling : sequences of uint8 (H, W) or (H, W, 3)
        Before and after.
    changes : sequence of float (H, W) or (H, W, 3)
        Fooling image less image, where black and white are 1 apart.
    seen, fooled : sequences of str
        What the network sees in each, said below it.
    subtitle : str
        Said below the title.

    Returns
    -------
    uint8 (H', W', 3)
        One factor magnifies all changes. In shades of grey, blue is darker and red is lighter than before; in colour,
        mid-grey is no change.
    """
    factor = magnification(changes)
    captions = [f"mean {_percent(abs(change).mean())}\nmost {_percent(abs(change).max())}" for change in changes]
    parts = [np.clip(0.5 + 0.5 * factor * change, 0, 1) for change in changes]
    if all(part.ndim == 2 for part in parts):
        labels, shown = ["blue: darker", "red: lighter"], [_colored(1 - part, _CHANGE) for part in parts]
    else:
        labels, shown = ["grey: no change"], [np.rint(255 * part).astype(np.uint8) for part in parts]
    rows = [
        (["image", "the network sees"], list(images), list(seen)),
        (["fooling image", "the network sees"], list(fooling), list(fooled)),
        ([f"change × {factor}", *labels], shown, captions),
    ]
    return _table("Changed a little, and taken for something else", subtitle, rows)


def class_picture(images: Sequence[np.ndarray], captions: Sequence[str], subtitle: str) -> np.ndarray:
    """Images that a network was asked for, in a grid.

    Parameters
    ----------
    images : sequence of uint8 (H, W) or (H, W, 3)
    captions : sequence of str
        Said below each image.
    subtitle : str
        Said below the title.

    Returns
    -------
    uint8 (H', W', 3)
    """
    columns = min(5, len(images))
    rows: list[_Row] = [
        ([], list(images[at : at + columns]), list(captions[at : at + columns]))
        for at in range(0, len(images), columns)
    ]
    return _table("What the network has in mind", subtitle, rows)


def magnification(changes: Sequence[np.ndarray]) -> int:
    """By how much changes can be magnified with one value in a hundred beyond the scale: 1, 2, 5, 10, …"""
    largest = float(np.quantile(np.concatenate([np.abs(change).ravel() for change in changes]), 0.99))
    return max((factor for factor in _FACTORS if factor * largest <= 1), default=1)


def _percent(part: float) -> str:
    """Two digits of a part, as a percentage."""
    percentage = 100 * float(part)
    return f"{percentage:.0f} %" if percentage >= 10 else f"{percentage:.2g} %"


def _scaled(values: np.ndarray) -> np.ndarray:
    """A map between 0 and 1. A few pixels far above all others would leave the rest of it blank."""
    values = np.asarray(values, dtype=np.float64)
    top = np.quantile(values, 0.99) or values.max()
    return np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)


def _over(image: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """An image in pale grey, with a map in red over it."""
    grey = image.astype(np.float64) if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])
    pale = (255 - 0.55 * (255 - grey))[..., None]
    red = np.array([int(RED[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)
    part = 0.85 * shade[..., None]
    return np.rint((1 - part) * pale + part * red).astype(np.uint8)


def _colored(values: np.ndarray, name: str) -> np.ndarray:
    """Values from 0 to 1 in one of Matplotlib's colour maps."""
    from matplotlib import colormaps

    return colormaps[name](values, bytes=True)[..., :3]


_Row = tuple[list[str], list[np.ndarray], list[str]]


def _table(title: str, subtitle: str, rows: Sequence[_Row]) -> np.ndarray:
    """Rows of images of one size, each row with its labels on the left, each image with a caption below.

    Where there is only one image in a row, the rows stand beside each other instead, with their labels above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    aside = any(labels for labels, *_ in rows)
    if aside and len(rows[0][1]) == 1:
        heads = [labels for labels, *_ in rows]
        rows = [([], [images[0] for _, images, _ in rows], [captions[0] for *_, captions in rows])]
        aside, above = False, LINE * max(map(len, heads)) + 0.08
    else:
        heads, above = [], 0.0
    columns = max(len(images) for _, images, _ in rows)
    # The tallest decides, and the others are as wide: images of one's own have sides of any ratio.
    height, width = max((image.shape[:2] for image in rows[0][1]), key=lambda sides: sides[0] / sides[1])
    left = MARGIN + (ROW_LABEL if aside else 0)
    cell = min(2.6 if columns < 4 else 1.45, (WIDEST - left - MARGIN) / columns - GAP)
    # Narrow pictures still have room for their title.
    across = max(left + columns * (cell + GAP) - GAP + MARGIN, 5.5)
    tall = cell * height / width
    below = [LINE * max(len(caption.splitlines()) for caption in captions) for _, _, captions in rows]
    said = textwrap.wrap(subtitle, int((across - 2 * MARGIN) / CHARACTER))
    head = TITLE + LINE * len(said)
    down = head + above + MARGIN + len(rows) * (tall + GAP) - GAP + sum(below)

    figure = Figure(figsize=(across, down), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **look: Any) -> None:
        style: dict[str, Any] = {"va": "center", "fontsize": FONT, "parse_math": False} | look
        figure.text(x / across, 1 - y / down, text, **style)

    def write_labels(x: float, y: float, labels: list[str]) -> None:
        """The name of a row and, smaller, what there is to know about it."""
        for line, text in enumerate(labels):
            look: dict[str, Any] = {"fontsize": 10, "weight": "bold"} if not line else {"fontsize": 8, "color": GREY}
            write(x, y + 0.18 * line, text, **look)

    write(MARGIN, 0.28, title, fontsize=14, weight="bold")
    for line, text in enumerate(said):
        write(MARGIN, 0.54 + LINE * line, text, color=GREY)
    for column, labels in enumerate(heads):
        write_labels(left + column * (cell + GAP), head + 0.08, labels)
    top = head + above
    for (labels, images, captions), room in zip(rows, below, strict=True):
        write_labels(MARGIN, top + tall / 2 - 0.06 * (len(labels) - 1), labels)
        for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
            begin = left + column * (cell + GAP)
            axes = figure.add_axes((begin / across, 1 - (top + tall) / down, cell / across, tall / down))
            _draw(axes, image, enlarged=cell * DPI > 2 * width)
            write(begin + cell / 2, top + tall + 0.5 * room + 0.02, caption, ha="center")
        top += tall + room + GAP
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(axes: Any, image: np.ndarray, enlarged: bool) -> None:
    # Where pixels are large they are shown as they are, and not as something smoother.
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if enlarged else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#d0d7de", linewidth=0.8)
