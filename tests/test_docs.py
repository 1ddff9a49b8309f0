"""What the documents say is so."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_code_of_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() == fastrnn.available_backends()[0]
    assert names["dWx"].shape == (256, 2048) and names["dh0"].shape == (25, 512)


DOCS = sorted((ROOT / "docs").glob("*.md"))
# What the code of a document needs, where that is not the library that it has its name from.
NEEDED = {
    "captioning": ("h5py", "sklearn"),
    "captioning_data": ("h5py",),
    "captioning_decoding": ("h5py", "sklearn", "sacrebleu", "matplotlib"),
    "distributed": ("h5py", "sklearn"),
    "visualisation": ("torch", "sklearn", "matplotlib", "PIL"),
    "style": ("torch", "sklearn", "matplotlib", "PIL"),
    "gan": ("torch", "sklearn", "matplotlib", "PIL"),
}


@pytest.mark.parametrize(
    "path",
    [path for path in DOCS if path.stem not in ("speed", "gallery", "evidence", "mutations")],
    ids=lambda path: path.name,
)
def test_the_code_of_the_documents_runs(path, monkeypatch):
    """All blocks of a document, one after another, as a reader would run them."""
    for name in NEEDED.get(path.stem, (path.stem,)):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(ROOT)
    threads = fastrnn.get_num_threads()
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    names: dict = {}
    try:
        for block in blocks:
            exec(compile(block, path.name, "exec"), names)
    finally:
        fastrnn.set_num_threads(threads)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_the_documents_link_to_is_there(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((path.parent / link).exists() for link in links if not link.startswith("https://"))


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE))
    assert {"demo", "test", "bench", "readme", "help", "format"} <= named
    for target in named:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


SEEING = ("saliency", "fool", "visualize", "style", "texture", "invert", "gan")


def test_the_commands_of_the_readme_exist():
    from typer.main import get_command

    from fastrnn.cli.main import app

    commands = get_command(app).commands
    named = set(re.findall(r"(?:`|bin/|^    )fastrnn ([a-z]+)", README + CONTRIBUTING, re.MULTILINE))
    assert (
        named == {"info", "check", "bench", "demo", "train", "caption", "evaluate", "data", *SEEING} <= commands.keys()
    )
    every = [one for command in commands.values() for one in (command, *getattr(command, "commands", {}).values())]
    options = {option for command in every for p in command.params for option in p.opts}
    for option in re.findall(r"--[a-z][a-z-]*", README + CONTRIBUTING):
        assert option in options, option


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_attributes_that_are_named_exist(text):
    compiled = set(re.findall(r"pybind11_add_module\((\w+)", (ROOT / "CMakeLists.txt").read_text()))
    for name in set(re.findall(r"`fastrnn\.([a-z0-9_]+)", text)) - compiled:
        assert hasattr(fastrnn, name) or find_spec(f"fastrnn.{name}"), name


def test_the_tree_of_contributing_is_there():
    block = "fastrnn/\n" + CONTRIBUTING.split("\n\n    fastrnn/\n")[1].split("\n\n")[0]
    folder = ""
    for line in block.splitlines():
        names = re.split(r"  +", line.strip())[0].split()  # two spaces begin what is said about them
        if not line.startswith("      "):
            folder, names = names[0], [""]
        for name in names:
            assert (ROOT / folder / name).exists(), f"{folder}{name}"


def test_contributing_has_its_two_lists():
    for title in ("Adding an operation", "Adding a backend"):
        section = CONTRIBUTING.split(f"## {title}\n")[1].split("\n## ")[0]
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 3


def test_the_example_prints_a_comparison():
    script = ROOT / "examples" / "patch_before_after.py"
    done = subprocess.run([sys.executable, str(script), "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "times as fast" in done.stdout
