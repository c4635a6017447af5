"""What every command shares: the common options, output, and how errors end.

A command is written as ::

    @click.command()
    @command_options
    def command(shell: Shell) -> int | None: ...

and returns its exit code, or nothing for 0. stdout carries only the result: one JSON document with ``--json``, otherwise text
or tables. Progress and messages go to stderr.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from autospec.cells import Aim
from autospec.errors import AutospecError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from autospec.settings import Settings

__all__ = [
    "Report",
    "Shell",
    "close_output",
    "command_options",
    "exit_code_of",
    "explain",
    "refuse_missing_folder",
]


_INTERRUPTED = 130

_SYSTEM_HINTS = {
    errno.ENOSPC: "Free some space, or move autospec's folders with AUTOSPEC_HOME.",
    errno.EDQUOT: "Free some space, or move autospec's folders with AUTOSPEC_HOME.",
    errno.EACCES: "Check who owns it; `autospec config show` lists the folders in use.",
    errno.EPERM: "Check who owns it; `autospec config show` lists the folders in use.",
    errno.EROFS: "Move autospec's folders to a writable disk with AUTOSPEC_HOME.",
    errno.EMFILE: "Raise the limit with `ulimit -n 4096`.",
    errno.EIO: "Check the disk.",
}

# SQLite's messages for problems of the disk or the file.
_SQLITE_HINTS = {
    "disk is full": _SYSTEM_HINTS[errno.ENOSPC],
    "readonly database": _SYSTEM_HINTS[errno.EACCES],
    "unable to open database file": "Check the folder in `autospec config show` (storage).",
    "database is locked": "Another program uses it; try again when that has ended.",
    "disk i/o error": _SYSTEM_HINTS[errno.EIO],
    "not a database": "Move that file away; autospec will create a new one.",
    "malformed": "Move that file away; autospec will create a new one.",
}


class OutputClosed(Exception):  # noqa: N818 - not an error
    """The reader of stdout is gone."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a failure is reported: the exit code (the error's own, 1 for a bug, 130 for an interruption) and lines for stderr."""

    exit_code: int
    lines: tuple[str, ...] = ()


