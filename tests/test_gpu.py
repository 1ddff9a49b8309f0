"""What needs an NVIDIA GPU, beside `fastrnn check --backend cuda`: streams, devices, and a small selection of kernels.

`make test-gpu` runs these; those with "sanitizer" in their names also under compute-sanitizer, which is slow.
"""

import os
import zlib

import numpy as np
import pytest

import fastrnn
from fastrnn import conformance

REASON = (
    "the simulator is in use (FASTRNN_CUDA_ON_HOST=1)"
    if os.environ.get("FASTRNN_CUDA_ON_HOST") == "1"
    else fastrnn.backend_status()["cuda"]
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=f"cuda: {REASON}")]

# Cases of a function that are run here: the smallest, the median, and one of every layout of memory.
LARGEST = 40_000  # numbers in a case's inputs


def selection(row):
    """Cases of a row, spread over its functions."""
    functions = {}
    for case in conformance.CASES[row]():
        size = sum(np.size(a) for a in case.arrays.values())
        if size <= LARGEST and (not hasattr(conformance, "runs_on") or conformance.runs_on(case, "cuda")):
            functions.setdefault(case.function, []).append((size, str(case), case))
    for cases in functions.values():
        cases.sort(key=lambda entry: entry[:2])
        picked = [cases[0], cases[len(cases) // 2], cases[-1]]
        layouts = {case.layout: (size, name, case) for size, name, case in cases}
        yield from {entry[1]: entry[2] for entry in (*picked, *layouts.values())}.values()


@pytest.mark.parametrize("dtype", conformance.DTYPES)
@pytest.mark.parametrize("row", conformance.CASES)
def test_a_selection_for_the_sanitizer(row, dtype):
    """Each of few cases within its bound: with memcheck or racecheck around it, without an error of theirs as well."""
    for case in selection(row):
        outcome = conformance.run_case(case, "cuda", dtype)
        assert not outcome.failure, f"{outcome.function}[{outcome.case}]: {outcome.failure}"


def problem(cupy, seed=0):
    """A layer and a loss: large products, kernels of several blocks, and a recurrence between them."""
    rng = np.random.default_rng(seed)
    N, T, D, H = 19, 23, 45, 67
    arrays = {
        "x": rng.normal(size=(N, T, D)),
        "h0": rng.normal(size=(N, H)),
        "Wx": rng.normal(size=(D, 4 * H)) / 7,
        "Wh": rng.normal(size=(H, 4 * H)) / 9,
        "b": rng.normal(size=4 * H),
    }
    return {name: cupy.asarray(a.astype(np.float32)) for name, a in arrays.items()}


def work(a, times=1):
    """Forward and backward, several times over, with each result used by the next call."""
    x = a["x"]
    for _ in range(times):
        h, cache = fastrnn.lstm_forward(x, *(a[name] for name in ("h0", "Wx", "Wh", "b")))
        dx, *_ = fastrnn.lstm_backward(h, cache)
        x = dx
    return x


def bits(cupy, a):
    return zlib.crc32(cupy.asnumpy(a).tobytes())


def test_a_call_works_on_the_callers_stream_and_does_not_wait():
    """Its results are right although they are read on that stream alone; the stream still has work at its return."""
    cupy = pytest.importorskip("cupy")
    a = problem(cupy)
    expected = bits(cupy, work(a, 3))
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        big = cupy.random.default_rng(0).standard_normal((4096, 4096), dtype=cupy.float32)
        for _ in range(40):  # keeps the device at work while the calls below are queued
            big = big @ big
            big /= cupy.abs(big).max()
        result = work(a, 3)
        assert not stream.done, "a call waited for the device"
        stream.synchronize()
        assert bits(cupy, result) == expected


def test_two_streams_at_once():
    """Neither sees the other's scratch memory."""
    cupy = pytest.importorskip("cupy")
    problems = [problem(cupy, seed) for seed in (1, 2)]
    expected = [bits(cupy, work(a, 4)) for a in problems]
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in problems]
    for _ in range(5):
        results = []
        for a, stream in zip(problems, streams, strict=True):
            with stream:
                results.append(work(a, 4))
        for stream in streams:
            stream.synchronize()
        assert [bits(cupy, result) for result in results] == expected


def test_two_devices():
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    results = []
    for number in (0, 1):
        with cupy.cuda.Device(number):
            result = work(problem(cupy, 3))
            assert result.device.id == number
            results.append(cupy.asnumpy(result))
    assert np.array_equal(*results) or np.allclose(*results, rtol=1e-4)  # two kinds of GPU may cut work otherwise


def test_threads_of_python_each_with_a_stream():
    from concurrent.futures import ThreadPoolExecutor

    cupy = pytest.importorskip("cupy")
    problems = [problem(cupy, seed) for seed in range(4)]
    expected = [bits(cupy, work(a, 3)) for a in problems]
    cupy.cuda.Device().synchronize()

    def run(a):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            result = work(a, 3)
            stream.synchronize()
            return bits(cupy, result)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, problems * 3)) == expected * 3
