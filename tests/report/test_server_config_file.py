"""Configuration files that other tools share: only the text between the marks changes."""

from __future__ import annotations

import configparser

import pytest
import yaml

from autospec.errors import AutospecError
from autospec.recommendations import Verdict
from autospec.report.server_config import (
    BEGIN,
    END,
    llama_swap_text,
    merged_llama_swap,
    merged_preset,
    preset_text,
    update_file,
)
from tests.report.samples import recommendation

PRESET = preset_text([recommendation()])
SWAP = llama_swap_text([recommendation()])
OTHER_SWAP = llama_swap_text([recommendation(model="Other", verdict=Verdict.DISABLE)])
NAME = "Main-7B-Q4_K_M-coding"

INI = "version = 1\n\n; my own\n[mine]\nmodel = /m.gguf\n"
YAML = """\
# my models
healthCheckTimeout: 500
models:   # all of them
    mine:
        cmd: llama-server --port ${PORT} -m /m.gguf   # fast
groups:
    one: {members: [mine]}
"""


def sections(text):
    """The sections of an INI."""
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=(";", "#"), interpolation=None)
    parser.read_string("[top]\n" + text)
    return parser.sections()[1:]


def outside(text):
    """The text without what is between the marks."""
    before, _, rest = text.partition(BEGIN)
    return before, rest.partition(END)[2]


@pytest.mark.parametrize("old", ["", "\n\n"])
def test_an_empty_file_becomes_ours(old):
    """With the head that tells how it is used."""
    assert merged_preset(old, PRESET) == f"{PRESET.text}\n"
    assert merged_llama_swap(old, SWAP) == f"{SWAP.text}\n"


def test_a_preset_of_others_gets_our_sections_at_its_end():
    """Their text comes first, as it was."""
    new = merged_preset(INI, PRESET)
    assert new.startswith(INI)
    assert sections(new) == ["mine", NAME]


def test_what_is_between_the_marks_is_replaced_and_nothing_else():
    """Also where others wrote behind it."""
    first = merged_preset(INI, preset_text([recommendation(model="Old")])) + "[theirs]\nmodel = /t.gguf\n"
    second = merged_preset(first, PRESET)
    assert sections(second) == ["mine", NAME, "theirs"]
    assert outside(second) == outside(first)
    assert merged_preset(second, PRESET) == second


def test_a_section_of_somebody_else_is_not_shadowed():
    """llama.cpp would silently take the last of the two."""
    with pytest.raises(AutospecError, match=f"its own entry {NAME}"):
        merged_preset(f"[ {NAME} ]\nmodel = /m.gguf\n", PRESET)


@pytest.mark.parametrize("old", [f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_marks_that_are_no_pair_are_refused(old):
    """What is ours would be a guess."""
    with pytest.raises(AutospecError, match="do not match"):
        merged_preset(old, PRESET)


def test_models_of_others_get_ours_beside_them():
    """With their indentation, and everything else as it was."""
    new = merged_llama_swap(YAML, SWAP)
    document = yaml.safe_load(new)
    assert document.pop("groups") == {"one": {"members": ["mine"]}}
    assert list(document["models"]) == [NAME, "mine"]
    assert document["models"]["mine"] == yaml.safe_load(YAML)["models"]["mine"]
    assert [line for line in YAML.splitlines() if line not in new.splitlines()] == []


def test_models_between_the_marks_are_replaced():
    """As often as one likes."""
    first = merged_llama_swap(YAML, SWAP)
    second = merged_llama_swap(first, OTHER_SWAP)
    assert list(yaml.safe_load(second)["models"]) == ["Other-coding", "mine"]
    assert outside(second) == outside(first)
    assert merged_llama_swap(second, OTHER_SWAP) == second


def test_marks_may_stand_anywhere_among_the_models():
    """A user may move them to the end."""
    moved = YAML.replace("groups:", f"    {BEGIN}\n    {END}\ngroups:")
    assert list(yaml.safe_load(merged_llama_swap(moved, SWAP))["models"]) == ["mine", NAME]


@pytest.mark.parametrize("old", ["healthCheckTimeout: 500\n", "models:\n", "# nothing yet\n"])
def test_a_configuration_without_models_gets_them(old):
    """What else is in it stays."""
    document = yaml.safe_load(merged_llama_swap(old, SWAP))
    assert list(document.pop("models")) == [NAME]
    assert document == {k: v for k, v in (yaml.safe_load(old) or {}).items() if k != "models"}


@pytest.mark.parametrize(
    ("old", "why"),
    [
        ("models: {mine: {cmd: x}}\n", "without changing its meaning"),
        ('"models":\n  mine: {cmd: x}\ngroups: {}\n', "without changing its meaning"),
        ("models: [a]\n", "not a mapping"),
        ("- a\n", "not a llama-swap configuration"),
        ("models: [\n", "not valid YAML"),
        (f"models:\n  {NAME}:\n    cmd: x\n", f"its own entry {NAME}"),
    ],
)
def test_what_would_become_another_configuration_is_refused(old, why):
    """One sentence each."""
    with pytest.raises(AutospecError, match=why):
        merged_llama_swap(old, SWAP)


def test_a_file_keeps_its_line_ends_its_mode_and_its_link(tmp_path):
    """It is replaced at once, and where a link leads to."""
    real = tmp_path / "real.ini"
    real.write_bytes(INI.replace("\n", "\r\n").encode())
    real.chmod(0o600)
    link = tmp_path / "models.ini"
    link.symlink_to(real)
    assert update_file(link, PRESET, "preset")
    assert not update_file(link, PRESET, "preset")
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert b"\n" not in real.read_bytes().replace(b"\r\n", b"")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_is_no_text_is_refused(tmp_path):
    """And stays as it is."""
    file = tmp_path / "models.ini"
    file.write_bytes(b"\xff\xfe[")
    with pytest.raises(AutospecError, match="not UTF-8"):
        update_file(file, PRESET, "preset")
    assert file.read_bytes() == b"\xff\xfe["
