"""From a trained model to captions, and how good they are: decoders, metrics, pictures, and their two commands."""

import json
import math
from dataclasses import asdict
from importlib.util import find_spec

import fake_device
import numpy as np
import pytest
from harness import BACKENDS, complains
from scipy import stats
from typer.testing import CliRunner

import fastrnn
from fastrnn import conformance
from fastrnn.captioning import (
    CaptioningRNN,
    beam_search,
    bleu,
    contact_sheet,
    decode_captions,
    decoding,
    greedy,
    loss_curve,
    numbers,
    perplexity,
    pictures,
    sample,
    save_coco_data,
)
from fastrnn.captioning.checkpoint import Checkpoint, save_checkpoint
from fastrnn.captioning.training import TrainingConfig
from fastrnn.cli.main import app

pytestmark = pytest.mark.filterwarnings("ignore:fastrnn runs on:RuntimeWarning")

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4}
NULL, START, END = 0, 1, 2
needs_simulator = pytest.mark.skipif(
    find_spec("fastrnn._cuda_on_host") is None, reason="the simulator was not built (cmake -DFASTRNN_CUDA_ON_HOST=ON)"
)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_cell = pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def small(cell="lstm", dtype=np.float64, seed=0, words=WORDS):
    """A model of D = 4, W = 3, H = 5 that says sentences of several lengths."""
    rng = np.random.default_rng(seed)
    model = CaptioningRNN(words, 4, 3, 5, cell, dtype, rng=rng)
    for name, value in model.params.items():
        model.params[name] = rng.uniform(-1.5, 1.5, value.shape).astype(dtype)
    model.params["W_vocab"] *= dtype(3)
    return model


def images(count=6, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 4))


def roundoff(model, words=9):
    """What rounding may change of a log probability of so many words: 4 eps of the largest score that there can be."""
    p = model.params
    largest = (np.abs(p["W_vocab"]).sum(axis=0) + np.abs(p["b_vocab"])).max()  # hidden states lie between -1 and 1
    return float(words * 4 * np.finfo(model.dtype).eps * largest)


def padded(decoded, length):
    """Ids filled up to one width, so that captions of several calls can be compared."""
    return np.pad(decoded.ids, ((0, 0), (0, length - decoded.ids.shape[1])))


# ---- decoding --------------------------------------------------------------------------------------------------------


def all_sentences(model, features, length):
    """Every sentence that ends by <END> or at `length`, with its log probability, one word after another."""
    forward = {"rnn": fastrnn.rnn_forward, "lstm": fastrnn.lstm_forward, "gru": fastrnn.gru_forward}[model.cell_type]
    p = model.params
    h0 = features[None] @ p["W_proj"] + p["b_proj"]
    found, beginnings = {}, {(): 0.0}
    while beginnings:
        longer = {}
        for said, log_p in beginnings.items():
            h, _ = forward(p["W_embed"][[[START, *said]]], h0, p["Wx"], p["Wh"], p["b"])
            scores = h[0, -1] @ p["W_vocab"] + p["b_vocab"]
            for word, gained in enumerate(scores - np.log(np.exp(scores).sum())):
                ends = word == END or len(said) + 1 == length
                (found if ends else longer)[(*said, word)] = log_p + gained
        beginnings = longer
    return found


@each_backend
@each_cell
def test_a_beam_as_wide_as_everything_finds_the_best_of_all_sentences(backend, cell):
    model, features, length = small(cell), images(5), 4
    with fastrnn.backend("reference"):
        sentences = [all_sentences(model, row, length) for row in features]
    assert len(sentences[0]) == 1 + 4 + 16 + 64 + 256
    answers = []
    for power in (0.0, 0.6, 2.0):
        with fastrnn.backend(backend):
            decoded = beam_search(model, features, length, beam_width=400, length_penalty=power)
        for n, all_of_it in enumerate(sentences):
            best = max(all_of_it, key=lambda said: all_of_it[said] / ((5 + len(said)) / 6) ** power)
            assert decoded.ids[n, : decoded.lengths[n]].tolist() == list(best)
            assert decoded.log_probability[n] == pytest.approx(all_of_it[best], rel=1e-12)
            answers.append(best)
    assert len(set(answers)) > 1 and len({len(said) for said in answers}) > 1  # or anything would find them


