"""``fastrnn info``: what would run here, and why the rest would not."""

from __future__ import annotations

import json
import os
import platform
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.table import Table

import fastrnn
from fastrnn.cli import common


def gather() -> dict[str, Any]:
    """Everything that the command prints."""
    status = fastrnn.backend_status()
    cpu = common.compiled()
    return {
        "backends": {name: reason or "usable" for name, reason in status.items()},
        "auto": next(iter(fastrnn.available_backends())),
        "set": fastrnn.get_backend(),
        "precision": {
            "float32 products": fastrnn.get_float32_matmul_precision(),
            **{name: bool(cpu is not None and cpu.has_precision(name)) for name in ("high", "medium")},
        },
        "isa": {
            "running": common.isa(),
            "supported": [] if cpu is None else list(cpu.isa_supported()),
            "emulated": [] if cpu is None else list(cpu.emulated),
            "FASTRNN_ISA": os.environ.get("FASTRNN_ISA", ""),
        },
        "threads": {
            "fastrnn": fastrnn.get_num_threads(),
            "FASTRNN_NUM_THREADS": os.environ.get("FASTRNN_NUM_THREADS", ""),
        },
        "blas": _blas(),
        "cuda": _cuda(),
        "versions": common.versions(),
        "hardware": common.hardware(),
        "system": platform.platform(),
        "location": os.path.dirname(fastrnn.__file__),
        "commit": common.commit(),
    }


def _blas() -> list[str]:
    """The BLAS libraries that are loaded."""
    import scipy.linalg  # noqa: F401  loads SciPy's BLAS, which products in Numba use
    from threadpoolctl import threadpool_info

    found = []
    for library in threadpool_info():
        if library["user_api"] == "blas":
            owner = "NumPy" if "numpy" in library["filepath"] else "SciPy" if "scipy" in library["filepath"] else ""
            kind = library.get("architecture", "")
            text = f"{library['internal_api']} {library['version']} {kind}, {library['num_threads']} threads"
            found.append(text + (f" ({owner})" if owner else ""))
    return found


def _cuda() -> dict[str, Any]:
    """Whether CUDA kernels are here, CuPy, and a device; why backend ``cuda`` cannot run stands with the backends."""
    reason = fastrnn.backend_status()["cuda"]
    return {
        "kernels built": find_spec("fastrnn._cuda") is not None,
        "cupy": common.versions()["cupy"],
        **(common.gpu() if not reason else {"device": "", "compute capability": "", "driver": ""}),
    }


def _cuda_text(facts: dict[str, Any]) -> str:
    built = "kernels built" if facts["kernels built"] else "no CUDA kernels in this build"
    cupy = f"CuPy {facts['cupy']}" if facts["cupy"] else "no CuPy"
    capability = f"compute capability {facts['compute capability']}" if facts["compute capability"] else ""
    driver = f"driver for {facts['driver']}" if facts["driver"] else ""
    return ", ".join(filter(None, (built, cupy, facts["device"] or "no device", capability, driver)))


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the backends (and why one cannot run), instruction sets, threads, BLAS, CUDA and versions."""
    facts = gather()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, state in facts["backends"].items():
        mark = "[green]✓[/]" if state == "usable" else "[red]✗[/]"
        note = " (what 'auto' runs)" if name == facts["auto"] else ""
        table.add_row(f"backend {name}", f"{mark} {state}{note}")
    isa = facts["isa"]
    table.add_row("backend set", facts["set"])
    if isa["running"]:
        forced = " (forced by FASTRNN_ISA)" if isa["FASTRNN_ISA"] else ""
        names = [f"{name} (emulated in this build)" if name in isa["emulated"] else name for name in isa["supported"]]
        table.add_row("instruction set", f"{isa['running']}{forced}; supported here: {', '.join(names)}")
    notes = [
        f"{name} {'runs on bfloat16 products' if facts['precision'][name] else 'is highest on this instruction set'}"
        for name in ("high", "medium")
    ]
    table.add_row("precision", "; ".join([facts["precision"]["float32 products"], *notes]))
    table.add_row("threads", str(facts["threads"]["fastrnn"]))
    table.add_row("BLAS", "\n".join(facts["blas"]) or "none found")
    table.add_row("CUDA", _cuda_text(facts["cuda"]))
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version))
    missing = [name for name, version in facts["versions"].items() if not version]
    if missing:
        table.add_row("not installed", ", ".join(missing))
    table.add_row("hardware", facts["hardware"])
    table.add_row("system", facts["system"])
    table.add_row("installed in", facts["location"] + (f" (commit {facts['commit']})" if facts["commit"] else ""))
    common.console().print(table)
