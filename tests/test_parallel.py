"""Several processes: what they exchange, what they train, and how they end."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import complains

import fastrnn
from fastrnn.captioning import CaptioningRNN
from fastrnn.captioning.parallel import Processes, ProcessLost

HERE = Path(__file__).resolve()
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# ---- what runs in the processes --------------------------------------------------------------------------------------


def exchange(say):
    """Everything but failures; rank 0's sums and what each process saw."""
    processes = Processes.from_environment()
    rank = processes.rank
    seen = {"rank": rank, "threads": fastrnn.get_num_threads(), "torch_threads": sys.modules["torch"].get_num_threads()}
    seen["total"] = processes.total([[1, rank], [0.1, 2**-40]]).tolist()
    seen["agree"] = [processes.agree(rank == 1), processes.agree(False), processes.agree(True)]
    seen["same"] = [processes.same("step 7"), processes.same(f"step {rank}")]

    wide = np.full((4, 6), 10.0 + rank, np.float32)
    params = {"a": np.full((2, 3), 1.0 + rank), "turned": wide[:, ::2].T}
    processes.broadcast(params)
    seen["broadcast"] = [
        params["a"].tolist() == [[1] * 3] * 2,
        (wide[:, ::2] == 10).all(),
        (wide[:, 1] == 10 + rank).all(),
    ]
    seen["broadcast"] = [bool(value) for value in seen["broadcast"]]

    # Small buckets, the order of a backward pass, two dtypes.
    params = {"a": np.zeros((5, 4), np.float32), "b": np.zeros(7), "c": np.zeros((3, 11), np.float32)}
    reducer = processes.reducer(params, bucket_bytes=8 * 25)
    rng = np.random.default_rng(rank)
    seen["sums"], seen["local"] = [], []
    for _ in range(3):
        grads = {name: rng.standard_normal(value.shape).astype(value.dtype) for name, value in params.items()}
        for name in ("c", "b", "a"):
            reducer.ready(name, grads[name], (rank + 1) / 4)
        summed = reducer.finish()
        seen["dtypes"] = [(name, str(value.dtype)) for name, value in summed.items()]
        seen["sums"].append([value.tolist() for value in summed.values()])
        seen["local"].append([value.tolist() for value in grads.values()])
    seen["bytes"] = reducer.bytes

    seen["errors"] = []
    for wrong in (
        lambda: reducer.ready("d", params["a"], 1),
        lambda: reducer.ready("c", params["a"], 1),
        lambda: reducer.ready("a", params["a"], 1),
        reducer.finish,
        lambda: [reducer.ready("c", params["c"], 1) for _ in range(2)],
        lambda: processes.reducer({}),
        lambda: processes.reducer({"a": np.zeros(2 + (rank == 2))}),
        lambda: processes.broadcast({"a": np.zeros(2, np.float32 if rank == 1 else np.float64)}),
        lambda: in_another_order(processes),
    ):
        try:
            wrong()
        except ValueError as error:
            seen["errors"].append(str(error))
    say(**seen)
    processes.barrier()
    processes.close()


def in_another_order(processes):
    params = {"a": np.zeros(3), "b": np.zeros(3)}
    reducer = processes.reducer(params)
    for name in sorted(params, reverse=processes.rank == 1):
        reducer.ready(name, params[name], 1)
    reducer.finish()


def overlap(say):
    """Sums begin before the last gradient is there, and do not hold up the process that gives the first."""
    processes = Processes.from_environment()
    params = {"first": np.zeros(1000), "last": np.zeros(10)}
    reducer = processes.reducer(params, bucket_bytes=8000)
    for step in range(2):
        processes.barrier()
        if step and processes.rank:
            time.sleep(0.5)  # a process that is late
        begin = time.perf_counter()
        reducer.ready("first", np.full(1000, processes.rank + 1.0), 1)
        taken = time.perf_counter() - begin
        # Without a call that waits: another thread sums.
        while step and reducer._flat[0] != 3 and time.perf_counter() < begin + 10:
            time.sleep(0.01)
        early = float(reducer._flat[0])
        reducer.ready("last", np.ones(10), 1)
        summed = reducer.finish()
    say(
        threads=fastrnn.get_num_threads(), taken=taken, early=early, last=summed["last"].tolist(), waited=reducer.waited
    )
    processes.close()


def raises(say):
    """Process 1 fails, the others wait for it; each says whether it is to print why."""
    processes = Processes.from_environment()
    processes.barrier()
    try:
        if processes.rank == 1:
            raise OSError("features.h5 is truncated")
        processes.barrier()
    except (OSError, ProcessLost) as error:
        say(rank=processes.rank, error=str(error), type=type(error).__name__, first=processes.first_to_fail())
        sys.exit(2)


