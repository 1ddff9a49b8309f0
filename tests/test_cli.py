"""The command line: what it prints, what it writes, and its exit codes."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import fastrnn
from fastrnn import conformance
from fastrnn.cli import bench as bench_command
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
    assert run("nonsense").exit_code == 2
    assert run("check", "--nonsense").exit_code == 2


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

    result = run("check", "softmax_loss", "--isa", "all", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for isa in _cpu.isa_supported():
        assert f"cpu {isa} " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "lstn"], ["unknown operation 'lstn'", "lstm"]),
        (["check", "--dtype", "float16"], ["unknown dtype 'float16'", "float32, float64"]),
        (["check", "--backend", "gpu"], ["unknown backend 'gpu'", "cpu, numba, reference"]),
        (["check", "--isa", "abacus"], ["instruction set 'abacus'"]),
        (["check", "--isa", "all", "--backend", "numba"], ["--isa is for backend cpu"]),
        (["check", "--json", "/nowhere/at/all.json"], ["cannot write", "no folder /nowhere/at"]),
        (["bench", "lstn"], ["unknown operation 'lstn'"]),
        (["bench", "--peers", "jax"], ["unknown peer 'jax'", "numpy, numba, torch"]),
        (["bench", "--backend", "gpu"], ["unknown backend 'gpu'"]),
        (["bench", "lstm", "--shape", "1,2,3"], ["has 3 sizes", "N T D H"]),
        (["bench", "lstm", "--shape", "1,2,3,many"], ["whole numbers"]),
        (["bench", "lstm", "--shape", "1,2,3,0"], ["positive"]),
        (["bench", "lstm", "gram", "--shape", "1,2,3,4"], ["name one operation"]),
        (["bench", "optim", "--mode", "forward"], ["nothing to time", "adam (both)"]),
        (["bench", "lstm", "--mode", "sideways"], ["unknown mode 'sideways'"]),
        (["bench", "lstm", "--plot", "picture.gif"], [".png, .svg or .pdf"]),
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


# ---- bench ---------------------------------------------------------------------------------------------------------

QUICK = ("--rounds", 1, "--seconds", 0, "--peers", "numpy")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(bench_command, "PAUSE_SECONDS", 0)


def small(row):
    """A small shape for each row's benchmarks."""
    return {
        "embedding": "3,4,20,8",
        "softmax_loss": "3,4,20",
        "gram": "1,3,4,5",
        "image_losses": "1,3,4,5",
        "optim": "50",
    }.get(row, "3,4,5,6")


@pytest.mark.parametrize("row", conformance.CASES)
def test_every_row_has_a_benchmark_that_runs(row, tmp_path):
    path = tmp_path / "rows.json"
    result = run("bench", row, *QUICK, "--shape", small(row), "--mode", "forward,backward,both", "--json", path)
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())
    benchmarks = bench_command.load(row)
    assert {r["kernel"] for r in rows} == {benchmark.kernel for benchmark in benchmarks}
    assert len(rows) == 2 * sum(len(benchmark.modes) for benchmark in benchmarks)
    for r in rows:
        assert 0 < r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"]
        assert r["gflops"] >= 0 and r["gbytes_per_s"] > 0


@pytest.mark.parametrize("row", conformance.CASES)
def test_benchmarks_are_the_same_work_for_every_mode(row):
    for benchmark in bench_command.load(row):
        for shape in benchmark.shapes:
            assert len(shape) == len(benchmark.axes.split())
            if benchmark.modes == bench_command.MODES:
                flops = [benchmark.flops(shape, mode) for mode in benchmark.modes]
                assert flops[2] == flops[0] + flops[1]
        assert 1 <= benchmark.quick <= len(benchmark.shapes)
        shape = tuple(map(int, small(row).split(",")))
        one, two = benchmark.inputs(shape, np.float32), benchmark.inputs(shape, np.float32)
        assert all(np.array_equal(one[key], two[key]) for key in one)
        assert {a.dtype for a in one.values() if a.dtype.kind == "f"} == {np.dtype(np.float32)}


