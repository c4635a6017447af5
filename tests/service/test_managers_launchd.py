"""The launch agent: its file, its lifecycle in launchctl's verbs, and the meaning of launchctl's answers."""

from __future__ import annotations

import plistlib
import re

import jsonschema
import pytest

from autospec.errors import ServiceError
from autospec.files import launchd_dir
from autospec.service.lifecycle import Service
from autospec.service.managers import (
    KILL_AFTER_S,
    STOP_WITHIN_S,
    Launchd,
    ServiceOutcome,
    ServiceState,
    exit_code_for,
    fields_of,
    kept_short,
)
from tests.service.fakes import PRINTED, Clock, FakeLaunchctl, breaking, definition
from tests.service.launchd_keys import LAUNCHD_SCHEMA

TEMPLATE = (launchd_dir() / "com.autospec.daemon.plist").read_bytes()
TARGET = "gui/501/com.autospec.daemon"


@pytest.fixture
def launchctl():
    """A Mac at whose screen the user is logged in, with nothing installed."""
    return FakeLaunchctl()


@pytest.fixture
def service(tmp_path, launchctl):
    """Make the service of a version of autospec."""

    def make(**changes):
        clock = Clock()
        supervisor = Launchd(501, tmp_path, TEMPLATE)
        return Service(
            supervisor, definition(tmp_path, **changes), launchctl, now=clock.now, sleep=clock.sleep
        )

    return make


@pytest.fixture
def rendered(tmp_path):
    """The file as launchd reads it, with a path that XML has to escape."""
    text = Launchd(501, tmp_path, TEMPLATE).render(
        definition(
            tmp_path, program=("/opt/a & b/<autospec>", "daemon"), variables=(("AUTOSPEC_HOME", "/x & y"),)
        )
    )
    return plistlib.loads(text.encode())


def test_every_key_is_one_of_launchds(rendered):
    """Types and values are those of launchd.plist(5), and all paths are absolute."""
    jsonschema.validate(rendered, LAUNCHD_SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"KeepAlive": {"SucessfulExit": False}},
        {"ProcessType": "interactive"},
        {"ExitTimeout": 60},
        {"StandardOutPath": "~/Library/Logs/x"},
        {"ThrottleInterval": "30"},
    ],
)
def test_the_schema_finds_mistakes_that_launchd_says_nothing_about(rendered, wrong):
    """Misspelt keys and values, and a path that launchd would not expand."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**rendered, **wrong}, LAUNCHD_SCHEMA)


def test_what_it_runs_survives_xml(rendered):
    """Program and variables are those of the definition, whatever characters are in them."""
    assert rendered["ProgramArguments"] == ["/opt/a & b/<autospec>", "daemon"]
    assert rendered["EnvironmentVariables"] == {"PATH": "/usr/bin:/bin", "AUTOSPEC_HOME": "/x & y"}


def test_no_placeholder_is_left(tmp_path):
    """Each of the template's is known."""
    text = Launchd(501, tmp_path, TEMPLATE).render(definition(tmp_path))
    assert re.findall(r"@[A-Z]+@", TEMPLATE.decode())
    assert not re.findall(r"@[A-Z]+@", text)


def test_the_servers_are_not_throttled(rendered):
    """Children inherit the agent's scheduling: nothing in it may lower CPU or I/O priority."""
    assert rendered["ProcessType"] == "Interactive"
    assert not {"Nice", "LowPriorityIO", "LowPriorityBackgroundIO", "SoftResourceLimits"} & set(rendered)


def test_it_comes_back_after_a_crash_and_not_after_a_stop(rendered):
    """KeepAlive depends on the exit code; a plain true would restart what ended by itself."""
    assert rendered["RunAtLoad"] is True
    assert rendered["KeepAlive"] == {"SuccessfulExit": False}


def test_launchd_waits_longer_than_a_graceful_stop_takes(rendered):
    """Or it would kill a daemon that is writing."""
    assert rendered["ExitTimeOut"] == KILL_AFTER_S > STOP_WITHIN_S


def test_no_server_is_left_when_it_dies(rendered):
    """When it dies, launchd ends the process group unless it is told to abandon it."""
    assert rendered["AbandonProcessGroup"] is False


def test_a_fresh_installation_is_one_bootstrap(service, launchctl):
    """The file first, with the logs' folder; then the daemon is seen running."""
    fresh = service()
    assert fresh.install()
    assert launchctl.changes == [("bootstrap", "gui/501", str(fresh.supervisor.file))]
    assert plistlib.loads(fresh.supervisor.file.read_bytes())["Label"] == "com.autospec.daemon"
    assert fresh.definition.log.parent.is_dir()
    assert fresh.status().state is ServiceState.RUNNING


