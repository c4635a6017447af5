"""The table of what the proxy saw of live traffic: numbers only, bounded. `Store` wraps these functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import sqlalchemy as sa

from autospec.cells import PromptType
from autospec.drafting import Drafting
from autospec.measure.live import Sample
from autospec.store.tables import METADATA, Json
from autospec.store.unread import Unread, understood

__all__ = ["KEPT_SAMPLES", "LIVE_SAMPLES", "insert_samples", "prune_samples", "select_samples"]

# Some 20 MB of SQLite: months of one person's use, a day of a busy team's. Drift shows in the newest ones.
KEPT_SAMPLES = 100_000

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
    sa.Index("autospec_live_samples_cell", "model", "backend", "build", "prompt_type", "at"),
)


def insert_samples(connection: sa.Connection, samples: Sequence[Sample]) -> None:
    """Keep samples; in the caller's transaction."""
    rows = [
        {f.name: getattr(sample, f.name) for f in fields(sample)}
        | {
            "prompt_type": None if sample.prompt_type is None else str(sample.prompt_type),
            "drafting_key": sample.drafting.key,
            "drafting": sample.drafting.to_json(),
        }
        for sample in samples
    ]
    if rows:
        connection.execute(sa.insert(LIVE_SAMPLES), rows)


def prune_samples(connection: sa.Connection, keep: int) -> None:
    """Forget all but the newest.

    Args:
        connection: In its transaction.
        keep: How many rows may stay; ids are given in order, so that gaps only make it fewer.
    """
    newest = connection.execute(sa.select(sa.func.max(LIVE_SAMPLES.c.id))).scalar()
    if newest is not None:
        connection.execute(sa.delete(LIVE_SAMPLES).where(LIVE_SAMPLES.c.id <= newest - keep))


def select_samples(
    connection: sa.Connection,
    *,
    since: float,
    model: str | None = None,
    backend: str | None = None,
    build: str | None = None,
    prompt_type: PromptType | None = None,
    drafting: Drafting | None = None,
    unread: Unread,
) -> list[Sample]:
    """Samples since a moment, oldest first; a filter of ``None`` lets all pass. What is not understood is counted."""
    table = LIVE_SAMPLES
    wanted = {
        table.c.model: model,
        table.c.backend: backend,
        table.c.build: build,
        table.c.prompt_type: None if prompt_type is None else str(prompt_type),
        table.c.drafting_key: None if drafting is None else drafting.key,
    }
    query = sa.select(table).where(
        table.c.at >= since, *(column == value for column, value in wanted.items() if value is not None)
    )
    rows = connection.execute(query.order_by(table.c.at, table.c.id)).mappings().all()
    return understood(((row["id"], row) for row in rows), _sample, unread, "sample")


def _sample(row: sa.RowMapping) -> Sample:
    return Sample(
        at=row["at"],
        model=row["model"],
        backend=row["backend"],
        build=row["build"],
        prompt_type=None if row["prompt_type"] is None else PromptType(row["prompt_type"]),
        prompt_tokens=row["prompt_tokens"],
        predicted_tokens=row["predicted_tokens"],
        prompt_ms=row["prompt_ms"],
        predicted_ms=row["predicted_ms"],
        drafting=Drafting.from_json(row["drafting"]),
        drafted=row["drafted"],
        accepted=row["accepted"],
    )
