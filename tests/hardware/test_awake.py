"""Keeping the machine awake: the command of each system, its end, and dark wakes in captured outputs of pmset."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autospec.hardware import awake
from autospec.hardware.awake import awake_command, kept_awake, parse_dark_wake


def everywhere(name: str) -> str:
    """Find every program."""
    return name if name.startswith("/") else f"/usr/bin/{name}"


def test_caffeinate_prevents_idle_sleep_until_we_end():
    """Apple's own program, by its path, whatever is on PATH."""
    assert awake_command("darwin", 4711, everywhere) == ("/usr/bin/caffeinate", "-i", "-m", "-w", "4711")


def test_linux_inhibits_sleep_with_a_program_that_ends_when_its_input_does():
    """Only sleep: shutdown and the lid stay the user's."""
    command = awake_command("linux", 4711, everywhere)
    assert command[:2] == ("/usr/bin/systemd-inhibit", "--what=sleep")
    assert command[-1] == "/usr/bin/cat"


@pytest.mark.parametrize("platform", ["darwin", "linux", "freebsd14"])
def test_a_system_without_such_a_program_has_no_command(platform):
    """It may then sleep, as before."""
    assert awake_command(platform, 1, lambda _: None) == ()


def alive(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of caffeinate that notes its process id; the file of that note."""
    note = tmp_path / "pid"
    code = f"import os, sys; open({str(note)!r}, 'w').write(str(os.getpid())); print('up', flush=True); sys.stdin.read()"
    monkeypatch.setattr(awake, "awake_command", lambda *_: (sys.executable, "-I", "-S", "-c", code))
    return note


@pytest.mark.process
def test_the_helper_runs_within_the_block_and_ends_after_it(helper, monkeypatch):
    """Also after an error in the block."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(awake.subprocess, "Popen", start)

    def measure() -> None:
        with kept_awake():
            assert started[0].poll() is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure()
    assert started[0].returncode is not None
    assert not alive(started[0].pid)


@pytest.mark.process
def test_a_helper_that_cannot_be_started_stops_no_measurement(monkeypatch):
    """A machine that may sleep is better than no measurement."""
    monkeypatch.setattr(awake, "awake_command", lambda *_: ("/does/not/exist",))
    with kept_awake():
        pass


# What `pmset -g systemstate` prints, as Mac users report it.
FULL = """\
Current System Capabilities are: CPU Graphics Audio Network
Current Power State: 4
"""
DARK = """\
Current System Capabilities are: CPU Network
Current Power State: 3
"""


# macOS 26.5 while its display sleeps and the Mac works. It counted as a dark wake before, so that no daemon began at night.
DISPLAY_ASLEEP = """\
Current System Capabilities are: CPU Audio Network
Current Power State: 4
"""


@pytest.mark.parametrize(
    ("text", "dark"),
    [(FULL, False), (DARK, True), (DISPLAY_ASLEEP, False), ("", None), ("pmset: usage\n", None)],
)
def test_dark_wakes_have_neither_graphics_nor_audio(text, dark):
    """Unknown stays unknown."""
    assert parse_dark_wake(text) is dark
