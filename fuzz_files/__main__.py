"""``python -m fuzz_files``: every reader of a user's file, on thousands of files that are wrong.

A line a reader: files, how many of them gave a result and how many the documented error, the slowest, the most memory,
and the edges of code that were reached. The first fault ends it all with exit code 1; the file is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from fuzz_files import campaign
from fuzz_files.campaign import Outcome

_TITLE = f"{'reader':<20} {'files':>7} {'accepted':>9} {'refused':>8} {'slowest':>9} {'memory':>9} {'edges':>6}"


def line(outcome: Outcome) -> str:
    """A line of the table."""
    edges = "-" if outcome.edges is None else f"{outcome.edges:,}"
    return (
        f"{outcome.reader:<20} {outcome.files:>7,} {outcome.accepted:>9,} {outcome.refused:>8,} "
        f"{1e3 * outcome.slowest:>6.0f} ms {outcome.peak / 2**20:>5.0f} MiB {edges:>6}"
    )


def complaint(outcome: Outcome) -> str:
    """What went wrong, and how to see it again."""
    text = f"✗ {outcome.reader}: file {outcome.files + 1:,}: {outcome.fault}"
    if outcome.kept is not None:
        kept = outcome.kept
        if kept.is_relative_to(Path.cwd()):
            kept = kept.relative_to(Path.cwd())
        text += f"\n  the file is kept; read it again with: python -m fuzz_files {outcome.reader} --repeat {kept}"
    return text


def _outcomes(readers: list[str], jobs: int, files: int, seed: int, coverage: bool) -> Iterator[Outcome]:
    """Outcomes as they come; after a fault the other readers are stopped."""
    stop = threading.Event()

    def one(name: str) -> Outcome | None:
        if stop.is_set():
            return None
        (outcome,) = campaign.run([name], files=files, seed=seed, coverage=coverage, stopped=stop.is_set)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, name) for name in readers]):
            outcome = done.result()
            if outcome is None or outcome.fault == campaign.STOPPED:
                continue
            if outcome.fault:
                stop.set()
            yield outcome


def main() -> int:
    """Parse the command line, and run."""
    from fuzz_files.readers import READERS

    parser = argparse.ArgumentParser("python -m fuzz_files", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"one of {', '.join(READERS)}; default: all")
    parser.add_argument("--files", type=int, default=10_000, help="files for each reader (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (0)")
    parser.add_argument("--jobs", type=int, help="readers at a time; default: one for each CPU")
    parser.add_argument(
        "--random", action="store_true", help="change files without libFuzzer, which is then not needed"
    )
    parser.add_argument("--record", action="store_true", help="keep the figures in docs/evidence, if nothing is wrong")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="read this file alone, with the one reader named")
    options = parser.parse_args()
    unknown = sorted(set(options.readers) - set(READERS))
    if unknown:
        parser.error(f"no such reader: {', '.join(unknown)}; there are {', '.join(READERS)}")
    if options.repeat is not None:
        if len(options.readers) != 1 or not options.repeat.is_file():
            parser.error("--repeat needs one reader and a file")
        (outcome,) = campaign.run(options.readers, files=1, repeat=options.repeat, keep=options.repeat.parent)
        print(complaint(outcome) if outcome.fault else "accepted" if outcome.accepted else "refused, as documented")
        return bool(outcome.fault)
    if not options.random and not campaign.guided():
        parser.error("libFuzzer is not installed: pip install 'fastrnn[fuzz]', or change files at --random")
    jobs = options.jobs or len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))
    begun, found = time.monotonic(), []
    print(_TITLE, flush=True)
    for outcome in _outcomes(options.readers or list(READERS), jobs, options.files, options.seed, not options.random):
        print(complaint(outcome) if outcome.fault else line(outcome), flush=True)
        found.append(outcome)
    if any(outcome.fault for outcome in found):
        return 1
    seconds = time.monotonic() - begun
    print(f"✓ {len(found)} readers, {sum(outcome.files for outcome in found):,} files, {seconds:.0f} s")
    if options.record:
        _record(found, seconds)
    return 0


def _record(found: list[Outcome], seconds: float) -> None:
    from bench.evidence import record

    files, refused = (sum(getattr(outcome, name) for outcome in found) for name in ("files", "refused"))
    slowest, peak = (max(getattr(outcome, name) for outcome in found) for name in ("slowest", "peak"))
    path = record(
        "fuzz-files",
        f"{len(found)} readers, {files:,} files",
        f"no crash, hang or other error; {refused:,} refused as documented; slowest {slowest:.1f} s, at most "
        f"{peak / 2**20:.0f} MiB for a file",
        seconds,
        [
            {name: value for name, value in asdict(outcome).items() if name not in ("fault", "kept")}
            for outcome in found
        ],
    )
    print(f"record  {path}")


if __name__ == "__main__":
    sys.exit(main())
