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
        self._unread = ""  # why the file could not be read; empty if it could

    def read(self) -> Mapping[str, str]:
        """Read the file if it has changed. One that is missing, damaged or of a newer version switches nothing off.

        One that cannot be read now (too many open files) leaves everything as it was, and is read at the next call.
        """
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self.since = self._understood(self._path.read_bytes())
                self._seen = seen
            self._unread = ""
        except (FileNotFoundError, NotADirectoryError):
            self.since, self._seen, self._unread = _NONE, None, ""
        except OSError as error:
            why = error.strerror or str(error)
            if why != self._unread:  # once, not at every poll
                _log.warning("%s cannot be read, so nothing is switched by it now: %s", self._path, why)
            self._unread = why
        return self.since

    def switch(self, model: str, *, off: bool, now: datetime) -> None:
        """Switch drafting off for a model, or on again; a model that is off already keeps its time.

        Raises:
            AutospecError: The file cannot be read or written; nothing has changed.
        """
        since = dict(self.read())
        if self._unread:  # what it says of other models would be lost
            raise AutospecError(f"{self._path} cannot be read: {self._unread}.", "Check the state folder.")
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

    def _understood(self, content: bytes) -> Mapping[str, str]:
        try:
            return _parsed(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.warning("%s is ignored, so no drafting is switched off by it: %r", self._path, error)
            return _NONE


def _parsed(text: bytes) -> Mapping[str, str]:
    data = json.loads(text)
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']!r}")
    return MappingProxyType({str(name): str(since) for name, since in data["models"].items()})
