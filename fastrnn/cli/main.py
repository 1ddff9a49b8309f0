"""``fastrnn``: the commands and what they have in common."""

from __future__ import annotations

from typing import Annotated

import typer

import fastrnn
from fastrnn.cli.bench import bench
from fastrnn.cli.check import check
from fastrnn.cli.demo import demo
from fastrnn.cli.info import info

app = typer.Typer(
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
