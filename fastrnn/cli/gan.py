"""``fastrnn gan``: a generator of handwritten digits, trained in about a minute, in runs that can be stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from fastrnn.cli import common
from fastrnn.cli.vision_options import Device, Out, Seed, say_picture, training_bar, vision_command

KINDS = ("dc", "ls", "vanilla")
JUDGED = 1000  # samples


def gan(
    ctx: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Folder to keep the run in: checkpoint, losses, samples. Default: only the picture is kept.",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="dc: deep-convolutional networks; ls, vanilla: fully connected ones with the least-squares or the "
            "original losses."
        ),
    ] = "dc",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Images to train on, in the format of MNIST, plain or gzip; may be repeated. Default: the embedded "
            "handwritten digits.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of the run. Default: 3,000 (dc), 4,000 (ls, vanilla).", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Real images of a step. Default: 32 (dc), 64 (ls, vanilla).", show_default=False),
    ] = None,
    seed: Seed = 0,
    sample_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between grids of samples. Default: a twentieth of them.", show_default=False),
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in RUN from its checkpoint; begin if there is none."),
    ] = False,
    device: Device = "cpu",
    out: Out = Path("fastrnn-gan.png"),
) -> None:
    """Train a GAN to write digits, and see them appear.

    The picture shows what the generator makes of the same noise early on, halfway and at the end, and both losses. A
    classifier that was trained on real digits only then says how sure it is of 1,000 samples, and which digits it
    reads; with --data it is not asked.

    Ctrl-C and SIGTERM save the run in RUN first. With --resume it goes on, however it ended, to the same bits that it
    would have reached in one go; options need not be repeated then, and steps, sample_every and save_every may be
    others.

    Exit code: 0 if all is right, 1 if the training diverged, 2 for bad usage or files, 130 after Ctrl-C.
    """
    common.one(kind, KINDS, "kind")
    if resume and run is None:
        common.fail("--resume needs the folder of the run: fastrnn gan RUN --resume")
    if run is not None and run.exists() and not run.is_dir():
        common.fail(f"cannot write {run}: it is a file, not the folder of a run")
    values: dict[str, Any] = {
        "kind": kind,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "sample_every": sample_every,
        "save_every": save_every,
    }
    given = {name: value for name, value in values.items() if _was_given(ctx, name)}
    command = _Command(run, device, out)
    with vision_command(out, device=device), common.sigterm_heeded():
        try:
            command.prepare(values, given, data or [], resume)
            command.train()
            command.judge()
            command.draw()
        except KeyboardInterrupt as interrupt:
            command.stopped(common.code_of(interrupt))


def _was_given(ctx: typer.Context, name: str) -> bool:
    return getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"


class _Command:
    """One call of the command: what it trains, and what it says of it."""

    def __init__(self, run: Path | None, device: str, out: Path) -> None:
        self.run, self.device, self.out = run, device, out
        self.trainer: Any = None
        self.judgement: Any = None
        self.console = Console(soft_wrap=True, highlight=False)

    def _print(self, text: str) -> None:
        self.console.print(text)

    def prepare(self, values: dict[str, Any], given: dict[str, Any], files: list[Path], resume: bool) -> None:
        """Images and trainer."""
        import torch

        from fastrnn.vision.gan_training import LAST, GANConfig, GANTrainer, load_images

        if resume and self.run is not None and (self.run / LAST).exists():
            images = load_images(files) if files else None
            self.trainer = GANTrainer.resume(self.run, images, device=self.device, callback=self._advance, **given)
        else:
            config = GANConfig(**values)
            self.trainer = GANTrainer(
                load_images(files), config, out=self.run, device=self.device, source=files, callback=self._advance
            )
        trainer = self.trainer
        where = ", ".join(trainer.source) or "the handwritten digits of scikit-learn, enlarged to 28×28"
        self._print(f"[bold]data[/]      {trainer.count:,} images: {where}")
        sizes = [sum(p.numel() for p in network.parameters()) for network in (trainer.generator, trainer.discriminator)]
        self._print(
            f"[bold]model[/]     {trainer.config.kind}: generator of {sizes[0]:,} parameters, discriminator of "
            f"{sizes[1]:,}, on {self.device}"
        )
        if trainer.step:
            self._print(f"[bold]resume[/]    from step {trainer.step:,} of {trainer.config.total_steps:,}")
            if self.device == "cpu" and trainer.threads != torch.get_num_threads():
                self._print(
                    f"          on {torch.get_num_threads()} threads of PyTorch instead of {trainer.threads}: the last "
                    "bits may be others"
                )
        elif resume:
            self._print(f"[bold]resume[/]    no checkpoint in {self.run} yet: the run begins")

    def train(self) -> None:
        """The steps, with a bar where someone watches and a line for every tenth where not."""
        trainer, total = self.trainer, self.trainer.config.total_steps
        self.tenths = trainer.step * 10 // total
        self.losses = ["-", "-"]
        if trainer.records:
            self._hear(trainer.records[-1])
        self.begin, self.first = time.perf_counter(), trainer.step
        fields = ("losses: discriminator {task.fields[d]}, generator {task.fields[g]}", "{task.fields[rate]} steps/s")
        self.bar = common.progress_bar("training", *fields)
        with self.bar:
            self.task = self.bar.add_task(
                "training", total=total, completed=trainer.step, d=self.losses[0], g=self.losses[1], rate="-"
            )
            summary = trainer.train()
        batch = trainer.config.batch_size
        if summary.steps:
            self._print(
                f"[bold]training[/]  {summary.steps:,} steps of {batch} in {summary.seconds:.1f} s: "
                f"losses {self.losses[0]} (discriminator), {self.losses[1]} (generator)"
            )
        else:
            self._print(
                f"[bold]training[/]  nothing left to do: all {summary.step:,} steps are done; "
                "--steps says how many there are to be"
            )

    def _advance(self, record: dict[str, Any]) -> None:
        step, total = record["step"], self.trainer.config.total_steps
        rate = (step - self.first) / (time.perf_counter() - self.begin)
        if "generator_loss" in record:
            self._hear(record)
        if not self.bar.disable:
            self.bar.update(self.task, completed=step, d=self.losses[0], g=self.losses[1], rate=f"{rate:.0f}")
        elif step * 10 // total > self.tenths:
            self.tenths = step * 10 // total
            self._print(
                f"          step {step:,} of {total:,}: losses {self.losses[0]} (discriminator), {self.losses[1]} "
                f"(generator), {rate:.0f} steps/s"
            )

    def _hear(self, record: dict[str, Any]) -> None:
        self.losses = [f"{record[f'{name}_loss']:.3f}" for name in ("discriminator", "generator")]

    def judge(self) -> None:
        """What a classifier of real digits says of samples, and for comparison of real digits that it never saw."""
        if self.trainer.source:
            return
        from fastrnn.vision.data import digits
        from fastrnn.vision.gan_training import judge
        from fastrnn.vision.networks import digits_classifier

        with training_bar() as progress:
            classifier = digits_classifier(progress=progress)
        self.judgement = judge(self.trainer.sample(JUDGED), classifier)
        real = judge(digits("test")[0], classifier)
        found = sum(count > 0 for count in self.judgement.classes)
        shares = " ".join(f"{digit}:{count / JUDGED:.0%}" for digit, count in enumerate(self.judgement.classes))
        self._print(
            f"[bold]judgement[/] a classifier of real digits is {self.judgement.confidence:.1%} sure of {JUDGED:,} "
            f"samples on average ({real.confidence:.1%} of real digits new to it)"
        )
        self._print(f"          and reads {found} of the 10 digits: {shares}")

    def draw(self) -> None:
        """The picture."""
        from fastrnn.vision.gan_pictures import training_picture

        trainer = self.trainer
        subtitle = f"{trainer.step:,} steps of {trainer.config.batch_size}, kind {trainer.config.kind}"
        if self.judgement is not None:
            found = sum(count > 0 for count in self.judgement.classes)
            subtitle = (
                f"A classifier of real digits is {self.judgement.confidence:.1%} sure of {JUDGED:,} samples on "
                f"average, and reads {found} of the 10 digits  ·  {subtitle}"
            )
        title = "Digits that nobody wrote" if not trainer.source else "Images that a generator made"
        training_picture(trainer.grids, trainer.records, self.out, title, subtitle)
        if self.run is not None:
            self._print(f"[bold]run[/]       {self.run.absolute()}")
        say_picture(self.out)

    def stopped(self, code: int) -> NoReturn:
        """The end after Ctrl-C and SIGTERM: one line."""
        from fastrnn.vision.gan_training import LAST

        trainer = self.trainer
        if trainer is None or not trainer.step:
            message = "stopped before the first step"
        else:
            message = f"stopped after step {trainer.step:,} of {trainer.config.total_steps:,}"
            if self.run is None:
                message += "; nothing is kept of a run without a folder (fastrnn gan RUN)"
        if self.run is not None and (self.run / LAST).is_file():
            message += f"; go on with: fastrnn gan {self.run} --resume"
        typer.echo(f"fastrnn: {message}", err=True)
        raise typer.Exit(code)
