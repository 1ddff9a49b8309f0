"""A small, real captioning data set: handwritten three-digit numbers, captioned in English words.

The images are the 1,797 handwritten digits (8×8 pixels) that scikit-learn carries. Three of them side by side show a
number from 0 to 999; its caption is what one says: "three hundred and seventy one", "forty two", "seven". The digit
images are divided into two pools first, and training numbers are composed from one pool, validation numbers from the
other, so that no handwritten digit of the validation set was ever seen in training.

The data set is written once, in the COCO file format, to the user's cache folder, and read from there by
`load_coco_data`, as the COCO files themselves would be.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.captioning.data import (
    CAPTIONS_FILE,
    SPLITS,
    VOCABULARY_FILE,
    features_file,
    import_h5py,
    load_coco_data,
    save_coco_data,
    urls_file,
)
from fastrnn.runs import cache_dir

__all__ = ["build_numbers", "distort", "load_numbers", "number_words", "numbers_dir"]

# Counted up whenever the files would come out different, so that older ones in a cache are replaced.
VERSION = 1

NUM_TRAIN = 20_000
NUM_VAL = 2_000
SIDE = 8

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
IDX_TO_WORD = ["<NULL>", "<START>", "<END>", "<UNK>", *_ONES, *_TENS, "hundred", "and"]
# <START>, "three hundred and seventy one", <END>
CAPTION_LENGTH = 7


def number_words(number: int) -> str:
    """The English words for a number from 0 to 999, as ``"three hundred and seventy one"``."""
    if not 0 <= number <= 999:
        raise ValueError(f"number_words: argument 'number' must lie between 0 and 999, got {number}")
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    words = [_ONES[hundreds], "hundred"] if hundreds else []
    if hundreds and rest:
        words.append("and")
    if tens >= 2:
        words.append(_TENS[tens - 2])
        if ones:
            words.append(_ONES[ones])
    elif rest or not hundreds:
        words.append(_ONES[rest])
    return " ".join(words)


def build_numbers(num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, seed: int = 0) -> dict[str, Any]:
    """Compose the data set from scikit-learn's handwritten digits.

    Parameters
    ----------
    num_train, num_val : int
        How many numbers each split gets. Every number from 0 to 999 comes equally often where that divides.
    seed : int
        Composes the numbers.

    Returns
    -------
    dict
        The entries that `load_coco_data` returns. Features are float32 (num_images, 192): the three images side by side
        as an 8×24 picture, row by row, 0 for paper and 1 for ink. URLs name the three source images:
        ``sklearn-digits://12-934-77``.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "build_numbers: the handwritten digits come with scikit-learn: pip install 'fastrnn[demo]'"
        ) from error
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)
    rng = np.random.default_rng(seed)

    # Every fifth image of each digit is kept for validation: digits by the same hand stand together, so that this takes
    # from all hands alike.
    pools: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        written = np.flatnonzero(digits.target == digit)
        held_out = np.arange(len(written)) % 5 == 4
        pools["val"].append(written[held_out])
        pools["train"].append(written[~held_out])

    word_to_idx = {word: index for index, word in enumerate(IDX_TO_WORD)}
    captions_of = np.zeros((1000, CAPTION_LENGTH), dtype=np.int32)
    for number in range(1000):
        words = ["<START>", *number_words(number).split(), "<END>"]
        captions_of[number, : len(words)] = [word_to_idx[word] for word in words]

    data: dict[str, Any] = {"idx_to_word": list(IDX_TO_WORD), "word_to_idx": word_to_idx}
    for split, count in (("train", num_train), ("val", num_val)):
        numbers = rng.permutation(np.arange(count) % 1000)
        sources = np.empty((count, 3), dtype=np.int64)
        for column, scale in enumerate((100, 10, 1)):
            shown = numbers // scale % 10
            for digit in range(10):
                rows = np.flatnonzero(shown == digit)
                sources[rows, column] = rng.choice(pools[split][digit], size=len(rows))
        # (count, 3, 8, 8) -> (count, 8, 3, 8): the digits side by side
        pictures = images[sources].transpose(0, 2, 1, 3)
        data[f"{split}_captions"] = captions_of[numbers]
        data[f"{split}_image_idxs"] = np.arange(count, dtype=np.int32)
        data[f"{split}_features"] = np.ascontiguousarray(pictures.reshape(count, 3 * SIDE * SIDE))
        data[f"{split}_urls"] = np.array(["sklearn-digits://" + "-".join(map(str, row)) for row in sources.tolist()])
    return data


