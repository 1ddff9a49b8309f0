"""Training runs: that they learn, that any of them can be stopped anywhere and ends the same, and what is refused."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path

import fake_device
import numpy as np
import pytest
from full_disk import FullFile, fill, tiny_disk
from harness import BACKENDS, complains
from typer.testing import CliRunner

import fastrnn
from fastrnn import conformance, runs
from fastrnn.captioning import (
    CaptioningRNN,
    Checkpoint,
    Trainer,
    TrainingConfig,
    load_checkpoint,
    numbers,
    pictures,
    save_checkpoint,
    save_coco_data,
)
from fastrnn.captioning import checkpoint as checkpoint_module
from fastrnn.captioning import training as module
from fastrnn.captioning.stream import Batch
from fastrnn.cli.main import app

h5py = pytest.importorskip("h5py")

pytestmark = pytest.mark.filterwarnings("ignore:fastrnn runs on:RuntimeWarning")

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["<NULL>", "<START>", "<END>", "red", "green", "blue", "cat", "dog"]
CELLS = ("rnn", "lstm", "gru")
RULES = ("sgd", "sgd_momentum", "rmsprop", "adam")
# Everything random and everything with a state of its own.
ALL_AT_ONCE = {"noise": 0.1, "clip_norm": 1.0, "average": 0.9, "weight_decay": 0.01, "lr_decay": 0.9, "warmup": 3}
SMALL = {"wordvec_dim": 4, "hidden_dim": 6, "batch_size": 8, "epochs": 3, "log_every": 1, "learning_rate": 0.01}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def colours(train=40, val=16, D=6, seed=0):
    """A data set: an image is a colour and an animal with noise, its caption says both."""
    data = {"idx_to_word": WORDS, "word_to_idx": {word: n for n, word in enumerate(WORDS)}}
    for split, count in (("train", train), ("val", val)):
        rng = np.random.default_rng([seed, count])
        colour, animal = rng.integers(3, 6, count), rng.integers(6, 8, count)
        features = 0.1 * rng.standard_normal((count, D)) + 3
        features[np.arange(count), colour - 3] += 2
        features[:, 3] += 2 * (animal - 6)
        caption = np.stack([np.full(count, 1), colour, animal, np.full(count, 2), np.zeros(count, int)], axis=1)
        data[f"{split}_captions"], data[f"{split}_image_idxs"] = caption, np.arange(count)
        data[f"{split}_features"] = features
        data[f"{split}_urls"] = [f"image://{n}" for n in range(count)]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The colours, with features of two widths."""
    folder = tmp_path_factory.mktemp("colours")
    save_coco_data(folder, colours(), pca_features=True)
    save_coco_data(folder, colours(D=9), pca_features=False)
    return folder


@pytest.fixture
def drawn():
    """The loss curve is drawn in this test."""
    pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _seldom_drawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:  # it takes longer than a small run
        monkeypatch.setattr(pictures, "loss_curve", lambda records, path: Path(path).touch())


def trained(folder, out=None, callback=None, **options):
    """A run from its beginning to its end."""
    config = TrainingConfig(**SMALL | options)
    with config.open(folder) as data:
        trainer = Trainer(data, config, out=out, callback=callback)
        trainer.summary = trainer.train()
    return trainer


def resumed(folder, run, **changes):
    """A run from its checkpoint to its end."""
    config = TrainingConfig.of(load_checkpoint(run / "last.h5").config)
    with config.open(folder) as data:
        trainer = Trainer.resume(run, data, **changes)
        trainer.summary = trainer.train()
    return trainer


class Cut(Exception):
    """A run that ends as by kill -9."""


def cut_at(step):
    def callback(record):
        if record["step"] == step and "loss" in record:
            raise Cut

    return callback


