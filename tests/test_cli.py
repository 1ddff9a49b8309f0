"""The command line: what it prints, what it writes, and its exit codes."""

import csv
import gc
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import fastrnn
from fastrnn import conformance
from fastrnn.cli import bench as bench_command
from fastrnn.cli import bench_tables, bench_timing, common
from fastrnn.cli import check as check_command
from fastrnn.cli.main import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def one_line_error(result, *words):
    """Bad usage: exit code 2, one line on stderr, nothing that looks like a traceback."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastrnn: ") and result.stderr.count("\n") == 1, result.stderr
    missing = [word for word in words if word not in result.stderr]
    assert not missing, f"{missing} not in {result.stderr}"


@pytest.fixture
def precision(monkeypatch):
    """All that is set, the last of it now."""
    values = [fastrnn.get_float32_matmul_precision()]
    right = fastrnn.set_float32_matmul_precision
    monkeypatch.setattr(fastrnn, "set_float32_matmul_precision", lambda p: (right(p), values.append(p)))
    yield values
    right(values[0])


# ---- the command as such -------------------------------------------------------------------------------------------


def test_help_lists_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    for command in ("info", "check", "bench", "demo"):
        assert command in result.output
        assert run(command, "--help").exit_code == 0


def test_without_a_command_it_shows_help():
    assert "Commands:" in run().output


def test_version():
    assert run("--version").output == f"fastrnn {fastrnn.__version__}\n"


def test_as_a_module_and_from_another_folder(tmp_path):
    root = os.path.dirname(os.path.dirname(fastrnn.__file__))
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "info", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["fastrnn"] == fastrnn.__version__


def test_an_unknown_command_and_option():
    one_line_error(run("nonsense"), "No such command 'nonsense'")
    one_line_error(run("--nonsense"), "No such option: --nonsense")
    one_line_error(run("check", "--nonsense"), "No such option: --nonsense")


# ---- info ----------------------------------------------------------------------------------------------------------


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for name, reason in fastrnn.backend_status().items():
        assert f"backend {name}" in result.output
        assert reason.split("\n")[0][:40] in result.output
    assert np.__version__ in result.output


def test_info_json_says_the_same():
    facts = json.loads(run("info", "--json").output)
    assert facts["backends"].keys() == fastrnn.backend_status().keys()
    assert facts["auto"] == fastrnn.available_backends()[0]
    assert facts["threads"]["fastrnn"] == fastrnn.get_num_threads()
    assert facts["blas"]
    if not fastrnn.backend_status()["cpu"]:
        from fastrnn import _cpu

        assert facts["isa"]["running"] == _cpu.isa() and _cpu.isa() in facts["isa"]["supported"]
        assert facts["isa"]["emulated"] == list(_cpu.emulated)
        for precision in ("high", "medium"):
            assert facts["precision"][precision] == _cpu.has_precision(precision)


def test_info_says_what_is_emulated(monkeypatch):
    cpu = pytest.importorskip("fastrnn._cpu")
    assert ("emulated" in run("info").output) == bool(cpu.emulated)
    monkeypatch.setattr(cpu, "emulated", ("portable",))
    assert "portable (emulated in this build)" in run("info").output


def test_info_gives_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules["fastrnn.backend"]._reasons, "numba", "it is Sunday")
    assert "✗ it is Sunday" in run("info").output


# ---- check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch):
    """The first gram case made wrong: a public function called with other features than the oracle's."""
    cases = list(conformance.gram_cases())
    right = cases[0]

    def wrong(m, a):
        return right.call(m, a if m is not fastrnn else a | {"features": a["features"] + 1})

    monkeypatch.setitem(conformance.CASES, "gram", lambda: iter([replace(right, call=wrong), *cases[1:6]]))
    return right


