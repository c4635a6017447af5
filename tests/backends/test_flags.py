"""Command-line arguments of a drafting, for the help texts of five eras."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.flags import drafting_args, lists_types, modes
from autospec.backends.llama_cpp.server import _keeps_last, _takes_one_slot_for_four
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import UnsupportedError
from tests.backends.conftest import read_help

MODEL = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8, n_min=1, p_min=0.75)
SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=12, ngram_m=48, min_hits=1)
MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
DRAFTLESS = {Mode.NGRAM_SIMPLE, Mode.NGRAM_MAP_K, Mode.NGRAM_MAP_K4V, Mode.NGRAM_MOD}


def args(name, drafting):
    """The arguments as one line."""
    return " ".join(drafting_args(read_help(name), name, drafting))


def test_off_is_no_flag(era):
    """`off` leaves every speculation flag out: a zero would abort b11434 at the first request."""
    name, text = era
    assert drafting_args(text, name, OFF) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pycore010", "--model-draft /d.gguf --draft-max 8 --draft-min 1 --draft-p-min 0.75"),
        ("pydist012", "--model-draft /d.gguf --draft-max 8 --draft-min 1 --draft-p-min 0.75"),
        ("docs-2026-03", "--model-draft /d.gguf --draft-max 8 --draft-min 1 --draft-p-min 0.75"),
        (
            "b9093",
            "--spec-draft-model /d.gguf --spec-draft-n-max 8 --spec-draft-n-min 1 --spec-draft-p-min 0.75",
        ),
        (
            "b11434",
            (
                "--spec-type draft-simple --spec-draft-model /d.gguf"
                " --spec-draft-n-max 8 --spec-draft-n-min 1 --spec-draft-p-min 0.75"
            ),
        ),
    ],
)
def test_draft_model(name, expected):
    """Every parameter is pinned with the build's own flags, and the type named where it must be."""
    assert args(name, MODEL) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "docs-2026-03",
            (
                "--spec-type ngram-simple --spec-ngram-size-n 12 --spec-ngram-size-m 48 --spec-ngram-min-hits 1"
                " --draft-max 48 --draft-min 0"
            ),
        ),
        (
            "b11434",
            (
                "--spec-type ngram-simple --spec-ngram-simple-size-n 12 --spec-ngram-simple-size-m 48"
                " --spec-ngram-simple-min-hits 1"
            ),
        ),
    ],
)
def test_ngram_simple(name, expected):
    """Generic sizes in early 2026, where draft-max cuts proposals and is pinned too; then sizes per mode."""
    assert args(name, SIMPLE) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docs-2026-03", "--spec-type ngram-mod --spec-ngram-size-n 24 --draft-max 64 --draft-min 48"),
        (
            "b9093",
            "--spec-type ngram-mod --spec-ngram-mod-n-match 24 --spec-ngram-mod-n-max 64 --spec-ngram-mod-n-min 48",
        ),
    ],
)
def test_ngram_mod(name, expected):
    """The mode's three parameters under both names."""
    assert args(name, MOD) == expected


@pytest.mark.parametrize("mode", [Mode.NGRAM_MAP_K, Mode.NGRAM_MAP_K4V])
def test_ngram_maps(mode):
    """Each map has flags of its own name."""
    got = args("b11434", Drafting(mode, ngram_n=8, ngram_m=16, min_hits=2))
    assert (
        got == f"--spec-type {mode} --spec-{mode}-size-n 8 --spec-{mode}-size-m 16 --spec-{mode}-min-hits 2"
    )


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(Mode.EAGLE3, "draft-eagle3"), (Mode.DFLASH, "draft-dflash"), (Mode.DSPARK, "draft-dspark")],
)
def test_other_draft_models(mode, kind):
    """Special drafts go by their own type and the same limits; what is not set is pinned to 0."""
    got = args("b11434", Drafting(mode, draft="/d.gguf", n_max=5))
    assert got == (
        f"--spec-type {kind} --spec-draft-model /d.gguf"
        " --spec-draft-n-max 5 --spec-draft-n-min 0 --spec-draft-p-min 0.0"
    )


@pytest.mark.parametrize(
    ("drafting", "expected"),
    [
        (
            replace(MODEL, beside=(MOD,)),
            (
                "--spec-type draft-simple,ngram-mod --spec-draft-model /d.gguf"
                " --spec-draft-n-max 8 --spec-draft-n-min 1 --spec-draft-p-min 0.75"
                " --spec-ngram-mod-n-match 24 --spec-ngram-mod-n-max 64 --spec-ngram-mod-n-min 48"
            ),
        ),
        (
            Drafting(Mode.MTP, n_max=3, beside=(SIMPLE, MOD)),
            (
                "--spec-type draft-mtp,ngram-simple,ngram-mod"
                " --spec-draft-n-max 3 --spec-draft-n-min 0 --spec-draft-p-min 0.0"
                " --spec-ngram-simple-size-n 12 --spec-ngram-simple-size-m 48 --spec-ngram-simple-min-hits 1"
                " --spec-ngram-mod-n-match 24 --spec-ngram-mod-n-max 64 --spec-ngram-mod-n-min 48"
            ),
        ),
    ],
)
def test_several_modes_are_one_list(drafting, expected):
    """One `--spec-type`, and each mode's limits under its own flags."""
    assert args("b11434", drafting) == expected


