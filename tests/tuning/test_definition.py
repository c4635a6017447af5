"""Study definitions: the shipped ones are valid, and a wrong one is refused by its key."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import pytest

from autospec.drafting import Mode
from autospec.errors import StudyFileError
from autospec.files import studies_dir
from autospec.tuning.definition import load_definition, shipped_definitions


def test_shipped_definitions_are_the_three_named():
    """quick, default and thorough come with autospec; records in the same folder are no definitions."""
    assert shipped_definitions() == ("default", "quick", "thorough")


@pytest.mark.parametrize("name", ["default", "quick", "thorough"])
def test_shipped_definition_is_named_as_its_file(name):
    """Each loads, under its own name, with draft models first."""
    definition = load_definition(name)
    assert definition.name == name
    assert definition.space.modes[0] is Mode.DRAFT_MODEL


def test_unknown_name_lists_what_there_is():
    """A name that is not shipped is answered with those that are."""
    with pytest.raises(StudyFileError, match=r"no study definition named fast.*") as caught:
        load_definition("fast")
    assert "quick" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("trials = ", "trails = ", "trails.*Did you mean trials"),
        ("trials = 16", "trials = 0", "search.trials must be a whole number of at least 1, not 0"),
        ("trials = 16", "", "search.trials is missing"),
        ('"draft-model", ', '"draftmodel", ', "space.modes must be a list of modes"),
        ("n_max = [1, 24]", "n_max = [24, 1]", "space.n_max must be two whole numbers"),
        ("n_max = [1, 24]", "n_max = 24", "space.n_max must be two whole numbers"),
        ("p_min = [0.0, 0.95]", "p_min = [0.0, 1.5]", "space.p_min must be two numbers between 0 and 1"),
        ("looks = [1, 2, 4", "looks = [2, 1, 4", "prove.looks must be increasing"),
        ('time = "60m"', 'time = "soon"', "budget.time must be a duration"),
        ('time = "60m"', "time = 15", 'budget.time must be a duration in quotes, such as "20m", not 15'),
        ("error_rate = 0.01", "error_rate = 0", "error_rate must be a number from 0.000001 to 0.5"),
        ("error_rate = 0.01", "error_rate = 1e-20", "error_rate must be a number from 0.000001 to 0.5"),
        ("error_rate = 0.01", "error_rate = 1", "error_rate must be a number from 0.000001 to 0.5"),
        ("search_share = 0.5", "search_share = 0", "search_share must be a number above 0, up to 1"),
        ("check = true", "check = true\nshare = 1", "limits.share must be a number from 0 to below 1"),
        ("p_min = [0.0, 0.95]", "p_min = [0, 1" + "0" * 400 + "]", "space.p_min must be two numbers"),
        ('sampler = "tpe"', 'sampler = "cma"', "search.sampler must be tpe or random"),
        ("[budget]", "[buget]", r"no section \[buget\]. Did you mean budget"),
        ("[search]", "[search", "is not TOML"),
        ("trials = 16", "trials = " + "9" * 5000, "is not TOML"),
        ("trials = 16", "trials = " + "[" * 100_000, "is not TOML"),
    ],
)
def test_wrong_definition_names_the_key(tmp_path: Path, old, new, named):
    """Each mistake is one sentence that names file and key."""
    text = (studies_dir() / "default.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyFileError, match=named) as caught:
        load_definition(str(path))
    assert "mine.toml" in caught.value.message


def test_file_that_is_not_there_is_a_sentence(tmp_path):
    """A path to nothing is a StudyFileError."""
    with pytest.raises(StudyFileError, match="cannot be read"):
        load_definition(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize("rate", [1e-6, 0.5])
def test_every_error_rate_that_is_accepted_can_be_used(tmp_path: Path, rate):
    """The levels of all looks have quantiles, also of the most draftings that share the rate."""
    text = (studies_dir() / "default.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("error_rate = 0.01", f"error_rate = {rate}"), encoding="utf-8")
    rule = load_definition(str(path)).rule
    for shared in (rule, rule.shared(2), rule.shared(20)):
        for look in range(len(rule.looks)):
            assert math.isfinite(NormalDist().inv_cdf(1.0 - 0.1 * shared.level(look)))
