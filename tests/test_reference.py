"""The oracle against finite differences, against published values and against its own identities."""

import copy
import inspect
import itertools
from functools import partial

import numpy as np
import pytest

from fastrnn import reference
from fastrnn.conformance import GATES
from fastrnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array, rel_error

N, T, D, H = 3, 4, 3, 2
LENGTHS = np.array([2, 4, 0])


@pytest.fixture
def rng():
    return np.random.default_rng(20140)


def cell_arrays(rng, cell, steps=(T,), dtype=np.float64):
    """x, h0, Wx, Wh, b of a cell; `steps` is () for one step."""
    width = GATES[cell] * H
    shapes = (N, *steps, D), (N, H), (D, width), (H, width), (width,)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def extra_array(rng, cell, dtype=np.float64):
    """The optional array of a cell by its keyword: c0 of the LSTM, bh of the GRU."""
    shapes = {"lstm": ("c0", (N, H)), "gru": ("bh", (3 * H,))}
    if cell not in shapes:
        return {}
    keyword, shape = shapes[cell]
    return {keyword: rng.standard_normal(shape).astype(dtype)}


def functions(cell, kind=""):
    return getattr(reference, f"{cell}{kind}_forward"), getattr(reference, f"{cell}{kind}_backward")


def step_arguments(rng, cell, dtype=np.float64):
    """All positional arguments of a step function, and the gradients of its outputs."""
    arrays = cell_arrays(rng, cell, steps=(), dtype=dtype)
    outputs = 1
    if cell == "lstm":
        arrays.insert(2, rng.standard_normal((N, H)).astype(dtype))
        outputs = 2
    return arrays, [rng.standard_normal((N, H)).astype(dtype) for _ in range(outputs)]


def state_gradients(rng, cell, dtype=np.float64):
    names = ("dh_n", "dc_n") if cell == "lstm" else ("dh_n",)
    return {name: rng.standard_normal((N, H)).astype(dtype) for name in names}


def states(result):
    """The final states of a forward that was asked to return them, as a tuple."""
    return result[1] if isinstance(result[1], tuple) else (result[1],)


def assert_gradients(loss, arrays, gradients):
    for array, gradient in zip(arrays, gradients, strict=True):
        assert gradient.shape == array.shape
        numerical = eval_numerical_gradient(loss, array, verbose=False)
        np.testing.assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-8)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


