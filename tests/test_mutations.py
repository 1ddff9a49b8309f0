"""The faults that ``make mutations`` plants still fit the sources, and their page says what was found."""

import mutations
import pytest

NAMES = [fault.name for fault in mutations.FAULTS]


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=NAMES)
def test_a_fault_fits_its_file(fault):
    text = (mutations.ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1, "the code has changed: change the fault with it, and run `make mutations`"
    assert fault.old != fault.new
    if fault.file.endswith(".py"):
        compile(text.replace(fault.old, fault.new), fault.file, "exec")
    assert fault.tests and all((mutations.ROOT / test).is_file() for test in fault.tests)


def test_names_are_their_own():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.skipif(not mutations.RECORD.is_file(), reason="no whole run was recorded yet (make mutations)")
def test_the_page_is_made_of_the_record():
    rows = mutations.recorded()
    assert mutations.PAGE.read_text() == mutations.page(rows), "run `python tests/mutations.py --table`"
    told = [{name: row[name] for name in ("name", "file", "old", "new", "tests", "select")} for row in rows]
    listed = [{**row, "tests": list(row["tests"])} for row in map(mutations.asdict, mutations.FAULTS)]
    assert told == [{name: row[name] for name in told[0]} for row in listed], "run `make mutations`"
    assert all(row["verdict"] == "caught" for row in rows)


def test_a_fault_is_planted_and_taken_back(tmp_path, monkeypatch):
    """Text and times are as before, so that nothing is compiled or remembered for the fault."""
    fault = next(fault for fault in mutations.FAULTS if fault.file == "fastrnn/runs.py")
    monkeypatch.setattr(mutations.Tree, "__init__", lambda self, folder: setattr(self, "source", folder))
    tree, path = mutations.Tree(tmp_path), tmp_path / fault.file
    path.parent.mkdir()
    path.write_text(f"before {fault.old} after")
    times = path.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt), tree.planted(fault):
        assert path.read_text() == f"before {fault.new} after"
        raise KeyboardInterrupt
    assert path.read_text() == f"before {fault.old} after" and path.stat().st_mtime_ns == times
    path.write_text(2 * fault.old)
    with pytest.raises(mutations.Broken, match=f"{fault.name}: its text stands 2 times"), tree.planted(fault):
        pass


@pytest.mark.parametrize(
    ("body", "verdict", "catcher"),
    [
        ("assert True", "passed", ""),
        ("assert False, 'why'", "failed", "test_it.py::test_second[a b]"),
        ("import os; os.abort()", "failed", "test_it.py::test_second[a b]"),
        ("import time; time.sleep(60)", "hung", "test_it.py::test_second[a b]"),
    ],
)
def test_what_tests_say_of_a_fault(tmp_path, monkeypatch, body, verdict, catcher):
    monkeypatch.setattr(mutations.Tree, "__init__", lambda self, folder: setattr(self, "source", folder))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n\ndef test_first():\n    pass\n\n"
        f"@pytest.mark.parametrize('n', [1], ids=['a b'])\ndef test_second(n):\n    {body}\n"
    )
    tree = mutations.Tree(tmp_path)
    found = tree.test(("tests/test_it.py",), "", tmp_path, limit=10 if verdict == "hung" else 60)
    assert found[0] == verdict and found[1] == (f"tests/{catcher}" if catcher else "")


def test_a_fault_that_does_not_import_is_not_caught(tmp_path, monkeypatch):
    """Every test would notice that: it says nothing of any."""
    monkeypatch.setattr(mutations.Tree, "__init__", lambda self, folder: setattr(self, "source", folder))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("import nothing_of_that_name\n")
    assert mutations.Tree(tmp_path).test(("tests/test_it.py",), "", tmp_path, 60)[0] == "broken"
