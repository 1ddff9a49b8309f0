"""What else is in the process and around it: forks, threads, other libraries' pools, signals, and too little memory.

Here in short; ``make neighbours`` sets ``FASTRNN_NEIGHBOURS=long``, for more of everything and a record of the figures.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import neighbours
import numpy as np
import pytest
from harness import BACKENDS, USABLE
from neighbours import bits, call, layer
from processes import alone, call_of

import fastrnn
from fastrnn import cache

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import evidence  # noqa: E402

LONG = os.environ.get("FASTRNN_NEIGHBOURS") == "long"
ONE_THREAD_EACH = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
}
# Every array of some kilobytes then comes from the system, and is refused where there is a limit.
EVERY_ARRAY_COUNTS = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
FIGURES: dict = {}

with_threads = pytest.mark.parametrize("backend", [name for name in BACKENDS if name.values[0] in ("cpu", "numba")])
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc, or limited as on Linux")
long_form = pytest.mark.skipif(not LONG, reason="takes long: make neighbours")


def also_long(*values):
    """A parameter of the long form."""
    return pytest.param(*values, marks=long_form)


@pytest.fixture(scope="module", autouse=True)
def begin():
    FIGURES["begin"] = time.monotonic()


# ---- other processes -------------------------------------------------------------------------------------------------


@with_threads
@pytest.mark.parametrize("method", ["fork", "forkserver", also_long("spawn")])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_processes_started_by_every_method(backend, method):
    """After this process has used its threads, a child has threads of its own and the same results."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    inputs, before = layer(), fastrnn.get_num_threads()
    fastrnn.set_num_threads(2)
    try:
        with fastrnn.backend(backend):
            expected = bits(call(inputs))
    finally:
        fastrnn.set_num_threads(before)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=neighbours.child, args=(theirs, backend, inputs), daemon=True)
    process.start()
    try:
        assert ours.poll(60), "the child hangs"
        assert ours.recv() == (expected, backend)
        process.join(10)
        assert process.exitcode == 0
    finally:
        process.kill()


@needs_fork
@with_threads
def test_forks_while_other_threads_are_in_kernels(backend):
    said = alone(neighbours.forks_beside_calls, backend, 100 if LONG else 10)
    assert said["right"] and set(said["codes"]) == {0}
    FIGURES["children"] = FIGURES.get("children", 0) + len(said["codes"])


@needs_fork
def test_a_fork_while_another_thread_takes_memory_of_the_pool():
    assert alone(neighbours.forks_with_the_pool_in_use) == {"code": 0}


@needs_fork
@pytest.mark.parametrize("method, workers", [("fork", 2), also_long("forkserver", 2), also_long("spawn", 3)])
def test_workers_of_a_data_loader_beside_their_parents_calls(method, workers):
    pytest.importorskip("torch")
    assert alone(neighbours.loads, method, workers, seconds=120) == {"batches": 6, "wrong": 0}


# ---- threads ---------------------------------------------------------------------------------------------------------


@with_threads
def test_sixteen_threads_in_every_function_at_once(backend):
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(2)
    try:
        calls, wrong = neighbours.many_threads(backend, 16, 10 if LONG else 2)
    finally:
        fastrnn.set_num_threads(before)
    assert not wrong and calls >= 16 * 2 * len({name for name in fastrnn.__all__ if name.endswith("_backward")})
    FIGURES["calls at once"] = FIGURES.get("calls at once", 0) + calls


@needs_linux
@with_threads
def test_no_more_threads_than_were_asked_for(backend):
    most = 5
    one, *more = alone(neighbours.threads_of_the_process, backend, most, **ONE_THREAD_EACH)["counts"]
    assert one == 1 and len(set(more)) == 1 and 1 < more[0] <= most
    assert backend != "cpu" or more[0] == most


@needs_linux
def test_one_thread_each_is_one_processor(tmp_path):
    """Of all libraries together, ours among them."""
    said = alone(neighbours.cpu_time, 30 if LONG else 3, FASTRNN_NUM_THREADS="1", **ONE_THREAD_EACH)
    assert said["ratio"] < 1.1
    FIGURES["processors"] = said["ratio"]


def test_nothing_spins_after_calls_on_every_backend():
    said = alone(neighbours.quiet, 5 if LONG else 0.5)
    assert said["ratio"] < 0.1
    FIGURES["while asleep"] = said["ratio"]


