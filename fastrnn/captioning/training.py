"""Training a captioning model on files: runs that can be stopped at any moment and go on to the same end."""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import optim
from fastrnn.arrays import on_device, place_of, to_host
from fastrnn.captioning.checkpoint import Checkpoint, load_checkpoint, prepared, save_checkpoint
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.captioning.numbers import SIDE, distort
from fastrnn.checks import Arguments
from fastrnn.ops.optim import update_all
from fastrnn.runs import deferred_signals, log_line, log_records, replaced

if TYPE_CHECKING:
    from fastrnn.captioning.parallel import Processes
    from fastrnn.captioning.stream import Batch, CaptionData

__all__ = ["Summary", "Trainer", "TrainingConfig"]

LAST, BEST, METRICS, CURVE = "last.h5", "best.h5", "metrics.jsonl", "loss.png"

CELLS = ("rnn", "lstm", "gru")
RULES = {"sgd": 1e-2, "sgd_momentum": 1e-2, "rmsprop": 1e-2, "adam": 1e-3}  # with their learning rates
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "float64")
# What a run may go on with otherwise: none of these changes what a step does, only how many there are and what is
# done in between.
CHANGEABLE = ("epochs", "steps", "patience", "validate_every", "save_every", "log_every")

# What is drawn: everything random comes from default_rng([seed, epoch, batch, one of these]), so that the position in
# the run is all the state there is. The data set shuffles by seeds that have none of these in the last place.
_INITIAL, _NOISE, _DISTORTION = 1, 2, 3

