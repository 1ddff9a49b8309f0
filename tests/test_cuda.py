"""Arrays on a CUDA device through every public function, without one: by a stand-in for CuPy (fake_device.py), over the
kernels of the C++ backend, and over the project's own CUDA kernels where the simulator of a device was built."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import fake_device
import numpy as np
import pytest
from harness import complains
from recurrent import arguments
from typer.testing import CliRunner

import fastrnn
from fastrnn import conformance, reference
from fastrnn.backend import EMPTY
from fastrnn.captioning import CaptioningRNN, CaptioningSolver, decode_captions
from fastrnn.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in reference.__all__ if name != "sigmoid"]
CASES = {case.function: case for cases in conformance.CASES.values() for case in reversed(list(cases()))}
SIMULATED = importlib.util.find_spec("fastrnn._cuda_on_host") is not None
# What waits for the device, on purpose, to look at ids that are there.
WAITS = {"word_embedding_forward", "word_embedding_backward", "temporal_softmax_loss", "vocab_softmax_loss"}

needs_cpu = pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")


def kernels_of(row):
    """Whether the row has CUDA kernels, which the simulator can run."""
    return (ROOT / "fastrnn" / "cuda" / f"{row}.py").exists()


@pytest.fixture
def gpu(monkeypatch):
    """A device over the kernels of the C++ backend."""
    fake_device.install(monkeypatch, conformance.CASES, simulated=False)
    return sys.modules["cupy"]


def on_device(cupy, value):
    """Arrays, in whatever lists and tuples, on the device; the rest as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(cupy, one) for one in value)
    return cupy.asarray(value) if isinstance(value, np.ndarray) else value


def leaves(value):
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


class Moved:
    """fastrnn, called with arrays on the device, one argument of one function excepted."""

    def __init__(self, cupy, function="", parameter="", seen=None):
        self.cupy, self.function, self.parameter = cupy, function, parameter
        self.seen = {} if seen is None else seen  # the arguments of every function that was called

    def __getattr__(self, name):
        right = getattr(fastrnn, name)

        def call(*args, **options):
            given = inspect.signature(right).bind(*args, **options)
            self.seen[name] = dict(given.arguments)
            for key, value in given.arguments.items():
                if (name, key) != (self.function, self.parameter):
                    given.arguments[key] = on_device(self.cupy, value)
            return right(*given.args, **given.kwargs)

        return call


# ---- every function --------------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("dtype", conformance.DTYPES)
@pytest.mark.parametrize("row", conformance.CASES)
def test_every_operation_on_arrays_on_the_device(row, dtype, gpu):
    failed, count = [], 0
    for case in conformance.CASES[row]():
        if conformance.runs_on(case, "cuda") and sum(a.size for a in case.arrays.values()) < 3000:
            outcome = conformance.run_case(case, "cuda", dtype)
            failed += [f"{case}: {outcome.failure}"] if outcome.failure else []
            count += 1
    assert count > 5 and not failed, "\n".join(failed[:10])


@needs_cpu
def test_layouts_are_moved_as_they_lie(gpu):
    a = np.arange(24.0).reshape(2, 3, 4)
    for layout in conformance.DEVICE_LAYOUTS:
        laid = conformance.LAYOUTS[layout](a)
        there, read = conformance._placed(laid, sys.modules["fastrnn.cuda.arrays"].PLACE)
        assert there.strides == laid.strides and np.array_equal(there.get(), a)
        before = read()
        there[0, 0, 0] = 99
        assert read() != before
    case = next(c for c in conformance.gram_cases() if c.layout == "readonly")
    assert not conformance.runs_on(case, "cuda") and conformance.runs_on(case, "cpu")


