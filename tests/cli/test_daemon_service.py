"""`autospec service`, with small programs in the place of systemctl, journalctl and loginctl."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from autospec.cli import cli
from autospec.hardware.processes import ProcessRef
from autospec.service.control import Listening

SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$FAKE/calls"
case "$*" in
  *--property=Version*) [ -e "$FAKE/no-systemd" ] && { echo "Failed to connect to bus: No medium found" >&2; exit 1; }; exit 0;;
  *daemon-reload) rm -f "$FAKE/known"; [ ! -e "$XDG_CONFIG_HOME/systemd/user/autospec.service" ] || touch "$FAKE/known";;
  *restart*|*" start "*) echo active > "$FAKE/active"; [ ! -e "$FAKE/broken" ] || echo failed > "$FAKE/active";;
  *disable*|*" stop "*) echo inactive > "$FAKE/active";;
  *show*) [ -e "$FAKE/known" ] || { echo LoadState=not-found; exit 0; }
    printf 'LoadState=loaded\\nActiveState=%s\\nMainPID=42\\nUnitFileState=enabled\\n' "$(cat "$FAKE/active")"
    [ -e "$FAKE/broken" ] && printf 'ExecMainCode=1\\nExecMainStatus=2\\n'
    exit 0;;
esac
"""


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A Linux with systemd and a user who is not root; the folder where the programs keep their state."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "systemctl": SYSTEMCTL,
        "journalctl": '#!/bin/sh\necho "$*" >> "$FAKE/calls"\necho one; echo two\n',
        "loginctl": "#!/bin/sh\necho no\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def run(*args):
    """One call of the command."""
    return CliRunner().invoke(cli, ["service", *args])


def unit_of(linux):
    """The unit's file."""
    return linux / "config" / "systemd" / "user" / "autospec.service"


def test_a_dry_run_shows_file_and_commands(linux):
    """And changes nothing."""
    result = run("install", "--dry-run")
    assert result.exit_code == 0
    assert f"Would write: {unit_of(linux)}" in result.stdout
    assert "daemon --proxy" in result.stdout
    assert "  systemctl --user daemon-reload\n" in result.stdout
    assert not unit_of(linux).exists()


def test_a_dry_run_as_json(linux):
    """The same, for programs."""
    document = json.loads(run("install", "--dry-run", "--json").stdout)
    assert document["changed"] is True
    assert document["commands"][-1] == ["systemctl", "--user", "--no-block", "restart", "autospec.service"]


def test_install_status_stop_uninstall(linux):
    """Each says in one line what it did, and twice is no error."""
    assert run("status").stdout.startswith("not installed (systemd)")
    first = run("install")
    assert (first.exit_code, first.stdout) == (0, "The service is running.\n")
    assert "enable-linger" in first.stderr
    assert run("install").stdout == "The service is already running.\n"
    assert run("install", "--dry-run").stdout.endswith("Would run no command: the service is running.\n")
    assert run("status").stdout.startswith("running, process 42 (systemd: ")
    assert run("stop").stdout == "The service is stopped.\n"
    assert run("start").stdout == "The service is running.\n"
    assert run("uninstall").stdout == "The service is removed.\n"
    assert run("uninstall").stdout == "The service was not installed.\n"
    assert not unit_of(linux).exists()


@pytest.fixture
def left(autospec_home):
    """A proxy that a crashed daemon left, by its record."""
    state_dir = autospec_home / "state"
    state_dir.mkdir(parents=True)
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as proxy:
        (state_dir / "daemon-proxy.json").write_text(json.dumps(asdict(ProcessRef.of(proxy.pid))))
        yield proxy
        proxy.kill()


@pytest.mark.parametrize("state", ["activating", "failed", "inactive"])
@pytest.mark.parametrize(("action", "does"), [("stop", "is stopped"), ("uninstall", "is removed")])
def test_the_proxy_of_a_crashed_daemon_ends_with_the_service(linux, left, state, action, does):
    """Issue 17: before the restart, and after the last one, systemd runs no ExecStopPost; port 8686 went on."""
    run("install")
    (linux / "active").write_text(state)
    words = run(action).stdout
    assert left.wait(5) is not None
    assert does in words or (state, action) == ("inactive", "stop")
    assert f"The proxy that a crashed daemon left behind (process {left.pid}) is ended, too." in words
    again = json.loads(run(action, "--json").stdout)
    assert again["ended_proxy"] is None


@pytest.mark.parametrize("action", ["stop", "uninstall"])
def test_the_proxy_is_found_from_another_shell(linux, left, action, monkeypatch):
    """The service has the folders of the shell that installed it; this one's had no such proxy, and the port stayed taken."""
    run("install")
    (linux / "active").write_text("failed")
    monkeypatch.setenv("AUTOSPEC_HOME", str(linux / "another"))
    assert json.loads(run(action, "--json").stdout)["ended_proxy"] == left.pid
    assert left.wait(5) is not None
    assert os.environ["AUTOSPEC_HOME"] == str(linux / "another")


