"""A person asks the daemon to measure a model now: what comes first, what may hold it back, and when it is done."""

from __future__ import annotations

import selectors
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.cells import PromptType
from autospec.daemon.finder_process import Outlook
from autospec.daemon.policy import Policy, Signals, decide
from autospec.daemon.queue import KnownCell
from autospec.daemon.work import Clock, Effort, LaterReason, Memory, WorkItem
from autospec.hardware.readings import Power
from autospec.service.control import Listening, ask_daemon, ask_status
from autospec.tuning.resume import basis_digest
from tests.daemon.test_loop import Watched
from tests.daemon.test_queue import BIG, NEW, NOW, key, queue, recommendation

CODING, CHAT = PromptType.CODING, PromptType.CHAT
FREE = Signals(720, 0.0, 0, power=Power(on_battery=False, thermal="nominal"), other_load=0.0, cores=4,
               memory_available_bytes=2**40)  # fmt: skip


def test_what_was_asked_for_comes_first_whatever_it_is_worth():
    """A model that nobody uses, before the one that is used all day."""
    unused = {"used": {("big", CODING): 3600.0, ("big", CHAT): 3600.0}, "now": NOW + 40 * 86400}
    assert {i.model for i in queue((BIG, NEW), **unused).items} == {"big"}
    found = queue((BIG, NEW), **unused, asked={"new": ()})
    assert [i.model for i in found.items] == ["new", "new", "big", "big"]
    assert found.items[0].why.startswith("it was asked for; ")


@pytest.mark.parametrize("effort", [{"steps": 4}, {"failures": 3, "last_at": NOW, "last": "it died"}])
def test_neither_failures_nor_vain_steps_hold_it_back(effort):
    """A person may know better, e.g. that a file was repaired."""
    efforts = {key(CODING): Effort(basis_digest(BIG.basis), **effort)}
    assert [i.prompt_type for i in queue(efforts=efforts).items] == [CHAT]
    found = queue(efforts=efforts, asked={"big": ()})
    assert {i.prompt_type for i in found.items} == {CODING, CHAT}
    assert found.next_at is None


def test_the_proven_stays_proven():
    """And where nothing can be tried, nothing is."""
    found = queue(known={key(CODING): KnownCell(recommendation())}, asked={"big": ()})
    assert [i.prompt_type for i in found.items] == [CHAT]
    assert found.later[key(CODING)].reason is LaterReason.PROVEN
    assert not queue((replace(BIG, drafts=0, modes=0),), asked={"big": ()}).items


def test_a_cell_that_had_its_step_is_judged_as_ever():
    """Else a cell without a clear answer would be measured for ever."""
    failed = {key(CODING): Effort(basis_digest(BIG.basis), failures=1, last_at=NOW, last="it died")}
    found = queue(efforts=failed, asked={"big": (key(CODING),)})
    assert [(i.prompt_type, i.why.startswith("it was asked for")) for i in found.items] == [(CHAT, True)]
    assert found.later[key(CODING)].reason is LaterReason.FAILED


@pytest.mark.parametrize(
    ("signals", "asked", "go"),
    [
        ({}, False, True),
        ({"user_idle_s": 1.0}, False, False),
        ({"user_idle_s": 1.0}, True, True),  # whoever asks is at the machine
        ({"since_request_s": 1.0}, False, False),
        ({"since_request_s": 1.0}, True, True),
        ({"spent_today_s": 9000.0}, True, True),
        ({"minute_of_day": 60}, True, True),
        # What would spoil a measurement, or somebody's answer, holds it back all the same.
        ({"in_flight": 1}, True, False),
        ({"held_by": "process 1"}, True, False),
        ({"power": Power(on_battery=True)}, True, False),
        ({"power": Power(on_battery=False, thermal="throttled")}, True, False),
        ({"other_load": 3.0}, True, False),
        ({"other_load": None}, True, False),
        ({"memory_available_bytes": 1}, True, False),
    ],
)
def test_what_holds_back_a_step_that_was_asked_for(signals: dict[str, Any], asked: bool, go: bool):
    """Not the hours, the budget or a person at the machine."""
    policy = Policy(hours=((600, 800),)) if "minute_of_day" in signals else Policy()
    assert decide(replace(FREE, **signals), policy, needed_bytes=2**30, asked=asked).go is go


def test_it_says_that_it_was_asked_for():
    """In the check that would have held it back."""
    (check,) = [
        c
        for c in decide(replace(FREE, user_idle_s=1.0), Policy(), measuring=True, asked=True).checks
        if c.name == "idle"
    ]
    assert check.allows
    assert check.words.endswith("ignored, because a person asked for this step")


