"""The long published training run: made small, what it prints and writes; and the data that it makes up."""

import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.captioning import load_coco_data, synthetic_coco_data
from fastrnn.cli import bench_tables

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "published_run.py"
SHAPE = "10,9,12,8,50,16"
SMALL = ("--shape", SHAPE, "--images", "60", "--captions", "40", "--iterations", "20", "--turn", "8")

pytestmark = pytest.mark.skipif(
    bool(fastrnn.backend_status()["cpu"]) or not SCRIPT.exists(), reason="times the C++ kernels, from a checkout"
)


@pytest.fixture
def script(monkeypatch):
    """The script as a module, which pauses for nobody; call it with arguments, and it returns its exit code."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = import_module("bench.published_run")
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code

    run.module = module
    return run


def lines_of(output, provider):
    """What the table says of a provider: total, median, percentiles, losses at first and at last, ratios."""
    (line,) = re.findall(rf"^  {provider} +(\d+\.\d .*)$", output, re.MULTILINE)
    return [float(number) for number in re.findall(r"[\d.]+", line)]


def test_as_a_program(tmp_path):
    """Two providers, by the command that the help names, from another folder."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *SMALL, "--peers", "numpy", "--record", "rows.csv", "--threads", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "20 iterations (5 epochs) in turns of 8, Adam 0.004" in done.stdout
    said = re.search(
        r"40 captions of made-up images, (5\.\d) words to be said in each; N,T,W,H,V,D = (\S+), ", done.stdout
    )
    assert said and said[2] == SHAPE
    ours, numpy = (lines_of(done.stdout, name) for name in ("cpu", "numpy"))
    words = float(said[1]) * np.log(50)
    assert abs(ours[4] - words) < 0.1 * words
    assert ours[4] == pytest.approx(numpy[4], abs=1.1e-4) and ours[5] == pytest.approx(numpy[5], rel=1e-3)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == bench_tables.COLUMNS and [row["provider"] for row in rows] == ["cpu", "numpy"]
    for row, told in zip(rows, (ours, numpy), strict=True):
        assert (row["kernel"], row["shape"], row["threads"]) == ("captioner_run", SHAPE, "1")
        assert told[2] <= told[1] <= told[3] and float(row["p50_ms"]) == pytest.approx(told[1], abs=0.006)


def test_everybody_trains_on_the_same(script, capsys, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    assert script(*SMALL, "--plot", tmp_path / "loss.png", "--learning-rate", 0.05) == 0
    output = capsys.readouterr().out
    losses = {name: lines_of(output, name)[4:6] for name in ("cpu", "numpy", "torch")}
    first, last = losses["cpu"]
    assert last < first - 2  # in half of the iterations, on average
    for name in ("numpy", "torch"):
        np.testing.assert_allclose(losses[name], losses["cpu"], rtol=1e-3, err_msg=name)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "✗" not in output and "Adam 0.05" in output


def test_every_iteration_counts_once(script, capsys, monkeypatch):
    """Turns of 8, 8 and 4 give the losses of one turn of 20; the warm-up, which is another model's, changes nothing."""
    runs = []
    right = script.module.report
    monkeypatch.setattr(script.module, "report", lambda done, turn: (runs.append(done), right(done, turn)))
    assert script(*SMALL, "--peers", "numpy") == 0
    monkeypatch.setattr(script.module, "WARM_UP", 0)
    assert script(*SMALL, "--peers", "numpy", "--turn", 20) == 0
    for turns, at_once in zip(*runs, strict=True):
        assert len(turns.times) == len(turns.losses) == 20
        assert turns.losses == at_once.losses


def test_a_wrong_first_loss_is_told(script, capsys, monkeypatch):
    right = script.module.provider_of

    def off(*arguments):
        provider = right(*arguments)
        if provider.name != "numpy":
            return provider
        return replace(provider, convert=lambda result: (result[0] * np.float32(1 + 2e-6),))

    monkeypatch.setattr(script.module, "provider_of", off)
    assert script(*SMALL, "--peers", "numpy") == 1
    assert re.search(r"numpy +2\.\de-06  ✗ wrong", capsys.readouterr().out)


def test_a_folder_of_files(script, capsys, tmp_path):
    """Sizes, and the features' width, are the files'; another seed's captions have another loss."""
    losses = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        sizes = {"train_images": 30, "val_images": 2, "captions": 100, "val_captions": 2, "dim": 24}
        synthetic_coco_data(folder, **sizes, vocabulary=40, length=7, seed=seed)
        assert script(folder, *SMALL, "--peers", "numpy") == 0
        output = capsys.readouterr().out
        assert f"40 captions from {folder}" in output and "N,T,W,H,V,D = 10,7,12,8,40,24" in output
        losses.append(lines_of(output, "cpu")[4])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peers", "numpi"), "unknown peer 'numpi'; there are numpy, torch"),
        (("--shape", "1,2,3"), "--shape: invalid sizes value: '1,2,3'"),
        (("--iterations", "0"), "--iterations: invalid positive value: '0'"),
        (("nowhere",), "nowhere"),
        (("--record", "nowhere/rows.csv"), "there is no folder"),
        (("--plot", "loss.gif"), ".png, .svg or .pdf"),
    ],
)
def test_bad_usage(script, capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script(*SMALL, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_captions_are_as_long_as_those_of_coco(tmp_path):
    sizes = {"train_images": 10, "val_images": 1, "captions": 20_000, "val_captions": 1, "dim": 2}
    synthetic_coco_data(tmp_path / "made", **sizes)
    captions = load_coco_data(tmp_path / "made", pca_features=False)["train_captions"]
    words = (captions != 0).sum(axis=1) - 2
    assert captions.shape[1] == 17 and words.min() == 6 and words.max() >= 14
    assert ((words >= 8) & (words <= 12)).mean() > 0.8
    assert 77 < (words.mean() + 1) * np.log(1004) < 79  # the published loss at first is about 78
