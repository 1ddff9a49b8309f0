"""Training of generative adversarial networks: runs that can be stopped at any moment and go on to the same end.

All that is drawn comes from the seed and the number of the step, so that the step, the parameters and the state of Adam
are all the state there is.
"""

from __future__ import annotations

import copy
import io
import math
import os
import signal
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastrnn.checks import Arguments
from fastrnn.runs import deferred_signals, log_line, log_records, replaced, write_whole
from fastrnn.vision import gan
from fastrnn.vision.data import digits, idx_images
from fastrnn.vision.images import save_image

__all__ = ["GANConfig", "GANSummary", "GANTrainer", "Judgement", "judge", "load_images"]

LAST, LOG = "last.pt", "metrics.jsonl"
STATISTICS = 1000  # samples that the mean and deviation of batch normalisations are taken of
GRID = 8  # samples shown during training, in rows and columns

FORMAT = "fastrnn GAN checkpoint"
VERSION = 1
# What a run may go on with otherwise: none of these changes what a step does.
CHANGEABLE = ("steps", "sample_every", "save_every", "log_every")

# Everything random comes from default_rng([seed, step, one of these]).
_ROWS, _NOISE, _SHOWN, _STATISTICS, _SAMPLED = range(1, 6)

_REMEDY = "train anew in another folder"


@dataclass(frozen=True)
class Kind:
    """A pair of networks and a pair of losses, with the settings that they were found to train well with."""

    generator: Callable[[int], nn.Module]
    discriminator: Callable[[], nn.Module]
    generator_loss: Callable[[torch.Tensor], torch.Tensor]
    discriminator_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    steps: int
    batch_size: int
    generator_lr: float
    discriminator_lr: float


# Found on the embedded digits, on two cores. The channels of "dc" are few: with so few images more steps gave better
# digits in the same time than more channels did. Its losses are the ones that gave the surer digits.
KINDS = {
    "vanilla": Kind(
        generator=gan.generator,
        discriminator=gan.discriminator,
        generator_loss=gan.generator_loss,
        discriminator_loss=gan.discriminator_loss,
        steps=4000,
        batch_size=64,
        generator_lr=5e-4,
        discriminator_lr=5e-4,
    ),
    "ls": Kind(
        generator=gan.generator,
        discriminator=gan.discriminator,
        generator_loss=gan.ls_generator_loss,
        discriminator_loss=gan.ls_discriminator_loss,
        steps=4000,
        batch_size=64,
        generator_lr=5e-4,
        discriminator_lr=5e-4,
    ),
    "dc": Kind(
        generator=partial(gan.dc_generator, channels=48, hidden_dim=512),
        discriminator=partial(gan.dc_discriminator, channels=24, hidden_dim=256),
        generator_loss=gan.ls_generator_loss,
        discriminator_loss=gan.ls_discriminator_loss,
        steps=3000,
        batch_size=32,
        generator_lr=1e-3,
        discriminator_lr=5e-4,
    ),
}


