"""Read recommendations without SQLAlchemy: `autospec recommend` and the proxy must not wait for its import."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from autospec.cells import Hardware
from autospec.errors import StoreError
from autospec.files import write_hint
from autospec.recommendations import Recommendation, StoredRecommendation
from autospec.store.compatibility import (
    NEWEST_OVERALL,
    NEWEST_RECOMMENDATION,
    NEWEST_RECOMMENDATIONS,
    SCHEMA,
    Unread,
    newer_than_this,
    understood,
)

if TYPE_CHECKING:
    from autospec.store.database import Store

__all__ = ["newest_recommendation", "read_overall", "read_recommendations"]

T = TypeVar("T")

_SQLITE_PREFIX = "sqlite:///"
_COLUMNS = "id, cell_key, hardware, recommendation"
_NEWEST = (
    f"SELECT {_COLUMNS} FROM autospec_recommendations WHERE id IN ({NEWEST_RECOMMENDATIONS}) ORDER BY id"  # noqa: S608
)
_NEWEST_OVERALL = f"SELECT {_COLUMNS} FROM autospec_overall WHERE id IN ({NEWEST_OVERALL}) ORDER BY id"  # noqa: S608
_HAS_META = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'autospec_meta'"
# The oldest version that can use the tables, see `autospec.store.schema`.
_NEEDS = "SELECT value FROM autospec_meta WHERE name = 'needs'"


def read_recommendations(
    url: str, tell: Callable[[str], None] = lambda _: None
) -> list[StoredRecommendation]:
    """Return the newest recommendation of every cell; empty if there is no database yet.

    A SQLite file is read with the standard library (0.03 s), any other database with SQLAlchemy. `tell` gets a sentence if rows were
    not understood.

    Raises:
        StoreError: The database exists and cannot be read.
    """
    if not _is_plain_sqlite(url):
        return _ask_store(url, tell, lambda store: store.recommendations())
    return _understood(url, _NEWEST, "recommendation", tell)


def read_overall(url: str, tell: Callable[[str], None] = lambda _: None) -> list[StoredRecommendation]:
    """Return the newest answers for a mix of prompt types, like `read_recommendations`."""
    if not _is_plain_sqlite(url):
        return _ask_store(url, tell, lambda store: store.overall_answers())
    return _understood(url, _NEWEST_OVERALL, "overall answer", tell)


def newest_recommendation(url: str) -> int:
    """Return the number of the newest recommendation; 0 without any. Raises `StoreError` like `read_recommendations`."""
    if not _is_plain_sqlite(url):
        return _ask_store(url, lambda _: None, lambda store: store.newest_recommendation())
    return next((number or 0 for (number,) in _read(url, NEWEST_RECOMMENDATION)), 0)


def _ask_store(url: str, tell: Callable[[str], None], ask: Callable[[Store], T]) -> T:
    """The answer of a database that the standard library cannot read."""
    from autospec.store.database import open_store  # noqa: PLC0415  (slow to import, rarely needed)

    with closing(open_store(url, tell)) as store:
        return ask(store)


def _understood(url: str, query: str, kind: str, tell: Callable[[str], None]) -> list[StoredRecommendation]:
    unread = Unread()
    found = understood(((number, row) for number, *row in _read(url, query)), _stored, unread, kind)
    if unread.sentence:
        tell(unread.sentence)
    return found


def _stored(row: list[Any]) -> StoredRecommendation:
    key, hardware, recommendation = row
    return StoredRecommendation(
        key, Hardware.from_json(json.loads(hardware)), Recommendation.from_json(json.loads(recommendation))
    )


def _is_plain_sqlite(url: str) -> bool:
    return url.startswith(_SQLITE_PREFIX) and "?" not in url


def _read(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query on a SQLite file; none if there is no database yet. Raises `StoreError`."""
    path = Path(unquote(url.removeprefix(_SQLITE_PREFIX)))
    if not path.exists():
        return []
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
        ) as connection:
            if connection.execute(_HAS_META).fetchall():
                needs = next((int(value) for (value,) in connection.execute(_NEEDS)), 0)
                if needs > SCHEMA:
                    raise newer_than_this(url)
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        # SQLite reads a database in WAL mode only where it may write beside it.
        raise StoreError(
            f"The database {path} cannot be read: {error}.",
            write_hint(str(error)) or "Check `autospec config show`.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"The database {path} is damaged: {error}.", "Move it away; autospec creates a new one."
        ) from error
