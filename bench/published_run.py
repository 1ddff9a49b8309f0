"""The long published training run, by everybody: `python bench/published_run.py [FOLDER]`, some five minutes.

An LSTM learns 5,000 captions in 50 epochs of Adam, 2,500 iterations; the published loss falls from about 78 to about 5.
fastrnn, the NumPy reference and PyTorch each train from the same parameters on the same minibatches, at the same number
of threads. They take turns of some iterations, whose order rotates, so that what else the machine does falls on all
alike. Before each turn there are a pause and warm-up iterations of another model: every iteration of the run counts.
The images and captions are made up, as many and as long as COCO's, unless a folder with COCO's own is named.

Exit code: 0, or 1 if a provider's losses are wrong at the beginning, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fastrnn
from bench import bench_captioner
from bench.common import Arrays, Benchmark, Shape, rng
from fastrnn import reference
from fastrnn.captioning import CaptionData, CaptioningRNN, synthetic_coco_data
from fastrnn.cli import bench_pictures, bench_tables, common
from fastrnn.cli.bench import same_conditions
from fastrnn.cli.bench_timing import PAUSE_SECONDS, Job, Measured, Provider, Settings, peak_of, provider_of, row_of
from fastrnn.cli.bench_timing import verified as verified_providers

SHAPE = "100,17,256,200,1004,512"  # N, T, W, H, V, D, as bench_captioner has them
CAPTIONS = 5000
IMAGES = 82_783  # and five captions of each, from which those of the run are drawn
LEARNING_RATE = 4e-3  # by which the loss ends at about 5; which one was published with it is not known
PEERS = ("numpy", "torch")
WARM_UP = 3  # iterations
MEAN = 50  # iterations, over which a loss is averaged
# Losses of the first iteration are sums of a thousand terms in some order: they differ by a few roundings.
FIRST_LOSS = 8 * float(np.finfo(np.float32).eps)
KERNEL = "captioner_run"
NAMES = {"cpu": "fastrnn", "numpy": "NumPy", "torch": "PyTorch"}  # in pictures


@dataclass
class Run:
    """One provider's training, and another one of the same for its warm-up."""

    provider: Provider
    warm_up: Provider
    times: list[float] = field(default_factory=list)
    """Seconds of each iteration."""
    losses: list[float] = field(default_factory=list)

    def turn(self, count: int) -> None:
        """`count` iterations, after a pause, in which other libraries' threads stop spinning, and a warm-up."""
        time.sleep(PAUSE_SECONDS)
        with self.provider.context():
            for _ in range(WARM_UP):
                self.warm_up.convert(self.warm_up.call())
            collecting = gc.isenabled()
            gc.disable()
            try:
                for _ in range(count):
                    begin = time.perf_counter()
                    (loss,) = self.provider.convert(self.provider.call())
                    self.times.append(time.perf_counter() - begin)
                    self.losses.append(float(loss))
            finally:
                if collecting:
                    gc.enable()

    def loss_at(self, iteration: int) -> float:
        """Mean of the last losses up to an iteration, the first being 1."""
        return float(np.mean(self.losses[max(0, iteration - MEAN) : iteration]))


# ---- what is learnt --------------------------------------------------------------------------------------------------


@contextmanager
def folder_of(given: Path | None, images: int, shape: Shape) -> Iterator[Path]:
    """The folder named, or one with made-up data, which is removed afterwards."""
    if given is not None:
        yield given
        return
    _, T, _, _, V, D = shape
    with tempfile.TemporaryDirectory() as parent:
        made = Path(parent) / "coco"
        train = {"train_images": images, "captions": 5 * images}
        synthetic_coco_data(made, **train, val_images=1, val_captions=1, dim=D, vocabulary=V, length=T, progress=None)
        yield made


def inputs(folder: Path, captions: int, shape: Shape, learning_rate: float) -> tuple[Arrays, Shape]:
    """What bench_captioner's providers train on, with the sizes that the files have."""
    N, _, W, H, _, _ = shape
    with CaptionData(folder, max_train=captions) as data:
        ids = data.captions("train")
        images, shown = np.unique(data.image_idxs("train"), return_inverse=True)
        if data.word_to_idx["<NULL>"] != bench_captioner.NULL:
            raise ValueError(f"{folder}: expected <NULL> to be word {bench_captioner.NULL}, as in COCO's files")
        arrays: Arrays = {
            "train_captions": ids,
            "train_image_idxs": shown,
            "train_features": data.features("train", images),
            "train_urls": np.full(len(images), ""),
        }
        T, V, D = data.caption_length, len(data.idx_to_word), data.feature_dim
    model = CaptioningRNN(bench_captioner.words(V), D, W, H, "lstm", np.float32, rng=rng())
    return arrays | model.params | bench_captioner.settings(N, np.float32, learning_rate), (N, T, W, H, V, D)


