"""Errors of every public function, for what no function can take; what is particular is in the tests of the rows."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from harness import BACKENDS, complains

import fastrnn
from fastrnn import conformance, reference
from fastrnn.checks import Arguments

FUNCTIONS = [name for name in reference.__all__ if name != "sigmoid"]
CASES = {case.function: case for cases in conformance.CASES.values() for case in reversed(list(cases()))}


class Unreadable:
    """As the arrays of other libraries are that do not become NumPy's by themselves."""

    def __array__(self, *args, **options):
        raise RuntimeError("use .detach() first")


class Spoiled:
    """fastrnn, with another value for one argument of one function."""

    def __init__(self, function, parameter, value):
        self.function, self.parameter, self.value = function, parameter, value

    def __getattr__(self, name):
        right = getattr(fastrnn, name)
        if name != self.function:
            return right

        def call(*arguments, **options):
            given = inspect.signature(right).bind(*arguments, **options)
            given.arguments[self.parameter] = self.value
            return right(*given.args, **given.kwargs)

        return call


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_array_is_refused_by_name(function, backend):
    parameters = inspect.signature(getattr(fastrnn, function)).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    assert required
    case = CASES[function]
    for parameter in required:
        for value in (None, [[1.0], [2.0, 3.0]], Unreadable()):
            with fastrnn.backend(backend), pytest.raises((TypeError, ValueError)) as caught:
                case.call(Spoiled(function, parameter, value), conformance.cast(case, "float64"))
            start = f"{function}: argument '{parameter}"  # of a list it may be one entry: feats[0]
            assert str(caught.value).startswith(start), f"{parameter} = {value}: {caught.value}"
            assert ", got " in str(caught.value)


def test_what_another_library_says_is_handed_on():
    with pytest.raises(TypeError, match=r"'W' must be an array of numbers, got Unreadable.*use \.detach\(\) first"):
        fastrnn.word_embedding_forward([0], Unreadable())


@pytest.mark.parametrize("t", [-1, float("nan"), float("inf"), 2.5])
def test_a_count_of_steps_that_is_none(t):
    with pytest.raises(ValueError, match=r"adam: argument 'config\['t'\]' must be a whole number, at least 0, got"):
        fastrnn.adam([1.0], [1.0], {"t": t})


def test_a_layout_that_is_an_array():
    features, layouts = np.ones((1, 2, 3, 4)), np.array(["NCHW", "NHWC"])
    with complains(ValueError, "gram_matrix", "'layout' must be one of 'NCHW', 'NHWC'"):
        fastrnn.gram_matrix(features, layout=layouts)
    with complains(ValueError, "gram_backward", "'layout' must be one of 'NCHW', 'NHWC'"):
        fastrnn.gram_backward(np.ones((1, 2, 2)), features, layout=layouts)


def field_of_packed_records(a):
    """The same numbers, not aligned, and at strides that are no multiples of their size."""
    records = np.zeros(a.shape, [("before", np.int8), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_fields_of_packed_records_are_read_where_they_are(function, backend, monkeypatch):
    monkeypatch.setitem(conformance.LAYOUTS, "packed records", field_of_packed_records)
    cases = (case for cases in conformance.CASES.values() for case in cases() if case.function == function)
    case = next(case for case in cases if min(a.size for a in case.arrays.values()) > 1)
    fields = map(field_of_packed_records, case.arrays.values())
    assert all(a.strides[-1] % a.itemsize for a in fields if a.itemsize > 1)
    outcome = conformance.run_case(replace(case, layout="packed records"), backend, "float32")
    assert not outcome.failure


@pytest.mark.parametrize("value", [3, np.int8(3), np.array(3), np.uint64(3)])
def test_whole_numbers(value):
    number = Arguments("f").whole("n", value)
    assert number == 3 and type(number) is int


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (1.5, TypeError, "f: argument 'n' must be a whole number, got 1.5"),
        (True, TypeError, "f: argument 'n' must be a whole number, got True"),
        (np.True_, TypeError, "f: argument 'n' must be a whole number, got numpy.bool"),
        (np.array([3]), TypeError, "f: argument 'n' must be a whole number, got NumPy array"),
        ("3", TypeError, "f: argument 'n' must be a whole number, got str"),
        (0, ValueError, "f: argument 'n' must be at least 1, got 0"),
    ],
)
def test_what_is_no_whole_number(value, kind, said):
    with pytest.raises(kind, match=f"^{said}"):
        Arguments("f").whole("n", value)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan"), 0.0])
def test_finite_numbers_above_0(value):
    with pytest.raises(ValueError, match=r"^f: argument 'n' must be finite and above 0, got (-1|inf|nan|0)$"):
        Arguments("f").finite("n", value, above=True)
    if value == 0:
        assert Arguments("f").finite("n", value) == 0
