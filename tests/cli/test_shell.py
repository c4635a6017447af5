"""The shell: results go to stdout, messages to stderr, and every failure has a message and an exit code."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from autospec.cli import COMMANDS, cli
from autospec.cli.options import server_args
from autospec.cli.shell import Shell, command_options
from autospec.errors import AutospecError, BackendMissingError, BusyError, NothingKnownError, UsageError
from autospec.files import privacy_hint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings, logs and crash reports of its own."""
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """-v configures the process's logging; the next test gets it back."""
    root = logging.getLogger()
    kept = (root.handlers[:], root.level)
    yield
    root.handlers[:], level = kept
    root.setLevel(level)


def run(body: Callable[[Shell], int | None], *args: str) -> Result:
    """Run a command with this body."""

    @click.command()
    @command_options
    def command(shell: Shell) -> int | None:
        return body(shell)

    return CliRunner().invoke(command, args)


def raising(error: BaseException) -> Callable[[Shell], None]:
    """A body that fails."""

    def body(_shell: Shell) -> None:
        raise error

    return body


def talk(shell: Shell) -> None:
    """A body that uses every way to talk."""
    shell.say("working")
    shell.warn("look")
    shell.out("result [bold]")
    if shell.json:
        shell.emit({"schema": 1, "text": "ação"})


def test_people_get_the_result_on_stdout_and_the_rest_on_stderr():
    """Without --json nothing but the result is on stdout, as it is and without markup."""
    result = run(talk)
    assert result.stdout == "result [bold]\n"
    assert result.stderr == "working\nwarning: look\n"
    assert result.exit_code == 0


def test_json_is_the_only_thing_on_stdout():
    """With --json stdout is one document."""
    result = run(talk, "--json")
    assert json.loads(result.stdout) == {"schema": 1, "text": "ação"}


def test_quiet_keeps_warnings():
    """-q silences what is said, and not what is warned of."""
    assert run(talk, "-q").stderr == "warning: look\n"


def test_numbers_that_are_not_finite_never_reach_json():
    """NaN is not JSON, so emitting it is a failure of the program."""
    result = run(lambda shell: shell.emit({"x": float("nan")}), "--json")
    assert result.exit_code == 1
    assert result.stdout == ""


def test_a_name_that_stdout_cannot_hold_is_escaped():
    """File names may hold bytes that are no text."""
    name = b"caf\xe9.gguf".decode("utf-8", "surrogateescape")
    assert run(lambda shell: shell.out(name)).stdout == "caf\\udce9.gguf\n"
    assert json.loads(run(lambda shell: shell.emit({"n": name}), "--json").stdout) == {"n": name}


def test_a_table_is_not_cut_where_nobody_looks():
    """Piped, a table has room for paths, and no blanks at line ends."""

    def body(shell: Shell) -> None:
        from rich.table import Table

        table = Table("path", "n", box=None)
        table.add_row("/very/long" * 12, "1")
        shell.out(table)

    lines = run(body).stdout.splitlines()
    assert len(lines) == 2
    assert "/very/long" * 12 in lines[1]
    assert not any(line.endswith(" ") for line in lines)


def test_a_command_gives_its_exit_code():
    """What the function returns is the exit code."""
    assert run(lambda _shell: 3).exit_code == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [(AutospecError, 1), (BackendMissingError, 1), (UsageError, 2), (NothingKnownError, 3), (BusyError, 4)],
)
@pytest.mark.parametrize("flags", [(), ("--json",), ("-q",)])
def test_an_error_is_one_sentence_a_hint_and_its_code(
    error: type[AutospecError], code: int, flags: tuple[str, ...]
):
    """Also with --json and -q: stderr tells, stdout stays empty."""
    result = run(raising(error("It is broken.", "Mend it.")), *flags)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "autospec: It is broken.\nMend it.\n"


def test_wrong_settings_are_wrong_usage(monkeypatch: pytest.MonkeyPatch):
    """Settings are read when they are needed, and their errors end like all others."""
    monkeypatch.setenv("AUTOSPEC_STUDDY", "x")
    assert run(lambda _shell: None).exit_code == 0
    result = run(lambda shell: shell.out(shell.settings.study))
    assert result.exit_code == 2
    assert "AUTOSPEC_STUDY" in result.stderr


def test_the_config_option_and_flags_reach_the_settings(tmp_path: Path):
    """--config names the file, `override` puts a command's flags above it."""
    file = tmp_path / "my.toml"
    file.write_text('study = "quick"\nbudget = "5m"\n', "utf-8")

    def body(shell: Shell) -> None:
        shell.override(budget="1h", suite=None)
        shell.out(f"{shell.settings.study} {shell.settings.budget}")

    assert run(body, "--config", str(file)).stdout == "quick 1h\n"


