"""Tensors as the arrays that fastrnn's functions take, and back, without a copy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch


def as_array(tensor: torch.Tensor) -> Any:
    """The NumPy array, or on a CUDA device the CuPy array, that shares a tensor's memory."""
    tensor = tensor.detach()
    return tensor.numpy() if tensor.device.type == "cpu" else import_module("cupy").from_dlpack(tensor)


def as_tensor(array: Any) -> torch.Tensor:
    """The tensor that shares the memory of a NumPy or CuPy array, which must be writable."""
    return torch.from_dlpack(array)
