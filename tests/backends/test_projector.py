"""A projector and adapters on builds of several eras: what a build refuses, and how it takes a scaled adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from autospec.backends.failures import projector_refused
from autospec.backends.llama_cpp.server import LlamaServer, _scales_apart
from autospec.backends.protocol import LaunchSettings
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import LaunchError

DRAFTED = Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=4, n_min=0, p_min=0.0)
SEEING = LaunchSettings(("-t", "1", "--mmproj", "/m/eyes.gguf", "--jinja"))
REFUSED = "srv    load_model: speculative decoding is not supported with multimodal"


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        (REFUSED, True),
        ("srv  load_model: err: speculative decode is not supported by multimodal", True),
        ("srv  load_model: ctx_shift is not supported by multimodal, it will be disabled", False),
        ("srv  load_model: cache_reuse is not supported by multimodal, it will be disabled", False),
        ("srv  load_model: speculative decoding not supported by this context", False),
    ],
)
def test_what_a_build_says_that_does_not_draft_with_a_projector(line: str, refused: bool):
    """In the words of May 2025 and of February 2026; other warnings of a projector are harmless."""
    assert projector_refused(("loading", line, "exiting due to model loading error")) is refused


def launched(
    monkeypatch: pytest.MonkeyPatch, drafting: Drafting, settings: LaunchSettings, error: LaunchError
) -> list[LaunchSettings]:
    """The launches that were tried on a build that fails with a projector."""
    tried: list[LaunchSettings] = []

    def launch(_self: LlamaServer, _model: str, _drafting: Drafting, given: LaunchSettings) -> None:
        tried.append(given)
        if "--mmproj" in given.args:
            raise error

    monkeypatch.setattr(LlamaServer, "_launch", launch)
    LlamaServer(None, Path("/state")).launch("/m.gguf", drafting, settings)
    return tried


def test_such_a_build_drafts_without_the_projector(monkeypatch: pytest.MonkeyPatch):
    """Measured and served alike; everything else stays."""
    error = LaunchError("It ended.", log_tail=(REFUSED,), permanent=True)
    assert [s.args for s in launched(monkeypatch, DRAFTED, SEEING, error)] == [
        SEEING.args,
        ("-t", "1", "--jinja"),
    ]


@pytest.mark.parametrize(
    ("drafting", "words"),
    [(OFF, REFUSED), (DRAFTED, "failed to load model"), (DRAFTED, "failed to load CLIP model")],
)
def test_other_failures_stay(monkeypatch: pytest.MonkeyPatch, drafting: Drafting, words: str):
    """A projector that cannot be loaded is the user's to correct."""
    with pytest.raises(LaunchError):
        launched(monkeypatch, drafting, SEEING, LaunchError("It ended.", log_tail=(words,), permanent=True))


def test_a_scale_is_a_word_of_its_own_for_builds_of_2025():
    """A path may have a colon there."""
    args = ["-t", "1", "--lora-scaled", "/m/a:b.gguf:0.5", "--lora", "c", "--lora-scaled", "d", "2"]
    assert _scales_apart(args) == ["-t", "1", "--lora-scaled", "/m/a:b.gguf", "0.5", *args[4:]]