def test_check_passes():
    result = run("check", "gram", "affine", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    backends = [name for name in fastrnn.available_backends() if name != "reference"]
    rows = [line.split() for line in result.output.splitlines() if line.startswith(("gram ", "affine "))]
    assert [row[0] for row in rows].count("gram") == len(backends)
    assert "all within the bound" in result.output
    assert "→" not in result.output  # nothing fell through to the reference


def test_check_fails(broken):
    result = run("check", "gram", "--backend", "reference", "--dtype", "float64")
    assert result.exit_code == 1
    assert "✗ 1 failed" in result.output
    assert f"{broken} on reference float64: gram is off by" in result.output


def test_check_writes_json_and_junit(broken, tmp_path):
    result = run(
        "check",
        "gram",
        "--backend=reference",
        "--dtype=float32",
        "--json",
        tmp_path / "o.json",
        "--junit",
        tmp_path / "j.xml",
    )
    assert result.exit_code == 1
    outcomes = json.loads((tmp_path / "o.json").read_text())["outcomes"]
    assert len(outcomes) == 6 and [bool(outcome["failure"]) for outcome in outcomes] == [True] + 5 * [False]
    assert outcomes[0]["case"] == broken.name and outcomes[1]["ratio"] <= 1
    suites = ElementTree.parse(tmp_path / "j.xml").getroot()
    (suite,) = suites
    assert suite.attrib["name"] == "gram.reference.float32"
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("6", "1")
    failures = suite.findall("testcase/failure")
    assert len(suite.findall("testcase")) == 6 and len(failures) == 1 and "is off by" in failures[0].attrib["message"]


def test_check_takes_lists_with_commas_and_repeated(tmp_path):
    path = tmp_path / "o.json"
    run("check", "affine", "--backend", "reference", "--dtype", "float32,float64", "--json", path)
    both = {outcome["dtype"] for outcome in json.loads(path.read_text())["outcomes"]}
    run("check", "affine", "--backend", "reference", "--dtype", "float64", "--json", path)
    one = {outcome["dtype"] for outcome in json.loads(path.read_text())["outcomes"]}
    assert both == {"float32", "float64"} and one == {"float64"}


def instruction_sets():
    """Those that this machine has, but the one that all other tests run."""
    if fastrnn.backend_status()["cpu"]:
        return []
    from fastrnn import _cpu

    return [isa for isa in _cpu.isa_supported() if isa != _cpu.isa()]


@pytest.mark.parametrize("isa", instruction_sets())
def test_every_instruction_set_is_right(isa):
    result = run("check", "--isa", isa)
    assert result.exit_code == 0, result.output
    shown = [line for line in result.output.splitlines() if f"cpu {isa} " in line]
    assert len(shown) == 2 * len(conformance.CASES)  # two dtypes


def test_check_forces_all_instruction_sets():
    if fastrnn.backend_status()["cpu"]:
        pytest.skip("the C++ kernels were not built")
    from fastrnn import _cpu

    result = run("check", "softmax_loss", "--isa", f"all,{_cpu.isa()}", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for isa in _cpu.isa_supported():
        assert f"cpu {isa} " in result.output


@pytest.mark.parametrize("isa", [False, True])
def test_check_at_a_precision(isa, precision, tmp_path):
    """In this process, and in the one that a forced instruction set takes."""
    if fastrnn.backend_status()["cpu"]:
        pytest.skip("the C++ kernels were not built")
    from fastrnn import _cpu

    path = tmp_path / "o.json"
    arguments = ("check", "rnn", "gram", "--dtype", "float32", "--json", path)
    result = run(*arguments, *(("--isa", _cpu.isa()) if isa else ("--backend", "cpu")), "--precision", "medium")
    assert result.exit_code == 0, result.output
    found = {(o["operation"], o["precision"]) for o in json.loads(path.read_text())["outcomes"]}
    assert found == {("rnn", "medium" if _cpu.has_precision("medium") else "highest"), ("gram", "highest")}


def test_another_instruction_set_than_the_one_asked_for_is_noticed(monkeypatch):
    if fastrnn.backend_status()["cpu"]:
        pytest.skip("the C++ kernels were not built")
    from fastrnn import _cpu

    right = check_command._outcome
    monkeypatch.setattr(check_command, "_outcome", lambda row: replace(right(row), isa="abacus"))
    result = run("check", "gram", "--dtype", "float32", "--isa", _cpu.isa())
    one_line_error(result, f"asked for instruction set {_cpu.isa()}, but abacus ran")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "lstn"], ["unknown operation 'lstn'", "lstm"]),
        (["check", "--precision", "high,medium"], ["unknown precision 'high,medium'", "highest, high, medium"]),
        (["demo", "--backend", "cpu,numba"], ["unknown backend 'cpu,numba'", "auto, cpu, numba, reference"]),
        (["check", "--dtype", "float8"], ["unknown dtype 'float8'", "float16, float32, float64"]),
        (["check", "--dtype", "float16", "--backend", "numba"], ["float16 is for gru, lstm, rnn on backend cuda"]),
        (["check", "gram", "--dtype", "float32,float16"], ["float16 is for gru, lstm, rnn on backend cuda"]),
        (["bench", "lstm", "--dtype", "float16"], ["float16 is for gru, lstm, rnn on backend cuda", "not for lstm on"]),
        (["check", "--backend", "gpu"], ["unknown backend 'gpu'", "cpu, numba, reference"]),
        (["check", "--isa", "abacus"], ["instruction set 'abacus'"]),
        (["check", "--isa", "all", "--backend", "numba"], ["--isa is for backend cpu"]),
        (["check", "--json", "/nowhere/at/all.json"], ["cannot write", "no folder /nowhere/at"]),
        (["check", "--junit", os.curdir], ["cannot write .: it is a folder"]),
        (["bench", "--json", os.curdir], ["cannot write .: it is a folder"]),
        (["bench", "lstn"], ["unknown operation 'lstn'"]),
        (["bench", "--peers", "jax"], ["unknown peer 'jax'", "numpy, numba, torch, onnxruntime"]),
        (["bench", "--backend", "gpu"], ["unknown backend 'gpu'"]),
        (["bench", "lstm", "--shape", "1,2,3"], ["has 3 sizes", "N T D H"]),
        (["bench", "lstm", "--shape", "1,2,3,many"], ["whole numbers"]),
        (["bench", "lstm", "--shape", "1,2,3,0"], ["positive"]),
        (["bench", "lstm", "gram", "--shape", "1,2,3,4"], ["name one operation"]),
        (["bench", "optim", "--mode", "forward"], ["nothing to time", "adam (both)"]),
        (["bench", "lstm", "--mode", "sideways"], ["unknown mode 'sideways'"]),
        (["bench", "lstm", "--plot", "picture.gif"], [".png, .svg or .pdf"]),
        (["bench", "lstm", "--precision", "low"], ["unknown precision 'low'", "highest, high, medium"]),
        (["bench", "lstm", "--sweep", "M"], ["lstm has no axis 'M'", "N T D H"]),
        (["bench", "lstm", "gram", "--sweep", "T"], ["gram has no axis 'T'"]),
        (["bench", "lstm", "--sweep", "H=16,many"], ["--sweep 'H=16,many'", "whole numbers"]),
        (["bench", "lstm", "--sweep", "H=0,16"], ["positive"]),
        (["bench", "lstm", "--sweep", "H=16"], ["at least two sizes"]),
        (["bench", "lstm", "--sweep", "N", "--all"], ["--all is not for --sweep"]),
        (["bench", "lstm", "--sweep", "N", "--shape", "1,2,3,4", "--shape", "1,2,3,5"], ["one base shape", "2 times"]),
        (["bench", "lstm", "--rounds", "0"], ["--rounds"]),
        (["bench", "lstm", "--threads", "many"], ["--threads", "integer"]),
        (["bench", "--nonsense"], ["No such option: --nonsense"]),
        (["bench", "lstm", "--record", "/nowhere/at/all.csv"], ["no folder /nowhere/at"]),
    ],
)
def test_bad_usage_is_one_line(arguments, words):
    if "--isa" in arguments and fastrnn.backend_status()["cpu"]:
        pytest.skip("the C++ kernels were not built")
    one_line_error(run(*arguments), *words)


