"""The database: rows come back as they were written, also through the fast reader, and errors have messages."""

from __future__ import annotations

import os
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import StoreError
from autospec.measure.measurements import Measurement, Phase
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store import database
from autospec.store.database import CellLocks, connect_args, open_store
from autospec.store.reader import newest_recommendation, read_recommendations

MACHINE = Hardware(id="m", chip="M2 Ultra", memory_bytes=64 << 30)
DRAFT = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8, n_min=0, p_min=0.75)
MEASUREMENT = Measurement(
    cell_key="cell", protocol="p", phase=Phase.SEARCH, round=0, drafting=DRAFT, compared=DRAFT, prompt_id="a",
    launch_id="l", position=1, started_at=100.0, prompt_tokens=10, predicted_tokens=64, prompt_ms=5.0,
    predicted_ms=640.0, wall_ms=650.0, drafted=70, accepted=50, text_digest="d" * 64, finish_reason="stop",
    machine={"other_load": 0.1},
)  # fmt: skip
RECOMMENDATION = Recommendation(
    model="main", model_path="/main.gguf", backend="llama-server", backend_build="b1", prompt_type=PromptType.CODING,
    verdict=Verdict.ENABLE, drafting=DRAFT, tried=DRAFT, baseline_tps=50.0, drafting_tps=75.0, speedup=1.5,
    speedup_ci=(1.4, 1.6), pairs=8, acceptance=0.7, reason="Because.", status=Status.PROVEN,
    created_at="2026-11-23T00:00:00+00:00", evidence={"args": ["-md", "/d.gguf"]},
)  # fmt: skip


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database that is not there yet."""
    return f"sqlite:///{tmp_path / 'sub' / 'autospec.db'}"


def test_measurement_comes_back_as_it_was(url):
    """Draftings, phases and missing counts survive the way through the database."""
    store = open_store(url)
    untold = replace(MEASUREMENT, prompt_id="b", drafting=OFF, drafted=None, accepted=None)
    for measurement in (MEASUREMENT, untold):
        store.add_measurement(measurement)
    assert store.measurements("cell") == [MEASUREMENT, untold]
    store.close()


def test_measurements_are_filtered(url):
    """Cell, protocol, phase and time each leave out what they should."""
    store = open_store(url)
    store.add_measurement(MEASUREMENT)
    assert store.measurements("other") == []
    assert store.measurements("cell", protocol="q") == []
    assert store.measurements("cell", phase=Phase.PROVE) == []
    assert store.measurements("cell", since=100.5) == []
    assert len(store.measurements("cell", protocol="p", phase=Phase.SEARCH, since=100.0)) == 1
    store.close()


def test_newest_recommendation_of_a_cell_counts(url):
    """A cell's later recommendation replaces its earlier one, for the store and for the fast reader."""
    store = open_store(url)
    store.save_recommendation(RECOMMENDATION, MACHINE, "cell-1")
    store.save_recommendation(replace(RECOMMENDATION, model="other"), MACHINE, "cell-2")
    newer = replace(RECOMMENDATION, verdict=Verdict.DISABLE, drafting=OFF)
    store.save_recommendation(newer, MACHINE, "cell-1")
    found = store.recommendations(cell_keys=["cell-1"])
    assert [s.recommendation for s in found] == [newer]
    assert {s.cell_key for s in read_recommendations(url)} == {"cell-1", "cell-2"}
    assert read_recommendations(url) == sorted(
        store.recommendations(), key=lambda s: s.cell_key, reverse=True
    )
    store.close()


def test_former_recommendations_are_all_but_the_newest(url):
    """Of this cell alone, the oldest first; one that another cell got since does not matter."""
    with closing(open_store(url)) as store:
        for model in ("first", "second", "third"):
            store.save_recommendation(replace(RECOMMENDATION, model=model), MACHINE, "cell-1")
        store.save_recommendation(RECOMMENDATION, MACHINE, "cell-2")
        assert [r.model for r in store.former_recommendations("cell-1")] == ["first", "second"]
        assert store.former_recommendations("cell-2") == store.former_recommendations("cell-3") == []


def test_reader_finds_nothing_where_nothing_is(url, tmp_path):
    """No file, and a database of somebody else's, are both nothing known, not an error."""
    assert read_recommendations(url) == []
    with sqlite3.connect(tmp_path / "empty.db") as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert read_recommendations(f"sqlite:///{tmp_path / 'empty.db'}") == []


