"""``fastrnn texture``: another image of the same texture, out of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrnn.cli import common
from fastrnn.cli import style as shared
from fastrnn.cli import vision_options as options


def texture(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGE]", help="The texture. Default: petals, from an embedded photograph."),
    ] = None,
    network: shared.Network = "random",
    weights: options.Weights = None,
    device: options.Device = "cpu",
    size: shared.Size = None,
    texture_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Shorter side that IMAGE is resized to: the larger, the larger its patterns. Default: that of the "
            "result, but no more than it has.",
            show_default=False,
        ),
    ] = None,
    tv_weight: shared.TvWeight = None,
    optimizer: shared.Optimizer = "adam",
    steps: shared.Steps = 100,
    scales: shared.Scales = None,
    seed: options.Seed = 0,
    frames: shared.Frames = None,
    frame_every: shared.FrameEvery = 10,
    result: shared.Result = None,
    out: options.Out = Path("fastrnn-texture.png"),
) -> None:
    """Make another image of the same texture, out of noise.

    The Gram matrices of a convolutional network say how often features come together, but not where: the result has
    the colours and the small shapes of the image, in places of its own (Gatys, Ecker, Bethge 2015). Another seed gives
    another one.
    """
    common.one(network, shared.NETWORKS, "network")
    common.one(optimizer, shared.OPTIMIZERS, "optimizer")
    with options.vision_command(out, result, device=device):
        shared.check_frames(frames)
        from fastrnn.vision.images import resize
        from fastrnn.vision.style import PRESETS, texture_synthesis

        name, source = shared.picture_of(image, "petals of a dahlia")
        net = options.load_network(network, weights, device)
        preset = PRESETS[type(net)]
        side = size or preset.image_size
        source = resize(source, texture_size or min(side, *source.shape[:2]))
        painting = shared.Painting("texture", (side, side), frames, frame_every)
        made = painting.make(
            lambda callback: texture_synthesis(
                source,
                side,
                min(source.shape[:2]),
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
        typer.echo(f"texture  {name}, {made.shape[1]} x {made.shape[0]} pixels of it")
        shared.say_network(net, preset.style_layers, None)
        painting.say("style")
        shared.finish(
            [source, made],
            [f"texture: {name}", f"result: {painting.done} iterations from noise"],
            out,
            result,
        )
