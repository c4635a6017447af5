"""Rows that this version does not understand: they are left out and counted, and one sentence tells how many.

The version of the tables, for readers that do without SQLAlchemy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

from autospec.errors import StoreError

__all__ = ["SCHEMA", "Unread", "newer_than_this", "understood"]


_Row = TypeVar("_Row")
_Value = TypeVar("_Value")


class Unread:
    """Counts the rows that were left out; each counts once, however often it is read.

    Args:
        where: What they are in.
    """

    def __init__(self, where: str = "the database") -> None:
        self._where = where
        self._rows: dict[str, set[object]] = defaultdict(set)

    def add(self, kind: str, row: object) -> None:
        """Count one.

        Args:
            kind: What it is, e.g. ``recommendation``.
            row: Tells it from others of its kind.
        """
        self._rows[kind].add(row)

    @property
    def sentence(self) -> str:
        """What to tell people; empty where every row was understood."""
        counts = [
            f"{len(rows)} {kind}{'' if len(rows) == 1 else 's'}" for kind, rows in sorted(self._rows.items())
        ]
        if not counts:
            return ""
        return (
            f"This autospec does not understand {' and '.join(counts)} in {self._where}, and leaves "
            f"{'it' if sum(map(len, self._rows.values())) == 1 else 'them'} out: written by a newer version, or damaged."
        )


def understood(
    rows: Iterable[tuple[object, _Row]], read: Callable[[_Row], _Value], unread: Unread, kind: str
) -> list[_Value]:
    """The rows that can be read; the others are counted.

    Args:
        rows: Each with what tells it from the others.
        read: Makes a value of a row; raises `ValueError`, `KeyError`, `TypeError` or `AttributeError` at what it does not know.
        unread: Where those are counted.
        kind: What they are.
    """
    values = []
    for number, row in rows:
        try:
            values.append(read(row))
        except (ValueError, KeyError, TypeError, AttributeError):
            unread.add(kind, number)
    return values


# As many as there are steps in `autospec.store.schema.MIGRATIONS`.
SCHEMA = 1


def newer_than_this(where: str) -> StoreError:
    """The sentence for a database that only a newer autospec can use."""
    return StoreError(
        f"The database {where} was written by a newer autospec, and this one cannot use its tables.",
        "Update autospec, or set another `storage`.",
    )
