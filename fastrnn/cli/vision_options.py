"""What the commands that look at images share: options, and how they end when something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrnn.cli import common
from fastrnn.cli.caption import one_line

DEVICES = ("cpu", "cuda")
# Modules that such a command imports, with the names by which people know them.
LIBRARIES = {
    "torch": "PyTorch",
    "PIL": "Pillow",
    "matplotlib": "Matplotlib",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
}

Network = Annotated[str, typer.Option(metavar="NAME", help="random, squeezenet, vgg16, digits or digits-robust.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights of the network, .pth or .safetensors: torchvision's, for squeezenet and vgg16.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Size = Annotated[int, typer.Option(min=1, help="Shorter side of the images that are worked on, in pixels.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of all that is drawn.")]
Steps = Annotated[int, typer.Option(min=1, help="Iterations.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The picture.")]


@contextmanager
def vision_command(
    *outputs: Path | None, device: str = "cpu", needs: Sequence[str] = tuple(LIBRARIES)
) -> Iterator[None]:
    """Around all that a command does: what can be known beforehand is checked, and what is wrong ends in one line.

    Missing libraries, images that cannot be written, a device that is not there, bad files and arguments, and too
    little memory end the command with exit code 2; numbers that became NaN with 1; Ctrl-C with 130.

    Parameters
    ----------
    outputs : Path or None
        Images that the command is to write.
    device : str
        Where it is to compute, as the user said it.
    needs : sequence of str
        Modules that it imports, of `LIBRARIES`.
    """
    check_libraries(needs)
    with one_line():
        try:
            check_device(device)
            _check_outputs(outputs)
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            typer.echo("\nfastrnn: interrupted", err=True)
            raise typer.Exit(common.INTERRUPTED) from None
        except (TypeError, IndexError) as error:
            common.fail(" ".join(str(error).split()))
        except FloatingPointError as error:
            typer.echo(f"fastrnn: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            common.fail(f"out of memory on device {device}; smaller images need less (--size)")


def _check_outputs(paths: Sequence[Path | None]) -> None:
    from fastrnn.vision.images import check_suffix

    for path in filter(None, paths):
        check_suffix(path)
    common.check_files(*paths)


def check_libraries(names: Sequence[str]) -> None:
    """End the command if one of these modules is not installed."""
    missing = [LIBRARIES[name] for name in names if find_spec(name) is None]
    if missing:
        common.fail(f"needs {', '.join(missing)}: pip install 'fastrnn[vision]'")


def check_device(device: str) -> None:
    """End the command if there is no such device."""
    common.one(device, DEVICES, "device")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            common.fail("device 'cuda' cannot be used here: PyTorch finds no CUDA device")


def load_network(name: str, weights: Path | None, device: str = "cpu") -> Any:
    """`networks.build`, with a bar while it trains, and saying which parameters of the file it has no use for."""
    from fastrnn.vision.networks import build

    with training_bar() as progress:
        network = build(name, weights, device, progress=progress)
    if network.ignored:
        parts = sorted({parameter.partition(".")[0] for parameter in network.ignored})
        typer.echo(f"weights  {weights}: {len(network.ignored)} parameters of its {', '.join(parts)} are not used")
    return network


@contextmanager
def training_bar() -> Iterator[Callable[[int, int], None]]:
    """What `networks.digits_classifier` calls as `progress`: a bar, once there is something to wait for."""
    bar = common.progress_bar("training a reader of digits, once")
    with bar:
        task = bar.add_task("", visible=False)
        yield lambda done, steps: bar.update(task, completed=done, total=steps, visible=True)


def say_picture(path: Path) -> None:
    """Where the picture is, as `fastrnn demo` says it."""
    typer.echo(f"picture  {path.absolute()}")


def _out_of_memory(error: BaseException) -> bool:
    # On the CPU PyTorch raises a plain RuntimeError.
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
