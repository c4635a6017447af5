"""`autospec.daemon.finder_process.Outlook`: what it makes of a survey's answer, and of none."""

from __future__ import annotations

import io
import os
import selectors
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.daemon.finder_process import Outlook, SurveyRun
from autospec.daemon.work import Memory
from tests.daemon.test_work import ITEM, SetClock

ANSWER: dict[str, Any] = {
    "items": [ITEM.to_json()],
    "later": {"small|mlx|qa": "it waits"},
    "later_reasons": {"small|mlx|qa": "failed"},
    "next_at": 5,
    "marked": ["m, qa: the build changed."],
    "gaps": ["slower"],
    "fingerprints": ["f1"],
    "watch": ["/m"],
    "notes": ["a note"],
}


class Survey:
    """Stands for the program that surveys."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.runs = True
        self.stopped = False

    def stop(self) -> None:
        """Told to end, which it may not do."""
        self.stopped = True


class Outlooks:
    """An outlook, its clock, its events, and the surveys that it starts."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.told = SetClock(), list[str]()
        self.started: list[Survey] = []
        self._selector = selectors.DefaultSelector()
        self.outlook = Outlook(Memory(home / "m"), self.clock, None, self._selector, self.told.append)
        monkeypatch.setattr("autospec.daemon.finder_process.SurveyRun", self._start)

    def _start(self, *_: Any) -> Survey:
        self.started.append(Survey())
        return self.started[-1]

    def answered(self, result: Any) -> Outlook:
        """A survey has ended with this."""
        self.outlook.look()
        self.started[-1].result = result
        self.outlook.take()
        return self.outlook

    def close(self) -> None:
        """Nothing is left open."""
        self._selector.close()


@pytest.fixture
def outlooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outlooks]:
    """See `Outlooks`."""
    made = Outlooks(tmp_path, monkeypatch)
    yield made
    made.close()


def test_an_answer_is_taken_over(outlooks: Outlooks):
    """All of it."""
    outlook = outlooks.answered(ANSWER)
    assert outlook.items == [ITEM]
    assert (outlook.later, outlook.later_reasons) == (ANSWER["later"], ANSWER["later_reasons"])
    assert (outlook.notes, outlook.gaps, outlook.trouble) == (["a note"], ["slower"], "")
    assert outlooks.told == ["Stale: m, qa: the build changed."]


@pytest.mark.parametrize("missing", ["later_reasons", "next_at", "marked", "gaps", "notes"])
def test_what_another_version_does_not_tell_is_left_out(outlooks: Outlooks, missing: str):
    """Issue 17: after `pip install -U` the program that surveys is not of the daemon's version any more."""
    outlook = outlooks.answered({name: told for name, told in ANSWER.items() if name != missing})
    assert (outlook.items, outlook.trouble) == ([ITEM], "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"items": None},
        {"items": [{}]},
        {"items": [{**ITEM.to_json(), "prompt_type": "of a later version"}]},
        {"items": ["m"]},
        {"later": 5},
        {"fingerprints": None},
        {"watch": 1},
        {"next_at": "soon"},
        {"notes": 3},
    ],
)
def test_an_answer_that_is_not_understood_is_a_failed_survey(outlooks: Outlooks, wrong: dict[str, Any]):
    """Told with what to do; nothing of it counts, and it is tried again later."""
    outlook = outlooks.answered({**ANSWER, **wrong})
    assert "Restart the daemon" in outlook.trouble
    assert outlooks.told[-1].startswith("The search for work failed: The answer")
    assert (outlook.items, outlook.later, outlook.notes) == ([], {}, [])
    assert not outlook.due()
    outlooks.clock.now_s += 301.0
    assert outlook.due()
    assert outlooks.answered(ANSWER).trouble == ""


@pytest.mark.parametrize("line", ['daemon_budget = ""', 'daemon_idle = ""', 'daemon_step = ""', "no toml"])
def test_a_config_that_became_wrong_changes_no_setting(outlooks: Outlooks, autospec_home: Path, line: str):
    """It was edited while the daemon runs. An empty duration came through, and ended the daemon."""
    outlook = outlooks.outlook
    outlook.look()
    outlooks.started[-1].result = ANSWER
    autospec_home.mkdir()
    (autospec_home / "config.toml").write_text(f"{line}\n")
    assert outlook.take() is None
    assert outlooks.told[-1].startswith("The settings stay unchanged: ")


def test_a_survey_that_hangs_is_given_up(outlooks: Outlooks):
    """Issue 17: the daemon was looking for work for ever, and said nothing."""
    outlook = outlooks.outlook
    outlook.look()
    outlooks.clock.now_s += 599.0
    outlook.take()
    assert outlook.looking
    outlooks.clock.now_s += 2.0
    outlook.take()
    assert (outlook.looking, outlooks.started[0].stopped) == (False, True)
    assert "did not end within 10 min" in outlook.trouble
    assert outlooks.told == [f"The search for work failed: {outlook.trouble}"]


def test_none_is_started_beside_one_that_still_hangs(outlooks: Outlooks):
    """A process that waits for a dead disk cannot be killed, and keeps its memory."""
    outlook = outlooks.outlook
    outlook.look()
    outlooks.clock.now_s += 601.0
    outlook.take()
    for _ in range(3):
        assert not outlook.due()
        outlooks.clock.now_s += 301.0
        assert outlook.due()
        outlook.look()
        assert not outlook.looking
    assert (len(outlooks.started), len(outlooks.told)) == (1, 1)
    outlooks.started[0].runs = False
    assert outlooks.answered(ANSWER).trouble == ""


class Unkillable:
    """A process that waits for a dead disk."""

    returncode = None

    def __init__(self, *_: Any, **__: Any) -> None:
        self.killed = 0
        self.stdin = io.BytesIO()
        out, self._in = os.pipe()
        self.stdout = os.fdopen(out, "rb", buffering=0)

    def kill(self) -> None:
        """In vain."""
        self.killed += 1

    def wait(self, timeout: float) -> None:
        """It does not end."""
        assert timeout < 10
        raise subprocess.TimeoutExpired("survey", timeout)

    def poll(self) -> None:
        """It runs."""

    def say(self, text: bytes) -> None:
        """Its output, and the end of it."""
        os.write(self._in, text)
        os.close(self._in)


@pytest.mark.unit
def test_a_survey_that_cannot_be_killed_does_not_hold_up_the_daemon(monkeypatch: pytest.MonkeyPatch):
    """Neither one that is stopped, nor one that hangs after its answer."""
    monkeypatch.setattr("autospec.daemon.finder_process.subprocess.Popen", Unkillable)
    with selectors.DefaultSelector() as selector:
        stopped = SurveyRun({}, None, selector)
        stopped.stop()
        assert stopped.runs
        answered = SurveyRun({}, None, selector)
        answered._child.say(b'{"items": []}')  # type: ignore[attr-defined]
        while answered.result is None:
            for key, _ in selector.select(5):
                key.data()
        assert (answered.result, answered._child.killed) == ({"items": []}, 1)  # type: ignore[attr-defined]
        stopped._child.say(b"")  # type: ignore[attr-defined]