# ---- recurrent cells: gradients ----


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("shared_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_step_gradients(rng, cell, shared_input, bias):
    forward, backward = functions(cell, "_step")
    arrays, dout = step_arguments(rng, cell)
    if shared_input:
        arrays[0] = rng.standard_normal(D)
    keywords = extra_array(rng, cell) if bias and cell == "gru" else {}

    def loss(_):
        return sum(np.sum(out * d) for out, d in zip(forward(*arrays, **keywords), dout, strict=False))

    gradients = backward(*dout, forward(*arrays, **keywords)[-1])
    assert_gradients(loss, [*arrays, *keywords.values()], gradients)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("final", [False, True])
def test_sequence_gradients(rng, cell, lengths, reverse, extra, final):
    forward, backward = functions(cell)
    arrays = cell_arrays(rng, cell)
    keywords = extra_array(rng, cell) if extra else {}
    dh = rng.standard_normal((N, T, H))
    dstates = state_gradients(rng, cell) if final else {}
    run = partial(forward, *arrays, lengths=lengths, reverse=reverse, return_state=True, **keywords)

    def loss(_):
        result = run()
        total = np.sum(result[0] * dh)
        for state, dstate in zip(states(result), dstates.values(), strict=False):
            total += np.sum(state * dstate)
        return total

    gradients = backward(dh, run()[-1], **dstates)
    assert_gradients(loss, [*arrays, *keywords.values()], gradients)


# ---- recurrent cells: identities ----


@pytest.mark.parametrize("cell", GATES)
def test_sequence_is_a_loop_of_steps(rng, cell):
    forward, backward = functions(cell)
    step_forward, step_backward = functions(cell, "_step")
    x, h0, Wx, Wh, b = cell_arrays(rng, cell)
    extra = extra_array(rng, cell)
    dh = rng.standard_normal((N, T, H))
    h, h_n, cache = forward(x, h0, Wx, Wh, b, return_state=True, **extra)
    gradients = backward(dh, cache)

    state = [h0] if cell != "lstm" else [h0, extra.pop("c0")]
    caches = []
    for t in range(T):
        *state, step_cache = step_forward(x[:, t], *state, Wx, Wh, b, **extra)
        np.testing.assert_array_equal(h[:, t], state[0])
        caches.append(step_cache)
    assert_same(states((h, h_n)), state)

    dstate = [np.zeros((N, H)) for _ in state]
    totals = [np.zeros_like(g) for g in gradients[2:5]]
    for t in reversed(range(T)):
        dstate[0] = dstate[0] + dh[:, t]
        dx, *rest = step_backward(*dstate, caches[t])
        dstate = rest[: len(state)]
        np.testing.assert_array_equal(gradients[0][:, t], dx)
        totals = [total + g for total, g in zip(totals, rest[len(state) :], strict=False)]
    np.testing.assert_array_equal(gradients[1], dstate[0])
    assert_same(gradients[2:5], totals)
    if cell == "lstm":
        np.testing.assert_array_equal(gradients[5], dstate[1])


@pytest.mark.parametrize("cell", GATES)
def test_reverse_is_a_flip_of_time(rng, cell):
    forward, backward = functions(cell)
    x, *weights = cell_arrays(rng, cell)
    dh = rng.standard_normal((N, T, H))
    dstates = state_gradients(rng, cell)
    h, state, cache = forward(x, *weights, reverse=True, return_state=True)
    h_flipped, state_flipped, cache_flipped = forward(x[:, ::-1], *weights, return_state=True)
    np.testing.assert_array_equal(h, h_flipped[:, ::-1])
    assert_same(states((h, state)), states((h, state_flipped)))
    dx, *rest = backward(dh, cache, **dstates)
    dx_flipped, *rest_flipped = backward(dh[:, ::-1], cache_flipped, **dstates)
    np.testing.assert_array_equal(dx, dx_flipped[:, ::-1])
    assert_same(rest, rest_flipped)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_run_each_sequence_as_if_alone(rng, cell, reverse):
    forward, backward = functions(cell)
    x, h0, *weights = cell_arrays(rng, cell)
    extra = extra_array(rng, cell)
    dh, dstates = rng.standard_normal((N, T, H)), state_gradients(rng, cell)
    for n, length in enumerate(LENGTHS):  # what is not run is not looked at
        x[n, length:] = np.nan
        dh[n, length:] = np.nan
    result = forward(x, h0, *weights, lengths=LENGTHS, reverse=reverse, return_state=True, **extra)
    dx, dh0, *dweights = backward(dh, result[-1], **dstates)

    totals = [0] * 3
    for n, length in enumerate(LENGTHS):
        own = {name: array[n : n + 1] if name == "c0" else array for name, array in extra.items()}
        alone = forward(x[n : n + 1, :length], h0[n : n + 1], *weights, reverse=reverse, return_state=True, **own)
        np.testing.assert_allclose(result[0][n, :length], alone[0][0], rtol=1e-12)
        assert np.all(result[0][n, length:] == 0)
        for state, state_alone in zip(states(result), states(alone), strict=True):
            np.testing.assert_allclose(state[n], state_alone[0], rtol=1e-12)
        own_dstates = {name: array[n : n + 1] for name, array in dstates.items()}
        dx_alone, dh0_alone, *dweights_alone = backward(dh[n : n + 1, :length], alone[-1], **own_dstates)
        np.testing.assert_allclose(dx[n, :length], dx_alone[0], rtol=1e-12)
        assert np.all(dx[n, length:] == 0)
        np.testing.assert_allclose(dh0[n], dh0_alone[0], rtol=1e-12)
        totals = [total + g for total, g in zip(totals, dweights_alone, strict=False)]
    for gradient, total in zip(dweights, totals, strict=False):
        np.testing.assert_allclose(gradient, total, rtol=1e-12)


@pytest.mark.parametrize("cell", GATES)
def test_full_lengths_change_nothing(rng, cell):
    forward, backward = functions(cell)
    arrays = cell_arrays(rng, cell)
    dh = rng.standard_normal((N, T, H))
    h, cache = forward(*arrays)
    h_full, cache_full = forward(*arrays, lengths=[T] * N)
    np.testing.assert_array_equal(h, h_full)
    assert_same(backward(dh, cache), backward(dh, cache_full))


def test_lstm_cell_state_starts_at_zero(rng):
    arrays = cell_arrays(rng, "lstm")
    h, cache = reference.lstm_forward(*arrays)
    h_zero, cache_zero = reference.lstm_forward(*arrays, c0=np.zeros((N, H)))
    np.testing.assert_array_equal(h, h_zero)
    dh = rng.standard_normal((N, T, H))
    gradients, gradients_zero = reference.lstm_backward(dh, cache), reference.lstm_backward(dh, cache_zero)
    assert len(gradients) == 5 and len(gradients_zero) == 6
    assert_same(gradients, gradients_zero[:5])


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("empty", ["N", "T", "D", "H"])
def test_empty_sizes(cell, empty):
    n, t, d, h = (0 if name == empty else 2 for name in "NTDH")
    width = GATES[cell] * h
    forward, backward = functions(cell)
    shapes = (n, t, d), (n, h), (d, width), (h, width), (width,)
    out, cache = forward(*(np.ones(shape) for shape in shapes))
    assert out.shape == (n, t, h)
    assert [g.shape for g in backward(np.ones((n, t, h)), cache)] == list(shapes)


# ---- recurrent cells: what the well-known versions get wrong ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lstm_output_gate_may_underflow(rng, dtype):
    x, h0, Wx, Wh, b = cell_arrays(rng, "lstm", dtype=dtype)
    b[2 * H : 3 * H] = -1000  # o is exactly 0
    h, cache = reference.lstm_forward(x, h0, Wx, Wh, b)
    assert np.all(h == 0)
    for gradient in reference.lstm_backward(np.ones_like(h), cache):
        assert np.all(np.isfinite(gradient))
    _, _, cache = reference.lstm_step_forward(x[:, 0], h0, h0, Wx, Wh, b)
    for gradient in reference.lstm_step_backward(np.ones_like(h0), np.ones_like(h0), cache):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [-1e5, 1e5])
