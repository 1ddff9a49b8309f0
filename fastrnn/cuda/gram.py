"""Gram matrices of feature maps, and their gradient."""

from __future__ import annotations

from typing import Any

from .arrays import kernels, stream


def gram_buffers(N: int, C: int, P: int, itemsize: int) -> tuple[int, int]:
    """Elements of the workspaces of :func:`gram_matrix` and :func:`gram_backward`, on the current device."""
    forward, backward = kernels.gram_buffers(N, C, P, itemsize)
    return forward, backward


def gram_matrix(f: Any, scale: float, workspace: Any, gram: Any) -> None:
    """``scale f fᵀ`` of each image of f (N, C, P) into gram (N, C, C), exactly symmetric."""
    kernels.gram_matrix(stream(), f, scale, workspace, gram)


def gram_backward(dgram: Any, f: Any, scale: float, workspace: Any, df: Any) -> None:
    """``scale (dG + dGᵀ) f`` of dgram (N, C, C) and f (N, C, P) into df (N, C, P), of any strides."""
    kernels.gram_backward(stream(), dgram, f, scale, workspace, df)
