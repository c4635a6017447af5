"""Whether the daemon may measure now: a pure decision, one check for each signal of the machine, each with its reason.

The daemon never measures at low priority instead: that would describe another machine than the one that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from autospec.formats import duration, gibibytes
from autospec.hardware.readings import Power
from autospec.hardware.state import Limits, tolerated_cores
from autospec.settings import Settings, parse_duration, parse_hours

__all__ = [
    "Policy",
    "RunDecision",
    "Signals",
    "check_traffic",
    "decide",
    "has_room",
    "is_loaded",
    "minutes_until",
    "policy_of",
]


@dataclass(frozen=True, slots=True)
class Signals:
    """The machine at one moment. ``None`` is unknown.

    Attributes:
        minute_of_day: Local time, 0…1439.
        spent_today_s: Seconds of measuring today.
        in_flight: Requests that the proxies are answering; ``None`` while no proxy is connected.
        since_request_s: Seconds since the last request ended; ``None`` if there was none since the start.
        held_by: Which other autospec measures on this machine; empty if none.
        power: Power source, power saving and heat.
        user_idle_s: Seconds since the last keyboard or mouse input.
        unseen_input: A keyboard or mouse whose input cannot be noticed; empty if there is none.
        since_wake_s: Seconds since the machine last woke up; ``None`` if it did not sleep since the daemon's start.
        other_load: Cores that other programs use; servers of the proxy and of a measurement do not count.
        gpu_other_load: Share of the busiest GPU that other programs use.
        on_metal: Models compute on a Mac's GPU.
        cores: Logical cores.
        memory_available_bytes: Memory available to models without swapping, on graphics cards too.
    """

    minute_of_day: int
    spent_today_s: float
    in_flight: int | None = None
    since_request_s: float | None = None
    held_by: str = ""
    power: Power = field(default_factory=Power)
    user_idle_s: float | None = None
    unseen_input: str = ""
    since_wake_s: float | None = None
    other_load: float | None = None
    gpu_other_load: float | None = None
    on_metal: bool = False
    cores: int = 1
    memory_available_bytes: int | None = None


# Load, heat and power are read again after this time; a reading takes some milliseconds.
RECHECK_S = 30.0
# The longest wait without a look: clocks are set, and machines wake up.
RECHECK_AT_MOST_S = 3600.0
_RECHECK_AT_LEAST_S = 1.0
_DAY_MINUTES = 24 * 60
# While measuring, the step stops only if every look finds other programs at work for this long. The tune pauses meanwhile,
# and a short load, such as opening a file, is over by then.
_LOADED_S = 15.0
# Reserve for the system and its file cache.
_SPARE_MEMORY = 1.15


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user allows: idle seconds before measuring, spans of minutes of the day (none: any time), seconds a day."""

    idle_s: float = 300.0
    hours: tuple[tuple[int, int], ...] = ()
    budget_s: float = 7200.0


def policy_of(settings: Settings) -> Policy:
    """The policy in the settings."""
    return Policy(
        idle_s=parse_duration(settings.daemon_idle),
        hours=parse_hours(settings.daemon_hours),
        budget_s=parse_duration(settings.daemon_budget),
    )


@dataclass(frozen=True, slots=True)
class IdleCheck:
    """One signal's result; `state` is ``ok``, ``no`` or ``unknown``, `words` a clause, `recheck_s` when to look again."""

    name: str
    state: str
    allows: bool
    words: str
    recheck_s: float = RECHECK_S

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunDecision:
    """Whether to measure now: one check for each signal."""

    checks: tuple[IdleCheck, ...]

    @property
    def go(self) -> bool:
        """True if every check allows it."""
        return all(c.allows for c in self.checks)

    @property
    def why(self) -> str:
        """The first reason not to measure; empty if there is none."""
        return next((c.words for c in self.checks if not c.allows), "")

    @property
    def recheck_s(self) -> float:
        """When to decide again: when the check that holds longest may have changed."""
        wait_s = max((c.recheck_s for c in self.checks if not c.allows), default=RECHECK_S)
        return min(max(wait_s, _RECHECK_AT_LEAST_S), RECHECK_AT_MOST_S)


