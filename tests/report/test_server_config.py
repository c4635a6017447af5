"""Flags, presets and llama-swap's YAML."""

from __future__ import annotations

import configparser
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autospec.backends import flags
from autospec.backends.flags import parse
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import AutospecError, UsageError
from autospec.recommendations import Verdict
from autospec.report.server_config import drafting_args, llama_swap_text, mlx_command, one_args, preset_text
from tests.report.samples import ARGS, recommendation

EACH_MODE = [
    *(
        Drafting(mode, draft="d.gguf", n_max=8, n_min=1, p_min=0.5)
        for mode in (Mode.DRAFT_MODEL, Mode.EAGLE3, Mode.DFLASH, Mode.DSPARK)
    ),
    Drafting(Mode.MTP, n_max=2),
    *(
        Drafting(mode, ngram_n=6, ngram_m=24, min_hits=1)
        for mode in (Mode.NGRAM_SIMPLE, Mode.NGRAM_MAP_K, Mode.NGRAM_MAP_K4V)
    ),
    Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=0),
    Drafting(Mode.MTP, n_max=2, beside=(Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=0),)),
]


def parsed(text):
    """The INI as Python reads it."""
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=(";", "#"), interpolation=None)
    parser.optionxform = str
    parser.read_string("[top]\n" + text)
    return parser


def test_off_has_no_flags():
    """Off is the absence of flags, whatever was tried."""
    assert drafting_args(recommendation(Verdict.DISABLE)) == ()


def test_flags_are_those_of_the_tuned_build():
    """They are taken from the evidence and not made up."""
    assert drafting_args(recommendation()) == tuple(ARGS)


def test_flags_that_were_not_recorded_are_an_error():
    """An enabled drafting without its flags says how to get them."""
    with pytest.raises(AutospecError, match="not recorded") as raised:
        drafting_args(recommendation(evidence={}))
    assert "autospec tune" in raised.value.hint


@pytest.mark.parametrize("drafting", EACH_MODE, ids=lambda d: d.label)
def test_the_embedded_backend_gets_the_flags_of_a_llama_server_of_its_era(drafting):
    """The same that the real help of b11434 gives; the embedded backend itself has fields and no flags."""
    text = (Path(__file__).parents[1] / "backends" / "help" / "b11434.txt").read_text(encoding="utf-8")
    expected = flags.drafting_args(parse(text), "b11434", drafting)
    r = recommendation(backend="embedded", drafting=drafting, evidence={"args": ['{"model.path": "x"}']})
    assert drafting_args(r) == expected


def test_several_modes_are_one_key():
    """A comma-separated list in a preset, and one word of a command."""
    r = recommendation(backend="embedded", drafting=EACH_MODE[-1], evidence={})
    section = parsed(preset_text([r]).text)["Main-7B-Q4_K_M-coding"]
    assert section["spec-type"] == "draft-mtp,ngram-mod"
    assert (section["spec-draft-n-max"], section["spec-ngram-mod-n-max"]) == ("2", "32")
    command = yaml.safe_load(llama_swap_text([r]).text)["models"]["Main-7B-Q4_K_M-coding"]["cmd"]
    assert shlex.split(command)[shlex.split(command).index("--spec-type") + 1] == "draft-mtp,ngram-mod"


def test_prompt_types_that_agree_give_one_answer():
    """Where all kinds of prompt want the same flags, none has to be chosen."""
    both = [recommendation(), recommendation(prompt_type=PromptType.MATH)]
    assert one_args(both)[0] == tuple(ARGS)


def test_prompt_types_that_differ_must_be_chosen():
    """The error lists what each kind wants, and names the option."""
    both = [recommendation(), recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING)]
    with pytest.raises(UsageError, match="writing: off") as raised:
        one_args(both)
    assert raised.value.hint == (
        "Choose one with --prompt-type. `autospec tune --model Main-7B-Q4_K_M` finds one for all prompt types together."
    )


def test_backends_that_differ_must_be_chosen():
    """One kind of prompt on two backends asks for the backend."""
    both = [recommendation(), recommendation(Verdict.DISABLE, backend="embedded")]
    with pytest.raises(UsageError) as raised:
        one_args(both)
    assert raised.value.hint == "Choose one with --backend."


def test_flags_are_for_one_model():
    """Two known models are listed."""
    with pytest.raises(UsageError, match="Main-7B-Q4_K_M, Other"):
        one_args([recommendation(), recommendation(model="Other")])


def test_a_preset_has_a_section_for_each_kind_of_prompt():
    """Model, the user's launch settings and the drafting's flags, without dashes."""
    text = preset_text(
        [recommendation(), recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING)]
    ).text
    ini = parsed(text)
    assert dict(ini["Main-7B-Q4_K_M-coding"]) == {
        "model": "/models/Main-7B-Q4_K_M.gguf",
        "ngl": "99",
        "spec-type": "draft-simple",
        "spec-draft-model": "/models/draft.gguf",
        "spec-draft-n-max": "8",
    }
    assert dict(ini["Main-7B-Q4_K_M-writing"]) == {"model": "/models/Main-7B-Q4_K_M.gguf", "ngl": "99"}


