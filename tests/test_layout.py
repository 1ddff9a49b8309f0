"""The path is the address: every operation stands at the same name in every column, and nothing else stands there."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import conformance, reference
from fastrnn.backend import COLUMNS, EMPTY

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("rnn", "lstm", "gru", "embedding", "affine", "softmax_loss", "gram", "image_losses", "optim")

# Column: its folder, the pattern of its files, and the files that stand beside the rows on purpose.
GRID = {
    "ops": ("fastrnn/ops", "{}.py", {"__init__.py"}),
    "reference": ("fastrnn/reference", "{}.py", {"__init__.py"}),
    "numba": (
        "fastrnn/numba_cpu",
        "{}.py",
        {"__init__.py", "activations.py", "jit.py", "packing.py", "products.py", "recurrent.py", "threads.py"},
    ),
    "cpu": (
        "csrc/cpu",
        "{}.cpp",
        {
            "isa.cpp",
            "isa_amx.cpp",
            "isa_avx2.cpp",
            "isa_avx512.cpp",
            "isa_avx512_bf16.cpp",
            "isa_portable.cpp",
            "team.cpp",
        },
    ),
    "cuda": ("csrc/cuda", "{}.cu", {"device.cu"}),
    # What the CUDA kernels are called from, and the products beside them.
    "cuda beside": ("fastrnn/cuda", "{}.py", {"__init__.py", "arrays.py", "recurrent.py"}),
    "bench": (
        "bench",
        "bench_{}.py",
        {
            "__init__.py",
            "accuracy.py",
            "bench_captioner.py",
            "bench_style.py",
            "bench_torch.py",
            "common.py",
            "distributed.py",
            "evidence.py",
            "published_run.py",
            "recurrent.py",
            "update_readme.py",
        },
    ),
    "tests": (
        "tests",
        "test_{}.py",
        {
            "documents.py",
            "fake_device.py",
            "faulty_readers.py",
            "full_disk.py",
            "harness.py",
            "mutations.py",
            "neighbours.py",
            "processes.py",
            "recurrent.py",
        },
    ),
}
EMPTY_CELLS = {
    (column, "affine"): "CuPy's product, which is cuBLAS's, is the best kernel already: the reference on CuPy arrays"
    for column in ("cuda", "cuda beside")
}


def path_of(column, row):
    folder, pattern, _ = GRID[column]
    return ROOT / folder / pattern.format(row)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("column", GRID)
def test_every_cell_is_there_or_empty_on_purpose(column, row):
    path = path_of(column, row)
    if (column, row) in EMPTY_CELLS:
        assert not path.exists(), f"{path} exists: take ({column!r}, {row!r}) from the empty cells"
    else:
        assert path.exists(), f"{path} is missing: write it, or list the cell as empty with its reason"


@pytest.mark.parametrize("column", GRID)
def test_nothing_else_stands_in_the_grid(column):
    folder, pattern, helpers = GRID[column]
    if not (ROOT / folder).exists():
        assert all((column, row) in EMPTY_CELLS for row in ROWS)
        return
    there = {path.name for path in (ROOT / folder).iterdir() if path.suffix == Path(pattern).suffix}
    rows = {pattern.format(row) for row in ROWS if (column, row) not in EMPTY_CELLS}
    if column == "tests":  # which also hold what is no operation: the command line, say
        rows |= {name for name in there if name.startswith("test_")}
    assert there - rows - helpers == set(), "neither a row nor a helper listed in this test"
    assert helpers - there == set(), "listed in this test, but not there"


def test_the_backends_table_has_the_same_empty_cells():
    assert EMPTY == {cell: reason for cell, reason in EMPTY_CELLS.items() if cell[0] in COLUMNS}


def test_the_cases_have_the_same_rows():
    assert tuple(conformance.CASES) == ROWS


# ---- the columns have one contract ---------------------------------------------------------------------------------

PUBLIC = [name for name in reference.__all__ if name != "sigmoid"]


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_the_signature_of_the_public_function(name):
    assert parameters(getattr(reference, name)) == parameters(getattr(fastrnn, name))


def test_every_public_operation_has_its_reference():
    public = {name: getattr(fastrnn, name) for name in fastrnn.__all__}
    from_ops = [name for name, f in public.items() if getattr(f, "__module__", "").startswith("fastrnn.ops.")]
    assert sorted(from_ops) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_function_stands_in_the_file_of_its_row(name):
    rows = {case.function: case.operation for cases in conformance.CASES.values() for case in cases()}
    assert getattr(fastrnn, name).__module__ == f"fastrnn.ops.{rows[name]}"
    assert getattr(reference, name).__module__ == f"fastrnn.reference.{rows[name]}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    text = inspect.getdoc(getattr(fastrnn, name)) or ""
    for section in ("Parameters", "Returns", "Raises"):
        assert f"{section}\n{'-' * len(section)}" in text, section
    for parameter in inspect.signature(getattr(fastrnn, name)).parameters:
        assert parameter in text, parameter


def imports_of(path):
    """Modules that a file imports, relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", sorted((ROOT / "fastrnn/reference").glob("*.py")), ids=lambda path: path.name)
