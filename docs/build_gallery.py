"""Write docs/gallery.md and its pictures: what each command of the visual systems shows when it is run as it is.

Every command runs in an empty folder and with an empty cache, as on its first day. The page is written only when all of
them have ended well.

    python docs/build_gallery.py                            # as `make gallery`: all of them
    python docs/build_gallery.py --out /tmp/look fool style  # some of them, to look at
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastrnn.cli import common
from fastrnn.runs import write_whole

DOCS = Path(__file__).resolve().parent
MAX_BYTES = 300_000
MAX_WIDTH = 1200
TIMEOUT_S = 600
HIDDEN = "…"  # stands for the folder that a command ran in


@dataclass(frozen=True)
class Entry:
    """What the page says of a command."""

    command: str
    title: str
    page: str  # of docs, where more is said
    see: str


ENTRIES = (
    Entry(
        "saliency",
        "Saliency maps",
        "visualisation.md",
        "Which pixels would change the score of the class most? The red places lie on the strokes of a digit and in "
        "the gaps that tell it from others, and hardly anywhere on the empty paper.",
    ),
    Entry(
        "fool",
        "Fooling images",
        "visualisation.md",
        "Each digit was changed just so far that the network takes it for another one. We still read the digit that it "
        "was; what was changed is shown magnified.",
    ),
    Entry(
        "visualize",
        "What the classes look like to the network",
        "visualisation.md",
        "No image was given: each picture began as noise, and was changed until the network was sure of its class. "
        "What comes out are the strokes that the network looks for, and they look like the digits.",
    ),
    Entry(
        "style",
        "Style transfer",
        "style.md",
        "The shapes of one photograph in the colours and textures of the other. The network that compares them has "
        "random weights: nobody trained it.",
    ),
    Entry(
        "texture",
        "Texture synthesis",
        "style.md",
        "Only the Gram matrices of the photograph were matched, beginning from noise: its texture and colours are "
        "there again, but nothing is where it was.",
    ),
    Entry(
        "invert",
        "Feature inversion",
        "style.md",
        "Only the features of one layer were matched, beginning from noise: what comes back is what that layer still "
        "knows of the photograph.",
    ),
    Entry(
        "gan",
        "Digits that nobody wrote",
        "gan.md",
        "Samples of a generator at the beginning, in the middle and at the end of its training, from the same noise; "
        "below, the losses of generator and discriminator. The last samples can be read as digits.",
    ),
)


class Failed(Exception):
    """A command did not do what the page is to show."""


@dataclass(frozen=True)
class Shown:
    """What a command printed and drew."""

    entry: Entry
    output: str
    seconds: float
    picture: bytes
    name: str


def shown(entry: Entry) -> Shown:
    """Run a command, as it is, in an empty folder with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve() / "work"
        work.mkdir()
        environment = os.environ | {"FASTRNN_CACHE": str(work.parent / "cache")}
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "fastrnn", entry.command],
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"fastrnn {entry.command}: not done after {TIMEOUT_S} s") from None
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise Failed(f"fastrnn {entry.command}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        if done.stderr.strip():
            raise Failed(f"fastrnn {entry.command}: ended well, but complained: {done.stderr.strip()[-500:]}")
        named = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("picture ")]
        path = work / f"fastrnn-{entry.command}.png"
        if named != [str(path)] or not path.is_file():
            raise Failed(f"fastrnn {entry.command}: expected it to draw and to name {path.name}, got {named}")
        content, suffix = _small(path)
        output = done.stdout.replace(str(work), HIDDEN).rstrip()
    return Shown(entry, output, seconds, content, f"{entry.command}{suffix}")


def _small(path: Path) -> tuple[bytes, str]:
    """A picture in few bytes: as PNG if that will do, or else as JPEG, the less of it the larger it is."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width = min(image.width, MAX_WIDTH)
    while True:
        size = (width, round(image.height * width / image.width))
        scaled = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        tries: list[tuple[str, str, dict[str, Any]]] = [(".png", "PNG", {"optimize": True})]
        tries += [(".jpg", "JPEG", {"quality": quality, "subsampling": 0}) for quality in (92, 88, 84)]
        for suffix, kind, options in tries:
            buffer = io.BytesIO()
            scaled.save(buffer, kind, **options)
            if len(buffer.getvalue()) <= MAX_BYTES:
                return buffer.getvalue(), suffix
        width = width * 9 // 10


def page(every: list[Shown], commit: str) -> str:
    """The text of gallery.md."""
    of = f"commit {commit}" if commit else f"version {metadata.version('fastrnn')}"
    lines = [
        "# Gallery",
        "",
        *_wrapped(
            "What the commands of the visual systems do when nothing is said but their names. No image, no data and no "
            "weights have to be fetched: the digits and photographs come with scikit-learn, and the networks are "
            "trained on the spot or have random weights. `pip install 'fastrnn[vision]'` brings all that they need."
        ),
        "",
        *_wrapped(
            f"`make gallery` made this page, of {of}, on one machine ({common.hardware()}, PyTorch "
            f"{metadata.version('torch')}). The seconds are those of a first run: what a command has to train before "
            "it can begin is trained within them, and kept for the next time."
        ),
    ]
    for one in every:
        entry = one.entry
        lines += [
            "",
            f"## {entry.title}",
            "",
            f"    $ fastrnn {entry.command}",
            *(f"    {line}".rstrip() for line in one.output.splitlines()),
            "",
            f"![{entry.title}: the picture of `fastrnn {entry.command}`](gallery/{one.name})",
            "",
            *_wrapped(f"{entry.see} {one.seconds:.0f} seconds. More: [{entry.page}]({entry.page})."),
        ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Run the commands, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help="default: all of them")
    parser.add_argument("--out", type=Path, default=DOCS, metavar="FOLDER", help="where gallery.md goes; default: docs")
    given = parser.parse_args()
    known = [entry.command for entry in ENTRIES]
    unknown = [name for name in given.commands if name not in known]
    if unknown:
        parser.error(f"unknown command {unknown[0]!r}; there are {', '.join(known)}")
    if given.commands and given.out.resolve() == DOCS:
        parser.error("the page in docs shows all commands; name another folder with --out")
    wanted = [entry for entry in ENTRIES if not given.commands or entry.command in given.commands]

    # Before it runs for minutes, and writes files that count as changes.
    commit = common.commit()
    every = []
    try:
        for entry in wanted:
            print(f"fastrnn {entry.command} ", end="", flush=True)
            every.append(shown(entry))
            print(f"{every[-1].seconds:.0f} s, {every[-1].name}, {len(every[-1].picture) / 1000:.0f} kB")
    except Failed as failed:
        print(f"\ngallery: {failed}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngallery: interrupted", file=sys.stderr)
        return common.INTERRUPTED
    folder = given.out / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for one in every:
        write_whole(folder / one.name, one.picture)
        for other in set(folder.glob(f"{one.entry.command}.*")) - {folder / one.name}:
            other.unlink()  # of the other kind, from an earlier time
    write_whole(given.out / "gallery.md", page(every, commit).encode())
    print(f"page  {(given.out / 'gallery.md').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