def decide(
    signals: Signals,
    policy: Policy,
    *,
    needed_bytes: int = 0,
    measuring: bool = False,
    loaded_s: float = 0.0,
    asked: bool = False,
) -> RunDecision:
    """Judge every signal.

    While a step runs (`measuring`), its own memory is taken already, and the tune itself waits for a short load to pass.
    `loaded_s` is for how many seconds every look has found other programs at work. If a person asked for the step, it waits neither
    for an idle machine nor for the hours, and the budget does not end it.
    """
    checks = [
        check_traffic(signals.in_flight, signals.since_request_s, policy),
        _others(signals),
        _hours(signals, policy),
        _budget(signals, policy),
        _power(signals),
        _heat(signals),
        _idle(signals, policy),
    ]
    if measuring:
        checks.append(_load_beside(signals, loaded_s))
    else:
        checks += [_load(signals), _memory(signals, needed_bytes)]
    if asked:
        checks = [_as_asked(check, signals) for check in checks]
    return RunDecision(tuple(checks))


def check_traffic(in_flight: int | None, since_request_s: float | None, policy: Policy) -> IdleCheck:
    """Judge the requests alone, which proxies report; for the arguments see `Signals`."""
    if in_flight is None:
        return IdleCheck("traffic", "unknown", True, "no proxy is connected, so requests show only as load")
    if in_flight:
        # The proxy reports the end, so there is nothing to poll.
        return IdleCheck("traffic", "no", False, "a request is being served", RECHECK_AT_MOST_S)
    if since_request_s is None:
        return IdleCheck("traffic", "ok", True, "no request since the daemon started")
    left_s = policy.idle_s - since_request_s
    words = f"the last request ended {duration(since_request_s)} ago"
    return IdleCheck("traffic", "no" if left_s > 0 else "ok", left_s <= 0, words, left_s)


def has_room(signals: Signals, needed_bytes: int) -> bool:
    """True if a step that needs this much memory could begin, as far as memory goes."""
    return _memory(signals, needed_bytes).allows


def is_loaded(signals: Signals) -> bool | None:
    """True if other programs use more than a measurement tolerates; ``None`` if that is unknown."""
    if signals.other_load is None:
        return None
    if (signals.gpu_other_load or 0.0) > Limits().gpu_load:
        return True
    return signals.other_load > tolerated_cores(signals.cores, on_metal=signals.on_metal)


def minutes_until(hours: Sequence[tuple[int, int]], minute: int) -> int:
    """Minutes until an allowed span begins; 0 inside one, or if there are none."""
    if not hours or any(_within(minute, *stretch) for stretch in hours):
        return 0
    return min((begin - minute) % _DAY_MINUTES for begin, _ in hours)


def _within(minute: int, begin: int, end: int) -> bool:
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _as_asked(check: IdleCheck, signals: Signals) -> IdleCheck:
    """The check of a step that a person asked for. That person is at the machine and wants the step now."""
    waits = check.name in ("hours", "budget", "idle") or (check.name == "traffic" and not signals.in_flight)
    if check.allows or not waits:
        return check
    return replace(check, allows=True, words=f"{check.words}; ignored, because a person asked for this step")


def _others(signals: Signals) -> IdleCheck:
    if signals.held_by:
        return IdleCheck("others", "no", False, f"another autospec is measuring: {signals.held_by}")
    return IdleCheck("others", "ok", True, "no other autospec is measuring")


def _hours(signals: Signals, policy: Policy) -> IdleCheck:
    wait = minutes_until(policy.hours, signals.minute_of_day)
    if not policy.hours:
        return IdleCheck("hours", "ok", True, "any hour is allowed (daemon_hours)")
    spans = ", ".join(f"{_time(a)}-{_time(b)}" for a, b in policy.hours)
    if wait:
        words = f"it is {_time(signals.minute_of_day)} and daemon_hours allows {spans}"
        return IdleCheck("hours", "no", False, words, 60.0 * wait)
    return IdleCheck("hours", "ok", True, f"within daemon_hours, {spans}")


def _budget(signals: Signals, policy: Policy) -> IdleCheck:
    words = (
        f"{duration(signals.spent_today_s)} of today's {duration(policy.budget_s)} are used (daemon_budget)"
    )
    if signals.spent_today_s >= policy.budget_s:
        return IdleCheck("budget", "no", False, words, 60.0 * (_DAY_MINUTES - signals.minute_of_day))
    return IdleCheck("budget", "ok", True, words)


