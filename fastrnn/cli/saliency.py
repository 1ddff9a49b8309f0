"""``fastrnn saliency``: which pixels a class score depends on; and what it shares with `fool` and `visualize`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fastrnn.cli import common
from fastrnn.cli.vision_options import Device, Out, Seed, Weights, load_network, say_picture, vision_command

NETWORKS = ("digits", "digits-robust", "squeezenet")
IMAGE_SIZE = 224  # pixels; what SqueezeNet was trained on
STROKE = 0.25  # of a pixel's ink: from there on it is part of the stroke

Network = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="digits, digits-robust (trained on adversarial images) or squeezenet (ImageNet; needs --weights).",
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture of one's own; may be repeated. Default: handwritten digits, none of them trained on.",
        show_default=False,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"Of squeezenet: shorter side of an image, in pixels. Default: {IMAGE_SIZE}.", show_default=False
    ),
]


def saliency(
    image: Images = None,
    network: Network = "digits-robust",
    weights: Weights = None,
    of_class: Annotated[
        int | None,
        typer.Option(
            "--class",
            min=0,
            metavar="NUMBER",
            help="Whose score is looked at. Default: the class that the network sees.",
            show_default=False,
        ),
    ] = None,
    smooth: Annotated[
        int, typer.Option(min=0, help="Average over so many copies with noise (SmoothGrad); 0: the plain gradient.")
    ] = 0,
    noise: Annotated[
        float, typer.Option(min=0, help="Of --smooth: its standard deviation, as a part of the range of values.")
    ] = 0.15,
    size: Size = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = Path("fastrnn-saliency.png"),
) -> None:
    """Show which pixels of an image decide what a network sees in it.

    That is, how strongly the score of the class depends on each pixel. Without --image ten handwritten digits are
    looked at, with a small network that is trained when it is first needed.

    Exit code: 0 if all is right, 2 for bad usage or files, 130 after Ctrl-C.
    """
    with vision_command(out, device=device):
        from fastrnn.vision.images import save_image
        from fastrnn.vision.visualisation import compute_saliency_maps
        from fastrnn.vision.visualisation_pictures import saliency_picture

        subject = load_subject(network, weights, device, size)
        shown = subject.inputs(image, seed)
        seen = subject.sees(shown.tensors)
        classes = [subject.known(of_class)] * len(seen) if of_class is not None else [number for number, _ in seen]
        maps = [
            compute_saliency_maps(tensor, [number], subject.network, smooth=smooth, noise=noise, seed=seed)[0]
            for tensor, number in zip(shown.tensors, classes, strict=True)
        ]
        shown.say()
        subject.say_reading(shown, seen)
        if subject.digits:
            parts = [on_stroke(tensor, values) for tensor, values in zip(shown.tensors, maps, strict=True)]
            part, area = (100 * float(np.mean(column)) for column in zip(*parts, strict=True))
            typer.echo(f"saliency {part:.0f} % of it lies on the strokes, which are {area:.0f} % of the pixels")
        how = f"mean over {smooth} copies with noise of {100 * noise:g} % (SmoothGrad)" if smooth else "plain gradient"
        typer.echo(f"method   largest |∂ score / ∂ pixel| over the channels, {how}")
        what = "the class that is seen" if of_class is None else f"class {of_class}"
        picture = saliency_picture(
            [subject.picture(tensor) for tensor in shown.tensors],
            [values.cpu().numpy() for values in maps],
            [f"{name}{subject.reading(*found)}" for name, found in zip(shown.prefixes(seen), seen, strict=True)],
            f"Red: pixels on which the score of {what} depends most. Network {network}, {how}.",
        )
        save_image(out, picture)
        say_picture(out)


def on_stroke(digit: Any, values: Any) -> tuple[float, float]:
    """The parts of a digit's saliency, and of its pixels, that are ink."""
    ink = digit[0, 0] >= STROKE
    return float(values[ink].sum() / values.sum().clamp_min(1e-30)), float(ink.float().mean())


# ---- what the three commands share: a network, images for it, and how both are spoken of -----------------------------


