"""What the documents say is so."""

import code
import re
import subprocess
import sys
from importlib.util import find_spec

import documents
import pytest

import fastrnn

ROOT = documents.ROOT
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = {path: documents.blocks_of(path) for path in documents.PAGES}
EVERY = [block for blocks in BLOCKS.values() for block in blocks]
# What the code of a page needs beside what the package does.
NEEDED = {
    "captioning": ("h5py", "sklearn"),
    "captioning_data": ("h5py",),
    "captioning_decoding": ("h5py", "sklearn", "sacrebleu", "matplotlib"),
    "distributed": ("h5py", "sklearn"),
    "jax": ("jax",),
    "torch": ("torch",),
    "visualisation": ("torch", "sklearn", "matplotlib", "PIL"),
    "style": ("torch", "sklearn", "matplotlib", "PIL"),
    "gan": ("torch", "sklearn", "matplotlib", "PIL"),
}


def test_the_code_of_the_readme_is_short(capsys):
    text = next(block.text for block in BLOCKS[ROOT / "README.md"] if block.kind == "python")
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 10
    names: dict = {}
    exec(compile(text, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() == fastrnn.available_backends()[0]
    assert names["dWx"].shape == (256, 2048) and names["dh0"].shape == (25, 512)


# ---- blocks of code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path, blocks in BLOCKS.items() if any(b.is_run for b in blocks)], ids=lambda path: path.name
)
def test_the_code_of_a_page_runs(path, monkeypatch, tmp_path, restored):
    """All blocks of a page, one after another, as a reader would run them, with the output and the errors shown."""
    for name in NEEDED.get(path.stem, ()):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in BLOCKS[path]:
        if block.is_run and block.kind == "python":
            documents.run_python(block, names)
        elif block.is_run:
            documents.run_console(block, tmp_path)


def test_the_tutorial_can_be_pasted_into_a_prompt():
    """Where a blank line ends a function, and a statement after a block needs one before it."""
    for block in BLOCKS[ROOT / "docs" / "tutorial.md"]:
        if block.is_run and block.kind == "python":
            assert _pasted(block.text), f"{block} cannot be pasted"
    assert not _pasted("def f():\n    a = 1\n\n    return a\n")
    assert not _pasted("for i in range(2):\n    print(i)\nprint(3)\n")


def _pasted(text):
    """Whether a Python prompt takes the lines; nothing is run."""
    prompt, wrong = code.InteractiveConsole(), []
    prompt.runcode = lambda compiled: None
    prompt.showsyntaxerror = lambda *names, **more: wrong.append(names)
    for line in [*text.splitlines(), ""]:
        prompt.push(line)
    return not wrong


@pytest.fixture
def restored(monkeypatch):
    """What code may set for the process is as before."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads, modules = fastrnn.get_num_threads(), set(sys.modules)
    yield
    fastrnn.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("project", "cs231n_style"):
            del sys.modules[name]


def test_every_fenced_block_is_run_or_says_why_not():
    """A fence of another kind would be code that nobody runs."""
    for block in EVERY:
        if block.note.startswith("provoked by: "):
            assert block.path.stem == "troubleshooting" and block.kind in ("pytb", "text"), str(block)
        elif block.note.startswith("file: "):
            assert block.path.stem == "add_a_kernel", str(block)
        elif block.kind in documents.RUN:
            assert block.is_run or len(block.note) > len("not run: "), str(block)
        else:
            assert block.kind in ("", "text", "pytb"), f"{block} is of kind {block.kind!r}"
    outputs = [block for block in EVERY if block.kind in ("text", "pytb") and not block.note]
    assert len(outputs) == sum((block.prints is not None) + (block.raises is not None) for block in EVERY)


def test_python_that_is_shown_but_indented(restored):
    """The README has two lines in this form; they name a model that the reader has."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    found = [block for block in EVERY if block.kind == "" and re.match(r"(import|from) ", block.text)]
    assert found
    for block in found:
        model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 4, batch_first=True)})
        exec(compile(block.text, str(block), "exec"), {"model": model})
        assert type(model["lstm"]).__module__.startswith("fastrnn.torch")


