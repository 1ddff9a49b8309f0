"""What the build says of the CUDA kernels, and what `make test-gpu` says where there is no GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "csrc/cuda/ptxas_report.py"
LOOP, OTHER = "_ZN7fastrnn4cuda11step_kernelIfEEvPT_", "_ZN7fastrnn4cuda12other_kernelEv"


def entry(name, architecture, registers, frame=(0, 0, 0), more=""):
    stack, stores, loads = frame
    return (
        f"ptxas info    : Compiling entry function '{name}' for '{architecture}'\n"
        f"ptxas info    : Function properties for {name}\n"
        f"    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers{more}\n"
        "ptxas info    : Compile time = 3.0 ms\n"
    )


@pytest.fixture
def check(tmp_path):
    """Runs the check over reports, file by file."""

    def run(reports, time_loops=r"^(rnn|lstm|gru)\.cu:"):
        objects = [tmp_path / f"{file}.o" for file in reports]
        for compiled, report in zip(objects, reports.values(), strict=True):
            Path(f"{compiled}.ptxas").write_text("ptxas info    : 3 bytes gmem\n" + report)
        to = tmp_path / "folder" / "report.txt"
        command = [sys.executable, TOOL, "check", "--time-loops", time_loops, "--to", to, *objects]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, to.read_text()

    return run


@pytest.mark.parametrize("frame", [(8, 0, 0), (0, 4, 0), (0, 0, 4)])
def test_a_time_loop_that_spills_fails_the_build(check, frame):
    code, said, table = check({"lstm.cu": entry(LOOP, "sm_75", 64) + entry(LOOP, "sm_90a", 255, frame)})
    assert code == 1
    assert "✗ CUDA" in said and "step_kernel" in said and "lstm.cu spills on sm_90a" in said and "sm_75:" not in said
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["0", "spills"]


def test_other_kernels_may_spill_and_are_shown(check):
    code, said, table = check({"gram.cu": entry(OTHER, "sm_80", 40, (8, 12, 16)), "gru.cu": entry(LOOP, "sm_80", 40)})
    assert code == 0 and "of 1 kernels of time loops none spills registers, of 1 others 1" in said
    rows = [line.split() for line in table.splitlines()]
    assert rows[1][0] == "gram.cu" and rows[1][-7:] == ["sm_80", "40", "0", "8", "12", "16", "spills"]
    assert table.strip() in said


def test_shared_memory_and_functions_that_are_called_are_told_apart(check):
    called = "ptxas info    : Function properties for helper\n    96 bytes stack frame, 4 bytes spill stores, 4 bytes "
    report = entry(LOOP, "sm_120", 48, more=", 1024 bytes smem, 380 bytes cmem[0]") + called + "spill loads\n"
    code, _, table = check({"rnn.cu": report})
    assert code == 0 and table.splitlines()[1].split()[-5:] == ["48", "1024", "0", "0", "0"]


def test_a_kernel_of_no_report_is_an_error(tmp_path):
    done = subprocess.run([sys.executable, TOOL, "check", tmp_path / "lstm.cu.o"], capture_output=True, text=True)
    assert done.returncode != 0 and "no report of ptxas" in done.stderr


def test_the_compiler_is_run_and_what_it_says_is_parted(tmp_path):
    compiled = tmp_path / "x.cu.o"
    script = "import sys; sys.stderr.write(sys.argv[1]); sys.exit(int(sys.argv[2]))"
    for code in (0, 3):
        said = entry(LOOP, "sm_90a", 40) + "x.cu(3): warning #177-D: declared but never referenced\n"
        command = [sys.executable, TOOL, "compile", sys.executable, "-c", script, said, str(code), "-o", compiled]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code
        assert done.stderr == "x.cu(3): warning #177-D: declared but never referenced\n"
        report = Path(f"{compiled}.ptxas")
        assert report.exists() == (code == 0) and (code or "Used 40 registers" in report.read_text())
        report.unlink(missing_ok=True)


@pytest.mark.parametrize("mode", ["test", "bench"])
def test_without_a_gpu_one_line_and_exit_code_2(mode):
    spec = importlib.util.spec_from_file_location("gpu", ROOT / ".ci/gpu.py")
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    try:
        gpu.gpus()
    except RuntimeError:
        pass
    else:
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, ROOT / ".ci/gpu.py", mode], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.startswith("✗ no NVIDIA GPU here: ") and done.stdout.count("\n") == 1
