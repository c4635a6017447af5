"""Where the shipped data is: prompt suites and study definitions, and the templates of the service."""

from __future__ import annotations

from pathlib import Path

from autospec.errors import AutospecError

__all__ = ["launchd_dir", "studies_dir"]


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
