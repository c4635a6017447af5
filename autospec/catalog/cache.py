"""What was read from model files, kept between runs: keyed by path, with size and mtime of every file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import autospec
from autospec.catalog.model import Model

__all__ = ["MetadataCache", "Signature", "signature"]

Signature = list[list[int]]

# Raise it when the readers learn to say something else about the same file.
_VERSION: Final = 1


def signature(files: Iterable[Path]) -> Signature:
    """Size and mtime of the files that exist: another signature means reading again.

    Args:
        files: Everything that a model is made of.
    """
    result: Signature = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            result.append([status.st_size, status.st_mtime_ns])
    return result


class MetadataCache:
    """A JSON file that may vanish, be damaged, or be written by another process at any time.

    Such a file counts as empty. It is replaced whole and atomically, after taking over what others wrote
    since; where two processes write at the same moment, the entries of one are read again some day.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _load(path)
        self._new: dict[str, dict[str, Any]] = {}

    def get(self, path: Path, files: Signature) -> Model | str | None:
        """What is known of a file.

        Args:
            path: The real path of the file or folder.
            files: Its signature now.

        Returns:
            The model; the sentence that says why it cannot be read; or ``None`` if it must be read.
        """
        entry = self._entries.get(str(path))
        if not isinstance(entry, dict) or entry.get("files") != files:
            return None
        if isinstance(entry.get("error"), str):
            return str(entry["error"])
        try:
            return Model.from_json(entry["model"])
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, path: Path, files: Signature, what: Model | str) -> None:
        """Keep a model, or the sentence that says why it cannot be read.

        Args:
            path: The real path.
            files: The signature from before the reading began.
            what: What was read.
        """
        known = {"error": what} if isinstance(what, str) else {"model": what.to_json()}
        self._new[str(path)] = self._entries[str(path)] = {"files": files, **known}

    def save(self) -> None:
        """Write what is new. A disk that is full or read-only costs a slower next time and no more."""
        if not self._new:
            return
        entries = {k: v for k, v in {**_load(self._path), **self._new}.items() if os.path.exists(k)}  # noqa: PTH110
        document = json.dumps({"stamp": _stamp(), "entries": entries}, separators=(",", ":"))
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._path.parent, prefix=".models-", delete=False
            ) as file:
                try:
                    file.write(document)
                    file.close()
                    os.replace(file.name, self._path)  # noqa: PTH105
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(file.name)  # noqa: PTH108
                    raise
        self._new = {}


def _stamp() -> list[str | int]:
    return [_VERSION, autospec.__version__]


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        if document["stamp"] == _stamp() and isinstance(document["entries"], dict):
            return document["entries"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {}