def distort(
    features: np.ndarray, rng: np.random.Generator, shift: float = 0.35, turn: float = 0.12, stretch: float = 0.08
) -> np.ndarray:
    """Shift, turn, slant and stretch each digit a little at random, as another hand would have written it.

    Parameters
    ----------
    features : float (num_images, 192)
        Images as `build_numbers` gives them.
    rng : numpy.random.Generator
        Draws how much, for each digit by itself, evenly between minus and plus:
    shift : float
        pixels, up or down and to either side;
    turn : float
        radians, and as many pixels of slant a row;
    stretch : float
        logarithm of the scale.

    Returns
    -------
    float32 (num_images, 192)
        New images, interpolated linearly between the four pixels that surround each point.
    """
    count = len(features)
    turned, slant, scale, up, left = rng.uniform(-1, 1, (5, count, 3, 1, 1)).astype(np.float32)
    cos, sin = np.cos(turn * turned), np.sin(turn * turned)
    scale = np.exp(stretch * scale)
    # Where each pixel comes from, in an image with two empty rows and columns around it.
    middle, edge = 1 + SIDE / 2 + 0.5, 3 + SIDE
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) - (SIDE - 1) / 2
    rows = np.clip(scale * (cos * y + sin * x) + shift * up + middle, 0, edge - 0.01)
    columns = np.clip(scale * (cos * x - sin * y) + turn * slant * y + shift * left + middle, 0, edge - 0.01)

    width = SIDE + 4
    padded = np.zeros((count, 3, width, width), np.float32)
    padded[:, :, 2:-2, 2:-2] = features.reshape(count, SIDE, 3, SIDE).transpose(0, 2, 1, 3)
    pixels = padded.ravel()
    row, column = np.floor(rows), np.floor(columns)
    down, right = rows - row, columns - column
    first = np.arange(3 * count).reshape(count, 3, 1, 1) * width**2 + (row * width + column).astype(np.int64)
    upper = pixels[first] + right * (pixels[first + 1] - pixels[first])
    lower = pixels[first + width] + right * (pixels[first + width + 1] - pixels[first + width])
    digits = upper + down * (lower - upper)
    return digits.transpose(0, 2, 1, 3).reshape(count, 3 * SIDE * SIDE)


def numbers_dir(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the number data set in COCO file format, written first when it is missing, stale or damaged.

    Parameters
    ----------
    folder : path, optional
        The cache folder, in which a folder ``numbers`` is made. Default: the environment variable ``FASTRNN_CACHE``, or
        the user's cache folder.

    Returns
    -------
    Path
        What `load_coco_data` takes.
    """
    target = (Path(folder) if folder is not None else cache_dir()) / "numbers"
    if _is_current(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed as a whole: whoever looks sees all of it or nothing, and of several processes that write
    # at the same time one wins.
    with tempfile.TemporaryDirectory(prefix=".numbers-", dir=target.parent) as aside:
        fresh = Path(aside) / "fresh"
        save_coco_data(fresh, build_numbers(), attributes={"fastrnn_numbers_version": VERSION})
        for attempt in range(3):
            try:
                os.replace(fresh, target)
                break
            except OSError:  # there is a folder already: another process's, just finished, or the one that will not do
                if _is_current(target):
                    break
                if attempt == 2:
                    raise
                with suppress(FileNotFoundError):  # another process may have moved it
                    os.replace(target, Path(aside) / f"stale-{attempt}")
    return target


def _is_current(folder: Path) -> bool:
    h5py = import_h5py("numbers_dir")
    others = [VOCABULARY_FILE, *(urls_file(split) for split in SPLITS)]
    if not all((folder / name).is_file() for name in others):
        return False
    try:
        for name in (features_file(split, pca_features=True) for split in SPLITS):
            h5py.File(folder / name, "r").close()  # opening notices a truncated file
        with h5py.File(folder / CAPTIONS_FILE, "r") as file:
            return bool(file.attrs.get("fastrnn_numbers_version") == VERSION)
    except OSError:
        return False


def load_numbers(folder: str | os.PathLike[str] | None = None, max_train: int | None = None) -> dict[str, Any]:
    """`load_coco_data` of the handwritten numbers, which are written to the cache folder on first use.

    Parameters
    ----------
    folder : path, optional
        The cache folder; see `numbers_dir`.
    max_train : int, optional
        Keep this many training captions; see `load_coco_data`.
    """
    return load_coco_data(numbers_dir(folder), max_train=max_train)
