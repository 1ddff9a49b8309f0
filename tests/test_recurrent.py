"""What holds for rnn, lstm and gru alike on every backend: ownership of arrays, dtypes, options, bad input."""

import numpy as np
import pytest
from harness import BACKENDS, complains
from recurrent import GATES, arguments, backward, forward, step_arguments

import fastrnn


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


@pytest.fixture(params=GATES)
def cell(request):
    return request.param


# ---- ownership -----------------------------------------------------------------------------------------------------


def test_nothing_is_remembered_about_an_array_that_changes_in_place(cell):
    x, h0, Wx, Wh, b = arguments(cell)
    first = forward(cell)(x, h0, Wx, Wh, b)[0].copy()
    for array in (Wx, Wh, b, x, h0):
        array *= 1.5
        second = forward(cell)(x, h0, Wx, Wh, b)[0]
        fresh = forward(cell)(x.copy(), h0.copy(), Wx.copy(), Wh.copy(), b.copy())[0]
        assert np.array_equal(second, fresh)
        assert not np.array_equal(second, first)
        first = second


def test_passes_interleave(cell):
    one, other = arguments(cell, seed=1), arguments(cell, seed=2)
    dh = np.random.default_rng(3).standard_normal((3, 4, 6))
    h, cache = forward(cell)(*one)
    kept = h.copy()
    expected = [gradient.copy() for gradient in backward(cell)(dh, cache)]
    _, other_cache = forward(cell)(*other)
    backward(cell)(2 * dh, other_cache)
    again = backward(cell)(dh, cache)
    assert np.array_equal(h, kept)
    for gradient, first in zip(again, expected, strict=True):
        assert np.array_equal(gradient, first)


def test_results_share_no_memory(cell):
    given = arguments(cell)
    h, state, cache = forward(cell)(*given, return_state=True)
    states = list(state) if cell == "lstm" else [state]
    dh = np.ones((3, 4, 6))
    results = [h, *states, *backward(cell)(dh, cache), *backward(cell)(dh, cache)]
    for number, result in enumerate(results):
        for other in (*given, dh, *results[:number]):
            assert not np.shares_memory(result, other)


def test_step_results_share_no_memory(cell):
    given = step_arguments(cell)
    *states, cache = getattr(fastrnn, f"{cell}_step_forward")(*given)
    upstream = [np.ones((3, 6)) for _ in states]
    gradients = getattr(fastrnn, f"{cell}_step_backward")(*upstream, cache)
    results = [*states, *gradients]
    for number, result in enumerate(results):
        for other in (*given, *upstream, *results[:number]):
            assert not np.shares_memory(result, other)


# ---- what goes in, what comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_dtype_of_the_inputs(cell, dtype):
    h, cache = forward(cell)(*arguments(cell, dtype=dtype))
    gradients = backward(cell)(np.ones(h.shape, np.float32), cache)
    assert {array.dtype for array in (h, *gradients)} == {np.dtype(dtype)}


@pytest.mark.parametrize("position", range(5))
def test_dtypes_promote_as_in_numpy(cell, position):
    given = arguments(cell, dtype=np.float32)
    given[position] = given[position].astype(np.float64)
    h, cache = forward(cell)(*given)
    exact = forward(cell)(*(array.astype(np.float64) for array in given))[0]
    assert h.dtype == np.float64 and np.array_equal(h, exact)
    assert backward(cell)(h, cache)[0].dtype == np.float64


def test_integers_and_lists_are_numbers_too(cell):
    given = [np.sign(array).astype(int) for array in arguments(cell)]
    h, cache = forward(cell)(*given)
    same = forward(cell)(*(array.tolist() for array in given))[0]
    exact = forward(cell)(*(array.astype(float) for array in given))[0]
    assert h.dtype == np.float64
    assert np.array_equal(h, exact) and np.array_equal(same, exact)
    assert np.array_equal(backward(cell)(np.ones(h.shape, int).tolist(), cache)[0], backward(cell)(1 + 0 * h, cache)[0])


def test_every_option_changes_the_result(cell):
    given = arguments(cell)
    plain = forward(cell)(*given)[0]
    extra = {"lstm": {"c0": np.ones((3, 6))}, "gru": {"bh": np.ones(18)}, "rnn": {}}[cell]
    for name, value in {"lengths": [1, 2, 3], "reverse": True, **extra}.items():
        assert not np.array_equal(forward(cell)(*given, **{name: value})[0], plain), name
    *_, cache = forward(cell)(*given, return_state=True)
    dh = np.zeros((3, 4, 6))
    for name in ("dh_n", "dc_n") if cell == "lstm" else ("dh_n",):
        assert np.any(backward(cell)(dh, cache, **{name: np.ones((3, 6))})[0]), name


def test_lengths_of_any_integer_dtype(cell):
    given = arguments(cell)
    expected = forward(cell)(*given, lengths=[0, 4, 2])[0]
    for dtype in "bhilBHIL":
        assert np.array_equal(forward(cell)(*given, lengths=np.array([0, 4, 2], dtype))[0], expected)
    assert np.array_equal(
        forward(cell)(*given, lengths=np.array([[0, 1], [4, 1], [2, 1]], np.int32)[:, 0])[0], expected
    )


