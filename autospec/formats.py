"""Percent, sizes, durations and ages as people read them, and two clauses that several rooms print."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

from autospec.recommendations import LIKELY, Recommendation, Verdict

__all__ = [
    "age",
    "bounded",
    "counted",
    "duration",
    "gibibytes",
    "gigabytes",
    "likely_words",
    "log_percent",
    "percent",
    "plain_speed",
    "ruled_out_because",
]


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 round``, ``2 rounds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(ratio: float) -> str:
    """A speed ratio as a gain: 0.84 is ``-16.0 %``."""
    return f"{100.0 * (ratio - 1.0):+.1f} %" if math.isfinite(ratio) else "unbounded"


def log_percent(log_ratio: float) -> str:
    """The logarithm of a speed ratio as a gain, like `percent`."""
    return f"{100.0 * math.expm1(log_ratio):+.1f} %"


def gigabytes(size_bytes: float) -> str:
    """A size in decimal units: ``4.7 GB``, ``638 MB``."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.1f} MB"


def gibibytes(size_bytes: float) -> str:
    """Memory in binary units: ``15.5 GiB``."""
    return f"{size_bytes / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """A duration in one unit: ``2.5 s``, ``90 s``, ``12 min``, ``3.5 h``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval, or ``None`` if an end is unbounded, which JSON stores as null."""
    ends: tuple[float | None, ...] = interval or (None,)
    return None if any(end is None or not math.isfinite(end) for end in ends) else interval


def plain_speed(tps: float | None) -> str:
    """Tokens per second with one digit after the point, or a dash."""
    return "–" if tps is None or not math.isfinite(tps) else f"{tps:.1f}"


def likely_words(r: Recommendation) -> str:
    """What is likely before the proof has finished: ``likely, +72 %, about 4 more minutes would prove it``; or nothing."""
    likely = r.evidence.get(LIKELY)
    if r.verdict is not Verdict.UNDECIDED or not isinstance(likely, dict):
        return ""
    speedup = likely.get("speedup")
    if not isinstance(speedup, int | float):
        return ""
    gain = f"likely, {100.0 * (speedup - 1.0):+.0f} %"
    about_s = likely.get("about_s")
    if not isinstance(about_s, int | float):
        return f"{gain}, not proven"
    minutes = max(1, round(about_s / 60.0))
    return f"{gain}, about {minutes} more minute{'' if minutes == 1 else 's'} would prove it"


def age(created_at: str, now: dt.datetime) -> str:
    """How long ago, in the largest unit that fits: ``3 days ago``.

    Args:
        created_at: ISO 8601; without a time zone it is UTC. A text that is no date is returned unchanged.
        now: The present.
    """
    try:
        then = dt.datetime.fromisoformat(created_at)
    except ValueError:
        return created_at
    then = then if then.tzinfo else then.replace(tzinfo=dt.UTC)
    seconds = (now - then).total_seconds()
    for unit, length_s in (
        ("year", 365 * 86400),
        ("month", 30 * 86400),
        ("day", 86400),
        ("hour", 3600),
        ("minute", 60),
    ):
        count = int(seconds // length_s)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def ruled_out_because(found: Mapping[str, Any]) -> str:
    """Why a drafting's best case was too slow to launch it, as clauses.

    Args:
        found: One object of `Forecast.rule_out`, from the tune or from a recommendation's evidence.
    """
    accepted, even = found["acceptance"], found["break_even"]
    share = "it proposes nothing" if accepted is None else f"acceptance {accepted:.2f}"
    needed = "no acceptance rate would pay" if even >= 1.0 else f"break-even {even:.2f}"
    # Evidence of earlier versions lacks it.
    prompt = ", and prompts are slower" if found.get("by_prompt") else ""
    return f"{share}, {needed}{prompt}"
