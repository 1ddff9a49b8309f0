"""What packages say of themselves, and the checks of `make dist`: each must see what it is there to see."""

import importlib.util
import io
import re
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

import fastrnn
from fastrnn.cli import common

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
FILES = ["fastrnn/__init__.py", "bench/common.py", "csrc/kernels.h", "bench/results.csv", ".github/workflows/w.yml"]


@pytest.fixture(scope="module")
def packages():
    spec = importlib.util.spec_from_file_location("packages", ROOT / ".ci" / "packages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- metadata ------------------------------------------------------------------------------------------------------


def test_wheels_are_built_for_every_python_that_the_classifiers_name():
    named = re.findall(r"Python :: 3\.(\d+)\"", PYPROJECT)
    build = re.search(r"^build = \[(.*)\]", PYPROJECT, flags=re.M)[1]
    built = re.findall(r"\"cp3(\d+)(t?)-\*\"", build)
    assert [minor for minor, free in built if not free] == named
    assert ("Free Threading" in PYPROJECT) == any(free for _, free in built)
    assert f'requires-python = ">=3.{named[0]}"' in PYPROJECT
    assert f'target-version = "py3{named[0]}"' in PYPROJECT


def test_every_folder_of_sources_is_in_the_source_distribution():
    manifest = (ROOT / "MANIFEST.in").read_text()
    grafted = set(re.findall(r"^graft (\S+)$", manifest, flags=re.M))
    assert grafted >= {"bench", "csrc", "tests", "docs", "examples", ".ci"}
    (included,) = re.findall(r"^include (.+)$", manifest, flags=re.M)
    for name in [*grafted, *included.split()]:
        assert (ROOT / name).exists(), name


def test_licences_are_there(packages):
    for name in packages.LICENSES:
        assert "Copyright (c)" in (ROOT / name).read_text()
    assert 'license-files = ["LICENSE", "licenses/*.txt"]' in PYPROJECT
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "licenses").iterdir()} == set(packages.LICENSES[1:])


def test_the_workflow_runs_targets_that_exist():
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    targets = re.findall(r"make (\S+)", workflow.split("jobs:")[1])
    assert targets == ["dist", "dist-check"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: ## " in makefile for target in targets)


def test_what_builds_the_packages_is_pinned(packages):
    lines = [line for line in packages.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pinned = {match[1].lower() for line in lines if (match := re.fullmatch(r"([\w.-]+)==[\w.]+", line))}
    assert len(pinned) == len(lines)
    (required,) = re.findall(r"^requires = \[(.*)\]", PYPROJECT, flags=re.M)
    assert {re.match(r"[\w-]+", name)[0] for name in re.findall(r'"(.+?)"', required)} | set(packages.TOOLS) <= pinned


# ---- contents ------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(packages, tmp_path):
    """Makes a wheel that is right, but for what is left out, added or said otherwise."""

    def make(without="", more=(), version=fastrnn.__version__):
        info = "fastrnn-1.dist-info"
        names = ["fastrnn/__init__.py", "fastrnn/bench/common.py", "fastrnn/_cpu.cpython-311.so"]
        names += [f"{info}/{name}" for name in ("RECORD", "WHEEL", "entry_points.txt", "top_level.txt")]
        names += [f"{info}/licenses/{name}" for name in packages.LICENSES]
        path = tmp_path / "fastrnn-1-cp311-cp311-manylinux_2_28_x86_64.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                f"{info}/METADATA", f"Name: fastrnn\nVersion: {version}\nLicense-Expression: MIT\n\nText\n"
            )
            for name in [*names, *more]:
                if not without or without not in name:
                    archive.writestr(name, "")
        return path

    return make


def test_a_wheel_has_what_it_should_have(packages, wheel):
    assert packages.check_wheel(wheel(), FILES, ("_cpu",)) == 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": ["fastrnn/notes.txt"]}, "stray: fastrnn/notes.txt"),
        ({"more": ["bench/common.py"]}, "stray: bench/common.py"),
        ({"without": "licenses/LICENSE"}, "missing: fastrnn-1.dist-info/licenses/LICENSE"),
        ({"without": "bench"}, "missing: fastrnn/bench/common.py"),
        ({"without": "_cpu"}, "0 modules fastrnn._cpu"),
        ({"more": ["fastrnn/_cpu.cpython-312.so"]}, "2 modules fastrnn._cpu"),
        ({"more": ["fastrnn/_cuda.cpython-311.so"]}, "stray: fastrnn/_cuda.cpython-311.so"),
        ({"version": "9.9"}, "Version is '9.9', expected"),
    ],
)
def test_a_wheel_with_something_wrong(packages, wheel, change, said):
    with pytest.raises(packages.Wrong, match=re.escape(said)):
        packages.check_wheel(wheel(**change), FILES, ("_cpu",))