def test_sqlite_is_put_in_wal_mode(url, tmp_path):
    """Readers must not wait for a tune that writes."""
    open_store(url).close()
    with sqlite3.connect(tmp_path / "sub" / "autospec.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize("bad", ["not a url", "nosuch://x/y", "postgresql://me:hunter2@hub:port/x"])
def test_url_that_means_nothing_is_a_sentence(bad):
    """A storage URL that SQLAlchemy does not know is named, with what to do."""
    with pytest.raises(StoreError) as caught:
        open_store(bad)
    assert caught.value.hint
    assert caught.value.exit_code == 2  # a wrong setting, which a supervisor does not start again
    assert "hunter2" not in str(caught.value)


def test_damaged_file_is_a_sentence(tmp_path):
    """A file that is no database is a StoreError from the store and from the reader."""
    path = tmp_path / "autospec.db"
    path.write_bytes(b"this is no database at all, and longer than a header of sixteen bytes" * 20)
    with pytest.raises(StoreError, match="cannot be used"):
        open_store(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="damaged"):
        read_recommendations(f"sqlite:///{path}")


@contextmanager
def somebody_else() -> Iterator[str]:
    """A user who may write no file of another one; root could. Gives the number that a message must name."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield str(os.geteuid())
    finally:
        os.seteuid(was)


def test_another_users_database_is_named_as_such():
    """A volume of user 2000 in the image, which runs as 1000: both hints spoke of a full disk and of a damaged file."""
    with tempfile.TemporaryDirectory() as folder:  # not `tmp_path`, which another user cannot enter
        url = f"sqlite:///{folder}/autospec.db"
        open_store(url).close()
        Path(folder, "autospec.db").chmod(0o444)
        Path(folder).chmod(0o555)
        for ask in (open_store, read_recommendations):
            with somebody_else() as user, pytest.raises(StoreError) as raised:
                ask(url)
            assert "readonly database" in str(raised.value)
            assert f"Allow user {user}" in raised.value.hint
        Path(folder).chmod(0o755)


def test_a_folder_of_another_user_is_named_as_such():
    """A folder that Docker made for a volume belongs to root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with somebody_else() as user, pytest.raises(StoreError, match="cannot be created") as raised:
            open_store(f"sqlite:///{folder}/state/autospec.db")
        assert f"Allow user {user}" in raised.value.hint
        Path(folder).chmod(0o755)


def test_the_newest_number_grows_with_every_recommendation(url, tmp_path):
    """The reader's and the store's: how the proxy sees that there is something new without reading it all."""
    assert newest_recommendation(f"sqlite:///{tmp_path / 'nowhere.db'}") == 0
    store = open_store(url)
    numbers = []
    for _ in range(2):
        numbers.append((newest_recommendation(url), store.newest_recommendation()))
        store.save_recommendation(RECOMMENDATION, MACHINE, "cell")
    numbers.append((newest_recommendation(url), store.newest_recommendation()))
    store.close()
    assert numbers == [(0, 0), (1, 1), (2, 2)]


LIBPQ_BUT_TWO = {"keepalives": 1, "keepalives_interval": 20, "keepalives_count": 3}
LIBPQ = {"connect_timeout": 10, "keepalives_idle": 60, **LIBPQ_BUT_TWO}


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("sqlite:////a.db", {"timeout": 30.0}),
        ("postgresql+psycopg://me@hub/autospec", LIBPQ),
        ("postgresql+psycopg2://me@hub/autospec", LIBPQ),
        ("postgresql+psycopg://me@hub/autospec?connect_timeout=3&keepalives_idle=9", LIBPQ_BUT_TWO),
        ("postgresql+asyncpg://me@hub/autospec", {}),
    ],
)
def test_connecting_has_a_limit(url, arguments):
    """Of the user's choice if there is one, and a host that vanishes is noticed; another driver than libpq's has other names."""
    assert connect_args(url) == arguments


def _take(url: str) -> None:
    with CellLocks(url) as locks:
        locks.take("0")


@pytest.mark.process  # libpq waits for two seconds at least
@pytest.mark.parametrize("use", [open_store, _take])
def test_a_postgresql_that_hangs_is_not_waited_for(monkeypatch, use):
    """Its kernel accepts the connection, and nothing answers: for ever, and for two minutes with psycopg."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    monkeypatch.setattr(database, "_CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            use(f"postgresql+psycopg://me@127.0.0.1:{silent.getsockname()[1]}/autospec")
        assert time.monotonic() - begun < 60
