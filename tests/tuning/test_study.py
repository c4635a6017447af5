"""One cell's study as Optuna shows it."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path

import pytest

from autospec.cells import Build, Cell, Hardware, ModelRef, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import StorageUrlError, StoreError
from autospec.tuning.definition import load_definition
from autospec.tuning.space import Arm, Space
from autospec.tuning.study import PROMPTS, SEARCHED, WINNER, CellStudy, open_storage

DEFINITION = load_definition("quick")
CELL = Cell(
    ModelRef("m", "/m.gguf", "f"), PromptType.CODING, Build("simulated", "b1", "f" * 8),
    Hardware(id="h", chip="Test", memory_bytes=1 << 30, cores=2, os="linux"),
)  # fmt: skip


def study(tmp_path: Path, *arms: Arm) -> CellStudy:
    """An empty study."""
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    return CellStudy(CELL, storage, DEFINITION, Space(arms, DEFINITION.space), "p")


def test_proposals_print_no_warning(tmp_path: Path):
    """Optuna calls its grouped sampler experimental; the sentence would stand in the live table."""
    own = study(tmp_path, Arm(Mode.DRAFT_MODEL, "/a.gguf"))
    own.start(OFF).complete(1.0, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert own.propose(set()) is not None


def test_a_sampler_that_repeats_itself_does_not_end_the_search(tmp_path: Path):
    """Without a trial of off the sampler proposes off for ever: a random drafting is found all the same."""
    own = study(tmp_path, Arm(Mode.DRAFT_MODEL, "/a.gguf"), Arm(Mode.NGRAM_MOD))
    known = {Drafting(Mode.DRAFT_MODEL, draft="/a.gguf", n_max=8, n_min=0, p_min=0.4)}
    for drafting in known:
        own.start(drafting).complete(1.2, {})
    proposed = own.propose(known)
    assert proposed is not None
    assert proposed not in known


@pytest.mark.parametrize(
    ("revision", "hint"),
    [("v3.0.0.a", "optuna storage upgrade --storage sqlite"), ("v9.0.0", "pip install -U optuna")],
)
def test_a_database_of_another_optuna_says_what_to_do(tmp_path: Path, revision: str, hint: str):
    """An older one is upgraded by a command of Optuna's; a newer one takes a newer Optuna."""
    file = tmp_path / "studies.db"
    study(tmp_path, Arm(Mode.NGRAM_MOD))
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    database.close()
    with pytest.raises(StoreError, match="Optuna cannot use the database") as raised:
        open_storage(f"sqlite:///{file}")
    assert hint in str(raised.value.hint)


def test_a_new_search_keeps_nothing_of_the_last_ones_choice(tmp_path: Path):
    """Nor how many prompts a trial has: a first tune with little time asked one, and every later tune would."""
    own = study(tmp_path, Arm(Mode.NGRAM_MOD))
    for key in (WINNER, SEARCHED, PROMPTS):
        own.note(key, 1)
    own.begin_again()
    assert [own.noted(key) for key in (WINNER, SEARCHED, PROMPTS)] == [None] * 3


@pytest.mark.parametrize("url", ["garbage://me:hunter2@hub/x", "postgresql://me:hunter2@hub:port/x"])
def test_a_url_of_no_database_is_a_wrong_setting(url):
    """The same error as that of the database, which exits with 2."""
    with pytest.raises(StorageUrlError) as caught:
        open_storage(url)
    assert caught.value.exit_code == 2
    assert "hunter2" not in str(caught.value)
