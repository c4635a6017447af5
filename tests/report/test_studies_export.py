"""Exports and imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autospec.cells import PromptType
from autospec.errors import StudyFileError
from autospec.recommendations import Status, Verdict
from autospec.report.records import find_record, read_record, recommendations_of
from autospec.report.studies import (
    Export,
    StudySummary,
    TrialSummary,
    export_document,
    import_into,
    read_export,
)
from autospec.store.database import open_store
from tests.report.samples import DRAFTING, HERE, measurement, recommendation

KEY = "aaaabbbbcccc"


@pytest.fixture
def store(tmp_path):
    """The storage that exports."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    yield store
    store.close()


@pytest.fixture
def other(tmp_path):
    """Another machine's storage."""
    store = open_store(f"sqlite:///{tmp_path / 'b.db'}")
    yield store
    store.close()


def fill(store):
    """A recommendation and its pair."""
    store.save_recommendation(recommendation(), HERE, KEY)
    for half in (False, True):
        store.add_measurement(measurement(with_drafting=half))


def exported(store, path, *keys):
    """What another machine reads of a storage."""
    study = StudySummary("s", {"key": KEY}, (TrialSummary(0, "complete", DRAFTING, 1.3, ""),))
    measurements = [m for key in keys or (KEY,) for m in store.measurements(key)]
    path.write_text(
        json.dumps(export_document(store.recommendations(), measurements, [study])), encoding="utf-8"
    )
    return read_export(path)


def test_the_round_trip_keeps_everything_but_status_and_path(store, other, tmp_path):
    """On another machine the recommendation is imported, with the same verdict, figures and trials."""
    fill(store)
    result = import_into(other, exported(store, tmp_path / "e.json"))
    assert (result.recommendations, result.measurements) == (1, 2)
    [back] = other.recommendations()
    before = recommendation().to_json()
    after = back.recommendation.to_json()
    assert after["status"] == "imported"
    assert after["model_path"] == ""
    assert after["evidence"]["model_file"] == "Main-7B-Q4_K_M.gguf"
    assert after["evidence"]["trial_list"][0]["value"] == 1.3
    for key in set(before) - {"status", "model_path", "evidence"}:
        assert after[key] == before[key]
    assert back.hardware == HERE


def test_imported_measurements_never_count_as_ones_own(store, other, tmp_path):
    """They are stored under another key than the cell's."""
    fill(store)
    import_into(other, exported(store, tmp_path / "e.json"))
    assert other.measurements(KEY) == []
    assert len(other.measurements(f"i-{KEY}")) == 2


def test_importing_twice_changes_nothing(store, other, tmp_path):
    """The second import finds all of it known."""
    fill(store)
    export = exported(store, tmp_path / "e.json")
    import_into(other, export)
    result = import_into(other, export)
    assert (result.recommendations, result.known, result.measurements) == (0, 1, 0)
    assert len(other.measurements(f"i-{KEY}")) == 2


def test_an_export_that_comes_home_changes_nothing(store, tmp_path):
    """What was measured here stays proven."""
    fill(store)
    result = import_into(store, exported(store, tmp_path / "e.json"))
    assert (result.recommendations, result.measurements) == (0, 0)
    assert [s.recommendation.status for s in store.recommendations()] == [Status.PROVEN]


def test_an_import_can_be_exported_again(store, other, tmp_path):
    """A second hop keeps the key and the trials."""
    fill(store)
    import_into(other, exported(store, tmp_path / "e.json"))
    again = exported(other, tmp_path / "f.json", f"i-{KEY}")
    assert [s.cell_key for s in again.recommendations] == [f"i-{KEY}"]
    assert again.recommendations[0].recommendation.evidence["trial_list"]
    assert import_into(other, again).recommendations == 0


def test_a_newer_import_replaces_the_older(store, other, tmp_path):
    """The machine that exported tuned again and found otherwise."""
    fill(store)
    import_into(other, exported(store, tmp_path / "e.json"))
    store.save_recommendation(
        recommendation(Verdict.DISABLE, created_at="2026-12-01T00:00:00+00:00"), HERE, KEY
    )
    assert import_into(other, exported(store, tmp_path / "f.json")).recommendations == 1
    assert [s.recommendation.verdict for s in other.recommendations()] == [Verdict.DISABLE]


