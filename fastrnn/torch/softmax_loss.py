"""Cross-entropy over a vocabulary together with the projection onto it, which never holds all scores."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn
from fastrnn.backend import choose
from fastrnn.checks import Arguments
from fastrnn.ops.softmax_loss import vocab_softmax_loss_by
from fastrnn.torch.library import (
    WORTH_A_PAUSE,
    autocast_to_float32,
    computed_in,
    eager,
    floating,
    integers,
    pause_openmp,
    refuse,
    same_device,
    scalar_tensor,
    stream_of,
    vmap_by_loop,
)
from fastrnn.torch.tensors import as_array, as_tensor

# The fewest rows whose scores are held at a time where no gradient is wanted.
_ROWS = 64
# The kernel reads a weight as it is. A transposed copy of a large one is faster: on two cores of an EPYC (Zen 4) it
# took 351 ms instead of 483 at 2048 positions, H = 512, V = 10,000, of which the copy is 6; 51 instead of 59 at 700,
# 512, 4000; but 45 instead of 43 at 700, 256, 4000.
_LARGE_BYTES = 6 << 20


def vocab_cross_entropy(
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of ``h @ weight.T + bias`` with `targets`, without ever holding the scores of all positions.

    The same as ``cross_entropy(linear(h, weight, bias), targets)`` of `torch.nn.functional`. Scores of some positions
    at a time are computed, turned into their gradients and used up; the gradients are made by the forward pass.

    Parameters
    ----------
    h : Tensor, shape (..., H)
        Hidden states, in float32 or float64. bfloat16 and float16 are computed in float32, and results rounded once;
        `weight` and `bias` must be of the same dtype.
    weight : Tensor, shape (V, H)
        Weights of the V words, as `torch.nn.Linear` has them.
    bias : Tensor, shape (V,), or None
    targets : Tensor of int, shape (...)
        The right words, in ``[0, V)``, or `ignore_index`.
    ignore_index : int, optional
        Positions with this target do not count, and cost nothing.
    reduction : {"mean", "sum"}, optional
        The mean of the positions that count (NaN if there are none, as in PyTorch), or their sum.

    Returns
    -------
    Tensor of no axes
        In the dtype of `h`; float32 inside of ``torch.autocast``.

    Raises
    ------
    IndexError
        A target that is neither in ``[0, V)`` nor `ignore_index`; the message gives it and its position.
    ValueError, TypeError
        A shape, dtype, device or `reduction` does not fit.
    RuntimeError
        A second derivative is asked for.

    Notes
    -----
    With R positions, the (R, V) scores are never there: beyond the gradients, which are kept from forward to backward,
    a call needs less than a tenth of them, and a copy of `weight` where that is large but at most half their size.
    Where no gradient is wanted nothing is kept, and only the loss is computed. Bitwise the same from run to run.
    CUDA tensors go through CuPy on PyTorch's current stream; that was not run on a device so far.
    """
    function = "vocab_cross_entropy"
    if reduction not in ("mean", "sum"):
        expected = "be 'mean' or 'sum' (torch.nn.functional.cross_entropy has 'none')"
        raise Arguments(function).fail(ValueError, "reduction", expected, repr(reduction))
    floating(function, "h", h)
    floating(function, "weight", weight, 2, "(V, H)")
    integers(function, "targets", targets)
    V, H = weight.shape
    if h.ndim == 0 or h.shape[-1] != H:
        raise Arguments(function).fail(
            ValueError, "h", f"have shape (..., H), H = {H} from weight", f"shape {tuple(h.shape)}"
        )
    if targets.shape != h.shape[:-1]:
        expected = f"have the shape of h without its last axis, {tuple(h.shape[:-1])}"
        raise Arguments(function).fail(ValueError, "targets", expected, f"shape {tuple(targets.shape)}")
    h, weight = autocast_to_float32(h, weight)
    same_device(function, h=h, weight=weight, targets=targets)
    if weight.dtype != h.dtype:
        raise Arguments(function).fail(TypeError, "weight", f"have the dtype of h, {h.dtype}", f"dtype {weight.dtype}")
    if bias is not None:
        floating(function, "bias", bias)
        if bias.shape != (V,):
            raise Arguments(function).fail(
                ValueError, "bias", f"have shape (V,) = ({V},)", f"shape {tuple(bias.shape)}"
            )
        _, bias = autocast_to_float32(h, bias)
        same_device(function, h=h, bias=bias)
        if bias.dtype != h.dtype:
            raise Arguments(function).fail(TypeError, "bias", f"have the dtype of h, {h.dtype}", f"dtype {bias.dtype}")
    differentiable = h.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    wanted = torch.is_grad_enabled() and differentiable
    arguments = (h, weight, bias, targets, ignore_index, reduction == "mean")
    if eager(arguments[:4]):
        return _Loss.apply(*arguments) if wanted else _loss_and_gradients(*arguments, gradients=False)[0]
    return _vocab_cross_entropy(*arguments, wanted)[0]


