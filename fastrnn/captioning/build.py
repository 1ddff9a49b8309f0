"""Data sets from a user's own features and captions."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrnn.captioning.data import (
    SPLITS,
    check_new,
    check_room,
    features_file,
    new_folder,
    open_npy,
    read_text,
    write_but_features,
    write_features,
)
from fastrnn.checks import Arguments

__all__ = ["SPECIAL_WORDS", "BuildSummary", "build_coco_data", "tokenize"]

SPECIAL_WORDS = ("<NULL>", "<START>", "<END>", "<UNK>")
NULL, START, END, UNK = range(len(SPECIAL_WORDS))
BLOCK_BYTES = 8 * 2**20

_FUNCTION = "build_coco_data"
_JSON_LINES = (".jsonl", ".ndjson", ".json")

Progress = Callable[[int, int], Any]


class BuildSummary(NamedTuple):
    """What was not taken over as it was."""

    words: dict[str, int]
    """Words of the captions of each split, after cutting."""
    unknown: dict[str, int]
    """Those among them that became ``<UNK>``."""
    cut: dict[str, int]
    """Captions that were longer than `max_length`, and were cut."""


class _Characters(dict):
    """What `tokenize` makes of a character, by its Unicode category, found once for each."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        if category[0] in "LMN":  # letters, the marks on them, digits
            kept: int | None = code
        elif chr(code) in "'\u2019":
            kept = ord("'")
        else:  # format characters stand inside of words: soft hyphens, joiners
            kept = None if category == "Cf" else ord(" ")
        self[code] = kept
        return kept


_CHARACTERS = _Characters()


def tokenize(text: str) -> list[str]:
    """Split a caption into words and numbers, in lower case, without punctuation.

    Letters of all scripts are letters, and accents belong to them. An apostrophe inside of a word stays, as in "don't";
    anything else that is neither a letter nor a digit stands between words. A language that writes no spaces needs them
    put between its words first.

    Parameters
    ----------
    text : str

    Returns
    -------
    list of str
    """
    words = unicodedata.normalize("NFC", text.lower()).translate(_CHARACTERS).split()
    return [word for word in (word.strip("'") for word in words) if word]


