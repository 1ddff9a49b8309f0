"""``RNNCell``, ``LSTMCell`` and ``GRUCell`` of ``torch.nn`` over fastrnn's kernels: sequences of one step.

They derive from torch.nn's own, which ``torch.compile`` traces. A kernel packs the weights anew in each call, which a
sequence makes up for and a single step does not: on the CPU, ``backend="auto"`` runs torch.nn's cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .recurrent import sequence
from .selection import Selection, autocast


class _OneStep(Selection):
    """What the three have in common."""

    _slower = "a single step was faster there at nearly every size measured"

    def __init__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend

    def _lack(self) -> str:
        return "option nonlinearity='relu'" if getattr(self, "nonlinearity", "tanh") == "relu" else ""

    def _some_weight(self) -> Tensor:
        weight: Tensor = self.weight_ih  # type: ignore[attr-defined]
        return weight

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one step.

        Parameters
        ----------
        input : Tensor, shape (N, D) or (D,)
        hx : Tensor, shape (N, H) or (H,), or for the LSTM a tuple of two, optional
            States before the step; zeros if not given.

        Returns
        -------
        Tensor, shape (N, H) or (H,), or for the LSTM a tuple of two
            States after the step.
        """
        if not self._chosen(input):
            return self._peer.forward(self, input, hx)
        weights: list[Any] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]  # type: ignore[attr-defined]
        lstm = self._cell == "lstm"
        if lstm and hx is not None and len(hx) != 2:
            raise ValueError(f"{type(self).__name__}: argument 'hx' must be a tuple (h_0, c_0), got {len(hx)} tensors")
        states: tuple[Any, ...] = (None, None) if hx is None else tuple(hx) if lstm else (hx, None)
        self._check(input, states)
        compute, medium, kind = self._precisions(weights[0], input.dtype if hx is None else states[0].dtype)
        x: Any = input.unsqueeze(0) if input.dim() == 1 else input
        h0: Any = states[0]
        c0: Any = states[1]
        if h0 is None:
            h0 = torch.zeros((x.shape[0], weights[1].shape[1]), dtype=compute, device=x.device)
            c0 = h0 if lstm else None
        elif input.dim() == 1:
            h0, c0 = h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0)
        if input.dtype != compute or weights[0].dtype != compute or h0.dtype != compute:
            x, h0, c0, *weights = (t if t is None else t.to(compute) for t in (x, h0, c0, *weights))
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        results = sequence(
            self._cell, x.unsqueeze(1), h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, medium=medium
        )[1:]  # fmt: skip
        if kind != compute:
            results = tuple(result.to(kind) for result in results)
        if input.dim() == 1:
            results = tuple(result.squeeze(0) for result in results)
        return results if lstm else results[0]

    def _check(self, input: Tensor, states: tuple[Any, ...]) -> None:
        """Shapes and dtypes."""
        name, size = type(self).__name__, self.input_size  # type: ignore[attr-defined]
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != size:
            raise RuntimeError(
                f"{name}: input has inconsistent input_size: expected {size}, got {input.shape[-1]}"
            )  # fmt: skip
        expected = (*input.shape[:-1], self.hidden_size)  # type: ignore[attr-defined]
        for letter, state in zip("hc", states, strict=True):
            if state is not None and state.shape != expected:
                raise RuntimeError(f"{name}: {letter}_0 must have shape {expected}, got {tuple(state.shape)}")
        dtype = self._some_weight().dtype
        if not autocast(input.device.type):
            for what, given in (("input", input), ("h_0", states[0]), ("c_0", states[1])):
                if given is not None and given.dtype != dtype:
                    raise RuntimeError(f"{name}: {what} must have the dtype of the weights, {dtype}, got {given.dtype}")


class RNNCell(_OneStep, nn.RNNCell):
    """``torch.nn.RNNCell`` with ``tanh``: the same parameters, the same results, fastrnn's kernels.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, device, dtype
        As torch.nn's; ``nonlinearity="relu"`` has no kernel here.
    backend : {"auto", "fastrnn", "torch"}, optional
        See :class:`fastrnn.torch.LSTM`; on the CPU ``"auto"`` is torch.nn, which is faster for single steps.
    """

    _cell = "rnn"
    _peer = nn.RNNCell


class LSTMCell(_OneStep, nn.LSTMCell):
    """``torch.nn.LSTMCell``: the same parameters, the same results, fastrnn's kernels.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As torch.nn's.
    backend : {"auto", "fastrnn", "torch"}, optional
        See :class:`fastrnn.torch.LSTM`; on the CPU ``"auto"`` is torch.nn, which is faster for single steps.
    """

    _cell = "lstm"
    _peer = nn.LSTMCell
    _keeps_state_dtype = True


class GRUCell(_OneStep, nn.GRUCell):
    """``torch.nn.GRUCell``: the same parameters, the same results, fastrnn's kernels.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As torch.nn's.
    backend : {"auto", "fastrnn", "torch"}, optional
        See :class:`fastrnn.torch.LSTM`; on the CPU ``"auto"`` is torch.nn, which is faster for single steps.
    """

    _cell = "gru"
    _peer = nn.GRUCell
    _keeps_state_dtype = True
