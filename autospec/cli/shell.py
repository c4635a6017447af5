"""What every command shares: the common options, output, and how errors end.

A command is written as ::

    @click.command()
    @command_options
    def command(shell: Shell) -> int | None: ...

and returns its exit code, or nothing for 0. stdout carries the result and nothing else: one JSON document
with ``--json``, otherwise text or tables. Everything for people to follow goes to stderr.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TextIO

import click

from autospec.cli.failures import OutputClosed, Report, explain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from autospec.settings import Settings

__all__ = ["Shell", "close_output", "command_options", "exit_code_of"]

P = ParamSpec("P")

# Wide enough that a table with paths is not cut where nobody is looking at a terminal.
_PIPED_COLUMNS = 160


class Shell:
    """The common options of one call, and the ways to talk.

    Args:
        json: True if stdout carries one JSON document and nothing else.
        verbose: Logs on stderr, tracebacks for what should not happen.
        quiet: Nothing on stderr but warnings and errors.
        config: The file of ``--config``.
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
        """The settings, read at the first use.

        Raises:
            SettingsError: The config file or the environment is wrong.
        """
        if self._settings is None:
            from autospec.settings import load_settings

            self._settings = load_settings(self.config, overrides=self._flags)
        return self._settings

    def override(self, **flags: object) -> None:
        """Put a command's own flags above environment and file; ``None`` means not given.

        Args:
            **flags: Values by their key in `autospec.settings.KEYS`.
        """
        self._flags.update(flags)
        self._settings = None

    @functools.cached_property
    def console(self) -> Console:
        """Rich's console on stderr for live progress; silent with -q, and with --json where nobody watches."""
        from rich.console import Console

        return Console(stderr=True, quiet=self.quiet or (self.json and not sys.stderr.isatty()))

    def emit(self, document: dict[str, Any]) -> None:
        """Print the one JSON document of this call.

        Raises:
            ValueError: A number is not finite; JSON has no word for it.
        """
        self._write(json.dumps(document, indent=2, allow_nan=False) + "\n")

    def out(self, renderable: RenderableType) -> None:
        """Print a result for people; nothing with ``--json``.

        Args:
            renderable: A string is printed as it is, without markup or wrapping; anything else by rich.
        """
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
        if columns is not None:  # padding is for the eye
            text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        self._write(text)

    def say(self, text: str) -> None:
        """Tell people something on stderr; not with -q."""
        if not self.quiet:
            self._tell(text)

    def warn(self, text: str) -> None:
        """Tell people on stderr what they should look at, also with -q."""
        self._tell(f"warning: {text}")

    def fail(self, report: Report) -> int:
        """Tell how the call failed and give its exit code."""
        for line in report.lines:
            self._tell(line)
        return report.exit_code

    def _tell(self, text: str) -> None:
        console = self.__dict__.get("console")
        if console is not None and not console.quiet:
            # Through rich, so that a live display is not torn.
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    @staticmethod
    def _write(text: str) -> None:
        # A file name may hold what stdout's encoding does not.
        encoding = sys.stdout.encoding or "utf-8"
        try:
            click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
        except BrokenPipeError:
            raise OutputClosed from None


def command_options(
    function: Callable[Concatenate[Shell, P], int | None],
) -> Callable[P, None]:
    """Add the common options to a click command and give it a `Shell` as its first argument.

    Whatever the command raises ends as a plain sentence on stderr and the error's exit code.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")
    @click.option("-v", "--verbose", is_flag=True, help="Show logs on stderr.")
    @click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
    @click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Use this config file.",
    )
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        common: dict[str, Any] = {name: kwargs.pop(name) for name in ("verbose", "quiet", "config")}
        shell = Shell(json=bool(kwargs.pop("as_json")), **common)
        _configure_logging(verbose=shell.verbose)
        try:
            code = function(shell, *args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the edge: explain tells them apart
            code = shell.fail(explain(error, verbose=shell.verbose, log_dir=_log_dir(shell)))
        if code:
            raise click.exceptions.Exit(code)

    return run


def exit_code_of(error: Exception) -> int:
    """Report what ended the program outside of a command, and give the exit code."""
    return Shell().fail(explain(error, verbose=False, log_dir=None))


def close_output() -> int:
    """Flush stdout while a reader that went away can still be dealt with quietly.

    Returns:
        1 if the reader went away, else 0.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return 1
    return 0


def _discard(stream: TextIO) -> None:
    """Point a closed pipe at nothing, or the interpreter complains about it once more at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def _log_dir(shell: Shell) -> Path | None:
    try:
        return shell.settings.log_dir
    except Exception:  # noqa: BLE001 - the first error is the one to tell
        return None


def _configure_logging(*, verbose: bool) -> None:
    import logging

    root = logging.getLogger()
    if not verbose:
        # Without any handler the logging module prints warnings by itself.
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
