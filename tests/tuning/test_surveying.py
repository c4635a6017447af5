"""What a survey knows a draft by."""

from __future__ import annotations

from autospec.tuning.surveying import _identity


def test_a_draft_that_is_replaced_is_another(tmp_path):
    """A file, and a folder whose weights change in place: its own times stay the same then."""
    file = tmp_path / "draft.gguf"
    folder = tmp_path / "draft"
    folder.mkdir()
    weights = folder / "model.safetensors"
    for path, part in ((file, file), (folder, weights)):
        part.write_bytes(b"one")
        before = _identity(str(path))
        assert _identity(str(path)) == before
        part.write_bytes(b"another")
        assert _identity(str(path)) != before
