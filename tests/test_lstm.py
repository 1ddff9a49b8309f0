"""The LSTM on every backend. What it has in common with the other cells is in test_recurrent.py."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid
from recurrent import arguments, step_arguments

import fastrnn


@conformance_grid("lstm")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("lstm", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def test_the_order_of_the_gates(backend):
    """Biases alone set the gates to 1 or 0: input and forget open, output open, candidate 1."""
    full = 50.0
    for biases, h, c in (
        ((full, full, full, full), np.tanh(3.0), 3.0),  # i = f = o = g = 1
        ((-full, full, full, full), np.tanh(2.0), 2.0),  # i = 0: only the old cell state
        ((full, -full, full, full), np.tanh(1.0), 1.0),  # f = 0: only the candidate
        ((full, full, -full, full), 0.0, 3.0),  # o = 0: nothing shows
        ((full, full, full, -full), np.tanh(1.0), 1.0),  # g = -1
    ):
        next_h, next_c, _ = fastrnn.lstm_step_forward(
            [[0.0]], [[0.0]], [[2.0]], np.zeros((1, 4)), np.zeros((1, 4)), biases
        )
        assert next_h[0, 0] == pytest.approx(h, abs=1e-15) and next_c[0, 0] == pytest.approx(c, abs=1e-15)


def test_the_cell_state_starts_at_zero(backend):
    given = arguments("lstm")
    h, cache = fastrnn.lstm_forward(*given)
    h_zero, cache_zero = fastrnn.lstm_forward(*given, c0=np.zeros((3, 6)))
    assert np.array_equal(h, h_zero)
    dh = np.ones((3, 4, 6))
    assert len(fastrnn.lstm_backward(dh, cache)) == 5
    gradients = fastrnn.lstm_backward(dh, cache_zero)
    assert len(gradients) == 6 and gradients[5].shape == (3, 6) and gradients[5].any()


def test_the_callers_gradient_of_the_cell_state_is_left_alone(backend):
    dnext_c = np.ones((3, 6))
    *_, cache = fastrnn.lstm_step_forward(*step_arguments("lstm"))
    fastrnn.lstm_step_backward(np.ones((3, 6)), dnext_c, cache)
    assert np.array_equal(dnext_c, np.ones((3, 6)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_output_gate_that_underflows_gives_no_nan(backend, dtype):
    x = np.array([[-2000.0]], dtype)
    Wx = np.array([[0, 0, 1, 0]], dtype)
    zeros = np.zeros((1, 1), dtype)
    next_h, _, cache = fastrnn.lstm_step_forward(x, zeros, zeros + 1, Wx, 0 * Wx, Wx[0] * 0)
    assert next_h[0, 0] == 0
    for gradient in fastrnn.lstm_step_backward(zeros + 1, zeros + 1, cache):
        assert np.isfinite(gradient).all()


def test_a_cell_state_of_the_wrong_shape(backend):
    with complains(ValueError, "lstm_forward", "'c0'", "(N, H) = (3, 6)", "(3, 7)"):
        fastrnn.lstm_forward(*arguments("lstm"), c0=np.zeros((3, 7)))
    given = step_arguments("lstm")
    given[2] = np.zeros((2, 6))
    with complains(ValueError, "lstm_step_forward", "'prev_c'", "(N, H) = (3, 6)", "(2, 6)"):
        fastrnn.lstm_step_forward(*given)
