"""What several processes gain: `torchrun --standalone --nproc-per-node=2 bench/distributed.py`, or on several machines.

One training iteration of the captioning model, Adam included, by one process with the whole batch and by all processes
with their parts of it, in turns; then what their sums cost alone, and a model of it for more processes and for other
networks, whose constants are those measurements. All processes have as many threads as one has alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastrnn
from bench import bench_captioner
from fastrnn.captioning import CaptioningRNN
from fastrnn.captioning.parallel import Processes, Reducer
from fastrnn.ops.optim import update_all
from fastrnn.optim import adam

SHAPE = "256,17,256,512,1004,512"  # N, T, W, H, V, D, as bench_captioner has them
NETWORKS = (1.0, 10.0, 100.0)  # Gbit/s
# A round trip between machines on a switched network, in seconds; that of the loopback says nothing about one.
ROUND_TRIP = {1.0: 200e-6, 10.0: 50e-6, 100.0: 20e-6}
WORLDS = (1, 2, 4, 8, 16, 32)


class Measured(NamedTuple):
    """Medians, in seconds, but for `size`."""

    whole: float  # one process, the whole batch
    part: float  # one process's part, all processes at once, nothing summed
    alone: float  # the same part, by one process while the others rest
    shared: float  # a part each, gradients summed
    waited: float  # of that: waiting for sums that the backward pass did not hide
    sums: float  # the gradients' sum alone, with their copy into the buffer
    trip: float  # the sum of one number
    size: int  # bytes of the gradients
    first: int  # bytes of those that are ready before the recurrent backward pass
    backward: float  # one process's part from its first gradient to its last
    speed: float  # bytes a second of each process in each direction, in sums of many


class Model(NamedTuple):
    """Seconds of a step, by measured constants: `fixed` of each step, and `caption` for each caption of a part."""

    fixed: float
    caption: float
    backward: float
    first: int
    size: int

    def step(self, captions: int, world: int, speed: float, trip: float) -> float:
        """Of one process among `world`, where the network gives `speed` bytes a second in each direction."""
        part = captions / world
        compute = self.fixed + self.caption * part
        if world == 1:
            return compute
        # A ring sends 2 (world - 1) / world of the data, in as many steps of a round trip each.
        early = seconds_of_sum(self.first, world, speed, trip)
        late = seconds_of_sum(self.size - self.first, world, speed, trip)
        return compute + max(0.0, early - self.backward * part) + late + trip


def seconds_of_sum(size: float, world: int, speed: float, trip: float) -> float:
    """Of a ring all-reduce of `size` bytes (Patarasuk & Yuan 2009): bandwidth, and a trip for each of its steps."""
    return 2 * (world - 1) * (size / world / speed + trip / 2)


class Worker:
    """The model, its batch, and what is timed."""

    def __init__(self, processes: Processes, shape: tuple[int, ...]) -> None:
        N, _, W, H, V, D = shape
        self.processes = processes
        data = bench_captioner.inputs(shape, np.float32)
        words = {"<NULL>": 0} | {f"word {index}": index for index in range(1, V)}
        self.model = CaptioningRNN(words, D, W, H, "lstm", np.float32, rng=np.random.default_rng(0))
        self.states: list[dict[str, Any]] = [{"learning_rate": 1e-3} for _ in self.model.params]
        rows = np.arange(N) % len(data["train_captions"])
        self.captions, self.features = data["train_captions"][rows], data["train_features"][rows]
        self.reducer = processes.reducer(self.model.params)
        rank, world = processes.rank, processes.world
        self.part = slice(rank * N // world, (rank + 1) * N // world)
        self.weight = (self.part.stop - self.part.start) / N
        self.times: list[float] = []

    def step(self, part: slice, reducer: Reducer | None) -> None:
        params = self.model.params
        features, captions = self.features[part], self.captions[part]
        if reducer is None:
            self.times.clear()
            _, grads = self.model.loss(features, captions, ready=self._note)
        else:
            _, grads = self.model.loss(features, captions, ready=self._send)
            grads = reducer.finish()
            self.processes.total([1.0, 2.0, 3.0])  # loss, words and signals, as `Trainer` sums them
        values, self.states = update_all(adam, list(params.values()), [grads[name] for name in params], self.states)
        for name, value in zip(list(params), values, strict=True):
            params[name] = value

    def _note(self, name: str, gradient: Any) -> None:
        self.times.append(time.perf_counter())

    def _send(self, name: str, gradient: Any) -> None:
        self.reducer.ready(name, gradient, self.weight)

    def sum_alone(self) -> None:
        for name, value in reversed(self.model.params.items()):
            self.reducer.ready(name, value, self.weight)
        self.reducer.finish()


def timed(call: Callable[[], Any], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def measure(processes: Processes, shape: tuple[int, ...], rounds: int, steps: int) -> tuple[Measured, list[float]]:
    """Each in turn, round by round, so that what else the machine does falls on all; with the ratio of each round."""
    worker = Worker(processes, shape)
    everything = slice(0, len(worker.captions))
    alone = worker.processes.rank == 0
    taken: dict[str, list[float]] = {name: [] for name in ("whole", "part", "alone", "shared", "waited", "backward")}
    for _ in range(rounds + 1):
        for name, part, reducer, here in (
            ("whole", everything, None, alone),
            ("shared", worker.part, worker.reducer, True),
            ("alone", worker.part, None, alone),
            ("part", worker.part, None, True),
        ):
            processes.barrier()
            waited = worker.reducer.waited
            if here:
                taken[name].append(timed(partial(worker.step, part, reducer), steps))
            if name == "shared":
                taken["waited"].append((worker.reducer.waited - waited) / steps)
            if name == "alone" and here:
                taken["backward"].append(worker.times[-1] - worker.times[0])
    processes.barrier()

    def median(name: str) -> float:  # the first round warms up
        return statistics.median(taken[name][1:]) if taken[name] else 0.0

    params = worker.model.params
    other = processes.reducer(params)  # the order of `sum_alone` is another one
    worker.reducer = other
    worker.sum_alone()
    processes.barrier()
    sums = statistics.median(timed(worker.sum_alone, 1) for _ in range(20))
    trip = statistics.median(timed(lambda: processes.total(1.0), 1) for _ in range(200))
    ratios = [a / b for a, b in zip(taken["whole"][1:], taken["shared"][1:], strict=False)]
    size = other.bytes
    world = processes.world
    big = {"all": np.zeros(2**24, np.float32)}
    long = processes.reducer(big)

    def large() -> None:
        long.ready("all", big["all"], 1.0)
        before = long.waited
        long.finish()
        waits.append(long.waited - before)

    waits: list[float] = []
    for _ in range(6):
        large()
    seconds = statistics.median(waits[1:])
    speed = 2 * (world - 1) / world * long.bytes / seconds if world > 1 else float("inf")
    measured = Measured(
        whole=median("whole"),
        part=median("part"),
        alone=median("alone"),
        shared=median("shared"),
        waited=median("waited"),
        sums=sums,
        trip=trip,
        size=size,
        first=params["W_vocab"].nbytes + params["b_vocab"].nbytes,
        backward=median("backward"),
        speed=speed,
    )
    return measured, ratios


def report(m: Measured, ratios: list[float], shape: tuple[int, ...], world: int) -> None:
    ms = 1e3
    N = shape[0]
    threads = fastrnn.get_num_threads()

    def line(what: str, value: str, more: str = "") -> None:
        print(f"  {what:38}{value:>9} {more}")

    print(
        f"{world} processes, {threads} {'thread' if threads == 1 else 'threads'} each; N,T,W,H,V,D = {shape}, float32"
    )
    print("measured, medians:")
    line("one process, the whole batch", f"{m.whole * ms:.1f}", "ms a step")
    gain = f"{m.whole / m.shared:.2f} times as fast, rounds {min(ratios):.2f} to {max(ratios):.2f}"
    line("all processes, a part each, summed", f"{m.shared * ms:.1f}", f"ms a step: {gain}")
    line("all processes, nothing summed", f"{m.part * ms:.1f}", "ms a step")
    line("one process, a part, the others at rest", f"{m.alone * ms:.1f}", "ms a step")
    line("gradients", f"{m.size / 1e6:.1f}", f"MB; {m.first / 1e6:.1f} of them before the recurrent backward pass")
    line("their sum alone", f"{m.sums * ms:.1f}", "ms")
    line("waited for it in a step", f"{m.waited * ms:.1f}", f"ms: {100 * (1 - m.waited / m.sums):.0f} % are hidden")
    line("sum of one number", f"{m.trip * ms:.2f}", "ms")
    line("each way in long sums", f"{m.speed / 1e9:.2f}", "GB/s")
    if world < 2:
        return
    caption = (m.whole - m.alone) / (N - N / world)
    fixed = m.whole - caption * N
    backward = m.backward / (N / world)
    model = Model(max(fixed, 0.0), caption, backward, m.first, m.size)
    print("model, its constants from above:")
    parts = f"{caption * ms:.3f} ms a caption, {backward * ms:.3f} of them with the first sums under way"
    print(f"  a step is {model.fixed * ms:.1f} ms and {parts}")
    here = model.step(N, world, m.speed, m.trip)
    print(f"  this machine: {here * ms:.1f} ms a step predicted, {m.shared * ms:.1f} measured")
    worlds = [w for w in WORLDS if w <= N]
    print(f"  speed-up by processes, one a machine, {N} captions over all".ljust(60), *(f"{w:6d}" for w in worlds))
    for captions, what in ((N, "the same batch"), (None, f"{N} captions each")):
        for gbit in NETWORKS:
            # No faster than the sums themselves go where no network is in between.
            speed = min(gbit * 1e9 / 8, m.speed)
            ups = []
            for w in worlds:
                n = captions or N * w
                ups.append(model.step(n, 1, speed, 0) / model.step(n, w, speed, ROUND_TRIP[gbit]))
            print(f"    {what}, {gbit:5.0f} Gbit/s".ljust(60), *(f"{up:6.2f}" for up in ups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=SHAPE, help="N,T,W,H,V,D; N is the batch over all processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each kind in a round")
    options = parser.parse_args()
    shape = tuple(int(size) for size in options.shape.split(","))
    with Processes.from_environment() or parser.error("start it with torchrun") as processes:
        measured, ratios = measure(processes, shape, options.rounds, options.steps)
        if processes.rank == 0:
            report(measured, ratios, shape, processes.world)


if __name__ == "__main__":
    main()
