"""The launchd template that the wheel ships."""

from __future__ import annotations

import plistlib
import re
from typing import Any

import pytest

from autospec.data import launchd_dir


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The template as launchd would read it."""
    loaded: dict[str, Any] = plistlib.loads((launchd_dir() / "com.autospec.daemon.plist").read_bytes())
    return loaded


def test_it_is_named_after_its_label(template: dict[str, Any]) -> None:
    """launchd.plist(5) expects the file to be called <Label>.plist."""
    assert template["Label"] == "com.autospec.daemon"


def test_the_servers_are_not_throttled(template: dict[str, Any]) -> None:
    """Children inherit the agent's scheduling: nothing in it may lower CPU or I/O priority."""
    assert template["ProcessType"] == "Interactive"
    assert not {"Nice", "LowPriorityIO", "LowPriorityBackgroundIO", "SoftResourceLimits"} & set(template)


def test_it_comes_back_after_a_crash_and_not_after_a_stop(template: dict[str, Any]) -> None:
    """KeepAlive depends on the exit code; a plain true would restart what the user stopped."""
    assert template["RunAtLoad"] is True
    assert template["KeepAlive"] == {"SuccessfulExit": False}


def test_no_server_is_left_when_it_dies(template: dict[str, Any]) -> None:
    """When it dies, launchd ends the process group unless it is told to abandon it."""
    assert template["AbandonProcessGroup"] is False


def test_every_path_is_filled_in_at_installation(template: dict[str, Any]) -> None:
    """No path of the machine that it was written on, no shell's abbreviations; placeholders only."""
    text = (launchd_dir() / "com.autospec.daemon.plist").read_text()
    assert set(re.findall(r"@[A-Z]+@", text)) == {"@AUTOSPEC@", "@HOME@", "@LOGS@", "@PATH@"}
    paths = [
        template["ProgramArguments"][0],
        template["WorkingDirectory"],
        template["EnvironmentVariables"]["PATH"],
        template["StandardOutPath"],
        template["StandardErrorPath"],
    ]
    assert all(path.startswith("@") for path in paths)
