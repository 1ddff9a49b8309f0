"""``fastrnn demo``: the main job from end to end, on real handwriting, in about a minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fastrnn
from fastrnn.arrays import place_of, to_host
from fastrnn.captioning import CaptioningRNN, CaptioningSolver, decode_captions, exact_match, load_coco_data
from fastrnn.captioning.numbers import SIDE, distort, numbers_dir
from fastrnn.cli import common

WORDVEC_DIM = 64
HIDDEN_DIM = 256
MAX_LENGTH = 6  # "three hundred and seventy one" and <END>
LEARNING_RATE = 3e-3
NOISE = 0.08
FORMATS = ("png", "jpg", "jpeg", "pdf", "svg", "webp")

# Blocks of iterations, after a pause and iterations that do not count: the threads of a BLAS spin for a while after
# their last product and would slow down whoever comes next.
ROUNDS = 9
BLOCK = 5
WARM_UP = 2
PAUSE_S = 0.1


class Timing(NamedTuple):
    """Time of one training iteration on one backend."""

    label: str
    dtype: str
    ms: float
    low: float
    high: float
    losses: list[float]


def demo(
    steps: Annotated[int, typer.Option(min=1, help="Training iterations.")] = 3000,
    batch_size: Annotated[int, typer.Option(min=1, help="Numbers in a minibatch.")] = 100,
    backend: Annotated[str, typer.Option(help="auto, cpu, numba, reference or cuda.")] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, help="Of the initial weights, the minibatches and the examples shown.")
    ] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")] = Path("fastrnn-demo.png"),
    picture: Annotated[bool, typer.Option("--picture/--no-picture", help="Whether to draw it.")] = True,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the data set is kept. Default: FASTRNN_CACHE, or the user's cache folder."
        ),
    ] = None,
) -> None:
    """Train an LSTM to read handwritten numbers aloud, and time it against plain NumPy.

    The image of a three-digit number goes in, its English words come out: "three hundred and seventy one". Training
    and validation numbers are composed of different handwritten digits. Afterwards a few training iterations are timed
    again, on every backend and on the plain NumPy reference in turns, and everything is drawn into one picture. With
    --backend cuda the model is trained on the GPU, by the same code.
    """
    console = Console(soft_wrap=True)
    _check_arguments(backend, out if picture else None)
    progress = {"steps": 0}
    try:
        with fastrnn.backend(backend):
            _run(console, steps, batch_size, seed, out if picture else None, cache_dir, progress)
    except KeyboardInterrupt:
        typer.echo(f"\nfastrnn: stopped after {progress['steps']:,} of {steps:,} training iterations", err=True)
        raise typer.Exit(common.INTERRUPTED) from None
    except OSError as error:  # a cache folder that cannot be written, a picture that cannot be saved
        typer.echo(f"fastrnn: {error}", err=True)
        raise typer.Exit(1) from None


def _check_arguments(backend: str, out: Path | None) -> None:
    """Everything that can be known to be wrong before a minute of training."""
    status = fastrnn.backend_status()
    common.one(backend, ["auto", *status], "backend")
    if backend != "auto":
        common.usable_backends([backend])
    needed = {"h5py": "h5py", "sklearn": "scikit-learn"}
    if out is not None:
        needed["matplotlib"] = "Matplotlib"
        if out.suffix[1:].lower() not in FORMATS:
            common.fail(f"cannot draw {out}: its name must end in one of .{', .'.join(FORMATS)}")
        common.check_files(out)
    missing = [name for module, name in needed.items() if find_spec(module) is None]
    if missing:
        typer.echo(f"fastrnn: the demo needs {', '.join(missing)}: pip install 'fastrnn[demo]'", err=True)
        raise typer.Exit(1)


def _run(
    console: Console,
    steps: int,
    batch_size: int,
    seed: int,
    out: Path | None,
    cache_dir: Path | None,
    progress: dict[str, int],
) -> None:
    begin = time.perf_counter()
    folder = numbers_dir(cache_dir)
    data = load_coco_data(folder)
    rng = np.random.default_rng(seed)
    model = _model(data, rng)
    count = sum(value.size for value in model.params.values())
    console.print(f"[bold]data[/]     {len(data['train_captions']):,} handwritten numbers to train on, ", end="")
    console.print(f"{len(data['val_captions']):,} of other digits to validate on: {folder}", highlight=False)
    console.print(
        f"[bold]model[/]    LSTM, W={WORDVEC_DIM}, H={HIDDEN_DIM}, {count:,} parameters in {model.dtype}",
        highlight=False,
    )

    mean, deviation = data["train_features"].mean(), data["train_features"].std()
    standard = data | {name: (data[name] - mean) / deviation for name in ("train_features", "val_features")}

    def redraw() -> dict[str, Any]:
        # The handwritten digits are few: each epoch sees them a little differently, or they are learned by heart.
        images = distort(data["train_features"], rng)
        images += NOISE * rng.standard_normal(images.shape, dtype=images.dtype)
        return data | {"train_features": (images - mean) / deviation}

    losses = _train(console, model, redraw, steps, batch_size, rng, progress)
    ran = _what_ran(model, batch_size)

    sampled = to_host(model.sample(standard["val_features"][data["val_image_idxs"]], max_length=MAX_LENGTH))
    right = exact_match(sampled, data["val_captions"], data["word_to_idx"])
    examples = Examples(data, sampled, right)
    _show_examples(console, examples, rng.choice(len(right), size=6, replace=False))
    console.print(
        f"[bold]accuracy[/] {right.sum():,} of {len(right):,} held-out numbers right word for word: "
        f"[bold]{100 * right.mean():.1f} %[/] exact match (greedy decode)",
        highlight=False,
    )

    timings = _time(console, standard, batch_size, seed)
    _show_timings(console, timings, batch_size)
    if out is not None:
        _draw(out, examples, losses, timings, ran, batch_size, rng)
        console.print(f"[bold]picture[/]  {out.absolute()}", highlight=False)
    console.print(f"[bold]total[/]    {time.perf_counter() - begin:.0f} s", highlight=False)


def _model(data: dict[str, Any], rng: np.random.Generator) -> CaptioningRNN:
    input_dim = data["train_features"].shape[1]
    return CaptioningRNN(data["word_to_idx"], input_dim, WORDVEC_DIM, HIDDEN_DIM, "lstm", np.float32, rng=rng)


def _what_ran(model: CaptioningRNN, batch_size: int) -> str:
    """Backend, instruction set and threads that an LSTM of this size gets."""
    params = model.params
    xp = place_of(params["Wx"]).xp
    words = xp.zeros((batch_size, MAX_LENGTH, WORDVEC_DIM), model.dtype)
    start = xp.zeros((batch_size, HIDDEN_DIM), model.dtype)
    fastrnn.lstm_forward(words, start, params["Wx"], params["Wh"], params["b"])
    last = fastrnn.last_backend()
    assert last is not None
    threads = "1 thread" if last.threads == 1 else f"{last.threads} threads" if last.threads else ""
    return ", ".join(filter(None, (str(last), last.isa, threads)))


# ---- training --------------------------------------------------------------------------------------------------------


def _solver(
    model: CaptioningRNN, data: dict[str, Any], steps: int, batch_size: int, rng: np.random.Generator, **options: Any
) -> CaptioningSolver:
    """Adam, whose learning rate falls to a twentieth over the run."""
    epochs = steps * batch_size / len(data["train_captions"])
    config = {"learning_rate": LEARNING_RATE}
    decay = 0.05 ** (1 / max(epochs, 1))
    return CaptioningSolver(model, data, "adam", config, decay, batch_size, verbose=False, rng=rng, **options)


def _train(
    console: Console,
    model: CaptioningRNN,
    redraw: Callable[[], dict[str, Any]],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    progress: dict[str, int],
) -> list[float]:
    """Train with a progress bar; where nobody watches, with a line for every tenth of the way."""
    data = redraw()
    per_epoch = max(len(data["train_captions"]) // batch_size, 1)
    begin = time.perf_counter()

    def advance(step: int, _: int, loss: float) -> None:
        progress["steps"] = step
        if step % per_epoch == 0:
            solver.data = redraw()
        if step % 10 and step != steps:
            return
        mean = statistics.fmean(solver.loss_history[-50:])
        rate = step / (time.perf_counter() - begin)
        if not bar.disable:
            bar.update(task, completed=step, loss=f"{mean:.3f}", rate=f"{rate:.0f}")
        elif step * 10 // steps > (step - 10) * 10 // steps:
            console.print(
                f"         step {step:,} of {steps:,}: loss {mean:.3f}, {rate:.0f} iterations/s", highlight=False
            )

    bar = common.progress_bar("training", "loss {task.fields[loss]}", "{task.fields[rate]} iterations/s")
    solver = _solver(model, data, steps, batch_size, rng, callback=advance)
    with bar:
        task = bar.add_task("training", total=steps, loss="-", rate="-")
        solver.train(steps)
    seconds = time.perf_counter() - begin
    console.print(
        f"[bold]training[/] {steps:,} iterations of {batch_size} in {seconds:.1f} s on {_what_ran(model, batch_size)}: "
        f"loss {solver.loss_history[0]:.2f} → {statistics.fmean(solver.loss_history[-50:]):.3f}",
        highlight=False,
    )
    return solver.loss_history


# ---- what it learned -------------------------------------------------------------------------------------------------


class Examples:
    """The validation numbers with what the model said about them."""

    def __init__(self, data: dict[str, Any], sampled: np.ndarray, right: np.ndarray) -> None:
        self.right = right
        self._data, self._sampled = data, sampled

    def picture(self, n: int) -> np.ndarray:
        """The image of number n, 8×24, 0 for paper and 1 for ink."""
        row = self._data["val_image_idxs"][n]
        return np.asarray(self._data["val_features"][row].reshape(SIDE, -1))

    def said(self, n: int) -> str:
        """The model's words."""
        return self._words(self._sampled[n])

    def truth(self, n: int) -> str:
        """The right words."""
        return self._words(self._data["val_captions"][n])

    def _words(self, ids: np.ndarray) -> str:
        words = str(decode_captions(ids, self._data["idx_to_word"])).split()
        return " ".join(word for word in words if word not in ("<START>", "<END>"))


