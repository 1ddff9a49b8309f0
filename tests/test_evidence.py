"""The table of evidence is the one that its records give, and its commands are there."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
import evidence  # noqa: E402


def test_the_page_is_made_of_the_records():
    assert evidence.PAGE.read_text() == evidence.page(evidence.recorded()), "run `make evidence`"


def test_every_record_is_of_a_check():
    assert set(evidence.recorded()) <= set(evidence.CHECKS)


@pytest.mark.parametrize("name", evidence.recorded())
def test_what_was_recorded_can_be_repeated(name):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert set(evidence.CHECKS[name].command.removeprefix("make ").split()) <= targets


def test_a_record_has_what_the_table_says(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")
    path = evidence.record("fuzz", "7 functions", "nothing", 61.2, details=[1, 2])
    assert json.loads(path.read_text())["details"] == [1, 2]
    page = evidence.page(evidence.recorded())
    row = next(line for line in page.splitlines() if "`make fuzz`" in line)
    assert "| 7 functions | nothing |" in row and evidence.common.commit() in row and "1 min" in row
    assert "| – | not run | `make sanitize` |" in page
    with pytest.raises(ValueError, match="record: argument 'name' must be one of sanitize, .*got 'other'"):
        evidence.record("other", "", "", 0)
