"""Losses of style transfer, and their gradients."""

from __future__ import annotations

from typing import Any

from .arrays import kernels, stream


def squared_distance(a: Any, b: Any, partial: Any) -> None:
    """Sums of ``(a - b)²`` over chunks of a and b (n,), into partial (chunks,), float64."""
    kernels.squared_distance(stream(), a, b, partial)


def scaled_difference(a: Any, b: Any, scale: float, out: Any) -> None:
    """``out = scale (a - b)``, all (n,)."""
    kernels.scaled_difference(stream(), a, b, scale, out)


def tv_loss(img: Any, partial: Any) -> None:
    """Sums of squared differences of neighbours of each plane of img (P, H, W), into partial (P,), float64."""
    kernels.tv_loss(stream(), img, partial)


def tv_loss_backward(img: Any, scale: float, dimg: Any) -> None:
    """`scale` times the gradient of :func:`tv_loss`'s total by img (P, H, W), into dimg."""
    kernels.tv_loss_backward(stream(), img, scale, dimg)
