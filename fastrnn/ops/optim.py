"""Update rules of stochastic gradient descent, in the well-known form ``w, config = rule(w, dw, config)``.

Each fills the missing entries of `config` and puts the new state into it; arrays are never changed in place. The
weights keep their dtype: a float64 gradient or learning rate does not turn float32 weights into float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrnn.backend import Chosen, choose, ran
from fastrnn.checks import Arguments

_ROW = "optim"

Config = dict[str, Any]
Rule = Callable[[Any, Any, Config], tuple[Any, Config]]

# Of each rule: its settings with their defaults, in the order in which kernels take them, and the arrays of its state.
_RULES: dict[str, tuple[dict[str, float], tuple[str, ...]]] = {
    "sgd": ({"learning_rate": 1e-2}, ()),
    "sgd_momentum": ({"learning_rate": 1e-2, "momentum": 0.9}, ("velocity",)),
    "rmsprop": ({"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}, ("cache",)),
    "adam": ({"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}, ("m", "v")),
}


def sgd(w: Any, dw: Any, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Vanilla stochastic gradient descent: ``w - learning_rate dw``.

    Parameters
    ----------
    w, dw : array_like, one shape
        Weights and their gradient.
    config : dict, optional
        ``learning_rate`` (default 1e-2).

    Returns
    -------
    next_w : ndarray
        New weights, in the dtype of `w`.
    config : dict
        The dict given, completed.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    return _update("sgd", w, dw, config)


def sgd_momentum(w: Any, dw: Any, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Gradient descent with momentum: ``v = momentum v - learning_rate dw``, ``w + v`` (Polyak 1964).

    Parameters
    ----------
    w, dw : array_like, one shape
        Weights and their gradient.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``momentum`` (0.9); state: ``velocity``.

    Returns
    -------
    next_w : ndarray
        New weights, in the dtype of `w`.
    config : dict
        The dict given, completed and with the new state.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    return _update("sgd_momentum", w, dw, config)


def rmsprop(w: Any, dw: Any, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """RMSProp: ``cache = decay_rate cache + (1 - decay_rate) dw²``, ``w - learning_rate dw / (sqrt(cache) + epsilon)``
    (Tieleman & Hinton 2012).

    Parameters
    ----------
    w, dw : array_like, one shape
        Weights and their gradient.
    config : dict, optional
        ``learning_rate`` (default 1e-2), ``decay_rate`` (0.99), ``epsilon`` (1e-8); state: ``cache``.

    Returns
    -------
    next_w : ndarray
        New weights, in the dtype of `w`.
    config : dict
        The dict given, completed and with the new state.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    return _update("rmsprop", w, dw, config)


