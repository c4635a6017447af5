"""kill -9 at random moments of a tune with real servers: is anything lost, left over or torn? One table.

    python studies/bench/crash_safety.py [--times 100] [--seed 1] [--longest 15]

A tune of the lab's smallest models on the embedded backend is started in a home of its own and killed after a random
time, again and again on the same study; each start goes on where the one before was killed. After every kill:

- every measurement that was in the database before the kill is in it afterwards (nothing finished is lost);
- within fifteen seconds no process of that home is left (no orphan);
- every recommendation ever stored reads back whole (none is torn), and SQLite finds its file sound;
- the study goes on: no trial ran twice, and in the end an undisturbed tune comes to its recommendation.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from autospec.recommendations import Recommendation
from tests.lab import Lab, lab_folder
from tests.tuning.test_real_tune import STUDY

_ORPHANS_GONE_S = 15.0
_FINAL_TUNE_S = 300.0
_QUESTIONS = ("Count to ten.", "Name three colours.", "Say one two three.", "Name the days of the week.")


@dataclass(slots=True)
class Tally:
    """What was seen over all kills."""

    kills: int = 0
    ended_before: int = 0
    while_serving: int = 0
    lost: int = 0
    orphans: int = 0
    torn: int = 0
    unsound: int = 0
    slowest_end_s: float = 0.0


def main() -> int:
    """Kill, look, print the table; 1 if anything was lost, left over or torn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--longest", type=float, default=15.0, help="kill within so many seconds of the start"
    )
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="autospec-crash-") as folder:
        home = Path(folder)
        env, command = _set_up(home)
        tally = Tally()
        again: list[str] = []
        # Whoever stops the bench stops the tune with it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        atexit.register(lambda: [process.kill() for process in _ours(home)])
        while tally.kills < asked.times:
            again = _once([*command, *again], env, home, rng.uniform(0.3, asked.longest), tally)
            print(
                f"{tally.kills} killed, {len(_measurements(home))} measurements", file=sys.stderr, flush=True
            )
        done = subprocess.run(
            [*command, *again], env=env, timeout=_FINAL_TUNE_S, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        twice = _trials_done_twice(home)
        final = json.loads(done.stdout)["recommendations"] if done.returncode == 0 else []
        _print(tally, twice, final)
    sound = not (tally.lost or tally.orphans or tally.torn or tally.unsound or twice) and final
    return 0 if sound else 1


def _set_up(home: Path) -> tuple[dict[str, str], list[str]]:
    lab = Lab(lab_folder())
    (home / "study.toml").write_text(STUDY, encoding="utf-8")
    lines = [
        {"id": f"p{n}", "prompt_type": "qa", "messages": [{"role": "user", "content": q}], "max_tokens": 16}
        for n, q in enumerate(_QUESTIONS)
    ]
    (home / "suite.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith("AUTOSPEC_")}
    # Threads that spin on a shared machine make everything twenty times slower, and no speed is asked for here.
    env |= {"AUTOSPEC_HOME": str(home), "AUTOSPEC_TEST_LOCK_DIR": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [
        *(sys.executable, "-m", "autospec", "tune", "--json", "--quiet", "--backend", "embedded"),
        *("--model", str(lab.path("smollm2")), "--draft", str(lab.path("tiny"))),
        *("--study", str(home / "study.toml"), "--suite", str(home / "suite.jsonl")),
    ]
    return env, command


def _once(command: list[str], env: dict[str, str], home: Path, after_s: float, tally: Tally) -> list[str]:
    """One start and its kill.

    Returns:
        Further arguments for the next start: a tune that came to its end is begun afresh.
    """
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(after_s)
        tally.ended_before += 1
        return ["--again"]
    serving = len(_ours(home)) > 1
    before = _measurements(home)
    child.send_signal(signal.SIGKILL)
    child.wait()
    tally.kills += 1
    tally.while_serving += serving
    began = time.monotonic()
    while (left := _ours(home)) and time.monotonic() - began < _ORPHANS_GONE_S:
        time.sleep(0.05)
    tally.slowest_end_s = max(tally.slowest_end_s, time.monotonic() - began)
    tally.orphans += len(left)
    for process in left:
        process.kill()
    tally.lost += len(before - _measurements(home))
    _check_store(home, tally)
    return []


def _ours(home: Path) -> list[psutil.Process]:
    """Processes that carry this home in their environment, but for this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("AUTOSPEC_HOME") == str(home):
                found.append(process)
    return found


def _rows(home: Path, query: str) -> list[tuple[object, ...]]:
    database = home / "state" / "autospec.db"
    if not database.exists():
        return []
    with contextlib.closing(
        sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)
    ) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # killed before the tables were made
                return []
            raise


def _measurements(home: Path) -> set[tuple[object, ...]]:
    return set(_rows(home, "SELECT id, launch_id, prompt_id, started_at FROM autospec_measurements"))


def _check_store(home: Path, tally: Tally) -> None:
    for (text,) in _rows(home, "SELECT recommendation FROM autospec_recommendations"):
        try:
            Recommendation.from_json(json.loads(str(text)))
        except (ValueError, KeyError, TypeError):
            tally.torn += 1
    if [row for row in _rows(home, "PRAGMA integrity_check") if row != ("ok",)]:
        tally.unsound += 1


def _trials_done_twice(home: Path) -> int:
    """Complete trials of one study beyond the first of each drafting, since the study was last begun afresh."""
    query = (
        "SELECT t.study_id, a.value_json FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id"
        " WHERE a.key = 'drafting' AND t.state = 'COMPLETE'"
    )
    counted = Counter(_rows(home, query))
    return sum(n - 1 for n in counted.values())


def _print(tally: Tally, twice: int, final: list[dict[str, object]]) -> None:
    print("| figure | value |\n|---|---|")
    print(f"| kill -9 in the middle of a tune | {tally.kills} |")
    print(f"| of them with servers running | {tally.while_serving} |")
    print(f"| tunes that ended before their kill | {tally.ended_before} |")
    print(f"| finished measurements lost | {tally.lost} |")
    print(f"| orphan processes after {_ORPHANS_GONE_S:.0f} s | {tally.orphans} |")
    print(f"| slowest end of all processes | {tally.slowest_end_s:.1f} s |")
    print(f"| torn recommendations | {tally.torn} |")
    print(f"| databases not sound | {tally.unsound} |")
    print(f"| trials done twice | {twice} |")
    end = f"{final[0]['verdict']}, {final[0]['status']}" if final else "none"
    print(f"| the last, undisturbed tune ended with | {end} |")


if __name__ == "__main__":
    sys.exit(main())
