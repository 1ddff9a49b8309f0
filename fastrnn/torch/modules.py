"""``RNN``, ``LSTM`` and ``GRU`` of ``torch.nn`` over fastrnn's kernels.

They derive from `torch.nn.RNNBase`, as ``torch.nn.LSTM`` does, and not from that: ``torch.compile(fullgraph=True)``
turns down every instance of ``torch.nn.RNN``, ``LSTM`` and ``GRU``, whatever its forward does. So ``isinstance(module,
torch.nn.RNNBase)`` holds, ``isinstance(module, torch.nn.LSTM)`` does not. Parameters, their names, ``state_dict``,
initialisation and checks are RNNBase's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .packing import Packing
from .recurrent import sequence
from .selection import Selection


class _Layers(Selection, nn.RNNBase):
    """What the three have in common: layers, directions, dropout, and the forms that inputs come in."""

    def __init__(self, mode: str, *args: Any, backend: str = "auto", **kwargs: Any) -> None:
        super().__init__(mode, *args, **kwargs)
        self.backend = backend

    def _lack(self) -> str:
        if self.proj_size:
            return f"option proj_size={self.proj_size}"
        return "option nonlinearity='relu'" if self.mode == "RNN_RELU" else ""

    def _some_weight(self) -> Tensor:
        weight: Any = self.weight_ih_l0
        return weight

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layers.

        Parameters
        ----------
        input : Tensor or PackedSequence
            ``(T, D)``, ``(T, N, D)``, or ``(N, T, D)`` with `batch_first`.
        hx : Tensor, or for the LSTM a tuple of two, optional
            Initial states ``(layers * directions, N, H)``, without N where `input` has none; zeros if not given.

        Returns
        -------
        output : Tensor or PackedSequence
            As `input`, with ``directions * H`` features.
        h_n : Tensor, or for the LSTM a tuple of two
            Final states, of the shape of `hx`.
        """
        packed = isinstance(input, PackedSequence)
        if not self._chosen(input.data if packed else input):
            return self._peer.forward(self, input, hx)
        lstm = self._cell == "lstm"
        batch_sizes: Any = None
        sorted_indices = unsorted_indices = None
        batched = True
        if packed:
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if hx is not None and sorted_indices is not None:
                hx = self.permute_hidden(hx, sorted_indices)
        else:
            data, batched = input, input.dim() == 3
            hx = self._checked_rank(data, hx)
            if not batched:
                data = data.unsqueeze(0 if self.batch_first else 1)
                if hx is not None:
                    hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1)) if lstm else hx.unsqueeze(1)
        weight = self._some_weight()
        if hx is None:
            given = data.dtype
            if data.dtype != weight.dtype or data.shape[-1] != self.input_size:
                self._update_flat_weights()
                self.check_input(data, batch_sizes)
        else:
            given = hx[0].dtype if lstm else hx.dtype
            self._update_flat_weights()
            self.check_forward_args(data, hx, batch_sizes)
        compute, medium, kind = self._precisions(weight, given)
        lengths: Any = None
        if packed:
            packing = Packing(batch_sizes)
            x, lengths = packing.pad(data)
        else:
            x = data if self.batch_first else data.transpose(0, 1)
        if x.dtype != compute:
            x = x.to(compute)
        x, h, c = self._run(x, self._states(x, hx), lengths, batch_sizes, medium)
        if kind != compute:
            x, h, c = x.to(kind), h.to(kind), c.to(kind) if lstm else None
        if packed:
            output: Any = PackedSequence(packing.pack(x, lengths), batch_sizes, sorted_indices, unsorted_indices)
            last: Any = (h, c) if lstm else h
            return output, self.permute_hidden(last, unsorted_indices)
        # torch.nn's output is contiguous where time comes first, and programs call view() on it.
        output = x if self.batch_first else x.transpose(0, 1).contiguous()
        if not batched:
            output, h = output.squeeze(0 if self.batch_first else 1), h.squeeze(1)
            c = c.squeeze(1) if lstm else None
        return output, (h, c) if lstm else h

    def _states(self, x: Tensor, hx: Any) -> tuple[Any, Any]:
        """h0 and c0 (N, H) of each layer and direction; x is (N, T, D) in the dtype to compute in."""
        lstm, count = self._cell == "lstm", len(self._all_weights)
        if hx is None:
            zeros = [torch.zeros((x.shape[0], self.hidden_size), dtype=x.dtype, device=x.device)] * count
            return zeros, zeros if lstm else [None] * count
        if not lstm:
            return hx.to(x.dtype).unbind(), [None] * count
        return hx[0].to(x.dtype).unbind(), hx[1].to(x.dtype).unbind()

    def _run(
        self, x: Tensor, states: tuple[Any, Any], lengths: Any, batch_sizes: Any, medium: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """All layers and directions over x (N, T, D)."""
        h_n: list[Tensor] = []
        c_n: list[Tensor] = []
        outputs: list[Tensor] = []
        directions = 2 if self.bidirectional else 1
        for at, names in enumerate(self._all_weights):
            if at and at % directions == 0:
                x, outputs = self._joined(outputs), []
                if self.dropout and self.training:
                    x = self._drop(x, batch_sizes)
            weights: list[Any] = [getattr(self, name) for name in names]
            if weights[0].dtype != x.dtype:
                weights = [weight.to(x.dtype) for weight in weights]
            if not self.bias:
                weights += [None, None]
            weight_ih, weight_hh, bias_ih, bias_hh = weights
            h0, c0, reverse = states[0][at], states[1][at], at % directions == 1
            output, *last = sequence(
                self._cell, x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, lengths, reverse, medium
            )
            outputs.append(output)
            h_n.append(last[0])
            c_n.extend(last[1:])
        x = self._joined(outputs)
        if len(h_n) == 1:
            return x, h_n[0].unsqueeze(0), c_n[0].unsqueeze(0) if c_n else None
        return x, torch.stack(h_n), torch.stack(c_n) if c_n else None

    def _joined(self, outputs: list[Tensor]) -> Tensor:
        """Outputs of a layer's directions, side by side, in the layout that they have."""
        if len(outputs) == 1:
            return outputs[0]
        if self.batch_first:
            return torch.cat(outputs, 2)
        return torch.cat([output.transpose(0, 1) for output in outputs], 2).transpose(0, 1)

    def _drop(self, x: Tensor, batch_sizes: Tensor | None) -> Tensor:
        """Dropout, with the mask that torch.nn draws from the same state of the generator: time first, or packed."""
        keep = 1 - self.dropout
        N, T, width = x.shape
        shape = (T, N, width) if batch_sizes is None else (int(batch_sizes.sum()), width)
        # One number stands for all where nothing is kept, and nothing is drawn, in torch.nn too.
        mask = x.new_empty(shape).bernoulli_(keep).div_(keep) if keep else x.new_zeros(shape)
        if batch_sizes is None:
            return x * mask.transpose(0, 1)
        mask, _ = _VF._pad_packed_sequence(mask, batch_sizes, True, 0.0, T)
        return x * mask

    def _checked_rank(self, x: Tensor, hx: Any) -> Any:
        """`hx`, if it has as many dimensions as the input asks for; torch.nn's errors otherwise."""
        name = type(self).__name__
        if x.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {x.dim()}D instead")
        if hx is None:
            return None
        if self._cell == "lstm":
            hx = tuple(hx)
            if len(hx) != 2:
                raise ValueError(f"{name}: argument 'hx' must be a tuple (h_0, c_0), got {len(hx)} tensors")
        for state in hx if self._cell == "lstm" else (hx,):
            if state.dim() != x.dim():
                kind = "batched 3-D" if x.dim() == 3 else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx should also be {x.dim()}-D but got {state.dim()}-D tensor"
                )  # fmt: skip
        return hx


