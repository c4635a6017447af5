"""What the daemon is doing and why: the document of ``autospec daemon --status --json``, and the same in words.

What the daemon would decide now, without a daemon: for `autospec doctor`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from autospec.daemon.listening import Peer
from autospec.daemon.policy import RunDecision, decide, policy_of
from autospec.daemon.probes import ClientActivity, Probes
from autospec.daemon.proxy_child import ProxyChild
from autospec.daemon.state import Memory
from autospec.daemon.work import Clock, LaterReason, WorkItem, effort_words
from autospec.daemon.work_queue import Outlook
from autospec.errors import NothingKnownError
from autospec.service.control import ask_status
from autospec.settings import Settings

__all__ = ["DaemonState", "glance", "last_words", "status_document", "status_lines"]


_QUEUE_SHOWN = 5


class DaemonState(Protocol):
    """What a status document is made of; `autospec.daemon.loop.Daemon` has it."""

    @property
    def settings(self) -> Settings:
        """The user's."""

    @property
    def clock(self) -> Clock:
        """Time."""

    @property
    def memory(self) -> Memory:
        """What the daemon has measured."""

    @property
    def outlook(self) -> Outlook:
        """What there is to measure."""

    @property
    def running(self) -> tuple[WorkItem, float] | None:
        """The step under way and the seconds it has taken."""

    @property
    def decision(self) -> RunDecision | None:
        """The last decision whether to measure."""

    @property
    def why(self) -> str:
        """What the daemon does and why."""

    @property
    def events(self) -> Iterable[dict[str, Any]]:
        """The last things that happened."""

    @property
    def proxies(self) -> Sequence[Peer]:
        """The proxies that are connected."""

    @property
    def proxy(self) -> ProxyChild | None:
        """The proxy that the daemon keeps running."""


def status_document(daemon: DaemonState) -> dict[str, Any]:
    """Everything that it knows of itself, as JSON values.

    Args:
        daemon: The running daemon.
    """
    running = daemon.running
    state = "tuning" if running else "looking" if daemon.outlook.looking else "resting"
    spent_s = daemon.memory.spent_today_s(daemon.clock.today()) + (running[1] if running else 0.0)
    return {
        "schema": 1,
        "pid": os.getpid(),
        "state": state,
        "why": daemon.why,
        "tuning": None if running is None else {**running[0].to_json(), "for_s": round(running[1], 1)},
        "queue": [item.to_json() for item in daemon.outlook.items],
        "later": daemon.outlook.later,
        "later_reasons": daemon.outlook.later_reasons,
        "checks": [check.to_json() for check in daemon.decision.checks] if daemon.decision else [],
        "spent_today_s": round(spent_s, 1),
        "budget": daemon.settings.daemon_budget,
        "proxies": [{"pid": peer.pid, "busy": peer.busy} for peer in daemon.proxies],
        "proxy_child": None
        if daemon.proxy is None
        else {"pid": daemon.proxy.pid, "crashes": daemon.proxy.crashes, "last_end": daemon.proxy.last_end},
        "trouble": [text for text in (daemon.outlook.trouble, daemon.memory.trouble) if text],
        "notes": daemon.outlook.notes,
        "events": list(daemon.events),
    }


def last_words(daemon: DaemonState) -> dict[str, Any]:
    """What is left to say when it has ended: what happened, and why it did not do more."""
    return {"schema": 1, "why": daemon.why, "events": list(daemon.events)}


def status_lines(document: dict[str, Any]) -> list[str]:
    """The document for a newcomer.

    Args:
        document: Of `status_document`, also of another version: what is missing is left out.
    """
    state = document.get("state", "unknown")
    lines = [f"The daemon (process {document.get('pid')}) is {state}."]
    if tuning := document.get("tuning"):
        lines += [
            f"  It measures {tuning['model']} on {tuning['prompt_type']} prompts, {_progress(tuning)}.",
            f"  Why this: {tuning['why']}.",
            "  A request at the proxy stops it within a second.",
        ]
    else:
        lines.append(f"  Why: {document.get('why')}.")
    lines += [f"  Trouble: {text}" for text in document.get("trouble", [])]
    if checks := document.get("checks"):
        lines.append("May it measure?")
        lines += [f"  {'yes' if c['allows'] else 'no ':3}  {c['name']:8} {c['words']}" for c in checks]
    queue = document.get("queue", [])
    lines.append(
        f"Next: {len(queue)} cells are worth measuring." if queue else "Next: nothing is worth measuring."
    )
    lines += [f"  {item['model']}, {item['prompt_type']}: {item['why']}" for item in queue[:_QUEUE_SHOWN]]
    later = document.get("later", {})
    reasons = document.get("later_reasons", {})
    open_cells = {key: why for key, why in later.items() if reasons.get(key) != LaterReason.PROVEN}
    if later:
        proven = len(later) - len(open_cells)
        lines.append(
            f"  {f'{proven} are proven, ' if reasons else ''}{len(open_cells)} are left alone for now."
        )
    lines += [f"    {effort_words(key)}: {why}" for key, why in sorted(open_cells.items())[:_QUEUE_SHOWN]]
    if len(open_cells) > _QUEUE_SHOWN:
        lines.append(f"    … and {len(open_cells) - _QUEUE_SHOWN} more (--json has them all)")
    lines.append(
        f"Today it has measured {document.get('spent_today_s', 0):.0f} s of {document.get('budget')}."
    )
    proxies = document.get("proxies", [])
    lines.append(
        f"{len(proxies)} proxy is connected, {'serving' if any(p['busy'] for p in proxies) else 'idle'}."
        if proxies
        else "No proxy is connected."
    )
    if (child := document.get("proxy_child")) and child.get("pid") is None:
        lines.append(f"  Its own proxy does not run: {child['last_end'] or 'it is being started'}.")
    if events := document.get("events"):
        lines.append("Lately:")
        lines += [
            f"  {datetime.fromtimestamp(e['at']).astimezone():%H:%M:%S} {e['what']}"
            for e in events[-_QUEUE_SHOWN:]
        ]
    return lines


def _progress(tuning: dict[str, Any]) -> str:
    return f"{tuning['for_s']:.0f} of at most {tuning['cost_s']:.0f} s"


def glance(settings: Settings, other_load: float | None) -> RunDecision:
    """Read every signal once and judge it.

    Args:
        settings: The user's.
        other_load: Cores that other programs keep busy, which takes a window that the caller has.
    """
    clock = Clock()
    spent_s = Memory.load(settings.state_dir / "daemon.json").spent_today_s(clock.today())
    signals = Probes(clock).read(_traffic(settings), spent_s)
    return decide(replace(signals, other_load=other_load), policy_of(settings))


def _traffic(settings: Settings) -> ClientActivity:
    """What the running daemon hears from proxies; nothing is known without one."""
    try:
        proxies = ask_status(settings.state_dir).get("proxies", [])
    except NothingKnownError:
        return ClientActivity()
    return ClientActivity(sum(bool(p["busy"]) for p in proxies)) if proxies else ClientActivity()
