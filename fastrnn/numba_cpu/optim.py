"""Update rules, each one pass over memory."""

# Numba infers the types of what it compiles.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np

from .jit import contiguous, jit


def sgd(w: np.ndarray, dw: np.ndarray, lr: float, out: np.ndarray) -> None:
    """out (n,) = w - lr * dw."""
    _sgd(contiguous(w), contiguous(dw), float(lr), out)


def sgd_momentum(
    w: np.ndarray, dw: np.ndarray, v: np.ndarray, lr: float, momentum: float, out: np.ndarray, v_out: np.ndarray
) -> None:
    """v_out (n,) = momentum * v - lr * dw, and out (n,) = w + v_out."""
    _sgd_momentum(contiguous(w), contiguous(dw), contiguous(v), float(lr), float(momentum), out, v_out)


def rmsprop(
    w: np.ndarray,
    dw: np.ndarray,
    cache: np.ndarray,
    lr: float,
    decay_rate: float,
    epsilon: float,
    out: np.ndarray,
    cache_out: np.ndarray,
) -> None:
    """Both out and cache_out are (n,).

    cache_out = decay_rate * cache + (1 - decay_rate) * dw^2, and out = w - lr * dw / (sqrt(cache_out) + epsilon).
    """
    arrays = contiguous(w), contiguous(dw), contiguous(cache)
    _rmsprop(*arrays, float(lr), float(decay_rate), float(epsilon), out, cache_out)


def adam(
    w: np.ndarray,
    dw: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    t: int,
    out: np.ndarray,
    m_out: np.ndarray,
    v_out: np.ndarray,
) -> None:
    """m_out, v_out (n,): running means of dw and dw^2; out (n,) = w - lr * m^ / (sqrt(v^) + epsilon) after step t >= 1.

    m^ and v^ are m_out / (1 - beta1^t) and v_out / (1 - beta2^t).
    """
    arrays = contiguous(w), contiguous(dw), contiguous(m), contiguous(v)
    beta1, beta2 = float(beta1), float(beta2)
    corrections = 1 - beta1 ** int(t), 1 - beta2 ** int(t)
    _adam(*arrays, float(lr), beta1, beta2, float(epsilon), *corrections, out, m_out, v_out)


@jit
def _sgd(w, dw, lr, out):
    rate = w.dtype.type(lr)
    for j in range(w.shape[0]):
        out[j] = w[j] - rate * dw[j]


@jit
def _sgd_momentum(w, dw, v, lr, momentum, out, v_out):
    real = w.dtype.type
    rate, keep = real(lr), real(momentum)
    for j in range(w.shape[0]):
        v_new = keep * v[j] - rate * dw[j]
        v_out[j] = v_new
        out[j] = w[j] + v_new


@jit
def _rmsprop(w, dw, cache, lr, decay_rate, epsilon, out, cache_out):
    real = w.dtype.type
    rate, keep, take, floor = real(lr), real(decay_rate), real(1 - decay_rate), real(epsilon)
    for j in range(w.shape[0]):
        cache_new = keep * cache[j] + take * (dw[j] * dw[j])
        cache_out[j] = cache_new
        out[j] = w[j] - rate * dw[j] / (math.sqrt(cache_new) + floor)


@jit
def _adam(w, dw, m, v, lr, beta1, beta2, epsilon, correction1, correction2, out, m_out, v_out):
    real = w.dtype.type
    rate, floor = real(lr), real(epsilon)
    keep1, take1, correct1 = real(beta1), real(1 - beta1), real(correction1)
    keep2, take2, correct2 = real(beta2), real(1 - beta2), real(correction2)
    for j in range(w.shape[0]):
        m_new = keep1 * m[j] + take1 * dw[j]
        v_new = keep2 * v[j] + take2 * (dw[j] * dw[j])
        m_out[j], v_out[j] = m_new, v_new
        out[j] = w[j] - rate * (m_new / correct1) / (math.sqrt(v_new / correct2) + floor)
