"""Studies behind Optuna's gRPC proxy when the proxy stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec.cells import Build, Cell, ModelRef, PromptType
from autospec.drafting import Mode
from autospec.errors import StoreError
from autospec.report.studies import read_studies
from autospec.tuning.definition import load_definition
from autospec.tuning.space import Arm, Space
from autospec.tuning.study import CellStudy, open_storage
from tests.report.samples import HERE
from tests.store.grpc_proxy import grpc_proxy_over

CELL = Cell(
    ModelRef("main", "/m/main.gguf", "f1"), PromptType.CODING, Build("llama-server", "b1", "p1"), HERE
)


def test_a_proxy_that_goes_away_is_one_sentence_wherever_it_is_noticed(tmp_path: Path, monkeypatch):
    """In a study's notes, in a trial that runs, and in a list of studies that is being read."""
    definition = load_definition("quick")
    with grpc_proxy_over(f"sqlite:///{tmp_path / 'studies.db'}") as (url, process):
        storage = open_storage(url)
        space = Space((Arm(Mode.NGRAM_SIMPLE),), definition.space)
        study = CellStudy(CELL, storage, definition, space, "p")
        study.note("winner", {"mode": "off"})
        assert [s.cell_key for s in read_studies(url)] == [CELL.key]
        leader = space.leaders()[0]
        trial = study.start(leader)
        process.kill()
        process.wait()
        for attempt in (
            lambda: study.noted("winner"),
            lambda: study.note("winner", None),
            study.tried,
            lambda: trial.complete(1.0, {}),
            lambda: study.start(leader),
        ):
            with pytest.raises(StoreError, match=r"proxy at 127\.0\.0\.1:\d+ no longer answers\.") as raised:
                attempt()
            assert "study_storage" in raised.value.hint
        monkeypatch.setattr("autospec.tuning.study.open_storage", lambda _: storage)
        with pytest.raises(StoreError, match="no longer answers"):
            read_studies(url)
