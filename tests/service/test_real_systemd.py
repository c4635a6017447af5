"""The lifecycle on a real systemd, with a stand-in for the daemon."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.service.user_systemd import run_under_systemd


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What `on_systemd` saw."""
    home = tmp_path_factory.mktemp("home")
    argv = [sys.executable, str(Path(__file__).with_name("on_systemd.py"))]
    done = run_under_systemd(argv, home, timeout_s=120)
    assert done.returncode == 0, done.stderr + (home / "systemd.log").read_text()
    return json.loads(done.stdout)


def test_it_is_up_once_the_daemon_says_so(seen):
    """Installed, enabled and running."""
    assert (seen["fresh"], seen["state"], seen["enabled"]) == (True, "running", True)


def test_what_it_is_given_arrives_unchanged(seen):
    """Spaces, quotes, specifiers, dollars and backslashes in the environment."""
    assert seen["odd"] == 'a b%n "c" $HOME \\'


def test_what_it_starts_has_the_priority_of_any_program(seen):
    """Nothing in the unit makes them nicer."""
    assert seen["niceness"] == 0


def test_a_second_installation_leaves_the_daemon_alone(seen):
    """The same process."""
    assert (seen["again"], seen["same process"]) == (False, True)


def test_an_upgrade_restarts_it(seen):
    """Another process."""
    assert (seen["upgrade"], seen["restarted"]) == (True, True)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_proxy_goes_on_serving_when_its_daemon_crashes(seen, how):
    """Killed, or ended by the watchdog: that another daemon takes its place was waited for."""
    assert seen[f"proxy of the {how} one lives"]


def test_it_stops_and_starts(seen):
    """Without coming back by itself; that no proxy was left, also of a daemon that hung, was waited for."""
    assert (seen["stop"], seen["stopped"], seen["start"]) == (True, "stopped", True)


def test_a_daemon_with_a_wrong_setting_is_not_tried_again(seen):
    """Exit code 2 is the end, and the sentence has it."""
    assert "it ended (exit code 2)" in seen["broken"]


def test_uninstall_leaves_only_what_the_user_made(seen):
    """The user's own drop-in stays; unit and link are gone."""
    assert (seen["uninstall"], seen["uninstall again"], seen["after"]) == (True, False, "absent")
    assert seen["left"] == [".config/systemd/user/autospec.service.d/short.conf"]
