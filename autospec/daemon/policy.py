"""What the daemon looks at before and while it measures. Pure values; unknown is a value of its own everywhere.

Whether to measure now: a pure decision from signals, one check each, every one with its reason in words.

Politeness is a matter of *when*, never of priority: a measurement at low priority would be of another machine than
the one that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from autospec.formats import duration, gibibytes
from autospec.settings import Settings, parse_duration, parse_hours

__all__ = [
    "Heat",
    "IdleCheck",
    "Policy",
    "PowerState",
    "RunDecision",
    "Signals",
    "decide",
    "is_loaded",
    "minutes_until",
    "policy_of",
]


class PowerState(StrEnum):
    """Where the energy comes from."""

    MAINS = "mains"
    BATTERY = "battery"
    UNKNOWN = "unknown"


class Heat(StrEnum):
    """Whether heat holds the processor back."""

    NOMINAL = "nominal"
    THROTTLED = "throttled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Signals:
    """The machine at one moment. ``None`` is unknown.

    Attributes:
        minute_of_day: Local time, 0…1439.
        spent_today_s: What was measured today.
        in_flight: Requests that the proxy is answering; ``None`` while no proxy is connected.
        since_request_s: Seconds since the last request at the proxy ended; ``None`` if none did since the start.
        held_by: Who else measures on this machine, in words; empty if nobody.
        power: See `PowerState`.
        low_power: True if the user chose to save power.
        heat: See `Heat`.
        user_idle_s: Seconds since somebody typed or moved the mouse.
        other_load: Cores that other programs keep busy; servers of the proxy and of a measurement are not counted.
        cores: Logical cores.
        memory_available_bytes: What can be had without swapping.
    """

    minute_of_day: int
    spent_today_s: float
    in_flight: int | None = None
    since_request_s: float | None = None
    held_by: str = ""
    power: PowerState = PowerState.UNKNOWN
    low_power: bool | None = None
    heat: Heat = Heat.UNKNOWN
    user_idle_s: float | None = None
    other_load: float | None = None
    cores: int = 1
    memory_available_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


# Load, heat and power are looked at again after this long; it takes a reading of some milliseconds.
RECHECK_S = 30.0
# Nothing waits longer without a look: clocks are set, and machines wake.
RECHECK_AT_MOST_S = 3600.0
_RECHECK_AT_LEAST_S = 1.0
_DAY_MINUTES = 24 * 60
# As `autospec.hardware.state.Limits`: what a measurement may carry.
_OTHER_LOAD = 0.25
_OTHER_SHARE = 0.05
# While measuring, how long every look must find the others at work before the step makes way for them: the tune itself
# stands still meanwhile, and whoever opens a file is gone by then.
_LOADED_S = 15.0
# What the system and its file cache want to keep.
_SPARE_MEMORY = 1.15


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user allows.

    Attributes:
        idle_s: So long nobody must have asked or typed.
        hours: Minutes of the day at which allowed stretches begin and end; none for any time.
        budget_s: Seconds of measuring a day.
    """

    idle_s: float = 300.0
    hours: tuple[tuple[int, int], ...] = ()
    budget_s: float = 7200.0


def policy_of(settings: Settings) -> Policy:
    """What the settings allow."""
    return Policy(
        idle_s=parse_duration(settings.daemon_idle),
        hours=parse_hours(settings.daemon_hours),
        budget_s=parse_duration(settings.daemon_budget),
    )


@dataclass(frozen=True, slots=True)
class IdleCheck:
    """One signal's word.

    Attributes:
        name: ``traffic``, ``others``, ``hours``, ``budget``, ``power``, ``heat``, ``idle``, ``load`` or ``memory``.
        state: ``ok``, ``no`` or ``unknown``.
        allows: False if it keeps the daemon from measuring; an unknown one says so in words.
        words: One sentence without a full stop.
        recheck_s: When to look again if it does not allow.
    """

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
    """Measure now, or why not.

    Attributes:
        checks: One for each signal.
    """

    checks: tuple[IdleCheck, ...]

    @property
    def go(self) -> bool:
        """True if every check allows it."""
        return all(c.allows for c in self.checks)

    @property
    def why(self) -> str:
        """What keeps it from measuring, the first of them; empty if nothing does."""
        return next((c.words for c in self.checks if not c.allows), "")

    @property
    def recheck_s(self) -> float:
        """When to decide again: when the check that holds longest may have changed its mind."""
        wait_s = max((c.recheck_s for c in self.checks if not c.allows), default=RECHECK_S)
        return min(max(wait_s, _RECHECK_AT_LEAST_S), RECHECK_AT_MOST_S)