_ROWS = 256  # images at a time when their mean is taken


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides the result of a training run, but for the data.

    Parameters
    ----------
    cell : {'lstm', 'gru', 'rnn'}
        The recurrent cell.
    wordvec_dim, hidden_dim : int
        Sizes of the word vectors and of the hidden state.
    dtype : {'float32', 'float64'}
        Dtype of the parameters, and so of the arithmetic.
    rule : {'adam', 'rmsprop', 'sgd_momentum', 'sgd'}
        The update rule, one of `fastrnn.optim`.
    learning_rate : float, optional
        Default: 1e-3 for adam, 1e-2 for the others.
    lr_decay : float
        Factor on the learning rate after each epoch.
    schedule : {'constant', 'cosine'}
        With ``cosine`` the learning rate also falls over the run, as half a cosine does (Loshchilov & Hutter 2017,
        without restarts). The length of the run then cannot be changed any more.
    lr_final : float
        What it falls to, as a part of the learning rate.
    warmup : int
        Steps over which the learning rate rises from zero, evenly, before the schedule begins.
    weight_decay : float
        Part of every weight matrix that is taken off at each step, times the learning rate (decoupled: Loshchilov &
        Hutter 2019). Biases are left alone.
    clip_norm : float, optional
        Largest L2 norm of all gradients together; larger ones are scaled down to it (Pascanu et al. 2013).
    average : float
        Decay of a running average of the parameters, 0 for none. With it the averaged parameters are what is validated
        and captioned with. Early on the decay is ``(1 + step) / (10 + step)``, if that is smaller.
    batch_size : int
        Captions in a minibatch; over all processes, where there are several.
    epochs : int
        How often to go through the training captions.
    steps : int, optional
        Minibatches to train on, instead of whole epochs.
    patience : int, optional
        Stop after so many validations without a smaller loss.
    validate_every : int, optional
        Steps between validations. Default: after each epoch, and at the end.
    save_every : int, optional
        Steps between checkpoints. Default: after each validation and epoch, and at the end.
    log_every : int
        Steps between lines of the metrics file.
    seed : int
        Of the initial parameters, the order of the data, and noise.
    memory : int
        Bytes that the data set may take for features; the order of the captions depends on it.
    max_train : int, optional
        Train on so many captions only, drawn by the seed.
    pca_features : bool, optional
        Features reduced to fewer dimensions, or not. Default: whichever files exist, the reduced ones first.
    normalize : bool
        Shift and scale features so that those to train on have mean 0 and standard deviation 1, all numbers together.
    noise : float
        Standard deviation of normal noise that is added to the features to train on, after that.
    distort : float
        Strength of random distortion of the handwritten digits, 1 for what `distort` does by default; only for the
        embedded numbers.

    Raises
    ------
    ValueError, TypeError
        A value is none of those allowed.
    """

    cell: str = "lstm"
    wordvec_dim: int = 256
    hidden_dim: int = 512
    dtype: str = "float32"
    rule: str = "adam"
    learning_rate: float | None = None
    lr_decay: float = 1.0
    schedule: str = "constant"
    lr_final: float = 0.0
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    average: float = 0.0
    batch_size: int = 100
    epochs: int = 10
    steps: int | None = None
    patience: int | None = None
    validate_every: int | None = None
    save_every: int | None = None
    log_every: int = 10
    seed: int = 0
    memory: int = 256 * 2**20
    max_train: int | None = None
    pca_features: bool | None = None
    normalize: bool = True
    noise: float = 0.0
    distort: float = 0.0

    def __post_init__(self) -> None:
        args = Arguments("TrainingConfig")
        args.choice("cell", self.cell, CELLS)
        args.choice("rule", self.rule, tuple(RULES))
        args.choice("schedule", self.schedule, SCHEDULES)
        args.choice("dtype", str(self.dtype), DTYPES)
        changed: dict[str, Any] = {"dtype": str(self.dtype)}
        for name in ("wordvec_dim", "hidden_dim", "batch_size", "epochs", "log_every", "memory"):
            changed[name] = args.whole(name, getattr(self, name))
        for name in ("steps", "patience", "validate_every", "save_every", "max_train"):
            value = getattr(self, name)
            changed[name] = None if value is None else args.whole(name, value)
        for name in ("seed", "warmup"):
            changed[name] = args.whole(name, getattr(self, name), least=0)
        rate = RULES[self.rule] if self.learning_rate is None else self.learning_rate
        changed["learning_rate"] = self._real(args, "learning_rate", rate, 0, math.inf, open_below=True)
        changed["lr_decay"] = self._real(args, "lr_decay", self.lr_decay, 0, 1, open_below=True)
        changed["lr_final"] = self._real(args, "lr_final", self.lr_final, 0, 1)
        changed["weight_decay"] = self._real(args, "weight_decay", self.weight_decay, 0, math.inf)
        changed["average"] = self._real(args, "average", self.average, 0, 1, open_above=True)
        changed["noise"] = self._real(args, "noise", self.noise, 0, math.inf)
        changed["distort"] = self._real(args, "distort", self.distort, 0, math.inf)
        if self.clip_norm is not None:
            changed["clip_norm"] = self._real(args, "clip_norm", self.clip_norm, 0, math.inf, open_below=True)
        changed["normalize"] = args.flag("normalize", self.normalize)
        if self.pca_features is not None:
            changed["pca_features"] = args.flag("pca_features", self.pca_features)
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _real(
        args: Arguments,
        name: str,
        value: Any,
        low: float,
        high: float,
        open_below: bool = False,
        open_above: bool = False,
    ) -> float:
        number = args.number(name, value)
        above = number > low if open_below else number >= low
        below = number < high if open_above else number <= high
        if not (above and below and math.isfinite(number)):
            bounds = f"{'greater than' if open_below else 'at least'} {low}"
            if high < math.inf:
                bounds += f" and {'less than' if open_above else 'at most'} {high}"
            raise args.fail(ValueError, name, f"be a number {bounds}", repr(value))
        return number

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration of a checkpoint.

        Raises
        ------
        ValueError
            It has options that are not known here.
        """
        unknown = sorted(values.keys() - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(
                f"TrainingConfig: unknown options {', '.join(unknown)}: another release of fastrnn wrote them"
            )
        return cls(**values)

    def open(self, base_dir: str | os.PathLike[str]) -> CaptionData:
        """Open a data set in the COCO file format as this configuration says.

        Parameters
        ----------
        base_dir : path
            The folder.

        Returns
        -------
        CaptionData
        """
        from fastrnn.captioning.stream import CaptionData

        return CaptionData(base_dir, self.pca_features, max_train=self.max_train, seed=self.seed, memory=self.memory)


@dataclass(frozen=True)
class Summary:
    """What a call of `Trainer.train` did.

    Attributes
    ----------
    steps : int
        Steps done by this call.
    step : int
        Steps done in all.
    seconds : float
        Wall time.
    tokens_per_s : float
        Words to be said that were trained on, over all processes, a second of training (validation not counted).
    data_wait : float
        Share of the time of training in which this process waited for the next minibatch.
    best : dict
        The best validation: ``loss``, ``perplexity``, ``step``; empty if there was none.
    stopped : {'done', 'patience'}
        Why it ended.
    peak_memory : int or None
        Largest resident size of this process so far, in bytes; None where the system does not tell.
    """

    steps: int
    step: int
    seconds: float
    tokens_per_s: float
    data_wait: float
    best: dict[str, Any]
    stopped: str
    peak_memory: int | None


class Trainer:
    """Train a captioning model on a data set on disk.

    Parameters
    ----------
    data : CaptionData
        The data set, opened by ``config.open(folder)`` or with the same `memory` and `max_train`.
    config : TrainingConfig, optional
        Everything else that decides the result.
    out : path, optional
        Folder of the run, made when missing: ``last.h5`` and ``best.h5`` (by validation loss) are checkpoints,
        ``metrics.jsonl`` has a line for each logged step and each validation, ``loss.png`` shows them. Without it
        nothing is written.
    processes : Processes, optional
        The other processes that train with this one, each on its part of every minibatch.
    callback : callable, optional
        Called as ``callback(record)`` after every step with ``step``, ``epoch``, ``loss`` (on a GPU an array that
        ``float()`` waits for), and ``tokens_per_s``, ``data_wait``, ``lr`` where the step is logged; and after every
        validation with ``step``, ``epoch``, ``val_loss``, ``perplexity``.

    Attributes
    ----------
    model : CaptioningRNN
        The model with its present parameters.
    epoch, batch, step : int
        Where the run is: the epoch under way, the minibatch of it that comes next, and steps done in all.
    total_steps : int
        Steps of the whole run.
    best : dict
        The best validation so far.
    records : list of dict
        The lines of ``metrics.jsonl``.

    Raises
    ------
    ValueError, TypeError
        Data and configuration do not fit together.
    FileExistsError
        The folder holds a run already.
    """

    def __init__(
        self,
        data: CaptionData,
        config: TrainingConfig | None = None,
        *,
        out: str | os.PathLike[str] | None = None,
        processes: Processes | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self._set_up("Trainer", data, TrainingConfig() if config is None else config, out, processes, callback)
        if self.out is not None and (self.out / LAST).exists():
            raise FileExistsError(
                f"Trainer: {self.out}: expected a folder without a run, but there is {LAST} in it; go on with it "
                "(Trainer.resume, --resume) or name another folder"
            )
        self._fill_folder([])
        config = self.config
        self.model = CaptioningRNN(
            data.word_to_idx,
            data.feature_dim,
            config.wordvec_dim,
            config.hidden_dim,
            config.cell,
            np.dtype(config.dtype),
            rng=np.random.default_rng([config.seed, 0, 0, _INITIAL]),
        )
        if processes is not None:  # the same already, but for the last bits of another machine's mathematics
            processes.broadcast(self.model.params)
        self.optimizer: dict[str, dict[str, Any]] = {name: {} for name in self.model.params}
        self.average: dict[str, Any] = {}
        if config.average:
            self.average = {name: value.copy() for name, value in self.model.params.items()}
        self.feature_mean, self.feature_scale = self._statistics() if config.normalize else (0.0, 1.0)

    def _set_up(
        self,
        caller: str,
        data: CaptionData,
        config: TrainingConfig,
        out: str | os.PathLike[str] | None,
        processes: Processes | None,
        callback: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        args = Arguments(caller)
        if not isinstance(config, TrainingConfig):
            raise args.fail(TypeError, "config", "be a TrainingConfig", type(config).__name__)
        if data.memory != config.memory:
            raise args.fail(
                ValueError,
                "data",
                f"be opened with memory={config.memory}, as its configuration says (TrainingConfig.open does)",
                f"one opened with memory={data.memory}",
            )
        count = len(data.captions("train"))
        if config.max_train is not None and count != config.max_train:
            raise args.fail(
                ValueError,
                "data",
                f"be opened with max_train={config.max_train}, as its configuration says (TrainingConfig.open does)",
                f"one with {count} training captions",
            )
        for split in ("train", "val"):
            if not len(data.captions(split)):
                raise args.fail(ValueError, "data", f"have captions to {_PURPOSE[split]} ({split})", "none")
        if config.distort:
            urls = data.urls("train")
            if data.feature_dim != 3 * SIDE * SIDE or not str(urls[0]).startswith("sklearn-digits:"):
                raise args.fail(
                    ValueError, "config", "leave distort at 0 unless the data are the embedded numbers", "other data"
                )
        self.data, self.config, self.processes, self.callback = data, config, processes, callback
        self.rank, self.world = (0, 1) if processes is None else (processes.rank, processes.world)
        size = min(config.batch_size, count)
        if size < self.world:
            expected = f"have a batch_size of at least {self.world}, a caption for each process"
            raise args.fail(ValueError, "config", expected, f"{size} captions in a minibatch")
        self.out = None if out is None else Path(out)
        self.per_epoch = data.batches_per_epoch("train", config.batch_size)
        self.total_steps = config.epochs * self.per_epoch if config.steps is None else config.steps
        self.epoch = self.batch = self.step = 0
        self.best: dict[str, Any] = {}
        self.stopping = {"stale": 0, "validated": 0}
        self.records: list[dict[str, Any]] = []
        self._stop: int | None = None  # the signal that asks for an end
        self._ending = False  # whether all processes know that one of them was asked
        self._spent = _Spent()

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str],
        data: CaptionData,
        *,
        out: str | os.PathLike[str] | None = None,
        processes: Processes | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        **changes: Any,
    ) -> Trainer:
        """Go on with a run from a checkpoint, to the very bits that it would have reached without a break.

        Parameters
        ----------
        run : path
            Folder of the run, whose ``last.h5`` is taken, or a checkpoint.
        data : CaptionData
            The same data set.
        out : path, optional
            Folder to go on in; by default that of the checkpoint. Lines of its metrics file past the checkpoint are
            dropped.
        processes, callback
            As for a new run. Their number may be another one than before.
        **changes
            Options that are to change: of `TrainingConfig`, only `epochs`, `steps`, `patience`, `validate_every`,
            `save_every` and `log_every` may.

        Raises
        ------
        FileNotFoundError
            There is no checkpoint.
        ValueError
            The checkpoint is damaged, the data set is another one, or an option may not change.
        """
        path = Path(run)
        if path.is_dir():
            path = path / LAST
        checkpoint = load_checkpoint(path)
        before = config_to_resume(path, checkpoint)
        config = _changed(path, before, changes)
        _check_data(path, checkpoint, data)

        self = cls.__new__(cls)
        self._set_up(f"Trainer.resume: {path}", data, config, path.parent if out is None else out, processes, callback)
        self.model = checkpoint.model()
        place = place_of(self.model.params["Wx"])
        self.model.params = {name: place.moved(value) for name, value in checkpoint.params.items()}
        self.average = {name: place.moved(value) for name, value in checkpoint.average.items()}
        self.optimizer = {
            name: {
                key: place.moved(value) if isinstance(value, np.ndarray) else value
                for key, value in checkpoint.optimizer.get(name, {}).items()
            }
            for name in checkpoint.params
        }
        self.feature_mean, self.feature_scale = checkpoint.feature_mean, checkpoint.feature_scale
        self.epoch, self.batch, self.step = (checkpoint.position[key] for key in ("epoch", "batch", "step"))
        if self.batch >= self.per_epoch:
            raise ValueError(
                f"Trainer.resume: {path}: expected a position within an epoch of {self.per_epoch} minibatches, got "
                f"batch {self.batch}; the data set was another one"
            )
        if processes is not None and not processes.same(f"{self.step}"):
            raise ValueError(
                f"Trainer.resume: {path}: expected the same checkpoint in all processes, got another step in some; "
                "the folder of the run must be one that all machines share"
            )
        self.best = dict(checkpoint.best)
        self.stopping |= checkpoint.stopping
        self._fill_folder(log_records(path.parent / METRICS, self.step), path.parent)
        return self

    # ---- the folder of the run -------------------------------------------------------------------------------------

    def _fill_folder(self, records: list[dict[str, Any]], old: Path | None = None) -> None:
        """Make the folder, with the metrics so far, and with the best checkpoint if the run was in another one."""
        self.records = records
        if self.out is None or self.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with _written(self.out / METRICS) as aside:
            aside.write_text("".join(map(log_line, records)), encoding="utf-8")
        if old is not None and old.resolve() != self.out.resolve() and (old / BEST).is_file():
            with _written(self.out / BEST) as aside:
                shutil.copyfile(old / BEST, aside)

    def _note(self, record: dict[str, Any]) -> None:
        """A line of the metrics file, before any checkpoint that counts it as written."""
        self.records.append(record)
        if self.out is None or self.rank:
            return
        path = self.out / METRICS
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(log_line(record))
        except OSError as error:
            raise _unwritten(path, error) from error

    def checkpoint(self) -> Checkpoint:
        """The state of the run, in the computer's memory."""
        data = self.data
        host = {name: to_host(value) for name, value in self.model.params.items()}
        return Checkpoint(
            config=asdict(self.config),
            params=host,
            optimizer={
                name: {key: to_host(value) for key, value in state.items()} for name, state in self.optimizer.items()
            },
            position={"epoch": self.epoch, "batch": self.batch, "step": self.step},
            word_to_idx=dict(data.word_to_idx),
            idx_to_word=list(data.idx_to_word),
            feature_dim=int(data.feature_dim),
            feature_mean=self.feature_mean,
            feature_scale=self.feature_scale,
            best=dict(self.best),
            stopping=dict(self.stopping),
            average={name: to_host(value) for name, value in self.average.items()},
            data=_described(data),
        )

    def save(self, name: str = LAST) -> None:
        """Save a checkpoint in the run's folder.

        Raises
        ------
        FloatingPointError
            A parameter is not finite; the checkpoint that was there is untouched.
        OSError
            It cannot be written; the checkpoint that was there is untouched.
        """
        if self.out is None or self.rank:
            return
        checkpoint = self.checkpoint()
        for parameter, value in checkpoint.params.items():
            if not np.isfinite(value).all():
                self._diverged(f"parameter {parameter} is no longer finite")
        save_checkpoint(self.out / name, checkpoint)

    def _diverged(self, what: str) -> None:
        kept = ""
        if self.out is not None and (self.out / LAST).is_file():
            kept = f"; {self.out / LAST} is the last good checkpoint"
        raise FloatingPointError(
            f"Trainer.train: {what} after step {self.step}{kept}. Train anew with a smaller learning_rate "
            f"(it is {self.config.learning_rate:g}) or with clip_norm"
        )

    # ---- features --------------------------------------------------------------------------------------------------

    def _statistics(self) -> tuple[float, float]:
        """Mean of all numbers of the training features, and the inverse of their standard deviation."""
        result = np.zeros(2)
        if self.rank == 0:
            count, shift, total, squares = 0, None, 0.0, 0.0
            for _, features in self.data.images("train", _ROWS):
                values = features.astype(np.float64)
                if shift is None:  # so that a large mean takes no digits away from a small deviation
                    shift = float(values.mean())
                values -= shift
                count += values.size
                total += float(values.sum())
                squares += float(np.square(values).sum())
            if count:
                mean = total / count
                deviation = math.sqrt(max(squares / count - mean**2, 0.0))
                result[:] = (shift or 0.0) + mean, 1 / deviation if deviation else 1.0
        if self.processes is not None:
            result = self.processes.total(result)  # the others add nothing
        return float(result[0]), float(result[1])

    def _inputs(self, batch: Batch) -> np.ndarray:
        """Features to train on: distorted, normalised and with noise, each as its place in the whole minibatch asks."""
        config, features = self.config, batch.features
        mine = slice(batch.offset, batch.offset + len(features))
        if config.distort:
            whole = np.zeros((batch.count, features.shape[1]), np.float32)
            whole[mine] = features
            features = distort(whole, self._random(_DISTORTION), *(config.distort * np.array(_DISTORT)))[mine]
        values = prepared(features, self.feature_mean, self.feature_scale, self.model.dtype)
        if config.noise:
            noise = self._random(_NOISE).standard_normal((batch.count, values.shape[1]), dtype=self.model.dtype)
            values += config.noise * noise[mine]
        return values

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.epoch, self.batch, purpose])

    # ---- steps -----------------------------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        config = self.config
        assert config.learning_rate is not None
        rate = config.learning_rate * config.lr_decay**self.epoch
        if self.step < config.warmup:
            return rate * (self.step + 1) / config.warmup
        if config.schedule == "cosine":
            part = (self.step - config.warmup) / max(self.total_steps - config.warmup, 1)
            rate *= config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
        return rate

    def _step(self, batch: Batch) -> tuple[Any, float]:
        """One step; returns the loss over all processes, and how many words were to be said."""
        config, params, processes = self.config, self.model.params, self.processes
        features = self._inputs(batch)
        words = float(np.count_nonzero(batch.captions[:, 1:] != self.data.word_to_idx["<NULL>"]))
        if processes is None:
            loss, grads = self.model.loss(features, batch.captions)
        else:
            weight, reducer = len(batch.captions) / batch.count, self._reducer
            part, _ = self.model.loss(
                features, batch.captions, ready=lambda name, gradient: reducer.ready(name, gradient, weight)
            )
            grads = reducer.finish()
            # One round trip for all that the processes must know of each other.
            sums = processes.total([float(part) * weight, words, self._stop is not None])
            loss, words, asked = sums.tolist()
            self._agreed(asked > 0)
        if not on_device(loss) and not math.isfinite(loss):
            self._diverged(f"the loss is {float(loss)}")
        if config.clip_norm is not None:
            clip(grads, config.clip_norm)
        rate = self.learning_rate()
        for name, value in params.items():
            self.optimizer[name]["learning_rate"] = rate
            if config.weight_decay and value.ndim > 1:
                params[name] = value * (1 - rate * config.weight_decay)
        names = list(params)
        updated = update_all(
            getattr(optim, config.rule),
            [params[name] for name in names],
            [grads[name] for name in names],
            [self.optimizer[name] for name in names],
        )
        for name, value, state in zip(names, *updated, strict=True):
            params[name], self.optimizer[name] = value, state
        self.step += 1
        if self.average:
            decay = min(config.average, (1 + self.step) / (10 + self.step))
            for name, value in self.average.items():
                value += (1 - decay) * (params[name] - value)
        return loss if on_device(loss) else float(loss), words

    def train(self) -> Summary:
        """Train to the end of the run: all its steps, or until validation gets no better.

        Ctrl-C and SIGTERM are heeded between two steps: the run is saved, and then the signal does what it did before
        (Ctrl-C raises `KeyboardInterrupt`, SIGTERM ends the process). A second one is heeded at once.

        Returns
        -------
        Summary

        Raises
        ------
        ValueError
            A feature is not finite.
        OSError
            A file cannot be read or written; the last checkpoint is untouched.
        FloatingPointError
            Loss or parameters are no longer finite.
        """
        begin, first = time.perf_counter(), self.step
        self._spent = spent = _Spent()
        if self.processes is not None:
            self._reducer = self.processes.reducer(self.model.params)
        with self._signals():
            # What a run that was stopped just there had not got to.
            if self.step and self._due(self.config.validate_every) and self.stopping["validated"] != self.step:
                self._validate()
            stopped = self._loop()
            self.save()
            self._draw()
        spent.lap()
        return Summary(
            steps=self.step - first,
            step=self.step,
            seconds=time.perf_counter() - begin,
            tokens_per_s=_ratio(spent.words, spent.seconds),
            data_wait=_ratio(spent.waited, spent.seconds),
            best=dict(self.best),
            stopped=stopped,
            peak_memory=peak_memory(),
        )

    def _loop(self) -> str:
        while self.step < self.total_steps:
            if self._stale():
                return "patience"
            batches = self.data.batches(
                "train",
                self.config.batch_size,
                seed=self.config.seed,
                epoch=self.epoch,
                start=self.batch,
                shard=(self.rank, self.world),
            )
            with closing(batches):  # type: ignore[type-var]
                self._epoch(batches)
        return "patience" if self._stale() else "done"

    def _epoch(self, batches: Iterator[Batch]) -> None:
        """Steps to the end of the epoch, of the run, or of patience."""
        config, spent = self.config, self._spent
        spent.go_on(self.data.waited)
        for batch in batches:
            record = {"step": self.step + 1, "epoch": self.epoch}
            rate = self.learning_rate()
            record["loss"], words = self._step(batch)
            self.batch += 1
            if self.batch == self.per_epoch:
                self.epoch, self.batch = self.epoch + 1, 0
            spent.pause(self.data.waited, words)
            if self.step % config.log_every == 0 or self.step in (1, self.total_steps):
                record = self._logged(record, rate)
                self._note(record)
            if self.callback is not None:
                self.callback(record)
            # Of several processes one may have caught a signal since they agreed: it ends with them, a step later.
            if self._ending if self.processes is not None else self._stop is not None:
                raise _Stopped
            validate = self._due(config.validate_every)
            if validate:
                self._validate()
            if validate or self._due(config.save_every):
                self.save()
            if self.batch == 0 or self.step >= self.total_steps or self._stale():
                return
            spent.go_on(self.data.waited)

    def _due(self, every: int | None) -> bool:
        """Whether something follows the step just done: every so many, or by default after an epoch; and at the end."""
        return self.step >= self.total_steps or (self.batch == 0 if every is None else self.step % every == 0)

    def _stale(self) -> bool:
        return self.config.patience is not None and self.stopping["stale"] >= self.config.patience

    def _logged(self, record: dict[str, Any], rate: float) -> dict[str, Any]:
        """The record with what is found out for the metrics file only."""
        loss = float(record["loss"])  # waits for a GPU
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss}")
        seconds, waited, words = self._spent.lap()
        return record | {
            "loss": loss,
            "lr": rate,
            "tokens_per_s": round(_ratio(words, seconds), 1),
            "data_wait": round(_ratio(waited, seconds), 4),
        }

    # ---- validation ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Loss on the validation captions, all of them, and perplexity.

        Returns
        -------
        dict
            ``loss``: summed over a caption's words and averaged over the captions, as in training; ``perplexity``:
            the exponential of the loss a word to be said.
        """
        model = copy.copy(self.model)
        model.params = self.average or self.model.params
        null = self.data.word_to_idx["<NULL>"]
        sums = np.zeros(3)
        shard = (self.rank, self.world)
        batches = self.data.ordered("val", self.config.batch_size, shard=shard)
        with closing(batches):  # type: ignore[type-var]
            for batch in batches:
                if len(batch.captions):
                    features = prepared(batch.features, self.feature_mean, self.feature_scale, model.dtype)
                    loss = -model.log_likelihood(features, batch.captions).sum()
                    sums += loss, len(batch.captions), int(np.count_nonzero(batch.captions[:, 1:] != null))
                self._heed()
        if self.processes is not None:
            sums = self.processes.total(sums)
        total, captions, words = sums.tolist()
        if not math.isfinite(total):
            self._diverged(f"the validation loss is {total}")
        return {"loss": total / captions, "perplexity": math.exp(min(total / max(words, 1.0), 700.0))}

    def _validate(self) -> None:
        figures = self.evaluate()
        self.stopping["validated"] = self.step
        epoch = self.epoch - (self.batch == 0)  # the one that was just completed
        record = {"step": self.step, "epoch": epoch, "val_loss": figures["loss"], "perplexity": figures["perplexity"]}
        self._note(record)
        if not self.best or figures["loss"] < self.best["loss"]:
            self.best = {**figures, "step": self.step}
            self.stopping["stale"] = 0
            self.save(BEST)
        else:
            self.stopping["stale"] += 1
        if self.callback is not None:
            self.callback(record)

    # ---- the end ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait for the end of a step."""
        self._stop, self._ending = None, False

        def note(signum: int) -> None:
            self._stop = signum

        with deferred_signals(note):
            try:
                yield
            except _Stopped:
                assert self._stop is not None
                self.save()
                self._draw()
        if self._stop is not None:
            signal.raise_signal(self._stop)
            raise KeyboardInterrupt  # where the signal was somebody's who let it pass

    def _heed(self) -> None:
        """End the validation if a signal came, in all processes at the same place."""
        asked = self._stop is not None
        if self.processes is not None:
            asked = self.processes.agree(asked)
            self._agreed(asked)
        if asked:
            raise _Stopped

    def _agreed(self, asked: bool) -> None:
        """Note whether any of the processes has caught a signal."""
        self._ending = asked
        if asked and self._stop is None:
            self._stop = signal.SIGTERM

    def _draw(self) -> None:
        """The loss curve, where Matplotlib is installed."""
        if self.out is None or self.rank or not self.records:
            return
        with suppress(ImportError):
            from fastrnn.captioning.pictures import loss_curve

            with _written(self.out / CURVE, suffix=".part.png") as aside:
                loss_curve(self.records, aside)


