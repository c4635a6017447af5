"""What the daemon would decide now, without a daemon: for `autospec doctor`."""

from __future__ import annotations

from dataclasses import replace

from autospec.daemon.clock import Clock
from autospec.daemon.memory import Memory
from autospec.daemon.probes import Probes, Traffic
from autospec.daemon.when import Decision, decide, policy_of
from autospec.errors import NothingKnownError
from autospec.service.control import ask_status
from autospec.settings import Settings

__all__ = ["glance"]


def glance(settings: Settings, other_load: float | None) -> Decision:
    """Read every signal once and judge it.

    Args:
        settings: The user's.
        other_load: Cores that other programs keep busy, which takes a window that the caller has.
    """
    clock = Clock()
    spent_s = Memory.load(settings.state_dir / "daemon.json").spent_today_s(clock.today())
    signals = Probes(clock).read(_traffic(settings), spent_s)
    return decide(replace(signals, other_load=other_load), policy_of(settings))


def _traffic(settings: Settings) -> Traffic:
    """What the running daemon hears from proxies; nothing is known without one."""
    try:
        proxies = ask_status(settings.state_dir).get("proxies", [])
    except NothingKnownError:
        return Traffic()
    return Traffic(sum(bool(p["busy"]) for p in proxies)) if proxies else Traffic()