def build_coco_data(
    out: str | os.PathLike[str],
    *,
    train_features: str | os.PathLike[str] | np.ndarray,
    train_captions: str | os.PathLike[str] | Iterable[tuple[int | str, str]],
    val_features: str | os.PathLike[str] | np.ndarray,
    val_captions: str | os.PathLike[str] | Iterable[tuple[int | str, str]],
    train_images: str | os.PathLike[str] | Sequence[str] | None = None,
    val_images: str | os.PathLike[str] | Sequence[str] | None = None,
    min_count: int = 5,
    max_length: int = 15,
    progress: Progress | None = None,
) -> BuildSummary:
    """Write a data set in the COCO file format from features and captions.

    Captions are split into words by `tokenize`. The vocabulary is ``<NULL>``, ``<START>``, ``<END>``, ``<UNK>`` and the
    words that occur at least `min_count` times in the training captions, the most frequent first and equally frequent
    ones by alphabet; all others become ``<UNK>``. A caption is stored as ``<START>``, its words, ``<END>``, and as many
    ``<NULL>`` as make ``max_length + 2`` ids.

    Parameters
    ----------
    out : path
        The folder, new or empty. It comes into being when all is written: nothing half-written is ever there.
    train_features, val_features : path or array (num_images, D)
        Numbers, or a ``.npy`` file of them, which is read block by block. Stored as float32, under the names without
        ``_pca``.
    train_captions, val_captions : path, or pairs of image and caption
        A file of JSON Lines (``{"image": 3, "caption": "A cat."}``), or a CSV file with a header that names the columns
        ``image`` and ``caption``; the ending of its name says which. An image is a row of the features, from 0 on, or
        a name. An image may have any number of captions.
    train_images, val_images : path or list of str, optional
        The name of each image, one a line, in the order of the features; needed where captions name images. They become
        the URLs.
    min_count : int
        How often a word has to occur in the training captions.
    max_length : int
        Words in a caption. Longer captions are cut.
    progress : callable, optional
        Called as ``progress(done, total)``, in rows of features.

    Returns
    -------
    BuildSummary

    Raises
    ------
    FileExistsError, FileNotFoundError
        `out` holds something already, or a file is missing.
    OSError
        There is no room on the disk, or the folder cannot be written.
    ValueError
        A file is damaged, features are not finite or of different widths, a line is no caption, or an image is unknown.
        The message names file and line or row.
    """
    args = Arguments(_FUNCTION)
    min_count, max_length = args.whole("min_count", min_count), args.whole("max_length", max_length)
    folder = Path(out)
    check_new(_FUNCTION, folder)
    given: dict[str, tuple[Any, Any, Any]] = {
        "train": (train_features, train_captions, train_images),
        "val": (val_features, val_captions, val_images),
    }

    features = {split: _Features(f"{split}_features", given[split][0]) for split in SPLITS}
    if features["train"].shape[1] != features["val"].shape[1]:
        raise ValueError(
            f"{_FUNCTION}: {features['val'].name}: expected rows of {features['train'].shape[1]} numbers as in "
            f"{features['train'].name}, got {features['val'].shape[1]}"
        )
    texts: dict[str, list[str]] = {}
    data: dict[str, Any] = {}
    for split in SPLITS:
        _, captions, names = given[split]
        rows, named = features[split].shape[0], None
        if names is not None:
            named = _read_names(f"{split}_images", names, features[split])
        texts[split], image_idxs = [], []
        for where, image, text in _read_captions(f"{split}_captions", captions):
            image_idxs.append(_row_of(where, image, rows, named, split))
            texts[split].append(text)
        if not texts[split]:
            raise args.fail(ValueError, f"{split}_captions", "hold captions", f"none in {_name(captions)}")
        data[f"{split}_image_idxs"] = np.array(image_idxs, np.int32)
        data[f"{split}_urls"] = list(named) if named is not None else _row_names(features[split])

    counts = Counter(word for text in texts["train"] for word in tokenize(text))
    frequent = [word for word, count in counts.items() if count >= min_count]
    if not frequent:
        raise args.fail(
            ValueError, "min_count", "leave some words: lower it", f"{min_count}, and no training word occurs as often"
        )
    idx_to_word = [*SPECIAL_WORDS, *sorted(frequent, key=lambda word: (-counts[word], word))]
    word_to_idx = {word: index for index, word in enumerate(idx_to_word)}
    data |= {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}
    summary = BuildSummary({}, {}, {})
    for split in SPLITS:
        ids = np.full((len(texts[split]), max_length + 2), NULL, np.int32)
        cut = 0
        for row, text in zip(ids, texts[split], strict=True):
            words = tokenize(text)
            cut += len(words) > max_length
            words = words[:max_length]
            row[: len(words) + 2] = [START, *(word_to_idx.get(word, UNK) for word in words), END]
        data[f"{split}_captions"] = ids
        summary.words[split] = int((ids > END).sum())
        summary.unknown[split] = int((ids == UNK).sum())
        summary.cut[split] = cut

    total = sum(features[split].shape[0] for split in SPLITS)
    check_room(_FUNCTION, folder, _needed(data) + 4 * total * features["train"].shape[1])
    with new_folder(folder) as fresh:
        write_but_features(_FUNCTION, fresh, data)
        done = 0
        for split in SPLITS:
            source = features[split]
            path = fresh / features_file(split, pca_features=False)
            write_features(_FUNCTION, path, source.shape, _counted(source.blocks(), progress, done, total))
            done += source.shape[0]
    return summary


