"""When a recommendation has gone stale, and the reason in words. Pure.

A stale recommendation goes on being served, marked: it was proven once, and off is no better founded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autospec.recommendations import Recommendation, Status

__all__ = ["Stale", "mark", "why_stale"]


@dataclass(frozen=True, slots=True)
class Stale:
    """Why.

    Attributes:
        cause: ``hardware``, ``model``, ``settings``, ``build``, ``drafts``, ``os`` or ``drift``.
        reason: A clause: "the backend's build changed from b11434 to b11500".
    """

    cause: str
    reason: str


def why_stale(then: Mapping[str, Any], now: Mapping[str, Any]) -> Stale | None:
    """Compare what a recommendation rested on with what a new one would rest on.

    The gravest change is named. What one of the two does not know (recommendations of older versions) is no change.

    Args:
        then: The recommendation's basis, see `autospec.tuning.basis.basis_of`.
        now: The basis of the same model and backend now.
    """
    if _differ(then, now, "hardware"):
        return Stale("hardware", f"the hardware changed from {then['hardware']} to {now['hardware']}")
    if _differ(then, now, "model"):
        return Stale("model", "the model file is another one")
    if _differ(then, now, "settings"):
        return Stale("settings", f"the launch settings changed from {_words(then)} to {_words(now)}")
    if _differ(then, now, "build"):
        return Stale("build", f"the backend's build changed from {then['build']} to {now['build']}")
    if _differ(then, now, "build_fingerprint"):
        return Stale("build", f"the backend was built anew and still calls itself {now['build']}")
    if (drafts := _drafts_changed(then.get("drafts"), now.get("drafts"))) is not None:
        return Stale("drafts", drafts)
    if _system(then.get("os")) != _system(now.get("os")) and then.get("os") and now.get("os"):
        return Stale("os", f"the operating system changed from {then['os']} to {now['os']}")
    return None


def mark(recommendation: Recommendation, stale: Stale) -> Recommendation:
    """The recommendation as it goes on being served: its verdict and figures stay, its status says stale and why."""
    evidence = {name: value for name, value in recommendation.evidence.items() if name != "renewing"} | {
        "stale_reason": stale.reason,
        "stale_cause": stale.cause,
    }
    return replace(recommendation, status=Status.STALE, evidence=evidence)


def _differ(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    return then.get(name) is not None and now.get(name) is not None and then[name] != now[name]


def _words(basis: Mapping[str, Any]) -> str:
    return " ".join(map(str, basis["settings"])) or "none"


def _drafts_changed(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str | None:
    if then is None or now is None:  # the user named the drafts: their choice stands
        return None
    appeared = sorted({now[d] for d in set(now) - set(then)})
    vanished = sorted({then[d] for d in set(then) - set(now)})
    if not appeared and not vanished:
        return None
    clauses = []
    if appeared:
        clauses.append(f"{_some(appeared)} {'fits' if len(appeared) == 1 else 'fit'} now as a draft")
    if vanished:
        clauses.append(f"{_some(vanished)} {'fits' if len(vanished) == 1 else 'fit'} no longer or went away")
    return " and ".join(clauses)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _system(name: Any) -> tuple[str, ...]:
    """Name and first two numbers: ``linux 6.1.0-45-amd64`` is 6.1, and its patches change no scheduler or driver."""
    found = re.match(r"(\w+)\D*(\d+)?(?:\.(\d+))?", str(name or ""))
    return tuple(part or "" for part in found.groups()) if found else ()
