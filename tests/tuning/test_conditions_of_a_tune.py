"""Temperature, answer length, slots and depth: from flags and study files to the request of a tune."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.errors import StudyFileError, UsageError
from autospec.files import studies_dir
from autospec.recommendations import NO_LIMITS
from autospec.settings import Settings, load_settings
from autospec.tuning.definition import LimitsDefinition, load_definition
from autospec.tuning.limits import Kind, unknown_conditions
from autospec.tuning.request import _changed, prepare, temperature_of
from tests.tuning.test_run import request_with


def study(folder: Path, old: str = "", new: str = "") -> str:
    """A copy of the study `quick` with one change."""
    text = (studies_dir() / "quick.toml").read_text(encoding="utf-8")
    assert old in text
    file = folder / "own.toml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("quick", LimitsDefinition(check=True, only_temperature=True, share=0.1)),
        ("default", LimitsDefinition(check=True)),
        ("thorough", LimitsDefinition(check=True, share=0.15)),
    ],
)
def test_which_shipped_study_checks(name, limits):
    """The first look: only the temperature that most clients sample with."""
    assert load_definition(name).limits == limits


def test_a_study_file_names_conditions(tmp_path):
    """Every key is optional."""
    file = study(tmp_path, "only_temperature = true", "slots = 3\ndepth = 5000 #")
    assert load_definition(file).limits == LimitsDefinition(check=True, slots=3, depth=5000, share=0.1)
    assert load_definition(file).temperature is None
    assert load_definition(study(tmp_path, "[measure]", "[measure]\ntemperature = 0.6")).temperature == 0.6


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[measure]", "[measure]\ntemperature = 3", "measure.temperature must be a number from 0 to 2"),
        ("check = true ", "check = 1 ", "limits.check must be true or false"),
        ("check = true ", "slots = 0 ", "limits.slots must be a whole number of at least 1"),
        ("check = true ", "depth = '8k' ", "limits.depth must be a whole number of at least 1"),
    ],
)
def test_a_wrong_value_in_a_study_names_its_key(tmp_path, old, new, named):
    """One sentence, with the key and what it must be."""
    with pytest.raises(StudyFileError, match=named):
        load_definition(study(tmp_path, old, new))


@pytest.mark.parametrize("option", ["max_tokens", "slots", "depth"])
def test_a_wrong_number_is_a_sentence(settings: Settings, option):
    """Before any model is read."""
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} must be at least 1, not 0"):
        prepare(settings, "no-model", **{option: 0})


@pytest.mark.parametrize("value", [-0.1, 2.5, float("nan"), float("inf")])
def test_a_wrong_temperature_is_a_sentence(settings: Settings, value):
    """Whatever names it."""
    with pytest.raises(UsageError, match="temperature must be a number from 0 to 2"):
        temperature_of(replace(settings, temperature=value), load_definition("quick"))


@pytest.mark.parametrize(
    ("source", "expected"), [("flag", 0.3), ("environment", 0.3), ("file", 0.6), ("default", 0.6)]
)
def test_a_flag_beats_the_study_and_the_study_the_config(settings: Settings, source, expected):
    """The study is chosen for a tune, the config holds for all of them."""
    given = replace(settings, temperature=0.3, sources={**settings.sources, "temperature": source})
    assert temperature_of(given, replace(load_definition("quick"), temperature=0.6)) == expected


def test_only_what_changes_the_measurement_changes_the_protocol(tmp_path):
    """Checks are added; the proof's pairs stay comparable."""
    request = request_with(tmp_path)
    checked = replace(request.definition, limits=LimitsDefinition(check=True, slots=8, depth=99))
    assert replace(request, definition=checked).protocol == request.protocol
    assert replace(request, definition=checked).rule_digest == request.rule_digest
    assert replace(request, temperature=0.8).protocol != request.protocol
    assert replace(request, definition=replace(request.definition, max_tokens=9)).protocol != request.protocol


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty home."""
    return load_settings(overrides={"study": "quick"}, environ={"AUTOSPEC_HOME": str(tmp_path)})


def test_slots_and_depth_ask_for_all_checks():
    """`quick` checks the temperature alone; a number on the command line means the rest, too."""
    conditions = unknown_conditions(load_definition("quick").limits, NO_LIMITS, temperature=0.0, served=0.8)
    assert [(c.kind, c.at) for c in conditions] == [(Kind.TEMPERATURE, 0.8)]
    changed = _changed(load_definition("quick"), None, 2, None).limits
    kinds = {c.kind for c in unknown_conditions(changed, NO_LIMITS, temperature=0.0, served=0.8)}
    assert kinds == set(Kind)