@dataclass(frozen=True)
class GANConfig:
    """All that decides the result of a run, but for the images.

    Parameters
    ----------
    kind : {'dc', 'ls', 'vanilla'}
        ``dc``: the deep-convolutional pair with the least-squares losses; ``ls``: the fully connected pair with the
        same losses; ``vanilla``: that with the losses of Goodfellow et al. 2014.
    steps : int, optional
        Steps of the run; each updates the discriminator once, then the generator. Default: that of the kind.
    batch_size : int, optional
        Real images, and generated ones, of a step: at least 2. Default: that of the kind.
    generator_lr, discriminator_lr : float, optional
        Learning rates of Adam, whose betas are 0.5 and 0.999 (Radford et al. 2016). Default: those of the kind.
    average : float
        Decay of the running average of the generator's parameters that samples are taken from; 0 for none. Early on the
        decay is ``(1 + step) / (10 + step)``, if that is smaller.
    noise_dim : int
        Length of the generator's noise.
    sample_every : int, optional
        Steps between grids of samples. Default: a twentieth of the run.
    save_every : int
        Steps between checkpoints; there is another at the end.
    log_every : int
        Steps between lines of the log.
    seed : int
        Of the initial parameters, the minibatches and the noise.

    Raises
    ------
    ValueError, TypeError
        A value is none of those allowed.
    """

    kind: str = "dc"
    steps: int | None = None
    batch_size: int | None = None
    generator_lr: float | None = None
    discriminator_lr: float | None = None
    average: float = 0.99
    noise_dim: int = gan.NOISE_DIM
    sample_every: int | None = None
    save_every: int = 250
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        args = Arguments("GANConfig")
        kind = KINDS[args.choice("kind", self.kind, tuple(KINDS))]
        changed: dict[str, Any] = {}
        for name in ("steps", "batch_size", "generator_lr", "discriminator_lr"):
            changed[name] = getattr(kind if getattr(self, name) is None else self, name)
        changed["steps"] = args.whole("steps", changed["steps"])
        # Of one image alone a batch normalisation has no deviation.
        changed["batch_size"] = args.whole("batch_size", changed["batch_size"], least=2)
        for name in ("noise_dim", "save_every", "log_every"):
            changed[name] = args.whole(name, getattr(self, name))
        if self.sample_every is not None:
            changed["sample_every"] = args.whole("sample_every", self.sample_every)
        changed["seed"] = args.whole("seed", self.seed, least=0)
        for name in ("generator_lr", "discriminator_lr"):
            value = args.number(name, changed[name])
            if not 0 < value < math.inf:
                raise args.fail(ValueError, name, "be a number greater than 0", repr(changed[name]))
            changed[name] = value
        changed["average"] = args.number("average", self.average)
        if not 0 <= changed["average"] < 1:
            raise args.fail(ValueError, "average", "be a number at least 0 and less than 1", repr(self.average))
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        assert self.steps is not None
        return self.steps

    @property
    def sample_steps(self) -> int:
        """Steps between grids of samples."""
        return self.sample_every or max(self.total_steps // 20, 1)

    @property
    def parts(self) -> Kind:
        """The networks and losses."""
        return KINDS[self.kind]


@dataclass(frozen=True)
class GANSummary:
    """What a call of `GANTrainer.train` did.

    Attributes
    ----------
    steps : int
        Steps done by this call.
    step : int
        Steps done in all.
    seconds : float
        Wall time.
    """

    steps: int
    step: int
    seconds: float


# ---- images, and what is thought of them -----------------------------------------------------------------------------


def load_images(files: Sequence[str | os.PathLike[str]] = ()) -> torch.Tensor:
    """The images to train on.

    Parameters
    ----------
    files : sequence of paths
        Files in the format of MNIST, see `idx_images`. Default: the 1,797 handwritten digits that scikit-learn carries.

    Returns
    -------
    float32 Tensor (N, 1, 28, 28)
        From 0, paper, to 1, ink.

    Raises
    ------
    ValueError
        A file is missing, damaged or holds something else.
    """
    if not len(files):
        return torch.cat([digits("train")[0], digits("test")[0]])
    return torch.cat([idx_images(path) for path in files])


@dataclass(frozen=True)
class Judgement:
    """What a classifier says of images.

    Attributes
    ----------
    count : int
        Images looked at.
    confidence : float
        Probability that it gives the class that it holds each for, on average.
    classes : tuple of int
        How many it holds for each class.
    """

    count: int
    confidence: float
    classes: tuple[int, ...]


def judge(images: torch.Tensor, classifier: nn.Module) -> Judgement:
    """How sure a classifier of real digits is of what generated ones show, and which there are.

    Parameters
    ----------
    images : float Tensor (N, 1, 28, 28)
        From 0, paper, to 1, ink; N at least 1.
    classifier : Module
        Gives class scores (N, classes), as that of `digits_classifier`.

    Returns
    -------
    Judgement

    Raises
    ------
    ValueError, TypeError
        `images` has another shape or dtype.
    """
    _check_images("judge", images)
    place = next(classifier.parameters(), images).device
    with torch.no_grad():
        scores = [classifier(part.to(place)) for part in images.split(500)]
    confidence, found = torch.cat(scores).softmax(1).max(1)
    counts = torch.bincount(found, minlength=scores[0].shape[1])
    return Judgement(len(images), float(confidence.mean()), tuple(counts.tolist()))


def _check_images(function: str, images: Any) -> None:
    args, expected = Arguments(function), "be a floating-point Tensor (N, 1, 28, 28), N at least 1"
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        actual = str(images.dtype) if isinstance(images, torch.Tensor) else type(images).__name__
        raise args.fail(TypeError, "images", expected, actual)
    if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != (1, gan.SIDE, gan.SIDE):
        raise args.fail(ValueError, "images", expected, f"shape {tuple(images.shape)}")


# ---- training --------------------------------------------------------------------------------------------------------


class GANTrainer:
    """Train a generator against a discriminator.

    Parameters
    ----------
    images : float Tensor (N, 1, 28, 28)
        The real images, from 0, paper, to 1, ink: of `load_images`, say.
    config : GANConfig, optional
        Everything else that decides the result.
    out : path, optional
        Folder of the run, made when missing: ``last.pt`` is the checkpoint, ``metrics.jsonl`` has both losses,
        ``samples-000150.png`` and so on what the generator made of the same noise all along. Without it nothing is
        written.
    device : str or torch.device
        Where to compute.
    source : sequence of paths
        The files that the images come from, for whoever goes on with the run.
    callback : callable, optional
        Called as ``callback(record)`` after every step with ``step``, and ``discriminator_loss`` and
        ``generator_loss`` where the step is logged.

    Attributes
    ----------
    generator, discriminator : Module
        The networks with their present parameters.
    step : int
        Steps done.
    count : int
        Real images.
    source : list of str
        The files that the images come from; none for the embedded digits.
    threads : int
        Threads of PyTorch that the checkpoint was computed with, or else those of now: the last bits depend on them.
    records : list of dict
        The lines of ``metrics.jsonl``.
    grids : dict
        For each step at which samples were taken, uint8 (64, 28, 28), from 0, paper, to 255, ink.

    Raises
    ------
    ValueError, TypeError
        Images or configuration cannot be used.
    FileExistsError
        The folder holds a run already.

    Notes
    -----
    The algorithm is that of Goodfellow et al. 2014, with one update of each network a step, on the same noise.
    """

    def __init__(
        self,
        images: torch.Tensor,
        config: GANConfig | None = None,
        *,
        out: str | os.PathLike[str] | None = None,
        device: Any = "cpu",
        source: Sequence[str | os.PathLike[str]] = (),
        callback: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._set_up(images, GANConfig() if config is None else config, out, device, source, callback)
        if self.out is not None and (self.out / LAST).exists():
            raise FileExistsError(
                f"GANTrainer: {self.out}: expected a folder without a run, but there is {LAST} in it; go on with it "
                "(GANTrainer.resume, --resume) or name another folder"
            )
        self._fill_folder()

    def _set_up(
        self,
        images: torch.Tensor,
        config: GANConfig,
        out: str | os.PathLike[str] | None,
        device: Any,
        source: Sequence[str | os.PathLike[str]],
        callback: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        if not isinstance(config, GANConfig):
            raise Arguments("GANTrainer").fail(TypeError, "config", "be a GANConfig", type(config).__name__)
        _check_images("GANTrainer", images)
        if not bool(((images >= 0) & (images <= 1)).all()):
            actual = f"values from {float(images.min()):g} to {float(images.max()):g}"
            raise Arguments("GANTrainer").fail(ValueError, "images", "lie between 0 and 1", actual)
        self.config, self.callback = config, callback
        self.out = None if out is None else Path(out)
        self.device = torch.device(device)
        self.source = [str(Path(path).absolute()) for path in source]
        self.count, self.step = len(images), 0
        self.records: list[dict[str, Any]] = []
        self.grids: dict[int, np.ndarray] = {}
        self._described = {"count": len(images), "crc32": zlib.crc32((255 * images).round().byte().numpy().tobytes())}
        self._images = (2 * images.to(torch.float32) - 1).to(self.device)
        self._stop: int | None = None  # the signal that asks for an end
        self.threads = torch.get_num_threads()

        parts = config.parts
        with torch.random.fork_rng(devices=[]):  # the global generator is left alone
            torch.manual_seed(config.seed)
            self.generator = parts.generator(config.noise_dim)
            self.discriminator = parts.discriminator()
        for network in (self.generator, self.discriminator):
            network.to(self.device)
            for param in network.parameters():  # convolutions are faster so
                if param.ndim == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self._optimizers = {}
        for name, rate in (("generator", config.generator_lr), ("discriminator", config.discriminator_lr)):
            assert rate is not None
            self._optimizers[name] = torch.optim.Adam(
                getattr(self, name).parameters(), lr=rate, betas=(0.5, 0.999), fused=True
            )

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str],
        images: torch.Tensor | None = None,
        *,
        device: Any = "cpu",
        callback: Callable[[dict[str, Any]], Any] | None = None,
        **changes: Any,
    ) -> GANTrainer:
        """Go on with a run from its checkpoint, to the very bits that it would have reached without a break.

        That holds on CPUs, for the same version of PyTorch, with the same number of threads.

        Parameters
        ----------
        run : path
            Folder of the run.
        images : float Tensor (N, 1, 28, 28), optional
            The same images as before. Default: they are read from where they came from.
        device, callback
            As for a new run.
        **changes
            Options of `GANConfig` that are to change: only `steps`, `sample_every`, `save_every` and `log_every` may.

        Raises
        ------
        FileNotFoundError
            There is no checkpoint.
        ValueError
            The checkpoint is damaged, the images are others, or an option may not change.
        """
        path = Path(run) / LAST
        state = _load(path)
        source = state["data"]["source"]
        if images is None:
            images = load_images(source)
        self = cls.__new__(cls)
        self._set_up(images, _changed(path, state["config"], changes), run, device, source, callback)
        found = {"count": state["data"]["count"], "crc32": state["data"]["crc32"]}
        if found != self._described:
            where = ", ".join(source) or "the embedded digits"
            raise ValueError(
                f"GANTrainer.resume: {path}: expected the {found['count']:,} images that the run began with ({where}), "
                f"got {len(images):,} others"
            )
        self._take(path, state)
        self.step, self.threads = state["step"], state["threads"]
        self._read_grids()
        self.records = log_records(path.parent / LOG, self.step)
        self._fill_folder()
        return self

    # ---- the folder of the run -------------------------------------------------------------------------------------

    def _fill_folder(self) -> None:
        """Make the folder, with the log so far."""
        if self.out is None:
            return
        with _writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with _writing(self.out / LOG), replaced(self.out / LOG) as aside:
            aside.write_text("".join(map(log_line, self.records)), encoding="utf-8")

    def _note(self, record: dict[str, Any]) -> None:
        """A line of the log, before any checkpoint that counts it as written."""
        self.records.append(record)
        if self.out is not None:
            with _writing(self.out / LOG), open(self.out / LOG, "a", encoding="utf-8") as file:
                file.write(log_line(record))

    def _show(self) -> None:
        """A grid of samples, always of the same noise."""
        noise = gan.sample_noise(GRID * GRID, self.config.noise_dim, [self.config.seed, 0, _SHOWN])
        images = self._generated(noise)[:, 0]
        grid = (255 * images).round().byte().numpy()
        self.grids[self.step] = grid
        if self.out is not None:
            path = self.out / f"samples-{self.step:06}.png"
            with _writing(path):
                save_image(path, 255 - _tiled(grid))

    def _read_grids(self) -> None:
        """What the run has shown so far. A picture that is lost or changed is no reason not to go on."""
        from PIL import Image

        assert self.out is not None
        for path in sorted(self.out.glob("samples-*.png")):
            number = path.stem.removeprefix("samples-")
            if not number.isdecimal() or int(number) > self.step:
                continue
            try:
                with Image.open(path) as image:
                    tiled = 255 - np.asarray(image.convert("L"))
            except (OSError, ValueError):
                continue
            if tiled.shape == (GRID * gan.SIDE, GRID * gan.SIDE):
                self.grids[int(number)] = _untiled(tiled)

    def save(self) -> None:
        """Save a checkpoint in the run's folder.

        Raises
        ------
        FloatingPointError
            A parameter is not finite; the checkpoint that was there is untouched.
        OSError
            It cannot be written; the checkpoint that was there is untouched.
        """
        if self.out is None:
            return
        for name in ("generator", "discriminator"):
            for parameter, value in getattr(self, name).named_parameters():
                if not bool(torch.isfinite(value).all()):
                    self._diverged(f"parameter {parameter} of the {name} is no longer finite")
        state = {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(self.config),
            "data": self._described | {"source": self.source},
            "threads": torch.get_num_threads(),
            "step": self.step,
            "networks": {name: getattr(self, name).state_dict() for name in _NETWORKS},
            "optimizers": {name: optimizer.state_dict()["state"] for name, optimizer in self._optimizers.items()},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with _writing(self.out / LAST):
            write_whole(self.out / LAST, buffer.getbuffer())

    def _take(self, path: Path, state: dict[str, Any]) -> None:
        """Parameters and state of Adam out of a checkpoint, each held against what the networks have."""
        for name in _NETWORKS:
            network = getattr(self, name)
            _check_tensors(path, f"networks.{name}", state["networks"].get(name), network.state_dict())
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self._optimizers.items():
            params = list(getattr(self, name).parameters())
            found = state["optimizers"].get(name)
            if state["step"] == 0:
                continue
            for index, param in enumerate(params):
                expected = {"step": torch.zeros(()), "exp_avg": param, "exp_avg_sq": param}
                entry = found.get(index) if isinstance(found, dict) else None
                _check_tensors(path, f"optimizers.{name}.{index}", entry, expected)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": found, "param_groups": groups})

    def _diverged(self, what: str) -> None:
        kept = ""
        if self.out is not None and (self.out / LAST).is_file():
            kept = f"; {self.out / LAST} is the last good checkpoint"
        raise FloatingPointError(
            f"GANTrainer.train: {what} after step {self.step}{kept}. Train anew with smaller learning rates (they are "
            f"{self.config.generator_lr:g} and {self.config.discriminator_lr:g})"
        )

    # ---- samples ---------------------------------------------------------------------------------------------------

    def sample(self, count: int, seed: int | None = None) -> torch.Tensor:
        """Images of the averaged generator.

        Parameters
        ----------
        count : int
            How many.
        seed : int, optional
            Of the noise. Default: that of the run.

        Returns
        -------
        float32 Tensor (count, 1, 28, 28)
            From 0, paper, to 1, ink, in the computer's memory.

        Raises
        ------
        ValueError, TypeError
            `count` is no whole number of at least 1, or `seed` of at least 0.
        """
        args = Arguments("GANTrainer.sample")
        count = args.whole("count", count)
        seed = self.config.seed if seed is None else args.whole("seed", seed, least=0)
        return self._generated(gan.sample_noise(count, self.config.noise_dim, [seed, 0, _SAMPLED]))

    def _generated(self, noise: torch.Tensor) -> torch.Tensor:
        network = self._sampler()
        with torch.no_grad():
            images = [network(part.to(self.device)).cpu() for part in noise.split(250)]
        return ((torch.cat(images) + 1) / 2).reshape(-1, 1, gan.SIDE, gan.SIDE)

    def _sampler(self) -> nn.Module:
        """The averaged generator. Its batch normalisations get the mean and deviation that go with averaged parameters.

        Those found while training are of other parameters, and with them the images come out too faint or too bold.
        """
        network = copy.deepcopy(self.average)
        normalisations = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for module in normalisations:
            module.reset_running_stats()
            module.momentum = None  # the plain mean over what follows
        if normalisations:
            network.train()
            noise = gan.sample_noise(STATISTICS, self.config.noise_dim, [self.config.seed, 0, _STATISTICS], self.device)
            with torch.no_grad():
                for part in noise.split(250):
                    network(part)
        return network.eval()

    # ---- steps -----------------------------------------------------------------------------------------------------

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; returns the losses of the discriminator and of the generator."""
        config, parts = self.config, self.config.parts
        assert config.batch_size is not None
        drawn = np.random.default_rng([config.seed, self.step, _ROWS]).integers(
            len(self._images), size=config.batch_size
        )
        real = self._images[torch.from_numpy(drawn).to(self.device)]
        noise = gan.sample_noise(config.batch_size, config.noise_dim, [config.seed, self.step, _NOISE], self.device)
        fake = self.generator(noise).reshape(real.shape)

        discriminator_loss = parts.discriminator_loss(self.discriminator(real), self.discriminator(fake.detach()))
        self._update("discriminator", discriminator_loss)
        self.discriminator.requires_grad_(False)  # its gradients would be thrown away
        generator_loss = parts.generator_loss(self.discriminator(fake))
        self._update("generator", generator_loss)
        self.discriminator.requires_grad_(True)

        self.step += 1
        decay = min(config.average, (1 + self.step) / (10 + self.step)) if config.average else 0.0
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        return discriminator_loss.detach(), generator_loss.detach()

    def _update(self, name: str, loss: torch.Tensor) -> None:
        self._optimizers[name].zero_grad()
        loss.backward()
        self._optimizers[name].step()

    def train(self) -> GANSummary:
        """Train to the end of the run.

        Ctrl-C and SIGTERM are heeded between two steps: the run is saved, and then the signal does what it did before
        (Ctrl-C raises `KeyboardInterrupt`, SIGTERM ends the process). A second one is heeded at once.

        Returns
        -------
        GANSummary

        Raises
        ------
        OSError
            A file cannot be written; the last checkpoint is untouched.
        FloatingPointError
            Losses or parameters are no longer finite.
        """
        begin, first = time.perf_counter(), self.step

        def note(signum: int) -> None:
            self._stop = signum

        self._stop = None
        with deferred_signals(note):
            self._loop()
            self.save()
        if self._stop is not None:
            signal.raise_signal(self._stop)
            raise KeyboardInterrupt  # where the signal was somebody's who let it pass
        return GANSummary(self.step - first, self.step, time.perf_counter() - begin)

    def _loop(self) -> None:
        """Steps to the end of the run, or until a signal comes."""
        config = self.config
        if not self.step and 0 not in self.grids:
            self._show()
        while self.step < config.total_steps and self._stop is None:
            losses = self._step()
            last = self.step == config.total_steps
            record: dict[str, Any] = {"step": self.step}
            if self.step % config.log_every == 0 or self.step == 1 or last:
                for name, loss in zip(("discriminator_loss", "generator_loss"), map(float, losses), strict=True):
                    if not math.isfinite(loss):
                        self._diverged(f"{name} is {loss}")
                    record[name] = loss
                self._note(record)
            if self.step % config.sample_steps == 0 or last:
                self._show()
            if self.step % config.save_every == 0 and not last:
                self.save()
            if self.callback is not None:
                self.callback(record)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

_NETWORKS = ("generator", "discriminator", "average")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the system says of a file that cannot be written, with its name and what to do."""
    try:
        yield
    except OSError as error:
        advice = "make room or name a folder that can be written"
        if (path.parent / LAST).is_file():
            advice = "the last checkpoint is untouched: make room, and go on from there"
        raise OSError(f"GANTrainer: {path}: cannot write it ({error.strerror or error}); {advice}") from error


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint, its parts of the right types."""
    if not path.is_file():
        raise FileNotFoundError(f"GANTrainer.resume: {path}: expected a checkpoint of `fastrnn gan`, found nothing")
    where = f"GANTrainer.resume: {path}"
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not have the checksum noted for it")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is raised on damage depends on where it is
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where}: expected a checkpoint, but the file is half-written, damaged or of another kind "
            f"({path.stat().st_size:,} bytes: {reason}); {_REMEDY}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{where}: expected a checkpoint of `fastrnn gan`, got another file of PyTorch; {_REMEDY}")
    if state.get("version") != VERSION:
        raise ValueError(
            f"{where}: expected format version {VERSION}, got {state.get('version')}: another release of fastrnn wrote "
            f"it; {_REMEDY}"
        )
    types = {"config": dict, "data": dict, "step": int, "networks": dict, "optimizers": dict, "threads": int}
    for name, kind in types.items():
        if type(state.get(name)) is not kind:
            got = type(state.get(name)).__name__
            raise ValueError(f"{where}: expected {name!r} to be of type {kind.__name__}, got {got}; {_REMEDY}")
    data = state["data"]
    for name, kind in {"count": int, "crc32": int, "source": list}.items():
        if type(data.get(name)) is not kind:
            got = type(data.get(name)).__name__
            raise ValueError(f"{where}: expected 'data.{name}' to be of type {kind.__name__}, got {got}; {_REMEDY}")
    return state


def _check_tensors(path: Path, part: str, found: Any, expected: Mapping[str, torch.Tensor]) -> None:
    """Hold tensors of a checkpoint against those that they are for."""
    where = f"GANTrainer.resume: {path}"
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: expected {part!r}, got none; {_REMEDY}")
    for name in [*expected, *found]:
        if name not in expected:
            raise ValueError(f"{where}: expected no '{part}.{name}', got one; {_REMEDY}")
        want, got = expected[name], found.get(name)
        text = f"expected '{part}.{name}' of {want.dtype} and shape {tuple(want.shape)}".replace("torch.", "")
        if not isinstance(got, torch.Tensor):
            raise ValueError(f"{where}: {text}, got none; {_REMEDY}")
        if got.shape != want.shape or got.dtype != want.dtype:
            actual = f"{got.dtype} of shape {tuple(got.shape)}".replace("torch.", "")
            raise ValueError(f"{where}: {text}, got {actual}; {_REMEDY}")


def _changed(path: Path, values: Mapping[str, Any], changes: Mapping[str, Any]) -> GANConfig:
    """The configuration of a checkpoint with the changes, if a run may change them."""
    known = [entry.name for entry in fields(GANConfig)]
    unknown = sorted(map(str, values.keys() - set(known)))
    if unknown:
        raise ValueError(
            f"GANTrainer.resume: {path}: unknown options {', '.join(unknown)}: another release of fastrnn wrote them"
        )
    for name in changes:
        if name not in known:
            raise TypeError(f"GANTrainer.resume: unknown option {name!r}; there are {', '.join(known)}")
    try:
        before = GANConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"GANTrainer.resume: {path}: its configuration cannot be used: {error}") from error
    config = replace(before, **changes)
    for name in known:
        if name not in CHANGEABLE and getattr(config, name) != getattr(before, name):
            raise ValueError(
                f"GANTrainer.resume: {path}: option {name!r} must stay {getattr(before, name)!r}, as the run began, "
                f"got {getattr(config, name)!r}; {', '.join(CHANGEABLE)} may change, all else needs a new run"
            )
    return config


# ---- grids -----------------------------------------------------------------------------------------------------------


def _tiled(images: np.ndarray) -> np.ndarray:
    """Images (64, 28, 28) side by side, (224, 224)."""
    side = gan.SIDE
    return images.reshape(GRID, GRID, side, side).swapaxes(1, 2).reshape(GRID * side, GRID * side)


def _untiled(tiled: np.ndarray) -> np.ndarray:
    """What `_tiled` put together."""
    side = gan.SIDE
    return tiled.reshape(GRID, side, GRID, side).swapaxes(1, 2).reshape(GRID * GRID, side, side)
