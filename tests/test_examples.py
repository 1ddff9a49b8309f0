"""The examples run, and show what they say."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import USABLE

import fastrnn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- PyTorch -------------------------------------------------------------------------------------------------------

SMALL = "--words 6000 --batch 8 --bptt 20 --size 24 --hidden 32 --layers 2 --epochs 3".split()


@pytest.fixture(scope="module")
def language_model():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return load("word_language_model")


def test_the_swap_is_ten_lines_and_changes_rounding_alone():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    script = EXAMPLES / "torch_swap.py"
    assert len([line for line in script.read_text().splitlines() if line and not line.startswith('"""')]) <= 10
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference = float(done.stdout.split("differ by ")[1].split()[0])
    assert "1 module replaced" in done.stdout and 0 < difference < 1e-6


def test_the_language_model_is_the_same_after_the_swap(language_model, capsys):
    before, ways = language_model.main(["--compare", *SMALL])
    assert before.losses[-1] < before.losses[0]
    assert type(before.model.lstm).__module__.startswith("torch.nn")
    control = ways.pop("torch.nn, last bit off")
    assert type(control.model.lstm) is type(before.model.lstm) and control.losses != before.losses
    for training in ways.values():
        assert type(training.model.lstm).__module__ == "fastrnn.torch.modules"
        np.testing.assert_allclose(training.losses, before.losses, rtol=1e-6)
    out = capsys.readouterr().out
    assert out.count("times as fast") == 3 and out.count("epoch 3: ") == 4


def test_the_language_model_sees_a_wrong_layer(language_model, monkeypatch):
    """A model that forgets its state between windows learns another curve: the comparison above would tell."""
    right = language_model.LanguageModel.forward
    before = language_model.main(["--epochs", "1", *SMALL[:-2]])
    monkeypatch.setattr(language_model.LanguageModel, "forward", lambda self, ids, state: right(self, ids, None))
    after = language_model.main(["--epochs", "1", *SMALL[:-2], "--convert"])
    assert not np.allclose(after.losses, before.losses, rtol=1e-6)


def test_the_language_model_prints_its_epochs(language_model, capsys):
    for options in (["--convert", "--fused-loss"], ["--characters"]):
        training = language_model.main([*SMALL[:-1], "2", *options])
        out = capsys.readouterr().out
        assert out.count("epoch") == 2 and f"perplexity {math.exp(training.losses[-1]):.1f}" in out
        assert training.losses[1] < training.losses[0]


# ---- JAX -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jax_lstm():
    pytest.importorskip("jax", reason="JAX is not installed")
    return load("jax_lstm")


def lstm_arguments(seed=0):
    rng = np.random.default_rng(seed)
    shapes = (3, 5, 4), (3, 6), (4, 24), (6, 24), (24,)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes], rng.standard_normal(
        (3, 5, 6), dtype=np.float32
    )


def test_jax_computes_the_same_bits(jax_lstm):
    import jax

    arguments, dh = lstm_arguments()
    h, cache = fastrnn.lstm_forward(*arguments)
    for call in (jax_lstm.lstm, jax.jit(jax_lstm.lstm)):
        assert np.array_equal(call(*arguments), h)
    for transform in (lambda f: f, jax.jit):
        _, pullback = jax.vjp(transform(jax_lstm.lstm), *arguments)
        for ours, expected in zip(pullback(dh), fastrnn.lstm_backward(dh, cache), strict=True):
            assert np.array_equal(ours, expected)


def test_jax_agrees_with_its_own_lstm(jax_lstm):
    import jax
    import jax.numpy as jnp

    def scan(x, h0, Wx, Wh, b):
        def step(state, x_t):
            i, f, o, g = jnp.split(x_t @ Wx + state[0] @ Wh + b, 4, axis=1)
            c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return jax.lax.scan(step, (h0, jnp.zeros_like(h0)), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    arguments, dh = lstm_arguments()
    ours, expected = (
        jax.jit(jax.grad(lambda a, f=f: (f(*a) * dh).sum()))(tuple(arguments)) for f in (jax_lstm.lstm, scan)
    )
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_jax_maps_and_trains(jax_lstm):
    import jax

    one, two = (lstm_arguments(seed)[0] for seed in (0, 1))
    both = jax.vmap(jax_lstm.lstm)(*(np.stack(pair) for pair in zip(one, two, strict=True)))
    assert np.array_equal(both, np.stack([jax_lstm.lstm(*one), jax_lstm.lstm(*two)]))
    losses = jax_lstm.main()
    assert losses[-1] < 0.1 * losses[0]
    assert fastrnn.last_backend() is None or fastrnn.last_backend() in USABLE
