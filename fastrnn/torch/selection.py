"""Which of fastrnn's kernels and torch.nn runs a module, and what ran last."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn.backend import LastBackend

BACKENDS = ("auto", "fastrnn", "torch")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_local = threading.local()


class TorchBackend(LastBackend):
    """``"torch"``, where a module of fastrnn.torch ran torch.nn's kernels.

    Attributes
    ----------
    reason : str
        Why.
    """

    reason: str

    def __repr__(self) -> str:
        return f"<{self.function} ran on 'torch': {self.reason}>"


def last_backend() -> LastBackend | None:
    """What ran the last module of fastrnn.torch in this thread.

    Returns
    -------
    LastBackend or None
        That of :func:`fastrnn.last_backend`; or ``"torch"``, whose ``.reason`` says why torch.nn's kernels ran; None
        before the first call. Compiled and exported programs leave no trace here, only in `fastrnn.last_backend`.
    """
    function, reason = getattr(_local, "last", ("", ""))
    if not reason:
        return fastrnn.last_backend()
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    told = TorchBackend("torch", function, "", precision, threads)
    told.reason = reason
    return told


class Selection:
    """The part of a module that chooses between fastrnn's kernels and torch.nn's."""

    _cell: str
    _peer: Any  # the class of torch.nn
    _keeps_state_dtype = False
    _slower = ""  # why torch.nn serves better on the CPU, where the choice is free
    _backend = "auto"

    @property
    def backend(self) -> str:
        """``"auto"``, ``"fastrnn"`` or ``"torch"``: what may run this module."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(
                f"fastrnn.torch.{type(self).__name__}: argument 'backend' must be one of "
                f"{', '.join(map(repr, BACKENDS))}, got {name!r}"
            )
        if name == "fastrnn" and self._lack():
            raise self._unsupported(self._lack())
        self._backend = name

    @property
    def runs_on(self) -> str:
        """``"fastrnn"``, or ``"torch: "`` and the reason, for inputs of the module's own dtype and device."""
        reason = self._reason(self._some_weight())
        return f"torch: {reason}" if reason else "fastrnn"

    def extra_repr(self) -> str:
        """torch.nn's, and what is unlike it."""
        text: str = super().extra_repr()  # type: ignore[misc]
        if self.backend != "auto":
            text += f", backend={self.backend!r}"
        lack = self._lack() or _input_lack(self._some_weight())
        return f"{text}, runs_on={self.runs_on!r}" if lack else text

    def _lack(self) -> str:
        """The option of the module for which there is no kernel; empty if there is none."""
        raise NotImplementedError

    def _some_weight(self) -> Tensor:
        """Any weight, for its dtype and device."""
        raise NotImplementedError

    def _unsupported(self, what: str) -> NotImplementedError:
        return NotImplementedError(
            f"fastrnn.torch.{type(self).__name__}: {what} has no kernel here; backend='auto' or 'torch' runs it on "
            f"torch.nn.{self._peer.__name__}"
        )

    def _reason(self, x: Tensor) -> str:
        """Why torch.nn has to run an input like `x`; empty if fastrnn can."""
        if self.backend == "torch":
            return "backend='torch' is set"
        lack = self._lack() or _input_lack(x)
        return lack or (self._slower if self.backend == "auto" and x.device.type == "cpu" else "")

    def _chosen(self, x: Tensor) -> bool:
        """Whether fastrnn's kernels run this input; torch.nn has to otherwise."""
        reason = self._reason(x)
        if not torch.compiler.is_compiling():
            _local.last = (self._peer.__name__, reason)
        if reason and self.backend == "fastrnn":
            raise self._unsupported(reason)
        return not reason

    def _precisions(self, weight: Tensor, state: torch.dtype) -> tuple[torch.dtype, bool, torch.dtype]:
        """Dtype to compute in, whether at precision "medium", and the dtype of results.

        Under autocast that is torch.nn's: on the CPU, where a new state is a sum with the old one, the dtype of the
        `state` that was given, which is the input's by default.
        """
        device = weight.device.type
        if weight.dtype == torch.float64:
            return torch.float64, False, torch.float64
        if autocast(device):
            keeps = self._keeps_state_dtype and device == "cpu"
            return torch.float32, True, state if keeps else torch.bfloat16
        return torch.float32, weight.dtype == torch.bfloat16, weight.dtype


def _input_lack(x: Tensor) -> str:
    device = x.device.type
    if x.dtype not in _DTYPES:
        return f"dtype {str(x.dtype).removeprefix('torch.')}"
    if device not in ("cpu", "cuda"):
        return "" if device == "meta" else f"device {device}"
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16:
        return f"autocast to {str(torch.get_autocast_dtype(device)).removeprefix('torch.')}"
    if device == "cuda" and not torch.compiler.is_compiling():
        why = fastrnn.backend_status()["cuda"]
        return f"device cuda ({why})" if why else ""
    return ""


def autocast(device: str) -> bool:
    """Whether autocast is on for a type of device; False for one that knows none."""
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
