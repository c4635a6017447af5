"""kill -9 at random moments of a tune with real servers: is anything lost, left over or torn? One table.

    python -m studies.bench.crash_safety [--times 100] [--seed 1] [--backend llama-server] [--home FOLDER]

A tune of the lab's smallest models is killed repeatedly, on one study and with the same command, which has ``--again``: each start
continues after the last kill, and starts over after a tune that finished. One tune is watched first to learn the length of each
phase. The kills then take the phases in turn, so that short phases are hit as often as long ones, at a random moment of the
phase. The database shows after the kill which phase was hit.

After every kill:

- every measurement that an earlier kill found is still in the database (nothing finished is lost);
- no process of that home is left after fifteen seconds (no orphan);
- every recommendation ever stored can be read and matches the schema (none is torn), and SQLite's integrity check passes;
- no drafting has two finished trials since the study last started over.

A start that ends by itself must end with 0. Finally one tune runs undisturbed and must reach its recommendation.

With --home the folder is kept and each kill is a line of its ``kills.jsonl``. Further calls add to it, so that a hundred kills
fit into several short sessions.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from autospec.cells import PromptType
from autospec.prompts.suite import Half, load_suite
from autospec.tuning.definition import load_definition
from studies.bench.crash_phases import PHASES, Database, Phase, Watch
from studies.bench.crash_table import Kill, broken, table
from tests.daemon.hooked import calm
from tests.lab import Lab, lab_folder
from tests.small_suite import questions, write_suite
from tests.tuning.test_real_tune import STUDY

_ORPHANS_GONE_S = 15.0
_FINAL_TUNE_S = 300.0
# Longest wait for a phase to begin; the kill then happens at once.
_PHASE_BEGINS_S = 90.0
# Often enough to see a phase of 0.2 s begin, seldom enough not to disturb the measurements.
_LOOK_EVERY_S = 0.02
# A recommendation is written some milliseconds after the last measurement: every kill around it is close.
_WRITING_S, _WRITING_LOOK_EVERY_S = 0.06, 0.002
# In turn; search and proof are most of a tune and can lose most.
_TURNS = (
    *(Phase.START, Phase.RECORDING, Phase.TIMING, Phase.READING, Phase.SEARCH, Phase.SEARCH),
    *(Phase.PROOF, Phase.PROOF, Phase.WRITING, Phase.WRITING),
)
# Repetitive answers make an n-gram mode worth a launch, so that there is a search.
_QUESTIONS = tuple(
    f"Repeat ten times: {words}." for words in ("one two three", "red green blue", "a b c d", "do re mi fa")
)
# Two answers to record and to search with, two to prove with, and few launches: a kill every ten seconds.
_STUDY = (
    STUDY.replace("prompts = 1", "prompts = 2")
    .replace("trials = 3", "trials = 2")
    .replace("max_tokens = 16", "max_tokens = 32")
)


def main() -> int:
    """Kill, check, print the table; 1 if anything was lost, left over or torn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--times", type=int, default=100, help="kills in all, those of earlier sittings included"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="llama-server", help="llama-server or embedded")
    parser.add_argument("--home", type=Path, help="keep everything there and go on from it")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="kill no more after this long; the table says so"
    )
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        home = asked.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autospec-crash-")))
        home = home.resolve()
        bench = Bench(home, asked.backend)
        # Stopping the bench stops the tune too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        atexit.register(lambda: [process.kill() for process in bench.processes()])
        return bench.run(asked.times, asked.seed, time.monotonic() + 60.0 * asked.minutes)


