"""The folders that are searched for models, by environment, home and platform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autospec.catalog.folders import places

HOME = Path("/home/ana")


def by_source(environ: dict[str, str], platform: str = "linux", home: Path = HOME) -> dict[str, list[str]]:
    """The folders of each source."""
    found: dict[str, list[str]] = {}
    for place in places(environ, home, platform):
        found.setdefault(place.source, []).append(str(place.path))
    return found


def test_linux() -> None:
    """The defaults on Linux, the folder of Ollama's service among them."""
    assert by_source({}) == {
        "llama.cpp cache": ["/home/ana/.cache/llama.cpp"],
        "Hugging Face cache": ["/home/ana/.cache/huggingface/hub"],
        "LM Studio": ["/home/ana/.lmstudio/models", "/home/ana/.cache/lm-studio/models"],
        "Ollama": ["/home/ana/.ollama/models", "/usr/share/ollama/.ollama/models"],
    }


def test_macos() -> None:
    """llama.cpp keeps its cache elsewhere on a Mac; Hugging Face does not."""
    found = by_source({}, "darwin", Path("/Users/ana"))
    assert found["llama.cpp cache"] == ["/Users/ana/Library/Caches/llama.cpp"]
    assert found["Hugging Face cache"] == ["/Users/ana/.cache/huggingface/hub"]
    assert found["Ollama"] == ["/Users/ana/.ollama/models"]


@pytest.mark.parametrize(
    ("environ", "source", "path"),
    [
        ({"LLAMA_CACHE": "/big/llama"}, "llama.cpp cache", "/big/llama"),
        ({"XDG_CACHE_HOME": "/c"}, "llama.cpp cache", "/c/llama.cpp"),
        ({"HF_HUB_CACHE": "/hub", "HF_HOME": "/hf"}, "Hugging Face cache", "/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "Hugging Face cache", "/old"),
        ({"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/c"}, "Hugging Face cache", "/home/ana/hf/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "Hugging Face cache", "/c/huggingface/hub"),
        ({"OLLAMA_MODELS": "/ollama"}, "Ollama", "/ollama"),
        ({"LLAMA_CACHE": ""}, "llama.cpp cache", "/home/ana/.cache/llama.cpp"),
    ],
)
def test_environment(environ: dict[str, str], source: str, path: str) -> None:
    """Each program's own variable moves its folder; an empty one does not."""
    assert by_source(environ)[source][0] == path


def test_lm_studio_s_pointer_and_downloads_folder(tmp_path: Path) -> None:
    """LM Studio's home may be elsewhere, and its downloads elsewhere again."""
    studio = tmp_path / "studio"
    studio.mkdir()
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{studio}\n")
    (studio / "settings.json").write_text(json.dumps({"downloadsFolder": "/disk/models"}))
    assert by_source({}, home=tmp_path)["LM Studio"][:2] == ["/disk/models", str(studio / "models")]


def test_damaged_lm_studio_settings_are_passed_over(tmp_path: Path) -> None:
    """Somebody else's damaged file is no reason to stop."""
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / ".lmstudio" / "settings.json").write_bytes(b"\xff{")
    assert by_source({}, home=tmp_path)["LM Studio"][0] == str(tmp_path / ".lmstudio" / "models")


def test_config_folders_come_first_and_each_folder_once() -> None:
    """A folder of the config that is a known place is looked into once, as the user's own."""
    own = [Path("/a"), HOME / ".lmstudio/models"]
    found = places({}, HOME, "linux", own)
    assert [(p.path, p.source, p.chosen) for p in found[:2]] == [(p, "folder", True) for p in own]
    assert len({p.path for p in found}) == len(found)
