"""What the config says of one model goes into every export; what measuring adds goes into none."""

from __future__ import annotations

import configparser
import shlex

import pytest
import yaml

from autospec.cells import PromptType
from autospec.recommendations import Recommendation, Verdict
from autospec.report.server_config import llama_swap_text, mlx_command, own_settings, preset_text
from tests.report.samples import ARGS, recommendation

OWN = ["--override-tensor", "a=CPU", "-c", "8192", "--mmproj", "/m/eyes.gguf", "--lora", "/m/a.gguf"]
MEASURED = ["-c", "4096", "--parallel", "1", "--cache-ram", "0", "--slots", "--slot-save-path", "/state/"]
NAME = "Main-7B-Q4_K_M"


def known(user: list[str], own: list[str], **changes: object) -> Recommendation:
    """A recommendation as a tune stores it: with the cell's settings, and the whole command of the drafted launch."""
    evidence = {
        "args": ARGS,
        "command": ["/opt/llama-server", "--model", "x", *user, *MEASURED, *ARGS],
        "settings": [*user, "-c", "4096"],
        "user_settings": user,
        **({"model_settings": own} if own else {}),
    }
    return recommendation(evidence=evidence, **changes)


def section(*found: Recommendation, aliases: dict[str, tuple[str, ...]] | None = None) -> dict[str, str]:
    """The first section of a preset, as llama-server reads it."""
    ini = configparser.RawConfigParser(delimiters="=", comment_prefixes=(";", "#"), strict=True)
    ini.optionxform = str  # type: ignore[assignment, method-assign]
    ini.read_string(f"[top]\n{preset_text(found, aliases or {}).text}")
    return dict(ini[ini.sections()[1]])


def test_every_format_has_the_models_own_settings_and_none_of_measuring():
    """Also the context that the user set, although measuring would have set another."""
    found = known(["-ngl", "99", *OWN], OWN)
    assert own_settings(found) == tuple(OWN)
    (entry,) = yaml.safe_load(llama_swap_text([found]).text)["models"].values()
    assert shlex.split(entry["cmd"])[3:] == [
        "--model",
        "/models/Main-7B-Q4_K_M.gguf",
        "-ngl",
        "99",
        *OWN,
        *ARGS,
    ]
    ini = section(found)
    assert (ini["mmproj"], ini["lora"], ini["c"], ini["ngl"]) == ("/m/eyes.gguf", "/m/a.gguf", "8192", "99")
    for name in ("parallel", "cache-ram", "slots", "slot-save-path"):
        assert name not in ini
    apple = ["--adapter-path", "/m/style"]
    mlx = known(apple, apple, backend="mlx", model_path="/m/apple")
    assert mlx_command([mlx]) == ("mlx_lm.server", "--model", "/m/apple", *apple, *ARGS)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (["--lora", "a", "--lora", "b"], {"lora": "a,b"}),
        (["--lora-scaled", "a:0.5", "--lora-scaled=b:2"], {"lora-scaled": "a:0.5,b:2"}),
        (["-ot", "x=CPU", "--override-tensor", "y=CPU"], {"override-tensor": "x=CPU,y=CPU"}),
        (["-ngl", "99", "--gpu-layers", "20"], {"gpu-layers": "20"}),
        (["--ctx-size", "1", "-c", "2"], {"c": "2"}),
        (["-t", "4", "--jinja"], {"t": "4", "jinja": "true"}),
    ],
)
def test_an_option_stands_once_in_a_preset(user: list[str], expected: dict[str, str]):
    """A preset's keys are sorted when they are read: of two spellings the alphabet would choose, not the order."""
    ini = section(known(user, []))
    assert {
        key: value for key, value in ini.items() if key != "model" and not key.startswith("spec-")
    } == expected


def test_aliases():
    """The only entry of a model has them; among several nobody could say which one is meant, and llama-server refuses the file."""
    one, another = known([], []), known([], [], prompt_type=PromptType.WRITING)
    aliases = {NAME: ("fast", f"{NAME}-coding")}
    assert section(one, aliases=aliases)["alias"] == "fast"
    (entry,) = yaml.safe_load(llama_swap_text([one], aliases=aliases).text)["models"].values()
    assert entry["aliases"] == ["fast"]
    for rendered in (preset_text([one, another], aliases), llama_swap_text([one, another], aliases=aliases)):
        assert "alias" not in rendered.text
        assert rendered.left_out[0].startswith("The alias fast is left out: 2 entries could have it")


def test_an_alias_among_the_arguments_is_not_repeated():
    """Two sections with one alias would make llama-server refuse the whole preset."""
    user = ["--alias", "mine", "-ngl", "99"]
    assert section(known(user, []))["alias"] == "mine"
    rendered = preset_text([known(user, []), known(user, [], prompt_type=PromptType.WRITING)])
    assert "alias" not in rendered.text
    assert "mine" in rendered.left_out[0]


def test_what_llama_swap_would_take_for_a_macro_is_left_out():
    """It refuses the whole file for a macro that it does not know."""
    wrong = known(["--chat-template-file", "/t/${x}.jinja"], [])
    rendered = llama_swap_text([wrong, recommendation(Verdict.DISABLE, model="Other")])
    assert len(rendered.names) == 1
    assert "reads ${…} as a macro" in rendered.left_out[0]
