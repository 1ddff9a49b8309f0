"""From images to rows of word ids, and from those to text.

All ways of decoding go through the words of many images at once, with one step of the model for all captions that have
not ended. The state and the scores are where the model's parameters are; what is said is kept in the computer's memory,
since it decides with which captions to go on: on a GPU every step is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import place_of, to_host
from fastrnn.captioning.data import generator
from fastrnn.captioning.model import CaptioningRNN, log_probabilities
from fastrnn.checks import Arguments

__all__ = ["Decoded", "beam_search", "decode_captions", "greedy", "sample"]

# Up to so many words are found by taking the maximum again and again, which NumPy does at the speed of memory.
_FEW = 16


class Decoded(NamedTuple):
    """Captions of N images, in the computer's memory.

    Attributes
    ----------
    ids : int32 (N, L)
        What was said, from the first word after ``<START>`` to ``<END>``, filled up with ``<NULL>``. L is the longest.
    log_probability : float64 (N,)
        Natural logarithm of the model's probability of each caption, ``<END>`` included where it was said.
    lengths : int64 (N,)
        Number of words said, ``<END>`` included.
    """

    ids: np.ndarray
    log_probability: np.ndarray
    lengths: np.ndarray


def greedy(model: CaptioningRNN, features: Any, max_length: int = 30) -> Decoded:
    """Caption images with the most probable word at each step.

    Parameters
    ----------
    model : CaptioningRNN
        The model; with its parameters on a GPU it runs there.
    features : float (N, D)
        Image features, as the model takes them.
    max_length : int
        Largest number of words to say, ``<END>`` included.

    Returns
    -------
    Decoded
        The captions.

    Raises
    ------
    ValueError, TypeError
        An argument does not fit; the vocabulary has no ``<START>``; or a score of the model is no number.
    """
    return _one_by_one("greedy", model, features, max_length, lambda scores, rows, t: scores.argmax(axis=1))


def sample(
    model: CaptioningRNN,
    features: Any,
    max_length: int = 30,
    temperature: float = 1.0,
    top_k: int | None = None,
    rng: np.random.Generator | None = None,
) -> Decoded:
    """Caption images with words drawn from the model's probabilities.

    The words of an image do not depend on what others are captioned with it: it takes the next `max_length` numbers of
    the generator.

    Parameters
    ----------
    model : CaptioningRNN
        The model; with its parameters on a GPU it runs there.
    features : float (N, D)
        Image features, as the model takes them.
    max_length : int
        Largest number of words to say, ``<END>`` included.
    temperature : float
        Above 0. Words are drawn from ``softmax(scores / temperature)``: 1 is the model as it is, less makes probable
        words more probable; towards 0 it is `greedy`.
    top_k : int, optional
        Draw from the `top_k` most probable words only; 1 is `greedy`.
    rng : numpy.random.Generator, optional
        Draws instead of NumPy's global generator.

    Returns
    -------
    Decoded
        The captions. Their probabilities are the model's, whatever temperature and `top_k` they were drawn with.

    Raises
    ------
    ValueError, TypeError
        An argument does not fit; the vocabulary has no ``<START>``; or a score of the model is no number.
    """
    args = Arguments("sample")
    temperature = args.number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise args.fail(ValueError, "temperature", "be above 0 and finite", f"{temperature:g}")
    if top_k is not None:
        top_k = args.whole("top_k", top_k)
    random = generator(args, rng)
    max_length = args.whole("max_length", max_length)
    drawn: list[np.ndarray] = []

    def draw(scores: Any, rows: np.ndarray, t: int) -> Any:
        if t == 0:  # each image has a row of its own
            drawn.append(random.random((len(rows), max_length)))
        return _draw(scores, drawn[0][rows, t], temperature, top_k)

    return _one_by_one("sample", model, features, max_length, draw)


def beam_search(
    model: CaptioningRNN,
    features: Any,
    max_length: int = 30,
    beam_width: int = 5,
    length_penalty: float = 0.6,
) -> Decoded:
    """Caption images with the best sentence that a beam search finds.

    For each image the `beam_width` most probable beginnings are kept. At each step every one that has not ended goes on
    with every word, and the most probable of all these, and of the sentences that have ended, are kept. The best of the
    sentences that ended on the way, by ``<END>`` or at `max_length`, is the caption, where "best" is the score of
    Wu et al. (2016, equation 14), without its coverage::

        score = log p / ((5 + length) / 6) ** length_penalty

    An image is done when all that is kept has ended, or when nothing that has not can still become the best. A beam of
    1 is `greedy`.

    Parameters
    ----------
    model : CaptioningRNN
        The model; with its parameters on a GPU it runs there.
    features : float (N, D)
        Image features, as the model takes them.
    max_length : int
        Largest number of words to say, ``<END>`` included. Each counts for the length.
    beam_width : int
        Beginnings to keep for each image.
    length_penalty : float
        At least 0. A sentence of many words is less probable by that alone: 0 leaves it so, more favours longer ones.

    Returns
    -------
    Decoded
        The captions. Their probabilities are without the division by the length.

    Raises
    ------
    ValueError, TypeError
        An argument does not fit; the vocabulary has no ``<START>``; or a score of the model is no number.
    """
    args = Arguments("beam_search")
    max_length = args.whole("max_length", max_length)
    K = args.whole("beam_width", beam_width)
    alpha = args.number("length_penalty", length_penalty)
    if not 0 <= alpha < math.inf:
        raise args.fail(ValueError, "length_penalty", "be at least 0 and finite", f"{alpha:g}")
    # The divisor of a sentence of so many words.
    penalty = ((5 + np.arange(max_length + 1)) / 6) ** alpha
    words, state = _begin("beam_search", model, features)
    null, end = model.word_to_idx["<NULL>"], model.word_to_idx.get("<END>", -1)
    N = len(words)
    image = np.arange(N)[:, None]

    best = np.full(N, -np.inf)
    found = Decoded(np.full((N, max_length), null, np.int32), np.full(N, -np.inf), np.zeros(N, np.int64))
    # What is kept of each image, the most probable first: one empty sentence, and `beam_width` of them soon after. A
    # place with probability 0 is empty.
    said = np.full((N, 1, max_length), null, np.int32)
    log_p = np.zeros((N, 1))
    ended = np.zeros((N, 1), bool)
    lengths = np.zeros((N, 1), np.int64)
    live = np.arange(N)  # the places, of all counted through, whose state and last word are in `state` and `words`
    for t in range(max_length):
        if not len(live):
            break
        scores, state = model.step(words, state)
        ids, gained = _best("beam_search", scores, K, t)
        B, k = log_p.shape[1], ids.shape[1]
        # Of each place k continuations; those of an ended sentence are itself.
        candidates = np.full((N * B, k), -np.inf)
        candidates[live] = log_p.reshape(-1)[live, None] + gained
        candidates[:, 0] = np.where(ended.reshape(-1), log_p.reshape(-1), candidates[:, 0])
        following = np.full((N * B, k), null)
        following[live] = ids
        # Of equals the one that comes first, so that the result is the same everywhere.
        kept = np.argsort(-candidates.reshape(N, B * k), axis=1, kind="stable")[:, :K]
        came_from = kept // k
        log_p = candidates.reshape(N, B * k)[image, kept]
        before = ended[image, came_from]
        said, lengths = said[image, came_from], lengths[image, came_from]
        said[:, :, t] = np.where(before, null, following.reshape(N, B * k)[image, kept])

        going = ~before & (log_p > -np.inf)
        lengths += going
        ends = going & ((said[:, :, t] == end) | (t == max_length - 1))
        ended = before | ends
        score = np.where(ends, log_p / penalty[lengths], -np.inf)
        first = score.argmax(axis=1)
        better = np.flatnonzero(score[image[:, 0], first] > best)
        at = better, first[better]
        best[better], found.log_probability[better] = score[at], log_p[at]
        found.ids[better], found.lengths[better] = said[at], lengths[at]

        # No sentence becomes more probable, and none is divided by more than one of max_length words.
        hopes = np.where(going & ~ends, log_p / penalty[max_length], -np.inf)
        going &= ~ends & (hopes.max(axis=1) > best)[:, None]
        row_of = np.empty(N * B, np.int64)
        row_of[live] = np.arange(len(live))
        live = np.flatnonzero(going)
        rows = row_of[(image * B + came_from).reshape(-1)[live]]
        words, state = said[:, :, t].reshape(-1)[live], _rows(state, rows)
    return Decoded(found.ids[:, : found.lengths.max(initial=0)], found.log_probability, found.lengths)


def _begin(function: str, model: CaptioningRNN, features: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The first words and the state before them."""
    if "<START>" not in model.word_to_idx:
        raise ValueError(f"{function}: the model's vocabulary must have the word '<START>' to begin from, got none")
    state = model._first(function, features)
    return np.full(len(state[0]), model.word_to_idx["<START>"]), state


