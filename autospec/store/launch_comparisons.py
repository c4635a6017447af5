"""The table of compared launches: how much launches of one server differ on a machine. `Store` wraps these functions."""

from __future__ import annotations

from dataclasses import fields

import sqlalchemy as sa

from autospec.cells import Build
from autospec.measure.launch_scatter import LaunchComparison
from autospec.store.tables import METADATA

__all__ = ["LAUNCH_COMPARISONS", "insert_launch_comparison", "select_launch_comparisons"]

# The newest ones count: drivers and systems change without a new build.
_KEPT = 40

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


def insert_launch_comparison(
    connection: sa.Connection, hardware_id: str, build: Build, model: str, comparison: LaunchComparison
) -> None:
    """Keep a comparison; in the caller's transaction."""
    row = {f.name: getattr(comparison, f.name) for f in fields(comparison)}
    row |= {"hardware_id": hardware_id, "backend": build.backend, "build": _key(build), "model": model}
    connection.execute(sa.insert(LAUNCH_COMPARISONS), [row])


def select_launch_comparisons(
    connection: sa.Connection, hardware_id: str, build: Build, model: str | None
) -> list[LaunchComparison]:
    """The newest comparisons of one machine with one build, oldest first; of one model alone where it is named."""
    table = LAUNCH_COMPARISONS
    columns = [table.c[f.name] for f in fields(LaunchComparison)]
    query = (
        sa.select(*columns)
        .where(
            table.c.hardware_id == hardware_id,
            table.c.backend == build.backend,
            table.c.build == _key(build),
            *(() if model is None else (table.c.model == model,)),
        )
        .order_by(table.c.id.desc())
        .limit(_KEPT)
    )
    return [LaunchComparison(**row) for row in reversed(connection.execute(query).mappings().all())]


def _key(build: Build) -> str:
    return build.fingerprint or build.version
