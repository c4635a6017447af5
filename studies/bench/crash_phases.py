"""The state of a killed tune's database: its phase, and whether anything is torn, lost or done twice.

It reads with sqlite3, because autospec's own code is under test.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema

from autospec.drafting import Mode
from autospec.recommendations import SCHEMA, Recommendation, Status

__all__ = ["PHASES", "Database", "Phase", "Watch"]

_ENTRY_SCHEMA = SCHEMA["properties"]["recommendations"]["items"]
# After the last measurement: the time in which the recommendation is written.
_WRITING_S = 0.25


class Phase(StrEnum):
    """The phases of a tune, in order."""

    START = "start, no server yet"
    RECORDING = "recording answers"
    TIMING = "timing batches"
    READING = "passes of the draft"
    SEARCH = "search"
    PROOF = "proof"
    WRITING = "writing the recommendation"
    END = "stopping the servers"


PHASES = tuple(Phase)


class Database:
    """One SQLite file, which may not exist yet. `launches`: records of running launches. `halves`: measurements of a proof."""

    def __init__(self, path: Path, launches: Path, halves: int) -> None:
        self.halves = halves
        self._path, self._launches = path, launches

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query; none before the tables exist."""
        if not self._path.exists():
            return []
        with contextlib.closing(
            sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=30)
        ) as connection:
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def launches(self) -> set[str]:
        """Launches that have a record."""
        return {path.stem for path in self._launches.glob("*.json")}

    def measurements(self) -> set[tuple[Any, ...]]:
        """Every finished measurement."""
        return set(self.rows("SELECT id, launch_id, prompt_id, started_at FROM autospec_measurements"))

    def surveys(self) -> set[tuple[Any, ...]]:
        """Inputs of prediction; rows are identified by their content, since ids repeat after a deletion."""
        return set(self.rows("SELECT kind, name, data FROM autospec_surveys"))

    def recommendations(self) -> int:
        """Number of recommendations ever stored."""
        found = self.rows("SELECT count(*) FROM autospec_recommendations")
        return int(found[0][0]) if found else 0

    def is_finished(self) -> bool:
        """True if the next `--again` starts over: the last one reached a proof, or nothing could be measured.

        A recommendation alone proves nothing: every interruption writes a provisional one.
        """
        epoch = self.note("epoch")
        if epoch is None:
            return False
        if (self.note("winner") or {}).get("mode") == Mode.OFF:
            return True
        made = [
            json.loads(str(text))
            for (text,) in self.rows("SELECT recommendation FROM autospec_recommendations")
        ]
        return any(m.get("status") == Status.PROVEN and m["evidence"].get("epoch") == epoch for m in made)

    def torn(self) -> int:
        """Number of recommendations that cannot be read back."""
        torn = 0
        for (text,) in self.rows("SELECT recommendation FROM autospec_recommendations"):
            try:
                data = json.loads(str(text))
                Recommendation.from_json(data)
                jsonschema.validate(data, _ENTRY_SCHEMA)
            except (ValueError, KeyError, TypeError, jsonschema.ValidationError):
                torn += 1
        return torn

    def sound(self) -> bool:
        """Whether SQLite's integrity check passes."""
        return all(row == ("ok",) for row in self.rows("PRAGMA integrity_check"))

    def trials_done_twice(self) -> int:
        """Finished trials beyond the first of each drafting, since the study last started over."""
        query = (
            "SELECT a.value_json FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id"
            " WHERE a.key = 'drafting' AND t.state = 'COMPLETE' AND t.number >= ?"
        )
        return sum(n - 1 for n in Counter(self.rows(query, self.note("trials_from") or 0)).values())

    def note(self, name: str) -> Any:
        """The study's note with this name; the study has one protocol only."""
        query = "SELECT value_json FROM study_user_attributes WHERE key LIKE ?"
        found = self.rows(query, f"{name}:%")
        return json.loads(found[0][0]) if found else None

    def proof(self) -> tuple[int, float]:
        """Measurements of the proof since the study last started over, and the end of the last one."""
        query = (
            "SELECT count(*), max(started_at + wall_ms / 1000.0) FROM autospec_measurements"
            " WHERE phase = 'prove' AND started_at >= ?"
        )
        found = self.rows(query, self.note("epoch") or 0.0)
        return (int(found[0][0]), float(found[0][1] or 0.0)) if found else (0, 0.0)


class Watch:
    """Tells the phase of the tune that starts now.

    Args:
        database: Its database. After a recommendation the tune starts over, and earlier surveys do not count.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._launches = database.launches()
        self._old = database.surveys() if database.is_finished() else set()
        self._recommendations = database.recommendations()

    @property
    def written(self) -> bool:
        """True once it has stored a recommendation."""
        return self._database.recommendations() > self._recommendations

    @property
    def is_proving(self) -> bool:
        """True once the last look of the proof is near."""
        return self._database.proof()[0] >= self._database.halves - 1

    def phase(self, at: float | None = None) -> Phase:
        """Where it is.

        Args:
            at: Where it was when it was killed at this moment, in seconds since the epoch.
        """
        database = self._database
        if not database.launches() - self._launches:
            return Phase.START
        if database.note("winner") is not None:
            return self._proving(*database.proof(), at or time.time())
        kinds = {
            (kind, kind == "times" and name == "main") for kind, name, _ in database.surveys() - self._old
        }
        if ("times", False) in kinds:
            return Phase.SEARCH
        if ("times", True) in kinds:
            return Phase.READING
        return Phase.TIMING if ("recording", False) in kinds else Phase.RECORDING

    def _proving(self, halves: int, ended_at: float, now: float) -> Phase:
        if halves < self._database.halves:
            return Phase.PROOF
        return Phase.WRITING if now - ended_at < _WRITING_S else Phase.END
