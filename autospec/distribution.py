"""The name on PyPI, and the line that adds an optional part to this installation.

The import name and the command are ``autospec``. On PyPI that name belongs to another project, so the distribution has its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

__all__ = ["DISTRIBUTION", "install_line", "install_line_for"]

DISTRIBUTION: Final = "autospec-llm"


def install_line(extra: str) -> str:
    """Return the command that installs the extra where this autospec is installed."""
    return install_line_for(extra, Path(sys.prefix), _origin())


def install_line_for(extra: str, prefix: Path, origin: dict[str, Any]) -> str:
    """Return the command for an installation.

    Args:
        extra: A name in ``[project.optional-dependencies]``.
        prefix: The folder of its environment, which `uv tool` and pipx mark with a file of theirs.
        origin: Its ``direct_url.json`` (PEP 610); empty if it came from an index.
    """
    what = f"'{_requirement(extra, origin)}'"
    if (prefix / "uv-receipt.toml").is_file():
        return f"uv tool install --force {what}"
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx install --force {what}"
    if "Cellar" in prefix.parts:
        # Homebrew's formula has no extras, and its environment has no pip.
        return f"pipx install {what}"
    editable = origin.get("dir_info", {}).get("editable", False)
    return f"pip install -e {what}" if editable else f"pip install {what}"


def _requirement(extra: str, origin: dict[str, Any]) -> str:
    """What to install: the folder, the file or the repository that autospec came from, else the name on PyPI."""
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        return f"{unquote(urlsplit(url).path)}[{extra}]"
    if "vcs_info" in origin:
        return f"{DISTRIBUTION}[{extra}] @ {origin['vcs_info'].get('vcs', 'git')}+{url}"
    return f"{DISTRIBUTION}[{extra}] @ {url}" if url else f"{DISTRIBUTION}[{extra}]"


def _origin() -> dict[str, Any]:
    from importlib import metadata  # noqa: PLC0415 - only an error needs it

    try:
        found = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and _is_there(str(found.get("url", ""))) else {}


def _is_there(url: str) -> bool:
    """False for a folder or file that is gone, as the clone of a Docker image's build stage."""
    return not url.startswith("file:") or Path(unquote(urlsplit(url).path)).exists()
