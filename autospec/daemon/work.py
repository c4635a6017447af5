"""What the daemon decides on: values that travel between its processes as JSON, time, and what it keeps over restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from autospec.cells import PromptType
from autospec.files import replace_file

__all__ = [
    "ALL_TYPES",
    "Clock",
    "Effort",
    "JumpWatch",
    "Later",
    "LaterReason",
    "Memory",
    "Tunable",
    "WorkItem",
    "effort_key",
    "effort_words",
]


# In place of a prompt type, where a step is for the overall answer.
ALL_TYPES = "all prompt types"


@dataclass(frozen=True, slots=True)
class Tunable:
    """A main model on this disk.

    Attributes:
        name: Catalogue name.
        path: What to give to ``tune --model``.
        backend: The backend that would be tuned.
        fingerprint: Of the file's metadata.
        basis: The basis of a tune now, see `autospec.tuning.resume`.
        drafts: Number of draft models that fit.
        modes: Number of draft-free modes that both the study and the build have.
        found_at: When it was first seen, seconds since the epoch.
        memory_bytes: What the baseline and the largest draft need side by side.
        is_draft: True if it fits as a draft of another model here.
        break_even: The acceptance that its drafts would need by an estimate, see `autospec.predict.estimate`; ``None`` if unknown.
    """

    name: str
    path: str
    backend: str
    fingerprint: str
    basis: Mapping[str, Any]
    drafts: int
    modes: int
    found_at: float
    memory_bytes: int
    is_draft: bool = False
    break_even: float | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """What was spent on one cell without a proof.

    Attributes:
        basis: Digest of the basis; effort on another basis does not count.
        steps: Steps that ran to their end.
        failures: Failed steps in a row.
        last_at: When the last one ended, seconds since the epoch.
        last: How it ended.
        spent_s: Seconds of measuring.
    """

    basis: str = ""
    steps: int = 0
    failures: int = 0
    last_at: float = 0.0
    last: str = ""
    spent_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Effort:
        """Read what `to_json` wrote; fields of other versions are ignored."""
        names = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in names})


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One step of tuning that is worth its time.

    Attributes:
        model: Catalogue name.
        model_path: What to give to ``--model``.
        prompt_type: The cell's; ``None`` for the pairs that only the overall answer lacks.
        backend: The cell's.
        basis: Digest of the step's basis.
        use_s_per_day: Seconds a day that answers of this cell take.
        gain: Share of that time which the best drafting is expected to save, 0…1.
        uncertainty: How little is known of the cell, 0…1.
        cost_s: Longest time of the step.
        memory_bytes: What it needs.
        why: The reason in words.
        again: True if the stored measurements of this cell must be repeated.
        types: For the overall answer, the prompt types of its mix; empty for a cell.
    """

    model: str
    model_path: str
    prompt_type: PromptType | None
    backend: str
    basis: str
    use_s_per_day: float
    gain: float
    uncertainty: float
    cost_s: float
    memory_bytes: int
    why: str
    again: bool = False
    types: tuple[PromptType, ...] = ()

    @property
    def value_s_per_day(self) -> float:
        """Seconds a day that better knowledge is expected to save."""
        return self.use_s_per_day * self.gain * self.uncertainty

    @property
    def key(self) -> str:
        """The key of its `Effort`."""
        return effort_key(self.model, self.backend, self.prompt_type)

    @property
    def label(self) -> str:
        """For people: ``qwen3-8b, coding``."""
        return f"{self.model}, {self.prompt_type or ALL_TYPES}"

    def to_json(self) -> dict[str, Any]:
        """All fields, and the value."""
        return asdict(self) | {"value_s_per_day": round(self.value_s_per_day, 3)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkItem:
        """Read what `to_json` wrote."""
        names = {f.name for f in fields(cls)}
        known = {k: v for k, v in data.items() if k in names}
        told = known["prompt_type"]
        types = tuple(PromptType(t) for t in known.get("types", ()))
        return cls(**known | {"prompt_type": None if told is None else PromptType(told), "types": types})


class LaterReason(StrEnum):
    """Why a cell is not measured now."""

    PROVEN = "proven"
    NOTHING_TO_TRY = "nothing to try"
    NO_CLEAR_ANSWER = "no clear answer"
    FAILED = "failed"
    NOT_WORTH = "not worth measuring"


@dataclass(frozen=True, slots=True)
class Later:
    """A cell that is not measured now: the reason for programs, and in words."""

    reason: LaterReason
    words: str


def effort_key(model: str, backend: str, prompt_type: PromptType | None) -> str:
    """Key of a cell over all builds: a new build continues the count of an old one, unless its basis differs.

    Without a prompt type it is that of the model's overall answer.
    """
    return f"{model}|{backend}|{prompt_type or ALL_TYPES}"


def effort_words(key: str) -> str:
    """Model and prompt type of an `effort_key`, for people."""
    model, _, prompt_type = key.rsplit("|", 2)
    return f"{model}, {prompt_type}"


class Clock:
    """The system's clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back; on Linux they stop while the machine sleeps."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def today(self) -> date:
        """The local day."""
        return datetime.fromtimestamp(self.wall()).astimezone().date()

    def minute_of_day(self) -> int:
        """The local time, 0…1439."""
        local = datetime.fromtimestamp(self.wall()).astimezone()
        return 60 * local.hour + local.minute


@dataclass(slots=True)
class JumpWatch:
    """Notices when wall clock and monotonic clock diverge: the machine slept, or the time was set."""

    clock: Clock
    tolerance_s: float = 5.0
    _apart_s: float | None = None

    def jumped_s(self) -> float:
        """How far the wall clock jumped since the last call; 0 for a correction within `tolerance_s`."""
        apart_s = self.clock.wall() - self.clock.monotonic()
        before, self._apart_s = self._apart_s, apart_s
        jump_s = 0.0 if before is None else apart_s - before
        return jump_s if abs(jump_s) > self.tolerance_s else 0.0


_SCHEMA = 1
_DAYS_KEPT = 3


@dataclass(slots=True)
class Memory:
    """What the daemon keeps over restarts, in one JSON file; `load` and `save` it.

    If the file cannot be written, a restart loses that memory; the daemon reports it and continues.

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
