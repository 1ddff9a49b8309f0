"""Handwritten digits: those that scikit-learn carries, and files in the format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["digits", "idx_images", "read_idx"]

SIDE = 28
SPLITS = ("train", "test")

# What the third byte of an IDX file says its numbers are; they lie in big-endian order.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMS = 8
# The largest set of this kind that is in use (EMNIST by class, 814,255 images) takes 0.6 GiB.
MAX_BYTES = 1 << 30
# Deflate gives at most 1,032 bytes for one (zlib's technical notes).
_DEFLATE_RATIO = 1032
_CHUNK = 1 << 20


def digits(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's handwritten digits, enlarged to the size of MNIST's.

    The 1,797 images of 8 x 8 pixels get an empty frame of one pixel, so that no stroke ends at the edge, and are
    enlarged to 28 x 28 by bicubic interpolation.

    Parameters
    ----------
    split : {'train', 'test'}
        The first four fifths of each digit's images, or the others.

    Returns
    -------
    images : float32 Tensor (N, 1, 28, 28)
        From 0, paper, to 1, ink.
    labels : int64 Tensor (N,)

    Raises
    ------
    ValueError
        Another split.
    ImportError
        scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"digits: argument 'split' must be 'train' or 'test', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits: the digits come with scikit-learn: pip install 'fastrnn[vision]'") from error
    written = load_digits()
    of_split = []
    for digit in range(10):
        rows = np.flatnonzero(written.target == digit)
        first = math.ceil(0.8 * len(rows))
        of_split.append(rows[:first] if split == "train" else rows[first:])
    rows = np.sort(np.concatenate(of_split))
    small = torch.from_numpy((written.images[rows] / 16).astype(np.float32))[:, None]
    framed = torch.nn.functional.pad(small, (1, 1, 1, 1))
    images = torch.nn.functional.interpolate(framed, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return images.clamp_(0, 1), torch.from_numpy(written.target[rows].astype(np.int64))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, the format of MNIST: ``train-images-idx3-ubyte``, plain or compressed by gzip.

    Parameters
    ----------
    path : path
        The file. Whether it is compressed is seen from its first bytes, not from its name.

    Returns
    -------
    array
        Of the shape and the dtype that the header says, in native byte order.

    Raises
    ------
    ValueError
        There is no such file, it is no IDX file, truncated or damaged, has bytes left over, or holds more than 1 GiB.
        No more memory is taken than the numbers that are really there need.

    Notes
    -----
    LeCun, Cortes, Burges, "The MNIST database of handwritten digits": two zero bytes, the kind of number, the number of
    dimensions, each dimension as four bytes, then the numbers; all of it big-endian.
    """
    path = Path(path)
    if not path.is_file():
        found = "found a folder" if path.is_dir() else "found nothing"
        raise ValueError(f"read_idx: {path}: expected an IDX file, {found}")
    try:
        with open(path, "rb") as file:
            held = os.fstat(file.fileno()).st_size
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not compressed:
                return _read(path, file, held)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(path, unpacked, held * _DEFLATE_RATIO)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"read_idx: {path}: the compressed file is truncated or damaged ({error})") from error
    except OSError as error:
        raise ValueError(f"read_idx: cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, file: Any, held: int) -> np.ndarray:
    """What an IDX file holds; `held` is the most bytes that there can be."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= _MAX_DIMS:
        raise ValueError(
            f"read_idx: {path}: expected an IDX file, which begins with 00 00, a kind of number (08, 09, 0b to 0e) and "
            f"1 to {_MAX_DIMS} dimensions, got {magic.hex(' ') or 'an empty file'}"
        )
    dtype, ndim = np.dtype(_DTYPES[magic[2]]), magic[3]
    header = file.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise ValueError(f"read_idx: {path}: expected {ndim} dimensions, but the file ends within its header")
    shape = struct.unpack(f">{ndim}I", header)
    announced = math.prod(shape) * dtype.itemsize
    text = f"{dtype.newbyteorder('=').name} numbers of shape {shape}"
    # A size of 0 makes no bytes of the others, however large they are, but still an array that NumPy cannot have.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"read_idx: {path}: expected at most {MAX_BYTES:,} bytes, got a header that says {text}")
    if announced + 4 + len(header) > held:
        raise ValueError(
            f"read_idx: {path}: expected {announced:,} bytes after the header, which says {text}, got a file that "
            f"cannot hold more than {max(held - 4 - len(header), 0):,}"
        )
    # Piece by piece: a compressed file can announce far more than it turns out to hold.
    content = bytearray()
    while len(content) < announced:
        piece = file.read(min(_CHUNK, announced - len(content)))
        if not piece:
            raise ValueError(
                f"read_idx: {path}: expected {announced:,} bytes after the header, which says {text}, got "
                f"{len(content):,}: the file is truncated"
            )
        content += piece
    if file.read(1):  # reading on to the end also has gzip compare its checksum
        raise ValueError(
            f"read_idx: {path}: expected nothing after {announced:,} bytes, for the header says {text}, got more"
        )
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def idx_images(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read the images of an IDX file of MNIST.

    Parameters
    ----------
    path : path
        As for `read_idx`: ``train-images-idx3-ubyte.gz``, say, or the file of another set of the same size.

    Returns
    -------
    float32 Tensor (N, 1, 28, 28)
        From 0, paper, to 1, ink.

    Raises
    ------
    ValueError
        The file is none that `read_idx` reads, or does not hold uint8 numbers of shape (N, 28, 28), N at least 1.
    """
    values = read_idx(path)
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[1:] != (SIDE, SIDE) or not len(values):
        raise ValueError(
            f"idx_images: {path}: expected images, uint8 of shape (N, {SIDE}, {SIDE}), got {values.dtype} of shape "
            f"{values.shape}"
        )
    images = torch.from_numpy(values).to(torch.float32)
    return images.div_(255)[:, None]
