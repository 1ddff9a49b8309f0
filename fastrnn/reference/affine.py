"""Affine layers: ``out = x w + b``, on whole examples or on every time step."""

from __future__ import annotations

from typing import Any

import numpy as np


def affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any]:
    """Fully connected layer: ``out = x w + b``, each example flattened to a vector first.

    Parameters
    ----------
    x : (N, d1, ..., dk) inputs
    w : (D, M) weights, D = d1 * ... * dk
    b : (M,) bias

    Returns
    -------
    out : (N, M)
    cache : what `affine_backward` needs
    """
    out = x.reshape(len(x), len(w)) @ w + b
    return out, (x, w)


def affine_backward(dout: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `affine_forward`: ``dx = dout w^T``, ``dw = x^T dout``, ``db`` the sum of dout over the batch.

    Parameters
    ----------
    dout : (N, M) gradient of the loss with respect to out
    cache : from `affine_forward`

    Returns
    -------
    dx : (N, d1, ..., dk)
    dw : (D, M)
    db : (M,)
    """
    x, w = cache
    dx = (dout @ w.T).reshape(x.shape)
    dw = x.reshape(len(x), len(w)).T @ dout
    db = dout.sum(axis=0)
    return dx, dw, db


def temporal_affine_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any]:
    """The same affine layer applied to every time step: ``out[n, t] = x[n, t] w + b``.

    Parameters
    ----------
    x : (N, T, D) inputs
    w : (D, M) weights
    b : (M,) bias

    Returns
    -------
    out : (N, T, M)
    cache : what `temporal_affine_backward` needs
    """
    N, T, D = x.shape
    out = (x.reshape(N * T, D) @ w + b).reshape(N, T, w.shape[1])
    return out, (x, w)


def temporal_affine_backward(dout: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of `temporal_affine_forward`; those of w and b are summed over the batch and over time.

    Parameters
    ----------
    dout : (N, T, M) gradient of the loss with respect to out
    cache : from `temporal_affine_forward`

    Returns
    -------
    dx : (N, T, D)
    dw : (D, M)
    db : (M,)
    """
    x, w = cache
    N, T, D = x.shape
    dout = dout.reshape(N * T, w.shape[1])
    dx = (dout @ w.T).reshape(x.shape)
    dw = x.reshape(N * T, D).T @ dout
    db = dout.sum(axis=0)
    return dx, dw, db
