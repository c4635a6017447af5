"""CI's count of tests: fewer than before, without a word, is a failure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "count_tests.py"


@pytest.fixture(scope="module")
def count() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("count_tests", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["count_tests"] = module
    spec.loader.exec_module(module)
    return module


def report(tmp_path: Path, *cases: str) -> Path:
    """A JUnit report with these test cases."""
    path = tmp_path / "report.xml"
    inner = "".join(f'<testcase classname="t" name="n{i}">{case}</testcase>' for i, case in enumerate(cases))
    path.write_text(f"<testsuites><testsuite>{inner}</testsuite></testsuites>")
    return path


def skipped(reason: str) -> str:
    """A skipped test's mark in the report."""
    return f'<skipped message="{reason}"/>'


FILE = "# comment\npassed: 2\nbecause: the first count\nmay skip: no native llama-server\n"


def test_as_many_as_before_is_fine(count: ModuleType, tmp_path: Path) -> None:
    """Two passed, two were expected."""
    assert count.complaints(count.Ran.parse(report(tmp_path, "", "")), count.Expected.parse(FILE), None) == []


def test_fewer_is_a_complaint(count: ModuleType, tmp_path: Path) -> None:
    """A test that vanished is noticed."""
    found = count.complaints(count.Ran.parse(report(tmp_path, "")), count.Expected.parse(FILE), None)
    assert len(found) == 1
    assert "1 tests passed" in found[0]


def test_a_skip_counts_only_for_an_allowed_reason(count: ModuleType, tmp_path: Path) -> None:
    """A missing compiler is the machine's; any other skip is a test that did not run."""
    expected = count.Expected.parse(FILE)
    allowed = count.Ran.parse(report(tmp_path, "", skipped("Skipped: no native llama-server: make native")))
    assert count.complaints(allowed, expected, None) == []
    other = count.Ran.parse(report(tmp_path, "", skipped("SmolLM2 could not be fetched")))
    assert len(count.complaints(other, expected, None)) == 1


def test_a_failure_and_an_error_are_failures(count: ModuleType, tmp_path: Path) -> None:
    """Both marks of JUnit are read."""
    ran = count.Ran.parse(report(tmp_path, "", "", "<failure/>", "<error/>"))
    assert ran.failed == ("t::n2", "t::n3")
    assert len(count.complaints(ran, count.Expected.parse(FILE), None)) == 2


def test_nothing_ran_is_a_complaint(count: ModuleType, tmp_path: Path) -> None:
    """An empty report is not a good one, whatever was expected."""
    none_expected = count.Expected.parse(FILE.replace("passed: 2", "passed: 0"))
    assert count.complaints(count.Ran.parse(report(tmp_path)), none_expected, None) != []


def test_the_number_is_lowered_with_a_reason_only(count: ModuleType, tmp_path: Path) -> None:
    """A new `because:` line excuses a lower number; the old one does not."""
    ran = count.Ran.parse(report(tmp_path, "", ""))
    before = count.Expected.parse(FILE.replace("passed: 2", "passed: 5"))
    assert len(count.complaints(ran, count.Expected.parse(FILE), before)) == 1
    excused = FILE + "because: three tests of a removed mode went with it\n"
    assert count.complaints(ran, count.Expected.parse(excused), before) == []


def test_a_new_reason_to_skip_needs_a_reason_too(count: ModuleType, tmp_path: Path) -> None:
    """Otherwise `may skip: .*` would quietly excuse everything."""
    ran = count.Ran.parse(report(tmp_path, "", ""))
    wider = count.Expected.parse(FILE + "may skip: .*\n")
    assert len(count.complaints(ran, wider, count.Expected.parse(FILE))) == 1
