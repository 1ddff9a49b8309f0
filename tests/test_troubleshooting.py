"""docs/troubleshooting.md has every message of the kernels' side of the library, as it is printed.

What its own blocks provoke, tests/test_docs.py runs. What they cannot (a device, a library that is missing) is provoked
here, by the name that the comment before the message gives it.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import documents
import fake_device
import numpy as np
import pytest

import fastrnn
from fastrnn import conformance

PAGE = documents.ROOT / "docs" / "troubleshooting.md"
BLOCKS = documents.blocks_of(PAGE)
PREFIX = "provoked by: "
PROVOKED = {block.note.removeprefix(PREFIX): block for block in BLOCKS if block.note.startswith(PREFIX)}
_, D, _, H = 1, 2, 3, 2
LSTM = (np.ones((1, 3, D)), np.ones((1, H)), np.ones((D, 4 * H)), np.ones((H, 4 * H)), np.ones(4 * H))


def python(code, *missing, **environment):
    """The last line of a message of a new interpreter in which some modules are not installed."""
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(documents.ROOT), env.get("PYTHONPATH", "")])} | environment
    command = [sys.executable, "-c", f"import sys; {absent}{code}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    return [line for line in done.stdout.splitlines() if line and not line.startswith(" ")][-1]


def command(*words, missing):
    return python(f"sys.argv = {['fastrnn', *words]!r}; from fastrnn.cli.main import app; app()", *missing)


def installing(**environment):
    """What setup.py says of the compiler."""
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "FASTRNN_NO_EXTENSION")}
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=documents.ROOT,
        capture_output=True,
        text=True,
        env=env | environment,
    )
    return done.stdout.splitlines()[0]


def backend(name, *missing, before="", **environment):
    return python(f"{before}import fastrnn; fastrnn.backend({name!r})", *missing, **environment)


# A CuPy and CUDA kernels that are as the test says, whatever is installed.
KERNELS = "import types; sys.modules['fastrnn._cuda'] = types.ModuleType('fastrnn._cuda'); "
BROKEN_CUPY = (
    "import importlib, importlib.abc\n"
    "class Broken(importlib.abc.MetaPathFinder):\n"
    "    def find_spec(self, name, *rest):\n"
    "        if name == 'cupy': raise {error}\n"
    "sys.meta_path.insert(0, Broken())\n"
)
NO_DEVICE = (
    "cupy = sys.modules['cupy'] = types.ModuleType('cupy'); "
    "cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: 0)); "
)


class Recorder:
    def __array__(self, *args, **options):
        raise RuntimeError("call .value first")


def lstm(place=lambda a: a, **changed):
    """`lstm_forward` with arrays where `place` puts them, and some arguments changed."""
    names = ("x", "h0", "Wx", "Wh", "b")
    return fastrnn.lstm_forward(*(changed.get(name, place(a)) for name, a in zip(names, LSTM, strict=True)))


def too_many_words(_):
    table = np.broadcast_to(np.float32(0), (2**60, 1))  # a view: it takes no memory
    _, cache = fastrnn.word_embedding_forward([0] * 32, table)
    fastrnn.word_embedding_backward(np.empty((32, 1)), cache)


def on_device_1(cupy):
    x = cupy.asarray(LSTM[0])
    x._device_id = 1
    lstm(cupy.asarray, x=x)


def under_reference(cupy):
    with fastrnn.backend("reference"):
        lstm(cupy.asarray)


def weight_below_zero(_):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from fastrnn.vision import create_class_visualization

    create_class_visualization(0, torch.nn.Flatten(), l2_reg=-1)


CPU = "fastrnn._cpu"
USE = "import fastrnn; fastrnn.sgd([1.0], [1.0])"
# In this process, given the stand-in for CuPy.
HERE = {
    "an object that cannot become an array": lambda _: lstm(x=Recorder()),
    "a weight below zero": weight_below_zero,
    "more words than can be sorted": too_many_words,
    "a NumPy array among arrays on the device": lambda cupy: lstm(cupy.asarray, h0=LSTM[1]),
    "an array on the device among NumPy arrays": lambda cupy: lstm(h0=cupy.asarray(LSTM[1])),
    "an array on the device for a backend of the host": under_reference,
    "a number on the device": lambda cupy: fastrnn.tv_loss(np.ones((1, 3, 4, 4)), cupy.asarray(np.ones(()))),
    "an array on another device": on_device_1,
}
# In processes of their own.
ELSEWHERE = {
    "an installation without kernels": lambda: python(USE, CPU),
    "an installation without a compiler": lambda: installing(PATH="/nowhere"),
    "an installation with an old compiler": lambda: installing(CXX="cc-of-1998"),
    "an installation with a compiler that is not there": lambda: installing(CXX="/nowhere/g++"),
    "an installation that asked for no kernels": lambda: installing(FASTRNN_NO_EXTENSION="1"),
    "asking for kernels that are not there": lambda: backend("cpu", CPU),
    "asking for Numba that is not there": lambda: backend("numba", "numba"),
    "asking for an instruction set of kernels that are not there": lambda: python(USE, CPU, FASTRNN_ISA="avx2"),
    "an instruction set that is not here": lambda: python(
        "import fastrnn; print(fastrnn.backend_status()['cpu'])", FASTRNN_ISA="abacus"
    ),
    "the demo without scikit-learn": lambda: command("demo", missing=("h5py", "sklearn")),
    "HDF5 files without h5py": lambda: python(
        "from fastrnn.captioning.checkpoint import *; load_checkpoint('x.h5')", "h5py"
    ),
    "BLEU without sacreBLEU": lambda: python(
        "from fastrnn.captioning import *; bleu(['a'], [['a']])", "sacrebleu.metrics.bleu"
    ),
    "images without Pillow": lambda: python("from fastrnn.vision.images import *; read_image('x.png')", "PIL"),
    "digits without scikit-learn": lambda: python("from fastrnn.vision.data import *; digits()", "sklearn.datasets"),
    "a picture without PyTorch and scikit-learn": lambda: command("style", missing=("torch", "sklearn")),
    "no CUDA kernels": lambda: backend("cuda", "fastrnn._cuda"),
    "no CuPy": lambda: backend("cuda", "cupy", before=KERNELS),
    "a broken CuPy": lambda: backend(
        "cuda",
        before=KERNELS + BROKEN_CUPY.format(error="ImportError('libcudart.so.13: cannot open shared object file')"),
    ),
    "a CuPy whose dependency is missing": lambda: backend(
        "cuda",
        before=KERNELS
        + BROKEN_CUPY.format(error="ModuleNotFoundError(\"No module named 'fastrlock'\", name='fastrlock')"),
    ),
    "no device": lambda: backend("cuda", before=KERNELS + NO_DEVICE),
    "arrays on a device without the kernels": lambda: python(
        "import fastrnn, numpy as np\n"
        "class Array:\n"
        "    __dlpack_device__ = lambda self: (2, 0)\n"
        "fastrnn.lstm_forward(Array(), *[np.ones(1)] * 4)",
        "fastrnn._cuda",
    ),
    "no simulator": lambda: backend("cuda", "fastrnn._cuda_on_host", FASTRNN_CUDA_ON_HOST="1"),
}


def test_everything_that_the_page_says_is_provoked_is():
    assert PROVOKED.keys() == HERE.keys() | ELSEWHERE.keys()


@pytest.mark.skipif(bool(fastrnn.backend_status()["cpu"]), reason="the C++ kernels were not built")
@pytest.mark.parametrize("name", HERE)
def test_messages(name, monkeypatch):
    fake_device.install(monkeypatch, conformance.CASES, simulated=False)
    with pytest.raises(Exception) as caught:
        HERE[name](sys.modules["cupy"])
    documents.assert_shown(PROVOKED[name].text, documents.said(caught.value), PROVOKED[name])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_messages_of_other_installations(name, tmp_path, monkeypatch):
    old = tmp_path / "cc-of-1998"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    came = re.sub(r"^\S*:\d+: (?=\w+Warning: )", "", ELSEWHERE[name]())  # where the warning was
    documents.assert_shown(PROVOKED[name].text, came, PROVOKED[name])


# ---- nothing is left out ---------------------------------------------------------------------------------------------

# What nobody can meet who calls the public functions.
INTERNAL = {
    "have shape …, got …",  # a size that is no multiple of the number of gates: H is known before it is looked at
    "patch: …",  # what several reasons are joined to; the reasons are fastrnn.patch's
}


def _text(node):
    """A string of the source with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def messages_of(path):
    """What a file raises: the type, and the message with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fail":
            kind, _, expected, actual = node.args
            yield ast.unparse(kind), f"{_text(expected)}, got {_text(actual)}"
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            if node.exc.args:
                yield node.exc.func.id, _text(node.exc.args[0])


FILES = [
    *(documents.ROOT / "fastrnn").glob("*.py"),
    *(documents.ROOT / "fastrnn" / "ops").glob("*.py"),
    documents.ROOT / "fastrnn" / "cuda" / "arrays.py",
]
SHOWN = [block.raises or block.text for block in BLOCKS if block.raises or block.kind in ("pytb", "text")]


def on_the_page(kind, message):
    words = ".*".join(map(re.escape, message.split("…")))
    kind = ".*" if kind == "Unavailable" else f"(.*[.])?{kind}: "  # which becomes a reason, in another error
    return any(re.search(f"^{kind}.*{words}", shown.strip(), re.DOTALL) for shown in SHOWN)


def test_no_message_is_left_out():
    found = {one for path in FILES for one in messages_of(path) if path.name not in ("conformance.py", "runs.py")}
    assert len(found) > 55
    missing = [one for one in sorted(found) if one[1] not in INTERNAL and not on_the_page(*one)]
    assert not missing, missing


def test_internal_messages_are_there_to_be_left_out():
    found = {message for path in FILES for _, message in messages_of(path)}
    assert found >= INTERNAL


def test_a_message_that_is_on_no_page_is_noticed(tmp_path):
    path = Path(tmp_path, "new.py")
    path.write_text("raise ValueError(f'lstm_forward: it is {day}, come back tomorrow')\n")
    assert [one for one in messages_of(path) if not on_the_page(*one)]
