"""What rnn, lstm and gru share: the large products before and after the time loop, and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastrnn.backend import PRECISIONS, get_float32_matmul_precision

from .arrays import ON_HOST, kernels, xp


def precision() -> int:
    """The precision that is set, as the kernels count it."""
    return PRECISIONS.index(get_float32_matmul_precision())


def chose(gates: int, N: int, H: int, itemsize: int) -> str:
    """How the time loops of these sizes run on the current device at the present precision.

    Returns
    -------
    str
        ``"persistent"``: one kernel runs all steps, the weights stay in shared memory; ``"per-step"``: a launch a step;
        ``"persistent forward, per-step backward"`` or the other way round; ``""`` where there is nothing to run.
    """
    plans = (
        kernels.current_plan(N, H, gates, H, itemsize, precision()),
        kernels.current_plan(N, H, 1, gates * H, itemsize, precision()),
    )
    if any(plan["tile"] < 0 for plan in plans):
        return ""
    forward, backward = ("persistent" if plan["resident"] else "per-step" for plan in plans)
    return forward if forward == backward else f"{forward} forward, {backward} backward"


def precision_used(itemsize: int = 4) -> str:
    """The word for what the products of the time loop do at the present precision on the current device."""
    engine = kernels.current_plan(1, 1, 1, 1, itemsize, precision())["engine"]
    return {"tf32": "high", "bf16": "medium"}.get(engine, "highest")


@contextmanager
def _products(dtype: Any) -> Iterator[None]:
    """CuPy's products in the precision that is set: with TF32 operands where it is not the highest, and only there.

    CuPy keeps that setting for the process, by dtype; it is as it was when the product is queued.
    """
    if ON_HOST or dtype != xp.float32:
        yield
        return
    from cupy._core import get_compute_type, set_compute_type
    from cupy._core._routines_linalg import COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32

    before = get_compute_type(dtype)
    set_compute_type(dtype, COMPUTE_TYPE_DEFAULT if precision_used(4) == "highest" else COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        set_compute_type(dtype, before)


def product(a: Any, b: Any, out: Any) -> None:
    """``out = a b``."""
    if a.shape[1] == 0 or out.size == 0:
        out.fill(0)
        return
    with _products(out.dtype):
        xp.matmul(a, b, out=out)


def rows(x: Any) -> Any:
    """x (N, T, D) as (N T, D)."""
    N, T, D = x.shape
    return x.reshape(N * T, D)


def project(x: Any, Wx: Any, reserve: Any) -> None:
    """``x Wx`` of all steps to where the time loop finds it, which puts the gates there."""
    N, T, _ = x.shape
    count = N * T * Wx.shape[1]
    product(rows(x), Wx, reserve[:count].reshape(N * T, Wx.shape[1]))


def state_before(x: Any, columns: int, H: int, reserve: Any) -> Any:
    """The state before each step, (N T, H), 0 where the step was not run."""
    N, T, _ = x.shape
    start = N * T * columns
    return reserve[start : start + N * T * H].reshape(N * T, H)


def gradients(workspace: Any, x: Any, columns: int, which: int = 0) -> Any:
    """Gradients by the pre-activations, (N T, columns), that the time loop left at the start of its workspace."""
    N, T, _ = x.shape
    size = N * T * columns
    return workspace[which * size : (which + 1) * size].reshape(N * T, columns)


def input_gradients(x: Any, lengths: Any, Wx: Any, da: Any, dx: Any, dWx: Any) -> None:
    """``dx = da Wxᵀ`` and ``dWx = xᵀ da``; what x holds where a step was not run, NaN say, is not looked at."""
    product(da, Wx.T, rows(dx))
    if lengths is not None:
        x = xp.where((xp.arange(x.shape[1]) < lengths[:, None])[:, :, None], x, x.dtype.type(0))
    product(rows(x).T, da, dWx)
