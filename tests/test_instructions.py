"""`fastrnn bench --instructions` and `--compare`: counts of callgrind, and what is done when they grow."""

import json
from importlib.util import find_spec
from shutil import which

import pytest
from typer.testing import CliRunner

from fastrnn.cli import bench_instructions as module
from fastrnn.cli import common
from fastrnn.cli.main import app

pytestmark = pytest.mark.skipif(common.compiled() is None, reason="the C++ kernels were not built")
needs_valgrind = pytest.mark.skipif(which("valgrind") is None, reason="valgrind is not installed")


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def complains(result, *words):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.fixture
def counted(monkeypatch):
    """Counts without valgrind: a hundred a unit of each size, times what the test sets."""
    monkeypatch.setattr(module, "which", lambda name: "/usr/bin/valgrind")
    factors: dict[str, float] = {}

    def count(jobs):
        facts = {"isa": "avx2", "compiler": "1.2", "fastrnn": "0"}
        return [
            {
                "kernel": job.benchmark.kernel,
                "mode": job.mode,
                "shape": job.size,
                "dtype": job.dtype,
                "instructions": int(100 * sum(job.shape) * factors.get(job.benchmark.kernel, 1)),
            }
            | facts
            | {name: value for name, value in factors.items() if name in facts}
            for job in jobs
        ]

    monkeypatch.setattr(module, "count", count)
    return factors


@needs_valgrind
def test_a_call_is_counted_and_counts_grow_with_the_work(tmp_path):
    rows = tmp_path / "rows.json"
    small, large = ("--shape", "1,16,20,20"), ("--shape", "1,16,40,40")
    result = run("gram", "--instructions", *small, *large, "--mode", "both", "--json", rows)
    assert result.exit_code == 0, result.output
    first, second = json.loads(rows.read_text())
    assert (first["kernel"], first["mode"], first["dtype"], first["shape"]) == ("gram", "both", "float32", "1,16,20,20")
    assert first["isa"] in result.output and first["compiler"] == common.compiled().compiler
    # 16 x 16 x 400 products forward, half of them, and twice as many backward, at least one instruction for each 16;
    # and no more than interpreting Python takes.
    assert 16 * 16 * 400 * 2.5 / 16 < first["instructions"] < 5e6
    assert first["instructions"] < second["instructions"] < 4 * first["instructions"]
    assert f"{second['instructions']:,}" in result.output


def test_a_growing_count_fails(counted, tmp_path):
    baseline = tmp_path / "baseline.json"
    assert run("--instructions", "--json", baseline).exit_code == 0
    kernels = [row["kernel"] for row in json.loads(baseline.read_text())]
    assert {"lstm", "gru_lengths", "gram", "captioner", "temporal_affine"} <= set(kernels)
    assert not any(kernel.startswith(("torch", "style")) for kernel in kernels)
    assert run("--compare", baseline).exit_code == 0
    counted["gru"] = 1.05  # within the default, 0.9
    assert run("--compare", baseline).exit_code == 0
    result = run("gru", "lstm", "--compare", baseline, "--fail-below", "0.99")
    assert result.exit_code == 1 and "gru both" in result.stderr and "lstm" not in result.stderr
    assert "0.952 ✗" in result.output and "1.000" in result.output
    counted["gru"] = 1.2
    result = run("--compare", baseline)
    assert result.exit_code == 1 and "0.833 ✗" in result.output
    counted["gru"] = 0.5  # better is never wrong
    assert run("--compare", baseline).exit_code == 0


def test_what_is_new_is_said(counted, tmp_path):
    baseline = tmp_path / "baseline.json"
    run("gru", "--instructions", "--json", baseline)
    result = run("gru", "lstm", "--compare", baseline)
    assert result.exit_code == 0 and "not in it" in result.output
    complains(run("lstm", "--compare", baseline), "nothing that was counted is in the baseline")


def test_half_of_every_size_is_counted_unless_asked_otherwise(counted, tmp_path):
    rows = tmp_path / "rows.json"
    run("lstm", "--instructions", "--json", rows)
    assert [row["shape"] for row in json.loads(rows.read_text())] == ["13,8,128,256"]
    run("lstm", "--instructions", "--shape", "1,2,3,4", "--mode", "forward,backward", "--json", rows)
    assert [(row["shape"], row["mode"]) for row in json.loads(rows.read_text())] == [
        ("1,2,3,4", "forward"),
        ("1,2,3,4", "backward"),
    ]


def test_other_conditions_are_no_comparison(counted, tmp_path):
    baseline = tmp_path / "baseline.json"
    run("gru", "--instructions", "--json", baseline)
    for name in ("isa", "compiler"):
        counted[name] = "other"
        complains(run("gru", "--compare", baseline), f"the baseline's {name}", "'other'", "write a new baseline")
        del counted[name]


def test_bad_usage(counted, tmp_path, monkeypatch):
    baseline = tmp_path / "baseline.json"
    complains(run("--compare", baseline), f"cannot read {baseline}")
    for text in ("", "[]", "{}", '[{"kernel": "lstm"}]', '[{"instructions": 0}]', "\x00"):
        baseline.write_text(text)
        complains(run("--compare", baseline), "has no counts in it", "--instructions --json")
    complains(run("--fail-below", "0.9"), "--fail-below is for --compare")
    for option, value in {
        "--peers": "numpy",
        "--threads": "1",
        "--precision": "high",
        "--plot": "a.png",
        "--record": "a.csv",
        "--sweep": "N",
    }.items():
        complains(run("lstm", "--instructions", option, value), f"{option} is for times")
    complains(run("lstm", "--instructions", "--backend", "numba"), "'cpu'", "'numba'")
    complains(run("lstm", "--instructions", "--json", tmp_path / "no" / "a.json"), "there is no folder")
    if find_spec("torch"):
        complains(run("torch_gru", "--instructions"), "PyTorch's would be counted")
    monkeypatch.setattr(module, "which", lambda name: None)
    complains(run("lstm", "--instructions"), "needs valgrind", "apt install valgrind")


@needs_valgrind
def test_a_process_that_fails_is_said(monkeypatch):
    monkeypatch.setattr(module, "MARKER", "nobody")
    complains(run("gram", "--instructions", "--shape", "1,2,3,4"), "counted nothing", "no mark")
