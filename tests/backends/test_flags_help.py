"""Reading --help: real texts of six eras and one excerpt."""

from __future__ import annotations

import pytest

from autospec.backends.flags import parse
from tests.backends.conftest import HELP, read_help


@pytest.mark.parametrize(
    ("name", "working", "gone"),
    [
        ("pycore010", 138, 0),
        ("pydist012", 157, 0),
        ("pydist018", 187, 0),
        ("b9093", 233, 5),
        ("b11434", 251, 5),
        ("b11669", 253, 5),
    ],
)
def test_every_option_line_is_read(name, working, gone):
    """Each line that begins with a dash is one option, working or gone, and none is lost."""
    text = (HELP / f"{name}.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("-") and not line.startswith("---")]
    found = parse(text)
    assert len(found.options) + len(found.gone) == len(lines)
    assert (len(found.options), len(found.gone)) == (working, gone)


def test_an_option_has_all_its_parts():
    """Aliases, value and text of an option whose names fill the column."""
    option = read_help("b11434").find("-md")
    assert option is not None
    assert option.names == ("--spec-draft-model", "-md", "--model-draft")
    assert (option.value, option.arity) == ("FNAME", 1)
    assert option.text.endswith("(default: unused) (env: LLAMA_ARG_SPEC_DRAFT_MODEL)")


def test_wrapped_text_is_joined():
    """What stands on the following line belongs to its option."""
    option = read_help("pydist012").find("--draft-min")
    assert option is not None
    assert "minimum number of draft tokens to use for speculative decoding (default: 0)" in option.text


def test_removed_options_are_absent_and_say_what_to_use():
    """What a build lists only as removed counts as missing, and its advice can be told."""
    text = read_help("b11434")
    assert not text.has("--draft-max")
    assert text.removal("--draft-max") == "use --spec-draft-n-max or --spec-ngram-mod-n-max"


def test_an_alias_of_a_removed_family_stays():
    """`--draft-p-min` survived the removal of its siblings."""
    assert read_help("b11434").has("--draft-p-min")


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("pydist012", ()),
        ("b9093", ("ngram-cache", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod")),
        (
            "b11434",
            (
                *("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark"),
                *("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"),
            ),
        ),
    ],
)
def test_speculation_types(name, types):
    """Both forms of the list are read, `[a|b]` and `a,b`, without `none`."""
    assert read_help(name).spec_types == types


@pytest.mark.parametrize(
    ("name", "arity"),
    [("--control-vector-layer-range", 2), ("-ot", 1), ("--jinja", 0), ("-hf", 1), ("-fa", 1)],
)
def test_arity(name, arity):
    """Values are counted as the server will count them, also where the value's name has spaces."""
    option = read_help("b11434").find(name)
    assert option is not None
    assert option.arity == arity


def test_flash_attention_was_a_switch():
    """The same flag takes a value in one era and none in another."""
    option = read_help("pydist012").find("-fa")
    assert option is not None
    assert option.arity == 0


def test_choices_come_from_the_text_too():
    """Allowed cache types stand in the description."""
    option = read_help("pycore010").find("-ctk")
    assert option is not None
    assert "q8_0" in option.choices


def test_long_names_may_be_written_with_underscores():
    """llama.cpp takes `--ctx_size` for `--ctx-size`."""
    assert read_help("b11434").find("--ctx_size") == read_help("b11434").find("-c")


def test_nonsense_gives_no_options():
    """A text that is no help is no error here: the caller sees that nothing is offered."""
    assert parse("Segmentation fault\n").options == ()
