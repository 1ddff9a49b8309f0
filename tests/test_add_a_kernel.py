"""docs/add_a_kernel.md, followed to the letter in a copy of the sources.

The C++ is only looked over by the compiler, since to build it all takes a minute; Numba runs the row.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import pytest

import fastrnn

PAGE = documents.ROOT / "docs" / "add_a_kernel.md"
STEPS = [block for block in documents.blocks_of(PAGE) if block.note.startswith("file: ")]
COPIED = ("bench", "csrc", "fastrnn", "tests", "docs", "CMakeLists.txt", "pyproject.toml")


def follow(folder, steps):
    """Do what the page says: write new files, and replace in others the lines that a diff names."""
    for block in steps:
        path = folder / block.note.removeprefix("file: ")
        if block.kind != "diff":
            assert not path.exists(), f"{block}: {path.name} is there already"
            path.write_text(block.text)
            continue
        lines = block.text.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        text = path.read_text()
        assert text.count(before) == 1, f"{block}: {path.name} has these lines {text.count(before)} times:\n{before}"
        path.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the sources, with nothing compiled, after all steps."""
    folder = tmp_path_factory.mktemp("scratch")
    for name in COPIED:
        source = documents.ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "gallery")
            )
        else:
            shutil.copy(source, folder)
    for name in ("_cpu", "_cuda"):  # an editable installation would bring those of the sources that it is of
        (folder / "fastrnn" / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('not built', name='fastrnn.{name}')\n"
        )
    follow(folder, STEPS)
    return folder


def run(scratch, *words):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    env |= {"PYTHONPATH": str(scratch), "COLUMNS": "160", "FASTRNN_BACKEND": "numba"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=scratch, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


needs_numba = pytest.mark.skipif(bool(fastrnn.backend_status()["numba"]), reason="Numba is what runs the row here")


@needs_numba
def test_the_row_that_the_page_adds_is_right(scratch):
    done = run(scratch, "-m", "fastrnn", "check", "relu", "--backend", "numba")
    assert done.returncode == 0 and "all within the bound" in done.stdout, done.stdout
    done = run(scratch, "-m", "pytest", "tests/test_relu.py", "tests/test_layout.py", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    for block in STEPS:
        documents.done.add((block.path, block.line))


@needs_numba
def test_breaking_it_is_noticed(scratch, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(scratch, broken, ignore=shutil.ignore_patterns("__pycache__"))
    path = broken / "fastrnn" / "numba_cpu" / "relu.py"
    text = path.read_text()
    path.write_text(text.replace("zero if x[i] < zero", "zero if x[i] < zero and x[i] > -1"))
    assert path.read_text() != text
    done = run(broken, "-m", "fastrnn", "check", "relu", "--backend", "numba")
    assert done.returncode == 1 and "✗" in done.stdout, done.stdout


def test_the_compiler_takes_the_cpp(scratch):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not compiler:
        pytest.skip("no C++ compiler here")
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    done = subprocess.run([*command, "csrc/cpu/relu.cpp"], cwd=scratch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_that_no_longer_fits_is_noticed(tmp_path):
    """A page that speaks of lines that have changed."""
    (tmp_path / "fastrnn").mkdir()
    Path(tmp_path, "fastrnn", "__init__.py").write_text("import other\n")
    edit = next(block for block in STEPS if block.note == "file: fastrnn/__init__.py")
    with pytest.raises(AssertionError, match="has these lines 0 times"):
        follow(tmp_path, [edit])
