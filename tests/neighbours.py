"""What test_neighbours.py runs in processes of their own: limits, signals and ends that no test could outlive.

Each function says what it saw in one line of JSON. `processes.alone` starts them.
"""

import atexit
import gc
import json
import os
import signal
import statistics
import sys
import threading
import time

import numpy as np

import fastrnn
from fastrnn import cache, conformance


def say(**what):
    print(json.dumps(what), flush=True)


def layer(N=48, T=12, D=40, H=72, seed=0):
    """Arguments of `fastrnn.lstm_forward`; a call of these sizes is worth two threads."""
    rng = np.random.default_rng(seed)
    shapes = [(N, T, D), (N, H), (D, 4 * H), (H, 4 * H), (4 * H,)]
    return [(rng.standard_normal(shape) / 4).astype(np.float32) for shape in shapes]


def call(inputs):
    """Forward and backward."""
    h, kept = fastrnn.lstm_forward(*inputs)
    return [h, *fastrnn.lstm_backward(h, kept)]


def bits(results):
    values = results.values() if isinstance(results, dict) else results
    return [np.asarray(value).tobytes() for value in values]


def largest_cases(backend):
    """Of every public function the conformance case with most numbers in it, with its arrays in float32."""
    cases = {}
    for generate in conformance.CASES.values():
        for case in generate():
            if case.layout == "contiguous" and conformance.runs_on(case, backend):
                size = sum(array.size for array in case.arrays.values())
                cases[case.function] = max(cases.get(case.function, (0, None)), (size, case), key=lambda pair: pair[0])
    return [(case, conformance.cast(case, np.dtype(np.float32))) for _, case in cases.values()]


def long_call(seconds, N=64, D=256, H=256):
    """Arguments of a forward pass that takes some `seconds`."""
    fastrnn.lstm_forward(*layer(N, 2, D, H))  # what is done at the first call alone
    steps, took = 20, 0.0
    while took < seconds / 8:  # a call of a few milliseconds says little: another program may have had the CPU
        steps *= 2
        inputs = layer(N, steps, D, H)
        begin = time.perf_counter()
        fastrnn.lstm_forward(*inputs)
        took = time.perf_counter() - begin
    return layer(N, int(steps * seconds / took) + 1, D, H)


# ---- threads ---------------------------------------------------------------------------------------------------------


def many_threads(backend, threads, rounds):
    """Every function in every thread, in another order in each; calls made, and those whose bits are not those of one
    thread alone."""
    with fastrnn.backend(backend):
        cases = largest_cases(backend)
        expected = [bits(case.call(fastrnn, arrays)) for case, arrays in cases]
    wrong, calls = [], []

    def loop(number):
        try:
            with fastrnn.backend(backend):
                rng = np.random.default_rng(number)
                for i in np.concatenate([rng.permutation(len(cases)) for _ in range(rounds)]):
                    case, arrays = cases[i]
                    if bits(case.call(fastrnn, arrays)) != expected[i]:
                        wrong.append(str(case))
                    calls.append(i)
        except BaseException as error:
            wrong.append(repr(error))

    team = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return len(calls), wrong


def free_threads(threads, rounds):
    """`many_threads` where there is no GIL, and whether importing the kernels has left it off."""
    calls, wrong = many_threads("cpu", threads, rounds)
    say(calls=calls, wrong=wrong, gil=getattr(sys, "_is_gil_enabled", lambda: True)())


def task_count():
    return len(os.listdir("/proc/self/task"))


