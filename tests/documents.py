"""The blocks of code in the documents: what they are, and how a reader would run them.

- ``python`` blocks of a page are run one after another, in one namespace.
- ``console`` blocks: the lines that begin with ``$`` are run by a shell, in a new folder.
- A ``text`` block right after either is what it prints; ``…`` stands for whatever differs from run to run.
- A ``pytb`` block right after either is the error that it ends with: the last line of the traceback.
- ``<!-- file: path -->`` right before a block says that it is a file, or with ``diff`` a change of one.
- ``<!-- not run: why -->`` right before a block says that it is not run here. Indented blocks never are: they show
  commands (whose names and options are checked), formulas and output.

    python tests/documents.py    # as `make documents`: run them all, and keep the figures
"""

import builtins
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "console")
HOLD = ("test_docs.py", "test_troubleshooting.py", "test_add_a_kernel.py")  # what holds the documents to what is so
done = set()  # path and line of every block that ran, or whose message was provoked, in this process


@dataclass
class Block:
    """A block of code of a page.

    Attributes
    ----------
    path, line : where it begins
    kind : the word after the fence; "" for an indented block
    text : what stands in it
    note : what the comment right before it says, if there is one
    prints, raises : what the block right after it says that it does
    """

    path: Path
    line: int
    kind: str
    text: str
    note: str = ""
    prints: str | None = None
    raises: str | None = None

    @property
    def is_run(self):
        return self.kind in RUN and not self.note.startswith(("not run: ", "file: "))

    def __str__(self):
        return f"{self.path.name}:{self.line}"


def blocks_of(path):
    """All blocks of a page, outputs with what prints them."""
    found, comment, previous = [], "", None
    for token in MarkdownIt("commonmark").parse(path.read_text()):
        if token.type == "fence" and token.info.startswith("{"):
            comment, previous = "", None  # no code, but what the site shows there
        elif token.type in ("fence", "code_block"):
            block = Block(path, token.map[0] + 1, token.info.strip(), token.content, comment)
            found.append(block)
            if previous and block.kind == "text" and not comment:
                previous.prints = block.text
            elif previous and block.kind == "pytb" and not comment:
                previous.raises = block.text.strip()
            previous, comment = (block, "") if block.kind in RUN else (None, "")
        else:
            match = re.fullmatch(r"<!-- (.*?) -->\s*", token.content) if token.type == "html_block" else None
            comment, previous = match[1] if match else "", None
    return found


def pattern(shown):
    """A regular expression for what a page shows."""
    lines = [line.rstrip() for line in shown.strip("\n").splitlines()]
    return re.compile(".*".join(map(re.escape, "\n".join(lines).split("…"))), re.DOTALL)


def assert_shown(shown, came, block):
    """What came is what the page shows at this block; white space at the ends of lines aside."""
    came = "\n".join(line.rstrip() for line in came.strip("\n").splitlines())
    assert pattern(shown).fullmatch(came), f"{block} shows\n{shown}\nbut this came:\n{came}"
    done.add((block.path, block.line))


def said(error):
    """The last line of a traceback, as Python prints it."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ == builtins.__name__ else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {error}"


def run_python(block, names):
    """Run a block as if it were pasted."""
    code, out, error = compile(block.text, str(block), "exec"), io.StringIO(), None
    with contextlib.redirect_stdout(out):
        try:
            exec(code, names)
        except Exception as caught:
            if block.raises is None:
                raise
            error = caught
    if block.raises is not None:
        assert error is not None, f"{block} should end with {block.raises}"
        assert_shown(block.raises, said(error), block)
    if block.prints is not None:
        assert_shown(block.prints, out.getvalue(), block)
    done.add((block.path, block.line))


def run_console(block, folder):
    """Run a block's commands in a shell, in which `python` and `fastrnn` are those of this environment."""
    lines = block.text.splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    printed = "\n".join(line for line in lines if not line.startswith("$ "))
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    env |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]),
        "COLUMNS": "160",
    }
    script = "set -e\n" + "\n".join(commands)
    ended = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if block.raises is not None:
        assert ended.returncode != 0, f"{block} should end with {block.raises}"
        assert_shown(block.raises, ended.stdout.strip().splitlines()[-1], block)
        return
    assert ended.returncode == 0, f"{block}: {ended.stdout}"
    if block.prints or printed:
        assert_shown(block.prints or printed, ended.stdout, block)
    done.add((block.path, block.line))


def commands_of(block):
    """The commands that a block shows, without prompt, environment, folder and comment: lists of words."""
    if block.kind not in ("", "console", "sh"):
        return
    lines = block.text.replace("\\\n", " ").splitlines()
    if prompted := [line for line in lines if line.startswith("$ ")]:  # the rest is output
        lines = prompted
    for line in lines:
        line = re.sub(r"^(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?", "", line)
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe in a picture of a tree
            continue
        for i in range(1, len(words)):  # under a launcher: python -m fastrnn, torchrun … -m fastrnn
            if words[i - 1 : i + 1] == ["-m", "fastrnn"]:
                words = words[i:]
                break
        if words and words[0] in ("fastrnn", "make", "pip"):
            yield words


def main():
    """Run what holds the documents, and keep how much of them ran."""
    import pytest

    start = time.perf_counter()
    code = pytest.main([str(ROOT / "tests" / name) for name in HOLD])
    if code:
        return code
    sys.path.insert(0, str(ROOT / "bench"))
    import evidence

    blocks = [block for path in PAGES for block in blocks_of(path)]
    ran = [block for block in blocks if (block.path, block.line) in done]
    code = [block for block in ran if block.kind in RUN or block.note.startswith("file: ")]
    messages = [block for block in ran if block.raises or block.note.startswith("provoked by: ")]
    messages = [block for block in messages if block.path.stem == "troubleshooting"]
    not_run = [block for block in blocks if block.kind in RUN and block not in code]
    path = evidence.record(
        "documents",
        tried=f"{len(code)} blocks of code on {len({block.path for block in code})} pages, {len(messages)} messages",
        outcome=f"all run, print and raise what is shown; {len(not_run)} blocks not run here",
        seconds=time.perf_counter() - start,
        details={"not run": [f"{block}: {block.note.removeprefix('not run: ') or 'skipped'}" for block in not_run]},
    )
    print(f"record  {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    import documents  # the tests' own copy, in which they note what ran

    sys.exit(documents.main())
