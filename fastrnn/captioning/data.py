"""The COCO captioning files: reading, checking, writing, and drawing minibatches from them.

A data set is seven files in one folder::

    coco2014_captions.h5           train_captions, train_image_idxs, val_captions, val_image_idxs
    train2014_vgg16_fc7_pca.h5     features (num_images, 512)      without "_pca": (num_images, 4096)
    val2014_vgg16_fc7_pca.h5       features
    coco2014_vocab.json            idx_to_word (list), word_to_idx (object)
    train2014_urls.txt             one line an image
    val2014_urls.txt

Everything that a kernel would later trip over (ids outside the vocabulary, images that do not exist) is checked here,
once, where the file can still be named.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.captioning.hdf5_structure import circular
from fastrnn.checks import Arguments
from fastrnn.runs import json_value

__all__ = ["load_coco_data", "sample_coco_minibatch", "save_coco_data"]

CAPTIONS_FILE = "coco2014_captions.h5"
VOCABULARY_FILE = "coco2014_vocab.json"
SPLITS = ("train", "val")

# What h5py raises on damage depends on where it is.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError)

# A dataset can announce any size, and hold nothing of it. So much is taken in any case; beyond it, what deflate makes
# at most of the bytes that are really there (zlib's technical notes).
_ANY_BYTES = 16 * 2**20
_DEFLATE_RATIO = 1032

_NPY_HEADER = 10_000  # bytes of the header of an .npy file that NumPy reads at most

_KINDS = {"iu": "integers", "f": "floating-point numbers"}


def features_file(split: str, pca_features: bool) -> str:
    """Name of the file with the image features of a split."""
    return f"{split}2014_vgg16_fc7_pca.h5" if pca_features else f"{split}2014_vgg16_fc7.h5"


def urls_file(split: str) -> str:
    """Name of the file with one line per image of a split."""
    return f"{split}2014_urls.txt"


def generator(args: Arguments, rng: np.random.Generator | None) -> Any:
    """What to draw from: `rng`, or NumPy's global generator, which answers to nearly the same names."""
    if rng is None:
        return np.random
    if not isinstance(rng, np.random.Generator):
        raise args.fail(TypeError, "rng", "be a numpy.random.Generator or None", type(rng).__name__)
    return rng


def import_h5py(function: str) -> Any:
    """Import h5py, which only the data files need, or say how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{function}: HDF5 files need h5py: pip install 'fastrnn[captioning]'") from error
    return h5py


def open_hdf5(function: str, path: Path) -> Any:
    """An HDF5 file, opened to be read, or the error of `function` that says what is there instead."""
    h5py = import_h5py(function)
    if not path.is_file():
        raise FileNotFoundError(f"{function}: {path}: expected an HDF5 file here, found {_what_is(path)}")
    if wrong := circular(path):  # the library would go round for ever, and take memory at each turn
        raise ValueError(f"{function}: {path}: expected an HDF5 file, but it is damaged: {wrong}")
    try:
        return h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise ValueError(
            f"{function}: {path}: expected an HDF5 file, but it is truncated or of another kind "
            f"({path.stat().st_size} bytes; HDF5 says: {error})"
        ) from error


def open_npy(function: str, path: Path) -> np.ndarray:
    """The array of an .npy file, which stays on disk until it is used, or the error of `function`."""
    if not path.is_file():
        raise FileNotFoundError(f"{function}: {path}: expected a .npy file here, found {_what_is(path)}")
    try:
        with open(path, "rb") as file:
            start = file.read(12)
        # From version 2 of the format on the header's length has four bytes; NumPy makes room for it before it looks.
        if start[:6] == b"\x93NUMPY" and start[6:7] > b"\1" and int.from_bytes(start[8:], "little") > _NPY_HEADER:
            raise ValueError(f"a header of more than {_NPY_HEADER:,} bytes")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # what NumPy raises on damage depends on where it is: of Python's tokenizer, say
        raise ValueError(
            f"{function}: {path}: expected a .npy file, but it is truncated or of another kind "
            f"({path.stat().st_size} bytes; NumPy says: {error}); write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{function}: {path}: expected a .npy file of one array, got an archive of several")
    return array


def _what_is(path: Path) -> str:
    return "a folder" if path.is_dir() else "nothing"


def find_dataset(function: str, path: Path, file: Any, name: str, kinds: str, axes: str) -> Any:
    """The dataset of an open file whose dtype kind is in `kinds` and whose rank is the number of names in `axes`."""
    ndim = axes.count(",") + 1 if "," in axes[:-1] else 1
    expected = f"{_KINDS[kinds]} of shape ({axes})"
    where = f"{function}: {path}, dataset {name!r}"
    h5py = import_h5py(function)
    try:
        found = file.get(name)
        if isinstance(found, h5py.Dataset):
            fits = found.shape is not None and len(found.shape) == ndim and found.dtype.kind in kinds
            got = f"{found.dtype} of shape {found.shape}" if found.shape is not None else "an empty dataset"
            wrong = not_stored(found) if fits else f"expected {expected}, got {got}"
        else:
            kind = "no such dataset" if found is None else "a group" if hasattr(found, "keys") else "a type"
            present = ", ".join(sorted(map(str, file))) or "none"
            wrong = f"expected {expected}, got {kind} (in the file: {present})"
    except HDF5_ERRORS as error:
        raise damaged(function, path, name, error) from error
    if wrong:
        raise ValueError(f"{where}: {wrong}")
    return found


def not_stored(dataset: Any) -> str:
    """What is wrong with a dataset whose header announces values that are not in its file; "" if nothing is."""
    if dataset.is_virtual or dataset.external:
        return (
            "expected its values in this file, got a dataset whose values are in other files: copy them into this one"
        )
    announced = math.prod(dataset.shape) * dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if max(announced, chunk) > max(_ANY_BYTES, _DEFLATE_RATIO * stored):
        in_chunks = f" in chunks of {dataset.chunks}" if chunk else ""
        return (
            f"expected the values of its {dataset.dtype} of shape {dataset.shape}{in_chunks}, got a file that holds "
            f"{stored:,} bytes of them"
        )
    return ""


def damaged(function: str, path: Path, name: str, error: Exception) -> ValueError:
    """What to raise when HDF5 cannot read the values of a dataset."""
    return ValueError(
        f"{function}: {path}, dataset {name!r}: expected to read its values, but the file is damaged "
        f"(HDF5 says: {error})"
    )


def _read_dataset(function: str, path: Path, name: str, kinds: str, axes: str) -> np.ndarray:
    with open_hdf5(function, path) as file:
        found = find_dataset(function, path, file, name, kinds, axes)
        try:
            values = found[()]
        except HDF5_ERRORS as error:
            raise damaged(function, path, name, error) from error
    return np.asarray(values, dtype=values.dtype.newbyteorder("="))


def read_text(function: str, path: Path, expected: str) -> str:
    """The text of a file in UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"{function}: {path}: expected {expected} here, found {_what_is(path)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{function}: {path}: expected {expected} in UTF-8, but {error}") from error