@each_backend
@each_cell
@each_dtype
def test_a_beam_of_one_is_greedy_bit_for_bit(backend, cell, dtype):
    model, features = small(cell, dtype), images(40)
    with fastrnn.backend(backend):
        for power in (0.0, 0.6):
            one, best = greedy(model, features, 9), beam_search(model, features, 9, 1, power)
            for a, b in zip(one, best, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    assert len(set(one.lengths.tolist())) > 2


@each_backend
@each_cell
@each_dtype
def test_greedy_is_sample_of_the_model_up_to_the_end(backend, cell, dtype):
    model, features = small(cell, dtype), images(40)
    with fastrnn.backend(backend):
        decoded = greedy(model, features, 9)
        said = np.asarray(model.sample(features, 9))
        captions = np.column_stack([np.full(40, START), decoded.ids])
        likelihood = model.log_likelihood(features, captions)
    assert decoded.ids.dtype == np.int32 and decoded.log_probability.dtype == np.float64
    for n, length in enumerate(decoded.lengths.tolist()):
        ends = np.flatnonzero(said[n] == END)
        assert length == (ends[0] + 1 if ends.size else 9)
        np.testing.assert_array_equal(decoded.ids[n, :length], said[n, :length])
        assert not decoded.ids[n, length:].any()
    assert decoded.ids.shape == (40, decoded.lengths.max()) and decoded.lengths.min() < decoded.lengths.max()
    heard = ~((captions[:, 1:] == NULL) & (np.arange(decoded.ids.shape[1]) < decoded.lengths[:, None])).any(axis=1)
    assert heard.any()  # captions in which <NULL> is not among the words said, which log_likelihood would leave out
    np.testing.assert_allclose(decoded.log_probability[heard], likelihood[heard], rtol=0, atol=roundoff(model))


DECODERS = {
    "greedy": lambda model, features, rng: greedy(model, features, 8),
    "sample": lambda model, features, rng: sample(model, features, 8, 0.8, 4, rng),
    "sample of all words": lambda model, features, rng: sample(model, features, 8, rng=rng),
    "beam": lambda model, features, rng: beam_search(model, features, 8, 3),
    "wide beam": lambda model, features, rng: beam_search(model, features, 8, 20, 0.0),
}
each_decoder = pytest.mark.parametrize("decoder", DECODERS)


@each_backend
@each_decoder
@each_dtype
def test_many_images_are_captioned_as_one_at_a_time(backend, decoder, dtype):
    model, features = small("gru", dtype), images(12)
    decode = DECODERS[decoder]
    with fastrnn.backend(backend):
        together = decode(model, features, np.random.default_rng(5))
        rng = np.random.default_rng(5)
        alone = [decode(model, features[n : n + 1], rng) for n in range(12)]
    np.testing.assert_array_equal(padded(together, 8), np.concatenate([padded(one, 8) for one in alone]))
    np.testing.assert_array_equal(together.lengths, [one.lengths[0] for one in alone])
    np.testing.assert_allclose(
        together.log_probability, [one.log_probability[0] for one in alone], rtol=0, atol=roundoff(model)
    )


@each_backend
@each_decoder
def test_all_backends_say_the_same_and_nothing_after_the_end(backend, decoder):
    model, features = small("lstm"), images(30)
    kept = {name: value.copy() for name, value in model.params.items()}
    with fastrnn.backend("reference"):
        want = DECODERS[decoder](model, features, np.random.default_rng(2))
    with fastrnn.backend(backend):
        got = DECODERS[decoder](model, features, np.random.default_rng(2))
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.log_probability, want.log_probability, rtol=0, atol=roundoff(model))
    said = np.arange(got.ids.shape[1]) < got.lengths[:, None]
    assert not got.ids[~said].any()
    ends = got.ids == END
    assert (ends.sum(axis=1) <= 1).all() and (ends.sum(axis=1) == (got.lengths < 8)).any()
    assert (got.ids[ends.any(axis=1), got.lengths[ends.any(axis=1)] - 1] == END).all()
    for name, value in model.params.items():
        np.testing.assert_array_equal(value, kept[name])


def test_a_wider_beam_finds_what_greedy_does_not():
    model, features = small("lstm", seed=3), images(200)
    one, five = greedy(model, features, 8), beam_search(model, features, 8, 5, 0.0)
    assert (five.log_probability > one.log_probability + 1e-9).sum() > 10
    assert five.log_probability.sum() > one.log_probability.sum()
    # More divides by more, and so says more.
    longer = beam_search(model, features, 8, 5, 3.0)
    assert longer.lengths.mean() > five.lengths.mean()


def test_steps_are_for_captions_that_have_not_ended(monkeypatch):
    """The work is that of the words said; an image whose answer is certain is left alone."""
    model, features = small(), images(30)
    rows = []
    step = CaptioningRNN.step

    def spy(self, words, state):
        rows.append(len(words))
        return step(self, words, state)

    monkeypatch.setattr(CaptioningRNN, "step", spy)
    decoded = greedy(model, features, 9)
    assert rows == [int((decoded.lengths > t).sum()) for t in range(decoded.lengths.max())]
    rows.clear()
    model.params["b_vocab"][END] += 100
    assert beam_search(model, features, 9, 4).lengths.tolist() == [1] * 30
    assert rows == [30]


@each_backend
def test_towards_temperature_zero_sampling_is_greedy(backend):
    model, features = small(), images(50)
    with fastrnn.backend(backend):
        want = greedy(model, features, 8)
        for options in (
            {"temperature": 1e-3},
            {"temperature": 1e-300},
            {"top_k": 1},
            {"top_k": 1, "temperature": 50.0},
        ):
            got = sample(model, features, 8, rng=np.random.default_rng(0), **options)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
        other = sample(model, features, 8, rng=np.random.default_rng(0))
    assert other.ids.shape != want.ids.shape or (other.ids != want.ids).any()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 2)])