def test_a_repeated_installation_does_nothing(service, launchctl):
    """The daemon goes on running, and the file is not touched."""
    service().install()
    written = service().supervisor.file.stat().st_mtime_ns
    launchctl.calls.clear()
    assert not service().install()
    assert launchctl.changes == []
    assert service().status().pid == 101
    assert service().supervisor.file.stat().st_mtime_ns == written


def test_an_upgrade_boots_the_old_one_out_and_waits_until_it_is_gone(service, launchctl):
    """Launchd reads a file once, and refuses a job that it is still taking down."""
    service().install()
    launchctl.calls.clear()
    launchctl.lingers = 4
    assert service(version="2.0").install()
    assert [call[0] for call in launchctl.changes] == ["bootout", "bootstrap"]
    assert launchctl.calls.count(("print", TARGET)) > 4
    assert service().status().pid == 102


def test_a_bootstrap_that_comes_too_soon_is_tried_again(service, launchctl):
    """Input/output error is what launchd says for some seconds after a boot-out."""
    service().install()
    launchctl.refusals = 3
    assert service(version="2.0").install()
    assert service().status().state is ServiceState.RUNNING


def test_a_fresh_bootstrap_that_is_refused_is_not_repeated(service, launchctl):
    """There the same words mean a real refusal; the sentence has launchd's and says where to look."""
    launchctl.refusals = 1
    with pytest.raises(ServiceError, match="Input/output error") as raised:
        service().install()
    assert "Login Items" in raised.value.hint


@pytest.mark.parametrize("verb", ["bootout", "bootstrap"])
@pytest.mark.parametrize("how", [ServiceOutcome(1, err="Not privileged\n"), KeyboardInterrupt()])
@pytest.mark.parametrize("deleted", [False, True])
def test_an_upgrade_that_broke_off_is_made_by_the_next_one(service, launchctl, verb, how, deleted):
    """Refused, or Ctrl-C. The next one found its own text and a daemon that runs, and left the old daemon running."""
    service().install()
    file = service().supervisor.file
    if deleted:  # launchd keeps a job without its file until the next login
        file.unlink()
    old = None if deleted else file.read_text("utf-8")
    with pytest.raises((ServiceError, KeyboardInterrupt)):
        breaking(service(version="2.0"), verb, how).install()
    assert (file.read_text("utf-8") if file.exists() else None) == old
    assert service(version="2.0").install()
    assert (service().status().pid, service(version="2.0").current()) == (102, True)
    assert not service(version="2.0").install()


def test_what_was_disabled_is_enabled_before(service, launchctl):
    """And only then, because enabling leaves an entry that nobody can remove."""
    launchctl.disabled = True
    service().install()
    assert [call[0] for call in launchctl.changes] == ["enable", "bootstrap"]


def test_a_daemon_that_does_not_come_up_is_an_error_with_its_last_words(service, launchctl):
    """It is found after seconds and not after the whole minute; the file stays, to be looked at."""
    launchctl.healthy = False
    launchctl.log = "starting\nport 8080 is taken\n"
    failing = service()
    with pytest.raises(ServiceError, match=r"did not come up: it ended \(1\)") as raised:
        failing.install()
    assert raised.value.log_tail == ("starting", "port 8080 is taken")
    assert failing._now() < 5
    assert failing.supervisor.file.exists()


def test_a_daemon_that_restarts_again_and_again_is_not_up(service, launchctl):
    """Running counts only with one process id for some seconds."""
    printed = launchctl._print

    def restless(target):
        launchctl.pid += 1
        return printed(target)

    launchctl._print = restless
    with pytest.raises(ServiceError, match="did not come up"):
        service().install()


def test_without_a_graphical_session_nothing_is_written(service, launchctl):
    """Over SSH on a Mac where nobody is logged in: the sentence says so, and what to do."""
    launchctl.logged_in = False
    with pytest.raises(ServiceError, match="not logged in at this Mac's screen") as raised:
        service().install()
    assert "autospec daemon --proxy" in raised.value.hint
    assert not service().supervisor.file.exists()


def test_a_dry_run_changes_nothing(service, launchctl):
    """It has the text and the commands."""
    plan = service().plan()
    assert plan.changed
    assert [step.argv[1] for step in plan.steps] == ["bootstrap"]
    assert launchctl.changes == []
    assert not service().supervisor.file.exists()


