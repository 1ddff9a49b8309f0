"""Choosing a backend, knowing what ran, and the errors of both."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from harness import BACKENDS
from recurrent import arguments

import fastrnn


def run(code, **environment):
    """Run `code` in a fresh interpreter; its output, or the last line of its error."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("FASTRNN_")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def what_runs():
    fastrnn.rnn_forward(*arguments("rnn"))
    return str(fastrnn.last_backend())


@pytest.mark.parametrize("name", BACKENDS)
def test_the_backend_asked_for_is_the_one_that_runs(name):
    with fastrnn.backend(name):
        assert fastrnn.get_backend() == name
        assert what_runs() == name
    assert fastrnn.get_backend() == "auto"


def test_auto_is_the_first_that_runs_here():
    assert fastrnn.get_backend() == "auto"
    assert what_runs() == fastrnn.available_backends()[0]


def test_blocks_nest_and_end_with_an_exception():
    with fastrnn.backend("reference"):
        with pytest.raises(ZeroDivisionError), fastrnn.backend("auto"):
            assert fastrnn.get_backend() == "auto"
            raise ZeroDivisionError
        assert fastrnn.get_backend() == "reference"
    assert fastrnn.get_backend() == "auto"


def test_a_call_sets_it_for_the_process():
    seen = []
    try:
        fastrnn.backend("reference")
        assert what_runs() == "reference"
        thread = threading.Thread(target=lambda: seen.append(what_runs()))
        thread.start()
        thread.join()
    finally:
        fastrnn.backend("auto")
    assert seen == ["reference"]


def test_a_block_is_this_threads_own():
    seen = []
    with fastrnn.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(fastrnn.get_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None, 3, ["cpu"]])
def test_an_unknown_backend(name):
    with pytest.raises(ValueError, match="'auto', 'cpu', 'numba', 'reference'") as caught:
        fastrnn.backend(name)
    assert repr(name) in str(caught.value)
    assert fastrnn.get_backend() == "auto"


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    module = sys.modules["fastrnn.backend"]
    monkeypatch.setitem(module._reasons, "numba", "it is Sunday")
    with pytest.raises(RuntimeError, match="'numba' cannot run here: it is Sunday"):
        fastrnn.backend("numba")
    assert "numba" not in fastrnn.available_backends()
    assert fastrnn.backend_status()["numba"] == "it is Sunday"


def test_an_instruction_set_that_was_asked_for_gives_way_to_no_other_backend(monkeypatch):
    module = sys.modules["fastrnn.backend"]
    monkeypatch.setitem(module._reasons, "cpu", "it is Sunday")
    monkeypatch.setattr(module, "_warned", True)
    monkeypatch.delenv("FASTRNN_ISA", raising=False)
    with fastrnn.backend("auto"):
        fastrnn.sgd([1.0], [1.0])
        assert fastrnn.last_backend() == fastrnn.available_backends()[0] != "cpu"
        monkeypatch.setenv("FASTRNN_ISA", "avx2")
        with pytest.raises(RuntimeError, match="'cpu' cannot run here: it is Sunday"):
            fastrnn.sgd([1.0], [1.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastrnn.sgd([1.0], [1.0]),
        lambda: fastrnn.affine_forward([[1.0]], [[1.0]], [1.0]),
        lambda: fastrnn.gram_matrix([[[[1.0]]]]),
    ],
    ids=["sgd", "affine_forward", "gram_matrix"],
)
def test_the_warning_of_another_backend_names_the_line_of_the_caller(monkeypatch, call):
    module = sys.modules["fastrnn.backend"]
    monkeypatch.setitem(module._reasons, "cpu", "it is Sunday")
    monkeypatch.setattr(module, "_warned", False)
    monkeypatch.delenv("FASTRNN_ISA", raising=False)
    with fastrnn.backend("auto"):
        with pytest.warns(
            RuntimeWarning, match="runs on 'numba': it is Sunday|runs on 'reference': it is Sunday"
        ) as said:
            call()
    assert [(warning.filename, warning.lineno) for warning in said] == [(__file__, call.__code__.co_firstlineno)]
    monkeypatch.setattr(module, "_warned", False)
    with fastrnn.backend("auto"), pytest.warns(RuntimeWarning, match="it is Sunday"):
        exec("fastrnn.sgd([1.0], [1.0])", {"fastrnn": fastrnn})  # code without a module