def test_what_lies_beyond_a_sequence_is_not_looked_at(cell):
    x, *rest = arguments(cell)
    lengths = np.array([0, 4, 2])
    beyond = np.arange(4) >= lengths[:, None]
    dh = np.ones((3, 4, 6))
    h, cache = forward(cell)(x, *rest, lengths=lengths)
    gradients = backward(cell)(dh, cache)
    x_poisoned, dh_poisoned = x.copy(), dh.copy()
    x_poisoned[beyond], dh_poisoned[beyond] = np.nan, np.nan
    h_poisoned, cache = forward(cell)(x_poisoned, *rest, lengths=lengths)
    assert np.array_equal(h, h_poisoned) and not h[beyond].any()
    for gradient, expected in zip(backward(cell)(dh_poisoned, cache), gradients, strict=True):
        assert np.array_equal(gradient, expected)
    assert not gradients[0][beyond].any()


def test_a_sequence_of_length_0_hands_its_state_on(cell):
    x, h0, *weights = arguments(cell)
    _, state, cache = forward(cell)(x, h0, *weights, lengths=[0, 4, 2], return_state=True)
    h_n = state[0] if cell == "lstm" else state
    assert np.array_equal(h_n[0], h0[0])
    dh_n = np.ones((3, 6))
    assert np.array_equal(backward(cell)(np.ones((3, 4, 6)), cache, dh_n=dh_n)[1][0], dh_n[0])


def test_a_nan_stays_in_its_sequence(cell):
    x, *rest = arguments(cell)
    clean = forward(cell)(x, *rest)[0]
    x[1, 2, 0] = np.nan
    h = forward(cell)(x, *rest)[0]
    assert np.isnan(h[1, 2:]).all()
    h[1, 2:] = clean[1, 2:]
    assert np.array_equal(h, clean)


@pytest.mark.parametrize("H", [6, 17])  # not whole vectors: lanes are left over
@pytest.mark.parametrize("where", ["x", "h0", "Wx", "Wh", "b", "dh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_infinity_reaches_what_it_reaches_in_the_oracle(cell, where, H, dtype):
    """A saturated gate has the gradient 0: what an infinity led to is often finite again, and must not be NaN."""
    given = dict(zip(("x", "h0", "Wx", "Wh", "b"), arguments(cell, H=H, dtype=dtype), strict=True))
    given["dh"] = np.random.default_rng(1).standard_normal((3, 4, H)).astype(dtype)
    given[where].flat[given[where].size // 2] = np.inf
    dh = given.pop("dh")

    def results():
        with np.errstate(all="ignore"):
            h, cache = forward(cell)(**given)
            return h, *backward(cell)(dh, cache)

    found = results()
    with fastrnn.backend("reference"):
        expected = results()
    for ours, oracles in zip(found, expected, strict=True):
        assert np.array_equal(np.isnan(ours), np.isnan(oracles))
        assert np.array_equal(np.isinf(ours), np.isinf(oracles))


def test_steps_are_the_sequence(cell):
    x, h0, *weights = arguments(cell, N=2, T=3)
    h = forward(cell)(x, h0, *weights)[0]
    state = (h0, np.zeros_like(h0)) if cell == "lstm" else (h0,)
    for t in range(3):
        *state, _ = getattr(fastrnn, f"{cell}_step_forward")(x[:, t], *state, *weights)
        np.testing.assert_allclose(state[0], h[:, t], rtol=0, atol=4e-16)


# ---- bad input -----------------------------------------------------------------------------------------------------

NAMES = ("x", "h0", "Wx", "Wh", "b")


@pytest.mark.parametrize("position", range(5))
def test_wrong_rank(cell, position):
    given = arguments(cell)
    given[position] = given[position][None]
    with complains(ValueError, f"{cell}_forward", f"'{NAMES[position]}'", "-dimensional", given[position].shape):
        forward(cell)(*given)


@pytest.mark.parametrize(
    ("position", "shape", "dimension"),
    [(1, (4, 6), "N"), (2, (4, 6), "D"), (3, (5, 6), "H"), (3, (6, 5), "H"), (4, (5,), "H"), (1, (3, 7), "H")],
)
def test_sizes_that_do_not_fit(cell, position, shape, dimension):
    given = arguments(cell)
    if position > 1:
        shape = (*shape[:-1], GATES[cell] * shape[-1])
    given[position] = np.ones(shape)
    # Whichever of two arrays disagreeing is named, the dimension and a size that came are.
    with complains(ValueError, f"{cell}_forward", "argument '", dimension, "shape ("):
        forward(cell)(*given)


def test_gates_that_are_no_whole_number(cell):
    if cell == "rnn":
        pytest.skip("one gate always is")
    x, h0, Wx, Wh, b = arguments(cell)
    with complains(ValueError, f"{cell}_forward", "'Wx'", f"{GATES[cell]}H", f"(5, {GATES[cell] * 6 - 1})"):
        forward(cell)(x, h0, Wx[:, :-1], Wh, b)


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (complex, "complex128"),
        (object, "object"),
        (np.float16, "float16"),
        (np.longdouble, "longdouble"),
        ("U3", "<U3"),
    ],
)
def test_dtypes_that_are_no_numbers_of_ours(cell, position, dtype, named):
    given = arguments(cell)
    given[position] = given[position].astype(dtype)
    named = np.dtype(np.longdouble).name if named == "longdouble" else named
    with complains(TypeError, f"{cell}_forward", f"'{NAMES[position]}'", named):
        forward(cell)(*given)


def test_ragged_lists(cell):
    _, *rest = arguments(cell)
    with complains(ValueError, f"{cell}_forward", "'x'", "ragged"):
        forward(cell)([[[1.0, 2.0], [3.0]]], *rest)


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([1, 2], ValueError, ("(N,) = (3,)", "(2,)")),
        ([1, 2, 5], ValueError, ("T = 4", "5 at position 2")),
        ([1, -1, 2], ValueError, ("-1 at position 1",)),
        ([1.0, 2.0, 3.0], TypeError, ("integers", "float64")),
        ([np.nan, 1, 2], TypeError, ("integers", "float64")),
        ([[1, 2, 3]], ValueError, ("(1, 3)",)),
    ],
)
def test_bad_lengths(cell, lengths, error, words):
    with complains(error, f"{cell}_forward", "'lengths'", *words):
        forward(cell)(*arguments(cell), lengths=lengths)