def test_words_are_drawn_with_their_probabilities(temperature, top_k):
    count = 40_000
    model = small()
    features = np.repeat(images(1), count, axis=0)
    scores, _ = model.step([START], model.start(features[:1]))
    order = np.argsort(-scores[0])
    allowed = order[:top_k]
    chance = np.zeros(5)
    chance[allowed] = np.exp(scores[0, allowed] / temperature)
    chance /= chance.sum()
    got = sample(model, features, 1, temperature, top_k, np.random.default_rng(7))
    counts = np.bincount(got.ids[:, 0], minlength=5)
    assert not counts[chance == 0].any()
    seen = chance > 0
    assert stats.chisquare(counts[seen], count * chance[seen]).pvalue > 0.001
    np.testing.assert_allclose(
        got.log_probability, (scores[0] - np.log(np.exp(scores[0]).sum()))[got.ids[:, 0]], rtol=1e-12
    )


def test_the_global_generator_draws_where_none_is_given():
    model, features = small(), images()
    np.random.seed(3)
    first = sample(model, features, 6)
    np.random.seed(3)
    again = sample(model, features, 6)
    np.testing.assert_array_equal(first.ids, again.ids)
    drawn = np.random.RandomState(3).random_sample((6, 6))

    class Same(np.random.Generator):
        def random(self, size=None):
            return drawn

    np.testing.assert_array_equal(sample(model, features, 6, rng=Same(np.random.PCG64())).ids, first.ids)


def test_the_largest_numbers_that_can_be_drawn_stay_within_the_words():
    scores = np.array([[0.0, -1e4, 1.0, -np.inf], [5.0, -np.inf, -1e4, -1e5]])
    below_one = np.nextafter(1, 0)
    for numbers_drawn, want in (([below_one] * 2, [2, 0]), ([0.0, 0.0], [0, 0])):
        for temperature in (1e-8, 1.0, 1e8):
            got = decoding._draw(scores, np.array(numbers_drawn), temperature, None)
            assert np.isfinite(scores[[0, 1], got]).all()
            if temperature == 1.0:
                assert got.tolist() == want


def test_the_highest_scores_however_many():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, 40)).astype(np.float32)  # many equals
    order = np.argsort(-scores, axis=1, kind="stable")
    for count in (1, 2, decoding._FEW, decoding._FEW + 1, 40):
        kept = scores.copy()
        np.testing.assert_array_equal(decoding._top(scores, count), order[:, :count])
        np.testing.assert_array_equal(scores, kept)


def test_no_images_and_vocabularies_without_an_end():
    model = small()
    for decoder in DECODERS.values():
        decoded = decoder(model, np.zeros((0, 4)), np.random.default_rng(0))
        assert [part.shape for part in decoded] == [(0, 0), (0,), (0,)]
    words = {"<NULL>": 0, "<START>": 1, "cat": 2, "dog": 3}
    endless = small(words=words)
    for decoder in DECODERS.values():
        assert decoder(endless, images(3), np.random.default_rng(0)).lengths.tolist() == [8, 8, 8]
    headless = small(words={"<NULL>": 0, "cat": 1})
    for function in (greedy, sample, beam_search):
        with complains(ValueError, function.__name__, "<START>"):
            function(headless, images())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers(value):
    model = small()
    model.params["b_vocab"][3] = value
    for function in (greedy, sample, beam_search):
        with complains(ValueError, function.__name__, "finite", "word 1"):
            function(model, images())


@pytest.mark.parametrize(
    ("function", "options", "error", "words"),
    [
        (greedy, {"max_length": 0}, ValueError, ("max_length", "at least 1", "0")),
        (greedy, {"features": np.zeros((6, 3))}, ValueError, ("features", "D", "(6, 3)")),
        (sample, {"max_length": 2.0}, TypeError, ("max_length", "a whole number, got 2.0")),
        (sample, {"temperature": 0}, ValueError, ("temperature", "above 0", "0")),
        (sample, {"temperature": -1.0}, ValueError, ("temperature", "above 0", "-1")),
        (sample, {"temperature": math.nan}, ValueError, ("temperature", "nan")),
        (sample, {"temperature": math.inf}, ValueError, ("temperature", "inf")),
        (sample, {"top_k": 0}, ValueError, ("top_k", "at least 1")),
        (sample, {"rng": 3}, TypeError, ("rng", "Generator", "int")),
        (beam_search, {"max_length": -1}, ValueError, ("max_length", "-1")),
        (beam_search, {"beam_width": 0}, ValueError, ("beam_width", "at least 1")),
        (beam_search, {"beam_width": 2.5}, TypeError, ("beam_width", "a whole number, got 2.5")),
        (beam_search, {"length_penalty": -0.1}, ValueError, ("length_penalty", "at least 0", "-0.1")),
        (beam_search, {"length_penalty": math.nan}, ValueError, ("length_penalty", "nan")),
        (beam_search, {"features": np.zeros(4)}, ValueError, ("features", "2-dimensional")),
    ],
)
def test_bad_arguments_of_the_decoders(function, options, error, words):
    with complains(error, function.__name__, *words):
        function(**({"model": small(), "features": images()} | options))


@pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")
@pytest.mark.parametrize("simulated", [False, pytest.param(True, marks=needs_simulator)], ids=["device", "simulator"])
@each_cell
def test_decoding_on_a_device(cell, simulated, monkeypatch):
    """Parameters and scores stay there; captions and their probabilities come back."""
    host, features = small(cell, np.float32), images(12).astype(np.float32)
    with fastrnn.backend("cpu"):
        want = {name: decode(host, features, np.random.default_rng(1)) for name, decode in DECODERS.items()}
        captions = np.column_stack([np.full(12, START), want["greedy"].ids])
        likelihood = host.log_likelihood(features, captions)
    fake_device.install(monkeypatch, conformance.CASES, simulated=simulated)
    import cupy

    model = small(cell, np.float32)
    model.params = {name: cupy.asarray(value) for name, value in model.params.items()}
    with fastrnn.backend("cuda"):
        for name, decode in DECODERS.items():
            for given in (features, cupy.asarray(features)):
                got = decode(model, given, np.random.default_rng(1))
                assert all(type(part) is np.ndarray for part in got)
                np.testing.assert_array_equal(got.ids, want[name].ids)
                np.testing.assert_allclose(got.log_probability, want[name].log_probability, rtol=0, atol=roundoff(host))
        np.testing.assert_allclose(model.log_likelihood(features, captions), likelihood, rtol=0, atol=roundoff(host))
        many = decoding._top(cupy.asarray(np.tile(np.arange(40.0), (2, 1))), 20)
    np.testing.assert_array_equal(many.get(), np.tile(np.arange(39, 19, -1), (2, 1)))


# ---- metrics ---------------------------------------------------------------------------------------------------------


@each_backend
@each_cell
@each_dtype
def test_log_likelihood_is_the_loss_of_each_caption(backend, cell, dtype, monkeypatch):
    monkeypatch.setattr("fastrnn.captioning.model._SCORES", 35)  # seven rows of five words at once
    model, features = small(cell, dtype), images(6)
    captions = np.array([[1, 3, 4, 2, 0, 0], [1, 3, 0, 4, 2, 0], [1, 0, 0, 0, 0, 0], [1, 3, 4, 3, 4, 2]])
    captions = np.concatenate([captions, captions[:2]])
    with fastrnn.backend(backend):
        got = model.log_likelihood(features, captions)
        loss, _ = model.loss(features, captions)
        each = [model.loss(features[n : n + 1], captions[n : n + 1])[0] for n in range(6)]
        assert (model.log_likelihood(features, captions[:, :1]) == 0).all()
    assert got.dtype == np.float64 and got[2] == 0
    np.testing.assert_allclose(got, np.negative(each), rtol=0, atol=roundoff(model))
    assert -got.mean() == pytest.approx(float(loss), abs=roundoff(model))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"captions": np.ones((5, 3), int)}, ValueError, ("captions", "N from features", "(5, 3)")),
        ({"captions": np.full((6, 3), 5)}, IndexError, ("captions", "5 words")),
        ({"captions": np.ones((6, 0), int)}, ValueError, ("captions", "at least one word")),
        ({"features": np.zeros((6, 5))}, ValueError, ("features", "(6, 5)")),
    ],
)
def test_bad_arguments_of_log_likelihood(change, error, words):
    with complains(error, "CaptioningRNN.log_likelihood", *words):
        small().log_likelihood(**({"features": images(), "captions": np.ones((6, 3), int)} | change))


def test_perplexity():
    model, features = small(), images(6)
    captions = np.array([[1, 3, 4, 2, 0], [1, 3, 2, 0, 0], [1, 4, 4, 4, 2]] * 2)
    spoken = int((captions[:, 1:] != 0).sum())
    want = math.exp(6 * model.loss(features, captions)[0] / spoken)
    assert perplexity(model, [(captions, features)]) == pytest.approx(want, rel=1e-12)
    parts = [(captions[:4], features[:4], "more"), (captions[4:], features[4:], "more")]
    assert perplexity(model, iter(parts)) == pytest.approx(want, rel=1e-12)
    for name in ("W_vocab", "b_vocab"):
        model.params[name][...] = 0
    assert perplexity(model, [(captions, features)]) == pytest.approx(5, rel=1e-12)  # it guesses among five words
    model.params["b_vocab"][START] = 1e4
    assert perplexity(model, [(captions, features)]) == math.inf
    for batches in ([], [(np.array([[1, 0]]), features[:1])]):
        with complains(ValueError, "perplexity", "none"):
            perplexity(model, batches)


def test_bleu_by_hand():
    pytest.importorskip("sacrebleu")
    # 6 words against 6: 5 right; of 5 pairs 3; of 4 triples 2; of 3 fours 1.
    score = bleu(["the cat sat on the rug"], [["the cat sat on the mat"]])
    assert score["BLEU-1"] == pytest.approx(100 * 5 / 6)
    assert score["BLEU-2"] == pytest.approx(100 * (5 / 6 * 4 / 5) ** (1 / 2))
    assert score["BLEU-3"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4) ** (1 / 3))
    assert score["BLEU-4"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4))
    # "the the the ..." counts as often as a reference has it, and the nearest reference in length has 7 words.
    score = bleu(["the the the the the the the"], [["the cat is on the mat now", "there is a cat on the mat"]])
    assert score["BLEU-1"] == pytest.approx(100 * 2 / 7) and score["BLEU-2"] == 0
    # Too short: exp(1 - 4 / 2). Counted over the corpus, not averaged over images.
    assert bleu(["a b"], [["a b c d"]])["BLEU-2"] == pytest.approx(100 * math.exp(-1))
    both = bleu(["a b", "x"], [["a b c d"], ["y", "z", "x"]])
    assert both["BLEU-1"] == pytest.approx(100 * math.exp(1 - 5 / 3))
    assert bleu(["a b c 5 $ ."], [["a b c 5 $ ."]]) == {f"BLEU-{n}": 100.0 for n in (1, 2, 3, 4)}
    assert bleu(["", "a"], [["b"], ["c"]]) == {f"BLEU-{n}": 0.0 for n in (1, 2, 3, 4)}


