"""`autospec tune` as a process on real servers: its document, its interruptions, what it leaves behind.

That a second tune is refused while one measures, test_run.py tests on simulated servers.
"""

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
from typing import Any

import jsonschema
import psutil
import pytest

from autospec.backends.mlx.backend import Mlx
from autospec.recommendations import SCHEMA
from tests.backends.installed import installed
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
# The same for an MLX folder, whose tunes are predicted: two drafts of two layers, as a CPU takes seconds for a sentence.
MLX_STUDY = """
name = "test"
summary = "For tests."
[measure]
max_tokens = 12
[space]
modes = ["draft-model"]
drafts = 2
n_max = [1, 8]
p_min = [0.0, 0.9]
ngram_n = [3, 6]
ngram_m = [8, 16]
[search]
predict = true
sampler = "tpe"
trials = 2
patience = 2
prompts = 1
seed = 1
[prove]
threshold = 0.02
worth_proving = 0.05
error_rate = 0.01
looks = [1, 2]
[budget]
time = "90s"
search_share = 0.5
"""
DEADLINE_S = 400.0
# llama.cpp's threads wait for the slowest at every layer, and the test, autospec and the guard use the processors, too.
ONE_THREAD = 'server_args = ["-t", "1"]\n'


@pytest.fixture
def command(tmp_path: Path, autospec_home: Path, lab_models) -> list[str]:
    """A tune of the tiny model on the embedded backend, with a suite of four short prompts."""
    autospec_home.mkdir()
    (autospec_home / "config.toml").write_text(ONE_THREAD, encoding="utf-8")
    (tmp_path / "test.toml").write_text(STUDY, encoding="utf-8")
    write_suite(tmp_path / "suite.jsonl", questions(), max_tokens=16)
    return [
        *(sys.executable, "-m", "autospec", "tune", "--backend", "embedded"),
        *("--model", str(lab_models.smollm2), "--draft", str(lab_models.tiny)),
        *("--study", str(tmp_path / "test.toml"), "--suite", str(tmp_path / "suite.jsonl"), "--json"),
    ]


@pytest.fixture
def mlx_command(tmp_path: Path, lab_models) -> list[str]:
    """A tune of an MLX folder with two drafts; skips where there is no MLX."""
    installed(Mlx(tmp_path / "state"))
    (tmp_path / "test.toml").write_text(MLX_STUDY, encoding="utf-8")
    write_suite(tmp_path / "suite.jsonl", questions(), max_tokens=12)
    return [
        *(sys.executable, "-m", "autospec", "tune", "--model", str(lab_models.mlx_slow_tiny)),
        *("--draft", str(lab_models.mlx_tiny), "--draft", str(lab_models.mlx_noisy_draft)),
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


def tuned(command: list[str]) -> dict[str, Any]:
    """The one recommendation of a tune that ends by itself."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    (entry,) = document["recommendations"]
    return entry


@pytest.mark.real  # its fixtures are chosen while it runs, so that they do not tell
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["embedded", "mlx"])
def test_document_keeps_the_contract_and_nothing_is_left(backend, request):
    """Stdout is one document that validates, every pair is real, and no server is left."""
    command = request.getfixturevalue("command" if backend == "embedded" else "mlx_command")
    entry = tuned(command)
    assert entry["backend"] == backend
    assert entry["prompt_type"] == "qa"
    assert entry["verdict"] in {"enable", "disable", "undecided"}
    assert entry["pairs"] >= 2
    assert entry["evidence"]["predicted_tokens"] > 0
    assert entry["evidence"]["compared_texts"] == entry["pairs"]
    assert servers(os.environ["AUTOSPEC_HOME"]) == []
    if backend == "mlx":
        mlx_is_predicted_and_explained(entry, command)
    elif entry["status"] == "proven":
        assert tuned(command) == entry


def mlx_is_predicted_and_explained(entry: dict[str, Any], command: list[str]) -> None:
    """Every number of tokens is predicted from one reading of each draft; the text is the same, whatever drafts."""
    evidence = entry["evidence"]
    assert evidence["same_text"] == entry["pairs"]
    prediction = evidence["prediction"]
    checks = [c for c in prediction["checks"] if c["drafting"]["draft"] == entry["tried"]["draft"]]
    # A busy machine slows launches: costs that alone are wrong are corrected, and the prediction stays trusted.
    assert prediction["trusted"] or not all(c["agrees"] for c in checks)
    assert prediction["expected"] > 0
    assert len(prediction["verify_ms"]) >= 2
    assert prediction["step_ms"] > 0
    assert prediction["acceptance_by_position"]
    assert evidence["idle_draft"]["pairs"] >= 1
    assert "p_min" not in entry["drafting"]
    model = command[command.index("--model") + 1]
    explain = [sys.executable, "-m", "autospec", "explain", "--model", model, "--json"]
    told = subprocess.run(explain, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
    assert "Keeping the draft model loaded but unused" in told


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
    again = [*command, "--budget", "20s"]  # a pair takes less than a second; one that goes on is enough
    done = subprocess.run(again, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(home) > before
    assert json.loads(done.stdout)["recommendations"][0]["pairs"] >= 2


@pytest.mark.slow
def test_interrupt_keeps_what_is_known(command):
    """Ctrl-C ends with 130, a document, a sentence and no server. test_tune_display.py has the other signals."""
    home = os.environ["AUTOSPEC_HOME"]
    with running(command) as child:
        until(lambda: rows(home) >= 2 or child.poll() is not None, "the first pair")
        child.send_signal(signal.SIGINT)
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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--budget", "soon"], "not 'soon'"),
        (["--study", "fast"], "There is no study definition named fast"),
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
