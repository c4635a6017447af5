"""Why a model gets the launches it gets, in one sentence. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from autospec.drafting import Drafting
from autospec.proxy.forecast import Forecast, best_route
from autospec.proxy.needs import Footprint, Launchable, Room

__all__ = ["explain", "explain_none"]

_GB = 1e9
# Below this share of the busy time a better set of launches is not worth a sentence.
_WORTH_SAYING = 0.01
# Prompt types named in a sentence; the routes name all.
_MOST_NAMED = 3


def explain(forecast: Forecast, room: Room, chosen: Sequence[Launchable], ideal: Sequence[Launchable]) -> str:
    """Why these launches.

    Args:
        forecast: Of the model.
        room: Memory and horizon.
        chosen: What is kept, at least one.
        ideal: What would save most if launches and memory cost nothing.
    """
    kept = " and ".join(_launch(forecast, entry.drafting, chosen) for entry in chosen)
    if forecast.busy_s <= 0.0:
        return f"{kept}, chosen for the tuned prompt types alike, as no traffic was seen yet."
    saved, busy = forecast.saved_s(chosen), forecast.busy_s
    if saved > 0.0:
        worth = f"expected to save {_seconds(saved)} of {_seconds(busy)} of generation in {_seconds(room.horizon_s)}"
    elif saved < 0.0:
        worth = f"expected to cost {_seconds(-saved)} of {_seconds(busy)} of generation in {_seconds(room.horizon_s)}"
    else:
        tuned = any(forecast.needs.advice.get(kind) for kind in forecast.shares)
        worth = (
            "no drafting pays for this traffic"
            if tuned
            else "nothing is known yet of what drafting does for it (the daemon finds out, or `autospec tune`)"
        )
    return f"{kept}: {worth}{_not_taken(forecast, room, chosen, ideal)}."


def explain_none(smallest_bytes: int | None, room: Room, *, wanted: bool) -> str:
    """Why no launch at all.

    Args:
        smallest_bytes: Memory of the model's smallest launch; ``None`` if nothing can be launched.
        room: The memory limit.
        wanted: True if the model runs or is asked for.
    """
    if smallest_bytes is None:
        return "No launch of this model is possible."
    if not wanted:
        return "Nobody asks for it."
    limit = room.memory_bytes or 0
    if smallest_bytes > limit:
        return f"Its smallest launch takes {_gigabytes(smallest_bytes)}, more than the limit of {_gigabytes(limit)}."
    return f"The memory ({_gigabytes(limit)}) goes to models that are used more; it would take {_gigabytes(smallest_bytes)}."


def _launch(forecast: Forecast, launch: Drafting, chosen: Sequence[Launchable]) -> str:
    """One launch with the prompt types that go there, the most used first."""
    here = defaultdict[str, list[tuple[float, str]]](list)
    for kind, share in forecast.shares.items():
        route = best_route(forecast.needs, kind, chosen)
        if route.launch == launch:
            advice = forecast.needs.advice.get(kind)
            likely = advice is not None and advice.likely and advice.drafting == route.drafting
            here[f"{route.drafting.label} (likely)" if likely else route.drafting.label].append(
                (share, str(kind))
            )
    if not here or forecast.busy_s <= 0.0:
        return launch.label
    return " and ".join(f"{label} for {_kinds(kinds)}" for label, kinds in here.items())


def _kinds(kinds: list[tuple[float, str]]) -> str:
    ranked = sorted(kinds, key=lambda kind: (-kind[0], kind[1]))
    named = ", ".join(f"{name} ({share:.0%})" for share, name in ranked[:_MOST_NAMED])
    more = len(ranked) - _MOST_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _not_taken(
    forecast: Forecast, room: Room, chosen: Sequence[Launchable], ideal: Sequence[Launchable]
) -> str:
    """What would save more, and why it is not done; empty where nothing would."""
    more = forecast.saved_s(ideal) - forecast.saved_s(chosen)
    if more <= _WORTH_SAYING * forecast.busy_s:
        return ""
    new = [entry for entry in ideal if entry not in chosen and entry.drafting not in forecast.needs.running]
    names = " and ".join(entry.drafting.label for entry in ideal)
    needed = Footprint.total_bytes(entry.footprint for entry in ideal)
    if room.memory_bytes is None and len(ideal) > len(chosen):
        why = "the memory for a further launch is not known"
    elif room.memory_bytes is not None and needed > room.memory_bytes:
        why = f"that takes {_gigabytes(needed)} of memory"
    elif new:
        why = f"that takes {_seconds(sum(entry.launch_s for entry in new))} to start"
    else:
        why = "other models need the memory"
    return f"; {names} would save {_seconds(more)} more, but {why}"


def _seconds(seconds: float) -> str:
    if seconds < 600.0:
        return f"{seconds:.0f} s" if seconds >= 10.0 else f"{seconds:.1f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 36000.0 else f"{seconds / 3600.0:.0f} h"


def _gigabytes(count: int) -> str:
    return f"{count / _GB:.1f} GB"
