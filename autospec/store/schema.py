"""The version of the database's tables, and the steps from one to the next.

`autospec_meta` holds two numbers: `schema`, the version of the tables, and `needs`, the oldest version that can still use
them. A step that only adds columns or tables leaves `needs` as it is; an older autospec then goes on with the database
and leaves out the rows that it does not understand.

The tables, as SQLAlchemy Core: they live beside Optuna's in one database, under our own prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from autospec.store.compatibility import SCHEMA, newer_than_this

__all__ = [
    "MEASUREMENTS",
    "METADATA",
    "MIGRATIONS",
    "RECOMMENDATIONS",
    "SURVEYS",
    "Json",
    "bring_up_to_date",
]


METADATA = sa.MetaData()


class Json(sa.TypeDecorator[Any]):
    """JSON whose unreadable values are ``None``: one damaged row must not keep all others from being read."""

    impl = sa.JSON
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """The dialect's own, which raises at text that is no JSON, made to return ``None`` then."""
        inner = super().result_processor(dialect, coltype)
        if inner is None:
            return None

        def process(value: Any) -> Any:
            try:
                return inner(value)
            except ValueError:
                return None

        return process


# What the database itself is: `autospec.store.schema` reads and writes it.
META = sa.Table(
    "autospec_meta",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)

# Draftings and cells are stored as JSON text beside an indexed key: people read these tables with sqlite3, and
# a database of today must open in a version that has other parameters.
MEASUREMENTS = sa.Table(
    "autospec_measurements",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cell_key", sa.String(16), nullable=False),
    sa.Column("protocol", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("drafting", Json, nullable=False),
    sa.Column("compared", Json, nullable=False),
    sa.Column("prompt_id", sa.String(256), nullable=False),
    sa.Column("launch_id", sa.String(128), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("predicted_tokens", sa.Integer, nullable=False),
    sa.Column("prompt_ms", sa.Float, nullable=False),
    sa.Column("predicted_ms", sa.Float, nullable=False),
    sa.Column("wall_ms", sa.Float, nullable=False),
    sa.Column("drafted", sa.Integer),
    sa.Column("accepted", sa.Integer),
    sa.Column("text_digest", sa.String(64), nullable=False),
    sa.Column("finish_reason", sa.String(32), nullable=False),
    sa.Column("machine", Json, nullable=False),
    # What file `compared` names: `draft` is a path there, and files are replaced and moved. See `autospec.store.queries`.
    sa.Column("draft_id", sa.String(16)),
    sa.Index("autospec_measurements_cell", "cell_key", "protocol", "phase"),
)

# One row a recommendation ever made; the newest of a cell is the one that counts.
RECOMMENDATIONS = sa.Table(
    "autospec_recommendations",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cell_key", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("prompt_type", sa.String(32)),
    sa.Column("hardware_id", sa.String(128), nullable=False),
    sa.Column("hardware", Json, nullable=False),
    sa.Column("recommendation", Json, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Index("autospec_recommendations_cell", "cell_key", "id"),
)

# What prediction works on: recorded token ids, profiles of drafts over them, times of batches. It can be made again,
# and is forgotten where the user wants no answers kept.
SURVEYS = sa.Table(
    "autospec_surveys",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cell_key", sa.String(64), nullable=False),
    sa.Column("protocol", sa.String(16), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Index("autospec_surveys_cell", "cell_key", "protocol", "kind"),
)


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
