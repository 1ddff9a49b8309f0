"""What tests of several processes have in common: starting them, what they say, and what they train on."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastrnn.captioning import save_coco_data
from fastrnn.captioning.checkpoint import load_checkpoint

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
needs_torch = pytest.mark.usefixtures("torch_is_there")


@pytest.fixture
def torch_is_there():
    pytest.importorskip("torch", reason="several processes need PyTorch")


def environment(**variables):
    """This process's, without what torchrun sets; all traffic on the loopback."""
    kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "FASTRNN_NUM_THREADS")}
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"} | variables


def _process(function, variables, pipe, arguments):
    os.environ.clear()
    os.environ.update(variables)
    with pipe:
        function(lambda **what: pipe.send(what), *arguments)


def _store(pipe):
    """By which the processes meet; it outlives them all, as that of torchrun does."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    pipe.poll(None)  # until the end of the test's process, or of this one


def start(world, function, *arguments, **more):
    """`world` processes of one machine in which `function` runs, each with the environment that torchrun would give it.

    They are forked from a process that has imported PyTorch, which takes longer than most tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "fastrnn.cli.main"])
    ours, theirs = context.Pipe()
    store = context.Process(target=_store, args=(theirs,), daemon=True)
    store.start()
    theirs.close()
    port = ours.recv()
    started = [(store, ours)]
    for rank in range(world):
        values = (rank, world, rank, world, "127.0.0.1", port)
        variables = environment(**dict(zip(VARIABLES, map(str, values), strict=True)), **more)
        variables["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(function, variables, theirs, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    return started[1:] + started[:1]


def outcome(started, codes=(0,), seconds=60):
    """What the processes said, in the order of their ranks; each must end in time, with one of these exit codes."""
    *workers, (_, store) = started
    said, end = [], time.monotonic() + seconds
    try:
        for process, pipe in workers:
            while pipe.poll(max(0, end - time.monotonic())):
                try:
                    said.append(pipe.recv())
                except EOFError:
                    break
            process.join(max(0, end - time.monotonic()))
            assert process.exitcode in codes
    finally:
        store.close()
        for process, _ in started:
            process.kill()
            process.join()
    return said


def call_of(function, *arguments):
    """The command for a new interpreter that calls `function`, of a module beside this one, and what its environment
    needs beside this process's."""
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    text = f"import {function.__module__} as module; module.{function.__name__}(*{arguments!r})"
    return [sys.executable, "-X", "faulthandler", "-c", text], {"PYTHONPATH": os.pathsep.join(path)}


def alone(function, *arguments, seconds=60, code=0, stack=None, **variables):
    """What `function`, of a module beside this one, says in a new interpreter: its last line, which is JSON.

    Parameters
    ----------
    function : callable
        It is found by its module and name; `arguments` are written out.
    seconds : float
        In which it must have ended.
    code : int
        How it must end; -n: by signal n.
    stack : int, optional
        Bytes that each thread's stack takes.
    **variables
        Of its environment, beside this process's.
    """
    command, path = call_of(function, *arguments)
    if stack is not None:
        command = ["/bin/sh", "-c", f'ulimit -s {stack // 1024} && exec "$0" "$@"', *command]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env=os.environ | path | variables,
    )
    what = f"{function.__name__}{arguments}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    assert done.returncode == code, what
    assert not done.stderr or code, what
    return json.loads(done.stdout.splitlines()[-1])


def write_data(folder, images=60, captions=90, dim=8, words=20, length=7):
    """A data set of random features and captions of several lengths."""
    rng = np.random.default_rng(11)
    names = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"w{index}" for index in range(words))]
    data = {"idx_to_word": names, "word_to_idx": {name: index for index, name in enumerate(names)}}
    for split, count in (("train", captions), ("val", captions // 3)):
        text = rng.integers(4, len(names), (count, length))
        end = rng.integers(2, length, count)[:, None]
        column = np.arange(length)
        text = np.where(column < end, text, np.where(column == end, 2, 0))
        text[:, 0] = 1
        data[f"{split}_captions"] = text
        data[f"{split}_image_idxs"] = rng.integers(0, images, count)
        data[f"{split}_features"] = rng.standard_normal((images, dim))
        data[f"{split}_urls"] = [f"image://{split}/{index}" for index in range(images)]
    save_coco_data(folder, data)
    return folder


def assert_same_end(run, expected, rounding=1e-10):
    """The last checkpoints of two runs are the same, but for the rounding of sums in another order."""
    got, wanted = load_checkpoint(run / "last.h5"), load_checkpoint(expected / "last.h5")
    assert got.position == wanted.position
    for name, value in wanted.params.items():
        np.testing.assert_allclose(got.params[name], value, rtol=0, atol=rounding * abs(value).max(), err_msg=name)
    assert got.best["step"] == wanted.best["step"]
    np.testing.assert_allclose(got.best["loss"], wanted.best["loss"], rtol=rounding)
