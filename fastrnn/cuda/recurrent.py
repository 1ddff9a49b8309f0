"""What rnn, lstm and gru share: the large products before and after the time loop, and precision.

Arrays may be float16. What is kept between the functions is float32 then, as are gates and the states that pass from
step to step; the time loop rounds the operands of its products to halves. The large products have halves widened to
float32, and TF32 operands on devices that know TF32: a half is a TF32 number, and so x, Wx and Wh enter as they are,
while gradients by the pre-activations are rounded to the same 11 significant bits but keep float32's range. That is
half the rate of products of halves, which would round their results to halves too, or overflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

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


def _has_tf32() -> bool:
    """Whether the current device multiplies TF32 numbers."""
    plan = kernels.current_plan(1, 1, 1, 1, 4, PRECISIONS.index("high"))
    return bool(plan["engine"] == "tf32")


@contextmanager
def _products(dtype: Any, halves: bool) -> Iterator[None]:
    """CuPy's products in the precision that is set: with TF32 operands where it is not the highest, and only there; and
    of widened `halves`.

    CuPy keeps that setting for the process, by dtype; it is as it was when the product is queued.
    """
    if ON_HOST or dtype != xp.float32:
        yield
        return
    exact = not _has_tf32() if halves else precision_used(4) == "highest"
    from cupy._core import get_compute_type, set_compute_type
    from cupy._core._routines_linalg import COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32

    before = get_compute_type(dtype)
    set_compute_type(dtype, COMPUTE_TYPE_DEFAULT if exact else COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        set_compute_type(dtype, before)


def _wide(a: Any) -> Any:
    """`a`, halves widened to float32."""
    return a.astype(xp.float32) if a.dtype == np.float16 else a


def _numbers(buffer: Any) -> Any:
    """A buffer of the caller's as what is kept in it: float32 numbers where its elements are halves."""
    return buffer.view(xp.float32) if buffer.dtype == np.float16 else buffer


def product(a: Any, b: Any, out: Any) -> None:
    """``out = a b``; where one of the three is float16 the others may be float32."""
    if a.shape[1] == 0 or out.size == 0:
        out.fill(0)
        return
    halves = np.float16 in (a.dtype, b.dtype, out.dtype)
    whole = xp.empty(out.shape, xp.float32) if out.dtype == np.float16 else out
    with _products(whole.dtype, halves):
        xp.matmul(_wide(a), _wide(b), out=whole)
    if whole is not out:
        out[...] = whole


def rows(x: Any) -> Any:
    """x (N, T, D) as (N T, D)."""
    N, T, D = x.shape
    return x.reshape(N * T, D)


def project(x: Any, Wx: Any, reserve: Any) -> None:
    """``x Wx`` of all steps to where the time loop finds it, which puts the gates there."""
    N, T, _ = x.shape
    count = N * T * Wx.shape[1]
    product(rows(x), Wx, _numbers(reserve)[:count].reshape(N * T, Wx.shape[1]))


def state_before(x: Any, columns: int, H: int, reserve: Any) -> Any:
    """The state before each step, (N T, H), 0 where the step was not run."""
    N, T, _ = x.shape
    start = N * T * columns
    return _numbers(reserve)[start : start + N * T * H].reshape(N * T, H)


def gradients(workspace: Any, x: Any, columns: int, which: int = 0) -> Any:
    """Gradients by the pre-activations, (N T, columns), that the time loop left at the start of its workspace."""
    N, T, _ = x.shape
    size = N * T * columns
    return _numbers(workspace)[which * size : (which + 1) * size].reshape(N * T, columns)


def input_gradients(x: Any, lengths: Any, Wx: Any, da: Any, dx: Any, dWx: Any) -> None:
    """``dx = da Wxᵀ`` and ``dWx = xᵀ da``; what x holds where a step was not run, NaN say, is not looked at."""
    product(da, Wx.T, rows(dx))
    if lengths is not None:
        x = xp.where((xp.arange(x.shape[1]) < lengths[:, None])[:, :, None], x, x.dtype.type(0))
    product(rows(x).T, da, dWx)
