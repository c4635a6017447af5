"""Sections ``[models."NAME"]`` of the config file: what they hold, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec.errors import SettingsError
from autospec.settings import Adapter, ModelSettings, load_settings


def load(home: Path, text: str) -> tuple[ModelSettings, ...]:
    """The sections of a config file with this text."""
    (home / "config.toml").write_text(text, "utf-8")
    return load_settings(environ={"AUTOSPEC_HOME": str(home)}).models


def refusal(home: Path, text: str) -> str:
    """The error of a config file with this text."""
    with pytest.raises(SettingsError) as refused:
        load(home, text)
    return str(refused.value)


def test_every_key(tmp_path: Path):
    """Paths begin at the file's folder; an adapter has a scale of 1 unless the section names one."""
    (section,) = load(
        tmp_path,
        """
        [models."qwen3-8b"]
        server_args = ["-ngl", "20"]
        context_tokens = 8192
        mmproj = "mmproj-F16.gguf"
        lora = ["a.gguf", {path = "/b.gguf", scale = -0.5}]
        aliases = ["fast", "My Coder"]
        """,
    )
    assert section == ModelSettings(
        "qwen3-8b",
        ("-ngl", "20"),
        8192,
        str(tmp_path / "mmproj-F16.gguf"),
        (Adapter(tmp_path / "a.gguf"), Adapter(Path("/b.gguf"), -0.5)),
        ("fast", "My Coder"),
    )


def test_no_section_and_an_empty_one(tmp_path: Path):
    """A section without keys changes nothing; a projector that is not named is not the same as none."""
    assert load(tmp_path, "") == ()
    assert load(tmp_path, '[models."a"]') == (ModelSettings("a"),)
    (none,) = load(tmp_path, '[models."a"]\nmmproj = ""')
    assert (ModelSettings("a").mmproj, none.mmproj) == (None, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[models."a"]\nserver_arg = ["-c", "1"]',
            'unknown key server_arg in [models."a"]. Did you mean server_args?',
        ),
        ('[models."a"]\nxyz = 1', "The keys are server_args, context_tokens, mmproj, lora, aliases."),
        ("[models.qwen3.5-9b]\nmmproj = 'x'", "A model's name needs quotes"),
        ("models = 3", "must hold a section for each model"),
        ("[model.a]\nmmproj = 'x'", "unknown key model. Did you mean models?"),
        ('[models."a"]\nserver_args = "-c 1"', 'server_args of [models."a"]'),
        ('[models."a"]\ncontext_tokens = 0', "must be a whole number of at least 1"),
        ('[models."a"]\nlora = "a.gguf"', "must be a list of paths"),
        ('[models."a"]\nlora = ["a,b.gguf"]', "without commas"),
        ('[models."a"]\nlora = [{path = "c:d.gguf", scale = 2}]', "no colon in that path"),
        ('[models."a"]\nlora = [{scale = 2}]', "must be a list of paths"),
        ('[models."a"]\nlora = [{path = "a", scale = true}]', "must be a list of paths"),
        ('[models."a"]\naliases = ["x,y"]', "must be a list of names without commas"),
        ('[models."a"]\naliases = [""]', "must be a list of names"),
        (
            '[models."a"]\naliases = ["fast"]\n[models."b"]\naliases = ["fast"]',
            "The alias fast stands in two sections of",
        ),
    ],
)
def test_one_sentence_for_what_is_wrong(tmp_path: Path, text: str, says: str):
    """It names the file, the section and what the value must be."""
    message = refusal(tmp_path, text)
    assert says in message
    assert str(tmp_path / "config.toml") in message


def test_an_alias_finds_the_name_of_its_section(tmp_path: Path):
    """For commands that read results and do not search the disk."""
    load(tmp_path, '[models."qwen3"]\naliases = ["Fast"]')
    settings = load_settings(environ={"AUTOSPEC_HOME": str(tmp_path)})
    assert [settings.named_by(name) for name in ("fast", "qwen3", "other", "")] == [
        "qwen3",
        "qwen3",
        "other",
        "",
    ]
