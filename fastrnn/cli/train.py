"""``fastrnn train``: a captioning model from files, in runs that can be stopped at any moment."""

from __future__ import annotations

import os
import statistics
from collections import deque
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress

import fastrnn
from fastrnn.captioning.checkpoint import load_checkpoint
from fastrnn.captioning.numbers import numbers_dir
from fastrnn.captioning.parallel import Processes, ProcessLost
from fastrnn.captioning.training import LAST, Summary, Trainer, TrainingConfig, config_to_resume
from fastrnn.cli import common

MIB = 2**20

_DEFAULT = TrainingConfig()


def train(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with a data set in the COCO file format. Default: the embedded handwritten numbers; with "
            "--resume, what the run began with.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")] = Path("fastrnn-run"),
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in RUN from its last checkpoint; begin if there is none."),
    ] = False,
    cell: Annotated[str, typer.Option(help="lstm, gru or rnn.")] = _DEFAULT.cell,
    wordvec_dim: Annotated[int, typer.Option(min=1, help="Size of the word vectors.")] = _DEFAULT.wordvec_dim,
    hidden_dim: Annotated[int, typer.Option(min=1, help="Size of the hidden state.")] = _DEFAULT.hidden_dim,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = _DEFAULT.dtype,
    rule: Annotated[str, typer.Option(help="adam, rmsprop, sgd_momentum or sgd.")] = _DEFAULT.rule,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3 for adam, 1e-2 for the others.", show_default=False)
    ] = None,
    lr_decay: Annotated[float, typer.Option(help="Factor on it after each epoch.")] = _DEFAULT.lr_decay,
    schedule: Annotated[str, typer.Option(help="constant, or cosine: it also falls over the run.")] = _DEFAULT.schedule,
    lr_final: Annotated[float, typer.Option(help="Part of it that cosine falls to.")] = _DEFAULT.lr_final,
    warmup: Annotated[int, typer.Option(min=0, help="Steps over which it rises at first.")] = _DEFAULT.warmup,
    weight_decay: Annotated[
        float, typer.Option(help="Part of the weights taken off at each step, times the learning rate.")
    ] = _DEFAULT.weight_decay,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest L2 norm of all gradients together. Default: any.", show_default=False)
    ] = None,
    average: Annotated[
        float, typer.Option(help="Decay of a running average of the parameters, to caption with; 0: none.")
    ] = _DEFAULT.average,
    batch_size: Annotated[int, typer.Option(min=1, help="Captions in a minibatch, over all processes.")] = (
        _DEFAULT.batch_size
    ),
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the captions.")] = _DEFAULT.epochs,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Minibatches to train on, instead of whole epochs.", show_default=False)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop after so many validations that got no better. Default: never.", show_default=False
        ),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations. Default: an epoch.", show_default=False)
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between checkpoints. Default: after validations and epochs.", show_default=False
        ),
    ] = None,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines of metrics.jsonl.")] = _DEFAULT.log_every,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the initial weights, the order of the data, and noise.")
    ] = _DEFAULT.seed,
    memory: Annotated[int, typer.Option(min=1, help="MiB that features may take in memory.")] = _DEFAULT.memory // MIB,
    max_train: Annotated[
        int | None, typer.Option(min=1, help="Train on so many captions only. Default: all.", show_default=False)
    ] = None,
    pca: Annotated[
        bool | None,
        typer.Option("--pca/--no-pca", help="Features reduced or not. Default: what there is.", show_default=False),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Features of mean 0 and standard deviation 1.")
    ] = _DEFAULT.normalize,
    noise: Annotated[
        float, typer.Option(help="Standard deviation of noise added to features trained on.")
    ] = _DEFAULT.noise,
    distort: Annotated[
        float, typer.Option(help="Strength of random distortion of digits; embedded numbers only.")
    ] = _DEFAULT.distort,
    backend: Annotated[str, typer.Option(help="auto, cpu, numba, reference or cuda.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Most threads a kernel uses. Default: all CPUs of this process.", show_default=False),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the embedded numbers are kept. Default: FASTRNN_CACHE, or the user's cache folder.",
        ),
    ] = None,
) -> None:
    """Train a captioning model on a data set in the COCO file format.

    RUN gets checkpoints, last.h5 and best.h5 (by validation loss), metrics.jsonl and loss.png. Ctrl-C and SIGTERM save
    first; with --resume a run goes on, however it ended, to the same bits that it would have reached in one go. Options
    need not be repeated then; epochs, steps and patience may be others.

    Under torchrun several processes train one model, each on a part of every minibatch.
    """
    options = {entry.name for entry in fields(TrainingConfig)}
    values = {("pca_features" if name == "pca" else name): value for name, value in ctx.params.items()}
    values["memory"] = memory * MIB
    values = {name: value for name, value in values.items() if name in options}
    given = {
        name: value
        for name, value in values.items()
        if getattr(ctx.get_parameter_source("pca" if name == "pca_features" else name), "name", "") != "DEFAULT"
    }
    common.one(backend, ["auto", *fastrnn.backend_status()], "backend")
    if backend != "auto":
        common.usable_backends([backend])

    run = _Run(out, resume, data, cache_dir)
    try:
        with common.sigterm_heeded(), fastrnn.backend(backend):
            run.processes = Processes.from_environment()
            with closing(run.processes) if run.processes is not None else nullcontext():
                if threads is not None:
                    fastrnn.set_num_threads(threads)
                run.train(values, given)
    except KeyboardInterrupt as interrupt:
        code = common.code_of(interrupt)
        run.end(run.where_it_stopped(), code)
    except (FloatingPointError, ProcessLost) as error:
        run.end(str(error), 1)
    except OSError as error:
        # Ours have their message in the place of the system's words, and str() would put a number before it.
        run.end(str(error.strerror if error.strerror and error.filename is None else error), 2)
    except (ValueError, TypeError, ImportError) as error:
        run.end(str(error), 2)


