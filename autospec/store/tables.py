"""The tables, as SQLAlchemy Core: they live beside Optuna's in one database, under our own prefix."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["MEASUREMENTS", "METADATA", "RECOMMENDATIONS", "SURVEYS"]

METADATA = sa.MetaData()

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
    sa.Column("drafting", sa.JSON, nullable=False),
    sa.Column("compared", sa.JSON, nullable=False),
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
    sa.Column("machine", sa.JSON, nullable=False),
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
    sa.Column("hardware", sa.JSON, nullable=False),
    sa.Column("recommendation", sa.JSON, nullable=False),
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
    sa.Column("data", sa.JSON, nullable=False),
    sa.Index("autospec_surveys_cell", "cell_key", "protocol", "kind"),
)
