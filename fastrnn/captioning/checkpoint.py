"""Checkpoints of a training run: one HDF5 file with everything that going on, captioning and evaluating need."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.arrays import HOST, device, to_host
from fastrnn.backend import get_backend
from fastrnn.captioning.data import HDF5_ERRORS, import_h5py, not_stored
from fastrnn.captioning.hdf5_structure import circular
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.runs import json_value, write_whole

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

FORMAT = "fastrnn captioning checkpoint"
VERSION = 1

_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# Arrays that each update rule keeps for each parameter, and numbers that it cannot go on without.
_STATE = {
    "sgd": ((), ()),
    "sgd_momentum": (("velocity",), ()),
    "rmsprop": (("cache",), ()),
    "adam": (("m", "v"), ("t",)),
}


@dataclass
class Checkpoint:
    """The state of a training run between two steps.

    Attributes
    ----------
    config : dict
        The `TrainingConfig`, as ``dataclasses.asdict`` gives it.
    params : dict
        The parameters of the model, NumPy arrays.
    average : dict
        Running averages of the parameters, of the same names; empty where the run keeps none.
    optimizer : dict
        For each parameter the settings (numbers) and the state (arrays) of the update rule; empty before the first
        step.
    position : dict
        ``epoch`` under way, from 0; ``batch`` of it that comes next; ``step``: steps done in all.
    word_to_idx, idx_to_word : dict, list
        The vocabulary.
    feature_dim : int
        D, width of the features.
    feature_mean, feature_scale : float
        Features are used as ``(features - feature_mean) * feature_scale``.
    data : dict
        What the data set was: its folder and its sizes.
    best : dict
        The best validation so far: ``loss``, ``perplexity``, ``step``; empty before the first.
    stopping : dict
        ``stale``: validations since the best one; ``validated``: the step of the last one.
    """

    config: dict[str, Any]
    params: dict[str, np.ndarray]
    optimizer: dict[str, dict[str, Any]]
    position: dict[str, int]
    word_to_idx: dict[str, int]
    idx_to_word: list[str]
    feature_dim: int
    feature_mean: float = 0.0
    feature_scale: float = 1.0
    best: dict[str, Any] = field(default_factory=dict)
    stopping: dict[str, int] = field(default_factory=dict)
    average: dict[str, np.ndarray] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def model(self) -> CaptioningRNN:
        """The model to caption with: with the averaged parameters where the run keeps them, else with its parameters.

        Under backend ``cuda`` its parameters are on the device.
        """
        config = self.config
        model = CaptioningRNN(
            self.word_to_idx,
            self.feature_dim,
            config["wordvec_dim"],
            config["hidden_dim"],
            config["cell"],
            np.dtype(config["dtype"]),
            rng=np.random.default_rng(0),
        )
        place = device() if get_backend() == "cuda" else HOST
        model.params = {name: place.moved(value.copy()) for name, value in (self.average or self.params).items()}
        return model

    def prepare(self, features: Any) -> np.ndarray:
        """Features as the model was trained on them, in its dtype.

        Parameters
        ----------
        features : float (N, D)
            Features as they are in the data set.

        Returns
        -------
        float32 or float64 (N, D)
            ``(features - feature_mean) * feature_scale``
        """
        return prepared(features, self.feature_mean, self.feature_scale, np.dtype(self.config["dtype"]))


def prepared(features: Any, mean: float, scale: float, dtype: np.dtype) -> np.ndarray:
    """``(features - mean) * scale``, computed in `dtype`."""
    values = np.array(features, dtype=dtype)
    values -= mean
    values *= scale
    return values


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at any moment the file is the old one or the new one, and whole.

    The file is made in memory, written aside as ``PATH.part``, flushed to the disk and renamed. One process at a time
    may write to a path.

    Parameters
    ----------
    path : path
        The file; its folder must exist.
    checkpoint : Checkpoint
        What to save.

    Raises
    ------
    OSError
        It cannot be written: no room, no permission, no folder. The file that was there before is still there.
    """
    path = Path(path)
    # Not written by HDF5 itself: after a failed write it cannot close the file, and complains as the process ends.
    image = _image(checkpoint)
    try:
        write_whole(path, image)
    except OSError as error:
        kept = "; the checkpoint that was there is untouched" if path.is_file() else ""
        raise OSError(
            error.errno,
            f"save_checkpoint: {path}: cannot write {len(image):,} bytes ({error.strerror or error}){kept}. "
            "Make room or name a folder that can be written, and go on from the last checkpoint",
        ) from error


