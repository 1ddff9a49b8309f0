"""``fastrnn visualize``: images made from noise, in which a network sees a class as strongly as possible."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.cli import common
from fastrnn.cli.saliency import Network, counted, load_subject
from fastrnn.cli.vision_options import Device, Out, Seed, Weights, say_picture, vision_command

# What reads best: of digits small images, of which little may be shifted or blurred away; of ImageNet's classes what
# the function has by itself.
DIGITS: dict[str, Any] = {
    "l2_reg": 0.07,
    "learning_rate": 0.3,
    "blur_every": 10,
    "max_jitter": 2,
    "blur_sigma": 0.6,
}
IMAGES: dict[str, Any] = {"l2_reg": 1e-3, "learning_rate": 25.0, "blur_every": 10, "max_jitter": 16, "blur_sigma": 0.5}
START = 0.2  # standard deviation of the noise on paper that a digit begins with


def _default(name: str) -> str:
    return f"Default: {DIGITS[name]:g} for digits, {IMAGES[name]:g} for squeezenet."


def visualize(
    classes: Annotated[
        list[int] | None,
        typer.Option(
            "--class",
            min=0,
            metavar="NUMBER",
            help="What to make an image of; may be repeated. Default: all ten digits.",
            show_default=False,
        ),
    ] = None,
    network: Network = "digits-robust",
    weights: Weights = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps up the score.")] = 100,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Length of a step. {_default('learning_rate')}", show_default=False)
    ] = None,
    l2_reg: Annotated[
        float | None,
        typer.Option(min=0, help=f"Weight of the image's squared norm. {_default('l2_reg')}", show_default=False),
    ] = None,
    blur_every: Annotated[
        int | None,
        typer.Option(min=0, help=f"Steps between blurs; 0: none. {_default('blur_every')}", show_default=False),
    ] = None,
    max_jitter: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"Largest shift before a step, in pixels. {_default('max_jitter')}", show_default=False
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Of squeezenet: side of the image. Default: 224.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Out = Path("fastrnn-visualize.png"),
) -> None:
    """Make images of what a network has in mind when it sees a class.

    They begin as noise, and each step goes up the score of the class. Without options all ten digits are made, by a
    network trained on adversarial images; what comes of another, `--network digits`, is less of a digit.

    Exit code: 0 if all is right, 2 for bad usage or files, 130 after Ctrl-C.
    """
    with vision_command(out, device=device):
        import torch

        from fastrnn.vision.images import save_image
        from fastrnn.vision.networks import check_size
        from fastrnn.vision.visualisation import create_class_visualization
        from fastrnn.vision.visualisation_pictures import class_picture

        subject = load_subject(network, weights, device, size)
        if not subject.digits and not classes:
            common.fail(f"network {network!r} has {subject.network.num_classes} classes: name some, --class NUMBER")
        wanted = [subject.known(number) for number in dict.fromkeys(classes or range(10))]
        settings = dict(DIGITS if subject.digits else IMAGES)
        given = {
            "l2_reg": l2_reg,
            "learning_rate": learning_rate,
            "blur_every": blur_every,
            "max_jitter": max_jitter,
        }
        settings |= {name: value for name, value in given.items() if value is not None}
        if subject.digits:
            side = 28
            noise = torch.randn((1, 1, side, side), generator=torch.Generator().manual_seed(seed))
            settings["start"] = START * noise
        else:
            side = subject.size
            check_size(subject.network, side, side)
        settings |= {"shape": (subject.network.channels, side, side), "num_iterations": steps, "seed": seed}
        made = []
        # Digits all at once; images one by one, as several would take their multiple of memory.
        groups = [wanted] if subject.digits else [[number] for number in wanted]
        with counted("making images", steps * len(groups)) as count:
            for group in groups:
                made += create_class_visualization(group, subject.network, callback=count, **settings).split(1)
        sure = [float(subject.probabilities(tensor)[0, n]) for tensor, n in zip(made, wanted, strict=True)]
        right = sum(number == n for (number, _), n in zip(subject.sees(made), wanted, strict=True))
        typer.echo(f"images   {len(made)}, each from noise in {steps} steps of {settings['learning_rate']:g}")
        typer.echo(
            f"network  {network} sees what was asked for in {right} of {len(made)}, and is {100 * min(sure):.3g} to "
            f"{100 * max(sure):.3g} % sure of it"
        )
        typer.echo(
            f"method   L2 weight {settings['l2_reg']:g}, blur every {settings['blur_every']} steps, shifts of up to "
            f"{settings['max_jitter']} pixels"
        )
        picture = class_picture(
            [subject.picture(tensor) for tensor in made],
            [subject.reading(*pair) for pair in zip(wanted, sure, strict=True)],
            f"Made from noise to raise the score of one class; below, how sure {network} is of it.",
        )
        save_image(out, picture)
        say_picture(out)
