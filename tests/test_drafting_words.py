"""Draftings from words: what tables print comes back, what is left out has a default, and nonsense is named."""

from __future__ import annotations

import pytest

from autospec.drafting import Drafting, Engine, Mode, read_drafting
from autospec.errors import UsageError

MOD = Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)
SIMPLE = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
MODEL = Drafting(Mode.DRAFT_MODEL, draft="/models/d+e 1.gguf", n_max=8, n_min=0, p_min=0.75)


def read(text: str) -> Drafting:
    """With one draft on the disk, whose file has a plus sign and a space in its name."""

    def draft(mode: Mode, name: str) -> str | None:
        assert name in ("", "d+e 1")
        return None if mode is Mode.MTP else "/models/d+e 1.gguf"

    return read_drafting(text, draft=draft, model_defaults={"n_max": 4, "n_min": 0, "p_min": 0.5})


@pytest.mark.parametrize(
    "drafting",
    [
        MODEL,
        MOD,
        SIMPLE,
        Drafting(Mode.NGRAM_MAP_K4V, ngram_n=3, ngram_m=8, min_hits=2),
        Drafting(Mode.PROMPT_LOOKUP, n_max=10, ngram_n=2),
        Drafting(Mode.DRAFT_MODEL, draft=MODEL.draft, n_max=8, n_min=2, p_min=0.0, beside=(MOD, SIMPLE)),
        Drafting(Mode.MTP, n_max=3, n_min=0, p_min=0.0, beside=(MOD,)),
        Drafting(Mode.MTP, n_max=8, n_min=1, p_min=0.0, engine=Engine.MTP_ADAPTIVE),
    ],
    ids=lambda d: d.label,
)
def test_a_label_comes_back(drafting):
    """Every word of it is read."""
    assert read(drafting.label) == drafting


@pytest.mark.parametrize(
    ("text", "drafting"),
    [
        ("draft-model+ngram-simple", Drafting(Mode.DRAFT_MODEL, draft=MODEL.draft, n_max=4, n_min=0, p_min=0.5, beside=(SIMPLE,))),
        ("mtp n_max=2 + ngram-mod 24/64 n_min=48", Drafting(Mode.MTP, n_max=2, n_min=0, p_min=0.5, beside=(MOD,))),
        (" ngram-mod ", Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=0)),
        ("ngram-simple 6/24", SIMPLE),
    ],
)  # fmt: skip
def test_what_is_left_out_has_a_default(text, drafting):
    """Of the command for the draft model, of llama.cpp's usual sizes for n-grams."""
    assert read(text) == drafting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a drafting mode"),
        ("off", "not a drafting mode"),
        ("ngram", "not a drafting mode"),
        ("ngram-simple+draft-model", "has no modes beside it"),
        ("draft-model + draft-model", "only different draft-free modes"),
        ("draft-model n_max=many", "is not a number"),
        ("draft-model p_min=2", "between 0 and 1"),
        ("draft-model engine=loud", "loud"),
        ("ngram-simple d", "does not know"),
        ("ngram-simple p_min=0.5", "has no p_min"),
        ("ngram-mod n_min=99", "above n_max"),
    ],
)
def test_what_is_no_drafting_is_named(text, words):
    """In a sentence that the user can act on."""
    with pytest.raises(UsageError, match=words):
        read(text)
