"""Captioning data sets: read from disk in minibatches, built from a user's own files, and made up."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from full_disk import tiny_disk
from harness import complains
from typer.testing import CliRunner

from fastrnn.captioning import (
    CaptionData,
    build_coco_data,
    decode_captions,
    load_coco_data,
    save_coco_data,
    synthetic_coco_data,
    tokenize,
)
from fastrnn.captioning import data as files
from fastrnn.cli.main import app

h5py = pytest.importorskip("h5py")

CAPTIONS = "coco2014_captions.h5"
VOCABULARY = "coco2014_vocab.json"
WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "cat", "dog"]
MIB = 2**20
SMALL, LARGE = MIB, 256 * MIB  # of the features of `coco` a window takes a tenth, or all

runner = CliRunner()


def made_up(train=(4000, 1500), val=(333, 200), dim=900, seed=0):
    """Captions and images of both splits: 5.4 MB of training features."""
    rng = np.random.default_rng(seed)
    data = {"idx_to_word": WORDS, "word_to_idx": {word: index for index, word in enumerate(WORDS)}}
    for split, (count, images) in (("train", train), ("val", val)):
        captions = rng.integers(3, len(WORDS), size=(count, 8)).astype(np.int32)
        captions[:, 0], captions[:, -2], captions[:, -1] = 1, 2, 0
        data[f"{split}_captions"] = captions
        data[f"{split}_image_idxs"] = rng.integers(0, images, size=count).astype(np.int32)
        data[f"{split}_features"] = rng.standard_normal((images, dim), dtype=np.float32)
        data[f"{split}_urls"] = np.array([f"http://{split}/{row}.jpg" for row in range(images)])
    return data


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder, which no test changes, and what is in it."""
    folder, data = tmp_path_factory.mktemp("coco"), made_up()
    save_coco_data(folder, data)
    return folder, data


@pytest.fixture
def few(tmp_path):
    """A small folder, to be spoiled, and what is in it."""
    data = made_up((12, 8), (5, 4), 7)
    save_coco_data(tmp_path / "coco", data)
    return tmp_path / "coco", data


class Reads:
    """A dataset that counts how often each of its rows was read."""

    def __init__(self, dataset, wait=0.0):
        self.dataset, self.counts, self.wait = dataset, np.zeros(len(dataset), int), wait
        self.shape, self.chunks = dataset.shape, dataset.chunks

    def read_direct(self, values, rows):
        self.dataset.read_direct(values, rows)
        self.counts[rows] += 1
        time.sleep(self.wait)


def watched(data, split="train", wait=0.0):
    data._splits[split].features = Reads(data._splits[split].features, wait)
    return data._splits[split].features


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastrnn-data")]


def same(batch, other):
    for value, expected in zip(batch, other, strict=True):
        np.testing.assert_array_equal(value, expected)


# ---- what is in a data set -------------------------------------------------------------------------------------------


def test_what_is_in_the_files(coco):
    folder, data = coco
    with CaptionData(str(folder)) as opened:
        assert opened.base_dir == folder and opened.memory == 256 * MIB
        assert opened.idx_to_word == WORDS and opened.word_to_idx == data["word_to_idx"]
        assert opened.feature_dim == 900 and opened.caption_length == 8 and opened.waited == 0
        for split in ("train", "val"):
            for name in ("captions", "image_idxs", "urls"):
                value = getattr(opened, name)(split)
                np.testing.assert_array_equal(value, data[f"{split}_{name}"])
            assert opened.captions(split).dtype == np.int32
            assert opened.num_images(split) == len(data[f"{split}_features"])
        with pytest.raises(ValueError, match="read-only"):
            opened.captions("train")[0] = 0


def test_which_features(few):
    folder, data = few
    wide = data | {f"{split}_features": np.tile(data[f"{split}_features"], 2) for split in ("train", "val")}
    save_coco_data(folder, wide, pca_features=False)
    for chosen, width in ((None, 7), (True, 7), (False, 14)):
        with CaptionData(folder, chosen) as opened:
            assert opened.feature_dim == width
    (folder / "train2014_vgg16_fc7_pca.h5").unlink()  # the others are complete
    with CaptionData(folder) as opened:
        assert opened.feature_dim == 14
    (folder / "val2014_vgg16_fc7.h5").unlink()
    with complains(FileNotFoundError, "CaptionData", "train2014_vgg16_fc7_pca.h5"):
        CaptionData(folder)
    for path in folder.glob("*fc7*"):
        path.unlink()
    with complains(FileNotFoundError, "CaptionData", str(folder), "train2014_vgg16_fc7_pca.h5", "without '_pca'"):
        CaptionData(folder)


def test_max_train_draws_with_replacement(coco):
    folder, data = coco
    np.random.seed(1)
    kept = np.random.default_rng(3).integers(4000, size=50)
    with CaptionData(folder, max_train=50, seed=3) as opened:
        np.testing.assert_array_equal(opened.captions("train"), data["train_captions"][kept])
        np.testing.assert_array_equal(opened.image_idxs("train"), data["train_image_idxs"][kept])
        assert len(opened.captions("val")) == 333 and opened.num_images("train") == 1500
        reads = watched(opened)
        assert len(list(opened.batches("train", 10, seed=0, epoch=0))) == 5
        assert set(np.flatnonzero(reads.counts)) >= set(data["train_image_idxs"][kept].tolist())
        assert (reads.counts > 0).sum() < 500  # not all images were read for a few
    assert np.random.rand() == np.random.RandomState(1).rand()  # the global generator was left alone