# ---- the run ---------------------------------------------------------------------------------------------------------


def runs_of(job: Job, settings: Settings) -> list[Run]:
    """Providers whose first losses are right, ours first; the others are named, and ours among them ends it."""
    measured = Measured()
    arrays = job.benchmark.inputs(job.shape, np.float32)
    runs = []
    for warm_up in verified_providers(job, settings, measured):
        fresh = provider_of(warm_up.name, job, arrays, settings)
        assert fresh is not None  # as it was when it was verified
        runs.append(Run(fresh, warm_up))
    for complaint in (*measured.wrong, *measured.failed):
        print(f"{complaint.provider}: {complaint.reason}", file=sys.stderr)
    if measured.wrong:
        sys.exit(1)
    return runs


def train(runs: list[Run], iterations: int, turn: int, settings: Settings) -> float | None:
    """All iterations of all, in turns; returns the machine's peak, the largest of those measured before each round."""
    peak = None
    with Progress(console=Console(stderr=True), transient=True, disable=not common.interactive()) as progress:
        task = progress.add_task("iterations of each", total=iterations)
        for number, done in enumerate(range(0, iterations, turn)):
            peak = peak_of("float32", settings)
            first = number % len(runs)
            for run in runs[first:] + runs[:first]:
                run.turn(min(turn, iterations - done))
            progress.update(task, completed=min(done + turn, iterations))
    return peak


