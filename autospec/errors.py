"""All errors that autospec raises on purpose, and what their hints name: a similar word, the command that adds an optional part.

::

    AutospecError                     exit 1
    ├── UsageError                    exit 2: the command line or a file of the user is wrong
    │   ├── SettingsError             config file, environment
    │   ├── SuiteError                a prompt suite; names the line
    │   ├── StudyFileError            a study definition; names the key
    │   └── ModelChoiceError          no model, or several, match the name
    │       └── UnknownModelError     no model matches; has the existing names
    ├── NothingKnownError             exit 3: nothing has been tuned yet
    ├── BusyError                     exit 4: another autospec process is measuring
    ├── OverloadedError               the proxy's queue is full, or its deadline passed
    ├── ModelFileError                a model file cannot be read
    ├── StoreError                    the database
    │   └── StorageUrlError           exit 2: the setting storage names none; a SettingsError, too
    ├── ServiceError                  launchd or systemd; has the log's last lines
    └── BackendError
        ├── BackendMissingError       the program or package is not installed
        ├── UnsupportedError          this build lacks the feature; found before anything starts
        ├── LaunchError               the server did not become ready; has the log's last lines
        ├── SpeculationInactiveError  the server runs with another drafting than it was given
        └── RequestError              a request failed: refused, timed out, cut off
            ├── NoAnswerError         for now, or the connection broke
            │   └── LateAnswerError   not in time
            └── ServerDiedError       because the server's process ended

Every error has one plain sentence, and a hint that says what to do next.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

__all__ = [
    "DISTRIBUTION",
    "AutospecError",
    "BackendError",
    "BackendMissingError",
    "BusyError",
    "LateAnswerError",
    "LaunchError",
    "ModelChoiceError",
    "ModelFileError",
    "NoAnswerError",
    "NothingKnownError",
    "OverloadedError",
    "RequestError",
    "ServerDiedError",
    "ServiceError",
    "SettingsError",
    "SpeculationInactiveError",
    "StorageUrlError",
    "StoreError",
    "StudyFileError",
    "SuiteError",
    "UnknownModelError",
    "UnsupportedError",
    "UsageError",
    "did_you_mean",
    "install_line",
    "install_line_for",
]

# The import name and the command are `autospec`. On PyPI that name belongs to another project.
DISTRIBUTION: Final = "autospec-llm"


class AutospecError(Exception):
    """The base class.

    Args:
        message: What is wrong, as one sentence.
        hint: What to do next; empty if the message already says it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(AutospecError):
    """The user's input is wrong."""

    exit_code = 2


class SettingsError(UsageError):
    """A key or value in the config file or the environment is wrong."""


class SuiteError(UsageError):
    """A prompt suite is malformed; the message names the file and the line."""


class StudyFileError(UsageError):
    """A study definition is malformed; the message names the file and the key."""


class ModelChoiceError(UsageError):
    """No model, or more than one, matches the name."""


class UnknownModelError(ModelChoiceError):
    """No model matches the name; `known` has the existing names."""

    def __init__(self, message: str, hint: str = "", *, known: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.known = known


class NothingKnownError(AutospecError):
    """Nothing has been tuned yet for the request."""

    exit_code = 3


class BusyError(AutospecError):
    """Another autospec process is measuring on this machine. The daemon recognises this failure of its tunes by the exit code."""

    exit_code = 4


class OverloadedError(AutospecError):
    """The proxy's queue is full, or a request waited too long; a later try may succeed."""


class ModelFileError(AutospecError):
    """A model file is damaged, truncated or not what its name says."""


class StoreError(AutospecError):
    """The database cannot be read or written."""


class StorageUrlError(SettingsError, StoreError):
    """The setting `storage` is no URL of a database that SQLAlchemy knows."""


class ServiceError(AutospecError):
    """The service cannot be installed, or did not start; `log_tail` has the last lines of the daemon's log."""

    def __init__(self, message: str, hint: str = "", *, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail


class BackendError(AutospecError):
    """A backend failed."""


class BackendMissingError(BackendError):
    """The backend's program or package is not installed."""


class UnsupportedError(BackendError):
    """This build lacks the mode or the flag; nothing was started."""


class LaunchError(BackendError):
    """A server was started and did not become ready.

    `log_tail` has the last lines of its log. `permanent`: the same launch would fail again (a bad draft, an unknown flag), so a study
    does not repeat it. `retry_after_s`: when the next launch may be tried; 0 if that is not known.
    """

    retry_after_s: float = 0.0

    def __init__(
        self, message: str, hint: str = "", *, log_tail: tuple[str, ...] = (), permanent: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail
        self.permanent = permanent


class SpeculationInactiveError(BackendError):
    """The server answers, but with another drafting than it was launched with."""


class RequestError(BackendError):
    """A request to a running server failed."""


class NoAnswerError(RequestError):
    """A server did not answer a request in time, or its connection broke: no fault of the prompt, and the next may end likewise."""


class LateAnswerError(NoAnswerError):
    """A server that took the request did not answer it in time: the prompt's fault if the server has just answered others."""


class ServerDiedError(RequestError):
    """A request failed because the server's process ended."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6, *, prefix: str = "") -> str:
    """Return "Did you mean …?" with the most similar known word; empty if none is similar by `cutoff` (0…1).

    All words begin with `prefix`, which makes none of them similar.
    """
    import difflib  # noqa: PLC0415 - only an error needs it

    ends = [name.removeprefix(prefix) for name in known]
    close = difflib.get_close_matches(word.removeprefix(prefix), ends, n=1, cutoff=cutoff)
    return f"Did you mean {prefix}{close[0]}?" if close and close[0] else ""


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
