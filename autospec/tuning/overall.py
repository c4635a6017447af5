"""The overall answer: the single drafting that is best for a mix of prompt types, for people who run one server. Pure.

Candidates are all draftings that were proven, tried or predicted for any prompt type. Each has a figure for each type: from the
pairs of a proof, else from the replay, else none. The overall gain is the time of the mix without drafting divided by its time
with drafting. Only pairs prove it: where a type has none of the best candidate, `autospec.tuning.overall_proof` asks them after
the proofs of the cells. docs/method.md, "One server for all prompt types", describes the statistics.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autospec.cells import Aim, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import UsageError
from autospec.formats import log_percent, percent
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import of_mix, of_pairs, prompt_medians
from autospec.measure.measurements import LEAST_REQUESTS, Pair, Sample
from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide, refused
from autospec.recommendations import (
    Recommendation,
    Status,
    Verdict,
)

__all__ = [
    "Candidate",
    "Known",
    "Mix",
    "Overall",
    "choose",
    "mix_of",
    "names_of",
    "own_ratio",
    "parse_mix",
    "refuse_mix",
]

# A prompt type with a smaller share of the traffic does not count: it would need a proof of its own.
_LEAST_SHARE = 0.01
# A round of the proof. With fewer prompts of a type, it counts as not measured.
_LEAST_PROMPTS = 8
# A round with a smaller part of the largest one's pairs was interrupted, or its budget ended: it belongs to a later look.
_LEAST_OF_ROUND = 0.75
_MOST_CANDIDATES = 5


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


def refuse_mix(aim: Aim) -> None:
    """Refuse weights of prompt types where there is no answer for a mix.

    Raises:
        UsageError: The aim is energy.
    """
    if aim is Aim.ENERGY:
        raise UsageError(
            "--mix weighs times, so there is no answer for a mix with the aim energy.",
            "Leave --mix out, or use the aim speed.",
        )


def mix_of(
    types: Iterable[PromptType], samples: Iterable[Sample], asked: Mapping[PromptType, float] | None = None
) -> Mix:
    """The mix that counts: the one asked for, else that of the traffic, else equal shares of the tuned `types`."""
    if asked:
        return Mix(_shares(asked), "asked")
    counts = Counter(s.prompt_type for s in samples if s.prompt_type is not None)
    total = counts.total()
    if total >= LEAST_REQUESTS:
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
        failing: Drafting → ids of the prompts that fail with it and not without; of off, those of the proof that fail without.
    """

    recommendation: Recommendation
    pairs: Mapping[Drafting, Sequence[Pair]] = field(default_factory=dict)
    predicted: Mapping[Drafting, float] = field(default_factory=dict)
    prompts: int | None = None
    failing: Mapping[Drafting, frozenset[str]] = field(default_factory=dict)

    @property
    def answer_tokens(self) -> float:
        """Tokens of the usual answer; 0 if it is unknown."""
        request = self.recommendation.evidence.get("request")
        return float(request.get("answer_tokens") or 0.0) if isinstance(request, Mapping) else 0.0

    @property
    def answered(self) -> int | None:
        """Number of prompts of a whole proof that off answers; ``None`` if it is unknown."""
        return None if self.prompts is None else self.prompts - len(self.failing.get(OFF, ()))

    def measured(self, drafting: Drafting) -> bool:
        """Whether a drafting has as many prompts here as a round of the proof."""
        asked = len({p.off.prompt_id for p in self.pairs.get(drafting, ())})
        return asked >= min(_LEAST_PROMPTS, self.answered or _LEAST_PROMPTS)

    def complete(self, drafting: Drafting) -> bool:
        """Whether a drafting was asked every prompt of the proof that off answers."""
        # One that off answered once, and failed later, is not among those that it answers.
        asked = {p.off.prompt_id for p in self.pairs.get(drafting, ())} - self.failing.get(OFF, frozenset())
        return self.answered is not None and len(asked) >= self.answered

    def in_whole_rounds(self, drafting: Drafting) -> Known:
        """The same without the pairs of a drafting's unfinished rounds: to look at them would spend a look on a part of its pairs."""
        own = self.pairs[drafting]
        sizes = Counter(p.off.round for p in own)
        least = _LEAST_OF_ROUND * max(sizes.values())
        whole = [p for p in own if sizes[p.off.round] >= least]
        return dataclasses.replace(self, pairs={**self.pairs, drafting: whole})

    def proves(self, drafting: Drafting) -> bool:
        """Whether the cell's own proof enables this drafting; off where it says that drafting does not pay."""
        r = self.recommendation
        if r.status is not Status.PROVEN or r.verdict is Verdict.UNDECIDED:
            return False
        return r.drafting == drafting

    def ratio(self, drafting: Drafting) -> tuple[float, str] | None:
        """Speed ratio of a drafting and its source, ``proof`` or ``prediction``; ``None`` if it is unknown."""
        if self.measured(drafting):
            medians = prompt_medians(of_pairs(self.pairs[drafting]))
            # Of times, not of logarithms: a slow prompt counts by the time that it takes.
            return 1.0 / statistics.fmean(math.exp(-m) for m in medians), "proof"
        if drafting in self.predicted:
            return self.predicted[drafting], "prediction"
        return None


