"""The overall answer: the single drafting that is best for a mix of prompt types, for people who run one server.

Candidates are all draftings that were proven, tried or predicted for any prompt type. Each has a figure for each type: from the
pairs of a proof, else from the replay, else none. The overall gain is the time of the mix without drafting divided by its time
with drafting. Only pairs prove it: where a type has none of the best candidate, `OverallProof` asks them after the proofs of
the cells. docs/method.md, "One server for all prompt types", describes the statistics.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from autospec.backends.protocol import Backend
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, UnsupportedError, UsageError
from autospec.formats import log_percent, percent
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import of_mix, of_pairs, prompt_medians
from autospec.measure.measurements import Pair, Phase, Sample, Shapes
from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide
from autospec.prompts.suite import Half, Prompt
from autospec.recommendations import (
    CONDITIONS,
    LIMITS,
    OVERALL_MIX,
    USER_SETTINGS,
    Recommendation,
    Status,
    StoredRecommendation,
    Verdict,
)
from autospec.store.database import Store
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun, TuneSession, TuneStep, acceptance
from autospec.tuning.launch_scatter import known_scatter
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.proof import of_round
from autospec.tuning.resume import EPOCH, REQUESTS
from autospec.tuning.tasks import StoredPairs, Task

__all__ = [
    "Known",
    "Mix",
    "Overall",
    "OverallProof",
    "choose",
    "for_mix",
    "known_types",
    "mix_of",
    "parse_mix",
    "rule_of",
    "to_recommendation",
]

# Live requests that are needed to know the mix, and their age at most.
_LEAST_REQUESTS = 30
TRAFFIC_S = 30 * 86400.0
# A prompt type with a smaller share of the traffic does not count: it would need a proof of its own.
_LEAST_SHARE = 0.01
# A round of the proof. With fewer prompts of a type, it counts as not measured.
_LEAST_PROMPTS = 8
# A candidate that is not measured everywhere is pursued only if it is better than a proven one by this much.
_WORTH = 1.01
_MOST_CANDIDATES = 5
# A disturbed pair is measured again at most so often, as in the cells' proofs.
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of requests by prompt type, which add up to 1; `source` is ``traffic``, ``equal`` or ``asked``."""

    shares: Mapping[PromptType, float]
    source: str
    requests: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "source": self.source,
            "requests": self.requests,
            "shares": {str(kind): round(share, 4) for kind, share in self.shares.items()},
        }


