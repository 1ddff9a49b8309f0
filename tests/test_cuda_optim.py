"""Update rules of many arrays in one launch, on the simulator of a CUDA device."""

import os

import numpy as np
import pytest

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
