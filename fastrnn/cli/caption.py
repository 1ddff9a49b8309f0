"""``fastrnn caption``: what a trained model says of images; and what `fastrnn evaluate` shares with it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import typer

import fastrnn
from fastrnn.captioning import decoding
from fastrnn.captioning.checkpoint import Checkpoint, load_checkpoint
from fastrnn.captioning.data import SPLITS, features_file, open_npy
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import IDX_TO_WORD, numbers_dir
from fastrnn.captioning.stream import CaptionData
from fastrnn.cli import common

DECODERS = ("greedy", "sample", "beam")

CheckpointPath = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="Of `fastrnn train`, or the folder of a run: its best.h5, or else its last.h5."
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Argument(metavar="[DATA]", help="Folder of a data set in the COCO format. Default: the one trained on."),
]
Split = Annotated[str, typer.Option(help="train or val.")]
Decoder = Annotated[
    str, typer.Option(help="greedy: the likeliest word at each step; sample: words drawn; beam: beam search.")
]
Beam = Annotated[int | None, typer.Option(min=1, help="Of beam: sentences kept for each image. Default: 5.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(help="Of beam: log p is divided by ((5 + words) / 6) to this power. Default: 0.6."),
]
Temperature = Annotated[
    float | None, typer.Option(help="Of sample: scores are divided by it; towards 0 it is greedy. Default: 1.")
]
TopK = Annotated[int | None, typer.Option(min=1, help="Of sample: draw from so many words. Default: all.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn.")]
MaxLength = Annotated[int, typer.Option(min=1, help="Most words of a caption, its end counted.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The first so many images. Default: all.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images captioned at once.")]
Backend = Annotated[str, typer.Option(help="auto, cpu, numba, reference or cuda.")]

Decode = Callable[[CaptioningRNN, Any], decoding.Decoded]


def caption(
    checkpoint: CheckpointPath,
    data: DataPath = None,
    features: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="Caption these features, one image a row, instead of a data set."),
    ] = None,
    split: Split = "val",
    decoder: Decoder = "greedy",
    beam: Beam = None,
    length_penalty: LengthPenalty = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    seed: Seed = 0,
    max_length: MaxLength = 30,
    limit: Limit = None,
    batch_size: BatchSize = 100,
    backend: Backend = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Default: standard output.")] = None,
) -> None:
    """Caption images with a trained model.

    Every image gives a line of JSON: its row, its URL in a data set, the caption, and the natural logarithm of the
    probability that the model gives the caption.

    Exit code: 0 if all is right, 2 for bad usage or files, 130 after Ctrl-C.
    """
    if features is not None and data is not None:
        common.fail("name a data set or --features FILE.npy, not both")
    decode = decoder_of(decoder, beam, length_penalty, temperature, top_k, seed, max_length)
    common.one(split, SPLITS, "split")
    common.check_files(out)
    with one_line(), using(backend):
        loaded, name = load(checkpoint)
        model = loaded.model()
        urls: np.ndarray | None = None
        if features is not None:
            array = _open_features(features, loaded, name)
            count = len(array)
            batches = _batches(array, features, batch_size, limit)
        else:
            opened = open_data(data, loaded, name)
            urls, count = opened.urls(split), opened.num_images(split)
            batches = opened.images(split, batch_size, limit)
        with _writer(out) as file, progress("captioning", min(count, limit or count), out is not None) as advance:
            for rows, values in batches:
                said = decode(model, loaded.prepare(values))
                for row, text, log_p in zip(
                    rows.tolist(), words_of(said.ids, loaded), said.log_probability.tolist(), strict=True
                ):
                    line: dict[str, Any] = {"image": row}
                    if urls is not None:
                        line["url"] = str(urls[row])
                    line |= {"caption": text, "log_probability": log_p}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                advance(len(rows))


# ---- what both commands do -------------------------------------------------------------------------------------------


@contextmanager
def one_line() -> Iterator[None]:
    """What is wrong with files and arguments in one line, as bad usage; Ctrl-C in one line, too."""
    try:
        yield
    except BrokenPipeError:  # whoever read standard output has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (ValueError, OSError, ImportError) as error:
        common.fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        typer.echo("\nfastrnn: stopped", err=True)
        raise typer.Exit(common.INTERRUPTED) from None


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Compute on this backend, or end the command with the reason why not."""
    common.one(backend, ["auto", *fastrnn.backend_status()], "backend")
    if backend != "auto":
        common.usable_backends([backend])
    with fastrnn.backend(backend):
        yield


