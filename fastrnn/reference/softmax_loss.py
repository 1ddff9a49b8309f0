"""Softmax loss over time, for sequences of words."""

from __future__ import annotations

import numpy as np

from .affine import temporal_affine_backward, temporal_affine_forward


def temporal_softmax_loss(
    x: np.ndarray, y: np.ndarray, mask: np.ndarray, verbose: bool = False
) -> tuple[np.floating, np.ndarray]:
    """Cross-entropy of the words y under ``p = softmax(x)``, summed over time and averaged over the batch::

        loss = -1/N sum over n, t of mask[n, t] log p[n, t, y[n, t]]
        dx = mask (p - onehot(y)) / N

    Parameters
    ----------
    x : (N, T, V) scores
    y : (N, T) integer ids 0..V-1 of the right words; not looked at where the mask is False
    mask : (N, T) booleans: the steps that count
    verbose : print the shape of the flattened gradient

    Returns
    -------
    loss : scalar of the dtype of x, 0 for an empty batch
    dx : (N, T, V) gradient of the loss with respect to x, 0 where the mask is False

    References
    ----------
    J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990. The maximum
    is subtracted first, which changes nothing in exact arithmetic and keeps exp from overflowing.
    """
    N, T, V = x.shape
    kept = np.flatnonzero(mask)
    scores, target = x.reshape(N * T, V)[kept], np.asarray(y).reshape(N * T)[kept]
    right = (np.arange(len(kept)), target)

    shifted = scores - scores.max(axis=1, keepdims=True, initial=-np.inf)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    count = max(N, 1)
    loss = log_p.dtype.type(-log_p[right].sum() / count)

    dscores = np.exp(log_p)
    dscores[right] -= 1
    dx_flat = np.zeros((N * T, V), log_p.dtype)
    dx_flat[kept] = dscores / count
    if verbose:
        print("dx_flat: ", dx_flat.shape)
    return loss, dx_flat.reshape(N, T, V)


def vocab_softmax_loss(
    h: np.ndarray, W: np.ndarray, b: np.ndarray, y: np.ndarray, mask: np.ndarray
) -> tuple[np.floating, np.ndarray, np.ndarray, np.ndarray]:
    """The loss of `temporal_softmax_loss` for the scores ``x = h W + b``, and its gradients by the chain rule::

        dh = dx W^T,  dW = sum over n, t of h^T dx,  db = sum over n, t of dx

    The sums are over the steps that count. What stands at the others does not matter, and may be NaN.

    Parameters
    ----------
    h : (N, T, H) hidden states
    W : (H, V) weights
    b : (V,) bias
    y : (N, T) integer ids 0..V-1 of the right words; not looked at where the mask is False
    mask : (N, T) booleans: the steps that count

    Returns
    -------
    loss : scalar of the dtype of the scores, 0 for an empty batch
    dh : (N, T, H), 0 where the mask is False
    dW : (H, V)
    db : (V,)
    """
    masked = np.logical_not(mask)
    h = h.copy()  # the caller's stays as it is
    h[masked] = 0  # their dx is 0, but 0 times NaN is NaN
    scores, cache = temporal_affine_forward(h, W, b)
    loss, dscores = temporal_softmax_loss(scores, y, mask)
    dh, dW, db = temporal_affine_backward(dscores, cache)
    dh[masked] = 0  # likewise where W is not finite
    return loss, dh, dW, db
