"""The models whose drafting a person has switched off for the proxy, in one JSON file of the state folder.

It survives a restart of the proxy, and another proxy of the same state folder follows it. It is no setting: the config file
is its owner's, and nothing writes into it. What was measured and recommended does not change.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from autospec.errors import AutospecError
from autospec.files import replace_file

__all__ = ["DraftingSwitches", "switches_path"]

_log = logging.getLogger(__name__)

_SCHEMA: Final = 1
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def switches_path(state_dir: Path) -> Path:
    """The file."""
    return state_dir / "drafting-off.json"


class DraftingSwitches:
    """The file's content; its methods block.

    Attributes:
        since: Catalogue name of a model whose drafting is switched off → since when (ISO 8601, UTC).
    """

    def __init__(self, path: Path) -> None:
        self.since: Mapping[str, str] = _NONE
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def read(self) -> Mapping[str, str]:
        """Read the file if it has changed. One that is missing, damaged or of a newer version switches nothing off."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            self.since, self._seen = _NONE, None
            return self.since
        if seen != self._seen:
            self._seen = seen
            self.since = self._content()
        return self.since

    def switch(self, model: str, *, off: bool, now: datetime) -> None:
        """Switch drafting off for a model, or on again; a model that is off already keeps its time.

        Raises:
            AutospecError: The file cannot be written; nothing has changed.
        """
        since = dict(self.read())
        if off:
            since.setdefault(model, now.isoformat(timespec="seconds"))
        else:
            since.pop(model, None)
        text = json.dumps({"schema": _SCHEMA, "models": since}, indent=1, ensure_ascii=False)
        try:
            replace_file(self._path, text + "\n")
        except OSError as error:
            raise AutospecError(
                f"{self._path} cannot be written: {error.strerror or error}.", "Check the state folder."
            ) from error
        self.read()

    def _content(self) -> Mapping[str, str]:
        try:
            return _parsed(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.warning("%s is ignored, so no drafting is switched off by it: %r", self._path, error)
            return _NONE


def _parsed(text: str) -> Mapping[str, str]:
    data = json.loads(text)
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']!r}")
    return MappingProxyType({str(name): str(since) for name, since in data["models"].items()})