def content(path):
    """Every dataset of an HDF5 file, as bytes with dtype and shape."""
    found = {}

    def note(name, item):
        if hasattr(item, "dtype"):
            value = item[()]
            found[name] = (str(item.dtype), item.shape, value if isinstance(value, bytes) else value.tobytes())

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def figures(run):
    """What metrics.jsonl says that does not depend on time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "data_wait")} for line in lines]


def assert_same_run(run, other):
    found, expected = content(run / "last.h5"), content(other / "last.h5")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert figures(run) == figures(other)
    assert content(run / "best.h5") == content(other / "best.h5")
    assert not list(run.glob("*.part"))


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_learns(folder, backend, tmp_path):
    with fastrnn.backend(backend):
        trainer = trained(folder, tmp_path / "run", hidden_dim=16, learning_rate=0.02, epochs=40, validate_every=50)
        with trainer.config.open(folder) as trainer.data:
            result = trainer.evaluate()
    assert trainer.step == trainer.total_steps == trainer.summary.step == trainer.summary.steps == 200
    assert trainer.best["loss"] < 0.1 and trainer.best["perplexity"] < 1.05
    assert trainer.summary.stopped == "done" and trainer.summary.tokens_per_s > 0
    assert 0 <= trainer.summary.data_wait < 1
    # What evaluate says is the model's loss, all words and captions counted.
    with TrainingConfig(**SMALL).open(folder) as data:
        features = (data.features("val", data.image_idxs("val")) - trainer.feature_mean) * trainer.feature_scale
        loss, _ = trainer.model.loss(features, data.captions("val"))
    assert result["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(float(loss) / 3), rel=1e-5)
    assert figures(tmp_path / "run")[-1]["val_loss"] == result["loss"]


def test_files_of_a_run(folder, tmp_path, drawn):
    run = tmp_path / "deep" / "run"
    trainer = trained(folder, run, learning_rate=0.05, epochs=5)
    assert sorted(path.name for path in run.iterdir()) == ["best.h5", "last.h5", "loss.png", "metrics.jsonl"]
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records == trainer.records
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 26))
    assert [record["epoch"] for record in steps] == [n // 5 for n in range(25)]
    assert all(record.keys() == {"step", "epoch", "loss", "lr", "tokens_per_s", "data_wait"} for record in steps)
    validations = [record for record in records if "val_loss" in record]
    assert [(record["step"], record["epoch"]) for record in validations] == [(5, 0), (10, 1), (15, 2), (20, 3), (25, 4)]
    best = min(validations, key=lambda record: record["val_loss"])
    kept = load_checkpoint(run / "best.h5")
    assert kept.best == {"loss": best["val_loss"], "perplexity": best["perplexity"], "step": best["step"]}
    assert kept.position["step"] == best["step"]
    # The best checkpoint has the loss that it says.
    with TrainingConfig(**SMALL).open(folder) as data:
        features = kept.prepare(data.features("val", data.image_idxs("val")))
        loss, _ = kept.model().loss(features, data.captions("val"))
        assert kept.feature_mean == pytest.approx(data.features("train", range(40)).mean(), rel=1e-6)
        assert 1 / kept.feature_scale == pytest.approx(data.features("train", range(40)).std(), rel=1e-6)
    assert float(loss) == pytest.approx(best["val_loss"], rel=1e-5)


@pytest.mark.parametrize("rows", [7, 256])
def test_mean_and_deviation_of_the_features(folder, monkeypatch, rows):
    """In one block, and in several whose means differ."""
    monkeypatch.setattr(module, "_ROWS", rows)
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data:
        trainer = Trainer(data, config)
        features = data.features("train", range(40)).astype(np.float64)
        plain = Trainer(data, TrainingConfig(**SMALL, normalize=False))
    assert trainer.feature_mean == pytest.approx(features.mean(), rel=1e-12)
    assert 1 / trainer.feature_scale == pytest.approx(features.std(), rel=1e-12)
    assert (plain.feature_mean, plain.feature_scale) == (0, 1)


def test_without_a_folder_nothing_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained(folder, epochs=1).best
    assert list(tmp_path.iterdir()) == []


def test_the_global_generator_is_left_alone(folder):
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    trained(folder, epochs=1, **ALL_AT_ONCE)
    assert np.random.rand() == expected


def test_the_callback_hears_of_every_step(folder):
    heard = []
    trainer = trained(folder, callback=heard.append, log_every=4, epochs=2)
    assert [record["step"] for record in heard if "loss" in record] == list(range(1, 11))
    assert [record["step"] for record in heard if "lr" in record] == [1, 4, 8, 10]
    assert [record for record in heard if "lr" in record or "val_loss" in record] == trainer.records


# ---- what a step does ------------------------------------------------------------------------------------------------


def test_gradients_are_handed_over_as_they_become_final():
    model = CaptioningRNN({word: n for n, word in enumerate(WORDS)}, 6, 4, 5, "lstm", rng=np.random.default_rng(0))
    features, captions = np.ones((3, 6)), np.array([[1, 3, 6, 2]] * 3)
    heard = []
    loss, grads = model.loss(features, captions, ready=lambda name, grad: heard.append((name, grad)))
    assert [name for name, _ in heard] == ["W_vocab", "b_vocab", "Wx", "Wh", "b", "W_embed", "W_proj", "b_proj"]
    assert all(grad is grads[name] for name, grad in heard)
    plain_loss, plain = model.loss(features, captions)
    assert loss == plain_loss and all((plain[name] == grads[name]).all() for name in plain)


def test_the_vocabulary_comes_before_the_recurrent_layer(monkeypatch):
    from fastrnn.captioning import model as model_module

    order = []
    cell = model_module._CELLS["gru"]

    def backward(*args):
        order.append("recurrent")
        return cell.backward(*args)

    monkeypatch.setitem(model_module._CELLS, "gru", cell._replace(backward=backward))
    model = CaptioningRNN({word: n for n, word in enumerate(WORDS)}, 6, 4, 5, "gru", rng=np.random.default_rng(0))
    model.loss(np.ones((1, 6)), np.array([[1, 3, 2]]), ready=lambda name, _: order.append(name))
    assert order[:3] == ["W_vocab", "b_vocab", "recurrent"]


def test_clipping():
    grads = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.0]])}
    assert module.clip(grads, 10.0) == 5.0 and grads["a"][0] == 3
    assert module.clip(grads, 1.0) == 5.0
    np.testing.assert_allclose(grads["a"], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(grads["b"], [[0.8]], rtol=1e-6)
    assert grads["a"].dtype == np.float32
    large = {"a": np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)}
    assert module.clip(large, 1e9) == pytest.approx(math.sqrt(np.square(large["a"], dtype=np.float64).sum()), rel=1e-12)


def test_clipped_steps_are_small(folder):
    """With plain gradient descent the step is the gradient: no longer than the rate times the norm allowed."""
    far = {}
    for norm in (None, 0.01):
        config = TrainingConfig(**SMALL | {"rule": "sgd", "learning_rate": 1.0, "clip_norm": norm, "steps": 1})
        with config.open(folder) as data:
            trainer = Trainer(data, config)
            before = {name: value.copy() for name, value in trainer.model.params.items()}
            trainer.train()
        squares = sum(((trainer.model.params[name] - before[name]) ** 2).sum() for name in before)
        far[norm] = math.sqrt(squares)
    assert far[None] > 0.1 and far[0.01] == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_and_average(folder):
    """One step of each by hand."""
    runs = {}
    for decay in (0.0, 0.5):
        config = TrainingConfig(**SMALL | {"rule": "sgd", "weight_decay": decay, "average": 0.9, "steps": 1})
        with config.open(folder) as data:
            trainer = Trainer(data, config)
            for name in ("b", "b_proj", "b_vocab"):  # which begin as zeros, of which nothing can be taken
                trainer.model.params[name] += 1
                trainer.average[name] += 1
            before = {name: value.copy() for name, value in trainer.model.params.items()}
            trainer.train()
        runs[decay] = trainer.model.params
        for name, value in trainer.average.items():  # the decay of the first step is (1 + 1) / (10 + 1)
            expected = 2 / 11 * before[name] + 9 / 11 * trainer.model.params[name]
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    for name, value in before.items():
        taken = 0.01 * 0.5 * value if value.ndim == 2 else 0
        np.testing.assert_allclose(runs[0.0][name] - runs[0.5][name], taken, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.01] * 15),
        ({"lr_decay": 0.5}, [0.01] * 5 + [0.005] * 5 + [0.0025] * 5),
        ({"warmup": 4}, [0.0025, 0.005, 0.0075] + [0.01] * 12),
        ({"schedule": "cosine"}, [0.005 * (1 + math.cos(math.pi * n / 15)) for n in range(15)]),
        ({"schedule": "cosine", "lr_final": 0.2, "warmup": 5}, [0.002, 0.004, 0.006, 0.008, 0.01]
         + [0.01 * (0.2 + 0.4 * (1 + math.cos(math.pi * n / 10))) for n in range(10)]),
    ],
)  # fmt: skip
def test_learning_rates(folder, options, expected):
    trainer = trained(folder, **options)
    np.testing.assert_allclose([record["lr"] for record in trainer.records if "lr" in record], expected, rtol=1e-12)
    assert {state["learning_rate"] for state in trainer.optimizer.values()} == {trainer.records[-2]["lr"]}


def test_default_learning_rates():
    assert {rule: TrainingConfig(rule=rule).learning_rate for rule in RULES} == {
        "sgd": 0.01, "sgd_momentum": 0.01, "rmsprop": 0.01, "adam": 0.001,
    }  # fmt: skip


def test_early_stopping(folder, tmp_path, monkeypatch):
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.0, 3.2, 3.1, 2.0, 9.0]
    said = iter(losses)
    monkeypatch.setattr(Trainer, "evaluate", lambda self: {"loss": next(said), "perplexity": 1.0})
    trainer = trained(folder, tmp_path, epochs=10, patience=3)
    assert trainer.summary.stopped == "patience" and trainer.step == 8 * 5  # as good is not better
    assert [record["val_loss"] for record in trainer.records if "val_loss" in record] == losses[:8]
    assert load_checkpoint(tmp_path / "best.h5").best == {"loss": 3.0, "perplexity": 1.0, "step": 25}
    assert load_checkpoint(tmp_path / "last.h5").stopping == {"stale": 3, "validated": 40}
    # It stays stopped, until it is allowed more.
    again = resumed(folder, tmp_path)
    assert again.summary.steps == 0 and again.summary.stopped == "patience"
    more = resumed(folder, tmp_path, patience=4)
    assert more.step == 50 and more.best["loss"] == 2.0 and more.summary.stopped == "done"


# ---- stopped and gone on with ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "rule"), [("lstm", "adam"), ("gru", "rmsprop"), ("rnn", "sgd_momentum"),
                                            ("lstm", "sgd")])  # fmt: skip
def test_a_run_that_was_cut_ends_the_same(folder, tmp_path, cell, rule):
    options = ALL_AT_ONCE | {"cell": cell, "rule": rule, "epochs": 4, "validate_every": 4, "save_every": 3}
    whole = trained(folder, tmp_path / "whole", **options)
    for step in (2, 7):
        run = tmp_path / f"cut{step}"
        with pytest.raises(Cut):
            trained(folder, run, callback=cut_at(step), **options)
        if step == 2:  # before the first checkpoint
            assert not (run / "last.h5").exists()
            trained(folder, run, **options)
        else:
            assert load_checkpoint(run / "last.h5").position["step"] < step
            assert resumed(folder, run).step == whole.step
        assert_same_run(run, tmp_path / "whole")
    assert (tmp_path / "cut7" / "last.h5").read_bytes() == (tmp_path / "whole" / "last.h5").read_bytes()


def test_float64_and_cosine_and_sampled_captions_end_the_same(folder, tmp_path):
    options = {"dtype": "float64", "schedule": "cosine", "max_train": 30, "steps": 11, "save_every": 1}
    trained(folder, tmp_path / "whole", **options)
    with pytest.raises(Cut):
        trained(folder, tmp_path / "run", callback=cut_at(6), **options)
    resumed(folder, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert load_checkpoint(tmp_path / "run" / "last.h5").params["Wh"].dtype == np.float64


def test_lengthened_and_elsewhere(folder, tmp_path):
    """More epochs in another folder: parameters as if there had been so many from the beginning."""
    long = trained(folder, tmp_path / "long", epochs=5)
    trained(folder, tmp_path / "short", epochs=2)
    before = (tmp_path / "short" / "last.h5").read_bytes()
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data:
        trainer = Trainer.resume(tmp_path / "short" / "last.h5", data, out=tmp_path / "on", epochs=5)
        assert (tmp_path / "on" / "best.h5").read_bytes() == (tmp_path / "short" / "best.h5").read_bytes()
        trainer.train()
    assert (tmp_path / "short" / "last.h5").read_bytes() == before
    assert_same_run(tmp_path / "on", tmp_path / "long")
    assert trainer.step == long.step == 25


def test_epochs_go_before_the_steps_of_the_run(folder, tmp_path):
    trained(folder, tmp_path, steps=3)
    assert resumed(folder, tmp_path, epochs=2).step == 10


def test_metrics_past_the_checkpoint_are_dropped(folder, tmp_path):
    trained(folder, tmp_path, epochs=2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "epoch": 2, "loss": 1.0}\n{"step": 9, "los')
    trainer = resumed(folder, tmp_path)
    assert [record["step"] for record in figures(tmp_path) if "loss" in record] == list(range(1, 11))
    assert trainer.summary.steps == 0


def interrupt_when(condition, signum=signal.SIGINT):
    """A callback that signals this process once."""
    done = []

    def callback(record):
        if condition(record) and not done:
            done.append(record)
            os.kill(os.getpid(), signum)
            time.sleep(0.01)  # the handler runs in between

    return callback


@posix
def test_ctrl_c_saves_first(folder, tmp_path):
    trained(folder, tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "run", callback=interrupt_when(lambda record: record["step"] == 8))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert load_checkpoint(tmp_path / "run" / "last.h5").position == {"epoch": 1, "batch": 3, "step": 8}
    resumed(folder, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@posix
@pytest.mark.parametrize("step", [5, 15])
def test_interrupted_before_and_while_validating(folder, tmp_path, monkeypatch, step):
    """The validation is made up for; also that at the end."""
    trained(folder, tmp_path / "whole", patience=9)
    with pytest.raises(KeyboardInterrupt):
        callback = interrupt_when(lambda record: record["step"] == step)
        trained(folder, tmp_path / "before", callback=callback, patience=9)
    resumed(folder, tmp_path / "before")
    assert_same_run(tmp_path / "before", tmp_path / "whole")

    heed, seen = Trainer._heed, []

    def press(self):
        seen.append(self.step)
        if seen.count(step) == 2:
            signal.raise_signal(signal.SIGINT)
        heed(self)

    monkeypatch.setattr(Trainer, "_heed", press)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "while", patience=9)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "while" / "last.h5").stopping["validated"] == step - 5
    resumed(folder, tmp_path / "while")
    assert_same_run(tmp_path / "while", tmp_path / "whole")


@posix
def test_a_handler_of_ones_own_is_called_after_the_save(folder, tmp_path):
    called = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append((tmp_path / "last.h5").exists()))
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(folder, tmp_path, callback=interrupt_when(lambda record: record["step"] == 2, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [True]


@posix
def test_a_second_ctrl_c_does_not_wait(folder, tmp_path):
    def twice(record):
        if record["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path, callback=twice)
    assert not (tmp_path / "last.h5").exists()


def test_it_trains_in_another_thread(folder):
    """Where nobody may set signal handlers."""
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(folder, epochs=1).step))
    thread.start()
    thread.join()
    assert found == [5]


# ---- from the command line, for real ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The options of a run on few of the embedded numbers, and that run without a break."""
    pytest.importorskip("sklearn")
    base = tmp_path_factory.mktemp("embedded")
    few = numbers.build_numbers(2000, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "build_numbers", lambda: few)
        numbers.numbers_dir(base)
    options = ["--cell", "gru", "--wordvec-dim", "8", "--hidden-dim", "32", "--epochs", "10", "--batch-size", "50",
               "--noise", "0.1", "--distort", "1", "--average", "0.9", "--clip-norm", "5", "--save-every", "37",
               "--log-every", "1", "--validate-every", "150", "--cache-dir", str(base)]  # fmt: skip
    result = CliRunner().invoke(app, ["train", "--out", str(base / "whole"), *options])
    assert result.exit_code == 0, result.output
    return base, options


