"""``fastrnn check``: every kernel against the oracle. Made to be put into somebody's CI."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import fastrnn
from fastrnn import conformance
from fastrnn.backend import PRECISIONS
from fastrnn.cli import common
from fastrnn.conformance import Outcome

SHOWN_FAILURES = 20


def check(
    operations: Annotated[
        list[str] | None, typer.Argument(metavar="[OP]...", help=f"Of {', '.join(conformance.CASES)}. Default: all.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Backends, repeated or separated by commas. Default: those usable, but the reference."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float64; float16 for rnn, lstm and gru on cuda. Default: the first two."),
    ] = None,
    isa: Annotated[
        list[str] | None,
        typer.Option(help="Instruction sets to force upon backend cpu, or 'all'. Default: the one that is running."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help=f"Of float32 products: {', '.join(PRECISIONS)}. Default: the one that is set, highest at first."
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every case as JUnit XML.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every case as JSON.")] = None,
) -> None:
    """Check every kernel against the oracle on generated cases, and show the worst error as a part of its bound.

    A result passes if max|result - exact| <= 2 max|oracle - exact| + 4 eps max|exact|, where the oracle is plain NumPy
    in the kernel's dtype and `exact` the same in a wider one. At precision medium or high, where the processor has it,
    the oracle rounds or splits the operands of its products likewise, and eps is 2^-7 or 2^-16; on a GPU high is TF32
    with eps = 2^-10. A result must also have the right dtype and shape, leave its inputs alone, come from the backend
    asked for, and be bitwise the same at 1, 2 and all threads, or on a GPU on another stream.

    Exit code: 0 if all is right, 1 if a case failed, 2 for bad usage, 130 after Ctrl-C.
    """
    names = common.chosen(operations, list(conformance.CASES), "operation")
    dtypes = common.chosen(dtype, conformance.WITH_HALVES if dtype else conformance.DTYPES, "dtype")
    if precision is not None:
        fastrnn.set_float32_matmul_precision(common.one(precision, PRECISIONS, "precision"))
    if backend is None:
        backends = [name for name in fastrnn.available_backends() if name != "reference"] or ["reference"]
    else:
        backends = common.usable_backends(common.chosen(backend, list(fastrnn.backend_status()), "backend"))
    if "float16" in dtypes and conformance.HALVES.isdisjoint(itertools.product(backends, names)):
        asked = f"{', '.join(names)} on {', '.join(backends)}"
        common.fail(f"--dtype float16 is for gru, lstm, rnn on backend cuda, not for {asked}")
    common.check_files(junit, as_json)

    outcomes: list[Outcome]
    if isa:
        if backend is not None and backends != ["cpu"]:
            common.fail("--isa is for backend cpu alone; leave --backend out, or say --backend cpu")
        outcomes = [outcome for name in _instruction_sets(isa) for outcome in _forced(name, names, dtypes)]
    else:
        outcomes = _here(names, backends, dtypes)

    if as_json:
        as_json.write_text(_json(outcomes))
    if junit:
        _junit(outcomes).write(junit, encoding="unicode", xml_declaration=True)
    _report(outcomes)
    raise typer.Exit(1 if any(outcome.failure for outcome in outcomes) else 0)


def _here(operations: list[str], backends: list[str], dtypes: list[str]) -> list[Outcome]:
    """Check in this process, with a progress bar where someone watches."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not common.interactive()) as progress:
        task = progress.add_task("checking", total=conformance.count(operations, backends, dtypes))
        outcomes = []
        for outcome in conformance.check(operations, backends, dtypes):
            outcomes.append(outcome)
            progress.update(task, advance=1, description=outcome.operation)
        return outcomes


def _instruction_sets(wanted: list[str]) -> list[str]:
    common.usable_backends(["cpu"])
    supported = list(common.compiled().isa_supported())
    names = common.chosen(wanted, [*supported, "all"], "or unsupported instruction set")
    return supported if "all" in names else names