def test_the_home_folder_stays_at_home(store, tmp_path):
    """Paths below it begin with ~, wherever they stand."""
    home = str(Path.home())
    r = recommendation(
        model_path=f"{home}/m.gguf",
        reason=f"draft {home}/d.gguf is bad",
        evidence={"command": ["s", "-m", f"{home}/m.gguf"]},
    )
    store.save_recommendation(r, HERE, KEY)
    text = json.dumps(export_document(store.recommendations(), [], []))
    assert f"{home}/" not in text
    assert "draft ~/d.gguf is bad" in text


def test_the_overall_answer_is_exported(store, other, tmp_path):
    """For readers, in the same form; an import takes the types' own recommendations alone."""
    fill(store)
    answer = recommendation(prompt_type=None, evidence={"mix": {"shares": {"coding": 1.0}}})
    store.save_overall(answer, HERE, "the launch")
    document = export_document(store.recommendations(), [], [], overall=store.overall_answers())
    [entry] = document["overall"]
    assert (entry["hardware"], entry["recommendation"]) == (HERE.to_json(), answer.to_json())
    path = tmp_path / "e.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert import_into(other, read_export(path)).recommendations == 1
    assert other.overall_answers() == []


def test_a_record_is_imported_once(store):
    """Twice the founding record is three recommendations."""
    export = Export(tuple(recommendations_of(read_record(find_record("m2-ultra-2025-12-13")))))
    assert import_into(store, export).recommendations == 3
    assert import_into(store, export).known == 3
    assert len(store.recommendations()) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("measurements"), "lacks the key measurements"),
        (lambda d: d.update(kind="x"), "not an export"),
        (lambda d: d.update(schema=99), "schema 99"),
        (lambda d: d.update(studies=["x"]), "invalid value"),
        (lambda d: d.update(recommendations=None), "invalid value"),
    ],
)
def test_a_malformed_export_is_one_sentence(store, tmp_path, change, words):
    """What is wrong is named; nothing is imported."""
    fill(store)
    document = export_document(store.recommendations(), store.measurements(KEY), [])
    change(document)
    path = tmp_path / "e.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(StudyFileError) as raised:
        read_export(path)
    assert words in raised.value.message


UNKNOWN_MODE = {"mode": "draft-mtp-adaptive", "n_max": 8}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["recommendations"][0]["recommendation"].update(tried=UNKNOWN_MODE), (1, 2, "1 recommendation in")),
        (lambda d: d["recommendations"][0]["recommendation"].update(verdict="maybe"), (1, 2, "1 recommendation in")),
        (lambda d: d["recommendations"].append("x"), (2, 2, "1 recommendation in")),
        (lambda d: d["measurements"][0].update(compared=UNKNOWN_MODE), (2, 1, "1 measurement in")),
        (lambda d: d["measurements"][0].update(wall_ms=0), (2, 1, "1 measurement in")),
        (lambda d: [m.pop("phase") for m in d["measurements"]], (2, 0, "2 measurements in")),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_left_out_and_told(store, other, tmp_path, change, expected):
    """An export of a newer version: its other entries are imported, and one sentence counts these."""
    *imported, words = expected
    fill(store)
    store.save_recommendation(recommendation(prompt_type=PromptType.MATH), HERE, "ccccddddeeee")
    document = export_document(store.recommendations(), store.measurements(KEY), [])
    change(document)
    path = tmp_path / "e.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    export = read_export(path)
    assert words in export.unread
    assert str(path) in export.unread
    result = import_into(other, export)
    assert [result.recommendations, result.measurements] == imported


def test_where_everything_is_understood_nothing_is_told(store, tmp_path):
    """No sentence."""
    fill(store)
    assert not exported(store, tmp_path / "e.json").unread


def test_what_is_no_json_is_told(tmp_path):
    """A file that is something else."""
    path = tmp_path / "e.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(StudyFileError, match="not JSON"):
        read_export(path)