@posix
@pytest.mark.parametrize(
    ("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)], ids=["kill -9", "SIGTERM", "Ctrl-C"]
)
def test_a_stopped_command_goes_on(embedded, tmp_path, name, code):
    base, options = embedded
    run = tmp_path / "run"
    stop_at = int(np.random.default_rng().integers(2 if code > 0 else 40, 330))  # of 400, another one each time
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "train", "--out", str(run), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"loss"') >= stop_at:
            break
        time.sleep(0.002)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, (stop_at, errors)
    stopped = load_checkpoint(run / "last.h5").position["step"]
    assert 0 < stopped < 400, stop_at
    if code > 0:
        (line,) = [line for line in errors.splitlines() if line.startswith("fastrnn:")]
        assert line.startswith(f"fastrnn: stopped after step {stopped} of 400; ")
        assert line.endswith(f"go on with: fastrnn train --out {run} --resume")
        assert "Traceback" not in errors
    else:
        assert stopped % 37 == 0 or stopped % 150 == 0
    result = CliRunner().invoke(app, ["train", "--out", str(run), "--resume"])
    assert result.exit_code == 0, result.output
    assert f"from step {stopped} of 400" in result.output
    assert_same_run(run, base / "whole")


def test_what_the_command_says(embedded, tmp_path):
    base, options = embedded
    result = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), *options, "--resume", "--steps", "20"])
    assert result.exit_code == 0, result.output
    said = result.output
    assert f"2,000 captions of 2,000 images to train on, 100 to validate on: {base / 'numbers'}" in said
    parameters = load_checkpoint(tmp_path / "run" / "last.h5").params
    assert f"gru, D=192, W=8, H=32, V=34: {sum(value.size for value in parameters.values()):,} parameters" in said
    assert f"no checkpoint in {tmp_path / 'run'} yet" in said
    assert [int(n) for n in re.findall(r"step (\d+) of 20:", said)] == list(range(2, 21, 2))
    assert re.search(r"step 20: validation loss [\d.]+, perplexity [\d.]+\n", said)
    assert re.search(r"20 steps in [\d.]+ s: [\d,]+ tokens/s, [\d.]+ % of the time waiting for data", said)
    assert re.search(r"best at step 20: loss [\d.]+, perplexity [\d.]+", said)
    assert re.search(r"[\d,]+ MiB resident at most", said) or sys.platform == "win32"
    again = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), "--resume"])
    assert again.exit_code == 0 and "nothing left to do: all 20 steps are done" in again.output
    # Options that are repeated are no changes.
    more = CliRunner().invoke(
        app, ["train", "--out", str(tmp_path / "run"), "--resume", "--cell", "gru", "--steps", "21"]
    )
    assert more.exit_code == 0 and "1 steps in" in more.output


