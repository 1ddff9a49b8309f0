"""`fastrnn demo`, from the command line to the picture, on few numbers and few iterations."""

import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from typer.testing import CliRunner

import fastrnn
from fastrnn.captioning import CaptioningSolver, numbers
from fastrnn.cli import common
from fastrnn.cli import demo as module
from fastrnn.cli.main import app

for _name in ("h5py", "sklearn", "matplotlib"):
    pytest.importorskip(_name)

pytestmark = pytest.mark.filterwarnings("ignore:fastrnn runs on:RuntimeWarning")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with 1,000 + 100 numbers instead of 20,000 + 2,000."""
    folder = tmp_path_factory.mktemp("cache")
    few = numbers.build_numbers(1000, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "build_numbers", lambda: few)
        numbers.numbers_dir(folder)
    return folder


@pytest.fixture
def demo(cache, tmp_path, monkeypatch):
    """Run the command in an empty folder, with blocks of one timed iteration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTRNN_CACHE", str(cache))
    for name, value in {"ROUNDS": 1, "BLOCK": 1, "WARM_UP": 1, "PAUSE_S": 0.0}.items():
        monkeypatch.setattr(module, name, value)

    def run(*arguments, **few):
        options = {"--steps": "4", "--batch-size": "10"} | few
        return CliRunner().invoke(app, ["demo", *arguments, *(word for pair in options.items() for word in pair)])

    return run


def picture_size(path):
    """Width and height of a PNG file."""
    start = path.read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")


def test_the_whole_way(demo, tmp_path, cache):
    result = demo()
    assert result.exit_code == 0, result.output
    said = result.output
    assert "1,000 handwritten numbers to train on" in said and "100 of other digits" in said
    assert str(cache / "numbers") in said
    assert "4 iterations of 10" in said
    right, total = map(int, re.search(r"(\d+) of (\d+) held-out numbers right", said).groups())
    assert total == 100 and f"{100 * right / total:.1f} % exact match" in said
    # Captions beside the truth, six of them.
    assert len(re.findall("[✓✗]", said)) == 6
    # The time of the same iterations on every backend, plain NumPy last and compared to itself.
    rows = re.findall(r"^(\S.*?) +float32 +([\d.]+) ms +\S+ +([\d.]+) ×$", said, flags=re.M)
    timed = common.timed_backends()
    assert len(rows) == len(timed)
    assert [row[0].split(",")[0] for row in rows[:-1]] == [name for name in timed if name != "reference"]
    assert rows[-1][0] == "plain NumPy (the reference)" and rows[-1][2] == "1.00"
    for row in rows:
        assert float(row[2]) == pytest.approx(float(rows[-1][1]) / float(row[1]), abs=0.02, rel=0.02)
    if len(rows) > 1:
        # Whether the last digit agrees too depends on the processor; test_words_for_the_agreement covers both.
        differ = re.search(r"their first losses differ from the reference's by (\S+) of it", said)
        assert float(differ[1]) < 1e-5 if differ else "their first losses are the reference's to the last digit" in said
    picture = tmp_path / "fastrnn-demo.png"
    assert f"picture  {picture}" in said
    assert min(picture_size(picture)) > 800
    assert [path.name for path in tmp_path.iterdir()] == [picture.name]


def test_words_for_the_agreement():
    assert module._agreement(0.0) == "are the reference's to the last digit"
    assert module._agreement(3.14e-8) == "differ from the reference's by 3.1e-08 of it"


