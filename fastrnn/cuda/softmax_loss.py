"""Softmax loss over rows of scores, and over hidden states together with their projection onto a vocabulary.

The vocabulary's scores are never held all at once: rows go through in chunks, each by three products of the BLAS and
kernels of our own between them. The sum over chunks is in their order, by products that add to dW.
"""

from __future__ import annotations

from typing import Any

from .arrays import ON_HOST, kernels, stream, xp

if not ON_HOST:
    from cupy.cublas import gemm

# A chunk has this many rows at least, where there are so many: below, products do not pay.
_LEAST_ROWS = 16


def temporal_softmax_loss(x: Any, y: Any, mask: Any, count: int, row_loss: Any, dx: Any) -> None:
    """Losses of the rows of x (R, V) into row_loss (R,), float64, and their gradient over `count` into dx (R, V)."""
    kernels.temporal_softmax_loss(stream(), x, y, mask, count, row_loss, dx)


def total_loss(losses: Any, divisor: int, loss: Any) -> None:
    """``loss[...] = sum(losses) / divisor``: losses (n,), float64; loss of one element, in the dtype of the scores.

    Made on the device, and left there: nobody waits for it before it is looked at.
    """
    kernels.total_loss(stream(), losses, float(divisor), loss)


def vocab_softmax_loss_buffers(R: int, H: int, V: int, itemsize: int) -> tuple[int]:
    """Elements of the workspace: of a chunk, within a tenth of the R V scores where R and V are some hundreds."""
    losses = R * 8 // itemsize
    return (max(R * V // 10 - losses - R, min(R, _LEAST_ROWS) * (V + H)) + losses,)


def chunk_rows(R: int, H: int, V: int, workspace: int, itemsize: int, gathered: bool) -> int:
    """Rows of a chunk: of scores, and where rows are gathered of hidden states too."""
    return max(1, min(R, (workspace - R * 8 // itemsize) // max(1, V + (H if gathered else 0))))


def vocab_softmax_loss(
    h: Any,
    W: Any,
    b: Any,
    y: Any,
    mask: Any,
    workspace: Any,
    loss: Any,
    dh: Any,
    dW: Any,
    db: Any,
    rows: Any = None,
) -> None:
    """Loss of ``h W + b`` summed over the rows that count into loss (1,), float64, and gradients over N.

    h (N, T, H), W (H, V), b (V,), y and mask (N T,), dh (N, T, H), dW (H, V), db (V,).

    Which rows count is not known here, where the mask is on the device: masked rows then go through as zeros. A caller
    that does know gives their numbers, ascending, as `rows`, int64 on the device; then they cost nothing.
    """
    N, T, H = h.shape
    V = W.shape[1]
    R = N * T
    count = R if rows is None else len(rows)
    queue = stream()
    if not (W.flags.c_contiguous or W.flags.f_contiguous):
        W = xp.ascontiguousarray(W)
    doubles = R * 8 // workspace.itemsize
    row_loss = workspace[:doubles].view(xp.float64)
    scratch = workspace[doubles:]
    size = chunk_rows(R, H, V, workspace.size, workspace.itemsize, rows is not None)
    dh_rows = dh.reshape(R, H)
    if count == 0:
        dW.fill(0)
        db.fill(0)
    for first in range(0, count, size):
        n = min(size, count - first)
        # Hidden states are taken together in the memory of their gradients, which come last.
        if rows is None:
            taken = dh_rows[first : first + n]
        else:
            taken = scratch[n * V : n * (V + H)].reshape(n, H)
        some = scratch[: n * V].reshape(n, V)
        kernels.take_rows(queue, h, mask, rows, first, taken)
        _product(taken, W, some)
        kernels.softmax_chunk(queue, some, b, y, mask, rows, first, N, row_loss[first : first + n])
        kernels.column_sums(queue, some, first > 0, db)
        _product(taken.T, some, dW, add=first > 0)
        _product(some, W.T, taken)
        if rows is not None:
            kernels.put_rows(queue, taken, rows, first, dh_rows)
    kernels.clear_masked(queue, mask, dh_rows)
    total_loss(row_loss[:count], 1, loss)


def _product(a: Any, b: Any, out: Any, add: bool = False) -> None:
    """``out = a b``, or ``out += a b`` with `add`, in the C-contiguous `out`; a and b are so, or their transposes."""
    if not out.size:
        return
    if not a.shape[1]:
        if not add:
            out.fill(0)
    elif not ON_HOST:
        # cupy.matmul cannot add to what is there, and rounds to TF32 where CUPY_TF32 is set.
        gemm("N", "N", a, b, out=out, beta=1.0 if add else 0.0)
    elif not add:
        xp.matmul(a, b, out=out)
    else:  # a few columns at a time, for the memory that NumPy takes to add products
        for column in range(0, out.shape[1], 32):
            part = slice(column, column + 32)
            out[:, part] += a @ b[:, part]
