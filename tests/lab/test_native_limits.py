"""The checks of limits on the native llama-server: two slots, and 2048 tokens of context from the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.catalog.gguf import read_gguf
from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.measurements import Measurement
from autospec.measure.verdict import DEFAULT_RULE
from autospec.prompts.suite import Half, load_suite
from autospec.recommendations import LimitCheck, Limits
from autospec.tuning import limit_checks
from autospec.tuning.budget import Budget, Pace
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.launches import Memory
from autospec.tuning.limit_checks import LimitChecks, Subject
from tests.tuning.test_run import Silent

DEPTH = 2048
TOKENS = 8


@pytest.mark.slow
def test_two_slots_and_a_cached_prefix(lab_models, llama_server_binary: Path, tmp_path: Path, monkeypatch):
    """Every check is measured: both slots draft, and behind the text only the prompt is computed."""
    halves: list[Measurement] = []
    real = limit_checks.measure

    def kept(*args, **options):
        halves.append(real(*args, **options))
        return halves[-1]

    monkeypatch.setattr(limit_checks, "measure", kept)
    model = replace(read_gguf(lab_models.tiny), context_length=8192)
    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(lab_models.tiny), n_max=4, n_min=0, p_min=0.0)
    prompts = load_suite().of(PromptType.QA, Half.PROVE)
    found: list[Limits] = []
    progress = Silent()
    LimitChecks(
        backend=LlamaServer(llama_server_binary, tmp_path),
        model=model,
        draft_of=lambda _: model,
        wanted=LimitsDefinition(check=True, slots=2, depth=DEPTH),
        args=("-t", "1"),
        memory=lambda: Memory(64 * 1024**3),
        asking=Asking("protocol", TOKENS, 0.0, StateWatch()),
        rule=DEFAULT_RULE,
        scatter=LaunchScatter,
        budget=Budget(600.0),
        pace=Pace(),
        launch_s=1.0,
        keep=lambda _subject, limits, _failing: found.append(limits),
        progress=progress,
    ).run([Subject("qa", "cell", drafting, prompts, context_tokens=400)])
    limits = found[-1]
    checks: tuple[LimitCheck, ...] = (
        *limits.concurrent,
        *limits.context,
        *limits.temperature,
        *limits.second_turn,
    )
    assert [check.at for check in checks] == [2, DEPTH, 0.8, 2]
    # Other programs may disturb pairs; what is measured is not.
    assert all("disturbed" in check.note for check in checks if check.note), [c.note for c in checks]
    assert not any("does not draft" in sentence for sentence in progress.told)
    assert all(half.drafted for half in halves if not half.drafting.is_off)
    assert not any(half.drafted for half in halves if half.drafting.is_off)
    deep = [
        half
        for half in halves
        if half.prompt_id in {p.id for p in prompts} and half.prompt_tokens > DEPTH / 2
    ]
    assert not deep, "the text was computed again"
    assert len({half.launch_id for half in halves}) == 4