def decide(
    signals: Signals,
    policy: Policy,
    *,
    needed_bytes: int = 0,
    measuring: bool = False,
    loaded_s: float = 0.0,
) -> RunDecision:
    """Judge every signal.

    Args:
        signals: The machine now.
        policy: What the user allows.
        needed_bytes: Memory that the next step takes.
        measuring: True while a step runs: its own memory is taken already, and a load that passes is the tune's to
            judge, which waits for others and measures again what they disturbed.
        loaded_s: While measuring, seconds since which every look found other programs at work.
    """
    checks = [
        _traffic(signals, policy),
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
    return RunDecision(tuple(checks))


def is_loaded(signals: Signals) -> bool | None:
    """True if other programs use more than a measurement can bear; ``None`` if that is not known."""
    if signals.other_load is None:
        return None
    return signals.other_load > max(_OTHER_LOAD, _OTHER_SHARE * signals.cores)


def minutes_until(hours: Sequence[tuple[int, int]], minute: int) -> int:
    """Minutes until an allowed stretch begins; 0 within one, or where there are none."""
    if not hours or any(_within(minute, *stretch) for stretch in hours):
        return 0
    return min((begin - minute) % _DAY_MINUTES for begin, _ in hours)


def _within(minute: int, begin: int, end: int) -> bool:
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _traffic(signals: Signals, policy: Policy) -> IdleCheck:
    if signals.in_flight is None:
        return IdleCheck("traffic", "unknown", True, "no proxy is connected, so requests show only as load")
    if signals.in_flight:
        # The proxy tells when it is over: there is nothing to poll.
        return IdleCheck("traffic", "no", False, "a request is being served", RECHECK_AT_MOST_S)
    if signals.since_request_s is None:
        return IdleCheck("traffic", "ok", True, "no request since the daemon started")
    left_s = policy.idle_s - signals.since_request_s
    words = f"the last request ended {duration(signals.since_request_s)} ago"
    return IdleCheck("traffic", "no" if left_s > 0 else "ok", left_s <= 0, words, left_s)


def _others(signals: Signals) -> IdleCheck:
    if signals.held_by:
        return IdleCheck("others", "no", False, f"another autospec measures: {signals.held_by}")
    return IdleCheck("others", "ok", True, "no other autospec measures")


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
        f"{duration(signals.spent_today_s)} of today's {duration(policy.budget_s)} are spent (daemon_budget)"
    )
    if signals.spent_today_s >= policy.budget_s:
        return IdleCheck("budget", "no", False, words, 60.0 * (_DAY_MINUTES - signals.minute_of_day))
    return IdleCheck("budget", "ok", True, words)


def _power(signals: Signals) -> IdleCheck:
    if signals.power is PowerState.BATTERY:
        return IdleCheck("power", "no", False, "the machine runs on battery")
    if signals.low_power:
        return IdleCheck("power", "no", False, "low power mode is on")
    if signals.power is PowerState.UNKNOWN:
        return IdleCheck("power", "unknown", True, "the power source is unknown and taken to be the mains")
    return IdleCheck("power", "ok", True, "on mains")


def _heat(signals: Signals) -> IdleCheck:
    if signals.heat is Heat.THROTTLED:
        return IdleCheck("heat", "no", False, "heat slows the processor")
    if signals.heat is Heat.UNKNOWN:
        words = "heat is unknown: pairs close in time take out what is steady"
        return IdleCheck("heat", "unknown", True, words)
    return IdleCheck("heat", "ok", True, "heat does not slow the processor")


def _idle(signals: Signals, policy: Policy) -> IdleCheck:
    if signals.user_idle_s is None:
        words = "nothing tells whether somebody sits here, so load alone decides"
        return IdleCheck("idle", "unknown", True, words)
    left_s = policy.idle_s - signals.user_idle_s
    words = f"the last input was {duration(signals.user_idle_s)} ago"
    if left_s > 0:
        return IdleCheck("idle", "no", False, f"{words} (daemon_idle is {duration(policy.idle_s)})", left_s)
    return IdleCheck("idle", "ok", True, words)


def _load(signals: Signals) -> IdleCheck:
    if signals.other_load is None:
        # A second later there are two readings, and so a load.
        return IdleCheck("load", "unknown", False, "the load is not known yet", _RECHECK_AT_LEAST_S)
    loaded = bool(is_loaded(signals))
    words = f"other programs use {signals.other_load:.1f} of {signals.cores} cores"
    return IdleCheck("load", "no" if loaded else "ok", not loaded, words)


def _load_beside(signals: Signals, loaded_s: float) -> IdleCheck:
    """The same while a step runs: it waits for a neighbour, and makes way for one who stays."""
    loaded = is_loaded(signals)
    if loaded is None:
        return IdleCheck("load", "unknown", True, "what others use is not known at this moment")
    words = f"other programs use {signals.other_load:.1f} of {signals.cores} cores"
    if loaded and loaded_s >= _LOADED_S:
        return IdleCheck("load", "no", False, words)
    return IdleCheck(
        "load", "no" if loaded else "ok", True, f"{words}: the step waits for them" if loaded else words
    )


def _memory(signals: Signals, needed_bytes: int) -> IdleCheck:
    if signals.memory_available_bytes is None:
        return IdleCheck(
            "memory", "unknown", False, "the free memory is unknown, and too little of it would swap"
        )
    free, needed = signals.memory_available_bytes, needed_bytes * _SPARE_MEMORY
    if free < needed:
        words = f"the next step needs {gibibytes(needed)} of memory and {gibibytes(free)} are free"
        return IdleCheck("memory", "no", False, words)
    return IdleCheck("memory", "ok", True, f"{gibibytes(free)} are free")


def _time(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
