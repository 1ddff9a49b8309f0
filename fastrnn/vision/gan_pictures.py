"""The picture of a GAN's training: samples from its beginning to its end, and both losses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.captioning.pictures import BLUE, GREY, ORANGE, _series
from fastrnn.vision.images import check_suffix, save_image

__all__ = ["training_picture"]

ROWS = COLUMNS = 8
SHOWN = 3  # grids: early, middle, end
DPI = 130


def training_picture(
    grids: Mapping[int, np.ndarray],
    records: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw what a generator made of the same noise early on, halfway and at the end, above both losses.

    Parameters
    ----------
    grids : mapping of int to uint8 (64, 28, 28)
        For each step at which samples were taken, at least one: from 0, paper, to 255, ink. See `GANTrainer.grids`.
    records : iterable of mappings
        The lines of the log: ``step``, ``discriminator_loss``, ``generator_loss``.
    path : path
        The file to write; its ending says which kind, see `save_image`.
    title, subtitle : str
        What stands above.

    Raises
    ------
    ValueError
        There is no grid, one has another shape, or `path` ends in something that cannot be written.
    ImportError
        Matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    check_suffix(path)
    if not grids:
        raise ValueError("training_picture: argument 'grids' must hold at least one grid, got none")
    for step, grid in grids.items():
        if grid.shape != (ROWS * COLUMNS, 28, 28):
            expected = f"hold arrays of shape ({ROWS * COLUMNS}, 28, 28)"
            raise ValueError(f"training_picture: argument 'grids' must {expected}, got {grid.shape} at step {step}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("training_picture: pictures need Matplotlib: pip install 'fastrnn[vision]'") from error

    records = list(records)
    figure = Figure(figsize=(13, 8.4), dpi=DPI, facecolor="white")
    figure.text(0.03, 0.962, title, fontsize=18, weight="bold", va="center")
    figure.text(0.03, 0.922, subtitle, fontsize=11, color=GREY, va="center")
    place = figure.add_gridspec(
        2, SHOWN, height_ratios=(2.05, 1), left=0.03, right=0.985, top=0.865, bottom=0.075, hspace=0.22, wspace=0.05
    )
    steps = chosen_steps(list(grids))
    for column, step in enumerate(steps):
        axes = figure.add_subplot(place[0, column])
        tiled = grids[step].reshape(ROWS, COLUMNS, 28, 28).swapaxes(1, 2).reshape(ROWS * 28, COLUMNS * 28)
        axes.imshow(tiled, cmap="gray_r", vmin=0, vmax=255, interpolation="bicubic")
        axes.set_title(f"step {step:,}", loc="left", fontsize=12, weight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=GREY, linewidth=0.8)
    _draw_losses(figure.add_subplot(place[1, :]), records)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_image(Path(path), np.asarray(canvas.buffer_rgba())[..., :3].copy())


def chosen_steps(steps: Sequence[int]) -> list[int]:
    """Of the steps at which there are samples: the first one after the beginning, the one nearest to half, the last."""
    last = max(steps)
    trained = [step for step in sorted(steps) if step > 0] or [last]
    middle = min(trained, key=lambda step: abs(step - last / 2))
    return sorted({trained[0], middle, last})


def _draw_losses(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    for name, color in (("discriminator", BLUE), ("generator", ORANGE)):
        steps, losses = _series(records, f"{name}_loss")
        if not len(steps):
            continue
        window = min(20, 1 + len(losses) // 10)
        axes.plot(steps, losses, color=color, alpha=0.25, linewidth=0.7)
        mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        axes.plot(steps[(window - 1) // 2 :][: len(mean)], mean, color=color, linewidth=2, label=name)
    axes.set_title("Losses", loc="left", fontsize=12, weight="bold")
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, loc="upper right", ncols=2)