def explain(error: BaseException, *, verbose: bool, log_dir: Path | None) -> Report:
    """Report an error in one plain sentence, with what to do next.

    The traceback of a bug is kept in `log_dir`, or in the folder for temporary files; `verbose` prints it, too.
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
            hint = f"Put options of the server after --: `{path} … -- -ngl 99`. See `{path} --help`."
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
    from autospec.files import privacy_hint

    lines = (f"autospec: {message}", hint, privacy_hint(message))
    return Report(exit_code, tuple(line for line in dict.fromkeys(lines) if line))


def _system_trouble(error: BaseException) -> tuple[str, str] | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    from autospec.files import privacy_hint

    reason = os.strerror(error.errno)
    hint = _SYSTEM_HINTS.get(error.errno) or privacy_hint(reason)
    return (f"{reason}: {error.filename}." if error.filename else f"{reason}.", hint) if hint else None


def _database_trouble(error: BaseException) -> tuple[str, str] | None:
    # Without the module loaded, no error is SQLite's.
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
    lines = [f"autospec failed because of a bug: {type(error).__name__}: {text[0] if text else ''}"]
    now = dt.datetime.now(dt.UTC)
    name = f"crash-{now:%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    head = f"{now.isoformat()}\n{' '.join(sys.argv)}\nPython {sys.version}\n\n"
    for folder in filter(None, (log_dir, Path(tempfile.gettempdir()))):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(head + whole, "utf-8")
            lines.append(f"The full report is in {folder / name}; please send it to the project.")
            break
    else:
        verbose = True
    if verbose:
        lines.append(whole.rstrip())
    return Report(1, tuple(lines))


P = ParamSpec("P")

# Wide enough for a table with paths if stdout is not a terminal.
_PIPED_COLUMNS = 160


class Shell:
    """The common options of one call, and its output.

    Args:
        json: True if stdout carries one JSON document and nothing else.
        verbose: Logs on stderr, tracebacks of bugs.
        quiet: Only warnings and errors on stderr.
        config: The file given by ``--config``.
    """

    def __init__(
        self, *, json: bool = False, verbose: bool = False, quiet: bool = False, config: Path | None = None
    ) -> None:
        self.json = json
        self.verbose = verbose
        self.quiet = quiet
        self.config = config
        self._flags: dict[str, object] = {}
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read at the first use; raises SettingsError if the config file or environment is wrong."""
        if self._settings is None:
            from autospec.settings import load_settings

            self._settings = load_settings(self.config, overrides=self._flags)
        return self._settings

    def override(self, **flags: object) -> None:
        """Put a command's own flags, by setting name, above environment and file; ``None`` means not given."""
        self._flags.update(flags)
        self._settings = None

    def aim_for(self, named: str | None) -> Aim:
        """The aim that a command's results are of: the one named, else the configured one if this machine can pursue it."""
        from autospec.hardware import identify
        from autospec.hardware.energy import aim_in_force

        return Aim(named) if named else aim_in_force(self.settings.aim, identify())[0]

    def choose_server(self, backend: str | None, url: str | None) -> None:
        """Put the values of `server_options` above environment and file."""
        self.override(backend=backend or ("attached" if url else None), attached_url=url)
        self.warn_of_variables()

    def warn_of_variables(self) -> None:
        """Say which variables of llama.cpp's will not reach the servers of this command. With -v the log says it."""
        from autospec.backends.process import withheld_words

        if not self.verbose and self.settings.backend != "attached" and (text := withheld_words(os.environ)):
            self.warn(text)

    @functools.cached_property
    def console(self) -> Console:
        """Rich's console on stderr for live progress; silent with -q, and with --json if stderr is not a terminal.

        It draws nothing twice where that would fill a log: in a pipe (also if colours are forced), in CI, with ``TERM=dumb``.
        """
        from rich.console import Console

        redraws = sys.stderr.isatty() and not os.environ.get("CI")
        quiet = self.quiet or (self.json and not sys.stderr.isatty())
        return Console(stderr=True, quiet=quiet, force_interactive=None if redraws else False)

    def emit(self, document: dict[str, Any]) -> None:
        """Print the JSON document of this call; raises ValueError for a number that is not finite."""
        self._write(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def out(self, renderable: RenderableType) -> None:
        """Print a result for people; nothing with ``--json``. A string is printed unchanged, anything else by rich."""
        if self.json:
            return
        if isinstance(renderable, str):
            self._write(renderable + "\n")
            return
        from rich.console import Console

        columns = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED_COLUMNS
        console = Console(file=sys.stdout, width=columns)
        with console.capture() as capture:
            console.print(renderable)
        text = capture.get()
        if columns is not None:  # no trailing padding
            text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        self._write(text)

    def prose(self, text: str, command: str = "") -> None:
        """Print sentences for people on stdout, wrapped at words on a terminal and unchanged elsewhere.

        A command at their end stays whole, so that it can be copied: in the same line if that has room for it.
        """
        whole = f"{text} {command}".rstrip()
        if self.json or not sys.stdout.isatty() or len(whole) <= shutil.get_terminal_size().columns:
            self.out(whole)
            return
        from rich.text import Text

        self.out(Text(text))
        if command:
            self.out(command)

    def say(self, text: str) -> None:
        """Print a message on stderr; not with -q."""
        if not self.quiet:
            self._tell(text)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, also with -q."""
        self._tell(f"warning: {text}")

    def fail(self, report: Report) -> int:
        """Print how the call failed and return its exit code."""
        for line in report.lines:
            self._tell(line)
        return report.exit_code

    def _tell(self, text: str) -> None:
        console = self.__dict__.get("console")
        if console is not None and not console.quiet:
            # Through rich, so that a live display stays intact. A log's reader wraps lines as it likes.
            console.print(text, markup=False, highlight=False, soft_wrap=not console.is_interactive)
        else:
            click.echo(text, err=True)

    @staticmethod
    def _write(text: str) -> None:
        # A file name may have characters that stdout's encoding lacks.
        encoding = sys.stdout.encoding or "utf-8"
        try:
            click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
        except BrokenPipeError:
            raise OutputClosed from None


def refuse_missing_folder(output: Path) -> None:
    """Refuse an output file in a folder that does not exist: a name that is mistyped would make a new one.

    Raises:
        AutospecError: There is no such folder.
    """
    folder = output.absolute().parent
    if not folder.is_dir():
        raise AutospecError(
            f"{output} cannot be written: there is no folder {folder}.",
            "Create it, or choose another file with -o.",
        )


def command_options(
    function: Callable[Concatenate[Shell, P], int | None],
) -> Callable[P, None]:
    """Add the common options to a click command and give it a `Shell` as its first argument.

    Every exception ends as a plain sentence on stderr and the error's exit code.
    """

    @click.option("--json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
    @click.option("-v", "--verbose", is_flag=True, help="Show logs on stderr.")
    @click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
    @click.option("--config", type=click.Path(path_type=Path), metavar="PATH", help="Use this config file.")
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        common: dict[str, Any] = {name: kwargs.pop(name) for name in ("json", "verbose", "quiet", "config")}
        shell = Shell(**common)
        _configure_logging(verbose=shell.verbose)
        try:
            code = function(shell, *args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - explain tells them apart
            code = shell.fail(explain(error, verbose=shell.verbose, log_dir=_log_dir(shell)))
        if code:
            raise click.exceptions.Exit(code)

    return run


def exit_code_of(error: Exception) -> int:
    """Report an error from outside a command; returns the exit code."""
    return Shell().fail(explain(error, verbose=False, log_dir=None))


def close_output() -> int:
    """Flush stdout while a closed pipe can still be handled quietly; returns 1 if the reader is gone, else 0."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # To /dev/null, so that the interpreter does not report the closed pipe again at exit.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return 1
    return 0


def _log_dir(shell: Shell) -> Path | None:
    try:
        return shell.settings.log_dir
    except Exception:  # noqa: BLE001 - the first error is the one to report
        return None


def _configure_logging(*, verbose: bool) -> None:
    import logging

    root = logging.getLogger()
    if not verbose:
        # Without a handler the logging module prints warnings itself.
        if not root.handlers:
            root.addHandler(logging.NullHandler())
        return
    import structlog

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root.handlers[:] = [handler]
    logging.getLogger("autospec").setLevel(logging.DEBUG)
    root.setLevel(logging.INFO)
