"""The version of the tables, for readers that do without SQLAlchemy."""

from __future__ import annotations

from autospec.errors import StoreError

__all__ = ["SCHEMA", "newer_than_this"]

# As many as there are steps in `autospec.store.schema.MIGRATIONS`.
SCHEMA = 1


def newer_than_this(where: str) -> StoreError:
    """The sentence for a database that only a newer autospec can use."""
    return StoreError(
        f"The database {where} was written by a newer autospec, and this one cannot use its tables.",
        "Update autospec, or set another `storage`.",
    )