def test_the_environment_sets_the_first_one():
    code = "import fastrnn; print(fastrnn.get_backend())"
    assert run(code) == "auto"
    assert run(code, FASTRNN_BACKEND="reference") == "reference"
    message = run(code, FASTRNN_BACKEND="gpu")
    assert message.startswith("ValueError") and "FASTRNN_BACKEND" in message and "'gpu'" in message


def test_the_environment_sets_the_threads():
    code = "import fastrnn; print(fastrnn.get_num_threads())"
    assert run(code, FASTRNN_NUM_THREADS="3") == "3"
    for wrong in ("0", "-1", "many", "1.5"):
        message = run(code, FASTRNN_NUM_THREADS=wrong)
        assert message.startswith("ValueError") and "FASTRNN_NUM_THREADS" in message and repr(wrong) in message


@pytest.mark.parametrize("name", BACKENDS)
def test_what_ran_is_told_in_full(name):
    with fastrnn.backend(name):
        _, cache = fastrnn.lstm_forward(*arguments("lstm"))
        last = fastrnn.last_backend()
        assert last.function == "lstm_forward" and last.precision == "highest"
        fastrnn.lstm_backward(np.ones((3, 4, 6)), cache)
        assert fastrnn.last_backend().function == "lstm_backward"
    assert isinstance(last, str) and last == name
    assert "lstm_forward" in repr(last) and name in repr(last)
    if name == "cpu":
        from fastrnn import _cpu

        assert last.isa == _cpu.isa() and last.isa in _cpu.isa_supported()
        assert 1 <= last.threads <= fastrnn.get_num_threads()


@pytest.mark.parametrize("name", BACKENDS)
def test_backward_runs_where_forward_ran(name):
    with fastrnn.backend(name):
        _, cache = fastrnn.rnn_forward(*arguments("rnn"))
    fastrnn.rnn_backward(np.ones((3, 4, 6)), cache)  # under "auto"
    assert fastrnn.last_backend() == name
    for other in fastrnn.available_backends():
        if other != name:
            with fastrnn.backend(other), pytest.raises(ValueError, match="'cache' was made by backend") as caught:
                fastrnn.rnn_backward(np.ones((3, 4, 6)), cache)
            assert repr(name) in str(caught.value) and repr(other) in str(caught.value)


def test_nothing_ran_in_a_new_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(fastrnn.last_backend()))
    thread.start()
    thread.join()
    assert seen == [None]


def test_where_there_is_a_compiler_the_kernels_are_built():
    from shutil import which

    if not any(map(which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    assert fastrnn.backend_status()["cpu"] == ""


def test_instruction_sets_can_be_forced():
    if fastrnn.backend_status()["cpu"]:
        pytest.skip("the C++ kernels were not built")
    from fastrnn import _cpu

    code = "from fastrnn import _cpu; print(_cpu.isa())"
    for isa in _cpu.isa_supported():
        assert run(code, FASTRNN_ISA=isa) == isa
    message = run("import fastrnn; print(fastrnn.backend_status()['cpu'])", FASTRNN_ISA="abacus")
    assert "abacus" in message and all(isa in message for isa in _cpu.isa_supported())


@pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")
@pytest.mark.parametrize("position", range(3))
def test_kernels_read_no_memory_as_another_dtype(position):
    """The one check of the bindings themselves: against who calls them past those of `fastrnn.ops`."""
    from fastrnn import _cpu

    w, dw, out = (np.ones(4, np.float32) for _ in range(3))
    arrays = [w, dw, out]
    arrays[position] = np.ones(4, np.float64 if position else np.float16)
    with pytest.raises(TypeError, match="arrays of one call must have one dtype"):
        _cpu.sgd(arrays[0], arrays[1], 0.1, arrays[2])
