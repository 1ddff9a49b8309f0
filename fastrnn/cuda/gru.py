"""GRU over whole sequences: the large products by CuPy, the time loop by `csrc/cuda/gru.cu`."""

from __future__ import annotations

from typing import Any

from . import recurrent
from .arrays import kernels, stream
from .recurrent import precision_used as precision_used


def chose(N: int, T: int, D: int, H: int, itemsize: int) -> str:
    """How the time loops run: see :func:`recurrent.chose`."""
    return recurrent.chose(3, N, H, itemsize)


def gru_buffers(N: int, T: int, D: int, H: int, itemsize: int) -> tuple[int, int, int]:
    """Elements of reserve, of forward's workspace and of backward's."""
    return kernels.gru_buffers(N, T, H, itemsize)


def gru_forward(
    x: Any,
    h0: Any,
    Wx: Any,
    Wh: Any,
    b: Any,
    bh: Any,
    lengths: Any,
    reverse: bool,
    h: Any,
    h_n: Any,
    reserve: Any,
    workspace: Any,
) -> None:
    """x (N, T, D) to h (N, T, H) and h_n (N, H); what backward needs to reserve."""
    recurrent.project(x, Wx, reserve)
    kernels.gru_forward(stream(), recurrent.precision(), h0, Wh, b, bh, lengths, reverse, h, h_n, reserve, workspace)


def gru_backward(
    dh: Any,
    dh_n: Any,
    x: Any,
    h0: Any,
    Wx: Any,
    Wh: Any,
    bh: Any,
    lengths: Any,
    reverse: bool,
    reserve: Any,
    workspace: Any,
    dx: Any,
    dh0: Any,
    dWx: Any,
    dWh: Any,
    db: Any,
    dbh: Any,
) -> None:
    """All gradients of :func:`gru_forward`."""
    kernels.gru_backward(
        stream(), recurrent.precision(), dh, dh_n, Wh, lengths, reverse, reserve, workspace, dh0, db, dbh
    )
    H, columns = Wh.shape
    recurrent.input_gradients(x, lengths, Wx, recurrent.gradients(workspace, x, columns), dx, dWx)
    recurrent.product(
        recurrent.state_before(x, columns, H, reserve).T, recurrent.gradients(workspace, x, columns, 1), dWh
    )
