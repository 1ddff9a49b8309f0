"""Files of any size in the COCO file format, of made-up images and captions: to measure with, and to try things on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.captioning.build import END, NULL, SPECIAL_WORDS, START
from fastrnn.captioning.data import (
    SPLITS,
    check_new,
    check_room,
    features_file,
    new_folder,
    write_but_features,
    write_features,
)
from fastrnn.checks import Arguments

__all__ = ["synthetic_coco_data"]

TOPICS = 32
BLOCK_BYTES = 8 * 2**20


def synthetic_coco_data(
    out: str | os.PathLike[str],
    *,
    train_images: int = 82_783,
    val_images: int = 40_504,
    dim: int = 4096,
    captions: int = 400_135,
    val_captions: int = 195_954,
    vocabulary: int = 1004,
    length: int = 17,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
) -> None:
    """Write a data set of the size of COCO 2014, or of another, with made-up features and captions.

    Features are like those of a network's last hidden layer: not negative, half of them zero. Every image has one of 32
    topics, which adds a pattern to its features and prefers a word at each place of its captions, so that there is
    something to learn. Captions stand in random order, as in the published files.

    Parameters
    ----------
    out : path
        The folder, new or empty. It comes into being when all is written.
    train_images, val_images : int
        Rows of features.
    dim : int
        Numbers in a row.
    captions, val_captions : int
        Captions of the splits, spread evenly over the images.
    vocabulary : int
        Words, the four special ones included.
    length : int
        Word ids in a caption, ``<START>`` and ``<END>`` included.
    seed : int
        Of all that is random: the same arguments write the same values.
    progress : callable, optional
        Called as ``progress(done, total)``, in rows of features.

    Raises
    ------
    FileExistsError
        `out` holds something already.
    OSError
        There is no room on the disk, or the folder cannot be written.
    """
    function = "synthetic_coco_data"
    args = Arguments(function)
    images = {
        "train": args.whole("train_images", train_images),
        "val": args.whole("val_images", val_images),
    }
    number = {"train": args.whole("captions", captions), "val": args.whole("val_captions", val_captions)}
    dim = args.whole("dim", dim)
    vocabulary = args.whole("vocabulary", vocabulary, least=len(SPECIAL_WORDS) + 1)
    length = args.whole("length", length, least=3)
    seed = args.whole("seed", seed, least=0)
    folder = Path(out)
    check_new(function, folder)
    total = sum(images.values())
    check_room(function, folder, 4 * (total * dim + sum(number.values()) * (length + 1)) + 32 * (total + vocabulary))

    words = [*SPECIAL_WORDS, *(f"word{index}" for index in range(len(SPECIAL_WORDS), vocabulary))]
    data: dict[str, Any] = {"idx_to_word": words, "word_to_idx": {word: index for index, word in enumerate(words)}}
    rng = np.random.default_rng(seed)
    patterns = np.maximum(rng.standard_normal((TOPICS, dim), dtype=np.float32), 0)
    favourites = rng.integers(len(SPECIAL_WORDS), vocabulary, size=(TOPICS, length - 2))
    topics = {}
    for split in SPLITS:
        topics[split] = rng.integers(TOPICS, size=images[split])
        shown = rng.permutation(np.arange(number[split]) % images[split])
        data[f"{split}_image_idxs"] = shown
        data[f"{split}_captions"] = _captions(rng, favourites[topics[split][shown]], vocabulary)
        data[f"{split}_urls"] = [f"synthetic://{split}/{row}" for row in range(images[split])]

    def features(split: str, done: int) -> Iterator[np.ndarray]:
        step = max(1, BLOCK_BYTES // (4 * dim))
        for begin in range(0, images[split], step):
            chosen = topics[split][begin : begin + step]
            block = rng.standard_normal((len(chosen), dim), dtype=np.float32)
            np.maximum(block, 0, out=block)
            block += patterns[chosen]
            yield block
            if progress is not None:
                progress(done + begin + len(chosen), total)

    with new_folder(folder) as fresh:
        write_but_features(function, fresh, data)
        done = 0
        for split in SPLITS:
            path = fresh / features_file(split, pca_features=False)
            write_features(function, path, (images[split], dim), features(split, done))
            done += images[split]


def _captions(rng: np.random.Generator, favourites: np.ndarray, vocabulary: int) -> np.ndarray:
    """Word ids (n, T): three of four words are the topic's, the others as unevenly frequent as those of a language.

    Of 15 words at most, captions have 6 to 15, most of them 8 to 12, on average 10.3. With ``<END>`` and 1,004 words
    that makes 11.3 ln 1004 = 78 the loss of a model that knows nothing, as it is published for COCO's captions.
    """
    count, most = favourites.shape
    drawn = len(SPECIAL_WORDS) + rng.zipf(1.2, favourites.shape).clip(max=2**31) % (vocabulary - len(SPECIAL_WORDS))
    words = np.where(rng.random(favourites.shape) < 0.75, favourites, drawn).astype(np.int32)
    fewest = max(1, 2 * most // 5)
    lengths = fewest + rng.binomial(most - fewest, 0.48, size=count)
    ids = np.full((count, most + 2), NULL, np.int32)
    ids[:, 0] = START
    ids[:, 1:-1] = np.where(np.arange(most) < lengths[:, None], words, NULL)
    ids[np.arange(count), lengths + 1] = END
    return ids
