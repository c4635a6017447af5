"""The studies and trials in Optuna's storage, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from autospec.drafting import Drafting
from autospec.errors import NothingKnownError, UsageError

__all__ = ["StudySummary", "TrialSummary", "choose_study", "read_studies", "trial_from_json"]


@dataclass(frozen=True, slots=True)
class TrialSummary:
    """One trial.

    Attributes:
        number: Optuna's.
        state: ``complete``, ``fail``, ``pruned``, ``running`` or ``waiting``.
        drafting: The drafting tried, ``None`` if it is unknown.
        value: Speed ratio to the baseline, ``None`` if there is none.
        reason: Why it failed or was given up; empty otherwise.
        attributes: Optuna's user attributes.
    """

    number: int
    state: str
    drafting: Drafting | None
    value: float | None
    reason: str
    attributes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For ``studies show --json`` and exports."""
        return {
            "number": self.number,
            "state": self.state,
            "drafting": None if self.drafting is None else self.drafting.to_json(),
            "value": self.value,
            "reason": self.reason,
            "attributes": {k: v for k, v in self.attributes.items() if k not in ("drafting", "reason")},
        }


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One study: its name in the storage, its cell's attributes (empty for a foreign study), its trials in order."""

    name: str
    cell: dict[str, Any]
    trials: tuple[TrialSummary, ...]

    @property
    def cell_key(self) -> str:
        """`Cell.key`, or empty."""
        return str(self.cell.get("key", ""))

    @property
    def best(self) -> TrialSummary | None:
        """The complete trial with the highest ratio, the baseline excluded."""
        done = [
            t
            for t in self.trials
            if t.state == "complete"
            and t.value is not None
            and t.drafting is not None
            and not t.drafting.is_off
        ]
        return max(done, key=lambda t: t.value or 0.0, default=None)

    @property
    def states(self) -> dict[str, int]:
        """Number of trials by state."""
        return dict(Counter(t.state for t in self.trials))

    def to_json(self) -> dict[str, Any]:
        """All except the trials."""
        return {
            "name": self.name,
            "cell": self.cell,
            "trials": self.states,
            "best": None if self.best is None else self.best.to_json(),
        }


def read_studies(url: str) -> list[StudySummary]:
    """All studies of a storage, in order of creation; empty if the database does not exist yet.

    Raises:
        StoreError: The database cannot be used.
    """
    if url.startswith("sqlite:///") and not Path(unquote(url.removeprefix("sqlite:///"))).exists():
        return []
    from autospec.tuning.study import open_storage  # noqa: PLC0415 - Optuna takes a second to load

    storage = open_storage(url)
    studies = sorted(storage.get_all_studies(), key=lambda s: s._study_id)  # noqa: SLF001 - the only access to its trials
    return [
        StudySummary(
            name=study.study_name,
            cell=dict(study.user_attrs.get("cell", {})),
            trials=tuple(
                _trial(t.number, t.state.name, t.values, t.user_attrs)
                for t in storage.get_all_trials(study._study_id, deepcopy=False)  # noqa: SLF001
            ),
        )
        for study in studies
    ]


def choose_study(studies: list[StudySummary], text: str) -> StudySummary:
    """The study with this name, or the only one whose name contains all the words.

    Raises:
        NothingKnownError: No study matches.
        UsageError: Several studies match.
    """
    exact = [s for s in studies if text in (s.name, s.cell_key)]
    if exact:
        return exact[0]
    words = text.lower().split()
    found = [s for s in studies if all(word in s.name.lower() for word in words)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NothingKnownError(f"No study matches {text!r}.", "`autospec studies list` shows all.")
    names = "\n".join(f"  {s.name}" for s in found[:20])
    raise UsageError(f"{text!r} matches {len(found)} studies:\n{names}", "Give more of the name.")


def trial_from_json(data: dict[str, Any]) -> TrialSummary:
    """Read what `TrialSummary.to_json` wrote."""
    value = data.get("value")
    return _trial(
        data.get("number", 0),
        data.get("state", ""),
        None if value is None else [value],
        {**data.get("attributes", {}), "drafting": data.get("drafting"), "reason": data.get("reason", "")},
    )


def _trial(number: int, state: str, values: list[float] | None, attributes: dict[str, Any]) -> TrialSummary:
    value = values[0] if values and math.isfinite(values[0]) else None
    try:
        drafting = Drafting.from_json(attributes["drafting"])
    except (KeyError, TypeError, ValueError):
        drafting = None
    reason = str(attributes.get("reason") or attributes.get("gave_up") or "")
    return TrialSummary(number, state.lower(), drafting, value, reason, dict(attributes))
