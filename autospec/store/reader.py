"""Read recommendations fast: `autospec recommend` and the proxy ask often and must not wait for imports."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from autospec.cells import Hardware
from autospec.errors import StoreError
from autospec.recommendations import Recommendation

__all__ = ["StoredRecommendation", "read_recommendations"]

_SQLITE_PREFIX = "sqlite:///"
# The newest row of each cell, as `Store.recommendations` selects it.
_NEWEST = (
    "SELECT cell_key, hardware, recommendation FROM autospec_recommendations"
    " WHERE id IN (SELECT max(id) FROM autospec_recommendations GROUP BY cell_key) ORDER BY id"
)


@dataclass(frozen=True, slots=True)
class StoredRecommendation:
    """A recommendation with what it was stored under.

    Attributes:
        cell_key: `Cell.key`, or an importer's own stable key.
        hardware: The machine that it speaks for.
        recommendation: The recommendation itself.
    """

    cell_key: str
    hardware: Hardware
    recommendation: Recommendation


def read_recommendations(url: str) -> list[StoredRecommendation]:
    """The newest recommendation of every cell; empty where there is no database yet.

    A SQLite file is read with the standard library (0.03 s); anything else through SQLAlchemy.

    Raises:
        StoreError: The database is there and cannot be read.
    """
    if not url.startswith(_SQLITE_PREFIX) or "?" in url:
        from autospec.store.database import open_store  # noqa: PLC0415  (slow to import, rarely needed)

        store = open_store(url)
        try:
            return store.recommendations()
        finally:
            store.close()
    path = Path(unquote(url.removeprefix(_SQLITE_PREFIX)))
    if not path.exists():
        return []
    try:
        with closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
        ) as connection:
            rows = connection.execute(_NEWEST).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return []
        raise StoreError(
            f"The database {path} cannot be read: {error}.", "Check `autospec config show`."
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"The database {path} is damaged: {error}.", "Move it away; autospec makes a new one."
        ) from error
    return [
        StoredRecommendation(
            key,
            Hardware.from_json(json.loads(hardware)),
            Recommendation.from_json(json.loads(recommendation)),
        )
        for key, hardware, recommendation in rows
    ]