def test_only_a_list_of_types_takes_several(era):
    """The help says so; other eras refuse with one sentence, before anything starts."""
    name, text = era
    together = replace(MODEL, beside=(SIMPLE,))
    takes_several = name in ("b11434", "b11669")
    assert lists_types(text) is takes_several
    if takes_several:
        assert drafting_args(text, name, together)
        return
    with pytest.raises(UnsupportedError) as caught:
        drafting_args(text, name, together)
    both = "drafts in one mode at a time, so not with draft-model and ngram-simple together."
    lacks = Mode.NGRAM_SIMPLE not in modes(text)
    assert caught.value.message == f"llama-server {name} {'has no mode ngram-simple.' if lacks else both}"


def test_mtp_has_no_file():
    """MTP layers are in the main model."""
    got = args("b11434", Drafting(Mode.MTP, n_max=3))
    assert got == "--spec-type draft-mtp --spec-draft-n-max 3 --spec-draft-n-min 0 --spec-draft-p-min 0.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pycore010", {Mode.OFF, Mode.DRAFT_MODEL}),
        ("pydist012", {Mode.OFF, Mode.DRAFT_MODEL}),
        ("pydist018", {Mode.OFF, Mode.DRAFT_MODEL}),
        ("docs-2026-03", {Mode.OFF, Mode.DRAFT_MODEL} | DRAFTLESS),
        ("b9093", {Mode.OFF, Mode.DRAFT_MODEL} | DRAFTLESS),
        ("b11434", set(Mode) - {Mode.PROMPT_LOOKUP, Mode.NGRAM_CACHE}),
        ("b11669", set(Mode) - {Mode.PROMPT_LOOKUP, Mode.NGRAM_CACHE}),
    ],
)
def test_modes(name, expected):
    """What each era offers."""
    assert modes(read_help(name)) == expected


def test_every_offered_mode_has_arguments(era):
    """A mode is offered exactly if it can be asked for."""
    name, text = era
    draftings = [
        MODEL,
        SIMPLE,
        MOD,
        Drafting(Mode.NGRAM_MAP_K, ngram_n=8, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_MAP_K4V, ngram_n=8, ngram_m=8, min_hits=1),
        Drafting(Mode.NGRAM_CACHE, n_max=8),
        Drafting(Mode.MTP, n_max=2),
        *(Drafting(mode, draft="/d", n_max=2) for mode in (Mode.EAGLE3, Mode.DFLASH, Mode.DSPARK)),
    ]
    for drafting in draftings:
        if drafting.mode in modes(text):
            assert drafting_args(text, name, drafting)
        else:
            with pytest.raises(UnsupportedError, match=str(drafting.mode)):
                drafting_args(text, name, drafting)


def test_every_flag_is_the_builds_own(era):
    """No argument is made up: each flag that is set stands in the help."""
    name, text = era
    for drafting in (MODEL, SIMPLE, MOD):
        if drafting.mode in modes(text):
            flags = [a for a in drafting_args(text, name, drafting) if a.startswith("--")]
            assert all(text.has(flag) for flag in flags)


def test_the_error_names_build_and_mode():
    """A person learns what lacks what, and what there is instead."""
    with pytest.raises(UnsupportedError) as caught:
        args("pydist012", SIMPLE)
    assert caught.value.message == "llama-server pydist012 has no mode ngram-simple."
    assert caught.value.hint == "It offers: draft-model, off."


def test_a_missing_flag_is_named():
    """A build that lists a mode but not the flag to pin its parameter is refused before it starts."""
    text = read_help("b11434")
    without = type(text)(tuple(o for o in text.options if "--spec-draft-p-min" not in o.names))
    with pytest.raises(UnsupportedError, match="b1 has no --spec-draft-p-min, which draft-model needs"):
        drafting_args(without, "b1", MODEL)


def test_prompt_lookup_is_not_llama_servers():
    """A mode of another backend is refused."""
    with pytest.raises(UnsupportedError, match="prompt-lookup"):
        args("b11434", Drafting(Mode.PROMPT_LOOKUP, n_max=10, ngram_n=2))


@pytest.mark.parametrize(
    ("name", "keeps"),
    [
        ("pycore010", True),
        ("pydist012", True),
        ("pydist018", True),
        ("docs-2026-03", True),
        ("b9093", False),
        ("b11434", False),
        ("b11669", False),
        ("ik-8337e4c", False),
    ],
)
def test_which_builds_propose_the_token_below_p_min(name, keeps):
    """Those before llama.cpp's pull request 22506 of April 2026."""
    assert _keeps_last(read_help(name)) is keeps


@pytest.mark.parametrize(
    ("name", "args", "takes_four"),
    [
        ("pydist012", (), False),
        ("pydist018", (), True),
        ("pydist018", ("-np", "1"), True),
        ("pydist018", ("--parallel", "2"), False),
        ("b9093", (), False),
        ("b11434", (), False),
        ("ik-8337e4c", (), False),
    ],
)
def test_which_builds_take_one_slot_for_four(name, args, takes_four):
    """Without drafting only: the two sides of a pair would have other numbers of slots."""
    assert _takes_one_slot_for_four(read_help(name), args) is takes_four