@pytest.mark.parametrize("option", ["reverse", "return_state"])
@pytest.mark.parametrize("value", ["yes", 1, None, [True]])
def test_flags_are_true_or_false(cell, option, value):
    with complains(TypeError, f"{cell}_forward", f"'{option}'", "True or False"):
        forward(cell)(*arguments(cell), **{option: value})


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 3, 6), (2, 4, 6), (3, 4), (3, 4, 6, 1)])
def test_a_gradient_of_the_wrong_shape(cell, shape):
    _, cache = forward(cell)(*arguments(cell))
    with complains(ValueError, f"{cell}_backward", "'dh'", shape):
        backward(cell)(np.ones(shape), cache)


@pytest.mark.parametrize("name", ["dh_n", "dc_n"])
def test_a_final_gradient_of_the_wrong_shape(cell, name):
    if name == "dc_n" and cell != "lstm":
        pytest.skip("only the LSTM has a cell state")
    _, cache = forward(cell)(*arguments(cell))
    with complains(ValueError, f"{cell}_backward", f"'{name}'", "(N, H) = (3, 6)", "(3, 5)"):
        backward(cell)(np.ones((3, 4, 6)), cache, **{name: np.ones((3, 5))})


def test_a_complex_gradient(cell):
    _, cache = forward(cell)(*arguments(cell))
    with complains(TypeError, f"{cell}_backward", "'dh'", "complex128"):
        backward(cell)(np.ones((3, 4, 6), complex), cache)


def test_a_cache_of_another_function(cell):
    _, affine_cache = fastrnn.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    with complains(ValueError, f"{cell}_backward", "'cache'", f"{cell}_forward", "affine_forward"):
        backward(cell)(np.ones((3, 4, 6)), affine_cache)
    step_cache = getattr(fastrnn, f"{cell}_step_forward")(*step_arguments(cell))[-1]
    with complains(ValueError, f"{cell}_backward", "'cache'", f"{cell}_step_forward"):
        backward(cell)(np.ones((3, 4, 6)), step_cache)
    _, cache = forward(cell)(*arguments(cell))
    upstream = [np.ones((3, 6))] * (2 if cell == "lstm" else 1)
    with complains(ValueError, f"{cell}_step_backward", "'cache'", f"{cell}_forward"):
        getattr(fastrnn, f"{cell}_step_backward")(*upstream, cache)


@pytest.mark.parametrize("cache", [None, (), {}, 3])
def test_no_cache_at_all(cell, cache):
    with complains(TypeError, f"{cell}_backward", "'cache'", f"{cell}_forward", type(cache).__name__):
        backward(cell)(np.ones((3, 4, 6)), cache)


@pytest.mark.parametrize("position", range(3))
def test_a_step_of_the_wrong_shape(cell, position):
    given = step_arguments(cell)
    given[position] = given[position][:, :-1]
    with complains(ValueError, f"{cell}_step_forward", "argument '", "shape ("):
        getattr(fastrnn, f"{cell}_step_forward")(*given)


def test_bad_input_is_not_modified(cell):
    given = arguments(cell)
    given[4] = given[4][:-1]
    copies = [array.copy() for array in given]
    with complains(ValueError, f"{cell}_forward"):
        forward(cell)(*given)
    assert all(np.array_equal(array, copy) for array, copy in zip(given, copies, strict=True))
