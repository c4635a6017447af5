"""The work finder on real models and a real build: which cells it orders, which it marks, and its errors."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autospec.backends.registry import backend_for
from autospec.catalog.scan import scan
from autospec.cells import PromptType
from autospec.daemon import work_finder
from autospec.drafting import OFF
from autospec.hardware import identify
from autospec.hardware.energy import aim_in_force
from autospec.hardware.identity import host_digest
from autospec.measure.measurements import Sample
from autospec.recommendations import OVERALL_MIX, Status, Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from autospec.store.reader import read_recommendations
from tests.report.samples import DRAFTING, recommendation


@pytest.fixture
def home(autospec_home: Path, lab_models) -> Path:
    """Two models and the embedded backend."""
    (autospec_home / "models").mkdir(parents=True)
    for source in (lab_models.smollm2, lab_models.tiny):
        (autospec_home / "models" / source.name).symlink_to(source)
    (autospec_home / "config.toml").write_text(
        'model_dirs = ["models"]\nbackend = "embedded"\n', encoding="utf-8"
    )
    return autospec_home


def look(**asked: list[str]) -> dict[str, Any]:
    """Run the program as the daemon does; `asked` is what a person wants measured next."""
    done = subprocess.run(
        [sys.executable, "-m", "autospec.daemon.work_finder"],
        input=json.dumps({"asked": asked}),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


def prove(name: str, **evidence: Any) -> None:
    """Store a proof for coding, made by another build than the one here."""
    store = open_store(load_settings().storage)
    made = recommendation(model=name, backend="embedded", backend_build="b1", evidence=evidence)
    store.save_recommendation(made, identify(), "0123456789ab")
    store.close()


def test_new_models_are_ordered_and_watched(home: Path):
    """Every kind of prompt of the main model before those of its draft."""
    found = look()
    assert len(found["items"]) + len(found["later"]) == 24
    assert found["items"][0]["model"].startswith("SmolLM2-135M")
    assert "new here" in found["items"][0]["why"]
    assert str(home / "models") in found["watch"]


def test_an_aim_that_cannot_be_pursued_is_noted(home: Path, monkeypatch):
    """The daemon measures for speed then, and its status says so."""
    _, note = aim_in_force("energy", identify())
    assert look()["notes"] == []
    monkeypatch.setenv("AUTOSPEC_AIM", "energy")
    assert look()["notes"] == ([note] if note else [])


def test_what_was_asked_for_comes_first(home: Path):
    """The draft's own cells before the main model's, apart from the one that had its step."""
    plain = look()
    main = plain["items"][0]["model"]
    cells = [*(f"{i['model']}|" for i in plain["items"]), *plain["later"]]
    small = next(name for cell in cells if (name := cell.partition("|")[0]) != main)
    done = f"{small}|embedded|coding"
    items = look(**{small: [done]})["items"]
    first = [i["prompt_type"] for i in items if i["why"].startswith("it was asked for")]
    assert len(first) == 11
    assert "coding" not in first
    assert {i["model"] for i in items[:11]} == {small}
    assert items[11]["model"] == main


def test_another_build_makes_a_proof_stale_and_it_is_measured_afresh(home: Path):
    """Marked in the store with the reason, served on, and in the queue."""
    name = look()["items"][0]["model"]
    prove(name)
    found = look()
    assert "build changed from b1" in found["marked"][0]
    (stored,) = read_recommendations(load_settings().storage)
    assert stored.recommendation.status is Status.STALE
    assert stored.recommendation.verdict is recommendation().verdict
    (item,) = [i for i in found["items"] if (i["model"], i["prompt_type"]) == (name, "coding")]
    assert "stale" in item["why"]
    assert look()["marked"] == [], "it was marked twice"


def test_drifting_traffic_makes_a_proof_stale(home: Path):
    """The proof's own basis holds, the live speed does not."""
    found = look()
    name = found["items"][0]["model"]
    now = time.time()
    store = open_store(load_settings().storage)
    made = recommendation(
        model=name, backend="embedded", created_at="2026-01-01T00:00:00+00:00", evidence={"basis": {}}
    )
    store.save_recommendation(made, identify(), "0123456789ab")
    sample = Sample(now, name, "embedded", "b", PromptType.CODING, 10, 100, 5.0, 2000.0, made.drafting)
    noise = [1.0 + 0.01 * ((7 * n) % 11 - 5) for n in range(300)]
    store.add_samples(
        [
            replace(sample, at=now - 900 + n, predicted_ms=2000.0 * w * (1.0 if n < 200 else 1.3))
            for n, w in enumerate(noise)
        ]
    )
    store.close()
    assert "live speed fell" in look()["marked"][0]
    assert made.drafting != OFF


