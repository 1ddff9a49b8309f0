"""Softmax cross-entropy over sequences of scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import choose, ran
from fastrnn.checks import Arguments

_ROW = "softmax_loss"


def temporal_softmax_loss(x: Any, y: Any, mask: Any, verbose: bool = False) -> tuple[Any, np.ndarray]:
    """Softmax loss summed over time and **averaged over the batch**, with its gradient.

    ``loss = -1/N Σ_{n,t} mask[n,t] log softmax(x[n,t])[y[n,t]]``, computed with the maximum of each row taken out, so
    that no score overflows.

    Parameters
    ----------
    x : array_like, shape (N, T, V)
        Scores of all words at all steps. Where `mask` is False they may be anything, NaN included.
    y : array_like of int, shape (N, T)
        The right words, in ``[0, V)``. Where `mask` is False they are not looked at. In a call on a CUDA device `y` and
        `mask` may be NumPy arrays too; those on the device are checked there, and the call waits for the answer.
    mask : array_like of bool, shape (N, T)
        Whether a step counts; integers or floats that are all 0 or 1 serve too.
    verbose : bool, optional
        Print the shape of the flattened gradient.

    Returns
    -------
    loss : floating scalar
        In the dtype of `x`; on a CUDA device an array of no axes, so that nothing has to be waited for.
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
    chosen = choose(_ROW, x)
    check = Arguments(function, place=chosen.place)
    (x,) = check.floats(("x", x, "N T V"))
    N, T, V = x.shape
    if N == 0:
        raise check.fail(ValueError, "x", "hold a sequence to take the average over", f"shape {x.shape}")
    y, mask, _ = _targets(check, y, mask, f"the V = {V} scores of x")
    if chosen.is_reference:
        loss, dx = chosen.kernels.temporal_softmax_loss(x, y, mask)
    else:
        dx = chosen.empty(x.shape, x.dtype)
        row_loss = chosen.empty((N * T,), np.float64)
        chosen.kernels.temporal_softmax_loss(
            x.reshape(N * T, V), y.reshape(-1), mask.reshape(-1), N, row_loss, dx.reshape(N * T, V)
        )
        total_loss = getattr(chosen.kernels, "total_loss", None)
        if total_loss:  # on a device: one launch for the sum, the division and the dtype
            total = chosen.empty((1,), x.dtype)
            total_loss(row_loss, N, total)
            loss = chosen.number(total[0], x.dtype)
        else:
            loss = chosen.number(row_loss.sum() / N, x.dtype)
    ran(function, chosen)
    if verbose:
        print("dx_flat: ", (N * T, V))
    return loss, dx