def adam(w: Any, dw: Any, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Adam (Kingma & Ba 2015, algorithm 1).

    ``m = beta1 m + (1 - beta1) dw``, ``v = beta2 v + (1 - beta2) dw²``, then
    ``w - learning_rate m̂ / (sqrt(v̂) + epsilon)`` with ``m̂ = m / (1 - beta1^t)`` and ``v̂ = v / (1 - beta2^t)``.

    Parameters
    ----------
    w, dw : array_like, one shape
        Weights and their gradient.
    config : dict, optional
        ``learning_rate`` (default 1e-3), ``beta1`` (0.9), ``beta2`` (0.999), ``epsilon`` (1e-8); state: ``m``, ``v``,
        ``t`` (0; raised by one before it is used).

    Returns
    -------
    next_w : ndarray
        New weights, in the dtype of `w`.
    config : dict
        The dict given, completed and with the new state.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit.
    """
    return _update("adam", w, dw, config)


def update_all(
    rule: Rule, weights: Sequence[Any], gradients: Sequence[Any], configs: Sequence[Config]
) -> tuple[list[Any], list[Config]]:
    """One step of `rule` for each of several arrays: in one launch where the backend has a kernel for many.

    Results are those of one call after the other, bit for bit.

    Parameters
    ----------
    rule : callable
        A rule of this module, or any function of their form, which is called for one array after the other.
    weights, gradients : sequence of array_like
        Weights and their gradients, all where the first of the weights is.
    configs : sequence of dict
        A config for each. Arrays of one dtype and of the same settings share a launch.

    Returns
    -------
    next_weights : list of ndarray
        New weights, each in its dtype.
    configs : list of dict
        The dicts given, completed and with the new state.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype does not fit. Where one launch is to serve them all, no config was then changed.
    """
    function = getattr(rule, "__name__", "")
    chosen = choose(_ROW, weights[0]) if weights and rule is _FUNCTIONS.get(function) else None
    run = getattr(chosen.kernels, f"{function}_many", None) if chosen else None
    if chosen is None or run is None:
        updated = [rule(*one) for one in zip(weights, gradients, configs, strict=True)]
        return [w for w, _ in updated], [config for _, config in updated]
    updates = [_checked(function, chosen, *one) for one in zip(weights, gradients, configs, strict=True)]
    groups: dict[tuple[Any, ...], list[_Update]] = {}
    for update in updates:
        groups.setdefault((update.arrays[0].dtype, *update.settings.values()), []).append(update)
    for group in groups.values():
        arrays, outs = (
            zip(*(update.arrays for update in group), strict=True),
            zip(*(u.outs for u in group), strict=True),
        )
        run(*map(list, arrays), *group[0].settings.values(), *map(list, outs))
    ran(function, chosen)
    return [update.outs[0] for update in updates], [update.complete(update.outs[1:]) for update in updates]


class _Update(NamedTuple):
    """A checked call: its config, the arrays w, dw and state, and the settings in the order of kernels."""

    function: str
    config: Config
    arrays: list[Any]
    settings: dict[str, float]
    outs: list[Any]
    """For the new weights and the new state; none for the reference, which makes its own."""

    def complete(self, fresh: Sequence[Any]) -> Config:
        """The config with what was missing and the new state."""
        defaults, state = _RULES[self.function]
        for key, value in defaults.items():
            self.config.setdefault(key, value)
        self.config.update(zip(state, fresh, strict=True))
        if self.function == "adam":
            self.config["t"] = int(self.settings["t"])
        return self.config


def _checked(function: str, chosen: Chosen, w: Any, dw: Any, config: Config | None) -> _Update:
    """Check and allocate."""
    defaults, state = _RULES[function]
    check = Arguments(function, place=chosen.place)
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise check.fail(TypeError, "config", "be a dict", type(config).__name__)
    raw = check.raw("w", w)
    dtype = raw.dtype if raw.dtype.kind == "f" else np.dtype(np.float64)
    dtype = dtype.newbyteorder("=")
    arrays = [raw, check.raw("dw", dw)]
    for key in state:
        value = config.get(key)
        arrays.append(chosen.xp.zeros(raw.shape, dtype) if value is None else check.raw(f"config[{key!r}]", value))
    for name, array in zip(("w", "dw", *(f"config[{key!r}]" for key in state)), arrays, strict=True):
        if array.shape != raw.shape:
            raise check.fail(ValueError, name, f"have the shape of w, {raw.shape}", f"shape {array.shape}")
    settings = {key: check.number(f"config[{key!r}]", config.get(key, value)) for key, value in defaults.items()}
    arrays = [check.settle(array, dtype) for array in arrays]
    if function == "adam":
        settings["t"] = check.number("config['t']", config.get("t", 0)) + 1
        if not (settings["t"] >= 1 and settings["t"].is_integer()):
            raise check.fail(ValueError, "config['t']", "be a whole number, at least 0", repr(config["t"]))
    if chosen.is_reference:
        return _Update(function, config, arrays, settings, [])
    outs = [chosen.empty(raw.shape, dtype) for _ in range(1 + len(state))]
    return _Update(function, config, [chosen.xp.ascontiguousarray(array) for array in arrays], settings, outs)


def _update(function: str, w: Any, dw: Any, config: Config | None) -> tuple[Any, Config]:
    """Check, allocate, and run the kernel ``function(w, dw, *state, *settings, out, *new_state)``."""
    chosen = choose(_ROW, w)
    update = _checked(function, chosen, w, dw, config)
    if chosen.is_reference:
        given: Config = {**update.settings, **dict(zip(_RULES[function][1], update.arrays[2:], strict=True))}
        if function == "adam":
            given["t"] -= 1
        next_w, given = getattr(chosen.kernels, function)(update.arrays[0], update.arrays[1], given)
        fresh = [given[key] for key in _RULES[function][1]]
    else:
        flat = [array.reshape(-1) for array in (*update.arrays, *update.outs)]
        inputs = len(update.arrays)
        getattr(chosen.kernels, function)(*flat[:inputs], *update.settings.values(), *flat[inputs:])
        next_w, *fresh = update.outs
    ran(function, chosen)
    return next_w, update.complete(fresh)


_FUNCTIONS: dict[str, Rule] = {"sgd": sgd, "sgd_momentum": sgd_momentum, "rmsprop": rmsprop, "adam": adam}