def test_pairs_that_only_the_overall_answer_lacks_are_the_last_step(home: Path):
    """Every prompt type of the main model is proven here; an answer for another build is not continued."""
    name = look()["items"][0]["model"]
    types = list(PromptType)
    candidate = {"drafting": DRAFTING.to_json(), "ratio": 1.4}
    evidence = {
        OVERALL_MIX: {"source": "equal", "requests": 0, "shares": {str(t): 1 / len(types) for t in types}},
        "candidates": [candidate],
        "lacks": ["chat"],
        "next": DRAFTING.to_json(),
    }

    def keep(basis: dict[str, str]) -> None:
        store = open_store(load_settings().storage)
        for number, kind in enumerate(types):
            made = recommendation(model=name, backend="embedded", prompt_type=kind, evidence={"basis": {}})
            store.save_recommendation(made, identify(), f"{number:012x}")
        made = recommendation(
            Verdict.UNDECIDED, model=name, backend="embedded", prompt_type=None, evidence={**evidence, "basis": basis}
        )  # fmt: skip
        store.save_overall(made, identify(), "0123456789ab")
        store.close()

    keep({})
    *cells, last = look()["items"]
    assert name not in {item["model"] for item in cells}
    assert (last["model"], last["prompt_type"]) == (name, None)
    assert sorted(last["types"]) == sorted(types)
    keep({"build": "b1"})
    assert name not in {item["model"] for item in look()["items"]}


def test_a_database_that_cannot_be_used_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch):
    """The daemon shows it in its status."""
    monkeypatch.setenv("AUTOSPEC_STORAGE", "sqlite:////proc/none/a.db")
    assert "database" in look()["error"]


def test_what_is_not_understood_in_the_database_is_a_note(home: Path):
    """A newer version's recommendation is left out; `autospec daemon --status` tells of it."""
    prove("some-model")
    path = load_settings().storage.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE autospec_recommendations SET recommendation = '{}'")
    assert "does not understand 1 recommendation" in look()["notes"][-1]


def test_a_draft_in_a_folder_that_does_not_answer_was_not_removed(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its proof holds, and the daemon says which folder is silent."""
    settings = load_settings()
    catalog = scan(settings)
    main = next(m for m in catalog.models if m.name.startswith("SmolLM2-135M"))
    build = backend_for("embedded", settings).capabilities().build
    basis = {"host": host_digest(), "build": build.version, "drafts": {"draft-model:gone": "Gone"}}
    prove(main.name, basis=basis)
    lost = home / "share"
    without = replace(catalog, models=(main,), silent=(lost,))
    monkeypatch.setattr(work_finder, "scan", lambda _settings: without)
    found = work_finder.survey(settings, {}, {}, time.time())
    assert found.marked == []
    assert f"{lost} does not answer: models in it are left out." in found.notes
    monkeypatch.setattr(work_finder, "scan", lambda _settings: replace(without, silent=()))
    (marked,) = work_finder.survey(settings, {}, {}, time.time()).marked
    assert "Gone no longer fits" in marked
