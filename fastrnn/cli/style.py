"""``fastrnn style``: one image in the style of another; and what texture and invert share with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fastrnn.cli import common
from fastrnn.cli import vision_options as options

NETWORKS = ("random", "squeezenet", "vgg16")
OPTIMIZERS = ("adam", "lbfgs")
# Parts of scikit-learn's photographs: rows and columns. The bloom of the dahlia, and the inner part of it, all petals.
CROPS = {
    "the bloom of a dahlia": ("flower", slice(85, 355), slice(170, 450)),
    "petals of a dahlia": ("flower", slice(122, 312), slice(215, 405)),
    "a pavilion": ("china", slice(None), slice(None)),
}

Network = Annotated[str, typer.Option(metavar="NAME", help="random, squeezenet or vgg16.")]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Shorter side of the result, in pixels. Default: 256, with squeezenet 192.",
        show_default=False,
    ),
]
TvWeight = Annotated[
    float | None,
    typer.Option(help="Weight of the total variation: more is smoother. Default: by network.", show_default=False),
]
Optimizer = Annotated[str, typer.Option(help="adam or lbfgs.")]
Steps = Annotated[int, typer.Option(min=1, help="Iterations at each scale.")]
Scales = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Begin with images halved so often, less one, and go on at twice the size. Default: 3, but 1 with "
        "squeezenet and vgg16.",
        show_default=False,
    ),
]
Result = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The result alone, at full size, too.", show_default=False)
]
Frames = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Images on the way: frame-0001.png, frame-0002.png, and so on.", show_default=False
    ),
]
FrameEvery = Annotated[int, typer.Option(min=1, help="Iterations between them.")]


def style(
    content: Annotated[
        Path | None,
        typer.Argument(metavar="[CONTENT]", help="What is to be seen. Default: an embedded photograph of a pavilion."),
    ] = None,
    style_image: Annotated[
        Path | None,
        typer.Argument(metavar="[STYLE]", help="What it is to look like. Default: a dahlia, embedded, too."),
    ] = None,
    network: Network = "random",
    weights: options.Weights = None,
    device: options.Device = "cpu",
    size: Size = None,
    style_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Shorter side of the style image: the larger, the larger its texture. Default: that of the result.",
            show_default=False,
        ),
    ] = None,
    content_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the content: more keeps more of it. Default: by network.", show_default=False),
    ] = None,
    style_strength: Annotated[float, typer.Option(help="Factor on the weights of all style layers.")] = 1.0,
    tv_weight: TvWeight = None,
    match_colors: Annotated[
        bool | None,
        typer.Option(
            "--match-colors/--keep-colors",
            help="Give the content image the colours of the style first. Default: with random.",
            show_default=False,
        ),
    ] = None,
    init_random: Annotated[bool, typer.Option("--init-random", help="Begin with noise instead of CONTENT.")] = False,
    optimizer: Optimizer = "adam",
    steps: Steps = 100,
    scales: Scales = None,
    seed: options.Seed = 0,
    frames: Frames = None,
    frame_every: FrameEvery = 10,
    result: Result = None,
    out: options.Out = Path("fastrnn-style.png"),
) -> None:
    """Paint one image in the style of another.

    Features of a convolutional network keep the content, their Gram matrices the style (Gatys, Ecker, Bethge 2016). The
    network's weights may be random, which needs no download, or those of SqueezeNet or VGG-16 from a file.
    """
    common.one(network, NETWORKS, "network")
    common.one(optimizer, OPTIMIZERS, "optimizer")
    with options.vision_command(out, result, device=device):
        check_frames(frames)
        from fastrnn.vision.images import resize
        from fastrnn.vision.style import PRESETS, style_transfer

        content_name, content_array = picture_of(content, "a pavilion")
        style_name, style_array = picture_of(style_image, "the bloom of a dahlia")
        net = options.load_network(network, weights, device)
        preset = PRESETS[type(net)]
        size = size or preset.image_size
        style_size = style_size or (size if style_image is None or preset.pixels else preset.style_size)
        shown = resize(content_array, size)
        painting = Painting("style", shown.shape[:2], frames, frame_every)
        image = painting.make(
            lambda callback: style_transfer(
                content_array,
                style_array,
                size,
                style_size,
                content_weight=content_weight,
                style_weights=[style_strength * weight for weight in preset.style_weights],
                tv_weight=tv_weight,
                init_random=init_random,
                network=net,
                optimizer=optimizer,
                num_iterations=steps,
                scales=scales,
                match_colors=match_colors,
                seed=seed,
                device=device,
                callback=callback,
            )
        )
        typer.echo(f"style    {content_name} in the style of {style_name}, {image.shape[1]} x {image.shape[0]} pixels")
        say_network(net, preset.style_layers, preset.content_layer if content_weight != 0 else None)
        painting.say("content", "style")
        finish(
            [shown, beside(style_array, shown.shape[0]), image],
            [f"content: {content_name}", f"style: {style_name}", f"result: {painting.done} iterations"],
            out,
            result,
        )


# ---- what the three commands do --------------------------------------------------------------------------------------


class Painting:
    """The making of an image: a progress bar where someone watches, frames where they are wanted."""

    def __init__(self, title: str, shape: tuple[int, int], frames: Path | None, every: int) -> None:
        self.title, self.shape, self.frames, self.every = title, shape, frames, every
        self.first: Any = None
        self.last: Any = None
        self.written = 0
        self.seconds = 0.0

    @property
    def done(self) -> int:
        """Iterations."""
        return int(self.last.iteration)

    def make(self, run: Callable[[Callable[[Any], None]], np.ndarray]) -> np.ndarray:
        """What `run` returns, called with the callback that it is to call."""
        begin = time.perf_counter()
        with common.progress_bar(self.title, "loss {task.fields[loss]}") as bar:
            task = bar.add_task(self.title, total=None, loss="-")

            def advance(progress: Any) -> None:
                self.first, self.last = self.first or progress, progress
                bar.update(task, completed=progress.iteration, total=progress.total, loss=f"{progress.loss:.4g}")
                if self.frames is not None and (progress.iteration - 1) % self.every == 0:
                    self._write(progress.image())

            image = run(advance)
        if self.frames is not None:
            self._write(image)
        self.seconds = time.perf_counter() - begin
        return image

    def _write(self, image: np.ndarray) -> None:
        """A frame, as large as the result whatever the scale: players want all frames of one size."""
        from PIL import Image

        from fastrnn.vision.images import save_image

        assert self.frames is not None
        if image.shape[:2] != self.shape:
            image = np.array(Image.fromarray(image).resize(self.shape[::-1], Image.Resampling.BICUBIC))
        self.frames.mkdir(exist_ok=True)
        self.written += 1
        save_image(self.frames / f"frame-{self.written:04d}.png", image)

    def say(self, *parts: str) -> None:
        """How far these parts of the loss came."""
        # Only losses at one scale can be compared, and only the last scale is the result's.
        losses = ", ".join(f"{part} {getattr(self.last, part):.3g}" for part in parts)
        rate = self.seconds / self.done
        typer.echo(
            f"loss     {self.first.loss:.3g}, then {self.last.loss:.3g} ({losses}) after {self.done} iterations: "
            f"{self.seconds:.1f} s, {1e3 * rate:.0f} ms each"
        )
        if self.frames is not None:
            typer.echo(f"frames   {self.written} in {self.frames.absolute()}")


def picture_of(path: Path | None, embedded: str) -> tuple[str, np.ndarray]:
    """Name and pixels of an image file, or of an embedded photograph."""
    from fastrnn.vision.images import photographs, read_image

    if path is not None:
        return path.name, read_image(path)
    name, rows, columns = CROPS[embedded]
    return embedded, photographs()[name][rows, columns]


def check_frames(folder: Path | None) -> None:
    """End the command before it does any work if there can be no frames in this folder."""
    if folder is not None:
        common.check_files((folder if folder.is_dir() else folder.parent) / "frame-0001.png")
        if folder.exists() and not folder.is_dir():
            common.fail(f"cannot write frames into {folder}: it is no folder")


def beside(image: np.ndarray, height: int) -> np.ndarray:
    """An image as high as those beside it, but never more than twice as large as it is."""
    from fastrnn.vision.images import resize

    height = min(height, 2 * image.shape[0])
    return resize(image, max(1, round(height * min(image.shape[:2]) / image.shape[0])))


def say_network(network: Any, style_layers: Any, content_layer: int | None) -> None:
    """Which stages of which network the losses are of."""
    parts = []
    if content_layer is not None:
        parts.append(f"content of {network.stages[content_layer]}")
    if style_layers:
        parts.append(f"style of {' '.join(network.stages[layer] for layer in style_layers)}")
    typer.echo(f"network  {type(network).__name__}: {', '.join(parts)}")


def finish(images: list[np.ndarray], captions: list[str], out: Path, result: Path | None) -> None:
    """Save the picture of these images, and the last of them alone if it is wanted."""
    from fastrnn.vision.images import save_image
    from fastrnn.vision.style_pictures import side_by_side

    picture = side_by_side(images, captions)
    if result is not None:
        save_image(result, images[-1])
        typer.echo(f"result   {result.absolute()}")
    save_image(out, picture)
    options.say_picture(out)
