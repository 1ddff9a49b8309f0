"""Losses of neural style transfer: content, style and total variation, each with its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .gram import gram_backward, gram_matrix


def content_loss(content_weight: float, content_current: np.ndarray, content_original: np.ndarray) -> np.floating:
    """Squared distance between two feature maps: ``w * sum((F - P)^2)``.

    Parameters
    ----------
    content_weight : weight w of the loss
    content_current : features F of the image that is being made; any shape
    content_original : features P of the content image; same shape

    Returns
    -------
    loss : scalar of the features' dtype

    References
    ----------
    L. A. Gatys, A. S. Ecker and M. Bethge, "Image style transfer using convolutional neural networks", CVPR 2016,
    equation 1, whose factor 1/2 is left to the weight here.
    """
    difference = content_current - content_original
    # float(): a NumPy float64 scalar would turn float32 into float64.
    return difference.dtype.type(float(content_weight) * np.sum(difference**2))


def content_loss_backward(
    content_weight: float, content_current: np.ndarray, content_original: np.ndarray
) -> np.ndarray:
    """Gradient of `content_loss` with respect to content_current: ``2 w (F - P)``.

    Parameters
    ----------
    content_weight, content_current, content_original : as given to `content_loss`

    Returns
    -------
    dcontent_current : like content_current
    """
    # asanyarray: of arrays without axes NumPy makes scalars.
    return np.asanyarray(2 * float(content_weight) * (content_current - content_original))


def style_loss(
    feats: Sequence[np.ndarray],
    style_layers: Sequence[int],
    style_targets: Sequence[np.ndarray],
    style_weights: Sequence[float],
) -> np.floating:
    """Squared distance between Gram matrices, over several layers: ``sum over l of w_l * sum((G_l - A_l)^2)``.

    Parameters
    ----------
    feats : features of every layer, (N, C, H, W) each with its own C, H, W
    style_layers : indices into feats of the layers that count
    style_targets : for each of style_layers the (N, C, C) normalised Gram matrix A_l of the style image
    style_weights : for each of style_layers its weight w_l

    Returns
    -------
    loss : scalar of the features' dtype

    References
    ----------
    L. A. Gatys, A. S. Ecker and M. Bethge, "Image style transfer using convolutional neural networks", CVPR 2016,
    equations 4 and 5, with the Gram matrix normalised instead of the distance.
    """
    dtype = np.result_type(np.float32, *feats)
    loss = dtype.type(0)
    for layer, target, weight in zip(style_layers, style_targets, style_weights, strict=True):
        loss = loss + content_loss(weight, gram_matrix(feats[layer]), target)
    return loss


def style_loss_backward(
    feats: Sequence[np.ndarray],
    style_layers: Sequence[int],
    style_targets: Sequence[np.ndarray],
    style_weights: Sequence[float],
) -> list[np.ndarray]:
    """Gradients of `style_loss` with respect to each of feats.

    Parameters
    ----------
    feats, style_layers, style_targets, style_weights : as given to `style_loss`

    Returns
    -------
    dfeats : list of arrays like feats, 0 for layers that do not count
    """
    dfeats = [np.zeros(features.shape, features.dtype) for features in feats]
    for layer, target, weight in zip(style_layers, style_targets, style_weights, strict=True):
        dgram = content_loss_backward(weight, gram_matrix(feats[layer]), target)
        dfeats[layer] += gram_backward(dgram, feats[layer])
    return dfeats


def tv_loss(img: np.ndarray, tv_weight: float) -> np.floating:
    """Total variation: the weighted sum of squared differences between neighbouring pixels.

    Parameters
    ----------
    img : (1, 3, H, W) image
    tv_weight : weight of the loss

    Returns
    -------
    loss : scalar of the image's dtype

    References
    ----------
    A. Mahendran and A. Vedaldi, "Understanding deep image representations by inverting them", CVPR 2015,
    section 3.2 with beta = 2.
    """
    vertical = img[:, :, 1:, :] - img[:, :, :-1, :]
    horizontal = img[:, :, :, 1:] - img[:, :, :, :-1]
    return img.dtype.type(float(tv_weight) * (np.sum(vertical**2) + np.sum(horizontal**2)))


def tv_loss_backward(img: np.ndarray, tv_weight: float) -> np.ndarray:
    """Gradient of `tv_loss`: each difference pulls on the two pixels that it is made of, in opposite directions.

    Parameters
    ----------
    img, tv_weight : as given to `tv_loss`

    Returns
    -------
    dimg : like img
    """
    dvertical = 2 * float(tv_weight) * (img[:, :, 1:, :] - img[:, :, :-1, :])
    dhorizontal = 2 * float(tv_weight) * (img[:, :, :, 1:] - img[:, :, :, :-1])
    dimg = np.zeros(img.shape, img.dtype)
    dimg[:, :, 1:, :] += dvertical
    dimg[:, :, :-1, :] -= dvertical
    dimg[:, :, :, 1:] += dhorizontal
    dimg[:, :, :, :-1] -= dhorizontal
    return dimg
