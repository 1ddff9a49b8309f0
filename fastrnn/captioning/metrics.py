"""How good the captions are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn.arrays import to_host
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.checks import Arguments

__all__ = ["bleu", "exact_match", "perplexity"]

ORDERS = (1, 2, 3, 4)


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al. 2002), by sacreBLEU.

    Words are what stands between spaces: captions are tokenised already. No smoothing: without a single n-gram in
    common the score is 0. The brevity penalty takes the reference nearest in length.

    Parameters
    ----------
    candidates : sequence of str
        One caption for each image, without ``<START>``, ``<END>`` and ``<NULL>``.
    references : sequence of sequences of str
        The true captions of each image, one at least; images may have different numbers of them.

    Returns
    -------
    dict
        ``"BLEU-1"`` to ``"BLEU-4"``, each from 0 to 100.

    Raises
    ------
    ValueError
        There are no candidates, not as many images in `references`, or an image without a reference.
    TypeError
        A string was given where a sequence of strings is meant.
    ImportError
        sacreBLEU is not installed.
    """
    args = Arguments("bleu")
    for name, value in (("candidates", candidates), *((f"references[{n}]", row) for n, row in enumerate(references))):
        if isinstance(value, str):
            raise args.fail(TypeError, name, "be a sequence of strings", "one string")
    if not len(candidates):
        raise args.fail(ValueError, "candidates", "hold at least one caption", "none")
    if len(references) != len(candidates):
        expected = f"have the true captions of each of the {len(candidates)} candidates"
        raise args.fail(ValueError, "references", expected, f"those of {len(references)}")
    lonely = next((n for n, row in enumerate(references) if not len(row)), None)
    if lonely is not None:
        raise args.fail(ValueError, "references", "hold at least one true caption for each image", f"none at {lonely}")
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise ImportError("bleu: BLEU comes from sacreBLEU: pip install 'fastrnn[captioning]'") from error
    # sacreBLEU has the k-th references of all images in one list, None where an image has not as many.
    longest = max(map(len, references))
    streams: list[Any] = [[row[k] if k < len(row) else None for row in references] for k in range(longest)]
    # `force`: it is no oversight that the captions are tokenised.
    metric = BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=max(ORDERS))
    counted = metric.corpus_score(candidates, streams)
    scores = {}
    for order in ORDERS:
        # The same counts serve all orders.
        score = BLEU.compute_bleu(
            counted.counts, counted.totals, counted.sys_len, counted.ref_len, "none", max_ngram_order=order
        )
        scores[f"BLEU-{order}"] = min(float(score.score), 100.0)  # the exponential of a logarithm may come out above
    return scores


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


def perplexity(model: CaptioningRNN, batches: Iterable[Sequence[Any]]) -> float:
    """Perplexity of the true captions: ``exp(-Σ log p(caption) / Σ words)``.

    The words are those that the model is to say: all but ``<START>`` and ``<NULL>``, ``<END>`` included.

    Parameters
    ----------
    model : CaptioningRNN
        The model.
    batches : iterable of sequences
        Each begins with captions, int (n, T), and the features of their images, float (n, D), as the model takes them;
        the rest is not looked at.

    Returns
    -------
    float
        1 for a model that is always right and sure; the size of the vocabulary for one that guesses. Infinity where it
        is too large for a floating-point number.

    Raises
    ------
    ValueError
        There is no word to be said in any batch, or an argument does not fit the model.
    """
    null = model.word_to_idx["<NULL>"]
    likelihood, words = 0.0, 0
    for captions, features, *_ in batches:
        likelihood += float(model.log_likelihood(features, captions).sum())
        words += int((np.asarray(to_host(captions))[:, 1:] != null).sum())
    if not words:
        raise ValueError("perplexity: argument 'batches' must hold captions with a word to be said, got none")
    try:
        return math.exp(-likelihood / words)
    except OverflowError:
        return math.inf