def test_a_backend_that_cannot_run(monkeypatch):
    monkeypatch.setitem(sys.modules["fastrnn.backend"]._reasons, "numba", "it is Sunday")
    one_line_error(run("check", "--backend", "numba"), "backend 'numba' cannot run here: it is Sunday")
    one_line_error(run("bench", "--peers", "numba"), "peer 'numba' cannot run here: it is Sunday")


def test_a_peer_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(bench_command, "_missing", lambda module, reason: reason)
    one_line_error(run("bench", "--peers", "torch"), "peer 'torch' cannot run here", "pip install torch")
    one_line_error(run("bench", "--peers", "onnxruntime"), "pip install onnx onnxruntime")
    one_line_error(run("bench", "--plot", "speed.png"), "--plot needs Matplotlib: pip install matplotlib")


# ---- bench ---------------------------------------------------------------------------------------------------------

FAST = ("--rounds", 1, "--seconds", 0)
QUICK = (*FAST, "--peers", "numpy")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(bench_timing, "PAUSE_SECONDS", 0)


BENCHMARKS = {
    benchmark.kernel: (row, benchmark)
    for row in (*conformance.CASES, *bench_command.SYSTEMS)
    for benchmark in bench_command.load(row)
}


def small(kernel):
    """A small shape for each benchmark."""
    if kernel.startswith("vocab"):
        return "2,3,4,5"
    return {
        "captioner": "3,5,6,7,11,4",
        "embedding": "3,4,20,8",
        "softmax_loss": "3,4,20",
        "gram": "1,3,4,5",
        "image_losses": "1,3,4,5",
        "optim": "50",
        "style": "16,32",
    }.get(BENCHMARKS[kernel][0], "3,4,5,6")


def rows_of(*arguments, path, code=0):
    """The rows that a run writes, and its output."""
    result = run("bench", *arguments, "--json", path)
    assert result.exit_code == code, result.output
    return json.loads(path.read_text()), result.output