def _show_examples(console: Console, examples: Examples, chosen: np.ndarray) -> None:
    """A table of images, what was said about them, and the truth."""
    drawable = console.encoding.lower().startswith("utf")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("held-out image")
    table.add_column("the model says", vertical="middle")
    table.add_column("the truth", vertical="middle")
    for n in chosen.tolist():
        picture = _blocks(examples.picture(n)) if drawable else examples.truth(n)
        mark, style = ("✓", "green") if examples.right[n] else ("✗", "red")
        says = Text(f"{mark if drawable else '='} {examples.said(n)}", style=style)
        table.add_row(picture, says, examples.truth(n))
    console.print()
    console.print(table)


def _blocks(picture: np.ndarray) -> str:
    """An image in characters of two pixels each, one above the other."""
    ink = picture >= 0.4
    return "\n".join(
        "".join(" ▄▀█"[2 * int(upper) + int(lower)] for upper, lower in zip(*pair, strict=True))
        for pair in zip(ink[::2], ink[1::2], strict=True)
    )


# ---- speed -----------------------------------------------------------------------------------------------------------


def _time(console: Console, data: dict[str, Any], batch_size: int, seed: int) -> list[Timing]:
    """Time the same training iterations on every backend, in turns: same weights, same minibatches, same dtype."""
    # What all are compared with comes last.
    names = sorted(common.timed_backends(), key=lambda name: name == "reference")
    solvers = {}
    for name in names:
        rng = np.random.default_rng(seed)
        with fastrnn.backend(name):
            solvers[name] = _solver(_model(data, rng), data, 1, batch_size, rng)
    labels: dict[str, str] = {}
    blocks: dict[str, list[float]] = {name: [] for name in names}
    console.print("[bold]timing[/]   the same iterations on every backend, in turns", highlight=False)
    for _ in range(ROUNDS):
        for name, solver in solvers.items():
            with fastrnn.backend(name):
                time.sleep(PAUSE_S)
                for _ in range(WARM_UP):
                    solver.step()
                assert solver.loss_history  # waits for a GPU
                begin = time.perf_counter()
                for _ in range(BLOCK):
                    solver.step()
                assert solver.loss_history
                blocks[name].append(1e3 * (time.perf_counter() - begin) / BLOCK)
                labels[name] = _what_ran(solver.model, batch_size)
    labels["reference"] = "plain NumPy (the reference)"
    timings = []
    for name, solver in solvers.items():
        dtypes = {str(value.dtype) for value in solver.model.params.values()}
        median, low, high = np.percentile(blocks[name], [50, 20, 80]).tolist()
        timings.append(Timing(labels[name], "/".join(sorted(dtypes)), median, low, high, solver.loss_history))
    return timings