# ---- options ---------------------------------------------------------------------------------------------------------

BASE = ["--wordvec-dim", "4", "--hidden-dim", "6", "--batch-size", "8", "--epochs", "2", "--log-every", "3"]
# What each option of the command is given, and what it is given beside that in both runs.
CHANGED = {
    "cell": ("--cell gru", ""),
    "wordvec_dim": ("--wordvec-dim 5", ""),
    "hidden_dim": ("--hidden-dim 5", ""),
    "dtype": ("--dtype float64", ""),
    "rule": ("--rule sgd", "--learning-rate 0.01"),
    "learning_rate": ("--learning-rate 0.01", ""),
    "lr_decay": ("--lr-decay 0.5", ""),
    "schedule": ("--schedule cosine", ""),
    "lr_final": ("--lr-final 0.5", "--schedule cosine"),
    "warmup": ("--warmup 2", ""),
    "weight_decay": ("--weight-decay 0.1", ""),
    "clip_norm": ("--clip-norm 0.1", "--rule sgd"),
    "average": ("--average 0.9", ""),
    "batch_size": ("--batch-size 9", ""),
    "epochs": ("--epochs 3", ""),
    "steps": ("--steps 7", ""),
    "seed": ("--seed 1", ""),
    "memory": ("--memory 1", "--max-train 2000"),
    "max_train": ("--max-train 33", ""),
    "pca_features": ("--no-pca", ""),
    "normalize": ("--no-normalize", ""),
    "noise": ("--noise 0.1", ""),
    # These do not change a step.
    "patience": ("--patience 1", "--rule sgd --learning-rate 3 --clip-norm 1 --epochs 9"),
    "validate_every": ("--validate-every 2", ""),
    "save_every": ("--save-every 3", ""),
    "log_every": ("--log-every 1", ""),
}


def command(folder, run, words):
    result = CliRunner().invoke(app, ["train", str(folder), "--out", str(run), *BASE, *words.split()])
    assert result.exit_code == 0, result.output
    return load_checkpoint(run / "last.h5")


def test_every_option_is_tried():
    assert CHANGED.keys() | {"distort"} == {entry.name for entry in fields(TrainingConfig)}