def _image(checkpoint: Checkpoint) -> memoryview:
    """The bytes of the HDF5 file."""
    h5py = import_h5py("save_checkpoint")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        texts = {
            "config": checkpoint.config,
            "position": checkpoint.position,
            "vocabulary": {"idx_to_word": list(checkpoint.idx_to_word), "word_to_idx": dict(checkpoint.word_to_idx)},
            "features": {
                "dim": checkpoint.feature_dim,
                "mean": checkpoint.feature_mean,
                "scale": checkpoint.feature_scale,
            },
            "best": checkpoint.best,
            "stopping": checkpoint.stopping,
            "data": checkpoint.data,
        }
        for name, value in texts.items():
            text = json.dumps(value, ensure_ascii=False).encode()
            # Of fixed length: the same state is then the same bytes.
            file.create_dataset(name, data=np.array(text, dtype=h5py.string_dtype(length=len(text))))
        for group in ("params", "average"):
            file.create_group(group)
            for name, value in getattr(checkpoint, group).items():
                _put(file, f"{group}/{name}", value)
        file.create_group("optimizer")
        for name, state in checkpoint.optimizer.items():
            file.create_group(f"optimizer/{name}")
            for key, value in sorted(state.items()):
                _put(file, f"optimizer/{name}/{key}", value)
    return buffer.getbuffer()


def _put(file: Any, name: str, value: Any) -> None:
    array = np.asarray(to_host(value))
    # Each block with a checksum: a damaged file is noticed when it is read.
    options = {"fletcher32": True, "chunks": True} if array.size and array.ndim else {}
    file.create_dataset(name, data=array, **options)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and check that all of it is there and fits together.

    Parameters
    ----------
    path : path
        What `save_checkpoint` wrote: ``last.h5`` or ``best.h5`` of a run.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is half-written, damaged, another HDF5 file, of another version, or its parts do not fit together. The
        message names the file, what is wrong and what to do.
    """
    path = Path(path)
    h5py = import_h5py("load_checkpoint")
    if path.is_dir():
        names = [name for name in ("best.h5", "last.h5") if (path / name).is_file()]
        hint = f"name a file in it: {' or '.join(names)}" if names else "with no best.h5 or last.h5 in it"
        raise FileNotFoundError(f"load_checkpoint: {path}: expected a checkpoint, found a folder; {hint}")
    if not path.is_file():
        raise FileNotFoundError(
            f"load_checkpoint: {path}: expected a checkpoint of `fastrnn train` here, found nothing"
        )
    try:
        if wrong := circular(path):
            raise _Wrong(f"expected a checkpoint, but the file is damaged: {wrong}")
        with h5py.File(path, "r") as file:
            return _read(file)
    except _Wrong as wrong:
        raise ValueError(f"load_checkpoint: {path}: {wrong}; {_REMEDY}") from None
    except HDF5_ERRORS as error:
        raise ValueError(
            f"load_checkpoint: {path}: expected a checkpoint, but the file is half-written, damaged or of another kind "
            f"({path.stat().st_size} bytes; HDF5 says: {error}); {_REMEDY}"
        ) from error


_REMEDY = "take another checkpoint of the run (best.h5, last.h5) or train anew"


class _Wrong(Exception):
    """What is wrong with a checkpoint, in words for the user."""


def _read(file: Any) -> Checkpoint:
    if not np.array_equal(file.attrs.get("format"), FORMAT):
        present = ", ".join(sorted(map(str, file))[:8]) or "nothing"
        raise _Wrong(f"expected a checkpoint, but it is another HDF5 file (in it: {present})")
    if not np.array_equal(file.attrs.get("version"), VERSION):
        raise _Wrong(
            f"expected a checkpoint of format version {VERSION}, got version {file.attrs.get('version')}: "
            "another release of fastrnn wrote it"
        )
    config, position, features = (_json(file, name) for name in ("config", "position", "features"))
    for key, known in (("cell", tuple(_GATES)), ("rule", tuple(_STATE)), ("dtype", ("float32", "float64"))):
        if config.get(key) not in known:
            raise _Wrong(f"expected 'config' with a {key} that is one of {', '.join(known)}, got {config.get(key)!r}")
    _integers("config", config, "wordvec_dim", "hidden_dim", at_least=1)
    _integers("position", position, "epoch", "batch", "step", at_least=0)
    _integers("features", features, "dim", at_least=1)
    _numbers("features", features, "mean", "scale")
    idx_to_word, word_to_idx = _vocabulary(_json(file, "vocabulary"))

    shapes = _shapes(config, len(word_to_idx), features["dim"])
    dtype = np.dtype(config["dtype"])
    params = {name: _array(file, f"params/{name}", shape, dtype) for name, shape in shapes.items()}
    average = {}
    if len(_group(file, "average")):
        average = {name: _array(file, f"average/{name}", shape, dtype) for name, shape in shapes.items()}
    optimizer = {}
    if position["step"]:
        optimizer = {name: _state(file, name, config["rule"], shape, dtype) for name, shape in shapes.items()}
    best, stopping, data = (_json(file, name) for name in ("best", "stopping", "data"))
    if best:
        _numbers("best", best, "loss", "perplexity")
        _integers("best", best, "step", at_least=0)
    _integers("stopping", stopping, *stopping, at_least=0)
    _integers("data", data, *(key for key in data if key != "base_dir"), at_least=0)
    if not isinstance(data.get("base_dir", ""), str):
        raise _Wrong(f"expected 'data' with a folder as base_dir, got {data['base_dir']!r}")
    return Checkpoint(
        config=config,
        params=params,
        optimizer=optimizer,
        position=position,
        word_to_idx=word_to_idx,
        idx_to_word=idx_to_word,
        feature_dim=features["dim"],
        feature_mean=float(features["mean"]),
        feature_scale=float(features["scale"]),
        best=best,
        stopping=stopping,
        average=average,
        data=data,
    )


def _shapes(config: Mapping[str, Any], V: int, D: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter, in the order of the model's."""
    W, H = config["wordvec_dim"], config["hidden_dim"]
    G = _GATES[config["cell"]]
    return {
        "W_embed": (V, W),
        "W_proj": (D, H),
        "b_proj": (H,),
        "Wx": (W, G * H),
        "Wh": (H, G * H),
        "b": (G * H,),
        "W_vocab": (H, V),
        "b_vocab": (V,),
    }


