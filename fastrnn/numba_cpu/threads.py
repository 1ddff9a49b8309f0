"""Threads that run compiled functions side by side, each on its part of the work.

They are Python threads: compiled functions release the global lock, and what starts them then is the queue they are
parked on. Handing over work and waiting for it costs some 30 us, so that a part is a whole time loop, not a step.
Numba's own threading layers would do neither after a fork nor under several callers at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from fastrnn.backend import get_num_threads

# Floating-point operations that are worth a thread: it does them in 150 us, and a pass has two or three hand-overs.
_SMALL = 16_000_000

_local = threading.local()


def parts_for(operations: float) -> int:
    """Number of parts into which to cut work of so many floating-point operations."""
    _local.used = 1
    return min(get_num_threads(), 1 + int(operations / _SMALL))


def leave_to_blas() -> int:
    """One part, whose products BLAS shares between threads of its own."""
    _local.used = 0
    return 1


def threads_used() -> int:
    """Threads of the last operation of this thread; 0 if they were those of BLAS."""
    return getattr(_local, "used", 1)


class _Team:
    """Threads that sleep until they are given work: as many as were ever asked for, less the caller."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._queues: list[SimpleQueue[Any]] = []

    def run(self, parts: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> bool:
        """Run all parts, and wait for them; False, and nothing done, if another caller has the team or it is too small
        and cannot grow."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            while len(self._queues) < parts - 1:
                queue: SimpleQueue[Any] = SimpleQueue()
                try:
                    with _signals_blocked():
                        threading.Thread(target=_work, args=(queue,), name="fastrnn-numba", daemon=True).start()
                except RuntimeError:  # the system gives no more, or the interpreter is about to end
                    return False
                self._queues.append(queue)
            hand_over = _HandOver()
            try:
                for part in range(1, parts):
                    self._queues[part - 1].put((hand_over, function, part, parts, arguments))
                    hand_over.given += 1
                function(0, parts, *arguments)
            finally:  # whatever happens here, the others write into the same arrays until they are done
                hand_over.wait()
            for error in hand_over.ended:
                if error is not None:
                    raise error
        finally:
            self._busy.release()
        return True


class _HandOver:
    """Parts that were given to other threads: how many, and what those that ended came to."""

    def __init__(self) -> None:
        self.given = 0
        self.ended: list[BaseException | None] = []
        self._bell: SimpleQueue[None] = SimpleQueue()

    def end(self, error: BaseException | None) -> None:
        self.ended.append(error)
        self._bell.put(None)

    def wait(self) -> None:
        """Wait for all of them, and longer than the handler of a signal, such as Ctrl-C, lets: what it raises, is
        raised when they have ended."""
        try:
            while len(self.ended) < self.given:
                self._bell.get()
        finally:
            if len(self.ended) < self.given:
                self.wait()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Threads that start here take none of the process's signals, as those of the C++ kernels (csrc/cpu/team.cpp)."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has none for threads
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _A_THREADS_OWN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_OWN_NAMES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT", "SIGSYS", "SIGPROF")
_A_THREADS_OWN = {getattr(signal, name) for name in _OWN_NAMES if hasattr(signal, name)}


def _work(queue: SimpleQueue[Any]) -> None:
    while True:
        hand_over, error = _one(*queue.get())
        hand_over.end(error)
        del hand_over, error


def _one(
    hand_over: _HandOver, function: Callable[..., None], part: int, parts: int, arguments: Any
) -> tuple[_HandOver, BaseException | None]:
    # A frame of its own, which lets go of the arrays before the caller hears that they are ready.
    try:
        function(part, parts, *arguments)
    except BaseException as error:  # raised again where the work was handed out
        return hand_over, error
    return hand_over, None


_team = _Team()


def _forget() -> None:
    """After a fork only the forking thread is left, and the lock may be held by one that is not."""
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(parts: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(part, parts, *arguments)`` for each part, at once if the team is free and else in turn."""
    if parts > 1 and _team.run(parts, function, arguments):
        _local.used = max(threads_used(), parts)
    else:
        for part in range(parts):
            function(part, parts, *arguments)
