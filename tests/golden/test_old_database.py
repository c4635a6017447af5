"""A database that 31c5bcf wrote, Optuna's tables included: today's code reads it and says what 31c5bcf said.

`data/31c5bcf` holds the database and what that commit's own command line said of it; its README says how it was made.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.golden.conftest import OLD, RECORD, restore, run
from tests.golden.golden import check, same, to_text

COMMANDS = {
    "recommend": "recommend --json --hardware test-machine",
    "recommend-foreign": "recommend --json",
    "explain": "explain --json --model main --hardware test-machine",
    "studies-list": "studies list --json",
    "studies-show": "studies show main coding --json",
    "studies-export": "studies export",
}
# Where what is said today differs on purpose: the copy's name, the path in the document, why.
DIFFERENCES: dict[tuple[str, str], str] = {
    (name, "overall"): "the answer for all prompt types together is new"
    for name in ("recommend", "recommend-foreign", "explain", "studies-export")
} | {
    (name, f"{entries}.{number}.{inner}aim"): "each recommendation says what its verdict is about"
    for name, entries, count, inner in (
        ("recommend", "recommendations", 4, ""),
        ("recommend-foreign", "recommendations", 4, ""),
        ("explain", "explanations", 3, "recommendation."),
        ("studies-export", "recommendations", 4, "recommendation."),
    )
    for number in range(count)
}


@pytest.fixture
def old(place):
    """A home with the database as 31c5bcf left it."""
    restore(place.database)
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_it_says_what_31c5bcf_said(old, name):
    """Value by value: verdicts, figures, draftings, evidence, the reasons that are stored."""
    _compare(name)


def test_it_is_what_31c5bcf_wrote(old):
    """The tables of that commit, with rows of all kinds, before anything of today has touched it."""
    with sqlite3.connect(old.database) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        ours = sorted(name for name in tables if name.startswith("autospec_"))
        counts = {
            name: _count(connection, name) for name in [*ours, "studies", "trials", "trial_user_attributes"]
        }
    connection.close()
    assert ours == [
        f"autospec_{name}" for name in ("live_samples", "measurements", "recommendations", "surveys")
    ]
    assert all(counts.values()), counts
    assert _verdicts(old.database) == {"enable": 2, "disable": 1, "undecided": 1}


def test_it_is_brought_up_to_date(old):
    """A command that writes adds what is missing; every row stays, column by column, in Optuna's tables as well."""
    before = _rows(old.database)
    columns = _columns(old.database)
    assert run(*COMMANDS["explain"].split()).exit_code == 0
    after, columns_after = _rows(old.database), _columns(old.database)
    assert ("autospec_meta", "name") in columns_after
    assert ("autospec_measurements", "draft_id") in columns_after - columns
    assert columns <= columns_after
    for table, rows in before.items():
        added = {column: None for name, column in columns_after - columns if name == table}
        assert after[table] == [row | added for row in rows], table
    # What is said of it afterwards is the same.
    for name in COMMANDS:
        _compare(name)


def test_a_new_database_has_the_tables_and_columns_that_are_held(place):
    """Names that people query with sqlite3, and that an older autospec reads."""
    assert run("studies", "import", RECORD).exit_code == 0
    found = sorted(
        f"{table}.{column}" for table, column in _columns(place.database) if table.startswith("autospec_")
    )
    check("tables.txt", "\n".join(found))


def _compare(name: str) -> None:
    result = run(*COMMANDS[name].split())
    assert result.exit_code == 0, result.stderr
    then, now = (_without_the_program(json.loads(text)) for text in (_said_then(name), result.stdout))
    for command, path in DIFFERENCES:
        if command == name:
            assert _taken(then, path) != _taken(now, path), (
                f"{path} differs no more: take it out of DIFFERENCES"
            )
    what_to_do = (
        "This is what 31c5bcf said, which does not change: a difference that is meant goes into DIFFERENCES."
    )
    same(to_text(then), to_text(now), f"31c5bcf/{name}.json", what_to_do)


def _said_then(name: str) -> str:
    packed = OLD / f"{name}.json.gz"
    return (
        gzip.decompress(packed.read_bytes()).decode()
        if packed.exists()
        else (OLD / f"{name}.json").read_text("utf-8")
    )


def _without_the_program(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is not in the database: the version, the moment, records that come with autospec, sentences made now."""
    left = {
        key: value for key, value in document.items() if key not in ("autospec", "exported_at", "records")
    }
    if "explanations" in left:
        left["explanations"] = [
            {key: value for key, value in one.items() if key != "sentences"} for one in left["explanations"]
        ]
    return left


def _taken(document: Any, path: str) -> Any:
    """Take the value at a path like ``recommendations.0.evidence`` out of a document; ``None`` where there is none."""
    *way, last = path.split(".")
    for step in way:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document.pop(int(last)) if isinstance(document, list) else document.pop(last, None)


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def _verdicts(database: Path) -> dict[str, int]:
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "SELECT json_extract(recommendation, '$.verdict'), count(*) FROM autospec_recommendations"
            " WHERE id IN (SELECT max(id) FROM autospec_recommendations GROUP BY cell_key) GROUP BY 1"
        ).fetchall()
    connection.close()
    return dict(rows)


def _rows(database: Path) -> dict[str, list[dict[str, Any]]]:
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {
            name: [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY rowid")]  # noqa: S608
            for name in names
        }
    connection.close()
    return found


def _columns(database: Path) -> set[tuple[str, str]]:
    with sqlite3.connect(database) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {(name, row[1]) for name in names for row in connection.execute(f"PRAGMA table_info({name})")}
    connection.close()
    return found
