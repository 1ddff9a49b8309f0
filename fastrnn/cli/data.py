"""``fastrnn data``: data sets in the COCO file format, made, looked into, and made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

from fastrnn.captioning import CaptionData, build_coco_data, synthetic_coco_data
from fastrnn.captioning.data import SPLITS
from fastrnn.cli import common

data = typer.Typer(
    name="data", help="Make data sets in the COCO file format, or look into them.", rich_markup_mode=None
)


@data.callback(invoke_without_command=True)
def commands(context: typer.Context) -> None:
    """Make data sets in the COCO file format, or look into them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data.command()
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder, new or empty.")],
    train_features: Annotated[Path, typer.Option(metavar="F.npy", help="Features of the training images, a row each.")],
    train_captions: Annotated[
        Path, typer.Option(metavar="C", help="Captions of the training images: JSON Lines (.jsonl) or CSV (.csv).")
    ],
    val_features: Annotated[Path, typer.Option(metavar="F.npy", help="The same for validation.")],
    val_captions: Annotated[Path, typer.Option(metavar="C", help="The same for validation.")],
    train_images: Annotated[
        Path | None, typer.Option(metavar="NAMES", help="Name of each training image, one a line, a line for each row.")
    ] = None,
    val_images: Annotated[Path | None, typer.Option(metavar="NAMES", help="The same for validation.")] = None,
    min_count: Annotated[
        int, typer.Option(min=1, help="How often a word has to occur in training to be in the vocabulary.")
    ] = 5,
    max_length: Annotated[int, typer.Option(min=1, help="Words in a caption; longer ones are cut.")] = 15,
) -> None:
    """Make a data set from features and captions.

    A line of captions is {"image": 3, "caption": "A cat."}, or in a CSV file 3,A cat. under the header image,caption.
    The image is a row of the features, from 0 on, or a name that --train-images lists. Words are lower-cased, and
    punctuation is dropped; words that are rarer than --min-count become <UNK>.
    """
    with _errors(f"{out} was not written"), _progress("writing features") as told:
        summary = build_coco_data(
            out,
            train_features=train_features,
            train_captions=train_captions,
            val_features=val_features,
            val_captions=val_captions,
            train_images=train_images,
            val_images=val_images,
            min_count=min_count,
            max_length=max_length,
            progress=told,
        )
    with _errors(), CaptionData(out) as made:
        _show(made.describe())
    for split in SPLITS:
        if summary.cut[split]:
            common.console().print(f"{split}: {summary.cut[split]:,} captions of more than {max_length} words were cut")


@data.command()
def info(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the seven files.")],
    pca: Annotated[
        bool | None, typer.Option("--pca/--no-pca", help="Which features, where both kinds are there. Default: --pca.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Captions of each split to show.")] = 3,
    check: Annotated[bool, typer.Option("--check", help="Read all features, too: are they finite numbers?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print what is in a data set; whatever is wrong with its files is said."""
    with _errors(), CaptionData(folder, pca) as opened:
        told = opened.describe(examples)
        if check:
            with _progress("reading features") as report:
                _read_all(opened, told, report)
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        _show(told)


@data.command()
def synthetic(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder, new or empty.")],
    train_images: Annotated[int, typer.Option(min=1, help="Rows of training features.")] = 82_783,
    val_images: Annotated[int, typer.Option(min=1, help="Rows of validation features.")] = 40_504,
    dim: Annotated[int, typer.Option(min=1, help="Numbers in a row.")] = 4096,
    captions: Annotated[int, typer.Option(min=1, help="Training captions.")] = 400_135,
    val_captions: Annotated[int, typer.Option(min=1, help="Validation captions.")] = 195_954,
    vocabulary: Annotated[int, typer.Option(min=5, help="Words, the four special ones included.")] = 1004,
    length: Annotated[int, typer.Option(min=3, help="Word ids in a caption, <START> and <END> included.")] = 17,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same values.")] = 0,
) -> None:
    """Write made-up images and captions, by default as many as COCO 2014 has (2 GB), to measure with."""
    with _errors(f"{out} was not written"), _progress("writing features") as told:
        synthetic_coco_data(
            out,
            train_images=train_images,
            val_images=val_images,
            dim=dim,
            captions=captions,
            val_captions=val_captions,
            vocabulary=vocabulary,
            length=length,
            seed=seed,
            progress=told,
        )
    with _errors(), CaptionData(out) as made:
        _show(made.describe())


@contextmanager
def _errors(stopped: str = "stopped") -> Iterator[None]:
    """What is wrong with files and arguments in one line, and exit code 2; 130 if Ctrl-C ended it."""
    try:
        yield
    except (ImportError, OSError, TypeError, ValueError) as error:
        common.fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        typer.echo(f"\nfastrnn: {stopped}", err=True)
        raise typer.Exit(common.INTERRUPTED) from None


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], Any]]:
    """A bar on stderr, where someone watches, and what moves it."""
    with common.progress_bar(what) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _read_all(opened: CaptionData, told: dict[str, Any], report: Callable[[int, int], Any]) -> None:
    """Add the range and the mean of the features of each split; those that are not finite end it."""
    total, done = sum(told[split]["images"] for split in SPLITS), 0
    for split in SPLITS:
        low, high, summed = np.inf, -np.inf, 0.0
        for _, features in opened.images(split, max(1, 2**18 // opened.feature_dim)):
            low, high = min(low, float(features.min())), max(high, float(features.max()))
            summed += float(features.sum(dtype=np.float64))
            done += len(features)
            report(done, total)
        size = told[split]["images"] * opened.feature_dim
        told[split]["features"] = {"min": low, "mean": summed / size, "max": high} if size else None


def _show(told: dict[str, Any]) -> None:
    console = common.console()
    size = sum(told["files"].values())
    console.print(f"{told['base_dir']}: {len(told['files'])} files, {_bytes(size)}")
    for name, count in told["files"].items():
        console.print(f"  {name}  {_bytes(count)}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "captions": lambda part: f"{part['captions']:,}",
        "images": lambda part: f"{part['images']:,}",
        "images with captions": lambda part: f"{part['images_with_captions']:,}",
        "features": lambda part: f"{told['feature_dim']:,} {part['feature_dtype']}",
        "their layout": lambda part: part["layout"],
        "ids in a caption": lambda part: f"{told['caption_length']:,} {part['caption_dtype']}",
        "words in a caption": lambda part: "{min} to {max}, median {median:g}".format(**part["words"]),
        "<UNK> among them": lambda part: f"{100 * part['unknown']:.2f} %",
    }
    if "features" in told["train"]:
        rows["values of features"] = lambda part: (
            "{min:.4g} to {max:.4g}, mean {mean:.4g}".format(**part["features"]) if part["features"] else "none"
        )
    for name, text in rows.items():
        table.add_row(name, *(text(told[split]) for split in SPLITS))
    console.print(table)
    console.print(f"vocabulary: {told['vocabulary']:,} words")
    for split in SPLITS:
        for url, caption in told[split]["examples"]:
            console.print(Text(f"{split}  {url}  {caption}"), soft_wrap=True)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
