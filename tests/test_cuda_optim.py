"""Update rules of many arrays in one launch, on the simulator of a CUDA device."""

import os

import numpy as np
import pytest

import fastrnn
from fastrnn.captioning import CaptioningRNN, CaptioningSolver
from fastrnn.ops.optim import update_all

if os.environ.get("FASTRNN_CUDA_ON_HOST") != "1":
    pytest.skip("needs FASTRNN_CUDA_ON_HOST=1 (make test)", allow_module_level=True)
pytest.importorskip("fastrnn._cuda_on_host", reason="the simulator of CUDA kernels was not built")
optim = pytest.importorskip("fastrnn.cuda.optim")

# Nothing, ones, around a chunk of 4,096; more arrays than the 48 of a table, and an array of three axes.
SIZES = (0, 1, 5, 4095, 4096, 4097, 9000, *range(20, 70))
RULES = {
    "sgd": (2, (0.1,)),
    "sgd_momentum": (3, (0.1, 0.5)),
    "rmsprop": (3, (0.03, 0.8, 1e-4)),
    "adam": (4, (0.02, 0.8, 0.95, 1e-5, 3.0)),
}


def inputs(count, dtype):
    rng = np.random.default_rng(count)
    lists = [[np.square(rng.standard_normal(size)).astype(dtype) for size in SIZES] for _ in range(count)]
    for one in lists:
        one.append(np.square(rng.standard_normal((3, 4, 5))).astype(dtype))
    return lists


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_are_as_one_by_one(rule, dtype):
    count, settings = RULES[rule]
    given = inputs(count, dtype)
    outs = [[np.full_like(w, np.nan) for w in given[0]] for _ in range(count - 1)]
    getattr(optim, f"{rule}_many")(*given, *settings, *outs)
    for i, w in enumerate(given[0]):
        alone = [np.full(w.size, np.nan, dtype) for _ in range(count - 1)]
        getattr(optim, rule)(*(one[i].reshape(-1) for one in given), *settings, *alone)
        for out, expected in zip(outs, alone, strict=True):
            assert np.array_equal(out[i].reshape(-1), expected), (i, w.shape)


@pytest.mark.parametrize("rule", RULES)
def test_in_place(rule):
    count, settings = RULES[rule]
    given = inputs(count, np.float32)
    outs = [[np.empty_like(w) for w in given[0]] for _ in range(count - 1)]
    getattr(optim, f"{rule}_many")(*given, *settings, *outs)
    # The outputs are the new weights and the new state: every input but the gradient.
    getattr(optim, f"{rule}_many")(*given, *settings, given[0], *given[2:])
    for new, old in zip(outs, (given[0], *given[2:]), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(new, old, strict=True))


def test_addresses_that_are_no_multiples_of_16():
    w, dw, out = (np.arange(5001, dtype=np.float32) for _ in range(3))
    optim.sgd_many([w[1:]], [dw[:-1]], 0.5, [out[1:]])
    assert np.array_equal(out[1:], w[1:] - np.float32(0.5) * dw[:-1]) and out[0] == 0


def test_lists_that_do_not_fit():
    one, two = np.ones(3, np.float32), np.ones(4, np.float32)
    for lists in (([one], [one, one], 0.1, [one]), ([one], [two], 0.1, [one])):
        with pytest.raises(ValueError, match="one length|one size"):
            optim.sgd_many(*lists)
    with pytest.raises(TypeError):
        optim.sgd_many([one], [one.astype(np.float64)], 0.1, [one])


@pytest.fixture
def launches(monkeypatch):
    """The sizes of the lists of weights that the compiled rules were called with, on backend cuda."""
    counts = []

    class Counted:
        def __getattr__(self, name):
            def call(stream, weights, *rest):
                counts.append(len(weights))
                return getattr(kernels, name)(stream, weights, *rest)

            return call

    kernels = optim.kernels
    monkeypatch.setattr(optim, "kernels", Counted())
    with fastrnn.backend("cuda"):
        yield counts


@pytest.mark.parametrize("rule", RULES)
def test_all_parameters_of_a_model_in_one_launch(rule, launches):
    rule = getattr(fastrnn, rule)
    weights, gradients = inputs(2, np.float32)
    weights[-1] = weights[-1][:, ::2]  # rows with something between
    gradients[-1] = gradients[-1][:, ::2]
    configs, alone = ([{"learning_rate": 0.1} for _ in weights] for _ in range(2))
    expected = weights
    for _ in range(2):
        weights, returned = update_all(rule, weights, gradients, configs)
        assert all(one is other for one, other in zip(returned, configs, strict=True))
    assert launches == [len(weights)] * 2
    for _ in range(2):
        expected = [rule(*one)[0] for one in zip(expected, gradients, alone, strict=True)]
    for one, other, config, wanted in zip(weights, expected, configs, alone, strict=True):
        assert one.dtype == np.float32 and np.array_equal(one, other)
        assert config.keys() == wanted.keys() and all(np.array_equal(config[key], wanted[key]) for key in config)


def test_a_launch_for_each_dtype_and_setting(launches):
    weights = [np.ones(3, dtype) for dtype in (np.float32, np.float64, np.float32, np.float32)]
    configs = [{"learning_rate": rate} for rate in (0.5, 0.5, 0.25, 0.5)]
    updated, _ = update_all(fastrnn.sgd, weights, [np.ones(3)] * 4, configs)
    assert sorted(launches) == [1, 1, 2]
    assert [w[0] for w in updated] == [0.5, 0.5, 0.75, 0.5]
    assert [w.dtype for w in updated] == [w.dtype for w in weights]


def test_an_update_that_fails_changes_no_config(launches):
    configs = [{}, {}]
    with pytest.raises(ValueError, match="adam: argument 'dw' must have the shape of w"):
        update_all(fastrnn.adam, [np.ones(3), np.ones(4)], [np.ones(3), np.ones(5)], configs)
    assert configs == [{}, {}] and not launches


def test_a_rule_of_somebody_else_is_called_for_each_array(launches):
    def halve(w, dw, config):
        return w / 2, config | {"halved": True}

    updated, configs = update_all(halve, [np.ones(2), np.ones(3)], [None, None], [{}, {}])
    assert [w.tolist() for w in updated] == [[0.5] * 2, [0.5] * 3] and configs == [{"halved": True}] * 2
    assert update_all(fastrnn.adam, [], [], []) == ([], []) and not launches


def test_the_solver_updates_its_model_in_one_launch(launches):
    rng = np.random.default_rng(0)
    words = {"<NULL>": 0, "<START>": 1, "<END>": 2, "a": 3, "b": 4}
    data = {
        "train_captions": rng.integers(0, 5, (8, 5)),
        "train_image_idxs": np.arange(8),
        "train_features": rng.standard_normal((8, 6)).astype(np.float32),
        "train_urls": np.array([""] * 8),
    }
    results = []
    for rule in (fastrnn.adam, lambda *given: fastrnn.adam(*given)):
        model = CaptioningRNN(words, 6, 4, 8, "lstm", rng=np.random.default_rng(1))
        solver = CaptioningSolver(model, data, "adam", batch_size=4, verbose=False, rng=np.random.default_rng(2))
        solver.update_rule = rule
        solver.train(2)
        results.append((solver.loss_history, model.params))
    count = len(model.params)
    assert launches == [count] * 2 + [1] * (2 * count)
    assert results[0][0] == results[1][0]
    for name, value in results[1][1].items():
        assert np.array_equal(results[0][1][name], value), name
