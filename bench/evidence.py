"""Keep what a check of the whole library found, and write the table of all of them, docs/evidence.md.

Some checks take too long for every change: sanitizers, fuzzing, planted faults. Each is a target of the Makefile, and
leaves its figures in docs/evidence/NAME.json at its end, with date, commit and machine. ``make evidence`` makes one
table of these files.

    python bench/evidence.py                                  # as `make evidence`: write the table
    python bench/evidence.py record fuzz --tried "33 functions, 40,000 inputs" --outcome "no fault" --seconds 300
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn.cli import common
from fastrnn.runs import write_whole

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "evidence"
PAGE = ROOT / "docs" / "evidence.md"


@dataclass(frozen=True)
class Check:
    """What the table says of a check, whatever a run of it found."""

    command: str
    subject: str
    page: str = ""  # of docs, with the details


CHECKS = {
    "sanitize": Check("make sanitize", "C++ kernels under Address-, UndefinedBehavior- and ThreadSanitizer"),
    "fuzz": Check("make fuzz", "Random arguments of every function: the oracle's result or the documented error"),
    "fuzz-files": Check("make fuzz-files", "Mutated files for every reader: a result or the documented error"),
    "neighbours": Check("make neighbours", "Processes, threads, other libraries' pools, signals, little memory"),
    "accuracy": Check("make accuracy", "Errors where rounding hurts most, beside NumPy's and PyTorch's", "accuracy.md"),
    "packages": Check("make dist dist-check", "Packages, installed where nothing can be compiled"),
    "docs": Check("make docs-check", "The documentation as a site: links, and widths in a browser"),
    "documents": Check("make documents", "Every code block of the documents, and every error message they explain"),
    "guard": Check("make guard", "Instructions that kernels execute, against those of the last record"),
    "mutations": Check("make mutations", "Faults planted on purpose, and whether the tests catch them", "mutations.md"),
}


def record(name: str, tried: str, outcome: str, seconds: float, details: Any = None) -> Path:
    """Keep what a whole run of a check found.

    Parameters
    ----------
    name : str
        One of `CHECKS`.
    tried, outcome : str
        What was tried, with its numbers, and what came of it; half a line of a table each.
    seconds : float
        How long the run took.
    details : optional
        More that a page is made of: anything that JSON has.

    Returns
    -------
    Path
        The file, docs/evidence/NAME.json.
    """
    if name not in CHECKS:
        raise ValueError(f"record: argument 'name' must be one of {', '.join(CHECKS)}, got {name!r}")
    found: dict[str, Any] = {
        "tried": tried,
        "outcome": outcome,
        "seconds": round(seconds),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": common.commit(),
        "version": fastrnn.__version__,
        "machine": common.hardware(),
    }
    if details is not None:
        found["details"] = details
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    write_whole(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def page(records: dict[str, dict[str, Any]]) -> str:
    """The text of docs/evidence.md."""
    lines = [
        "# Evidence",
        "",
        "What was done to find faults in fastrnn, beyond the tests that run at every change: one line a check, with",
        "the command that repeats it. A record is of one whole run; the commit names the sources that were checked.",
        "The tests, and what they hold kernels to: [CONTRIBUTING.md](../CONTRIBUTING.md).",
        "",
        "| check | tried | found | command | run |",
        "|---|---|---|---|---|",
    ]
    for name, check in CHECKS.items():
        subject = f"[{check.subject}]({check.page})" if check.page and name in records else check.subject
        if name in records:
            found = records[name]
            minutes = max(1, round(found["seconds"] / 60))
            run = f"{found['date']}, `{found['commit']}`, {minutes} min"
            lines.append(f"| {subject} | {found['tried']} | {found['outcome']} | `{check.command}` | {run} |")
        else:
            lines.append(f"| {subject} | – | not run | `{check.command}` | – |")
    machines = list(dict.fromkeys(found["machine"] for found in records.values()))
    if machines:
        lines += ["", f"Run on: {'; '.join(machines)}. No GPU was at hand for any of these."]
    lines += ["", "`make evidence` writes this page from docs/evidence/."]
    return "\n".join(lines) + "\n"


def recorded() -> dict[str, dict[str, Any]]:
    """What was kept, by the names of the checks."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def main() -> int:
    """Write the table, or keep a record for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    adding = commands.add_parser("record", help="keep what a check found; without a command, the table is written")
    adding.add_argument("name", choices=tuple(CHECKS), metavar="NAME", help=f"one of {', '.join(CHECKS)}")
    adding.add_argument("--tried", required=True, help="what was tried, with its numbers")
    adding.add_argument("--outcome", required=True, help="what came of it")
    adding.add_argument("--seconds", required=True, type=float, help="how long the run took")
    given = parser.parse_args()
    if given.command == "record":
        print(f"record  {record(given.name, given.tried, given.outcome, given.seconds).relative_to(ROOT)}")
        return 0
    write_whole(PAGE, page(recorded()).encode())
    print(f"page  {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