def test_stop_unloads_and_start_loads(service, launchctl):
    """Without a bootout KeepAlive would start it again if it ended with an error."""
    service().install()
    launchctl.calls.clear()
    assert service().stop()
    assert service().status().state is ServiceState.STOPPED
    assert not service().stop()
    assert service().start()
    assert not service().start()
    assert [call[0] for call in launchctl.changes] == ["bootout", "bootstrap"]


def test_start_before_an_installation_says_so(service):
    """The hint has the command."""
    with pytest.raises(ServiceError, match="not installed") as raised:
        service().start()
    assert "autospec service install" in raised.value.hint


def test_uninstall_leaves_neither_file_nor_job_nor_log(service, launchctl):
    """What it made in other folders than autospec's own is gone, and so is its log."""
    installed = service()
    installed.install()
    installed.definition.log.write_text("lines\n")
    launchctl.calls.clear()
    assert installed.uninstall()
    assert [call[0] for call in launchctl.changes] == ["bootout"]
    assert not installed.supervisor.file.exists()
    assert not installed.definition.log.exists()
    assert installed.status().state is ServiceState.ABSENT


def test_uninstalling_twice_does_nothing(service, launchctl):
    """The second time there is nothing to do."""
    service().install()
    service().uninstall()
    launchctl.calls.clear()
    assert not service().uninstall()
    assert launchctl.changes == []


def test_uninstall_removes_a_job_whose_file_somebody_deleted(service, launchctl):
    """Launchd keeps a job without its file until the next login."""
    service().install()
    service().supervisor.file.unlink()
    assert service().uninstall()
    assert not launchctl.loaded


def test_uninstall_works_without_a_session(service, launchctl):
    """Then nothing runs, and the file would be loaded at the next login."""
    service().install()
    launchctl.logged_in = False
    assert service().uninstall()
    assert not service().supervisor.file.exists()


def test_fields_are_those_of_the_job_and_not_of_its_blocks():
    """Coalitions and environments have a state, too."""
    fields = fields_of(PRINTED.format(state="running", lines="\tpid = 4242"))
    assert (fields["state"], fields["pid"], fields["runs"]) == ("running", "4242", "1")


@pytest.mark.parametrize(
    ("state", "lines", "expected", "last"),
    [
        ("running", "\tpid = 7\n\tlast exit code = 1", ServiceState.RUNNING, "1"),
        ("not running", "\tlast exit code = 0", ServiceState.STOPPED, "0"),
        # Loaded and never started: launchd may leave it so (openbase #15).
        ("not running", "\tlast exit code = (never exited)", ServiceState.STOPPED, ""),
        ("xpcproxy", "\tlast exit code = (never exited)", ServiceState.STARTING, ""),
        # macOS 15 and 26: how the last program ended stays told while the next one starts.
        ("xpcproxy", "\tlast terminating signal = Hangup: 1", ServiceState.STARTING, "Hangup: 1"),
        ("xpcproxy", "\tlast exit code = 1", ServiceState.STARTING, "1"),
        ("running", "\tlast terminating signal = Terminated: 15", ServiceState.RUNNING, "Terminated: 15"),
        (
            "not running",
            "\tlast exit code = 1: Operation not permitted",
            ServiceState.FAILED,
            "1: Operation not permitted",
        ),
        # Killed for memory: no exit code, no signal.
        (
            "spawn scheduled",
            "\tlast exit reason = JETSAM_REASON_MEMORY_HIGHWATER",
            ServiceState.FAILED,
            "JETSAM_REASON_MEMORY_HIGHWATER",
        ),
        (
            "spawn scheduled",
            "\tlast exit code = 78",
            ServiceState.FAILED,
            "78, its program cannot be started; was its Python removed?",
        ),
        (
            "spawn scheduled",
            "\tlast exit code = 78: EX_CONFIG",
            ServiceState.FAILED,
            "78: EX_CONFIG, its program cannot be started; was its Python removed?",
        ),
        (
            "not running",
            "\tlast exit code = 0\n\tlast terminating signal = Killed: 9",
            ServiceState.FAILED,
            "Killed: 9",
        ),
    ],
)
def test_what_print_says_is_understood(tmp_path, state, lines, expected, last):
    """State and last end; a signal counts before an exit code."""
    answers = [ServiceOutcome(0, PRINTED.format(state=state, lines=lines)), ServiceOutcome(0)]
    status = Launchd(501, tmp_path, TEMPLATE).read(answers)
    assert (status.state, status.last_exit) == (expected, last)


