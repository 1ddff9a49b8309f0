"""Registers, shared memory and spills of the CUDA kernels, as ptxas reports them when they are compiled.

Used by the build (CMakeLists.txt), and nothing but the standard library:

``compile NVCC ARGUMENT...``
    Runs the compiler, which was told ``-Xptxas=-v``, and keeps what ptxas says in ``OBJECT.ptxas``; anything else that
    the compiler says is passed on.
``check [--time-loops REGEX] [--to FILE] OBJECT...``
    Prints a table of all kernels, into FILE too. Fails if one of them spills registers whose ``file:kernel`` matches
    REGEX: in a time loop, every step would wait for them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# Lines of a report; nvcc and ptxas word every warning and error otherwise.
REPORTED = re.compile(r"^ptxas info|^\s+\d+ bytes stack frame|^\s*$")


class Kernel(NamedTuple):
    """One kernel on one architecture; sizes in bytes."""

    file: str
    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    stores: int
    loads: int

    @property
    def spills(self) -> bool:
        return self.stack + self.stores + self.loads > 0


def compile_with(command: list[str]) -> int:
    """Run the compiler; keep the report of ptxas."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    report = [line for line in done.stderr.splitlines() if REPORTED.match(line)]
    others = [line for line in done.stderr.splitlines() if not REPORTED.match(line)]
    if others:
        print("\n".join(others), file=sys.stderr)
    if "-o" in command and done.returncode == 0:
        _report_of(Path(command[command.index("-o") + 1])).write_text("\n".join(report) + "\n")
    return done.returncode


def _report_of(compiled: Path) -> Path:
    return compiled.with_name(compiled.name + ".ptxas")


def kernels_of(file: str, report: str) -> list[Kernel]:
    """The kernels of one report, named as the compiler names them."""
    found: list[Kernel] = []
    name = architecture = of = ""
    frame = (0, 0, 0)
    for line in report.splitlines():
        if match := ENTRY.search(line):
            name, architecture = match.groups()
            frame = (0, 0, 0)
        elif match := PROPERTIES.search(line):
            of = match[1]
        elif (match := STACK.search(line)) and of == name:  # not of a function that is called
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := USED.search(line)) and name:
            shared = sum(map(int, SHARED.findall(line)))
            found.append(Kernel(file, name, architecture, int(match[1]), shared, *frame))
            name = ""
    return found


def _readable(names: list[str]) -> dict[str, str]:
    """Mangled names as in the source, without namespaces and parameters, where c++filt is here."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=False)
    plain = done.stdout.splitlines() if done.returncode == 0 else []
    return dict(zip(names, map(_short, plain), strict=True)) if len(plain) == len(names) else {n: n for n in names}


def _short(text: str) -> str:
    text = text.replace("(anonymous namespace)", "_").removeprefix("void ")
    depth, end = 0, len(text)
    for i, c in enumerate(text):  # the parameters begin at the first ( outside of < >
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    return re.sub(r"\b(?:\w+::)+", "", text[:end])


def read(objects: list[Path]) -> list[Kernel]:
    """All kernels of the object files, with readable names."""
    found: list[Kernel] = []
    for compiled in objects:
        report = _report_of(compiled)
        if not report.exists():
            raise SystemExit(f"✗ CUDA: there is no report of ptxas beside {compiled}: was it compiled otherwise?")
        source = re.sub(r"\.(o|obj)$", "", compiled.name)
        found += kernels_of(source, report.read_text())
    readable = _readable(list(dict.fromkeys(kernel.name for kernel in found)))
    found = [kernel._replace(name=readable[kernel.name]) for kernel in found]
    return sorted(found, key=lambda k: (k.file, k.name, _number(k.architecture), k.architecture))


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture) or 0)


def table(kernels: list[Kernel]) -> str:
    """A line a kernel and architecture."""
    heads = ("file", "kernel", "architecture", "registers", "shared", "stack", "spill stores", "spill loads", "")
    rows = [heads] + [(k.file, k.name, k.architecture, *map(str, k[3:]), "spills" * k.spills) for k in kernels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def in_time_loop(kernel: Kernel, time_loops: re.Pattern[str]) -> bool:
    return bool(time_loops.search(f"{kernel.file}:{kernel.name}"))


def check(objects: list[Path], time_loops: re.Pattern[str], to: str) -> int:
    """Print the table; 1 if a time loop spills."""
    kernels = read(objects)
    text = table(kernels)
    if to:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        Path(to).write_text(text + "\n")
    print(text)
    loops = [kernel for kernel in kernels if in_time_loop(kernel, time_loops)]
    wrong = [kernel for kernel in loops if kernel.spills]
    for k in wrong:
        print(
            f"✗ CUDA: {k.name} of {k.file} spills on {k.architecture}: {k.stores} bytes stored, {k.loads} loaded, "
            f"{k.stack} bytes of stack; no kernel of a time loop may"
        )
    if not wrong:
        spilling = sum(kernel.spills for kernel in kernels)
        rest = len(kernels) - len(loops)
        print(f"CUDA: of {len(loops)} kernels of time loops none spills registers, of {rest} others {spilling}")
    return 1 if wrong else 0


def main() -> int:
    if sys.argv[1:2] == ["compile"]:
        return compile_with(sys.argv[2:])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description="Registers, shared memory and spills of the CUDA kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    checked = commands.add_parser("check")
    checked.add_argument("--time-loops", type=re.compile, default=re.compile("$^"), metavar="REGEX")
    checked.add_argument("--to", default="", metavar="FILE")
    checked.add_argument("objects", nargs="+", type=Path)
    given = parser.parse_args()
    return check(given.objects, given.time_loops, given.to)


if __name__ == "__main__":
    sys.exit(main())
