"""``fastrnn evaluate``: how good the captions of a trained model are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlparse

import numpy as np
import typer
from rich.table import Table

from fastrnn.captioning.checkpoint import Checkpoint
from fastrnn.captioning.data import SPLITS, VOCABULARY_FILE, urls_file
from fastrnn.captioning.metrics import bleu, exact_match, perplexity
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import SIDE
from fastrnn.captioning.pictures import FORMATS, contact_sheet
from fastrnn.captioning.stream import CaptionData
from fastrnn.cli import caption, common
from fastrnn.runs import open_bounded

DIGITS = "sklearn-digits://"
THUMBNAIL = 480  # pixels: more than a cell of the sheet has


def evaluate(
    checkpoint: caption.CheckpointPath,
    data: caption.DataPath = None,
    split: caption.Split = "val",
    decoder: caption.Decoder = "greedy",
    beam: caption.Beam = None,
    length_penalty: caption.LengthPenalty = None,
    temperature: caption.Temperature = None,
    top_k: caption.TopK = None,
    seed: caption.Seed = 0,
    max_length: caption.MaxLength = 30,
    limit: caption.Limit = None,
    batch_size: caption.BatchSize = 100,
    backend: caption.Backend = "auto",
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw some images with their captions.")
    ] = None,
    sheet_images: Annotated[int, typer.Option(min=1, help="How many, drawn at random.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Compare a trained model's captions with the true ones.

    BLEU-1 to 4 over the whole corpus, by sacreBLEU; exact match, the part of the images whose caption is one of the
    true ones word for word; and the perplexity of the true captions, which does not depend on the decoder. Images
    without a true caption are passed over.

    Exit code: 0 if all is right, 2 for bad usage or files, 130 after Ctrl-C.
    """
    decode = caption.decoder_of(decoder, beam, length_penalty, temperature, top_k, seed, max_length)
    common.one(split, SPLITS, "split")
    if sheet is not None and sheet.suffix[1:].lower() not in FORMATS:
        common.fail(f"cannot draw {sheet}: its name must end in one of .{', .'.join(FORMATS)}")
    common.check_files(sheet)
    with caption.one_line(), caption.using(backend):
        loaded, name = caption.load(checkpoint)
        with caption.open_data(data, loaded, name) as opened:
            if opened.word_to_idx != loaded.word_to_idx:
                raise ValueError(_other_words(opened, loaded, name))
            captioned = Captioned(opened, split, limit)
            shown = captioned.drawn(sheet_images, seed)
            # Read before the work begins: if they cannot be, that is said at once.
            pictures = [] if sheet is None else _pictures(opened, split, captioned.rows[shown])
            begin = time.perf_counter()
            scores = _scores(captioned, loaded, decode, batch_size)
            seconds = time.perf_counter() - begin
            if sheet is not None:
                said = [captioned.said[n] for n in shown.tolist()]
                truths = [captioned.truths(n, loaded) for n in shown.tolist()]
                contact_sheet(pictures, said, truths, sheet)
    facts = {
        "checkpoint": str(name),
        "step": loaded.position["step"],
        "data": str(opened.base_dir),
        "split": split,
        "decoder": decoder,
        "images": len(captioned.rows),
        "captions": len(captioned.captions),
        "seconds": round(seconds, 3),
    }
    if as_json:
        typer.echo(json.dumps(facts | scores))
    else:
        _report(facts, scores, sheet)


class Captioned:
    """The images of a split that have true captions, with those, and with what was said of them.

    Attributes
    ----------
    rows : int (n,)
        The images, as rows of the features.
    captions, of : int (m, T), int (m,)
        Their true captions, those of an image one after another; and the image of each, counted in `rows`.
    said : list of str
        What was said, as far as that was done.
    """

    def __init__(self, data: CaptionData, split: str, limit: int | None) -> None:
        image_idxs = data.image_idxs(split)
        used = np.unique(image_idxs)
        if not len(used):
            raise ValueError(f"{data.base_dir}: expected captions in split {split!r} to compare with, got none")
        self.rows = used[:limit]
        chosen = np.argsort(image_idxs, kind="stable")[: np.searchsorted(np.sort(image_idxs), self.rows[-1], "right")]
        self.captions = data.captions(split)[chosen]
        self.of = np.searchsorted(self.rows, image_idxs[chosen])
        self.said: list[str] = []
        self._data, self._split = data, split

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """For some images at a time: their features; their true captions; and the image of each, among these."""
        last = int(self.rows[-1]) + 1
        for rows, features in self._data.images(self._split, size, last):
            kept = np.isin(rows, self.rows)
            if not kept.any():
                continue
            first, end = np.searchsorted(self.rows, (rows[0], rows[-1] + 1))
            part = slice(*np.searchsorted(self.of, (first, end)))
            yield features[kept], self.captions[part], self.of[part] - first, self.rows[first:end]

    def drawn(self, count: int, seed: int) -> np.ndarray:
        """Some images at random, in order."""
        return np.sort(np.random.default_rng(seed).choice(len(self.rows), min(count, len(self.rows)), replace=False))

    def truths(self, n: int, checkpoint: Checkpoint) -> list[str]:
        """The true captions of the n-th image, in words."""
        first, end = np.searchsorted(self.of, (n, n + 1))
        return caption.words_of(self.captions[first:end], checkpoint)


