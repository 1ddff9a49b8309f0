"""Weights and their gradients in PyTorch's layout, as the C++ kernels take them for `fastrnn.torch`.

The same numbers in another place: the results have the same bits as those of the layout that every other test holds
against the oracle.
"""

import numpy as np
import pytest

from fastrnn.conformance import GATES

_cpu = pytest.importorskip("fastrnn._cpu", reason="the C++ kernels were not built")

# i, f, o, g from i, f, g, o, and back.
SWAPPED = [0, 1, 3, 2]
SIZES = [(3, 4, 5, 7), (1, 1, 1, 1), (2, 3, 1, 16), (5, 2, 33, 1), (9, 130, 20, 36), (4, 3, 16, 64)]


def moved(a, gates, H):
    """Columns (…, gates H) in PyTorch's order of gates."""
    return a.reshape(*a.shape[:-1], gates, H)[..., SWAPPED, :].reshape(a.shape) if gates == 4 else a


def run(cell, sizes, dtype, theirs, lengths=None, reverse=False):
    """Outputs and gradients by the C++ kernels, in fastrnn's layout; `theirs`: all weights are given in PyTorch's."""
    N, T, D, H = sizes
    gates = GATES[cell]
    draw = np.random.default_rng(5).standard_normal
    x, h0, dh, dh_n = (draw(shape).astype(dtype) for shape in ((N, T, D), (N, H), (N, T, H), (N, H)))
    Wx, Wh, b = (draw(shape).astype(dtype) / 3 for shape in ((D, gates * H), (H, gates * H), (gates * H,)))
    suffix = "_ifgo" if theirs and cell == "lstm" else ""
    if theirs:
        Wx, Wh, b = moved(Wx, gates, H).T.copy().T, moved(Wh, gates, H).T.copy().T, moved(b, gates, H)
    kept, forward, backward = (np.empty(size, dtype) for size in getattr(_cpu, f"{cell}_buffers")(*sizes, x.itemsize))
    h, h_n, c_n, dx = np.empty((N, T, H), dtype), np.empty((N, H), dtype), np.empty((N, H), dtype), np.empty_like(x)
    dh0, other, db = np.empty_like(h0), np.empty((N, H) if cell == "lstm" else gates * H, dtype), np.empty_like(b)
    dWx, dWh = (np.full(W.T.shape if theirs else W.shape, np.nan, dtype) for W in (Wx, Wh))
    results = (dWx.T, dWh.T) if theirs else (dWx, dWh)
    rest = (lengths, reverse)
    if cell == "lstm":
        getattr(_cpu, f"lstm_forward{suffix}")(x, h0, h0, Wx, Wh, b, *rest, h, h_n, c_n, kept, forward)
        getattr(_cpu, f"lstm_backward{suffix}")(
            dh, dh_n, dh_n, x, h0, h0, Wx, Wh, *rest, kept, backward, dx, dh0, other, *results, db
        )
    elif cell == "gru":
        _cpu.gru_forward(x, h0, Wx, Wh, b, b, *rest, h, h_n, kept, forward)
        _cpu.gru_backward(dh, dh_n, x, h0, Wx, Wh, b, *rest, kept, backward, dx, dh0, *results, db, other)
    else:
        other[...] = 0
        _cpu.rnn_forward(x, h0, Wx, Wh, b, *rest, h, h_n, kept, forward)
        _cpu.rnn_backward(dh, dh_n, x, h0, Wx, Wh, *rest, kept, backward, dx, dh0, *results, db)
    dWx, dWh = results
    if theirs:
        dWx, dWh, db = (moved(a, gates, H) for a in (dWx, dWh, db))
    return h, h_n, dx, dh0, dWx, dWh, db, other


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_pytorch_layout_gives_the_same_bits(cell, sizes, dtype):
    for mine, theirs in zip(run(cell, sizes, dtype, False), run(cell, sizes, dtype, True), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert np.isfinite(mine).all()


@pytest.mark.parametrize("cell", GATES)
def test_pytorch_layout_with_lengths_in_reverse(cell):
    lengths = np.array([3, 0, 5, 1], np.int64)
    both = [run(cell, (4, 5, 6, 20), np.float32, theirs, lengths, True) for theirs in (False, True)]
    for mine, theirs in zip(*both, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_swapped_gates_want_gradients_in_columns():
    with pytest.raises(TypeError, match="row stride of 1"):
        N, T, D, H = 2, 2, 3, 4
        z = np.zeros
        sizes = _cpu.lstm_buffers(N, T, D, H, 4)
        x, h, W, U = z((N, T, D), "f"), z((N, H), "f"), z((D, 4 * H), "f"), z((H, 4 * H), "f")
        kept, scratch = z(sizes[0], "f"), z(sizes[2], "f")
        dx, db = z((N, T, D), "f"), z(4 * H, "f")
        _cpu.lstm_backward_ifgo(
            z((N, T, H), "f"), None, None, x, h, None, W, U, None, False, kept, scratch, dx, h, h, W, U, db
        )
