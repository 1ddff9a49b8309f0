"""Disks that are full, for tests of what writes files."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest


@contextmanager
def tiny_disk(folder, size):
    """A file system of its own of `size` bytes, mounted at a new folder; the test is skipped where that cannot be."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk, but):
    """Fill a disk up with a file, `but` so many bytes; give the file, to make room again."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    filler.write_bytes(b"x" * (room.f_bavail * room.f_bsize - but))
    return filler


class FullFile:
    """A file whose disk is full after some bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(bytes(data)[:100])
        raise OSError(28, "No space left on device")
