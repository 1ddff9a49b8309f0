"""Word embedding on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn


@conformance_grid("embedding")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("embedding", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


W = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("ids", [2, np.int32(2), np.array(2), [2, 0, 2], [[1], [3]], [[1, 2, 3], [0, 0, 0]], []])
def test_ids_of_any_rank(backend, ids):
    out, cache = fastrnn.word_embedding_forward(ids, W)
    expected = W[np.asarray(ids, int)]
    assert out.shape == expected.shape and np.array_equal(out, expected)
    dW = fastrnn.word_embedding_backward(np.ones(out.shape), cache)
    assert np.array_equal(dW, np.bincount(np.ravel(np.asarray(ids, int)), minlength=4)[:, None] * np.ones((1, 3)))


def test_a_strided_column_of_int32(backend):
    table = np.array([[3, 9], [1, 9], [3, 9]], np.int32)
    column = table[:, :1]
    assert np.array_equal(fastrnn.word_embedding_forward(column, W)[0], W[[3, 1, 3]][:, None])


def test_one_word_is_a_copy(backend):
    out, _ = fastrnn.word_embedding_forward(1, W)
    assert not np.shares_memory(out, W)


def test_changing_the_ids_afterwards_changes_no_gradient(backend):
    ids = np.array([[0, 1], [1, 2]])
    _, cache = fastrnn.word_embedding_forward(ids, W)
    expected = fastrnn.word_embedding_backward(np.ones((2, 2, 3)), cache)
    ids[...] = 3
    assert np.array_equal(fastrnn.word_embedding_backward(np.ones((2, 2, 3)), cache), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_sums_are_those_of_add_at(data):
    """Any number of words, any repetition; sums in the order of positions, hence the same bits."""
    size_v, size_d = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    ids = np.array(data.draw(st.lists(st.integers(0, size_v - 1), max_size=80)), data.draw(st.sampled_from("hiqQ")))
    dout = np.random.default_rng(len(ids)).standard_normal((len(ids), size_d)).astype(np.float32)
    expected = np.zeros((size_v, size_d), np.float32)
    np.add.at(expected, ids.astype(int), dout)
    for name in fastrnn.available_backends():
        with fastrnn.backend(name):
            _, cache = fastrnn.word_embedding_forward(ids, np.zeros((size_v, size_d), np.float32))
            assert np.array_equal(fastrnn.word_embedding_backward(dout, cache), expected), name


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([0, 4], ("4 at position 1", "[0, 4)", "V = 4")),
        ([0, -1, 5], ("-1 at position 1",)),
        ([[0, 1], [2, 99]], ("99 at position (1, 1)",)),
        (-5, ("got -5",)),
        (np.array([2**63], np.uint64), ("9223372036854775808 at position 0",)),
        (np.array([1, -128], np.int8), ("-128 at position 1",)),
    ],
)
def test_ids_out_of_range(backend, ids, words):
    with complains(IndexError, "word_embedding_forward", "'x'", *words):
        fastrnn.word_embedding_forward(ids, W)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([0.0, 1.0]), ("float64",)),
        (np.array([np.nan]), ("float64",)),
        ([True, False], ("bool",)),
        (np.array([1, 2], object), ("object",)),
        (np.array([1j]), ("complex128",)),
        ("words", ("str",)),
        (np.zeros(0), ("float64",)),
    ],
)
def test_ids_that_are_no_integers(backend, ids, words):
    with complains(TypeError, "word_embedding_forward", "'x'", "integers", *words):
        fastrnn.word_embedding_forward(ids, W)


def test_no_word_can_be_looked_up_in_an_empty_table(backend):
    with complains(IndexError, "word_embedding_forward", "'x'", "[0, 0)"):
        fastrnn.word_embedding_forward([0], np.zeros((0, 3)))
    assert fastrnn.word_embedding_forward(np.zeros(0, int), np.zeros((0, 3)))[0].shape == (0, 3)


@pytest.mark.parametrize("table", [np.ones(3), np.ones((2, 3, 4)), 1.0])
def test_a_table_of_the_wrong_rank(backend, table):
    with complains(ValueError, "word_embedding_forward", "'W'", "2-dimensional, (V, D)", np.shape(table)):
        fastrnn.word_embedding_forward([0], table)


@pytest.mark.parametrize("dtype", [complex, object, np.float16, np.longdouble])
def test_a_table_of_the_wrong_dtype(backend, dtype):
    with complains(TypeError, "word_embedding_forward", "'W'", np.dtype(dtype).name):
        fastrnn.word_embedding_forward([0], W.astype(dtype))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 1), (3,)])
def test_a_gradient_of_the_wrong_shape(backend, shape):
    _, cache = fastrnn.word_embedding_forward([1, 2], W)
    with complains(ValueError, "word_embedding_backward", "'dout'", (2, 3), shape):
        fastrnn.word_embedding_backward(np.ones(shape), cache)


def test_a_cache_of_another_function(backend):
    _, cache = fastrnn.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
    with complains(ValueError, "word_embedding_backward", "'cache'", "word_embedding_forward", "affine_forward"):
        fastrnn.word_embedding_backward(np.ones((2, 3)), cache)
