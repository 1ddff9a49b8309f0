"""Embedding with a deterministic gradient: rows looked up, and their gradients added back by one owner a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import fastrnn
from fastrnn.backend import choose
from fastrnn.cache import Cache
from fastrnn.checks import Arguments
from fastrnn.torch.library import computed_in, eager, floating, integers, refuse, same_device, stream_of, vmap_by_loop
from fastrnn.torch.tensors import as_array, as_tensor

_ROW = "embedding"


def embedding(
    ids: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None, sparse: bool = False
) -> torch.Tensor:
    """Look up the vector of each word; the gradient adds up the words that are repeated, always in the same order.

    Parameters
    ----------
    ids : Tensor of int, any shape
        Word ids, each in ``[0, V)``.
    weight : Tensor, shape (V, D)
        One vector a word; float32 or float64. The rows of bfloat16 and float16 tables are looked up as they are, and
        their gradient is summed in float32 and rounded once.
    padding_idx : int, optional
        The word whose vector gets no gradient; negative ones count from the end.
    sparse : bool, optional
        Make the gradient of `weight` a coalesced sparse COO tensor of the rows that were used, whose time and memory do
        not depend on V. Not for `torch.compile`, and without a second derivative.

    Returns
    -------
    Tensor, shape (*ids.shape, D)
        ``weight[ids]``.

    Raises
    ------
    IndexError
        An id is negative or not below V; the message gives it and its position.
    ValueError, TypeError
        A shape, dtype, device or `padding_idx` does not fit.

    Notes
    -----
    The gradient is bitwise the same from run to run and at any number of threads, on the CPU and on CUDA, whatever
    ``torch.use_deterministic_algorithms`` says: see :func:`fastrnn.word_embedding_backward`. CUDA tensors go through
    CuPy on PyTorch's current stream; that was not run on a device so far.
    """
    function = "embedding"
    integers(function, "ids", ids)
    floating(function, "weight", weight, 2, "(V, D)")
    same_device(function, weight=weight, ids=ids)
    V = weight.shape[0]
    if padding_idx is None:
        padding = -1
    elif -V <= padding_idx < V:
        padding = padding_idx % V
    else:
        expected = f"be None or lie in [{-V}, {V}), the rows of weight"
        raise Arguments(function).fail(ValueError, "padding_idx", expected, str(padding_idx))
    if not eager((ids, weight)):
        return _embedding(ids, weight, padding, sparse)
    if torch.is_grad_enabled() and weight.requires_grad:
        return _Lookup.apply(ids, weight, padding, sparse)
    return _looked_up(ids, weight)


class Embedding(torch.nn.Embedding):
    """`torch.nn.Embedding` with :func:`embedding` for its forward pass: same constructor, same parameters.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, sparse, device, dtype
        As `torch.nn.Embedding` has them.
    max_norm, norm_type, scale_grad_by_freq
        Only their defaults: renormalising changes the weights in the forward pass, and scaling by frequency is not a
        gradient. `torch.nn.Embedding` has both.

    Raises
    ------
    ValueError
        `max_norm` or `scale_grad_by_freq` is given.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        **options: Any,
    ) -> None:
        check = Arguments("Embedding")
        if max_norm is not None:
            raise check.fail(ValueError, "max_norm", "be None (torch.nn.Embedding renormalises)", str(max_norm))
        if scale_grad_by_freq:
            expected = "be False (torch.nn.Embedding scales by frequency)"
            raise check.fail(ValueError, "scale_grad_by_freq", expected, str(scale_grad_by_freq))
        super().__init__(num_embeddings, embedding_dim, padding_idx, None, norm_type, False, sparse, **options)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """:func:`embedding` of the ids `input`."""
        return embedding(input, self.weight, self.padding_idx, self.sparse)


# ---- the kernels -----------------------------------------------------------------------------------------------------


def _looked_up(ids: torch.Tensor, weight: torch.Tensor, padding_idx: int = -1, sparse: bool = False) -> torch.Tensor:
    """Rows of the table; how their gradient is to be made has no part in it."""
    with stream_of(weight):
        W = as_array(weight if computed_in(weight.dtype) == weight.dtype else weight[:, :0].float())
        if W.shape[1] != weight.shape[1]:  # rows are copied: nothing to compute in another dtype
            _check_ids(ids, W)
            return weight.index_select(0, ids.reshape(-1).long()).reshape(*ids.shape, weight.shape[1])
        try:
            return as_tensor(fastrnn.word_embedding_forward(as_array(ids), W)[0])
        except IndexError:
            _check_ids(ids, W)  # the same error, of this function's argument
            raise


def _check_ids(ids: torch.Tensor, weight: Any) -> None:
    V = weight.shape[0]
    check = Arguments("embedding", place=choose(_ROW, weight).place)
    check.ids("ids", as_array(ids), V, f"the V = {V} rows of weight")


