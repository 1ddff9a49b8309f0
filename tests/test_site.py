"""The documentation as a site: what is on it, and that the checks of it see what they are there to see."""

import ast
import csv
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Modules whose names are documented; other modules are details.
PUBLIC = [
    "fastrnn",
    "fastrnn.captioning",
    "fastrnn.gradient_check",
    "fastrnn.layers",
    "fastrnn.optim",
    "fastrnn.reference",
    "fastrnn.rnn_layers",
    "fastrnn.torch",
    "fastrnn.vision",
    "fastrnn.vision.gan_pictures",
    "fastrnn.vision.style_pictures",
    "fastrnn.vision.visualisation_pictures",
]
DROP_IN = ("fastrnn.layers", "fastrnn.optim", "fastrnn.rnn_layers")


def loaded(name, folder=DOCS):
    """A script that is not part of the package."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    before = set(sys.modules)
    yield loaded
    for name in ("build_benchmarks", "check_site", "mathml"):
        if name not in before:
            sys.modules.pop(name, None)


# ---- the API reference ---------------------------------------------------------------------------------------------


def names_of(module):
    """``__all__`` of a module, without importing it: some need what is not installed."""
    path = ROOT.joinpath(*module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    return names


def documented():
    """Full names of everything that has an entry on the pages of the API."""
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    names = re.findall(
        r"^\.\. (?:auto(?:function|class|exception|data)|py:(?:data|function)):: ([\w.]+)", text, flags=re.M
    )
    for module in re.findall(r"^\.\. automodule:: (\S+)\n   :members:$", text, flags=re.M):
        names += [f"{module}.{name}" for name in names_of(module)]
    return names


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_api_reference(module):
    entries = set(documented())
    if module in DROP_IN:  # the functions of others, which a section of its own links to
        section = re.search(rf"^## {module}\n(.*?)(?=^## |\Z)", (DOCS / "api" / "drop_in.md").read_text(), re.M | re.S)[
            1
        ]
        linked = re.findall(r"\{py:func\}`~([\w.]+)`", section)
        assert set(linked) <= entries
        assert sorted(name.rpartition(".")[2] for name in linked) == sorted(names_of(module))
    else:
        missing = [name for name in names_of(module) if f"{module}.{name}" not in entries]
        assert not missing


def test_no_entry_of_the_api_reference_is_there_twice():
    entries = documented()
    assert len(entries) == len(set(entries)) > 100


# Who adds a kernel imports what is not public.
FOR_USERS = [path for path in sorted(DOCS.glob("*.md")) if path.stem != "add_a_kernel"]


@pytest.mark.parametrize("path", FOR_USERS, ids=lambda path: path.name)
def test_what_the_documents_import_is_in_the_api_reference(path):
    entries, public = set(documented()), set(PUBLIC)
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastrnn":
                package = ".".join(node.module.split(".")[:2])  # which has the names of its modules
                for name in (alias.name for alias in node.names):
                    full = {f"{node.module}.{name}", f"{package}.{name}"}
                    if node.module in DROP_IN:
                        assert name in [*names_of(node.module), "*"], f"{node.module}.{name}"
                    else:
                        assert full & (entries | public), f"{node.module}.{name}"


# ---- pages ---------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_table_of_contents(script):
    """But for those that long checks write, which the page of the evidence links to once they are there."""
    there = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    listed = {"index"}
    for path in DOCS.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", path.read_text(), flags=re.M | re.S):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    listed.add(str((path.parent / line).relative_to(DOCS)))
    written = {check.page.removesuffix(".md") for check in importlib.import_module("bench.evidence").CHECKS.values()}
    assert listed <= there <= listed | written


# ---- benchmarks ----------------------------------------------------------------------------------------------------


def rows():
    with (ROOT / "bench" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_of_benchmarks_is_that_of_the_recorded_rows(script):
    made = script("build_benchmarks")
    text, pictures = made.page(rows())
    assert made.PAGE.read_text() == text, "make benchmarks writes it anew"
    assert set(pictures) == {path.name for path in made.PICTURES.iterdir()}
    for name in pictures:
        assert f"](benchmarks/{name})" in text


def test_losses_come_first_and_none_is_left_out(script):
    made = script("build_benchmarks")
    (first, *_) = rows()
    peers = {"cpu": "2.0", "numpy": "1.0", "torch": "1.9", "onnxruntime": "2.1"}
    text, pictures = made.page([{**first, "provider": name, "p50_ms": ms} for name, ms in peers.items()])
    losses = re.search(r"## Where fastrnn is slower\n(.*?)\n## ", text, re.S)[1]
    assert "2 of 3 comparisons" in losses
    assert re.findall(r"(NumPy|PyTorch|ONNX Runtime) \|.*?\| ([\d.]+)× \|", losses) == [
        ("NumPy", "0.5"),
        ("PyTorch", "0.95"),
    ]
    assert text.index("## Where fastrnn is slower") < text.index("## Every kernel")
    assert {name: [kernel[2] for kernel in kernels] for name, (kernels, _) in pictures.items()} == {
        "numpy.svg": [0.5],
        "torch.svg": [pytest.approx(0.95)],
        "onnxruntime.svg": [pytest.approx(1.05)],
    }


def test_a_picture_names_its_kernels_and_marks_what_is_slower(script):
    pytest.importorskip("matplotlib")
    made = script("build_benchmarks")
    drawn = made.picture([("slow_one", 0.4, 0.5, 0.7), ("fast_one", 1.5, 2.0, 12.0)], "PyTorch").decode()
    assert drawn == made.picture([("slow_one", 0.4, 0.5, 0.7), ("fast_one", 1.5, 2.0, 12.0)], "PyTorch").decode()
    for text in ("slow_one", "fast_one", "0.50×", "2.00×", "times as fast as PyTorch"):
        assert f">{text}</text>" in drawn
    faster = made.picture([("slow_one", 1.4, 1.5, 1.7), ("fast_one", 1.5, 2.0, 12.0)], "PyTorch").decode()
    assert drawn.count(made.SLOWER) > faster.count(made.SLOWER)


# ---- formulas, where what makes them is installed ------------------------------------------------------------------


def test_formulas_become_mathml(script):
    pytest.importorskip("latex2mathml")
    pytest.importorskip("sphinx")
    mathml = script("mathml", DOCS / "_ext").mathml
    assert mathml(r"c' = f \odot c", display=False).startswith("<math")
    assert 'display="block"' in mathml(r"\sum_t x_t", display=True)
    assert mathml(r"a &= b \\ c &= d", display=True).count("<mtr>") == 2
    for wrong in (r"\frobnicate{x}", r"\frac{1", r"a &= b", r"\begin{gathered}a \\ b\end{gathered}"):
        with pytest.raises(ValueError):
            mathml(wrong, display=True)


# ---- the check in the browser, where there is one ------------------------------------------------------------------

PAGE = (
    '<!doctype html><title>{0}</title><meta name="viewport" content="width=device-width"><h1>{0}</h1><main>{1}</main>'
)


@pytest.fixture
def checked(script, tmp_path):
    """The faults of a site that is made of the bodies of its pages."""
    pytest.importorskip("selenium")
    check_site = script("check_site")
    if not check_site.installed():
        pytest.skip("Chromium or its driver is not installed")

    def check(**bodies):
        for name, body in bodies.items():
            (tmp_path / f"{name}.html").write_text(PAGE.format(name, body))
        return check_site.check(tmp_path, searched={}).faults

    return check


GOOD = '<p id="here">words</p><div style="overflow-x: auto; width: 200px"><div style="width: 3000px">table</div></div>'


def test_a_site_without_faults_has_none(checked):
    assert checked(index=f'{GOOD}<a href="other.html#here">x</a>', other=f'{GOOD}<a href="#here">x</a>') == []


@pytest.mark.parametrize(
    "body, said",
    [
        ('<p style="width: 500px">wide', 'index.html at 390 px: sticks out of the window: p "wide"'),
        ('<p style="width: 2000px">wide', "index.html at 1440 px: the page is 2008 px wide"),
        ('<p style="margin-left: -50px">left', "index.html at 390 px: sticks out of the window"),
        (
            '<div style="overflow: hidden; width: 99px"><div style="width: 150px">cut',
            "index.html at 390 px: is cut off: div",
        ),
        (
            '<div class="highlight-pytb"><pre style="overflow-x: auto">' + 200 * "x",
            "index.html at 390 px: a message does not wrap: pre",
        ),
        ('<a href="index.html">docs/a.md</a>', "index.html at 390 px: a link says a file's name instead of a title: a"),
        ('<a href="gone.html">x</a>', "index.html: a dead link: gone.html"),
        ('<a href="#gone">x</a>', "index.html: no such place on the page: #gone"),
        ('<a href="http://example.org">x</a>', "index.html: a link to http://example.org"),
        ('<img src="gone.png" alt="">', "index.html at 390 px: no picture at gone.png"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">', "a picture without a description"),
        (
            '<link rel="stylesheet" href="http://127.0.0.1:9/a.css">',
            "index.html at 390 px: fetches http://127.0.0.1:9/",
        ),
        ("<script>nothing.here()</script>", "nothing is not defined"),
        ("<h1>again</h1>", "index.html: 2 titles"),
        ("<script>document.querySelector('meta').remove()</script>", "no viewport is set"),
    ],
    ids=[
        "wide",
        "very wide",
        "left",
        "cut",
        "message",
        "file name",
        "link",
        "place",
        "http",
        "picture",
        "description",
        "fetch",
        "script",
        "titles",
        "viewport",
    ],
)
def test_faults_of_a_page_are_found(checked, body, said):
    assert any(said in fault for fault in checked(index=body)), said


def test_a_page_that_no_link_leads_to_is_found(checked):
    assert checked(index=GOOD, lonely=GOOD) == ["lonely.html: no link leads there"]
