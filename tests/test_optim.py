"""The update rules on every backend."""

import numpy as np
import pytest
from harness import BACKENDS, assert_conforms, complains, conformance_grid

import fastrnn
from fastrnn.conformance import OPTIM_SETTINGS, OPTIM_STATE


@conformance_grid("optim")
def test_against_the_oracle(function, backend, dtype):
    assert_conforms("optim", function, backend, dtype)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fastrnn.backend(request.param):
        yield request.param


RULES = tuple(OPTIM_STATE)


def test_by_hand(backend):
    w, dw = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    assert fastrnn.sgd(w, dw, {"learning_rate": 0.5})[0].tolist() == [0.75, -4.0]
    next_w, config = fastrnn.sgd_momentum(w, dw, {"learning_rate": 0.5, "momentum": 0.5, "velocity": np.ones(2)})
    assert config["velocity"].tolist() == [0.25, -1.5] and next_w.tolist() == [1.25, -3.5]
    next_w, config = fastrnn.rmsprop(w, dw, {"learning_rate": 1.0, "decay_rate": 0.0, "epsilon": 0.0})
    assert config["cache"].tolist() == [0.25, 16.0] and next_w.tolist() == [0.0, -3.0]
    # The first step of Adam is the learning rate against the sign of the gradient.
    next_w, config = fastrnn.adam(w, dw, {"learning_rate": 0.25, "epsilon": 0.0})
    np.testing.assert_allclose(next_w, [0.75, -2.25], rtol=1e-15)
    assert config["t"] == 1


@pytest.mark.parametrize("rule", RULES)
def test_the_config_is_filled_in_place_and_no_array_is_modified(backend, rule):
    w, dw = np.arange(4.0), np.ones(4)
    config = {"mine": "untouched"}
    next_w, returned = getattr(fastrnn, rule)(w, dw, config)
    assert returned is config and config["mine"] == "untouched"
    assert set(OPTIM_SETTINGS[rule]) | set(OPTIM_STATE[rule]) <= set(config)
    assert np.array_equal(w, np.arange(4.0)) and np.array_equal(dw, np.ones(4))
    state = {key: config[key] for key in OPTIM_STATE[rule]}
    copies = {key: value.copy() for key, value in state.items()}
    getattr(fastrnn, rule)(next_w, dw, config)
    for key in state:
        assert np.array_equal(state[key], copies[key]) and config[key] is not state[key]


@pytest.mark.parametrize("rule", RULES)
def test_no_config_is_shared_between_calls(backend, rule):
    first = getattr(fastrnn, rule)(np.ones(3), np.ones(3))[1]
    second = getattr(fastrnn, rule)(np.ones(3), np.ones(3))[1]
    assert first is not second
    assert second.get("t", 1) == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wide", ["dw", "learning_rate", "state"])
def test_float32_weights_stay_float32(backend, rule, wide):
    w, dw = np.ones(5, np.float32), np.ones(5, np.float64 if wide == "dw" else np.float32)
    config = {"learning_rate": np.float64(0.1)} if wide == "learning_rate" else {}
    if wide == "state":
        config |= {key: np.ones(5, np.float64) for key in OPTIM_STATE[rule]}
    next_w, config = getattr(fastrnn, rule)(w, dw, config)
    assert next_w.dtype == np.float32
    assert all(config[key].dtype == np.float32 for key in OPTIM_STATE[rule])


@pytest.mark.parametrize("rule", RULES)
def test_every_setting_changes_the_result(backend, rule):
    """After two steps with different gradients, each setting shows in the weights."""

    def two_steps(settings):
        config = dict(settings)
        w, config = getattr(fastrnn, rule)(np.ones(3), np.array([1.0, -2.0, 0.5]), config)
        return getattr(fastrnn, rule)(w, np.array([3.0, 1.0, 0.25]), config)[0]

    for key, value in OPTIM_SETTINGS[rule].items():
        assert not np.array_equal(two_steps({key: value}), two_steps({})), key


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_wrong_shapes(backend, rule):
    with complains(ValueError, rule, "'dw'", "(3, 4)", "(4, 3)"):
        getattr(fastrnn, rule)(np.ones((3, 4)), np.ones((4, 3)))
    for key in OPTIM_STATE[rule]:
        with complains(ValueError, rule, f"config['{key}']", "(3, 4)", "(12,)"):
            getattr(fastrnn, rule)(np.ones((3, 4)), np.ones((3, 4)), {key: np.ones(12)})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [complex, object, np.float16])
def test_wrong_dtypes(backend, rule, dtype):
    with complains(TypeError, rule, "'w'", np.dtype(dtype).name):
        getattr(fastrnn, rule)(np.ones(3, dtype), np.ones(3))
    with complains(TypeError, rule, "'dw'", np.dtype(dtype).name):
        getattr(fastrnn, rule)(np.ones(3), np.ones(3, dtype))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ("fast", TypeError, ("'config'", "dict", "str")),
        ({"learning_rate": "fast"}, TypeError, ("config['learning_rate']", "real number")),
        ({"learning_rate": [0.1, 0.2]}, ValueError, ("config['learning_rate']", "(2,)")),
    ],
)
def test_a_bad_config(backend, rule, config, error, words):
    with complains(error, rule, *words):
        getattr(fastrnn, rule)(np.ones(3), np.ones(3), config)


@pytest.mark.parametrize("t", [-1, -5])
def test_adam_cannot_have_made_fewer_than_no_steps(backend, t):
    with complains(ValueError, "adam", "config['t']", str(t)):
        fastrnn.adam(np.ones(3), np.ones(3), {"t": t})


def test_a_failed_update_leaves_the_config_alone(backend):
    config = {"learning_rate": 0.1}
    with complains(ValueError, "adam"):
        fastrnn.adam(np.ones(3), np.ones(4), config)
    assert config == {"learning_rate": 0.1}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["sgd", "sgd_momentum", "rmsprop", "adam"])
def test_a_weight_without_axes_stays_an_array(backend, rule):
    with fastrnn.backend(backend):
        w, _ = getattr(fastrnn, rule)(np.array(1.0), np.array(0.5))
    assert type(w) is np.ndarray and w.shape == ()
