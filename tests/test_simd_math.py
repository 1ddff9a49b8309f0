"""The vector mathematics of the C++ kernels against long double, in units in the last place of the result.

Budgets: exp of negatives 1.25, log 1, sigmoid 2.5, tanh 3, over the whole range of each dtype. NumPy's own exp,
sigmoid and tanh need 2.4, 3.3 and 1.4 in float32 on the same inputs.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

_cpu = pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")

SIGMOID, TANH, EXP, LOG = 0, 1, 2, 3
BUDGET = {SIGMOID: 2.5, TANH: 3.0, EXP: 1.25, LOG: 1.0}
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def evaluate(which, x):
    y = np.full_like(x, 7)
    _cpu.evaluate(which, x, y)
    return y


def exact(which, x):
    if which == TANH:
        return np.tanh(x)
    if which == EXP:
        return np.exp(x)
    if which == LOG:
        return np.log(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", [SIGMOID, TANH, EXP, LOG])
def test_error_in_ulp(which, dtype):
    if np.finfo(WIDER[dtype]).nmant <= np.finfo(dtype).nmant:
        pytest.skip("long double is no wider than double here")
    rng = np.random.default_rng(1)
    everywhere = rng.integers(0, np.iinfo(f"i{np.dtype(dtype).itemsize}").max, 200_000).astype(
        f"i{np.dtype(dtype).itemsize}"
    )
    x = np.concatenate(
        [
            rng.uniform(-1, 1, 200_000).astype(dtype),
            rng.uniform(-12, 12, 200_000).astype(dtype),
            rng.uniform(-800, 800, 100_000).astype(dtype),
            everywhere.view(dtype)[np.isfinite(everywhere.view(dtype))],
            -everywhere.view(dtype)[np.isfinite(everywhere.view(dtype))],
        ]
    )
    if which == EXP:
        x = -np.abs(x)
    if which == LOG:
        near_one = (1 + rng.uniform(-0.5, 0.5, 200_000) * 10 ** rng.uniform(-7, 0, 200_000)).astype(dtype)
        x = np.concatenate([np.abs(x), near_one])
        x = x[(x > 0) & (x != 1)]  # where the result is 0 it must be 0: a special value
    with np.errstate(under="ignore"):
        right = exact(which, x.astype(WIDER[dtype]))
        ulp = np.spacing(np.abs(right).astype(dtype))
    error = np.abs(evaluate(which, x).astype(WIDER[dtype]) - right) / np.maximum(
        ulp, np.finfo(dtype).smallest_subnormal
    )
    worst = int(np.argmax(error))
    assert error[worst] <= BUDGET[which], f"x = {x[worst]!r}: {float(error[worst]):.2f} ULP"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(evaluate(SIGMOID, x), np.array([1, 0, np.nan, 0.5, 0.5], dtype))
    y = evaluate(TANH, x)
    np.testing.assert_array_equal(y, np.array([1, -1, np.nan, 0, 0], dtype))
    assert np.signbit(y[4]) and not np.signbit(y[3])
    np.testing.assert_array_equal(evaluate(EXP, x[[1, 2, 3, 4]]), np.array([0, np.nan, 1, 1], dtype))
    np.testing.assert_array_equal(evaluate(LOG, x), np.array([np.inf, np.nan, np.nan, -np.inf, -np.inf], dtype))
    limits = np.finfo(dtype)
    x = np.array([1, -1, -limits.smallest_subnormal, -limits.tiny, -limits.max], dtype)
    np.testing.assert_array_equal(evaluate(LOG, x), np.array([0, *4 * [np.nan]], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_denormal_numbers_keep_their_digits(dtype):
    tiny = np.finfo(dtype).smallest_subnormal * np.arange(1, 100).astype(dtype)
    np.testing.assert_array_equal(evaluate(TANH, tiny), tiny)
    right = np.log(tiny.astype(WIDER[dtype]))
    assert np.all(np.abs(evaluate(LOG, tiny) - right) <= BUDGET[LOG] * np.spacing(np.abs(right).astype(dtype)))


@pytest.mark.skipif("FASTRNN_ISA" in os.environ, reason="an instruction set was asked for: this run is of that one")
@pytest.mark.parametrize("isa", [name for name in _cpu.isa_supported() if name != _cpu.isa()])
def test_the_other_instruction_sets(isa):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=os.environ | {"FASTRNN_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