def test_saturated_gates_do_not_overflow(rng, cell, dtype, scale):
    forward, backward = functions(cell)
    arrays = cell_arrays(rng, cell, dtype=dtype)
    arrays[-1][:] = scale
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        h, cache = forward(*arrays)
        gradients = backward(np.ones_like(h), cache)
    assert all(np.all(np.isfinite(array)) for array in (h, *gradients))


def test_sigmoid_is_stable_and_symmetric():
    x = np.array([-np.inf, -1e4, -40.0, -1.0, 0.0, 1.0, 40.0, 1e4, np.inf])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        y = reference.sigmoid(x)
    np.testing.assert_allclose(y[2:7], 1 / (1 + np.exp(-x[2:7])), rtol=1e-14)
    np.testing.assert_array_equal(y[[0, 1, 7, 8]], [0, 0, 1, 1])
    np.testing.assert_allclose(y + y[::-1], 1, rtol=1e-15)
    assert np.isnan(reference.sigmoid(np.array([np.nan])))[0]


@pytest.mark.parametrize("cell", GATES)
def test_cache_serves_any_number_of_backwards(rng, cell):
    for kind in "", "_step":
        forward, backward = functions(cell, kind)
        if kind:
            arrays, dout = step_arguments(rng, cell)
        else:
            arrays, dout = cell_arrays(rng, cell), [rng.standard_normal((N, T, H))]
        cache = forward(*arrays)[-1]
        first = [gradient.copy() for gradient in backward(*dout, cache)]
        assert_same(backward(*dout, cache), first)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_results_belong_to_the_caller(rng, cell, lengths):
    """Changing returned arrays in place changes neither a backward that comes later nor the arguments."""
    forward, backward = functions(cell)
    arrays, extra = cell_arrays(rng, cell), extra_array(rng, cell)
    originals = copy.deepcopy((arrays, extra))
    dh, dstates = rng.standard_normal((N, T, H)), state_gradients(rng, cell)
    for steps in 0, T:
        x = arrays[0][:, :steps]
        cut = None if lengths is None else np.minimum(lengths, steps)
        result = forward(x, *arrays[1:], lengths=cut, return_state=True, **extra)
        expected = copy.deepcopy(backward(dh[:, :steps], result[-1], **dstates))
        for array in (result[0], *states(result)):
            array[...] = 7
        gradients = backward(dh[:, :steps], result[-1], **dstates)
        assert_same(gradients, expected)
        for array in gradients:
            array[...] = 7
        assert_same(backward(dh[:, :steps], result[-1], **dstates), expected)
    assert_same(arrays, originals[0])
    assert_same(extra.values(), originals[1].values())


