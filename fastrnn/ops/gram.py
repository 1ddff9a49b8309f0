"""Gram matrices of feature maps: which channels are active together, wherever that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.backend import choose, ran, rouse
from fastrnn.checks import Arguments

_ROW = "gram"
_AXES = {"NCHW": "N C H W", "NHWC": "N H W C"}


def gram_matrix(features: Any, normalize: bool = True, layout: str = "NCHW") -> np.ndarray:
    """Gram matrix of each image's feature map, ``G[n, c, d] = Σ_p F[n, c, p] F[n, d, p]`` over positions p
    (Gatys, Ecker, Bethge 2016, eq. 3).

    Parameters
    ----------
    features : array_like, shape (N, C, H, W)
        Feature maps; (N, H, W, C) with ``layout="NHWC"``.
    normalize : bool, optional
        Divide by C·H·W.
    layout : {"NCHW", "NHWC"}, optional
        Order of the axes.

    Returns
    -------
    gram : ndarray, shape (N, C, C)
        Symmetric, in the floating dtype of `features`.

    Raises
    ------
    ValueError, TypeError
        A shape, dtype or layout does not fit, or `normalize` would divide by zero.
    """
    function = "gram_matrix"
    chosen = choose(_ROW, features)
    rouse(chosen, _operations(features, layout))
    f, scale = _features(Arguments(function, place=chosen.place), features, normalize, layout)
    if chosen.is_reference:
        gram = chosen.kernels.gram_matrix(np.asarray(features, f.dtype), normalize, layout)
    else:
        N, C, P = f.shape
        gram = chosen.empty((N, C, C), f.dtype)
        size = chosen.kernels.gram_buffers(N, C, P, f.itemsize)[0]
        chosen.kernels.gram_matrix(f, scale, chosen.buffer(size, f.dtype), gram)
    ran(function, chosen)
    return gram


def gram_backward(dgram: Any, features: Any, normalize: bool = True, layout: str = "NCHW") -> np.ndarray:
    """Gradient of :func:`gram_matrix`: ``dF = (dG + dG^T) F``, divided by C·H·W if `normalize`.

    Parameters
    ----------
    dgram : array_like, shape (N, C, C)
        Gradient of the loss with respect to the Gram matrices; it need not be symmetric.
    features, normalize, layout
        As given to :func:`gram_matrix`.

    Returns
    -------
    dfeatures : ndarray
        Of the shape and dtype of `features`.

    Raises
    ------
    ValueError, TypeError
        As :func:`gram_matrix`.
    """
    function = "gram_backward"
    chosen = choose(_ROW, features)
    rouse(chosen, 2 * _operations(features, layout))
    check = Arguments(function, place=chosen.place)
    f, scale = _features(check, features, normalize, layout)
    (dgram,) = check.floats(("dgram", dgram, "N C C"), dtype=f.dtype)
    if chosen.is_reference:
        dfeatures = chosen.kernels.gram_backward(dgram, np.asarray(features, f.dtype), normalize, layout)
    else:
        size = chosen.kernels.gram_buffers(*f.shape, f.itemsize)[1]
        dfeatures = chosen.empty(tuple(check[axis] for axis in _AXES[layout].split()), f.dtype)
        chosen.kernels.gram_backward(dgram, f, scale, chosen.buffer(size, f.dtype), _by_channel(dfeatures, layout))
    ran(function, chosen)
    return dfeatures


def _operations(features: Any, layout: Any) -> float:
    """Floating-point operations of a Gram matrix; 0 where the features are no array of four axes."""
    if type(features) is not np.ndarray or features.ndim != 4:
        return 0.0
    return float(features.size) * features.shape[3 if isinstance(layout, str) and layout == "NHWC" else 1]


def _features(check: Arguments, features: Any, normalize: bool, layout: str) -> tuple[np.ndarray, float]:
    """Feature maps as (N, C, P), and the factor of the Gram matrix."""
    layout = check.choice("layout", layout, tuple(_AXES))
    normalize = check.flag("normalize", normalize)
    (features,) = check.floats(("features", features, _AXES[layout]))
    count = check["C"] * check["H"] * check["W"]
    if normalize and count == 0:
        raise check.fail(ValueError, "features", "have C*H*W > 0 to be normalized", f"shape {features.shape}")
    return _by_channel(features, layout), 1.0 / count if normalize else 1.0


def _by_channel(maps: np.ndarray, layout: str) -> np.ndarray:
    """(N, C, P) of feature maps in either layout: a view wherever their positions can be one axis."""
    if layout == "NCHW":
        N, C, H, W = maps.shape
        return maps.reshape(N, C, H * W)
    N, H, W, C = maps.shape
    return maps.reshape(N, H * W, C).transpose(0, 2, 1)
