"""The daemon's loop: one thread that sleeps in a selector until somebody speaks, a child ends or a time has come.

It holds no model, no database and no catalogue: a survey (`daemon.survey`) tells it what is worth measuring, a step
(`daemon.measurement`) measures one cell, each a process of its own that ends. What wakes it at rest: a proxy that
speaks, a child that ends, a signal, and a look at the watched files once a minute.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autospec.daemon.clock import Clock, JumpWatch
from autospec.daemon.listening import Listening, Peer
from autospec.daemon.measurement import Measurement, Outcome, tune_command
from autospec.daemon.memory import Memory
from autospec.daemon.probes import Probes, Traffic
from autospec.daemon.proxy_child import ProxyChild
from autospec.daemon.surveying import FileWatch, SurveyRun
from autospec.daemon.when import Decision, Policy, decide
from autospec.daemon.work import WorkItem
from autospec.errors import AutospecError, LaunchError
from autospec.service.notify import Notifier
from autospec.settings import Settings, load_settings, parse_duration, parse_hours

__all__ = ["Daemon", "policy_of"]

# At rest: a look at some hundred files. A new build or draft is noticed within this.
_REST_S = 60.0
# While measuring: heat, power, hours, and whether somebody sat down. Requests need no look, they are told.
_WATCH_S = 5.0
# Nothing else may have told of a change: an upgrade in place, a folder that is a link.
_SURVEY_EVERY_S = 6 * 3600.0
# New traffic changes use and may show drift; answers are many and recommendations few.
_SURVEY_AFTER_TRAFFIC_S = 1800.0
# A survey that failed (a full disk, a database that is away).
_SURVEY_AGAIN_S = 300.0
# `tune` keeps its budget itself, but for the launch and the round under way: longer is a hang.
_OVERTIME_S = 600.0
# The machine was not free although nobody said so.
_BUSY_PAUSE_S = 60.0
_EVENTS_KEPT = 20


def policy_of(settings: Settings) -> Policy:
    """What the settings allow."""
    return Policy(
        idle_s=parse_duration(settings.daemon_idle),
        hours=parse_hours(settings.daemon_hours),
        budget_s=parse_duration(settings.daemon_budget),
    )


@dataclass(slots=True)
class _Running:
    """A step under way."""

    step: Measurement
    began_s: float
    why: str


@dataclass(slots=True)
class Daemon:
    """One daemon.

    Attributes:
        settings: The user's; read again when the config file changes.
        config: The file of ``--config``.
        once: Do the most valuable step, if any is and the machine is free, and end.
        proxy: Keeps the proxy alive; ``None`` where it runs apart or not at all.
        notifier: To the supervisor.
        clock: Time.
        tell: Told each thing that happens, one sentence.
        probes: Reads the signals.
        launch: Starts a step.
    """

    settings: Settings
    config: Path | None = None
    once: bool = False
    proxy: ProxyChild | None = None
    notifier: Notifier = field(default_factory=Notifier)
    clock: Clock = field(default_factory=Clock)
    tell: Callable[[str], None] = lambda _: None
    probes: Probes | None = None
    launch: Callable[[WorkItem, Path, Path | None], Measurement] = lambda item, state_dir, config: (
        Measurement(item, state_dir, tune_command(item, config))
    )

    items: list[WorkItem] = field(default_factory=list)
    later: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    decision: Decision | None = None
    trouble: str = ""
    why: str = "it has just started"
    memory: Memory = field(init=False)
    _selector: selectors.BaseSelector = field(init=False)
    _listening: Listening = field(init=False)
    _files: FileWatch = field(default_factory=FileWatch)
    _jumps: JumpWatch = field(init=False)
    _running: _Running | None = None
    _survey: SurveyRun | None = None
    _survey_at_s: float = 0.0
    _surveyed_s: float = 0.0
    _next_at: float | None = None
    _idle_since_s: float | None = None
    _traffic_since_survey: bool = False
    _not_before_s: float = 0.0
    _ending: bool = False
    _once_done: bool = False

    def run(self) -> int:
        """Work until a signal asks to end.

        Returns:
            The exit code: 0.

        Raises:
            BusyError: A daemon runs already for this state folder.
        """
        self.memory = Memory.load(self.settings.state_dir / "daemon.json")
        self.probes = self.probes or Probes(self.clock)
        self._jumps = JumpWatch(self.clock)
        self._selector = selectors.DefaultSelector()
        self._listening = Listening(self.settings.state_dir, self._selector, self._hear)
        wake = self._catch_signals()
        try:
            self.notifier.ready()
            while not self._ending:
                wait_s = self._turn()
                self.notifier.alive()
                if self._ending:
                    break
                alive_s = self.notifier.alive_every_s
                self._wait(wait_s if alive_s is None else min(wait_s, alive_s))
        finally:
            self._end(wake)
        return 0

    # --- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> float:
        """Do what is due.

        Returns:
            Seconds until something may be due again.
        """
        waits = [_REST_S]
        if self.proxy is not None and (pause_s := self.proxy.keep()) is not None:
            waits.append(pause_s)
        jump_s = self._jumps.jumped_s()
        if self._survey is not None and self._survey.result is not None:
            self._take(self._survey.result)
        if self.running is not None:
            waits.append(self._watch_step(jump_s))
        elif self._survey is None:
            waits.append(self._look_for_work())
        return max(0.0, min(waits))

    def _look_for_work(self) -> float:
        now_s = self.clock.monotonic()
        if self._survey_due(now_s):
            if self._busy():
                self._rest("a request is being served")
                return _REST_S
            self._start_survey()
            return _REST_S
        if not self.items:
            self._rest(self.trouble or "nothing is worth measuring now")
            self._once_done = True
            return self._until_next_at()
        if now_s < self._not_before_s:
            return self._not_before_s - now_s
        return self._consider(self.items[0])

    def _consider(self, item: WorkItem) -> float:
        assert self.probes is not None
        signals = self.probes.read(self._traffic(), self.memory.spent_today_s(self.clock.today()))
        self.decision = decide(signals, policy_of(self.settings), needed_bytes=item.memory_bytes)
        if not self.decision.go:
            self._rest(self.decision.why)
            self._once_done = self.decision.recheck_s > 1.0
            return self.decision.recheck_s
        self._start_step(item)
        return _WATCH_S

    def _start_step(self, item: WorkItem) -> None:
        try:
            step = self.launch(item, self.settings.state_dir, self.config)
        except (OSError, LaunchError) as error:
            self._failed(item, 0.0, f"it could not be started: {error}")
            return
        self._running = _Running(step, self.clock.monotonic(), item.why)
        self.why = f"tuning {item.label}, because {item.why}"
        self._event(f"Tuning {item.label}: {item.why}.")
        self._listening.tell_proxies({"event": "tuning", "what": item.label, "why": item.why})

    def _watch_step(self, jump_s: float) -> float:
        assert self._running is not None
        assert self.probes is not None
        running = self._running
        took_s = self.clock.monotonic() - running.began_s
        if (outcome := running.step.outcome()) is not None:
            self._finish_step(outcome, took_s)
            return 0.0
        if self._busy():
            self._preempt("a request came")
        elif jump_s:
            self._preempt(f"the clock jumped by {jump_s:.0f} s, so that nobody knows what was measured")
        elif took_s > running.step.item.cost_s + _OVERTIME_S:
            item = running.step.item
            self._preempt("it took far longer than its budget")
            self.memory.ended(item, seconds=0.0, at=self.clock.wall(), failure="it hung")
            self.memory.save()
        else:
            spent_s = self.memory.spent_today_s(self.clock.today()) + took_s
            signals = self.probes.read(self._traffic(), spent_s, measuring=True)
            self.decision = decide(signals, policy_of(self.settings), measuring=True)
            if not self.decision.go:
                self._preempt(self.decision.why)
        return _WATCH_S if self.running is not None else 0.0

    def _preempt(self, why: str) -> None:
        assert self._running is not None
        running, self._running = self._running, None
        running.step.preempt()
        seconds = self.clock.monotonic() - running.began_s
        self._listening.tell_proxies({"event": "yielded"})
        item = running.step.item
        self._event(f"Stopped tuning {item.label} after {seconds:.0f} s: {why}.")
        self._spent(seconds)
        self.memory.preempted(item, seconds=seconds)
        self.memory.save()
        self._after_step()
        self._rest(why)

    def _finish_step(self, outcome: Outcome, seconds: float) -> None:
        assert self._running is not None
        running, self._running = self._running, None
        item = running.step.item
        if outcome.busy:
            self._not_before_s = self.clock.monotonic() + _BUSY_PAUSE_S
            self._event(f"Could not tune {item.label}: {outcome.words}")
        elif not outcome.ok:
            self._failed(item, seconds, outcome.words)
        else:
            self._event(f"Tuned {item.label} for {seconds:.0f} s.")
            self._spent(seconds)
            self.memory.ended(item, seconds=seconds, at=self.clock.wall())
            self.memory.save()
        self._after_step()
        self._rest("it looks for what is worth measuring next")

    def _failed(self, item: WorkItem, seconds: float, words: str) -> None:
        self._spent(seconds)
        self.memory.ended(item, seconds=seconds, at=self.clock.wall(), failure=words)
        self.memory.save()
        self._event(f"Tuning {item.label} failed: {words}")
        self._after_step()

    def _after_step(self) -> None:
        assert self.probes is not None
        self.probes.forget_load()
        self.items = []  # the next survey says what is worth it now
        self._survey_at_s = self.clock.monotonic()
        self._once_done = True

    def _spent(self, seconds: float) -> None:
        self.memory.spend(self.clock.today(), seconds)

    # --- surveys --------------------------------------------------------------------------------------------------

    def _survey_due(self, now_s: float) -> bool:
        if changed := self._files.changed():
            self._event(f"{changed[0]} changed{f', and {len(changed) - 1} more' if changed[1:] else ''}.")
            self._reload_settings()
            return True
        if self._traffic_since_survey and now_s - self._surveyed_s > _SURVEY_AFTER_TRAFFIC_S:
            return True
        if self._next_at is not None and self.clock.wall() >= self._next_at:
            return True
        return now_s >= self._survey_at_s

    def _start_survey(self) -> None:
        asked = {
            "found": self.memory.found,
            "efforts": {k: e.to_json() for k, e in self.memory.efforts.items()},
        }
        try:
            self._survey = SurveyRun(asked, self.config, self._selector)
        except OSError as error:
            self._take({"error": f"No survey can be started: {error.strerror or error}."})
            return
        self._traffic_since_survey = False
        self.why = "looking at what there is to measure"

    def _take(self, result: dict[str, Any]) -> None:
        self._survey = None
        now_s = self.clock.monotonic()
        self._surveyed_s = now_s
        if sentence := result.get("error"):
            if sentence != self.trouble:
                self._event(f"The survey failed: {sentence}")
            self.trouble, self.items, self._next_at = str(sentence), [], None
            self._survey_at_s = now_s + _SURVEY_AGAIN_S
            return
        self.trouble = ""
        self.items = [WorkItem.from_json(item) for item in result["items"]]
        self.later, self.notes = result["later"], result["notes"]
        self._next_at = result["next_at"]
        self._survey_at_s = now_s + _SURVEY_EVERY_S
        self._files.watch(result["watch"])
        for sentence in result["marked"]:
            self._event(f"Stale: {sentence}")
        self.memory.see(result["fingerprints"], self.clock.wall())
        self.memory.forget_done([*self.later, *(item.key for item in self.items)])
        self.memory.save()

    def _reload_settings(self) -> None:
        try:
            self.settings = load_settings(self.config)
        except AutospecError as error:
            self._event(f"The settings stay as they were: {error.message}")

    def _until_next_at(self) -> float:
        if self._next_at is None:
            return _REST_S
        return min(_REST_S, max(1.0, self._next_at - self.clock.wall()))

    # --- who speaks -----------------------------------------------------------------------------------------------

    def _hear(self, peer: Peer, message: dict[str, Any]) -> None:
        before = self._busy()
        match message:
            case {"event": "hello", "role": "proxy"}:
                peer.role, peer.pid = "proxy", int(message.get("pid", 0))
                peer.tell(self._self_description())
            case {"event": "busy"}:
                peer.busy = True
                self._traffic_since_survey = True
            case {"event": "idle"}:
                peer.busy = False
            case {"ask": "status"}:
                from autospec.daemon.status import status_document  # noqa: PLC0415 - asked for rarely

                peer.tell(status_document(self))
        if before and not self._busy():
            self._idle_since_s = self.clock.monotonic()

    def _self_description(self) -> dict[str, Any]:
        if self._running is not None:
            return {"event": "tuning", "what": self._running.step.item.label, "why": self._running.why}
        return {"event": "resting", "why": self.why}

    def _busy(self) -> bool:
        return any(peer.busy for peer in self._listening.proxies)

    def _traffic(self) -> Traffic:
        proxies = self._listening.proxies
        since_s = None if self._idle_since_s is None else self.clock.monotonic() - self._idle_since_s
        return Traffic(sum(peer.busy for peer in proxies) if proxies else None, since_s)

    # --- small things ---------------------------------------------------------------------------------------------

    @property
    def running(self) -> tuple[WorkItem, float] | None:
        """The step under way and the seconds it has taken."""
        if self._running is None:
            return None
        return self._running.step.item, self.clock.monotonic() - self._running.began_s

    @property
    def surveying(self) -> bool:
        """True while a survey runs."""
        return self._survey is not None

    @property
    def proxies(self) -> list[Peer]:
        """The proxies that are connected."""
        return self._listening.proxies

    def _rest(self, why: str) -> None:
        if why != self.why:
            self.why = why
            self._listening.tell_proxies({"event": "resting", "why": why})
            self.notifier.doing(f"Resting: {why}")
        if self.once and self._once_done:
            self._ending = True

    def _event(self, sentence: str) -> None:
        self.events.append({"at": self.clock.wall(), "what": sentence})
        self.tell(sentence)
        self.notifier.doing(sentence)

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _catch_signals(self) -> tuple[int, int]:
        """A pipe that wakes the selector: a child ended, or somebody asks the daemon to end."""
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)

        def woken() -> None:
            with suppress(BlockingIOError):
                if {signal.SIGTERM, signal.SIGINT} & set(os.read(read, 512)):
                    self._ending = True

        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ, woken)
        return read, write

    def _end(self, wake: tuple[int, int]) -> None:
        self.notifier.stopping()
        if self._running is not None:
            self._preempt("the daemon ends")
        if self._survey is not None:
            self._survey.stop()
        if self.proxy is not None and not self.once:
            self.proxy.stop()
        self._listening.close()
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for end in wake:
            os.close(end)
