"""``set_float32_matmul_precision``: its words, what ran, and kernels whose products round or split their operands."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from harness import complains
from recurrent import arguments, backward, forward

import fastrnn
from fastrnn import conformance
from fastrnn.backend import PRECISIONS

cpu = pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")
CELLS = ("rnn", "lstm", "gru")
# Instruction sets with products in lower precision than float32's.
SETS = {"avx512_bf16": ("medium",), "amx": ("high", "medium")}


@pytest.fixture(params=["high", "medium"])
def lower(request):
    """Each precision below the highest that the instruction set in use has."""
    if not cpu.has_precision(request.param):
        pytest.skip(f"instruction set {cpu.isa()} has no products in precision {request.param}")
    yield from set_to(request.param)


@pytest.fixture
def medium():
    yield from set_to("medium")


def set_to(precision):
    before = fastrnn.get_float32_matmul_precision()
    fastrnn.set_float32_matmul_precision(precision)
    with fastrnn.backend("cpu"):
        yield precision
    fastrnn.set_float32_matmul_precision(before)


def run(cell, dtype):
    inputs = arguments(cell, N=20, T=5, D=33, H=40, dtype=dtype)
    h, cache = forward(cell)(*inputs)
    return (h, *backward(cell)(np.ones_like(h), cache))


@pytest.mark.parametrize("cell", CELLS)
def test_the_rule_is_met_with_the_oracle_in_that_precision(cell, lower):
    outcomes = [conformance.run_case(case, "cpu", "float32") for case in conformance.CASES[cell]()]
    assert {outcome.precision for outcome in outcomes} == {lower}
    assert not [f"{outcome.function}[{outcome.case}]: {outcome.failure}" for outcome in outcomes if outcome.failure]


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_another_computation_in_float32_only(cell, lower):
    rounded, rounded64 = run(cell, np.float32), run(cell, np.float64)
    fastrnn.set_float32_matmul_precision("highest")
    least, most = {"high": (1e-7, 1e-3), "medium": (1e-5, 0.2)}[lower]
    for position, (ours, exact) in enumerate(zip(rounded, run(cell, np.float32), strict=True)):
        assert ours.dtype == np.float32
        error = np.abs(ours - exact).max() / np.abs(exact).max()
        assert least < error < most, position
    for ours, exact in zip(rounded64, run(cell, np.float64), strict=True):
        np.testing.assert_array_equal(ours, exact)


# Rows of one and of two tile registers; k beyond what is rounded at once, beyond one block of weight gradients, odd,
# and 1 and 31 more than whole blocks of 32.
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1), (16, 2, 31, 65), (33, 3, 257, 40), (50, 2, 95, 129), (90, 13, 300, 31), (17, 75, 5, 16)]
)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes_of_tiles_and_blocks(cell, shape, lower):
    case = next(case for case in conformance._sequence(cell, shape) if case.function.endswith("backward"))
    outcome = conformance.run_case(case, "cpu", "float32")
    assert outcome.precision == lower and not outcome.failure


@pytest.mark.parametrize("cell", CELLS)
def test_a_pass_may_be_forward_in_one_precision_and_backward_in_another(cell, lower):
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


def test_infinities_meet_what_float32_makes_of_them(lower):
    """An infinity times 1 + 2^-9, whose two bfloat16 parts have unlike signs, and times 1, whose second part is 0."""
    x, h0, Wx, Wh, b = arguments("rnn", N=40, T=2, D=35, H=20, dtype=np.float32)
    Wx[3, :8], Wx[3, 8:] = 1 - 2.0**-10, -1
    x[1, 0, 3], x[2, 0, 3], x[30, 1, 34], x[31, 1, 34] = np.inf, -np.inf, np.inf, np.nan
    dh = np.ones((40, 2, 20), np.float32)
    dh[5, 0, 2], dh[35, 0, 19], dh[7, 0, 3] = np.inf, -np.inf, np.nan  # of first steps: what they reach is not all
    # Else infinite gradients meet the zeros of saturated units.
    gradients = arguments("rnn", N=40, T=2, D=35, H=20, dtype=np.float32)

    def both():
        h, _ = fastrnn.rnn_forward(x, h0, Wx, Wh, b)
        return h, *fastrnn.rnn_backward(dh, fastrnn.rnn_forward(*gradients)[1])

    ours = both()
    fastrnn.set_float32_matmul_precision("highest")
    for position, (got, want) in enumerate(zip(ours, both(), strict=True)):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=str(position))
        np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want), err_msg=str(position))
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want), err_msg=str(position))
        assert position == 0 or np.isinf(want).any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_ran_is_told(precision, medium):
    fastrnn.set_float32_matmul_precision(precision)
    run("lstm", np.float32)
    assert fastrnn.last_backend().precision == (precision if cpu.has_precision(precision) else "highest")
    run("lstm", np.float64)
    assert fastrnn.last_backend().precision == "highest"
    with fastrnn.backend("reference"):
        run("lstm", np.float32)
    assert fastrnn.last_backend().precision == "highest"


@pytest.mark.parametrize(("isa", "precision"), [(isa, name) for isa, names in SETS.items() for name in names])
def test_every_instruction_set_that_has_it(isa, precision, tmp_path):
    if isa not in cpu.isa_supported():
        pytest.skip(f"this processor does not run {isa}" + ("; make emulate-amx tests it" if isa == "amx" else ""))
    command = [sys.executable, "-m", "fastrnn", "check", *CELLS, "--backend", "cpu", "--dtype", "float32"]
    command += ["--precision", precision, "--json", str(tmp_path / "outcomes.json")]
    done = subprocess.run(command, env=os.environ | {"FASTRNN_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())["outcomes"]
    assert {(outcome["isa"], outcome["precision"]) for outcome in outcomes} == {(isa, precision)}


def test_instruction_sets_without_are_highest():
    assert cpu.has_precision("highest") is False  # nothing but float32's own
    for precision in ("high", "medium"):
        assert cpu.has_precision(precision) == (precision in SETS.get(cpu.isa(), ()))


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


def test_the_oracle_splits_numbers_within_half_the_eps_of_the_rule():
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    hi, lo = conformance._split(x)
    for part in (hi, lo):
        np.testing.assert_array_equal(part, conformance._to_bf16(part))
    error = np.abs((hi.astype(np.float64) + lo - x) / x).max()
    assert conformance.SPLIT_EPS / 4 < error <= conformance.SPLIT_EPS / 2
    assert [float(part[0]) for part in conformance._split(np.array([np.inf], np.float32))] == [np.inf, 0]
    product = conformance.SplitProducts.product(x.reshape(100, 100), x.reshape(100, 100).T)
    exact = x.reshape(100, 100).astype(np.float64) @ x.reshape(100, 100).T
    assert 1e-7 < np.abs(product - exact).max() / np.abs(exact).max() < conformance.SPLIT_EPS
