"""What a draft is known by, so that nothing measured of one speaks for another that took its place."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from autospec.catalog.model import Model
from autospec.store.drafts import DraftFile

__all__ = ["draft_file"]

# A fingerprint holds a few bytes of some tensors only, and a download that broke off may have the right metadata and size:
# so much of each file is read besides, from all over it, which finds a hole of a hundredth of the file.
_SAMPLES = 128
_SAMPLE_BYTES = 64 * 1024


def draft_file(draft: Model) -> DraftFile:
    """The draft as it lies on the disk: its identity changes with its contents, and not with its name or folder.

    Args:
        draft: From the catalogue; files of it that are gone count by the fingerprint alone.
    """
    digest = hashlib.sha256(draft.fingerprint.encode())
    changed_at = 0.0
    for path in dict.fromkeys((draft.path, *draft.files)):
        with suppress(OSError), path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"\n{size}\n".encode())
            step = max(size // _SAMPLES, _SAMPLE_BYTES)
            for offset in range(0, size, step):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
            changed_at = max(changed_at, path.stat().st_mtime)
    return DraftFile(digest.hexdigest()[:12], changed_at, draft.name, draft.fingerprint)