def test_bleu_is_that_of_sacrebleu():
    module = pytest.importorskip("sacrebleu.metrics.bleu")
    rng = np.random.default_rng(0)

    def sentence():
        return " ".join(rng.choice(list("abcdef"), size=rng.integers(3, 12)))

    candidates = [sentence() for _ in range(200)]
    references = [[sentence() for _ in range(rng.integers(1, 6))] for _ in range(200)]
    # References as often as an image needs to have five, which changes nothing.
    streams = [[row[k % len(row)] for row in references] for k in range(5)]
    got = bleu(candidates, references)
    for order in (1, 2, 3, 4):
        metric = module.BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=order)
        assert got[f"BLEU-{order}"] == pytest.approx(metric.corpus_score(candidates, streams).score, rel=1e-12)
    assert got["BLEU-4"] > 0


@pytest.mark.parametrize(
    ("candidates", "references", "error", "words"),
    [
        ([], [], ValueError, ("candidates", "at least one")),
        (["a"], [["a"], ["b"]], ValueError, ("references", "1 candidates", "2")),
        (["a", "b"], [["a"], []], ValueError, ("references", "none at 1")),
        ("a", [["a"]], TypeError, ("candidates", "one string")),
        (["a"], ["a"], TypeError, ("references[0]", "one string")),
    ],
)
def test_bad_arguments_of_bleu(candidates, references, error, words):
    with complains(error, "bleu", *words):
        bleu(candidates, references)


def test_without_sacrebleu_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.bleu", None)
    with complains(ImportError, "bleu", "pip install 'fastrnn[captioning]'"):
        bleu(["a"], [["a"]])


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture_size(path):
    """Width and height of a PNG file."""
    start = path.read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved = []
    save = figure.savefig

    def spy(self, *args, **options):
        saved.append(self)
        return save(self, *args, **options)

    monkeypatch.setattr(figure, "savefig", spy)
    return saved


def test_loss_curve(tmp_path, drawn):
    steps = np.arange(10, 2010, 10)
    records = [{"step": int(step), "loss": 10 / step, "lr": 1e-3} for step in steps]
    records += [{"step": 500, "val_loss": 0.5}, {"step": 1000, "val_loss": 0.25}, {"step": 1500, "val_loss": 0.375}]
    records += [{"step": 1600, "loss": math.nan}, {"step": 1700, "val_loss": math.inf}, {"step": 3000}]
    loss_curve(reversed(records), tmp_path / "loss.png")
    assert min(picture_size(tmp_path / "loss.png")) > 400
    (axes,) = drawn[0].axes
    raw, mean, validated, best = axes.lines
    kept = steps[steps != 1600]  # of a step the record that came last counts, and NaN is none
    np.testing.assert_array_equal(raw.get_xdata(), steps if len(raw.get_xdata()) == len(steps) else kept)
    assert len(mean.get_xdata()) == len(raw.get_xdata()) - 10
    assert validated.get_ydata().tolist() == [0.5, 0.25, 0.375] and best.get_xdata().tolist() == [1000]
    assert "0.25 at step 1,000" in best.get_label() and axes.get_yscale() == "log"
    for few in ([{"step": 1, "loss": 3.0}], [{"step": 4, "val_loss": 0.0}], [{"step": 1, "loss": -1.0, "val_loss": 2}]):
        loss_curve(few, tmp_path / "few.svg")
    with complains(ValueError, "loss_curve", "2 without one"):
        loss_curve([{"step": 1}, {"step": 2, "loss": None}], tmp_path / "none.png")
    with complains(ValueError, "loss_curve", ".png", "loss.txt"):
        loss_curve(records, tmp_path / "loss.txt")


