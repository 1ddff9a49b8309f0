"""``set_float32_matmul_precision``: its words, what ran, and kernels whose products round their operands."""

import numpy as np
import pytest
from harness import complains
from recurrent import arguments, backward, forward

import fastrnn
from fastrnn import conformance

cpu = pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")
CELLS = ("rnn", "lstm", "gru")
needs_bf16 = pytest.mark.skipif(
    not cpu.has_medium(), reason=f"instruction set {cpu.isa()} has no products of bfloat16 numbers"
)


@pytest.fixture
def medium():
    before = fastrnn.get_float32_matmul_precision()
    fastrnn.set_float32_matmul_precision("medium")
    with fastrnn.backend("cpu"):
        yield
    fastrnn.set_float32_matmul_precision(before)


def run(cell, dtype):
    inputs = arguments(cell, N=20, T=5, D=33, H=40, dtype=dtype)
    h, cache = forward(cell)(*inputs)
    return (h, *backward(cell)(np.ones_like(h), cache))


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_medium_meets_the_rule_with_the_oracle_in_its_precision(cell, medium):
    outcomes = [conformance.run_case(case, "cpu", "float32") for case in conformance.CASES[cell]()]
    assert {outcome.precision for outcome in outcomes} == {"medium"}
    assert not [f"{outcome.function}[{outcome.case}]: {outcome.failure}" for outcome in outcomes if outcome.failure]


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_medium_is_another_computation_in_float32_only(cell, medium):
    rounded, rounded64 = run(cell, np.float32), run(cell, np.float64)
    fastrnn.set_float32_matmul_precision("highest")
    for position, (ours, exact) in enumerate(zip(rounded, run(cell, np.float32), strict=True)):
        assert ours.dtype == np.float32
        error = np.abs(ours - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < 0.2, position
    for ours, exact in zip(rounded64, run(cell, np.float64), strict=True):
        np.testing.assert_array_equal(ours, exact)


@needs_bf16
@pytest.mark.parametrize("cell", CELLS)
def test_a_pass_may_be_forward_in_one_precision_and_backward_in_another(cell, medium):
    inputs = arguments(cell, N=20, T=5, D=33, H=40, dtype=np.float32)
    h, cache = forward(cell)(*inputs)
    dh = np.ones_like(h)
    rounded = backward(cell)(dh, cache)
    fastrnn.set_float32_matmul_precision("highest")
    for ours, other in zip(backward(cell)(dh, cache), rounded, strict=True):
        assert np.abs(ours - other).max() < 0.2 * np.abs(other).max()


def test_infinities_and_nan_come_through(medium):
    x, h0, Wx, Wh, b = arguments("rnn", N=2, T=1, D=4, H=8, dtype=np.float32)
    x[0, 0, 0], x[1, 0, 0] = np.inf, np.nan
    h, _ = fastrnn.rnn_forward(x, h0, Wx, Wh, b)
    assert np.array_equal(np.abs(h[0, 0]), np.ones(8)) and np.isnan(h[1]).all()


def test_what_ran_is_told(medium):
    run("lstm", np.float32)
    assert fastrnn.last_backend().precision == ("medium" if cpu.has_medium() else "highest")
    run("lstm", np.float64)
    assert fastrnn.last_backend().precision == "highest"
    with fastrnn.backend("reference"):
        run("lstm", np.float32)
    assert fastrnn.last_backend().precision == "highest"
    fastrnn.set_float32_matmul_precision("high")
    run("lstm", np.float32)
    assert fastrnn.last_backend().precision == "highest"


@pytest.mark.parametrize("wrong", ["low", "", None, 16])
def test_unknown_words_are_refused(wrong):
    before = fastrnn.get_float32_matmul_precision()
    with complains(ValueError, "set_float32_matmul_precision", "'precision'", "'highest', 'high', 'medium'", wrong):
        fastrnn.set_float32_matmul_precision(wrong)
    assert fastrnn.get_float32_matmul_precision() == before


def test_the_oracle_rounds_to_nearest_even():
    one = np.float32(1)
    ulp = np.float32(2.0**-7)
    given = np.array([one + ulp / 2, one + ulp * 3 / 2, one + ulp / 2 * np.float32(1.01), -one, np.inf, 0], np.float32)
    want = np.array([1, 1 + 2 * ulp, 1 + ulp, -1, np.inf, 0], np.float32)
    np.testing.assert_array_equal(conformance._to_bf16(given), want)
