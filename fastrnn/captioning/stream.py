"""A captioning data set of any size: captions in memory, features read from disk as they are needed.

The features are much the largest part of a data set (82,783 rows of 4,096 numbers are 1.4 GB), and rows drawn at random
from all over a file are slow to read. So the order of an epoch is random in three steps that leave neighbours together:
blocks of consecutive rows are shuffled, the epoch is cut into windows whose features fit into memory, and within a
window every minibatch takes captions from all over it. While one window is consumed the next is read.

Nothing is mapped into memory: what HDF5 reads goes into arrays whose size is known.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from fastrnn.captioning.data import (
    CAPTIONS_FILE,
    SPLITS,
    VOCABULARY_FILE,
    check_ids,
    check_widths,
    damaged,
    features_file,
    find_dataset,
    open_hdf5,
    read_captions,
    read_urls,
    read_vocabulary,
    urls_file,
)
from fastrnn.captioning.decoding import decode_captions
from fastrnn.checks import Arguments

__all__ = ["Batch", "CaptionData"]

BLOCK_BYTES = 2**20  # rows that are read together: at a gigabyte a second, what one call costs is a tenth of the time
GAP_BYTES = 2**16  # unwanted rows between wanted ones are read with them as long as that is faster than another call


class Batch(NamedTuple):
    """Captions with the features of their images: a minibatch, or one shard of it."""

    captions: np.ndarray
    """int32 (n, T): word ids."""
    features: np.ndarray
    """float32 (n, D)."""
    rows: np.ndarray
    """int (n,): the image of each caption, as a row of the features."""
    count: int  # type: ignore[assignment]  # a tuple's method of this name is of no use here
    """Captions of the whole minibatch, over all shards."""
    offset: int
    """Where in the whole minibatch the first caption of this shard stands."""


class _Item(NamedTuple):
    """Something to be made from the features of some images."""

    rows: np.ndarray
    make: Callable[[np.ndarray], Any]


class _Split:
    """One part of a data set: captions, images, and the open dataset of features."""

    def __init__(
        self, path: Path, features: Any, captions: np.ndarray, image_idxs: np.ndarray, urls: list[str]
    ) -> None:
        self.path, self.features, self.urls = path, features, urls
        self.dtype = captions.dtype  # in the file
        captions, image_idxs = captions.astype(np.int32), image_idxs.astype(np.int64)
        self.captions, self.image_idxs = captions, image_idxs
        for array in (captions, image_idxs):
            array.flags.writeable = False
        self.used = np.unique(image_idxs)  # images that have captions
        self.kept: np.ndarray | None = None  # their features, where they fit into memory and were read
        self.lock = threading.Lock()

    def block_rows(self, memory: int) -> int:
        """How many consecutive rows are read together: about a megabyte, and whole chunks where there are chunks."""
        row_bytes = 4 * self.features.shape[1]
        rows = max(1, BLOCK_BYTES // row_bytes)
        if self.features.chunks is not None:
            chunk = self.features.chunks[0]
            rows = -(-rows // chunk) * chunk
        # A chunk may be as large as its file. Read by parts it is decompressed many times, but memory stays bounded.
        return max(1, min(rows, memory // 16 // row_bytes))


class CaptionData:
    """A data set in the COCO file format, opened: captions and ids in memory, features read from disk as needed.

    Everything is checked on opening but the features' values, which are checked as they are read. Use it as a context
    manager, or call `close`.

    Parameters
    ----------
    base_dir : path
        The folder with the seven files; see `load_coco_data`.
    pca_features : bool, optional
        Read the features of the ``_pca`` files, or of those without. Default: whichever are there,
        ``_pca`` if both are.
    max_train : int, optional
        Keep this many training captions, drawn with replacement by ``default_rng(seed).integers``. The images are all
        kept, but only those of the captions kept are read.
    seed : int
        Draws `max_train`.
    memory : int
        Bytes that the features of one split may take in memory, in what `batches` and the others do by themselves. If
        the images of a split need at most half of it they are read once and kept; otherwise two windows of at most half
        of it each are alive at a time: one consumed, one read ahead.

    Attributes
    ----------
    base_dir : Path
    idx_to_word : list of str
    word_to_idx : dict of str to int
    feature_dim : int
        Numbers in a row of features, D.
    caption_length : int
        Word ids in a caption, T; of the longer ones if the splits differ.
    memory : int
    waited : float
        Seconds that were spent inside of the iterators so far: waiting for the disk, and putting batches together.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or of another format, a dataset is missing or has the wrong rank or dtype, or an id points
        outside the vocabulary or the images. The message names file, dataset and what was expected.

    Examples
    --------
    ::

        with CaptionData("coco") as data:
            for epoch in range(10):
                for batch in data.batches("train", 100, seed=0, epoch=epoch):
                    loss, grads = model.loss(batch.features, batch.captions)
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str],
        pca_features: bool | None = None,
        *,
        max_train: int | None = None,
        seed: int = 0,
        memory: int = 256 * 2**20,
    ) -> None:
        function = type(self).__name__
        args = Arguments(function)
        if pca_features is not None:
            pca_features = args.flag("pca_features", pca_features)
        if max_train is not None:
            max_train = args.whole("max_train", max_train)
        seed = _natural(args, "seed", seed)
        self.memory = args.whole("memory", memory)
        self.base_dir = base = Path(base_dir)
        self.waited = 0.0
        self._files: list[Any] = []
        self._splits: dict[str, _Split] = {}
        self._closed = False
        self._gate = threading.Lock()

        self.idx_to_word, self.word_to_idx = read_vocabulary(function, base / VOCABULARY_FILE)
        if pca_features is None:
            pca_features = _which_features(function, base)
        try:
            for split in SPLITS:
                captions, image_idxs = read_captions(function, base, split)
                path = base / features_file(split, pca_features)
                file = open_hdf5(function, path)
                self._files.append(file)
                features = find_dataset(function, path, file, "features", "f", "num_images, D")
                if features.shape[1] == 0:
                    raise ValueError(
                        f"{function}: {path}, dataset 'features': expected rows of numbers, got empty rows"
                    )
                urls = read_urls(function, base, split)
                sizes = {"words": len(self.idx_to_word), "images": len(features), "urls": len(urls)}
                check_ids(function, base, split, captions, image_idxs, **sizes, features_name=path.name)
                if split == "train" and max_train is not None:
                    if not len(captions):
                        raise args.fail(ValueError, "max_train", "be left out: there are no training captions", "some")
                    drawn = np.random.default_rng(seed).integers(len(captions), size=max_train)
                    captions, image_idxs = captions[drawn], image_idxs[drawn]
                self._splits[split] = _Split(path, features, captions, image_idxs, urls)
            widths = [self._splits[split].features.shape[1] for split in SPLITS]
            check_widths(function, base, pca_features, (widths[0], widths[1]))
        except BaseException:
            self.close()
            raise
        self.feature_dim: int = widths[0]
        self.caption_length: int = max(self._splits[split].captions.shape[1] for split in SPLITS)

    # ---- what is in it -----------------------------------------------------------------------------------------------

    def captions(self, split: str) -> np.ndarray:
        """Word ids of all captions, int32 (num_captions, T), read-only."""
        return self._split("captions", split).captions

    def image_idxs(self, split: str) -> np.ndarray:
        """The image of each caption, int64 (num_captions,), read-only: a row of the features and a line of the URLs."""
        return self._split("image_idxs", split).image_idxs

    def urls(self, split: str) -> np.ndarray:
        """Where each image came from, str (num_images,)."""
        return np.asarray(self._split("urls", split).urls, dtype=np.str_)

    def num_images(self, split: str) -> int:
        """Rows of features."""
        return int(self._split("num_images", split).features.shape[0])

    def features(self, split: str, rows: Any) -> np.ndarray:
        """Features of some images, in any order, rows repeated or not; each is read once.

        Parameters
        ----------
        split : {'train', 'val'}
        rows : int (n,)

        Returns
        -------
        float32 (n, D)

        Raises
        ------
        IndexError
            There is no such row.
        ValueError
            A row holds a NaN or an infinity, or the file is damaged.
        """
        args = Arguments("CaptionData.features")
        part = self._split("features", split)
        wanted = args.ids("rows", rows, self.num_images(split), f"the rows of {part.path.name}")
        if wanted.ndim != 1:
            raise args.fail(ValueError, "rows", "have shape (n,)", f"shape {wanted.shape}")
        unique, place = np.unique(wanted, return_inverse=True)
        values = self._read("CaptionData.features", part, unique)
        return values if np.array_equal(unique, wanted) else values[place]

    # ---- minibatches -------------------------------------------------------------------------------------------------

    def batches_per_epoch(self, split: str, batch_size: int) -> int:
        """Whole minibatches in the split; 1 where it is smaller than one."""
        return self._size("batches_per_epoch", split, batch_size)[1]

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Minibatches of one epoch in random order, read ahead by one thread.

        Every caption comes at most once. What is left over when the captions are divided into minibatches is left out,
        another part of them each epoch.

        Parameters
        ----------
        split : {'train', 'val'}
        batch_size : int
            Captions in a minibatch, over all shards. All of the split if it has fewer.
        seed, epoch : int
            Together they give the order, which depends on nothing else but `batch_size`, `memory` and the files.
        start : int
            Begin with this minibatch of the epoch.
        shard : (int, int)
            ``(rank, world)``: of each minibatch only the captions from ``rank * batch_size // world`` on and before
            ``(rank + 1) * batch_size // world``; only their images are read.

        Returns
        -------
        iterator of Batch
            To stop before its end, close it or let go of it; its thread ends then.
        """
        function = "CaptionData.batches"
        args = Arguments(function)
        size, number = self._size("batches", split, batch_size)
        part = self._splits[split]
        seed, epoch = _natural(args, "seed", seed), _natural(args, "epoch", epoch)
        start = _natural(args, "start", start)
        if start > number:
            raise args.fail(ValueError, "start", f"be at most {number}, the minibatches of an epoch", str(start))
        low, high = _strata(args, shard, size)

        def windows() -> Iterator[list[_Item]]:
            sequence = self._shuffled(part, seed, epoch)[: number * size]
            edges = self._edges(part, sequence, size)
            for window, (first, last) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
                if last <= start:
                    continue
                # Captions that follow each other share images: each place of a minibatch has its own, so that two of
                # one image seldom meet in a minibatch. And every shard has images of its own.
                strata = sequence[first * size : last * size].reshape(size, last - first)
                # Counted from 1: a seed is padded with zeros, and [seed, epoch] is the blocks' already.
                rng = np.random.default_rng([seed, epoch, window + 1])
                table = rng.permuted(strata, axis=1)[low:high, max(start - first, 0) :]
                yield [self._batch(part, chosen, size, low) for chosen in np.ascontiguousarray(table.T)]

        return self._served(function, part, windows(), whole=self._fits(part))

    def ordered(self, split: str, batch_size: int, *, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Every caption once, in the order of the files; the last minibatch may be smaller.

        Parameters
        ----------
        split : {'train', 'val'}
        batch_size : int
        shard : (int, int)
            ``(rank, world)``; see `batches`.

        Returns
        -------
        iterator of Batch
        """
        function = "CaptionData.ordered"
        args = Arguments(function)
        part = self._split("ordered", split)
        size = args.whole("batch_size", batch_size)
        _strata(args, shard, size)

        def windows() -> Iterator[list[_Item]]:
            # Larger windows read chunks fewer times, and are of no use to what is read row by row.
            limit = self._images(part, self.memory // (8 if part.features.chunks is None else 2))
            total = len(part.captions)
            window: list[_Item] = []
            held = 0
            for begin in range(0, total, size):
                count = min(size, total - begin)
                low, high = _strata(args, shard, count)
                item = self._batch(part, np.arange(begin + low, begin + high), count, low)
                held += len(item.rows)
                if window and held > limit:
                    yield window
                    window, held = [], len(item.rows)
                window.append(item)
            if window:
                yield window

        return self._served(function, part, windows(), whole=self._fits(part))

    def images(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every image once, in the order of the files.

        Parameters
        ----------
        split : {'train', 'val'}
        batch_size : int
        limit : int, optional
            Only the first images.

        Returns
        -------
        iterator of (rows, features)
            int (n,) and float32 (n, D).
        """
        function = "CaptionData.images"
        args = Arguments(function)
        part = self._split("images", split)
        size = args.whole("batch_size", batch_size)
        total = self.num_images(split)
        if limit is not None:
            total = min(total, args.whole("limit", limit))

        def windows() -> Iterator[list[_Item]]:
            step = max(1, self._images(part, self.memory // 8) // size) * size
            for begin in range(0, total, step):
                end = min(begin + step, total)
                parts = [np.arange(at, min(at + size, end)) for at in range(begin, end, size)]
                yield [_Item(rows, partial(_with_rows, rows)) for rows in parts]

        return self._served(function, part, windows(), whole=False)

    def describe(self, examples: int = 3) -> dict[str, Any]:
        """What is in the files, as values that JSON can hold.

        Parameters
        ----------
        examples : int
            Captions of each split to decode, evenly spread.

        Returns
        -------
        dict
            ``base_dir``; ``files``, bytes of each by name; ``vocabulary``, number of words; ``feature_dim``;
            ``caption_length``; and for ``train`` and ``val``, as the data set was opened: ``captions``; ``images``;
            ``images_with_captions``; ``caption_dtype`` and ``feature_dtype``, those of the files; ``layout`` of the
            features in their file, ``contiguous`` or the shape of its chunks and their compression; ``words`` of a
            caption, without the special ones but ``<UNK>``, ``min``, ``median``, ``max``; ``unknown``, the share of
            ``<UNK>`` in all words; and ``examples``, pairs of URL and caption.
        """
        args = Arguments("CaptionData.describe")
        examples = args.whole("examples", examples, least=0)
        unknown = self.word_to_idx.get("<UNK>", -1)
        marks = [self.word_to_idx[mark] for mark in ("<NULL>", "<START>", "<END>") if mark in self.word_to_idx]
        names = [VOCABULARY_FILE, CAPTIONS_FILE]
        told: dict[str, Any] = {
            "base_dir": str(self.base_dir),
            "files": {},
            "vocabulary": len(self.idx_to_word),
            "feature_dim": self.feature_dim,
            "caption_length": self.caption_length,
        }
        for split in SPLITS:
            part = self._split("describe", split)
            names += [part.path.name, urls_file(split)]
            lengths = (~np.isin(part.captions, marks)).sum(axis=1)
            shown = np.linspace(0, len(lengths), min(examples, len(lengths)), endpoint=False).astype(np.int64)
            texts = decode_captions(part.captions[shown], self.idx_to_word) if len(shown) else []
            images = part.image_idxs[shown].tolist()
            chunks, packed = part.features.chunks, part.features.compression
            told[split] = {
                "captions": len(lengths),
                "images": self.num_images(split),
                "images_with_captions": len(part.used),
                "caption_dtype": str(part.dtype),
                "feature_dtype": str(part.features.dtype),
                "layout": "contiguous" if chunks is None else f"chunks of {chunks}" + (f", {packed}" if packed else ""),
                "words": {
                    "min": int(lengths.min()) if len(lengths) else 0,
                    "median": float(np.median(lengths)) if len(lengths) else 0.0,
                    "max": int(lengths.max()) if len(lengths) else 0,
                },
                "unknown": float((part.captions == unknown).sum() / max(1, lengths.sum())),
                "examples": [[part.urls[image], text] for image, text in zip(images, texts, strict=True)],
            }
        told["files"] = {name: (self.base_dir / name).stat().st_size for name in names}
        return told

    def close(self) -> None:
        """Close the files. Iterators that are still open end with an error."""
        with self._gate:
            self._closed = True
            for file in self._files:
                file.close()
        for part in self._splits.values():
            part.kept = None

    def __enter__(self) -> CaptionData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the order of an epoch ---------------------------------------------------------------------------------------

    def _shuffled(self, part: _Split, seed: int, epoch: int) -> np.ndarray:
        """All captions, those of a block of images together, the blocks shuffled."""
        rows = 1 if self._fits(part) else part.block_rows(self.memory)
        block = part.image_idxs // rows
        place = np.random.default_rng([seed, epoch]).permutation(-(-part.features.shape[0] // rows))
        return np.lexsort((part.image_idxs, place[block]))

    def _edges(self, part: _Split, sequence: np.ndarray, size: int) -> np.ndarray:
        """The minibatches at which windows begin, and the end: few windows, as memory allows, of nearly one length."""
        number = len(sequence) // size
        if self._fits(part):
            return np.array([0, number])
        images = part.image_idxs[sequence]
        seen = np.cumsum(np.diff(images, prepend=images[0]) != 0)  # how many images came before each caption
        limit = self._images(part, self.memory // 2)
        count = first = 0
        while first < number:
            # The last minibatch that ends before one image too many.
            end = int(np.searchsorted(seen, seen[first * size] + limit)) // size
            first = max(end, first + 1)
            count += 1
        return np.linspace(0, number, count + 1).astype(np.int64)

    def _images(self, part: _Split, memory: int) -> int:
        """How many images have features of this size, at least one."""
        return max(1, memory // (4 * part.features.shape[1]))

    def _fits(self, part: _Split) -> bool:
        return len(part.used) <= self._images(part, self.memory // 2)

    @staticmethod
    def _batch(part: _Split, chosen: np.ndarray, count: int, offset: int) -> _Item:
        rows = part.image_idxs[chosen]

        def make(features: np.ndarray) -> Batch:
            return Batch(part.captions[chosen], features, rows, count, offset)

        return _Item(rows, make)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _served(self, function: str, part: _Split, windows: Iterator[list[_Item]], whole: bool) -> Iterator[Any]:
        """What the items of all windows make, the features of the next window being read meanwhile."""
        stop = threading.Event()
        reading: set[int] = set()

        def load() -> tuple[list[_Item], np.ndarray, np.ndarray] | None:
            reading.add(threading.get_ident())
            items = next(windows, None)
            if items is None:
                return None
            if whole:
                return items, part.used, self._read_used(function, part, stop)
            rows = np.unique(np.concatenate([item.rows for item in items]))
            return items, rows, self._read(function, part, rows, stop)

        began = time.perf_counter()
        pool = ThreadPoolExecutor(1, thread_name_prefix="fastrnn-data")
        try:
            ahead = pool.submit(load)
            while (loaded := ahead.result()) is not None:
                ahead = pool.submit(load)
                items, rows, features = loaded
                for item in items:
                    made = item.make(features[np.searchsorted(rows, item.rows)])
                    self.waited += time.perf_counter() - began
                    yield made
                    began = time.perf_counter()
                    del made
                del loaded, items, item, rows, features  # two windows are alive, never three
        finally:
            stop.set()  # what is being read is not waited for
            # In the reading thread itself this runs if that was what collected the iterator as garbage.
            pool.shutdown(wait=threading.get_ident() not in reading)

    def _read_used(self, function: str, part: _Split, stop: threading.Event) -> np.ndarray:
        """Features of all images that have captions, read at the first call."""
        with part.lock:
            if part.kept is None:
                part.kept = self._read(function, part, part.used, stop)
            return part.kept

    def _read(self, function: str, part: _Split, rows: np.ndarray, stop: threading.Event | None = None) -> np.ndarray:
        """Features of `rows`, which ascend: float32, and finite."""
        width = part.features.shape[1]
        values = np.empty((len(rows), width), np.float32)
        block = part.block_rows(self.memory)
        breaks = np.diff(rows // block, prepend=-1) != 0
        if part.features.chunks is None:  # of a chunk everything is read anyway
            breaks |= np.diff(rows, prepend=-1) > 1 + GAP_BYTES // (4 * width)
        edges = [*np.flatnonzero(breaks).tolist(), len(rows)]
        scratch = np.empty((0, width), np.float32)
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if stop is not None and stop.is_set():
                raise CancelledError  # nobody will look at it
            begin, end = int(rows[first]), int(rows[last - 1]) + 1
            here = values[first:last]
            try:
                if end - begin == last - first:
                    self._read_slice(function, part, begin, end, here)
                else:
                    if len(scratch) < end - begin:
                        scratch = np.empty((end - begin, width), np.float32)
                    self._read_slice(function, part, begin, end, scratch[: end - begin])
                    np.take(scratch, rows[first:last] - begin, axis=0, out=here)
            except OSError as error:
                raise damaged(function, part.path, "features", error) from error
            finite = np.isfinite(here)
            if not finite.all():
                row, column = np.argwhere(~finite)[0].tolist()
                raise ValueError(
                    f"{function}: {part.path}, dataset 'features': expected finite numbers, got {here[row, column]} "
                    f"at [{rows[first + row]}, {column}]: compute the features of that image again, or leave it out"
                )
        return values

    def _read_slice(self, function: str, part: _Split, begin: int, end: int, values: np.ndarray) -> None:
        with self._gate:  # nobody closes the file meanwhile
            self._check_open(function)
            part.features.read_direct(values, np.s_[begin:end])

    def _check_open(self, function: str) -> None:
        if self._closed:
            raise ValueError(f"{function}: expected an open data set, but {self.base_dir} was closed")

    def _split(self, method: str, split: str) -> _Split:
        args = Arguments(f"CaptionData.{method}")
        part = self._splits[args.choice("split", split, SPLITS)]
        self._check_open(args.function)
        return part

    def _size(self, method: str, split: str, batch_size: Any) -> tuple[int, int]:
        """Captions of a minibatch, and minibatches of an epoch."""
        part = self._split(method, split)
        args = Arguments(f"CaptionData.{method}")
        size = args.whole("batch_size", batch_size)
        if not len(part.captions):
            raise args.fail(ValueError, "split", "have captions", f"{split!r}, in which {self.base_dir} has none")
        return min(size, len(part.captions)), max(1, len(part.captions) // size)


def _which_features(function: str, base: Path) -> bool:
    """Whether to read the ``_pca`` files: where both or neither kind is complete, yes."""
    there = {pca: [(base / features_file(split, pca)).is_file() for split in SPLITS] for pca in (True, False)}
    if not any(there[True] + there[False]):
        names = " and ".join(features_file(split, True) for split in SPLITS)
        raise FileNotFoundError(f"{function}: {base}: expected {names}, or both without '_pca', found neither")
    if all(there[True]) or all(there[False]):
        return all(there[True])
    return any(there[True])


def _with_rows(rows: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows, features


def _natural(args: Arguments, name: str, value: Any) -> int:
    """A whole number of at least 0."""
    return args.whole(name, value, least=0)


def _strata(args: Arguments, shard: tuple[int, int], size: int) -> tuple[int, int]:
    """The captions of a minibatch that a shard takes: the first, and the one after the last."""
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise args.fail(TypeError, "shard", "be a pair (rank, world)", repr(shard))
    world = args.whole("shard", shard[1])
    rank = _natural(args, "shard", shard[0])
    if rank >= world:
        raise args.fail(ValueError, "shard", f"have a rank in 0..{world - 1}", str(rank))
    return rank * size // world, (rank + 1) * size // world