@pytest.mark.parametrize("name", CHANGED)
def test_every_option_changes_the_result(folder, tmp_path, name):
    change, beside = CHANGED[name]
    if name == "memory":  # enough images for their order to depend on how many fit into memory
        folder = tmp_path / "data"
        save_coco_data(folder, colours(train=2000, D=192))
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_checkpoint", lambda path, c: (saved.append(path.name), save_checkpoint(path, c)))
        plain = command(folder, tmp_path / "plain", beside)
        counted, saved[:] = list(saved), []
        other = command(folder, tmp_path / "other", f"{beside} {change}")
    differing = {key for key, value in other.config.items() if plain.config[key] != value}
    assert differing == {name} or differing == {name, "steps"}
    same = plain.params.keys() == other.params.keys() and all(
        np.array_equal(value, other.params[key]) for key, value in plain.params.items()
    )
    if name == "average":
        assert same and not plain.average
        assert not np.array_equal(other.model().params["Wh"], plain.model().params["Wh"])
    elif name in ("validate_every", "log_every"):
        assert same and len(figures(tmp_path / "other")) > len(figures(tmp_path / "plain"))
    elif name == "save_every":
        assert same and saved.count("last.h5") > counted.count("last.h5")
    else:
        assert not same
    if name == "patience":
        assert other.position["step"] < plain.position["step"]


def test_distortion_changes_the_result(embedded, tmp_path):
    base, options = embedded
    runs = {}
    for strength in ("0", "1", "1.7"):
        command(base / "numbers", tmp_path / strength, f"--steps 2 --distort {strength}")
        runs[strength] = load_checkpoint(tmp_path / strength / "last.h5").params["W_proj"]
    assert not np.array_equal(runs["0"], runs["1"]) and not np.array_equal(runs["1"], runs["1.7"])


def test_backend_and_threads(folder, tmp_path):
    threads = fastrnn.get_num_threads()
    try:
        command(folder, tmp_path / "reference", "--backend reference")
        last = fastrnn.last_backend()
        assert last == "reference"
        for count in (1, 2):
            command(folder, tmp_path / str(count), f"--threads {count} --hidden-dim 128 --batch-size 40")
            assert fastrnn.get_num_threads() == count
    finally:
        fastrnn.set_num_threads(threads)
    assert content(tmp_path / "1" / "last.h5") == content(tmp_path / "2" / "last.h5")


def test_help_names_every_option():
    result = CliRunner().invoke(app, ["train", "--help"])
    assert result.exit_code == 0
    for entry in fields(TrainingConfig):
        name = "pca" if entry.name == "pca_features" else entry.name
        assert f"--{name.replace('_', '-')}" in result.output, name


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cell": "LSTM"}, ValueError, ("cell", "'lstm'", "'LSTM'")),
        ({"rule": "adamw"}, ValueError, ("rule", "'adam'", "'adamw'")),
        ({"schedule": "step"}, ValueError, ("schedule", "'cosine'")),
        ({"dtype": "float16"}, ValueError, ("dtype", "'float32'", "'float16'")),
        ({"hidden_dim": 0}, ValueError, ("hidden_dim", "at least 1", "0")),
        ({"batch_size": 2.0}, TypeError, ("batch_size", "whole number", "float")),
        ({"patience": 0}, ValueError, ("patience", "at least 1")),
        ({"seed": -1}, ValueError, ("seed", "at least 0", "-1")),
        ({"learning_rate": 0}, ValueError, ("learning_rate", "greater than 0", "0")),
        ({"learning_rate": math.nan}, ValueError, ("learning_rate", "nan")),
        ({"learning_rate": math.inf}, ValueError, ("learning_rate", "inf")),
        ({"learning_rate": "fast"}, TypeError, ("learning_rate", "number")),
        ({"lr_decay": 1.1}, ValueError, ("lr_decay", "at most 1", "1.1")),
        ({"average": 1}, ValueError, ("average", "less than 1")),
        ({"clip_norm": -1}, ValueError, ("clip_norm", "greater than 0", "-1")),
        ({"noise": -0.1}, ValueError, ("noise", "at least 0")),
        ({"normalize": 1}, TypeError, ("normalize", "True or False")),
    ],
)
def test_bad_options(options, error, words):
    with complains(error, "TrainingConfig", *words):
        TrainingConfig(**options)


def test_data_and_configuration_must_fit(folder, tmp_path):
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data:
        with complains(ValueError, "Trainer", "memory=1048576", f"memory={config.memory}"):
            Trainer(data, TrainingConfig(**SMALL, memory=2**20))
        with complains(ValueError, "Trainer", "max_train=9", "40 training captions"):
            Trainer(data, TrainingConfig(**SMALL, max_train=9))
        with complains(ValueError, "Trainer", "distort", "embedded numbers"):
            Trainer(data, TrainingConfig(**SMALL, distort=1.0))
        with complains(TypeError, "Trainer", "config", "TrainingConfig", "dict"):
            Trainer(data, asdict(config))
    empty = tmp_path / "empty"
    save_coco_data(empty, colours(val=0))
    with config.open(empty) as data, complains(ValueError, "Trainer", "validate", "val", "none"):
        Trainer(data, config)


def test_a_folder_with_a_run_is_left_alone(folder, tmp_path):
    trained(folder, tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data, complains(FileExistsError, "Trainer", str(tmp_path), "last.h5", "--resume"):
        Trainer(data, config, out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cell": "gru"}, ("'cell'", "'lstm'", "'gru'")),
        ({"hidden_dim": 7}, ("'hidden_dim'", "6", "7")),
        ({"seed": 3}, ("'seed'", "0", "3")),
        ({"batch_size": 9}, ("'batch_size'", "8", "9")),
        ({"learning_rate": 0.5}, ("'learning_rate'", "0.01", "0.5")),
        ({"noise": 0.5}, ("'noise'",)),
        ({"memory": 2**20}, ("'memory'",)),
        ({"max_train": 12}, ("'max_train'",)),
    ],
)
def test_what_may_not_change(folder, tmp_path, change, words):
    trained(folder, tmp_path, epochs=1)
    with complains(ValueError, "Trainer.resume", "last.h5", "new run", "epochs, steps, patience", *words):
        resumed(folder, tmp_path, **change)
    with complains(TypeError, "Trainer.resume", "speed"):
        resumed(folder, tmp_path, speed=9)


def test_the_length_of_a_cosine_may_not_change(folder, tmp_path):
    trained(folder, tmp_path, epochs=1, schedule="cosine")
    with complains(ValueError, "Trainer.resume", "'epochs'", "1", "2"):
        resumed(folder, tmp_path, epochs=2)
    assert resumed(folder, tmp_path, patience=2).summary.steps == 0