@pytest.mark.parametrize("kernel", BENCHMARKS)
def test_every_benchmark_runs(kernel, tmp_path):
    arguments = (kernel, *QUICK, "--shape", small(kernel), "--mode", "forward,backward,both")
    rows, _ = rows_of(*arguments, path=tmp_path / "rows.json")
    assert {r["kernel"] for r in rows} == {kernel}
    assert len(rows) == 2 * len(BENCHMARKS[kernel][1].modes)
    for r in rows:
        assert 0 < r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"]
        assert r["gflops"] >= 0 and r["gbytes_per_s"] > 0


def test_a_name_is_that_of_a_kernel_or_of_a_row():
    def kernels(*names):
        return [benchmark.kernel for _, benchmark in bench_command._benchmarks(names)]

    assert kernels("lstm") == ["lstm"] and kernels("lstm_lengths") == ["lstm_lengths"]
    assert kernels("embedding") == ["word_embedding", "word_embedding_out", "word_embedding_sparse"]
    assert kernels("adam,gru") == ["gru", "adam"]
    assert kernels("image_losses") == ["content_loss", "tv_loss"]
    assert kernels("torch")[:3] == ["torch_lstm", "torch_gru", "torch_rnn"] and kernels("torch_rnn") == ["torch_rnn"]
    assert kernels() == list(BENCHMARKS) and "captioner" in kernels()
    assert {row for row, _ in BENCHMARKS.values()} == {*conformance.CASES, "captioner", "torch", "style"}


@pytest.mark.parametrize("kernel", BENCHMARKS)
def test_benchmarks_are_the_same_work_for_every_mode(kernel):
    _, benchmark = BENCHMARKS[kernel]
    for shape in benchmark.shapes:
        assert len(shape) == len(benchmark.axes.split())
        if benchmark.modes == bench_command.MODES:
            flops = [benchmark.flops(shape, mode) for mode in benchmark.modes]
            assert flops[2] == flops[0] + flops[1]
    assert 1 <= benchmark.quick <= len(benchmark.shapes)
    shape = tuple(map(int, small(kernel).split(",")))
    one, two = benchmark.inputs(shape, np.float32), benchmark.inputs(shape, np.float32)
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert {a.dtype for a in one.values() if a.dtype.kind == "f"} == {np.dtype(np.float32)}


def test_the_flops_of_an_lstm_are_those_of_its_products():
    _, benchmark = BENCHMARKS["lstm"]
    assert benchmark.flops((25, 16, 256, 512), "forward") == 2 * 25 * 16 * (256 + 512) * 4 * 512
    assert benchmark.flops((25, 16, 256, 512), "both") == 6 * 25 * 16 * (256 + 512) * 4 * 512


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_flops_of_ragged_sequences_are_those_of_the_steps_that_exist(cell):
    shape = (40, 16, 24, 32)
    (_, whole), (_, ragged) = BENCHMARKS[cell], BENCHMARKS[f"{cell}_lengths"]
    lengths = ragged.inputs(shape, np.float32)["lengths"]
    assert lengths.min() >= 1 and 10 < len(set(lengths)) <= 16 and lengths.max() == 16
    for mode in bench_command.MODES:
        assert ragged.flops(shape, mode) * 40 * 16 == whole.flops(shape, mode) * lengths.sum()


def test_the_flops_of_the_captioner_are_those_of_its_products():
    _, benchmark = BENCHMARKS["captioner"]
    forward = 2 * 100 * (512 * 200 + 16 * ((256 + 200) * 4 * 200 + 200 * 1004))
    assert benchmark.flops((100, 17, 256, 200, 1004, 512), "both") == 3 * forward - 2 * 100 * 512 * 200


def test_the_captioning_shapes_come_first():
    for row in ("rnn", "lstm", "gru"):
        _, benchmark = BENCHMARKS[row]
        assert benchmark.shapes[: benchmark.quick] == ((25, 16, 256, 512), (100, 16, 256, 200))
        assert len(benchmark.shapes) == 8


def test_rows_are_recorded(tmp_path):
    path = tmp_path / "results.csv"
    for _ in range(2):
        result = run("bench", "gram", *QUICK, "--shape", "1,32,20,20", "--record", path, "--threads", 1)
        assert result.exit_code == 0, result.output
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and tuple(rows[0]) == bench_tables.COLUMNS
    assert {row["precision"] for row in rows} == {"highest"}
    ours = bench_command.common.timed_backends()[0]
    assert [row["provider"] for row in rows] == 2 * [ours, "numpy"]
    assert {row["shape"] for row in rows} == {"1,32,20,20"} and {row["threads"] for row in rows} == {"1"}
    assert all(f"numpy={np.__version__}" in row["versions"] for row in rows)
    if ours == "cpu":
        assert 0 < float(rows[0]["fraction_of_peak"]) < 1