@pytest.mark.skipif(not SIMULATED, reason="the simulator was not built (cmake -DFASTRNN_CUDA_ON_HOST=ON)")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_kernels_on_the_simulator(function, monkeypatch):
    """Our own kernels and the products beside them: some of the smallest cases, on arrays that are like CuPy's."""
    row = CASES[function].operation
    if ("cuda", row) not in EMPTY and not kernels_of(row):
        pytest.skip("this row has no CUDA kernels yet")
    fake_device.install(monkeypatch, (), simulated=True)
    cases = [c for c in conformance.CASES[row]() if c.function == function and conformance.runs_on(c, "cuda")]
    cases.sort(key=lambda case: sum(a.size for a in case.arrays.values()))
    chosen = [*cases[:2], *[case for case in cases if case.layout != "contiguous"][:2], cases[len(cases) // 2]]
    for case in chosen:
        for dtype in conformance.DTYPES:
            outcome = conformance.run_case(case, "cuda", dtype)
            assert not outcome.failure, f"{case} {dtype}: {outcome.failure}"
    streams = {stream for _, stream in fake_device.queued}
    assert (
        streams >= {0}
        and any(stream >= 1000 for stream in streams)
        or ("cuda", row) in sys.modules["fastrnn.backend"].EMPTY
    )


@needs_cpu
@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_are_on_the_device_and_nothing_waits(function, gpu):
    case = CASES[function]
    arrays = on_device_dict(gpu, conformance.cast(case, "float32"))
    fake_device.waits.clear()
    results = case.call(fastrnn, arrays)
    for result in leaves(results):
        assert isinstance(result, (gpu.ndarray, int)), type(result)
    assert not fake_device.waits or function in WAITS, fake_device.waits
    assert set(fake_device.waits) <= {"first_bad_id"}
    # Host arrays where they are as good: then nothing waits at all.
    arrays = {key: a if a.dtype.kind == "f" else conformance.cast(case, "float32")[key] for key, a in arrays.items()}
    fake_device.waits.clear()
    case.call(fastrnn, arrays)
    assert not fake_device.waits


def on_device_dict(cupy, arrays):
    return {key: cupy.asarray(a) for key, a in arrays.items()}


@needs_cpu
def test_lengths_on_the_device_are_read_once(gpu):
    x, h0, Wx, Wh, b = on_device(gpu, arguments("lstm"))
    for lengths, waits in ((np.array([4, 2, 0]), []), ([4, 2, 0], []), (gpu.asarray([4, 2, 0]), ["get"])):
        fake_device.waits.clear()
        h, cache = fastrnn.lstm_forward(x, h0, Wx, Wh, b, lengths=lengths)
        fastrnn.lstm_backward(h, cache)
        assert fake_device.waits == waits
        assert not h.get()[1, 2:].any() and h.get()[1, 1].all()
    for wrong in (gpu.asarray([4, 2, 5]), np.array([4, 2, 5])):
        with complains(ValueError, "lstm_forward", "'lengths'", "T = 4", "5 at position 2"):
            fastrnn.lstm_forward(x, h0, Wx, Wh, b, lengths=wrong)


@needs_cpu
def test_losses_are_arrays_of_no_axes(gpu):
    a, b = (
        gpu.asarray(np.random.default_rng(seed).standard_normal((1, 3, 4, 5)).astype(np.float32)) for seed in (0, 1)
    )
    losses = [
        fastrnn.content_loss(0.5, a, b),
        fastrnn.tv_loss(a, np.float64(0.5)),
        fastrnn.style_loss([a], [0], [fastrnn.gram_matrix(b)], [2.0]),
        fastrnn.style_loss([a], [], [], []),
        fastrnn.temporal_softmax_loss(a[0], np.zeros((3, 4), int), np.ones((3, 4), bool))[0],
    ]
    assert not fake_device.waits
    for loss in losses:
        assert isinstance(loss, gpu.ndarray) and loss.shape == () and loss.dtype == np.float32
    assert float(losses[0]) == pytest.approx(fastrnn.content_loss(0.5, a.get(), b.get()), rel=1e-6)
    assert float(losses[3]) == 0


# ---- where arrays are ------------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_mixture_is_an_error_that_names_the_argument(function, gpu):
    case, seen = CASES[function], {}
    arrays = conformance.cast(case, "float64")
    case.call(Moved(gpu, seen=seen), arrays)
    kinds = {key: {getattr(one, "dtype", np.dtype("V")).kind for one in leaves(v)} for key, v in seen[function].items()}
    arrays_of = [key for key in kinds if kinds[key] & set("fiub")]
    for parameter in [key for key in kinds if "f" in kinds[key] and key not in ("cache", "config")]:
        if len(arrays_of) == 1 and "cache" not in seen[function]:
            case.call(Moved(gpu, function, parameter), arrays)  # it alone decides
            continue
        with pytest.raises(TypeError) as caught:
            case.call(Moved(gpu, function, parameter), arrays)
        assert str(caught.value).startswith(f"{function}: argument '"), caught.value
        assert "cupy." in str(caught.value) or "CuPy array" in str(caught.value)


@needs_cpu
def test_which_argument_it_was(gpu):
    x, h0, Wx, Wh, b = arguments("lstm")
    there = on_device(gpu, [x, h0, Wx, Wh, b])
    with complains(TypeError, "lstm_forward", "'Wh'", "cupy.asarray", "got a NumPy array"):
        fastrnn.lstm_forward(*there[:3], Wh, there[4])
    with complains(TypeError, "lstm_forward", "'b'", "cupy.asarray", "got a list"):
        fastrnn.lstm_forward(*there[:4], b.tolist())
    with complains(TypeError, "lstm_forward", "'h0'", "cupy.asnumpy", "a cupy.ndarray on a CUDA device"):
        fastrnn.lstm_forward(x, there[1], Wx, Wh, b)
    h, cache = fastrnn.lstm_forward(*there)
    with complains(TypeError, "lstm_backward", "'dh'", "cupy.asarray", "NumPy array"):
        fastrnn.lstm_backward(h.get(), cache)
    with complains(TypeError, "word_embedding_forward", "'x'", "cupy.asnumpy"):
        fastrnn.word_embedding_forward(gpu.asarray([0]), np.ones((3, 2)))
    with complains(TypeError, "tv_loss", "'tv_weight'", "computer's memory"):
        fastrnn.tv_loss(gpu.zeros((1, 3, 4, 4)), gpu.asarray(0.5))
    with complains(TypeError, "gram_matrix", "'features'", "dtype float16"):
        fastrnn.gram_matrix(gpu.ones((1, 2, 3, 3)).astype(np.float16))
    with complains(TypeError, "sgd_momentum", "'config['velocity']'", "cupy.asarray"):
        fastrnn.sgd_momentum(gpu.ones(3), gpu.ones(3), {"velocity": np.ones(3)})
    with complains(ValueError, "lstm_forward", "'Wh'", "(H, 4H)"):
        fastrnn.lstm_forward(*there[:3], there[2], there[4])


@needs_cpu
def test_the_arrays_decide_and_a_name_does_not_move_them(gpu):
    host, there = arguments("rnn"), on_device(gpu, arguments("rnn"))
    fastrnn.rnn_forward(*host)
    assert fastrnn.last_backend() == "cpu"
    fastrnn.rnn_forward(*there)
    last = fastrnn.last_backend()
    assert (last, last.isa, last.precision, last.path) == ("cuda", "sm_90", "highest", "persistent")
    assert "path=persistent" in repr(last)
    fastrnn.tv_loss(gpu.zeros((1, 3, 4, 4)), 1.0)
    assert fastrnn.last_backend() == "cuda" and fastrnn.last_backend().path == ""
    with fastrnn.backend("cuda"):
        with complains(TypeError, "rnn_forward", "'x'", "cupy.asarray", "NumPy array"):
            fastrnn.rnn_forward(*host)
        with complains(TypeError, "sgd", "'w'", "cupy.asarray"):
            fastrnn.sgd([1.0], [1.0])
        fastrnn.rnn_forward(*there)
    for name in ("cpu", "reference"):
        with fastrnn.backend(name), complains(TypeError, "rnn_forward", "'x'", f"backend {name!r}", "CUDA device"):
            fastrnn.rnn_forward(*there)


@needs_cpu
@pytest.mark.parametrize("forward", ["rnn", "affine"])
def test_caches_are_the_devices(forward, gpu):
    if forward == "rnn":
        given, backward = arguments("rnn"), fastrnn.rnn_backward
        h, cache = fastrnn.rnn_forward(*on_device(gpu, given))
    else:  # whose cell is empty: the reference runs, on CuPy's arrays
        given, backward = [np.ones((3, 4)), np.ones((4, 5)), np.ones(5)], fastrnn.affine_backward
        h, cache = fastrnn.affine_forward(*on_device(gpu, given))
        assert fastrnn.last_backend() == "reference"
    assert cache.backend == "cuda" and "backend cuda" in repr(cache)
    first = backward(h, cache)
    assert fastrnn.last_backend() == ("cuda" if forward == "rnn" else "reference")
    with fastrnn.backend("cuda"):
        second = backward(h, cache)
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, gpu.ndarray) and np.array_equal(one.get(), other.get())
    with fastrnn.backend("cpu"), complains(ValueError, f"{forward}_backward", "'cuda'", "'cpu'"):
        backward(h, cache)
    with fastrnn.backend("cpu"):
        h, cache = getattr(fastrnn, f"{forward}_forward")(*given)
    with fastrnn.backend("cuda"), complains(ValueError, f"{forward}_backward", "'cuda'", "'cpu'"):
        backward(h, cache)


class Foreign:
    """An array of another library on a device, which hands itself out by DLPack or by the CUDA array interface."""

    def __init__(self, array, dlpack=True, device=0, why=None):
        self.on_the_device, self.shape, self.ndim = array, array.shape, array.ndim
        array._device_id = device
        if why is not None:
            self._why = why
        if dlpack:
            self.__class__ = DLPack
        else:
            self.__cuda_array_interface__ = array.__cuda_array_interface__


class DLPack(Foreign):
    def __dlpack_device__(self):
        return (2, self.on_the_device._device_id)

    def __dlpack__(self, **options):
        raise AssertionError("the stand-in for CuPy reads on_the_device")

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("as PyTorch's tensors do that ask for gradients")


@needs_cpu
@pytest.mark.parametrize("dlpack", [True, False])
def test_arrays_of_other_libraries(dlpack, gpu):
    given = arguments("gru")
    expected = fastrnn.gru_forward(*given)[0]
    h, _ = fastrnn.gru_forward(*[Foreign(gpu.asarray(a), dlpack) for a in given])
    assert isinstance(h, gpu.ndarray) and np.array_equal(h.get(), expected)
    with complains(TypeError, "gru_forward", "'h0'", "on a CUDA device"):
        fastrnn.gru_forward(given[0], Foreign(gpu.asarray(given[1]), dlpack), *given[2:])


@needs_cpu
def test_an_array_on_another_device(gpu):
    x, h0, *weights = on_device(gpu, arguments("rnn"))
    h0._device_id = 1
    with complains(ValueError, "rnn_forward", "'h0'", "device 1", "device 0 is current"):
        fastrnn.rnn_forward(x, h0, *weights)


@needs_cpu
def test_what_a_library_says_is_handed_on(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "from_dlpack", lambda value: (_ for _ in ()).throw(BufferError("use tensor.detach()")))
    with complains(ValueError, "tv_loss", "'img'", "DLPack", "use tensor.detach()"):
        fastrnn.tv_loss(Foreign(gpu.zeros((1, 3, 4, 4))), 1.0)


# ---- ids -------------------------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("move", [lambda gpu, a: gpu.asarray(a), lambda gpu, a: a], ids=["device", "host"])
def test_ids_that_do_not_exist(move, gpu):
    W, x = gpu.ones((7, 3)), np.array([[0, 6, 2], [1, 7, -1]])
    with complains(IndexError, "word_embedding_forward", "'x'", "[0, 7)", "got 7 at position (1, 1)"):
        fastrnn.word_embedding_forward(move(gpu, x), W)
    with complains(IndexError, "word_embedding_forward", "'x'", str(2**64 - 1)):
        fastrnn.word_embedding_forward(move(gpu, np.array([1, 2**64 - 1], np.uint64)), W)
    with complains(TypeError, "word_embedding_forward", "'x'", "hold integers"):
        fastrnn.word_embedding_forward(move(gpu, np.array([1.0])), W)
    scores, mask = gpu.ones((2, 3, 7)), np.array([[1, 1, 1], [1, 0, 0]], bool)
    fastrnn.temporal_softmax_loss(scores, move(gpu, x), mask)
    fastrnn.temporal_softmax_loss(scores, move(gpu, x), gpu.asarray(mask))
    fastrnn.temporal_softmax_loss(scores, move(gpu, x), gpu.asarray(mask.astype(np.float32)))
    for one in (mask, gpu.asarray(mask)):
        one[1, 1] = True
        with complains(IndexError, "temporal_softmax_loss", "'y'", "got 7 at position (1, 1)"):
            fastrnn.temporal_softmax_loss(scores, move(gpu, x), one)
    with complains(TypeError, "temporal_softmax_loss", "'mask'", "0 and 1"):
        fastrnn.temporal_softmax_loss(scores, move(gpu, x), move(gpu, mask * 2))
    none, empty = np.zeros((2, 3), bool), gpu.ones((2, 3, 0))
    fastrnn.temporal_softmax_loss(empty, move(gpu, x), move(gpu, none))  # nothing is counted, so there need be no words
    with complains(IndexError, "temporal_softmax_loss", "'y'", "[0, 0)"):
        fastrnn.temporal_softmax_loss(empty, move(gpu, x), move(gpu, mask))


@needs_cpu
def test_a_gradient_is_added_to_arrays_on_the_device_alone(gpu):
    dout, out = gpu.ones((2, 3)), gpu.zeros((7, 3))
    _, cache = fastrnn.word_embedding_forward(np.array([4, 4]), gpu.ones((7, 3)))
    assert fastrnn.word_embedding_backward(dout, cache, out=out) is out and out.get()[4].tolist() == [2, 2, 2]
    with complains(TypeError, "word_embedding_backward", "'out'", "CuPy array", "NumPy array"):
        fastrnn.word_embedding_backward(dout, cache, out=np.zeros((7, 3)))
    with complains(ValueError, "word_embedding_backward", "'out'", "share no memory"):
        fastrnn.word_embedding_backward(out[2:4], cache, out=out)
    wide = gpu.zeros((7, 6))
    fastrnn.word_embedding_backward(wide[:2, ::2], cache, out=wide[:, 1::2])  # between each other, not upon
    rows, values = fastrnn.word_embedding_backward(dout, cache, sparse=True)
    assert rows.get().tolist() == [4] and values.get().tolist() == [[2, 2, 2]]


# ---- what is missing -------------------------------------------------------------------------------------------------


def python(code, **environment):
    """The output of a fresh interpreter, or the last line of its error."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("FASTRNN_")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_nothing_of_cuda_is_imported_before_it_is_asked_for():
    code = """
import sys, fastrnn, numpy as np
h, cache = fastrnn.lstm_forward(np.ones((2, 3, 4)), np.ones((2, 5)), np.ones((4, 20)), np.ones((5, 20)), np.ones(20))
fastrnn.lstm_backward(h, cache), fastrnn.word_embedding_forward([0], [[1.0]]), fastrnn.sgd([1.0], [1.0])
fastrnn.set_float32_matmul_precision("high"), fastrnn.last_backend()
print([name for name in sys.modules if "cupy" in name or "cuda" in name])
"""
    assert python(code) == "[]"


PIECES = """
import sys, types
def present(name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
import fastrnn
sys.modules["fastrnn._cuda"] = sys.modules["cupy"] = None
"""


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("", "the CUDA kernels were not built (no nvcc at install time?)"),
        (
            "present('fastrnn._cuda'); del sys.modules['cupy']; sys.path.clear()",
            "CuPy is not installed (pip install cupy-cuda",
        ),
        (
            "def fail(): raise RuntimeError('cudaErrorInsufficientDriver: the words of CUDA')\n"
            "present('fastrnn._cuda')\n"
            "runtime = types.SimpleNamespace(getDeviceCount=fail)\n"
            "present('cupy', cuda=types.SimpleNamespace(runtime=runtime))",
            "no NVIDIA driver or no device here: cudaErrorInsufficientDriver: the words of CUDA",
        ),
    ],
    ids=["kernels", "CuPy", "driver"],
)
def test_what_is_missing_is_said(there, words):
    ask = "\nprint(fastrnn.backend_status()['cuda'])"
    assert words in python(PIECES + there + ask)
    message = python(PIECES + there + "\nfastrnn.backend('cuda')")
    assert message.startswith("RuntimeError") and "'cuda' cannot run here" in message and words in message
    array = "\nfastrnn.sgd(type('Array', (), {'__dlpack_device__': lambda self: (2, 0)})(), 1)"
    message = python(PIECES + there + array)
    assert message.startswith("RuntimeError") and "CUDA device" in message and words in message
    assert python("import fastrnn; print(fastrnn.rnn_forward and 1)", FASTRNN_BACKEND="") == "1"


@needs_cpu
def test_info_tells_of_the_device(gpu):
    output = CliRunner().invoke(app, ["info"]).output
    assert "backend cuda" in output and "Pretend GPU" in output and "compute capability 9.0" in output
    assert "driver for CUDA 13.0" in output and "CuPy" in output


# ---- the captioner ---------------------------------------------------------------------------------------------------

WORDS = {"<NULL>": 0, "<START>": 1, "<END>": 2, "cat": 3, "dog": 4, "sat": 5}


def captions_data():
    rng = np.random.default_rng(3)
    captions = rng.integers(3, 6, (20, 6))
    captions[:, 0], captions[np.arange(20), rng.integers(2, 6, 20)] = 1, 2
    after = np.cumsum(captions == 2, axis=1) - (captions == 2)
    return {
        "train_captions": np.where(after > 0, 0, captions),
        "train_image_idxs": np.arange(20) % 5,
        "train_features": rng.standard_normal((5, 7)).astype(np.float32),
        "train_urls": np.full(5, ""),
    }


def train(cell, backend, iterations):
    with fastrnn.backend(backend):
        model = CaptioningRNN(WORDS, 7, 4, 6, cell, rng=np.random.default_rng(0))
        solver = CaptioningSolver(
            model, captions_data(), "adam", batch_size=8, verbose=False, rng=np.random.default_rng(1)
        )
        fake_device.waits.clear()
        solver.train(iterations)
        waits = list(fake_device.waits)
        sampled = model.sample(captions_data()["train_features"], 5)
    return model, solver, waits, sampled


@needs_cpu
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_captioner_trains_on_the_device_without_waiting(cell, gpu):
    model, solver, waits, sampled = train(cell, "cuda", 6)
    assert waits == []
    assert all(isinstance(value, gpu.ndarray) and value.dtype == np.float32 for value in model.params.values())
    host_model, host, _, words = train(cell, "cpu", 6)
    assert all(type(loss) is float for loss in solver.loss_history) and len(solver.loss_history) == 6
    np.testing.assert_allclose(solver.loss_history, host.loss_history, rtol=1e-5)
    for name, value in model.params.items():
        np.testing.assert_allclose(value.get(), host_model.params[name], rtol=1e-3, atol=1e-4)
    assert isinstance(sampled, gpu.ndarray) and sampled.dtype == np.int32 and sampled.shape == (5, 5)
    assert decode_captions(sampled, model.idx_to_word) == decode_captions(words, model.idx_to_word)
    features, captions = captions_data()["train_features"], captions_data()["train_captions"][:5]
    loss, _ = model.loss(gpu.asarray(features), gpu.asarray(captions))
    assert loss.shape == ()
    with complains(IndexError, "CaptioningRNN.loss", "'captions'", "6 words"):
        model.loss(features, np.full((5, 3), 6))
    with complains(ValueError, "CaptioningRNN.loss", "'captions'", "N from features"):
        model.loss(features, np.full((4, 3), 1))


@needs_cpu
def test_the_demos_model_says_what_runs_it(gpu):
    from fastrnn.cli import demo

    with fastrnn.backend("cuda"):
        model = CaptioningRNN(WORDS, 7, demo.WORDVEC_DIM, demo.HIDDEN_DIM, "lstm", rng=np.random.default_rng(0))
        assert demo._what_ran(model, 2).startswith("cuda, sm_90")


# ---- the benchmark ---------------------------------------------------------------------------------------------------


@needs_cpu
@pytest.mark.parametrize("arguments", ["lstm --shape 2,3,4,5", "lstm_lengths --shape 2,3,4,5 --precision high",
    "word_embedding --shape 2,3,8,4", "word_embedding_sparse --shape 2,3,8,4 --mode backward", "gram --shape 1,2,3,4",
    "vocab_softmax_loss_masked --shape 2,3,4,5", "adam --shape 50", "tv_loss --shape 1,2,5,4",
    "captioner --shape 3,5,4,6,10,7"])  # fmt: skip
def test_bench_times_the_device(arguments, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrnn.cli.bench_timing.PAUSE_SECONDS", 0)
    monkeypatch.setattr("fastrnn.cli.bench._torch_without_gpu", lambda: "no torch here")
    record = tmp_path / "rows.csv"
    options = ["--backend", "cuda", "--rounds", "2", "--seconds", "0", "--record", str(record)]
    result = CliRunner().invoke(app, ["bench", *arguments.split(), *options])
    assert result.exit_code == 0, result.output
    assert "Pretend GPU" in result.output and "against" not in result.output
    assert ("us/step" in result.output) == arguments.startswith("lstm")
    header, *rows = record.read_text().splitlines()
    assert len(rows) == 1 and ",cuda," in rows[0] and "Pretend GPU,sm_90," in rows[0]


@needs_cpu
def test_bench_on_a_device_has_peers_on_the_device_alone(gpu):
    result = CliRunner().invoke(app, ["bench", "gram", "--backend", "cuda", "--peers", "numpy"])
    assert result.exit_code == 2 and "not timed beside cuda" in result.output


@pytest.mark.skipif(not SIMULATED, reason="the simulator was not built (cmake -DFASTRNN_CUDA_ON_HOST=ON)")
def test_the_simulator_is_checked_and_not_timed():
    command = [sys.executable, "-m", "fastrnn", "bench", "gram", "--backend", "cuda"]
    done = subprocess.run(command, env=os.environ | {"FASTRNN_CUDA_ON_HOST": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and "simulator" in done.stderr
    code = """
import fastrnn
from fastrnn import conformance
case = next(conformance.image_losses_cases())
outcome = conformance.run_case(case, "cuda", "float32")
print(outcome.ran_on, outcome.isa, outcome.failure or "right")
"""
    assert python(code, FASTRNN_CUDA_ON_HOST="1") == "cuda simulator right"