def _forced(isa: str, operations: list[str], dtypes: list[str]) -> list[Outcome]:
    """Check in a new process: the instruction set is chosen once, when the kernels are imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", "fastrnn", "check", *operations, "--backend", "cpu", "--json", str(path)]
        command += [f"--dtype={name}" for name in dtypes]
        settings = {
            "FASTRNN_ISA": isa,
            "FASTRNN_FLOAT32_MATMUL_PRECISION": fastrnn.get_float32_matmul_precision(),
        }
        done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 1):
            common.fail(f"the check of instruction set {isa} ended with exit code {done.returncode}")
        outcomes = [_outcome(row) for row in json.loads(path.read_text())["outcomes"]]
    wrong = {outcome.isa for outcome in outcomes if outcome.ran_on == "cpu"} - {isa}
    if wrong:
        common.fail(f"asked for instruction set {isa}, but {', '.join(wrong)} ran")
    return outcomes


def _json(outcomes: Iterable[Outcome]) -> str:
    """Rows as strict JSON: what is not finite is null."""
    rows = []
    for outcome in outcomes:
        row = asdict(outcome)
        rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    facts = {"versions": common.versions(), "hardware": common.hardware(), "commit": common.commit()}
    return json.dumps({**facts, "outcomes": rows}, indent=1, allow_nan=False)


def _outcome(row: dict[str, Any]) -> Outcome:
    values: dict[str, Any] = {name: math.inf if value is None else value for name, value in row.items()}
    return Outcome(**values)


def _junit(outcomes: Iterable[Outcome]) -> ElementTree.ElementTree:
    suites = ElementTree.Element("testsuites", name="fastrnn check")
    for key, group in _grouped(outcomes).items():
        failures = sum(bool(outcome.failure) for outcome in group)
        name = ".".join(filter(None, key))
        seconds = f"{sum(outcome.seconds for outcome in group):.3f}"
        suite = ElementTree.SubElement(
            suites, "testsuite", name=name, tests=str(len(group)), failures=str(failures), errors="0", time=seconds
        )
        for outcome in group:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=name,
                name=f"{outcome.function}[{outcome.case}]",
                time=f"{outcome.seconds:.4f}",
            )
            if outcome.failure:
                ElementTree.SubElement(case, "failure", message=outcome.failure)
    ElementTree.indent(suites)
    return ElementTree.ElementTree(suites)


def _grouped(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], list[Outcome]]:
    """Outcomes by operation, backend, instruction set and dtype, in the order in which each of these first came."""
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.operation, outcome.backend, outcome.isa, _dtype(outcome)), []).append(outcome)
    order = [list(dict.fromkeys(column)) for column in zip(*groups, strict=True)]

    def place(key: tuple[str, ...]) -> list[int]:
        return [values.index(value) for values, value in zip(order, key, strict=True)]

    return {key: groups[key] for key in sorted(groups, key=place)}


def _dtype(outcome: Outcome) -> str:
    return outcome.dtype if outcome.precision == "highest" else f"{outcome.dtype} {outcome.precision}"


def _report(outcomes: list[Outcome]) -> None:
    console = common.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("operation", "backend", "dtype"):
        table.add_column(name)
    table.add_column("cases", justify="right")
    table.add_column("worst error / bound", justify="right")
    table.add_column("where", overflow="fold")
    for (operation, backend, isa, dtype), group in _grouped(outcomes).items():
        worst = max(group, key=lambda outcome: outcome.ratio)
        failed = sum(bool(outcome.failure) for outcome in group)
        mark = f"[red]✗ {failed} failed[/]" if failed else "[green]✓[/]"
        ran_on = worst.ran_on or backend
        where = f"{backend} {isa}".strip() if ran_on == backend else f"{backend} → {ran_on}"
        at = f"{worst.function}[{worst.case}] {worst.output}".strip()
        table.add_row(operation, where, dtype, str(len(group)), f"{worst.ratio:.2f} {mark}", escape(at))
    console.print(table)
    failures = [outcome for outcome in outcomes if outcome.failure]
    for outcome in failures[:SHOWN_FAILURES]:
        where = " ".join(filter(None, (outcome.backend, outcome.isa, _dtype(outcome))))
        text = f"{outcome.function}[{outcome.case}] on {where}: {outcome.failure}"
        console.print(f"[red]✗[/] {escape(text)}", soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"  … and {len(failures) - SHOWN_FAILURES} more (--json FILE has them all)")
    seconds = sum(outcome.seconds for outcome in outcomes)
    verdict = f"[red]{len(failures)} failed[/]" if failures else "[green]all within the bound[/]"
    console.print(f"{len(outcomes)} cases in {seconds:.0f} s: {verdict}")