class Candidate(NamedTuple):
    """A drafting that could serve the whole mix."""

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
        candidates: The best of them, best first, and among them `tried` and `next`.
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
    candidates: tuple[Candidate, ...] = ()
    rounds: int = 0

    def ratio_of(self, kind: PromptType, drafting: Drafting) -> tuple[float, str] | None:
        """As `Known.ratio`; ``None`` for a type that was never tuned."""
        known = self.known.get(kind)
        return None if known is None else known.ratio(drafting)

    @property
    def by_type(self) -> float:
        """Speed ratio of the mix with one drafting for each type, as the cells' recommendations enable them."""
        found = {kind: own_ratio(known) for kind, known in self.known.items()}
        return _mixed(self.time_shares, {kind: own[0] for kind, own in found.items() if own is not None})


def own_ratio(known: Known) -> tuple[float, str] | None:
    """Speed ratio and source of what the type's own recommendation enables; ``None`` for off."""
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
    looked: Mapping[Drafting, int] | None = None,
) -> Overall:
    """Choose the best single drafting for a mix, and judge it by the pairs of all types. Pure.

    Args:
        known: The figures of each tuned type; types outside the mix do not count.
        mix: The mix.
        rule: The verdict's rule. Draftings that are measured in all types share its error rate.
        scatter: How much launches on this machine differ.
        looked: Drafting → rounds of the last look that did not enable it. It is not enabled at that look later.
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
        candidate = Candidate(drafting, _mixed(times, figures), _lacking(mix, here, drafting))
        if drafting in judged:
            last = (looked or {}).get(drafting, 0)
            decision, rounds, look = _look(drafting, here, times, shared, scatter=scatter, looked=last)
            candidate = candidate._replace(decision=decision, rounds=rounds, look=look)
        if fails := sum(len(own.failing.get(drafting, ())) for own in here.values()):
            # Measured in every type or not: more pairs would not change it.
            candidate = candidate._replace(decision=refused(candidate.decision or decide((), 0), fails))
        found.append(candidate)
    found.sort(key=lambda c: (-c.ratio, c.drafting.key))
    enabled = next(
        (c for c in found if c.decision is not None and c.decision.verdict is Verdict.ENABLE), None
    )
    pursued = _pursued(found, rule, 1.0 if enabled is None else enabled.ratio)
    # As long as it is open whether the one with the greatest gain pays, the answer is about the one that is measured next.
    leading = pursued if pursued is not None and _is_open(found[0]) else next(iter(found), None)
    best = enabled or leading
    verdict, final, reason = _judged(best, mix, here, rule)
    # What every type's own proof says is not measured again.
    served = OFF if enabled is None else enabled.drafting
    agreed = verdict is not Verdict.UNDECIDED and len(here) == len(mix.shares)
    agreed = agreed and all(own.proves(served) for own in here.values())
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
        next=OFF if pursued is None or agreed else pursued.drafting,
        candidates=tuple(c for k, c in enumerate(found) if k < _MOST_CANDIDATES or c in (best, pursued)),
        rounds=0 if best is None else best.rounds,
    )


def _is_open(candidate: Candidate) -> bool:
    """Whether more pairs of it could change what is known."""
    return candidate.decision is None or not candidate.decision.final


def _pursued(found: Sequence[Candidate], rule: Rule, served: float) -> Candidate | None:
    """The open candidate whose pairs should be asked next; ``None`` if none is worth it.

    It is the one with the greatest gain. Where others gain as much, as far as pairs could show, it is the one that lacks pairs
    of the fewest types, and of those again the one with the greatest gain.

    Args:
        found: All candidates, the greatest gain first.
        rule: The verdict's. A gain over off that is not worth proving is not over another drafting, either.
        served: Speed ratio of what is enabled already; 1 if nothing is.
    """
    visible = 1.0 + rule.worth_proving
    better = [c for c in found if _is_open(c) and c.ratio > visible * served]
    alike = [c for c in better if c.ratio * visible > better[0].ratio]
    return min(alike, key=lambda c: len(c.lacking), default=None)


def _of_one_type(known: Mapping[PromptType, Known], mix: Mix, rule: Rule, scatter: LaunchScatter) -> Overall:
    """The answer for a mix of one prompt type: the type's own, with its own figures; nothing is measured for it."""
    own, times = next(iter(known.values())), dict.fromkeys(mix.shares, 1.0)
    r, final = own.recommendation, own.recommendation.status is Status.PROVEN
    found = own.ratio(r.tried)
    best = Candidate(r.tried, found[0] if found else r.speedup or 1.0, _lacking(mix, known, r.tried))
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
    known = {kind: own.in_whole_rounds(drafting) for kind, own in known.items()}
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
    best: Candidate | None, mix: Mix, known: Mapping[PromptType, Known], rule: Rule
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
        what = f" for {names_of(never)} prompts" if never else ""
        return Verdict.UNDECIDED, False, f"no drafting was measured{what}"
    lacking = names_of(best.lacking)
    if best.ratio <= 1.0 + rule.worth_proving:
        reason = (
            f"the best single drafting is expected to change the speed of the mix by {percent(best.ratio)},"
            f" too little to measure it for {lacking} prompts"
        )
    else:
        reason = (
            f"{best.drafting.label} is expected to change the speed of the mix by {percent(best.ratio)}, but was not measured"
            f" for {lacking} prompts; another tune for all prompt types measures it there"
        )
    return Verdict.UNDECIDED, False, reason


def names_of(kinds: Iterable[PromptType]) -> str:
    """As part of a sentence: ``coding, chat and qa``."""
    names = [str(kind) for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
