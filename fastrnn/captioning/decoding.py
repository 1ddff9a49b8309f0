"""From rows of word ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn.arrays import to_host
from fastrnn.checks import Arguments

__all__ = ["decode_captions"]


def decode_captions(captions: Any, idx_to_word: Sequence[str] | Mapping[int, str]) -> Any:
    """Turn captions of word ids into text.

    ``<NULL>`` is dropped, ``<END>`` is kept, and nothing after it is.

    Parameters
    ----------
    captions : int (T,) or (N, T)
        Word ids.
    idx_to_word : sequence or mapping
        The word of each id.

    Returns
    -------
    str or list of str
        One text for a 1-D argument, N texts for a 2-D one.

    Raises
    ------
    TypeError
        The ids are not integers.
    ValueError
        `captions` is neither 1-D nor 2-D.
    IndexError
        An id has no word.
    """
    args = Arguments("decode_captions")
    ids = args.array("captions", to_host(captions))
    if ids.ndim not in (1, 2):
        raise args.fail(ValueError, "captions", "have shape (T,) or (N, T)", f"shape {ids.shape}")
    words = dict(idx_to_word) if isinstance(idx_to_word, Mapping) else dict(enumerate(idx_to_word))
    ids = args.ids("captions", ids, max(words, default=-1) + 1, "the words of idx_to_word")
    for index in np.unique(ids).tolist():
        if index not in words:
            raise args.fail(IndexError, "captions", "hold ids of words in idx_to_word", str(index))
    decoded = [_decode_row(row, words) for row in np.atleast_2d(ids).tolist()]
    return decoded[0] if ids.ndim == 1 else decoded


def _decode_row(row: list[int], words: Mapping[int, str]) -> str:
    kept = []
    for index in row:
        word = words[index]
        if word != "<NULL>":
            kept.append(word)
        if word == "<END>":
            break
    return " ".join(kept)