def parse_mix(text: str) -> dict[PromptType, float]:
    """Read weights such as ``coding=3,chat=1``.

    Raises:
        UsageError: A type is unknown or named twice, or a weight is no number above 0.
    """
    weights: dict[PromptType, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            kind, weight = PromptType(name.strip()), float(number)
        except ValueError:
            kind, weight = None, 0.0
        if kind is None or kind in weights or not (0.0 < weight < math.inf):
            raise UsageError(
                f"{part.strip()!r} is not a prompt type with a weight above 0, named once.",
                f"Write e.g. --mix coding=3,chat=1. Prompt types: {', '.join(PromptType)}.",
            )
        weights[kind] = weight
    return weights


def mix_of(
    types: Iterable[PromptType], samples: Iterable[Sample], asked: Mapping[PromptType, float] | None = None
) -> Mix:
    """The mix that counts: the one asked for, else that of the traffic, else equal shares of the tuned `types`."""
    if asked:
        return Mix(_shares(asked), "asked")
    counts = Counter(s.prompt_type for s in samples if s.prompt_type is not None)
    total = counts.total()
    if total >= _LEAST_REQUESTS:
        usual = {kind: float(n) for kind, n in counts.items() if n >= _LEAST_SHARE * total}
        return Mix(_shares(usual), "traffic", total)
    return Mix(_shares(dict.fromkeys(types, 1.0)), "equal")


def _shares(weights: Mapping[PromptType, float]) -> dict[PromptType, float]:
    total = math.fsum(weights.values())
    return {kind: weights[kind] / total for kind in PromptType if kind in weights}


@dataclass(frozen=True, slots=True)
class Known:
    """The figures of one prompt type.

    Attributes:
        recommendation: The cell's own.
        pairs: Drafting → its pairs of proofs.
        predicted: Drafting → speed ratio that the replay expects.
        prompts: Number of prompts that a whole proof asks; ``None`` if it is unknown.
    """

    recommendation: Recommendation
    pairs: Mapping[Drafting, Sequence[Pair]] = field(default_factory=dict)
    predicted: Mapping[Drafting, float] = field(default_factory=dict)
    prompts: int | None = None

    @property
    def answer_tokens(self) -> float:
        """Tokens of the usual answer; 0 if it is unknown."""
        request = self.recommendation.evidence.get("request")
        return float(request.get("answer_tokens") or 0.0) if isinstance(request, Mapping) else 0.0

    def measured(self, drafting: Drafting) -> bool:
        """Whether a drafting has as many prompts here as a round of the proof."""
        asked = len({p.off.prompt_id for p in self.pairs.get(drafting, ())})
        return asked >= min(_LEAST_PROMPTS, self.prompts or _LEAST_PROMPTS)

    def complete(self, drafting: Drafting) -> bool:
        """Whether a drafting was asked every prompt of the proof."""
        asked = len({p.off.prompt_id for p in self.pairs.get(drafting, ())})
        return self.prompts is not None and asked >= self.prompts

    def proves(self, drafting: Drafting) -> bool:
        """Whether the cell's own proof enables this drafting; off where it says that drafting does not pay."""
        r = self.recommendation
        if r.status is not Status.PROVEN or r.verdict is Verdict.UNDECIDED:
            return False
        return r.drafting == drafting

    def ratio(self, drafting: Drafting) -> tuple[float, str] | None:
        """Speed ratio of a drafting and its source, ``proof`` or ``prediction``; ``None`` if it is unknown."""
        if self.measured(drafting):
            medians = prompt_medians(of_pairs(self.pairs[drafting], lambda pair: pair.log_ratio))
            # Of times, not of logarithms: a slow prompt counts by the time that it takes.
            return 1.0 / statistics.fmean(math.exp(-m) for m in medians), "proof"
        if drafting in self.predicted:
            return self.predicted[drafting], "prediction"
        return None


class _Candidate(NamedTuple):
    drafting: Drafting
    ratio: float  # of the mix; an unknown prompt type counts as neither faster nor slower
    lacking: tuple[PromptType, ...]  # types without enough pairs
    decision: Decision | None = None
    rounds: int = 0  # that every type has
    look: int = 0  # the rounds of the look that they belong to


@dataclass(frozen=True, slots=True)
class Overall:
    """The overall answer.

    Attributes:
        mix: What it is for.
        known: The figures of each type of the mix; types that were never tuned are missing.
        time_shares: Type → its part of the mix's time without drafting.
        verdict: As in a recommendation.
        tried: The candidate that the verdict is about; off if there is none.
        decision: The look at its pairs; ``None`` if some type has too few.
        final: True if more rounds would not change the verdict.
        reason: One sentence without its full stop.
        ratio: Expected speed ratio of `tried` on the mix.
        lacks: Types that have too few pairs of `tried`.
        next: The drafting whose pairs would help most; off if none would.
        candidates: The best of them, best first.
        rounds: Rounds that every type has of `tried`.
    """

    mix: Mix
    known: Mapping[PromptType, Known]
    time_shares: Mapping[PromptType, float]
    verdict: Verdict
    tried: Drafting
    decision: Decision | None
    final: bool
    reason: str
    ratio: float
    lacks: tuple[PromptType, ...]
    next: Drafting
    candidates: tuple[_Candidate, ...] = ()
    rounds: int = 0

    def ratio_of(self, kind: PromptType, drafting: Drafting) -> tuple[float, str] | None:
        """As `Known.ratio`; ``None`` for a type that was never tuned."""
        known = self.known.get(kind)
        return None if known is None else known.ratio(drafting)

    @property
    def by_type(self) -> float:
        """Speed ratio of the mix with one drafting for each type, as the cells' recommendations enable them."""
        return self._mixed(
            {kind: found[0] for kind, known in self.known.items() if (found := _own(known)) is not None}
        )

    def _mixed(self, ratios: Mapping[PromptType, float]) -> float:
        return _mixed(self.time_shares, ratios)


def _own(known: Known) -> tuple[float, str] | None:
    r = known.recommendation
    if r.drafting.is_off:
        return None
    return known.ratio(r.drafting) or (None if r.speedup is None else (r.speedup, "proof"))


def _mixed(time_shares: Mapping[PromptType, float], ratios: Mapping[PromptType, float]) -> float:
    """Time without drafting ÷ time with it; types without a ratio keep their time."""
    return 1.0 / math.fsum(share / ratios.get(kind, 1.0) for kind, share in time_shares.items())


def choose(
    known: Mapping[PromptType, Known],
    mix: Mix,
    rule: Rule = DEFAULT_RULE,
    scatter: LaunchScatter = LaunchScatter(),  # noqa: B008 - a frozen value
    *,
    looked: Mapping[str, int] | None = None,
) -> Overall:
    """Choose the best single drafting for a mix, and judge it by the pairs of all types. Pure.

    Args:
        known: The figures of each tuned type; types outside the mix do not count.
        mix: The mix.
        rule: The verdict's rule. Draftings that are measured in all types share its error rate.
        scatter: How much launches on this machine differ.
        looked: Key of a drafting → rounds of the last look that did not enable it. It is not enabled at that look later.
    """
    here = {kind: known[kind] for kind in mix.shares if kind in known}
    times = _time_shares(mix, here)
    if len(here) == len(mix.shares) == 1:
        return _of_one_type(here, mix, rule, scatter)
    draftings = {d for own in here.values() for d in (own.recommendation.tried, *own.pairs, *own.predicted)}
    draftings.discard(OFF)
    judged = [d for d in draftings if not _lacking(mix, here, d)]
    shared = rule.shared(max(1, len(judged)))
    found = []
    for drafting in draftings:
        figures = {kind: figure[0] for kind, own in here.items() if (figure := own.ratio(drafting))}
        candidate = _Candidate(drafting, _mixed(times, figures), _lacking(mix, here, drafting))
        if drafting in judged:
            last = (looked or {}).get(drafting.key, 0)
            decision, rounds, look = _look(drafting, here, times, shared, scatter=scatter, looked=last)
            candidate = candidate._replace(decision=decision, rounds=rounds, look=look)
        found.append(candidate)
    found.sort(key=lambda c: (-c.ratio, c.drafting.key))
    best = next(
        (c for c in found if c.decision is not None and c.decision.verdict is Verdict.ENABLE),
        found[0] if found else None,
    )
    verdict, final, reason = _judged(best, mix, here, rule)
    pursued = next((c for c in found if c.decision is None or not c.decision.final), None)
    wanted = OFF
    # A smaller gain is not worth more measuring, as in the cells' proofs. What every type's own proof says is not measured again.
    served = best.drafting if best is not None and verdict is Verdict.ENABLE else OFF
    agreed = verdict is not Verdict.UNDECIDED and len(here) == len(mix.shares)
    agreed = agreed and all(own.proves(served) for own in here.values())
    if pursued is not None and not agreed and pursued.ratio > 1.0 + rule.worth_proving:
        enabled = best is not None and verdict is Verdict.ENABLE
        if best is None or not enabled or pursued.ratio > _WORTH * best.ratio:
            wanted = pursued.drafting
    return Overall(
        mix=mix,
        known=here,
        time_shares=times,
        verdict=verdict,
        tried=OFF if best is None else best.drafting,
        decision=None if best is None else best.decision,
        final=final,
        reason=reason,
        ratio=1.0 if best is None else best.ratio,
        lacks=() if best is None else best.lacking,
        next=wanted,
        candidates=tuple(found[:_MOST_CANDIDATES]),
        rounds=0 if best is None else best.rounds,
    )


def _of_one_type(known: Mapping[PromptType, Known], mix: Mix, rule: Rule, scatter: LaunchScatter) -> Overall:
    """The answer for a mix of one prompt type: the type's own, with its own figures; nothing is measured for it."""
    own, times = next(iter(known.values())), dict.fromkeys(mix.shares, 1.0)
    r, final = own.recommendation, own.recommendation.status is Status.PROVEN
    found = own.ratio(r.tried)
    best = _Candidate(r.tried, found[0] if found else r.speedup or 1.0, _lacking(mix, known, r.tried))
    if not best.lacking:
        decision, rounds, look = _look(r.tried, known, times, rule, scatter=scatter, looked=0)
        # The type's proof has decided, with the looks and the predictions that it had.
        decision = dataclasses.replace(decision, verdict=r.verdict, final=final)
        best = best._replace(decision=decision, rounds=rounds, look=look)
    return Overall(
        mix=mix,
        known=known,
        time_shares=times,
        verdict=r.verdict,
        tried=r.tried,
        decision=best.decision,
        final=final,
        reason=r.reason.rstrip("."),
        ratio=best.ratio,
        lacks=best.lacking,
        next=OFF,
        candidates=() if r.tried.is_off else (best,),
        rounds=best.rounds,
    )


def _time_shares(mix: Mix, known: Mapping[PromptType, Known]) -> dict[PromptType, float]:
    """The part of the mix's time without drafting that each type takes, by the length of its usual request."""
    off_ms = {
        kind: (known[kind].answer_tokens, known[kind].recommendation.baseline_tps or 0.0)
        for kind in mix.shares
        if kind in known
    }
    told = {kind: 1000.0 * tokens / tps for kind, (tokens, tps) in off_ms.items() if tokens > 0.0 < tps}
    # A type without a measured request is taken to be as long as the others.
    usual_ms = statistics.fmean(told.values()) if told else 1.0
    times = {kind: share * told.get(kind, usual_ms) for kind, share in mix.shares.items()}
    total = math.fsum(times.values())
    return {kind: time / total for kind, time in times.items()}


def _lacking(mix: Mix, known: Mapping[PromptType, Known], drafting: Drafting) -> tuple[PromptType, ...]:
    return tuple(kind for kind in mix.shares if kind not in known or not known[kind].measured(drafting))


def _look(
    drafting: Drafting,
    known: Mapping[PromptType, Known],
    time_shares: Mapping[PromptType, float],
    rule: Rule,
    *,
    scatter: LaunchScatter,
    looked: int,
) -> tuple[Decision, int, int]:
    """The decision about a drafting that is measured in every type, the rounds that every type has of it, and the look."""
    values, rounds = of_mix(
        {str(kind): own.pairs[drafting] for kind, own in known.items()},
        {str(kind): share for kind, share in time_shares.items()},
    )
    complete = all(own.complete(drafting) for own in known.values())
    decision = decide(values, rounds, rule, complete=complete, scatter=scatter)
    reached = max((at for at in rule.looks if at <= rounds), default=0)
    if decision.verdict is Verdict.ENABLE and reached <= looked:
        # Between two looks, later pairs would be one more look with the error rate of the earlier one.
        decision = dataclasses.replace(
            decision,
            verdict=Verdict.UNDECIDED,
            final=rounds >= rule.looks[-1],
            reason=f"{decision.reason}, at a look that was taken before",
        )
    if all(own.proves(drafting) for own in known.values()):
        # If the mix gained less than the threshold, one of these proofs would be wrong, which has the error rate of one.
        reason = "each prompt type's own proof enables it"
        if decision.estimate is not None:
            reason += f"; over all of them {log_percent(decision.estimate.center)}"
        decision = dataclasses.replace(decision, verdict=Verdict.ENABLE, final=True, reason=reason)
    return decision, rounds, reached


def _judged(
    best: _Candidate | None, mix: Mix, known: Mapping[PromptType, Known], rule: Rule
) -> tuple[Verdict, bool, str]:
    """Verdict, whether it is final, and the reason without its full stop."""
    never = [kind for kind in mix.shares if kind not in known]
    own = [k.recommendation for k in known.values()]
    nothing_gains = bool(own) and all(r.verdict is Verdict.DISABLE for r in own) and not never
    if best is not None and best.decision is not None:
        decision = best.decision
        if decision.verdict is Verdict.UNDECIDED and nothing_gains:
            return Verdict.DISABLE, True, "no prompt type gains by drafting"
        return decision.verdict, decision.final, decision.reason
    if nothing_gains:
        return Verdict.DISABLE, True, "no prompt type gains by drafting"
    if best is None:
        what = f" for {_names(never)} prompts" if never else ""
        return Verdict.UNDECIDED, False, f"no drafting was measured{what}"
    lacking = _names(best.lacking)
    if best.ratio <= 1.0 + rule.worth_proving:
        reason = (
            f"the best single drafting is expected to change the speed of the mix by {percent(best.ratio)},"
            f" too little to measure it for {lacking} prompts"
        )
    else:
        reason = (
            f"{best.drafting.label} is expected to change the speed of the mix by {percent(best.ratio)}, but was not measured"
            f" for {lacking} prompts; run tune for all prompt types to measure it there"
        )
    return Verdict.UNDECIDED, False, reason


def _names(kinds: Iterable[PromptType]) -> str:
    names = [str(kind) for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# What the store knows, and how the answer is stored.


def known_types(
    store: Store, found: Iterable[StoredRecommendation], prompts: Mapping[PromptType, int]
) -> dict[PromptType, Known]:
    """The figures of each type, from its recommendation and the pairs of its proofs.

    Args:
        store: The database.
        found: The recommendations of one model's cells with the same build, machine and settings.
        prompts: Type → number of prompts that a whole proof asks, where it is known.
    """
    return {
        s.recommendation.prompt_type: Known(
            recommendation=s.recommendation,
            pairs=_pairs(store, s.cell_key, s.recommendation.evidence),
            predicted=_predicted(s.recommendation),
            prompts=prompts.get(s.recommendation.prompt_type),
        )
        for s in found
        if s.recommendation.prompt_type is not None
    }


def _pairs(store: Store, cell_key: str, evidence: Mapping[str, Any]) -> dict[Drafting, list[Pair]]:
    protocol, requests = evidence.get("protocol"), evidence.get(REQUESTS)
    if not protocol or requests is None:
        return {}
    since_s = float(evidence.get(EPOCH) or 0.0)
    stored = StoredPairs(store, protocol, {cell_key: since_s}, {cell_key: Shapes.from_json(requests)})
    rows = store.measurements(cell_key, protocol=protocol, phase=Phase.PROVE, since=since_s)
    found = {d: stored.known(cell_key, d, Phase.PROVE) for d in dict.fromkeys(m.compared for m in rows)}
    return {drafting: pairs for drafting, pairs in found.items() if pairs}


def _predicted(r: Recommendation) -> dict[Drafting, float]:
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return {}
    found = {
        drafting: float(entry["expected"])
        for entry in prediction.get("candidates") or ()
        if (drafting := Drafting.understood(entry["drafting"])) is not None
    }
    if prediction.get("expected") and prediction.get("trusted") and not r.tried.is_off:
        found[r.tried] = float(prediction["expected"])
    return found


def rule_of(found: Iterable[Recommendation]) -> Rule:
    """The rule that the cells' verdicts used, as far as their evidence tells it."""
    told = [r.evidence for r in found if "threshold" in r.evidence and "error_rate" in r.evidence]
    if not told:
        return DEFAULT_RULE
    return dataclasses.replace(
        DEFAULT_RULE,
        threshold=max(float(e["threshold"]) for e in told),
        error_rate=min(float(e["error_rate"]) for e in told),
    )


def to_recommendation(
    answer: Overall, rule: Rule, *, args: Sequence[str] = (), command: Sequence[str] = ()
) -> Recommendation:
    """The answer as a recommendation for any prompt type; some type must be known.

    `args` are the server arguments of `tried` in this build, `command` the whole command.
    """
    like = next(iter(answer.known.values())).recommendation
    enabled = answer.verdict is Verdict.ENABLE
    estimate = None if answer.decision is None else answer.decision.estimate
    pairs = [p for known in answer.known.values() for p in known.pairs.get(answer.tried, ())]
    baseline_tps = _baseline_tps(answer)
    speedup = None if estimate is None else estimate.ratio
    interval = None if estimate is None else estimate.interval
    status = Status.PROVEN if answer.final else Status.PROVISIONAL
    kept: tuple[str, ...] = ("settings", USER_SETTINGS, "basis")
    decided = {} if answer.decision is None else answer.decision.to_json()
    if len(answer.mix.shares) == 1:  # the answer is that type's own
        baseline_tps, speedup, interval = like.baseline_tps, like.speedup, like.speedup_ci
        status, kept = like.status, (*kept, *decided, CONDITIONS, LIMITS)
    served = answer.ratio if enabled else 1.0
    slows = [
        str(kind)
        for kind in answer.mix.shares
        if (found := answer.ratio_of(kind, answer.tried)) is not None and found[0] < 1.0
    ]
    evidence: dict[str, Any] = {
        OVERALL_MIX: answer.mix.to_json(),
        "types": [_type_json(answer, kind) for kind in answer.mix.shares],
        "expected": round(answer.ratio, 4),
        "one_per_type": round(answer.by_type, 4),
        "loses": round(max(0.0, 1.0 - served / answer.by_type), 4),
        "slows": slows,
        "lacks": [str(kind) for kind in answer.lacks],
        "candidates": [
            {
                "drafting": c.drafting.to_json(),
                "ratio": round(c.ratio, 4),
                "lacks": [str(kind) for kind in c.lacking],
                "verdict": str(Verdict.UNDECIDED if c.decision is None else c.decision.verdict),
            }
            for c in answer.candidates
        ],
        "args": list(args),
        "command": list(command),
        "threshold": rule.threshold,
        "error_rate": rule.error_rate,
        "rounds": answer.rounds,
    }
    evidence |= decided | {name: like.evidence[name] for name in kept if name in like.evidence}
    return Recommendation(
        model=like.model,
        model_path=like.model_path,
        backend=like.backend,
        backend_build=like.backend_build,
        prompt_type=None,
        verdict=answer.verdict,
        drafting=answer.tried if enabled else OFF,
        tried=answer.tried,
        baseline_tps=baseline_tps,
        drafting_tps=None if baseline_tps is None or speedup is None else baseline_tps * speedup,
        speedup=speedup,
        speedup_ci=interval,
        pairs=len(pairs),
        acceptance=acceptance(pairs),
        reason=f"{answer.reason[0].upper()}{answer.reason[1:]}.",
        status=status,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        evidence=evidence,
    )


def _type_json(answer: Overall, kind: PromptType) -> dict[str, Any]:
    found, known = answer.ratio_of(kind, answer.tried), answer.known.get(kind)
    own = None if known is None else _own(known)
    return {
        "prompt_type": str(kind),
        "share": round(answer.mix.shares[kind], 4),
        "time_share": round(answer.time_shares[kind], 4),
        "ratio": None if found is None else round(found[0], 4),
        "source": None if found is None else found[1],
        "pairs": 0 if known is None else len(known.pairs.get(answer.tried, ())),
        "prompts": None if known is None else known.prompts,
        "cell": None if known is None else known.recommendation.evidence.get("cell"),
        "created_at": None if known is None else known.recommendation.created_at,
        "own": None
        if known is None or own is None
        else {"drafting": known.recommendation.drafting.to_json(), "ratio": round(own[0], 4)},
    }


def _baseline_tps(answer: Overall) -> float | None:
    """Tokens per second of the mix without drafting; ``None`` if the request of some type is unknown."""
    told = [
        (share * known.answer_tokens, known.recommendation.baseline_tps or 0.0)
        for kind, share in answer.mix.shares.items()
        if (known := answer.known.get(kind)) is not None
    ]
    if len(told) < len(answer.mix.shares) or not all(tokens > 0.0 < tps for tokens, tps in told):
        return None
    return math.fsum(tokens for tokens, _ in told) / math.fsum(tokens / tps for tokens, tps in told)


def for_mix(
    store: Store,
    stored: Iterable[StoredRecommendation],
    answers: Iterable[Recommendation],
    weights: Mapping[PromptType, float],
) -> list[Recommendation]:
    """Overall answers for a mix that the user asks for, from what is stored; nothing is measured.

    Args:
        store: The database.
        stored: The recommendations, of any models and backends.
        answers: Their overall answers: they know how many prompts a proof has.
        weights: Prompt type → weight.
    """
    groups: dict[tuple[str, str, str], list[StoredRecommendation]] = {}
    for s in stored:
        r = s.recommendation
        if r.prompt_type is not None:
            groups.setdefault((r.model, r.backend, s.hardware.id), []).append(s)
    before = {(r.model, r.backend): r.evidence.get("types", ()) for r in answers}
    found = []
    for name, own in groups.items():
        prompts = {
            PromptType(e["prompt_type"]): int(e["prompts"])
            for e in before.get(name[:2], ())
            if e.get("prompts")
        }
        known = known_types(store, own, prompts)
        rule = rule_of(k.recommendation for k in known.values())
        answer = choose(known, mix_of(known, (), weights), rule, _scatter_of(known))
        if answer.known:
            found.append(to_recommendation(answer, rule, **_commands(answer)))
    return found


def _scatter_of(known: Mapping[PromptType, Known]) -> LaunchScatter:
    """The scatter of launches that the newest verdict knew."""
    newest = sorted(known.values(), key=lambda k: k.recommendation.created_at)
    told = [e for k in newest if isinstance(e := k.recommendation.evidence.get("launch_scatter"), Mapping)]
    if not told:
        return LaunchScatter()
    return LaunchScatter(*(told[-1][name] for name in ("sd", "freedom", "resolution", "comparisons")))


def _commands(answer: Overall) -> dict[str, Sequence[str]]:
    """The server arguments of the answer's drafting, as some prompt type's recommendation has them."""
    for known in answer.known.values():
        r = known.recommendation
        if r.tried == answer.tried and r.evidence.get("args"):
            return {"args": r.evidence["args"], "command": r.evidence.get("command", ())}
    return {}


class OverallProof:
    """Finds the overall answer at the end of a tune, asks the pairs that it lacks, and stores it.

    Args:
        session: The tune.
        cells: Its cells: only they can be asked.
        backend: Launches the servers.
        budget: Its budget; what is left of it may be spent.
        resident: How many launches fit into memory; asked only before one is made.
        step: Shown what is measured.
    """

    def __init__(
        self,
        session: TuneSession,
        cells: Sequence[CellRun],
        backend: Backend,
        budget: Budget,
        *,
        resident: Callable[[], int],
        step: Callable[[TuneStep], None],
    ) -> None:
        self._session = session
        self._cells = {c.prompt_type: c for c in cells}
        self._cell = cells[0].cell
        self._backend = backend
        self._budget = budget
        self._resident = resident
        self._step = step
        self._rule = session.request.definition.rule
        # Draftings and rounds of a type that were asked here, even if some pairs did not count.
        self._asked: set[tuple[Drafting, PromptType, int]] = set()
        self._looked: dict[str, int] | None = None

    def run(self) -> None:
        """Choose, measure what is missing while the budget lasts, and store the answer."""
        answer = self._choose()
        if not answer.known:
            return
        if self._can_measure(answer):
            with self._pairing() as pairing:
                while self._can_measure(answer) and self._measure(answer, pairing):
                    answer = self._choose()
        self._save(answer)

    def _choose(self) -> Overall:
        request, store = self._session.request, self._session.store
        keys = [self._key(kind) for kind in PromptType]
        found = [
            s
            for s in store.recommendations(cell_keys=keys)
            if s.recommendation.evidence.get("protocol") in (None, request.protocol)
        ]
        prompts = {
            kind: len(own) for kind in request.suite.types() if (own := request.suite.of(kind, Half.PROVE))
        }
        known = known_types(store, found, prompts)
        samples = store.samples(
            since=time.time() - TRAFFIC_S, model=request.model.name, backend=self._cell.build.backend
        )
        mix = mix_of(known, samples, request.mix)
        compared = " ".join((request.model.name, *request.args))
        scatter = known_scatter(store, self._session.hardware.id, self._cell.build, compared)
        if self._looked is None:
            self._looked = self._earlier_looks(known)
        answer = choose(known, mix, self._rule, scatter, looked=self._looked)
        for c in answer.candidates:
            if c.decision is not None and c.decision.verdict is not Verdict.ENABLE:
                self._looked[c.drafting.key] = max(c.look, self._looked.get(c.drafting.key, 0))
        return answer

    def _key(self, kind: PromptType) -> str:
        return dataclasses.replace(self._cell, prompt_type=kind).key

    def _earlier_looks(self, known: Mapping[PromptType, Known]) -> dict[str, int]:
        """Looks of earlier tunes at the same pairs, unless a type was measured from the start since."""
        found = self._session.store.overall_answers([self._cell.launch_key])
        looks = found[0].recommendation.evidence.get("looks") if found else None
        return {
            drafting.key: int(entry["rounds"])
            for entry in looks or ()
            if (drafting := Drafting.understood(entry["drafting"])) is not None
            and entry["since"] >= _since_s(known)
        }

    def _can_measure(self, answer: Overall) -> bool:
        """Whether this tune may ask every type that lacks pairs of the drafting that is to be measured."""
        if answer.next.is_off:
            return False
        done = self._rounds(answer)
        target = min(done.values()) + 1
        asked = [kind for kind, rounds in done.items() if rounds < target]
        return target <= self._rule.looks[-1] and all(kind in self._cells for kind in asked)

    def _rounds(self, answer: Overall) -> dict[PromptType, int]:
        """The complete rounds that each type of the mix has of the drafting that is to be measured."""
        return {kind: self._rounds_of(answer, kind) for kind in answer.mix.shares}

    def _rounds_of(self, answer: Overall, kind: PromptType) -> int:
        known = answer.known.get(kind)
        pairs = () if known is None else known.pairs.get(answer.next, ())
        seen = {(p.off.round, p.off.prompt_id) for p in pairs}
        if kind not in self._cells:
            return len({round_ for round_, _ in seen})
        done = 0
        while done < self._rule.looks[-1]:
            wanted = {(done + 1, prompt.id) for prompt in self._prompts(kind, done + 1)}
            if not (wanted <= seen or (answer.next, kind, done + 1) in self._asked):
                break
            done += 1
        return done

    def _prompts(self, kind: PromptType, round_: int) -> Sequence[Prompt]:
        per_round = self._session.request.definition.prompts_per_round
        return of_round(self._cells[kind].prove_prompts, round_, per_round)

    def _measure(self, answer: Overall, pairing: PairedRunner) -> bool:
        """One round of the types that have the fewest. Returns whether it found anything new."""
        drafting, done = answer.next, self._rounds(answer)
        round_ = min(done.values()) + 1
        # The types that take most of the time come first, if the budget is not enough for all.
        kinds = sorted((k for k in done if done[k] < round_), key=lambda k: -answer.time_shares[k])
        tasks = []
        for kind in kinds:
            key = self._cells[kind].cell.key
            pairing.note_stored(key, drafting)
            pairing.note_stored(key, answer.known[kind].recommendation.tried)
            tasks.append([Task.of(key, prompt) for prompt in self._prompts(kind, round_)])
        first = pairing.missing(tasks[0], drafting, Phase.PROVE, round_)
        if not self._budget.allows(pairing.expected_s(first, drafting)):
            return False
        self._session.tell(
            f"All prompt types together: measuring {drafting.label} for {_names(kinds)} prompts."
        )
        everything = [task for own in tasks for task in own]
        moved, last = False, self._rule.looks[-1]
        try:
            block = pairing.block(
                everything, drafting, Phase.PROVE, round_, repeats=_REPEATS, budget=self._budget
            )
            for number, measured in enumerate(block, start=1):
                moved = moved or not measured.disturbed
                left_s = self._budget.until_end_s
                self._step(TuneStep("overall", drafting, round_, last, number, len(everything), left_s))
        except BackendError as error:
            self._session.tell(
                f"{drafting.label}: it could not be measured for all prompt types. {error.message}"
            )
            return False
        self._asked |= {(drafting, kind, round_) for kind in kinds}
        return moved

    @contextmanager
    def _pairing(self) -> Iterator[PairedRunner]:
        """Servers of their own, on which the pairs are measured."""
        request, store = self._session.request, self._session.store
        found = store.recommendations(cell_keys=[c.cell.key for c in self._cells.values()])
        evidence = {s.cell_key: s.recommendation.evidence for s in found}
        with Launches(
            self._backend,
            str(request.model.path),
            request.settings(),
            resident=self._resident(),
            tell=self._session.tell,
        ) as launches:
            watch = StateWatch(lambda: launches.pids)
            yield PairedRunner(
                launches,
                Asking(request.protocol, request.definition.max_tokens, request.temperature, watch),
                store,
                since={key: float(e.get(EPOCH) or 0.0) for key, e in evidence.items()},
                tell=self._session.tell,
                budget_s=self._budget.total_s,
                shapes={key: Shapes.from_json(e[REQUESTS]) for key, e in evidence.items() if e.get(REQUESTS)},
            )

    def _save(self, answer: Overall) -> None:
        request = self._session.request
        args: Sequence[str] = ()
        command: Sequence[str] = ()
        try:
            command = self._backend.command(str(request.model.path), answer.tried, request.settings())
            args = self._backend.drafting_args(str(request.model.path), answer.tried, request.settings())
        except UnsupportedError:
            pass  # the model has no drafting at all
        r = to_recommendation(answer, self._rule, args=args, command=command)
        looks = [
            {
                "drafting": c.drafting.to_json(),
                "rounds": self._looked[c.drafting.key],
                "since": _since_s(answer.known),
            }
            for c in answer.candidates
            if self._looked and c.drafting.key in self._looked
        ]
        r = dataclasses.replace(r, evidence={**r.evidence, "study": request.definition.name, "looks": looks})
        self._session.store.save_overall(r, self._session.hardware, self._cell.launch_key)


def _since_s(known: Mapping[PromptType, Known]) -> float:
    """When the newest of the types' measurements began to count, in seconds since the epoch."""
    return max((float(k.recommendation.evidence.get(EPOCH) or 0.0) for k in known.values()), default=0.0)
