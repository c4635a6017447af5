"""ik_llama.cpp's llama-server, from its help text. It was not run.

`help/ik-8337e4c.txt` is what ``gpt_params_print_usage`` prints (``common/common.cpp`` of github.com/ikawrakow/ik_llama.cpp, commit
8337e4cd3861406fc04e0854b1409cd1b027fbc9, 15 August 2026): that function was compiled alone, with 16 threads and the support of
mlock, mmap and GPUs said to be there, and called. Spaces at the ends of lines were removed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.binaries import Probe, probe
from autospec.backends.flags import IK_NOTE, drafting_args, lists_types, modes
from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import LaunchSettings
from autospec.backends.user_args import check
from autospec.cells import Build
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import UnsupportedError, UsageError
from tests.backends.conftest import HELP, read_help

IK = read_help("ik-8337e4c")
MODEL = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8, n_min=1, p_min=0.75)
MTP = Drafting(Mode.MTP, n_max=4)
MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=12, ngram_m=48, min_hits=1)


@pytest.fixture
def server(tmp_path) -> LlamaServer:
    """A backend that has probed ik_llama.cpp."""
    made = LlamaServer(None, tmp_path)
    made._program = tmp_path / "llama-server"
    made._probe = Probe(Build("llama-server", "ik-b4400", "f" * 16), IK, tells_drafts=True)
    return made


def test_every_option_is_read():
    """Two spaces, or the place of a short name; the text beside the names or on the next line."""
    lines = (HELP / "ik-8337e4c.txt").read_text(encoding="utf-8").splitlines()
    assert len(IK.options) == sum(line[:10].lstrip().startswith("-") for line in lines if line[:2] == "  ")
    assert (len(IK.options), len(IK.gone)) == (295, 0)


@pytest.mark.parametrize(
    ("name", "names", "value", "default"),
    [
        ("-m", ("-m", "--model"), "FNAME", None),
        ("-c", ("-c", "--ctx-size"), "N", "0"),
        ("--parallel", ("-np", "--parallel"), "N", "1"),
        ("--ctx-checkpoints", ("-ctx-ckpt", "--ctx-checkpoints"), "N", "32"),
        ("--cache-ram-similarity", ("-crs", "--cache-ram-similarity"), "N", "0.50"),
        ("--flash-attn", ("-fa", "--flash-attn"), "(auto|on|off|0|1)", "on"),
        ("--lora-scaled", ("--lora-scaled",), "FNAME S", None),
        ("--spec-autotune", ("--spec-autotune",), "", None),
    ],
)
def test_an_option_has_all_its_parts(name, names, value, default):
    """A value behind each name, or behind the last one."""
    option = IK.find(name)
    assert option is not None
    assert (option.names, option.value) == (names, value)
    if default is not None:
        assert f"default: {default}" in option.text


def test_wrapped_text_is_joined():
    """The lines of an option's text are one text."""
    option = IK.find("--spec-ckpt-mode")
    assert option is not None
    assert "per-step save architecture state per draft step; no re-decode" in option.text
    assert read_help("ik-8337e4c").find("-fa").choices == ("auto", "on", "off", "0", "1")


def test_its_modes():
    """All that its `--spec-type` lists and autospec knows."""
    assert modes(IK) == {
        *(Mode.OFF, Mode.DRAFT_MODEL, Mode.MTP, Mode.DFLASH, Mode.DSPARK),
        *(Mode.NGRAM_SIMPLE, Mode.NGRAM_MAP_K, Mode.NGRAM_MAP_K4V, Mode.NGRAM_MOD),
    }
    assert lists_types(IK)


