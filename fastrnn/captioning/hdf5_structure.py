"""A look at the skeleton of an HDF5 file, before the HDF5 library follows it.

In files of the library's old format, which is its default, nothing says where a chain of blocks ends but the chain
itself: where damage makes one circular, the library follows it for ever, and takes memory at each turn. So the chains
are walked here first: object headers and their continuations, B-trees of groups and of chunks, free lists of local
heaps (HDF5 File Format Specification, version 3.0, parts III.A.1, III.B, III.C, III.D, IV.A.1). Blocks of the newer
format have checksums and are not looked into.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

__all__ = ["circular"]

_NONE = 2**64 - 1
_SYMBOL_TABLE, _CONTINUATION, _LAYOUT = 0x11, 0x10, 0x08
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class _Damaged(Exception):
    """Which chain does not end."""


class _Walk:
    """Through the file that is in `data`, from its root group on."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.objects: list[int] = []
        self.seen: set[int] = set()
        self.walked: set[tuple[int, ...]] = set()  # what many may share
        self.base = 0

    def read(self, layout: str, at: int) -> tuple[int, ...]:
        """Numbers at an address; those of what lies beyond the end are for the library to complain of."""
        try:
            return struct.unpack_from(layout, self.data, self.base + at)
        except (struct.error, OverflowError):
            raise EOFError from None

    def signed(self, at: int, signature: bytes) -> bool:
        at += self.base
        return self.data[at : at + len(signature)] == signature

    def file(self) -> None:
        """All of it."""
        start = 0
        while self.data[start : start + 8] != _SIGNATURE:
            start = 512 if start == 0 else 2 * start
            if start >= len(self.data):
                return
        version, sizes = self.data[start + 8], bytes(self.data[start + 13 : start + 15])
        if version > 1 or sizes != b"\x08\x08":
            return
        self.base = start
        entry = 24 + (4 if version else 0) + 32
        self.entry(entry)
        while self.objects:
            address = self.objects.pop()
            if address not in self.seen:  # an object may have many names
                self.seen.add(address)
                try:
                    self.header(address)
                except EOFError:
                    pass

    def entry(self, at: int) -> None:
        """An entry of a symbol table: the object, and what is kept beside it of a group."""
        address, kind = self.read("<QI", at + 8)
        self.objects.append(address)
        if kind == 1:
            self.group(*self.read("<QQ", at + 24))

    def header(self, at: int) -> None:
        """An object's header: what it goes on with, and what the object is made of."""
        if self.signed(at, b"OHDR"):
            return
        version, _, _, _, size = self.read("<BBHII", at)
        if version != 1:
            return
        blocks, known = [(at + 16, size)], {at + 16}
        while blocks:
            place, size = blocks.pop()
            end = place + size
            while place + 8 <= end:
                kind, size = self.read("<HH", place)
                if kind == _CONTINUATION:
                    address, length = self.read("<QQ", place + 8)
                    if address in known:
                        raise _Damaged("an object header goes on where it was before")
                    known.add(address)
                    blocks.append((address, length))
                elif kind == _SYMBOL_TABLE:
                    self.group(*self.read("<QQ", place + 8))
                elif kind == _LAYOUT:
                    version, storage, rank, address = self.read("<BBBQ", place + 8)
                    if version == 3 and storage == 2:
                        self.tree(address, 1, 8 + 8 * rank)
                place += 8 + size

    def group(self, tree: int, heap: int) -> None:
        """A group: the heap of its names, and its tree of entries."""
        self.heap(heap)
        self.tree(tree, 0, 8)

    def heap(self, at: int) -> None:
        """A local heap's list of free blocks, which the library reads together with it."""
        if (at,) in self.walked or not self.signed(at, b"HEAP"):
            return
        self.walked.add((at,))
        size, free, address = self.read("<QQQ", at + 8)
        known = set()
        while free != 1 and free < size:  # 1 is the end
            if free in known:
                raise _Damaged("the free blocks of a heap of names go round in a circle")
            known.add(free)
            (free,) = self.read("<Q", address + free)

    def tree(self, at: int, kind: int, key: int) -> None:
        """A B-tree of a group (kind 0) or of a dataset's chunks (1), whose keys have so many bytes."""
        if (at, kind, key) in self.walked:
            return
        self.walked.add((at, kind, key))
        nodes, known = [at], {at}
        ended: set[int] = set()  # nodes from which the way along the level is known to end
        while nodes:
            at = nodes.pop()
            if at == _NONE or not self.signed(at, b"TREE"):
                continue
            try:
                of, here, entries, _, right = self.read("<BBHQQ", at + 4)
            except EOFError:
                continue
            if of != kind:
                continue
            siblings = {at}
            while right != _NONE and right not in ended and self.signed(right, b"TREE"):
                if right in siblings:
                    raise _Damaged("the nodes of a B-tree go round in a circle")
                siblings.add(right)
                (right,) = self.read("<Q", right + 16)
            ended |= siblings
            for i in range(entries if here or kind == 0 else 0):
                try:
                    (child,) = self.read("<Q", at + 24 + key + i * (key + 8))
                except EOFError:
                    break
                if here:
                    if child in known:
                        raise _Damaged("a node of a B-tree has two parents")
                    known.add(child)
                    nodes.append(child)
                elif kind == 0 and child not in known and self.signed(child, b"SNOD"):
                    known.add(child)
                    try:
                        (count,) = self.read("<H", child + 6)
                        for j in range(count):
                            self.entry(child + 8 + 40 * j)
                    except EOFError:
                        continue


def circular(path: Path) -> str:
    """What goes round in a circle in an HDF5 file; "" if nothing does, or if it is no such file."""
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):  # an empty file, or one that cannot be mapped
            return ""
        with data:
            try:
                _Walk(data).file()
            except _Damaged as damaged:
                return str(damaged)
            except EOFError:
                return ""
    return ""
