"""What a draft is known by, so that nothing measured of one speaks for another that took its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["draft_identity"]


def draft_identity(draft: str) -> str:
    """Twelve hex digits that change with the file, or a folder's files, as models are replaced under the same name."""
    path = Path(draft)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    told = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.sha256(f"{draft}\n{told}".encode()).hexdigest()[:12]
