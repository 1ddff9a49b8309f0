"""What `make test-gpu` and `make bench-gpu` run, on a machine with an NVIDIA GPU, in the environment of this Python.

Nothing is fetched: the package is built with what is installed (``pip install -e . --no-build-isolation --no-deps``),
for this machine's GPU alone. Linters and type checkers are not needed. Exit code: 0 if all is right, 1 if not, 2 if
there is no GPU or something to build with is missing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "build" / "gpu-install.log"
REPORT = ROOT / "build" / "cuda-report.txt"

# What must import, and the name by which it is installed.
TO_BUILD = {
    "numpy": "numpy",
    "pybind11": "pybind11",
    "scikit_build_core": "scikit-build-core",
    "setuptools": "setuptools",
}
TO_RUN = {name: name for name in ("numba", "rich", "scipy", "threadpoolctl", "typer")} | {"cupy": "cupy-cuda13x"}
TO_TEST = {name: name for name in ("pytest", "hypothesis", "h5py", "matplotlib")} | {"sklearn": "scikit-learn"}
TO_BENCH = {"torch": "torch"}
NOT_NEEDED = ("ruff", "mypy", "clang-format")

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
# Kernels for these compute capabilities use what no later GPU has.
WITH_SUFFIX = {"90": "90a"}


class Gpu(NamedTuple):
    name: str
    architecture: str


def gpus() -> list[Gpu]:
    """The GPUs of this machine, as the driver tells them; an exception that says why where there is none."""
    names = ("nvcuda.dll",) if os.name == "nt" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        try:
            driver = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise RuntimeError(f"the driver ({names[0]}) is not installed")
    if error := driver.cuInit(0):
        raise RuntimeError(f"the driver does not start (cuInit: error {error})")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise RuntimeError("the driver knows of none")
    found = []
    for i in range(count.value):
        device, text, value = ctypes.c_int(), ctypes.create_string_buffer(128), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(text, len(text), device)
        capability = ""
        for which in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
            capability += str(value.value)
        found.append(Gpu(text.value.decode(), WITH_SUFFIX.get(capability, capability)))
    return found


def tool(name: str) -> str | None:
    """Where a program of the CUDA toolkit is: on the path, or where the toolkit is usually installed."""
    homes = [os.environ.get(key) for key in ("CUDA_PATH", "CUDA_HOME")] + ["/usr/local/cuda"]
    return shutil.which(name) or next((p for home in homes if home and (p := shutil.which(f"{home}/bin/{name}"))), None)


def missing(mode: str) -> list[str]:
    """What has to be installed first, each with what it is for."""
    wanted = {"to build": TO_BUILD, "to run": TO_RUN, "to test": TO_TEST if mode == "test" else TO_BENCH}
    lacking = [
        f"{installed} ({use})"
        for use, modules in wanted.items()
        for module, installed in modules.items()
        if importlib.util.find_spec(module) is None
    ]
    lacking += [f"{name} (to build)" for name in ("cmake", "ninja") if not shutil.which(name)]
    lacking += [] if tool("nvcc") else ["nvcc (to build)"]
    if mode == "test" and not tool("compute-sanitizer"):
        lacking.append("compute-sanitizer (to test)")
    return lacking


def say(text: str) -> None:
    print(text, flush=True)


def build(architectures: list[str]) -> bool:
    """Install in place, from what is here."""
    settings = {
        "FASTRNN_WARNINGS_AS_ERRORS": "ON",
        "FASTRNN_CUDA_ARCHITECTURES": ",".join(architectures),
        "FASTRNN_CUDA_REPORT": str(REPORT),
    }
    given = ";".join(f"{name}={value}" for name, value in settings.items())
    say(f"building for sm_{' sm_'.join(architectures)}; the log is {LOG.relative_to(ROOT)}")
    LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", "-v", "-e", "."]
    with LOG.open("w") as log:
        done = subprocess.run(
            [*command, "--no-build-isolation", "--no-deps"],
            cwd=ROOT,
            env=os.environ | {"SKBUILD_CMAKE_DEFINE": given},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = LOG.read_text(errors="replace").splitlines()
    if done.returncode:
        say("\n".join(lines[-40:]))
    for line in dict.fromkeys(match[0] for line in lines if (match := re.search("[✓✗].*", line))):
        say(line)
    return done.returncode == 0


def run(title: str, *command: str) -> bool:
    say(f"\n---- {title} ----")
    right = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    if not right:
        say(f"✗ {title} failed")
    return right


def test() -> bool:
    """Every kernel against the oracle, the tests that need a GPU, and a few of them under compute-sanitizer."""
    python = sys.executable
    results = [
        run("fastrnn check --backend cuda", python, "-m", "fastrnn", "check", "--backend", "cuda"),
        run("pytest -m gpu", python, "-m", "pytest", "-m", "gpu", "-rs"),
    ]
    for check in ("memcheck", "racecheck"):
        sanitizer = [tool("compute-sanitizer") or "", "--tool", check, "--error-exitcode", "99"]
        options = ["--report-api-errors", "no", "--kernel-regex", "kns=fastrnn"]  # CuPy's kernels are not ours to check
        small = [python, "-m", "pytest", "-m", "gpu", "-k", "sanitizer", "tests/test_gpu.py"]
        results.append(run(f"compute-sanitizer --tool {check}", *sanitizer, *options, *small))
    return all(results)


def bench() -> bool:
    """Every benchmark on the GPU, recorded with its name; recurrent layers in lower precision and of halves too."""
    program = [sys.executable, "-m", "fastrnn", "bench"]
    options = ["--backend", "cuda", "--all", "--record", "bench/results.csv"]
    results = [run("fastrnn bench --backend cuda", *program, *options)]
    for precision in ("high", "medium"):
        lower = ["rnn", "lstm", "gru", *options, "--precision", precision]
        results.append(run(f"fastrnn bench --backend cuda --precision {precision}", *program, *lower))
    halves = ["rnn", "lstm", "gru", *options, "--dtype", "float16"]
    results.append(run("fastrnn bench --backend cuda --dtype float16", *program, *halves))
    return all(results)


def main(mode: str) -> int:
    try:
        found = gpus()
    except (RuntimeError, AttributeError) as reason:
        say(f"✗ no NVIDIA GPU here: {reason}; `make test` runs the CUDA kernels on a simulator")
        return 2
    # Programs installed beside this Python, and a toolkit that is not on the path.
    nvcc = tool("nvcc")
    folders = [str(Path(sys.executable).parent), *([str(Path(nvcc).parent)] if nvcc else [])]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    os.environ.pop("FASTRNN_CUDA_ON_HOST", None)
    lacking = missing(mode)
    if lacking:
        say(f"✗ {sys.executable} lacks what has to be installed first: {', '.join(lacking)}")
        return 2
    say(f"✓ {len(found)} GPU: {', '.join(gpu.name for gpu in found)}")
    absent = [name for name in NOT_NEEDED if not shutil.which(name)]
    if absent:
        say(f"✗ {', '.join(absent)}: not installed, and not needed here")
    if not build(list(dict.fromkeys(gpu.architecture for gpu in found))):
        return 1
    if subprocess.run([sys.executable, "-c", "import fastrnn._cuda"], cwd=ROOT, check=False).returncode:
        say(f"✗ the CUDA kernels were not built; {LOG.relative_to(ROOT)} says why")
        return 1
    return 0 if (test() if mode == "test" else bench()) else 1


if __name__ == "__main__":
    if sys.argv[1:] not in (["test"], ["bench"]):
        sys.exit(f"usage: {sys.argv[0]} test|bench")
    sys.exit(main(sys.argv[1]))