_PURPOSE = {"train": "train on", "val": "validate on"}
_DISTORT = (0.35, 0.12, 0.08)  # shift, turn and stretch of `distort`


class _Stopped(Exception):
    """A signal asked for the end."""


class _Spent:
    """Time, words and waiting of the steps, without what lies between them (validation, checkpoints)."""

    def __init__(self) -> None:
        self.seconds = self.waited = self.words = 0.0  # up to the last lap
        self._lap = (0.0, 0.0, 0.0)  # since then
        self._since = (0.0, 0.0)

    def go_on(self, waited: float) -> None:
        self._since = time.perf_counter(), waited

    def pause(self, waited: float, words: float) -> None:
        begin, waited_before = self._since
        seconds = time.perf_counter() - begin
        self._lap = self._lap[0] + seconds, self._lap[1] + waited - waited_before, self._lap[2] + words

    def lap(self) -> tuple[float, float, float]:
        """Seconds, waiting and words since the last lap."""
        lap, self._lap = self._lap, (0.0, 0.0, 0.0)
        self.seconds, self.waited, self.words = self.seconds + lap[0], self.waited + lap[1], self.words + lap[2]
        return lap


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def clip(grads: dict[str, Any], largest: float) -> Any:
    """Scale gradients down, in place, so that their L2 norm all together is at most `largest`.

    Returns
    -------
    float, or an array of no axes on a GPU
        The norm that they had.
    """
    squares = sum(_square_sum(value) for value in grads.values())
    if on_device(squares):
        xp = place_of(squares).xp
        norm = xp.sqrt(squares)
        factor = xp.minimum(largest / norm, 1.0)
        for value in grads.values():
            value *= factor.astype(value.dtype)
        return norm
    norm = math.sqrt(squares)
    if norm > largest:
        for value in grads.values():
            value *= largest / norm
    return norm


