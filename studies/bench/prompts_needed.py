"""How many prompts of a type choose its drafting well, and what the other types' prompts are worth (`predict.prediction.shrink`).

Run: ``python -m studies.bench.prompts_needed --model PATH [--draft PATH]… [--max-tokens 64] [--keep FILE]``

Every prompt of the suite is answered once without drafting and read once by each draft (`--keep` stores the answers for the next
run). Then, computed: a number of prompts per type is drawn, the drafting that they predict as fastest is chosen, and compared with
the fastest on the type's other prompts, for the costs of three machines. The output is the lost speed, and how often it exceeds
5 %, for the plain estimates (0) and for shrinkage towards other types with constants of 2 to 16.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autospec.backends.protocol import Server
from autospec.backends.registry import Scores, backend_for
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import RequestShape
from autospec.predict.costs import CostCurve, first_guess
from autospec.predict.ngram import pool_of, replay_tokens
from autospec.predict.prediction import PredictedAnswer, expected, replay_drafts, shrunk
from autospec.predict.profile import AnswerProfile, Counts, Recording, profile_answer, profile_scored, stacked
from autospec.predict.recording import record
from autospec.prompts.suite import load_suite
from autospec.settings import load_settings
from studies.bench.real_grid import LAUNCH, Questions, bench_parser

Floats = npt.NDArray[np.float64]
Answers = dict[str, list[Recording]]
Profiles = dict[str, dict[str, AnswerProfile]]

N, M = (3, 4, 6, 8, 12, 16, 24), (8, 12, 16, 24, 32, 48)
NGRAMS = [Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=m, min_hits=1) for n in N for m in M]
NGRAMS += [Drafting(Mode.NGRAM_MOD, ngram_n=n, n_max=m, n_min=0) for n in N for m in M]
N_MAX, P_MIN = (1, 2, 3, 4, 6, 8, 12, 16), (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# One more token in a batch, and one step of the draft, relative to the time of a generated token.
MACHINES = {"memory-bound": (0.03, 0.10), "middling": (0.15, 0.15), "compute-bound": (0.5, 0.2)}
CONSTANTS = (0.0, 2.0, 4.0, 8.0, 16.0)
# Draws to average.
DRAWS = 60


def _answer(recording: Recording, counts: Counts, read: float) -> PredictedAnswer:
    """A recorded answer at its length; the draft takes `read` of the main model's prompt time."""
    shape = RequestShape(len(recording.prompt_ids), len(recording.answer_ids), source="measured")
    return PredictedAnswer(recording, counts, read * recording.prompt_ms, shape)


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__, max_tokens=64)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    answers, profiles = _gathered(args)
    counts = _counts(answers, profiles)
    groups = [["ngrams"], *([d] for d in profiles)] + ([["ngrams", *profiles]] if profiles else [])
    print(f"speed lost in % (more than 5 % in so many % of the cases), by {CONSTANTS}")
    for group in groups:
        for machine in MACHINES:
            tables = [_log_ratios(answers, counts[g], machine, draft=g != "ngrams") for g in group]
            for types in (1, 3, len(answers)):
                for k in (2, 4, 8):
                    lost = _lost(tables, types, k)
                    line = "  ".join(
                        f"{100 * statistics.fmean(v):5.2f} ({100 * np.mean(np.array(v) > 0.05):2.0f})"
                        for v in lost
                    )
                    name = "+".join(Path(g).stem for g in group)
                    print(f"{name[:40]:40} {machine:13} {types:2} types, {k} prompts  {line}", flush=True)


