"""How good the captions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastrnn.arrays import to_host
from fastrnn.checks import Arguments

__all__ = ["exact_match"]


def exact_match(sampled: Any, captions: Any, word_to_idx: Mapping[str, int]) -> np.ndarray:
    """Which sampled captions are the true ones, word for word.

    Of both, ``<START>`` and ``<NULL>`` are dropped and nothing after ``<END>`` is looked at.

    Parameters
    ----------
    sampled : int (N, T1)
        What `CaptioningRNN.sample` returns.
    captions : int (N, T2)
        The true captions.
    word_to_idx : mapping
        The vocabulary.

    Returns
    -------
    bool (N,)
        True where the captions agree; its mean is the accuracy.
    """
    args = Arguments("exact_match")
    pair = []
    for name, value, dims in (("sampled", sampled, "N T1"), ("captions", captions, "N T2")):
        ids = args.array(name, to_host(value))
        args.shape(name, ids.shape, dims)
        if ids.dtype.kind not in "iu":
            raise args.fail(TypeError, name, "hold integers", f"dtype {ids.dtype}")
        pair.append(ids.tolist())
    end = word_to_idx.get("<END>")
    dropped = {word_to_idx.get("<NULL>"), word_to_idx.get("<START>")}
    same = [_said(row, end, dropped) == _said(truth, end, dropped) for row, truth in zip(*pair, strict=True)]
    return np.array(same, dtype=bool)


def _said(row: list[int], end: int | None, dropped: set[int | None]) -> list[int]:
    kept = []
    for index in row:
        if index not in dropped:
            kept.append(index)
        if index == end:
            break
    return kept
