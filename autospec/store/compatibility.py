"""What stored rows mean to this version and on this disk; the readers with and without SQLAlchemy share it.

It has the tables' version, the queries, rows that this version cannot read, and today's paths of stored drafts: a stored drafting
names its draft by a path, and `DraftFiles` finds the same contents today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from autospec.drafting import Drafting
from autospec.errors import StoreError

__all__ = [
    "ANY_DRAFTS",
    "NEWEST_OVERALL",
    "NEWEST_RECOMMENDATION",
    "NEWEST_RECOMMENDATIONS",
    "SCHEMA",
    "DraftFile",
    "DraftFiles",
    "Unread",
    "newer_than_this",
    "understood",
]

_Row = TypeVar("_Row")
_Value = TypeVar("_Value")


class Unread:
    """Counts rows that were left out; each counts once, however often it is read."""

    def __init__(self, where: str = "the database") -> None:
        self._where = where
        self._rows: dict[str, set[object]] = defaultdict(set)

    def add(self, kind: str, row: object) -> None:
        """Count one row by its kind, e.g. ``recommendation``, and its number."""
        self._rows[kind].add(row)

    @property
    def sentence(self) -> str:
        """The sentence for users; empty if every row was understood."""
        counts = [
            f"{len(rows)} {kind}{'' if len(rows) == 1 else 's'}" for kind, rows in sorted(self._rows.items())
        ]
        if not counts:
            return ""
        return (
            f"This autospec does not understand {' and '.join(counts)} in {self._where} and ignores "
            f"{'it' if sum(map(len, self._rows.values())) == 1 else 'them'}: written by a newer version, or damaged."
        )


def understood(
    rows: Iterable[tuple[object, _Row]], read: Callable[[_Row], _Value], unread: Unread, kind: str
) -> list[_Value]:
    """Return the rows, each with its number, that `read` can read; count the others, for which it raises a plain error."""
    values = []
    for number, row in rows:
        try:
            values.append(read(row))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            unread.add(kind, number)
    return values


# The number of steps in `autospec.store.schema.MIGRATIONS`.
SCHEMA = 2
# The newest recommendation of each cell, for sqlite3 and SQLAlchemy alike.
NEWEST_RECOMMENDATIONS = "SELECT max(id) FROM autospec_recommendations GROUP BY cell_key"
NEWEST_OVERALL = "SELECT max(id) FROM autospec_overall GROUP BY cell_key"
NEWEST_RECOMMENDATION = "SELECT max(id) FROM autospec_recommendations"


def newer_than_this(where: str) -> StoreError:
    """The error for a database that only a newer autospec can use."""
    return StoreError(
        f"The database {where} was written by a newer autospec, and this one cannot use its tables.",
        "Update autospec, or set another `storage`.",
    )


@dataclass(frozen=True, slots=True)
class DraftFile:
    """One draft today: digest of its contents, time of its newest file (0 if unknown), catalogue name and fingerprint."""

    identity: str
    changed_at: float = 0.0
    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """Today's drafts by path; other paths stay unchanged."""

    by_path: Mapping[str, DraftFile] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def identities(self) -> dict[str, str]:
        """Path → identity."""
        return {path: file.identity for path, file in self.by_path.items()}

    def identity(self, drafting: Drafting) -> str:
        """Return the identity of a drafting's draft; empty if it has none or the file is unknown."""
        found = self.by_path.get(drafting.draft or "")
        return "" if found is None else found.identity

    def today(self, drafting: Drafting, identity: str, at: float) -> Drafting | None:
        """Return a stored drafting with today's path of its draft; ``None`` if its path names another file today.

        `identity` is that of the draft when it was stored, `at` the time in seconds since the epoch. Old rows have no identity; they
        match the file at that path if it is older than the row.
        """
        if drafting.draft is None:
            return drafting
        here = self.by_path.get(drafting.draft)
        if not identity:
            return drafting if here is None or here.changed_at <= at else None
        if here is not None and here.identity == identity:
            return drafting
        moved = next((path for path, file in self.by_path.items() if file.identity == identity), None)
        if moved is not None:
            return replace(drafting, draft=moved)
        return drafting if here is None else None


ANY_DRAFTS = DraftFiles()
