"""Each test has a tier, and a unit test that starts a process fails."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import tiers

SOURCE = """
import subprocess
import sys

COMMAND = [sys.executable, "-c", ""]

def helper():
    return subprocess.run(COMMAND)

@pytest.fixture
def started():
    return helper()

def test_by_fixture(started): ...

def test_by_helper():
    helper()

def test_by_value():
    print(COMMAND)

def test_by_program(tmp_path):
    (tmp_path / "program").chmod(0o755)

def test_of_nothing(tmp_path):
    (tmp_path / "file").chmod(0o644)
"""


def test_code_tells_what_starts_processes(tmp_path: Path) -> None:
    """Through fixtures, helpers and values of the same module; a test that names none of them stays *unit*."""
    path = tmp_path / "test_sample.py"
    path.write_text(SOURCE)
    found = tiers.spawning_names(path)
    assert {"test_by_fixture", "test_by_helper", "test_by_value", "test_by_program"} <= found
    assert "test_of_nothing" not in found


def test_every_listed_test_is_there() -> None:
    """An entry for a test that was renamed would let the test fall back into *unit*."""
    functions: dict[str, set[str]] = {}
    for path in [path for listed in tiers.LISTED for path in listed.paths]:
        file, _, name = path.partition("::")
        if file not in functions:
            tree = ast.parse((tiers.TESTS / file).read_text(encoding="utf-8"))
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions[file], f"{path} is in tests/tiers.py and not in the tests"


def test_each_test_has_one_tier_and_its_timeout(request: pytest.FixtureRequest) -> None:
    """Of this run: whichever tests were chosen."""
    for item in request.session.items:
        marks = {mark.name for mark in item.iter_markers()}
        assert len(marks & {"unit", "process", "real"}) == 1, item.nodeid
        assert request.config.getoption("timeout") is not None or "timeout" in marks


@pytest.mark.process
def test_a_process_is_seen_in_any_thread() -> None:
    """The failure names the command and the marks to choose from."""
    watch = tiers.SpawnWatch()
    watch.check()  # nothing was watched yet
    watch.begin()
    watch.check()
    worker = threading.Thread(target=subprocess.run, args=([sys.executable, "-c", ""],))
    worker.start()
    worker.join()
    with pytest.raises(pytest.fail.Exception, match=r"tier `unit`.*python.*@pytest\.mark\.process"):
        watch.check()
    watch.check()  # it is told once
    watch.end()


@pytest.mark.process
def test_a_unit_test_that_starts_a_process_fails(tmp_path: Path) -> None:
    """With the hooks of `tests/conftest.py`: the mark is wrong, so the run fails; with the right mark it passes."""
    text = "import os, pytest\n@pytest.mark.{}\ndef test_it():\n    assert os.system('exit 0') == 0\n"
    outcomes = {}
    for tier in ("unit", "process"):
        path = tmp_path / f"test_{tier}.py"
        path.write_text(text.format(tier))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "tests.conftest",
            str(path),
        ]
        done = subprocess.run(
            [*command, "--rootdir", str(tmp_path), "-c", str(tiers.TESTS.parent / "pyproject.toml")],
            cwd=tiers.TESTS.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        outcomes[tier] = (done.returncode, "This test is in the tier `unit`" in done.stdout)
    assert outcomes == {"unit": (1, True), "process": (0, False)}