def _one_by_one(
    function: str,
    model: CaptioningRNN,
    features: Any,
    max_length: int,
    choose: Callable[[Any, np.ndarray, int], Any],
) -> Decoded:
    """Caption images with the words that `choose(scores, images, t)` picks at step t."""
    max_length = Arguments(function).whole("max_length", max_length)
    words, state = _begin(function, model, features)
    null, end = model.word_to_idx["<NULL>"], model.word_to_idx.get("<END>", -1)
    N = len(words)
    ids = np.full((N, max_length), null, np.int32)
    log_p, lengths = np.zeros(N), np.zeros(N, np.int64)
    live = np.arange(N)  # images whose captions have not ended
    for t in range(max_length):
        if not len(live):
            break
        scores, state = model.step(words, state)
        chosen = choose(scores, live, t)
        gained = log_probabilities(scores, chosen[:, None])
        _check_numbers(function, gained, t)
        words = to_host(chosen)
        ids[live, t] = words
        log_p[live] += gained[:, 0]
        lengths[live] += 1
        going = np.flatnonzero(words != end)
        live, words, state = live[going], words[going], _rows(state, going)
    return Decoded(ids[:, : lengths.max(initial=0)], log_p, lengths)


def _rows(state: tuple[Any, ...], rows: np.ndarray) -> tuple[Any, ...]:
    """The state of these rows."""
    if len(rows) == len(state[0]) and (rows == np.arange(len(rows))).all():
        return state
    moved = place_of(state[0]).moved(rows)
    return tuple(part[moved] for part in state)