def _group(file: Any, name: str) -> Any:
    found = file.get(name)
    if not hasattr(found, "keys"):
        raise _Wrong(f"expected a group {name!r}, got {'none' if found is None else 'a dataset'}")
    return found


def _dataset(file: Any, name: str, expected: str) -> Any:
    found = file.get(name)
    if not isinstance(found, import_h5py("load_checkpoint").Dataset) or found.shape is None:
        got = "none" if found is None else "a group" if hasattr(found, "keys") else "an empty one"
        raise _Wrong(f"expected {expected}, got {got}")
    if wrong := not_stored(found):
        raise _Wrong(f"{name!r}: {wrong}")
    return found


def _json(file: Any, name: str) -> dict[str, Any]:
    found = _dataset(file, name, f"a text {name!r}")
    try:
        value = json_value(found.asstr()[()])
    except (TypeError, ValueError) as error:
        raise _Wrong(f"expected {name!r} to be JSON, but {error}") from None
    if not isinstance(value, dict):
        raise _Wrong(f"expected {name!r} to be a JSON object, got {type(value).__name__}")
    return value


def _integers(where: str, values: Mapping[str, Any], *keys: str, at_least: int) -> None:
    for key in keys:
        if type(values.get(key)) is not int or values[key] < at_least:
            raise _Wrong(f"expected {where!r} with a whole number from {at_least} on as {key}, got {values.get(key)!r}")


def _numbers(where: str, values: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        value = values.get(key)
        if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise _Wrong(f"expected {where!r} with a finite number as {key}, got {value!r}")


def _vocabulary(value: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    idx_to_word, word_to_idx = value.get("idx_to_word"), value.get("word_to_idx")
    if not isinstance(idx_to_word, list) or not isinstance(word_to_idx, dict) or "<NULL>" not in word_to_idx:
        raise _Wrong("expected 'vocabulary' with idx_to_word, a list, and word_to_idx, an object that has '<NULL>'")
    for word, index in word_to_idx.items():
        if type(index) is not int or not 0 <= index < len(idx_to_word) or idx_to_word[index] != word:
            raise _Wrong(f"expected both ways of 'vocabulary' to agree, but word_to_idx[{word!r}] is {index}")
    return idx_to_word, word_to_idx


def _array(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    found = _dataset(file, name, f"a dataset {name!r} of shape {shape}")
    if found.shape != shape or found.dtype != dtype:
        raise _Wrong(f"expected dataset {name!r} of {dtype} and shape {shape}, got {found.dtype} of {found.shape}")
    try:
        return np.asarray(found[()])
    except OSError as error:
        raise _Wrong(f"dataset {name!r} is damaged (HDF5 says: {error})") from None


def _state(file: Any, parameter: str, rule: str, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """State of the update rule of one parameter: its arrays, and whatever numbers there are."""
    arrays, numbers = _STATE[rule]
    where = f"optimizer/{parameter}"
    group = _group(file, where)
    state: dict[str, Any] = {}
    for key in (*numbers, "learning_rate"):
        if key not in group:
            raise _Wrong(f"expected a number '{where}/{key}', which rule {rule!r} keeps, got none")
    for key in group:
        if key in arrays:
            continue
        found = _dataset(group, key, f"a number '{where}/{key}'")
        if found.shape != () or found.dtype.kind not in "iuf":
            raise _Wrong(f"expected a number '{where}/{key}', got {found.dtype} of shape {found.shape}")
        state[key] = found[()].item()
    for key in arrays:
        state[key] = _array(file, f"{where}/{key}", shape, dtype)
    return state