class Surveys:
    """Stands for the program that surveys: what it was asked, and the answer that a test gives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[dict[str, Any]] = []
        self.running: list[Any] = []
        monkeypatch.setattr("autospec.daemon.finder_process.SurveyRun", self._start)

    def _start(self, asked: dict[str, Any], _config: Any, _selector: Any) -> Any:
        self.asked.append(asked["asked"])
        self.running.append(type("Run", (), {"result": None, "stop": lambda self: None})())
        return self.running[-1]

    def answer(self, *items: WorkItem, **later: str) -> None:
        """The one that runs has ended."""
        reasons = dict.fromkeys(later, str(LaterReason.PROVEN))
        self.running[-1].result = {
            "items": [i.to_json() for i in items],
            "later": later,
            "later_reasons": reasons,
            "notes": [],
            "next_at": None,
            "gaps": [],
            "watch": [],
            "marked": [],
            "fingerprints": [],
        }


@pytest.fixture
def told() -> list[str]:
    """The events."""
    return []


@pytest.fixture
def outlook(tmp_path: Path, told) -> Outlook:
    """An outlook that has not looked yet."""
    with selectors.DefaultSelector() as selector:
        yield Outlook(Memory(tmp_path / "daemon.json"), Clock(), None, selector, told.append)


def item(prompt_type: PromptType) -> WorkItem:
    """A step of a model."""
    return WorkItem(
        "m", "/m", prompt_type, "embedded", "b", 1.0, 0.1, 1.0, 600.0, 1, "it was asked for; it is new"
    )


def test_each_cell_has_one_step_and_then_it_is_done(outlook, told, monkeypatch):
    """The next survey knows which had theirs; the request ends with a sentence."""
    surveys = Surveys(monkeypatch)
    outlook.ask_for("m")
    assert outlook.due()
    outlook.look()
    surveys.answer(item(CODING), item(CHAT))
    outlook.take()
    outlook.settle()
    assert outlook.asked == {"m": set()}
    outlook.had_its_step(item(CODING))
    outlook.expire()
    outlook.look()
    assert surveys.asked == [{"m": []}, {"m": [item(CODING).key]}]
    outlook.had_its_step(item(CHAT))
    surveys.answer(item(CODING), **{"m|embedded|chat": "proven"})
    outlook.take()
    outlook.settle()
    assert outlook.asked == {}
    assert told[-1] == "Nothing is left to measure of m, which was asked for: proven."


def test_who_asks_while_a_survey_runs_is_not_forgotten(outlook, monkeypatch):
    """That survey does not know of it, so another one follows."""
    surveys = Surveys(monkeypatch)
    outlook.look()
    outlook.ask_for("m")
    surveys.answer()
    outlook.take()
    outlook.settle()
    assert outlook.asked == {"m": set()}
    assert outlook.due()
    outlook.look()
    assert surveys.asked == [{}, {"m": []}]


def test_a_survey_that_fails_forgets_nobody(outlook, monkeypatch):
    """The database may come back."""
    surveys = Surveys(monkeypatch)
    outlook.ask_for("m")
    outlook.look()
    surveys.running[-1].result = {"error": "The database is locked."}
    outlook.take()
    outlook.settle()
    assert outlook.asked == {"m": set()}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """A daemon whose step has just begun."""
    return Watched(tmp_path)


class Client:
    """Someone at the control socket."""

    role = ""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def tell(self, message: dict[str, Any]) -> bool:
        """Kept."""
        self.told.append(message)
        return True


def test_the_daemon_is_asked_over_its_socket(watched: Watched):
    """It answers with what it does first; its status names the model; nonsense is ignored."""
    daemon, client = watched.daemon, Client()
    with selectors.DefaultSelector() as selector:
        daemon.outlook = Outlook(daemon.memory, daemon.clock, None, selector, daemon._event)
        for nonsense in ({"ask": "tune"}, {"ask": "tune", "model": 5}, {"ask": "dance"}):
            daemon._hear(client, nonsense)  # type: ignore[arg-type]
        assert client.told == []
        daemon._hear(client, {"ask": "tune", "model": "other"})  # type: ignore[arg-type]
    assert client.told == [
        {"event": "asked", "model": "other", "why": "it first ends its step for m, coding"}
    ]
    assert daemon.status()["asked"] == ["other"]
    assert daemon.events[-1]["what"] == "Asked to tune other next."


@pytest.mark.parametrize("asked", [{}, {"m": set()}])
def test_a_running_step_that_was_asked_for_is_not_ended_by_the_budget(watched: Watched, asked):
    """Today's measuring time is used up in the middle of it."""
    watched.daemon.outlook.asked = asked
    watched.daemon.memory.spend(watched.clock.today(), 3 * 3600.0)
    watched.wake(5.0, 0.0)
    assert watched.step.stopped is not bool(asked)


def test_the_answer_comes_over_the_socket(watched: Watched):
    """As the proxy asks: a connection, a question, a line, and the status knows of it."""
    daemon, state_dir, ended = watched.daemon, watched.daemon.settings.state_dir, threading.Event()
    with selectors.DefaultSelector() as selector:
        daemon.outlook = Outlook(daemon.memory, daemon.clock, None, selector, daemon._event)
        listening = daemon._listening = Listening(state_dir, selector, daemon._hear)

        def serve() -> None:
            while not ended.is_set():
                for key, _ in selector.select(0.02):
                    key.data()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            answer = ask_daemon(state_dir, {"ask": "tune", "model": "ü/other"})
            status = ask_status(state_dir)
        finally:
            ended.set()
            thread.join()
            listening.close()
    assert (answer["event"], answer["model"]) == ("asked", "ü/other")
    assert status["asked"] == ["ü/other"]
    assert status["events"][-1]["what"] == "Asked to tune ü/other next."
