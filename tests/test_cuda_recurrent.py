"""The time loops of rnn, lstm and gru on CUDA: how they are cut, and that the cut does not show in the results."""

import itertools
import sys
from importlib import import_module

import numpy as np
import pytest
from harness import complains
from recurrent import GATES, arguments, backward, forward

import fastrnn
from fastrnn import conformance, reference

simulator = pytest.importorskip(
    "fastrnn._cuda_on_host", reason="the CUDA kernels were not built over the simulator (FASTRNN_CUDA_ON_HOST=ON)"
)

# Multiprocessors, shared memory of a block, compute capability.
H100, A100, ADA, TURING = (132, 232448, 9, 0), (108, 166912, 8, 0), (128, 101376, 8, 9), (40, 65536, 7, 5)
DEVICES = (H100, A100, ADA, TURING, (3, 232448, 9, 0), (8, 232448, 9, 0), (1, 65536, 8, 0))
PRECISIONS = ("highest", "high", "medium")


def plan(N, H, gates, direction, itemsize, precision, device):
    columns, depth = (gates, H) if direction == "forward" else (1, gates * H)
    return simulator.recurrent_plan(N, H, columns, depth, itemsize, PRECISIONS.index(precision), *device)


@pytest.fixture
def on_host(monkeypatch):
    """The cuda backend on the simulator; the device is the default one again afterwards."""
    monkeypatch.setenv("FASTRNN_CUDA_ON_HOST", "1")
    arrays = pytest.importorskip("fastrnn.cuda.arrays", reason="the CUDA kernels were not built", exc_type=ImportError)
    if not arrays.ON_HOST:
        pytest.skip("fastrnn.cuda was imported before, for a GPU; set FASTRNN_CUDA_ON_HOST=1")
    # Whoever asked before was told that there is no GPU, and the answer was kept.
    monkeypatch.setitem(sys.modules["fastrnn.backend"]._reasons, "cuda", "")
    before = fastrnn.get_float32_matmul_precision()
    with fastrnn.backend("cuda"):
        yield
    fastrnn.set_float32_matmul_precision(before)
    simulator.simulate()


def run(cell, dtype, N=5, T=3, D=7, H=40, **options):
    """All outputs of forward and backward, as one dictionary."""
    inputs = arguments(cell, N=N, T=T, D=D, H=H, dtype=dtype)
    h, states, cache = forward(cell)(*inputs, return_state=True, **options)
    gradients = backward(cell)(np.cos(np.arange(h.size).reshape(h.shape)).astype(dtype), cache)
    return {str(i): np.array(a) for i, a in enumerate((h, *(states if cell == "lstm" else [states]), *gradients))}


def same_bits(a, b):
    return all(a[key].tobytes() == b[key].tobytes() for key in a)


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("gates", [1, 3, 4])
def test_every_unit_row_and_k_has_one_owner_and_everything_fits(gates, direction, device):
    sms, shared = device[:2]
    for N, H in itertools.product((1, 7, 8, 16, 17, 64, 100, 300), (1, 5, 16, 33, 200, 256, 768, 1024, 1536, 4100)):
        for itemsize, precision in ((2, "highest"), *((4, name) for name in PRECISIONS), (8, "highest")):
            p = plan(N, H, gates, direction, itemsize, precision, device)
            where = (N, H, itemsize, precision, p)
            columns, depth = (gates, H) if direction == "forward" else (1, gates * H)
            assert p["tile"] >= 0, where
            assert p["shared"] <= shared, where
            assert p["pass_units"] * columns <= p["columns"], where
            owned = [
                (start, min(start + p["pass_units"], H))
                for block in range(p["unit_groups"])
                for start in range(
                    block * p["unit_passes"] * p["pass_units"],
                    (block + 1) * p["unit_passes"] * p["pass_units"],
                    p["pass_units"],
                )
                if start < H
            ]
            assert sum(end - start for start, end in owned) == H, where
            assert all(before[1] == after[0] for before, after in itertools.pairwise(owned)), where
            assert (p["unit_groups"] - 1) * p["unit_passes"] * p["pass_units"] < H, where  # no block without units
            block_rows = p["row_passes"] * p["rows"]
            assert (p["row_groups"] - 1) * block_rows < N <= p["row_groups"] * block_rows, where
            assert (p["chunks"] - 1) * p["chunk_k"] < depth <= p["chunks"] * p["chunk_k"], where
            assert not p["resident"] or p["unit_groups"] * p["row_groups"] <= sms, where
            assert p["stages"] in (1, 2, 4), where