def test_ctrl_c_is_130():
    """An interrupt is no failure and has no traceback."""
    result = run(raising(KeyboardInterrupt()))
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


def test_what_should_not_happen_is_told_and_kept(own_home: Path):
    """One sentence, and the traceback in a file in the log folder."""
    result = run(raising(ZeroDivisionError("by zero\nand more")))
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first == "autospec failed because of a bug: ZeroDivisionError: by zero"
    (report,) = (own_home / "logs").glob("crash-*.txt")
    assert str(report) in second
    assert "Traceback" in report.read_text("utf-8")


def test_verbose_shows_the_traceback():
    """With -v the traceback is on stderr as well."""
    assert "Traceback" in run(raising(ZeroDivisionError("x")), "-v").stderr
    assert "Traceback" not in run(raising(ZeroDivisionError("x"))).stderr


def test_a_crash_with_broken_settings_is_still_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Where the log folder is unknown, the report goes to the temporary folder."""
    monkeypatch.setenv("AUTOSPEC_NONSENSE", "x")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(raising(ZeroDivisionError("x"))).exit_code == 1
    assert list(tmp_path.glob("crash-*.txt"))


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only")],
)
def test_trouble_with_the_disk_is_a_plain_sentence(number: int, words: str):
    """No traceback where the program is not to blame."""
    result = run(raising(OSError(number, os.strerror(number), "/data/x")))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"autospec: {words}")
    assert "/data/x" in result.stderr
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "database or disk is full",
        "attempt to write a readonly database",
        "file is not a database",
        "database is locked",
    ],
)
def test_trouble_with_the_database_is_a_plain_sentence(text: str):
    """Also where a library wrapped it, as SQLAlchemy does."""
    error = RuntimeError("wrapped")
    error.__cause__ = sqlite3.OperationalError(text)
    result = run(raising(error))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"autospec: The database cannot be used: {text}.")


def test_a_mistake_in_sql_is_not_called_the_databases(own_home: Path):
    """A missing column is a bug and is reported as one."""
    result = run(raising(sqlite3.OperationalError("no such column: x")))
    assert "because of a bug" in result.stderr
    assert list((own_home / "logs").glob("crash-*.txt"))


def test_logs_are_shown_with_verbose_only():
    """A library's warning does not reach a person who did not ask."""

    def body(_shell: Shell) -> None:
        logging.getLogger("autospec.thing").info("a detail")
        logging.getLogger("other").warning("a complaint")

    logging.getLogger().handlers.clear()
    assert run(body).stderr == ""
    told = run(body, "-v")
    assert "a detail" in told.stderr
    assert "a complaint" in told.stderr
    assert told.stdout == ""