@pytest.mark.parametrize("cell", GATES)
def test_step_results_belong_to_the_caller(rng, cell):
    forward, backward = functions(cell, "_step")
    arrays, dout = step_arguments(rng, cell)
    *outputs, cache = forward(*arrays)
    expected = copy.deepcopy(backward(*dout, cache))
    for array in outputs:
        array[...] = 7
    assert_same(backward(*dout, cache), expected)


@pytest.mark.parametrize("cell", GATES)
def test_incoming_gradients_are_not_modified(rng, cell):
    forward, backward = functions(cell, "_step")
    arrays, dout = step_arguments(rng, cell)
    originals = copy.deepcopy((arrays, dout))
    backward(*dout, forward(*arrays)[-1])
    assert_same(arrays, originals[0])
    assert_same(dout, originals[1])

    forward, backward = functions(cell)
    dh, dstates = rng.standard_normal((N, T, H)), state_gradients(rng, cell)
    originals = copy.deepcopy((dh, dstates))
    backward(dh, forward(*cell_arrays(rng, cell))[-1], **dstates)
    np.testing.assert_array_equal(dh, originals[0])
    assert_same(dstates.values(), originals[1].values())


# ---- embedding, affine ----


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (3, 1), (2, 2, 2)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_embedding(rng, shape, dtype):
    W = rng.standard_normal((3, 2))  # fewer words than places: some are repeated
    ids = rng.integers(0, 3, shape).astype(dtype)
    out, cache = reference.word_embedding_forward(ids, W)
    assert out.shape == (*shape, 2)
    for place in np.ndindex(shape):
        np.testing.assert_array_equal(out[place], W[int(ids[place])])
    dout = rng.standard_normal(out.shape)
    numerical = eval_numerical_gradient_array(lambda w: reference.word_embedding_forward(ids, w)[0], W, dout)
    dW = reference.word_embedding_backward(dout, cache)
    np.testing.assert_allclose(dW, numerical, rtol=1e-6, atol=1e-9)


def test_embedding_of_one_word_is_a_copy():
    W = np.ones((3, 2))
    out, _ = reference.word_embedding_forward(1, W)
    out[:] = 0
    assert np.all(W == 1)


@pytest.mark.parametrize("name, shape", [("affine", (3, 2, 2)), ("affine", (3, 4)), ("temporal_affine", (3, 2, 4))])
def test_affine(rng, name, shape):
    forward, backward = functions(name)
    x, w, b = rng.standard_normal(shape), rng.standard_normal((4, 5)), rng.standard_normal(5)
    out, cache = forward(x, w, b)
    lead = shape[:2] if name == "temporal_affine" else shape[:1]
    np.testing.assert_allclose(out, np.einsum("ni,im->nm", x.reshape(-1, 4), w).reshape(*lead, 5) + b, rtol=1e-12)
    dout = rng.standard_normal(out.shape)
    assert_gradients(lambda _: np.sum(forward(x, w, b)[0] * dout), (x, w, b), backward(dout, cache))


# ---- softmax loss ----


def test_softmax_loss(rng):
    x, y = rng.standard_normal((N, T, 5)), rng.integers(0, 5, (N, T))
    mask = rng.random((N, T)) < 0.6
    loss, dx = reference.temporal_softmax_loss(x, y, mask)
    p = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    by_hand = -sum(np.log(p[n, t, y[n, t]]) for n, t in np.ndindex(N, T) if mask[n, t]) / N
    np.testing.assert_allclose(loss, by_hand, rtol=1e-12)
    assert_gradients(lambda x: reference.temporal_softmax_loss(x, y, mask)[0], [x], [dx])


def test_vocab_softmax_loss(rng):
    h, W, b = rng.standard_normal((N, T, H)), rng.standard_normal((H, 5)), rng.standard_normal(5)
    y, mask = rng.integers(0, 5, (N, T)), rng.random((N, T)) < 0.6
    loss, *gradients = reference.vocab_softmax_loss(h, W, b, y, mask)
    scores = h @ W + b
    assert loss == pytest.approx(reference.temporal_softmax_loss(scores, y, mask)[0], rel=1e-14)
    assert_gradients(lambda _: reference.vocab_softmax_loss(h, W, b, y, mask)[0], [h, W, b], gradients)