def _agreement(largest: float) -> str:
    """Words for the largest relative difference of the first losses."""
    if largest == 0:
        return "are the reference's to the last digit"
    return f"differ from the reference's by {largest:.1e} of it"


def _show_timings(console: Console, timings: list[Timing], batch_size: int) -> None:
    """A table of times, and whether all computed the same."""
    plain = timings[-1]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"the same iterations (batch {batch_size})")
    table.add_column("dtype")
    table.add_column("median", justify="right")
    table.add_column("20–80 %", justify="right")
    table.add_column("speed", justify="right")
    for timing in timings:
        table.add_row(
            timing.label,
            timing.dtype,
            f"{timing.ms:.2f} ms",
            f"{timing.low:.2f}–{timing.high:.2f}",
            f"{plain.ms / timing.ms:.2f} ×",
        )
    console.print()
    console.print(table)
    differences = [abs(timing.losses[0] / plain.losses[0] - 1) for timing in timings[:-1]]
    if differences:
        console.print(f"their first losses {_agreement(max(differences))}", highlight=False)
    if not all(difference < 1e-4 for difference in differences):
        typer.echo("fastrnn: the backends disagree; `fastrnn check` says where", err=True)
        raise typer.Exit(1)
    console.print()


# ---- the picture -----------------------------------------------------------------------------------------------------

