"""Word embedding on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, USABLE, assert_conforms, complains, conformance_grid
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


@pytest.mark.parametrize(("n", "size_d"), [(9000, 512), (36_000, 117)])
def test_a_result_larger_than_the_caches_is_the_rows_bit_for_bit(backend, n, size_d):
    rng = np.random.default_rng(n)
    table = rng.standard_normal((50, size_d)).astype(np.float32)
    table[:, ::7] = -0.0
    ids = rng.integers(0, 50, n)
    assert fastrnn.word_embedding_forward(ids, table)[0].tobytes() == table[ids].tobytes()


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
    for name in USABLE:
        with fastrnn.backend(name):
            _, cache = fastrnn.word_embedding_forward(ids, np.zeros((size_v, size_d), np.float32))
            assert np.array_equal(fastrnn.word_embedding_backward(dout, cache), expected), name
            rows, values = fastrnn.word_embedding_backward(dout, cache, sparse=True)
            assert np.array_equal(rows, np.unique(ids)) and np.array_equal(values, expected[rows]), name


# ---- into an array, and the used rows alone ------------------------------------------------------------------------


def case(n, size_v, size_d, seed=0):
    """Ids, a gradient and its cache; small whole numbers, whose sums are exact in any order."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, size_v, n)
    dout = rng.integers(-8, 9, (n, size_d)).astype(np.float32)
    return ids, dout, fastrnn.word_embedding_forward(ids, np.zeros((size_v, size_d), np.float32))[1]


def test_the_gradient_is_added_to_what_out_holds(backend):
    ids, dout, cache = case(30, 50, 7)
    start = np.arange(350, dtype=np.float32).reshape(50, 7)
    out = start.copy()
    assert fastrnn.word_embedding_backward(dout, cache, out=out) is out
    np.add.at(start, ids, dout)
    assert np.array_equal(out, start)


@pytest.mark.parametrize(
    "lie",
    [
        lambda a: a.copy(order="F"),
        lambda a: np.zeros((100, 9), np.float32)[::2, 1:8],
        lambda a: np.zeros((50, 14), np.float32)[:, ::2],
        lambda a: a.copy()[::-1, ::-1],
        lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(a.shape),
        lambda a: np.zeros(50, [("a", "u1"), ("b", np.float32, 7)])["b"],
    ],
    ids=["fortran", "rows", "columns", "reversed", "unaligned", "packed records"],
)
def test_out_may_lie_anyhow(backend, lie):
    ids, dout, cache = case(40, 50, 7)
    expected = np.full((50, 7), 3, np.float32)
    out = lie(expected)
    out[...] = expected
    around = out.base.copy() if out.base is not None else None
    assert fastrnn.word_embedding_backward(dout, cache, out=out) is out
    np.add.at(expected, ids, dout)
    assert np.array_equal(out, expected)
    if around is not None:  # nothing but the elements was written
        out[...] = 3
        assert out.base.tobytes() == around.tobytes()


def test_rows_of_unused_words_are_not_touched(backend):
    _, dout, cache = case(5, 1000, 4)
    out = np.full((1000, 4), np.nan, np.float32)
    used = np.unique(fastrnn.word_embedding_backward(dout, cache, sparse=True)[0])
    out[used] = 0
    fastrnn.word_embedding_backward(dout, cache, out=out)
    assert np.array_equal(np.flatnonzero(~np.isnan(out[:, 0])), used)


def test_used_rows_are_those_of_the_whole_gradient(backend):
    ids, dout, cache = case(300, 100, 5)
    rows, values = fastrnn.word_embedding_backward(dout, cache, sparse=True)
    assert rows.dtype == np.int64 and np.array_equal(rows, np.unique(ids))
    assert values.dtype == np.float32 and np.array_equal(values, fastrnn.word_embedding_backward(dout, cache)[rows])


@pytest.fixture
def compiled():
    if fastrnn.backend_status()["cpu"]:
        pytest.skip(fastrnn.backend_status()["cpu"])
    with fastrnn.backend("cpu"):
        yield


def test_used_rows_of_a_table_that_no_memory_could_hold(compiled):
    """Rows without end, all in one place: only ids and used rows may cost anything. (NumPy's take copies the table.)"""
    table = np.broadcast_to(np.float32(0), (2**40, 3))
    _, cache = fastrnn.word_embedding_forward([2**40 - 1, 5, 2**40 - 1], table)
    rows, values = fastrnn.word_embedding_backward(np.ones((3, 3)), cache, sparse=True)
    assert rows.tolist() == [5, 2**40 - 1] and values.tolist() == [[1] * 3, [2] * 3]


def test_ids_that_kernels_cannot_sort(compiled):
    table = np.broadcast_to(np.float32(0), (2**59, 1))
    ids = np.arange(33) + 2**58
    _, cache = fastrnn.word_embedding_forward(ids[:32], table)
    assert np.array_equal(fastrnn.word_embedding_backward(np.ones((32, 1)), cache, sparse=True)[0], ids[:32])
    _, cache = fastrnn.word_embedding_forward(ids, table)
    with complains(ValueError, "word_embedding_backward", "'cache'", "64 bits", f"33 below {2**59}"):
        fastrnn.word_embedding_backward(np.ones((33, 1)), cache, sparse=True)


