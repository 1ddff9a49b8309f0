"""Training a captioning model by stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastrnn import optim
from fastrnn.arrays import on_device
from fastrnn.captioning.data import generator, sample_coco_minibatch
from fastrnn.captioning.model import CaptioningRNN
from fastrnn.checks import Arguments
from fastrnn.ops.optim import update_all

__all__ = ["CaptioningSolver", "CaptioningTrainer"]

_RULES = ("sgd", "sgd_momentum", "rmsprop", "adam")


class CaptioningSolver:
    """Train a captioning model on minibatches drawn from the training split.

    Parameters
    ----------
    model : CaptioningRNN
        Anything with ``params`` and ``loss(features, captions) -> loss, grads``.
    data : mapping
        What `load_coco_data` returns.
    update_rule : {'sgd', 'sgd_momentum', 'rmsprop', 'adam'}
        The function of `fastrnn.optim` that changes each parameter.
    optim_config : mapping, optional
        Options of the update rule, ``learning_rate`` first of all. Every parameter gets a copy, in which the rule keeps
        its state.
    lr_decay : float
        Factor on the learning rate after each epoch.
    batch_size : int
        Captions in a minibatch.
    num_epochs : int
        How often `train` goes through the data: each epoch is ``max(num_train // batch_size, 1)`` iterations.
    print_every : int
        Iterations between two printed losses.
    verbose : bool
        Whether to print them.
    updater_config : mapping, optional
        Another name for `optim_config`.
    callback : callable, optional
        Called after every iteration as ``callback(iteration, num_iterations, loss)``, with the first iteration 1. The
        loss is what the model returns: a number, or on a GPU a CuPy array of no axes, which ``float()`` waits for.
    rng : numpy.random.Generator, optional
        Draws the minibatches instead of NumPy's global generator.

    Attributes
    ----------
    loss_history : list of float
        The loss of every iteration. With a model on a GPU, looking at it waits for the iterations so far.
    optim_configs : dict
        The update rule's options and state for each parameter.
    epoch : int
        Epochs completed.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        data: Mapping[str, Any],
        update_rule: str = "adam",
        optim_config: Mapping[str, Any] | None = None,
        lr_decay: float = 1.0,
        batch_size: int = 100,
        num_epochs: int = 10,
        print_every: int = 10,
        verbose: bool = True,
        *,
        updater_config: Mapping[str, Any] | None = None,
        callback: Callable[[int, int, Any], Any] | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        args = Arguments(type(self).__name__)
        if optim_config is not None and updater_config is not None:
            raise args.fail(
                TypeError, "updater_config", "not be given beside optim_config, whose other name it is", "both"
            )
        name, config = "optim_config", optim_config
        if updater_config is not None:
            name, config = "updater_config", updater_config
        if config is not None and not isinstance(config, Mapping):
            raise args.fail(TypeError, name, "map options to values", type(config).__name__)
        if "train_captions" not in data:
            raise args.fail(ValueError, "data", "have an entry 'train_captions'", f"{sorted(data)}")
        self.model = model
        self.data = data
        self.update_rule = getattr(optim, args.choice("update_rule", update_rule, _RULES))
        self.optim_config = dict(config or {})
        self.lr_decay = args.number("lr_decay", lr_decay)
        self.batch_size = args.whole("batch_size", batch_size)
        self.num_epochs = args.whole("num_epochs", num_epochs)
        self.print_every = args.whole("print_every", print_every)
        self.verbose = verbose
        self.callback = callback
        generator(args, rng)
        self.rng = rng

        self.epoch = 0
        self._losses: list[Any] = []
        self.optim_configs = {parameter: dict(self.optim_config) for parameter in model.params}

    @property
    def loss_history(self) -> list[float]:
        self._losses[:] = map(float, self._losses)
        return self._losses

    def step(self) -> Any:
        """One iteration: draw a minibatch, compute loss and gradients, change the parameters; returns the loss."""
        captions, features, _ = sample_coco_minibatch(self.data, self.batch_size, "train", rng=self.rng)
        loss, grads = self.model.loss(features, captions)
        self._losses.append(loss if on_device(loss) else float(loss))
        params, configs = self.model.params, self.optim_configs
        updated = update_all(
            self.update_rule,
            list(params.values()),
            [grads[name] for name in params],
            [configs[name] for name in params],
        )
        for name, value, config in zip(list(params), *updated, strict=True):
            params[name], configs[name] = value, config
        return self._losses[-1]

    def train(self, num_iterations: int | None = None) -> None:
        """Train for `num_epochs`, or for a number of iterations; a further call goes on from there.

        Parameters
        ----------
        num_iterations : int, optional
            Iterations to do instead of whole epochs.
        """
        per_epoch = max(len(self.data["train_captions"]) // self.batch_size, 1)
        if num_iterations is None:
            num_iterations = self.num_epochs * per_epoch
        else:
            num_iterations = Arguments("CaptioningSolver.train").whole("num_iterations", num_iterations)
        for iteration in range(1, num_iterations + 1):
            loss = self.step()
            if self.verbose and (iteration - 1) % self.print_every == 0:
                print(f"(Iteration {iteration} / {num_iterations}) loss: {float(loss):f}")
            if self.callback is not None:
                self.callback(iteration, num_iterations, loss)
            if len(self._losses) % per_epoch == 0:
                self.epoch += 1
                for config in self.optim_configs.values():
                    config["learning_rate"] *= self.lr_decay


# The same class under the name of an older course, which calls the options `updater_config`.
CaptioningTrainer = CaptioningSolver