def exact_first_loss(arrays: Arrays) -> float:
    """In float64, by the reference."""
    wide = {name: a.astype(np.float64) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    (loss,) = bench_captioner.run(reference, wide, "both")()
    return float(loss)


def first_losses_are_right(runs: list[Run], exact: float) -> bool:
    """Whether they are the exact one but for rounding; says so."""
    print(f"first loss: {exact:.9g} in float64; relative differences from it, {FIRST_LOSS:.1e} allowed:")
    right = True
    for run in runs:
        error = abs(run.losses[0] - exact) / exact
        good = error <= FIRST_LOSS  # which NaN is not
        right = right and good
        print(f"  {run.provider.name:10}{error:9.1e}{'' if good else '  ✗ wrong'}")
    return right


def report(runs: list[Run], turn: int) -> None:
    iterations = len(runs[0].losses)
    ours = runs[0]
    last = f"last {min(MEAN, iterations)}"
    columns = ("total s", "median ms", "20 to 80 %", "first loss", last, "ours is", "by turns, median")
    print(("  {:8}{:>9}{:>11}{:>16}{:>12}{:>9}{:>9}  {}").format("", *columns))
    for run in runs:
        p20, p50, p80 = np.percentile(run.times, (20, 50, 80)) * 1e3
        line = f"  {run.provider.name:8}{sum(run.times):9.1f}{p50:11.2f}{f'{p20:.2f} to {p80:.2f}':>16}"
        line += f"{run.losses[0]:12.4f}{run.loss_at(iterations):9.3f}"
        if run is not ours:
            begins = range(0, iterations, turn)
            ratios = [sum(run.times[at : at + turn]) / sum(ours.times[at : at + turn]) for at in begins]
            line += f"{sum(run.times) / sum(ours.times):7.2f} x"
            line += f"  {np.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        print(line)
    print(f"loss, mean of the {MEAN} iterations before:")
    names = "".join(f"{run.provider.name:>10}" for run in runs)
    print(f"  {'iteration':>9}{names}{'differ by':>12}")
    for iteration in sorted(
        {at for at in (1, 10, 50, 100, 250, 500, 1000, 1500, 2000) if at < iterations} | {iterations}
    ):
        means = [run.loss_at(iteration) for run in runs]
        # The first is given to its last digits by `first_losses_are_right`.
        spread = f"{100 * (max(means) - min(means)) / min(means):.2g} %"
        print(f"  {iteration:9,}{''.join(f'{mean:10.3f}' for mean in means)}{spread:>12}")


def save_curves(path: Path, runs: list[Run], title: str) -> None:
    """Loss over each provider's own seconds: as it was, and its running mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for run in reversed(runs):  # ours last, and so on top
        name = run.provider.name
        color = bench_pictures.OURS if run is runs[0] else bench_pictures.COLORS[name]
        seconds, losses = np.cumsum(run.times), np.array(run.losses)
        # Means over iterations before and after, so that they do not lag behind; over fewer of them at the beginning,
        # where the loss falls fast.
        half = [min(at, MEAN // 2) for at in range(len(losses))]
        mean = [losses[at - wide : at + wide + 1].mean() for at, wide in enumerate(half)]
        label = f"{NAMES[name]}: {seconds[-1]:.3g} s, loss {run.loss_at(len(losses)):.3g}"
        axes.plot(seconds, losses, color=color, alpha=0.2, linewidth=0.6)
        axes.plot(seconds, mean, color=color, linewidth=2, label=label)
        axes.plot(seconds[-1], mean[-1], color=color, marker="o", markersize=5)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("loss of a caption")
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(*(part[::-1] for part in axes.get_legend_handles_labels()), frameon=False, loc="upper right")
    figure.savefig(path)


# ---- the command -----------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def sizes(text: str) -> Shape:
    shape = tuple(positive(size) for size in text.split(","))
    if len(shape) != len(bench_captioner.AXES.split()):
        raise ValueError
    return shape


def missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


def options_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, if it can be done: nothing is measured before that is known."""
    add = parser.add_argument
    add("data", nargs="?", type=Path, metavar="FOLDER", help="with COCO's files, instead of made-up data")
    add("--shape", type=sizes, default=SHAPE, help=f"N,T,W,H,V,D, {SHAPE} unless given; T, V and D are the files' own")
    add("--captions", type=positive, default=CAPTIONS, help=f"captions to learn, {CAPTIONS} unless given")
    add("--images", type=positive, default=IMAGES, help=f"images of the made-up data, {IMAGES} unless given")
    add("--epochs", type=positive, default=50, help="50 unless given")
    add("--iterations", type=positive, help="instead of whole epochs")
    add("--turn", type=positive, default=50, help="iterations of a turn, 50 unless given")
    add("--learning-rate", type=float, default=LEARNING_RATE, help=f"of Adam, {LEARNING_RATE:g} unless given")
    add("--peers", help=f"of {', '.join(PEERS)}, separated by commas; those installed unless given")
    add("--threads", type=positive, help="of every provider; fastrnn's own number unless given")
    add("--record", type=Path, metavar="FILE.csv", help="append a row for each provider to a table")
    add("--plot", type=Path, metavar="FILE", help="save the loss curves over time, .png, .svg or .pdf")
    options = parser.parse_args()
    try:
        names = None if options.peers is None else [options.peers]
        options.peers = common.chosen(names, PEERS, "peer")
        common.usable_backends(["cpu"])
        common.check_files(options.record, options.plot)
        if options.record is not None:
            bench_tables.check_header(options.record)
    except typer.Exit as ended:  # what is wrong was said
        sys.exit(ended.exit_code)
    if missing("torch"):
        if names is not None and "torch" in options.peers:
            parser.error("PyTorch is not installed (pip install torch)")
        options.peers = [name for name in options.peers if name != "torch"]
    if options.plot is not None and (options.plot.suffix not in (".png", ".svg", ".pdf") or missing("matplotlib")):
        parser.error("--plot needs Matplotlib (pip install matplotlib) and a name in .png, .svg or .pdf")
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser)
    try:
        with folder_of(options.data, options.images, options.shape) as folder:
            arrays, shape = inputs(folder, options.captions, options.shape, options.learning_rate)
    except (ImportError, OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    per_epoch = max(options.captions // shape[0], 1)
    iterations = options.iterations or options.epochs * per_epoch
    benchmark: Benchmark = replace(
        bench_captioner.BENCHMARKS[0], kernel=KERNEL, inputs=lambda shape, dtype: arrays, calls=1
    )
    job = Job("captioner", benchmark, shape, "both", "float32")
    with same_conditions(options.threads, None, tuple(options.peers), "cpu"):
        settings = Settings("cpu", tuple(options.peers), fastrnn.get_num_threads(), 0, 0.0, "highest")
        bench_tables.print_settings(common.console(), settings)
        what = (
            f"{options.captions:,} captions {'of made-up images' if options.data is None else f'from {options.data}'}"
        )
        words = np.count_nonzero(arrays["train_captions"][:, 1:]) / options.captions
        sizes_text = f"{bench_captioner.AXES.replace(' ', ',')} = {job.size}, float32"
        print(f"{what}, {words:.1f} words to be said in each; {sizes_text}", flush=True)
        epochs = f"{iterations / per_epoch:g} epochs"
        print(
            f"{iterations:,} iterations ({epochs}) in turns of {options.turn}, Adam {options.learning_rate:g}",
            flush=True,
        )
        runs = runs_of(job, settings)
        peak = train(runs, iterations, options.turn, settings)
    report(runs, options.turn)
    right = first_losses_are_right(runs, exact_first_loss(arrays))
    rows: list[dict[str, Any]] = [row_of(job, run.provider, run.times, settings, peak) for run in runs]
    if options.record is not None:
        bench_tables.append(options.record, rows)
        print(f"{len(rows)} rows appended to {options.record}")
    if options.plot is not None:
        save_curves(options.plot, runs, f"{what}; {sizes_text}\n{common.hardware()}, {settings.threads} threads")
        print(f"picture saved as {options.plot}")
    sys.exit(int(not right))


if __name__ == "__main__":
    main()