LAYOUTS = [
    {"dtype": "<f4"},
    {"dtype": ">f4"},
    {"dtype": "<f2"},
    {"dtype": ">f8"},
    {"dtype": "<f4", "chunks": (7, 900)},
    {"dtype": "<f8", "chunks": (64, 100), "compression": "gzip", "shuffle": True},
    {"dtype": "<f4", "chunks": (1500, 3), "compression": "lzf"},  # a chunk of a column
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
@pytest.mark.parametrize("memory", [SMALL, LARGE])
def test_features_of_any_layout(coco, tmp_path, layout, memory):
    folder, data = coco
    shutil.copytree(folder, tmp_path / "coco")
    values = data["train_features"].astype(layout["dtype"])
    with h5py.File(tmp_path / "coco" / "train2014_vgg16_fc7_pca.h5", "w") as file:
        file.create_dataset("features", data=values, **layout)
    values = values.astype(np.float32)
    rows = np.random.default_rng(0).integers(0, 1500, size=700)
    with CaptionData(tmp_path / "coco", memory=memory) as opened:
        got = opened.features("train", rows)
        np.testing.assert_array_equal(got, values[rows])
        assert got.dtype == np.float32 and got.dtype.isnative and got.flags.c_contiguous and got.flags.writeable
        for batch in opened.batches("train", 500, seed=0, epoch=0):
            np.testing.assert_array_equal(batch.features, values[batch.rows])


def test_rows_of_features(coco):
    folder, data = coco
    with CaptionData(folder) as opened:
        reads = watched(opened, "val")
        for rows in ([3], [5, 5, 5, 2], [], np.arange(200), np.arange(199, -1, -1), [199, 0]):
            reads.counts[:] = 0
            got = opened.features("val", rows)
            np.testing.assert_array_equal(got, data["val_features"][np.array(rows, int)])
            assert reads.counts.max() <= 1
        assert reads.counts.sum() == 2  # the last two are far apart: what lies between is left alone
        with complains(IndexError, "CaptionData.features", "rows", "[0, 200)", "200 at position 1"):
            opened.features("val", [0, 200])
        with complains(ValueError, "CaptionData.features", "rows", "(n,)"):
            opened.features("val", [[0]])
        with complains(ValueError, "CaptionData.features", "split", "'test'"):
            opened.features("test", [0])


def test_description(coco):
    folder, data = coco
    with CaptionData(folder) as opened:
        told = opened.describe(2)
    assert json.loads(json.dumps(told)) == told
    assert told["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert told["vocabulary"] == 6 and told["feature_dim"] == 900 and told["caption_length"] == 8
    train = told["train"]
    assert train["captions"] == 4000 and train["images"] == 1500
    assert train["images_with_captions"] == len(np.unique(data["train_image_idxs"]))
    assert train["words"] == {"min": 5, "median": 5.0, "max": 5} and train["layout"] == "contiguous"
    assert train["unknown"] == pytest.approx((data["train_captions"] == 3).sum() / 20_000)
    texts = decode_captions(data["train_captions"][[0, 2000]], WORDS)
    urls = data["train_urls"][data["train_image_idxs"][[0, 2000]]]
    assert train["examples"] == [[url, text] for url, text in zip(urls, texts, strict=True)]


# ---- minibatches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1, SMALL, LARGE])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_epoch(coco, split, memory):
    """Each caption at most once, with its image; the remainder is another one each epoch."""
    folder, data = coco
    captions = data[f"{split}_captions"].copy()
    captions[:, 1:6] = np.arange(len(captions))[:, None] // 6 ** np.arange(5) % 6  # tells the captions apart
    left_out = []
    with CaptionData(folder, memory=memory) as opened:
        opened._splits[split].captions = captions
        number = opened.batches_per_epoch(split, 60)
        assert number == len(captions) // 60
        for epoch in range(2):
            batches = list(opened.batches(split, 60, seed=0, epoch=epoch))
            assert len(batches) == number
            seen = []
            for batch in batches:
                assert batch.captions.shape == (60, 8) and batch.captions.dtype == np.int32
                assert batch.count == 60 and batch.offset == 0
                np.testing.assert_array_equal(batch.features, data[f"{split}_features"][batch.rows])
                ids = (batch.captions[:, 1:6] * 6 ** np.arange(5)).sum(axis=1)
                np.testing.assert_array_equal(batch.rows, data[f"{split}_image_idxs"][ids])
                seen += ids.tolist()
            assert len(set(seen)) == len(seen) == number * 60
            left_out.append(set(range(len(captions))) - set(seen))
    assert left_out[0] != left_out[1] and all(left_out)


@pytest.mark.parametrize("memory", [SMALL, LARGE])
def test_the_order_depends_on_seed_and_epoch_alone(coco, memory):
    folder, _ = coco
    rows = {}
    for repeat in range(2):
        with CaptionData(folder, memory=memory) as opened:
            for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))[:: 1 - 2 * repeat]:
                np.random.seed(repeat)
                got = [batch.rows for batch in opened.batches("train", 50, seed=seed, epoch=epoch)]
                np.testing.assert_array_equal(rows.setdefault((seed, epoch), got), got)
    orders = [tuple(np.concatenate(got).tolist()) for got in rows.values()]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("memory", [SMALL, LARGE])