class RNN(_Layers):
    """``torch.nn.RNN`` with ``tanh``: the same parameters, the same results, fastrnn's kernels.

    ``h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`` (Elman 1990).

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    num_layers : int, optional
        Layers, each on the outputs of the one below.
    nonlinearity : {"tanh", "relu"}, optional
        ``"relu"`` has no kernel here.
    bias, batch_first, dropout, bidirectional, device, dtype
        As torch.nn's.
    backend : {"auto", "fastrnn", "torch"}, optional
        See :class:`LSTM`.
    """

    _cell = "rnn"
    _peer = nn.RNN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)


class LSTM(_Layers):
    """``torch.nn.LSTM``: the same parameters, the same results, fastrnn's kernels.

    Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000; two biases as in cuDNN, which add up.

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    num_layers : int, optional
        Layers, each on the outputs of the one below.
    bias : bool, optional
    batch_first : bool, optional
        Inputs and outputs are ``(N, T, ·)`` instead of ``(T, N, ·)``.
    dropout : float, optional
        Probability of dropout on the outputs of each layer but the last.
    bidirectional : bool, optional
    proj_size : int, optional
        Projections have no kernel here.
    device, dtype : optional
        Of the parameters: float32, float64 or bfloat16. bfloat16 layers are computed in float32 at precision
        ``"medium"`` (see :func:`fastrnn.set_float32_matmul_precision`), and what they return is rounded; so are float32
        layers under ``torch.autocast`` to bfloat16.
    backend : {"auto", "fastrnn", "torch"}, optional
        ``"auto"`` runs fastrnn's kernels, and torch.nn where they lack something: projections, ``relu``, other dtypes,
        other devices; its ``runs_on`` and :func:`fastrnn.torch.last_backend` tell. ``"fastrnn"`` raises there instead,
        ``"torch"`` always runs torch.nn. It is an attribute, and may be set at any time.

    Raises
    ------
    NotImplementedError
        With ``backend="fastrnn"``: there is no kernel for what was asked. Other errors are those of torch.nn.

    Notes
    -----
    Second derivatives and forward-mode differentiation have no kernel and raise, under every backend but ``"torch"``.
    """

    _cell = "lstm"
    _peer = nn.LSTM
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)


class GRU(_Layers):
    """``torch.nn.GRU``: the same parameters, the same results, fastrnn's kernels.

    Cho et al. 2014, with the reset gate after the recurrent product, as in cuDNN.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As torch.nn's.
    backend : {"auto", "fastrnn", "torch"}, optional
        See :class:`LSTM`.
    """

    _cell = "gru"
    _peer = nn.GRU
    _keeps_state_dtype = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)