@dataclass
class Inputs:
    """Images for a network, each by itself, as their sizes may differ."""

    tensors: list[Any]
    labels: list[int] | None = None  # what they truly are, where that is known
    names: list[str] | None = None  # the files
    chosen: str = ""  # by what the digits were chosen

    def say(self) -> None:
        if self.names is None:
            typer.echo(
                f"images   {len(self.tensors)} handwritten digits that the network was not trained on{self.chosen}"
            )
        else:
            typer.echo(f"images   {', '.join(self.names)}")

    def without(self, rows: Sequence[int], seen: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """Leave out these images; gives what is seen in the others."""
        kept = [row for row in range(len(self.tensors)) if row not in rows]
        self.tensors = [self.tensors[row] for row in kept]
        if self.labels is not None:
            self.labels = [self.labels[row] for row in kept]
        return [seen[row] for row in kept]

    def prefixes(self, seen: Sequence[tuple[int, float]]) -> list[str]:
        """What comes before the network's reading: the truth, where it is another."""
        if self.labels is None:
            return [""] * len(self.tensors)
        pairs = zip(self.labels, seen, strict=True)
        return ["" if label == number else f"a {label}: " for label, (number, _) in pairs]


class Subject:
    """A network that is looked into."""

    def __init__(self, name: str, network: Any, device: str, size: int | None) -> None:
        self.name, self.network, self.device = name, network, device
        self.digits = network.channels == 1
        self.size = size or IMAGE_SIZE

    def inputs(self, paths: Sequence[Path] | None, seed: int) -> Inputs:
        """The user's pictures, or else a digit of each kind, drawn from those that were not trained on."""
        if paths:
            return Inputs([self.read(path) for path in paths], names=[path.name for path in paths])
        if not self.digits:
            common.fail(f"network {self.name!r} needs an image: --image FILE")
        from fastrnn.vision.data import digits

        images, labels = digits("test")
        rng = np.random.default_rng(seed)
        rows = [int(rng.choice(np.flatnonzero(labels.numpy() == digit))) for digit in range(10)]
        return Inputs([images[row : row + 1].to(self.device) for row in rows], labels=list(range(10)))

    def read(self, path: Path) -> Any:
        """A picture as the network takes it."""
        from fastrnn.vision.images import preprocess, read_image
        from fastrnn.vision.networks import check_size

        if self.digits:
            return as_digit(path).to(self.device)
        pixels = read_image(path, self.size)
        check_size(self.network, *pixels.shape[:2])
        return preprocess(pixels, self.device)

    def known(self, number: int) -> int:
        """A class of the network, or the end of the command."""
        count = self.network.num_classes
        if not 0 <= number < count:
            common.fail(f"--class must be below {count}, the number of classes of {self.name}, got {number}")
        return number

    def probabilities(self, tensor: Any) -> Any:
        """Of each class, (N, num_classes)."""
        import torch

        with torch.no_grad():
            return self.network(tensor).softmax(dim=1)

    def sees(self, tensors: Sequence[Any]) -> list[tuple[int, float]]:
        """The likeliest class of each image, and its probability."""
        found = [self.probabilities(tensor)[0].max(dim=0) for tensor in tensors]
        return [(int(best.indices), float(best.values)) for best in found]

    def reading(self, number: int, probability: float) -> str:
        """A class and how sure the network is of it."""
        sure = "> 99 %" if probability > 0.99 else "< 1 %" if probability < 0.01 else f"{100 * probability:.0f} %"
        return f"{number}, {sure}" if self.digits else f"class {number}, {sure}"

    def say_reading(self, shown: Inputs, seen: Sequence[tuple[int, float]]) -> None:
        if shown.labels is None:
            typer.echo(f"network  {self.name} sees {'; '.join(self.reading(*found) for found in seen)}")
            return
        right = sum(label == number for label, (number, _) in zip(shown.labels, seen, strict=True))
        typer.echo(f"network  {self.name} reads {right} of {len(seen)} right")

    def picture(self, tensor: Any) -> np.ndarray:
        """An image as people look at it: digits in black on white."""
        from fastrnn.vision.images import deprocess

        if not self.digits:
            return deprocess(tensor)
        ink = tensor[0, 0].clamp(0, 1).cpu().numpy()
        return np.rint(255 * (1 - ink)).astype(np.uint8)


def load_subject(name: str, weights: Path | None, device: str, size: int | None) -> Subject:
    """The network of these options."""
    common.one(name, NETWORKS, "network")
    if size is not None and name != "squeezenet":
        common.fail(f"--size is for --network squeezenet; {name} takes images of 28 x 28 pixels")
    return Subject(name, load_network(name, weights, device), device, size)


@contextmanager
def counted(title: str, total: int) -> Iterator[Any]:
    """A progress bar, where someone watches; gives what counts it up by one."""
    bar = common.progress_bar(title)
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda *_: bar.advance(task)


def as_digit(path: Path) -> Any:
    """A picture of a digit, (1, 1, 28, 28), as the network's own digits are: ink is 1, and the digit fills the middle.

    Whichever of light and dark is at the border is the paper.
    """
    import torch

    from fastrnn.vision.data import SIDE
    from fastrnn.vision.images import read_image

    grey = read_image(path).astype(np.float32).mean(axis=2) / 255
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    strongest = float(ink.max())
    if strongest < 0.1:
        raise ValueError(f"{path}: expected a digit on paper of another shade, got a picture that is all of one")
    rows, columns = (np.flatnonzero((ink > 0.4 * strongest).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / strongest
    fill = SIDE * 8 // 10  # the digits that were trained on are framed by a tenth on each side
    scale = fill / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(ink)[None, None], size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    digit = torch.zeros(1, 1, SIDE, SIDE)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    digit[:, :, top : top + height, left : left + width] = small.clamp(0, 1)
    return digit
