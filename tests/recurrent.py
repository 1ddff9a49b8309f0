"""Small arrays for the tests of rnn, lstm and gru, which differ only in their cell."""

import numpy as np

import fastrnn
from fastrnn.conformance import GATES


def arguments(cell, N=3, T=4, D=5, H=6, dtype=np.float64, seed=0):
    """x, h0, Wx, Wh, b."""
    rng = np.random.default_rng(seed)
    shapes = ((N, T, D), (N, H), (D, GATES[cell] * H), (H, GATES[cell] * H), (GATES[cell] * H,))
    return [(rng.standard_normal(shape) / 2).astype(dtype) for shape in shapes]


def step_arguments(cell, N=3, D=5, H=6, dtype=np.float64):
    """x, prev_h, (prev_c,) Wx, Wh, b."""
    x, h0, *weights = arguments(cell, N, 1, D, H, dtype)
    return [x[:, 0], h0, *([h0 / 2] if cell == "lstm" else []), *weights]


def forward(cell):
    return getattr(fastrnn, f"{cell}_forward")


def backward(cell):
    return getattr(fastrnn, f"{cell}_backward")
