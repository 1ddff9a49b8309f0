"""``fastrnn bench --instructions``: how many instructions a call executes, which no other program on a machine changes.

The calls run in another process, on one thread, under callgrind (Nethercote & Seward 2007), which writes a file of
counts whenever it comes to a function that is named to it: `MARKER`, called before and after each call.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrnn.cli import common
from fastrnn.cli.bench_timing import Job
from fastrnn.runs import json_value

# An exported function of the C++ module, which does nothing; `_cpu.mark` calls it.
MARKER = "fastrnn_mark"
# Calls before the one that counts: the first allocate and fill caches of Python's.
WARM_UP = 2

Row = dict[str, Any]


def smaller(jobs: Sequence[Job]) -> list[Job]:
    """Each kernel's first job with half of every size: callgrind is some fifty times slower than the machine."""
    first = {(job.benchmark.kernel, job.mode, job.dtype): job for job in reversed(jobs)}
    return [
        replace(job, shape=tuple(-(-size // 2) for size in job.shape))
        for job in jobs
        if first[job.benchmark.kernel, job.mode, job.dtype] is job
    ]


def check(jobs: Sequence[Job], ours: str) -> list[Job]:
    """The jobs that can be counted, or the end of the command if counting is impossible."""
    from fastrnn.cli.bench import ON_TORCH

    if ours != "cpu":
        common.fail(f"--instructions counts those of the C++ kernels, backend 'cpu', not of {ours!r}")
    if which("valgrind") is None:
        common.fail("--instructions needs valgrind, which is not installed (apt install valgrind)")
    counted = [job for job in jobs if job.row not in ON_TORCH]
    if not counted:
        common.fail(f"--instructions counts those of our kernels; in {jobs[0].row!r} PyTorch's would be counted, too")
    return counted


def count(jobs: Sequence[Job]) -> list[Row]:
    """A row for each job, in order."""
    wanted = [[job.row, job.benchmark.kernel, job.shape, job.mode, job.dtype] for job in jobs]
    environment = {name: value for name, value in os.environ.items() if name not in ("FASTRNN_ISA", "FASTRNN_BACKEND")}
    environment |= {"PYTHONHASHSEED": "0", "FASTRNN_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fastrnn-") as folder:
        out = Path(folder) / "counts"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARKER}"]
        command += [sys.executable, "-m", "fastrnn.cli.bench_instructions", json.dumps(wanted)]
        with _running(command, environment) as process:
            said = _wait(process, out, jobs)
        dumps = sorted(Path(folder).glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        if process.returncode or len(dumps) != 2 * len(jobs):
            lines = [line for line in said.splitlines() if line and not line.startswith("==")]
            reason = lines[-1] if process.returncode and lines else "it met no mark in the compiled module"
            common.fail(f"callgrind counted nothing: {reason}")
        facts = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        # Each call lies between a pair of marks; what is between pairs makes the next call ready.
        return [_row(job, dump, facts) for job, dump in zip(jobs, dumps[1::2], strict=True)]


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[str], out: Path, jobs: Sequence[Job]) -> str:
    """What the process said, once it has ended; shows how far it is."""
    with common.progress_bar("callgrind", "{task.description}") as bar:
        task = bar.add_task("begins", total=len(jobs))
        while True:
            try:
                return process.communicate(timeout=0.5)[0]
            except subprocess.TimeoutExpired:
                done = len(list(out.parent.glob("counts.*"))) // 2
                bar.update(task, completed=done, description=jobs[min(done, len(jobs) - 1)].title)


def _row(job: Job, dump: Path, facts: dict[str, str]) -> Row:
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), flags=re.M)
    assert found is not None
    return {
        "kernel": job.benchmark.kernel,
        "mode": job.mode,
        "shape": job.size,
        "dtype": job.dtype,
        "instructions": int(found[1]),
        **facts,
    }


# ---- against a baseline --------------------------------------------------------------------------------------------


def read_baseline(path: Path) -> dict[tuple[str, ...], Row]:
    """Rows of an earlier ``--json`` by what was counted, or the end of the command."""
    try:
        rows = json_value(path.read_text())
        assert isinstance(rows, list) and rows
        for row in rows:
            assert isinstance(row["instructions"], int) and 0 < row["instructions"] < 2**63
        return {_key(row): row for row in rows}
    except OSError as error:
        common.fail(f"cannot read {path}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AssertionError):
        common.fail(f"{path} has no counts in it; `fastrnn bench --instructions --json {path}` writes some")


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("kernel", "mode", "shape", "dtype"))


def report(console: Console, rows: list[Row], baseline: dict[tuple[str, ...], Row] | None, below: float) -> list[Row]:
    """Print the counts; return those that are worse than a baseline's by more than allowed."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("kernel", "mode", "shape", "dtype"):
        table.add_column(name)
    for name in ("instructions", *(("baseline", "baseline / now") if baseline is not None else ())):
        table.add_column(name, justify="right")
    worse = []
    for row in rows:
        cells = [str(row[name]) for name in ("kernel", "mode", "shape", "dtype")] + [f"{row['instructions']:,}"]
        before = (baseline or {}).get(_key(row))
        if before is not None:
            ratio = before["instructions"] / row["instructions"]
            cells += [f"{before['instructions']:,}", f"{ratio:.3f}{' ✗' if ratio < below else ''}"]
            if ratio < below:
                worse.append(row)
        elif baseline is not None:
            cells += ["not in it", ""]
        table.add_row(*cells)
    console.print(table)
    return worse


def check_conditions(rows: list[Row], baseline: dict[tuple[str, ...], Row]) -> None:
    """End the command if counts differ for reasons that are no kernel's."""
    known = [(row, baseline[_key(row)]) for row in rows if _key(row) in baseline]
    if not known:
        common.fail("nothing that was counted is in the baseline")
    for row, before in known:
        for name in ("isa", "compiler"):
            if row[name] != before.get(name):
                common.fail(
                    f"the baseline's {name} is {before.get(name)!r}, here it is {row[name]!r}: counts differ for that "
                    f"reason alone; write a new baseline with --instructions --json"
                )


# ---- the process that is counted -----------------------------------------------------------------------------------


def main(wanted: list[list[Any]]) -> None:
    """Make each call ready, call it between two marks, and go on to the next."""
    import gc

    import numpy as np

    import fastrnn
    from fastrnn import _cpu  # type: ignore[attr-defined]
    from fastrnn.cli.bench import load

    print(json.dumps({"isa": _cpu.isa(), "compiler": _cpu.compiler, "fastrnn": fastrnn.__version__}), flush=True)
    mark = _cpu.mark
    for row, kernel, shape, mode, dtype in wanted:
        (benchmark,) = (one for one in load(row) if one.kernel == kernel)
        with fastrnn.backend("cpu"):
            arrays = benchmark.inputs(tuple(shape), np.dtype(dtype).type)
            call = benchmark.run(fastrnn, arrays, mode)
            for _ in range(WARM_UP):
                call()
            gc.collect()
            gc.disable()
            mark()
            call()
            mark()
            gc.enable()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
