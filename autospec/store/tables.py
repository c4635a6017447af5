"""The tables, as SQLAlchemy Core: they live beside Optuna's in one database, under our own prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

__all__ = ["MEASUREMENTS", "META", "METADATA", "RECOMMENDATIONS", "SURVEYS", "Json"]

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
    # What file `compared` names: `draft` is a path there, and files are replaced and moved. See `autospec.store.drafts`.
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
