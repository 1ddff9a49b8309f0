"""Gram matrix of feature maps: the description of style in neural style transfer."""

from __future__ import annotations

import numpy as np


def gram_matrix(features: np.ndarray, normalize: bool = True, layout: str = "NCHW") -> np.ndarray:
    """Correlations between channels: ``G[n, i, j]`` is the sum over all pixels p of ``F[n, i, p] F[n, j, p]``.

    Parameters
    ----------
    features : (N, C, H, W) feature maps, or (N, H, W, C) with layout "NHWC"
    normalize : divide by C * H * W
    layout : "NCHW" or "NHWC"

    Returns
    -------
    gram : (N, C, C)

    References
    ----------
    L. A. Gatys, A. S. Ecker and M. Bethge, "Image style transfer using convolutional neural networks", CVPR 2016,
    equation 3.
    """
    flat, size = _flatten(features, layout)
    gram = flat @ flat.transpose(0, 2, 1)
    return gram / size if normalize else gram


def gram_backward(dgram: np.ndarray, features: np.ndarray, normalize: bool = True, layout: str = "NCHW") -> np.ndarray:
    """Gradient of `gram_matrix`: ``dF = (dG + dG^T) F``, because each feature is in a row and in a column of G.

    Parameters
    ----------
    dgram : (N, C, C) gradient of the loss with respect to the Gram matrix
    features, normalize, layout : as given to `gram_matrix`

    Returns
    -------
    dfeatures : like features
    """
    flat, size = _flatten(features, layout)
    dflat = (dgram + dgram.transpose(0, 2, 1)) @ flat
    if normalize:
        dflat = dflat / size
    if layout == "NHWC":
        dflat = dflat.transpose(0, 2, 1)
    return np.ascontiguousarray(dflat).reshape(features.shape)


def _flatten(features: np.ndarray, layout: str) -> tuple[np.ndarray, int]:
    """The features as (N, C, pixels), and what normalisation divides by."""
    if layout == "NHWC":
        N, H, W, C = features.shape
        flat = features.reshape(N, H * W, C).transpose(0, 2, 1)
    else:
        N, C, H, W = features.shape
        flat = features.reshape(N, C, H * W)
    return flat, max(C * H * W, 1)
