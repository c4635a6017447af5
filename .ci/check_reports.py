"""``check_reports.py [--failed-step NAME]… REPORT…``: judges pytest's JUnit reports, one of each tier (``unit.xml``).

Fails when a test failed, when a tier has no report or ran no test, and when a test was skipped for a reason that is not in
``.ci/allowed-skips``. The last line is ``N passed, N failed, N skipped``; each other complaint counts as a failure, too,
and so does each failed step of CI that is not already counted by its failed tests.
"""

# ruff: noqa: INP001, T201 - a script: it prints, and is no package
from __future__ import annotations

import argparse
import ast
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips")
# What a unit test may take by its definition. Only told, not judged: a busy machine is not the test's fault.
UNIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Skip:
    """A test that was skipped, and why."""

    test: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a tier's tests."""

    tier: str
    passed: int
    failed: tuple[str, ...]
    skipped: tuple[Skip, ...]
    seconds: dict[str, float]

    @classmethod
    def parse(cls, path: Path) -> Report:
        """Read a JUnit report; the file is named after its tier."""
        passed, failed, skipped, seconds = 0, [], [], {}
        for case in ET.parse(path).iter("testcase"):  # noqa: S314 - our own pytest wrote it
            name = f"{case.get('classname')}::{case.get('name')}"
            seconds[name] = float(case.get("time") or 0.0)
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(name)
            elif (skip := case.find("skipped")) is not None:
                skipped.append(Skip(name, _reason(skip)))
            else:
                passed += 1
        return cls(path.stem, passed, tuple(failed), tuple(skipped), seconds)


def _reason(skip: ET.Element) -> str:
    """Why a test was skipped; of a whole module pytest writes it into the text, in a tuple of file, line and reason."""
    message = skip.get("message") or "no reason"
    if message != "collection skipped" or not skip.text:
        return message
    return str(ast.literal_eval(skip.text)[-1]).removeprefix("Skipped: ")


def allowed_skips(text: str) -> tuple[re.Pattern[str], ...]:
    """The patterns of ``.ci/allowed-skips``: a line each, with a comment above it that says why.

    Raises:
        ValueError: A pattern has no comment of its own.
    """
    patterns = []
    commented = False
    for line in text.splitlines():
        if not line.strip():
            commented = False
        elif line.startswith("#"):
            commented = True
        elif commented:
            patterns.append(re.compile(line.strip()))
            commented = False
        else:
            raise ValueError(f"the pattern {line!r} has no comment above it that says why it is allowed")
    return tuple(patterns)


def complaints(reports: Sequence[Report], allowed: Sequence[re.Pattern[str]]) -> list[str]:
    """What is wrong besides failed tests, a sentence each."""
    found = [
        f"the tier {report.tier} ran no test" for report in reports if not report.passed and not report.failed
    ]
    found.extend(
        f"skipped for a reason that is not in .ci/allowed-skips: {skip.test}: {skip.reason}"
        for report in reports
        for skip in report.skipped
        if not any(pattern.search(skip.reason) for pattern in allowed)
    )
    return found


def uncounted_steps(steps: Sequence[str], reports: Sequence[Report]) -> list[str]:
    """The failed steps without those that failed because of tests, which are counted one by one."""
    counted = {f"{report.tier} tests" for report in reports if report.failed}
    return [step for step in steps if step not in counted]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT")
    parser.add_argument(
        "--failed-step", action="append", default=[], metavar="NAME", help="a failed step of CI"
    )
    chosen = parser.parse_args(arguments)
    reports = [Report.parse(path) for path in chosen.reports if path.is_file()]
    found = [
        f"there is no report at {path}: pytest did not come to its end"
        for path in chosen.reports
        if not path.is_file()
    ]
    found += complaints(reports, allowed_skips(ALLOWED_SKIPS.read_text(encoding="utf-8")))
    found += [f"step failed: {step}" for step in uncounted_steps(chosen.failed_step, reports)]
    for report in reports:
        took = sum(report.seconds.values())
        counts = f"{report.passed} passed, {len(report.failed)} failed, {len(report.skipped)} skipped"
        print(f"{report.tier}: {counts}; {took:.0f} s of tests")
        if report.tier == "unit":
            for name, seconds in report.seconds.items():
                if seconds > UNIT_S:
                    print(f"  {seconds:.1f} s, more than a unit test should take: {name}")
    skips = [skip for report in reports for skip in report.skipped]
    for reason, times in Counter(skip.reason for skip in skips).items():
        print(f"skipped {times}: {reason}")
    failed = [name for report in reports for name in report.failed]
    for sentence in [*(f"failed: {name}" for name in failed), *found]:
        print(sentence)
    passed = sum(report.passed for report in reports)
    print(f"{passed} passed, {len(failed) + len(found)} failed, {len(skips)} skipped")
    return 1 if failed or found else 0


if __name__ == "__main__":
    sys.exit(main())
