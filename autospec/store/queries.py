"""Queries of live samples and launch comparisons, and today's paths of stored drafts.

`Store` wraps the queries. A stored drafting names its draft by a path; `DraftFiles` finds the same contents today.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

import sqlalchemy as sa

from autospec.cells import Build, PromptType
from autospec.drafting import Drafting
from autospec.measure.launch_scatter import LaunchComparison
from autospec.measure.measurements import Sample
from autospec.store.compatibility import Unread, understood
from autospec.store.schema import LAUNCH_COMPARISONS, LIVE_SAMPLES

__all__ = [
    "ANY_DRAFTS",
    "KEPT_SAMPLES",
    "DraftFile",
    "DraftFiles",
    "insert_launch_comparison",
    "insert_samples",
    "prune_samples",
    "select_compared_models",
    "select_launch_comparisons",
    "select_samples",
]


# About 20 MB of SQLite: months of one person's use, a day of a busy team's. Drift detection needs only the newest.
KEPT_SAMPLES = 100_000


def insert_samples(connection: sa.Connection, samples: Sequence[Sample]) -> None:
    """Insert samples in the caller's transaction."""
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
    """Delete all but about `keep` of the newest rows in the caller's transaction; gaps between ids make it fewer."""
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
    """Return samples since a time, oldest first; a filter of ``None`` passes all rows."""
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
        cached_tokens=row["cached_tokens"],
        concurrent=row["concurrent"],
        temperature=row["temperature"],
    )


@dataclass(frozen=True, slots=True)
class DraftFile:
    """One draft today: digest of its contents, time of its newest file (0 if unknown), catalogue name and fingerprint."""

    identity: str
    changed_at: float = 0.0
    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """Today's drafts by path; other paths stay unchanged."""

    by_path: Mapping[str, DraftFile] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def identities(self) -> dict[str, str]:
        """Path → identity."""
        return {path: file.identity for path, file in self.by_path.items()}

    def identity(self, drafting: Drafting) -> str:
        """Return the identity of a drafting's draft; empty if it has none or the file is unknown."""
        found = self.by_path.get(drafting.draft or "")
        return "" if found is None else found.identity

    def today(self, drafting: Drafting, identity: str, at: float) -> Drafting | None:
        """Return a stored drafting with today's path of its draft; ``None`` if its path names another file today.

        `identity` is that of the draft when it was stored, `at` the time in seconds since the epoch. Old rows have no identity; they
        match the file at that path if it is older than the row.
        """
        if drafting.draft is None:
            return drafting
        here = self.by_path.get(drafting.draft)
        if not identity:
            return drafting if here is None or here.changed_at <= at else None
        if here is not None and here.identity == identity:
            return drafting
        moved = next((path for path, file in self.by_path.items() if file.identity == identity), None)
        if moved is not None:
            return replace(drafting, draft=moved)
        return drafting if here is None else None


ANY_DRAFTS = DraftFiles()


# Only the newest count: drivers and systems change without a new build.
_KEPT = 40


def insert_launch_comparison(
    connection: sa.Connection, hardware_id: str, build: Build, model: str, comparison: LaunchComparison
) -> None:
    """Insert a comparison in the caller's transaction."""
    row = {f.name: getattr(comparison, f.name) for f in fields(comparison)}
    row |= {"hardware_id": hardware_id, "backend": build.backend, "build": _key(build), "model": model}
    connection.execute(sa.insert(LAUNCH_COMPARISONS), [row])


def select_launch_comparisons(
    connection: sa.Connection, hardware_id: str, build: Build, model: str | None
) -> list[LaunchComparison]:
    """Return the newest comparisons of one machine and build, oldest first; optionally of one model."""
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


def select_compared_models(connection: sa.Connection, hardware_id: str, build: Build) -> list[str]:
    """Return the models whose launches were compared on one machine and build, the newest comparison's first."""
    table = LAUNCH_COMPARISONS
    query = (
        sa.select(table.c.model)
        .where(
            table.c.hardware_id == hardware_id,
            table.c.backend == build.backend,
            table.c.build == _key(build),
        )
        .group_by(table.c.model)
        .order_by(sa.func.max(table.c.id).desc())
    )
    return list(connection.execute(query).scalars())


def _key(build: Build) -> str:
    return build.fingerprint or build.version
