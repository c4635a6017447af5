"""The systemd unit: its file, and its lifecycle in systemctl's verbs."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from autospec.errors import ServiceError
from autospec.files import launchd_dir
from autospec.service.lifecycle import Service
from autospec.service.managers import KILL_AFTER_S, STOP_WITHIN_S, UNIT, ServiceOutcome, ServiceState, Systemd
from tests.service.fakes import Clock, FakeSystemctl, breaking, definition

TEMPLATE = (launchd_dir() / UNIT).read_text(encoding="utf-8")


@pytest.fixture
def systemctl(tmp_path):
    """A Linux with systemd and nothing installed."""
    return FakeSystemctl(tmp_path / "systemd" / "user" / UNIT)


@pytest.fixture
def service(tmp_path, systemctl):
    """Make the service of a version of autospec."""

    def make(**changes):
        clock = Clock()
        made = definition(tmp_path, **changes)
        return Service(Systemd(tmp_path, TEMPLATE), made, systemctl, now=clock.now, sleep=clock.sleep)

    return make


def settings_of(text):
    """The unit's settings, the last of each name."""
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Za-z]+=", line))


@pytest.fixture
def unit(tmp_path):
    """The rendered file's settings."""
    return settings_of(Systemd(tmp_path, TEMPLATE).render(definition(tmp_path)))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_it(tmp_path):
    """Verified as a user's unit, with a program, variables and a version that need quoting."""
    program = tmp_path / "a $HOME %h 'b' \"c\"" / "autospec"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    made = definition(
        tmp_path,
        program=(str(program), "daemon", "--proxy"),
        variables=(
            ("AUTOSPEC_HOME", '/x y/50%/"z"'),
            ("CUDA_VISIBLE_DEVICES", ""),
            ("LD_LIBRARY_PATH", "/opt/a b/%lib:$ORIGIN\\"),
        ),
    )
    file = tmp_path / UNIT
    file.write_text(Systemd(tmp_path, TEMPLATE).render(made), encoding="utf-8")
    # --man=no: it would look for manual pages, which slim systems lack.
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "--recursive-errors=no", "verify", file],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_would_find_a_misspelt_key(tmp_path):
    """The check above can fail."""
    file = tmp_path / UNIT
    text = Systemd(tmp_path, TEMPLATE).render(definition(tmp_path, program=("/bin/sh",)))
    file.write_text(text.replace("WatchdogSec=", "WatchdogSecs="), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "--user", "--man=no", "verify", file],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert "WatchdogSecs" in done.stderr


def test_no_placeholder_is_left(tmp_path):
    """Each of the template's is known."""
    text = Systemd(tmp_path, TEMPLATE).render(definition(tmp_path))
    assert re.findall(r"@[A-Z]+@", TEMPLATE)
    assert not re.findall(r"@[A-Z]+@", text)


def test_it_says_itself_when_it_is_ready_and_is_watched(unit):
    """Readiness and watchdog are the daemon's own datagrams."""
    assert unit["Type"] == "notify"
    assert unit["NotifyAccess"] == "main"
    assert int(unit["WatchdogSec"]) > 0


def test_it_comes_back_after_a_crash_and_not_after_a_stop_or_a_wrong_setting(unit):
    """Exit code 2 is wrong usage: the same again would not help."""
    assert unit["Restart"] == "on-failure"
    assert unit["RestartPreventExitStatus"] == "2"


def test_systemd_waits_longer_than_a_graceful_stop_takes(unit):
    """Or it would kill a daemon that is writing."""
    assert int(unit["TimeoutStopSec"]) == KILL_AFTER_S > STOP_WITHIN_S


def test_a_crash_leaves_the_proxy_and_a_stop_leaves_nothing(unit):
    """The proxy outlives a daemon that will be started again; what is left of any other is killed."""
    assert unit["KillMode"] == "process"
    assert "kill --signal=SIGKILL" in unit["ExecStopPost"]


def test_the_servers_are_not_throttled(unit):
    """Children inherit the unit's scheduling: nothing in it may lower CPU or I/O priority."""
    assert not [
        key for key in unit if re.match(r"Nice|IOScheduling|CPUScheduling|CPUWeight|CPUQuota|IOWeight", key)
    ]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("/usr/bin/autospec", "/usr/bin/autospec"),
        ("two words", '"two words"'),
        ("50%", "50%%"),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
    ],
)
def test_words_of_the_command_are_quoted_as_systemd_reads_them(tmp_path, word, quoted):
    """No specifier, no variable, no splitting."""
    text = Systemd(tmp_path, TEMPLATE).render(definition(tmp_path, program=("/x", word)))
    assert settings_of(text)["ExecStart"] == f"/x {quoted}"


def test_a_fresh_installation_reloads_enables_and_starts(service, systemctl):
    """In this order, and then it is seen running."""
    fresh = service()
    assert fresh.install()
    assert systemctl.changes == [
        ("daemon-reload",),
        ("enable", UNIT),
        ("--no-block", "restart", UNIT),
    ]
    assert fresh.status().state is ServiceState.RUNNING


def test_a_repeated_installation_does_nothing(service, systemctl):
    """The daemon goes on running, and the file is not touched."""
    service().install()
    written = systemctl.file.stat().st_mtime_ns
    systemctl.calls.clear()
    assert not service().install()
    assert systemctl.changes == []
    assert service().status().pid == 101
    assert systemctl.file.stat().st_mtime_ns == written


def test_an_upgrade_restarts_the_daemon(service, systemctl):
    """Because the file says another version."""
    service().install()
    systemctl.calls.clear()
    assert service(version="2.0").install()
    assert ("--no-block", "restart", UNIT) in systemctl.changes
    assert service().status().pid == 102