def _power(signals: Signals) -> IdleCheck:
    if signals.power.on_battery:
        return IdleCheck("power", "no", False, "the machine runs on battery")
    if signals.power.low_power:
        return IdleCheck("power", "no", False, "low power mode is on")
    if signals.power.dark_wake:
        words = "the machine woke up for background work (a dark wake) and will sleep again within a minute"
        return IdleCheck("power", "no", False, words)
    if signals.power.on_battery is None:
        return IdleCheck("power", "unknown", True, "the power source is unknown; mains power is assumed")
    return IdleCheck("power", "ok", True, "on mains power")


def _heat(signals: Signals) -> IdleCheck:
    if signals.power.thermal == "throttled":
        return IdleCheck("heat", "no", False, "heat slows the processor")
    if signals.power.thermal != "nominal":
        words = "it is unknown whether heat slows the processor; paired runs cancel a steady effect"
        return IdleCheck("heat", "unknown", True, words)
    return IdleCheck("heat", "ok", True, "heat does not slow the processor")


def _idle(signals: Signals, policy: Policy) -> IdleCheck:
    # A machine that has just woken up still settles, and somebody may have opened its lid.
    if signals.since_wake_s is not None and (left_s := policy.idle_s - signals.since_wake_s) > 0:
        words = f"the machine slept until {duration(signals.since_wake_s)} ago, or its clock was set"
        return IdleCheck("idle", "no", False, f"{words} (daemon_idle is {duration(policy.idle_s)})", left_s)
    if signals.user_idle_s is None:
        words = "user input cannot be detected here, so only the load decides"
        return IdleCheck("idle", "unknown", True, words)
    left_s = policy.idle_s - signals.user_idle_s
    words = f"the last input was {duration(signals.user_idle_s)} ago"
    if left_s > 0:
        return IdleCheck("idle", "no", False, f"{words} (daemon_idle is {duration(policy.idle_s)})", left_s)
    if signals.unseen_input:
        words = f"{words}; input of {signals.unseen_input} cannot be noticed here"
        return IdleCheck("idle", "unknown", True, words)
    return IdleCheck("idle", "ok", True, words)


def _load(signals: Signals) -> IdleCheck:
    if signals.other_load is None:
        # A load needs two readings; the second is taken a second later.
        return IdleCheck("load", "unknown", False, "the load is not known yet", _RECHECK_AT_LEAST_S)
    loaded = bool(is_loaded(signals))
    words = _others_words(signals)
    return IdleCheck("load", "no" if loaded else "ok", not loaded, words)


def _others_words(signals: Signals) -> str:
    words = f"other programs use {signals.other_load:.1f} of {signals.cores} cores"
    gpu = signals.gpu_other_load or 0.0
    return f"{words} and {100 * gpu:.0f} % of the GPU" if gpu > Limits().gpu_load else words


def _load_beside(signals: Signals, loaded_s: float) -> IdleCheck:
    """The load while a step runs: the step waits for a short one and stops for a lasting one."""
    loaded = is_loaded(signals)
    if loaded is None:
        return IdleCheck("load", "unknown", True, "the load of other programs is not known at this moment")
    words = _others_words(signals)
    if loaded and loaded_s >= _LOADED_S:
        return IdleCheck("load", "no", False, words)
    return IdleCheck(
        "load", "no" if loaded else "ok", True, f"{words}: the step waits for them" if loaded else words
    )


def _memory(signals: Signals, needed_bytes: int) -> IdleCheck:
    if signals.memory_available_bytes is None:
        return IdleCheck("memory", "unknown", False, "the free memory is unknown, and the machine might swap")
    if signals.power.memory_short:
        return IdleCheck("memory", "no", False, "the system reports that memory is short (memory pressure)")
    free, needed = signals.memory_available_bytes, needed_bytes * _SPARE_MEMORY
    if free < needed:
        words = f"the next step needs {gibibytes(needed)} of memory and {gibibytes(free)} are free"
        return IdleCheck("memory", "no", False, words)
    return IdleCheck("memory", "ok", True, f"{gibibytes(free)} are free")


def _time(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
