"""The simulator on which CUDA kernels are tested without a GPU: what it computes, and that it finds what is wrong.

The kernels that it runs here, those with mistakes on purpose too, are in simulator_trials.cpp.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(6)
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="the simulator needs POSIX contexts"),
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Runs a trial, and gives back what it printed: an array a name."""
    program = tmp_path_factory.mktemp("simulator") / "trials"
    sources = [ROOT / "tests/simulator_trials.cpp", ROOT / "csrc/cuda/host/simulator.cpp"]
    flags = ["-std=c++20", "-O1", "-DFASTRNN_CUDA_ON_HOST"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], check=True)

    def run(name, seed=0):
        done = subprocess.run([program, name, str(seed)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: np.array(line[1:], np.float32).astype(float) for line in lines}

    run.program = program
    return run


def breaks_off(trials, name, seed):
    """What the simulator says when it ends the process."""
    done = subprocess.run([trials.program, name, str(seed)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGABRT and done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_of_a_block_meet(trials, seed):
    assert trials("neighbours", seed)["out"].tolist() == [*range(1, 96), 0]
    one_round = [(i + 40) % 96 for i in range(96)]
    assert trials("two rounds", seed)["out"].tolist() == [100 + 2 * x for x in one_round]
    assert trials("early return", seed)["out"].tolist() == [1] * 40 + [7] * 56


def test_a_missing_barrier_before_a_first_read_gives_nan(trials):
    for seed in SEEDS:
        assert np.isnan(trials("neighbours without barrier", seed)["out"]).any()


def test_a_missing_barrier_between_two_rounds_gives_other_results_with_every_seed(trials):
    """Numbers of the wrong round, no NaN: only the order of the threads, which a seed shuffles, shows it for sure."""
    right = trials("two rounds")["out"]
    results = [trials("two rounds without barrier", seed)["out"] for seed in SEEDS]
    assert not any(np.array_equal(result, right) for result in results)
    assert len({result.tobytes() for result in results}) == len(results)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("different barriers", "every thread waits for another"),
        ("a meeting without one", "every thread waits for another"),
        ("a lane outside of the mask", "a lane outside of the mask"),
        ("unaligned copy", "no multiple of 16"),
    ],
)
def test_what_would_hang_or_fault_on_a_device_ends_with_a_message(trials, name, words, seed):
    assert words in breaks_off(trials, name, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_are_there_when_they_were_waited_for_and_not_before(trials, seed):
    waited = trials("copies waited for", seed)
    assert np.array_equal(waited["out"], waited["from"])
    assert (trials("copies not waited for", seed)["out"] == -1).all()
    older = trials("the older group", seed)
    assert np.array_equal(older["out"].reshape(32, 8)[:, :4], np.tile(older["from"][:4], (32, 1)))
    assert (older["out"].reshape(32, 8)[:, 4:] == -1).all()
    assert trials("invalid copy", seed)["out"].tolist() == [0] * 4


def test_shared_memory_starts_as_nan(trials):
    assert np.isnan(trials("unwritten")["out"]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_operations(trials, seed):
    sums = trials("sums", seed)["out"].reshape(3, 32)
    for warp, row in enumerate(sums):
        lanes = np.arange(32) + 32 * warp
        assert (row == lanes.sum() + 10000 * lanes.max()).all()
    x = np.arange(64)
    lane, first = x % 32, x - x % 32
    expected = np.stack(
        [
            first + 5,
            first + lane // 8 * 8 + 3,
            np.where(lane < 2, x, x - 2),
            np.where(lane > 29, x, x + 2),
            first + (lane ^ 17),
            [sum(1 << i for i in range(16) if (start + i) % 3 == 0) for start in first],
        ],
        axis=1,
    )
    assert np.array_equal(trials("shuffles", seed)["out"].reshape(64, 6), expected)


def rounded(x, bits):
    """float32 with its mantissa rounded to `bits`, to nearest, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2 ** (bits + 1)), exponent - bits - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "k", "bits"), [("tf32", 8, 10), ("bf16", 16, 7), ("fp16", 16, 10)])
def test_products_of_fragments(trials, name, k, bits, seed):
    """The fragments' layout is that of device.h, on its own: a and b are given, and d is read, as whole matrices."""
    result = trials(name, seed)
    a, b = result["a"].reshape(16, k), result["b"].reshape(k, 8)
    assert not np.array_equal(rounded(a, bits), a)
    expected = rounded(a, bits) @ rounded(b, bits)
    np.testing.assert_allclose(result["d"].reshape(16, 8), expected, rtol=0, atol=2**-22)


def test_halves_are_numpy_s(trials):
    result = trials("halves")
    floats = result["floats"].astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        halves = floats.astype(np.float16)
    assert np.isinf(halves).any() and (np.abs(halves[halves != 0]) < 2**-14).any()
    ties = floats == (halves.astype(float) + np.nextafter(halves, np.float16(0)).astype(float)) / 2
    assert ties.any()
    np.testing.assert_array_equal(result["halves"], halves.astype(float))
    # Every half comes through as it is: numbers from 0x0000 on, and those with the sign.
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(float)
    np.testing.assert_array_equal(floats[::3], numbers)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_grid_meet(trials, seed):
    assert trials("meetings", seed) == {"error": 0, "out": pytest.approx([1000] * 4, abs=0)}
    assert trials("meetings without barrier", seed)["out"].tolist() != [1000] * 4


def test_a_grid_that_does_not_fit_is_an_error(trials):
    assert trials("more blocks than fit")["error"] == 720
