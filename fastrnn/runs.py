"""What training runs have in common: files that are whole, and where they are kept; a log; signals that can wait."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["cache_dir", "deferred_signals", "log_line", "log_records", "replaced", "write_whole"]

_CHUNK = 1 << 24  # bytes handed to the operating system at a time


def cache_dir() -> Path:
    """The folder for files made once: ``FASTRNN_CACHE``, or ``fastrnn`` in the user's cache folder of this platform."""
    named = os.environ.get("FASTRNN_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastrnn"


def write_whole(path: Path, content: Any) -> None:
    """Write a file so that at any moment it is the old one or the new one, and whole.

    It is written aside as ``PATH.part``, flushed to the disk and renamed. One process at a time may write to a path.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    content : bytes-like
        What is to be in it.

    Raises
    ------
    OSError
        As the system raised it. The file that was there before is still there, and nothing is left aside.
    """
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            for start in range(0, len(content), _CHUNK):
                file.write(content[start : start + _CHUNK])
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk once its folder is; Windows has no such call
        with suppress(OSError):  # nor have some network file systems
            folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def replaced(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """A name beside `path`, for a file that others write; it then takes the place of `path`, or goes away on errors."""
    aside = path.with_name(path.name + suffix)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        with suppress(OSError):
            aside.unlink()


def log_line(record: dict[str, Any]) -> str:
    """A record as a line of a log."""
    return json.dumps(record) + "\n"


def log_records(path: Path, step: int) -> list[dict[str, Any]]:
    """Records of a log up to a step; a half-written line at its end is left out, and of no file there are none."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int and record["step"] <= step:
                records.append(record)
    return records


@contextmanager
def deferred_signals(note: Callable[[int], Any]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a step.

    Parameters
    ----------
    note : callable
        Called as ``note(signum)`` when the first of them comes; whoever is in the block is to leave it soon after, and
        raise the signal again. The second one acts at once, as do all of them after the block.
    """
    before: dict[int, Any] = {}
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            restore()
            signal.raise_signal(signum)
        asked = True
        note(signum)

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        before.clear()

    if threading.current_thread() is threading.main_thread():  # elsewhere nobody may set handlers
        for signum in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(signum)
            if handler not in (signal.SIG_IGN, None):  # ignored on purpose; not set from Python
                before[signum] = signal.signal(signum, ask)
    try:
        yield
    finally:
        restore()