def _cache(ids: torch.Tensor, grad: torch.Tensor, rows: int) -> tuple[Any, Cache]:
    """What :func:`fastrnn.word_embedding_backward` takes: the gradient, and the cache of a lookup of `ids`."""
    dout = as_array(grad.to(computed_in(grad.dtype)))
    kept = as_array(ids.long().contiguous())
    chosen = choose(_ROW, dout)
    if chosen.is_reference:  # which keeps the table, too: of it only the shape and the dtype count
        kept = kept, np.broadcast_to(np.zeros((), dout.dtype), (rows, grad.shape[-1]))
    dims = {"V": rows, "D": grad.shape[-1]}
    return dout, Cache("word_embedding_forward", chosen.column, dout.dtype, dims, (tuple(ids.shape), kept))


def _sums(grad: torch.Tensor, ids: torch.Tensor, rows: int, padding_idx: int) -> torch.Tensor:
    """The gradient of a table."""
    with stream_of(grad):
        dW = as_tensor(fastrnn.word_embedding_backward(*_cache(ids, grad, rows)))
        if padding_idx >= 0:
            dW[padding_idx] = 0
        return dW.to(grad.dtype)


def _sums_of_used(
    grad: torch.Tensor, ids: torch.Tensor, rows: int, padding_idx: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a table that were used, and their gradients."""
    with stream_of(grad):
        used, values = fastrnn.word_embedding_backward(*_cache(ids, grad, rows), sparse=True)
        if padding_idx >= 0 and (others := used != padding_idx).all() == False:  # noqa: E712 (an array of CuPy's, too)
            used, values = used[others], values[others]
        return as_tensor(used), as_tensor(values).to(grad.dtype)


def _differentiated(ctx: Any, grad: torch.Tensor, dense: Any, of_used: Any) -> tuple[Any, ...]:
    """Gradients of ids, weight, padding_idx and sparse."""
    (ids,) = ctx.saved_tensors
    if not ctx.sparse:
        return None, dense(grad, ids, ctx.rows, ctx.padding_idx), None, None
    used, values = of_used(grad, ids, ctx.rows, ctx.padding_idx)
    shape = (ctx.rows, grad.shape[-1])
    dW = torch.sparse_coo_tensor(used[None], values, shape, is_coalesced=True, check_invariants=False)
    return None, dW, None, None


class _Lookup(torch.autograd.Function):
    """The lookup, with less to do for PyTorch than an operation of ``torch.library`` makes it do."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        _keep(ctx, arguments, None)
        return _looked_up(*arguments)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # as parts of a graph, to be differentiated again
            return _differentiated(ctx, grad, _embedding_backward, _embedding_backward_sparse)
        return _differentiated(ctx, grad, _sums, _sums_of_used)


# ---- the operations ------------------------------------------------------------------------------------------------

_embedding = torch.library.custom_op(
    "fastrnn::embedding",
    _looked_up,
    mutates_args=(),
    schema="(Tensor ids, Tensor weight, int padding_idx=-1, bool sparse=False) -> Tensor",
)


@_embedding.register_fake
def _(ids: torch.Tensor, weight: torch.Tensor, padding_idx: int = -1, sparse: bool = False) -> torch.Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]))


_embedding_backward = torch.library.custom_op(
    "fastrnn::embedding_backward",
    _sums,
    mutates_args=(),
    schema="(Tensor grad, Tensor ids, SymInt rows, int padding_idx) -> Tensor",
)


@_embedding_backward.register_fake
def _(grad: torch.Tensor, ids: torch.Tensor, rows: int, padding_idx: int) -> torch.Tensor:
    return grad.new_empty((rows, grad.shape[-1]))


_embedding_backward_sparse = torch.library.custom_op(
    "fastrnn::embedding_backward_sparse",
    _sums_of_used,
    mutates_args=(),
    schema="(Tensor grad, Tensor ids, SymInt rows, int padding_idx) -> (Tensor, Tensor)",
)


@_embedding_backward_sparse.register_fake
def _(grad: torch.Tensor, ids: torch.Tensor, rows: int, padding_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return grad.new_empty((count,), dtype=torch.int64), grad.new_empty((count, grad.shape[-1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ids, weight, ctx.padding_idx, ctx.sparse = inputs
    ctx.rows = weight.shape[0]
    ctx.save_for_backward(ids)


def _gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    return _differentiated(ctx, grad, _embedding_backward, _embedding_backward_sparse)


def _keep_ids(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, ids, _, ctx.padding_idx = inputs
    ctx.save_for_backward(ids)


def _second_gradient(ctx: Any, ddW: torch.Tensor) -> tuple[Any, ...]:
    # Summing is linear: its gradient looks up, and finds nothing for the word without a gradient.
    (ids,) = ctx.saved_tensors
    dgrad = _embedding(ids, ddW)
    if ctx.padding_idx >= 0:
        dgrad = dgrad.masked_fill((ids == ctx.padding_idx)[..., None], 0)
    return dgrad, None, None, None


_embedding.register_autograd(_gradient, setup_context=_keep)
_embedding_backward.register_autograd(_second_gradient, setup_context=_keep_ids)
_embedding_backward_sparse.register_autograd(
    refuse("embedding: there is no second derivative with sparse=True; use sparse=False")
)
for _operation in (_embedding, _embedding_backward):
    vmap_by_loop(_operation)
