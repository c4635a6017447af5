"""What a build adapts by itself: read from its help, asked for by its flags. The forks' help texts are excerpts, see help/README.md."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.backends.flags import drafting_args, engines
from autospec.backends.llama_cpp.embedded import drafting_fields
from autospec.drafting import Drafting, Engine, Mode
from autospec.errors import UnsupportedError
from tests.backends.conftest import read_help

MODEL = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=8, n_min=0, p_min=0.0)
MTP = Drafting(Mode.MTP, n_max=12, n_min=3, p_min=0.0)
MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
WITH_MODEL = (Mode.DRAFT_MODEL, Mode.MTP, Mode.EAGLE3, Mode.DFLASH, Mode.DSPARK)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pydist012", set()),
        ("b9093", set()),
        ("b11434", {(mode, Engine.PROBABILISTIC) for mode in (Mode.DRAFT_MODEL, Mode.MTP)}),
        ("b11669", {(mode, Engine.PROBABILISTIC) for mode in (Mode.DRAFT_MODEL, Mode.MTP)}),
        ("llama-27210", {(Mode.MTP, Engine.MTP_ADAPTIVE)}),
        ("adaptive-2a9d1e4", {(mode, Engine.ADAPTIVE) for mode in WITH_MODEL}),
        ("ik-8337e4c", {(mode, Engine.AUTOTUNE) for mode in (Mode.DRAFT_MODEL, Mode.MTP, Mode.DFLASH)}),
    ],
)
def test_what_a_build_adapts(name, expected):
    """Each engine where the help has it, and with the modes in which the build does it."""
    assert engines(read_help(name)) == expected


@pytest.mark.parametrize(
    ("name", "drafting", "expected"),
    [
        (
            "llama-27210",
            replace(MTP, engine=Engine.MTP_ADAPTIVE),
            (
                "--spec-type draft-mtp-adaptive --spec-draft-n-max 12 --spec-draft-n-min 0"
                " --spec-draft-p-min 0.0 --spec-draft-n-min-adaptive 3"
            ),
        ),
        (
            "llama-27210",
            replace(MTP, n_min=0, engine=Engine.MTP_ADAPTIVE, beside=(MOD,)),
            (
                "--spec-type draft-mtp-adaptive,ngram-mod --spec-draft-n-max 12 --spec-draft-n-min 0"
                " --spec-draft-p-min 0.0 --spec-draft-n-min-adaptive 1"
                " --spec-ngram-mod-n-match 24 --spec-ngram-mod-n-max 64 --spec-ngram-mod-n-min 48"
            ),
        ),
        (
            "adaptive-2a9d1e4",
            replace(MTP, engine=Engine.ADAPTIVE),
            (
                "--spec-type draft-mtp --spec-draft-n-max 12 --spec-draft-n-min 3"
                " --spec-draft-p-min 0.0 --spec-draft-adaptive"
            ),
        ),
        (
            "b11434",
            replace(MODEL, engine=Engine.PROBABILISTIC),
            (
                "--spec-type draft-simple --spec-draft-model /d.gguf --spec-draft-n-max 8"
                " --spec-draft-n-min 0 --spec-draft-p-min 0.0 --spec-draft-sampling probabilistic"
            ),
        ),
        (
            "ik-8337e4c",
            replace(MODEL, engine=Engine.AUTOTUNE),
            "--spec-type draft:n_max=8,n_min=0,p_min=0.0 --model-draft /d.gguf --spec-autotune",
        ),
    ],
)
def test_its_flags(name, drafting, expected):
    """The numbers stay pinned; they are the range, or where the server begins."""
    assert " ".join(drafting_args(read_help(name), name, drafting)) == expected


@pytest.mark.parametrize("engine", [Engine.ADAPTIVE, Engine.AUTOTUNE, Engine.MTP_ADAPTIVE])
def test_a_build_without_it_refuses(engine):
    """Before anything starts, as a mode that it lacks."""
    with pytest.raises(UnsupportedError, match=f"b11434 has no {engine} drafting with mtp"):
        drafting_args(read_help("b11434"), "b11434", replace(MTP, engine=engine))


def test_the_tuner_works_in_one_mode_only():
    """With several stages ik_llama.cpp logs that the tuner is off, and drafts without it."""
    with pytest.raises(UnsupportedError, match="no autotune drafting in several modes"):
        drafting_args(read_help("ik-8337e4c"), "ik-b1", replace(MODEL, engine=Engine.AUTOTUNE, beside=(MOD,)))


def test_the_embedded_server_has_none():
    """Nothing is left out silently."""
    with pytest.raises(UnsupportedError, match="no probabilistic drafting"):
        drafting_fields(replace(MODEL, engine=Engine.PROBABILISTIC))
