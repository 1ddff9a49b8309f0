"""Softmax cross-entropy over sequences of scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import choose, ran
from fastrnn.cache import empty
from fastrnn.checks import Arguments

_ROW = "softmax_loss"


def temporal_softmax_loss(x: Any, y: Any, mask: Any, verbose: bool = False) -> tuple[Any, np.ndarray]:
    """Softmax loss summed over time and **averaged over the batch**, with its gradient.

    ``loss = -1/N Σ_{n,t} mask[n,t] log softmax(x[n,t])[y[n,t]]``, computed with the maximum of each row taken out, so
    that no score overflows.

    Parameters
    ----------
    x : array_like, shape (N, T, V)
        Scores of all words at all steps.
    y : array_like of int, shape (N, T)
        The right words, in ``[0, V)``. Where `mask` is False they are not looked at.
    mask : array_like of bool, shape (N, T)
        Whether a step counts; integers or floats that are all 0 or 1 serve too.
    verbose : bool, optional
        Print the shape of the flattened gradient.

    Returns
    -------
    loss : floating scalar
        In the dtype of `x`.
    dx : ndarray, shape (N, T, V)
        Gradient with respect to `x`; 0 where masked.

    Raises
    ------
    IndexError
        An id outside ``[0, V)`` at a step that counts; the message gives it and its position.
    ValueError, TypeError
        A shape or dtype does not fit, or the batch is empty, whose average is not defined.
    """
    function = "temporal_softmax_loss"
    check = Arguments(function)
    (x,) = check.floats(("x", x, "N T V"))
    N, T, V = x.shape
    if N == 0:
        raise check.fail(ValueError, "x", "hold a sequence to take the average over", f"shape {x.shape}")
    check.shape("y", np.shape(y), "N T")
    check.shape("mask", np.shape(mask), "N T")
    mask = np.asarray(mask)
    if mask.dtype.kind != "b":
        if mask.dtype.kind not in "iuf" or not np.isin(mask, (0, 1)).all():
            raise check.fail(TypeError, "mask", "be boolean, or all 0 and 1", f"dtype {mask.dtype}")
        mask = mask.astype(bool)
    y = check.ids("y", y, V, f"the V = {V} scores of x", where=mask)
    chosen = choose(_ROW)
    if chosen.is_reference:
        loss, dx = chosen.kernels.temporal_softmax_loss(x, y, mask)
    else:
        dx = empty(x.shape, x.dtype)
        row_loss = np.empty(N * T, np.float64)
        chosen.kernels.temporal_softmax_loss(
            x.reshape(N * T, V), y.reshape(-1), mask.reshape(-1), N, row_loss, dx.reshape(N * T, V)
        )
        loss = x.dtype.type(row_loss.sum() / N)
    ran(function, chosen)
    if verbose:
        print("dx_flat: ", (N * T, V))
    return loss, dx
