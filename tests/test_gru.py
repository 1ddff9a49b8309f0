"""The GRU on every backend. What it has in common with the other cells is in test_recurrent.py."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid
from recurrent import arguments

import fastrnn


@conformance_grid("gru")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("gru", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


def step(biases, recurrent_biases, h=2.0):
    weights = np.zeros((1, 3))
    return fastrnn.gru_step_forward([[0.0]], [[h]], weights, weights, biases, bh=recurrent_biases)[0][0, 0]


def test_the_order_of_the_gates(backend):
    """Biases alone set the gates to 1 or 0, in the order r, z, n."""
    full, rest = 50.0, (0.0, 0.0, 0.0)
    assert step((0.0, full, full), rest) == pytest.approx(2.0, abs=1e-15)  # z = 1: the old state
    assert step((0.0, -full, full), rest) == pytest.approx(1.0, abs=1e-15)  # z = 0: the candidate, tanh(50)
    # The reset gate acts after the recurrent product, so on the recurrent bias too.
    assert step((full, -full, 0.25), (0.0, 0.0, 0.5)) == pytest.approx(np.tanh(0.75), abs=1e-15)
    assert step((-full, -full, 0.25), (0.0, 0.0, 0.5)) == pytest.approx(np.tanh(0.25), abs=1e-15)


def test_recurrent_biases_have_a_gradient_of_their_own(backend):
    given = arguments("gru")
    dh = np.random.default_rng(5).standard_normal((3, 4, 6))
    _, cache = fastrnn.gru_forward(*given)
    assert len(fastrnn.gru_backward(dh, cache)) == 5
    _, cache = fastrnn.gru_forward(*given, bh=np.zeros(18))
    *_, db, dbh = fastrnn.gru_backward(dh, cache)
    np.testing.assert_allclose(db[:12], dbh[:12], rtol=1e-13)  # r and z only see the sum of both
    assert np.abs(db[12:] - dbh[12:]).min() > 1e-6  # n sees bh through r


def test_recurrent_biases_of_the_wrong_shape(backend):
    with complains(ValueError, "gru_forward", "'bh'", "(3H,) = (18,)", "(17,)"):
        fastrnn.gru_forward(*arguments("gru"), bh=np.zeros(17))
