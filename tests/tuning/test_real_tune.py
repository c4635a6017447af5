"""`autospec tune` itself, as a process on real servers: its document, its interruptions, what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import psutil
import pytest

from autospec.recommendations import SCHEMA
from tests.small_suite import questions, write_suite

# Small enough for a test, real all the same: one mode, one round.
STUDY = """
name = "test"
summary = "For tests."
[measure]
max_tokens = 16
[space]
modes = ["draft-model", "ngram-simple"]
drafts = 1
n_max = [2, 8]
p_min = [0.0, 0.9]
ngram_n = [3, 6]
ngram_m = [8, 16]
[search]
sampler = "tpe"
trials = 3
patience = 3
prompts = 1
seed = 1
[prove]
threshold = 0.02
worth_proving = 0.05
error_rate = 0.01
looks = [1, 2]
[budget]
time = "2m"
search_share = 0.6
"""
DEADLINE_S = 240.0


@pytest.fixture
def command(tmp_path: Path, lab_models) -> list[str]:
    """A tune of the tiny model on the embedded backend, with a suite of four short prompts."""
    (tmp_path / "test.toml").write_text(STUDY, encoding="utf-8")
    write_suite(tmp_path / "suite.jsonl", questions(), max_tokens=16)
    return [
        *(sys.executable, "-m", "autospec", "tune", "--backend", "embedded"),
        *("--model", str(lab_models.smollm2), "--draft", str(lab_models.tiny)),
        *("--study", str(tmp_path / "test.toml"), "--suite", str(tmp_path / "suite.jsonl"), "--json"),
    ]


def servers(home: str) -> list[psutil.Process]:
    """Server processes that an autospec with this home started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AUTOSPEC_HOME") == home and process.pid != os.getpid():
                found.append(process)
    return found


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command as a child that does not outlive the test."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll for something that must happen."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:.0f} s"
        time.sleep(0.05)


def rows(home: str) -> int:
    """Measurements in the database so far."""
    import sqlite3

    database = Path(home, "state", "autospec.db")
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM autospec_measurements").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


@pytest.mark.slow
def test_document_keeps_the_contract_and_nothing_is_left(command):
    """Stdout is one document that validates, every pair is real, and no server is left."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    (entry,) = document["recommendations"]
    assert entry["backend"] == "embedded"
    assert entry["prompt_type"] == "qa"
    assert entry["pairs"] >= 2
    assert entry["evidence"]["predicted_tokens"] > 0
    assert entry["evidence"]["compared_texts"] == entry["pairs"]
    assert servers(os.environ["AUTOSPEC_HOME"]) == []
    again = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if entry["status"] == "proven":
        assert json.loads(again.stdout)["recommendations"] == [entry]


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_trial_leaves_no_orphan_and_loses_nothing(command):
    """Killed with a server at work, autospec takes it along; the next tune keeps what was measured."""
    home = os.environ["AUTOSPEC_HOME"]
    with running(command) as child:
        until(lambda: rows(home) >= 2 or child.poll() is not None, "the first pair")
        assert child.poll() is None, child.communicate()[1]
        assert len(servers(home)) > 1
        child.send_signal(signal.SIGKILL)
        child.wait()
    until(lambda: servers(home) == [], "the end of every server")
    before = rows(home)
    assert before >= 2
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(home) > before
    assert json.loads(done.stdout)["recommendations"][0]["pairs"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_known(command, number):
    """Ctrl-C and a polite kill end with 130, a document, a sentence and no server."""
    home = os.environ["AUTOSPEC_HOME"]
    with running(command) as child:
        until(lambda: rows(home) >= 2 or child.poll() is not None, "the first pair")
        child.send_signal(number)
        out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130, err
    assert "run the same command again" in err
    (entry,) = json.loads(out)["recommendations"]
    assert (entry["verdict"], entry["drafting"], entry["status"]) == (
        "undecided",
        {"mode": "off"},
        "provisional",
    )
    assert servers(home) == []


@pytest.mark.slow
def test_second_tune_says_who_holds_the_machine(command):
    """Two at once: the second ends with 1 and names process and model of the first."""
    home = os.environ["AUTOSPEC_HOME"]
    with running(command) as child:
        until(lambda: rows(home) >= 1 or child.poll() is not None, "the first measurement")
        second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert second.returncode == 4
        assert f"process {child.pid} (tune SmolLM2" in second.stderr
        assert second.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--budget", "soon"], "not 'soon'"),
        (["--study", "fast"], "There is no study named fast"),
        (["--suite", "/nowhere.jsonl"], "cannot be read"),
        (["--prompt-type", "poetry"], "poetry"),
    ],
)
def test_wrong_usage_is_one_sentence_and_2(command, arguments, sentence):
    """What cannot be meant ends with 2 and a sentence, without a traceback and without a document."""
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
