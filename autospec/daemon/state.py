"""What the daemon keeps over restarts, in one JSON file: efforts, when models were found, today's measuring time.

If the file cannot be written, a restart loses that memory; the daemon reports it and continues.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from autospec.daemon.work import Effort, WorkItem
from autospec.files import replace_file

__all__ = ["Memory"]

_SCHEMA = 1
_DAYS_KEPT = 3


@dataclass(slots=True)
class Memory:
    """The one mutable record; `load` and `save` it.

    Attributes:
        path: The file.
        efforts: `WorkItem.key` → what was spent without a proof.
        found: Fingerprint of a model → when it was first seen, seconds since the epoch.
        spent_s: Day (ISO) → seconds of measuring.
        trouble: Why it could not be written; empty if it could.
    """

    path: Path
    efforts: dict[str, Effort] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    spent_s: dict[str, float] = field(default_factory=dict)
    trouble: str = ""

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read the file; empty if it is missing or damaged, which loses no measurement."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] != _SCHEMA:
                return cls(path)
            efforts = {key: Effort.from_json(value) for key, value in data["efforts"].items()}
            found = {str(key): float(at) for key, at in data["found"].items()}
            spent_s = {str(day): float(seconds) for day, seconds in data["spent_s"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path)
        return cls(path, efforts, found, spent_s)

    def save(self) -> None:
        """Write it atomically; a failure goes to `trouble`."""
        try:
            replace_file(self.path, json.dumps(self.to_json(), indent=1))
        except OSError as error:
            self.trouble = f"{self.path} cannot be written ({error.strerror or error}): a restart will forget today's steps"
        else:
            self.trouble = ""

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": _SCHEMA,
            "efforts": {key: effort.to_json() for key, effort in self.efforts.items()},
            "found": self.found,
            "spent_s": {day: round(seconds, 1) for day, seconds in self.spent_s.items()},
        }

    def see(self, fingerprints: Iterable[str], now: float) -> None:
        """Record when models were first seen, and forget those that are gone."""
        self.found = {f: min(self.found.get(f, now), now) for f in fingerprints}

    def spend(self, today: date, seconds: float) -> None:
        """Count seconds of measuring. Nearby days are kept, in case the clock is set back and forth."""
        day = today.isoformat()
        self.spent_s[day] = self.spent_s.get(day, 0.0) + max(0.0, seconds)
        near = {(today + timedelta(days=n)).isoformat() for n in range(-_DAYS_KEPT, _DAYS_KEPT + 1)}
        self.spent_s = {d: s for d, s in self.spent_s.items() if d in near}

    def spent_today_s(self, today: date) -> float:
        """Seconds of measuring on a day."""
        return self.spent_s.get(today.isoformat(), 0.0)

    def ended(self, item: WorkItem, *, seconds: float, at: float, failure: str = "") -> None:
        """Record that a step ran to its end, or failed."""
        old = self._effort(item)
        self.efforts[item.key] = replace(
            old,
            steps=old.steps + (0 if failure else 1),
            failures=old.failures + 1 if failure else 0,
            last_at=at,
            last=failure or "it ran to its end",
            spent_s=old.spent_s + seconds,
        )

    def preempted(self, item: WorkItem, *, seconds: float) -> None:
        """Record that a step was stopped: only its time counts."""
        old = self._effort(item)
        self.efforts[item.key] = replace(old, spent_s=old.spent_s + seconds)

    def forget_done(self, open_keys: Mapping[str, Any] | Iterable[str]) -> None:
        """Drop efforts of cells that are in no list any more."""
        wanted = set(open_keys)
        self.efforts = {key: effort for key, effort in self.efforts.items() if key in wanted}

    def _effort(self, item: WorkItem) -> Effort:
        old = self.efforts.get(item.key, Effort())
        return old if old.basis == item.basis else Effort(basis=item.basis)