def vocab_softmax_loss(h: Any, W: Any, b: Any, y: Any, mask: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Softmax loss of an affine layer over a vocabulary, with all gradients, without ever holding all scores.

    The same as :func:`temporal_affine_forward`, :func:`temporal_softmax_loss` and :func:`temporal_affine_backward` one
    after the other: ``loss = -1/N Σ_{n,t} mask[n,t] log softmax(h[n,t] W + b)[y[n,t]]``. Scores are computed, turned
    into their gradients and used up for some steps at a time. Steps that do not count cost nothing, and add nothing
    even where `h` is NaN or infinite; of the three functions dW is NaN then, because 0 times NaN is.

    Parameters
    ----------
    h : array_like, shape (N, T, H)
        Hidden states.
    W : array_like, shape (H, V)
        Weights of the V words.
    b : array_like, shape (V,)
        Biases.
    y : array_like of int, shape (N, T)
        The right words, in ``[0, V)``. Where `mask` is False they are not looked at. In a call on a CUDA device `y` and
        `mask` may be NumPy arrays too; those on the device are checked there, and the call waits for the answer.
    mask : array_like of bool, shape (N, T)
        Whether a step counts; integers or floats that are all 0 or 1 serve too.

    Returns
    -------
    loss : floating scalar
        Summed over time and **averaged over the batch**, in the promoted floating dtype of `h`, `W` and `b`; on a CUDA
        device an array of no axes, so that nothing has to be waited for.
    dh : ndarray, shape (N, T, H)
        Gradient with respect to `h`; 0 where masked.
    dW : ndarray, shape (H, V)
        C-contiguous, or on the C++ kernels Fortran-contiguous if `W` is.
    db : ndarray, shape (V,)

    Raises
    ------
    IndexError
        An id outside ``[0, V)`` at a step that counts; the message gives it and its position.
    ValueError, TypeError
        A shape or dtype does not fit, or the batch is empty, whose average is not defined.

    Notes
    -----
    Where N·T and V are some hundreds at least, memory beyond the arguments and results stays below a tenth of the N·T·V
    scores, unless arguments have to be copied: for their dtype, or, on the Numba backend, because they are not in C
    order. There H has to be below V / 2, too. The reference holds all scores.
    """
    return vocab_softmax_loss_by(h, W, b, y, mask, None)


def vocab_softmax_loss_by(
    h: Any, W: Any, b: Any, y: Any, mask: Any, by_word: bool | None
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """`vocab_softmax_loss`, whose dW is the transpose of a C-contiguous (V, H) array `by_word`; None: where W is nearer
    to that than to C-contiguous itself. Only C++ kernels write it so: others' is C-contiguous."""
    function = "vocab_softmax_loss"
    chosen = choose(_ROW, h)
    check = Arguments(function, place=chosen.place)
    h, W, b = check.floats(("h", h, "N T H"), ("W", W, "H V"), ("b", b, "V"))
    N, T, H = h.shape
    V = check["V"]
    if N == 0:
        raise check.fail(ValueError, "h", "hold a sequence to take the average over", f"shape {h.shape}")
    y, mask, counted = _targets(check, y, mask, f"the V = {V} columns of W")
    dh: np.ndarray
    if chosen.is_reference:
        loss, dh, dW, db = chosen.kernels.vocab_softmax_loss(h, W, b, y, mask)
    else:
        dh, db = chosen.empty(h.shape, h.dtype), chosen.empty(b.shape, b.dtype)
        if by_word is None:
            by_word = abs(W.strides[0]) < abs(W.strides[1])
        by_word = by_word and chosen.name == "cpu"
        dW = chosen.empty(W.shape[::-1], W.dtype).T if by_word else chosen.empty(W.shape, W.dtype)
        (size,) = chosen.kernels.vocab_softmax_loss_buffers(N * T, H, V, h.itemsize)
        total = chosen.empty((1,), np.float64)
        # CUDA kernels are told which steps count, where that is known without waiting; others find it in the mask.
        rows = () if counted is None or chosen.name != "cuda" else (check.place.moved(counted),)
        workspace = chosen.buffer(size, h.dtype)
        chosen.kernels.vocab_softmax_loss(h, W, b, y.reshape(-1), mask.reshape(-1), workspace, total, dh, dW, db, *rows)
        loss = chosen.number(total[0] / N, h.dtype)
    ran(function, chosen)
    return loss, dh, dW, db


def _targets(check: Arguments, y: Any, mask: Any, of: str) -> tuple[Any, Any, np.ndarray | None]:
    """`y` (N, T) as int64 ids of the V words, which `of` names, and `mask` (N, T) as bool, where the call is; and at
    which of the N T steps it is True, where that is known without waiting."""
    words, mask = check.either("y", y), check.either("mask", mask)
    check.shape("y", words.shape, "N T")
    check.shape("mask", mask.shape, "N T")
    mask = check.mask("mask", mask)
    # A list without elements, of which NumPy makes floats, may be told from an array of floats.
    words = check.ids("y", words if words.size else y, check["V"], of, where=mask)
    return words, check.place.moved(mask), np.flatnonzero(mask) if type(mask) is np.ndarray else None