def test_the_flops_of_an_lstm_are_those_of_its_products():
    (benchmark,) = bench_command.load("lstm")
    assert benchmark.flops((25, 16, 256, 512), "forward") == 2 * 25 * 16 * (256 + 512) * 4 * 512
    assert benchmark.flops((25, 16, 256, 512), "both") == 6 * 25 * 16 * (256 + 512) * 4 * 512


def test_the_captioning_shapes_come_first():
    for row in ("rnn", "lstm", "gru"):
        (benchmark,) = bench_command.load(row)
        assert benchmark.shapes[: benchmark.quick] == ((25, 16, 256, 512), (100, 16, 256, 200))
        assert len(benchmark.shapes) == 8


def test_rows_are_recorded(tmp_path):
    path = tmp_path / "results.csv"
    for _ in range(2):
        result = run("bench", "gram", *QUICK, "--shape", "1,32,20,20", "--record", path, "--threads", 1)
        assert result.exit_code == 0, result.output
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and tuple(rows[0]) == bench_command.COLUMNS
    ours = fastrnn.available_backends()[0]
    assert [row["provider"] for row in rows] == 2 * [ours, "numpy"]
    assert {row["shape"] for row in rows} == {"1,32,20,20"} and {row["threads"] for row in rows} == {"1"}
    assert all(f"numpy={np.__version__}" in row["versions"] for row in rows)
    if ours == "cpu":
        assert 0 < float(rows[0]["fraction_of_peak"]) < 1


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
    result = run("bench", "gram", *QUICK, "--shape", "1,2,3,4", "--mode", "forward", "--json", path)
    assert result.exit_code == 1
    assert "wrong result, not timed" in result.output
    assert [row["provider"] for row in json.loads(path.read_text())] == ["numpy"]


def test_threads_hold_for_the_run(monkeypatch):
    before = fastrnn.get_num_threads()
    seen = set()
    right = fastrnn.gram_matrix
    monkeypatch.setattr(
        fastrnn, "gram_matrix", lambda features: (seen.add(fastrnn.get_num_threads()), right(features))[1]
    )
    try:
        run("bench", "gram", *QUICK, "--shape", "1,2,3,4", "--threads", before + 1)
        assert seen == {before + 1}
    finally:
        fastrnn.set_num_threads(before)


@pytest.mark.parametrize("row", conformance.CASES)
@pytest.mark.parametrize("dtype", conformance.DTYPES)
def test_torch_computes_the_same(row, dtype):
    pytest.importorskip("torch")
    arguments = ("--rounds", 1, "--seconds", 0, "--peers", "torch", "--mode", "forward,backward,both", "--dtype", dtype)
    result = run("bench", row, *arguments, "--shape", small(row))
    assert result.exit_code == 0, result.output
    assert "torch" in result.output


# ---- the README's table --------------------------------------------------------------------------------------------


def test_the_readme_table_is_made_of_the_last_rows():
    bench_command._bench_package()
    from fastrnn.bench.update_readme import END, START, written

    def row(provider, p50, **changes):
        values = dict.fromkeys(bench_command.COLUMNS, "") | {"kernel": "lstm", "mode": "both", "shape": "1,2,3,4"}
        values |= {"dtype": "float32", "threads": "2", "provider": provider, "p50_ms": p50, "hardware": "abacus"}
        values |= {"isa": "beads", "versions": "numpy=2", "date": "2024-06-07"}
        values |= {"fraction_of_peak": "0.456"} if provider == "cpu" else {}
        return values | changes

    rows = [
        row("cpu", "9"),
        row("torch", "99"),
        row("cpu", "2.0"),
        row("numpy", "31.4"),
        row("cpu", "5", dtype="float64"),
    ]
    text = written(f"before\n{START}\nold\n{END}\nafter\n", rows)
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| lstm | 1, 2, 3, 4 | float32 | 2.00 | 46 % | – | 31.4 | – | 16× | – |" in text
    assert "| lstm | 1, 2, 3, 4 | float64 | 5.00 | 46 % |" in text and "99" not in text
    assert written(text, rows) == text
    with pytest.raises(ValueError, match="once each"):
        written("no marks", rows)