@pytest.mark.parametrize(
    ("drafting", "expected"),
    [
        (OFF, ""),
        (MODEL, "--spec-type draft:n_max=8,n_min=1,p_min=0.75 --model-draft /d.gguf"),
        (MTP, "--spec-type mtp:n_max=4,n_min=0,p_min=0.0"),
        (
            Drafting(Mode.DFLASH, draft="/d.gguf", n_max=4),
            "--spec-type dflash:n_max=4,n_min=0,p_min=0.0 --model-draft /d.gguf",
        ),
        (MOD, "--spec-type ngram-mod:ngram_size_n=24,n_max=64,n_min=48"),
        (
            SIMPLE,
            "--spec-type ngram-simple:ngram_size_n=12,ngram_size_m=48,ngram_min_hits=1,n_max=48,n_min=0",
        ),
        (
            replace(MTP, beside=(MOD,)),
            (
                "--spec-type ngram-mod:ngram_size_n=24,n_max=64,n_min=48"
                " --spec-type mtp:n_max=4,n_min=0,p_min=0.0"
            ),
        ),
    ],
)
def test_a_mode_is_a_stage_with_its_numbers(drafting, expected):
    """Every number is pinned inside the stage; the flags of llama.cpp's eras are rejected there."""
    assert " ".join(drafting_args(IK, "ik-b4400", drafting)) == expected


@pytest.mark.parametrize(
    "drafting",
    [
        replace(MTP, beside=(MOD, SIMPLE)),
        Drafting(Mode.DFLASH, draft="/d.gguf", n_max=4, beside=(MOD,)),
    ],
)
def test_other_chains_are_refused(drafting):
    """It takes two stages, the second of MTP or a draft model, and would end at its start."""
    with pytest.raises(UnsupportedError, match="drafts in one n-gram mode beside mtp or draft-model, not in"):
        drafting_args(IK, "ik-b4400", drafting)


def test_a_value_that_the_help_does_not_name_may_follow():
    """`-mla 3` is right, and its help says no value; two words are still one too many."""
    args = ("-mla", "3", "-ger", "-ngl", "99", "-fa", "on", "--jinja")
    assert len(check(IK, "ik-b4400", args)) == 5
    with pytest.raises(UsageError, match="'4' is not an option"):
        check(IK, "ik-b4400", ("-mla", "3", "4"))


@pytest.mark.parametrize(
    "name", ["--spec-type", "--spec-autotune", "-draft", "--draft-params", "-md", "--spec-replace"]
)
def test_what_drafts_is_refused(name):
    """As in every build."""
    with pytest.raises(
        UsageError, match=f"^{name} cannot be passed to the server: autospec sets the drafting"
    ):
        check(IK, "ik-b4400", (name, "x"))


@pytest.mark.parametrize("name", ["-ngld", "-devd", "-ctkd", "-td", "--spec-ckpt-mode"])
def test_where_the_draft_runs_stays_the_users(name):
    """And where a recurrent state is kept."""
    assert check(IK, "ik-b4400", (name, "1"))


def test_a_launch(server):
    """One slot, no cache between requests, nothing that it lacks; slots are neither named nor emptied."""
    command = server.command("/m.gguf", MTP, LaunchSettings(("-mla", "3")))
    assert command[1:] == (
        *("--model", "/m.gguf", "-mla", "3", "--parallel", "1", "--cache-ram", "0"),
        *("--spec-type", "mtp:n_max=4,n_min=0,p_min=0.0"),
    )
    assert server.capabilities().notes == (IK_NOTE,)


def test_it_drafts_with_one_slot(server):
    """With more it ends at its start; off may have any number."""
    several = LaunchSettings(("-np", "4"), serving=True)
    with pytest.raises(UnsupportedError, match="ik-b4400 drafts with one slot only") as caught:
        server.command("/m.gguf", MTP, several)
    assert caught.value.hint == "Remove --parallel, or set it to 1."
    assert "4" in server.command("/m.gguf", OFF, several)
    assert server.command("/m.gguf", MTP, LaunchSettings(("-np", "1"), serving=True))


def test_it_is_probed_like_any_llama_server(tmp_path):
    """A build number of its own count of commits, under its own name."""
    program = tmp_path / "llama-server"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "version: 4400 (8337e4c)" >&2;;\n'
        f'--help) cat "{HELP / "ik-8337e4c.txt"}";; esac\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    found = probe(program, tmp_path)
    assert found.build.version == "ik-b4400"
    assert found.tells_drafts
    assert found.help.of_ik