def test_the_oracle_leans_on_nothing_of_ours(path):
    for name in imports_of(path):
        one_dot = name.startswith(".") and not name.startswith("..")
        allowed = one_dot or name.split(".")[0] in ("__future__", "collections", "numpy", "typing")
        assert allowed or name.startswith("fastrnn.reference"), name


@pytest.mark.parametrize("row", ROWS)
def test_columns_do_not_lean_on_each_other(row):
    for column, other in (
        ("ops", "fastrnn.numba_cpu"),
        ("ops", "fastrnn.reference"),
        ("ops", "fastrnn.cuda"),
        ("numba", "fastrnn.reference"),
        ("cuda beside", "fastrnn.reference"),
        ("cuda beside", "fastrnn.ops"),
    ):
        if (column, row) not in EMPTY_CELLS and path_of(column, row).exists():
            assert not [name for name in imports_of(path_of(column, row)) if name.startswith(other)]


@pytest.mark.parametrize("row", ROWS)
def test_the_numba_kernels_take_what_the_compiled_ones_take(row):
    """Same names; the numbers of arguments are tried by every conformance case."""
    if fastrnn.backend_status()["cpu"] or fastrnn.backend_status()["numba"]:
        pytest.skip("needs both columns")
    if ("numba", row) in EMPTY_CELLS:
        return
    from importlib import import_module

    from fastrnn import _cpu

    module = import_module(f"fastrnn.numba_cpu.{row}")
    path = path_of("numba", row)
    functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    public = [name for name in functions if not name.startswith("_")]
    assert public
    for name in public:
        assert callable(getattr(module, name)) and callable(getattr(_cpu, name, None)), name


def functions_of(column, row):
    tree = ast.parse(path_of(column, row).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


@pytest.mark.parametrize("row", ROWS)
def test_the_cuda_kernels_take_what_the_others_take(row):
    """Every function that the Numba column has; the numbers of arguments are tried by every conformance case."""
    if ("cuda beside", row) in EMPTY_CELLS or not path_of("cuda beside", row).exists():
        pytest.skip("no kernels")
    assert functions_of("numba", row) <= functions_of("cuda beside", row)


# ---- the drop-in modules -------------------------------------------------------------------------------------------


def test_star_import_brings_what_courses_expect():
    names: dict = {}
    exec("from fastrnn.rnn_layers import *", names)
    assert {
        "affine_forward",
        "affine_backward",
        "sigmoid",
        "lstm_step_backward",
        "temporal_softmax_loss",
    } <= names.keys()
    assert names["lstm_forward"] is fastrnn.lstm_forward
    assert names["sigmoid"](np.array([0.0, -1000.0, 1000.0])).tolist() == [0.5, 0.0, 1.0]
    for module, expected in {
        "layers": {"affine_forward", "affine_backward"},
        "optim": {"sgd", "sgd_momentum", "rmsprop", "adam"},
        "gradient_check": {"eval_numerical_gradient", "eval_numerical_gradient_array", "rel_error"},
    }.items():
        names = {}
        exec(f"from fastrnn.{module} import *", names)
        assert expected <= names.keys()
