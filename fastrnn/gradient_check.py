"""Numerical gradients, to check analytic ones against.

All differences are central, ``(f(x + h) - f(x - h)) / 2h``, whose error falls with h^2. Use float64: in float32 the
rounding of f hides all but the first few digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["eval_numerical_gradient", "eval_numerical_gradient_array", "rel_error"]


def eval_numerical_gradient(
    f: Callable[[np.ndarray], Any], x: np.ndarray, verbose: bool = True, h: float = 1e-5
) -> np.ndarray:
    """Numerical gradient of a scalar function.

    Parameters
    ----------
    f : called as f(x), returns a scalar; it may also read x from its closure
    x : floating array of any shape; perturbed in place, one element at a time, and restored exactly
    verbose : print each index and the derivative there
    h : perturbation

    Returns
    -------
    gradient : like x

    Raises
    ------
    ValueError
        If x cannot hold a perturbation by h: h is below its resolution, or x holds integers.
    """
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        gradient[index] = _derivative(f, x, index, h)
        if verbose:
            print(index, gradient[index])
    return gradient


def eval_numerical_gradient_array(
    f: Callable[[np.ndarray], Any], x: np.ndarray, df: np.ndarray | float, h: float = 1e-5
) -> np.ndarray:
    """Numerical gradient of a loss through a function that returns an array.

    Parameters
    ----------
    f : called as f(x), returns an array; it may also read x from its closure
    x : floating array of any shape; perturbed in place, one element at a time, and restored exactly
    df : gradient of the loss with respect to f(x), like f(x)
    h : perturbation

    Returns
    -------
    gradient : like x; the sum of df times the derivative of f(x)

    Raises
    ------
    ValueError
        If x cannot hold a perturbation by h: h is below its resolution, or x holds integers.
    """
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        gradient[index] = np.sum(_derivative(f, x, index, h) * df)
    return gradient


def rel_error(x: Any, y: Any) -> float:
    """Largest relative difference of two arrays: ``max |x - y| / max(1e-8, |x| + |y|)``.

    Parameters
    ----------
    x, y : arrays of one shape

    Returns
    -------
    float, 0 for empty arrays and NaN where either holds a NaN
    """
    x, y = np.asarray(x), np.asarray(y)
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y)), initial=0))


def _derivative(f: Callable[[np.ndarray], Any], x: np.ndarray, index: tuple[int, ...], h: float) -> np.ndarray:
    """Derivative of f(x) with respect to one element of x."""
    original = x[index]
    try:
        x[index] = original + h
        above, f_above = x[index], np.array(f(x))  # a copy: f may return the same buffer twice
        x[index] = original - h
        below, f_below = x[index], np.array(f(x))
    finally:
        x[index] = original
    if not below < original < above:
        raise ValueError(f"numerical gradient: h={h:g} is lost in the {x.dtype} element x{list(index)} = {original}")
    # Not 2h: this is what the rounding of x + h and x - h left of it.
    return (f_above - f_below) / (float(above) - float(below))
