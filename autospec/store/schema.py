"""The tables as SQLAlchemy Core, with our own prefix beside Optuna's, and the migrations between their versions.

`autospec_meta` holds two numbers: `schema`, the version of the tables, and `needs`, the oldest version that can still use
them. A migration that only adds columns or tables keeps `needs`; an older autospec then still uses the database and ignores
the rows that it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from autospec.store.compatibility import SCHEMA, newer_than_this

__all__ = [
    "LAUNCH_COMPARISONS",
    "LIVE_SAMPLES",
    "MEASUREMENTS",
    "METADATA",
    "MIGRATIONS",
    "OVERALL",
    "RECOMMENDATIONS",
    "SURVEYS",
    "bring_up_to_date",
]


METADATA = sa.MetaData()


class Json(sa.TypeDecorator[Any]):
    """JSON whose unreadable values are ``None``, so that one damaged row does not block all others."""

    impl = sa.JSON
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """The dialect's own processor, with ``None`` for text that is not JSON."""
        inner = super().result_processor(dialect, coltype)
        if inner is None:
            return None

        def process(value: Any) -> Any:
            try:
                return inner(value)
            except (ValueError, RecursionError):  # no JSON, or nested thousands deep
                return None

        return process


META = sa.Table(
    "autospec_meta",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)

# Draftings are JSON text beside an indexed key: people read these tables with sqlite3, and a version with other
# parameters must be able to open them.
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
    # Identity of the draft of `compared`, whose path may name another file later. See `autospec.store.compatibility`.
    sa.Column("draft_id", sa.String(16)),
    sa.Index("autospec_measurements_cell", "cell_key", "protocol", "phase"),
)

# One row per recommendation ever made; the newest of a cell counts.
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

# Answers for a mix of prompt types, under `Cell.launch_key`. They have a table of their own: an older autospec would take one among
# the recommendations for a record of any prompt type.
OVERALL = sa.Table(
    "autospec_overall",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cell_key", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("hardware_id", sa.String(128), nullable=False),
    sa.Column("hardware", Json, nullable=False),
    sa.Column("recommendation", Json, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Index("autospec_overall_cell", "cell_key", "id"),
)

# Inputs of prediction: recorded token ids, profiles of drafts, times of batches. They can be measured again, and are deleted
# if the user wants no answers stored.
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

# Requests that the proxy answered: numbers only, no text.
LIVE_SAMPLES = sa.Table(
    "autospec_live_samples",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("backend", sa.String(32), nullable=False),
    sa.Column("build", sa.String(128), nullable=False),
    sa.Column("prompt_type", sa.String(32)),
    sa.Column("drafting_key", sa.String(1024), nullable=False),
    sa.Column("drafting", Json, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("predicted_tokens", sa.Integer, nullable=False),
    sa.Column("prompt_ms", sa.Float, nullable=False),
    sa.Column("predicted_ms", sa.Float, nullable=False),
    sa.Column("drafted", sa.Integer),
    sa.Column("accepted", sa.Integer),
    # The conditions of the request. Unknown in rows of older versions.
    sa.Column("cached_tokens", sa.Integer),
    sa.Column("concurrent", sa.Integer),
    sa.Column("temperature", sa.Float),
    sa.Index("autospec_live_samples_cell", "model", "backend", "build", "prompt_type", "at"),
)

# Differences between two launches of one server.
LAUNCH_COMPARISONS = sa.Table(
    "autospec_launch_comparisons",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("hardware_id", sa.String(128), nullable=False),
    sa.Column("backend", sa.String(32), nullable=False),
    sa.Column("build", sa.String(128), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("old", sa.String(128), nullable=False),
    sa.Column("new", sa.String(128), nullable=False),
    sa.Column("difference", sa.Float, nullable=False),
    sa.Column("error", sa.Float, nullable=False),
    sa.Column("pairs", sa.Integer, nullable=False),
    sa.Index("autospec_launch_comparisons_server", "hardware_id", "backend", "build", "id"),
)


Migration = Callable[[sa.Connection], None]


def m001_draft_of_a_measurement(connection: sa.Connection) -> None:
    """Add the identity of a measurement's draft; older rows have none."""
    _add_column(connection, MEASUREMENTS, "draft_id")


def m002_conditions_of_a_sample(connection: sa.Connection) -> None:
    """Add the conditions of a live request; older rows have none."""
    for name in ("cached_tokens", "concurrent", "temperature"):
        _add_column(connection, LIVE_SAMPLES, name)


# The step at index i leads from version i to version i + 1. Append steps, never change one, and raise `SCHEMA` too.
MIGRATIONS: tuple[Migration, ...] = (m001_draft_of_a_measurement, m002_conditions_of_a_sample)
assert len(MIGRATIONS) == SCHEMA
# The oldest version that can use the tables of `SCHEMA`. Raise it with a step that does more than add.
_NEEDS = 0


def bring_up_to_date(engine: sa.Engine, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Create missing tables and migrate existing ones to this version, under `autospec.store.database.first_use`.

    Databases from before versioning have no `autospec_meta` and count as version 0.

    Raises:
        StoreError: The tables need a newer autospec.
    """
    where = engine.url.render_as_string(hide_password=True)
    with engine.connect() as connection:
        if _is_current(connection, where, migrations):
            return
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # Another process waits here until this one has finished.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        if _is_current(connection, where, migrations):
            return
        version = _version(connection, len(migrations))
        METADATA.create_all(connection)
        for migrate in migrations[version:]:
            migrate(connection)
        needs = max(_meta(connection).get("needs", 0), _NEEDS)
        connection.execute(sa.delete(META))
        # Tables of a newer autospec keep their version.
        rows = [
            {"name": "schema", "value": max(version, len(migrations))},
            {"name": "needs", "value": needs},
        ]
        connection.execute(sa.insert(META), rows)


def _is_current(connection: sa.Connection, where: str, migrations: tuple[Migration, ...]) -> bool:
    """Whether there is nothing to do. Raises `StoreError` as `bring_up_to_date`."""
    names = set(sa.inspect(connection).get_table_names())
    if META.name not in names:
        return False
    found = _meta(connection)
    if found.get("needs", 0) > len(migrations):
        raise newer_than_this(where)
    return found.get("schema", 0) >= len(migrations) and names >= METADATA.tables.keys()


def _version(connection: sa.Connection, newest: int) -> int:
    """The version of the existing tables; the newest if there are none."""
    names = set(sa.inspect(connection).get_table_names())
    if META.name in names:
        return _meta(connection).get("schema", 0)
    return 0 if MEASUREMENTS.name in names else newest


def _meta(connection: sa.Connection) -> dict[str, int]:
    return {row.name: int(row.value) for row in connection.execute(sa.select(META))}


def _add_column(connection: sa.Connection, table: sa.Table, name: str) -> None:
    """Add a nullable column unless it exists: SQLite commits such statements before the version is written."""
    if name in {c["name"] for c in sa.inspect(connection).get_columns(table.name)}:
        return
    kind = table.c[name].type.compile(connection.dialect)
    connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"))
