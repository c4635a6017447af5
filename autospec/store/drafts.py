"""Which file a stored drafting speaks of: a draft is known by its contents, and stored rows name a path. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from autospec.drafting import Drafting

__all__ = ["ANY_DRAFTS", "DraftFile", "DraftFiles"]


@dataclass(frozen=True, slots=True)
class DraftFile:
    """One draft as it lies on the disk today.

    Attributes:
        identity: Digest of its contents (`autospec.tuning.draft_identity`).
        changed_at: When its newest file was written, in seconds since the epoch; 0 where that is not known.
        name: Its name in the catalogue.
        fingerprint: Its fingerprint there, which knows less of its contents.
    """

    identity: str
    changed_at: float = 0.0
    name: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """The drafts of today, by path.

    Attributes:
        by_path: Of those that are known; others pass as they are.
    """

    by_path: Mapping[str, DraftFile] = field(default_factory=lambda: MappingProxyType({}))

    def identity(self, drafting: Drafting) -> str:
        """The identity of a drafting's draft; empty where it has none or it is not known."""
        found = self.by_path.get(drafting.draft or "")
        return "" if found is None else found.identity

    def today(self, drafting: Drafting, identity: str, at: float) -> Drafting | None:
        """A stored drafting with the path that its draft has today.

        Args:
            drafting: As it was stored.
            identity: Of its draft, as it was stored; empty in rows from before identities were kept. Those are taken for
                the file that the path names today if that was written before them.
            at: When it was stored, in seconds since the epoch.

        Returns:
            The drafting; ``None`` if its path names another file today, so that nothing stored speaks for that.
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
