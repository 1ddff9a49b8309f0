"""What the tests of the rows have in common: the grid of functions, backends and dtypes, and the wording of errors."""

from contextlib import contextmanager

import pytest

import fastrnn
from fastrnn import conformance
from fastrnn.arrays import device

_expected: dict = {}  # what the oracle gives is the same for every backend
_STATUS = fastrnn.backend_status()
ON_GPU = not _STATUS["cuda"] and device().on_device
# Every backend of the table that takes NumPy arrays, skipped by name and with the reason where it cannot run.
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=f"{name}: {reason}"))
    for name, reason in _STATUS.items()
    if name != "cuda" or not ON_GPU
]
USABLE = [name for name in fastrnn.available_backends() if name != "cuda" or not ON_GPU]


def conformance_grid(row):
    """Parametrize a test with every function of `row` on every backend in every dtype."""
    functions = list(dict.fromkeys(case.function for case in conformance.CASES[row]()))

    def decorate(test):
        test = pytest.mark.parametrize("dtype", conformance.DTYPES)(test)
        backends = BACKENDS + ([pytest.param("cuda", marks=pytest.mark.gpu)] if ON_GPU else [])
        test = pytest.mark.parametrize("backend", backends)(test)
        return pytest.mark.parametrize("function", functions)(test)

    return decorate


def assert_conforms(row, function, backend, dtype):
    """Every case of the function meets everything that `fastrnn check` asks."""
    cases = [case for case in conformance.CASES[row]() if case.function == function]
    cases = [case for case in cases if conformance.runs_on(case, backend)]
    assert cases
    for case in cases:
        if (str(case), dtype) not in _expected:
            _expected[str(case), dtype] = conformance.expected(case, dtype)
    outcomes = [conformance.run_case(case, backend, dtype, _expected[str(case), dtype]) for case in cases]
    failed = [f"{outcome.function}[{outcome.case}]: {outcome.failure}" for outcome in outcomes if outcome.failure]
    assert not failed, "\n".join([f"{len(failed)} of {len(cases)} cases failed:", *failed[:10]])


@contextmanager
def complains(error, function, *words):
    """The block raises exactly `error`, and the message names the function and holds all `words`."""
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error, f"{caught.type.__name__} instead of {error.__name__}: {caught.value}"
    message = str(caught.value)
    missing = [word for word in (f"{function}: ", *words) if str(word) not in message]
    assert not missing, f"{missing} not in: {message}"