def test_nothing_overlaps_on_the_contact_sheet(tmp_path, drawn):
    """Boxes of text and pictures as they are drawn: each within the page and apart from all others."""
    rng = np.random.default_rng(0)
    shapes = [(8, 24), (60, 80, 3), (90, 60, 3), (8, 24), (300, 10), (5, 200, 4), (20, 20)]
    images_shown = [rng.random(shape) for shape in shapes]
    said = ["one two", "word " * 60, "x" * 90, "", "it costs $5 or $6 here", "two", "a caption of a usual length"]
    truths = [["one two"], ["other " * 50, "y"], ["z"], ["something"], [], ["three", "two"], ["another caption"]]
    contact_sheet(images_shown, said, truths, tmp_path / "sheet.png")
    (figure,) = drawn
    width, height = picture_size(tmp_path / "sheet.png")
    boxes = [axes.get_position().bounds for axes in figure.axes]
    boxes = [(x * width, y * height, (x + w) * width, (y + h) * height) for x, y, w, h in boxes]
    boxes += [text.get_window_extent().extents.tolist() for text in figure.texts]
    for n, (left, low, right, high) in enumerate(boxes):
        assert left >= 0 and low >= 0 and right <= width and high <= height
        for other in boxes[:n]:
            apart = right <= other[0] + 1 or other[2] <= left + 1 or high <= other[1] + 1 or other[3] <= low + 1
            assert apart, (boxes[n], other)
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "7 images, 2 captioned word for word"
    assert "(no words)" in texts and any("$5" in text for text in texts) and "three" not in texts
    assert {text.get_color() for text in figure.texts if text.get_text() in ("one two", "two")} == {pictures.GREEN}
    assert max(texts.count(text) for text in texts if text.startswith("word word")) <= pictures.MAX_LINES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pictures": []}, ("pictures", "at least one")),
        ({"captions": ["a", "b"]}, ("captions", "1 pictures", "2")),
        ({"truths": []}, ("truths", "1 pictures", "0")),
        ({"pictures": [np.zeros((3, 3, 2))]}, ("pictures", "(3, 3, 2) at 0")),
        ({"pictures": [np.zeros((0, 3))]}, ("pictures", "(0, 3) at 0")),
        ({"path": "sheet.doc"}, ("path", ".png", "sheet.doc")),
    ],
)
def test_bad_arguments_of_the_contact_sheet(options, words, tmp_path):
    given = {"pictures": [np.zeros((3, 3))], "captions": ["a"], "truths": [["a"]], "path": tmp_path / "a.png"}
    with complains(ValueError, "contact_sheet", *words):
        contact_sheet(**(given | options))


# ---- the command line ------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    """Exit code 2, one line, with all these words."""
    assert result.exit_code == 2, (result.output, result.exception)
    message = result.stderr
    assert message.startswith("fastrnn: ") and message.count("\n") == 1, message
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"{missing} not in: {message}"


def write_checkpoint(path, model, mean=0.25, scale=2.0):
    config = TrainingConfig(cell=model.cell_type, wordvec_dim=3, hidden_dim=5, dtype=model.dtype.name)
    save_checkpoint(
        path,
        Checkpoint(
            config=asdict(config),
            params=model.params,
            optimizer={},
            position={"epoch": 0, "batch": 0, "step": 0},
            word_to_idx=model.word_to_idx,
            idx_to_word=list(model.word_to_idx),
            feature_dim=model.params["W_proj"].shape[0],
            feature_mean=mean,
            feature_scale=scale,
        ),
    )
    return path


@pytest.fixture
def trained(tmp_path):
    """A run's folder, its model, and a data set of 7 images, of which image 4 has no captions and others several."""
    pytest.importorskip("h5py")
    model = small("lstm", np.float32)
    (tmp_path / "run").mkdir()
    write_checkpoint(tmp_path / "run" / "best.h5", model)
    features = images(7).astype(np.float32)
    of = np.array([5, 0, 0, 1, 6, 2, 3, 3, 3, 5])
    captions = np.array([[1, 3, 4, 2, 0, 0], [1, 3, 2, 0, 0, 0], [1, 4, 4, 4, 4, 2], [1, 3, 3, 4, 2, 0]] * 3)[:10]
    said = greedy(model, 2 * (features - 0.25), 5)
    captions[6, 1:] = padded(said, 5)[3]  # so that image 3 is right by one of its captions
    data = {"idx_to_word": list(WORDS), "word_to_idx": dict(WORDS)}
    for split in ("train", "val"):
        data[f"{split}_features"] = features
        data[f"{split}_captions"] = captions
        data[f"{split}_image_idxs"] = of
        data[f"{split}_urls"] = np.array([f"http://image/{n}.jpg" for n in range(7)])
    save_coco_data(tmp_path / "data", data, pca_features=False)
    return tmp_path, model, data


def said_by(model, data, decode):
    decoded = decode(model, 2 * (data["val_features"] - np.float32(0.25)))
    texts = decode_captions(decoded.ids, list(WORDS))
    return [" ".join(word for word in text.split() if word not in ("<START>", "<END>")) for text in texts], decoded


@pytest.mark.parametrize(
    ("options", "decode"),
    [
        ((), lambda model, features: greedy(model, features)),
        (("--decoder", "beam"), lambda model, features: beam_search(model, features)),
        (
            ("--decoder", "beam", "--beam", "2", "--length-penalty", "0", "--max-length", "4"),
            lambda model, features: beam_search(model, features, 4, 2, 0.0),
        ),
        (
            ("--decoder", "sample", "--temperature", "0.7", "--top-k", "3", "--seed", "5"),
            lambda model, features: sample(model, features, 30, 0.7, 3, np.random.default_rng(5)),
        ),
    ],
)
def test_caption_says_what_the_library_says(trained, options, decode):
    folder, model, data = trained
    result = run("caption", folder / "run", folder / "data", "--batch-size", "3", *options)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    texts, decoded = said_by(model, data, decode)
    assert [line["image"] for line in lines] == list(range(7))
    assert [line["url"] for line in lines] == data["val_urls"].tolist()
    assert [line["caption"] for line in lines] == texts
    np.testing.assert_allclose([line["log_probability"] for line in lines], decoded.log_probability, rtol=1e-4)
    assert len(set(texts)) > 1 and not any("<START>" in text or "<END>" in text for text in texts)