def _gathered(args: argparse.Namespace) -> tuple[Answers, Profiles]:
    if args.keep and args.keep.is_file():
        kept = json.loads(args.keep.read_text(encoding="utf-8"))
        answers = {t: [Recording.from_json(r) for r in own] for t, own in kept["answers"].items()}
        profiles = {d: [AnswerProfile.from_json(p) for p in own] for d, own in kept["profiles"].items()}
        return answers, {d: {p.prompt_id: p for p in own} for d, own in profiles.items()}
    backend = backend_for(args.backend or None, load_settings())
    answers = _recorded(backend.launch(args.model, OFF, LAUNCH), args.max_tokens)
    read: Profiles = {}
    longest = max(len(r.prompt_ids) + len(r.answer_ids) for own in answers.values() for r in own)
    how = {"longest": max(N_MAX), "sampled_misses": 8}
    for draft in args.draft:
        if isinstance(backend, Scores):
            with backend.scorer(draft, longest + max(N_MAX) + 1) as scorer:
                found = [profile_scored(scorer, r, **how) for own in answers.values() for r in own]
        else:
            server = backend.launch(draft, OFF, LAUNCH)
            assert server.tokens is not None
            found = [profile_answer(server.tokens, r, **how) for own in answers.values() for r in own]
            server.stop()
        read[draft] = {p.prompt_id: p for p in found}
        print(f"{draft} has read them", flush=True)
    if args.keep:
        document = {
            "answers": {t: [r.to_json() for r in own] for t, own in answers.items()},
            "profiles": {d: [p.to_json() for p in own.values()] for d, own in read.items()},
        }
        args.keep.write_text(json.dumps(document), encoding="utf-8")
    return answers, read


def _recorded(off: Server, max_tokens: int) -> Answers:
    suite = load_suite()
    prompts = [(str(p.prompt_type), p) for p in suite.prompts]
    asking = Questions.of(prompts, max_tokens).asking
    answers: Answers = {str(t): [] for t in suite.types()}
    assert off.tokens is not None, "this backend cannot be asked in tokens"
    try:
        for t, p in prompts:
            found = record(off.tokens, p.id, asking.request(p))
            if len(found.answer_ids) > 8:  # what is shorter has next to no decoding
                answers[t].append(found)
    finally:
        off.stop()
    return answers


def _counts(answers: Answers, profiles: Profiles) -> dict[str, dict[str, Counts]]:
    """Group → prompt id → the replayed cycles of the group's draftings."""
    everything = [r for own in answers.values() for r in own]
    found = {
        "ngrams": {r.prompt_id: stacked([replay_tokens(pool_of(d), r) for d in NGRAMS]) for r in everything}
    }
    for draft, own in profiles.items():
        grid = _of_draft(draft)
        found[draft] = {r.prompt_id: replay_drafts(own[r.prompt_id], grid, r.max_tokens) for r in everything}
    return found


def _of_draft(draft: str) -> list[Drafting]:
    return [Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n, p_min=p, n_min=0) for n in N_MAX for p in P_MIN]


def _costs(machine: str, token_ms: float, *, draft: bool) -> CostCurve:
    more, step = MACHINES[machine]
    batches = {1: token_ms, max(M) + 1: token_ms * (1.0 + more * max(M))}
    return first_guess(token_ms, batches, {}, step * token_ms if draft else 0.0, max(M))


def _log_ratios(
    answers: Answers, counts: Mapping[str, Counts], machine: str, *, draft: bool
) -> dict[str, Floats]:
    """Type → ln(drafting ÷ off), shape (prompts, draftings)."""
    token_ms = statistics.median(r.token_ms for own in answers.values() for r in own)
    costs = _costs(machine, token_ms, draft=draft)
    read = MACHINES[machine][1] if draft else 0.0
    return {
        t: np.array([expected(_answer(r, counts[r.prompt_id], read), costs)[0] for r in own])
        for t, own in answers.items()
    }


def _lost(tables: Sequence[Mapping[str, Floats]], types: int, k: int) -> list[list[float]]:
    """For each constant, the share of the best speed that each choice loses."""
    rng = np.random.default_rng(2026)
    lost: list[list[float]] = [[] for _ in CONSTANTS]
    names = list(tables[0])
    for _ in range(DRAWS):
        seen: list[list[Floats]] = [[] for _ in tables]
        rest: list[Floats] = []
        for t in rng.choice(names, types, replace=False):
            order = rng.permutation(len(tables[0][t]))
            for own, table in zip(seen, tables, strict=True):
                own.append(table[t][order[:k]].mean(axis=0))
            rest.append(np.concatenate([table[t][order[k:]].mean(axis=0) for table in tables]))
        for own_lost, constant in zip(lost, CONSTANTS, strict=True):
            drawn = [shrunk(np.array(own), np.full(types, float(k)), types_alike=constant) for own in seen]
            for values, true in zip(np.concatenate(drawn, axis=1), rest, strict=True):
                chosen = int(values.argmax())
                got = float(true[chosen]) if values[chosen] > 0 else 0.0
                own_lost.append(1.0 - math.exp(got - max(0.0, float(true.max()))))
    return lost


if __name__ == "__main__":
    main()
