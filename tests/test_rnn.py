"""The vanilla RNN on every backend. What it has in common with the other cells is in test_recurrent.py."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, conformance_grid
from recurrent import arguments

import fastrnn


@conformance_grid("rnn")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("rnn", function, backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_by_hand(backend):
    with fastrnn.backend(backend):
        h, _ = fastrnn.rnn_step_forward([[1.0, 2.0]], [[0.5]], [[0.25], [0.125]], [[-1.0]], [0.75])
    assert h == pytest.approx(np.tanh([[0.25 + 0.25 - 0.5 + 0.75]]), abs=1e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_input_is_shared_by_all_sequences(backend):
    x, h0, *weights = arguments("rnn")
    with fastrnn.backend(backend):
        shared, cache = fastrnn.rnn_step_forward(x[0, 0], h0, *weights)
        repeated, _ = fastrnn.rnn_step_forward(np.tile(x[0, 0], (3, 1)), h0, *weights)
        dx = fastrnn.rnn_step_backward(np.ones((3, 6)), cache)[0]
    assert np.array_equal(shared, repeated)
    assert dx.shape == (5,)