COMMANDS = [(str(block), words) for block in EVERY for words in documents.commands_of(block)]


def test_the_commands_that_are_shown_would_run():
    """Names, options and values are parsed as the command line does, without running the command."""
    from typer.main import get_command

    from fastrnn.cli.main import UsageError, app

    parsed = 0
    for where, (program, *words) in COMMANDS:
        if program != "fastrnn" or "||" in words or "…" in words:  # bad usage on purpose, or the rest is left out
            continue
        command, context = get_command(app), None
        try:
            while words and hasattr(command, "commands"):
                command, words = command.commands[words[0]], words[1:]
            context = command.make_context("fastrnn", words)
        except (KeyError, UsageError) as error:
            pytest.fail(f"{where}: fastrnn {' '.join(words)}: {error!r}")
        assert context.command is command
        parsed += 1
    assert parsed > 50


def test_the_extras_and_targets_that_are_shown_exist():
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    for where, words in COMMANDS:
        if words[0] == "pip":
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert extra in extras, f"{where}: {extra}"
        elif words[0] == "make":
            for target in words[1:]:
                if re.fullmatch(r"[a-z-]+", target) and target != "make":
                    assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{where}: make {target}"


def test_what_this_file_finds_in_a_page(tmp_path):
    """The rules of documents.py, on a page that breaks them one by one."""
    path = tmp_path / "page.md"
    path.write_text(
        "```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n\n```python\n1 / 0\n```\n\n"
        "```pytb\nZeroDivisionError: …\n```\n\n<!-- not run: it waits -->\n```python\nimport nothing\n```\n\n"
        "```console\n$ echo a; echo b\na\n…\n```\n"
    )
    two, zero, waits, echo = (block for block in documents.blocks_of(path) if block.kind in documents.RUN)
    assert (two.prints, zero.raises, waits.is_run, two.is_run) == ("2\n", "ZeroDivisionError: …", False, True)
    documents.run_python(two, {})
    documents.run_python(zero, {})
    documents.run_console(echo, tmp_path)
    two.prints, zero.raises, echo.text = "3\n", "ZeroDivisionError: never", "$ echo a\nb\n"
    for wrong in (
        lambda: documents.run_python(two, {}),
        lambda: documents.run_python(zero, {}),
        lambda: documents.run_console(echo, tmp_path),
    ):
        with pytest.raises(AssertionError, match="but this came"):
            wrong()
    zero.text = "0 / 1"
    with pytest.raises(AssertionError, match="should end with"):
        documents.run_python(zero, {})
    echo.text = "$ false\n"
    with pytest.raises(AssertionError):
        documents.run_console(echo, tmp_path)


# ---- links, names ----------------------------------------------------------------------------------------------------


def headings(path):
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_what_the_documents_link_to_is_there(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), link
        assert not anchor or anchor in headings(there), link


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


def test_the_pictures_of_the_engine_are_those_that_the_script_draws(monkeypatch):
    """By the words in them: lines may lie elsewhere with another version of Matplotlib."""
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import build_engine_pictures

    shown = set(re.findall(r"\]\(engine/(\w+)\.svg\)", (ROOT / "docs" / "engine.md").read_text()))
    files = {path.stem for path in build_engine_pictures.FOLDER.glob("*.svg")}
    assert shown == files == set(build_engine_pictures.PICTURES)
    for name in shown:
        there = (build_engine_pictures.FOLDER / f"{name}.svg").read_text()
        drawn = build_engine_pictures.picture(name).decode()
        words = [re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in (there, drawn)]
        assert len(words[0]) > 5 and words[0] == words[1], f"run docs/build_engine_pictures.py: {name} has changed"
        assert "prefers-color-scheme:dark" in there and not re.search(r"(fill|stroke): #(?!000)", there)


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
