"""LSTM over whole sequences: the large products by CuPy, the time loop by `csrc/cuda/lstm.cu`."""

from __future__ import annotations

from typing import Any

from . import recurrent
from .arrays import kernels, stream
from .recurrent import precision_used as precision_used


def chose(N: int, T: int, D: int, H: int, itemsize: int) -> str:
    """How the time loops run: see :func:`recurrent.chose`."""
    return recurrent.chose(4, N, H, itemsize)


def lstm_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Elements of reserve, of forward's workspace and of backward's."""
    return kernels.lstm_buffers(N, T, H, itemsize)


def lstm_forward(
    x: Any,
    h0: Any,
    c0: Any,
    Wx: Any,
    Wh: Any,
    b: Any,
    lengths: Any,
    reverse: bool,
    h: Any,
    h_n: Any,
    c_n: Any,
    reserve: Any,
    workspace: Any,
) -> None:
    """x (N, T, D) to h (N, T, H), h_n and c_n (N, H); what backward needs to reserve."""
    recurrent.project(x, Wx, reserve)
    kernels.lstm_forward(
        stream(), recurrent.precision(), h0, c0, Wh, b, lengths, reverse, h, h_n, c_n, reserve, workspace
    )


def lstm_backward(
    dh: Any,
    dh_n: Any,
    dc_n: Any,
    x: Any,
    h0: Any,
    c0: Any,
    Wx: Any,
    Wh: Any,
    lengths: Any,
    reverse: bool,
    reserve: Any,
    workspace: Any,
    dx: Any,
    dh0: Any,
    dc0: Any,
    dWx: Any,
    dWh: Any,
    db: Any,
) -> None:
    """All gradients of :func:`lstm_forward`."""
    kernels.lstm_backward(
        stream(), recurrent.precision(), dh, dh_n, dc_n, Wh, lengths, reverse, reserve, workspace, dh0, dc0, db
    )
    H, columns = Wh.shape
    da = recurrent.gradients(workspace, x, columns)
    recurrent.input_gradients(x, lengths, Wx, da, dx, dWx)
    recurrent.product(recurrent.state_before(x, columns, H, reserve).T, da, dWh)
