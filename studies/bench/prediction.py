"""Prediction compared with a real server: replayed counts and predicted speeds, over a grid of draftings.

Run: ``python -m studies.bench.prediction --model PATH --draft PATH [--draft PATH] [--prompt-type coding]… [--grid small]``

It records the tune prompts once without drafting, passes each draft over the answers, times batches, and then launches every
drafting of the grid and measures it, paired with off. For each drafting it prints tokens drafted and accepted by the server and by
the replay, and the whole-request speed ratio: measured, predicted from batch times alone (before any launch), and predicted after
the first launch of its draft that the search would make. The errors over the grid follow, beside the error from this
machine's noise alone, known from the repeated off.

Goals: accepted within 3 %, drafted within 5 %, speeds within 3 % (median) on a quiet machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

from autospec.backends.protocol import Server
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError
from autospec.measure.measurements import Pair
from autospec.predict.predictor import Predictor
from autospec.prompts.suite import Half, load_suite
from autospec.settings import load_settings
from studies.bench.real_grid import LAUNCH, Questions, bench_parser, draftings, measured_pair, survey
from studies.bench.table_search import print_searches

GRIDS = {
    "small": ((2, 8, 16), (0.0, 0.8)),
    "full": ((1, 2, 4, 8, 16), (0.0, 0.5, 0.8, 0.95)),
}


def main() -> None:
    """Print the tables."""
    parser = bench_parser(__doc__, max_tokens=96)
    parser.add_argument("--prompt-type", action="append", default=[], choices=[str(t) for t in PromptType])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=1, help="pairs of each prompt; a noisy machine needs several"
    )
    parser.add_argument("--grid", choices=list(GRIDS), default="small")
    args = parser.parse_args()

    backend = backend_for(args.backend or None, load_settings())
    suite = load_suite()
    types = [PromptType(t) for t in args.prompt_type] or [PromptType.CODING, PromptType.QA]
    prompts = [(str(t), p) for t in types for p in suite.of(t, Half.TUNE)[: args.prompts]]
    questions = Questions.of(prompts, args.max_tokens)
    n_max, p_min = GRIDS[args.grid]
    modes = backend.capabilities().modes
    grid = [d for d in draftings(args.draft, n_max, p_min) if d.mode in modes]
    off = backend.launch(args.model, OFF, LAUNCH)
    try:
        begun = time.monotonic()
        fresh = survey(backend, off, [args.model, *args.draft], questions, max(n_max))
        survey_s = time.monotonic() - begun
        grid = _best_first(grid, fresh(), [str(t) for t in types])
        table = _compare(
            lambda d: backend.launch(args.model, d, LAUNCH),
            off,
            grid,
            questions,
            fresh(),
            repeats=args.repeats,
        )
    finally:
        off.stop()
    _time_predicting(fresh(), args.draft, [str(t) for t in types])
    print_searches(fresh, table, survey_s)


def _best_first(grid: Sequence[Drafting], predictor: Predictor, types: Sequence[str]) -> list[Drafting]:
    """The same draftings; for each draft, the one that the search would launch first comes first."""
    value = dict.fromkeys(grid, 0.0)
    for t in types:
        for d, p in predictor.predict(t, grid).items():
            value[d] += math.log(p.ratio)
    best: dict[str, Drafting] = {}
    for d in grid:
        key = d.draft or ""
        if key not in best or value[d] > value[best[key]]:
            best[key] = d
    return sorted(grid, key=lambda d: (list(best).index(d.draft or ""), d != best[d.draft or ""]))


def _compare(
    launched: Callable[[Drafting], Server],
    off: Server,
    grid: Sequence[Drafting],
    questions: Questions,
    predictor: Predictor,
    *,
    repeats: int,
) -> dict[Drafting, tuple[list[Pair], float]]:
    """Print the tables; return each drafting's pairs and the seconds of its launch and pairs."""
    prompts = questions.prompts
    cold = {(t, d): p.ratio for t in dict(prompts) for d, p in predictor.predict(t, grid).items()}
    seen: set[str] = set()
    measured: dict[tuple[str, Drafting], float] = {}
    after: dict[tuple[str, Drafting], float] = {}
    table: dict[Drafting, tuple[list[Pair], float]] = {}
    drafted_errors, accepted_errors = [], []
    print("\n| drafting | type | server d/a | replay d/a | measured | predicted cold | after one launch |")
    print("|---|---|---|---|---|---|---|")
    for drafting in grid:
        begun = time.monotonic()
        try:
            server = launched(drafting)
        except AutospecError as error:
            print(f"| {drafting.label} | {error.message} |")
            continue
        try:
            pairs = [
                measured_pair(questions, off, server, t, p, turn=turn)
                for turn in range(repeats)
                for t, p in prompts
            ]
        finally:
            server.stop()
        table[drafting] = pairs, time.monotonic() - begun
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
    spread = _off_spread(table)
    # Of a normal distribution, half lies within 0.67 standard deviations.
    floor = 0.67 * spread * math.sqrt(2 * len(dict(prompts)) / (len(prompts) * repeats))
    print(
        f"one request with drafting off, asked again and again in this run, varied by {100 * spread:.1f} % (SD): a row"
        f" of {len(prompts) * repeats // len(dict(prompts))} pairs would show a median error of {100 * floor:.1f} % for"
        " a perfect prediction"
    )
    return table


def _off_spread(table: dict[Drafting, tuple[list[Pair], float]]) -> float:
    """Standard deviation of ln(duration) of the same prompt without drafting, over the run."""
    asked: dict[str, list[float]] = {}
    for pairs, _ in table.values():
        for pair in pairs:
            asked.setdefault(pair.off.prompt_id, []).append(math.log(pair.off.wall_ms))
    return math.sqrt(statistics.fmean(statistics.variance(t) for t in asked.values() if len(t) > 1))


def _time_predicting(predictor: Predictor, drafts: Sequence[str], types: Sequence[str]) -> None:
    levels = [round(0.005 * k, 3) for k in range(200)]
    many = [d for d in draftings(drafts, range(1, 25), levels) if d.draft]
    if not many:
        return
    begun = time.perf_counter()
    for prompt_type in types:
        predictor.predict(prompt_type, many)
    spent_s = (time.perf_counter() - begun) / len(types)
    print(f"predicted {len(many)} draftings of one prompt type in {spent_s:.2f} s")


if __name__ == "__main__":
    main()
