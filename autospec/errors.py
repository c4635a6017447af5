"""All errors that autospec raises on purpose.

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
    ├── ServiceError                  launchd or systemd; has the log's last lines
    └── BackendError
        ├── BackendMissingError       the program or package is not installed
        ├── UnsupportedError          this build lacks the feature; found before anything starts
        ├── LaunchError               the server did not become ready; has the log's last lines
        ├── SpeculationInactiveError  the server runs with another drafting than it was given
        └── RequestError              a request failed: refused, timed out, cut off
            └── ServerDiedError       because the server's process ended

Every error has one plain sentence, and a hint that says what to do next.
"""

from __future__ import annotations

__all__ = [
    "AutospecError",
    "BackendError",
    "BackendMissingError",
    "BusyError",
    "LaunchError",
    "ModelChoiceError",
    "ModelFileError",
    "NothingKnownError",
    "OverloadedError",
    "RequestError",
    "ServerDiedError",
    "ServiceError",
    "SettingsError",
    "SpeculationInactiveError",
    "StoreError",
    "StudyFileError",
    "SuiteError",
    "UnknownModelError",
    "UnsupportedError",
    "UsageError",
]


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


class ServerDiedError(RequestError):
    """A request failed because the server's process ended."""
