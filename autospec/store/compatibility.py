"""What the readers with and without SQLAlchemy share: table version, the query, and rows that this version cannot read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

from autospec.errors import StoreError

__all__ = [
    "NEWEST_OVERALL",
    "NEWEST_RECOMMENDATION",
    "NEWEST_RECOMMENDATIONS",
    "SCHEMA",
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