def test_options(demo, tmp_path):
    result = demo("--backend", "reference", "--out", "a.svg", **{"--steps": "3", "--batch-size": "7"})
    assert result.exit_code == 0, result.output
    assert "3 iterations of 7" in result.output and "on reference:" in result.output
    assert "batch 7" in result.output
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_no_picture(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    result = demo("--no-picture")
    assert result.exit_code == 0, result.output
    assert "picture" not in result.output and list(tmp_path.iterdir()) == []


def test_seed(demo):
    losses = [
        re.search(r"loss (\S+ → \S+)", demo("--no-picture", "--seed", seed).output)[1] for seed in ("0", "0", "1")
    ]
    assert losses[0] == losses[1] != losses[2]


def test_distortion_is_for_training_only(demo, monkeypatch):
    """Validation and timing see the data as it is; training sees something else every epoch."""
    seen = []
    step = CaptioningSolver.step

    def spy(self):
        seen.append((self.callback is not None, self.data["train_features"].copy()))
        return step(self)

    monkeypatch.setattr(CaptioningSolver, "step", spy)
    assert demo("--no-picture", **{"--steps": "3", "--batch-size": "500"}).exit_code == 0
    trained = [features for training, features in seen if training]
    clean = seen[-1][1]
    assert abs(clean.mean()) < 1e-3 and clean.std() == pytest.approx(1, rel=1e-3)
    assert (clean == clean.min()).mean() > 0.3  # paper has one colour in it
    assert (trained[0] == trained[1]).all() and (trained[1] != trained[2]).mean() > 0.9  # an epoch is 2 iterations
    assert (trained[0] == trained[0].min()).mean() < 0.01
    assert np.corrcoef(trained[0].ravel(), clean.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "gpu"), "'gpu'"),
        (("--out", "picture.doc"), "picture.doc"),
        (("--out", "nowhere/picture.png"), "nowhere"),
        (("--steps", "0"), "--steps"),
        (("--batch-size", "-1"), "--batch-size"),
        (("--seed", "x"), "--seed"),
        (("--speed", "9"), "--speed"),
    ],
)
def test_wrong_arguments(demo, tmp_path, arguments, said):
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert result.stdout == "" and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_cannot_run(demo, monkeypatch):
    monkeypatch.setattr(fastrnn, "backend_status", lambda: {"cpu": "not built", "numba": "", "reference": ""})
    result = demo("--backend", "cpu")
    assert result.exit_code == 2 and "'cpu'" in result.stderr and "not built" in result.stderr


def test_backends_that_disagree(demo, monkeypatch):
    if len(fastrnn.available_backends()) == 1:
        pytest.skip("the reference is alone")
    step = CaptioningSolver.step

    def wrong(self):
        loss = step(self)
        if self.callback is None and fastrnn.get_backend() == "reference":
            self.loss_history[-1] *= 1.001
        return loss

    monkeypatch.setattr(CaptioningSolver, "step", wrong)
    result = demo("--no-picture")
    assert result.exit_code == 1 and "disagree" in result.stderr


def test_missing_extras_are_named_before_anything_is_done(demo, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    result = demo()
    assert result.exit_code == 1 and result.stdout == ""
    said = result.stderr.strip()
    assert said == "fastrnn: the demo needs h5py, scikit-learn, Matplotlib: pip install 'fastrnn[demo]'"


def test_a_cache_that_cannot_be_written(demo, tmp_path):
    (tmp_path / "file").write_text("")
    result = demo("--cache-dir", str(tmp_path / "file"))
    assert result.exit_code == 1
    assert result.stderr.startswith("fastrnn: ") and str(tmp_path / "file") in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupted(cache):
    """Ctrl-C in the middle of training: one line, no traceback."""
    command = [sys.executable, "-m", "fastrnn", "demo", "--steps", "1000000", "--no-picture", "--cache-dir", str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:  # until it says what it is about to train
        if line.startswith("model"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    errors = [
        line for line in errors.splitlines() if line and "RuntimeWarning" not in line and "warnings.warn" not in line
    ]
    assert len(errors) == 1
    assert re.fullmatch(r"fastrnn: stopped after [\d,]+ of 1,000,000 training iterations", errors[0])


def test_help_names_every_option():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    for option in ("--steps", "--batch-size", "--backend", "--seed", "--out", "--no-picture", "--cache-dir"):
        assert option in result.output
