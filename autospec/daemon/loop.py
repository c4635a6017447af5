"""The daemon's loop: one thread that sleeps in a selector until a message arrives, a child ends or a time has come.

The daemon itself holds no model, database or catalogue. A survey (`daemon.work_finder`) tells it what is worth measuring
and a step (`daemon.children`) measures one cell; each is a process of its own. At rest the daemon wakes up for proxies,
children and signals, and once a minute to check the watched files.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autospec.daemon.children import ProxyChild, TuneOutcome, TuneProcess, tune_command
from autospec.daemon.finder_process import Outlook
from autospec.daemon.policy import (
    RunDecision,
    Signals,
    check_traffic,
    decide,
    has_room,
    is_loaded,
    policy_of,
)
from autospec.daemon.probes import ClientActivity, Probes
from autospec.daemon.work import Clock, JumpWatch, Memory, WorkItem
from autospec.errors import LaunchError
from autospec.service.control import Listening, Notifier, Peer
from autospec.settings import Settings

__all__ = ["Daemon"]

_log = logging.getLogger(__name__)

# At rest the daemon stats some hundred files this often, so it notices a new build or draft within this time.
_REST_S = 60.0
# While measuring it checks heat, power, hours and user input this often. Proxies report requests at once.
_WATCH_S = 5.0
# `tune` keeps its budget except for a launch and the current round. A longer overrun is a hang.
_OVERTIME_S = 600.0
# Another autospec holds the machine or the cell.
_HELD_PAUSE_S = 120.0
_EVENTS_KEPT = 20


def start_step(item: WorkItem, state_dir: Path, config: Path | None) -> TuneProcess:
    """Start the tune of one cell in a child process; raises OSError or LaunchError if that fails."""
    return TuneProcess(item, state_dir, tune_command(item, config))


@dataclass(slots=True)
class Daemon:
    """One daemon.

    Attributes:
        settings: The user's; read again when the config file changes.
        config: The file given by ``--config``.
        once: Do the most valuable step if the machine is free, then end.
        proxy: Keeps the proxy running; ``None`` if the proxy runs separately or not at all.
        notifier: Reports to the supervisor.
        clock: Time.
        tell: Called with one sentence for each event.
        probes: Reads the signals.
        launch: Starts a step.
        decision: The last decision whether to measure.
        why: What the daemon does and why.
        events: The last events.
    """

    settings: Settings
    config: Path | None = None
    once: bool = False
    proxy: ProxyChild | None = None
    notifier: Notifier = field(default_factory=Notifier)
    clock: Clock = field(default_factory=Clock)
    tell: Callable[[str], None] = lambda _: None
    probes: Probes = field(default_factory=lambda: Probes(Clock()))
    launch: Callable[[WorkItem, Path, Path | None], TuneProcess] = start_step
    decision: RunDecision | None = None
    why: str = "it has just started"
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    memory: Memory = field(init=False)
    outlook: Outlook = field(init=False)
    _selector: selectors.BaseSelector = field(init=False)
    _listening: Listening = field(init=False)
    _jumps: JumpWatch = field(init=False)
    _step: TuneProcess | None = None
    _step_began_s: float = 0.0
    _idle_since_s: float | None = None
    _woke_s: float | None = None
    _looked_s: float = 0.0
    _loaded_since_s: float | None = None
    _held_until_s: dict[str, float] = field(default_factory=dict)
    _ending: bool = False

    def run(self) -> int:
        """Work until a signal asks to end; returns the exit code 0. After any other end the proxy goes on.

        Raises:
            BusyError: A daemon already runs for this state folder.
            SettingsError: The state folder belongs to another user.
        """
        self.memory = Memory.load(self.settings.state_dir / "daemon.json")
        self._jumps = JumpWatch(self.clock)
        self._selector = selectors.DefaultSelector()
        self._listening = Listening(self.settings.state_dir, self._selector, self._hear, self.clock.monotonic)
        self.outlook = Outlook(self.memory, self.clock, self.config, self._selector, self._event)
        wake = self._catch_signals()
        try:
            self.notifier.ready()
            while not self._ending:
                wait_s = self._turn()
                self.notifier.alive()
                if not self._ending:
                    self._wait(min(wait_s, self.notifier.alive_every_s or wait_s))
        finally:
            self._end(wake)
        return 0

    def status(self) -> dict[str, Any]:
        """The document of ``autospec daemon --status --json``."""
        running = self.running
        state = "tuning" if running else "looking" if self.outlook.looking else "resting"
        spent_s = self.memory.spent_today_s(self.clock.today()) + (running[1] if running else 0.0)
        return {
            "schema": 1,
            "pid": os.getpid(),
            "state": state,
            "why": self.why,
            "tuning": None if running is None else {**running[0].to_json(), "for_s": round(running[1], 1)},
            "queue": [item.to_json() for item in self.outlook.items],
            "asked": sorted(self.outlook.asked),
            "later": self.outlook.later,
            "later_reasons": self.outlook.later_reasons,
            "checks": [check.to_json() for check in self.decision.checks] if self.decision else [],
            "spent_today_s": round(spent_s, 1),
            "budget": self.settings.daemon_budget,
            "proxies": [{"pid": peer.pid, "busy": peer.busy} for peer in self.proxies],
            "proxy_child": None
            if self.proxy is None
            else {"pid": self.proxy.pid, "crashes": self.proxy.crashes, "last_end": self.proxy.last_end},
            "trouble": [text for text in (self.outlook.trouble, self.memory.trouble) if text],
            "gaps": self.outlook.gaps,
            "notes": self.outlook.notes,
            "events": list(self.events),
        }

    def last_words(self) -> dict[str, Any]:
        """The document of a daemon that has ended: its events, and why it did not do more."""
        return {"schema": 1, "why": self.why, "events": list(self.events)}

    def _turn(self) -> float:
        """Do what is due; returns the seconds until something may be due again."""
        waits = [_REST_S]
        if (pause_s := self._listening.resume()) is not None:
            waits.append(pause_s)
        if self.proxy is not None:
            if (pause_s := self.proxy.keep()) is not None:
                waits.append(pause_s)
            if news := self.proxy.news():
                self._event(news)
        jump_s = self._jumps.jumped_s()
        if jump_s > 0:
            self._woke_s = self.clock.monotonic()
        if (settings := self.outlook.take()) is not None:
            self.settings = settings
        if self._step is not None:
            waits.append(self._watch(self._step, jump_s))
        elif not self.outlook.looking:
            waits.append(self._look_for_work())
        return max(0.0, min(waits))

    def _look_for_work(self) -> float:
        busy = self._busy()
        # Each request wakes the daemon twice. It reads neither files nor the machine then; the end of the request is soon enough.
        if self.outlook.due(files=not busy):
            if busy:
                self._rest("a request is being served")
            else:
                self.outlook.look()
                self.why = "it is looking for work"
            return _REST_S
        self.outlook.settle()
        now_s = self.clock.monotonic()
        free = [item for item in self.outlook.items if now_s >= self._held_until_s.get(item.key, 0.0)]
        if free:
            return self._consider(free)
        if self.outlook.items:
            self._rest(
                "other autospec processes are measuring everything that is worth measuring", final=True
            )
            return _HELD_PAUSE_S
        idle = "nothing is worth measuring now"
        if self.outlook.waits:
            idle = "nothing else is worth measuring now; what failed is tried again later"
        self._rest(self.outlook.trouble or idle, final=True)
        return min(_REST_S, self.outlook.next_in_s())

    def _consider(self, free: list[WorkItem]) -> float:
        """Start the first of these steps for which there is memory, or rest."""
        traffic, first = self._traffic(), free[0]
        clients = check_traffic(traffic.in_flight, traffic.since_request_s, policy_of(self.settings))
        asked = any(item.model in self.outlook.asked for item in free)
        if not clients.allows and (traffic.in_flight or not asked):
            # Whatever the machine does, nothing is measured now. Reading it starts programs on a Mac.
            self.decision = RunDecision((clients,))
            self._rest(self.decision.why, final=True)
            return self.decision.recheck_s
        signals = self._since_wake(self.probes.read(traffic, self.memory.spent_today_s(self.clock.today())))
        # A model that is too large for the memory that is free must not hold up the others.
        item = next((item for item in free if has_room(signals, item.memory_bytes)), first)
        self.decision = self._judge(item, signals)
        if not self.decision.go and first.model in self.outlook.asked:
            # The person who asked wants to know what holds that step back, and not another one.
            self.decision = self._judge(first, signals)
        if not self.decision.go:
            # A load needs two readings; before that no reason is final.
            self._rest(self.decision.why, final=signals.other_load is not None)
            return self.decision.recheck_s
        try:
            self._step = self.launch(item, self.settings.state_dir, self.config)
        except (OSError, LaunchError) as error:
            self._failed(item, 0.0, f"it could not be started: {error}")
            return 0.0
        self._step_began_s = self._looked_s = self.clock.monotonic()
        self._loaded_since_s = None
        self.why = f"it tunes {item.label}, because {item.why}"
        self._event(f"Tuning {item.label}: {item.why}.")
        self._listening.tell_proxies({"event": "tuning", "what": item.label, "why": item.why})
        return _WATCH_S

    def _judge(self, item: WorkItem, signals: Signals) -> RunDecision:
        asked = item.model in self.outlook.asked
        return decide(signals, policy_of(self.settings), needed_bytes=item.memory_bytes, asked=asked)

    def _watch(self, step: TuneProcess, jump_s: float) -> float:
        """Check a running step: has it ended, may it continue?"""
        took_s = self.clock.monotonic() - self._step_began_s
        if (outcome := step.outcome()) is not None:
            self._finish(step.item, outcome, took_s)
            return 0.0
        if why := self._why_stop(step.item, took_s, jump_s):
            self._preempt(step, why)
            return 0.0
        return self._looked_s + _WATCH_S - self.clock.monotonic()

    def _why_stop(self, item: WorkItem, took_s: float, jump_s: float) -> str:
        if self._busy():
            return "a request arrived"
        if jump_s:
            return f"the clock jumped by {jump_s:.0f} s, so the measurement is not valid"
        if took_s > item.cost_s + _OVERTIME_S:
            self.memory.ended(
                item, seconds=0.0, at=self.clock.wall(), failure="it took far longer than its budget"
            )
            self.outlook.had_its_step(item)
            return "it took far longer than its budget"
        now_s = self.clock.monotonic()
        if now_s - self._looked_s < _WATCH_S:
            # A message or the end of a child woke the loop; the next look is not due yet.
            return ""
        return self._look_around(item, now_s, self.memory.spent_today_s(self.clock.today()) + took_s)

    def _look_around(self, item: WorkItem, now_s: float, spent_s: float) -> str:
        """Why the state of the machine requires the step to stop; empty if it does not."""
        before_s, self._looked_s = self._looked_s, now_s
        signals = self._since_wake(self.probes.read(self._traffic(), spent_s, measuring=True))
        if not is_loaded(signals):  # calm, or unknown
            self._loaded_since_s = None
        elif self._loaded_since_s is None:
            # The load covers the time since the previous look.
            self._loaded_since_s = before_s
        loaded_s = 0.0 if self._loaded_since_s is None else now_s - self._loaded_since_s
        self.decision = decide(
            signals,
            policy_of(self.settings),
            measuring=True,
            loaded_s=loaded_s,
            asked=item.model in self.outlook.asked,
        )
        return self.decision.why

    def _preempt(self, step: TuneProcess, why: str) -> None:
        """Stop a step: the pair in progress is lost, finished measurements are kept."""
        step.preempt()
        self._listening.tell_proxies({"event": "yielded"})
        seconds = self.clock.monotonic() - self._step_began_s
        self._event(f"Stopped tuning {step.item.label} after {seconds:.0f} s: {why}.")
        self.memory.preempted(step.item, seconds=seconds)
        self._after_step(seconds)
        self._rest(why, final=True)

    def _finish(self, item: WorkItem, outcome: TuneOutcome, seconds: float) -> None:
        if outcome.busy:
            self._held_until_s[item.key] = self.clock.monotonic() + _HELD_PAUSE_S
            self._event(f"Could not tune {item.label}: {outcome.words}")
            self._after_step(0.0)
        elif not outcome.ok:
            self._failed(item, seconds, outcome.words)
        else:
            self._event(f"Tuned {item.label} for {seconds:.0f} s.")
            self.memory.ended(item, seconds=seconds, at=self.clock.wall())
            self.outlook.had_its_step(item)
            self._after_step(seconds)
        self._rest("a step has ended", final=True)

    def _failed(self, item: WorkItem, seconds: float, words: str) -> None:
        self.memory.ended(item, seconds=seconds, at=self.clock.wall(), failure=words)
        self.outlook.had_its_step(item)
        self._event(f"Tuning {item.label} failed: {words}")
        self._after_step(seconds)

    def _after_step(self, seconds: float) -> None:
        self._step = None
        self.memory.spend(self.clock.today(), seconds)
        self.memory.save()
        self.probes.forget_load()
        self.outlook.expire()

    def _hear(self, peer: Peer, message: dict[str, Any]) -> None:
        try:
            self._act_on(peer, message)
        except Exception as error:  # noqa: BLE001 - it costs the peer its connection, and not the daemon
            _log.exception("A message on the control socket failed.")
            self._event(f"A message on the control socket failed: {type(error).__name__}: {error!s:.200}.")
            peer.lost = True

    def _act_on(self, peer: Peer, message: dict[str, Any]) -> None:
        match message:
            case {"event": "hello", "role": "proxy"}:
                told = message.get("pid")
                peer.role, peer.pid = "proxy", told if isinstance(told, int) else 0
                peer.tell(self._self_description())
            case {"event": "busy"}:
                peer.busy = True
                self.outlook.traffic_came()
            case {"event": "idle" | "left"}:
                if peer.busy:
                    self._idle_since_s = self.clock.monotonic()
                peer.busy = False
            case {"ask": "status"}:
                peer.tell(self.status())
            case {"ask": "tune", "model": str(model)}:
                peer.tell(self._asked_to_tune(model))

    def _asked_to_tune(self, model: str) -> dict[str, Any]:
        """A person wants a model measured next; what is measured already goes on to the end of its step."""
        self._event(f"Asked to tune {model} next.")
        self.outlook.ask_for(model)
        why = "it looks for what there is to measure"
        if self.running is not None:
            why = f"it first ends its step for {self.running[0].label}"
        return {"event": "asked", "model": model, "why": why}

    def _self_description(self) -> dict[str, Any]:
        if self._step is not None:
            return {"event": "tuning", "what": self._step.item.label, "why": self._step.item.why}
        return {"event": "resting", "why": self.why}

    def _busy(self) -> bool:
        return any(peer.busy for peer in self.proxies)

    def _traffic(self) -> ClientActivity:
        since_s = None if self._idle_since_s is None else self.clock.monotonic() - self._idle_since_s
        return ClientActivity(sum(peer.busy for peer in self.proxies) if self.proxies else None, since_s)

    def _since_wake(self, signals: Signals) -> Signals:
        """These signals with the time since the machine woke up."""
        if self._woke_s is None:
            return signals
        return replace(signals, since_wake_s=self.clock.monotonic() - self._woke_s)

    @property
    def running(self) -> tuple[WorkItem, float] | None:
        """The running step and the seconds it has taken."""
        if self._step is None:
            return None
        return self._step.item, self.clock.monotonic() - self._step_began_s

    @property
    def proxies(self) -> list[Peer]:
        """The connected proxies."""
        return self._listening.proxies

    def _rest(self, why: str, *, final: bool = False) -> None:
        """Record why the daemon does not measure; with ``--once`` a final reason ends it."""
        if why != self.why:
            self.why = why
            self._listening.tell_proxies({"event": "resting", "why": why})
            self.notifier.doing(f"Resting: {why}")
        if self.once and final:
            self._say(f"{why[:1].upper()}{why[1:]}.")
            self._ending = True

    def _event(self, sentence: str) -> None:
        self.events.append({"at": self.clock.wall(), "what": sentence})
        self._say(sentence)
        self.notifier.doing(sentence)

    def _say(self, sentence: str) -> None:
        with suppress(OSError):  # the terminal is closed, the disk of the log is full
            self.tell(sentence)

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            key.data()

    def _catch_signals(self) -> tuple[int, int]:
        """A pipe that wakes the selector when a child ended or the daemon is asked to end."""
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)

        ends = {signal.SIGTERM, signal.SIGINT}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
            ends.add(signal.SIGHUP)  # the terminal is closed

        def woken() -> None:
            with suppress(BlockingIOError):
                if ends & set(os.read(read, 512)):
                    self._ending = True

        for number in (signal.SIGCHLD, *ends):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ, woken)
        return read, write

    def _end(self, wake: tuple[int, int]) -> None:
        self.notifier.stopping()
        # From the last to the first, each of them also after an error in another one.
        with ExitStack() as steps:
            for end in wake:
                steps.callback(os.close, end)
            steps.callback(self._selector.close)
            steps.callback(signal.set_wakeup_fd, -1)
            steps.callback(self._listening.close)
            steps.callback(self._end_proxy)
            steps.callback(self.outlook.close)
            if self._step is not None:
                steps.callback(self._preempt, self._step, "the daemon is stopping")
            if self.proxy is not None and self._ending:
                # First of all: its answers and the step end in the same time, or both would not fit into the supervisor's.
                steps.callback(self.proxy.ask_to_stop)

    def _end_proxy(self) -> None:
        """Stop the proxy if the daemon was asked to end; after an error it goes on, and the next daemon finds it."""
        if self.proxy is None:
            return
        if self._ending:
            self.proxy.stop()
        elif (pid := self.proxy.pid) is not None:
            self._event(f"The daemon ends because of an error; its proxy goes on (process {pid}).")
