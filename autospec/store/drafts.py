"""Today's paths of stored drafts: a stored drafting names its draft by a path; `DraftFiles` finds the same contents today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from autospec.drafting import Drafting

__all__ = ["ANY_DRAFTS", "DraftFile", "DraftFiles"]


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
