"""Settings of one model as the commands show them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from autospec.cli import cli
from tests.catalog.making import write_gguf

SECTION = """
model_dirs = ["models"]
[models."main"]
server_args = ["-ngl", "20"]
lora = ["a.gguf", {path = "b.gguf", scale = 0.5}]
aliases = ["fast"]
[models."gone"]
"""
GONE = 'warning: [models."gone"] in the config applies to no model. No model matches gone.'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one model, a projector beside it, and a config file."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOSPEC_HOME", str(tmp_path))
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "models"
    folder.mkdir()
    write_gguf(folder / "main-Q8_0.gguf")
    write_gguf(folder / "mmproj-F16.gguf", architecture="clip")
    for name in ("a", "b"):
        write_gguf(tmp_path / f"{name}.gguf", keys={"general.type": "adapter"})
    (tmp_path / "config.toml").write_text(SECTION, "utf-8")
    return tmp_path


def run(*args: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(cli, list(args))


def test_config_shows_the_sections(home: Path):
    """Only the keys that a section sets; a section for no model is a warning."""
    rows = [line.split() for line in run("config", "show").stdout.splitlines()]
    shown = {row[0]: row[1:] for row in rows if row[0].startswith("models")}
    assert set(shown) == {f'models."main".{key}' for key in ("server_args", "lora", "aliases")}
    assert shown['models."main".server_args'] == ["-ngl", "20", "file"]
    result = run("config", "show", "--json")
    assert GONE in result.stderr
    assert json.loads(result.stdout)["models"] == {
        "main": {
            "server_args": ["-ngl", "20"],
            "lora": [{"path": f"{home}/a.gguf", "scale": 1.0}, {"path": f"{home}/b.gguf", "scale": 0.5}],
            "aliases": ["fast"],
        },
        "gone": {},
    }


@pytest.mark.parametrize(
    "words", [("config", "check"), pytest.param(("doctor",), marks=pytest.mark.process), ("models",)]
)
def test_a_section_for_no_model_is_a_warning(words: tuple[str, ...]):
    """And no error."""
    result = run(*words)
    assert result.exit_code == 0
    said = " ".join((result.stdout + result.stderr).split())
    assert GONE in said


def test_a_clash_of_aliases_is_an_error_of_the_config(home: Path):
    """One sentence, before anything starts."""
    (home / "config.toml").write_text(SECTION + 'aliases = ["fast"]\n', "utf-8")
    result = run("config", "check")
    assert result.exit_code == 2
    assert "The alias fast stands in two sections" in result.stderr
    (home / "config.toml").write_text(SECTION.replace("gone", "main-Q8_0"), "utf-8")
    result = run("config", "check")
    assert result.exit_code == 2
    assert "are for the same model" in result.stderr


def test_models_names_the_projector(home: Path):
    """That the proxy loads it, that a section's is loaded, or how to choose one of several."""
    result = run("models", "--json")
    assert json.loads(result.stdout)["models"][0]["projectors"] == [f"{home}/models/mmproj-F16.gguf"]
    assert "main-Q8_0: the proxy loads the projector mmproj-F16.gguf for images." in run("models").stderr
    write_gguf(home / "models" / "mmproj-BF16.gguf", architecture="clip")
    said = run("models").stderr
    assert "main-Q8_0: no projector is loaded; beside it: mmproj-BF16.gguf, mmproj-F16.gguf." in said
    section = SECTION.replace("aliases", 'mmproj = "x.gguf"\naliases')
    (home / "config.toml").write_text(section, "utf-8")
    result = run("models")
    assert f"main-Q8_0: every server loads the projector {home}/x.gguf for images." in result.stderr
    assert "does not exist" in result.stderr


def test_an_alias_names_the_model_in_commands():
    """As its own name does."""
    assert json.loads(run("drafts", "-m", "fast", "--json").stdout)["model"] == "main-Q8_0"