def threads_of_the_process(backend, most):
    """How many threads there are after calls with one thread, with `most`, from many threads, and with two again."""
    fastrnn.backend(backend)
    inputs, counts = layer(N=192), []
    for number in (1, most, most, 2):
        fastrnn.set_num_threads(number)
        call(inputs)
        callers = [threading.Thread(target=call, args=(inputs,)) for _ in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        while task_count() > 1 and any(caller.is_alive() for caller in callers):
            time.sleep(0.01)
        time.sleep(0.1)  # what a joined thread has left to do
        counts.append(task_count())
    say(counts=counts)


# ---- other pools -----------------------------------------------------------------------------------------------------


def _neighbour_calls():
    """A call of each library, of some milliseconds each, by name."""
    calls = {}
    inputs = layer(64, 24, 192, 192)
    calls["fastrnn"] = lambda: call(inputs)
    a = np.random.default_rng(1).standard_normal((900, 900)).astype(np.float32)
    calls["numpy"] = lambda: a @ a
    try:
        import numba
    except ImportError:
        pass
    else:
        b = np.random.default_rng(2).standard_normal(1_000_000)

        @numba.njit(parallel=True)
        def roots(x):
            out = np.empty_like(x)
            for i in numba.prange(len(x)):
                out[i] = np.sin(x[i]) ** 2
            return out

        calls["numba"] = lambda: roots(b)
    try:
        import torch
    except ImportError:
        pass
    else:
        c = torch.from_numpy(a)
        calls["torch"] = lambda: c @ c
    return calls


def _seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def pools(rounds):
    """Medians of each library's call alone and right after one of ours, and of ours after each of theirs."""
    calls = _neighbour_calls()
    for function in calls.values():
        function()
    alone, after_ours, ours_after = {}, {}, {}
    for name, function in calls.items():
        time.sleep(0.3)
        alone[name] = statistics.median(_seconds(function) for _ in range(rounds))
    for name, function in calls.items():
        if name == "fastrnn":
            continue
        theirs, ours = [], []
        for _ in range(rounds):
            ours.append(_seconds(calls["fastrnn"]))
            theirs.append(_seconds(function))
        ours_after[name] = statistics.median(ours[1:]) / alone["fastrnn"]
        after_ours[name] = statistics.median(theirs) / alone[name]
    say(alone=alone, after_ours=after_ours, ours_after=ours_after)


def cpu_time(rounds):
    """CPU time of the process over that of its main thread, while every library runs in turn, each held to one thread
    by the environment."""
    calls = _neighbour_calls()
    for function in calls.values():
        function()
    process, thread = time.process_time(), time.thread_time()
    for _ in range(rounds):
        for function in calls.values():
            function()
    say(ratio=(time.process_time() - process) / (time.thread_time() - thread))


def quiet(seconds):
    """CPU seconds that go by in a second of sleep, after calls of ours on several threads."""
    fastrnn.set_num_threads(4)
    inputs = layer(N=192)
    for backend in fastrnn.available_backends():
        if backend in ("cpu", "numba"):
            with fastrnn.backend(backend):
                call(inputs)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(seconds)
    say(ratio=(time.process_time() - before) / seconds)


# ---- signals ---------------------------------------------------------------------------------------------------------


def interrupted(backend, name, seconds):
    """A signal while a kernel runs: what the call raised and when, and whether the next call is right."""
    fastrnn.set_num_threads(2)
    fastrnn.backend(backend)
    small = layer()
    expected = bits(call(small))
    inputs = long_call(seconds)
    before = bits(inputs)
    number = getattr(signal, name)
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # shells have what runs in the background ignore it
    else:

        def handler(*_):
            call(small)  # a handler may call kernels itself
            raise TimeoutError("from the handler")

        signal.signal(number, handler)

    def send():
        time.sleep(seconds / 4)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    begin, raised = time.perf_counter(), "nothing"
    try:
        fastrnn.lstm_forward(*inputs)
        for _ in range(1000):  # the call itself must have raised: nothing may be left for later
            pass
    except BaseException as error:
        raised = type(error).__name__
    took = time.perf_counter() - begin
    right = bits(call(small)) == expected and bits(inputs) == before
    say(raised=raised, took=took, sent=seconds / 4, right=right, threads=fastrnn.last_backend().threads)


def ended(backend, seconds):
    """Says when a long kernel begins, and has more to say if no signal ends it meanwhile."""
    fastrnn.backend(backend)
    inputs = long_call(seconds)
    say(begins=True)
    fastrnn.lstm_forward(*inputs)
    say(ended=False)


def waits_for_a_signal(backend):
    """The program blocks a signal to wait for it; a worker that takes it instead ends the process."""
    fastrnn.set_num_threads(4)
    fastrnn.backend(backend)
    call(layer(N=192))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    call(layer(N=192))
    os.kill(os.getpid(), signal.SIGUSR1)
    say(got=signal.sigtimedwait({signal.SIGUSR1}, 10) is not None, tasks=task_count())


# ---- little memory ---------------------------------------------------------------------------------------------------


def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def limit(extra):
    """Let the process have so many more bytes of address space; None: as many as there are."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if extra is None else address_space() + extra, hard))


def without_memory(backend, steps):
    """Each function with less memory than it takes, in so many steps: how often it failed, and what went wrong."""
    fastrnn.set_num_threads(2)
    fastrnn.backend(backend)
    cache._pool = cache._Pool(0)  # or the memory of one call would serve the next
    failures, wrong = {}, []
    for case, arrays in largest_cases(backend):
        expected, before = bits(case.call(fastrnn, arrays)), bits(arrays)
        taken = sum(map(len, expected)) + sum(map(len, before)) + (1 << 20)
        failures[case.function] = 0
        for step in range(8 * steps):
            error = None
            limit(step * taken // steps)
            try:
                case.call(fastrnn, arrays)
            except MemoryError:
                failures[case.function] += 1
            except BaseException as other:
                error = other
            else:
                break
            finally:
                limit(None)
            if error is not None:
                wrong.append(f"{case}: {error!r}")
            if bits(arrays) != before:
                wrong.append(f"{case}: modified its inputs")
        else:
            wrong.append(f"{case}: fails with {8 * taken} bytes")
        if bits(case.call(fastrnn, arrays)) != expected:
            wrong.append(f"{case}: another result afterwards")
    say(failures=failures, wrong=wrong)


def message_without_memory(backend):
    """What calls say that need some 200 MB and get 30."""
    fastrnn.backend(backend)
    small, large = layer(), layer(256, 100, 256, 256)
    expected = bits(call(small))
    limit(30 << 20)
    try:
        fastrnn.lstm_forward(*large)
        message = ""
    except MemoryError as error:
        message = str(error)
    right = bits(call(small)) == expected
    limit(None)
    h, kept = fastrnn.lstm_forward(*large)
    pool, cache._pool = cache._pool, cache._Pool(0)
    limit(10 << 20)
    try:
        fastrnn.lstm_backward(h, kept)
        backward = ""
    except MemoryError as error:
        backward = str(error)
    limit(None)
    cache._pool = pool
    say(forward=message, backward=backward, right=right and bits(call(small)) == expected)


def free_blocks_are_given_back():
    """A call that needs more memory than there is, but for what the pool holds without use."""
    fastrnn.backend("cpu")
    for scale in (1, 2, 3, 4):
        fastrnn.lstm_forward(*layer(64, 20 * scale, 256, 256))
    held = sum(size for size, _, _ in cache._pool._entries)
    inputs = layer(64, 180, 256, 256)
    limit(held // 2)
    try:
        fastrnn.lstm_forward(*inputs)
        say(held=held, failed=False)
    except MemoryError as error:
        say(held=held, failed=str(error))


def few_threads(backend, most):
    """Calls on six threads where there is address space for the stacks of `most` more."""
    import resource

    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    fastrnn.set_num_threads(1)
    fastrnn.backend(backend)
    inputs = layer(N=192, T=40)
    expected = bits(call(inputs))
    limit(most * stack + stack // 2)
    fastrnn.set_num_threads(6)
    used, right = [], True
    for _ in range(3):
        right &= bits(call(inputs)) == expected
        used.append(fastrnn.last_backend().threads)
    say(stack=stack, used=used, right=right, tasks=task_count())


# ---- memory over many calls ------------------------------------------------------------------------------------------


def _random_calls(rng):
    """One call of each row with sizes drawn anew; every third recurrent one has an argument that is refused."""
    N, T, D, H, V = (int(size) for size in rng.integers(1, (9, 9, 65, 65, 257)))
    if rng.random() < 0.05:
        N, T = 16 * N, 4 * T  # what the pool keeps, and threads share
    lengths = rng.integers(0, T + 1, N) if rng.random() < 0.5 else None
    ids, mask = rng.integers(0, V, (N, T)), rng.random((N, T)) < 0.8

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    for cell, gates in conformance.GATES.items():
        arguments = [draw(N, T, D), draw(N, H), draw(D, gates * H), draw(H, gates * H), draw(gates * H)]

        def recurrent(cell=cell, arguments=arguments):
            h, kept = getattr(fastrnn, f"{cell}_forward")(*arguments, lengths=lengths)
            getattr(fastrnn, f"{cell}_backward")(h, kept)

        def refused(cell=cell, arguments=arguments):
            getattr(fastrnn, f"{cell}_forward")(*arguments[:4], arguments[4][1:])

        yield recurrent
        yield refused

    def embedding():
        out, kept = fastrnn.word_embedding_forward(ids, draw(V, D))
        fastrnn.word_embedding_backward(out, kept)
        fastrnn.word_embedding_backward(out, kept, sparse=True)

    def affine():
        out, kept = fastrnn.temporal_affine_forward(draw(N, T, D), draw(D, H), draw(H))
        fastrnn.temporal_affine_backward(out, kept)

    def gram():
        g, kept = fastrnn.gram_matrix(draw(1, D, N, T))
        fastrnn.gram_backward(g, kept)

    def tv():
        image = draw(1, 3, H, D)
        fastrnn.tv_loss(image, 1.0)
        fastrnn.tv_loss_backward(image, 1.0)

    yield embedding
    yield lambda: fastrnn.word_embedding_forward(ids + V, draw(V, D))
    yield affine
    yield lambda: fastrnn.temporal_softmax_loss(draw(N, T, V), ids, mask)
    yield lambda: fastrnn.vocab_softmax_loss(draw(N, T, H), draw(H, V), draw(V), ids, mask)
    yield lambda: fastrnn.vocab_softmax_loss(draw(N, T, H), draw(H, V), draw(V), ids + V, mask | True)
    yield gram
    yield tv
    yield lambda: fastrnn.adam(draw(D, H), draw(D, H), None)


def _random_torch_calls(rng):
    """The same for tensors."""
    import torch

    import fastrnn.torch as ft

    N, T, D, H, V = (int(size) for size in rng.integers(1, (9, 9, 65, 65, 257)))
    if rng.random() < 0.05:
        N, T = 16 * N, 4 * T

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).requires_grad_()

    ids = torch.from_numpy(rng.integers(0, V, (N, T)))
    for kind in (ft.LSTM, ft.GRU, ft.RNN):
        yield lambda kind=kind: kind(D, H, batch_first=True)(draw(N, T, D))[0].sum().backward()
        yield lambda kind=kind: kind(D, H, batch_first=True)(draw(N, T, D + 1))
    yield lambda: ft.embedding(ids, draw(V, D)).sum().backward()
    yield lambda: ft.embedding(ids + V, draw(V, D))
    yield lambda: ft.vocab_cross_entropy(draw(N, T, H), draw(V, H), draw(V), ids).backward()
    yield lambda: ft.gram_matrix(draw(1, D, N, T)).sum().backward()
    yield lambda: ft.tv_loss(draw(1, 3, H, D), 1.0).backward()


def steady(backend, layer_of, warm, calls, leak=False):
    """What many calls of random sizes, and errors among them, have left behind, the pool of blocks not counted, after
    `warm` calls that fill what else is kept on purpose: in Numba's column what was worked out for the last 256 sizes.

    With `leak` it keeps an array a call, as a faulty binding would: what the test has to see.
    """
    fastrnn.set_num_threads(2)
    fastrnn.backend(backend)
    rng, kept = np.random.default_rng(0), []
    draw = {"numpy": _random_calls, "torch": _random_torch_calls}[layer_of]
    refused = done = 0

    def run(until):
        nonlocal refused, done
        while done < until:
            for one in draw(rng):
                try:
                    one()
                except (ValueError, IndexError, RuntimeError):
                    refused += 1
                done += 1
                if leak:
                    kept.append(np.ones(8000))

    def resident():
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") - sum(size for size, _, _ in cache._pool._entries)

    run(warm)
    refused_before, done_before = refused, done
    gc.collect()
    before, blocks = resident(), sys.getallocatedblocks()
    run(done + calls)
    gc.collect()
    say(
        calls=done - done_before,
        refused=refused - refused_before,
        bytes=resident() - before,
        blocks=sys.getallocatedblocks() - blocks,
    )


# ---- other processes ------------------------------------------------------------------------------------------------


def child(connection, backend, inputs):
    """In a process that multiprocessing has started, by whatever method."""
    fastrnn.set_num_threads(2)
    with fastrnn.backend(backend):
        connection.send((bits(call(inputs)), str(fastrnn.last_backend())))


class Items:
    """A data set of PyTorch whose items are computed by kernels, in the workers of its loader."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return call(layer(seed=i))[0]


def loads(method, workers):
    """Batches whose items the workers of a loader compute, while this process is in kernels of its own."""
    import torch

    expected = [Items()[i] for i in range(12)]
    inputs = layer(N=192)
    step = bits(call(inputs))
    torch.ones(300, 300) @ torch.ones(300, 300)
    loader = torch.utils.data.DataLoader(Items(), 2, num_workers=workers, multiprocessing_context=method, timeout=60)
    wrong = 0
    for number, batch in enumerate(loader):
        wrong += bits(call(inputs)) != step
        wrong += not np.array_equal(batch.numpy(), np.stack(expected[2 * number : 2 * number + 2]))
    say(batches=number + 1, wrong=wrong)


def _in_child(check):
    """Fork; whether `check` is true in the child, which has 20 seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forks_beside_calls(backend, forks):
    """Forks while other threads are in kernels, and in between: the exit codes of the children."""
    fastrnn.set_num_threads(2)
    fastrnn.backend(backend)
    inputs = layer(N=160, T=8)  # of results that the pool keeps
    expected = bits(call(inputs))
    end = threading.Event()

    def loop():
        while not end.is_set():
            call(inputs)

    callers = [threading.Thread(target=loop) for _ in range(3)]
    for caller in callers:
        caller.start()
    codes = [_in_child(lambda: bits(call(inputs)) == expected) for _ in range(forks)]
    end.set()
    for caller in callers:
        caller.join()
    say(codes=codes, right=bits(call(inputs)) == expected)


def forks_with_the_pool_in_use():
    """A fork at the moment at which another thread takes a block of the pool of memory."""
    inputs = layer(N=160, T=8)
    expected = bits(call(inputs))
    taking, forked = threading.Event(), threading.Event()

    def take():
        with cache._pool._lock:
            taking.set()
            forked.wait()

    thread = threading.Thread(target=take)
    thread.start()
    taking.wait()
    code = _in_child(lambda: bits(call(inputs)) == expected)
    forked.set()
    thread.join()
    say(code=code)


# ---- ends of the interpreter -----------------------------------------------------------------------------------------


class _Lingers:
    """Something whose end takes a while, in the last stage of the interpreter: threads that ask for the GIL then are
    ended by it."""

    def __init__(self, action):
        self.action = action

    def __del__(self):
        self.action()


def ends_with_a_daemon_at_work(backend):
    """A daemon thread is in kernels all the time while the interpreter shuts down."""
    fastrnn.backend(backend)
    inputs = layer(N=192, T=40)

    def loop():
        while True:
            call(inputs)

    threading.Thread(target=loop, daemon=True).start()
    sleep = time.sleep
    sys.lingers = _Lingers(lambda: sleep(0.4))
    time.sleep(0.3)
    say(done=True)


def ends_with_a_thread_at_work(backend):
    """The interpreter waits for threads that are no daemons."""
    fastrnn.backend(backend)
    inputs = layer(N=192, T=40)
    expected = bits(call(inputs))

    def loop():
        right = all(bits(call(inputs)) == expected for _ in range(5))
        say(done=right)

    threading.Thread(target=loop).start()


def ends_in_a_call_at_exit(backend):
    """Kernels called by an atexit handler, and by a finalizer after it."""
    fastrnn.backend(backend)
    fastrnn.set_num_threads(4)
    inputs = layer(N=192)
    expected = bits(call(inputs))
    run, of = call, bits
    sys.lingers = _Lingers(lambda: run(inputs))
    atexit.register(lambda: say(done=of(run(inputs)) == expected))


def ends_at_once(backend):
    """os._exit of a thread while workers are in a kernel."""
    fastrnn.backend(backend)
    inputs = long_call(2)
    say(done=True)
    threading.Thread(target=lambda: (time.sleep(0.2), os._exit(7)), daemon=True).start()
    fastrnn.lstm_forward(*inputs)


def begins_in_a_thread(backend):
    """The first call, and all that is imported for it, in a thread that ends."""
    inputs, first = layer(N=192), []

    def begin():
        fastrnn.set_num_threads(3)
        with fastrnn.backend(backend):
            first.extend(bits(call(inputs)))

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    fastrnn.backend(backend)
    say(right=bits(call(inputs)) == first)
