"""Several processes: what they exchange, what they train, and how they end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import complains
from processes import TORCHRUN, VARIABLES, assert_same_end, environment, needs_torch, outcome, start, write_data
from processes import torch_is_there as torch_is_there  # a fixture

import fastrnn
from fastrnn.captioning import CaptioningRNN
from fastrnn.captioning.checkpoint import load_checkpoint
from fastrnn.captioning.parallel import Processes, ProcessLost
from fastrnn.captioning.training import Trainer, TrainingConfig

h5py = pytest.importorskip("h5py")

# Sums in another order round otherwise; in float64 that is far below what anything wrong would do.
CONFIG = {
    "dtype": "float64",
    "wordvec_dim": 16,
    "hidden_dim": 160,  # more than one bucket
    "batch_size": 11,
    "steps": 12,
    "validate_every": 6,
    "noise": 0.1,
    "clip_norm": 0.5,
    "weight_decay": 0.01,
    "average": 0.9,
}


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
    seen["sums"], seen["local"] = [], []
    for seed in (0, 0, 1):
        rng = np.random.default_rng([rank, seed])
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


def trains(say, folder, out, resume, config):
    with Processes.from_environment() as processes:
        train(folder, out, resume, config, processes)


def train(folder, out, resume=False, config=CONFIG, processes=None):
    with TrainingConfig(**config).open(folder) as data:
        if resume:
            trainer = Trainer.resume(out, data, processes=processes, steps=config["steps"])
        else:
            trainer = Trainer(data, TrainingConfig(**config), out=out, processes=processes)
        trainer.train()


def command(say, arguments, log):
    """``fastrnn`` with its output in files, one a process."""
    from fastrnn.cli.main import app

    with open(f"{log}.{os.environ['RANK']}", "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        app([str(argument).replace("RANK", os.environ["RANK"]) for argument in arguments])


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
        assert line["sums"][0] == line["sums"][1]  # and in the first step, whose sums begin later, as in others
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


# ---- what they train -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    train(folder, out)
    return out


@needs_torch
def test_the_number_of_processes_may_change_at_a_checkpoint(folder, one_process, tmp_path):
    outcome(start(2, trains, folder, tmp_path, False, CONFIG | {"steps": 4}))
    train(folder, tmp_path, True, CONFIG | {"steps": 7})
    outcome(start(3, trains, folder, tmp_path, True, CONFIG))
    assert_same_end(tmp_path, one_process)
    lines = [[json.loads(line) for line in open(run / "metrics.jsonl")] for run in (one_process, tmp_path)]
    losses = [{line["step"]: line["loss"] for line in run if "loss" in line} for run in lines]
    for step in (1, 10, 12):
        assert losses[0][step] == pytest.approx(losses[1][step], rel=1e-10)


@needs_torch
def test_processes_go_on_to_the_same_bits(folder, tmp_path):
    outcome(start(3, trains, folder, tmp_path / "straight", False, CONFIG))
    outcome(start(3, trains, folder, tmp_path / "broken", False, CONFIG | {"steps": 5, "validate_every": 6}))
    outcome(start(3, trains, folder, tmp_path / "broken", True, CONFIG))
    one, other = (load_checkpoint(tmp_path / run / "last.h5") for run in ("straight", "broken"))
    for name, value in one.params.items():
        np.testing.assert_array_equal(other.params[name], value, err_msg=name)


@needs_torch
def test_a_batch_smaller_than_the_processes_is_refused(folder, tmp_path):
    arguments = ["train", folder, "--out", tmp_path / "run", "--batch-size", 2]
    outcome(start(3, command, arguments, tmp_path / "log"), codes=(2,))
    assert re.fullmatch(r"fastrnn: Trainer: .*batch_size.* 3.*\n", messages(tmp_path))


def messages(folder):
    """Lines of errors of all processes."""
    lines = [line for log in sorted(folder.glob("log.*")) for line in log.read_text().splitlines(keepends=True)]
    return "".join(line for line in lines if line.startswith("fastrnn: "))


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
        (said,) = outcome([started[0], started[-1]])
    finally:
        started[1][0].kill()
    assert 0.5 < said["seconds"] < 10 and "lost the others" in said["error"]


@needs_torch
def test_bad_data_of_one_process_end_all_with_one_message(folder, tmp_path):
    bad = tmp_path / "data"
    shutil.copytree(folder, bad)
    with h5py.File(next(bad.glob("train*vgg16*.h5")), "r+") as file:
        (features,) = file.values()
        features[7] = np.nan
    arguments = ["train", bad, "--out", tmp_path / "run", "--batch-size", 15, "--no-normalize", "--hidden-dim", 8]
    outcome(start(3, command, arguments, tmp_path / "log"), codes=(1, 2))
    assert re.fullmatch(r"fastrnn: .*train2014.*nan at \[7, 0\].*\n", messages(tmp_path))


@needs_torch
def test_a_folder_that_is_not_shared_is_noticed(folder, one_process, tmp_path):
    shutil.copytree(one_process, tmp_path / "run0")
    arguments = ["train", folder, "--out", tmp_path / "runRANK", "--resume"]
    outcome(start(2, command, arguments, tmp_path / "log"), codes=(1, 2))
    assert re.fullmatch(r"fastrnn: .*share.*\n", messages(tmp_path))


def wait_for_step(run, step, seconds=60):
    """Until the metrics file tells of this step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        if lines and json.loads(lines[-1] if lines[-1].endswith("}") else lines[-2])["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {run}")


