"""Write a file as a whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Put a text in a file's place, so that no reader ever sees half of it.

    A symbolic link stays one: the file that it leads to is replaced. Folders that are missing are made.

    Args:
        path: The file, there or not.
        text: Its new content.
        mode: Permissions of a file that is new; one that is there keeps its own.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        mode = stat.S_IMODE(target.stat().st_mode)
    # Beside the target: a rename is atomic within one file system only.
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