def test_softmax_loss_does_not_look_at_masked_steps(rng):
    x, y = rng.standard_normal((N, T, 5)), rng.integers(0, 5, (N, T))
    mask = np.ones((N, T), bool)
    mask[0, 1] = mask[2, 3] = False
    expected = reference.temporal_softmax_loss(x, y, mask)
    y[0, 1], y[2, 3] = -7, 5
    x[0, 1], x[2, 3] = np.nan, np.inf
    loss, dx = reference.temporal_softmax_loss(x, y, mask)
    assert loss == expected[0]
    np.testing.assert_array_equal(dx, expected[1])
    assert np.all(dx[~mask] == 0)
    loss, dx = reference.temporal_softmax_loss(x, y, np.zeros((N, T), bool))
    assert loss == 0 and np.all(dx == 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_loss_of_large_scores(dtype):
    x = np.array([[[1e4, 0, -1e4], [-1e4, -1e4, -1e4]]], dtype)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        loss, dx = reference.temporal_softmax_loss(x, np.array([[1, 1]]), np.ones((1, 2), bool))
    np.testing.assert_allclose(loss, 1e4 + np.log(3), rtol=1e-6)
    np.testing.assert_allclose(dx, [[[1, -1, 0], [1 / 3, -2 / 3, 1 / 3]]], rtol=1e-6)


def test_softmax_loss_verbose(capsys):
    arguments = np.zeros((2, 3, 4)), np.zeros((2, 3), int), np.ones((2, 3), bool)
    reference.temporal_softmax_loss(*arguments)
    assert capsys.readouterr().out == ""
    reference.temporal_softmax_loss(*arguments, verbose=True)
    assert capsys.readouterr().out == "dx_flat:  (6, 4)\n"


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_softmax_loss_of_nothing_is_zero(shape):
    loss, dx = reference.temporal_softmax_loss(np.zeros(shape), np.zeros(shape[:2], int), np.ones(shape[:2], bool))
    assert loss == 0 and dx.shape == shape


# ---- Gram matrix, image losses ----


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gram(rng, normalize, layout):
    features = rng.standard_normal((2, 3, 2, 4) if layout == "NCHW" else (2, 2, 4, 3))
    gram = reference.gram_matrix(features, normalize, layout)
    subscripts = "nchw,ndhw->ncd" if layout == "NCHW" else "nhwc,nhwd->ncd"
    by_hand = np.einsum(subscripts, features, features) / (24 if normalize else 1)
    np.testing.assert_allclose(gram, by_hand, rtol=1e-12)
    dgram = rng.standard_normal(gram.shape)  # not symmetric
    dfeatures = reference.gram_backward(dgram, features, normalize, layout)
    assert_gradients(lambda f: np.sum(reference.gram_matrix(f, normalize, layout) * dgram), [features], [dfeatures])


def test_content_loss(rng):
    current, original = rng.standard_normal((2, 1, 3, 2, 4))
    loss = reference.content_loss(0.7, current, original)
    np.testing.assert_allclose(loss, 0.7 * np.square(current - original).sum(), rtol=1e-12)
    dcurrent = reference.content_loss_backward(0.7, current, original)
    assert_gradients(lambda c: reference.content_loss(0.7, c, original), [current], [dcurrent])


def test_style_loss(rng):
    feats = [rng.standard_normal((1, c, 2, 3)) for c in (2, 3, 4)]
    layers, weights = [2, 0, 2], [0.5, 3.0, 2.0]  # layer 1 is not used, layer 2 is used twice
    targets = [rng.standard_normal((1, c, c)) for c in (4, 2, 4)]  # not symmetric
    loss = reference.style_loss(feats, layers, targets, weights)
    by_hand = sum(
        weight * np.square(np.einsum("nchw,ndhw->ncd", feats[layer], feats[layer]) / feats[layer].size - target).sum()
        for layer, target, weight in zip(layers, targets, weights, strict=True)
    )
    np.testing.assert_allclose(loss, by_hand, rtol=1e-12)
    dfeats = reference.style_loss_backward(feats, layers, targets, weights)
    assert np.all(dfeats[1] == 0)
    assert_gradients(lambda _: reference.style_loss(feats, layers, targets, weights), feats, dfeats)


def test_tv_loss(rng):
    img = rng.standard_normal((1, 3, 4, 5))
    by_hand = 0.0
    for c, i, j in np.ndindex(3, 4, 5):
        if i + 1 < 4:
            by_hand += (img[0, c, i + 1, j] - img[0, c, i, j]) ** 2
        if j + 1 < 5:
            by_hand += (img[0, c, i, j + 1] - img[0, c, i, j]) ** 2
    np.testing.assert_allclose(reference.tv_loss(img, 0.3), 0.3 * by_hand, rtol=1e-12)
    assert_gradients(lambda img: reference.tv_loss(img, 0.3), [img], [reference.tv_loss_backward(img, 0.3)])


def test_tv_loss_source_has_no_loop():
    source = inspect.getsource(reference.tv_loss)
    assert "for" not in source and "while" not in source


# ---- update rules ----


def course_arrays():
    return np.linspace(-0.4, 0.6, 20).reshape(4, 5), np.linspace(-0.6, 0.4, 20).reshape(4, 5)


def test_adam_published():
    w, dw = course_arrays()
    m, v = np.linspace(0.6, 0.9, 20).reshape(4, 5), np.linspace(0.7, 0.5, 20).reshape(4, 5)
    config = {"learning_rate": 1e-2, "m": m, "v": v, "t": 5}
    next_w, config = reference.adam(w, dw, config)
    published = [-0.40094747, -0.34836187, -0.29577703, -0.24319299, -0.19060977]
    np.testing.assert_allclose(next_w[0], published, rtol=0, atol=1e-8)
    np.testing.assert_allclose(config["m"], 0.9 * m + 0.1 * dw, rtol=1e-14)
    np.testing.assert_allclose(config["v"], 0.999 * v + 0.001 * dw**2, rtol=1e-12)
    assert config["t"] == 6


def test_adam_first_step_is_the_sign_of_the_gradient():
    w, dw = course_arrays()
    next_w, config = reference.adam(w, dw)
    assert config["t"] == 1
    np.testing.assert_allclose(next_w, w - 1e-3 * np.sign(dw), rtol=0, atol=1e-8)


def test_sgd():
    w, dw = course_arrays()
    next_w, config = reference.sgd(w, dw, {"learning_rate": 0.5})
    np.testing.assert_array_equal(next_w, w - 0.5 * dw)
    assert config == {"learning_rate": 0.5}


def test_sgd_momentum():
    w, dw = course_arrays()
    config = {"learning_rate": 1e-3, "momentum": 0.8, "velocity": np.linspace(0.6, 0.9, 20).reshape(4, 5)}
    expected_v = 0.8 * config["velocity"] - 1e-3 * dw
    next_w, config = reference.sgd_momentum(w, dw, config)
    np.testing.assert_allclose(config["velocity"], expected_v, rtol=1e-14)
    np.testing.assert_allclose(next_w, w + expected_v, rtol=1e-14)


def test_rmsprop():
    w, dw = course_arrays()
    cache = np.linspace(0.6, 0.9, 20).reshape(4, 5)
    expected_cache = 0.9 * cache + 0.1 * dw**2
    config = {"learning_rate": 0.02, "decay_rate": 0.9, "epsilon": 0.1, "cache": cache}
    next_w, config = reference.rmsprop(w, dw, config)
    np.testing.assert_allclose(config["cache"], expected_cache, rtol=1e-14)
    np.testing.assert_allclose(next_w, w - 0.02 * dw / (np.sqrt(expected_cache) + 0.1), rtol=1e-14)


@pytest.mark.parametrize(
    "name, defaults",
    [
        ("sgd", {"learning_rate": 1e-2}),
        ("sgd_momentum", {"learning_rate": 1e-2, "momentum": 0.9}),
        ("rmsprop", {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}),
        ("adam", {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}),
    ],
)
def test_update_rules_fill_the_config_and_modify_no_array(name, defaults):
    rule = getattr(reference, name)
    w, dw = course_arrays()
    originals = w.copy(), dw.copy()
    config = {}
    first_w, returned = rule(w, dw, config)
    assert returned is config
    assert {key: config[key] for key in defaults} == defaults
    state = {key: value for key, value in config.items() if isinstance(value, np.ndarray)}
    before = copy.deepcopy(state)
    second_w, _ = rule(first_w, dw, config)
    assert_same((w, dw), originals)
    assert_same(state.values(), before.values())
    assert all(config[key] is not state[key] for key in state)
    assert not np.array_equal(first_w, second_w)


# ---- dtypes ----


def every_result(dtype, rng):
    """Name and arrays of what each function returns for inputs of one dtype."""
    for cell, kind in itertools.product(GATES, ("", "_step")):
        forward, backward = functions(cell, kind)
        if kind:
            arrays, dout = step_arguments(rng, cell, dtype)
            *outputs, cache = forward(*arrays)
            yield f"{cell}_step", (*outputs, *backward(*dout, cache))
            continue
        for lengths, extra in itertools.product((None, LENGTHS), ({}, extra_array(rng, cell, dtype))):
            arrays = cell_arrays(rng, cell, dtype=dtype)
            result = forward(*arrays, lengths=lengths, return_state=True, **extra)
            gradients = backward(np.ones_like(result[0]), result[-1], **state_gradients(rng, cell, dtype))
            yield cell, (result[0], *states(result), *gradients)

    def array(*shape):
        return rng.standard_normal(shape).astype(dtype)

    out, cache = reference.word_embedding_forward(np.array([1, 1]), array(3, 2))
    yield "embedding", (out, reference.word_embedding_backward(out, cache))
    out, cache = reference.affine_forward(array(2, 3), array(3, 4), array(4))
    yield "affine", (out, *reference.affine_backward(out, cache))
    out, cache = reference.temporal_affine_forward(array(2, 2, 3), array(3, 4), array(4))
    yield "temporal_affine", (out, *reference.temporal_affine_backward(out, cache))
    ids, mask = np.zeros((2, 3), int), np.ones((2, 3), bool)
    yield "softmax_loss", reference.temporal_softmax_loss(array(2, 3, 4), ids, mask)
    yield "vocab_softmax_loss", reference.vocab_softmax_loss(array(2, 3, 5), array(5, 4), array(4), ids, mask)

    features, scale = array(1, 3, 2, 2), np.float64(0.5)  # a float64 scalar must not promote the arrays
    gram = reference.gram_matrix(features)
    yield "gram", (gram, reference.gram_backward(gram, features))
    content = scale, features, array(1, 3, 2, 2)
    yield "content_loss", (reference.content_loss(*content), reference.content_loss_backward(*content))
    style = [features], [0], [array(1, 3, 3)], [scale]
    yield "style_loss", (reference.style_loss(*style), *reference.style_loss_backward(*style))
    yield "tv_loss", (reference.tv_loss(features, scale), reference.tv_loss_backward(features, scale))
    for rule in reference.sgd, reference.sgd_momentum, reference.rmsprop, reference.adam:
        w, config = array(3), {"learning_rate": scale}
        for _ in range(2):
            w, config = rule(w, array(3), config)
        yield rule.__name__, (w, *(value for value in config.values() if isinstance(value, np.ndarray)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_take_the_dtype_of_the_inputs(rng, dtype):
    for name, arrays in every_result(dtype, rng):
        assert all(array.dtype == dtype for array in arrays), name


def test_integers_become_floats(rng):
    for cell in GATES:
        forward, backward = functions(cell)
        arrays = [np.rint(array).astype(int) for array in cell_arrays(rng, cell)]
        h, cache = forward(*arrays)
        expected = forward(*(array.astype(float) for array in arrays))[0]
        np.testing.assert_array_equal(h, expected)
        assert all(gradient.dtype == np.float64 for gradient in backward(np.ones_like(h), cache))


@pytest.mark.parametrize("rule", [reference.sgd, reference.sgd_momentum, reference.rmsprop, reference.adam])
def test_update_rules_keep_float32_weights(rng, rule):
    w, dw = rng.standard_normal((2, 4)).astype(np.float32)
    state = {key: np.ones(4) for key in ("velocity", "cache", "m", "v")}  # float64
    next_w, config = rule(w, dw.astype(np.float64), {"learning_rate": np.float64(0.1), **state})
    assert next_w.dtype == np.float32
    replaced = [config[key] for key in state if config[key] is not state[key]]
    assert all(value.dtype == np.float32 for value in replaced)


# ---- the whole captioning loss ----


@pytest.mark.parametrize(
    "cell, features, published", [("rnn", (-1.5, 0.3), 9.83235591003), ("lstm", (-0.5, 1.7), 9.82445935443)]
)
def test_captioning_loss_published(cell, features, published):
    n, d, wordvec, hidden, t, vocabulary = 10, 20, 30, 40, 13, 3
    width = GATES[cell] * hidden

    def parameter(*shape):
        return np.linspace(-1.4, 1.3, num=np.prod(shape)).reshape(shape)

    images = np.linspace(*features, num=n * d).reshape(n, d)
    captions = (np.arange(n * t) % vocabulary).reshape(n, t)
    h0, _ = reference.affine_forward(images, parameter(d, hidden), parameter(hidden))
    words, _ = reference.word_embedding_forward(captions[:, :-1], parameter(vocabulary, wordvec))
    weights = parameter(wordvec, width), parameter(hidden, width), parameter(width)
    h, _ = functions(cell)[0](words, h0, *weights)
    scores, _ = reference.temporal_affine_forward(h, parameter(hidden, vocabulary), parameter(vocabulary))
    loss, _ = reference.temporal_softmax_loss(scores, captions[:, 1:], captions[:, 1:] != 0)
    assert abs(loss - published) < 1e-10


# ---- the tools of the checks themselves ----


def test_numerical_gradient(capsys):
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = eval_numerical_gradient(lambda x: np.sum(x**3), x, verbose=False)
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-8)
    assert capsys.readouterr().out == ""
    eval_numerical_gradient(lambda x: np.sum(x**3), x)
    assert capsys.readouterr().out.count("\n") == 4


def test_numerical_gradient_array():
    x, df = np.array([1.0, -2.0]), np.array([[3.0, 5.0], [7.0, 11.0]])
    gradient = eval_numerical_gradient_array(lambda x: np.outer(x, x), x, df)
    np.testing.assert_allclose(gradient, (df + df.T) @ x, rtol=1e-8)
    scalar = np.array(2.0)
    np.testing.assert_allclose(eval_numerical_gradient_array(lambda x: x**2, scalar, 3.0), 12, rtol=1e-8)


def test_numerical_gradient_uses_h():
    x = np.array([1.0])
    np.testing.assert_allclose(eval_numerical_gradient(lambda x: x[0] ** 3, x, False, h=0.5), 3.25, rtol=1e-14)
    np.testing.assert_allclose(eval_numerical_gradient_array(lambda x: x**3, x, 1.0, h=0.5), 3.25, rtol=1e-14)


def test_numerical_gradient_of_a_function_that_reuses_its_output():
    out = np.empty(1)
    x = np.array([3.0])
    gradient = eval_numerical_gradient_array(lambda x: np.square(x, out=out), x, 1.0)
    np.testing.assert_allclose(gradient, 6, rtol=1e-8)


@pytest.mark.parametrize("tool", [eval_numerical_gradient, partial(eval_numerical_gradient_array, df=1.0)])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_numerical_gradient_restores_x(tool, fails_at):
    x = np.array([0.1, 0.3])  # 0.1 + h - h is not 0.1
    calls = itertools.count(1)

    def f(x):
        if next(calls) == fails_at:
            raise RuntimeError("on purpose")
        return 0.0

    with pytest.raises(RuntimeError):
        tool(f, x)
    assert x.tolist() == [0.1, 0.3]
    tool(lambda x: 0.0, x)
    assert x.tolist() == [0.1, 0.3]


def test_numerical_gradient_of_what_cannot_be_perturbed():
    with pytest.raises(ValueError, match="int64"):
        eval_numerical_gradient(np.sum, np.array([1, 2]), verbose=False)
    with pytest.raises(ValueError, match="float32"):
        eval_numerical_gradient_array(np.sum, np.array([1e6], np.float32), 1.0)


def test_rel_error():
    assert rel_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert rel_error(np.array([1.0, 2.0]), np.array([1.0, 6.0])) == 0.5
    assert rel_error(np.array([1e-9]), np.array([-1e-9])) == pytest.approx(0.2)
    assert np.isnan(rel_error(np.array([1.0, np.nan]), np.array([1.0, 1.0])))
    assert rel_error(np.array([]), np.array([])) == 0