# ---- the kernel ------------------------------------------------------------------------------------------------------


def _loss_and_gradients(
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int,
    mean: bool,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and with `gradients` those of h, of the weight and of the bias, in the kernels' dtype."""
    made = computed_in(h.dtype)
    V, H = weight.shape
    rows, flat = h.to(made).reshape(-1, H), targets.reshape(-1)
    counts = flat != ignore_index
    with stream_of(h):
        place = choose("softmax_loss", as_array(rows)).place
        check = Arguments("vocab_cross_entropy", place=place)
        check.ids(
            "targets", as_array(targets), V, f"the V = {V} rows of weight", where=as_array(targets != ignore_index)
        )
    count = int(counts.sum())
    divisor = count if mean else 1
    if count == 0:
        loss = torch.full((), torch.nan if mean else 0.0, dtype=h.dtype, device=h.device)
        shapes = _gradient_shapes(h, weight, bias, gradients)
        return loss, *(torch.zeros(shape, dtype=made, device=h.device) for shape in shapes)  # type: ignore[return-value]
    W = weight.to(made).T
    b = torch.zeros(V, dtype=made, device=h.device) if bias is None else bias.to(made)
    if not gradients:
        if count < len(rows):
            rows, flat = rows[counts], flat[counts]
        if 2 * count * H * V > WORTH_A_PAUSE:
            pause_openmp(h)
        with stream_of(h):
            loss = _loss_alone(rows, W, b, flat) / divisor
        nothing = (torch.empty(0, dtype=made, device=h.device) for _ in range(3))
        return loss.to(h.dtype), *nothing  # type: ignore[return-value]
    if W.numel() * W.element_size() > _LARGE_BYTES and 2 * H <= len(rows):
        W = W.contiguous()
    # The kernel divides by the number of sequences: as many as there are positions, or one.
    all_count = mean and count == len(rows)
    shape = (count, 1) if all_count else (1, len(rows))
    if 6 * count * H * V > WORTH_A_PAUSE:
        pause_openmp(h)
    with stream_of(h):
        loss, *made_gradients = vocab_softmax_loss_by(
            as_array(rows.reshape(*shape, H)),
            as_array(W),
            as_array(b),
            as_array(flat.reshape(shape)),
            as_array(counts.reshape(shape)),
            by_word=True,
        )
        dh, dW, db = (as_tensor(gradient) for gradient in made_gradients)
        loss = scalar_tensor(loss)
        if not all_count and divisor != 1:
            for tensor in (loss, dh, dW, db):
                tensor /= divisor
    return loss.to(h.dtype), dh.reshape(h.shape), dW.T.contiguous(), db if bias is not None else db[:0].clone()


def _gradient_shapes(h: Any, weight: Any, bias: Any, gradients: bool) -> tuple[Any, ...]:
    """Shapes of the gradients of h, of the weight and of the bias, or of nothing."""
    return (h.shape, weight.shape, (0,) if bias is None else (len(weight),)) if gradients else ((0,), (0,), (0,))


def _loss_alone(rows: torch.Tensor, W: torch.Tensor, b: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the losses, whose scores are there for a twentieth of the rows at a time; their gradient takes as much."""
    loss = torch.zeros((), dtype=torch.float64, device=rows.device)
    size = max(_ROWS, len(rows) // 20)
    for some, words in zip(rows.split(size), targets.split(size), strict=True):
        scores, _ = fastrnn.temporal_affine_forward(as_array(some[None]), as_array(W), as_array(b))
        mask = torch.ones_like(words, dtype=torch.bool)
        loss += scalar_tensor(fastrnn.temporal_softmax_loss(scores, as_array(words[None]), as_array(mask[None]))[0])
    return loss.to(rows.dtype)


class _Loss(torch.autograd.Function):
    """The loss, with less to do for PyTorch than an operation of ``torch.library`` makes it do.

    The first backward pass hands out the gradients that forward made; a second one has to make them again.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        loss, *ctx.made = _loss_and_gradients(*(*arguments, True))
        ctx.save_for_backward(*arguments[:4])
        ctx.options = arguments[4:]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        made, ctx.made = ctx.made, None
        if torch.is_grad_enabled():  # as parts of a graph, only to say when it is run that there is no kernel for that
            made = _vocab_cross_entropy(*ctx.saved_tensors, *ctx.options, True)[1:]
            made = _vocab_cross_entropy_backward(grad, *made)
        else:
            if made is None:
                made = _loss_and_gradients(*(*ctx.saved_tensors, *ctx.options, True))[1:]
            if not (grad.device.type == "cpu" and grad == 1):  # reading it would make a device be waited for
                for gradient in made:
                    gradient.mul_(grad)
        needed = zip(made, ctx.needs_input_grad, strict=False)
        return *(gradient.to(grad.dtype) if need else None for gradient, need in needed), None, None, None


# ---- the operations --------------------------------------------------------------------------------------------------

_vocab_cross_entropy = torch.library.custom_op(
    "fastrnn::vocab_cross_entropy",
    _loss_and_gradients,
    mutates_args=(),
    schema="(Tensor h, Tensor weight, Tensor? bias, Tensor targets, int ignore_index, bool mean, bool gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@_vocab_cross_entropy.register_fake
def _(
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    ignore_index: int,
    mean: bool,
    gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shapes = _gradient_shapes(h, weight, bias, gradients)
    dh, dW, db = (h.new_empty(shape, dtype=computed_in(h.dtype)) for shape in shapes)
    return h.new_empty(()), dh, dW, db


@torch.library.custom_op(
    "fastrnn::vocab_cross_entropy_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor dh, Tensor dweight, Tensor dbias) -> (Tensor, Tensor, Tensor)",
)
def _vocab_cross_entropy_backward(
    grad: torch.Tensor, dh: torch.Tensor, dweight: torch.Tensor, dbias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients times that of the loss, in its dtype."""
    return tuple((gradient * grad).to(grad.dtype) for gradient in (dh, dweight, dbias))  # type: ignore[return-value]


@_vocab_cross_entropy_backward.register_fake
def _(
    grad: torch.Tensor, dh: torch.Tensor, dweight: torch.Tensor, dbias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(grad.new_empty(gradient.shape) for gradient in (dh, dweight, dbias))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.has_bias, ctx.gradients = inputs[2] is not None, inputs[-1]
    ctx.save_for_backward(*output[1:])


def _gradient(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    if not ctx.gradients:
        raise RuntimeError("torch.ops.fastrnn.vocab_cross_entropy: has gradients with gradients=True alone")
    dh, dweight, dbias = _vocab_cross_entropy_backward(grad, *ctx.saved_tensors)
    return dh, dweight, dbias if ctx.has_bias else None, None, None, None, None


_vocab_cross_entropy.register_autograd(_gradient, setup_context=_keep)
_vocab_cross_entropy_backward.register_autograd(
    refuse("vocab_cross_entropy: there is no second derivative; torch.nn.functional.linear and cross_entropy have one")
)
for _operation in (_vocab_cross_entropy, _vocab_cross_entropy_backward):
    vmap_by_loop(_operation)
