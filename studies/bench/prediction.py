"""Prediction against a real server: replayed counts and predicted speeds, over a grid of draftings.

Run: ``python studies/bench/prediction.py --model PATH --draft PATH [--draft PATH] [--prompt-type coding]… [--grid small]``

Records the tune prompts once with drafting off, passes each draft over the answers, times batches, and then launches
every drafting of the grid and measures it, paired with off. Prints, for each drafting: tokens drafted and accepted by
the server and by the replay; the whole-request speed ratio measured, predicted from batch times alone (no launch had
been made), and predicted after the one launch that the search would make first. At the end the errors over the grid.

Goals: accepted within 3 %, drafted within 5 %, speeds within 3 % (median) on a quiet machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from autospec.backends.in_force import canary
from autospec.backends.protocol import Backend, LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import AutospecError
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.predict.predictor import Predictor
from autospec.predict.survey import DraftPass, pass_of, record, time_batches
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.settings import load_settings

GRIDS = {
    "small": ((2, 8, 16), (0.0, 0.8)),
    "full": ((1, 2, 4, 8, 16), (0.0, 0.5, 0.8, 0.95)),
}
NGRAM = ((4, 16), (6, 24), (12, 48))
LAUNCH = LaunchSettings(args=("-c", "4096"))


@dataclass(frozen=True)
class Questions:
    """What is asked: (prompt type, prompt), and at most how many tokens."""

    prompts: Sequence[tuple[str, Prompt]]
    max_tokens: int

    def request(self, prompt: Prompt) -> Request:
        """The request for one prompt."""
        tokens = min(self.max_tokens, prompt.max_tokens)
        return Request(messages=prompt.messages, max_tokens=tokens, tools=prompt.tools)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", action="append", default=[])
    parser.add_argument("--backend", default="")
    parser.add_argument("--prompt-type", action="append", default=[], choices=[str(t) for t in PromptType])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--grid", choices=list(GRIDS), default="small")
    args = parser.parse_args()

    backend = backend_for(args.backend or None, load_settings())
    suite = load_suite()
    types = [PromptType(t) for t in args.prompt_type] or [PromptType.CODING, PromptType.QA]
    prompts = [(str(t), p) for t in types for p in suite.of(t, Half.TUNE)[: args.prompts]]
    questions = Questions(prompts, args.max_tokens)
    n_max, p_min = GRIDS[args.grid]
    modes = backend.capabilities().modes
    grid = [d for d in _grid(args.draft, n_max, p_min) if d.mode in modes]
    off = backend.launch(args.model, OFF, LAUNCH)
    try:
        predictor = _survey(backend, off, args.draft, questions, max(n_max))
        _compare(lambda d: backend.launch(args.model, d, LAUNCH), off, grid, questions, predictor)
    finally:
        off.stop()


def _survey(
    backend: Backend, off: Server, drafts: Sequence[str], questions: Questions, n_max: int
) -> Predictor:
    longest = max(m for _, m in NGRAM)
    assert off.tokens is not None, "this backend cannot be asked in tokens"
    begun = time.monotonic()
    prompts = questions.prompts
    recordings = {(t, p.id): record(off.tokens, p.id, questions.request(p)) for t, p in prompts}
    typical = sorted(recordings.values(), key=lambda r: len(r.prompt_ids))[len(recordings) // 2]
    batches = time_batches(off.tokens, typical, longest + 1)
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
    return Predictor(by_type, list(recordings), batches, passes, longest, first=first)


def _compare(
    launched: Callable[[Drafting], Server],
    off: Server,
    grid: Sequence[Drafting],
    questions: Questions,
    predictor: Predictor,
) -> None:
    prompts = questions.prompts
    cold = {(t, d): p.ratio for t in dict(prompts) for d, p in predictor.predict(t, grid).items()}
    seen: set[str] = set()
    measured: dict[tuple[str, Drafting], float] = {}
    after: dict[tuple[str, Drafting], float] = {}
    drafted_errors, accepted_errors = [], []
    print("\n| drafting | type | server d/a | replay d/a | measured | predicted cold | after one launch |")
    print("|---|---|---|---|---|---|---|")
    for drafting in grid:
        try:
            server = launched(drafting)
        except AutospecError as error:
            print(f"| {drafting.label} | {error.message} |")
            continue
        try:
            pairs = [_pair(off, server, t, questions.request(p), p.id) for t, p in prompts]
        finally:
            server.stop()
        if (drafting.draft or "") not in seen:
            seen.add(drafting.draft or "")
            predictor.observe(drafting, pairs)
        for t in dict(prompts):
            own = [p for p in pairs if p.off.cell_key == t]
            drafted = sum(p.drafted.drafted or 0 for p in own)
            accepted = sum(p.drafted.accepted or 0 for p in own)
            counts = [c for p in own if (c := predictor.counts(t, p.off.prompt_id, drafting)) is not None]
            replayed = sum(int(c.drafted[0]) for c in counts), sum(int(c.accepted[0]) for c in counts)
            drafted_errors.append((replayed[0] - drafted, drafted))
            accepted_errors.append((replayed[1] - accepted, accepted))
            measured[t, drafting] = math.exp(statistics.fmean(p.log_ratio for p in own))
            after[t, drafting] = predictor.predict(t, [drafting])[drafting].ratio
            print(
                f"| {drafting.label} | {t} | {drafted}/{accepted} | {replayed[0]}/{replayed[1]} "
                f"| {measured[t, drafting]:.3f} | {cold[t, drafting]:.3f} | {after[t, drafting]:.3f} |",
                flush=True,
            )
    print()
    for name, errors in (("drafted", drafted_errors), ("accepted", accepted_errors)):
        total = sum(truth for _, truth in errors)
        print(
            f"{name}: error over the grid {100 * sum(e for e, _ in errors) / max(1, total):+.1f} %, "
            f"absolute {100 * sum(abs(e) for e, _ in errors) / max(1, total):.1f} %"
        )
    for name, predicted in (("cold", cold), ("after one launch", after)):
        errors = sorted(abs(math.log(predicted[key] / measured[key])) for key in measured)
        print(
            f"speed, {name}: median error {100 * statistics.median(errors):.1f} %, "
            f"90th percentile {100 * errors[int(0.9 * (len(errors) - 1))]:.1f} %, of {len(errors)}"
        )


def _pair(off: Server, server: Server, cell: str, request: Request, prompt_id: str) -> Pair:
    halves: dict[bool, Measurement] = {}
    # The sum of the id's letters: either order as often, the same in every run.
    off_first = sum(prompt_id.encode()) % 2 == 0
    for position, is_off in enumerate((off_first, not off_first)):
        side = off if is_off else server
        started = time.time()
        c = side.complete(request)
        halves[is_off] = Measurement(
            cell_key=cell,
            protocol="bench",
            phase=Phase.BENCH,
            round=0,
            drafting=side.drafting,
            compared=server.drafting,
            prompt_id=prompt_id,
            launch_id=side.launch_id,
            position=position,
            started_at=started,
            prompt_tokens=c.prompt_tokens,
            predicted_tokens=c.predicted_tokens,
            prompt_ms=c.prompt_ms,
            predicted_ms=c.predicted_ms,
            wall_ms=c.wall_ms,
            drafted=c.drafted,
            accepted=c.accepted,
            text_digest=c.text,
        )
    return Pair(off=halves[True], drafted=halves[False])


def _grid(drafts: Sequence[str], n_max: Sequence[int], p_min: Sequence[float]) -> Iterator[Drafting]:
    for draft in drafts:
        for n in n_max:
            for p in p_min:
                yield Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n, n_min=0, p_min=p)
    for n, m in NGRAM:
        yield Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MAP_K, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MAP_K4V, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MOD, ngram_n=n, n_max=m, n_min=0)


if __name__ == "__main__":
    main()
