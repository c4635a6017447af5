"""What measurements of a draft are kept under."""

from __future__ import annotations

import os

import pytest

from autospec.tuning.draft_identity import draft_identity


@pytest.mark.parametrize("folder", [False, True])
def test_a_draft_that_is_replaced_is_another(tmp_path, folder):
    """A file, and a folder whose weights are overwritten in place: the folder's own times stay the same then."""
    draft = tmp_path / "draft"
    weights = draft
    if folder:
        draft.mkdir()
        weights = draft / "model.safetensors"
    weights.write_bytes(b"one")
    before = draft_identity(str(draft))
    assert draft_identity(str(draft)) == before
    stat = weights.stat()
    weights.write_bytes(b"two")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert draft_identity(str(draft)) != before


def test_a_draft_that_is_gone_has_an_identity(tmp_path):
    """What was measured of it can still be looked up."""
    assert draft_identity(str(tmp_path / "gone")) == draft_identity(str(tmp_path / "gone"))