@pytest.mark.parametrize("form", ["whole", "out", "sparse"])
@pytest.mark.parametrize(
    ("n", "size_v", "size_d"),
    # One thread sorts; two do, in one pass and in two; the result is larger than the caches.
    [(1600, 1004, 256), (20_000, 500, 40), (20_000, 5000, 40), (12_000, 70_000, 64)],
)
@pytest.mark.parametrize("frequent", [False, True])
def test_any_number_of_threads_gives_the_same_bits(form, n, size_v, size_d, frequent):
    rng = np.random.default_rng(n)
    ids = rng.integers(0, size_v, n)
    if frequent:  # two words far above the rest
        ids[rng.random(n) < 0.4] = size_v // 2
        ids[rng.random(n) < 0.1] = size_v - 1
    dout = rng.standard_normal((n, size_d)).astype(np.float32)
    exact = np.zeros((size_v, size_d))
    np.add.at(exact, ids, dout)
    _, cache = fastrnn.word_embedding_forward(ids, np.zeros((size_v, size_d), np.float32))

    def run():
        if form == "sparse":
            return fastrnn.word_embedding_backward(dout, cache, sparse=True)
        out = np.ones((size_v, size_d), np.float32) if form == "out" else None
        return (fastrnn.word_embedding_backward(dout, cache, out=out),)

    threads = fastrnn.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            fastrnn.set_num_threads(count)
            results.append(run())
            if fastrnn.last_backend() == "cpu":
                assert (fastrnn.last_backend().threads > 1) == (count > 1)
    finally:
        fastrnn.set_num_threads(threads)
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))
    whole = results[0][-1] - (form == "out")
    np.testing.assert_allclose(whole, exact[results[0][0]] if form == "sparse" else exact, rtol=1e-5, atol=1e-3)


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


def with_out(out, dout=None, **options):
    """Backward into `out`, which must stay as it is."""
    _, cache = fastrnn.word_embedding_forward([1, 2], W)
    before = out.copy() if isinstance(out, np.ndarray) else out
    try:
        fastrnn.word_embedding_backward(np.ones((2, 3)) if dout is None else dout, cache, out=out, **options)
    finally:
        assert np.array_equal(out, before)


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (12,), (1, 4, 3)])
def test_an_out_of_the_wrong_shape(backend, shape):
    with complains(ValueError, "word_embedding_backward", "'out'", (4, 3), shape):
        with_out(np.zeros(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, complex, np.dtype(float).newbyteorder()])
def test_an_out_of_the_wrong_dtype(backend, dtype):
    with complains(TypeError, "word_embedding_backward", "'out'", "dtype float64", f"dtype {np.dtype(dtype)}"):
        with_out(np.zeros((4, 3), dtype))


@pytest.mark.parametrize("out", [[[0.0] * 3] * 4, 1.0, "words"])
def test_an_out_that_is_no_array(backend, out):
    with complains(TypeError, "word_embedding_backward", "'out'", "NumPy array", type(out).__name__):
        with_out(out)


def test_an_out_that_cannot_be_written_to(backend):
    out = np.zeros((4, 3))
    out.flags.writeable = False
    with complains(ValueError, "word_embedding_backward", "'out'", "writeable"):
        with_out(out)


@pytest.mark.parametrize("strides", [(0, 8), (24, 0), (8, 8), (8, 24)])
def test_an_out_whose_elements_share_places(backend, strides):
    out = np.lib.stride_tricks.as_strided(np.zeros(40), (4, 3), strides)
    with complains(ValueError, "word_embedding_backward", "'out'", "a place of its own", strides):
        with_out(out)


def test_an_out_that_overlaps_the_gradient(backend):
    memory = np.ones((6, 6))
    for out, dout in ((memory[:4, :3], memory[3:5, :3]), (memory[:4, ::2], memory[2:4, 2:5])):
        with complains(ValueError, "word_embedding_backward", "'out'", "no memory", "'dout'"):
            with_out(out, dout)
    # Side by side in one block of memory is not in one place.
    _, cache = fastrnn.word_embedding_forward([1, 2], W)
    fastrnn.word_embedding_backward(memory[:2, 3:], cache, out=memory[:4, :3])
    assert memory[:4, :3].sum() == 12 + 6


def test_an_out_for_used_rows(backend):
    with complains(ValueError, "word_embedding_backward", "'sparse'", "'out'"):
        with_out(np.zeros((4, 3)), sparse=True)


@pytest.mark.parametrize("sparse", [1, None, "yes", np.ones(2, bool)])
def test_a_sparse_that_is_no_flag(backend, sparse):
    with complains(TypeError, "word_embedding_backward", "'sparse'", "True or False"):
        with_out(None, sparse=sparse)
