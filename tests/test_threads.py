"""Threads of the kernels: one result whatever their number, many callers at once, fork, and quiet after return."""

import contextlib
import gc
import multiprocessing
import os
import threading
import time
import weakref

import numpy as np
import pytest
from harness import BACKENDS
from recurrent import GATES, backward, forward

import fastrnn


@pytest.fixture(params=[name for name in BACKENDS if name.values != ("reference",)])
def backend(request):
    """A backend that has threads."""
    before = fastrnn.get_num_threads()
    with fastrnn.backend(request.param):
        yield request.param
    fastrnn.set_num_threads(before)


def layer(seed=0, N=48, T=12, D=40, H=72, cell="lstm"):
    rng = np.random.default_rng(seed)
    columns = GATES[cell] * H
    shapes = [(N, T, D), (N, H), (D, columns), (H, columns), (columns,)]
    return [(rng.standard_normal(shape) / 4).astype(np.float32) for shape in shapes], rng.standard_normal((N, T, H))


def run(inputs, dh, cell="lstm", **options):
    h, cache = forward(cell)(*inputs, **options)
    return (h, *backward(cell)(dh, cache))


@pytest.mark.parametrize("lengths", [None, [12] * 5 + [0] * 3 + list(range(12)) + [3] * 28])
@pytest.mark.parametrize("cell, H", [("lstm", 72), ("gru", 100), ("rnn", 200)])
def test_any_number_of_threads_gives_the_same_bits(backend, cell, H, lengths):
    inputs, dh = layer(H=H, cell=cell)
    results = []
    for threads in (1, 2, 3, 5):
        fastrnn.set_num_threads(threads)
        results.append(run(inputs, dh, cell, lengths=lengths))
        used = fastrnn.last_backend().threads
        assert used == threads or (lengths and 1 < used <= threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_small_problems_run_on_one_thread(backend):
    fastrnn.set_num_threads(4)
    inputs, dh = layer(N=2, T=2, D=3, H=4)
    run(inputs, dh)
    assert fastrnn.last_backend().threads == 1


def test_what_blas_does_with_its_threads_is_not_told():
    pytest.importorskip("numba")
    inputs, dh = layer(N=1)
    with fastrnn.backend("numba"):
        run(inputs, dh)
        assert fastrnn.last_backend().threads == 0
    with fastrnn.backend("reference"):
        run(inputs, dh)
        assert fastrnn.last_backend().threads == 0


def test_many_python_threads_at_once(backend):
    fastrnn.set_num_threads(2)
    work = [layer(seed) for seed in range(8)]
    expected = [run(*each) for each in work]
    wrong = []

    def loop(i):
        with fastrnn.backend(backend):  # which the fixture set for its own thread alone
            for _ in range(5):
                got = run(*work[i])
                if not all(np.array_equal(a, b) for a, b in zip(expected[i], got, strict=True)):
                    wrong.append(i)

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _child(connection, inputs, dh):
    connection.send(run(inputs, dh))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_after_use(backend):
    fastrnn.set_num_threads(2)
    inputs, dh = layer()
    expected = run(inputs, dh)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    # A daemon is killed at the end: one that hangs would otherwise be waited for by the process of the tests.
    process = context.Process(target=_child, args=(there, inputs, dh), daemon=True)
    process.start()
    assert here.poll(30), "the child hangs"
    for a, b in zip(expected, here.recv(), strict=True):
        np.testing.assert_array_equal(a, b)
    process.join(10)
    assert process.exitcode == 0


def test_threads_sleep_after_return(backend):
    fastrnn.set_num_threads(2)
    run(*layer())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_workers_roused_for_a_call_that_fails_sleep_again():
    pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")
    inputs, dh = layer()
    with fastrnn.backend("cpu"):
        run(inputs, dh)
        before = time.process_time()
        with pytest.raises(ValueError, match="lstm_forward"):
            fastrnn.lstm_forward(*inputs[:4], inputs[4][:-1])
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


# ---- the team of the Numba kernels ---------------------------------------------------------------------------------


@pytest.fixture
def team():
    pytest.importorskip("numba")
    from fastrnn.numba_cpu import threads

    return threads


def test_the_team_runs_every_part_once_on_threads_of_its_own(team):
    ran = {}

    def work(part, parts, meeting):
        meeting.wait(10)  # passes only if all parts run at once
        ran[part] = parts, threading.get_ident()

    team.run(3, work, threading.Barrier(3))
    assert sorted(ran) == [0, 1, 2] and {parts for parts, _ in ran.values()} == {3}
    assert ran[0][1] == threading.get_ident() and len({thread for _, thread in ran.values()}) == 3


@pytest.mark.parametrize("guilty", [0, 1])
def test_an_error_in_a_part_is_the_callers_and_the_others_finish_first(team, guilty):
    finished = []

    def work(part, parts):
        if part == guilty:
            raise ZeroDivisionError("in a part")
        time.sleep(0.05)
        finished.append(part)

    with pytest.raises(ZeroDivisionError, match="in a part"):
        team.run(2, work)
    assert finished == [1 - guilty]
    ran = []
    team.run(2, lambda part, parts: ran.append(part))
    assert sorted(ran) == [0, 1]


def test_a_caller_that_finds_the_team_at_work_does_its_parts_itself(team):
    inner = []

    def work(part, parts):
        if part == 0:
            team.run(2, lambda part, parts: inner.append((part, threading.get_ident())))

    team.run(2, work)
    assert inner == [(0, threading.get_ident()), (1, threading.get_ident())]


@pytest.mark.parametrize("fails", [False, True])
def test_the_team_lets_go_of_what_it_worked_on(team, fails):
    def work(part, parts, array):
        if fails and part == 1:
            raise ZeroDivisionError

    def attempt(array):
        with contextlib.suppress(ZeroDivisionError):
            team.run(2, work, array)
        return weakref.ref(array)

    gone = attempt(np.ones(3))
    gc.collect()  # an exception and the frames that it went through refer to each other
    assert gone() is None


# ---- the number of threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_num_threads_refuses(wrong, error):
    with pytest.raises(error, match="set_num_threads: argument 'n'"):
        fastrnn.set_num_threads(wrong)
