"""Three whole daemons, each with a home, a lock and servers of its own, on one real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from autospec.recommendations import Status, StoredRecommendation
from autospec.store.reader import read_recommendations
from tests.daemon.hooked import ROOT, calm
from tests.daemon.test_real_daemon import status, until
from tests.small_suite import write_suite
from tests.store.postgres import cluster
from tests.tuning.test_real_tune import ONE_THREAD, STUDY

TYPES = ("coding", "qa", "writing")
# Two machines of one kind, which share their cells, and one of another.
MACHINES = (("first", "alpha"), ("second", "alpha"), ("third", "beta"))
CHIPS = {chip for _, chip in MACHINES}
DONE_S = 150.0


@dataclass
class Machine:
    """One of them.

    Attributes:
        home: Its AUTOSPEC_HOME.
        env: What its processes see.
    """

    home: Path
    env: dict[str, str]

    @contextlib.contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its daemon, which does not outlive the test."""
        command = [sys.executable, "-m", "tests.daemon.quiet_daemon", "--no-proxy"]
        with (self.home / "said").open("ab") as said:
            child = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=said, stderr=said)
        try:
            yield child
        finally:
            child.kill()
            child.wait()


@pytest.fixture
def database() -> Iterator[str]:
    """A PostgreSQL of the test's own; skipped where there is none."""
    with cluster() as url:
        yield url


@pytest.fixture
def machines(database: str, tmp_path: Path, lab_models) -> list[Machine]:
    """Three homes with one small model and the same database."""
    return [_machine(tmp_path / name, name, chip, database, lab_models.tiny) for name, chip in MACHINES]


def _machine(home: Path, name: str, chip: str, database: str, model: Path) -> Machine:
    (home / "models").mkdir(parents=True)
    (home / "models" / model.name).symlink_to(model)
    study = STUDY.replace('modes = ["draft-model", "ngram-simple"]', 'modes = ["ngram-simple"]')
    (home / "study.toml").write_text(study, encoding="utf-8")
    texts = ("Count to ten:", "Name colours:", "Say one two three:", "Name the days:")
    prompts = [(f"{kind}-{n}", kind, f"{text} {kind}") for kind in TYPES for n, text in enumerate(texts)]
    write_suite(home / "suite.jsonl", prompts, max_tokens=16)
    (home / "config.toml").write_text(
        f'model_dirs = ["models"]\nbackend = "embedded"\nstudy = "study.toml"\nsuite = "suite.jsonl"\n'
        f'daemon_idle = "1s"\ndaemon_step = "60s"\nstorage = "{database}"\n' + ONE_THREAD,
        encoding="utf-8",
    )
    env = calm(os.environ, chip=chip, host=name)
    return Machine(home, env | {"AUTOSPEC_HOME": str(home), "AUTOSPEC_TEST_LOCK_DIR": str(home)})


@pytest.mark.slow
def test_three_daemons_on_one_database_lose_nothing_and_do_nothing_twice(
    database: str, machines: list[Machine]
):
    """Each cell is proven for each kind of machine, also though one daemon is killed in its first step."""
    first, second, third = machines
    with first.daemon(), third.daemon():
        with second.daemon() as child:
            until(lambda: status(second.home).get("state") == "tuning", "a step of the second")
            child.send_signal(signal.SIGKILL)
            child.wait()
        with second.daemon():
            until(lambda: _all_proven(database), "the proof of every cell", DONE_S)
            said = [status(machine.home) for machine in machines]
    stored = read_recommendations(database)
    assert len(stored) == len(TYPES) * len(CHIPS), "a cell has two keys"
    _check_trials(database, len(stored))
    _check_measurements(database)
    tuned = [e["what"] for s in said for e in s["events"] if e["what"].startswith("Tuned ")]
    assert len(tuned) >= len(stored) - 1, said
    # The other kind of machine does not take over what the first kind found, nor the other way round.
    assert {s.hardware.chip for s in stored} == CHIPS


def _all_proven(database: str) -> bool:
    found: list[StoredRecommendation] = read_recommendations(database) if _has_tables(database) else []
    proven = [s for s in found if s.recommendation.status is Status.PROVEN]
    return {(s.hardware.chip, str(s.recommendation.prompt_type)) for s in proven} == {
        (chip, kind) for chip in CHIPS for kind in TYPES
    }


def _has_tables(database: str) -> bool:
    engine = sa.create_engine(database)
    try:
        return sa.inspect(engine).has_table("autospec_recommendations")
    finally:
        engine.dispose()


def _check_trials(database: str, cells: int) -> None:
    """As Optuna's own storage shows them: every study once, every trial ended, no drafting finished twice."""
    import optuna

    storage = optuna.storages.RDBStorage(database)
    try:
        summaries = optuna.get_all_study_summaries(storage)
        assert len({s.study_name for s in summaries}) == len(summaries) == cells
        for summary in summaries:
            trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
            assert [t.number for t in trials] == list(range(len(trials))), "a trial was lost"
            assert {t.state.name for t in trials} <= {"COMPLETE", "FAIL"}, "a trial was left running"
            done = [
                json.dumps(t.user_attrs["drafting"], sort_keys=True)
                for t in trials
                if t.state.name == "COMPLETE"
            ]
            # In so short a budget a large predicted gain may be proved without a trial.
            chosen = any(name.startswith("winner:") for name in summary.user_attrs)
            assert done or chosen, "no trial was finished"
            assert len(set(done)) == len(done), "a trial was done twice"
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_measurements(database: str) -> None:
    """Each half of each pair once: what the killed daemon had measured was taken over, and not measured again."""
    engine = sa.create_engine(database)
    query = sa.text(
        "SELECT cell_key, phase, round, compared::text, prompt_id, drafting::text FROM autospec_measurements"
    )
    with engine.connect() as connection:
        halves = Counter(tuple(row) for row in connection.execute(query))
    engine.dispose()
    assert halves
    assert [half for half, count in halves.items() if count > 1] == []
