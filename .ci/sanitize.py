"""What `make sanitize` and its parts run: the C++ kernels, built apart under gcc's sanitizers, and their tests.

There are two builds, because the sanitizers do not go together: ``address``, with AddressSanitizer and
UndefinedBehaviorSanitizer, and ``thread``, with ThreadSanitizer. Each is of a copy of the sources in
build/sanitize/KIND, so that the installed kernels are left alone, and has every instruction set that the compiler
knows, AMX emulated. Named, a kind runs the tests of the kernels. Without a name both kinds run these and
``fastrnn check`` on every instruction set, and what that found is recorded for docs/evidence.md.

The first report of a sanitizer ends the process that made it, and the run. Exit code: 0 if there was none, 1 if
something failed, 2 if something that is needed is missing, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
SOURCES = ("bench", "csrc", "fastrnn", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py")

# The rows of operations, and what their kernels stand on.
ROWS = ("rnn", "lstm", "gru", "embedding", "affine", "softmax_loss", "gram", "image_losses", "optim")
SHARED = ("sanitizers", "threads", "simd_math", "precision", "weight_layouts", "recurrent", "cache", "checks")
TESTS = [ROOT / "tests" / f"test_{name}.py" for name in (*SHARED, *ROWS)]
# Other backends have nothing that is watched.
OTHERS = "not numba and not reference and not cuda"


@dataclass(frozen=True)
class Kind:
    """One build, and what it needs to run."""

    sanitizers: str
    runtime: str
    options: dict[str, str]
    before: tuple[str, ...] = ()


KINDS = {
    # Leaks are not looked for: Python leaves much to the end of the process on purpose.
    "address": Kind(
        "address,undefined",
        "libasan.so",
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"},
    ),
    # Without address randomisation, which gcc's ThreadSanitizer does not bear on newer kernels of Linux. Children of a
    # fork go on. More threads than most machines have CPUs change places more often.
    "thread": Kind(
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0", "FASTRNN_NUM_THREADS": "4"},
        ("setarch", platform.machine(), "-R"),
    ),
}


class Wrong(Exception):
    """What failed, in a line."""


class Missing(Exception):
    """What is needed and is not here."""


def say(text: str) -> None:
    print(text, flush=True)


def compiler() -> str:
    """The compiler's program; an exception where it is not gcc on Linux."""
    name = os.environ.get("CXX") or "c++"
    if sys.platform != "linux":
        raise Missing("sanitizers need Linux")
    try:
        command = [name, "-dM", "-E", "-x", "c++", "/dev/null"]
        macros = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise Missing(f"{name} does not work; sanitizers need gcc, name one with CXX=…") from None
    if "__clang__" in macros.stdout or "__GNUC__" not in macros.stdout:
        raise Missing(f"{name} is not gcc; name one with CXX=…")
    return name


def build(name: str) -> Path:
    """Build fastrnn with its kernels under the sanitizers of a kind; the folder that it is imported from."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    for source in SOURCES:
        kept = shutil.ignore_patterns("*.so", "__pycache__")
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / "source" / source, ignore=kept)
        else:
            shutil.copy2(ROOT / source, folder / "source" / source)
    log = folder / "install.log"
    say(f"{name}: building into {folder.relative_to(ROOT)}; the log is {log.relative_to(ROOT)}")
    options = (f"FASTRNN_SANITIZE={KINDS[name].sanitizers}", "FASTRNN_EMULATE_AMX=ON", "FASTRNN_CUDA=OFF")
    settings = {
        "CXX": compiler(),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
        "SKBUILD_INSTALL_STRIP": "false",  # reports name lines
        "SKBUILD_CMAKE_DEFINE": ";".join(options),
    }
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-v", "--no-deps"]
    with log.open("w") as out:
        command = [*pip, "--target", folder / "site", folder / "source"]
        done = subprocess.run(command, env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        say("\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        raise Wrong(f"{name}: the build failed; all of it is in {log.relative_to(ROOT)}")
    return folder / "site"


def library(name: str) -> str:
    """Where the compiler has a library."""
    found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():
        raise Missing(f"{name}, the runtime of a sanitizer, was not found; it comes with gcc")
    return path


def watched(name: str, site: Path, *arguments: str | Path) -> None:
    """Run a module of Python on the kernels of a kind; an exception if it fails."""
    kind = KINDS[name]
    if kind.before and not shutil.which(kind.before[0]):
        raise Missing(f"{kind.before[0]} was not found; it comes with util-linux")
    # A sanitizer's runtime comes before all else, and before it throws C++'s has to be there.
    preload = f"{library(kind.runtime)} {library('libstdc++.so.6')}"
    # NumPy's BLAS on one thread: ThreadSanitizer did not see it compiled, and takes the way its pool meets for races.
    settings = {"PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1"}
    # LD_PRELOAD by env: setarch itself does not run with the runtime.
    command = [*kind.before, "env", f"LD_PRELOAD={preload}", sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=site, env=os.environ | kind.options | settings, check=False)
    if done.returncode:
        raise Wrong(f"{name}: {arguments[0]} ended with exit code {done.returncode}")


def tests(name: str, site: Path) -> int:
    """Run the tests of the kernels; how many passed."""
    results = BUILD / name / "tests.xml"
    # Output is not captured: a report ends the process, and must be seen.
    options = ("--capture=no", "-p", "no:cacheprovider", "-k", OTHERS, f"--junitxml={results}")
    watched(name, site, "pytest", "-c", ROOT / "pyproject.toml", *options, *TESTS)
    passed = [case.get("classname", "") for case in ElementTree.parse(results).iter("testcase") if not len(case)]
    if not any("test_sanitizers" in one for one in passed):
        raise Wrong(f"{name}: no test showed that the sanitizers report faults")
    return len(passed)


def cases(name: str, site: Path) -> tuple[int, int]:
    """Run `fastrnn check` on every instruction set; how many cases passed, and on how many sets."""
    results = BUILD / name / "check.json"
    watched(name, site, "fastrnn", "check", "--backend", "cpu", "--isa", "all", "--json", results)
    outcomes = json.loads(results.read_text())["outcomes"]
    return len(outcomes), len({outcome["isa"] for outcome in outcomes})


def main() -> int:
    """Run one kind, or all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=tuple(KINDS), help="the tests of this kind alone; default: all")
    chosen = parser.parse_args().kind
    start = time.monotonic()
    found: dict[str, str] = {}
    try:
        compiler()
        for name in [chosen] if chosen else KINDS:
            site = build(name)
            found[name] = f"{tests(name, site):,} tests"
            if not chosen:
                count, sets = cases(name, site)
                found[name] += f" and {count:,} cases on {sets} instruction sets"
        if not chosen:
            tried = f"{found['address']} under the first two; {found['thread']} under the third, with 4 threads"
            seconds = f"{time.monotonic() - start:.0f}"
            recorder = [sys.executable, str(ROOT / "bench" / "evidence.py"), "record", "sanitize"]
            recorder += ["--tried", tried, "--outcome", "no report", "--seconds", seconds]
            subprocess.run(recorder, cwd=ROOT, check=True)
    except Wrong as error:
        say(f"✗ {error}")
        return 1
    except Missing as error:
        say(f"✗ {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    for name, what in found.items():
        say(f"✓ {KINDS[name].sanitizers}: {what}, no report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
