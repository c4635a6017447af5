"""CI's judgement of the tiers' reports."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "check_reports.py"
ALLOWED = "# no compiler\nno native llama-server\n"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_reports", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_reports"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def judged(check, tmp_path, monkeypatch, capsys):
    """Judges reports that are given by their test cases; the exit status, and the lines that were printed."""

    def judge(*arguments: str, **tiers: list[str]) -> tuple[int, list[str]]:
        allowed = tmp_path / "allowed-skips"
        allowed.write_text(ALLOWED)
        monkeypatch.setattr(check, "ALLOWED_SKIPS", allowed)
        paths = [report(tmp_path / f"{tier}.xml", cases) for tier, cases in tiers.items()]
        status = check.main([*arguments, *map(str, paths)])
        return status, capsys.readouterr().out.splitlines()

    return judge


def report(path: Path, cases: list[str]) -> Path:
    """A JUnit report with these test cases."""
    inner = "".join(
        f'<testcase classname="t" name="n{i}" time="0.5">{case}</testcase>' for i, case in enumerate(cases)
    )
    path.write_text(f"<testsuites><testsuite>{inner}</testsuite></testsuites>")
    return path


def skipped(reason: str, text: str = "") -> str:
    """A skipped test's mark in the report."""
    return f'<skipped message="{reason}">{text}</skipped>'


def test_all_passed(judged) -> None:
    """Each tier has its line, the last one is the sum."""
    status, lines = judged(unit=["", ""], real=[""])
    assert status == 0
    assert lines[0].startswith("unit: 2 passed, 0 failed, 0 skipped")
    assert lines[-1] == "3 passed, 0 failed, 0 skipped"


def test_failures_and_errors_are_failures(judged) -> None:
    """Both marks of JUnit are read, and each test is named."""
    status, lines = judged(unit=["", "<failure/>", "<error/>"])
    assert status == 1
    assert "failed: t::n1" in lines
    assert lines[-1] == "1 passed, 2 failed, 0 skipped"


def test_a_tier_that_ran_no_test_fails(judged) -> None:
    """An empty report, and one whose tests were all skipped."""
    status, lines = judged(unit=[""], process=[], real=[skipped("no native llama-server: make native")])
    assert status == 1
    assert "the tier process ran no test" in lines
    assert "the tier real ran no test" in lines
    assert lines[-1] == "1 passed, 2 failed, 1 skipped"


def test_a_missing_report_fails(check, judged, tmp_path) -> None:
    """Pytest died, or was not started."""
    status, lines = judged(str(tmp_path / "process.xml"), unit=[""])
    assert status == 1
    assert any("no report" in line for line in lines)
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


def test_a_skip_needs_an_allowed_reason(judged) -> None:
    """A missing compiler is the machine's; any other skip is a test that should have run."""
    assert judged(unit=["", skipped("no native llama-server: make native")])[0] == 0
    status, lines = judged(unit=["", skipped("SmolLM2 could not be fetched")])
    assert status == 1
    assert lines[-1] == "1 passed, 1 failed, 1 skipped"


def test_the_reason_of_a_skipped_module_is_in_the_text(judged) -> None:
    """Pytest's message says no more than that the module was skipped."""
    reason = "('tests/t.py', 1, 'Skipped: no native llama-server')"
    assert judged(unit=["", skipped("collection skipped", reason)])[0] == 0
    assert judged(unit=["", skipped("collection skipped", "('tests/t.py', 1, 'other')")])[0] == 1


def test_a_failed_step_counts_once(judged) -> None:
    """A tier's step fails with its tests; a tier's step that fails without a failed test is a failure of its own."""
    steps = ("--failed-step", "make check", "--failed-step", "unit tests")
    assert judged(*steps, unit=["", "<failure/>"])[1][-1] == "1 passed, 2 failed, 0 skipped"
    status, lines = judged(*steps, unit=[""])
    assert status == 1
    assert "step failed: unit tests" in lines
    assert lines[-1] == "1 passed, 2 failed, 0 skipped"


def test_a_slow_unit_test_is_told(judged, tmp_path) -> None:
    """It is no failure: the machine may have been busy."""
    slow = tmp_path / "unit.xml"
    slow.write_text('<testsuite><testcase classname="t" name="slow" time="1.5"/></testsuite>')
    status, lines = judged(str(slow))
    assert status == 0
    assert any("1.5 s" in line and "t::slow" in line for line in lines)


def test_a_pattern_needs_a_comment(check) -> None:
    """One comment for one pattern; an empty line ends a comment's reach."""
    assert [p.pattern for p in check.allowed_skips("# why\na\n\n# why\nb\n")] == ["a", "b"]
    for text in ("a\n", "# why\na\nb\n", "# a heading\n\na\n"):
        with pytest.raises(ValueError, match="no comment"):
            check.allowed_skips(text)


def test_the_list_in_the_repository_is_well_formed(check) -> None:
    """Every pattern has its comment, and none allows whatever reason."""
    patterns = check.allowed_skips(SCRIPT.with_name("allowed-skips").read_text(encoding="utf-8"))
    assert patterns
    assert not any(pattern.search("a reason that nobody has thought of") for pattern in patterns)