def test_without_a_service_no_other_folder_is_looked_in(linux, left, monkeypatch):
    """A proxy beside it is somebody's own."""
    monkeypatch.setenv("AUTOSPEC_HOME", str(linux / "another"))
    assert json.loads(run("uninstall", "--json").stdout)["ended_proxy"] is None
    assert left.poll() is None


def test_the_proxy_of_another_daemon_goes_on(linux, left, autospec_home):
    """One in a terminal, beside a service that is installed and does not run."""
    run("install")
    with selectors.DefaultSelector() as selector:
        listening = Listening(autospec_home / "state", selector, lambda *_: None)
        assert run("stop").stdout == "The service is stopped.\n"
        assert json.loads(run("uninstall", "--json").stdout)["ended_proxy"] is None
        listening.close()
    assert left.poll() is None


def test_a_process_that_has_the_number_of_a_proxy_is_left_alone(linux, left, autospec_home):
    """The record says when it started."""
    record = autospec_home / "state" / "daemon-proxy.json"
    record.write_text(json.dumps({"pid": left.pid, "create_time": 1.0}))
    run("install")
    assert run("stop").stdout == "The service is stopped.\n"
    assert left.poll() is None


def test_status_shows_the_folders_of_the_service(linux, monkeypatch):
    """The shell's folders may be others than those that the service was installed with."""
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert "HF_HOME=/data/hf" in run("install", "--dry-run").stdout
    run("install")
    same = run("status").stdout
    assert "  HF_HOME=/data/hf\n" in same
    assert "other folders" not in same
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    other = run("status").stdout
    assert "  HF_HOME=/data/hf\n" in other
    assert "This shell names other folders or GPUs than the service has" in other


def test_status_names_other_gpus_than_those_of_the_service(linux, monkeypatch):
    """A tune in this shell is for another GPU than the service's servers use."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    run("install")
    same = run("status").stdout
    assert "  CUDA_VISIBLE_DEVICES=1\n" in same
    assert "GPUs than the service" not in same
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    other = run("status").stdout
    assert "  CUDA_VISIBLE_DEVICES=1\n" in other
    assert "other folders or GPUs than the service has" in other


def test_status_as_json(linux):
    """Before and after, and whether an upgrade is due."""
    before = json.loads(run("status", "--json").stdout)
    assert (before["installed"], before["state"], before["current"]) == (False, "absent", False)
    run("install")
    after = json.loads(run("status", "--json").stdout)
    assert (after["installed"], after["state"], after["current"], after["pid"]) == (True, "running", True, 42)
    unit_of(linux).write_text("# of an older autospec\n")
    assert json.loads(run("status", "--json").stdout)["current"] is False


def test_a_daemon_that_does_not_come_up_exits_with_1(linux):
    """Its last words, one sentence, and what to do."""
    (linux / "broken").touch()
    result = run("install")
    assert result.exit_code == 1
    assert "one\n" in result.stderr
    assert "did not come up: it ended (exit code 2)" in result.stderr
    assert "autospec service logs" in result.stderr


def test_without_systemd_it_says_what_to_do(linux):
    """One sentence, for containers."""
    (linux / "no-systemd").touch()
    result = run("install")
    assert result.exit_code == 1
    assert "systemd instance of this user does not answer" in result.stderr
    assert "autospec daemon --proxy" in result.stderr
    assert not unit_of(linux).exists()


def test_root_is_refused(linux, monkeypatch):
    """With the reason, and nothing is written."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = run("install")
    assert result.exit_code == 1
    assert "must not run as root" in result.stderr
    assert not unit_of(linux).exists()


def test_settings_that_the_service_will_not_see_are_named(linux, monkeypatch):
    """They are this shell's."""
    monkeypatch.setenv("AUTOSPEC_BACKEND", "embedded")
    assert "AUTOSPEC_BACKEND" in run("install", "--dry-run").stderr


def test_logs_are_the_supervisors(linux):
    """The lines as JSON, and the command for following."""
    assert json.loads(run("logs", "-n", "7", "--json").stdout)["lines"] == ["one", "two"]
    assert run("logs", "-n", "7", "-f").exit_code == 0
    calls = (linux / "calls").read_text().splitlines()
    assert "--lines=7" in calls[-1]
    assert calls[-1].endswith("--follow")
    assert run("logs", "-f", "--json").exit_code == 2


def test_a_mac_without_a_log_says_so(linux, monkeypatch):
    """There the log is a file."""
    monkeypatch.setattr(sys, "platform", "darwin")
    result = run("logs")
    assert result.exit_code == 1
    assert "does not exist yet" in result.stderr