def test_another_data_set_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    trained(folder, run, epochs=1)
    other = {"width": colours(D=5), "words": colours(), "captions": colours(train=39), "images": colours()}
    other["words"]["idx_to_word"] = [*WORDS[:-1], "hen"]
    other["words"]["word_to_idx"] = {word: n for n, word in enumerate(other["words"]["idx_to_word"])}
    other["images"]["val_features"] = np.ones((17, 6))
    other["images"]["val_urls"] = ["image://"] * 17
    said = {
        "width": ("features of 6 numbers", "got 5"),
        "words": ("vocabulary", "8 words"),
        "captions": ("40 train captions", "39"),
        "images": ("16 val images", "17"),
    }
    for name, words in said.items():
        save_coco_data(tmp_path / name, other[name])
        with complains(ValueError, "Trainer.resume", str(run / "last.h5"), str(tmp_path / name), str(folder), *words):
            resumed(tmp_path / name, run)


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(folder, tmp_path):
    options = {"rule": "sgd", "save_every": 2, "epochs": 9, "log_every": 99}
    config = TrainingConfig(**SMALL | options)
    with config.open(folder) as data:
        trainer = Trainer(data, config, out=tmp_path)

        def spoil(record):
            if record["step"] == 7:
                trainer.model.params["Wh"][0, 0] = np.nan

        trainer.callback = spoil
        with complains(FloatingPointError, "Trainer.train", "nan", "last.h5", "learning_rate"):
            trainer.train()
    assert load_checkpoint(tmp_path / "last.h5").position["step"] == 6
    assert all(np.isfinite(value).all() for value in load_checkpoint(tmp_path / "last.h5").params.values())


def test_parameters_that_are_not_finite_are_not_saved(folder, tmp_path):
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data:
        trainer = Trainer(data, config, out=tmp_path)
        trainer.save()
        before = (tmp_path / "last.h5").read_bytes()
        trainer.model.params["b"][1] = np.inf
        with complains(FloatingPointError, "Trainer.train", "parameter b", "last good checkpoint"):
            trainer.save()
    assert (tmp_path / "last.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere --out run", "nowhere"),
        ("DATA --out run --cell LSTM", "'LSTM'"),
        ("DATA --out run --learning-rate -1", "learning_rate"),
        ("DATA --out run --backend gpu", "'gpu'"),
        ("DATA --out run --distort 1", "distort"),
        ("DATA --out run --epochs 0", "--epochs"),
        ("DATA --out file", "file"),
        ("DATA --out file/run", "file"),
        ("DATA --out there", "there: expected a folder without a run"),
        ("DATA --out there --resume --hidden-dim 9", "'hidden_dim'"),
        ("NAN --out run", "got nan at [3, 2]"),
        ("DATA --out half --resume", "half-written"),
        ("--out lost --resume", "data set"),
    ],
)
def test_bad_input_on_the_command_line(folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    trained(folder, Path("there"), epochs=1)
    whole = Path("there/last.h5").read_bytes()
    shutil.copytree("there", "half")
    Path("half/last.h5").write_bytes(whole[: len(whole) // 2])
    spoiled = colours()
    spoiled["train_features"][3, 2] = np.nan
    save_coco_data("nan", spoiled)
    save_coco_data("moved", colours())
    trained("moved", Path("lost"), epochs=1)
    shutil.rmtree("moved")
    words = words.replace("DATA", str(folder)).replace("NAN", "nan")
    result = CliRunner().invoke(app, ["train", *words.split()])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastrnn: ") and said in line
    assert "Traceback" not in result.output
    assert Path("there/last.h5").read_bytes() == whole
    assert not Path("run/last.h5").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "last.h5"])
def test_files_that_cannot_be_written(folder, tmp_path, name):
    run = tmp_path / "run"
    (run / name).mkdir(parents=True)
    words = ["train", str(folder), "--out", str(run), *BASE, *(["--resume"] if name == "last.h5" else [])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastrnn: ") and str(run / name) in line and "Errno" not in line
    assert not [path for path in run.iterdir() if ".part" in path.name]


def test_a_run_that_diverges_on_the_command_line(folder, tmp_path):
    words = ["train", str(folder), "--out", str(tmp_path / "run"), *BASE, "--rule", "sgd", "--learning-rate", "1e30"]
    with np.errstate(all="ignore"):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert "finite" in line or "nan" in line or "inf" in line


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(folder, tmp_path_factory):
    """A checkpoint after some steps."""
    run = tmp_path_factory.mktemp("run")
    trained(folder, run, epochs=1, average=0.5)
    return run / "last.h5"


def test_a_checkpoint_comes_back(good, tmp_path):
    kept = load_checkpoint(good)
    save_checkpoint(tmp_path / "again.h5", kept)
    assert (tmp_path / "again.h5").read_bytes() == good.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.h5"]
    assert kept.config == asdict(TrainingConfig(**SMALL | {"epochs": 1, "average": 0.5}))
    assert kept.position == {"epoch": 1, "batch": 0, "step": 5}
    assert kept.optimizer["Wh"].keys() == {"learning_rate", "beta1", "beta2", "epsilon", "m", "v", "t"}
    assert kept.optimizer["Wh"]["t"] == 5 and type(kept.optimizer["Wh"]["t"]) is int
    model = kept.model()
    assert all((model.params[name] == value).all() for name, value in kept.average.items())
    assert model.word_to_idx == {word: n for n, word in enumerate(WORDS)} and kept.idx_to_word == WORDS
    model.params["Wh"][:] = 0
    assert kept.average["Wh"].any()
    features = np.full((2, 6), 4.0)
    prepared = kept.prepare(features)
    assert prepared.dtype == np.float32 and (features == 4).all()
    np.testing.assert_allclose(prepared, (4 - kept.feature_mean) * kept.feature_scale, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_shapes_are_those_of_the_model(cell):
    config = {"wordvec_dim": 3, "hidden_dim": 5, "cell": cell}
    model = CaptioningRNN({word: n for n, word in enumerate(WORDS)}, 7, 3, 5, cell, rng=np.random.default_rng(0))
    expected = {name: value.shape for name, value in model.params.items()}
    assert checkpoint_module._shapes(config, len(WORDS), 7) == expected


def test_before_the_first_step(folder, tmp_path):
    config = TrainingConfig(**SMALL)
    with config.open(folder) as data:
        Trainer(data, config, out=tmp_path).save()
        again = Trainer.resume(tmp_path, data)
        again.train()
    whole = trained(folder)
    assert all((again.model.params[name] == value).all() for name, value in whole.model.params.items())


def edited(change):
    def edit(path):
        with h5py.File(path, "a") as file:
            change(file)

    return edit


def text(name, **entries):
    """Put other values into one of the JSON texts."""

    def change(file):
        value = json.loads(file[name].asstr()[()])
        value.update(entries)
        del file[name]
        file[name] = json.dumps(value)

    return edited(change)


def replaced(name, value):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value

    return edited(change)


def flip(path):
    """Damage the numbers of a parameter, not the structure of the file."""
    with h5py.File(path) as file:
        needle = file["params/Wh"][()].tobytes()[:40]
    data = bytearray(path.read_bytes())
    data[data.find(needle) + 9] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), ("half-written",)),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), ("half-written", "100 bytes")),
        (lambda path: path.write_bytes(b""), ("half-written", "0 bytes")),
        (lambda path: path.write_bytes(b"a picture" * 99), ("another kind",)),
        (flip, ("'params/Wh'", "damaged")),
        (edited(lambda file: file.attrs.__delitem__("format")), ("another HDF5 file", "params")),
        (edited(lambda file: file.attrs.__setitem__("version", 99)), ("version 1", "99")),
        (replaced("params/Wx", None), ("'params/Wx'", "(4, 24)", "none")),
        (replaced("params/Wx", np.zeros((4, 4), np.float32)), ("'params/Wx'", "(4, 24)", "(4, 4)")),
        (replaced("params/Wx", np.zeros((4, 24))), ("'params/Wx'", "float32", "float64")),
        (replaced("average/b", None), ("'average/b'", "none")),
        (replaced("optimizer/Wx/m", None), ("'optimizer/Wx/m'", "none")),
        (replaced("optimizer/Wx/t", None), ("optimizer/Wx/t", "'adam'")),
        (replaced("optimizer", None), ("'optimizer/", "none")),
        (replaced("vocabulary", None), ("'vocabulary'", "none")),
        (replaced("vocabulary", "{"), ("'vocabulary'", "JSON")),
        (replaced("position", "[1]"), ("'position'", "object", "list")),
        (text("vocabulary", idx_to_word=WORDS[::-1]), ("'vocabulary'", "agree")),
        (text("config", cell="transformer"), ("'config'", "cell", "transformer")),
        (text("config", hidden_dim=7), ("params/", "(6,")),
        (text("position", step=-1), ("'position'", "step", "-1")),
        (text("features", scale="large"), ("'features'", "scale", "large")),
    ],
)
def test_bad_checkpoints(good, tmp_path, spoil, words):
    path = tmp_path / "spoiled.h5"
    shutil.copyfile(good, path)
    spoil(path)
    with complains(ValueError, "load_checkpoint", str(path), "train anew", *words):
        load_checkpoint(path)


