"""Locks of several machines on one PostgreSQL, and database errors as `StoreError`.

PostgreSQL's advisory locks (documentation, 13.3.5) protect the tuning of a cell and the creation of tables. A session holds a
cell's lock during a tune, and the server frees it however the session ends: no clock, no heartbeat, no lease that a long
measurement could outlive. TCP keepalives detect a machine without power after about two minutes. Optuna's own heartbeat
covers only single trials and trusts every machine's clock.

A SQLite file belongs to one machine, where `autospec.hardware.processes` allows one tune at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from autospec.errors import StoreError
from autospec.files import write_hint

__all__ = ["CellLocks", "first_use", "plain_errors"]


@contextmanager
def plain_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn SQLAlchemy's errors into `StoreError`."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(
            f"The database {where} cannot be used: {error.orig}.",
            write_hint(str(error.orig))
            or "Check that the disk has space and the file is not damaged; `autospec config show` prints its path.",
        ) from error
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"The database {where} cannot be used: {error}.", "Check `storage`.") from error


# Advisory locks are numbers that all users of the database share: ours start with these 15 bits.
_OURS = 0x6175 << 48
_TABLES = _OURS | 0xFFFF_FFFF_FFFF
# After 60 s of silence, three probes 20 s apart; libpq's names (documentation, 34.1.2).
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 60, "keepalives_interval": 20, "keepalives_count": 3}


class CellLocks:
    """The cells that this process tunes. A context manager; leaving it frees them all."""

    def __init__(self, url: str) -> None:
        self._engine: sa.Engine | None = None
        self._connection: sa.Connection | None = None
        if make_url(url).get_backend_name() == "postgresql":
            self._engine = sa.create_engine(url, connect_args=_KEEPALIVES, poolclass=sa.NullPool)

    def take(self, cell_key: str) -> bool:
        """Lock a cell; False if another process, here or on another machine, has it.

        Raises:
            StoreError: The database cannot be reached.
        """
        if self._engine is None:
            return True
        with plain_errors(self._engine):
            if self._connection is None:
                # No transaction: it would stay open for the whole tune.
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            query = sa.text("SELECT pg_try_advisory_lock(:key)")
            return bool(self._connection.execute(query, {"key": _OURS | int(cell_key, 16)}).scalar())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            # Closing frees them too, but a moment later.
            with suppress(sa.exc.SQLAlchemyError):
                self._connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
            self._connection.close()
        if self._engine is not None:
            self._engine.dispose()


@contextmanager
def first_use(url: str) -> Iterator[None]:
    """Hold a lock while tables are created: several machines that start together would otherwise conflict."""
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