def test_how_sums_are_shared_does_not_depend_on_the_size_of_the_device():
    for N, H, gates in itertools.product((1, 16, 17, 100), (5, 200, 1024), (1, 3, 4)):
        for direction, itemsize in itertools.product(("forward", "backward"), (2, 4, 8)):
            cuts = [
                plan(N, H, gates, direction, itemsize, "highest", (sms, shared, 9, 0))
                for sms in (1, 3, 8, 132)
                for shared in (65536, 232448)
            ]
            assert len({(p["engine"], p["slices"], p["chunk_k"], p["chunks"]) for p in cuts}) == 1, (N, H, gates)


@pytest.mark.parametrize(
    ("N", "H", "expected"),
    [  # forward and backward, each at highest, high and medium; S: the weights stay in shared memory
        (16, 768, ("SSS", "SSS")),
        (32, 512, ("SSS", "SSS")),
        (64, 1024, ("SSS", "--S")),
        (100, 200, ("SSS", "SSS")),
        (8, 256, ("SSS", "SSS")),
        (128, 1536, ("--S", "---")),
    ],
)
def test_what_an_h100_keeps_in_shared_memory(N, H, expected):
    found = tuple(
        "".join("S" if plan(N, H, 4, direction, 4, precision, H100)["resident"] else "-" for precision in PRECISIONS)
        for direction in ("forward", "backward")
    )
    assert found == expected
    # Halves are cut as bfloat16 numbers are.
    for direction in ("forward", "backward"):
        halves, numbers = (plan(N, H, 4, direction, *how, H100) for how in ((2, "highest"), (4, "medium")))
        assert halves.pop("engine") == "fp16" and numbers.pop("engine") == "bf16"
        assert halves == numbers


def test_what_multiplies():
    def engine(N, itemsize, precision, device):
        return plan(N, 64, 4, "forward", itemsize, precision, device)["engine"]

    assert [engine(64, 4, precision, H100) for precision in PRECISIONS] == ["split", "tf32", "bf16"]
    assert engine(16, 4, "highest", H100) == engine(64, 4, "highest", ADA) == "fma"
    assert {engine(64, 4, precision, TURING) for precision in PRECISIONS} == {"fma"}
    assert {engine(64, 8, precision, H100) for precision in PRECISIONS} == {"fma"}
    halves = itertools.product((1, 64), PRECISIONS, (H100, ADA, TURING))
    assert {engine(N, 2, precision, device) for N, precision, device in halves} == {"fp16"}


# ---- results ---------------------------------------------------------------------------------------------------------