def test_a_job_that_was_never_started_is_started(service, launchctl):
    """It is loaded, `not running` and has `(never exited)`: bootstrap would be refused, kickstart starts it."""
    service().install()
    launchctl.calls.clear()
    dormant = PRINTED.format(state="not running", lines="\tlast exit code = (never exited)")
    printed, launchctl._print = (
        launchctl._print,
        lambda target: (
            ServiceOutcome(0, dormant) if target == TARGET and not launchctl.changes else printed(target)
        ),
    )
    assert service().start()
    assert [call[0] for call in launchctl.changes] == ["kickstart"]


@pytest.mark.parametrize(
    ("code", "environ", "parent", "expected"),
    [
        (2, {"XPC_SERVICE_NAME": "com.autospec.daemon"}, 1, 0),
        (1, {"XPC_SERVICE_NAME": "com.autospec.daemon"}, 1, 1),
        # A tune of the daemon, which inherits the variable.
        (2, {"XPC_SERVICE_NAME": "com.autospec.daemon"}, 4711, 2),
        # A shell in Terminal.
        (2, {"XPC_SERVICE_NAME": "application.com.apple.Terminal.1152921500311879701"}, 900, 2),
        (2, {}, 1, 2),
    ],
)
def test_launchd_does_not_restart_a_wrong_setting(code, environ, parent, expected):
    """It would, twice a minute, for ever: KeepAlive knows success and nothing else."""
    assert exit_code_for(code, environ, parent) == expected


def test_a_wrong_setting_is_told_at_once(service, launchctl):
    """The agent ended with 0 and stays stopped; its log says why."""
    stopped = PRINTED.format(state="not running", lines="\tlast exit code = 0")
    printed = launchctl._print
    launchctl._print = lambda target: (
        ServiceOutcome(0, stopped) if target == TARGET and launchctl.loaded else printed(target)
    )
    launchctl.log = "autospec: The setting daemon_idle is wrong.\n"
    failing = service()
    with pytest.raises(ServiceError, match=r"did not come up: it ended \(0\)") as raised:
        failing.install()
    assert raised.value.log_tail == ("autospec: The setting daemon_idle is wrong.",)
    assert failing._now() < 5


def test_a_program_that_macos_keeps_from_services_is_told_so(service, launchctl):
    """What Python prints when its virtual environment is in Documents."""
    launchctl.healthy = False
    launchctl.log = "PermissionError: [Errno 1] Operation not permitted: '/Users/me/Documents/autospec/.venv/pyvenv.cfg'\n"
    with pytest.raises(ServiceError, match="did not come up") as raised:
        service().install()
    assert "Full Disk Access" in raised.value.hint


def test_a_long_log_is_emptied_and_a_short_one_is_kept(tmp_path):
    """Nothing on a Mac rotates it, and the daemon runs for months."""
    log, told = tmp_path / "daemon.log", []
    tell = kept_short(
        log, lambda sentence: told.append((sentence, log.stat().st_size if log.exists() else None))
    )
    tell("no log")
    log.write_bytes(b"x" * (1 << 20))
    tell("short")
    log.write_bytes(b"x" * ((1 << 20) + 1))
    tell("long")
    assert told == [("no log", None), ("short", 1 << 20), ("long", 0)]
    log.write_bytes(b"x" * ((1 << 20) + 1))
    kept_short(log, told.append)
    assert log.stat().st_size == 0


def test_the_environment_in_the_file_can_be_read_again(tmp_path):
    """For `status`; a file that is no plist has none."""
    supervisor = Launchd(501, tmp_path, TEMPLATE)
    variables = (
        ("HF_HOME", "/Volumes/x & y/<hf>"),
        ("OLLAMA_MODELS", "/m"),
        ("GGML_VK_VISIBLE_DEVICES", ""),
        ("LD_LIBRARY_PATH", "/opt/@HOME@/lib & co:$ORIGIN::"),
    )
    written = definition(tmp_path, variables=variables)
    assert supervisor.environment(supervisor.render(written)) == {"PATH": written.path, **dict(variables)}
    assert supervisor.environment("") == supervisor.environment("<plist") == {}


def test_logs_are_the_end_of_the_file(tmp_path):
    """Followed by name, because a log may be moved away."""
    made = definition(tmp_path)
    argv = Launchd(501, tmp_path, TEMPLATE).logs(made, lines=7, follow=True)
    assert argv == ("/usr/bin/tail", "-n", "7", "-F", str(made.log))


def test_another_shells_path_is_no_other_version(service):
    """A shell with a llama-server of its own asks for the status; its PATH is not the service's."""
    service().install()
    assert service(path="/opt/conda/bin:/usr/bin:/bin").current()
    assert not service(version="2.0").current()