GREEN, RED, GREY, BLUE = "#1a7f37", "#cf222e", "#6e7781", "#0969da"


def _draw(
    out: Path,
    examples: Examples,
    losses: list[float],
    timings: list[Timing],
    ran: str,
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    """Images with captions on the left, the loss and the speed on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), facecolor="white", dpi=130)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.75, 1), left=0.02, right=0.975, top=0.855, bottom=0.07, wspace=0.1)
    accuracy = 100 * examples.right.mean()
    figure.text(0.02, 0.95, "Handwritten numbers, read aloud by an LSTM", fontsize=19, weight="bold", va="center")
    figure.text(
        0.02,
        0.905,
        f"{accuracy:.1f} % of {len(examples.right):,} held-out numbers right, word for word, after {len(losses):,} "
        f"iterations of {batch_size} on fastrnn ({ran}, float32)",
        fontsize=11.5,
        color=GREY,
        va="center",
    )
    _draw_examples(figure, grid[0], examples, rng)
    rows = grid[1].subgridspec(2, 1, height_ratios=(1.25, 1), hspace=0.38)
    _draw_losses(figure.add_subplot(rows[0]), losses)
    _draw_speed(figure.add_subplot(rows[1]), timings)
    figure.savefig(out)


def _draw_examples(figure: Any, place: Any, examples: Examples, rng: np.random.Generator) -> None:
    """Sixteen numbers at random, and four of the other mistakes, if there are any."""
    columns, rows = 4, 4
    count = len(examples.right)
    drawn = rng.choice(count, size=min(columns * rows, count), replace=False)
    wrong = np.setdiff1d(np.flatnonzero(~examples.right), drawn)
    mistakes = rng.choice(wrong, size=min(columns, len(wrong)), replace=False)
    titles = {0: "Held-out numbers drawn at random"}
    if len(mistakes):
        titles[rows + 1] = f"Some of the {(~examples.right).sum():,} mistakes, with the truth in grey"
    heights = [0.12, *[1] * rows, 0.45, 1]
    cells = place.subgridspec(rows + 3, columns, height_ratios=heights, hspace=0.5, wspace=0.14)
    for row, title in titles.items():
        strip = figure.add_subplot(cells[row, :])
        strip.axis("off")
        strip.text(0, 0.0, title, fontsize=12, weight="bold", transform=strip.transAxes, va="bottom")
    for position, n in enumerate(drawn.tolist()):
        _draw_example(figure.add_subplot(cells[1 + position // columns, position % columns]), examples, n)
    for position, n in enumerate(mistakes.tolist()):
        _draw_example(figure.add_subplot(cells[rows + 2, position]), examples, n)


def _draw_example(axes: Any, examples: Examples, n: int) -> None:
    right = bool(examples.right[n])
    axes.imshow(examples.picture(n), cmap="gray_r", vmin=0, vmax=1, interpolation="bicubic")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=GREEN if right else RED, linewidth=1.5)
    mark = "✓" if right else "✗"
    said = {"fontsize": 9, "color": GREEN if right else RED, "ha": "left", "va": "top"}
    axes.text(0, -0.06, f"{mark} {examples.said(n)}", transform=axes.transAxes, **said)
    if not right:
        axes.text(0, -0.27, f"   {examples.truth(n)}", transform=axes.transAxes, **{**said, "color": GREY})


def _draw_losses(axes: Any, losses: list[float]) -> None:
    steps = np.arange(1, len(losses) + 1)
    window = min(50, 1 + len(losses) // 20)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.7)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title("Training loss", loc="left", fontsize=12, weight="bold")
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_speed(axes: Any, timings: list[Timing]) -> None:
    plain = timings[-1]
    places = np.arange(len(timings))[::-1]
    widths = [timing.ms for timing in timings]
    colors = [GREY if timing is plain else BLUE for timing in timings]
    axes.barh(places, widths, height=0.42, color=colors)
    for place, timing in zip(places, timings, strict=True):
        axes.text(0, place + 0.27, timing.label, va="bottom", fontsize=10)
        speed = "" if timing is plain else f"  ({plain.ms / timing.ms:.1f} × NumPy's speed)"
        inside = timing.ms > 0.45 * max(widths)
        axes.text(
            timing.ms * (0.98 if inside else 1) + (0 if inside else 0.015 * max(widths)),
            place,
            f"{timing.ms:.1f} ms{speed}",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=10,
        )
    axes.set_ylim(-0.5, len(timings) - 0.3)
    axes.set_yticks([])
    axes.set_title("Time of one training iteration, float32", loc="left", fontsize=12, weight="bold")
    axes.set_xlabel("milliseconds (median)")
    axes.spines[["top", "right", "left"]].set_visible(False)
