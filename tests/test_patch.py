"""`fastrnn.patch`: what it swaps, what it leaves and why, and the way back."""

import inspect
import sys
import textwrap
import types

import numpy as np
import pytest

import fastrnn

SOURCE = """
    import functools
    import numpy as np

    def affine_forward(x, w, b): return "theirs"
    def affine_backward(dout, cache): return "theirs"
    def sgd(x, dx, config=None): return "theirs"             # other names, same places
    def sgd_momentum(dw, w, config=None): return "theirs"    # other places
    def rmsprop(w, dw, config=None, *, clip=1): return "theirs"
    def adam(w, dw, config): return "theirs"                 # one less optional
    def tv_loss(img): return "theirs"
    def gram_matrix(features, normalize=False): return "theirs"
    def temporal_softmax_loss(x, y, mask, verbose=False, smooth=0): return "theirs"
    def rnn_step_forward(x, prev_h, Wx, Wh, b): return "theirs"
    def rnn_step_backward(dnext_h, cache, clip): return "theirs"
    def gru_forward(x, h0, Wx, Wh, b): return "theirs"
    def gru_backward(dh, cache): return "theirs"
    content_loss = functools.partial(affine_forward, 1)
    def unrelated(x): return "theirs"
"""
SWAPPED = {"affine_forward", "affine_backward", "sgd", "adam"}
KEPT = {
    "sgd_momentum": "takes 'dw' as argument 1; fastrnn's is number 2",
    "rmsprop": "takes clip=1",
    "tv_loss": "takes 1 arguments; fastrnn's are (img, tv_weight)",
    "gram_matrix": "has 'normalize' default to False; fastrnn's defaults to True",
    "temporal_softmax_loss": "takes 5 arguments",
    "rnn_step_forward": "shares a cache with rnn_step_backward",
    "rnn_step_backward": "takes 3 arguments",
    "gru_forward": "gate orders differ",
    "gru_backward": "gate orders differ",
    "content_loss": "no plain Python function but partial",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The modules `theirs` and `user`, which took all of its names."""
    (tmp_path / "theirs.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "user.py").write_text("from theirs import *\nfrom theirs import sgd as descend\n")
    (tmp_path / "late.py").write_text("from theirs import *\nfrom fastrnn import adam as ours\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs
    import user

    yield theirs, user
    for name in ("theirs", "user", "late", "empty", "broken"):
        sys.modules.pop(name, None)


def originals(module):
    return {name: value for name, value in vars(module).items() if callable(value)}


def is_ours(function, name):
    return function.__code__ is getattr(fastrnn, name).__code__


def test_swaps_what_fits_and_says_why_it_keeps_the_rest(project):
    theirs, user = project
    before = originals(theirs)
    with fastrnn.patch("theirs") as patched:
        assert set(patched.swapped) == SWAPPED
        assert patched.kept.keys() == KEPT.keys()
        for name, reason in KEPT.items():
            assert reason in patched.kept[name]
            assert getattr(theirs, name) is before[name]
        for name in SWAPPED:
            assert is_ours(getattr(theirs, name), name) and is_ours(getattr(user, name), name)
        assert theirs.unrelated(1) == "theirs"
        out, _ = user.affine_forward(np.ones((2, 3)), np.ones((3, 4)), np.ones(4))
        assert np.array_equal(out, np.full((2, 4), 4.0))
    assert originals(theirs) == before


def test_functions_bound_elsewhere_are_swapped_too(project):
    theirs, user = project
    with fastrnn.patch(theirs) as patched:
        assert set(patched.swapped["sgd"]) == {"theirs.sgd", "user.sgd", "user.descend"}
        assert user.descend is theirs.sgd
    assert user.descend is theirs.sgd and user.descend(1, 2) == "theirs"


def test_it_can_be_read(project):
    with fastrnn.patch("theirs") as patched:
        lines = str(patched).splitlines()
    assert lines[0] == "fastrnn.patch('theirs'): 4 swapped, 10 kept"
    assert any(line.split() == ["swapped", "sgd", "in", "theirs,", "user,", "user"] for line in lines)
    assert any(line.startswith("  kept     tv_loss") and line.endswith(KEPT["tv_loss"]) for line in lines)
    assert len(lines) == 15


def test_undo(project):
    theirs, user = project
    before, elsewhere = originals(theirs), originals(user)
    patched = fastrnn.patch("theirs")
    assert originals(theirs) != before
    patched.undo()
    assert originals(theirs) == before and originals(user) == elsewhere
    patched.undo()
    assert originals(theirs) == before


def test_undo_reaches_modules_imported_meanwhile_but_not_ours(project):
    theirs, _ = project
    with fastrnn.patch("theirs"):
        import late

        assert is_ours(late.adam, "adam")
    assert late.adam is theirs.adam and late.adam(1, 2, 3) == "theirs"
    assert late.ours is fastrnn.adam


def test_undo_leaves_what_somebody_else_put_there(project):
    theirs, _ = project
    patched = fastrnn.patch("theirs")
    theirs.sgd = mine = lambda *_: "mine"
    patched.undo()
    assert theirs.sgd is mine
    assert theirs.adam(1, 2, 3) == "theirs"


def test_undone_when_the_block_raises(project):
    theirs, _ = project
    with pytest.raises(ZeroDivisionError), fastrnn.patch("theirs"):
        raise ZeroDivisionError
    assert theirs.sgd(1, 2) == "theirs"


def test_twice_is_once(project):
    theirs, _ = project
    first = fastrnn.patch("theirs")
    bound = originals(theirs)
    second = fastrnn.patch("theirs")
    assert not second.swapped and originals(theirs) == bound
    assert {name for name, reason in second.kept.items() if reason == "is fastrnn's already"} == SWAPPED
    second.undo()
    assert originals(theirs) == bound
    first.undo()
    assert theirs.sgd(1, 2) == "theirs"


@pytest.mark.parametrize("only", ["sgd", ["sgd"], ("sgd",)])
def test_only_some(project, only):
    theirs, _ = project
    with fastrnn.patch("theirs", only=only) as patched:
        assert set(patched.swapped) == {"sgd"} and not patched.kept
        assert theirs.affine_forward(1, 2, 3) == "theirs"


def test_gru_on_demand(project):
    with fastrnn.patch("theirs", only=["gru_forward", "gru_backward"]) as patched:
        assert set(patched.swapped) == {"gru_forward", "gru_backward"}


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("affine_forward", "shares a cache with affine_backward, which is not swapped in only="),
        ("tv_loss", "tv_loss takes 1 arguments"),
        ("lstm_forward", "module 'theirs' has no 'lstm_forward'"),
        ("unrelated", "only='unrelated' is no function of fastrnn's drop-in API"),
        ([], "names nothing"),
    ],
)
def test_only_what_can_be_swapped(project, only, words):
    theirs, _ = project
    before = originals(theirs)
    with pytest.raises(ValueError, match="^patch: ") as caught:
        fastrnn.patch("theirs", only=only)
    assert words in str(caught.value)
    assert originals(theirs) == before


def test_a_module_that_does_not_exist():
    with pytest.raises(ModuleNotFoundError, match="patch: there is no module 'nowhere.at_all'"):
        fastrnn.patch("nowhere.at_all")


def test_a_module_that_imports_what_does_not_exist(project):
    with pytest.raises(ModuleNotFoundError, match="^No module named 'not_there_at_all'"):
        fastrnn.patch("broken")


def test_a_module_with_nothing_to_swap(project):
    with pytest.raises(ValueError, match="patch: module 'empty' has nothing to swap: it has none of fastrnn's names"):
        fastrnn.patch("empty")


def test_a_package_whose_module_was_meant(monkeypatch):
    package, inside = types.ModuleType("package"), types.ModuleType("package.layers")
    exec("def sgd(w, dw, config=None): pass", vars(inside))
    monkeypatch.setitem(sys.modules, "package", package)
    monkeypatch.setitem(sys.modules, "package.layers", inside)
    with pytest.raises(ValueError, match="did you mean 'package.layers'"):
        fastrnn.patch(package)


@pytest.mark.parametrize("module", [None, 3, ["theirs"], fastrnn.sgd])
def test_not_a_module(module):
    with pytest.raises(TypeError, match="argument 'module' must be a module or its name"):
        fastrnn.patch(module)


def test_ours_look_like_themselves(project):
    theirs, _ = project
    with fastrnn.patch("theirs"):
        assert theirs.adam is not fastrnn.adam
        assert inspect.signature(theirs.adam) == inspect.signature(fastrnn.adam)
        assert theirs.adam.__doc__ == fastrnn.adam.__doc__ and theirs.adam.__module__ == "fastrnn.ops.optim"
        assert inspect.getsource(theirs.adam) == inspect.getsource(fastrnn.adam)


def test_no_operation_of_ours_needs_another_name():
    """Every drop-in function could be swapped for itself under another object: signatures compare as equal."""
    from fastrnn.patch import _api, _mismatch

    for function in _api().values():
        twin = types.FunctionType(compile("def f(): 0", "f", "exec").co_consts[0], {})
        twin.__signature__ = inspect.Signature(
            [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        )
        assert _mismatch(twin, function) == ""


# ---- the example ---------------------------------------------------------------------------------------------------


def test_the_example_runs_unchanged(monkeypatch, capsys):
    from pathlib import Path

    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "examples")
    import patch_before_after

    sizes = {"batch_size": 8, "time_steps": 6, "vocab_size": 30, "input_dim": 10, "wordvec_dim": 12, "hidden_dim": 14}
    before, after, (layers, optim) = patch_before_after.main(60, **sizes)
    assert np.mean(before[-5:]) < np.mean(before[:5])
    np.testing.assert_allclose(after, before, rtol=1e-3)
    assert len(layers.swapped) == 11 and set(optim.swapped) == {"adam"} and not layers.kept and not optim.kept
    printed = capsys.readouterr().out
    assert "11 swapped, 0 kept" in printed and "times as fast" in printed
    assert not is_ours(sys.modules["cs231n_style.train"].lstm_forward, "lstm_forward")