def goes_silent(say):
    """Process 1 stops answering without ending, as a machine without power does."""
    processes = Processes.from_environment(timeout=1.0)
    processes.barrier()
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    begin = time.perf_counter()
    try:
        processes.barrier()
    except ProcessLost as error:
        say(seconds=time.perf_counter() - begin, error=str(error))


def gradients(say, dtype, path):
    """Gradients of one batch, each process's part of it; process 0 keeps the sums."""
    processes = Processes.from_environment()
    model, features, captions = captioner(dtype)
    reducer = processes.reducer(model.params, bucket_bytes=4096)
    N, rank, world = len(captions), processes.rank, processes.world
    part = slice(rank * N // world, (rank + 1) * N // world)
    for _ in range(2):  # the second step is the one with overlap
        loss, grads = model.loss(features[part], captions[part])
        weight = len(captions[part]) / N
        for name in reversed(grads):
            reducer.ready(name, grads[name], weight)
        summed = reducer.finish()
    loss = processes.total(loss * weight)
    if rank == 0:
        np.savez(path, loss=loss, **summed)
    processes.close()


# ---- running them ----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**variables):
    """This process's, without what torchrun sets; all traffic on the loopback."""
    kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "FASTRNN_NUM_THREADS")}
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"} | variables


def _process(function, variables, pipe, arguments):
    os.environ.clear()
    os.environ.update(variables)
    with pipe:
        function(lambda **what: pipe.send(what), *arguments)


