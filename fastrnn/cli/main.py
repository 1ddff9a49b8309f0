"""``fastrnn``: the commands and what they have in common."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import fastrnn
from fastrnn.cli import common
from fastrnn.cli.bench import bench
from fastrnn.cli.caption import caption
from fastrnn.cli.check import check
from fastrnn.cli.data import data
from fastrnn.cli.demo import demo
from fastrnn.cli.evaluate import evaluate
from fastrnn.cli.fool import fool
from fastrnn.cli.gan import gan
from fastrnn.cli.info import info
from fastrnn.cli.invert import invert
from fastrnn.cli.saliency import saliency
from fastrnn.cli.style import style
from fastrnn.cli.texture import texture
from fastrnn.cli.train import train
from fastrnn.cli.visualize import visualize

# What Typer raises for bad usage has no public name of its own, but BadParameter is one of them.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """The commands. What is wrong with an option is said in one line, as it is where a command checks it itself."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        if not args:  # shows the help, by way of such an error
            return super().make_context(info_name, args, *rest, **extra)
        try:
            return super().make_context(info_name, args, *rest, **extra)
        except UsageError as error:
            common.fail(error.format_message())

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            common.fail(error.format_message())


app = typer.Typer(
    cls=Commands,
    help="Fast recurrent-network kernels behind the NumPy API that people already write.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastrnn {fastrnn.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


app.command()(info)
app.command()(check)
app.command()(bench)
app.command()(demo)
app.command()(train)
app.command()(caption)
app.command()(evaluate)
app.command()(saliency)
app.command()(fool)
app.command()(visualize)
app.command()(style)
app.command()(texture)
app.command()(invert)
app.command()(gan)
app.add_typer(data)