def _square_sum(value: Any) -> Any:
    """Sum of squares in float64. NumPy's own sums: those of a BLAS may depend on how many threads it has."""
    if on_device(value):
        return (value.astype(np.float64) ** 2).sum()
    flat = value.reshape(-1)
    blocks = (flat[start : start + 65536] for start in range(0, flat.size, 65536))  # small enough for the cache
    return sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks)


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ---- going on with a run ---------------------------------------------------------------------------------------------


@contextmanager
def _written(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """`replaced`, with the words for what can go wrong."""
    try:
        with replaced(path, suffix) as aside:
            yield aside
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"Trainer: {path}: cannot write it ({error.strerror or error}); the last checkpoint is untouched. "
        "Make room or name a folder that can be written, and go on from there",
    )


def config_to_resume(path: Path, checkpoint: Checkpoint) -> TrainingConfig:
    """What the run of a checkpoint was configured to do; a ValueError names the file where that cannot be."""
    try:
        return TrainingConfig.of(checkpoint.config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Trainer.resume: {path}: its configuration cannot be used: {error}") from error


def _changed(path: Path, before: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """The configuration with the changes, if a run may change them."""
    known = [entry.name for entry in fields(TrainingConfig)]
    for name in changes:
        if name not in known:
            raise TypeError(f"Trainer.resume: unknown option {name!r}; there are {', '.join(known)}")
    if "epochs" in changes and "steps" not in changes:  # which would go before it
        changes = {**changes, "steps": None}
    config = replace(before, **changes)
    changeable = [name for name in CHANGEABLE if name not in ("epochs", "steps") or before.schedule != "cosine"]
    for name in known:
        if name not in changeable and getattr(config, name) != getattr(before, name):
            raise ValueError(
                f"Trainer.resume: {path}: option {name!r} must stay {getattr(before, name)!r}, as the run began, got "
                f"{getattr(config, name)!r}; {', '.join(changeable)} may change, all else needs a new run"
            )
    return config


def _described(data: CaptionData) -> dict[str, Any]:
    """What a data set is, as far as a run depends on it."""
    described: dict[str, Any] = {"base_dir": str(Path(data.base_dir).absolute())}
    for split in ("train", "val"):
        described[f"{split}_captions"] = len(data.captions(split))
        described[f"{split}_images"] = int(data.num_images(split))
    return described | {"caption_length": int(data.caption_length)}


def _check_data(path: Path, checkpoint: Checkpoint, data: CaptionData) -> None:
    """The data set that a run goes on with must be the one that it began with."""
    where = f"Trainer.resume: {path}: data set {data.base_dir}"
    remedy = "name the data set that the run began with" + (
        f", {checkpoint.data['base_dir']}" if checkpoint.data.get("base_dir") else ""
    )
    if data.feature_dim != checkpoint.feature_dim:
        raise ValueError(
            f"{where}: expected features of {checkpoint.feature_dim} numbers, as the checkpoint's model takes, got "
            f"{data.feature_dim}; {remedy}"
        )
    if list(data.idx_to_word) != list(checkpoint.idx_to_word) or dict(data.word_to_idx) != checkpoint.word_to_idx:
        raise ValueError(
            f"{where}: expected the checkpoint's vocabulary of {len(checkpoint.idx_to_word)} words, got another one of "
            f"{len(data.idx_to_word)}; {remedy}"
        )
    for key, value in _described(data).items():
        if key != "base_dir" and checkpoint.data.get(key, value) != value:
            expected = f"{checkpoint.data[key]:,} {key.replace('_', ' ')}"
            raise ValueError(f"{where}: expected {expected}, as the run began with, got {value:,}; {remedy}")
