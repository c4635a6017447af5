"""The daemon measures each model with the settings that the config gives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autospec.daemon import work_finder
from autospec.settings import load_settings
from autospec.tuning.request import TuneRequest, prepare
from tests.catalog.making import write_gguf


def test_a_section_is_in_the_daemons_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are those of a tune by hand, so that both are for one cell; an adapter that changes is noticed."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "models"
    folder.mkdir()
    write_gguf(folder / "main.gguf", seed=1)
    write_gguf(folder / "other.gguf", seed=2)
    write_gguf(tmp_path / "a.gguf", keys={"general.type": "adapter"})
    (tmp_path / "config.toml").write_text(
        """
        model_dirs = ["models"]
        server_args = ["-t", "1"]
        [models."main"]
        server_args = ["--jinja"]
        context_tokens = 1024
        lora = ["a.gguf"]
        """,
        "utf-8",
    )
    settings = load_settings(environ={"AUTOSPEC_HOME": str(tmp_path)})
    asked: dict[str, TuneRequest] = {}

    def tunables(requests: Sequence[TuneRequest], *_args: Any, **_more: Any) -> list[Any]:
        asked.update({request.model.name: request for request in requests})
        return []

    monkeypatch.setattr(work_finder, "_tunables", tunables)
    found = work_finder.survey(settings, {}, {}, 0.0)
    assert asked["main"].args == ("-t", "1", "--jinja", "-c", "1024", "--lora", f"{tmp_path}/a.gguf")
    assert asked["other"].args == ("-t", "1")
    by_hand = prepare(settings, "main")
    assert (asked["main"].settings(), asked["main"].model.ref) == (by_hand.settings(), by_hand.model.ref)
    assert f"{tmp_path}/a.gguf" in found.watch
