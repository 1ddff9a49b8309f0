"""What several commands need: lists in options, one-line errors, facts about this machine and installation."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fastrnn
from fastrnn.arrays import device

# CuPy, under the names of what is installed: its source, and its wheels for versions of CUDA.
CUPY = ("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x")

# What a shell says of a command that Ctrl-C ended, or SIGTERM.
INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def fail(message: str) -> NoReturn:
    """End the command as bad usage: one line on stderr, exit code 2."""
    typer.echo(f"fastrnn: {message}", err=True)
    raise typer.Exit(2)


def code_of(interrupt: KeyboardInterrupt) -> int:
    """Exit code of a command that this ended."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


@contextmanager
def sigterm_heeded() -> Iterator[None]:
    """SIGTERM as an exception, `Terminated`, so that what is under way can be saved."""

    def terminate(signum: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def chosen(values: Iterable[str] | None, known: Sequence[str], what: str) -> list[str]:
    """The `values` given, repeated or separated by commas; all that are `known` if there are none."""
    names = [name.strip() for value in values or () for name in value.split(",") if name.strip()]
    return [one(name, known, what) for name in dict.fromkeys(names)] or list(known)


def one(value: str, known: Sequence[str], what: str) -> str:
    """The `value` given, which must be one of those `known`."""
    if value not in known:
        fail(f"unknown {what} {value!r}; there are {', '.join(known)}")
    return value


def usable_backends(names: Iterable[str]) -> list[str]:
    """`names`, or the end of the command with the reason why one of them cannot run."""
    status = fastrnn.backend_status()
    for name in names:
        if status[name]:
            fail(f"backend {name!r} cannot run here: {status[name]}")
    return list(names)


def check_files(*paths: Path | None) -> None:
    """End the command before it does any work if a file that it is to write cannot be written."""
    for path in filter(None, paths):
        folder = path.absolute().parent
        if not folder.is_dir():
            fail(f"cannot write {path}: there is no folder {folder}")
        if path.is_dir():
            fail(f"cannot write {path}: it is a folder")
        if not os.access(path if path.exists() else folder, os.W_OK):
            fail(f"cannot write {path}: no permission")


def on_gpu(backend: str) -> bool:
    """Whether a backend that can run here computes on a GPU: ``cuda`` does, unless the simulator stands for one."""
    return backend == "cuda" and device().on_device


def timed_backends() -> list[str]:
    """The backends that run here, but for the simulator, whose times say nothing."""
    return [name for name in fastrnn.available_backends() if name != "cuda" or on_gpu(name)]


def gpu() -> dict[str, str]:
    """Name, compute capability and driver of the current CUDA device, where backend ``cuda`` can run."""
    return dict(import_module("fastrnn.cuda.arrays").facts())


def hardware() -> str:
    """Model of the processor, and how many of its CPUs this process may use."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or not x86
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cpus} CPUs"


def versions() -> dict[str, str]:
    """Versions of Python, of fastrnn, and of what it works with; "" where that is not installed."""
    found = {"python": platform.python_version(), "fastrnn": fastrnn.__version__}
    for name in ("numpy", "scipy", "numba", "torch", "onnxruntime", *CUPY):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    cupy = next(filter(None, [found.pop(name) for name in CUPY]), "")
    return found | {"cupy": cupy}


def compiled() -> Any:
    """The module of the C++ kernels, or None where they were not built."""
    return None if fastrnn.backend_status()["cpu"] else import_module("fastrnn._cpu")


def isa() -> str:
    """Instruction set that the C++ kernels run; "" where they were not built."""
    cpu = compiled()
    return "" if cpu is None else str(cpu.isa())


def checkout() -> Path | None:
    """Folder of the source checkout that this fastrnn is imported from, or None for an installed copy."""
    root = Path(fastrnn.__file__).resolve().parents[1]
    return root if (root / "csrc" / "kernels.h").exists() else None


def commit() -> str:
    """Commit of the checkout, with ``-dirty`` where its code has changes; "" for an installed copy.

    What is recorded of code, in docs and in tables, does not count as a change of it: each record would taint the next.
    """
    root = checkout()
    if root is None or not (root / ".git").exists():
        return ""
    describe = ["describe", "--always", "--abbrev=10", "--exclude=*"]
    code = [".", ":!docs", ":!*.md", ":!bench/*.csv", ":!bench/*.json"]
    changed = ["status", "--porcelain", "--untracked-files=no", "--", *code]
    try:
        name, changes = (
            subprocess.run(["git", "-C", str(root), *one], capture_output=True, text=True, check=True).stdout.strip()
            for one in (describe, changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # no git, or nothing committed
    return name + ("-dirty" if changes else "")


def console() -> Console:
    """Where reports go: as wide as the terminal, and wide enough for whole lines in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def interactive() -> bool:
    """Whether someone watches: a progress bar is worth drawing."""
    return sys.stderr.isatty()


def progress_bar(title: str, *fields: str, wanted: bool = True) -> Progress:
    """A bar on the error output, where someone watches, that shows `fields` of its task beside what is done."""
    return Progress(
        TextColumn(f"[bold]{title}[/]"),
        BarColumn(None),
        MofNCompleteColumn(),
        *map(TextColumn, fields),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        expand=True,
        disable=not (wanted and interactive()),
    )
