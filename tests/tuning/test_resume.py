"""What a tune keeps: the served recommendation, the cells to restart, and the basis of a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.cells import Build, Cell, ModelRef, PromptType
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.database import Store, open_store
from autospec.tuning.resume import (
    Remeasurement,
    basis_digest,
    basis_of,
    mark_remeasuring,
    save_recommendation,
    to_restart,
    with_basis,
)
from tests.report.samples import HERE, recommendation

CELL = Cell(
    ModelRef("main", "/m/main.gguf", "f1"), PromptType.CODING, Build("llama-server", "b1", "p1"), HERE
)
OPEN = Remeasurement(100.0)
DONE = Remeasurement(100.0, finished=True, holds=True)


@pytest.fixture
def store(tmp_path: Path):
    """An empty database."""
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    yield opened
    opened.close()


def save(store: Store, new: Recommendation):
    """Store a new conclusion of the cell."""
    save_recommendation(store, new, HERE, CELL)


def served(store: Store):
    """The cell's stored recommendation."""
    (found,) = store.recommendations(cell_keys=[CELL.key])
    return found.recommendation


class TestWhatIsServed:
    """While a cell is measured again."""

    def test_a_stale_recommendation_stays_until_there_is_a_proof(self, store: Store):
        """A new search knows less than the earlier proof; the mark shows that it has started."""
        save(store, recommendation(status=Status.STALE))
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL))
        assert (served(store).status, served(store).verdict) == (Status.STALE, Verdict.ENABLE)
        assert served(store).evidence["renewing"]
        save(store, recommendation(Verdict.DISABLE))
        assert (served(store).status, served(store).verdict) == (Status.PROVEN, Verdict.DISABLE)

    def test_only_a_stale_recommendation_is_marked(self, store: Store):
        """Before the first measurement, as a kill -9 leaves no time at the end."""
        mark_remeasuring(store, HERE, CELL)
        assert store.recommendations(cell_keys=[CELL.key]) == []
        save(store, recommendation(status=Status.STALE))
        mark_remeasuring(store, HERE, CELL)
        assert served(store).status is Status.STALE
        assert served(store).evidence["renewing"]
        save(store, recommendation(Verdict.DISABLE))
        mark_remeasuring(store, HERE, CELL)
        assert "renewing" not in served(store).evidence

    def test_the_next_recommendation_replaces_a_provisional_one(self, store: Store):
        """Without a proof, the newest counts."""
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=1))
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=2))
        assert served(store).pairs == 2


class TestWhatIsMeasuredAgain:
    """By `--again`."""

    @pytest.mark.parametrize(
        ("cells", "restarted"),
        [
            pytest.param({"a": Remeasurement(), "b": Remeasurement()}, {"a", "b"}, id="none-started"),
            pytest.param({"a": DONE, "b": DONE}, {"a", "b"}, id="all-finished"),
            pytest.param({"a": DONE, "b": OPEN}, set(), id="one-unfinished"),
            pytest.param({"a": OPEN, "b": OPEN}, set(), id="all-unfinished"),
            pytest.param({"a": OPEN, "b": Remeasurement()}, {"b"}, id="another-prompt-type-joins"),
            pytest.param({"a": Remeasurement(200.0), "b": DONE}, {"b"}, id="killed-between-two-cells"),
            pytest.param(
                {"a": OPEN, "b": Remeasurement(100.0, finished=True)}, {"b"}, id="proof-became-stale"
            ),
            pytest.param(
                {"a": OPEN, "b": Remeasurement(200.0, finished=True, holds=True)},
                set(),
                id="younger-one-counts",
            ),
        ],
    )
    def test_cells_to_restart(self, cells, restarted):
        """The others continue, or are finished."""
        assert to_restart(cells) == restarted


def test_the_basis_identifies_drafts_by_their_files():
    """Another name of the same file is the same basis; another file is another."""
    known = basis_of(CELL, {"draft-model:d1": "small"})
    assert with_basis(recommendation(), CELL, {"draft-model:d1": "small"}).evidence["basis"] == known
    assert basis_digest(known) == basis_digest(basis_of(CELL, {"draft-model:d1": "renamed"}))
    assert basis_digest(known) != basis_digest(basis_of(CELL, {"draft-model:d2": "small"}))
    other = replace(CELL, build=Build("llama-server", "b2", "p2"))
    assert basis_digest(known) != basis_digest(basis_of(other, {"draft-model:d1": "small"}))
