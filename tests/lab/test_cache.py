"""The lab's folder is built once, as a whole or not at all, and again when the recipe changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import Lab, Recipe


def counting(built: list[str], version: int = 1) -> Recipe:
    """A recipe that writes a few bytes and notes that it did."""

    def build(_: Path, out: Path) -> None:
        built.append(out.name)
        out.write_text(f"version {version}")

    return Recipe("sample", "sample.gguf", "a sample", version, build, from_smollm2=False)


def test_a_model_is_built_once(tmp_path: Path) -> None:
    """The second asker gets the first one's file."""
    built: list[str] = []
    paths = {Lab(tmp_path).path(counting(built)) for _ in range(2)}
    assert paths == {tmp_path / "sample.gguf"}
    assert len(built) == 1


def test_a_changed_recipe_builds_anew(tmp_path: Path) -> None:
    """A file of an older version is not taken for the new one."""
    built: list[str] = []
    Lab(tmp_path).path(counting(built, 1))
    assert Lab(tmp_path).path(counting(built, 2)).read_text() == "version 2"
    assert len(built) == 2


def test_a_build_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """Half a model would be taken for a whole one."""

    def fail(_: Path, out: Path) -> None:
        out.write_text("half")
        raise OSError("disk full")

    recipe = replace(counting([]), build=fail)
    with pytest.raises(OSError, match="disk full"):
        Lab(tmp_path).path(recipe)
    assert not Lab(tmp_path).ready(recipe)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
