"""What only a GPU can show: streams, devices, other libraries. `make test-gpu` runs it, and the conformance grid.

The rows' own tests run every operation on the GPU against the oracle; without one, tests/test_cuda.py has a stand-in.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from harness import ON_GPU, complains
from recurrent import GATES, arguments, backward, forward

import fastrnn
from fastrnn import conformance
from fastrnn.arrays import to_host
from fastrnn.captioning import CaptioningRNN

_REASON = fastrnn.backend_status()["cuda"] or "the simulator stands for the device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason=f"cuda: {_REASON}")]


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def moved(cupy, arrays):
    return [cupy.asarray(a) for a in arrays]


def passes(cell, there, stream, times=1):
    """Forward and backward, some times over, queued on a stream."""
    with stream:
        for _ in range(times):
            h, cache = forward(cell)(*there)
            results = (h, *backward(cell)(h, cache))
    return results


@pytest.mark.parametrize("row", conformance.CASES)
def test_small_cases_for_the_sanitizer(row):
    """Every function a few times, small enough for compute-sanitizer."""
    functions: dict = {}
    for case in conformance.CASES[row]():
        if conformance.runs_on(case, "cuda") and 0 < sum(a.size for a in case.arrays.values()) < 3000:
            functions.setdefault(case.function, []).append(case)
    for cases in functions.values():
        for case in cases[:: max(1, len(cases) // 6)]:
            outcome = conformance.run_case(case, "cuda", "float32")
            assert not outcome.failure, f"{case}: {outcome.failure}"


@pytest.mark.parametrize("cell", GATES)
def test_halves_against_the_oracle(cell):
    for case in conformance.CASES[cell]():
        if conformance.runs_on(case, "cuda", "float16"):
            outcome = conformance.run_case(case, "cuda", "float16")
            assert not outcome.failure, f"{case}: {outcome.failure}"


@pytest.mark.parametrize("cell", GATES)
def test_two_streams_at_once(cell, cupy):
    there = [moved(cupy, arguments(cell, 20, 50, 64, 96, np.float32, seed)) for seed in (0, 1)]
    alone = [passes(cell, given, nullcontext()) for given in there]
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in there]
    together = [passes(cell, given, stream, 5) for given, stream in zip(there, streams, strict=True)]
    cupy.cuda.Device().synchronize()
    for first, second in zip(alone, together, strict=True):
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(cupy.asnumpy(one), cupy.asnumpy(other))


@pytest.mark.parametrize("cell", GATES)
def test_the_second_device(cell, cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    given = arguments(cell, dtype=np.float32)
    there = moved(cupy, given)
    first = passes(cell, there, nullcontext())
    with cupy.cuda.Device(1):
        second = passes(cell, moved(cupy, given), nullcontext())
        assert all(a.device.id == 1 for a in second)
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(cupy.asnumpy(one), cupy.asnumpy(other))
        with complains(ValueError, f"{cell}_forward", "'x'", "device 0", "device 1 is current"):
            forward(cell)(*there)


def test_tensors_of_pytorch(cupy):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no GPU")
    given = arguments("lstm", dtype=np.float32)
    expected = fastrnn.lstm_forward(*moved(cupy, given))[0]
    tensors = [torch.from_numpy(a).cuda() for a in given]
    h, cache = fastrnn.lstm_forward(*tensors)
    assert isinstance(h, cupy.ndarray) and np.array_equal(cupy.asnumpy(h), cupy.asnumpy(expected))
    assert all(isinstance(a, cupy.ndarray) for a in fastrnn.lstm_backward(torch.from_dlpack(h), cache))
    strided = torch.from_numpy(given[0]).cuda().transpose(0, 1).contiguous().transpose(0, 1)
    assert np.array_equal(cupy.asnumpy(fastrnn.lstm_forward(strided, *tensors[1:])[0]), cupy.asnumpy(expected))
    with complains(ValueError, "lstm_forward", "'x'", "detach"):
        fastrnn.lstm_forward(tensors[0].requires_grad_(), *tensors[1:])


def test_ids_that_do_not_exist(cupy):
    W = cupy.ones((1000, 16), np.float32)
    ids = cupy.zeros((300, 70), np.int32)
    ids[123, 45] = 1000
    with complains(IndexError, "word_embedding_forward", "'x'", "got 1000 at position (123, 45)"):
        fastrnn.word_embedding_forward(ids, W)


def test_what_ran_is_told(cupy):
    fastrnn.lstm_forward(*moved(cupy, arguments("lstm", dtype=np.float32)))
    last = fastrnn.last_backend()
    assert last == "cuda" and last.isa == f"sm_{cupy.cuda.Device().compute_capability}" and last.path


@pytest.mark.parametrize("cell", GATES)
def test_the_captioner_computes_what_it_does_on_the_processor(cell):
    rng = np.random.default_rng(0)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2} | {f"word {i}": i for i in range(3, 50)}
    features, captions = rng.standard_normal((9, 20)).astype(np.float32), rng.integers(0, 50, (9, 7))
    results = []
    for backend in ("reference", "cuda"):
        with fastrnn.backend(backend):
            model = CaptioningRNN(words, 20, 16, 24, cell, rng=np.random.default_rng(1))
            loss, gradients = model.loss(features, captions)
            results.append((float(loss), {name: to_host(gradient) for name, gradient in gradients.items()}))
    (plain, wanted), (loss, got) = results
    assert loss == pytest.approx(plain, rel=1e-5)
    for name, gradient in wanted.items():
        np.testing.assert_allclose(got[name], gradient, rtol=1e-3, atol=1e-5)
