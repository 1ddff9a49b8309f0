"""The process in which files are read: one file after the other, and at the first fault it ends.

It says what it is doing in a `Board`, memory that whoever started it sees as well, so that a process that hangs or dies
is found, with the file that did it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import mmap
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from fuzz_files.mutations import Form, Mutator

CASE, FAULT, TARGET, BOARD = "case", "fault.txt", "target.txt", "board"
FAULTY = 70  # exit code
# Of NumPy and PyTorch. What HDF5 is refused is no fault: it asks for all that a header announces, but touches no more
# than there is to be read.
_NO_MEMORY = re.compile(r"Unable to allocate|can't allocate memory")


@dataclass(frozen=True)
class Reader:
    """Something that reads files of users.

    Attributes
    ----------
    file : str
        Name of the file that is changed, in a folder of its own.
    prepare : callable
        ``prepare(folder)`` fills the folder with all that reading needs, and returns valid contents of the file. The
        first of them is the file's own.
    read : callable
        ``read(folder)`` reads the file and uses what it read, as the program does.
    form : callable, optional
        ``form(seeds)`` makes the `Form` by which values inside of the file are changed.
    refusals : tuple of exceptions
        What the reader documents for a file that it cannot use; the message must name the file.
    modules : tuple of str
        What reads, and is watched: libFuzzer looks for files that take new ways through these.
    """

    file: str
    prepare: Callable[[Path], list[bytes]]
    read: Callable[[Path], Any]
    form: Callable[[list[bytes]], Form] | None = None
    refusals: tuple[type[Exception], ...] = (ValueError,)
    modules: tuple[str, ...] = ()


class Board:
    """Numbers that two processes share."""

    FIELDS = ("files", "accepted", "refused", "since", "reading", "slowest", "peak", "done")

    def __init__(self, path: Path) -> None:
        if not path.exists():  # that of who starts the process
            path.write_bytes(bytes(8 * len(self.FIELDS)))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, name: str) -> int:
        return struct.unpack_from("q", self._memory, 8 * self.FIELDS.index(name))[0]

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * self.FIELDS.index(name), value)


class Fault(Exception):
    """A reader did what it must not."""


def _status(key: str) -> int:
    """Kilobytes, out of what Linux says of this process; 0 elsewhere."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(key)), 0)
    except OSError:
        return 0


