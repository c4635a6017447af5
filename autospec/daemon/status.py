"""The daemon's status in words, and, for `autospec doctor`, whether a daemon would measure now."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from autospec.daemon.policy import RunDecision, decide, policy_of
from autospec.daemon.probes import ClientActivity, Probes
from autospec.daemon.state import Memory
from autospec.daemon.work import ALL_TYPES, Clock, LaterReason, effort_words
from autospec.errors import NothingKnownError
from autospec.formats import duration
from autospec.service.control import ask_status
from autospec.settings import Settings

__all__ = ["glance", "status_lines"]

_QUEUE_SHOWN = 5


def status_lines(document: dict[str, Any]) -> list[str]:
    """A status document in words. It may be of another version: what is missing is left out."""
    state = document.get("state", "unknown")
    lines = [f"The daemon (process {document.get('pid')}) is {state}."]
    if tuning := document.get("tuning"):
        lines += [
            f"  It measures {tuning['model']} on {_prompts(tuning)}.",
            f"  It has taken {tuning['for_s']:.0f} of at most {tuning['cost_s']:.0f} s.",
            f"  Reason: {tuning['why']}.",
            "  A request to the proxy stops it within a second.",
        ]
    else:
        lines.append(f"  Reason: {document.get('why')}.")
    lines += [f"  Problem: {text}" for text in document.get("trouble", [])]
    lines += [f"  Note: {text}" for text in document.get("notes", [])]
    if checks := document.get("checks"):
        lines.append("May it measure?")
        lines += [f"  {'yes' if c['allows'] else 'no ':3}  {c['name']:8} {c['words']}" for c in checks]
    queue = document.get("queue", [])
    lines.append(
        f"Next: {len(queue)} cell{'s' if len(queue) > 1 else ''} to measure."
        if queue
        else "Next: nothing is worth measuring."
    )
    lines += [
        f"  {item['model']}, {item['prompt_type'] or ALL_TYPES}: {item['why']}"
        for item in queue[:_QUEUE_SHOWN]
    ]
    later = document.get("later", {})
    reasons = document.get("later_reasons", {})
    open_cells = {key: why for key, why in later.items() if reasons.get(key) != LaterReason.PROVEN}
    if later:
        proven = len(later) - len(open_cells)
        lines.append(f"  {f'{proven} proven, ' if reasons else ''}{len(open_cells)} not measured for now.")
    lines += [f"    {effort_words(key)}: {why}" for key, why in sorted(open_cells.items())[:_QUEUE_SHOWN]]
    if len(open_cells) > _QUEUE_SHOWN:
        lines.append(f"    … and {len(open_cells) - _QUEUE_SHOWN} more (--json has them all)")
    if gaps := document.get("gaps"):
        lines.append("Slower than proven:")
        lines += [f"  {text}" for text in gaps[:_QUEUE_SHOWN]]
    lines.append(
        f"Today it has measured for {duration(document.get('spent_today_s', 0))} of {document.get('budget')}."
    )
    proxies = document.get("proxies", [])
    lines.append(
        f"{len(proxies)} {'proxy is' if len(proxies) == 1 else 'proxies are'} connected,"
        f" {'serving' if any(p['busy'] for p in proxies) else 'idle'}."
        if proxies
        else "No proxy is connected."
    )
    if (child := document.get("proxy_child")) and child.get("pid") is None:
        lines.append(f"  Its proxy does not run: {child['last_end'] or 'it is starting'}.")
    if events := document.get("events"):
        lines.append("Recent events:")
        lines += [
            f"  {datetime.fromtimestamp(e['at']).astimezone():%H:%M:%S} {e['what']}"
            for e in events[-_QUEUE_SHOWN:]
        ]
    return lines


def _prompts(item: dict[str, Any]) -> str:
    return f"{item['prompt_type']} prompts" if item["prompt_type"] else f"prompts of {ALL_TYPES} together"


def glance(settings: Settings, other_load: float | None) -> RunDecision:
    """Read every signal once and judge it.

    Args:
        settings: The user's.
        other_load: Cores that other programs use; measuring it takes time that the caller has spent.
    """
    clock = Clock()
    spent_s = Memory.load(settings.state_dir / "daemon.json").spent_today_s(clock.today())
    signals = Probes(clock).read(_traffic(settings), spent_s)
    return decide(replace(signals, other_load=other_load), policy_of(settings))


def _traffic(settings: Settings) -> ClientActivity:
    """What the running daemon hears from proxies."""
    try:
        proxies = ask_status(settings.state_dir).get("proxies", [])
    except NothingKnownError:
        return ClientActivity()
    return ClientActivity(sum(bool(p["busy"]) for p in proxies)) if proxies else ClientActivity()
