"""A grid of draftings on a real server, for the benches of prediction and search."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from autospec.backends.flags import WHOLE_BATCHES
from autospec.backends.protocol import Backend, LaunchSettings, Server
from autospec.backends.server import canary
from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking, measure
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.predict.predictor import Predictor
from autospec.predict.profile import Recording
from autospec.predict.recording import DraftPass, pass_of, record, time_batches
from autospec.prompts.suite import Prompt
from autospec.tuning.profiling import keeps_state, output_share, timed_apart

NGRAM = ((4, 16), (6, 24), (12, 48))
LAUNCH = LaunchSettings(args=("-c", "4096"))


def bench_parser(description: str | None, *, max_tokens: int) -> argparse.ArgumentParser:
    """The options of every bench on a real model; `max_tokens` is a default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--backend", default="")
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    return parser


@dataclass(frozen=True)
class Questions:
    """The prompts by type, and their settings."""

    prompts: Sequence[tuple[str, Prompt]]
    asking: Asking

    @classmethod
    def of(cls, prompts: Sequence[tuple[str, Prompt]], max_tokens: int) -> Self:
        """A greedy request with at most `max_tokens` tokens."""
        return cls(prompts, Asking("bench", max_tokens, 0.0, StateWatch()))


def _batches(
    backend: Backend, off: Server, model: str, recording: Recording, largest: int
) -> dict[int, float]:
    """Batches of the main model, in a separate launch if off would split or repeat them."""
    if not timed_apart(model):
        assert off.tokens is not None
        return time_batches(off.tokens, recording, largest)
    args = (*LAUNCH.args, *(a for group in WHOLE_BATCHES for a in group))
    server = backend.launch(model, OFF, replace(LAUNCH, args=args))
    try:
        assert server.tokens is not None
        return time_batches(server.tokens, recording, largest, behind=not keeps_state(model))
    finally:
        server.stop()


def survey(
    backend: Backend, off: Server, models: Sequence[str], questions: Questions, n_max: int
) -> Callable[[], Predictor]:
    """Record, time and pass like a tune; return a factory of predictors that have seen no launch yet.

    The first model is the main one, the others are drafts.
    """
    model, *drafts = models
    longest = max(m for _, m in NGRAM)
    assert off.tokens is not None, "this backend cannot be asked in tokens"
    begun = time.monotonic()
    prompts = questions.prompts
    recordings = {(t, p.id): record(off.tokens, p.id, questions.asking.request(p)) for t, p in prompts}
    typical = sorted(recordings.values(), key=lambda r: len(r.prompt_ids))[len(recordings) // 2]
    batches = _batches(backend, off, model, typical, longest + 1)
    print(f"recorded {len(recordings)} answers and timed batches in {time.monotonic() - begun:.1f} s")
    print("ms for a batch of: " + ", ".join(f"{k}: {v:.1f}" for k, v in batches.items()))
    passes: dict[str, DraftPass] = {}
    for draft in drafts:
        begun = time.monotonic()
        server = backend.launch(draft, OFF, LAUNCH)
        try:
            assert server.tokens is not None
            passes[draft] = pass_of(server.tokens, list(recordings.values()), longest=n_max)
        finally:
            server.stop()
        hits = statistics.fmean(p.acceptance for p in passes[draft].profiles.values())
        print(
            f"{draft}: right at {100 * hits:.1f} % of the tokens; passed in {time.monotonic() - begun:.1f} s"
        )
    by_type = {t: [r for (u, _), r in recordings.items() if u == t] for t, _ in prompts}
    first = record(off.tokens, "canary", canary(OFF))
    return lambda: Predictor(
        by_type,
        list(recordings),
        batches,
        passes,
        longest,
        first=first,
        cycle=backend.capabilities().cycle,
        uncut=keeps_state(model),
        rows=output_share(model),
    )


def measured_pair(
    questions: Questions, off: Server, server: Server, cell: str, prompt: Prompt, *, turn: int = 0
) -> Pair:
    """One prompt on both servers; the order alternates."""
    halves: dict[bool, Measurement] = {}
    # The sum of the id's letters: both orders equally often, the same in every run.
    off_first = (sum(prompt.id.encode()) + turn) % 2 == 0
    for position, is_off in enumerate((off_first, not off_first)):
        halves[is_off] = measure(
            questions.asking,
            off if is_off else server,
            prompt,
            cell_key=cell,
            phase=Phase.BENCH,
            round_=turn,
            compared=server.drafting,
            position=position,
        )
    return Pair(off=halves[True], drafted=halves[False])


def draftings(drafts: Sequence[str], n_max: Sequence[int], p_min: Sequence[float]) -> Iterator[Drafting]:
    """The grid: every n_max × p_min of every draft, then the n-gram modes."""
    for draft in drafts:
        for n in n_max:
            for p in p_min:
                yield Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n, n_min=0, p_min=p)
    for n, m in NGRAM:
        yield Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MAP_K, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MAP_K4V, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MOD, ngram_n=n, n_max=m, n_min=0)