def _scores(captioned: Captioned, checkpoint: Checkpoint, decode: caption.Decode, size: int) -> dict[str, float]:
    """Everything in one pass over the features."""
    model: CaptioningRNN = checkpoint.model()
    right: list[np.ndarray] = []

    def batches(advance: Callable[[int], Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for raw, captions, of, rows in captioned.batches(size):
            features = checkpoint.prepare(raw)
            said = decode(model, features)
            captioned.said += caption.words_of(said.ids, checkpoint)
            match = np.zeros(len(rows), bool)
            np.logical_or.at(match, of, exact_match(said.ids[of], captions, checkpoint.word_to_idx))
            right.append(match)
            yield captions, features[of]
            advance(len(rows))

    with caption.progress("evaluating", len(captioned.rows)) as advance:
        surprise = perplexity(model, batches(advance))
    truths = [captioned.truths(n, checkpoint) for n in range(len(captioned.rows))]
    return bleu(captioned.said, truths) | {
        "exact_match": float(np.concatenate(right).mean()),
        "perplexity": surprise,
    }


def _report(facts: dict[str, Any], scores: dict[str, float], sheet: Path | None) -> None:
    console = common.console()
    console.print(f"[bold]checkpoint[/] {facts['checkpoint']}, step {facts['step']:,}", soft_wrap=True)
    console.print(
        f"[bold]data[/]       {facts['data']}, {facts['split']}: {facts['images']:,} images, "
        f"{facts['captions']:,} captions",
        soft_wrap=True,
    )
    speed = facts["images"] / max(facts["seconds"], 1e-9)
    console.print(f"[bold]decoder[/]    {facts['decoder']}, {facts['seconds']:.1f} s, {speed:,.0f} images/s")
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=False)
    table.add_column(style="bold", min_width=10)
    table.add_column(justify="right")
    for name, value in scores.items():
        if name == "exact_match":
            table.add_row("exact match", f"{100 * value:.2f} %")
        else:
            table.add_row(name, f"{value:.2f}" if name.startswith("BLEU") else f"{value:.4g}")
    console.print(table)
    if sheet is not None:
        console.print(f"[bold]sheet[/]      {sheet.absolute()}", soft_wrap=True)


def _other_words(data: CaptionData, checkpoint: Checkpoint, name: Path) -> str:
    ours, theirs = set(data.word_to_idx), set(checkpoint.word_to_idx)
    if ours == theirs:
        differ = "the same words with other ids"
    else:
        one = min(ours ^ theirs)
        differ = f"{len(ours ^ theirs)} words that only one of them has, {one!r} among them"
    return (
        f"{data.base_dir / VOCABULARY_FILE}: expected the vocabulary of checkpoint {name}, got another one ({differ}): "
        "evaluate on the data set that it was trained on, or train anew"
    )


def _pictures(data: CaptionData, split: str, rows: np.ndarray) -> list[np.ndarray]:
    """The images of these rows: handwritten numbers, which are features themselves, or files."""
    urls = data.urls(split)
    if data.feature_dim == 3 * SIDE * SIDE and all(str(urls[row]).startswith(DIGITS) for row in rows):
        return list(data.features(split, rows).reshape(len(rows), SIDE, -1))
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("--sheet needs Pillow and Matplotlib: pip install 'fastrnn[plot]'") from error
    pictures = []
    for row in rows.tolist():
        url = str(urls[row])
        parts = urlparse(url)
        path = Path(unquote(parts.path)) if parts.scheme == "file" else Path(url)
        try:
            with open_bounded(data.base_dir / path) as file, Image.open(file) as image:
                image.thumbnail((THUMBNAIL, THUMBNAIL))
                pictures.append(np.asarray(image.convert("RGB")))
        except MemoryError:
            raise
        except Exception as error:  # what Pillow raises on damage depends on the format and on the place
            why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ValueError(
                f"{data.base_dir / urls_file(split)}, line {row + 1}: --sheet needs image files that can be read here, "
                f"got {url!r} ({why}): name local files, or leave --sheet out"
            ) from None
    return pictures
