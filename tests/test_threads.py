"""The thread team: one result whatever the number of threads, many callers at once, fork, and quiet after return."""

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

import fastrnn

pytest.importorskip("fastrnn._cpu", reason="the C++ kernels are not built")


@pytest.fixture
def cpu():
    before = fastrnn.get_num_threads()
    with fastrnn.backend("cpu"):
        yield
    fastrnn.set_num_threads(before)


def layer(seed=0, N=48, T=6, D=40, H=72):
    rng = np.random.default_rng(seed)
    shapes = [(N, T, D), (N, H), (D, 4 * H), (H, 4 * H), (4 * H,)]
    return [(rng.standard_normal(shape) / 4).astype(np.float32) for shape in shapes], rng.standard_normal((N, T, H))


def run(inputs, dh):
    h, cache = fastrnn.lstm_forward(*inputs)
    return (h, *fastrnn.lstm_backward(dh, cache))


def test_any_number_of_threads_gives_the_same_bits(cpu):
    inputs, dh = layer()
    results = []
    for threads in (1, 2, 3, 5):
        fastrnn.set_num_threads(threads)
        results.append(run(inputs, dh))
        assert fastrnn.last_backend().threads == threads
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_small_problems_run_on_one_thread(cpu):
    fastrnn.set_num_threads(4)
    inputs, dh = layer(N=1, T=2, D=3, H=4)
    run(inputs, dh)
    assert fastrnn.last_backend().threads == 1


def test_many_python_threads_at_once(cpu):
    fastrnn.set_num_threads(2)
    work = [layer(seed) for seed in range(8)]
    expected = [run(*each) for each in work]
    wrong = []

    def loop(i):
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
def test_fork_after_use(cpu):
    fastrnn.set_num_threads(2)
    inputs, dh = layer()
    expected = run(inputs, dh)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, inputs, dh))
    process.start()
    assert here.poll(30), "the child hangs"
    for a, b in zip(expected, here.recv(), strict=True):
        np.testing.assert_array_equal(a, b)
    process.join(10)
    assert process.exitcode == 0


def test_threads_sleep_after_return(cpu):
    fastrnn.set_num_threads(2)
    run(*layer())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_workers_roused_for_a_call_that_fails_sleep_again(cpu):
    inputs, dh = layer()
    run(inputs, dh)
    before = time.process_time()
    with pytest.raises(ValueError, match="lstm_forward"):
        fastrnn.lstm_forward(*inputs[:4], inputs[4][:-1])
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize("wrong, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_num_threads_refuses(wrong, error):
    with pytest.raises(error, match="set_num_threads: argument 'n'"):
        fastrnn.set_num_threads(wrong)
