"""Several machines on one real PostgreSQL: tables, locks, and three tunes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from autospec.cells import Hardware
from autospec.errors import StoreError
from autospec.recommendations import Status
from autospec.store.compatibility import SCHEMA, DraftFile, DraftFiles
from autospec.store.database import CellLocks, open_store
from autospec.store.reader import read_recommendations
from autospec.tuning.study import open_storage
from tests.report.samples import DRAFTING, measurement, recommendation
from tests.store.grpc_proxy import grpc_proxy_over
from tests.store.one_machine import TYPES

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789ab"
MACHINES = 3


@pytest.fixture
def database(postgres_url: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_url.rpartition("/")[0] + f"/{name}"


def test_an_older_database_is_brought_up_to_date(database: str):
    """On PostgreSQL too: the column that it lacks is added, and rows of a newer version are left out."""
    store = open_store(database)
    for key in (KEY, "other"):
        store.save_recommendation(recommendation(), Hardware("m-1", "Chip", 1 << 34), key)
    store.close()
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        for statement in (
            "DROP TABLE autospec_meta",
            "ALTER TABLE autospec_measurements DROP COLUMN draft_id",
            "UPDATE autospec_recommendations SET recommendation = '[]' WHERE cell_key = 'other'",
        ):
            connection.execute(sa.text(statement))
    told: list[str] = []
    store = open_store(database, told.append)
    store.drafts = DraftFiles({DRAFTING.draft: DraftFile("one")})
    store.add_measurement(measurement(with_drafting=True, cell_key=KEY))
    assert len(store.measurements(KEY)) == 1
    assert [s.cell_key for s in store.recommendations()] == [KEY]
    store.close()
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT name, value FROM autospec_meta")).all()
        assert connection.execute(sa.text("SELECT draft_id FROM autospec_measurements")).scalar() == "one"
    engine.dispose()
    assert dict(map(tuple, rows)) == {"schema": SCHEMA, "needs": 0}
    assert "does not understand 1 recommendation" in told[0]


def test_recommendations_are_kept_and_read(database: str):
    """What is written through SQLAlchemy is what `recommend` reads, keyed by hardware."""
    machine = Hardware("m-1", "Chip", 1 << 34)
    store = open_store(database)
    store.save_recommendation(recommendation(), machine, KEY)
    store.close()
    (found,) = read_recommendations(database)
    assert (found.cell_key, found.hardware, found.recommendation) == (KEY, machine, recommendation())


def test_a_cell_is_held_by_one_session_until_it_ends(database: str):
    """A second session does not get it, other cells it does, and the end of the first frees it."""
    with CellLocks(database) as second:
        with CellLocks(database) as first:
            assert first.take(KEY)
            assert first.take(KEY)
            assert not second.take(KEY)
            assert second.take("ba9876543210")
        assert second.take(KEY)


def test_a_killed_holder_holds_nothing(database: str):
    """A kill -9 ends the session, and with it the lock: nobody waits for a lease to run out."""
    program = (
        "import sys, time; from autospec.store.database import CellLocks\n"
        f"locks = CellLocks({database!r}); print(locks.take({KEY!r}), flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "True\n"
        with CellLocks(database) as locks:
            assert not locks.take(KEY)
            holder.kill()
            holder.wait()
            # The server notices the closed connection in its own time, mostly at once.
            assert any(locks.take(KEY) for _ in _polls())
    finally:
        holder.kill()
        holder.communicate()


def _polls():
    import time

    for _ in range(100):
        yield None
        time.sleep(0.05)


def test_a_database_that_is_away_is_one_sentence(database: str):
    """No traceback of a driver: what cannot be used, without its password."""
    away = "postgresql+psycopg://tester:secret@127.0.0.1:1/nowhere"
    with pytest.raises(StoreError, match="cannot be used") as raised:
        open_store(away)
    assert "secret" not in str(raised.value)


@pytest.fixture
def grpc_proxy(database: str):
    """Optuna's gRPC proxy in front of the database; its address."""
    with grpc_proxy_over(database) as (address, _):
        yield address


def test_a_grpc_proxy_that_is_away_is_one_sentence():
    """What does not answer, and what to do."""
    pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1 does not answer") as raised:
        open_storage("grpc://127.0.0.1:1", ready_s=0.2)
    assert "run_grpc_proxy_server" in raised.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("studies", ["in the database", "behind a gRPC proxy"])
def test_three_machines_at_once_lose_no_trial_and_do_none_twice(
    database: str, tmp_path: Path, studies: str, request: pytest.FixtureRequest
):
    """Equal machines share cells: each is tuned by one of them, proven once, and every trial is in the study."""
    proxy = [request.getfixturevalue("grpc_proxy")] if "gRPC" in studies else []
    children = []
    for number in range(MACHINES):
        locks = tmp_path / f"machine-{number}"
        locks.mkdir()
        # They are three machines: the lock that keeps two tunes off one processor is not theirs together.
        env = {**os.environ, "AUTOSPEC_TEST_LOCK_DIR": str(locks)}
        command = [
            sys.executable,
            "-m",
            "tests.store.one_machine",
            database,
            f"machine-{number}",
            "4",
            *proxy,
        ]
        children.append(
            subprocess.Popen(
                command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    reports = []
    for child in children:
        out, err = child.communicate(timeout=170)
        assert child.returncode == 0, err
        reports.append(json.loads(out.splitlines()[-1]))
    assert any(report["others"] for report in reports), "the machines never met"

    import optuna

    tuned = Counter(cell for report in reports for cell in report["mine"])
    stored = read_recommendations(database)
    assert {str(s.recommendation.prompt_type) for s in stored} == {str(t) for t in TYPES}
    assert set(tuned) == {str(t) for t in TYPES}
    storage = optuna.storages.RDBStorage(database)
    summaries = optuna.get_all_study_summaries(storage)
    assert len(summaries) == len(TYPES), "a study was made twice"
    measured = 0
    for summary in summaries:
        trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
        assert [t.number for t in trials] == list(range(len(trials)))
        assert {t.state.name for t in trials} == {"COMPLETE"}, "a trial was lost"
        draftings = [json.dumps(t.user_attrs["drafting"], sort_keys=True) for t in trials]
        assert len(set(draftings)) == len(draftings), "a trial was done twice"
        measured += len(trials)
    storage.remove_session()
    storage.engine.dispose()
    assert measured > len(TYPES)
    assert {s.recommendation.status for s in stored} == {Status.PROVEN}
    store = open_store(database)
    rows = [m for s in stored for m in store.measurements(s.cell_key)]
    store.close()
    assert len(rows) == sum(report["measured"] for report in reports), "a finished measurement was lost"


def test_a_database_that_was_started_again_is_connected_again(database: str):
    """A proxy lost its next samples, and a tune its measurement of minutes."""
    store = open_store(database)
    store.save_recommendation(recommendation(), Hardware("m-1", "Chip", 1 << 34), KEY)
    engine = sa.create_engine(database)
    with engine.begin() as connection:  # what a restart does to connections that are kept
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
            )
        )
    engine.dispose()
    store.save_recommendation(recommendation(), Hardware("m-1", "Chip", 1 << 34), "other")
    assert len(store.recommendations()) == 2
    store.close()
