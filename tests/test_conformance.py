"""The tolerance rule and the harness that applies it: both must be able to fail."""

from dataclasses import replace

import numpy as np
import pytest
from harness import BACKENDS

import fastrnn
from fastrnn import conformance, reference
from fastrnn.conformance import Case, error_and_bound, ratio_of, run_case, within

EPS = float(np.finfo(np.float32).eps)


def passes(result, oracle, exact, dtype=np.float32):
    error, bound = error_and_bound(np.float64(result), np.float64(oracle), np.float64(exact), dtype)
    assert (ratio_of(error, bound) <= 1) == within(error, bound)
    return within(error, bound)


def test_the_bound_is_twice_the_oracles_error_and_four_eps():
    exact = np.array([1.0, -8.0])
    oracle = exact + [1e-3, 0]
    bound = 2e-3 + 4 * EPS * 8
    assert error_and_bound(exact, oracle, exact, np.float32)[1] == pytest.approx(bound, rel=1e-9)
    assert passes(exact + [0, 0.999 * bound], oracle, exact)
    assert not passes(exact + [0, 1.001 * bound], oracle, exact)


def test_eps_is_that_of_the_dtype():
    assert passes([1 + 3 * EPS], [1.0], [1.0], np.float32)
    assert not passes([1 + 3 * EPS], [1.0], [1.0], np.float64)


@pytest.mark.parametrize("where", ["result", "oracle", "exact"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_fail(where, value):
    values = {"result": [1.0, 2.0], "oracle": [1.0, 2.0], "exact": [1.0, 2.0]}
    values[where] = [1.0, value]
    assert not passes(**values)


def test_where_nothing_may_be_off_nothing_may_be_off():
    assert passes([0.0], [0.0], [0.0])
    assert not passes([1e-300], [0.0], [0.0])


def test_nothing_is_right():
    assert passes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))


# ---- run_case, on an operation that does what a test wants ---------------------------------------------------------

INPUT = np.linspace(-1, 1, 12).reshape(3, 4)


def case_of(ours, theirs=lambda a: {"out": 2 * a["x"]}, layout="contiguous"):
    """A case of rnn_forward whose results come from `ours`, after a call that leaves the right traces."""

    def call(m, a):
        if m is reference:
            return theirs(a)
        fastrnn.rnn_forward(np.zeros((1, 1, 1)), [[0.0]], [[0.0]], [[0.0]], [0.0])
        return ours(a)

    return Case("rnn", "rnn_forward", "made up", {"x": INPUT}, call, layout)


def failure_of(ours, **options):
    return run_case(case_of(ours, **options), "reference", "float32").failure


@pytest.mark.parametrize("layout", conformance.LAYOUTS)
def test_a_right_result_passes(layout):
    outcome = run_case(
        case_of(lambda a: {"out": np.float32(2) * a["x"].astype("f4")}, layout=layout), "reference", "float32"
    )
    assert outcome.failure == "" and outcome.ratio <= 1 and outcome.output == "out"
    assert outcome.ran_on == outcome.backend == "reference"


def wrong_value(a):
    out = 2 * a["x"]
    out[1, 2] += 9 * EPS
    return {"out": out}


def one_nan(a):
    out = 2 * a["x"]
    out[1, 2] = np.nan
    return {"out": out}


def modifies(a):
    out = {"out": 2 * a["x"]}
    a["x"][0, 0] = 7
    return out


def other_bits():
    calls = iter(range(100))
    return lambda a: {"out": 2 * a["x"] + np.float32(next(calls) * EPS)}


def other_bits_with_one_thread(a):
    return {"out": np.nextafter(2 * a["x"], np.float32(fastrnn.get_num_threads()))}