def read_vocabulary(function: str, path: Path) -> tuple[list[str], dict[str, int]]:
    """``idx_to_word`` and ``word_to_idx``, inverse to each other."""
    text = read_text(function, path, "a JSON vocabulary")
    try:
        vocabulary = json_value(text)
    except ValueError as error:
        raise ValueError(f"{function}: {path}: expected a JSON vocabulary, but {error}") from error
    if not isinstance(vocabulary, dict):
        vocabulary = {}
    idx_to_word, word_to_idx = vocabulary.get("idx_to_word"), vocabulary.get("word_to_idx")
    if not isinstance(idx_to_word, list) or not all(isinstance(word, str) for word in idx_to_word):
        raise ValueError(f"{function}: {path}, entry 'idx_to_word': expected a list of words")
    try:
        "".join(idx_to_word).encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character, which no file and no screen takes
        raise ValueError(
            f"{function}: {path}, entry 'idx_to_word': expected words of characters, but {error}"
        ) from None
    if not isinstance(word_to_idx, dict) or not all(type(index) is int for index in word_to_idx.values()):
        raise ValueError(f"{function}: {path}, entry 'word_to_idx': expected an object of word: integer")
    for word, index in word_to_idx.items():
        if not 0 <= index < len(idx_to_word) or idx_to_word[index] != word:
            raise ValueError(
                f"{function}: {path}: expected 'idx_to_word' and 'word_to_idx' to be inverse to each other, "
                f"but word_to_idx[{word!r}] is {index}, which idx_to_word does not map back"
            )
    return idx_to_word, word_to_idx


def read_urls(function: str, base: Path, split: str) -> list[str]:
    """One line an image."""
    return read_text(function, base / urls_file(split), "a text file with one URL a line").splitlines()