def test_minibatches_are_mixed(coco, memory):
    """Nearly all images of a minibatch differ, and come from all over a window, which is other images each epoch."""
    folder, _ = coco
    with CaptionData(folder, memory=memory) as opened:
        first, second = (list(opened.batches("train", 50, seed=0, epoch=epoch)) for epoch in (0, 1))
    assert np.mean([len(np.unique(batch.rows)) for batch in first]) > 47  # drawn from 145 images they would be 42
    fit = min(1500, memory // 2 // 3600)
    windows = [np.unique(np.concatenate([b.rows for b in epoch[: 80 * fit // 1500]])) for epoch in (first, second)]
    assert len(windows[0]) > 0.8 * fit
    for batch in first[:5]:
        assert np.ptp(np.searchsorted(windows[0], batch.rows)) > 0.9 * len(windows[0])
    # What comes to one place of the minibatches is near in the file, but does not come as it stands there.
    place = np.array([batch.rows[20] for batch in first])
    assert 0.3 < (np.diff(place) < 0).mean() < 0.7
    if memory == SMALL:
        assert len(np.intersect1d(*windows)) < 0.5 * fit
    else:
        pairs = [
            {pair for b in epoch for pair in zip(b.rows[:-1], b.rows[1:], strict=True)} for epoch in (first, second)
        ]
        assert len(pairs[0] & pairs[1]) < 0.05 * len(pairs[0])


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_shards_are_the_parts_of_the_whole(coco, memory, world):
    folder, _ = coco
    with CaptionData(folder, memory=memory) as opened:
        options = {"seed": 1, "epoch": 2, "start": 11}
        whole = list(opened.batches("train", 50, **options))
        shards = [list(opened.batches("train", 50, **options, shard=(rank, world))) for rank in range(world)]
        ordered = list(opened.ordered("val", 50))
        ordered_shards = [list(opened.ordered("val", 50, shard=(rank, world))) for rank in range(world)]
    for batches, parts in ((whole, shards), (ordered, ordered_shards)):
        assert {len(part) for part in parts} == {len(batches)}
        for batch, *shard in zip(batches, *parts, strict=True):
            for name in ("captions", "features", "rows"):
                joined = np.concatenate([getattr(part, name) for part in shard])
                np.testing.assert_array_equal(joined, getattr(batch, name))
            assert {part.count for part in shard} == {len(batch.rows)}
            edges = [rank * batch.count // world for rank in range(world)]
            assert [part.offset for part in shard] == edges


def test_a_shard_reads_its_images_only(tmp_path):
    """Of two, about half of the images each; in the order of a file whose rows are too long to read in passing."""
    data = made_up((900, 300), (5, 4), 20_000)
    save_coco_data(tmp_path, data)
    with CaptionData(tmp_path, memory=8 * MIB) as opened:
        read = []
        for rank in range(2):
            reads = watched(opened)
            for batch in opened.batches("train", 20, seed=0, epoch=0, shard=(rank, 2)):
                assert len(batch.rows) == 10
            read.append((reads.counts > 0).sum())
            opened._splits["train"].features = reads.dataset
    assert max(read) < 0.75 * 300


@pytest.mark.parametrize("memory", [SMALL, LARGE])
def test_an_epoch_from_its_middle(coco, memory):
    folder, _ = coco
    with CaptionData(folder, memory=memory) as opened:
        whole = list(opened.batches("train", 60, seed=0, epoch=3))
        for start in (0, 1, 6, 7, 40, 65, 66):
            rest = list(opened.batches("train", 60, seed=0, epoch=3, start=start))
            assert len(rest) == 66 - start
            for batch, expected in zip(rest, whole[start:], strict=True):
                same(batch, expected)


def test_a_batch_larger_than_the_split(coco):
    folder, data = coco
    with CaptionData(folder) as opened:
        assert opened.batches_per_epoch("val", 1000) == 1
        (batch,) = opened.batches("val", 1000, seed=0, epoch=0)
        assert batch.count == 333 and sorted(batch.rows) == sorted(data["val_image_idxs"])
        (batch,) = opened.ordered("val", 1000)
        np.testing.assert_array_equal(batch.captions, data["val_captions"])
        parts = [next(opened.batches("val", 2, seed=0, epoch=0, shard=(rank, 3))) for rank in range(3)]
        assert [len(part.rows) for part in parts] == [0, 1, 1] and parts[0].features.shape == (0, 900)


@pytest.mark.parametrize("memory", [1, SMALL, LARGE])
def test_in_order(coco, memory):
    folder, data = coco
    with CaptionData(folder, memory=memory) as opened:
        batches = list(opened.ordered("train", 64))
        assert [len(batch.rows) for batch in batches] == [64] * 62 + [32]
        np.testing.assert_array_equal(np.concatenate([b.captions for b in batches]), data["train_captions"])
        np.testing.assert_array_equal(np.concatenate([b.rows for b in batches]), data["train_image_idxs"])
        for batch in batches:
            np.testing.assert_array_equal(batch.features, data["train_features"][batch.rows])
        for limit, count in ((None, 1500), (100, 100), (9999, 1500)):
            images = list(opened.images("train", 64, limit))
            np.testing.assert_array_equal(np.concatenate([rows for rows, _ in images]), np.arange(count))
            np.testing.assert_array_equal(np.concatenate([f for _, f in images]), data["train_features"][:count])
            assert {len(rows) for rows, _ in images[:-1]} <= {64}


def test_features_that_fit_are_read_once(coco):
    folder, _ = coco
    with CaptionData(folder, memory=LARGE) as opened:
        reads = watched(opened)
        for epoch in range(2):
            list(opened.batches("train", 50, seed=0, epoch=epoch))
        list(opened.ordered("train", 50))
        assert reads.counts.max() == 1
    with CaptionData(folder, memory=SMALL) as opened:
        reads = watched(opened)
        list(opened.batches("train", 50, seed=0, epoch=0))
        assert reads.counts.mean() < 1.5  # most images are in one window only, or in the gaps of another


@pytest.mark.parametrize("ways", ["batches", "ordered", "images"])
def test_memory_is_bounded(tmp_path, ways):
    """Two windows are alive, not three, and nothing of the size of the file."""
    data = made_up((6000, 6000), (5, 4), 2000)  # 46 MiB
    data["train_image_idxs"] = np.arange(6000)
    save_coco_data(tmp_path, data)
    del data
    with CaptionData(tmp_path, memory=8 * MIB) as opened:
        calls = {
            "batches": lambda: opened.batches("train", 20, seed=0, epoch=0),
            "ordered": lambda: opened.ordered("train", 20),
            "images": lambda: opened.images("train", 20),
        }
        tracemalloc.start()
        try:
            for _ in calls[ways]():
                time.sleep(0.0005)  # what is read ahead is read in full
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 10.5 * MIB
    if ways == "batches":
        assert peak > 6 * MIB  # of what it may have it makes use


def test_memory_is_bounded_where_chunks_are_large(tmp_path):
    """Captions in random order, of images in chunks as long as the file: it is read by parts."""
    data = made_up((6000, 6000), (5, 4), 2000)
    data["train_image_idxs"] = np.random.default_rng(0).permutation(6000)
    save_coco_data(tmp_path, data)
    with h5py.File(tmp_path / "train2014_vgg16_fc7_pca.h5", "w") as file:
        file.create_dataset("features", data=data["train_features"], chunks=(6000, 40))
    del data
    with CaptionData(tmp_path, memory=8 * MIB) as opened:
        tracemalloc.start()
        try:
            batches = opened.ordered("train", 20)
            next(batches)
            batches.close()
            assert tracemalloc.get_traced_memory()[1] < 10.5 * MIB
        finally:
            tracemalloc.stop()


def test_opening_does_not_read_the_features(tmp_path):
    data = made_up((6000, 6000), (5, 4), 2000)
    save_coco_data(tmp_path, data)
    tracemalloc.start()
    try:
        CaptionData(tmp_path).close()
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


# ---- the reading thread ----------------------------------------------------------------------------------------------


def test_one_thread_reads_and_ends(coco):
    folder, _ = coco
    with CaptionData(folder, memory=SMALL) as opened:

        def iterator():
            return opened.batches("train", 50, seed=0, epoch=0)

        unused = iterator()
        assert not threads()
        batches = iterator()
        next(batches)
        assert len(threads()) == 1
        batches.close()
        assert not threads()
        for _ in iterator():
            assert len(threads()) == 1
        assert not threads()
        for _ in iterator():
            break
        gc.collect()
        assert not threads()
        batches = iterator()
        next(batches)
        del batches
        gc.collect()
        assert not threads()
        with pytest.raises(ZeroDivisionError):
            for _ in iterator():
                1 / 0  # noqa: B018
        gc.collect()
        assert not threads()
        del unused


def test_collected_by_its_own_thread(coco):
    """Garbage is collected wherever something is allocated: in the reading thread, too, which cannot await itself."""
    folder, _ = coco
    with CaptionData(folder, memory=SMALL) as opened:
        reads = watched(opened)
        inner, collected = reads.read_direct, []

        def read_direct(values, rows):
            if len(collected) == 1:
                collected.append(gc.collect())
            inner(values, rows)

        reads.read_direct = read_direct
        batches = opened.batches("train", 50, seed=0, epoch=0)
        cycle = {"batches": batches}
        cycle["itself"] = cycle
        gc.disable()
        try:
            unraisable, sys.unraisablehook, hook = [], lambda what: unraisable.append(what), sys.unraisablehook
            next(batches)
            del batches, cycle
            collected.append(0)
            until = time.monotonic() + 5
            while threads() and time.monotonic() < until:
                time.sleep(0.01)
        finally:
            gc.enable()
            sys.unraisablehook = hook
        gc.collect()
        assert not threads() and not unraisable


def test_the_next_window_is_read_meanwhile(coco):
    folder, _ = coco
    with CaptionData(folder, memory=SMALL) as opened:
        reads = watched(opened)
        batches = opened.batches("train", 50, seed=0, epoch=0)
        next(batches)
        until = time.monotonic() + 5
        while (reads.counts > 0).sum() < 200 and time.monotonic() < until:  # 145 are in a window
            time.sleep(0.01)
        read = reads.counts.sum()
        time.sleep(0.05)
        assert 200 < reads.counts.sum() == read < 500  # and the one after that is not
        batches.close()


def test_the_time_waited_is_counted(coco):
    folder, _ = coco
    with CaptionData(folder, memory=SMALL) as opened:
        watched(opened, wait=0.02)
        batches = opened.batches("train", 50, seed=0, epoch=0)
        began = time.perf_counter()
        next(batches)
        took = time.perf_counter() - began
        assert 0.02 <= opened.waited <= took
        time.sleep(0.3)  # the consumer's own time is not counted
        before = opened.waited
        next(batches)
        assert opened.waited - before < 0.1
        batches.close()


def test_closing_ends_what_is_being_read(coco):
    folder, _ = coco
    opened = CaptionData(folder, memory=SMALL)
    batches = opened.batches("train", 50, seed=0, epoch=0)
    next(batches)
    opened.close()
    with complains(ValueError, "CaptionData.batches", "open data set", str(folder), "closed"):
        list(batches)
    with complains(ValueError, "CaptionData.features", "closed"):
        opened.features("train", [0])
    with complains(ValueError, "CaptionData.captions", "closed"):
        opened.captions("train")
    opened.close()
    assert not threads()


def test_closing_waits_for_a_read(coco):
    """HDF5 is not asked to close what it reads from at that moment."""
    folder, _ = coco
    opened = CaptionData(folder, memory=SMALL)
    reads, begun, still_open = watched(opened), threading.Event(), []
    inner = reads.read_direct

    def read_direct(values, rows):
        begun.set()
        time.sleep(0.1)
        still_open.append(bool(reads.dataset))
        inner(values, rows)

    reads.read_direct = read_direct
    reader = threading.Thread(target=opened.features, args=("train", [0]))
    reader.start()
    begun.wait(5)
    opened.close()
    reader.join()
    assert still_open == [True] and not reads.dataset


def test_leaving_while_features_are_read_that_would_be_kept(coco):
    folder, data = coco
    with CaptionData(folder, memory=LARGE) as opened:
        reads = watched(opened, wait=0.05)  # 1 MiB each, of 5
        reading = opened._read_used
        stops = []

        def read_used(function, part, stop):
            stops.append(stop)
            return reading(function, part, stop)

        opened._read_used = read_used
        threading.Timer(0.08, lambda: stops[0].set()).start()
        with pytest.raises(CancelledError):
            next(opened.batches("train", 50, seed=0, epoch=0))
        assert 0 < (reads.counts > 0).sum() < 1500
        for batch in opened.batches("train", 50, seed=0, epoch=0):  # nothing half-read was kept
            np.testing.assert_array_equal(batch.features, data["train_features"][batch.rows])


def test_leaving_early_does_not_wait_for_the_disk(coco):
    folder, _ = coco
    with CaptionData(folder, memory=2 * MIB) as opened:
        batches = opened.batches("train", 50, seed=0, epoch=0)
        next(batches)
        reads = watched(opened, wait=0.2)  # the window after: 1 MiB, some four reads
        next(batches)
        began = time.perf_counter()
        batches.close()
        assert time.perf_counter() - began < 0.35
        opened._splits["train"].features = reads.dataset


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c(coco):
    folder, _ = coco
    code = f"""
import itertools
from fastrnn.captioning import CaptionData
data = CaptionData({str(folder)!r}, memory=2**20)
for epoch in itertools.count():
    for batch in data.batches("train", 50, seed=0, epoch=epoch):
        if epoch == 1: print("running", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and stderr.rstrip().endswith("KeyboardInterrupt")


# ---- bad input -------------------------------------------------------------------------------------------------------


def _without(name):
    def spoil(path):
        with h5py.File(path, "a") as file:
            file["another"] = file[name][()]
            del file[name]

    return spoil


def _instead(name, value):
    def spoil(path):
        with h5py.File(path, "a") as file:
            del file[name]
            if value is not None:
                file[name] = value

    return spoil


def _at(name, position, value):
    def spoil(path):
        with h5py.File(path, "a") as file:
            file[name][position] = value

    return spoil


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-64])


TRAIN, VAL = "train2014_vgg16_fc7_pca.h5", "val2014_vgg16_fc7_pca.h5"
BAD_FILES = [
    (CAPTIONS, lambda path: path.unlink(), FileNotFoundError, ["HDF5", "nothing"]),
    (CAPTIONS, _truncate, ValueError, ["truncated", "bytes"]),
    (CAPTIONS, _without("train_captions"), ValueError, ["'train_captions'", "no such dataset", "another"]),
    (CAPTIONS, _without("val_image_idxs"), ValueError, ["'val_image_idxs'", "no such dataset"]),
    (CAPTIONS, _instead("train_captions", np.zeros((12, 8))), ValueError, ["integers", "float64"]),
    (CAPTIONS, _instead("train_captions", np.zeros(12, int)), ValueError, ["(num_captions, T)", "(12,)"]),
    (CAPTIONS, _instead("val_image_idxs", np.zeros(4, int)), ValueError, ["'val_image_idxs'", "4 for 5"]),
    (CAPTIONS, _at("train_captions", (3, 2), 6), ValueError, ["'train_captions'", "0..5", VOCABULARY, "6 at [3, 2]"]),
    (CAPTIONS, _at("val_captions", (0, 1), -1), ValueError, ["'val_captions'", "-1 at [0, 1]"]),
    (CAPTIONS, _at("train_image_idxs", 2, 8), ValueError, ["'train_image_idxs'", "0..7", TRAIN, "8 at [2]"]),
    (TRAIN, lambda path: path.unlink(), FileNotFoundError, ["HDF5", "nothing"]),
    (TRAIN, _truncate, ValueError, ["truncated", "bytes"]),
    (TRAIN, lambda path: path.write_bytes(b""), ValueError, ["truncated", "0 bytes"]),
    (TRAIN, _without("features"), ValueError, ["'features'", "no such dataset", "another"]),
    (TRAIN, _instead("features", np.zeros((8, 7), int)), ValueError, ["floating-point", "int64"]),
    (TRAIN, _instead("features", np.zeros(8)), ValueError, ["(num_images, D)", "(8,)"]),
    (TRAIN, _instead("features", np.zeros((8, 0))), ValueError, ["empty rows"]),
    (TRAIN, _instead("features", np.zeros((4, 7))), ValueError, ["'train_image_idxs'", "0..3"]),
    (VAL, _instead("features", np.zeros((4, 6))), ValueError, ["rows of 7 numbers", "got 6"]),
    (VOCABULARY, lambda path: path.unlink(), FileNotFoundError, ["JSON", "nothing"]),
    (VOCABULARY, lambda path: path.write_text('{"idx_to_word": ['), ValueError, ["JSON", "line 1"]),
    (VOCABULARY, lambda path: path.write_text('{"idx_to_word": ["a"]}'), ValueError, ["'word_to_idx'"]),
    ("val2014_urls.txt", lambda path: path.unlink(), FileNotFoundError, ["one URL a line"]),
    ("val2014_urls.txt", lambda path: path.write_text("http://1\n"), ValueError, ["'val_image_idxs'", "val2014_urls"]),
]


@pytest.mark.parametrize(("name", "spoil", "error", "said"), BAD_FILES)
def test_bad_files(few, name, spoil, error, said):
    folder, _ = few
    spoil(folder / name)
    where = folder / (CAPTIONS if any("image_idxs" in word for word in said) else name)
    with complains(error, "CaptionData", str(where), *said):
        CaptionData(folder)
    # The files that it had opened by then are closed: HDF5 would not open them to be written.
    for path in folder.glob("*.h5"):
        if h5py.is_hdf5(path) and name != path.name:
            h5py.File(path, "a").close()
    result = runner.invoke(app, ["data", "info", str(folder)])
    assert result.exit_code == 2 and result.stderr.startswith(f"fastrnn: CaptionData: {where}"), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("ways", ["features", "batches", "ordered", "images"])
def test_features_that_are_no_numbers(few, value, ways):
    folder, data = few
    features = data["train_features"].astype(np.float64)
    row = int(data["train_image_idxs"][5])
    features[row, 3] = value
    _instead("features", features)(folder / TRAIN)
    with CaptionData(folder) as opened:
        calls = {
            "features": lambda: opened.features("train", [row]),
            "batches": lambda: list(opened.batches("train", 2, seed=0, epoch=0)),
            "ordered": lambda: list(opened.ordered("train", 2)),
            "images": lambda: list(opened.images("train", 2)),
        }
        words = [str(folder / TRAIN), "'features'", f"[{row}, 3]", "again, or leave it out"]
        with complains(ValueError, f"CaptionData.{ways}", *words):
            calls[ways]()
        list(opened.batches("val", 2, seed=0, epoch=0))
    assert not threads()


def test_damage_inside_a_file(few):
    """A file of the right size whose compressed data is broken: it opens, and reading it fails."""
    folder, data = few
    with h5py.File(folder / TRAIN, "w") as file:
        file.create_dataset("features", data=data["train_features"], compression="gzip", chunks=(4, 7))
        offset = file["features"].id.get_chunk_info(0).byte_offset
    spoiled = bytearray((folder / TRAIN).read_bytes())
    spoiled[offset : offset + 20] = b"\0" * 20
    (folder / TRAIN).write_bytes(spoiled)
    with CaptionData(folder) as opened:
        with complains(ValueError, "CaptionData.batches", str(folder / TRAIN), "'features'", "damaged"):
            list(opened.batches("train", 2, seed=0, epoch=0))
    assert not threads()


def test_bad_arguments(few):
    folder, data = few
    with complains(ValueError, "CaptionData", "max_train", "0"):
        CaptionData(folder, max_train=0)
    with complains(ValueError, "CaptionData", "memory", "0"):
        CaptionData(folder, memory=0)
    with complains(ValueError, "CaptionData", "seed", "-1"):
        CaptionData(folder, seed=-1)
    with complains(TypeError, "CaptionData", "pca_features", "True or False"):
        CaptionData(folder, 12)
    with CaptionData(folder) as opened:
        right = {"split": "train", "batch_size": 2, "seed": 0, "epoch": 0}
        for wrong, error, said in (
            ({"split": "test"}, ValueError, ["split", "'test'"]),
            ({"batch_size": 0}, ValueError, ["batch_size", "0"]),
            ({"batch_size": 2.0}, TypeError, ["batch_size", "float"]),
            ({"seed": -1}, ValueError, ["seed", "-1"]),
            ({"epoch": "a"}, TypeError, ["epoch", "str"]),
            ({"start": 7}, ValueError, ["start", "at most 6", "7"]),
            ({"shard": (2, 2)}, ValueError, ["shard", "0..1", "2"]),
            ({"shard": (0, 0)}, ValueError, ["shard", "0"]),
            ({"shard": 1}, TypeError, ["shard", "(rank, world)"]),
        ):
            with complains(error, "CaptionData.batches", *said):
                opened.batches(**right | wrong)  # said at once, not at the first batch
        with complains(ValueError, "CaptionData.images", "limit", "0"):
            opened.images("train", 2, 0)
        with complains(ValueError, "CaptionData.ordered", "shard"):
            opened.ordered("train", 2, shard=(-1, 2))
    with h5py.File(folder / CAPTIONS, "a") as file:
        for name in ("train_captions", "train_image_idxs"):
            kept = file[name][:0]
            del file[name]
            file[name] = kept
    with CaptionData(folder) as opened:
        with complains(ValueError, "CaptionData.batches", "captions", str(folder)):
            opened.batches("train", 2, seed=0, epoch=0)
        assert list(opened.ordered("train", 2)) == [] and opened.describe()["train"]["captions"] == 0
    with complains(ValueError, "CaptionData", "max_train"):
        CaptionData(folder, max_train=2)


# ---- building --------------------------------------------------------------------------------------------------------

TEXTS = [
    (2, "A cat, on a MAT."),
    (0, "The dog's ball: red!"),
    (2, "a cat"),
    (1, "Två hundar – 2 dogs; naïve café"),
    (0, "the red ball the red ball the red ball"),
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat, on a MAT.", ["a", "cat", "on", "a", "mat"]),
        ("don't 'quote' the dogs' it\u2019s", ["don't", "quote", "the", "dogs", "it's"]),
        ("well-known 3.5 km_h", ["well", "known", "3", "5", "km", "h"]),
        ("Na\u00efve na\u0069\u0308ve", ["na\u00efve", "na\u00efve"]),  # composed or not, one word
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),  # marks belong to words
        ("co\u00adoperate", ["cooperate"]),  # a soft hyphen does not
        ("ΟΔΟΣ, Straße", ["οδος", "straße"]),
        ("... !?", []),
    ],
)
def test_words(text, words):
    assert tokenize(text) == [word.replace("οδος", "οδος".upper().lower()) for word in words]


@pytest.fixture
def sources(tmp_path):
    """A user's own files, as arguments of `build_coco_data`."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "train.npy", rng.standard_normal((3, 4)))
    np.save(folder / "val.npy", rng.standard_normal((2, 4)).astype(">f4"))
    lines = [json.dumps({"image": image, "caption": text, "more": 1}) for image, text in TEXTS]
    (folder / "train.jsonl").write_text("\n".join([*lines[:2], "", *lines[2:]]), encoding="utf-8")
    (folder / "val.jsonl").write_text('{"image": 1, "caption": "a zebra on the cat"}\n')
    return {
        "train_features": folder / "train.npy",
        "train_captions": folder / "train.jsonl",
        "val_features": folder / "val.npy",
        "val_captions": folder / "val.jsonl",
    }


def nothing_left(tmp_path):
    """Of a data set that was not written, next to the user's own files."""
    return sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_build(sources, tmp_path):
    told = []
    out = tmp_path / "made" / "coco"
    summary = build_coco_data(
        out, **sources, min_count=2, max_length=6, progress=lambda done, total: told.append((done, total))
    )
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["coco"] and told == [(3, 5), (5, 5)]
    data = load_coco_data(out, pca_features=False)
    # Four times ball, red and the, three times a, twice cat.
    assert data["idx_to_word"] == ["<NULL>", "<START>", "<END>", "<UNK>", "ball", "red", "the", "a", "cat"]
    assert decode_captions(data["train_captions"], data["idx_to_word"]) == [
        "<START> a cat <UNK> a <UNK> <END>",
        "<START> the <UNK> ball red <END>",
        "<START> a cat <END>",
        "<START> <UNK> <UNK> <UNK> <UNK> <UNK> <UNK> <END>",
        "<START> the red ball the red ball <END>",
    ]
    assert decode_captions(data["val_captions"], data["idx_to_word"]) == ["<START> a <UNK> <UNK> the cat <END>"]
    assert data["train_captions"].shape == (5, 8) and data["train_captions"].dtype == np.int32
    assert summary.cut == {"train": 1, "val": 0} and summary.unknown == {"train": 9, "val": 2}
    assert summary.words == {"train": 23, "val": 5}
    assert data["train_image_idxs"].tolist() == [2, 0, 2, 1, 0] and data["val_image_idxs"].tolist() == [1]
    for split in ("train", "val"):
        np.testing.assert_array_equal(data[f"{split}_features"], np.load(sources[f"{split}_features"]).astype("f4"))
        assert data[f"{split}_urls"][1] == f"{split}.npy#1"
    with CaptionData(out) as opened:
        assert opened.describe()["val"]["unknown"] == 0.4


def test_build_from_other_sources(sources, tmp_path):
    """CSV, names of images, arrays, and pairs make the same data set."""
    folder = tmp_path / "own"
    build_coco_data(tmp_path / "a", **sources, min_count=1)
    expected = load_coco_data(tmp_path / "a", pca_features=False)
    names = ["x 1.jpg", "7", "ü.jpg"]
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
    rows = [f'"more, {n}",{names[image]},"{text}"' for n, (image, text) in enumerate(TEXTS)]
    (folder / "train.csv").write_text("more,image,caption\r\n" + "\r\n".join(rows), encoding="utf-8")
    (folder / "val.csv").write_text("\ufeffimage,caption\n 1 ,a zebra on the cat\n", encoding="utf-8")
    arrays = {f"{split}_features": np.load(folder / f"{split}.npy").tolist() for split in ("train", "val")}
    pairs = {"train_captions": iter(TEXTS), "val_captions": [(np.int64(1), "a zebra on the cat")]}
    csv_files = {"train_captions": folder / "train.csv", "val_captions": str(folder / "val.csv")}
    for n, changed in enumerate(
        (csv_files | {"train_images": folder / "names.txt"}, csv_files | {"train_images": names}, pairs, arrays)
    ):
        out = tmp_path / f"b{n}"
        build_coco_data(out, **sources | changed, min_count=1)
        got = load_coco_data(out, pca_features=False)
        if "train_images" in changed:
            assert got["train_urls"].tolist() == names
        for name in set(expected) - {"train_urls", "val_urls"}:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_words_of_one_frequency_stand_by_alphabet(sources, tmp_path):
    changed = sources | {"train_captions": [(0, "b a c"), (0, "d c b"), (0, "a d e")]}
    build_coco_data(tmp_path / "coco", **changed, min_count=2)
    assert load_coco_data(tmp_path / "coco", pca_features=False)["idx_to_word"][4:] == ["a", "b", "c", "d"]


def test_building_takes_little_memory(sources, tmp_path):
    folder = tmp_path / "own"
    with open(folder / "train.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (24_000, 1000)})
        file.truncate(file.tell() + 96_000_000)  # zeros, of which the disk keeps none
    np.save(folder / "val.npy", np.zeros((2, 1000)))
    tracemalloc.start()
    try:
        build_coco_data(tmp_path / "coco", **sources, min_count=1)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    with CaptionData(tmp_path / "coco") as opened:
        assert opened.num_images("train") == 24_000


def _line(name, text):
    return lambda folder: {f"{name}_captions": _written(folder / f"{name}.jsonl", text)}


def _csv(text):
    return lambda folder: {"train_captions": _written(folder / "bad.csv", text)}


def _written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def _npy(name, value):
    def spoil(folder):
        np.save(folder / f"{name}.npy", value, allow_pickle=True)
        return {}

    return spoil


def _cut_npy(folder):
    (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:-8])
    return {}


def _npz(folder):
    np.savez(folder / "two.npz", a=np.zeros((3, 4)), b=np.zeros(3))
    return {"train_features": folder / "two.npz"}


BAD_SOURCES = [
    (lambda folder: {"train_features": folder / "no.npy"}, FileNotFoundError, ["no.npy", "nothing"]),
    (lambda folder: {"val_captions": folder / "no.jsonl"}, FileNotFoundError, ["no.jsonl", "nothing"]),
    (_cut_npy, ValueError, ["train.npy", "truncated"]),
    (_npz, ValueError, ["two.npz", "archive"]),
    (_npy("train", np.array([[None]])), ValueError, ["train.npy", "truncated or of another kind"]),
    (_npy("train", np.zeros(3)), ValueError, ["train.npy", "(num_images, D)", "(3,)"]),
    (_npy("train", np.array([["a"]])), ValueError, ["train.npy", "numbers", "<U1"]),
    (_npy("val", np.zeros((2, 5))), ValueError, ["val.npy", "rows of 4", "train.npy", "got 5"]),
    (_npy("val", np.array([[0, 0, 0, 0], [0, 0, np.nan, 0]])), ValueError, ["val.npy", "nan at [1, 2]", "again"]),
    (_npy("val", np.array([[0, 0, 0, 1e39], [0, 0, 0, 0]])), ValueError, ["val.npy", "float32", "1e+39 at [0, 3]"]),
    (_line("train", '{"image": 0, "caption": "a"}\n{"image": 0'), ValueError, ["train.jsonl, line 2", "JSON"]),
    (_line("train", '{"image": 0, "text": "a"}'), ValueError, ["train.jsonl, line 1", '"caption"', '"text"']),
    (_line("train", "[1]"), ValueError, ["train.jsonl, line 1", '"image"']),
    (_line("train", '{"image": 3, "caption": "a"}'), ValueError, ["train.jsonl, line 1", "0..2", "got 3"]),
    (_line("train", '{"image": -1, "caption": "a"}'), ValueError, ["line 1", "0..2", "got -1"]),
    (_line("train", '{"image": 1.5, "caption": "a"}'), ValueError, ["line 1", "1.5"]),
    (_line("train", '{"image": true, "caption": "a"}'), ValueError, ["line 1", "True"]),
    (_line("train", '{"image": "x.jpg", "caption": "a"}'), ValueError, ["line 1", "'x.jpg'", "train_images"]),
    (_line("train", '{"image": 1, "caption": null}'), ValueError, ["line 1", "caption", "None"]),
    (_line("train", '{"image": 1, "caption": "?!"}'), ValueError, ["line 1", "words", "'?!'", "leave it out"]),
    (_line("val", ""), ValueError, ["val_captions", "none", "val.jsonl"]),
    (_csv("image;caption\n1;a"), ValueError, ["bad.csv, line 1", "columns image and caption", "image;caption"]),
    (_csv(""), ValueError, ["bad.csv, line 1", "nothing"]),
    (_csv("image,caption\n1,a\n1,a, b"), ValueError, ["bad.csv, line 3", "2 columns", "got 3", "quotes"]),
    (_csv("image,caption\n1\n"), ValueError, ["bad.csv, line 2", "2 columns", "got 1"]),
    (_csv('image,caption\n1,"a\n'), ValueError, ["bad.csv, line 2", "CSV"]),
    (lambda f: {"train_captions": _written(f / "a.txt", "a")}, ValueError, ["a.txt", ".jsonl", ".csv"]),
    (lambda f: {"train_images": ["a", "b"]}, ValueError, ["train_images", "3 rows", "train.npy", "got 2"]),
    (lambda f: {"train_images": ["a", "b", "a"]}, ValueError, ["train_images", "'a'", "lines 1, 3"]),
    (lambda f: {"train_images": _written(f / "n.txt", "a\n\nb")}, ValueError, ["n.txt", "line 2", "''"]),
    (
        lambda f: _line("train", '{"image": "d", "caption": "a"}')(f) | {"train_images": ["a", "b", "c"]},
        ValueError,
        ["train.jsonl, line 1", "train_images", "'d'"],
    ),
    (lambda f: {"min_count": 50}, ValueError, ["min_count", "50", "lower it"]),
    (lambda f: {"min_count": 0}, ValueError, ["min_count", "0"]),
    (lambda f: {"max_length": 2.5}, TypeError, ["max_length", "float"]),
]


@pytest.mark.parametrize(("spoil", "error", "said"), BAD_SOURCES)
def test_bad_sources(sources, tmp_path, spoil, error, said):
    changed = {"min_count": 1} | spoil(tmp_path / "own")
    with complains(error, "build_coco_data", *said):
        build_coco_data(tmp_path / "coco", **sources | changed)
    assert nothing_left(tmp_path)


def test_nothing_is_overwritten(sources, tmp_path):
    out = tmp_path / "coco"
    out.mkdir()
    (out / "thesis.tex").write_text("all of it")
    for write in (lambda: build_coco_data(out, **sources), lambda: synthetic_coco_data(out)):
        with pytest.raises(FileExistsError, match=r"coco: expected a new or an empty folder, found .*: name another"):
            write()
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    build_coco_data(out, **sources, min_count=1)  # an empty one will do
    assert len(list(out.iterdir())) == 6


def test_room_on_the_disk_is_checked_before(sources, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=300))
    writes = {
        "build_coco_data": lambda: build_coco_data(tmp_path / "a" / "b", **sources, min_count=1),
        "synthetic_coco_data": lambda: synthetic_coco_data(tmp_path / "a" / "b"),
    }
    for function, write in writes.items():
        with complains(OSError, function, str(tmp_path / "a" / "b"), "room", "0.000 GB free", "another disk"):
            write()
        assert nothing_left(tmp_path)
    result = runner.invoke(app, ["data", "synthetic", str(tmp_path / "a")])
    assert result.exit_code == 2 and "expected room for 2.06" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("room", [2**14, 2**19, 2**20 + 2**19])
def test_a_full_disk(tmp_path, monkeypatch, room):
    """Full in the middle of the small files, of the first features, of the second: one message, nothing left."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)  # it fills up while it is written
    with tiny_disk(tmp_path / "disk", room) as disk:
        arguments = ["--train-images", 1000, "--val-images", 1000, "--dim", 256, "--captions", 1000]
        arguments += ["--val-captions", 1000]
        result = runner.invoke(app, ["data", "synthetic", str(disk / "coco"), *map(str, arguments)])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("fastrnn: synthetic_coco_data: ") and result.stderr.count("\n") == 1
        assert "cannot be written" in result.stderr and "room on the disk?" in result.stderr
        assert list(disk.iterdir()) == []


# ---- made-up data sets -----------------------------------------------------------------------------------------------

SYNTHETIC = {
    "train_images": 700,
    "val_images": 150,
    "dim": 3000,
    "captions": 2000,
    "val_captions": 600,
    "vocabulary": 50,
    "length": 9,
}


def test_synthetic(tmp_path):
    told = []
    synthetic_coco_data(tmp_path / "a", **SYNTHETIC, progress=lambda done, total: told.append((done, total)))
    synthetic_coco_data(tmp_path / "b", **SYNTHETIC)
    synthetic_coco_data(tmp_path / "c", **SYNTHETIC, seed=1)
    assert told[0][0] < 700 and told[-1] == (850, 850) and told == sorted(told)
    data, again, other = (load_coco_data(tmp_path / name, pca_features=False) for name in "abc")
    for split, (count, images) in (("train", (2000, 700)), ("val", (600, 150))):
        captions, features = data[f"{split}_captions"], data[f"{split}_features"]
        assert captions.shape == (count, 9) and features.shape == (images, 3000) and features.dtype == np.float32
        for name in ("captions", "image_idxs", "features", "urls"):
            np.testing.assert_array_equal(data[f"{split}_{name}"], again[f"{split}_{name}"])
        assert (other[f"{split}_features"] != features).any() and (other[f"{split}_captions"] != captions).any()
        per_image = np.bincount(data[f"{split}_image_idxs"], minlength=images)
        assert per_image.max() - per_image.min() <= 1
        assert (np.diff(data[f"{split}_image_idxs"]) == 0).mean() < 0.05  # in random order
        for text in decode_captions(captions, data["idx_to_word"]):
            assert re.fullmatch(r"<START>( word\d+){1,7} <END>", text)
        assert features.min() == 0 and 0.2 < (features == 0).mean() < 0.3
    assert len(data["idx_to_word"]) == 50 and np.unique(data["train_captions"]).tolist() == [0, 1, 2, *range(4, 50)]

    # There is something to learn: the caption of the training image that is nearest in features says nearly the same.
    train = data["train_features"] / np.linalg.norm(data["train_features"], axis=1, keepdims=True)
    nearest = (data["val_features"] @ train.T).argmax(axis=1)
    first = np.zeros(700, int)
    first[data["train_image_idxs"]] = np.arange(2000)
    guess = data["train_captions"][first[nearest[data["val_image_idxs"]]]]
    shuffled = np.random.default_rng(0).permutation(guess)
    truth = data["val_captions"][:, 1:5]
    assert (guess[:, 1:5] == truth).mean() > 0.5 > 0.2 > (shuffled[:, 1:5] == truth).mean()


def test_bad_sizes(tmp_path):
    for wrong, said in (({"vocabulary": 4}, "at least 5"), ({"length": 2}, "at least 3"), ({"dim": 0}, "at least 1")):
        with complains(ValueError, "synthetic_coco_data", *wrong, said):
            synthetic_coco_data(tmp_path / "a", **SYNTHETIC | wrong)
    assert list(tmp_path.iterdir()) == []


# ---- the command line ------------------------------------------------------------------------------------------------


def test_commands(sources, tmp_path):
    out = tmp_path / "coco"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sources.items()]
    result = runner.invoke(app, ["data", "build", str(out), *options, "--min-count", "1", "--max-length", "6"])
    assert result.exit_code == 0, result.output
    assert "6 files" in result.output and "1 captions of more than 6 words were cut" in result.output
    assert "<START> a cat on a mat <END>" in result.output and "train.npy#2" in result.output
    result = runner.invoke(app, ["data", "info", str(out), "--json", "--examples", "0", "--check"])
    told = json.loads(result.output)
    assert told["train"]["captions"] == 5 and told["train"]["examples"] == []
    features = np.load(sources["train_features"]).astype("f4")
    assert told["train"]["features"]["max"] == features.max() and told["train"]["features"]["min"] == features.min()
    assert told["train"]["features"]["mean"] == pytest.approx(features.mean(), rel=1e-6)
    result = runner.invoke(app, ["data", "info", str(out), "--check"])
    assert "4 float32" in result.output and "values of features" in result.output
    _at("features", (1, 2), np.nan)(out / "val2014_vgg16_fc7.h5")
    assert runner.invoke(app, ["data", "info", str(out)]).exit_code == 0
    for result in (
        runner.invoke(app, ["data", "info", str(out), "--check"]),
        runner.invoke(app, ["data", "info", str(out), "--pca"]),
        runner.invoke(app, ["data", "build", str(out), *options]),
        runner.invoke(app, ["data", "build", str(tmp_path / "new"), *options]),  # --min-count 5
        runner.invoke(app, ["data", "build", str(out)]),
        runner.invoke(app, ["data", "build", str(out), *options, "--min-count", "0"]),
        runner.invoke(app, ["data", "no"]),
    ):
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("fastrnn: ") and result.stderr.count("\n") == 1
    for help_ in (["data"], ["data", "--help"]):
        result = runner.invoke(app, help_)
        assert result.exit_code == 0 and all(name in result.output for name in ("build", "info", "synthetic"))


@pytest.mark.parametrize("command", ["build", "synthetic"])
def test_ctrl_c_leaves_nothing(sources, tmp_path, monkeypatch, command):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(h5py.Group, "create_dataset", interrupted)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sources.items()] if command == "build" else []
    options += ["--min-count", "1"] if command == "build" else ["--captions", "100", "--val-captions", "100"]
    result = runner.invoke(app, ["data", command, str(tmp_path / "coco"), *options])
    assert result.exit_code == 130 and "was not written" in result.stderr
    assert nothing_left(tmp_path)


def test_a_new_data_set_comes_into_being_at_once(tmp_path, monkeypatch):
    """Whoever looks sees all of it or nothing: it gets its name when it is complete, by one renaming."""
    seen = []

    def replace(source, target, rename=os.replace):
        seen.append((Path(target), Path(target).exists(), sorted(path.name for path in Path(source).iterdir())))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    sizes = {"train_images": 6, "val_images": 3, "captions": 9, "val_captions": 4}
    synthetic_coco_data(tmp_path / "made", **sizes, dim=5, vocabulary=12, length=6)
    ((target, existed, files),) = seen
    assert target == tmp_path / "made" and not existed
    assert files == sorted(path.name for path in target.iterdir()) and len(files) == 6
