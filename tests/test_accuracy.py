"""The accuracy report at its small sizes: its figures, what it would complain about, and the command."""

import json
import math
import os
import sys
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import conformance

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "accuracy.py"
# Units in the last place, over the whole range; those of tests/test_simd_math.py.
ULP = {"sigmoid": 2.5, "tanh": 3.0}

pytestmark = [
    pytest.mark.skipif(
        bool(fastrnn.backend_status()["cpu"]) or not SCRIPT.exists(), reason="needs the C++ kernels, and a checkout"
    ),
    pytest.mark.skipif(
        np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant, reason="long double is no wider than double here"
    ),
]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield import_module("bench.accuracy")


@pytest.fixture(scope="module")
def findings(script):
    return script.measure(quick=True)


def test_every_kernel_is_there(script, findings):
    from fastrnn import _cpu

    usable = [f"cpu, {isa}" for isa in _cpu.isa_supported()] + ["numba"] * (not fastrnn.backend_status()["numba"])
    assert list(findings.ours) == usable
    names = {script.key(trial, kind) for trial in findings.trials for kind in ("float32", "float64")}
    assert all(names <= every.keys() for every in findings.ours.values()), "a trial that did not run"
    others = {"NumPy"} | ({"PyTorch"} if find_spec("torch") else set())
    for name in names:
        assert findings.errors[name].keys() == {*usable, *others}
    lower = {name for name in findings.ours[usable[0]] if name.endswith(" medium")}
    assert bool(lower) == _cpu.has_precision("medium")


def test_the_tolerance_rule_holds(findings):
    for name, errors in findings.errors.items():
        for provider in findings.ours.keys() & errors.keys():
            error = errors[provider]
            assert error.ratio <= 1, f"{name} on {provider}: {error}"
            # An oracle that is itself far off would let anything pass.
            assert errors["NumPy"].eps < 300, f"{name}: NumPy is off by {errors['NumPy'].eps:.0f} eps"
    assert findings.complaints() == []


@pytest.mark.parametrize("function", ULP)
@pytest.mark.parametrize("dtype", conformance.DTYPES)
def test_sigmoid_and_tanh_in_units_in_the_last_place(findings, function, dtype):
    for provider in findings.ours:
        assert findings.errors[f"{function} {dtype}"][provider].ulp <= ULP[function], provider


def test_the_errors_that_it_would_find(script, findings):
    """One element of one output off by a thousandth; a NaN; bits that change."""
    (trial,) = [trial for trial in findings.trials if trial.name == "lstm_long"]
    arrays = trial.inputs()
    exact, oracle = (make(trial, arrays, "float32") for make in (script.exact_of, script.oracle_of))
    right = findings.ours["numba" if "numba" in findings.ours else next(iter(findings.ours))]["lstm_long float32"]
    assert script.error_of(trial, right.results, oracle, exact, "float32").good
    for index in range(len(right.results)):
        for wrong in (1e-3 * np.max(np.abs(exact[index])), np.nan):
            results = [one.copy() for one in right.results]
            results[index].flat[0] += wrong
            assert not script.error_of(trial, results, oracle, exact, "float32").good, trial.outputs[index]

    provider = next(iter(findings.ours))
    there = findings.ours[provider]["gram float32"]
    assert there.same.keys() >= {"on 2 threads", "on 3 threads", "on 4 threads", script.SECOND}

    def complaints(name, ran):
        worse = replace(findings, ours=findings.ours | {provider: findings.ours[provider] | {name: ran}})
        return worse.complaints(), script.page(worse, "")

    (found,), text = complaints("gram float32", replace(there, same=there.same | {"on 3 threads": False}))
    assert found == f"gram float32: {provider} has other bits on 3 threads" and f"- ✗ {found}" in text
    one_bit = (np.nextafter(there.results[0], np.float32(2)),)
    assert not there.beside(script.FORK, script.digest_of(one_bit)).same[script.FORK]
    there = findings.ours[provider]["embedding float64"]
    (found,), _ = complaints("embedding float64", replace(there, results=(np.nextafter(there.results[0], 2.0),)))
    assert found.startswith("embedding float64: the kernels' bits differ")
    off = findings.errors["gram float32"] | {provider: replace(findings.errors["gram float32"][provider], ratio=1.5)}
    worse = replace(findings, errors=findings.errors | {"gram float32": off})
    assert len(worse.complaints()) == 1 and "off by 1.50" in worse.complaints()[0]
    assert f"- ✗ {worse.complaints()[0]}" in script.page(worse, "") and " ✗ |" in script.page(worse, "")


