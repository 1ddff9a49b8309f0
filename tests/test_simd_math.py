"""The vector mathematics of the C++ kernels against long double, in units in the last place of the result.

Budgets: exp of negatives 1.25, sigmoid 2.5, tanh 3, over the whole range of each dtype. NumPy's own functions need 2.4,
3.3 and 1.4 in float32 on the same inputs.
"""

import numpy as np
import pytest

_cpu = pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")

SIGMOID, TANH, EXP = 0, 1, 2
BUDGET = {SIGMOID: 2.5, TANH: 3.0, EXP: 1.25}
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
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", [SIGMOID, TANH, EXP])
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_denormal_numbers_keep_their_digits(dtype):
    tiny = np.finfo(dtype).smallest_subnormal * np.arange(1, 100).astype(dtype)
    np.testing.assert_array_equal(evaluate(TANH, tiny), tiny)