def raises(a):
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (wrong_value, "out is off by"),
        (one_nan, "out is off by nan"),
        (lambda a: {"out": 2.0 * a["x"].astype(np.float64)}, "dtype float64, expected float32"),
        (lambda a: {"out": 2 * a["x"][:2]}, "shape (2, 4), expected (3, 4)"),
        (lambda a: {"out": (2 * a["x"]).tolist()}, "is list, expected an array"),
        (lambda a: {"other": 2 * a["x"]}, "gives other; expected out"),
        (modifies, "modified its input x"),
        (other_bits(), "not the same bits"),
        (other_bits_with_one_thread, "not the same bits with 1 threads"),
        (raises, "ValueError: no such thing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_result_fails(ours, words):
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(max(2, before))
    try:
        outcome = run_case(case_of(ours), "reference", "float32")
    finally:
        fastrnn.set_num_threads(before)
    assert words in outcome.failure
    beside_the_values = ("modified" in words) or ("same bits" in words)
    assert outcome.ratio <= 1 if beside_the_values else outcome.ratio > 1


def test_a_scalar_must_have_the_oracles_type():
    def theirs(a):
        return {"loss": a["x"].dtype.type(3)}

    assert failure_of(lambda a: {"loss": np.float32(3)}, theirs=theirs) == ""
    assert "is float64, expected float32" in failure_of(lambda a: {"loss": np.float64(3)}, theirs=theirs)
    assert "is float, expected float32" in failure_of(lambda a: {"loss": 3.0}, theirs=theirs)


def test_memory_between_the_elements_counts_as_input():
    def modifies_the_gaps(a):
        out = {"out": 2 * a["x"]}
        base = a["x"].base
        base[0, 0] = 1
        return out

    assert "modified its input x" in failure_of(modifies_the_gaps, layout="strided")


def test_another_function_is_noticed():
    def runs_another(a):
        fastrnn.sgd(np.zeros(1), np.zeros(1))
        return {"out": 2 * a["x"]}

    assert "last_backend() says that sgd ran" in failure_of(runs_another)


def test_another_backend_is_noticed():
    others = [name for name in fastrnn.available_backends() if name != "reference"]
    if not others:
        pytest.skip("only the reference runs here")

    def runs_elsewhere(a):
        with fastrnn.backend(others[0]):
            fastrnn.rnn_forward(np.zeros((1, 1, 1)), [[0.0]], [[0.0]], [[0.0]], [0.0])
        return {"out": 2 * a["x"]}

    assert f"ran on {others[0]}, not on reference" in failure_of(runs_elsewhere)


def test_threads_are_put_back():
    before = fastrnn.get_num_threads()
    run_case(case_of(raises), "reference", "float32")
    assert fastrnn.get_num_threads() == before


# ---- the cases -----------------------------------------------------------------------------------------------------

ALL = [case for cases in conformance.CASES.values() for case in cases()]


def test_every_public_operation_has_cases():
    public = {name for name in reference.__all__ if name != "sigmoid"}
    assert {case.function for case in ALL} == public


def test_names_are_unique():
    names = [str(case) for case in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("function", sorted({case.function for case in ALL}))
def test_every_function_is_tried_in_every_layout(function):
    assert {case.layout for case in ALL if case.function == function} == set(conformance.LAYOUTS)


@pytest.mark.parametrize("layout", conformance.LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "?"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 3, 4)])
def test_layouts_keep_the_values(layout, dtype, shape):
    a = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(dtype)
    laid = conformance.LAYOUTS[layout](a)
    assert laid.shape == a.shape and laid.dtype.newbyteorder("=") == a.dtype
    assert np.array_equal(laid, a)
    assert not np.shares_memory(laid, a)


def test_layouts_are_what_they_say():
    laid = {name: lay(np.ones((4, 6), np.float32)) for name, lay in conformance.LAYOUTS.items()}
    assert laid["contiguous"].flags.c_contiguous
    assert not laid["strided"].flags.c_contiguous and np.isnan(laid["strided"].base).any()
    assert laid["fortran"].flags.f_contiguous and not laid["fortran"].flags.c_contiguous
    assert max(laid["reversed"].strides) < 0
    assert not laid["readonly"].flags.writeable
    assert not laid["unaligned"].flags.aligned
    assert not laid["byteswapped"].dtype.isnative


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_large_cases_use_two_threads(backend):
    """Otherwise the comparison of thread counts would compare one thread with one thread."""
    if backend != "cpu":
        pytest.skip("only the C++ kernels say how many threads took part")
    with fastrnn.backend(backend):
        before = fastrnn.get_num_threads()
        fastrnn.set_num_threads(2)
        try:
            alone = {case.function for case in ALL if case.operation != "affine"}
            alone -= {"style_loss", "style_loss_backward"}  # made of the others
            for case in ALL:
                case.call(fastrnn, conformance.cast(case, np.float32))
                if fastrnn.last_backend().threads == 2:
                    alone.discard(case.function)
        finally:
            fastrnn.set_num_threads(before)
    assert not alone, f"no case of {', '.join(sorted(alone))} is large enough for a second thread"


def test_cases_are_the_same_every_time():
    again = [case for cases in conformance.CASES.values() for case in cases()]
    for one, other in zip(ALL, again, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        assert all(np.array_equal(one.arrays[key], other.arrays[key]) for key in one.arrays)


def test_check_runs_every_combination():
    outcomes = list(conformance.check(["affine"], ["reference"], ["float32", "float64"]))
    assert len(outcomes) == conformance.count(["affine"], ["reference"], ["float32", "float64"])
    assert {outcome.dtype for outcome in outcomes} == {"float32", "float64"}
    assert not [outcome for outcome in outcomes if outcome.failure]


def test_a_case_whose_oracle_fails_is_a_failure_and_not_the_end(monkeypatch):
    bad = replace(case_of(lambda a: {}), call=lambda m, a: 1 / 0)
    monkeypatch.setitem(conformance.CASES, "rnn", lambda: iter([bad, bad]))
    outcomes = list(conformance.check(["rnn"], ["reference"], ["float32"]))
    assert len(outcomes) == 2 and all("ZeroDivisionError" in outcome.failure for outcome in outcomes)
