"""``count_tests.py [--update] [--steps-failed N] REPORT``: did as many tests run as before? Reads pytest's JUnit report.

Fails when a test failed, when nothing ran, when fewer passed than ``.ci/test-count`` says, and when that number was
lowered without a new reason. Tests skipped for a reason that the file allows count as if they had passed. The last line
is ``N passed, N failed, N skipped``, where failed steps of CI (a lint, the wheel) count as failures, too.
"""

# ruff: noqa: INP001, T201 - a script: it prints, and is no package
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNT_FILE = ROOT / ".ci" / "test-count"


@dataclass(frozen=True, slots=True)
class Expected:
    """What ``.ci/test-count`` says."""

    passed: int
    because: tuple[str, ...]
    may_skip: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Expected:
        """Read the file's text; lines that begin with ``#`` are comments."""
        lines = [
            line.partition(":") for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
        values = [(key.strip(), value.strip()) for key, _, value in lines]
        return cls(
            int(next(value for key, value in values if key == "passed")),
            tuple(value for key, value in values if key == "because"),
            tuple(value for key, value in values if key == "may skip"),
        )


@dataclass(frozen=True, slots=True)
class Ran:
    """What the report says."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, report: Path) -> Ran:
        """Read a JUnit report; a skip's reason is its message."""
        passed, failed, skipped = 0, [], []
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own pytest wrote it
            name = f"{case.get('classname')}::{case.get('name')}"
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(name)
            elif (skip := case.find("skipped")) is not None:
                skipped.append((name, skip.get("message") or "no reason"))
            else:
                passed += 1
        return cls(passed, tuple(failed), tuple(skipped))


def complaints(ran: Ran, expected: Expected, before: Expected | None) -> list[str]:
    """What is wrong, a sentence each; empty if all is well."""
    excused = sum(any(re.search(p, why) for p in expected.may_skip) for _, why in ran.skipped)
    found = [f"failed: {name}" for name in ran.failed]
    if ran.passed == 0:
        found.append("no test passed: nothing was tested")
    if ran.passed + excused < expected.passed:
        found.append(
            f"{ran.passed} tests passed and {excused} were skipped for an allowed reason; before, {expected.passed} passed. "
            f"If that is meant, lower `passed:` in .ci/test-count and add a line `because: …`"
        )
    if before and expected.passed < before.passed and not set(expected.because) - set(before.because):
        found.append(
            f".ci/test-count was lowered from {before.passed} to {expected.passed} without a new `because:` line"
        )
    if before and not set(before.may_skip) >= set(expected.may_skip):
        found.extend(
            f".ci/test-count allows a new reason to skip ({pattern}) without a new `because:` line"
            for pattern in sorted(set(expected.may_skip) - set(before.may_skip))
            if not set(expected.because) - set(before.because)
        )
    return found


def count_before() -> Expected | None:
    """The file as it was before its last change, from git; none where there is no history to ask."""
    now = COUNT_FILE.read_text()
    log = _git("log", "-n", "20", "--format=%H", "--", ".ci/test-count")
    for commit in log.split():
        text = _git("show", f"{commit}:.ci/test-count")
        if text and text != now:
            return Expected.parse(text)
    return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],  # noqa: S607 - whichever git the developer uses
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def main() -> int:
    """0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument(
        "--update", action="store_true", help="write the new, higher number into .ci/test-count"
    )
    parser.add_argument(
        "--steps-failed", type=int, default=0, help="steps of CI, besides the tests, that failed"
    )
    chosen = parser.parse_args()
    if not chosen.report.is_file():
        print(f"there is no report at {chosen.report}: pytest did not come to its end")
        print(f"0 passed, {max(1, chosen.steps_failed)} failed, 0 skipped")
        return 1
    ran = Ran.parse(chosen.report)
    expected = Expected.parse(COUNT_FILE.read_text())
    for reason, times in Counter(why for _, why in ran.skipped).items():
        print(f"skipped {times}: {reason}")
    if ran.passed > expected.passed:
        if chosen.update:
            text = re.sub(r"(?m)^passed: \d+$", f"passed: {ran.passed}", COUNT_FILE.read_text())
            COUNT_FILE.write_text(text)
        else:
            print(
                f"{ran.passed} tests pass now, {expected.passed} before: python .ci/count_tests.py --update {chosen.report}"
            )
    found = complaints(ran, expected, count_before())
    for complaint in found:
        print(complaint)
    failed = len(ran.failed) + chosen.steps_failed
    print(f"{ran.passed} passed, {failed} failed, {len(ran.skipped)} skipped")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
