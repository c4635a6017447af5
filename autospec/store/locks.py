"""Several machines on one PostgreSQL: who has a cell, and who makes the tables.

Both are PostgreSQL's advisory locks (documentation, 13.3.5). A cell's is held by a session for as long as a tune has
it, and the server frees it when the session ends, however it ends: no clock, no heartbeat, no lease that a long
measurement could outlive. A machine that loses its power is noticed by TCP keepalives after some two minutes. Optuna's
own heartbeat would only tell about single trials, and takes every machine's word for the time.

SQLite files belong to one machine, where `autospec.hardware.machine_lock` lets one tune run at a time.

What a database says, as a `StoreError` that a person can act on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from autospec.errors import StoreError

__all__ = ["CellLocks", "first_use", "plain_errors"]


@contextmanager
def plain_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into `StoreError`.

    Raises:
        StoreError: The database could not do what was asked.
    """
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(
            f"The database {where} cannot be used: {error.orig}.",
            "Check that the disk has room and the file is not damaged; `autospec config show` tells where it is.",
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"The database {where} cannot be used: {error}.", "Check `storage`.") from error


# Advisory locks are numbers, shared by everything that uses the database: ours begin with these 15 bits.
_OURS = 0x6175 << 48
_TABLES = _OURS | 0xFFFF_FFFF_FFFF
# After 60 s of silence three questions, 20 s apart: libpq's names (documentation, 34.1.2).
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 60, "keepalives_interval": 20, "keepalives_count": 3}


class CellLocks:
    """The cells that this process tunes. A context manager; leaving it frees them all.

    Args:
        url: SQLAlchemy URL of the database.
    """

    def __init__(self, url: str) -> None:
        self._engine: sa.Engine | None = None
        self._connection: sa.Connection | None = None
        if make_url(url).get_backend_name() == "postgresql":
            self._engine = sa.create_engine(url, connect_args=_KEEPALIVES, poolclass=sa.NullPool)

    def take(self, cell_key: str) -> bool:
        """Have a cell from now on.

        Args:
            cell_key: `autospec.cells.Cell.key`.

        Returns:
            False if another process, here or on another machine, has it.

        Raises:
            StoreError: The database cannot be reached.
        """
        if self._engine is None:
            return True
        with plain_errors(self._engine):
            if self._connection is None:
                # Without a transaction, which would stay open for as long as the tune.
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            query = sa.text("SELECT pg_try_advisory_lock(:key)")
            return bool(self._connection.execute(query, {"key": _OURS | int(cell_key, 16)}).scalar())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            # Closing frees them too, but a moment later, when the server comes to it.
            with suppress(sa.exc.SQLAlchemyError):
                self._connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
            self._connection.close()
        if self._engine is not None:
            self._engine.dispose()


@contextmanager
def first_use(url: str) -> Iterator[None]:
    """While tables are made: several machines that start at once would make them at once, and all but one would fail.

    Args:
        url: SQLAlchemy URL of the database; SQLite has its own lock and needs none.
    """
    if make_url(url).get_backend_name() != "postgresql":
        yield
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with plain_errors(engine), engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLES})
            yield
    finally:
        engine.dispose()
