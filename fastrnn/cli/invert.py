"""``fastrnn invert``: what a stage of a network knows of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import common
from fastrnn.cli import style as shared
from fastrnn.cli import vision_options as options


def invert(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGE]", help="Default: an embedded photograph of a pavilion."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Number or name of the stage, such as conv2_1. Default: conv3_2, with squeezenet fire2, with vgg16 "
            "relu3_3.",
            show_default=False,
        ),
    ] = None,
    network: shared.Network = "random",
    weights: options.Weights = None,
    device: options.Device = "cpu",
    size: shared.Size = None,
    tv_weight: shared.TvWeight = None,
    optimizer: shared.Optimizer = "adam",
    steps: shared.Steps = 100,
    scales: shared.Scales = None,
    seed: options.Seed = 0,
    frames: shared.Frames = None,
    frame_every: shared.FrameEvery = 10,
    result: shared.Result = None,
    out: options.Out = Path("fastrnn-invert.png"),
) -> None:
    """Find an image again from its features alone, out of noise.

    What comes back is what the stage still knows of the image (Mahendran and Vedaldi 2015): the deeper it is, the less.
    """
    common.one(network, shared.NETWORKS, "network")
    common.one(optimizer, shared.OPTIMIZERS, "optimizer")
    with options.vision_command(out, result, device=device):
        shared.check_frames(frames)
        from fastrnn.vision.images import resize
        from fastrnn.vision.style import PRESETS, feature_inversion

        name, source = shared.picture_of(image, "a pavilion")
        net = options.load_network(network, weights, device)
        preset = PRESETS[type(net)]
        stage = preset.inversion_layer if layer is None else stage_of(layer, net.stages)
        side = size or preset.image_size
        shown = resize(source, side)
        painting = shared.Painting("invert", shown.shape[:2], frames, frame_every)
        found = painting.make(
            lambda callback: feature_inversion(
                source,
                side,
                stage,
                tv_weight=tv_weight,
                network=net,
                optimizer=optimizer,
                num_iterations=steps,
                scales=scales,
                seed=seed,
                device=device,
                callback=callback,
            )
        )
        error = float(((found.astype(float) - shown) ** 2).mean() ** 0.5)
        typer.echo(f"invert   {name}, {found.shape[1]} x {found.shape[0]} pixels, from its features")
        shared.say_network(net, (), stage)
        painting.say("content", "total_variation")
        typer.echo(f"pixels   {error:.1f} of 255 off, root mean square")
        shared.finish(
            [shown, found],
            [
                f"image: {name}",
                f"result: noise, until its {net.stages[stage]} was that of the image",
            ],
            out,
            result,
        )


def stage_of(layer: str, stages: tuple[str, ...]) -> int:
    """The index of a stage that the user named or numbered."""
    if layer in stages:
        return stages.index(layer)
    if layer.isdecimal() and int(layer) < len(stages):
        return int(layer)
    common.fail(f"unknown stage {layer!r}; there are {', '.join(stages)}, or 0 to {len(stages) - 1}")