@needs_linux
def test_beside_the_pools_of_other_libraries():
    """A bound that noise cannot reach; the long form keeps the figures."""
    said = alone(neighbours.pools, 30 if LONG else 5, seconds=120)
    assert {"fastrnn", "numpy"} <= set(said["alone"])
    for ratios in (said["after_ours"], said["ours_after"]):
        assert all(ratio < 5 for ratio in ratios.values()), said
    FIGURES["beside"] = said


def free_threaded_python():
    """An interpreter without the GIL, by its path; None if there is none."""
    named = os.environ.get("FASTRNN_FREE_THREADED_PYTHON")
    return named or next(filter(None, map(shutil.which, ("python3.15t", "python3.14t", "python3.13t"))), None)


@long_form
def test_without_the_gil(tmp_path):
    """The kernels leave the GIL off, and sixteen threads have the results of one."""
    python = free_threaded_python()
    if python is None:
        pytest.skip("no free-threaded Python was found; name one with FASTRNN_FREE_THREADED_PYTHON")
    programs = tmp_path / "env" / "bin"
    subprocess.run([python, "-m", "venv", programs.parent], check=True)
    install = [programs / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    variables = os.environ | {"SKBUILD_CMAKE_DEFINE": "FASTRNN_CUDA=OFF"}
    variables.pop("PYTHONPATH", None)
    subprocess.run([*install, "numpy"], check=True, env=variables)
    subprocess.run([*install, "--no-deps", ROOT], check=True, env=variables)
    text = "import neighbours; neighbours.free_threads(16, 20)"
    done = subprocess.run(
        [programs / "python", "-c", text],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=variables | {"PYTHONPATH": str(ROOT / "tests")},
    )
    assert done.returncode == 0, done.stderr
    said = neighbours.json.loads(done.stdout)
    assert said["gil"] is False and not said["wrong"]
    FIGURES["without the GIL"] = said["calls"]


# ---- signals ---------------------------------------------------------------------------------------------------------


@needs_posix
@with_threads
@pytest.mark.parametrize("name, error", [("SIGINT", "KeyboardInterrupt"), ("SIGALRM", "TimeoutError")])
def test_what_a_signal_raises_is_raised_after_the_kernel(backend, name, error):
    said = alone(neighbours.interrupted, backend, name, 3 if LONG else 0.6)
    assert said["raised"] == error and said["right"]
    assert said["took"] >= said["sent"]


@needs_posix
@with_threads
def test_sigterm_ends_the_process_in_a_kernel(backend):
    command, path = call_of(neighbours.ended, backend, 4)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | path) as process:
        try:
            assert "begins" in process.stdout.readline()
            time.sleep(0.3)
            process.terminate()
            assert process.stdout.read() == "" and process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()


@needs_linux
@with_threads
def test_a_signal_that_the_program_waits_for_is_taken_by_no_worker(backend):
    said = alone(neighbours.waits_for_a_signal, backend, OPENBLAS_NUM_THREADS="1")
    assert said["got"] and said["tasks"] > 1


# ---- too little memory, too few threads ------------------------------------------------------------------------------


@needs_linux
@with_threads
def test_every_function_without_the_memory_it_needs(backend):
    """A MemoryError at whichever allocation; inputs as they were, and the same bits when there is memory again."""
    said = alone(neighbours.without_memory, backend, 20 if LONG else 4, seconds=120, **EVERY_ARRAY_COUNTS)
    assert not said["wrong"]
    assert sum(map(bool, said["failures"].values())) >= len(said["failures"]) / 2, said
    FIGURES["memory errors"] = FIGURES.get("memory errors", 0) + sum(said["failures"].values())


@needs_linux
@with_threads
def test_a_memory_error_says_what_was_needed(backend):
    said = alone(neighbours.message_without_memory, backend, OPENBLAS_NUM_THREADS="1")
    assert said["right"]
    for message in (said["forward"], said["backward"]):
        assert message.startswith("Unable to allocate"), said


@needs_linux
@pytest.mark.skipif("cpu" not in USABLE, reason="the C++ kernels are not built")
def test_memory_that_the_pool_holds_without_use_is_given_up_for_a_call_that_needs_it():
    said = alone(neighbours.free_blocks_are_given_back, OPENBLAS_NUM_THREADS="1")
    assert said["held"] > 50e6 and said["failed"] is False


