"""Images side by side with what they are, drawn by Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["side_by_side"]

# In pixels; the images themselves are drawn pixel for pixel.
DPI = 100
GAP = 16
CAPTION = 44
FONT = 10.0  # points


def side_by_side(images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Draw images in a row, each with a caption below it.

    Parameters
    ----------
    images : sequence of uint8 (H, W, 3)
        At least one; their sizes may differ. They are drawn pixel for pixel.
    captions : sequence of str
        One for each. Words that would not fit below an image go on in a second line.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    ValueError
        There are no images, or not as many captions.
    ImportError
        Matplotlib is not installed.
    """
    if not len(images):
        raise ValueError("side_by_side: argument 'images' must hold at least one image, got none")
    if len(captions) != len(images):
        raise ValueError(
            f"side_by_side: argument 'captions' must have one entry for each of the {len(images)} images, got "
            f"{len(captions)}"
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("side_by_side: pictures need Matplotlib: pip install 'fastrnn[vision]'") from error
    tall = max(image.shape[0] for image in images)
    height = tall + GAP + CAPTION
    width = sum(image.shape[1] + GAP for image in images) + GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    measure = canvas.get_renderer()
    places = []
    left = GAP
    for image, caption in zip(images, captions, strict=True):
        places.append((left, GAP + (tall - image.shape[0]) // 2))
        text = figure.text(0, 0, "", fontsize=FONT, ha="center", va="top", linespacing=1.3, parse_math=False)
        lines: list[str] = []
        for word in caption.split():
            text.set_text(f"{lines[-1]} {word}" if lines else word)
            if lines and text.get_window_extent(measure).width <= image.shape[1]:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        text.set_text("\n".join(lines))
        text.set_position(((left + image.shape[1] / 2) / width, (CAPTION - 8) / height))
        left += image.shape[1] + GAP
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    for image, (left, top) in zip(images, places, strict=True):
        page[top : top + image.shape[0], left : left + image.shape[1]] = image
    return page