def test_the_live_console_is_silent_where_it_should_be():
    """With -q, and with --json where stderr is no terminal."""
    assert Shell(quiet=True).console.quiet
    assert Shell(json=True).console.quiet
    assert not Shell().console.quiet


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tun"], "There is no command tun. Did you mean tune?"),
        (["zzz"], "There is no command zzz."),
        (["--nonsense"], "No such option"),
        (["config", "show", "--nonsense"], "No such option"),
        (["config", "path", "--config"], "requires an argument"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(args: list[str], words: str):
    """With the way to the help on the next line, and nothing on stdout."""
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith("autospec: ")
    assert words in first
    assert second.startswith("Try `")


def test_a_server_option_without_the_dashes_gets_the_dashes():
    """`autospec tune -m x -ngl 99` is what everybody types first."""
    result = CliRunner().invoke(cli, ["tune", "-m", "x", "-ngl", "99"])
    assert result.exit_code == 2
    assert "after --" in result.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("proxy SomeModel", "Did you mean --model SomeModel?"),
        ("proxy SomeModel -- -ngl 99", "Did you mean --model SomeModel?"),
        ("proxy -- SomeModel", "Did you mean --model SomeModel?"),
        ("tune SomeModel", "Did you mean --model SomeModel?"),
        ("tune SomeModel --budget 5m coding -- -ngl 99", "Did you mean --model SomeModel -t coding?"),
        ("tune -m M coding", "Did you mean -t coding?"),
        ("tune coding -m M -- -c 4096", "Did you mean -t coding?"),
        ("bench SomeModel", "Did you mean --model SomeModel?"),
        ("bench -m M coding", "Quote a value that has spaces."),
        ("tune -m My Model.gguf", "Quote a value that has spaces."),
    ],
)
def test_a_word_without_its_option_gets_the_option(words: str, hint: str):
    """No server argument begins without a dash."""
    result = CliRunner().invoke(cli, words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "belongs to no option" in result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize("args", [(), ("-ngl", "99", "--jinja"), ("-t", "4", "coding")])
def test_arguments_of_the_server_pass(args: tuple[str, ...]):
    """Values of its options are words like any other."""

    @click.command()
    @server_args
    @command_options
    def command(shell: Shell, args: tuple[str, ...]) -> None:
        shell.emit({"args": list(args)})

    result = CliRunner().invoke(command, ["--json", "--", *args])
    assert json.loads(result.stdout)["args"] == list(args)


def test_an_empty_value_is_no_value_left_out():
    """A script with an empty variable measures something else than it says."""
    for words in (["tune", "-m", "x", "--mix", ""], ["recommend", "--mix", ""]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 2, words
        assert "Write e.g. --mix coding=3,chat=1." in result.stderr
    result = CliRunner().invoke(cli, ["bench", "-m", "x", "--prompt", " "])
    assert result.exit_code == 2
    assert "The prompt is empty." in result.stderr


def test_the_help_of_a_tune_says_when_limits_are_checked():
    """`quick` checks neither, and one of the two options turns on both."""
    text = " ".join(CliRunner().invoke(cli, ["tune", "--help"]).stdout.split())
    assert text.count("with --study quick no check]") == 2
    assert "Also turns on the check of --depth." in text
    assert "Also turns on the check of --slots." in text


def test_a_commands_exit_code_passes_through_the_group(monkeypatch: pytest.MonkeyPatch):
    """What a command ends with is what `autospec` ends with."""
    monkeypatch.setenv("AUTOSPEC_STUDDY", "x")
    assert CliRunner().invoke(cli, ["config", "check"]).exit_code == 2
    monkeypatch.delenv("AUTOSPEC_STUDDY")
    assert CliRunner().invoke(cli, ["config", "check"]).exit_code == 0


def test_help_lists_every_command():
    """From the table, each with its line, uncut."""
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in result.stdout
        assert line in result.stdout


def test_every_command_has_help_with_an_example():
    """`autospec COMMAND --help` shows how it is called."""
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"], prog_name="autospec")
        assert result.exit_code == 0, name
        assert f"  autospec {name}" in result.stdout, name


def test_a_reader_that_goes_away_is_no_error():
    """`autospec config show --template | head -1` says nothing on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "autospec", "config", "show", "--template"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_real_interrupt_ends_with_130(tmp_path: Path):
    """SIGINT in the middle of a command, in a process of its own."""
    script = (
        "import click, signal, sys\n"
        "from autospec.cli.shell import command_options\n"
        "@click.command()\n@command_options\n"
        "def command(shell):\n    shell.say('ready')\n    sys.stderr.flush()\n    signal.pause()\n"
        "command()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "Interrupted.\n"
    assert child.returncode == 130


def test_what_macos_refuses_is_no_bug(monkeypatch: pytest.MonkeyPatch):
    """A folder below Documents gives EPERM to a background service; the sentence names the setting."""
    monkeypatch.setattr("autospec.files.privacy_hint", partial(privacy_hint, platform="darwin"))
    result = run(raising(PermissionError(errno.EPERM, "Operation not permitted", "/Users/me/Documents/x")))
    assert "autospec: Operation not permitted: /Users/me/Documents/x." in result.stderr
    assert result.stderr.count("Full Disk Access") == 1
    lan = run(
        raising(AutospecError("The study's database cannot be reached: No route to host.", "Try again."))
    )
    assert "Try again.\nmacOS may keep the local network" in lan.stderr


@pytest.mark.parametrize(
    ("tty", "columns", "lines"),
    [
        (False, 20, ["a sentence of several words: run --it now"]),
        (True, 60, ["a sentence of several words: run --it now"]),
        (True, 20, ["a sentence of", "several words:", "run --it now"]),
        (True, 10, ["a sentence", "of several", "words:", "run --it now"]),
    ],
)
def test_a_sentence_wraps_at_words_and_its_command_stays_whole(monkeypatch, tty, columns, lines):
    """On a terminal alone; a command that is broken into lines could not be copied."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: tty, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal has 80 columns, whatever COLUMNS says
    Shell().prose("a sentence of several words:", "run --it now")
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == lines


@pytest.mark.parametrize(("url", "warned"), [(None, True), ("http://127.0.0.1:8080", False)])
def test_variables_that_reach_no_server_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, url: str | None, warned: bool
):
    """A user who set one believes that it counts; a server that autospec did not start may have it."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    told = run(lambda shell: shell.choose_server(None, url)).stderr
    assert ("warning: Not passed on to servers: LLAMA_ARG_CTX_SIZE." in told) is warned