def start(world, function, *arguments, **more):
    """`world` processes of one machine in which `function` runs, each with the environment that torchrun would give it.

    They are forked from a process that has imported PyTorch, which takes longer than most of these tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "fastrnn.captioning.parallel"])
    port, started = free_port(), []
    for rank in range(world):
        values = (rank, world, rank, world, "127.0.0.1", port)
        variables = environment(**dict(zip(VARIABLES, map(str, values), strict=True)), **more)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(function, variables, theirs, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def outcome(started, codes=(0,), seconds=60):
    """What the processes said, in the order of their ranks; each must end in time, with one of these exit codes."""
    said, end = [], time.monotonic() + seconds
    try:
        for process, pipe in started:
            while pipe.poll(max(0, end - time.monotonic())):
                try:
                    said.append(pipe.recv())
                except EOFError:
                    break
            process.join(max(0, end - time.monotonic()))
            assert process.exitcode in codes
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    return said


needs_torch = pytest.mark.usefixtures("torch_is_there")


@pytest.fixture
def torch_is_there():
    pytest.importorskip("torch", reason="several processes need PyTorch")


# ---- the environment -------------------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch):
    """Set variables as torchrun does, for a group of one, with some changed; None takes one away."""

    def set_them(**changed):
        good = dict(zip(VARIABLES, ("0", "1", "0", "1", "127.0.0.1", "1"), strict=True))
        for name, value in (good | changed).items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return set_them


def test_one_process_imports_no_torch():
    code = (
        "import sys; from fastrnn.captioning.parallel import Processes; "
        "assert Processes.from_environment() is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.parametrize("name", VARIABLES)
def test_a_missing_variable_is_named(variables, name):
    variables(**{name: None})
    with complains(ValueError, "Processes.from_environment", f"got no {name};", "torchrun"):
        Processes.from_environment()


def test_variables_that_are_no_numbers_or_too_large(variables):
    variables(WORLD_SIZE="two")
    with complains(ValueError, "Processes.from_environment", "WORLD_SIZE", "'two'"):
        Processes.from_environment()
    variables(RANK="3", WORLD_SIZE="3")
    with complains(ValueError, "Processes.from_environment", "RANK", "3 of 3"):
        Processes.from_environment()
    variables(LOCAL_RANK="1")
    with complains(ValueError, "Processes.from_environment", "LOCAL_RANK", "1 of 1"):
        Processes.from_environment()


def test_without_torch_the_remedy_is_said(variables, monkeypatch):
    variables()
    monkeypatch.setitem(sys.modules, "torch", None)
    with complains(ImportError, "Processes.from_environment", "pip install 'fastrnn[torch]'"):
        Processes.from_environment()


# ---- what they exchange ----------------------------------------------------------------------------------------------


@needs_torch
def test_three_processes_exchange():
    lines = outcome(start(3, exchange, FASTRNN_NUM_THREADS="2"))
    assert [line["rank"] for line in lines] == [0, 1, 2]
    local = [[[np.array(grad) for grad in step] for step in line["local"]] for line in lines]
    for line in lines:
        assert line["threads"] == fastrnn.get_num_threads() and line["torch_threads"] == 1
        np.testing.assert_allclose(line["total"], [[3, 3], [0.3, 3 * 2**-40]], rtol=1e-15)
        assert line["agree"] == [True, False, True]
        assert line["same"] == [True, False]
        assert line["broadcast"] == [True, True, True]
        assert line["bytes"] == 8 * (20 + 7 + 33)
        assert line["dtypes"] == [("a", "float32"), ("b", "float64"), ("c", "float32")]
        assert line["sums"] == lines[0]["sums"]  # the same bits everywhere
        for step, sums in enumerate(line["sums"]):
            for index, (summed, eps) in enumerate(zip(sums, (2**-23, 2**-52, 2**-23), strict=True)):
                expected = sum((rank + 1) / 4 * local[rank][step][index] for rank in range(3))
                np.testing.assert_allclose(summed, expected, rtol=eps, atol=8 * eps)
        expected = [
            ("Reducer.ready", "'name'", "one of a, b, c", "'d'"),
            ("Reducer.ready", "'gradient'", "(3, 11)", "(5, 4)"),
            ("Reducer.ready", "'name'", "c, b, a", "'a'"),
            ("Reducer.finish", "none of a, b, c"),
            ("Reducer.ready", "'name'", "once", "'c'"),
            ("Reducer", "'params'", "at least one"),
            ("Reducer", "'params'", "same names, shapes and dtypes"),
            ("Processes.broadcast", "'params'", "same names, shapes and dtypes"),
            ("Reducer.finish", "same order in all processes"),
        ]
        assert len(line["errors"]) == len(expected)
        for message, words in zip(line["errors"], expected, strict=True):
            assert message.startswith(f"{words[0]}: ") and all(word in message for word in words), message


@needs_torch
def test_sums_run_beside_the_backward_pass():
    early, late = outcome(start(2, overlap))
    assert early["threads"] == max(1, fastrnn.get_num_threads() // 2)  # a share of the machine each
    assert early["taken"] < 0.25  # it did not wait for the late one
    assert early["early"] == late["early"] == 3  # summed before `finish`
    assert early["last"] == [2] * 10
    assert late["waited"] < 0.25


def captioner(dtype):
    """A model and a batch whose captions have several lengths, so that parts weigh differently."""
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2} | {f"w{i}": i for i in range(3, 40)}
    model = CaptioningRNN(words, 12, 16, 24, "lstm", dtype, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    captions = rng.integers(1, 40, size=(11, 9))
    for n in range(11):
        captions[n, 9 - n % 5 :] = 0
    return model, rng.standard_normal((11, 12)), captions


@needs_torch
def test_gradients_of_a_shared_batch_are_those_of_the_batch(tmp_path):
    """Within the tolerance rule; the oracle is the reference in float32."""
    outcome(start(3, gradients, np.float32, tmp_path / "sums.npz"))
    summed = np.load(tmp_path / "sums.npz")
    with fastrnn.backend("reference"):
        model, features, captions = captioner(np.float32)
        oracle_loss, oracle = model.loss(features, captions)
        model.params = {name: value.astype(np.float64) for name, value in model.params.items()}
        exact_loss, exact = model.loss(features, captions)
    for name, expected in (exact | {"loss": exact_loss}).items():
        off = abs((oracle | {"loss": oracle_loss})[name] - expected).max()
        bound = 2 * off + 4 * np.finfo(np.float32).eps * abs(expected).max()
        assert abs(summed[name] - expected).max() <= bound, name
        assert name == "loss" or summed[name].dtype == np.float32


# ---- how they end ----------------------------------------------------------------------------------------------------


@needs_torch
def test_a_failure_ends_all_with_one_message():
    begin = time.perf_counter()
    lines = outcome(start(3, raises), codes=(2,))
    assert time.perf_counter() - begin < 20
    assert [line["type"] for line in lines] == ["ProcessLost", "OSError", "ProcessLost"]
    assert [line["first"] for line in lines] == [False, True, False]
    for line in (lines[0], lines[2]):
        assert "of 3 lost the others (" in line["error"] and "--max-restarts" in line["error"]


@needs_torch
def test_a_process_that_does_not_answer_is_not_waited_for_forever():
    started = start(2, goes_silent)
    try:
        (said,) = outcome(started[:1])
    finally:
        started[1][0].kill()
    assert 0.5 < said["seconds"] < 10 and "lost the others" in said["error"]


WORKER = """
import os, signal, time
from fastrnn.captioning.parallel import Processes
Processes.from_environment()
signal.signal(signal.SIGTERM, lambda *_: (print("ended", flush=True), os._exit(0)))
print("begun", flush=True)
time.sleep(60)
"""


@needs_torch
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_workers_end_with_their_torchrun(tmp_path):
    """Killed itself, torchrun cannot end them: they would train on beside those of the torchrun after it."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "worker.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path) as torchrun:
        assert torchrun.stdout.readline() == "begun\n"
        torchrun.kill()
        assert torchrun.stdout.read() == "ended\n"