def _name(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"


def _needed(data: dict[str, Any]) -> int:
    """Bytes of all files but the features, about."""
    ids = sum(4 * data[f"{split}_{part}"].size for split in SPLITS for part in ("captions", "image_idxs"))
    urls = sum(len(url.encode()) + 1 for split in SPLITS for url in data[f"{split}_urls"])
    return ids + urls + 3 * sum(len(word.encode()) + 8 for word in data["idx_to_word"])


def _counted(blocks: Iterator[np.ndarray], progress: Progress | None, done: int, total: int) -> Iterator[np.ndarray]:
    """The blocks, `progress` being told of each once it was taken."""
    for block in blocks:
        yield block
        done += len(block)
        if progress is not None:
            progress(done, total)


class _Features:
    """Features to be copied: an array, or a ``.npy`` file."""

    def __init__(self, argument: str, source: Any) -> None:
        self._array: np.ndarray | None = None
        if isinstance(source, (str, os.PathLike)):
            self._path = Path(source)
            self.name = str(self._path)
        else:
            self.name = argument
            self._array = np.asarray(source)
        array = self._open()
        if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
            raise ValueError(
                f"{_FUNCTION}: {self.name}: expected numbers of shape (num_images, D), "
                f"got {array.dtype} of shape {array.shape}"
            )
        self.shape: tuple[int, int] = array.shape

    def _open(self) -> np.ndarray:
        if self._array is not None:
            return self._array
        return open_npy(_FUNCTION, self._path)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows as float32, some at a time."""
        step = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        for begin in range(0, self.shape[0], step):
            # Opened for each block: pages of a file that stays mapped would stay in memory.
            with np.errstate(over="ignore"):  # what does not fit into float32 is found below
                block = np.array(self._open()[begin : begin + step], dtype=np.float32)
            finite = np.isfinite(block)
            if not finite.all():
                row, column = np.argwhere(~finite)[0].tolist()
                raise ValueError(
                    f"{_FUNCTION}: {self.name}: expected finite numbers in the range of float32, got "
                    f"{self._open()[begin + row, column]} at [{begin + row}, {column}]: compute the features of that "
                    "image again, or leave it out"
                )
            yield block


def _row_names(features: _Features) -> list[str]:
    """What stands for the URLs of images that have no names."""
    return [f"{Path(features.name).name}#{row}" for row in range(features.shape[0])]


def _read_names(argument: str, names: Any, features: _Features) -> dict[str, int]:
    """The row of each image's name."""
    where = argument
    if isinstance(names, (str, os.PathLike)):
        where = str(names)
        names = read_text(_FUNCTION, Path(names), "a text file with the name of one image a line").splitlines()
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if not isinstance(name, str) or name.splitlines() != [name]:  # nor would they make one line of the URLs each
            raise ValueError(f"{_FUNCTION}: {where}: expected a name in line {row + 1}, got {name!r}")
        if rows.setdefault(name, row) != row:
            raise ValueError(
                f"{_FUNCTION}: {where}: expected different names, got {name!r} in lines {rows[name] + 1}, {row + 1}"
            )
    if len(rows) != features.shape[0]:
        raise ValueError(
            f"{_FUNCTION}: {where}: expected one name for each of the {features.shape[0]} rows of {features.name}, "
            f"got {len(rows)}"
        )
    return rows


def _row_of(where: str, image: Any, rows: int, named: dict[str, int] | None, split: str) -> int:
    """The row of the features that an image of a caption stands for."""
    if isinstance(image, str) and named is not None:
        if image not in named:
            raise ValueError(f"{_FUNCTION}: {where}: expected a name in {split}_images, got {image!r}")
        return named[image]
    try:
        row = int(image)  # in CSV files rows are text, too
    except ValueError:
        raise ValueError(
            f"{_FUNCTION}: {where}: expected a row of {split}_features, got {image!r}: "
            f"where images have names, {split}_images has to list them"
        ) from None
    if not 0 <= row < rows:
        raise ValueError(f"{_FUNCTION}: {where}: expected a row in 0..{rows - 1} of {split}_features, got {row}")
    return row


def _read_captions(argument: str, captions: Any) -> Iterator[tuple[str, Any, str]]:
    """Where each caption stands, its image, and its text, in which there are words."""
    if isinstance(captions, (str, os.PathLike)):
        path = Path(captions)
        suffix = path.suffix.lower()
        if suffix != ".csv" and suffix not in _JSON_LINES:
            raise ValueError(
                f"{_FUNCTION}: {path}: expected a name that ends in {', '.join(_JSON_LINES)} (JSON Lines) or .csv"
            )
        text = read_text(_FUNCTION, path, "captions").removeprefix("\ufeff")
        found = _from_csv(path, text) if suffix == ".csv" else _from_json_lines(path, text)
    else:
        found = ((f"{argument}[{n}]", image, text) for n, (image, text) in enumerate(captions))
    for where, image, text in found:
        if isinstance(image, bool) or not (isinstance(image, (str, int, np.integer)) and isinstance(text, str)):
            raise ValueError(
                f"{_FUNCTION}: {where}: expected the row or name of an image and a caption, got {image!r} and {text!r}"
            )
        if not tokenize(text):
            raise ValueError(f"{_FUNCTION}: {where}: expected a caption with words in it, got {text!r}: leave it out")
        yield where, image, text


def _from_json_lines(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    # Not splitlines(): JSON allows strings to hold what that takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{_FUNCTION}: {where}: expected JSON, but {error}") from error
        if not isinstance(entry, dict) or not {"image", "caption"} <= entry.keys():
            raise ValueError(f'{_FUNCTION}: {where}: expected {{"image": …, "caption": …}}, got {line.strip()[:80]}')
        yield where, entry["image"], entry["caption"]


def _from_csv(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if not {"image", "caption"} <= set(header):
            raise ValueError(
                f"{_FUNCTION}: {path}, line 1: expected a header that names the columns image and caption, "
                f"got {','.join(header) or 'nothing'}"
            )
        image, caption = header.index("image"), header.index("caption")
        for row in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(
                    f"{_FUNCTION}: {where}: expected {len(header)} columns as in the header, got {len(row)}: "
                    "captions with commas stand in double quotes"
                )
            yield where, row[image], row[caption]
    except csv.Error as error:
        raise ValueError(f"{_FUNCTION}: {path}, line {reader.line_num}: expected CSV, but {error}") from error