def test_no_checkpoint(good, tmp_path):
    with complains(FileNotFoundError, "load_checkpoint", "none.h5", "nothing"):
        load_checkpoint(tmp_path / "none.h5")
    with complains(FileNotFoundError, "load_checkpoint", "folder", "best.h5 or last.h5"):
        load_checkpoint(good.parent)
    with complains(FileNotFoundError, "load_checkpoint", "folder", "no best.h5"):
        load_checkpoint(tmp_path)


def test_a_configuration_of_another_release(good, folder, tmp_path):
    path = tmp_path / "last.h5"
    shutil.copyfile(good, path)
    text("config", depth=3)(path)
    with TrainingConfig(**SMALL).open(folder) as data:
        with complains(ValueError, "Trainer.resume", str(path), "depth", "another release"):
            Trainer.resume(tmp_path, data)
    result = CliRunner().invoke(app, ["train", "--out", str(tmp_path), "--resume"])
    assert result.exit_code == 2
    assert str(path) in result.stderr.replace("\n", "") and "another release" in result.stderr.replace("\n", " ")


def test_data_opened_in_another_way_than_the_run_had_it(good, folder, tmp_path):
    path = tmp_path / "last.h5"
    shutil.copyfile(good, path)
    text("config", memory=2**20)(path)
    with TrainingConfig(**SMALL).open(folder) as data:
        with complains(ValueError, "Trainer.resume", str(path), "'data'", "memory=1048576", f"memory={data.memory}"):
            Trainer.resume(tmp_path, data)


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_checkpoint(good, tmp_path, monkeypatch, fails):
    path = tmp_path / "last.h5"
    shutil.copyfile(good, path)
    kept = load_checkpoint(path)
    kept.position["step"] += 1

    def full(*_):
        raise OSError(28, "No space left on device")

    if fails == "write":
        monkeypatch.setattr(runs, "open", lambda *args: FullFile(open(*args)), raising=False)
    else:
        monkeypatch.setattr(os, fails, full)
    with complains(OSError, "[Errno 28] save_checkpoint", str(path), "No space left", "untouched", "Make room"):
        save_checkpoint(path, kept)
    monkeypatch.undo()
    assert path.read_bytes() == good.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.h5"]


def test_a_full_disk(folder, tmp_path):
    """A file system of its own that fills up while a run is on it."""
    with tiny_disk(tmp_path / "disk", 2**19) as disk:
        run = disk / "run"
        command(folder, run, "--steps 4")
        before = content(run / "last.h5")
        filler = fill(disk, but=8192)
        result = CliRunner().invoke(app, ["train", "--out", str(run), "--resume", "--steps", "400"])
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert str(run) in line and "No space left on device" in line and "Make room" in line
        assert load_checkpoint(run / "last.h5").position["step"] >= 4
        if load_checkpoint(run / "last.h5").position["step"] == 4:
            assert content(run / "last.h5") == before
        assert not list(run.glob("*.part"))
        filler.unlink()
        result = CliRunner().invoke(app, ["train", "--out", str(run), "--resume", "--steps", "20"])
        assert result.exit_code == 0, result.output
        command(folder, tmp_path / "whole", "--steps 20")
        found, expected = content(run / "last.h5"), content(tmp_path / "whole" / "last.h5")
        assert [name for name in found if found[name] != expected[name] and name.startswith(("params", "opt"))] == []


# ---- several processes, and a device ---------------------------------------------------------------------------------


class Together:
    """What processes of a group have in common: here threads."""

    def __init__(self, world):
        self.world, self.barrier, self.given = world, threading.Barrier(world, timeout=30), {}