def test_the_recorded_rows_have_these_columns():
    path = bench_command.common.checkout() / "bench" / "results.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == bench_tables.COLUMNS
    assert {row["precision"] for row in rows} <= set(bench_timing.EPS)


def test_without_pytorch_its_modules_are_not_timed(monkeypatch):
    monkeypatch.setattr(bench_command, "_missing", lambda module, reason: reason)
    one_line_error(run("bench", "torch"), "'torch' cannot be timed here", "pip install torch")
    one_line_error(run("bench", "torch_gru"), "'torch' cannot be timed here")
    one_line_error(run("bench", "style"), "'style' cannot be timed here")
    assert not {"torch", "style"} & {row for row, _ in bench_command._benchmarks(None)}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_told_and_not_recorded(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "results.csv"
    arguments = ("torch_vocab_cross_entropy", *FAST, "--peers", "torch", "--shape", "16,32,64,4000", "--record", path)
    rows, output = rows_of(*arguments, path=tmp_path / "rows.json")
    memory = {row["provider"]: row["memory_mb"] for row in rows}
    assert "extra MB" in output and 2 * 16 * 32 * 4000 * 4 / 1e6 < memory["torch"]
    assert 64 * 4000 * 4 / 1e6 < memory[rows[0]["provider"]] < memory["torch"] / 2
    with path.open(newline="") as file:
        assert "memory_mb" not in next(csv.DictReader(file))


def test_foreign_tables_are_not_appended_to(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    one_line_error(run("bench", "gram", *QUICK, "--record", path), "other columns")
    assert path.read_text() == "a,b\n1,2\n"


def test_a_picture_is_saved(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("bench", "gram", *QUICK, "--shape", "1,2,3,4", "--shape", "1,3,4,5", "--plot", tmp_path / "speed.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_several_shapes_have_a_geometric_mean():
    result = run("bench", "gram", *QUICK, "--shape", "1,2,3,4", "--shape", "1,3,4,5")
    assert "x numpy (geometric mean of 2 shapes" in result.output


@pytest.mark.parametrize("fault", ["value", "dtype", "nan"])
def test_wrong_results_are_not_timed(monkeypatch, fault, tmp_path):
    """A provider that computes something else would win every race."""
    spoil = {"value": lambda g: g * 1.01, "dtype": lambda g: g.astype(np.float64), "nan": lambda g: g * np.nan}[fault]
    right = fastrnn.gram_matrix
    monkeypatch.setattr(fastrnn, "gram_matrix", lambda features: spoil(right(features)))
    path = tmp_path / "rows.json"
    rows, output = rows_of("gram", *QUICK, "--shape", "1,2,3,4", "--mode", "forward", path=path, code=1)
    assert "wrong result, not timed" in output
    assert [row["provider"] for row in rows] == ["numpy"]


def test_an_exception_of_ours_is_a_wrong_result(monkeypatch, tmp_path):
    monkeypatch.setattr(fastrnn, "gram_matrix", lambda features: features + None)
    rows, output = rows_of("gram", *QUICK, "--shape", "1,2,3,4", path=tmp_path / "rows.json", code=1)
    assert "wrong result, not timed" in output and "TypeError" in output
    assert [row["provider"] for row in rows] == ["numpy"]


def test_a_peer_that_fails_stops_nobody(monkeypatch, tmp_path):
    pytest.importorskip("torch")

    def fails(arrays, mode):
        raise RuntimeError("could not create\na primitive descriptor")

    _, benchmark = BENCHMARKS["gram"]
    monkeypatch.setitem(benchmark.peers, "torch", fails)
    arguments = ("gram", *FAST, "--peers", "torch", "--shape", "1,2,3,4", "--shape", "1,3,4,5")
    rows, output = rows_of(*arguments, path=tmp_path / "rows.json")
    reason = "does not run: torch at 1,2,3,4: RuntimeError: could not create a primitive descriptor"
    assert reason in output.splitlines()
    assert [row["shape"] for row in rows] == ["1,2,3,4", "1,3,4,5"]


def test_ctrl_c_keeps_what_was_measured(monkeypatch, tmp_path):
    right = fastrnn.gram_matrix

    def interrupted(features):
        if features.shape == (1, 3, 4, 5):
            raise KeyboardInterrupt
        return right(features)

    monkeypatch.setattr(fastrnn, "gram_matrix", interrupted)
    files = ("--record", tmp_path / "rows.csv", "--plot", tmp_path / "rows.svg")
    shapes = ("--shape", "1,2,3,4", "--shape", "1,3,4,5", "--shape", "1,4,5,6")
    rows, output = rows_of("gram", *QUICK, *shapes, *files, path=tmp_path / "rows.json", code=130)
    assert "interrupted: 1 of 3 were measured" in output and "Traceback" not in output
    assert {row["shape"] for row in rows} == {"1,2,3,4"}
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3 and (tmp_path / "rows.svg").exists()
    monkeypatch.setattr(fastrnn, "gram_matrix", lambda features: interrupted(np.zeros((1, 3, 4, 5))))
    rows, _ = rows_of("gram", *QUICK, *shapes, "--plot", tmp_path / "none.svg", path=tmp_path / "rows.json", code=130)
    assert rows == [] and not (tmp_path / "none.svg").exists()


def test_threads_hold_for_the_run_alone(monkeypatch):
    from threadpoolctl import threadpool_info

    seen = set()
    right = fastrnn.gram_matrix

    def watched(features):
        blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        seen.add((fastrnn.get_num_threads(), *blas))
        return right(features)

    monkeypatch.setattr(fastrnn, "gram_matrix", watched)
    before = fastrnn.get_num_threads()
    try:
        for threads in (1, 2):
            fastrnn.set_num_threads(3)
            seen.clear()
            run("bench", "gram", *QUICK, "--shape", "1,2,3,4", "--threads", threads)
            assert seen == {(threads,) * len(max(seen))} and len(max(seen)) > 1
            assert fastrnn.get_num_threads() == 3
    finally:
        fastrnn.set_num_threads(before)


def test_providers_take_turns(monkeypatch):
    turns = []
    right = bench_timing._block
    monkeypatch.setattr(
        bench_timing, "_block", lambda provider, *rest: (turns.append(provider.name), right(provider, *rest))[1]
    )
    result = run("bench", "gram", "--rounds", 3, "--seconds", 0, "--peers", "numpy", "--shape", "1,2,3,4")
    assert result.exit_code == 0, result.output
    ours = fastrnn.available_backends()[0]
    assert turns == [ours, "numpy", "numpy", ours, ours, "numpy"]


def test_a_turn_has_calls_that_do_not_count_and_no_garbage_collection():
    collecting = []
    provider = bench_timing.Provider("ours", lambda: collecting.append(gc.isenabled()), tuple, 0.0)
    times = bench_timing._block(provider, 0.0, bench_timing._times)
    assert len(times) == bench_timing.FEWEST_CALLS and len(collecting) == len(times) + 2
    assert not any(collecting[2:]) and gc.isenabled()


# ---- bench: peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", BENCHMARKS)
@pytest.mark.parametrize("dtype", conformance.DTYPES)
def test_torch_computes_the_same(kernel, dtype, tmp_path):
    pytest.importorskip("torch")
    arguments = (kernel, *FAST, "--peers", "torch", "--mode", "forward,backward,both", "--dtype", dtype)
    rows, output = rows_of(*arguments, "--shape", small(kernel), path=tmp_path / "rows.json")
    providers = {row["provider"] for row in rows}
    peers = {name for name in BENCHMARKS[kernel][1].peers if name.startswith("torch")} - {"torch:bf16"}
    assert peers and peers <= providers and "torch:bf16" not in providers and "does not run" not in output


@pytest.mark.parametrize("kernel", [kernel for kernel, (_, b) in BENCHMARKS.items() if "onnxruntime" in b.peers])
def test_onnxruntime_computes_the_same(kernel, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    arguments = (kernel, *FAST, "--peers", "onnxruntime", "--shape", small(kernel))
    rows, output = rows_of(*arguments, "--mode", "forward,both", path=tmp_path / "rows.json")
    there = [(row["provider"], row["mode"]) for row in rows if row["provider"] == "onnxruntime"]
    assert there == [("onnxruntime", "forward")] and "does not run" not in output
    _, output = rows_of(*arguments, "--mode", "both", path=tmp_path / "rows.json")
    assert "onnxruntime took no part" in output


def test_the_captioner_is_verified_over_several_iterations(monkeypatch, tmp_path):
    """The first loss is the same whatever the update rule does: the later ones tell."""
    torch = pytest.importorskip("torch")
    right = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda learned, lr, **options: right(learned, lr=1.5 * lr, **options))
    arguments = ("captioner", *FAST, "--peers", "torch", "--shape", small("captioner"))
    rows, output = rows_of(*arguments, path=tmp_path / "rows.json", code=1)
    assert "wrong result, not timed: torch" in output and "torch" not in {row["provider"] for row in rows}


@pytest.mark.parametrize("kernel", ["rnn", "lstm", "gru", "temporal_affine"])
def test_precision_medium_brings_bfloat16(precision, kernel, tmp_path):
    pytest.importorskip("torch")
    arguments = (kernel, *FAST, "--peers", "torch", "--shape", small(kernel), "--mode", "forward,both")
    rows, _ = rows_of(*arguments, "--precision", "medium", path=tmp_path / "rows.json")
    assert precision == ["highest", "medium", "highest"]  # set for the run only
    assert {row["precision"] for row in rows} == {"medium"}
    assert all(row["fraction_of_peak"] is None for row in rows if row["provider"] != "torch")
    ours = bench_command.common.timed_backends()[0]
    assert [row["provider"] for row in rows] == 2 * [ours, "torch", "torch:bf16"]
    for other in (("--precision", "high"), ("--precision", "medium", "--dtype", "float64")):
        rows, _ = rows_of(*arguments, *other, path=tmp_path / "rows.json")
        assert {row["provider"] for row in rows} == {ours, "torch"}


@pytest.mark.parametrize(("p", "error"), [("highest", 3e-6), ("high", 1e-3), ("medium", 1e-2)])
def test_ours_is_held_to_the_precision_asked_for(precision, monkeypatch, p, error, tmp_path):
    right = fastrnn.gram_matrix
    arguments = ("gram", *QUICK, "--shape", "1,2,3,4", "--mode", "forward", "--precision", p)
    monkeypatch.setattr(fastrnn, "gram_matrix", lambda features: right(features) * np.float32(1 + error))
    if p == "highest":
        rows_of(*arguments, path=tmp_path / "rows.json", code=1)
    else:
        rows_of(*arguments, path=tmp_path / "rows.json")
        monkeypatch.setattr(fastrnn, "gram_matrix", lambda features: right(features) * np.float32(1 + 10 * error))
        rows_of(*arguments, path=tmp_path / "rows.json", code=1)


# ---- bench: sweeps -------------------------------------------------------------------------------------------------


def test_a_sweep_varies_one_size(tmp_path):
    arguments = ("gru", *QUICK, "--shape", "2,3,4,5", "--sweep", "N=1,3", "--sweep", "H=6,5,7", "--mode", "forward")
    rows, output = rows_of(*arguments, path=tmp_path / "rows.json")
    ours = bench_command.common.timed_backends()[0]
    shapes = ["1,3,4,5", "3,3,4,5", "2,3,4,5", "2,3,4,6", "2,3,4,7"]
    assert [(row["shape"], row["provider"]) for row in rows] == [(s, p) for s in shapes for p in (ours, "numpy")]
    for line in ("gru forward over N, N T D H = N,3,4,5 float32", "gru forward over H, N T D H = 2,3,4,H float32"):
        assert line in [text.rstrip() for text in output.splitlines()]
    assert output.count("fall") == 4  # for each of two providers over each of two axes


def test_a_sweep_begins_from_the_first_default_shape():
    benchmarks = bench_command._benchmarks(["lstm"])
    groups = bench_command._groups(benchmarks, None, False, ["N,T", "H"], ["both"], ["float32"])
    assert [group.axis for group in groups] == ["N", "T", "H"]
    assert [group.base for group in groups] == ["N,16,256,512", "25,T,256,512", "25,16,256,H"]
    batches, _, hidden = ([job.shape[group.place] for job in group.jobs] for group in groups)
    assert {1, 2, 3, 4, 6, 8, 12, 16, 24, 25, 32, 48, 64, 96, 100, 128} <= set(batches) <= set(range(1, 129))
    assert {16, 32, 48, 64, 96, 100, 128, 192, 200, 256, 384, 400, 512, 768, 1024} <= set(hidden)
    assert hidden == sorted(hidden) and hidden[0] == 16 and hidden[-1] == 1024


def test_the_largest_fall():
    _, benchmark = BENCHMARKS["lstm"]
    jobs = [bench_timing.Job("lstm", benchmark, (n, 2, 3, 4), "both", "float32") for n in (1, 2, 4, 8)]
    group = bench_timing.Group(tuple(jobs), "N")

    def rows(*rates):
        each = zip(jobs, rates, strict=True)
        return [
            {"provider": "cpu", "shape": job.size, "gflops": rate, "p50_ms": job.shape[0] / rate}
            for job, rate in each
            if rate
        ]

    fall = bench_tables.largest_fall(group, rows(10.0, 8.0, 9.0, 4.5), "cpu")
    assert fall == (4, 8, 9.0, 4.5, pytest.approx(4.0), pytest.approx(2.0))
    assert bench_tables.largest_fall(group, rows(10.0, 8.0, None, 9.0), "cpu")[:4] == (1, 2, 10.0, 8.0)
    assert bench_tables.largest_fall(group, rows(1.0, 2.0, 2.0, 3.0), "cpu") is None


def test_the_picture_of_a_sweep(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "sweep.svg"
    arguments = ("gru", "rnn", *QUICK, "--shape", "2,3,4,5", "--sweep", "N=1,3,4", "--sweep", "H=5,6")
    result = run("bench", *arguments, "--mode", "forward", "--plot", path)
    assert result.exit_code == 0, result.output
    ElementTree.parse(path)
    text = path.read_text()
    for label in ("gru forward float32", "rnn forward float32", "N T D H = N,3,4,5", "GFLOP/s", "time, ms (median)"):
        assert f"<!-- {label}" in text or label in text, label


# ---- progress ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_drawn_where_someone_watches(watched, wanted, monkeypatch):
    monkeypatch.setattr(common, "interactive", lambda: watched)
    bar = common.progress_bar("training", "loss {task.fields[loss]}", wanted=wanted)
    assert bar.disable == (not (watched and wanted))
    bar.add_task("training", total=30, completed=12, loss="1.25")
    drawn = io.StringIO()
    Console(file=drawn, width=100).print(bar.make_tasks_table(bar.tasks))
    assert re.search(r"training .*12/30 loss 1\.25 time left", drawn.getvalue())


# ---- the README's table --------------------------------------------------------------------------------------------


def test_the_readme_table_is_made_of_the_last_rows():
    bench_command._bench_package()
    from fastrnn.bench.update_readme import END, GPU_END, GPU_START, START, page, written

    def row(provider, p50, **changes):
        values = dict.fromkeys(bench_tables.COLUMNS, "") | {"kernel": "lstm", "mode": "both", "shape": "1,2,3,4"}
        values |= {"dtype": "float32", "threads": "2", "provider": provider, "p50_ms": p50, "hardware": "abacus"}
        values |= {"isa": "beads", "versions": "numpy=2", "date": "2024-06-07", "precision": "highest"}
        values |= {"fraction_of_peak": "0.456"} if provider == "cpu" else {}
        return values | changes

    rows = [
        row("cpu", "9"),
        row("torch", "99"),
        row("cpu", "2.0"),
        row("numpy", "31.4"),
        row("cpu", "5", dtype="float64"),
        row("numba", "0.1"),  # of a run without ours
        row("numpy", "0.1"),
        row("cpu", "8", shape="5,6,7,8"),
        row("numpy", "16", shape="5,6,7,8"),
    ]
    readme = f"before\n{START}\nold\n{END}\nbetween\n{GPU_START}\nold\n{GPU_END}\nafter\n"
    for before in (written(readme, rows), page(rows)):
        assert "| × NumPy | × PyTorch |" in before and "ONNX" not in before and "Not yet run" in before
    assert "| lstm | float32 | 2 | 46 to 46 % | 5.6× (2) | – |" in written(readme, rows)
    rows += [
        row("cpu", "1.5", precision="medium"),
        row("torch:bf16", "3.0", precision="medium"),
        row("cpu", "1", mode="forward"),
        row("onnxruntime", "4", mode="forward"),
        row("cuda", "0.25", hardware="abacus of stone", isa="pebbles"),
        row("torch", "0.5", hardware="abacus of stone"),
        row("cuda", "0.1", hardware="abacus of stone", isa="pebbles", kernel="gram", precision="high"),
    ]
    text = written(readme, rows)
    assert "| lstm | 1, 2, 3, 4 | float32 | 0.250 | 125.00 | 0.500 | 2× |" in text and "Not yet run" not in text
    assert "| gram | 1, 2, 3, 4 | float32 high | 0.100 | – | – | – |" in text and "abacus of stone (pebbles)" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert written(text, rows) == text
    assert "| lstm forward | float32 | 1 | 46 % | – | – | – | 4× |" in text
    with pytest.raises(ValueError, match="once each"):
        written("no marks", rows)
    text = page(rows)
    assert "| PyTorch | PyTorch bf16 | ONNX Runtime | × NumPy | × PyTorch | × PyTorch bf16 | × ONNX Runtime |" in text
    assert "| lstm | 1, 2, 3, 4 | float32 | 2.00 | 46 % | – | 31.4 | – | – | – | 16× | – | – | – |" in text
    assert "| lstm | 1, 2, 3, 4 | float32 medium | 1.50 | 46 % | – | – | – | 3.00 | – | – | – | 2× | – |" in text
    assert "| lstm forward | 1, 2, 3, 4 | float32 | 1.00 | 46 % | – | – | – | – | 4.00 | – | – | – | 4× |" in text
    assert "| lstm | 1, 2, 3, 4 | float64 | 5.00 | 46 % |" in text and "99" not in text
