"""The hook gets each change once, also a change that came while no daemon ran."""

from __future__ import annotations

import pytest

from autospec.daemon.work_finder import announce
from autospec.recommendations import Verdict
from tests.report.samples import recommendation, stored

ENABLED = [stored(recommendation())]
DISABLED = [stored(recommendation(Verdict.DISABLE))]


@pytest.fixture
def hook():
    """Remembers what it was given."""

    def run(command, document):
        run.given.append(document)
        return "The hook ran."

    run.given = []
    return run


def test_the_first_time_nothing_is_told(tmp_path, hook):
    """There is nothing to compare with."""
    assert announce(ENABLED, tmp_path, ["hook"], hook) == ""
    assert not hook.given


def test_a_change_is_told_once(tmp_path, hook):
    """And what stayed is not."""
    announce(ENABLED, tmp_path, ["hook"], hook)
    assert announce(DISABLED, tmp_path, ["hook"], hook) == "The hook ran."
    assert announce(DISABLED, tmp_path, ["hook"], hook) == ""
    [document] = hook.given
    assert [c["kind"] for c in document["changes"]] == ["drafting"]


def test_without_a_hook_nothing_is_kept(tmp_path, hook):
    """Nobody is told, and no file is made."""
    assert announce(ENABLED, tmp_path, [], hook) == ""
    assert not list(tmp_path.iterdir())


def test_a_file_that_makes_no_sense_is_begun_anew(tmp_path, hook):
    """A damaged file costs one announcement, not the daemon."""
    (tmp_path / "announced.json").write_text("[{]", encoding="utf-8")
    assert announce(ENABLED, tmp_path, ["hook"], hook) == ""
    assert announce(DISABLED, tmp_path, ["hook"], hook) == "The hook ran."


def test_a_folder_that_cannot_be_written_is_said(tmp_path, hook):
    """The hook is not run again and again for the same change."""
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "cannot be written" in announce(ENABLED, file / "state", ["hook"], hook)