class Bench:
    """One home (AUTOSPEC_HOME), one study, and its kills."""

    def __init__(self, home: Path, backend: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        lab = Lab(lab_folder())
        (home / "study.toml").write_text(_STUDY, encoding="utf-8")
        write_suite(home / "suite.jsonl", questions(_QUESTIONS), max_tokens=32)
        suite = load_suite(home / "suite.jsonl")
        rule = load_definition(str(home / "study.toml")).rule
        self._home = home
        self._database = Database(
            home / "state" / "autospec.db",
            home / "state" / "launches",
            halves=2 * len(suite.of(PromptType.QA, Half.PROVE)) * rule.looks[-1],
        )
        self._kept = home / "kills.jsonl"
        self._lengths_s: dict[str, float] = {}
        self._seen = self._database.measurements()
        self._failed: list[str] = []
        self._finished = 0
        env = {k: v for k, v in os.environ.items() if not k.startswith("AUTOSPEC_")}
        if backend == "llama-server":
            native = lab_folder() / "llama-server" / "llama-server"
            env["AUTOSPEC_LLAMA_SERVER"] = os.environ.get("AUTOSPEC_LLAMA_SERVER", str(native))
        # On a shared machine, spinning threads are twenty times slower, and a tune waits for other load. Speed does not
        # matter here.
        self._env = calm(env) | {
            "AUTOSPEC_HOME": str(home),
            "AUTOSPEC_TEST_LOCK_DIR": str(home),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._command = [
            *(sys.executable, "-m", "autospec", "tune", "--again", "--json", "--quiet", "--backend", backend),
            *("--model", str(lab.path("smollm2")), "--draft", str(lab.path("tiny"))),
            *("--study", str(home / "study.toml"), "--suite", str(home / "suite.jsonl")),
        ]

    def run(self, times: int, seed: int, until_s: float) -> int:
        """Kill until the number or the time is reached; then let one tune finish."""
        lines = self._kept.read_text(encoding="utf-8").splitlines() if self._kept.exists() else []
        kills = [json.loads(line) for line in lines]
        lengths = self._home / "lengths.json"
        if not lengths.exists():
            lengths.write_text(json.dumps(self._learn()), encoding="utf-8")
        self._lengths_s = json.loads(lengths.read_text(encoding="utf-8"))
        rng = random.Random(seed + len(kills))
        while len(kills) < times and time.monotonic() < until_s:
            kill = self._kill(_TURNS[len(kills) % len(_TURNS)], rng)
            if kill is None:
                continue
            kills.append(asdict(kill))
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kills[-1]) + "\n")
            print(f"{len(kills)}: aimed at {kill.aimed}, hit {kill.hit}", file=sys.stderr, flush=True)
        # The last kill may have left the study in any state, and this tune must finish it. Earlier sessions have the next.
        is_last = len(kills) >= times
        final = self._undisturbed() if is_last else []
        sys.stdout.write(table(kills, final, self._lengths_s, _ORPHANS_GONE_S))
        return 1 if broken(kills) or (is_last and not final) else 0

    def processes(self) -> list[psutil.Process]:
        """Processes with this home in their environment, except this one."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("AUTOSPEC_HOME") == str(self._home):
                    found.append(process)
        return found

    def _learn(self) -> dict[str, float]:
        """Watch one undisturbed tune to learn the length of each phase."""
        child = subprocess.Popen(
            self._command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        watch = Watch(self._database)
        began = {Phase.START: time.monotonic()}
        while child.poll() is None:
            began.setdefault(watch.phase(), time.monotonic())
            time.sleep(_LOOK_EVERY_S)
        if child.returncode:
            raise SystemExit(f"the tune that nobody disturbs ended with {child.returncode}")
        ends = [*list(began.values())[1:], time.monotonic()]
        return {p: end - at for (p, at), end in zip(began.items(), ends, strict=True)}

    def _undisturbed(self) -> list[dict[str, Any]]:
        done = subprocess.run(
            self._command, env=self._env, timeout=_FINAL_TUNE_S, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found: list[dict[str, Any]] = (
            json.loads(done.stdout)["recommendations"] if done.returncode == 0 else []
        )
        return found

    def _kill(self, aimed: Phase, rng: random.Random) -> Kill | None:
        """One start and its kill; ``None`` if it ended before."""
        watch = Watch(self._database)
        child = subprocess.Popen(
            self._command, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        spread_s = _WRITING_S if aimed is Phase.WRITING else self._lengths_s.get(aimed, 1.0)
        self._wait_for(aimed, watch, child)
        try:
            child.wait(rng.uniform(0.0, spread_s))
        except subprocess.TimeoutExpired:
            pass
        else:
            # It finished before the kill: the next one starts over.
            said = child.communicate()[1].decode(errors="replace").strip()
            if child.returncode:
                self._failed.append(f"{child.returncode}: {said[-300:]}")
            self._finished += 1
            return None
        child.kill()
        at, began = time.time(), time.monotonic()
        child.wait()
        assert child.stderr is not None
        child.stderr.close()
        left = self.processes()
        servers = len(left)
        while left and time.monotonic() - began < _ORPHANS_GONE_S:
            time.sleep(0.05)
            left = self.processes()
        ended_s = time.monotonic() - began
        for process in left:
            process.kill()
        # All later kills must find these measurements.
        now = self._database.measurements()
        self._seen |= now
        kill = Kill(
            aimed=aimed, hit=watch.phase(at), written=watch.written, servers=servers, measurements=len(now), lost=len(self._seen - now),
            orphans=len(left), ended_s=round(ended_s, 2), torn=self._database.torn(),
            unsound=not self._database.sound(), twice=self._database.trials_done_twice(),
            failed=tuple(self._failed), finished=self._finished,
        )  # fmt: skip
        self._failed, self._finished = [], 0
        return kill

    @staticmethod
    def _wait_for(aimed: Phase, watch: Watch, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PHASE_BEGINS_S
        while (
            PHASES.index(watch.phase()) < PHASES.index(aimed)
            and child.poll() is None
            and time.monotonic() < deadline
        ):
            near = aimed is Phase.WRITING and watch.is_proving
            time.sleep(_WRITING_LOOK_EVERY_S if near else _LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