def test_a_finalizer_may_call_kernels_while_memory_of_the_pool_is_taken(monkeypatch):
    """Which any allocation can set off: nobody may wait for the lock that its own thread holds."""
    fresh, inner = cache._fresh, []

    def finalizes(size):
        if not inner:
            inner.append(None)
            inner.append(cache.buffer(1 << 20, np.float32))
        return fresh(size)

    monkeypatch.setattr(cache, "_pool", cache._Pool(64 << 20))
    monkeypatch.setattr(cache, "_fresh", finalizes)
    outer = []
    thread = threading.Thread(target=lambda: outer.append(cache.buffer(1 << 20, np.float32)), daemon=True)
    thread.start()
    thread.join(10)
    assert outer and not np.shares_memory(outer[0], inner[1])


@needs_linux
@with_threads
@pytest.mark.parametrize("most", [0, 2])
def test_a_system_that_gives_few_threads(backend, most):
    said = alone(neighbours.few_threads, backend, most, stack=1 << 30, OPENBLAS_NUM_THREADS="1")
    assert said["stack"] == 1 << 30 and said["right"] and said["tasks"] == 1 + most
    assert said["used"] == [1 + most if backend == "cpu" else 1] * 3


# ---- memory over many calls ------------------------------------------------------------------------------------------


@needs_linux
@pytest.mark.parametrize("backend, layer_of", [("cpu", "numpy"), ("numba", "numpy"), ("cpu", "torch")])
@pytest.mark.parametrize("leak", [False, also_long(True)])
def test_memory_is_steady_over_calls_of_random_sizes(backend, layer_of, leak):
    if backend not in USABLE:
        pytest.skip(f"backend {backend} cannot run here")
    if layer_of == "torch":
        pytest.importorskip("torch")
    warm, calls = (6_000, 10_000) if LONG and not leak else (150, 400)
    said = alone(neighbours.steady, backend, layer_of, warm, calls, leak, seconds=300, **EVERY_ARRAY_COUNTS)
    assert said["calls"] >= calls and said["refused"] > calls / 8
    few = (
        0.2 if calls > 400 else 15
    )  # objects of Python a call: in short, what was worked out for each size is not all there
    steady = said["bytes"] < 6 << 20 and said["blocks"] < few * said["calls"]
    assert steady is not leak, said
    if not leak:
        FIGURES.setdefault("steady", {})[f"{backend}, {layer_of}"] = said


# ---- ends of the interpreter -----------------------------------------------------------------------------------------


@with_threads
@pytest.mark.parametrize(
    "function, code",
    [
        (neighbours.ends_with_a_daemon_at_work, 0),
        (neighbours.ends_with_a_thread_at_work, 0),
        (neighbours.ends_in_a_call_at_exit, 0),
        (neighbours.ends_at_once, 7),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_interpreter_ends(backend, function, code):
    assert alone(function, backend, code=code) == {"done": True}


@with_threads
def test_a_first_import_and_call_in_a_thread(backend):
    """The main thread is then not the one that made the team."""
    assert alone(neighbours.begins_in_a_thread, backend) == {"right": True}


# ---- the record ------------------------------------------------------------------------------------------------------


@long_form
def test_record(request):
    """The last: it keeps what the others found, if they all passed."""
    session = request.session
    assert not session.testsfailed, "nothing is recorded of a run with failures"
    assert {item.path for item in session.items} == {Path(__file__)} and len(session.items) > 50
    beside = FIGURES["beside"]
    ratio = max(beside["ours_after"].values())
    theirs = max(beside["after_ours"].values())
    steady = FIGURES["steady"].values()
    no_gil = FIGURES.get("without the GIL")
    tried = (
        f"{len(session.items) - 1} tests: {FIGURES['calls at once']:,} calls from 16 threads, {FIGURES['children']} "
        f"forks beside calls, {sum(said['calls'] for said in steady):,} calls of random sizes, "
        f"{FIGURES['memory errors']:,} refused allocations"
    )
    outcome = (
        f"no fault; memory grew by at most {max(said['bytes'] for said in steady) / 2**20:.1f} MiB; right after "
        f"another library's call ours takes up to {ratio:.1f} times as long, theirs after ours {theirs:.1f}; "
        + (f"{no_gil:,} calls without the GIL" if no_gil else "no free-threaded Python was at hand")
    )
    evidence.record("neighbours", tried, outcome, time.monotonic() - FIGURES["begin"], FIGURES)
