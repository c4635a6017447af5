"""Replace a file atomically, find the data folders that autospec ships, and the user's folder for temporary files."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from autospec.errors import DISTRIBUTION, AutospecError

__all__ = [
    "PRIVACY_HINT",
    "launchd_dir",
    "privacy_hint",
    "replace_file",
    "studies_dir",
    "user_temp_dir",
    "write_hint",
]

# For what macOS keeps from a program until the user allows it. A background service has no window to ask in.
PRIVACY_HINT = (
    "macOS keeps Documents, Desktop, Downloads, iCloud and other disks from background services. Move it elsewhere, e.g. below "
    "~/src or ~/models, or allow Python in System Settings, Privacy & Security, Full Disk Access."
)
_NETWORK_HINT = "macOS may keep the local network from this program: allow Python in System Settings, Privacy & Security, Local Network."
# _CS_DARWIN_USER_TEMP_DIR of macOS's unistd.h.
_DARWIN_USER_TEMP_DIR = 65537


def privacy_hint(text: str, platform: str = sys.platform) -> str:
    """What to allow on a Mac after an error with this text; empty if its privacy settings are not the cause."""
    if platform != "darwin":
        return ""
    if "Operation not permitted" in text:
        return PRIVACY_HINT
    return _NETWORK_HINT if "No route to host" in text else ""


def write_hint(text: str) -> str:
    """Whom to allow to write, after an error with this text; empty if a missing permission is not the cause.

    In a container the user is a number that the owner of a mounted folder does not know.
    """
    if "Permission denied" not in text and "readonly database" not in text:
        return ""
    return f"Allow user {os.geteuid()}, as whom autospec runs, to write there, or choose another folder with AUTOSPEC_HOME."


def user_temp_dir(platform: str = sys.platform) -> Path:
    """The user's folder for temporary files. On a Mac it is the same in every shell and service, whatever $TMPDIR says."""
    if platform == "darwin":
        with suppress(OSError, ValueError):
            if folder := os.confstr(_DARWIN_USER_TEMP_DIR):
                return Path(folder)
    return Path(tempfile.gettempdir())


def replace_file(path: Path, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write a text file atomically: a reader sees the old content or the new content.

    A symbolic link stays: its target is replaced. Missing folders are created.

    Args:
        path: The file; it need not exist.
        text: The new content.
        mode: Permissions of a new file; an existing file keeps its permissions.
        durable: Wait until the content is on disk, so that it survives a power failure. False for caches, and for files
            that mean nothing after a reboot.

    Raises:
        OSError: The file cannot be written; its old content is unchanged.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        mode = stat.S_IMODE(target.stat().st_mode)
    # In the target's folder: a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        new.replace(target)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def studies_dir() -> Path:
    """Return the folder of the shipped studies (TOML) and prompt suites (``suites/*.jsonl``).

    Raises:
        AutospecError: The installation lacks the folder.
    """
    return _find("studies", Path(__file__).parent)


def launchd_dir() -> Path:
    """Return the folder of the service templates: launchd's plist and systemd's unit.

    Raises:
        AutospecError: The installation lacks the folder.
    """
    return _find("launchd", Path(__file__).parent)


def _find(name: str, package: Path) -> Path:
    """The data folder `name`: inside the folder `package` in a wheel, beside it in a checkout."""
    shipped = package / "_data" / name
    if shipped.is_dir():
        return shipped
    # In site-packages, a folder `studies` beside the package belongs to another package. Only a checkout has a pyproject.
    beside = package.parent / name
    if (package.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    raise AutospecError(
        f"The folder {name} that autospec ships is missing: neither {shipped} nor {beside} exists.",
        f"Install autospec again: pip install --force-reinstall {DISTRIBUTION}, or run pip install -e . in a complete checkout.",
    )