SMALL = ["--dtype", "float64", "--hidden-dim", 24, "--wordvec-dim", 8, "--batch-size", 12, "--validate-every", 100]


@needs_torch
def test_a_signal_to_one_stops_all_at_the_same_step(folder, tmp_path):
    run = tmp_path / "run"
    started = start(2, command, ["train", folder, "--out", run, *SMALL, "--steps", 100_000], tmp_path / "log")
    wait_for_step(run, 20)
    os.kill(started[1][0].pid, signal.SIGTERM)
    outcome(started, codes=(143,))
    step = load_checkpoint(run / "last.h5").position["step"]
    assert re.fullmatch(rf"fastrnn: stopped after step {step:,} of 100,000; .*--resume\n", messages(tmp_path))
    more = ["--steps", step + 30]
    outcome(start(2, command, ["train", "--out", run, "--resume", *more], tmp_path / "log"))
    outcome(start(1, command, ["train", folder, "--out", tmp_path / "one", *SMALL, *more], tmp_path / "log"))
    assert_same_end(run, tmp_path / "one")


@needs_torch
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the workers are found in /proc")
def test_torchrun_begins_again_where_a_killed_worker_was(folder, tmp_path):
    run, arguments = tmp_path / "run", [*SMALL, "--steps", 200, "--save-every", 20]
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "fastrnn", "train", folder]
    with open(tmp_path / "log.torchrun", "w") as log:
        torchrun = subprocess.Popen(
            [*map(str, [*launch, "--out", run, "--resume", *arguments])], stdout=log, stderr=log, env=environment()
        )
        try:
            wait_for_step(run, 60)
            children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
            assert len(children) == 2
            os.kill(int(children[1]), signal.SIGKILL)
            assert torchrun.wait(60) == 0
        finally:
            torchrun.terminate()
            torchrun.wait(60)
    log = (tmp_path / "log.torchrun").read_text()
    assert re.search(r"resume +no checkpoint", log) and re.search(r"resume +from step \d+ of 200", log)
    train = ["train", folder, "--out", tmp_path / "straight", *arguments]
    outcome(start(2, command, train, tmp_path / "log"))
    assert (run / "last.h5").read_bytes() == (tmp_path / "straight" / "last.h5").read_bytes()


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
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=1", "worker.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path) as torchrun:
        assert torchrun.stdout.readline() == "begun\n"
        torchrun.kill()
        assert torchrun.stdout.read() == "ended\n"
