"""Write a file as a whole or not at all.

Where the shipped data is: prompt suites and study definitions, and the templates of the service.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from autospec.errors import AutospecError

__all__ = ["launchd_dir", "replace_file", "studies_dir"]


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


def studies_dir() -> Path:
    """The folder with the shipped studies (TOML) and prompt suites (``suites/*.jsonl``).

    Raises:
        AutospecError: This installation has lost its data.
    """
    return _find("studies", Path(__file__).parent)


def launchd_dir() -> Path:
    """The folder with the shipped templates of the service: launchd's plist and systemd's unit.

    Raises:
        AutospecError: This installation has lost its data.
    """
    return _find("launchd", Path(__file__).parent)


def _find(name: str, package: Path) -> Path:
    """The data folder `name` of the package in folder `package`: in the wheel inside it, in a checkout beside it."""
    shipped = package / "_data" / name
    if shipped.is_dir():
        return shipped
    # In site-packages a folder `studies` beside the package would be somebody else's: only a checkout has a pyproject.
    beside = package.parent / name
    if (package.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    raise AutospecError(
        f"autospec's own {name} folder is missing: neither {shipped} nor {beside} holds it.",
        "Install autospec again: pip install --force-reinstall autospec, or pip install -e . in a complete checkout.",
    )
