"""The version of the tables: older databases are brought up to date, newer ones are used as far as they can be."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.errors import StoreError
from autospec.measure.measurements import Sample
from autospec.store import schema
from autospec.store.compatibility import SCHEMA
from autospec.store.database import durable, open_store
from autospec.store.reader import newest_recommendation, read_recommendations
from tests.store.test_database import MACHINE, MEASUREMENT, RECOMMENDATION

NEWER_MODE = {"mode": "draft-mtp-adaptive", "n_max": 8}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a database that holds two measurements and the recommendations of two cells."""
    path = tmp_path / "autospec.db"
    store = open_store(f"sqlite:///{path}")
    for prompt in "ab":
        store.add_measurement(replace(MEASUREMENT, prompt_id=prompt))
    for cell in ("one", "two"):
        store.save_recommendation(RECOMMENDATION, MACHINE, cell)
    store.close()
    return path


def change(path: Path, *statements: str) -> None:
    """Do to a database what another version, or a damage, would."""
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def meta(path: Path) -> dict[str, int]:
    """What the database says of itself."""
    with sqlite3.connect(path) as connection:
        found = dict(connection.execute("SELECT name, value FROM autospec_meta").fetchall())
    connection.close()
    return found


def test_a_new_database_has_the_newest_version(path):
    """Its tables are made as they are now, without a migration."""
    assert meta(path) == {"schema": SCHEMA, "needs": 0}


def test_a_database_from_before_versions_is_brought_up_to_date(path):
    """The column that it lacks is added, its rows are read as before, and new ones can be written; once is enough."""
    change(path, "DROP TABLE autospec_meta", "ALTER TABLE autospec_measurements DROP COLUMN draft_id")
    for _ in range(2):
        store = open_store(f"sqlite:///{path}")
        assert [m.prompt_id for m in store.measurements("cell")][:2] == ["a", "b"]
        store.add_measurement(replace(MEASUREMENT, prompt_id="c"))
        store.close()
    assert meta(path) == {"schema": SCHEMA, "needs": 0}


def test_migrations_run_in_their_order_and_once(path):
    """A later version's steps begin where the database is."""
    done = []
    steps = (*schema.MIGRATIONS, lambda _: done.append("two"), lambda _: done.append("three"))
    engine = sa.create_engine(f"sqlite:///{path}")
    for _ in range(2):
        schema.bring_up_to_date(engine, steps)
    engine.dispose()
    assert done == ["two", "three"]
    assert meta(path)["schema"] == SCHEMA + 2


