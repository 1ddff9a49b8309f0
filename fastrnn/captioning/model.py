"""An image-captioning model: a recurrent network that begins from the image's features and says one word a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastrnn.arrays import HOST, device, place_of, to_host
from fastrnn.backend import get_backend
from fastrnn.captioning.data import generator
from fastrnn.checks import FLOATS, Arguments
from fastrnn.ops.affine import affine_backward, affine_forward
from fastrnn.ops.embedding import word_embedding_backward, word_embedding_forward
from fastrnn.ops.gru import gru_backward, gru_forward, gru_step_forward
from fastrnn.ops.lstm import lstm_backward, lstm_forward, lstm_step_forward
from fastrnn.ops.rnn import rnn_backward, rnn_forward, rnn_step_forward
from fastrnn.ops.softmax_loss import vocab_softmax_loss

__all__ = ["CaptioningRNN"]

_SCORES = 1 << 22  # numbers held at once where only probabilities of captions are wanted


class _Cell(NamedTuple):
    gates: int
    forward: Any
    backward: Any


_CELLS = {
    "rnn": _Cell(1, rnn_forward, rnn_backward),
    "lstm": _Cell(4, lstm_forward, lstm_backward),
    "gru": _Cell(3, gru_forward, gru_backward),
}


class CaptioningRNN:
    """Caption images with a vanilla RNN, an LSTM or a GRU.

    The initial hidden state is affine in the image's features; each step reads a word vector and gives scores for the
    next word. All the arithmetic is that of `fastrnn`'s functions, so that it runs on whichever backend is set. Where
    the parameters are CuPy's arrays, as they are from the beginning if backend ``cuda`` is set, it runs on the GPU.

    Parameters
    ----------
    word_to_idx : mapping
        The V words with their ids. It must have ``<NULL>``; ``<START>`` is needed for sampling only. Ids may leave
        gaps: V is the number of words.
    input_dim : int
        D, size of the features.
    wordvec_dim : int
        W, size of the word vectors.
    hidden_dim : int
        H, size of the hidden state.
    cell_type : {'rnn', 'lstm', 'gru'}
        The recurrent cell.
    dtype : float32 or float64
        Dtype of the parameters, and so of the arithmetic.
    rng : numpy.random.Generator, optional
        Draws the initial parameters instead of NumPy's global generator.

    Attributes
    ----------
    params : dict
        ``W_proj`` (D, H), ``b_proj`` (H,), ``W_embed`` (V, W), ``Wx`` (W, G·H), ``Wh`` (H, G·H), ``b`` (G·H,),
        ``W_vocab`` (H, V), ``b_vocab`` (V,), with G = 1, 4 or 3 gates for rnn, lstm and gru. They may be replaced or
        changed in place.
    word_to_idx, idx_to_word : dict
        The vocabulary, both ways.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        dtype: Any = np.float32,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        args = Arguments("CaptioningRNN")
        if not isinstance(word_to_idx, Mapping):
            raise args.fail(TypeError, "word_to_idx", "map words to ids", type(word_to_idx).__name__)
        if "<NULL>" not in word_to_idx:
            raise args.fail(ValueError, "word_to_idx", "have the word '<NULL>', which fills captions up", "none")
        D = args.whole("input_dim", input_dim)
        W = args.whole("wordvec_dim", wordvec_dim)
        H = args.whole("hidden_dim", hidden_dim)
        self.cell_type = args.choice("cell_type", cell_type, tuple(_CELLS))
        self.dtype = np.dtype(dtype)
        if self.dtype not in FLOATS:
            raise args.fail(TypeError, "dtype", "be float32 or float64", str(self.dtype))

        self.word_to_idx = dict(word_to_idx)
        self.idx_to_word = {index: word for word, index in word_to_idx.items()}
        self._null = self.word_to_idx["<NULL>"]
        self._start = self.word_to_idx.get("<START>")
        self._end = self.word_to_idx.get("<END>")

        V, G = len(word_to_idx), _CELLS[cell_type].gates
        draw = generator(args, rng).standard_normal
        # The order of these draws is part of the interface: seeded runs are compared.
        params = {}
        params["W_embed"] = draw((V, W)) / 100
        params["W_proj"] = draw((D, H)) / np.sqrt(D)
        params["b_proj"] = np.zeros(H)
        params["Wx"] = draw((W, G * H)) / np.sqrt(W)
        params["Wh"] = draw((H, G * H)) / np.sqrt(H)
        params["b"] = np.zeros(G * H)
        params["W_vocab"] = draw((H, V)) / np.sqrt(H)
        params["b_vocab"] = np.zeros(V)
        place = device() if get_backend() == "cuda" else HOST
        self.params: dict[str, Any] = {name: place.moved(value.astype(self.dtype)) for name, value in params.items()}

    def _features(self, args: Arguments, features: Any) -> Any:
        """The features where the parameters are, in their dtype: float64 features leave a float32 model float32."""
        W_proj = self.params["W_proj"]
        args.shape("W_proj", W_proj.shape, "D H")
        (checked,) = args.floats(("features", features, "N D"), dtype=W_proj.dtype)
        return place_of(W_proj).moved(checked)

    def loss(
        self, features: Any, captions: Any, *, ready: Callable[[str, Any], Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Loss of the captions, and its gradient with respect to every parameter.

        Parameters
        ----------
        features : float (N, D)
            Image features; they are computed with in the dtype of the parameters.
        captions : int (N, T)
            Word ids: ``<START>``, the words, ``<END>``, filled up with ``<NULL>``. Step t reads word t and is to give
            word t + 1; ``<NULL>`` words to be given do not count.
        ready : callable, optional
            Called as ``ready(name, gradient)`` as soon as the gradient of a parameter is final, in the order of the
            backward pass: the vocabulary's first, while the recurrent layer's are still to come.

        With parameters on a GPU, features and captions are NumPy arrays as well: they are moved, and nothing is waited
        for. Captions on the GPU would be read back, since it is decided here which steps are run.

        Returns
        -------
        loss : float
            Cross-entropy summed over the steps and averaged over the N images; on a GPU a CuPy array of no axes.
        grads : dict
            The gradient of each parameter, of its name, shape and dtype.
        """
        params = self.params
        args = Arguments("CaptioningRNN.loss", place=place_of(features))
        features = self._features(args, features)
        args = Arguments("CaptioningRNN.loss", {"N": args["N"]}, "features")
        ids = args.array("captions", to_host(captions))
        args.shape("captions", ids.shape, "N T")
        ids = args.ids("captions", ids, len(self.word_to_idx), f"the V = {len(self.word_to_idx)} words")
        if args["T"] == 0:
            raise args.fail(ValueError, "captions", "have at least one word each", f"shape {ids.shape}")
        words_in, words_out = ids[:, :-1], ids[:, 1:]
        mask = words_out != self._null
        # Steps after a caption's last word change nothing: they are not run.
        steps = mask.shape[1]
        lengths = np.where(mask.any(axis=1), steps - np.argmax(mask[:, ::-1], axis=1), 0) if mask.size else None
        cell = _CELLS[self.cell_type]

        h0, proj_cache = affine_forward(features, params["W_proj"], params["b_proj"])
        x, embed_cache = word_embedding_forward(words_in, params["W_embed"])
        h, cell_cache = cell.forward(x, h0, params["Wx"], params["Wh"], params["b"], lengths=lengths)
        grads: dict[str, Any] = {}

        def final(**gradients: Any) -> None:
            # Parameters of mixed dtypes are computed with in the wider one; each gets its gradient in its own.
            for name, gradient in gradients.items():
                grads[name] = gradient.astype(params[name].dtype, copy=False)
                if ready is not None:
                    ready(name, grads[name])

        loss, dh, dW, db = vocab_softmax_loss(h, params["W_vocab"], params["b_vocab"], words_out, mask)
        final(W_vocab=dW, b_vocab=db)
        dx, dh0, dWx, dWh, db = cell.backward(dh, cell_cache)
        final(Wx=dWx, Wh=dWh, b=db)
        final(W_embed=word_embedding_backward(dx, embed_cache))
        _, dW, db = affine_backward(dh0, proj_cache)
        final(W_proj=dW, b_proj=db)
        return loss, {name: grads[name] for name in params}

    def start(self, features: Any) -> tuple[Any, ...]:
        """The state before the first word.

        Parameters
        ----------
        features : float (N, D)
            Image features; they are computed with in the dtype of the parameters.

        Returns
        -------
        tuple of float (N, H)
            The hidden state, and the cell state of an LSTM. They are where the parameters are.
        """
        return self._first("CaptioningRNN.start", features)

    def _first(self, function: str, features: Any) -> tuple[Any, ...]:
        features = self._features(Arguments(function, place=place_of(features)), features)
        h, _ = affine_forward(features, self.params["W_proj"], self.params["b_proj"])
        return (h, place_of(h).xp.zeros_like(h)) if self.cell_type == "lstm" else (h,)

    def step(self, words: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Read one word of each caption, and give scores for the next.

        Parameters
        ----------
        words : int (N,)
            Word ids; ``<START>`` at first.
        state : tuple of float (N, H)
            What `start` or the step before returned. It is not changed.

        Returns
        -------
        scores : float (N, V)
            The softmax of a row is the probability of each next word.
        state : tuple of float (N, H)
            The state after the words.
        """
        params = self.params
        x, _ = word_embedding_forward(words, params["W_embed"])
        if self.cell_type == "lstm":
            h, c, _ = lstm_step_forward(x, state[0], state[1], params["Wx"], params["Wh"], params["b"])
            state = (h, c)
        else:
            forward = rnn_step_forward if self.cell_type == "rnn" else gru_step_forward
            h, _ = forward(x, state[0], params["Wx"], params["Wh"], params["b"])
            state = (h,)
        scores, _ = affine_forward(h, params["W_vocab"], params["b_vocab"])
        return scores, state

    def sample(self, features: Any, max_length: int = 30) -> Any:
        """Caption images greedily: at each step the word with the highest score, which the next step reads.

        Parameters
        ----------
        features : float (N, D)
            Image features.
        max_length : int
            Number of words to give. Sampling goes on after ``<END>``; `decode_captions` stops there.

        Returns
        -------
        int32 (N, max_length)
            Word ids; the first column is the first word said, not ``<START>``. They are where the parameters are.

        See Also
        --------
        fastrnn.captioning.greedy : stops after ``<END>``, and gives the probability of each caption.
        """
        state = self._first("CaptioningRNN.sample", features)
        max_length = Arguments("CaptioningRNN.sample").whole("max_length", max_length)
        if self._start is None:
            raise ValueError("CaptioningRNN.sample: word_to_idx must have the word '<START>' to begin from, got none")

        captions = place_of(state[0]).xp.empty((len(state[0]), max_length), dtype=np.int32)
        words: Any = np.full(len(captions), self._start)
        for t in range(max_length):
            scores, state = self.step(words, state)
            words = scores.argmax(axis=1)
            captions[:, t] = words
        return captions

    def log_likelihood(self, features: Any, captions: Any) -> np.ndarray:
        """Logarithm of the probability of each caption, given its image; what `loss` is the negative mean of.

        Parameters
        ----------
        features : float (N, D)
            Image features; they are computed with in the dtype of the parameters.
        captions : int (N, T)
            Word ids: ``<START>``, the words, ``<END>``, filled up with ``<NULL>``, whose probability does not count.

        Returns
        -------
        float64 (N,)
            Natural logarithms, in the computer's memory.
        """
        params = self.params
        h0 = self._first("CaptioningRNN.log_likelihood", features)[0]
        place = place_of(h0)
        args = Arguments("CaptioningRNN.log_likelihood", {"N": len(h0)}, "features")
        ids = args.array("captions", to_host(captions))
        args.shape("captions", ids.shape, "N T")
        ids = args.ids("captions", ids, len(self.word_to_idx), f"the V = {len(self.word_to_idx)} words")
        if args["T"] == 0:
            raise args.fail(ValueError, "captions", "have at least one word each", f"shape {ids.shape}")
        rows, steps = np.nonzero(ids[:, 1:] != self._null)
        total = np.zeros(len(ids))
        if not len(rows):
            return total
        lengths = np.zeros(len(ids), np.int64)
        np.maximum.at(lengths, rows, steps + 1)
        x, _ = word_embedding_forward(ids[:, : lengths.max()], params["W_embed"])
        h, _ = _CELLS[self.cell_type].forward(x, h0, params["Wx"], params["Wh"], params["b"], lengths=lengths)
        at_once = max(_SCORES // params["W_vocab"].shape[1], 1)
        for begin in range(0, len(rows), at_once):
            part = slice(begin, begin + at_once)
            n, t = rows[part], steps[part]
            scores, _ = affine_forward(h[place.moved(n), place.moved(t)], params["W_vocab"], params["b_vocab"])
            words = place.moved(ids[n, t + 1])
            np.add.at(total, n, log_probabilities(scores, words[:, None])[:, 0])
        return total


def log_probabilities(scores: Any, ids: Any) -> np.ndarray:
    """Log softmax of `scores` (R, V) at the words `ids` (R, k), as float64 (R, k) in the computer's memory.

    The maximum of each row is taken out, so that no score overflows; NaN where a score is NaN or infinite.
    """
    xp = place_of(scores).xp
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite scores, and of those far below the maximum
        top = scores.max(axis=1)[:, None]
        # Each as wide as a row of scores: made anew only once.
        shifted = scores - top
        chosen = shifted[xp.arange(len(ids))[:, None], ids]
        total = xp.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64)[:, None]
    return np.asarray(to_host(chosen), np.float64) - np.log(to_host(total))
