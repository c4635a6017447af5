"""Any row in the database, as of a newer version or of a damaged disk: it is left out, and all others are read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autospec.recommendations import Verdict
from autospec.store.database import open_store
from autospec.store.reader import newest_recommendation, read_recommendations
from tests.report.samples import HERE, recommendation

WHOLE = recommendation(Verdict.ENABLE).to_json()

leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(("off", "enable", "draft-model", 10**400)),
)
keys = st.sampled_from((*WHOLE, *WHOLE["drafting"], "parts", "id", "cpu", "limits"))
json_value = st.recursive(
    leaf,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
changed = st.tuples(st.sampled_from(list(WHOLE)), json_value).map(lambda change: WHOLE | dict([change]))
cell = st.one_of(
    st.one_of(json_value, changed).map(json.dumps),
    st.sampled_from(("", "{", "NaN")),
    st.binary(max_size=8),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
)


@pytest.fixture
def file(tmp_path) -> Path:
    """A database with its tables."""
    path = tmp_path / "a.db"
    open_store(f"sqlite:///{path}").close()
    return path


def _insert(file: Path, row: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DELETE FROM autospec_recommendations")
        for hardware, stored, key in (row, (json.dumps(HERE.to_json()), json.dumps(WHOLE), "good")):
            connection.execute(
                "INSERT INTO autospec_recommendations (cell_key, model, hardware_id, hardware, recommendation, created_at)"
                " VALUES (?, 'm', 'h', ?, ?, '')",
                (key, hardware, stored),
            )
        connection.commit()


def _read_both(file: Path, row: tuple[object, ...]) -> None:
    _insert(file, row)
    url = f"sqlite:///{file}"
    plain = read_recommendations(url)
    store = open_store(url)
    assert len(store.recommendations()) == len(plain) >= 1
    store.close()
    for found in plain:
        json.dumps(found.recommendation.to_json())
    assert newest_recommendation(url) > 0


def test_any_recommendation(file):
    """Both readers, with SQLAlchemy and without, agree, and read the good row."""

    @settings(max_examples=20)
    @given(
        st.one_of(st.just(json.dumps(HERE.to_json())), cell),
        cell,
        st.one_of(st.just("bad"), st.binary(max_size=3), st.integers(0, 3)),
    )
    def read(hardware, stored, key):
        _read_both(file, (hardware, stored, key))

    read()


LONG = {"deep": "[" * 100_000, "digits": "9" * 5000, "no UTF-8": b"\xff"}


@pytest.mark.parametrize("damaged", LONG.values(), ids=LONG)
def test_found_recommendations(file, damaged):
    """What kept all other rows from being read."""
    _read_both(file, (damaged, json.dumps(WHOLE), "bad"))
    _read_both(file, (json.dumps(HERE.to_json()), damaged, "bad"))


SAMPLE = {"at": 1.0, "model": "m", "backend": "b", "build": "1", "drafting_key": "off", "drafting": '{"mode": "off"}',
          "prompt_tokens": 1, "predicted_tokens": 1, "prompt_ms": 1.0, "predicted_ms": 1.0}  # fmt: skip


def _read_samples(file: Path, column: str, value: object) -> None:
    store = open_store(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DELETE FROM autospec_live_samples")
        for values in (SAMPLE | {column: value}, SAMPLE):
            connection.execute(
                f"INSERT INTO autospec_live_samples ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
                list(values.values()),
            )
        connection.commit()
    assert len(store.samples(since=0.0)) >= 1
    store.close()


def test_any_sample(file):
    """One value of a row is anything that SQLite holds."""

    @settings(max_examples=20)
    @given(st.sampled_from([*SAMPLE, "prompt_type", "drafted", "cached_tokens", "temperature"]), cell)
    def read(column, value):
        _read_samples(file, column, value)

    read()


@pytest.mark.parametrize("damaged", LONG.values(), ids=LONG)
def test_found_samples(file, damaged):
    """What kept all other rows from being read."""
    _read_samples(file, "drafting", damaged)
