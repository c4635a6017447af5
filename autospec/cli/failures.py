"""How a call that failed is told: which sentence, which hint, which exit code."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from autospec.errors import AutospecError

__all__ = ["OutputClosed", "Report", "explain"]

_INTERRUPTED = 130

_SYSTEM_HINTS = {
    errno.ENOSPC: "Free some space, or move autospec's folders with AUTOSPEC_HOME.",
    errno.EDQUOT: "Free some space, or move autospec's folders with AUTOSPEC_HOME.",
    errno.EACCES: "Check who owns it; `autospec config show` says which folders are used.",
    errno.EPERM: "Check who owns it; `autospec config show` says which folders are used.",
    errno.EROFS: "Move autospec's folders to a disk that can be written with AUTOSPEC_HOME.",
    errno.EMFILE: "Raise the limit with `ulimit -n 4096`.",
    errno.EIO: "Check the disk.",
}

# What SQLite says when the trouble is the disk's or the file's and not the program's.
_SQLITE_HINTS = {
    "disk is full": _SYSTEM_HINTS[errno.ENOSPC],
    "readonly database": _SYSTEM_HINTS[errno.EACCES],
    "unable to open database file": "Check the folder in `autospec config show` (storage).",
    "database is locked": "Another program holds it; try again when that has ended.",
    "disk i/o error": _SYSTEM_HINTS[errno.EIO],
    "not a database": "Move that file away, and autospec makes a new one.",
    "malformed": "Move that file away, and autospec makes a new one.",
}


class OutputClosed(Exception):  # noqa: N818 - not an error: whoever read stdout has seen enough
    """The reader of stdout went away."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a failure is told.

    Attributes:
        exit_code: The error's own (see `autospec.errors`), 1 for what should not happen, 130 for an interruption.
        lines: For stderr.
    """

    exit_code: int
    lines: tuple[str, ...] = ()


def explain(error: BaseException, *, verbose: bool, log_dir: Path | None) -> Report:
    """Say what happened in one plain sentence, with what to do next.

    Args:
        error: What was raised.
        verbose: True to give the whole traceback of what should not happen.
        log_dir: Where to keep that traceback; the folder for temporary files where it is unknown.
    """
    match error:
        case OutputClosed():
            report = Report(1)
        case KeyboardInterrupt() | click.Abort():
            report = Report(_INTERRUPTED, ("Interrupted.",))
        case AutospecError():
            report = _sentence(error.exit_code, error.message, error.hint)
        case click.UsageError() if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            report = Report(error.exit_code, (error.format_message(),))
        case click.NoSuchOption() if error.ctx and _takes_server_args(error.ctx.command):
            path = error.ctx.command_path
            hint = f"A server's own options stand behind --: `{path} … -- -ngl 99`. See `{path} --help`."
            report = _sentence(error.exit_code, error.format_message(), hint)
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else "autospec"
            report = _sentence(error.exit_code, error.format_message(), f"Try `{path} --help`.")
        case click.ClickException():
            report = _sentence(error.exit_code, error.format_message(), "")
        case _ if trouble := _system_trouble(error) or _database_trouble(error):
            report = _sentence(1, *trouble)
        case _:
            report = _crash(error, verbose=verbose, log_dir=log_dir)
    return report


def _takes_server_args(command: click.Command) -> bool:
    return any(p.nargs == -1 and p.type is click.UNPROCESSED for p in command.params)


def _sentence(exit_code: int, message: str, hint: str) -> Report:
    return Report(exit_code, (f"autospec: {message}", hint) if hint else (f"autospec: {message}",))


def _system_trouble(error: BaseException) -> tuple[str, str] | None:
    if not isinstance(error, OSError) or error.errno not in _SYSTEM_HINTS:
        return None
    reason = os.strerror(error.errno)
    return f"{reason}: {error.filename}." if error.filename else f"{reason}.", _SYSTEM_HINTS[error.errno]


def _database_trouble(error: BaseException) -> tuple[str, str] | None:
    # Nothing in the chain can be SQLite's where the module was never loaded.
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is None:
        return None
    for link in _chain(error):
        if isinstance(link, sqlite3.Error):
            text = str(link)
            for words, hint in _SQLITE_HINTS.items():
                if words in text.lower():
                    return f"The database cannot be used: {text}.", hint
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _crash(error: BaseException, *, verbose: bool, log_dir: Path | None) -> Report:
    import datetime as dt
    import traceback

    whole = "".join(traceback.format_exception(error))
    text = str(error).strip().splitlines()
    lines = [f"autospec failed in a way it should not: {type(error).__name__}: {text[0] if text else ''}"]
    now = dt.datetime.now(dt.UTC)
    name = f"crash-{now:%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    head = f"{now.isoformat()}\n{' '.join(sys.argv)}\nPython {sys.version}\n\n"
    kept = False
    for folder in (log_dir, Path(tempfile.gettempdir())):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(head + whole, "utf-8")
        except OSError:
            continue
        lines.append(f"The whole report is in {folder / name}; please send it to the project.")
        kept = True
        break
    if verbose or not kept:
        lines.append(whole.rstrip())
    return Report(1, tuple(lines))