@pytest.fixture
def changing(script, monkeypatch):
    """Only the Gram matrix is tried, and 1 is added to it where `changed()`."""

    (trial,) = [trial for trial in script.trials(True) if trial.name == "gram"]

    def only(changed):
        def run(m, a):
            return (trial.run(m, a)[0] + np.float32(changed()),)

        monkeypatch.setattr(script, "trials", lambda quick: iter([replace(trial, run=run)]))

    return only


def other(ran):
    return [circumstance for circumstance, same in ran.same.items() if not same]


def test_bits_that_depend_on_circumstances_are_noticed(script, changing):
    changing(lambda: fastrnn.get_num_threads() == 3)
    assert [other(ran) for ran in script.everything_on("cpu", True).values()] == [["on 3 threads"]] * 2
    calls = iter(range(99))
    changing(lambda: next(calls) % 5 == 4)  # four numbers of threads, and once more
    assert [other(ran) for ran in dict(script.each_on("cpu", True)).values()] == [[script.SECOND]] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_bits_that_depend_on_the_process_are_noticed(script, changing, monkeypatch):
    here = os.getpid()
    changing(lambda: os.getpid() != here)
    found = script.everything_on("cpu", True)
    assert [other(ran) for ran in found.values()] == [[script.FORK]] * 2
    changing(lambda: False)
    elsewhere = {name: replace(ran, results=(ran.results[0] + 1,)) for name, ran in found.items()}
    monkeypatch.setattr(script, "in_a_process", lambda *arguments: elsewhere)
    complaints = script.measure(quick=True).complaints()
    assert sum("has other bits in another process" in one for one in complaints) >= 2
    with pytest.raises(RuntimeError, match="a fork of the process ended without results"):
        script.forked(lambda: os._exit(3))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("n", "size_d"), [(128, 3), (129, 3), (600, 5), (20_000, 4), (60_000, 2)])