def test_a_migration_that_fails_changes_nothing(path):
    """The next start finds the database as it was."""
    engine = sa.create_engine(f"sqlite:///{path}")

    def fails(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE autospec_measurements ADD COLUMN half_done TEXT"))
        raise StoreError("No.")

    with pytest.raises(StoreError):
        schema.bring_up_to_date(engine, (*schema.MIGRATIONS, fails))
    columns = {c["name"] for c in sa.inspect(engine).get_columns("autospec_measurements")}
    engine.dispose()
    assert "half_done" not in columns
    assert meta(path)["schema"] == SCHEMA


def test_a_newer_database_that_only_has_more_is_used(path):
    """A version that added columns and tables lets this one go on, and its number stays."""
    change(
        path,
        "UPDATE autospec_meta SET value = 99 WHERE name = 'schema'",
        "ALTER TABLE autospec_measurements ADD COLUMN heat TEXT",
    )
    store = open_store(f"sqlite:///{path}")
    store.add_measurement(replace(MEASUREMENT, prompt_id="c"))
    assert len(store.measurements("cell")) == 3
    store.close()
    assert meta(path)["schema"] == 99


def test_a_newer_database_that_needs_a_newer_autospec_is_a_sentence(path):
    """Its tables mean something else: neither read nor written."""
    change(path, "UPDATE autospec_meta SET value = 99")
    url = f"sqlite:///{path}"
    for read in (open_store, read_recommendations, newest_recommendation):
        with pytest.raises(StoreError, match="newer autospec"):
            read(url)


def test_the_fast_reader_reads_what_an_older_autospec_wrote(path):
    """Before there were versions there was no table of them."""
    change(path, "DROP TABLE autospec_meta")
    assert [s.cell_key for s in read_recommendations(f"sqlite:///{path}")] == ["one", "two"]


def newer(recommendation: str) -> str:
    """The statement that gives the first cell another recommendation."""
    return f"UPDATE autospec_recommendations SET recommendation = '{recommendation}' WHERE cell_key = 'one'"  # noqa: S608


UNKNOWN_MODE = json.dumps({**RECOMMENDATION.to_json(), "tried": NEWER_MODE})
UNKNOWN_STATUS = json.dumps({**RECOMMENDATION.to_json(), "status": "half-proven"})


@pytest.mark.parametrize("row", [UNKNOWN_MODE, UNKNOWN_STATUS, "{", "[]", "null", '{"model": "m"}'])
def test_one_recommendation_that_is_not_understood_leaves_the_others(path, row):
    """The fast reader and the store: one is left out and told, the other is read."""
    change(path, newer(row))
    told: list[str] = []
    url = f"sqlite:///{path}"
    assert [s.cell_key for s in read_recommendations(url, told.append)] == ["two"]
    store = open_store(url, told.append)
    assert [s.cell_key for s in store.recommendations()] == ["two"]
    assert [s.cell_key for s in store.recommendations()] == ["two"]
    store.close()
    assert told == [told[0], told[0]]
    assert "does not understand 1 recommendation in the database and ignores it" in told[0]


def test_measurements_that_are_not_understood_are_counted(path):
    """A mode, and a machine's state that is not JSON."""
    change(
        path,
        f"UPDATE autospec_measurements SET compared = '{json.dumps(NEWER_MODE)}' WHERE prompt_id = 'a'",  # noqa: S608
        "UPDATE autospec_measurements SET machine = '{' WHERE prompt_id = 'b'",
    )
    told: list[str] = []
    store = open_store(f"sqlite:///{path}", told.append)
    store.add_measurement(replace(MEASUREMENT, prompt_id="c"))
    assert [m.prompt_id for m in store.measurements("cell")] == ["c"]
    store.close()
    assert len(told) == 1
    assert "2 measurements" in told[0]


def test_samples_of_traffic_that_are_not_understood_are_left_out(path):
    """Drift is looked for among the others; the sentence counts them."""
    sample = Sample(at=1.0, model="m", backend="b", build="1", prompt_type=PromptType.CODING, prompt_tokens=1,
                    predicted_tokens=1, prompt_ms=1.0, predicted_ms=1.0, drafting=OFF, drafted=None, accepted=None)  # fmt: skip
    told: list[str] = []
    store = open_store(f"sqlite:///{path}", told.append)
    store.add_samples([sample, replace(sample, at=2.0), replace(sample, at=3.0)])
    change(
        path,
        "UPDATE autospec_live_samples SET prompt_type = 'poetry' WHERE at = 1.0",
        f"UPDATE autospec_live_samples SET drafting = '{json.dumps(NEWER_MODE)}' WHERE at = 3.0",  # noqa: S608
    )
    assert [s.at for s in store.samples(since=0.0)] == [2.0]
    store.close()
    assert len(told) == 1
    assert "2 samples" in told[0]


def test_a_survey_that_is_no_json_counts_as_never_kept(path):
    """What it held is made again."""
    store = open_store(f"sqlite:///{path}")
    for name in ("good", "bad"):
        store.add_survey("cell", "p", "times", name, {"step_ms": 1.0})
    change(path, "UPDATE autospec_surveys SET data = 'x' WHERE name = 'bad'")
    assert list(store.surveys("cell", "p", "times")) == ["good"]
    store.close()


@pytest.mark.parametrize(("platform", "asked"), [("darwin", 1), ("linux", 0)])
def test_sqlite_is_durable_on_macos_too(path, platform, asked):
    """There, SQLite's usual sync does not reach the disk."""
    engine = sa.create_engine(f"sqlite:///{path}")
    durable(engine, platform)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA fullfsync").scalar() == asked
    engine.dispose()
