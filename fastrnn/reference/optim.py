"""First-order update rules.

Each takes weights, their gradient and a dictionary of settings and running state. Missing entries of the dictionary
are filled in, and the state in it is replaced; no array is modified. Weights and state keep the weights' dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Config = dict[str, Any]


def sgd(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Stochastic gradient descent: ``w' = w - learning_rate dw``.

    Parameters
    ----------
    w : weights, any shape
    dw : gradient, same shape
    config : learning_rate (1e-2)

    Returns
    -------
    next_w : like w
    config : the dictionary that was given, or a new one

    References
    ----------
    H. Robbins and S. Monro, "A stochastic approximation method", Annals of Mathematical Statistics 22 (1951).
    """
    config = {} if config is None else config
    learning_rate = float(config.setdefault("learning_rate", 1e-2))
    return _like(w, w - learning_rate * dw), config


def sgd_momentum(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Gradient descent with momentum: ``v' = momentum v - learning_rate dw``, ``w' = w + v'``.

    Parameters
    ----------
    w : weights, any shape
    dw : gradient, same shape
    config : learning_rate (1e-2), momentum (0.9), velocity (zeros like w)

    Returns
    -------
    next_w : like w
    config : the dictionary that was given, or a new one

    References
    ----------
    B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, in the form of
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, equations 1, 2.
    """
    config = {} if config is None else config
    learning_rate = float(config.setdefault("learning_rate", 1e-2))
    momentum = float(config.setdefault("momentum", 0.9))
    v = config.get("velocity")
    v = _like(w, np.zeros_like(w) if v is None else v)

    v = _like(w, momentum * v - learning_rate * dw)
    config["velocity"] = v
    return _like(w, w + v), config


def rmsprop(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Steps divided by a running root mean square of the gradient::

        cache' = decay_rate cache + (1 - decay_rate) dw^2
        w' = w - learning_rate dw / (sqrt(cache') + epsilon)

    Parameters
    ----------
    w : weights, any shape
    dw : gradient, same shape
    config : learning_rate (1e-2), decay_rate (0.99), epsilon (1e-8), cache (zeros like w)

    Returns
    -------
    next_w : like w
    config : the dictionary that was given, or a new one

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", COURSERA: Neural networks for machine learning, 2012.
    """
    config = {} if config is None else config
    learning_rate = float(config.setdefault("learning_rate", 1e-2))
    decay_rate = float(config.setdefault("decay_rate", 0.99))
    epsilon = float(config.setdefault("epsilon", 1e-8))
    cache = config.get("cache")
    cache = _like(w, np.zeros_like(w) if cache is None else cache)

    cache = _like(w, decay_rate * cache + (1 - decay_rate) * dw**2)
    config["cache"] = cache
    return _like(w, w - learning_rate * dw / (np.sqrt(cache) + epsilon)), config


def adam(w: np.ndarray, dw: np.ndarray, config: Config | None = None) -> tuple[np.ndarray, Config]:
    """Steps from running means of the gradient and of its square, corrected for their start at zero::

        t' = t + 1
        m' = beta1 m + (1 - beta1) dw           m^ = m' / (1 - beta1^t')
        v' = beta2 v + (1 - beta2) dw^2         v^ = v' / (1 - beta2^t')
        w' = w - learning_rate m^ / (sqrt(v^) + epsilon)

    Parameters
    ----------
    w : weights, any shape
    dw : gradient, same shape
    config : learning_rate (1e-3), beta1 (0.9), beta2 (0.999), epsilon (1e-8), m and v (zeros like w), t (0)

    Returns
    -------
    next_w : like w
    config : the dictionary that was given, or a new one

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """
    config = {} if config is None else config
    learning_rate = float(config.setdefault("learning_rate", 1e-3))
    beta1 = float(config.setdefault("beta1", 0.9))
    beta2 = float(config.setdefault("beta2", 0.999))
    epsilon = float(config.setdefault("epsilon", 1e-8))
    m, v = config.get("m"), config.get("v")
    m = _like(w, np.zeros_like(w) if m is None else m)
    v = _like(w, np.zeros_like(w) if v is None else v)
    t = int(config.get("t", 0)) + 1

    m = _like(w, beta1 * m + (1 - beta1) * dw)
    v = _like(w, beta2 * v + (1 - beta2) * dw**2)
    config["m"], config["v"], config["t"] = m, v, t
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return _like(w, w - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)), config


def _like(w: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The value in the dtype of the weights, whatever the gradient and the state came in."""
    return np.asarray(value, dtype=w.dtype)
