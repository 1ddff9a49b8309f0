"""``fastrnn fool``: images changed a little, until a network sees something else in them."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fastrnn.cli import common
from fastrnn.cli.saliency import Images, Inputs, Network, Size, Subject, counted, load_subject
from fastrnn.cli.vision_options import Device, Out, Weights, say_picture, vision_command

# Lengths of a step: those that the change of an image is small against.
STEP_DIGITS, STEP_IMAGES = 0.05, 0.5
OTHERS = 3  # classes tried, where none is named
SURE = 0.9  # how sure the network is of a digit that is chosen for being easily fooled


def fool(
    image: Images = None,
    network: Network = "digits",
    weights: Weights = None,
    into: Annotated[
        int | None,
        typer.Option(
            "--class",
            min=0,
            metavar="NUMBER",
            help="What the network is to see. Default: of the three likeliest others what takes the least change.",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"Length of a step. Default: {STEP_DIGITS} for digits, {STEP_IMAGES} for squeezenet.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Most steps.")] = 500,
    size: Size = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="NUMBER",
            help="Draw the digits by this seed. Default: of each kind the one that takes the least change.",
            show_default=False,
        ),
    ] = None,
    device: Device = "cpu",
    out: Out = Path("fastrnn-fool.png"),
) -> None:
    """Change images a little, until a network takes them for something else.

    Each step goes up the log-probability of the class that the network is to see; the first image in which it sees
    that is shown, beside the one before and the change. Without --image ten handwritten digits are changed, those of
    which the network is sure and that take the least to fool it.

    Exit code: 0 if all is right, 2 for bad usage or files or if the steps were too few, 130 after Ctrl-C.
    """
    with vision_command(out, device=device):
        from fastrnn.vision.images import save_image
        from fastrnn.vision.visualisation import image_bounds, make_fooling_image
        from fastrnn.vision.visualisation_pictures import fooling_picture, magnification

        subject = load_subject(network, weights, device, size)
        if into is not None:
            subject.known(into)
        easily = not image and subject.digits and seed is None
        shown = easily_fooled(subject, into) if easily else subject.inputs(image, seed or 0)
        seen = subject.sees(shown.tensors)
        if into is not None:
            already = [row for row, (number, _) in enumerate(seen) if number == into]
            if already and shown.names is not None:
                common.fail(f"{shown.names[already[0]]}: the network sees class {into} in it already")
            seen = shown.without(already, seen)
        step = learning_rate if learning_rate is not None else STEP_DIGITS if subject.digits else STEP_IMAGES
        limits = image_bounds(subject.network.channels)

        def log_probabilities(tensor: Any) -> Any:
            """Scores that rise only as those of other classes fall: they lead there with less of a change."""
            return subject.network(tensor).log_softmax(dim=1)

        def attempt(tensor: Any, targets: list[int]) -> tuple[Any, int]:
            """The fooling image that took the fewest steps, which is the least change, near enough; and how many."""
            found: list[tuple[Any, int]] = []
            for target in targets:
                taken = [0]
                most = min([steps, *(count for _, count in found)])
                with suppress(ValueError) if found or target != targets[-1] else nullcontext():
                    image = make_fooling_image(
                        tensor, target, log_probabilities, step, most, bounds=limits, callback=taken.append
                    )
                    found.append((image, taken[-1]))
            return min(found, key=lambda pair: pair[1])

        found = []
        with counted("fooling", len(shown.tensors)) as count:
            for tensor in shown.tensors:
                found.append(attempt(tensor, [into] if into is not None else others(subject, tensor)))
                count()
        fooling, counts = [pair[0] for pair in found], [pair[1] for pair in found]
        fooled = subject.sees(fooling)
        changes = [difference(subject, before, after) for before, after in zip(shown.tensors, fooling, strict=True)]
        shown.say()
        subject.say_reading(shown, seen)
        many = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(counts[0])
        typer.echo(f"fooled   {len(fooling)} of {len(seen)}: after {many} steps of {step:g} it sees another class")
        mean = float(np.mean([abs(change).mean() for change in changes]))
        largest = max(float(abs(change).max()) for change in changes)
        typer.echo(
            f"change   {100 * mean:.2g} % of the way from black to white on average, {100 * largest:.2g} % at most"
        )
        factor = magnification(changes)
        picture = fooling_picture(
            [subject.picture(tensor) for tensor in shown.tensors],
            [subject.picture(tensor) for tensor in fooling],
            changes,
            [f"{name}{subject.reading(*found)}" for name, found in zip(shown.prefixes(seen), seen, strict=True)],
            [subject.reading(*found) for found in fooled],
            "Steps up the log-probability of another class, until the network sees that. "
            f"The change is shown {factor} times as large.",
        )
        save_image(out, picture)
        say_picture(out)


def easily_fooled(subject: Subject, into: int | None) -> Inputs:
    """Of each kind of digit the one of those not trained on that seems to take the least change: the network reads it
    right and is sure of it, and its scores of two classes would be equal first, were they linear (Moosavi-Dezfooli,
    Fawzi, Frossard 2016, DeepFool)."""
    import torch

    from fastrnn.vision.data import digits

    images, labels = (tensor.to(subject.device) for tensor in digits("test"))
    rows = torch.arange(len(images), device=subject.device)
    images.requires_grad_()
    with torch.enable_grad():
        scores = subject.network(images)
        best = scores.topk(2).indices
        other = best[:, 1] if into is None else torch.full_like(labels, into)
        ahead = scores[rows, labels] - scores[rows, other]
        (gradient,) = torch.autograd.grad(ahead.sum(), images)
    distance = ahead.detach() / gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    sure = (best[:, 0] == labels) & (scores.detach().softmax(1)[rows, labels] > SURE) & (labels != other)
    chosen = []
    for digit in labels.unique().tolist():
        candidates = rows[sure & (labels == digit)]
        if len(candidates):
            chosen.append(int(candidates[distance[candidates].argmin()]))
    return Inputs(
        [images[row : row + 1].detach() for row in chosen],
        labels=[int(labels[row]) for row in chosen],
        chosen=", those that take the least change",
    )


def others(subject: Subject, tensor: Any) -> list[int]:
    """The classes that the network holds for the likeliest after the one that it sees."""
    return subject.probabilities(tensor)[0].topk(1 + OTHERS).indices[1:].tolist()


def difference(subject: Subject, before: Any, after: Any) -> np.ndarray:
    """What was changed, where black and white are 1 apart: (H, W), more ink below 0, or (H, W, 3)."""
    change = (after - before)[0].cpu().numpy()
    if subject.digits:
        return -change[0]
    from fastrnn.vision.images import STD

    return change.transpose(1, 2, 0) * np.array(STD, dtype=change.dtype)