class FakeProcesses:
    """One of several threads that stand for processes."""

    def __init__(self, rank, group):
        self.rank, self.local_rank, self.world, self.group = rank, rank, group.world, group
        self.totals = 0

    def _all(self, value):
        self.group.given[self.rank] = value
        self.group.barrier.wait()
        values = [self.group.given[rank] for rank in range(self.world)]
        self.group.barrier.wait()
        return values

    def total(self, values):
        self.totals += 1
        return np.sum(self._all(np.array(values, np.float64)), axis=0)

    def agree(self, flag):
        return any(self._all(bool(flag)))

    def same(self, text):
        return len(set(self._all(text))) == 1

    def broadcast(self, params):
        first = self._all({name: value.copy() for name, value in params.items()})[0]
        for name, value in params.items():
            value[...] = first[name]

    def reducer(self, params):
        return FakeReducer(self, list(params))


class FakeReducer:
    def __init__(self, processes, names):
        self.processes, self.names, self.given = processes, names, {}

    def ready(self, name, gradient, weight):
        self.given[name] = gradient * gradient.dtype.type(weight)

    def finish(self):
        given, self.given = self.given, {}
        parts = self.processes._all(given)
        return {name: np.sum([part[name] for part in parts], axis=0) for name in self.names}


def trained_by(world, folder, out, stop=None, resume=False, **options):
    """A run by several threads; what each of them has in the end, or raised."""
    group, found = Together(world), [None] * world

    def work(rank):
        processes = FakeProcesses(rank, group)
        config = TrainingConfig(**SMALL | options)
        with config.open(folder) as data:
            if resume:
                trainer = Trainer.resume(out, data, processes=processes)
            else:
                trainer = Trainer(data, config, out=out, processes=processes)
            if stop is not None and rank == world - 1:

                def ask(record):
                    if record["step"] == stop:
                        trainer._stop = signal.SIGTERM

                trainer.callback = ask
            try:
                trainer.train()
                found[rank] = trainer
            except BaseException as error:
                found[rank] = error
                group.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_are_one(folder, tmp_path, world):
    options = ALL_AT_ONCE | {"dtype": "float64", "epochs": 2}
    alone = trained(folder, tmp_path / "alone", **options)
    found = trained_by(world, folder, tmp_path / "together", **options)
    for trainer in found:
        assert not isinstance(trainer, BaseException), trainer
        for name, value in alone.model.params.items():
            np.testing.assert_allclose(trainer.model.params[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
            np.testing.assert_array_equal(trainer.model.params[name], found[0].model.params[name])
    for one, other in zip(figures(tmp_path / "together"), figures(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    # Another number of processes may go on.
    found = trained_by(world, folder, tmp_path / "cut", **options | {"steps": 7})
    on = resumed(folder, tmp_path / "cut", steps=10)
    for name, value in alone.model.params.items():
        np.testing.assert_allclose(on.model.params[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


def test_noise_and_distortion_of_a_shard_are_its_part_of_the_whole(embedded):
    base, _ = embedded
    config = TrainingConfig(**SMALL, noise=0.3, distort=1.0)
    with config.open(base / "numbers") as data:
        trainer = Trainer(data, config)
        trainer.epoch, trainer.batch = 3, 4
        features = data.features("train", range(10))
        captions = data.captions("train")[:10]
        whole = trainer._inputs(Batch(captions, features, np.arange(10), 10, 0))
        parts = [
            trainer._inputs(Batch(captions[part], features[part], np.arange(10)[part], 10, part.start))
            for part in (slice(0, 3), slice(3, 4), slice(4, 10))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        trainer.batch = 5
        other = trainer._inputs(Batch(captions, features, np.arange(10), 10, 0))
        assert (whole != other).mean() > 0.9
        plain = (features - trainer.feature_mean) * trainer.feature_scale
        assert np.corrcoef(whole.ravel(), plain.ravel())[0, 1] > 0.8


def test_a_signal_to_one_process_stops_all_after_the_same_step(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "raise_signal", lambda signum: None)  # which would end the tests
    found = trained_by(2, folder, tmp_path / "run", stop=4, save_every=2)
    assert [type(error) for error in found] == [KeyboardInterrupt, KeyboardInterrupt]
    assert load_checkpoint(tmp_path / "run" / "last.h5").position["step"] == 5


def test_more_processes_than_captions_in_a_minibatch(folder, tmp_path):
    config = TrainingConfig(**SMALL | {"batch_size": 1})
    with config.open(folder) as data, complains(ValueError, "Trainer", "batch_size", "at least 2", "1 captions"):
        Trainer(data, config, processes=FakeProcesses(0, Together(2)))


@pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")
def test_on_a_device(folder, tmp_path, monkeypatch):
    """Parameters, optimiser and averages stay on the device, and runs go on there to the same bits."""
    fake_device.install(monkeypatch, conformance.CASES, simulated=False)
    cupy = sys.modules["cupy"]
    options = ALL_AT_ONCE | {"epochs": 2, "save_every": 3}
    with fastrnn.backend("cuda"):
        whole = trained(folder, tmp_path / "whole", **options)
        for value in (*whole.model.params.values(), *whole.average.values(), whole.optimizer["Wh"]["m"]):
            assert isinstance(value, cupy.ndarray)
        with pytest.raises(Cut):
            trained(folder, tmp_path / "run", callback=cut_at(8), **options)
        on = resumed(folder, tmp_path / "run")
        assert isinstance(on.model.params["Wh"], cupy.ndarray)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    host = trained(folder, **options)
    np.testing.assert_allclose(whole.model.params["Wh"].get(), host.model.params["Wh"], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")
def test_steps_do_not_wait_for_the_device(folder, monkeypatch):
    fake_device.install(monkeypatch, conformance.CASES, simulated=False)
    waits = {}

    def note(record):
        if "loss" in record and "lr" not in record:
            waits[record["step"]] = len(fake_device.waits)

    with fastrnn.backend("cuda"):
        trained(folder, callback=note, steps=4, log_every=99, clip_norm=1.0, average=0.9)
    assert waits.keys() == {2, 3} and waits[2] == waits[3]


def test_the_code_of_the_document_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    few = numbers.build_numbers(200, 50)
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(numbers, "build_numbers", lambda: few)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "captioning.md").read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, "captioning.md", "exec"), names)


def test_checkpoint_is_documented_field_by_field():
    for entry in fields(Checkpoint):
        assert entry.name in Checkpoint.__doc__, entry.name