class _Run:
    """One call of the command: what it trains, and what it says of it."""

    def __init__(self, out: Path, resume: bool, data: Path | None, cache_dir: Path | None) -> None:
        self.out, self.resume, self.data, self.cache_dir = out, resume, data, cache_dir
        self.processes: Processes | None = None
        self.trainer: Trainer | None = None
        self.console = Console(soft_wrap=True, highlight=False)

    def end(self, message: str, code: int) -> NoReturn:
        """End the command with one line, from one of the processes."""
        if self.processes is None:  # they have not met: it is the same in all
            speaks = os.environ.get("RANK", "0") == "0"
        else:
            speaks = self.processes.first_to_fail()
        if speaks:
            typer.echo(f"fastrnn: {' '.join(message.split())}", err=True)
        raise typer.Exit(code)

    def where_it_stopped(self) -> str:
        """What is said after Ctrl-C and SIGTERM."""
        trainer = self.trainer
        if trainer is None or not (self.out / LAST).is_file():
            return "stopped before the first checkpoint"
        return (
            f"stopped after step {trainer.step:,} of {trainer.total_steps:,}; "
            f"go on with: fastrnn train --out {self.out} --resume"
        )

    def train(self, values: dict[str, Any], given: dict[str, Any]) -> None:
        """From the options to the summary."""
        resume = self.resume and (self.out / LAST).exists()
        if self.processes is not None and not self.processes.same(str(resume)):
            raise ValueError(
                f"{self.out / LAST}: expected to be seen by all processes or by none, got some that see it; "
                "the folder of the run must be one that all machines share"
            )
        if resume:
            checkpoint = load_checkpoint(self.out / LAST)
            config = config_to_resume(self.out / LAST, checkpoint)
            folder = self.data or Path(checkpoint.data.get("base_dir", ""))
            if self.data is None and not folder.is_dir():
                raise FileNotFoundError(
                    f"{self.out / LAST}: expected the run's data set in {folder}, found none; name its folder: "
                    f"fastrnn train DATA --out {self.out} --resume"
                )
        else:
            config = TrainingConfig(**values)
            folder = numbers_dir(self.cache_dir) if self.data is None else self.data
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder}: expected a folder with a data set in the COCO file format, found none"
                )
        with config.open(folder) as data:
            options: dict[str, Any] = {"processes": self.processes, "callback": self._advance}
            if resume:
                self.trainer = Trainer.resume(self.out, data, **options, **given)
            else:
                self.trainer = Trainer(data, config, out=self.out, **options)
            self._say_what(data, resume)
            self.losses: deque[float] = deque(maxlen=50)
            self.rate = self.validation = "-"
            self.tenths = self.trainer.step * 10 // self.trainer.total_steps
            self.bar = self._progress()
            with self.bar:
                total = self.trainer.total_steps
                fresh: dict[str, Any] = {"loss": "-", "rate": "-", "validation": "-"}
                self.task = self.bar.add_task("training", total=total, completed=self.trainer.step, **fresh)
                summary = self.trainer.train()
            self._say_how_it_went(summary)

    def _print(self, text: str) -> None:
        if self.trainer is not None and self.trainer.rank == 0:
            self.console.print(text)

    def _say_what(self, data: Any, resume: bool) -> None:
        trainer = self.trainer
        assert trainer is not None
        config, model = trainer.config, trainer.model
        self._print(
            f"[bold]data[/]       {len(data.captions('train')):,} captions of {data.num_images('train'):,} images to "
            f"train on, {len(data.captions('val')):,} to validate on: {data.base_dir}"
        )
        count = sum(value.size for value in model.params.values())
        self._print(
            f"[bold]model[/]      {config.cell}, D={data.feature_dim}, W={config.wordvec_dim}, H={config.hidden_dim}, "
            f"V={len(data.word_to_idx):,}: {count:,} parameters in {model.dtype}"
        )
        if resume:
            self._print(f"[bold]resume[/]     from step {trainer.step:,} of {trainer.total_steps:,}")
        elif self.resume:
            self._print(f"[bold]resume[/]     no checkpoint in {self.out} yet: the run begins")

    def _progress(self) -> Progress:
        trainer = self.trainer
        assert trainer is not None
        fields = ("loss {task.fields[loss]}", "validation {task.fields[validation]}", "{task.fields[rate]} tokens/s")
        return common.progress_bar("training", *fields, wanted=trainer.rank == 0)

    def _advance(self, record: dict[str, Any]) -> None:
        """Draw the progress; where nobody watches, a line for every tenth of the way and every validation."""
        trainer = self.trainer
        assert trainer is not None
        step, total = record["step"], trainer.total_steps
        if "val_loss" in record:
            self.validation = f"{record['val_loss']:.3f}"
            if self.bar.disable:
                self._print(
                    f"           step {step:,}: validation loss {record['val_loss']:.3f}, "
                    f"perplexity {record['perplexity']:.2f}"
                )
        elif "tokens_per_s" in record:
            self.losses.append(record["loss"])
            self.rate = f"{record['tokens_per_s']:,.0f}"
            before, self.tenths = self.tenths, step * 10 // total
            if self.bar.disable and self.tenths > before:
                self._print(
                    f"           step {step:,} of {total:,}: loss {self._mean()}, {self.rate} tokens/s, "
                    f"{100 * record['data_wait']:.1f} % waiting for data"
                )
        if not self.bar.disable:
            self.bar.update(self.task, completed=step, loss=self._mean(), rate=self.rate, validation=self.validation)

    def _mean(self) -> str:
        return f"{statistics.fmean(self.losses):.3f}" if self.losses else "-"

    def _say_how_it_went(self, summary: Summary) -> None:
        trainer = self.trainer
        assert trainer is not None
        if summary.steps:
            self._print(
                f"[bold]training[/]   {summary.steps:,} steps in {summary.seconds:.1f} s: {summary.tokens_per_s:,.0f} "
                f"tokens/s, {100 * summary.data_wait:.1f} % of the time waiting for data"
            )
        if summary.stopped == "patience":
            self._print(
                f"[bold]stopped[/]    early, at step {summary.step:,}: {trainer.config.patience} validations no better"
            )
        elif not summary.steps:
            self._print(
                f"[bold]training[/]   nothing left to do: all {summary.step:,} steps are done; "
                "--epochs or --steps says how many there are to be"
            )
        best = summary.best
        if best:
            self._print(
                f"[bold]validation[/] best at step {best['step']:,}: loss {best['loss']:.3f}, "
                f"perplexity {best['perplexity']:.2f}"
            )
        if summary.peak_memory:
            self._print(f"[bold]memory[/]     {summary.peak_memory / MIB:,.0f} MiB resident at most")
        self._print(f"[bold]run[/]        {self.out.absolute()}")