def test_caption_of_features_and_into_a_file(trained):
    folder, model, data = trained
    np.save(folder / "f.npy", np.asfortranarray(data["val_features"].astype(">f8")))
    out = folder / "said.jsonl"
    result = run("caption", folder / "run" / "best.h5", "--features", folder / "f.npy", "--out", out, "--limit", "5")
    assert result.exit_code == 0 and result.stdout == "", result.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [{"image": n, "caption": line["caption"], **_log(line)} for n, line in enumerate(lines)]
    assert [line["caption"] for line in lines] == said_by(model, data, greedy)[0][:5]
    # What cannot be captioned to its end leaves the file as it was.
    spoiled = data["val_features"].copy()
    spoiled[4, 1] = np.nan
    np.save(folder / "f.npy", spoiled)
    before = out.read_text()
    command = ("caption", folder / "run", "--features", folder / "f.npy", "--out", out, "--batch-size", "2")
    refused(run(*command), folder / "f.npy", "NaN or infinity in row 4")
    assert out.read_text() == before and not list(folder.glob("*.part"))


def _log(line):
    return {"log_probability": line["log_probability"]}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: np.save(path, np.zeros((3, 5), np.float32)), ("4 numbers", "5", "best.h5")),
        (lambda path: np.save(path, np.zeros(4)), ("(num_images, D)", "(4,)")),
        (lambda path: np.save(path, np.zeros((3, 4), complex)), ("floating-point", "complex128")),
        (lambda path: np.save(path, np.array([[{}]]), allow_pickle=True), ("numpy.save",)),
        (lambda path: path.write_bytes(b""), ("0 bytes",)),
        (lambda path: path.write_text("image,feature\n"), ("another kind",)),
        (lambda path: (np.save(path, np.zeros((99, 4))), path.write_bytes(path.read_bytes()[:500])), ("truncated",)),
        (lambda path: np.savez(path.open("wb"), a=np.zeros((3, 4))), ("archive",)),
        (lambda path: path.mkdir(), ("a folder",)),
        (lambda path: None, ("nothing",)),
    ],
)
def test_caption_refuses_files_of_features(trained, write, words):
    folder = trained[0]
    write(folder / "f.npy")
    refused(run("caption", folder / "run", "--features", folder / "f.npy"), folder / "f.npy", *words)


def test_evaluate_is_what_the_library_finds(trained):
    folder, model, data = trained
    result = run("evaluate", folder / "run", folder / "data", "--json", "--batch-size", "2", "--max-length", "5")
    assert result.exit_code == 0, result.output
    got = json.loads(result.stdout)
    of, captions = data["val_image_idxs"], data["val_captions"]
    texts, decoded = said_by(model, data, lambda model, features: greedy(model, features, 5))
    used = np.unique(of)
    words = decode_captions(captions, list(WORDS))
    truths = {n: [t.removeprefix("<START> ").removesuffix(" <END>") for t in np.array(words)[of == n]] for n in used}
    truths = {n: [text.removesuffix("<END>").strip() for text in true] for n, true in truths.items()}
    want = bleu([texts[n] for n in used], [truths[n] for n in used])
    assert {name: got[name] for name in want} == pytest.approx(want)
    assert got["images"] == 6 and got["captions"] == 10
    right = [n for n in used if texts[n] in truths[n]]
    assert 3 in right and got["exact_match"] == pytest.approx(len(right) / 6)
    features = 2 * (data["val_features"] - np.float32(0.25))
    assert got["perplexity"] == pytest.approx(perplexity(model, [(captions, features[of])]), rel=1e-5)
    assert got["decoder"] == "greedy" and got["split"] == "val" and got["step"] == 0
    # The first three images with captions alone.
    few = json.loads(run("evaluate", folder / "run", folder / "data", "--json", "--limit", "3").stdout)
    kept = of < 3
    assert few["images"] == 3 and few["captions"] == kept.sum()
    assert few["perplexity"] == pytest.approx(perplexity(model, [(captions[kept], features[of[kept]])]), rel=1e-5)
    table = run("evaluate", folder / "run", folder / "data", "--decoder", "beam", "--split", "train")
    assert table.exit_code == 0 and all(f"BLEU-{n}" in table.stdout for n in (1, 2, 3, 4))
    assert "exact match" in table.stdout and "perplexity" in table.stdout and "train: 6 images" in table.stdout


def test_the_sheet_of_image_files(trained, drawn):
    Image = pytest.importorskip("PIL.Image")
    folder, _, data = trained
    command = ("evaluate", folder / "run", folder / "data", "--sheet", folder / "sheet.png")
    refused(run(*command), "val2014_urls.txt", "line 1", "http://image/0.jpg", "--sheet")
    assert not (folder / "sheet.png").exists()
    # A file beside the data set, one by its whole name, and one by its URL.
    names = [f"pictures/{n}.png" for n in range(7)]
    (folder / "data" / "pictures").mkdir()
    for n, name in enumerate(names):
        Image.new("RGB" if n else "L", (60 + n, 40), 30 * n).save(folder / "data" / name)
    names[1] = str(folder / "data" / names[1])
    names[2] = (folder / "data" / names[2]).as_uri()
    (folder / "data" / "val2014_urls.txt").write_text("\n".join(names))
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert str(folder / "sheet.png") in "".join(result.stdout.split("\n")) and len(drawn[0].axes) == 6
    (folder / "data" / "pictures" / "3.png").write_text("no picture")
    refused(run(*command), "line 4", "3.png", "cannot identify")
    refused(run(*command[:-1], folder / "sheet.txt"), "sheet.txt", ".png")
    refused(run(*command[:-1], folder / "none" / "sheet.png"), "there is no folder")


