"""Update rules of stochastic gradient descent, in the well-known form ``w, config = rule(w, dw, config)``.

Each fills the missing entries of `config` and puts the new state into it; arrays are never changed in place. The
weights keep their dtype: a float64 gradient or learning rate does not turn float32 weights into float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import choose, ran
from fastrnn.checks import Arguments

_ROW = "optim"

Config = dict[str, Any]


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
    return _update("sgd", w, dw, config, {"learning_rate": 1e-2}, ())


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
    return _update("sgd_momentum", w, dw, config, {"learning_rate": 1e-2, "momentum": 0.9}, ("velocity",))


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
    defaults = {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8}
    return _update("rmsprop", w, dw, config, defaults, ("cache",))


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
    defaults = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    return _update("adam", w, dw, config, defaults, ("m", "v"))


def _update(
    function: str, w: Any, dw: Any, config: Config | None, defaults: dict[str, float], state: tuple[str, ...]
) -> tuple[np.ndarray, Config]:
    """Check, allocate, and run the kernel ``function(w, dw, *state, *settings, out, *new_state)``."""
    chosen = choose(_ROW, w)
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
        given: Config = {**settings, **dict(zip(state, arrays[2:], strict=True))}
        if function == "adam":
            given["t"] -= 1
        next_w, given = getattr(chosen.kernels, function)(arrays[0], arrays[1], given)
        fresh = [given[key] for key in state]
    else:
        outs = [chosen.empty(raw.shape, dtype) for _ in range(1 + len(state))]
        flat_in = [chosen.xp.ascontiguousarray(array).reshape(-1) for array in arrays]
        getattr(chosen.kernels, function)(*flat_in, *settings.values(), *(out.reshape(-1) for out in outs))
        next_w, *fresh = outs
    ran(function, chosen)
    for key, value in defaults.items():
        config.setdefault(key, value)
    config.update(zip(state, fresh, strict=True))
    if function == "adam":
        config["t"] = int(settings["t"])
    return next_w, config
