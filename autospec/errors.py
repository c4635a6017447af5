"""Everything that autospec raises on purpose.

::

    AutospecError                 exit 1
    ├── UsageError                exit 2: the command line or a file that the user wrote is wrong
    │   ├── SettingsError         config file, environment
    │   ├── SuiteError            a prompt suite; names the line
    │   ├── StudyFileError        a study definition; names the key
    │   └── ModelChoiceError      no model, or several, answer to that name
    │       └── UnknownModelError no model does; carries the names that exist
    ├── NothingKnownError         exit 3: asked before anything was tuned
    ├── BusyError                 exit 4: another autospec holds what this one needs
    ├── OverloadedError           the proxy's queue is full, or its deadline passed
    ├── ModelFileError            a model file that cannot be read
    ├── StoreError                the database
    ├── ServiceError              launchd or systemd; carries the log's last lines
    └── BackendError
        ├── BackendMissingError   the program or package is not here
        ├── UnsupportedError      this build cannot do that; found before anything starts
        ├── LaunchError           it started and did not get ready; carries the log's last lines
        ├── SpeculationInactiveError  it runs, but not with the drafting it was given
        └── RequestError          a request failed: refused, timed out, cut off
            └── ServerDiedError   because its process ended

Every error is one plain sentence for a person, and a hint that says what to do next.
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
    """The root of the tree.

    Args:
        message: What is wrong, one sentence, without a final newline.
        hint: What to do next; empty where the message says it already.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(AutospecError):
    """What the user typed or wrote cannot be meant."""

    exit_code = 2


class SettingsError(UsageError):
    """A key or value in the config file or the environment is wrong."""


class SuiteError(UsageError):
    """A prompt suite is malformed; the message names the file and the line."""


class StudyFileError(UsageError):
    """A study definition is malformed; the message names the file and the key."""


class ModelChoiceError(UsageError):
    """No model, or more than one, answers to the name that was given."""


class UnknownModelError(ModelChoiceError):
    """No model answers to the name that was given.

    Args:
        message: What is wrong.
        hint: What to do next.
        known: The names that exist.
    """

    def __init__(self, message: str, hint: str = "", *, known: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.known = known


class NothingKnownError(AutospecError):
    """Nothing has been tuned yet for what was asked."""

    exit_code = 3


class BusyError(AutospecError):
    """Another autospec process is using this machine; the message says which.

    The daemon tells by the exit code that a tune which it started failed for this reason.
    """

    exit_code = 4


class OverloadedError(AutospecError):
    """More requests wait than the proxy lets wait, or one waited too long; trying later may work."""


class ModelFileError(AutospecError):
    """A model file is damaged, truncated or not what its name says."""


class StoreError(AutospecError):
    """The database cannot be read or written."""


class ServiceError(AutospecError):
    """The service cannot be installed, or did not come up.

    Args:
        message: What is wrong.
        hint: What to do next.
        log_tail: The last lines of the daemon's log, oldest first.
    """

    def __init__(self, message: str, hint: str = "", *, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail


class BackendError(AutospecError):
    """A backend could not do what was asked of it."""


class BackendMissingError(BackendError):
    """The backend's program or package is not installed."""


class UnsupportedError(BackendError):
    """This build lacks the mode or the flag; nothing was started."""


class LaunchError(BackendError):
    """A server was started and did not become ready.

    Args:
        message: What went wrong, one sentence.
        hint: What to do next.
        log_tail: The last lines of the server's log, oldest first.
        permanent: True if the same launch would fail again (a bad draft, an unknown flag), so that
            a study need not try it twice; False for passing trouble (a port taken, killed).
    """

    def __init__(
        self, message: str, hint: str = "", *, log_tail: tuple[str, ...] = (), permanent: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.log_tail = log_tail
        self.permanent = permanent


class SpeculationInactiveError(BackendError):
    """The server answers, but its drafting is not the one it was launched with."""


class RequestError(BackendError):
    """A request to a running server failed."""


class ServerDiedError(RequestError):
    """A request failed because the server's process ended."""