def test_the_sheet_of_handwritten_numbers(tmp_path, monkeypatch, drawn):
    """The default data set, whose features are its images."""
    pytest.importorskip("sklearn")
    pytest.importorskip("h5py")
    few = numbers.build_numbers(40, 12)
    monkeypatch.setattr(numbers, "build_numbers", lambda: few)
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    words = {word: index for index, word in enumerate(numbers.IDX_TO_WORD)}
    model = CaptioningRNN(words, 192, 3, 5, "gru", np.float32, rng=np.random.default_rng(0))
    path = write_checkpoint(tmp_path / "last.h5", model)
    result = run("evaluate", path, "--sheet", tmp_path / "sheet.png", "--sheet-images", "5", "--seed", "3")
    assert result.exit_code == 0, result.output
    chosen = np.sort(np.random.default_rng(3).choice(12, 5, replace=False))
    shown = [axes.images[0].get_array() for axes in drawn[0].axes]
    np.testing.assert_array_equal(shown, few["val_features"][few["val_image_idxs"][chosen]].reshape(5, 8, 24))


def test_checkpoints_and_data_that_do_not_fit(trained):
    folder, model, data = trained
    run_folder, coco = folder / "run", folder / "data"
    for command in ("caption", "evaluate"):
        refused(run(command, folder / "none.h5", coco), "none.h5", "nothing")
        refused(run(command, coco, coco), coco, "folder")
        (folder / "half.h5").write_bytes((run_folder / "best.h5").read_bytes()[:3000])
        refused(run(command, folder / "half.h5", coco), "half.h5")
        refused(run(command, run_folder, folder / "nowhere"), "nowhere")
        refused(run(command, run_folder), "best.h5", "data set", "not there")
        refused(run(command, run_folder, coco, "--split", "test"), "split", "'test'", "train, val")
        refused(run(command, run_folder, coco, "--backend", "tpu"), "backend", "'tpu'")
        refused(run(command, run_folder, coco, "--decoder", "best"), "decoder", "'best'", "greedy, sample, beam")
        refused(run(command, run_folder, coco, "--beam", "0"), "--beam", "1")
        refused(run(command, run_folder, coco, "--beam", "3"), "--beam is for --decoder beam")
        sampling = (command, run_folder, coco, "--decoder", "sample")
        refused(run(*sampling, "--temperature", "0"), "--temperature", "above 0")
        refused(run(*sampling, "--temperature", "nan"), "--temperature", "nan")
        refused(run(*sampling, "--top-k", "0"), "--top-k", "1")
        refused(run(*sampling, "--length-penalty", "1"), "--length-penalty is for --decoder beam")
        refused(run(command, run_folder, coco, "--decoder", "beam", "--length-penalty", "-1"), "--length-penalty", "-1")
    other = folder / "other.h5"
    wide = CaptioningRNN(WORDS, 6, 3, 5, "lstm", np.float32)
    for command in ("caption", "evaluate"):
        refused(run(command, write_checkpoint(other, wide), coco), coco, "6 numbers", "other.h5", "got 4")
    words = small(words={"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "cow": 4}, dtype=np.float32)
    refused(
        run("evaluate", write_checkpoint(other, words), coco), "coco2014_vocab.json", "other.h5", "2 words", "'cow'"
    )
    words = small(words={"<NULL>": 0, "<START>": 1, "<END>": 2, "dog": 3, "cat": 4}, dtype=np.float32)
    refused(run("evaluate", write_checkpoint(other, words), coco), "coco2014_vocab.json", "the same words")
    refused(run("caption", run_folder, coco, "--features", folder / "f.npy"), "not both")
    refused(run("caption", run_folder, coco, "--out", folder / "none" / "said.jsonl"), "there is no folder")


def test_of_two_kinds_of_features_the_right_one_is_taken(trained):
    folder, model, data = trained
    reduced = {name: value[:, :2] if "features" in name else value for name, value in data.items()}
    save_coco_data(folder / "data", reduced, pca_features=True)
    result = run("caption", folder / "run", folder / "data", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["caption"] == said_by(model, data, greedy)[0][0]
    wide = write_checkpoint(folder / "other.h5", CaptioningRNN(WORDS, 6, 3, 5, "lstm", np.float32))
    refused(run("caption", wide, folder / "data"), "6 numbers", "got 2 or 4")


def test_features_that_are_no_numbers_in_the_data(trained):
    folder, model, data = trained
    data["val_features"][2, 0] = np.inf
    save_coco_data(folder / "data", data, pca_features=False)
    for command in ("caption", "evaluate"):
        refused(run(command, folder / "run", folder / "data"), "val2014_vgg16_fc7.h5", "2")


def test_a_full_disk_is_told_of_and_leaves_nothing(trained, monkeypatch):
    folder, model, data = trained

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastrnn.cli.caption.json.dumps", full)
    refused(run("caption", folder / "run", folder / "data", "--out", folder / "said.jsonl"), "said.jsonl", "No space")
    assert not list(folder.glob("said*"))
