"""Update rules, of one array or of many in one launch.

The functions named ``*_many`` take a list where the others take an array; all lists of a call have one length. An
output of theirs may be the very array of an input, which is then updated in place.
"""

from __future__ import annotations

from typing import Any

from .arrays import kernels, stream


def sgd(w: Any, dw: Any, lr: float, out: Any) -> None:
    """``out = w - lr dw``, all (n,) and contiguous."""
    kernels.sgd(stream(), [w], [dw], lr, [out])


def sgd_momentum(w: Any, dw: Any, v: Any, lr: float, momentum: float, out: Any, v_out: Any) -> None:
    """``v_out = momentum v - lr dw``, ``out = w + v_out``, all (n,) and contiguous."""
    kernels.sgd_momentum(stream(), [w], [dw], [v], lr, momentum, [out], [v_out])


def rmsprop(w: Any, dw: Any, cache: Any, lr: float, decay: float, epsilon: float, out: Any, cache_out: Any) -> None:
    """RMSProp of w, dw and cache into out and cache_out, all (n,) and contiguous."""
    kernels.rmsprop(stream(), [w], [dw], [cache], lr, decay, epsilon, [out], [cache_out])


def adam(
    w: Any,
    dw: Any,
    m: Any,
    v: Any,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    t: float,
    out: Any,
    m_out: Any,
    v_out: Any,
) -> None:
    """Step number t of Adam of w, dw, m and v into out, m_out and v_out, all (n,) and contiguous."""
    kernels.adam(stream(), [w], [dw], [m], [v], lr, beta1, beta2, epsilon, t, [out], [m_out], [v_out])


def sgd_many(w: list[Any], dw: list[Any], lr: float, out: list[Any]) -> None:
    """:func:`sgd` of each array of the lists, of any shapes."""
    kernels.sgd(stream(), w, dw, lr, out)


def sgd_momentum_many(
    w: list[Any], dw: list[Any], v: list[Any], lr: float, momentum: float, out: list[Any], v_out: list[Any]
) -> None:
    """:func:`sgd_momentum` of each array of the lists, of any shapes."""
    kernels.sgd_momentum(stream(), w, dw, v, lr, momentum, out, v_out)


def rmsprop_many(
    w: list[Any],
    dw: list[Any],
    cache: list[Any],
    lr: float,
    decay: float,
    epsilon: float,
    out: list[Any],
    cache_out: list[Any],
) -> None:
    """:func:`rmsprop` of each array of the lists, of any shapes."""
    kernels.rmsprop(stream(), w, dw, cache, lr, decay, epsilon, out, cache_out)


def adam_many(
    w: list[Any],
    dw: list[Any],
    m: list[Any],
    v: list[Any],
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    t: float,
    out: list[Any],
    m_out: list[Any],
    v_out: list[Any],
) -> None:
    """:func:`adam` of each array of the lists, of any shapes; all at step number t."""
    kernels.adam(stream(), w, dw, m, v, lr, beta1, beta2, epsilon, t, out, m_out, v_out)
