"""Word embedding: rows gathered, and added back in an order that depends on the ids alone."""

from __future__ import annotations

from typing import Any

from .arrays import kernels, stream, xp


def first_bad_id(ids: Any, V: int) -> int:
    """The least position of an id of ids (n,) outside of ``[0, V)``, or -1.

    Reads eight bytes from the device, and so waits for what was queued on the stream before.
    """
    position = xp.empty((1,), xp.int64)
    kernels.first_bad_id(stream(), ids, V, position)
    return int(position[0])


def word_embedding_buffers(n: int, V: int, D: int, itemsize: int) -> int:
    """Elements of int64 of the workspace."""
    return int(kernels.word_embedding_buffers(n, V, D, itemsize))


def word_embedding_forward(ids: Any, W: Any, out: Any) -> None:
    """Rows ids (n,) of W (V, D) into out (n, D)."""
    kernels.word_embedding_forward(stream(), ids, W, out)


def word_embedding_backward(ids: Any, dout: Any, workspace: Any, dW: Any, add: bool) -> None:
    """Rows of dout (n, D) summed by word into dW (V, D): onto what it holds, or with zeros where a word is unused."""
    kernels.word_embedding_backward(stream(), ids, dout, workspace, dW, add)


def word_embedding_sort(ids: Any, V: int, D: int, itemsize: int, workspace: Any) -> int:
    """Sort ids (n,) into the workspace for :func:`word_embedding_sparse`; the number k of different ones.

    Reads k from the device, since arrays of that size have to be allocated, and so waits for the sort.
    """
    kernels.word_embedding_sort(stream(), ids, V, D, itemsize, workspace)
    return int(workspace[0])


def word_embedding_sparse(dout: Any, V: int, workspace: Any, rows: Any, values: Any) -> None:
    """The words that occur, ascending, into rows (k,), and their sums of rows of dout (n, D) into values (k, D)."""
    kernels.word_embedding_sparse(stream(), dout, V, workspace, rows, values)
