"""The version of the database's tables, and the steps from one to the next.

`autospec_meta` holds two numbers: `schema`, the version of the tables, and `needs`, the oldest version that can still use
them. A step that only adds columns or tables leaves `needs` as it is; an older autospec then goes on with the database
and leaves out the rows that it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from autospec.store.tables import MEASUREMENTS, META, METADATA
from autospec.store.version import SCHEMA, newer_than_this

__all__ = ["MIGRATIONS", "Migration", "bring_up_to_date"]

Migration = Callable[[sa.Connection], None]


def m001_draft_of_a_measurement(connection: sa.Connection) -> None:
    """Measurements tell which file their draft was; those from before do not know."""
    _add_column(connection, MEASUREMENTS, "draft_id")


# In order: the step at index i leads from version i to version i + 1. Append, never change, and raise `SCHEMA` with it.
MIGRATIONS: tuple[Migration, ...] = (m001_draft_of_a_measurement,)
assert len(MIGRATIONS) == SCHEMA
# The oldest version whose autospec can use the tables of `SCHEMA`: raise it with a step that does more than add.
_NEEDS = 0


def bring_up_to_date(engine: sa.Engine, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Make the tables that are missing and bring those that are there to this version.

    Databases from before there was a version have no `autospec_meta` and count as version 0. To be called under
    `autospec.store.locks.first_use`.

    Args:
        engine: The database.
        migrations: The steps.

    Raises:
        StoreError: The tables are of a newer autospec, and this one cannot use them.
    """
    where = engine.url.render_as_string(hide_password=True)
    with engine.connect() as connection:
        if _is_current(connection, where, migrations):
            return
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # From here on another process waits, and finds everything done.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if _is_current(connection, where, migrations):
            return
        version = _version(connection, len(migrations))
        METADATA.create_all(connection)
        for migrate in migrations[version:]:
            migrate(connection)
        needs = max(_meta(connection).get("needs", 0), _NEEDS)
        connection.execute(sa.delete(META))
        # A newer autospec's tables with one of ours missing keep their number.
        rows = [
            {"name": "schema", "value": max(version, len(migrations))},
            {"name": "needs", "value": needs},
        ]
        connection.execute(sa.insert(META), rows)


def _is_current(connection: sa.Connection, where: str, migrations: tuple[Migration, ...]) -> bool:
    """Whether there is nothing to do.

    Raises:
        StoreError: As `bring_up_to_date`.
    """
    names = set(sa.inspect(connection).get_table_names())
    if META.name not in names:
        return False
    found = _meta(connection)
    if found.get("needs", 0) > len(migrations):
        raise newer_than_this(where)
    return found.get("schema", 0) >= len(migrations) and names >= METADATA.tables.keys()


def _version(connection: sa.Connection, newest: int) -> int:
    """The version of the tables that are there; the newest where there are none yet."""
    names = set(sa.inspect(connection).get_table_names())
    if META.name in names:
        return _meta(connection).get("schema", 0)
    return 0 if MEASUREMENTS.name in names else newest


def _meta(connection: sa.Connection) -> dict[str, int]:
    return {row.name: int(row.value) for row in connection.execute(sa.select(META))}


def _add_column(connection: sa.Connection, table: sa.Table, name: str) -> None:
    """Add a column that may be null, unless it is there: SQLite commits such statements before the version is written."""
    if name in {c["name"] for c in sa.inspect(connection).get_columns(table.name)}:
        return
    kind = table.c[name].type.compile(connection.dialect)
    connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"))