def load(path: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint, and its file: that itself, or the best or else the last of a run's folder."""
    if path.is_dir():
        path = next((path / name for name in ("best.h5", "last.h5") if (path / name).is_file()), path)
    return load_checkpoint(path), path


def open_data(folder: Path | None, checkpoint: Checkpoint, name: Path) -> CaptionData:
    """The data set, or else that of the training, with the features that are as wide as those of the checkpoint."""
    if folder is None:
        folder = Path(checkpoint.data.get("base_dir", ""))
        if not checkpoint.data.get("base_dir") or not folder.is_dir():
            if checkpoint.idx_to_word != IDX_TO_WORD:
                raise FileNotFoundError(
                    f"{name}: the data set that it was trained on is not there ({folder}): name the one to caption"
                )
            folder = numbers_dir()
    data = CaptionData(folder)
    if data.feature_dim != checkpoint.feature_dim:
        # Both kinds of features may be there: those reduced to fewer dimensions are taken first.
        found = data.feature_dim
        data.close()
        if not all((folder / features_file(split, pca)).is_file() for split in SPLITS for pca in (False, True)):
            _wrong_width(folder, found, checkpoint, name)
        data = CaptionData(folder, pca_features=False)
        if data.feature_dim != checkpoint.feature_dim:
            data.close()
            _wrong_width(folder, f"{found} or {data.feature_dim}", checkpoint, name)
    return data


def _wrong_width(path: Path, found: Any, checkpoint: Checkpoint, name: Path) -> None:
    raise ValueError(
        f"{path}: expected features of {checkpoint.feature_dim} numbers an image, which checkpoint {name} was trained "
        f"on, got {found}: caption features of the same kind, or train on these"
    )


def decoder_of(
    decoder: str,
    beam: int | None,
    length_penalty: float | None,
    temperature: float | None,
    top_k: int | None,
    seed: int,
    max_length: int,
) -> Decode:
    """The decoder of these options; what is not for it is refused."""
    common.one(decoder, DECODERS, "decoder")
    options = {
        "beam": {"--beam": beam, "--length-penalty": length_penalty},
        "sample": {"--temperature": temperature, "--top-k": top_k},
    }
    for of, values in options.items():
        for option, value in values.items():
            if value is not None and decoder != of:
                common.fail(f"{option} is for --decoder {of}, not for {decoder}")
    if length_penalty is not None and not 0 <= length_penalty < math.inf:
        common.fail(f"--length-penalty must be at least 0 and finite, got {length_penalty:g}")
    if temperature is not None and not 0 < temperature < math.inf:
        common.fail(f"--temperature must be above 0 and finite, got {temperature:g}; greedy is what it comes to at 0")
    if decoder == "beam":
        given: dict[str, Any] = {"beam_width": beam, "length_penalty": length_penalty}
        given = {name: value for name, value in given.items() if value is not None}
        return lambda model, features: decoding.beam_search(model, features, max_length, **given)
    if decoder == "sample":
        rng = np.random.default_rng(seed)
        heat = 1.0 if temperature is None else temperature
        return lambda model, features: decoding.sample(model, features, max_length, heat, top_k, rng)
    return lambda model, features: decoding.greedy(model, features, max_length)


def words_of(ids: Any, checkpoint: Checkpoint) -> list[str]:
    """Captions as text, without the words that only begin and end them."""
    texts = decoding.decode_captions(ids, checkpoint.idx_to_word)
    return [" ".join(word for word in text.split(" ") if word not in ("<START>", "<END>")) for text in texts]


@contextmanager
def progress(what: str, total: int, wanted: bool = True) -> Iterator[Callable[[int], Any]]:
    """A bar on the error output where someone watches; gives what counts it up."""
    bar = common.progress_bar(what, wanted=wanted)
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


# ---- features and captions in files of their own ---------------------------------------------------------------------


def _open_features(path: Path, checkpoint: Checkpoint, name: Path) -> np.ndarray:
    """The rows of an .npy file, which stay on disk until they are used."""
    array = open_npy("caption", path)
    expected = "expected floating-point numbers of shape (num_images, D)"
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path}: {expected}, got {array.dtype} of shape {array.shape}")
    if array.shape[1] != checkpoint.feature_dim:
        _wrong_width(path, array.shape[1], checkpoint, name)
    return array


def _batches(array: np.ndarray, path: Path, size: int, limit: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and features, as `CaptionData.images` gives them."""
    for begin in range(0, min(len(array), limit or len(array)), size):
        rows = np.arange(begin, min(begin + size, limit or len(array), len(array)))
        values = np.asarray(array[rows[0] : rows[-1] + 1])
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{path}: expected finite numbers, got NaN or infinity in row {rows[bad[0]]}; compute its features "
                "again, or leave the image out"
            )
        yield rows, values


@contextmanager
def _writer(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there only when all of it is."""
    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            yield file
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(aside)):  # nothing else of it is a file
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise
