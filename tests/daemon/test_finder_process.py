"""`autospec.daemon.finder_process.Outlook`: what it makes of a survey's answer, and of none."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autospec.daemon.finder_process import Outlook
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
