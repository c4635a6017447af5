"""Studies behind Optuna's gRPC proxy, when that goes away."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autospec.cells import Build, Cell, ModelRef, PromptType
from autospec.drafting import Mode
from autospec.errors import StoreError
from autospec.report.studies import read_studies
from autospec.tuning.definition import load_definition
from autospec.tuning.optuna_study import CellStudy, open_storage
from autospec.tuning.space import Arm, Space
from tests.report.samples import HERE

CELL = Cell(
    ModelRef("main", "/m/main.gguf", "f1"), PromptType.CODING, Build("llama-server", "b1", "p1"), HERE
)


@contextlib.contextmanager
def proxy(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real one in front of a database of its own: its address and its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = (
        "from optuna.storages import get_storage, run_grpc_proxy_server\n"
        f"run_grpc_proxy_server(get_storage('sqlite:///{tmp_path / 'studies.db'}'), host='127.0.0.1', port={port})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        yield f"grpc://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def test_a_proxy_that_goes_away_is_one_sentence_wherever_it_is_noticed(tmp_path: Path, monkeypatch):
    """In a study's notes, in a trial that runs, and in a list of studies that is being read."""
    pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
    definition = load_definition("quick")
    with proxy(tmp_path) as (url, process):
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
            with pytest.raises(StoreError, match=r"proxy at 127\.0\.0\.1:\d+ has gone away\.") as raised:
                attempt()
            assert "study_storage" in raised.value.hint
        monkeypatch.setattr("autospec.tuning.optuna_study.open_storage", lambda _: storage)
        with pytest.raises(StoreError, match="has gone away"):
            read_studies(url)