@pytest.mark.parametrize("verb", ["daemon-reload", "enable", "restart"])
@pytest.mark.parametrize("how", [ServiceOutcome(1, err="Access denied\n"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", ["1.0", None])
def test_an_installation_that_broke_off_is_made_by_the_next_one(service, systemctl, verb, how, before):
    """Refused, or Ctrl-C. The next one found its own text and a daemon that runs, and left the old daemon running."""
    if before:
        service(version=before).install()
    old = systemctl.file.read_text("utf-8") if before else None
    with pytest.raises((ServiceError, KeyboardInterrupt)):
        breaking(service(version="2.0"), verb, how).install()
    assert (systemctl.file.read_text("utf-8") if systemctl.file.exists() else None) == old
    systemctl.calls.clear()
    new = service(version="2.0")
    assert new.install()
    assert systemctl.changes == [("daemon-reload",), ("enable", UNIT), ("--no-block", "restart", UNIT)]
    assert (new.status().state, new.status().enabled, new.current()) == (ServiceState.RUNNING, True, True)
    assert not new.install()


def test_an_installed_service_that_was_stopped_is_started(service, systemctl):
    """Without a reload: the file is the same."""
    service().install()
    service().stop()
    systemctl.calls.clear()
    assert service().install()
    assert systemctl.changes == [("--no-block", "start", UNIT)]


def test_a_daemon_that_does_not_come_up_is_an_error_with_its_last_words(service, systemctl):
    """The journal's last lines, and the file stays to be looked at."""
    systemctl.healthy = False
    systemctl.log = "autospec: backend in config.toml must be a string\n"
    with pytest.raises(ServiceError, match=r"did not come up: it ended \(exit code 2\)") as raised:
        service().install()
    assert raised.value.log_tail == ("autospec: backend in config.toml must be a string",)
    assert systemctl.file.exists()


def test_a_daemon_that_failed_too_often_is_started_all_the_same(service, systemctl):
    """A unit at its start limit is refused until its failures are forgotten."""
    service().install()
    systemctl.active = "failed"
    systemctl.calls.clear()
    assert service().start()
    assert systemctl.changes == [("reset-failed", UNIT), ("--no-block", "start", UNIT)]


def test_without_systemd_nothing_is_written(service, systemctl):
    """In a container: one sentence, and what to do."""
    systemctl.present = False
    with pytest.raises(
        ServiceError, match=r"systemd instance of this user does not answer \(Failed to connect"
    ) as raised:
        service().install()
    assert "autospec daemon --proxy" in raised.value.hint
    assert not systemctl.file.exists()


def test_uninstall_leaves_neither_file_nor_unit(service, systemctl):
    """Stopped, disabled, removed, forgotten."""
    service().install()
    systemctl.calls.clear()
    assert service().uninstall()
    assert systemctl.changes == [("disable", "--now", UNIT), ("daemon-reload",), ("reset-failed", UNIT)]
    assert not systemctl.file.exists()
    assert service().status().state is ServiceState.ABSENT


def test_uninstalling_twice_does_nothing(service, systemctl):
    """The second time there is nothing to do."""
    service().install()
    service().uninstall()
    systemctl.calls.clear()
    assert not service().uninstall()
    assert systemctl.changes == []


@pytest.mark.parametrize(
    ("fields", "state", "last"),
    [
        ("ActiveState=active\nMainPID=7\nExecMainCode=0", ServiceState.RUNNING, ""),
        ("ActiveState=activating\nMainPID=7\nExecMainCode=0", ServiceState.STARTING, ""),
        (
            "ActiveState=inactive\nMainPID=0\nExecMainCode=1\nExecMainStatus=0",
            ServiceState.STOPPED,
            "exit code 0",
        ),
        (
            "ActiveState=failed\nMainPID=0\nExecMainCode=2\nExecMainStatus=6\nResult=watchdog",
            ServiceState.FAILED,
            "signal 6 (watchdog)",
        ),
    ],
)
def test_what_show_says_is_understood(tmp_path, fields, state, last):
    """State and last end, with the reason where systemd has one."""
    status = Systemd(tmp_path, TEMPLATE).read([ServiceOutcome(0, f"LoadState=loaded\n{fields}\n")])
    assert (status.state, status.last_exit) == (state, last)


def test_logs_are_the_units_journal(tmp_path):
    """Of the user's own journal."""
    argv = Systemd(tmp_path, TEMPLATE).logs(definition(tmp_path), lines=7, follow=True)
    assert argv == (
        "journalctl",
        "--user",
        "--quiet",
        "--no-pager",
        f"--unit={UNIT}",
        "--lines=7",
        "--follow",
    )


def test_the_environment_in_the_unit_can_be_read_again(tmp_path):
    """For `status`, with whatever characters a folder's name has."""
    supervisor = Systemd(tmp_path, (launchd_dir() / UNIT).read_text("utf-8"))
    variables = (
        ("HF_HOME", '/data/50%/"my models"\\x'),
        ("OLLAMA_MODELS", "/m"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("LD_LIBRARY_PATH", "/opt/a b/%lib:$ORIGIN::'\\"),
    )
    written = definition(tmp_path, variables=variables)
    assert supervisor.environment(supervisor.render(written)) == {"PATH": written.path, **dict(variables)}
    assert supervisor.environment("") == {}


def test_another_shells_path_is_no_other_version(service):
    """A shell with a llama-server of its own asks for the status; its PATH is not the service's."""
    service().install()
    assert service(path="/opt/conda/bin:/usr/bin:/bin").current()
    assert not service(version="2.0").current()
