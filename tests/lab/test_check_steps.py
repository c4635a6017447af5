"""The check of a machine: each step by itself, and a report whatever happened."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.lab.check_steps import Checked, StepError, StepLog, StepSkipped, report, run_steps, run_within
from tests.lab.machine_check import MachineCheck, cards, extra_for, gpu_sentence, verdict_sentence
from tests.lab.redaction import Identity

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def all_of(*steps, tell=lambda _: None):
    """Run steps by name."""
    return run_steps(list(steps), env=os.environ, cwd=Path.cwd(), tell=tell)


def raising(error):
    """A step that ends like this."""

    def step(log: StepLog) -> str:
        log.say("seen")
        raise error

    return step


def test_no_step_stops_the_others():
    """Neither a failure, nor a mistake of the check itself."""
    done = all_of(
        ("one", raising(StepError("it broke"))),
        ("two", raising(StepSkipped("not here"))),
        ("three", raising(KeyError("backends"))),
        ("four", lambda _log: "fine"),
    )
    assert [(s.name, s.outcome) for s in done] == [
        ("one", "failed"),
        ("two", "skipped"),
        ("three", "failed"),
        ("four", "worked"),
    ]
    assert [s.sentence for s in done] == ["it broke", "not here", "KeyError: 'backends'", "fine"]
    assert all(s.log == "seen" for s in done[:3])


def test_ctrl_c_skips_the_rest():
    """And still there is a report."""
    done = all_of(("one", raising(KeyboardInterrupt())), ("two", lambda _log: "fine"))
    assert [(s.outcome, s.sentence) for s in done] == [
        ("failed", "interrupted"),
        ("skipped", "interrupted before it began"),
    ]


def test_progress_is_told():
    """Before and after each step."""
    said: list[str] = []
    all_of(("one", lambda _log: "fine"), tell=said.append)
    assert said[0] == "… one"
    assert "worked" in said[1]


def test_the_report():
    """A line for each step, then what was printed; without names."""
    steps = [
        Checked("doctor", "worked", 1.2, "backends: mlx", "$ /home/eve/x doctor\nhello eve"),
        Checked("sleep and wake", "skipped", 0.0, "nobody to ask", ""),
    ]
    text = report("Linux-6.1", steps, Identity((("/home/eve", "~"),), ("eve",), ()))
    assert text.startswith("autospec's check of a machine, 20")
    assert "  worked      1 s  doctor: backends: mlx" in text
    assert "  skipped     0 s  sleep and wake: nobody to ask" in text
    assert "== doctor\n$ ~/x doctor\nhello <user>" in text
    assert "== sleep" not in text
    assert "eve" not in text


@pytest.mark.process
def test_what_a_command_says_is_kept():
    """Its stdout is returned, both are in the log, also of one that fails."""
    log = StepLog(os.environ, Path.cwd())
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    assert log.run(sys.executable, "-c", script, "0", limit_s=60) == "out\n"
    assert log.lines[-2:] == ["out", "err"]
    with pytest.raises(StepError, match="ended with 3"):
        log.run(sys.executable, "-c", script, "3", limit_s=60)
    assert log.lines[-3:] == ["out", "err", "(ended with 3)"]
    assert log.run(sys.executable, "-c", script, "3", limit_s=60, fine=(0, 3)) == "out\n"


@pytest.mark.process
def test_a_program_that_is_not_there():
    """Is a failed step."""
    with pytest.raises(StepError, match="nosuch"):
        StepLog(os.environ, Path.cwd()).run("/no/nosuch", limit_s=5)


@pytest.mark.process
def test_a_long_output_is_shortened():
    """Its beginning and its end stay."""
    log = StepLog(os.environ, Path.cwd())
    log.run(sys.executable, "-c", "print(*range(5000), sep='\\n')", limit_s=60)
    assert log.lines[1] == "0"
    assert log.lines[-1] == "4999"
    assert len(log.lines) < 500


@pytest.mark.process
def test_time_is_limited(monkeypatch):
    """The program and what it started are gone, although it does not listen."""
    monkeypatch.setattr("tests.lab.check_steps._GRACE_S", 0.2)
    done = run_within([sys.executable, "-c", STUBBORN], 3.0, env=os.environ, cwd=Path.cwd())
    assert done.code is None
    child = int(done.out.split()[0])
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "what the program started is left"
        time.sleep(0.05)


def only(*names):
    """A search that finds these programs."""
    return lambda name: f"/usr/bin/{name}" if name in names else None


@pytest.mark.parametrize(
    ("system", "programs", "words"),
    [
        ("Linux", (), "no GPU was found"),
        ("Linux", ("nvidia-smi",), "the embedded server computes on the CPU"),
        ("Linux", ("nvidia-smi", "llama-server"), "nvidia-smi is here"),
        ("Linux", ("rocm-smi", "llama-server"), "rocm-smi is here"),
        ("Darwin", (), "Metal"),
    ],
)
def test_gpus_by_programs(system, programs, words):
    """The report says on what it computed."""
    assert words in gpu_sentence(system, only(*programs))


def test_gpus_by_their_driver(tmp_path):
    """Of a desktop with Mesa alone; a virtual card is none."""
    for name, vendor in {"card0": "0x1002", "card1": "0x8086", "card2": "0x1234", "card3": "0x1002"}.items():
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device" / "vendor").write_text(f"{vendor}\n")
    assert cards(tmp_path) == ("AMD", "Intel")
    assert "a GPU of AMD and Intel is here" in gpu_sentence("Linux", only(), cards(tmp_path))
    assert cards(tmp_path / "nosuch") == ()


@pytest.mark.parametrize(
    ("system", "machine", "programs", "extra"),
    [
        ("Darwin", "arm64", (), "mlx"),
        ("Darwin", "x86_64", (), ""),
        ("Linux", "x86_64", ("nvidia-smi",), "nvidia"),
        ("Linux", "aarch64", ("nvidia-smi",), "nvidia"),
        ("Linux", "x86_64", ("rocm-smi",), ""),
    ],
)
def test_extras(system, machine, programs, extra):
    """What this kind of machine can use."""
    assert extra_for(system, machine, only(*programs)) == extra


def test_verdicts():
    """A tune that wrote nothing has failed."""
    entry = {"prompt_type": "qa", "verdict": "disable", "speedup": 0.91, "pairs": 8}
    assert verdict_sentence([entry]) == "qa: disable, speed ratio 0.91, 8 pairs"
    with pytest.raises(StepError):
        verdict_sentence([])


class Answers(StepLog):
    """A log that runs nothing and gives prepared answers."""

    def __init__(self, *answers: str) -> None:
        super().__init__({}, Path())
        self.answers = list(answers)

    def run(self, *words, **_kwargs) -> str:
        """Note the command, and give the next answer."""
        self.lines.append(" ".join(map(str, words)))
        return self.answers.pop(0)


def test_the_users_own_service_is_not_touched(tmp_path, monkeypatch):
    """It has one name on a machine: ours would take its place."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = MachineCheck(tmp_path, may_sleep=True)
    for document in ('{"installed": true, "loaded": false}', '{"installed": false, "loaded": true}'):
        log = Answers(document)
        with pytest.raises(StepSkipped, match="not touched"):
            check.service_install(log)
        assert not check.has_service
        assert [line.split()[1:] for line in log.lines] == [["service", "status", "--json"]]
    for step in (check.service_status, check.sleep_and_wake, check.service_uninstall):
        with pytest.raises(StepSkipped):
            step(Answers())


def test_root_gets_no_service(tmp_path, monkeypatch):
    """Autospec would refuse."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StepSkipped, match="root"):
        MachineCheck(tmp_path, may_sleep=True).service_install(Answers())


def test_an_installed_service_is_removed(tmp_path, monkeypatch):
    """Status, and a check that nothing is left."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("tests.lab.machine_check._SETTLE_S", 0.0)
    check = MachineCheck(tmp_path, may_sleep=False)
    gone = '{"installed": false, "loaded": false}'
    check.service_install(Answers(gone, "ok"))
    assert check.has_service
    assert check.service_status(Answers('{"state": "running"}', "", "")) == "running"
    with pytest.raises(StepSkipped, match="nobody to ask"):
        check.sleep_and_wake(Answers())
    with pytest.raises(StepError, match="left"):
        check.service_uninstall(Answers("ok", '{"installed": true, "loaded": true}'))
    assert check.has_service, "the last clean-up would not try again"
    check.service_uninstall(Answers("ok", gone))
    assert not check.has_service
