"""Which recommendations changed, and the user's hook (setting ``on_change``) that is told.

More measurements with the same answer are no change: the event stream and the hook stay quiet then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.report.selection import newest

__all__ = ["ChangeKind", "changes", "changes_document", "run_hook"]


_SCHEMA = 1


class ChangeKind(StrEnum):
    """What changed; the first that applies."""

    NEW = "new"
    GONE = "gone"
    DRAFTING = "drafting"
    VERDICT = "verdict"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Change:
    """One cell's change: `before` is ``None`` for a new recommendation, `after` for one that is gone."""

    kind: ChangeKind
    hardware_id: str
    before: Recommendation | None
    after: Recommendation | None

    @property
    def subject(self) -> Recommendation:
        """The recommendation with model, prompt type and backend."""
        subject = self.after or self.before
        assert subject is not None
        return subject

    @property
    def sentence(self) -> str:
        """The change in words, e.g. for a notification."""
        r = self.subject
        what = f"{r.model}, {r.prompt_type or 'any prompt'}, {r.backend}"
        match self.kind:
            case ChangeKind.NEW:
                return f"{what}: {r.drafting.label} ({r.verdict}, {r.status})."
            case ChangeKind.GONE:
                return f"{what}: there is no recommendation any more."
            case _:
                assert self.before is not None
                pairs = {
                    ChangeKind.DRAFTING: (self.before.drafting.label, r.drafting.label),
                    ChangeKind.VERDICT: (self.before.verdict, r.verdict),
                    ChangeKind.STATUS: (self.before.status, r.status),
                }
                before, after = pairs[self.kind]
                return f"{what}: {after} instead of {before} ({r.reason.rstrip('.')})."

    def to_json(self) -> dict[str, Any]:
        """The change, with both recommendations as in `autospec recommend --json`."""
        r = self.subject
        return {
            "kind": str(self.kind),
            "model": r.model,
            "prompt_type": None if r.prompt_type is None else str(r.prompt_type),
            "backend": r.backend,
            "hardware_id": self.hardware_id,
            "sentence": self.sentence,
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
        }


def changes(old: Iterable[StoredRecommendation], new: Iterable[StoredRecommendation]) -> tuple[Change, ...]:
    """What changed, in the order of `new`; those that are gone come last.

    Of one machine, model, backend and prompt type, the recommendation counts that `recommend` would answer with.
    """
    before, after = _by_cell(old), _by_cell(new)
    found = []
    for cell, now in after.items():
        known = before.get(cell)
        kind = ChangeKind.NEW if known is None else _kind(known, now)
        if kind is not None:
            found.append(Change(kind, cell[0], known, now))
    found += [
        Change(ChangeKind.GONE, cell[0], known, None) for cell, known in before.items() if cell not in after
    ]
    return tuple(found)


def changes_document(found: Sequence[Change], at: str) -> dict[str, Any]:
    """What a hook reads and the event stream sends; `found` is not empty, `at` is ISO 8601, UTC."""
    return {
        "schema": _SCHEMA,
        "event": "recommendations",
        "at": at,
        "changes": [change.to_json() for change in found],
    }


def _by_cell(stored: Iterable[StoredRecommendation]) -> dict[tuple[str, ...], Recommendation]:
    return {
        (s.hardware.id, r.model, r.backend, str(r.prompt_type)): r
        for s in newest(stored)
        for r in (s.recommendation,)
    }


def _kind(before: Recommendation, after: Recommendation) -> ChangeKind | None:
    if before.drafting != after.drafting:
        return ChangeKind.DRAFTING
    if before.verdict != after.verdict:
        return ChangeKind.VERDICT
    return ChangeKind.STATUS if before.status != after.status else None


# Enough to restart a server or send a message; a longer task belongs in the background (`… &` in a script).
HOOK_TIMEOUT_S: Final = 30.0
# With these a hook could report to systemd as the daemon.
_NOT_PASSED_ON: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def run_hook(
    command: Sequence[str],
    document: Mapping[str, Any],
    *,
    timeout_s: float = HOOK_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Run the hook to its end, without a shell and in its own session; return a sentence for the log.

    Blocking; an event loop calls it in a thread. A hook that runs too long is killed with its children. Nothing is raised, because
    a broken hook must not stop the daemon. What it prints is dropped.

    Args:
        command: The words of ``on_change``; at least one.
        document: From `changes_document`.
        timeout_s: Longest run.
        environ: Its environment; by default that of the process.
    """
    environ = os.environ if environ is None else environ
    try:
        hook = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            # No pipe: a background process of the hook would keep it open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: value for name, value in environ.items() if name not in _NOT_PASSED_ON},
        )
    except OSError as error:
        return f"The hook {command[0]} cannot be run: {error.strerror}."
    with hook:
        try:
            hook.communicate(json.dumps(document, allow_nan=False).encode(), timeout=timeout_s)
            how = _how(hook.returncode)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
            how = f"was killed after {timeout_s:g} s"
    return f"The hook {command[0]} {how}."


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