@pytest.mark.parametrize(
    ("evidence", "exported"),
    [
        ({"user_settings": [], "settings": ["-c", "4096"]}, []),
        ({"user_settings": ["-c", "4096"], "settings": ["-c", "4096"]}, ["-c", "4096"]),
        ({"user_settings": ["-c", "32768"], "settings": ["-c", "32768"]}, ["-c", "32768"]),
        ({"settings": ["-ngl", "99", "-c", "4096"]}, ["-ngl", "99"]),
        ({"settings": ["-c", "4096"]}, []),
        ({"settings": ["-c", "4096", "-ngl", "99"]}, ["-c", "4096", "-ngl", "99"]),
        ({"settings": ["-c", "32768"]}, ["-c", "32768"]),
        ({"settings": ["--jinja"]}, ["--jinja"]),
        ({}, []),
    ],
)
def test_the_context_of_measuring_is_not_exported(evidence, exported):
    """Only what the user gave; older recommendations have it as the last of the cell's settings."""
    r = recommendation(Verdict.DISABLE, evidence=evidence)
    command = yaml.safe_load(llama_swap_text([r]).text)["models"]["Main-7B-Q4_K_M-coding"]["cmd"]
    assert shlex.split(command)[5:] == exported
    assert mlx_command([recommendation(Verdict.DISABLE, backend="mlx", evidence=evidence)])[3:] == tuple(
        exported
    )


def test_a_flag_without_a_value_is_true_in_a_preset():
    """`--jinja -ngl -1` becomes two keys; a negative number is a value."""
    r = recommendation(Verdict.DISABLE, evidence={"settings": ["--jinja", "-ngl", "-1", "--metrics"]})
    section = parsed(preset_text([r]).text)["Main-7B-Q4_K_M-coding"]
    assert (section["jinja"], section["ngl"], section["metrics"]) == ("true", "-1", "true")


def test_section_names_are_unique_and_have_no_colon():
    """The router upper-cases what follows a colon, and two backends may hold the same cell."""
    tag = recommendation(Verdict.DISABLE, model="qwen3:30b a")
    text = preset_text([tag, recommendation(Verdict.DISABLE, model="qwen3:30b a", backend="embedded")]).text
    assert parsed(text).sections()[1:] == ["qwen3-30b-a-coding", "qwen3-30b-a-coding-embedded"]


def test_what_a_preset_cannot_hold_is_left_out_with_a_sentence():
    """llama.cpp's parser ends a value at # and ;, without any way to quote them."""
    bad = recommendation(Verdict.DISABLE, model="Bad", model_path="/models/a#b.gguf")
    rendered = preset_text([recommendation(), bad])
    assert "[Bad" not in rendered.text
    assert "Bad" in rendered.left_out[0]


def test_a_preset_of_nothing_is_an_error():
    """An imported record has no path here, and MLX is no llama-server."""
    for r in (recommendation(Verdict.DISABLE, model_path=""), recommendation(Verdict.DISABLE, backend="mlx")):
        with pytest.raises(AutospecError, match="No recommendation can be written"):
            preset_text([r])


def test_llama_swap_gets_valid_yaml_with_a_command_that_a_shell_can_split():
    """Spaces, quotes and characters beyond ASCII in paths survive YAML and the shell's rules."""
    path = '/models/it\'s a "model" 🙂: x.gguf'
    text = llama_swap_text(
        [recommendation(model_path=path), recommendation(Verdict.DISABLE, model="Ü: off")]
    ).text
    models = yaml.safe_load(text)["models"]
    assert list(models) == ["Main-7B-Q4_K_M-coding", "off-coding"]
    words = shlex.split(models["Main-7B-Q4_K_M-coding"]["cmd"])
    assert words == ["/opt/llama-server", "--port", "${PORT}", "--model", path, "-ngl", "99", *ARGS]


def test_llama_swap_uses_the_given_program_for_the_embedded_backend():
    """The embedded server is no program of its own."""
    text = llama_swap_text(
        [recommendation(backend="embedded", verdict=Verdict.DISABLE, drafting=OFF)], "my-server"
    ).text
    assert yaml.safe_load(text)["models"]["Main-7B-Q4_K_M-coding"]["cmd"].startswith("my-server --port ")


MLX_ARGS = ["--prompt-cache-size", "0", "--draft-model", "/mlx/a draft", "--num-draft-tokens", "4"]


def mlx(verdict=Verdict.ENABLE, **changes):
    """A recommendation for MLX, with the flags that its backend records."""
    fields = {
        "backend": "mlx",
        "model_path": "/mlx/main",
        "evidence": {"args": MLX_ARGS, "settings": ["--trust-remote-code"]},
    }
    return recommendation(verdict, **{**fields, **changes})


def test_mlx_gets_the_whole_command():
    """Model, the user's launch settings, and the draft; without them for off."""
    plain = ("mlx_lm.server", "--model", "/mlx/main", "--trust-remote-code")
    assert mlx_command([mlx(), recommendation()]) == (*plain, *MLX_ARGS)
    assert mlx_command([mlx(Verdict.DISABLE)]) == plain


def test_an_mlx_server_has_one_draft_for_all_prompts():
    """Where they differ, one kind of prompt has to be chosen."""
    both = [mlx(), mlx(Verdict.DISABLE, prompt_type=PromptType.WRITING)]
    with pytest.raises(UsageError, match="writing: off"):
        mlx_command(both)


def test_without_anything_known_of_mlx_it_says_so():
    """The hint has the command that finds out."""
    with pytest.raises(AutospecError, match="only for llama-server") as raised:
        mlx_command([recommendation()])
    assert "--backend mlx" in raised.value.hint


def test_mlx_lm_server_reads_its_command_line():
    """Its own parser, run in a process of its own because it imports a great deal."""
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    code = (
        "import json, sys, mlx_lm.server as server\n"
        "server.ModelProvider = lambda args: args\n"
        "server.maybe_set_recommended_wired_limit = lambda: None\n"
        "server.run = lambda host, port, args: print(json.dumps(\n"
        "    [args.model, args.draft_model, args.num_draft_tokens, args.prompt_cache_size]))\n"
        "server.main()\n"
    )
    words = mlx_command([mlx()])[1:]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["/mlx/main", "/mlx/a draft", 4, 0]