# More than one chunk of k and than one pass, and rows on both sides of what the FMA tiles are for.
SIZES = [(5, 2, 7, 40), (20, 2, 9, 70)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("cell", GATES)
def test_bits_do_not_depend_on_thread_order_or_on_the_size_of_the_device(cell, dtype, precision, on_host):
    if dtype != np.float32 and precision != "highest":
        pytest.skip("float16 and float64 have one precision")
    fastrnn.set_float32_matmul_precision(precision)
    for N, T, D, H in SIZES:
        options = {"lengths": np.arange(N) % (T + 1), "reverse": N == 20}
        simulator.simulate(sms=4)
        expected = run(cell, dtype, N, T, D, H, **options)
        for device in (
            {"sms": 4, "seed": 1},
            {"sms": 4, "seed": 7},
            {"sms": 3},
            {"sms": 8, "seed": 1},
            {"sms": 1, "shared": 70000},
        ):
            simulator.simulate(**device)
            assert same_bits(expected, run(cell, dtype, N, T, D, H, **options)), (N, T, D, H, device)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("cell", GATES)
def test_a_launch_a_step_gives_what_one_kernel_gives(cell, dtype, on_host):
    chose = import_module(f"fastrnn.cuda.{cell}").chose
    size = (20, 2, 5, 130)
    itemsize = np.dtype(dtype).itemsize
    simulator.simulate(sms=8)
    assert chose(*size, itemsize) == "persistent" or itemsize == 8
    expected = run(cell, dtype, *size)
    simulator.simulate(sms=1, shared=70000, seed=3)
    assert chose(*size, itemsize) == "per-step"
    streamed = run(cell, dtype, *size)
    for key in expected:
        np.testing.assert_allclose(
            streamed[key], expected[key], rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(expected[key]).max()
        )


@pytest.mark.parametrize("device", [(7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize("cell", GATES)
def test_capabilities_with_and_without_tensor_cores(cell, device, on_host):
    simulator.simulate(major=device[0], minor=device[1], seed=2)
    for case in conformance.CASES[cell]():
        if case.name in ("13x3x16x33", "16x4x32x64", "19x3x6x21 saturated"):
            outcome = conformance.run_case(case, "cuda", "float32")
            assert not outcome.failure, (str(case), outcome.failure)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("cell", GATES)
def test_lower_precisions_meet_the_rule_with_the_oracle_in_them(cell, precision, on_host):
    fastrnn.set_float32_matmul_precision(precision)
    kind, eps = conformance.LOWER_PRECISION["cuda", precision]
    dtype = np.dtype(np.float32)
    for case in conformance.CASES[cell]():
        if case.layout != "contiguous" or max(a.size for a in case.arrays.values()) > 2500:
            continue
        oracle, exact = conformance.expected(case, dtype)
        results = case.call(fastrnn, conformance.cast(case, dtype))
        complaints = conformance._judge(results, conformance._rounded_oracle(case, kind), exact, dtype, eps)[-1]
        assert not complaints, (str(case), complaints)


@pytest.mark.parametrize("cell", GATES)
def test_lower_precisions_are_other_computations_of_float32_only(cell, on_host):
    runs = {}
    for precision in PRECISIONS:
        fastrnn.set_float32_matmul_precision(precision)
        runs[precision] = run(cell, np.float32, N=20), run(cell, np.float64, N=20)
    for key, exact in runs["highest"][0].items():
        errors = [np.abs(runs[precision][0][key] - exact).max() / np.abs(exact).max() for precision in PRECISIONS]
        assert errors[0] == 0 and 1e-6 < errors[1] < errors[2] < 0.1, (key, errors)
    assert same_bits(runs["highest"][1], runs["high"][1]) and same_bits(runs["highest"][1], runs["medium"][1])
    halves = []
    for precision in PRECISIONS:
        fastrnn.set_float32_matmul_precision(precision)
        halves.append(run(cell, np.float16, N=20))
    assert same_bits(halves[0], halves[1]) and same_bits(halves[0], halves[2])


@pytest.mark.parametrize("cell", GATES)
def test_a_pass_may_be_forward_in_one_precision_and_backward_in_another(cell, on_host):
    for first, second in itertools.permutations(PRECISIONS, 2):
        fastrnn.set_float32_matmul_precision(first)
        h, cache = forward(cell)(*arguments(cell, N=20, T=3, D=5, H=40, dtype=np.float32))
        dh = np.ones_like(h)
        expected = backward(cell)(dh, cache)
        fastrnn.set_float32_matmul_precision(second)
        for ours, other in zip(backward(cell)(dh, cache), expected, strict=True):
            assert np.abs(ours - other).max() < 0.1 * np.abs(other).max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_infinities_and_nan_come_through_and_stay_in_their_row(precision, on_host):
    fastrnn.set_float32_matmul_precision(precision)
    x, h0, Wx, Wh, b = arguments("rnn", N=20, T=1, D=4, H=33, dtype=np.float32)
    clean, _ = fastrnn.rnn_forward(x, h0, Wx, Wh, b)
    h0[1, 0], h0[2, 5] = np.inf, np.nan
    h, _ = fastrnn.rnn_forward(x, h0, Wx, Wh, b)
    np.testing.assert_array_equal(h[1, 0], np.sign(Wh[0]))
    assert np.isnan(h[2]).all()
    rest = np.delete(np.arange(20), [1, 2])
    np.testing.assert_array_equal(h[rest], clean[rest])


# ---- halves ----------------------------------------------------------------------------------------------------------


def rule_on_halves(case):
    """What is wrong with a case on float16 arrays: the oracle in float16 and in float64, on the same inputs."""
    inputs = conformance.cast(case, np.float16)
    wide = {key: a.astype(float) if a.dtype.kind == "f" else a for key, a in inputs.items()}
    with np.errstate(all="ignore"):
        oracle = case.call(reference, inputs)
    given = {key: conformance.LAYOUTS[case.layout](a) for key, a in inputs.items()}
    before = {key: a.tobytes() for key, a in given.items()}
    results = case.call(fastrnn, given)
    assert {key: a.tobytes() for key, a in given.items()} == before
    return conformance._judge(results, oracle, case.call(reference, wide), np.dtype(np.float16), None)[-1]


@pytest.mark.parametrize("device", [(7, 5), (9, 0)])
@pytest.mark.parametrize("cell", GATES)
def test_halves_meet_the_rule(cell, device, on_host):
    simulator.simulate(major=device[0], minor=device[1], seed=device[0])
    for case in conformance.CASES[cell]():
        if max(a.size for a in case.arrays.values()) < 2500 and (device == (9, 0) or "x3x" in case.name):
            complaints = rule_on_halves(case)
            assert not complaints, (str(case), complaints)


@pytest.mark.parametrize("N", [3, 20, 70])
@pytest.mark.parametrize("cell", GATES)
def test_halves_in_more_than_one_chunk_and_pass(cell, N, on_host):
    """Several chunks of 64 k, and tiles of 8 to 64 rows."""
    simulator.simulate(sms=2)
    for case in conformance._sequence(cell, (N, 2, 9, 75), "lengths", "return_state"):
        complaints = rule_on_halves(case)
        assert not complaints, (str(case), complaints)


def test_operands_are_halves_and_not_less(on_host):
    """Each unit copies one h: a half, whose last bits neither bfloat16 nor fewer sums would keep."""
    rng = np.random.default_rng(3)
    N, H = 20, 80
    h0 = rng.standard_normal((N, H)).astype(np.float16)
    order = rng.permutation(H)
    h, _ = fastrnn.rnn_forward(
        np.zeros((N, 1, 1), np.float16),
        h0,
        np.zeros((1, H), np.float16),
        np.eye(H, dtype=np.float16)[:, order],
        np.zeros(H, np.float16),
    )
    expected = np.tanh(h0[:, order].astype(float))
    assert h.dtype == np.float16
    assert np.abs(h[:, 0] - expected).max() <= 0.5001 * np.spacing(np.float16(0.5))


def test_states_keep_what_halves_would_lose(on_host):
    """A cell that adds 2^-12 a step from 1 on, where halves are 2^-10 apart; a GRU's state that decays slowly."""
    T, H = 64, 4
    bias = np.repeat([-np.log(2.0**12 - 1), 30.0, 0.0, 20.0], H)  # i = 2^-12, f = 1, g = 1
    zeros = [np.zeros(shape, np.float16) for shape in ((1, T, 1), (1, H), (1, 4 * H), (H, 4 * H))]
    c0 = np.ones((1, H), np.float16)
    _, (_, c_n), _ = fastrnn.lstm_forward(*zeros, bias.astype(np.float16), c0=c0, return_state=True)
    assert np.abs(c_n - (1 + T * 2.0**-12)).max() < 2.0**-10

    bias = np.repeat([0.0, np.log(2.0**13 - 1), 0.0], H)  # z = 1 - 2^-13, n = 0
    zeros = [np.zeros(shape, np.float16) for shape in ((1, T, 1), (1, 3 * H), (H, 3 * H))]
    h, _ = fastrnn.gru_forward(zeros[0], np.ones((1, H), np.float16), *zeros[1:], bias.astype(np.float16))
    assert np.abs(h[0, -1] - (1 - 2.0**-13) ** T).max() < 2.0**-10


@pytest.mark.parametrize("cell", GATES)
def test_all_halves_pass_through_a_sequence_of_no_steps(cell, on_host):
    h0 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(16, -1)
    N, H = h0.shape
    zeros = [np.zeros(shape, np.float16) for shape in ((N, 0, 1), (1, GATES[cell] * H), (H, GATES[cell] * H))]
    h, state, cache = forward(cell)(zeros[0], h0, *zeros[1:], zeros[1][0], return_state=True)
    np.testing.assert_array_equal(state[0] if cell == "lstm" else state, h0)
    dh0 = backward(cell)(h, cache, dh_n=h0)[1]
    np.testing.assert_array_equal(dh0, h0)


@pytest.mark.parametrize("cell", GATES)
def test_the_dtypes_of_a_call_are_promoted(cell, on_host):
    inputs = arguments(cell, N=3, T=2, D=4, H=5, dtype=np.float16)
    h, cache = forward(cell)(*inputs)
    assert h.dtype == np.float16
    assert {a.dtype for a in backward(cell)(h.astype(np.float64), cache)} == {np.dtype(np.float16)}
    wider = forward(cell)(*inputs[:-1], inputs[-1].astype(np.float32))[0]
    assert wider.dtype == np.float32
    with complains(
        TypeError, f"{cell}_forward", "'x'", "float16, float32 or float64", f"dtype {np.dtype(np.longdouble)}"
    ):
        forward(cell)(inputs[0].astype(np.longdouble), *inputs[1:])


@pytest.mark.parametrize("backend", [name for name in fastrnn.available_backends() if name != "cuda"])
@pytest.mark.parametrize("cell", GATES)
def test_no_other_backend_takes_halves(cell, backend):
    with fastrnn.backend(backend):
        with complains(TypeError, f"{cell}_forward", "'x'", "float32 or float64", "dtype float16"):
            forward(cell)(*arguments(cell, dtype=np.float16))
        h, cache = forward(cell)(*arguments(cell, dtype=np.float32))
        with complains(TypeError, f"{cell}_backward", "'dh'", "float32 or float64", "dtype float16"):
            backward(cell)(h.astype(np.float16), cache)


def test_no_other_row_takes_halves(on_host):
    a = np.ones((3, 4), np.float16)
    with complains(TypeError, "gram_matrix", "float32 or float64", "dtype float16"):
        fastrnn.gram_matrix(a[None, None])
    with complains(TypeError, "sgd", "float32 or float64", "dtype float16"):
        fastrnn.sgd(a, a)


@pytest.mark.parametrize("cell", GATES)
def test_what_is_kept_of_halves_is_float32(cell, on_host):
    module = import_module(f"fastrnn.cuda.{cell}")
    buffers = getattr(module, f"{cell}_buffers")
    N, T, D, H = 20, 3, 5, 40
    assert buffers(N, T, D, H, 2)[0] == 2 * buffers(N, T, D, H, 4)[0]
    assert module.chose(N, T, D, H, 2) == "persistent"


@pytest.mark.parametrize("cell", GATES)
def test_the_conformance_grid_on_halves(cell, on_host):
    cases = [case for case in conformance.CASES[cell]() if case.name.startswith("4x5x7x9")]
    assert not conformance.runs_on(cases[0], "numba", "float16") and conformance.runs_on(cases[0], "cuda", "float16")
    for case in cases:
        outcome = conformance.run_case(case, "cuda", "float16")
        assert not outcome.failure and outcome.ratio < 1, (str(case), outcome.failure)


@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize("cell", GATES)
def test_pytorch_in_half_precision_is_a_peer(cell, mode, on_host):
    pytest.importorskip("torch")
    recurrent = pytest.importorskip("fastrnn.bench.recurrent", reason="the benchmarks are not installed")
    benchmark = recurrent.benchmarks(cell)[0]
    arrays = benchmark.inputs((6, 3, 10, 24), np.float16)
    ours = benchmark.run(fastrnn, arrays, mode)()
    try:
        call, convert = benchmark.peers["torch"](arrays, mode)
        theirs = convert(call())
    except RuntimeError as error:
        pytest.skip(f"PyTorch has no {cell} of halves on the processor: {error}")
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype == np.float16 and one.shape == other.shape
        assert np.abs(one - other.astype(float)).max() < 2**-6 * np.abs(other).max()
