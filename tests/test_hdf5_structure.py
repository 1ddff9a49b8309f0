"""Files of HDF5's old format in which a chain of blocks goes round in a circle: HDF5 would follow it for ever."""

import io
import struct

import numpy as np
import pytest
from harness import complains

from fastrnn.captioning import hdf5_structure, load_checkpoint
from fastrnn.captioning.data import open_hdf5
from fastrnn.captioning.hdf5_structure import circular

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def written(fill, **how):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **how) as file:
        fill(file)
    return bytearray(buffer.getvalue())


def many(file):
    """Names for a tree of two levels; an object whose header goes on elsewhere; chunks for a tree of two levels."""
    for i in range(300):
        file.create_group(f"group{i}")
    for i in range(30):
        file["group0"].attrs[f"attribute{i}"] = np.arange(8)
    file.create_dataset("chunks", data=np.arange(2000), chunks=(4,))
    file["other name"] = file["group1"]
    del file["group7"]  # its name is free space now


def trees(content, kind):
    """Places of the B-tree's nodes above the lowest level."""
    places, at = [], content.find(b"TREE")
    while at >= 0:
        if content[at + 4] == kind and content[at + 5] > 0:
            places.append(at)
        at = content.find(b"TREE", at + 1)
    return places


def heap(content):
    """The first free block becomes its own successor."""
    at = content.find(b"HEAP")
    while at >= 0:
        size, free, place = struct.unpack_from("<QQQ", content, at + 8)
        if free < size:
            struct.pack_into("<Q", content, place + free, free)
            return
        at = content.find(b"HEAP", at + 1)
    raise AssertionError("no free block")


def child(kind):
    def change(content):
        at = trees(content, kind)[0]
        key = 8 if kind == 0 else 24
        struct.pack_into("<Q", content, at + 24 + key, at)

    return change


def sibling(content):
    at = trees(content, 0)[0]
    struct.pack_into("<Q", content, at + 16, at)


def twice(content):
    at = trees(content, 0)[0]
    content[at + 24 + 8 + 16 : at + 24 + 8 + 24] = content[at + 24 + 8 : at + 24 + 16]


def header(content):
    """A continuation leads to itself."""
    for at in range(0, len(content) - 24, 8):
        kind, size, *_ = struct.unpack_from("<HHBBBB", content, at)
        place, length = struct.unpack_from("<QQ", content, at + 8)
        if (kind, size) == (0x10, 16) and 0 < place < len(content) and place % 8 == 0 and 24 <= length < len(content):
            content[place : place + 24] = content[at : at + 24]
            return
    raise AssertionError("no continuation")


CHANGES = {
    "heap": (heap, "the free blocks of a heap of names go round in a circle"),
    "child": (child(0), "a node of a B-tree has two parents"),
    "chunks": (child(1), "a node of a B-tree has two parents"),
    "sibling": (sibling, "the nodes of a B-tree go round in a circle"),
    "twice": (twice, "a node of a B-tree has two parents"),
    "header": (header, "an object header goes on where it was before"),
}


@pytest.mark.parametrize("how", [{}, {"libver": "latest"}, {"userblock_size": 512}], ids=str)
def test_a_file_that_is_right(tmp_path, how):
    path = tmp_path / "file.h5"
    path.write_bytes(written(many, **how))
    assert circular(path) == ""
    with open_hdf5("f", path) as file:
        assert len(file) == 301


@pytest.mark.parametrize("name", CHANGES)
def test_a_circle_is_found(tmp_path, name):
    change, said = CHANGES[name]
    content = written(many)
    change(content)
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    found = circular(path)
    assert found == said
    with complains(ValueError, "f", str(path), "expected an HDF5 file, but it is damaged", found):
        open_hdf5("f", path)
    with complains(ValueError, "load_checkpoint", str(path), "expected a checkpoint, but the file is damaged", found):
        load_checkpoint(path)


def test_a_circle_behind_a_user_block(tmp_path):
    """Addresses are counted from the end of the block that is the user's own."""
    content = written(many, userblock_size=512)
    at = content.find(b"HEAP")
    free, place = struct.unpack_from("<QQ", content, at + 16)
    struct.pack_into("<Q", content, 512 + place + free, free)
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    assert circular(path) == CHANGES["heap"][1]


def test_what_many_share_is_looked_at_once(tmp_path, monkeypatch):
    """A leaf that names one table of a group a thousand times, in a table that names this group as often."""
    content = bytearray(written(lambda file: file.create_group("group")))
    at = content.find(b"TREE")
    while content[at + 6] != 1:  # the root's, which has an entry
        at = content.find(b"TREE", at + 1)
    (table,) = struct.unpack_from("<Q", content, at + 32)
    (count,) = struct.unpack_from("<H", content, table + 6)
    entry = bytes(content[table + 8 : table + 48])
    end = len(content)
    many = 4000
    tree = bytearray(content[at : at + 24])
    struct.pack_into("<H", tree, 6, many)
    shared = b"SNOD" + struct.pack("<BBH", 1, 0, many) + many * entry
    content += tree + bytes(8) + many * struct.pack("<QQ", end + 32 + 16 * many, 0) + shared
    old, new = struct.pack("<Q", at), struct.pack("<Q", end)
    content = content.replace(old, new)
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    assert count == 1
    entries, read = [], hdf5_structure._Walk.entry
    monkeypatch.setattr(hdf5_structure._Walk, "entry", lambda walk, at: (entries.append(at), read(walk, at)))
    assert circular(path) == ""
    assert len(entries) == many + 1  # and that of the root


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", bytes(4096)])
def test_what_is_no_such_file_is_left_to_the_library(tmp_path, content):
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    assert circular(path) == ""


def test_any_part_of_a_file_can_be_missing_or_wrong(tmp_path):
    """Whatever is in the file, the walk ends, and with nothing but an answer."""
    content, rng = written(many), np.random.default_rng(0)
    path = tmp_path / "file.h5"
    for i in range(300):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), 20):
            changed[at] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(content))] if i % 3 == 0 else changed)
        assert isinstance(circular(path), str)
