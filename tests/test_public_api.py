"""`autospec.recommend()`, as a program would call it."""

from __future__ import annotations

import pytest

import autospec
from autospec.cells import PromptType
from autospec.hardware import identify
from autospec.recommendations import Verdict
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.report.samples import recommendation

CODING = recommendation()
WRITING = recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING)


@pytest.fixture
def tuned():
    """A store with two recommendations for this machine."""
    store = open_store(load_settings().storage)
    for r in (CODING, WRITING):
        store.save_recommendation(r, identify(), f"cell-{r.prompt_type}")
    store.close()


def test_recommend_gives_what_was_stored(tuned):
    """All, or one model's, or one kind of prompt's; equal to what was tuned."""
    assert autospec.recommend() == [CODING, WRITING]
    assert autospec.recommend("main-7b", PromptType.WRITING) == [WRITING]


def test_a_recommendation_says_what_to_run(tuned):
    """The drafting is a value of its own, and off is one."""
    coding, writing = autospec.recommend("main-7b")
    assert (coding.drafting.mode, coding.drafting.n_max) == (autospec.Mode.DRAFT_MODEL, 8)
    assert writing.drafting == autospec.OFF


def test_the_config_file_can_be_given(tuned, tmp_path):
    """Its storage is asked, and not the default one."""
    config = tmp_path / "c.toml"
    config.write_text(f'storage = "sqlite:///{tmp_path / "other.db"}"\n')
    with pytest.raises(autospec.AutospecError, match="Nothing is known"):
        autospec.recommend(config=config)


def test_nothing_known_is_an_error_with_the_command_that_finds_out():
    """The same as the command line's, with its exit code."""
    with pytest.raises(autospec.AutospecError) as raised:
        autospec.recommend("qwen3")
    assert raised.value.exit_code == 3
    assert "autospec tune --model qwen3" in raised.value.hint