def test_numba_sums_frequent_words_as_the_compiled_kernels_do(n, size_d, add):
    """Words with one position less than a part, as many, one more, two parts, and several."""
    if fastrnn.backend_status()["numba"]:
        pytest.skip(fastrnn.backend_status()["numba"])
    rng = np.random.default_rng(n)
    part = max(128, -(-n // 128))
    counts = np.array([part - 1, part, part + 1, 2 * part - 1, 2 * part, 5 * part + 7])
    ids = np.repeat(np.arange(len(counts)), counts)[:n]
    ids = rng.permutation(np.concatenate([ids, rng.integers(len(counts), 900, n - len(ids))]))
    dout = rng.standard_normal((n, size_d)).astype(np.float32)
    found = []
    for name in ("cpu", "numba"):
        with fastrnn.backend(name):
            _, cache = fastrnn.word_embedding_forward(ids, np.zeros((900, size_d), np.float32))
            out = np.full((900, size_d), 0.1, np.float32) if add else None
            dW = fastrnn.word_embedding_backward(dout, cache, out=out)
            rows, values = fastrnn.word_embedding_backward(dout, cache, sparse=True)
            assert add or np.array_equal(values, dW[rows])
            found.append((dW.tobytes(), values.tobytes()))
    assert found[0] == found[1]


# ---- what is taken as exact ------------------------------------------------------------------------------------------


def test_long_sums_are_exact(script):
    arrays = script.cast(script.embedding_inputs(2_000), np.longdouble)
    right = math.fsum(arrays["dout"][..., 0].ravel().astype(float))
    assert abs(float(script.embedding_exact(arrays)[0][1, 0]) - right) <= np.spacing(right)
    arrays = script.cast(script.cast(script.gram_inputs(20), np.float32), np.longdouble)
    flat = arrays["features"][0].reshape(8, -1).astype(float)
    for i, j in ((0, 0), (2, 5)):
        right = math.fsum(flat[i] * flat[j]) / flat.size  # products of float32 numbers are exact in float64
        assert abs(float(script.gram_exact(arrays)[0][0, i, j]) - right) <= np.spacing(right)


def test_the_adam_rule_is_exact(script):
    """In rational numbers, but for square roots, which are taken of numbers rounded to long double."""
    arrays = script.cast(script.adam_inputs(7, 3), np.longdouble)
    w, m, v = script.adam_exact(arrays)
    beta1, beta2, rate, epsilon = map(Fraction, (0.9, 0.999, 1e-3, 1e-8))
    right_m = right_v = Fraction(0)
    right_w = Fraction(float(arrays["w"][1]))
    for t, dw in enumerate(Fraction(float(dw)) for dw in arrays["dw"][:, 1]):
        right_m = beta1 * right_m + (1 - beta1) * dw
        right_v = beta2 * right_v + (1 - beta2) * dw * dw
        root = Fraction(math.sqrt(right_v / (1 - beta2 ** (t + 1))))
        right_w -= rate * (right_m / (1 - beta1 ** (t + 1))) / (root + epsilon)
    for found, right in ((w[1], right_w), (m[1], right_m), (v[1], right_v)):
        assert abs(float(found - np.longdouble(float(right)))) <= np.spacing(abs(float(right)))


def test_sigmoid_and_tanh_are_exact(script):
    """Beside a hundred digits."""
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")
    from fastrnn import reference

    arrays = script.cast(script.cast(script.activation_inputs(1), np.float32), np.longdouble)
    values = [float(x) for x in arrays["x"][:, 0]]
    with mpmath.workdps(100):
        rights = {
            "sigmoid": [1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in values],
            "tanh": [mpmath.tanh(mpmath.mpf(x)) for x in values],
        }
        for name, right in rights.items():
            for found, wanted in zip(getattr(script, name)(reference, arrays)[0][:, 0], right, strict=True):
                high = float(found)
                error = abs(mpmath.mpf(high) + mpmath.mpf(float(found - np.longdouble(high))) - wanted)
                assert error <= 2.0**-60 * abs(wanted) + mpmath.mpf(2) ** -1070, name


# ---- the page and the command ----------------------------------------------------------------------------------------


def test_the_page(script, findings):
    text = script.page(findings, "abcdef")
    assert "commit abcdef" in text and "all within the tolerance rule" in text and "✗ |" not in text
    assert "nan" not in text and "inf" not in text.split("## At a glance")[1]
    for trial in findings.trials:
        section = text.split(f"### {trial.title}\n")[1].split("\n## ")[0].split("\n### ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("|  |")]
        assert len(rows) == len(findings.errors[script.key(trial, "float32")])
    lines = text.splitlines()
    assert max(map(len, (line for line in lines if not line.startswith("|")))) <= 120
    assert max(line.count("|") for line in lines) <= 6, "five columns are what a phone shows"


def test_where_pytorch_is_nearer_is_told(script, findings):
    name = "gram float32"
    errors = findings.errors[name]
    who = next(iter(findings.ours))
    theirs = errors | {"PyTorch": replace(errors["NumPy"], eps=errors[who].eps / 8)}
    text = "\n".join(script.beside_torch(replace(findings, errors={name: theirs}, trials=findings.trials)))
    assert "Gram matrix of 10,000 positions: float32, C++ |" in text
    theirs["PyTorch"] = replace(errors["NumPy"], eps=1e3)
    text = "\n".join(script.beside_torch(replace(findings, errors={name: theirs})))
    assert "PyTorch's in 0." in text and "Gram" not in text
    without = {who: error for who, error in errors.items() if who != "PyTorch"}
    assert script.beside_torch(replace(findings, errors={name: without})) == []


@pytest.fixture
def command(script, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            script.main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_command_writes_the_page(script, findings, command, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "measure", lambda quick, say: findings)
    code, printed, _ = command("--quick", "--out", tmp_path / "page.md")
    assert code == 0 and "page.md" in printed
    assert (tmp_path / "page.md").read_text().startswith("# Accuracy\n")
    code, printed, _ = command("--quick")
    assert code == 0 and printed == (tmp_path / "page.md").read_text()
    monkeypatch.setattr(script, "PAGE", tmp_path / "accuracy.md")
    monkeypatch.setattr(script.evidence, "FOLDER", tmp_path / "evidence")
    code, printed, _ = command()
    record = json.loads((tmp_path / "evidence" / "accuracy.json").read_text())
    assert code == 0 and (tmp_path / "accuracy.md").exists() and "accuracy.json" in printed
    assert (record["tried"], record["outcome"]) == script.outcome(findings)
    (tmp_path / "evidence" / "accuracy.json").unlink()
    monkeypatch.setattr(type(findings), "complaints", lambda self: ["lstm float32: wrong"])
    assert command()[0] == 1 and not list((tmp_path / "evidence").iterdir()), "recorded, although something is wrong"
    code, _, complained = command("--quick")
    assert code == 1 and complained == "accuracy: lstm float32: wrong\n"


def test_the_command_ends_with_one_line(script, command, monkeypatch, tmp_path):
    code, _, complained = command("--out", tmp_path / "nowhere" / "page.md")
    assert code == 2 and complained.count("\n") == 1 and "there is no folder" in complained

    def ends_with(error):
        def measure(*_):
            raise error

        monkeypatch.setattr(script, "measure", measure)
        return command("--out", tmp_path / "page.md")

    code, _, complained = ends_with(KeyboardInterrupt())
    assert code == 130 and complained == "accuracy: interrupted\n"
    code, _, complained = ends_with(RuntimeError("on instruction set avx2: killed"))
    assert code == 2 and complained == "accuracy: on instruction set avx2: killed\n"
    assert list(tmp_path.iterdir()) == []