def _check_numbers(function: str, log_p: np.ndarray, t: int) -> None:
    if np.isnan(log_p).any():
        raise ValueError(
            f"{function}: the model's scores must be finite, got NaN or infinity at word {t + 1}: "
            "the features or the model's parameters hold them"
        )


def _best(function: str, scores: Any, count: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` words of each row with the highest scores, and their log probabilities, both (R, count)."""
    top = _top(scores, min(count, scores.shape[1]))
    log_p = log_probabilities(scores, top)
    _check_numbers(function, log_p, t)
    return to_host(top), log_p


def _top(scores: Any, count: int) -> Any:
    """Columns of the `count` highest scores of each row (R, count), the highest first, of equals the lower column."""
    xp = place_of(scores).xp
    if count == 1:
        return scores.argmax(axis=1)[:, None]
    if count > _FEW:
        # CuPy's sort is stable and cannot be asked for it.
        order = (-scores).argsort(axis=1, kind="stable") if xp is np else (-scores).argsort(axis=1)
        return order[:, :count]
    rest = scores.copy()
    rows = xp.arange(len(rest))
    columns = xp.empty((len(rest), count), dtype=np.int64)
    for rank in range(count):
        columns[:, rank] = rest.argmax(axis=1)
        rest[rows, columns[:, rank]] = -np.inf
    return columns


def _draw(scores: Any, uniform: np.ndarray, temperature: float, top_k: int | None) -> Any:
    """One word of each row, by the inverse of the cumulated probabilities at `uniform` (R,), in [0, 1)."""
    place = place_of(scores)
    xp = place.xp
    columns = None
    if top_k is not None and top_k < scores.shape[1]:
        columns = _top(scores, top_k)
        scores = scores[xp.arange(len(columns))[:, None], columns]
    with np.errstate(invalid="ignore"):  # of infinite scores, which are found out afterwards
        below = scores.astype(np.float64) - scores.max(axis=1)[:, None]
    # exp(-750) is 0: what is held there cannot overflow when it is divided by a small temperature.
    cumulated = xp.exp(xp.maximum(below, -750 * temperature) / temperature).cumsum(axis=1)
    target = place.moved(uniform)[:, None] * cumulated[:, -1:]
    # A number short of 1 may be rounded up to the total; the last word that can be drawn ends where the total is met.
    drawn = ((cumulated <= target) & (cumulated < cumulated[:, -1:])).sum(axis=1)
    return drawn if columns is None else columns[xp.arange(len(columns)), drawn]


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
