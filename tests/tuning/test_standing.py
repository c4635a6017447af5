"""What is served while a cell is measured afresh, and what a recommendation rests on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.cells import Build, Cell, ModelRef, PromptType
from autospec.recommendations import Status, Verdict
from autospec.store.database import Store, open_store
from autospec.tuning import resume as standing
from autospec.tuning.resume import basis_digest, basis_of, resting_on
from tests.report.samples import HERE, recommendation

CELL = Cell(
    ModelRef("main", "/m/main.gguf", "f1"), PromptType.CODING, Build("llama-server", "b1", "p1"), HERE
)


@pytest.fixture
def store(tmp_path: Path):
    """An empty database."""
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    yield opened
    opened.close()


def served(store: Store):
    """What stands for the cell."""
    (found,) = store.recommendations(cell_keys=[CELL.key])
    return found.recommendation


def test_a_stale_one_stays_until_there_is_a_proof(store: Store):
    """A search that has just begun knows less than what was proven once; the mark says that it has begun."""
    standing.save(store, recommendation(status=Status.STALE), HERE, CELL)
    standing.save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL), HERE, CELL)
    assert (served(store).status, served(store).verdict) == (Status.STALE, Verdict.ENABLE)
    assert served(store).evidence["renewing"]
    standing.save(store, recommendation(Verdict.DISABLE), HERE, CELL)
    assert (served(store).status, served(store).verdict) == (Status.PROVEN, Verdict.DISABLE)


def test_a_stale_one_is_marked_as_soon_as_the_measuring_begins(store: Store):
    """A kill -9 lets nothing be said at the end: the next tune must go on all the same. Others get no mark."""
    standing.renew(store, HERE, CELL)
    assert store.recommendations(cell_keys=[CELL.key]) == []
    standing.save(store, recommendation(status=Status.STALE), HERE, CELL)
    standing.renew(store, HERE, CELL)
    assert served(store).status is Status.STALE
    assert served(store).evidence["renewing"]
    standing.save(store, recommendation(Verdict.DISABLE), HERE, CELL)
    standing.renew(store, HERE, CELL)
    assert "renewing" not in served(store).evidence


def test_a_provisional_one_gives_way_to_the_next(store: Store):
    """Nothing was proven: the newest counts."""
    standing.save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=1), HERE, CELL)
    standing.save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=2), HERE, CELL)
    assert served(store).pairs == 2


def test_the_basis_tells_drafts_apart_by_what_they_are():
    """Another name of the same file is the same basis; another file is another."""
    known = basis_of(CELL, {"draft-model:d1": "small"})
    assert resting_on(recommendation(), CELL, {"draft-model:d1": "small"}).evidence["basis"] == known
    assert basis_digest(known) == basis_digest(basis_of(CELL, {"draft-model:d1": "renamed"}))
    assert basis_digest(known) != basis_digest(basis_of(CELL, {"draft-model:d2": "small"}))
    other = replace(CELL, build=Build("llama-server", "b2", "p2"))
    assert basis_digest(known) != basis_digest(basis_of(other, {"draft-model:d1": "small"}))