def _begin_peak() -> int:
    """Let the peak of resident memory begin anew, and say where."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return 0
    return _status("VmRSS:")


def limit_memory(more: int) -> None:
    """Let this process have so many bytes of addresses more than it has now, where the system can hold it to that."""
    now = _status("VmSize:") * 1024
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Trial:
    """A reader in a folder, and the judge of what it does with each file."""

    def __init__(self, reader: Reader, work: Path, memory: int) -> None:
        self.reader, self.memory = reader, memory
        self.board = Board(work / BOARD)
        self.folder = work / CASE
        self.aside = work / "tmp"  # where temporary files would be
        for folder in (self.folder, self.aside):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        tempfile.tempdir = str(self.aside)
        self.seeds = reader.prepare(self.folder)
        self.path = self.folder / reader.file
        (work / TARGET).write_text(reader.file)
        self.held = self._names()

    def warm_up(self) -> None:
        """Read the valid files: what they import and keep is not held against the others."""
        for seed in self.seeds:
            self.path.write_bytes(seed)
            self.reader.read(self.folder)
        self.path.write_bytes(self.seeds[0])
        if self._names() != self.held:
            raise Fault(f"leaves files behind: {', '.join(sorted(self._names() ^ self.held))}")
        gc.collect()

    def __call__(self, data: bytes) -> None:
        """Read one file; raises `Fault`, or does not come back."""
        board = self.board
        self.path.write_bytes(data)
        before = _begin_peak()
        limit_memory(self.memory)  # of this file: HDF5 keeps for good what it announced to itself of earlier ones
        board["since"] = time.monotonic_ns()
        board["reading"] = 1
        try:
            self.reader.read(self.folder)
            refused = False
        except self.reader.refusals as error:
            refused = True
            self._judge(error)
        except Exception as error:
            raise Fault(f"raises {_told(error)}") from error
        took = time.monotonic_ns() - board["since"]
        board["reading"] = 0
        board["since"] = time.monotonic_ns()
        board["slowest"] = max(board["slowest"], took)
        board["peak"] = max(board["peak"], _status("VmHWM:") - before if before else 0)
        if self._names() != self.held:
            raise Fault(f"leaves files behind, or takes some away: {', '.join(sorted(self._names() ^ self.held))}")
        if self.path.read_bytes() != data:
            self.path.write_bytes(data)  # what is kept is what was read
            raise Fault("changes the file that it reads")
        self._check_open()
        board["refused" if refused else "accepted"] += 1
        board["files"] += 1

    def _judge(self, error: Exception) -> None:
        """What was refused must be refused in words that help, and not for want of memory."""
        if self.path.name not in str(error):
            raise Fault(f"does not name the file: {_told(error)}") from error
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, MemoryError) or _NO_MEMORY.search(str(link)):
                raise Fault(f"asks for more memory than there may be: {_told(link)}") from error
            link = link.__cause__ or link.__context__

    def _names(self) -> set[str]:
        return {str(path.relative_to(folder)) for folder in (self.folder, self.aside) for path in folder.rglob("*")}

    def _open(self) -> list[str]:
        names = []
        for number in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        return [name for name in names if name.startswith(str(self.path))]

    def _check_open(self) -> None:
        if not os.path.isdir("/proc/self/fd") or not self._open():
            return
        gc.collect()
        if self._open():
            raise Fault(f"leaves the file open: {self._open()[0]}")


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _random(trial: Trial, mutator: Mutator, files: int, seed: int) -> None:
    """Changed files without libFuzzer."""
    for data in trial.seeds:
        trial(data)
    rng = random.Random(seed)
    while trial.board["files"] < files:
        trial(mutator(rng.choice(trial.seeds), rng))


def _guided(trial: Trial, mutator: Mutator, files: int, seed: int, work: Path) -> None:
    """Changed files of libFuzzer, which prefers those that take new ways through the reader, and ends the process."""
    import atheris  # type: ignore[import-untyped]

    corpus = work / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(trial.seeds):
        (corpus / f"seed-{number}").write_bytes(data)

    def one(data: bytes) -> None:
        with _told_of(work):
            if trial.board["files"] < files:
                trial(data)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        made = mutator(data, random.Random(seed), lambda given: atheris.Mutate(given, min(most, mutator.most)))
        return made[:most]

    # libFuzzer also runs some files that are not counted here; it is not told of times and memory, which are watched.
    options = [
        f"-runs={files + 100}",
        f"-seed={seed + 1}",
        f"-max_len={mutator.most}",
        "-timeout=3600",
        "-rss_limit_mb=0",
    ]
    options += ["-len_control=0", "-handle_segv=0", "-handle_abrt=0", "-handle_bus=0", "-handle_fpe=0", "-handle_ill=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={work}/", str(corpus)], one, custom_mutator=changed)
    atheris.Fuzz()


@contextmanager
def _told_of(work: Path) -> Iterator[None]:
    """Write down what went wrong, and end at once: no handler of anybody comes between."""
    try:
        yield
    except BaseException as error:
        text = str(error) if isinstance(error, Fault) else f"fails: {_told(error)}"
        (work / FAULT).write_text(f"{text}\n\n{traceback.format_exc()}", encoding="utf-8", errors="replace")
        sys.stdout.flush()
        os._exit(FAULTY)


def _load(table: str, name: str, watched: bool) -> Reader:
    """The reader; `watched` if libFuzzer is to be told which ways through its modules are taken."""
    reader: Reader = importlib.import_module(table).READERS[name]
    for module in reader.modules:
        importlib.import_module(module)
    if watched:
        import atheris

        # atheris.instrument_imports knows only whole packages, and takes a minute for that of PyTorch.
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType) and thing.__module__ in reader.modules:
                atheris.instrument_func(thing)
    return reader


def main() -> None:
    """Read changed files with the readers named, one after the other; of libFuzzer's, with one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("readers", nargs="+")
    parser.add_argument("--table", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--files", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--repeat", type=Path)
    options = parser.parse_args()
    faulthandler.enable()
    for name in options.readers:
        work = options.work / name
        with _told_of(work):
            reader = _load(options.table, name, options.guided)
            trial = Trial(reader, work, options.memory)
            trial.warm_up()
            if options.repeat is not None:
                trial(options.repeat.read_bytes())
            else:
                mutator = Mutator(None if reader.form is None else reader.form(trial.seeds), trial.seeds)
                if options.guided:
                    _guided(trial, mutator, options.files, options.seed, work)
                _random(trial, mutator, options.files, options.seed)
            trial.board["done"] = 1


if __name__ == "__main__":
    main()