def test_a_wheel_that_is_too_large(packages, wheel, monkeypatch):
    path = wheel()
    monkeypatch.setattr(packages, "LARGEST_WHEEL", path.stat().st_size - 1)
    with pytest.raises(packages.Wrong, match="are the most"):
        packages.check_wheel(path, FILES, ("_cpu",))


@pytest.mark.parametrize(
    ("change", "said"), [((), ""), (("a.so",), "stray: a.so"), (("-csrc/kernels.h",), "missing: csrc")]
)
def test_a_source_distribution_has_the_tracked_files(packages, tmp_path, change, said):
    names = {*FILES, "PKG-INFO", "setup.cfg", "fastrnn.egg-info/PKG-INFO"} - {".github/workflows/w.yml"}
    names = (names | set(change)) - {name[1:] for name in change} - {name for name in change if name[0] == "-"}
    path = tmp_path / "fastrnn-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(names):
            archive.addfile(tarfile.TarInfo(f"fastrnn-1/{name}"), io.BytesIO())
    if said:
        with pytest.raises(packages.Wrong, match=said):
            packages.check_sdist(path, FILES)
    else:
        assert packages.check_sdist(path, FILES) == len(names)


# ---- instructions --------------------------------------------------------------------------------------------------


SYMBOLS = """
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     1: 0000000000000000     0 FILE    LOCAL  DEFAULT  ABS lstm.cpp
     2: 0000000000001000    16 FUNC    LOCAL  DEFAULT   12 gates
     3: 0000000000000000     0 FILE    LOCAL  DEFAULT  ABS isa_avx2.cpp
     4: 0000000000002000    16 FUNC    LOCAL  DEFAULT   12 tile2
     5: 0000000000000000     0 FILE    LOCAL  DEFAULT  ABS isa_avx512.cpp
     6: 0000000000003000    16 FUNC    LOCAL  DEFAULT   12 tile512
     7: 0000000000004000    16 FUNC    WEAK   DEFAULT   12 grow
"""
BASELINE = "mulps  %xmm1,%xmm0"


@pytest.mark.parametrize(
    ("address", "instruction", "said"),
    [
        ("1000", BASELINE, []),
        ("1000", "verr   %ax", []),
        ("1000", "vmulps %xmm2,%xmm1,%xmm0", ["f: AVX"]),
        ("2000", "vmulps %ymm2,%ymm1,%ymm0", []),
        ("2000", "vmulps %zmm2,%zmm1,%zmm0", ["f: AVX-512"]),
        ("2000", "vmulps %ymm17,%ymm1,%ymm0", ["f: AVX-512"]),
        ("2000", "kmovw  %eax,%k1", ["f: AVX-512"]),
        ("3000", "vmulps %zmm2,%zmm1,%zmm0{%k1}", []),
        ("3000", "tdpbf16ps %tmm2,%tmm1,%tmm0", ["f: AMX"]),
        # A function that the linker may take from isa_avx512.cpp and give to all.
        ("4000", "vmulps %zmm2,%zmm1,%zmm0", ["f: AVX-512"]),
    ],
)
def test_instructions_that_not_every_processor_has(packages, address, instruction, said):
    disassembly = f"\n000000000000{address} <f>:\n    {address}:\t{BASELINE}\n    {address}:\t{instruction}\n"
    assert packages.leaks(SYMBOLS, disassembly)[0] == said


@pytest.mark.skipif(
    common.compiled() is None or not which("objdump"),
    reason="the C++ kernels were not built, or binutils are not installed",
)
def test_the_kernels_that_are_built_run_on_every_x86_64(packages, monkeypatch):
    module = Path(find_spec("fastrnn._cpu").origin)
    if packages.stripped(module) or "x86_64" not in module.name:
        pytest.skip("no names of functions in the module, or another processor")
    counts = packages.check_instructions(module)
    assert counts["isa_avx2.cpp: AVX"] > 1000 and counts["isa_avx512.cpp: AVX-512"] > 1000
    # The check sees them: without leave for one file, its functions are named.
    monkeypatch.delitem(packages.ALLOWED, "isa_avx512.cpp")
    with pytest.raises(packages.Wrong, match="AVX-512"):
        packages.check_instructions(module)
