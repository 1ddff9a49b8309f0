"""Campaigns: processes in which readers read changed files, watched for those that hang, die or complain."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuzz_files.child import BOARD, CASE, FAULT, TARGET, Board

ROOT = Path(__file__).resolve().parents[1]
TABLE = "fuzz_files.readers"
KEPT = ROOT / "build" / "fuzz_files"
MEMORY = 1 << 30  # bytes of addresses that reading may take beyond those of the idle process
SECONDS = 5.0  # for one file
STOPPED = "was stopped"
_IDLE = 120.0  # for everything between two files: imports, valid files, mutations
_POLL = 0.02
# One thread each: the process's addresses are counted, and a thread's stack and heap take some.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "FASTRNN_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What came of a reader.

    Attributes
    ----------
    reader : str
    files, accepted, refused : int
        Files read, and how many of them gave a result or the documented error.
    slowest : float
        Seconds of the slowest file.
    peak : int
        Bytes of memory that came at most to those that the process held before a file.
    edges : int or None
        Edges of the readers' code that were covered, as libFuzzer counts them; None without it.
    fault : str
        What went wrong with the last file; empty if nothing did.
    kept : Path or None
        That file.
    """

    reader: str
    files: int
    accepted: int
    refused: int
    slowest: float
    peak: int
    edges: int | None = None
    fault: str = ""
    kept: Path | None = None


def guided() -> bool:
    """Whether libFuzzer is installed, by the name of atheris."""
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def run(
    readers: Sequence[str],
    *,
    files: int,
    seed: int = 0,
    coverage: bool = False,
    table: str | None = None,
    keep: Path | None = None,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    repeat: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome]:
    """Let readers read changed files, one reader after the other in one process.

    Parameters
    ----------
    readers : sequence of str
        Names in the table. With `coverage` one.
    files : int
        Changed files for each.
    seed : int
        Of the changes: without `coverage` the same seed gives the same files.
    coverage : bool
        Whether libFuzzer chooses what to change, by the code that it reaches.
    table : str
        The module whose ``READERS`` is the table. Default: `readers`.
    keep : path, optional
        Folder for the file of a fault. Default: ``build/fuzz_files``.
    seconds : float
        Time limit of a file.
    memory : int
        Bytes that reading may take.
    repeat : path, optional
        Read this file alone instead.
    stopped : callable
        Asked now and then whether to end.

    Yields
    ------
    Outcome
        Of each reader as it is done. After one with a fault there is none.
    """
    with tempfile.TemporaryDirectory(prefix="fastrnn-fuzz-") as folder:
        work = Path(folder)
        command = [sys.executable, "-m", "fuzz_files.child", *readers, "--table", table or TABLE, "--work", folder]
        command += ["--files", str(files), "--seed", str(seed), "--memory", str(memory)]
        command += ["--guided"] if coverage else []
        command += [] if repeat is None else ["--repeat", str(repeat.absolute())]
        for name in readers:
            (work / name).mkdir()
            Board(work / name / BOARD)
        with open(work / "log.txt", "wb") as log, _started(command, log) as process:
            for name in readers:
                outcome = _watch(process, name, work, files if repeat is None else 1, seconds, keep, stopped)
                yield outcome
                # Not by the process: it may be at the next reader, and at that one's end.
                if outcome.fault or (work / name / FAULT).exists():
                    return


@contextmanager
def _started(command: list[str], log: object) -> Iterator[subprocess.Popen[bytes]]:
    paths = [str(ROOT), *sys.path]
    environment = os.environ | dict.fromkeys(_THREADS, "1") | {"MALLOC_ARENA_MAX": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _watch(
    process: subprocess.Popen[bytes],
    name: str,
    work: Path,
    files: int,
    seconds: float,
    keep: Path | None,
    stopped: Callable[[], bool],
) -> Outcome:
    """Wait until a reader is done, or something is wrong with it."""
    board = Board(work / name / BOARD)
    fault, seen, waited, last = "", (0, 0), 0.0, time.monotonic()
    while not fault:
        ended = process.poll()
        if board["done"] or (ended == 0 and board["files"] >= files):
            break
        now, state = time.monotonic(), (board["since"], board["reading"])
        # By the time that this process had, too: a machine that slept, or was stopped, hangs nowhere.
        waited = waited + min(now - last, 10 * _POLL) if state == seen else 0.0
        seen, last = state, now
        if ended is not None:
            fault = _why(ended, work / name / FAULT, bool(board["reading"]))
        elif stopped():
            fault = STOPPED
        elif board["reading"] and waited > seconds:
            fault = f"takes more than {seconds:g} seconds"
        elif waited > _IDLE:
            fault = f"hangs before the next file: {waited:.0f} seconds without one"
        else:
            time.sleep(_POLL)
    if fault:
        process.kill()
        process.wait()
    log = (work / "log.txt").read_text(errors="replace")
    covered = re.findall(r"cov: (\d+)", log)
    kept = None
    if fault and fault != STOPPED:
        kept = _keep(name, work / name, keep, fault, log)
    return Outcome(
        name, board["files"], board["accepted"], board["refused"], board["slowest"] / 1e9, 1024 * board["peak"],
        int(covered[-1]) if covered else None, fault, kept,
    )  # fmt: skip


def _why(code: int, told: Path, reading: bool) -> str:
    if told.exists():
        return told.read_text(encoding="utf-8").partition("\n")[0]
    where = "" if reading else " between two files"
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"ends the process {how}{where}"


def _keep(name: str, work: Path, keep: Path | None, fault: str, log: str) -> Path | None:
    """The file that was read last, and beside it what was said."""
    if not (work / TARGET).exists():  # it never came to a file
        return None
    target = work / CASE / (work / TARGET).read_text()
    folder = KEPT if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    content = target.read_bytes()
    kept = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:10]}{target.suffix}"
    kept.write_bytes(content)
    told = work / FAULT
    text = told.read_text(encoding="utf-8") if told.exists() else f"{fault}\n\n{log[-4000:]}"
    kept.with_name(kept.name + ".txt").write_text(text, encoding="utf-8", errors="replace")
    return kept