def read_captions(function: str, base: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Captions and their images, of which there must be one each."""
    path = base / CAPTIONS_FILE
    captions = _read_dataset(function, path, f"{split}_captions", "iu", "num_captions, T")
    image_idxs = _read_dataset(function, path, f"{split}_image_idxs", "iu", "num_captions,")
    if len(captions) != len(image_idxs):
        raise ValueError(
            f"{function}: {path}, dataset '{split}_image_idxs': expected one image per caption, "
            f"got {len(image_idxs)} for {len(captions)} captions"
        )
    return captions, image_idxs


def check_ids(
    function: str,
    base: Path,
    split: str,
    captions: np.ndarray,
    image_idxs: np.ndarray,
    *,
    words: int,
    images: int,
    urls: int,
    features_name: str,
) -> None:
    """Every word id is one of the vocabulary's, and every image has features and a URL."""
    where = f"{base / CAPTIONS_FILE}, dataset '{split}_captions'"
    _check_range(function, where, "word ids", captions, words, f"the words of {VOCABULARY_FILE}")
    where = f"{base / CAPTIONS_FILE}, dataset '{split}_image_idxs'"
    _check_range(function, where, "images", image_idxs, images, f"the rows of {features_name}")
    _check_range(function, where, "images", image_idxs, urls, f"the lines of {urls_file(split)}")


def _check_range(function: str, where: str, what: str, values: np.ndarray, size: int, of: str) -> None:
    outside = (values < 0) | (values >= size)
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        index = list(position) if len(position) > 1 else f"[{position[0]}]"
        expected = f"{what} in 0..{size - 1} ({of})" if size else f"no {what}, since there are none in {of}"
        raise ValueError(f"{function}: {where}: expected {expected}, got {values[position]} at {index}")


def check_widths(function: str, base: Path, pca_features: bool, widths: tuple[int, int]) -> None:
    """Both splits have features of the same width."""
    if widths[0] != widths[1]:
        raise ValueError(
            f"{function}: {base / features_file('val', pca_features)}, dataset 'features': expected rows of "
            f"{widths[0]} numbers as in {features_file('train', pca_features)}, got {widths[1]}"
        )


def load_coco_data(
    base_dir: str | os.PathLike[str],
    max_train: int | None = None,
    pca_features: bool = True,
    *,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """Read a captioning data set in the COCO file format.

    Parameters
    ----------
    base_dir : path
        The folder with the seven files.
    max_train : int, optional
        Keep this many training captions, drawn with replacement by ``np.random.randint(num_train, size=max_train)``.
        The images are all kept.
    pca_features : bool
        Read the features reduced to 512 dimensions (the ``_pca`` files), or those of 4096.
    rng : numpy.random.Generator, optional
        Draws `max_train` instead of NumPy's global generator.

    Returns
    -------
    dict
        ``train_captions`` and ``val_captions``, int (num_captions, T); ``train_image_idxs`` and ``val_image_idxs``, int
        (num_captions,): the row of the features (and the URL) that a caption belongs to; ``train_features`` and
        ``val_features``, float (num_images, D); ``train_urls`` and ``val_urls``, str (num_images,); ``idx_to_word``,
        list; ``word_to_idx``, dict.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file is truncated or of another format, a dataset is missing, has the wrong rank or dtype or values that are
        not in its file, or an id points outside the vocabulary or the images. The message names file, dataset and what
        was expected.
    """
    function = "load_coco_data"
    args = Arguments(function)
    base = Path(base_dir)
    if max_train is not None:
        max_train = args.whole("max_train", max_train)
    random = generator(args, rng)
    idx_to_word, word_to_idx = read_vocabulary(function, base / VOCABULARY_FILE)
    data: dict[str, Any] = {"idx_to_word": idx_to_word, "word_to_idx": word_to_idx}

    for split in SPLITS:
        captions, image_idxs = read_captions(function, base, split)
        features_name = features_file(split, pca_features)
        features = _read_dataset(function, base / features_name, "features", "f", "num_images, D")
        urls = np.asarray(read_urls(function, base, split), dtype=np.str_)
        sizes = {"words": len(idx_to_word), "images": len(features), "urls": len(urls)}
        check_ids(function, base, split, captions, image_idxs, **sizes, features_name=features_name)
        data[f"{split}_captions"], data[f"{split}_image_idxs"] = captions, image_idxs
        data[f"{split}_features"], data[f"{split}_urls"] = features, urls

    check_widths(function, base, pca_features, tuple(data[f"{split}_features"].shape[1] for split in SPLITS))

    if max_train is not None:
        num_train = len(data["train_captions"])
        if num_train == 0:
            raise ValueError(
                f"load_coco_data: {base / CAPTIONS_FILE}, dataset 'train_captions': expected captions to draw "
                f"max_train={max_train} from, got none"
            )
        draw = random.randint if rng is None else random.integers
        kept = draw(num_train, size=max_train)
        data["train_captions"] = data["train_captions"][kept]
        data["train_image_idxs"] = data["train_image_idxs"][kept]
    return data


def sample_coco_minibatch(
    data: Mapping[str, Any],
    batch_size: int = 100,
    split: str = "train",
    *,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw captions with their images, with replacement, by ``np.random.choice(split_size, batch_size)``.

    Parameters
    ----------
    data : mapping
        What `load_coco_data` returns.
    batch_size : int
        How many captions.
    split : {'train', 'val'}
        Which part of the data.
    rng : numpy.random.Generator, optional
        Draws instead of NumPy's global generator.

    Returns
    -------
    captions : int (batch_size, T)
    image_features : float (batch_size, D)
    urls : str (batch_size,)
    """
    args = Arguments("sample_coco_minibatch")
    batch_size = args.whole("batch_size", batch_size)
    args.choice("split", split, SPLITS)
    parts = {}
    for part in ("captions", "image_idxs", "features", "urls"):
        name = f"{split}_{part}"
        if name not in data:
            raise args.fail(
                ValueError, "data", f"have an entry {name!r}", f"entries {', '.join(map(repr, data)) or 'none'}"
            )
        parts[part] = data[name]
    split_size = len(parts["captions"])
    if split_size == 0:
        raise args.fail(ValueError, "data", f"have captions in '{split}_captions'", "none")
    drawn = generator(args, rng).choice(split_size, batch_size)
    image_idxs = parts["image_idxs"][drawn]
    return parts["captions"][drawn], parts["features"][image_idxs], parts["urls"][image_idxs]


def save_coco_data(
    base_dir: str | os.PathLike[str],
    data: Mapping[str, Any],
    pca_features: bool = True,
    *,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a data set in the COCO file format, so that `load_coco_data` reads it back.

    Parameters
    ----------
    base_dir : path
        The folder; made when missing. Files of the same names are overwritten.
    data : mapping
        The entries that `load_coco_data` returns. Ids are stored as int32, features as float32, as in the published
        files.
    pca_features : bool
        Write the features under the ``_pca`` names, or under those without.
    attributes : mapping, optional
        HDF5 attributes for the captions file, such as a version.
    """
    function = "save_coco_data"
    base = Path(base_dir)
    base.mkdir(parents=True, exist_ok=True)
    write_but_features(function, base, data, attributes)
    for split in SPLITS:
        features = np.asarray(data[f"{split}_features"], dtype=np.float32)
        write_features(function, base / features_file(split, pca_features), features.shape, [features])


def write_but_features(
    function: str, base: Path, data: Mapping[str, Any], attributes: Mapping[str, Any] | None = None
) -> None:
    """The files of a data set but those of the features."""
    h5py = import_h5py(function)
    vocabulary = {"idx_to_word": list(data["idx_to_word"]), "word_to_idx": dict(data["word_to_idx"])}
    with _writing(function, base / VOCABULARY_FILE) as path:
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    with _writing(function, base / CAPTIONS_FILE) as path, h5py.File(path, "w") as file:
        file.attrs.update(attributes or {})
        for split in SPLITS:
            for name in (f"{split}_captions", f"{split}_image_idxs"):
                file.create_dataset(name, data=np.asarray(data[name]).astype(np.int32))
    for split in SPLITS:
        with _writing(function, base / urls_file(split)) as path:
            path.write_text("".join(f"{url}\n" for url in data[f"{split}_urls"]), encoding="utf-8")


def write_features(function: str, path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """A file of features as float32, of rows that come in `blocks` of any length."""
    h5py = import_h5py(function)
    with _writing(function, path), h5py.File(path, "w") as file:
        features = file.create_dataset("features", shape, np.float32)
        begin = 0
        for block in blocks:
            features[begin : begin + len(block)] = block
            begin += len(block)


@contextmanager
def _writing(function: str, path: Path) -> Iterator[Path]:
    """Name the file when it cannot be written: HDF5's own messages, of several exceptions, do not."""
    try:
        yield path
    except (OSError, RuntimeError) as error:
        raise OSError(f"{function}: {path}: cannot be written: {error} (is there room on the disk?)") from error


def check_room(function: str, folder: Path, needed: int) -> None:
    """There is room for `needed` bytes where `folder` is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{function}: {folder}: expected room for {needed / 1e9:,.3f} GB, got {free / 1e9:,.3f} GB free: "
            "free some or name a folder on another disk"
        )


def check_new(function: str, folder: Path) -> None:
    """Nothing would be overwritten in `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "a folder with files in it" if folder.is_dir() else "a file"
        raise FileExistsError(f"{function}: {folder}: expected a new or an empty folder, found {found}: name another")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which becomes `folder` when all are written, and else is removed."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        fresh = Path(aside) / folder.name
        fresh.mkdir()
        yield fresh
        if folder.is_dir():  # an empty one, which not every system replaces
            folder.rmdir()
        os.replace(fresh, folder)
