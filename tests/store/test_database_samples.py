"""Samples of live traffic come back as they were written, filtered, and old ones are deleted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.errors import StoreError
from autospec.measure.measurements import Sample
from autospec.store.database import open_store

DRAFTING = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8)
SAMPLE = Sample(
    at=100.0, model="main", backend="llama-server", build="b1", prompt_type=PromptType.QA, prompt_tokens=5,
    predicted_tokens=9, prompt_ms=1.0, predicted_ms=90.0, drafting=DRAFTING, drafted=8, accepted=6,
)  # fmt: skip


def test_samples_come_back_as_they_were_and_are_filtered(tmp_path):
    """Each filter leaves out what it should; what is not told stays untold."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    untold = Sample(
        at=200.0, model="main", backend="mlx", build="2", prompt_type=None, prompt_tokens=1, predicted_tokens=1,
        prompt_ms=1.0, predicted_ms=1.0,
    )  # fmt: skip
    store.add_samples([SAMPLE, untold])
    assert store.samples(since=0) == [SAMPLE, untold]
    assert store.samples(since=150) == [untold]
    assert store.samples(since=0, drafting=DRAFTING, prompt_type=PromptType.QA, build="b1") == [SAMPLE]
    assert store.samples(since=0, backend="mlx", model="main") == [untold]
    assert store.samples(since=0, model="other") == []
    store.close()


def test_oldest_samples_go(tmp_path):
    """The table is bounded."""
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    store.add_samples([replace(SAMPLE, at=float(n)) for n in range(10)])
    store.prune_samples(keep=3)
    assert [s.at for s in store.samples(since=0)] == [7.0, 8.0, 9.0]
    store.close()


@pytest.mark.parametrize("then", ["deleted", "moved", "restored"])
def test_a_file_that_is_another_one_now_gets_what_comes(tmp_path, then):
    """A proxy runs for weeks. What it wrote after somebody deleted the file was lost, and counted as written."""
    path, url = tmp_path / "a.db", f"sqlite:///{tmp_path / 'a.db'}"
    earlier = open_store(f"sqlite:///{tmp_path / 'backup.db'}")
    earlier.add_samples([replace(SAMPLE, at=1.0)])
    earlier.close()
    store = open_store(url)
    store.add_samples([SAMPLE])
    if then == "moved":
        path.rename(tmp_path / "away.db")
    for file in tmp_path.glob("a.db*"):
        file.unlink()
    if then == "restored":
        (tmp_path / "backup.db").rename(path)
    store.add_samples([replace(SAMPLE, at=200.0)])
    kept = [1.0, 200.0] if then == "restored" else [200.0]
    assert [s.at for s in store.samples(since=0)] == kept
    other = open_store(url)
    assert [s.at for s in other.samples(since=0)] == kept
    other.close()
    store.close()


def test_a_file_whose_folder_is_gone_is_an_error_until_it_is_back(tmp_path):
    """A disk that was removed for a while; nothing is written elsewhere."""
    folder = tmp_path / "state"
    store = open_store(f"sqlite:///{folder / 'a.db'}")
    store.add_samples([SAMPLE])
    folder.rename(tmp_path / "away")
    folder.write_text("no folder")
    with pytest.raises(StoreError, match="cannot be"):
        store.add_samples([replace(SAMPLE, at=200.0)])
    folder.unlink()
    (tmp_path / "away").rename(folder)
    store.add_samples([replace(SAMPLE, at=300.0)])
    assert [s.at for s in store.samples(since=0)] == [100.0, 300.0]
    store.close()
