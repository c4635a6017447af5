"""From what a cell has measured to its recommendation, with the evidence written out.

Before the proof is finished, a gain may be called likely, which decides no verdict: with a chance of at least 95 %, the true
gain exceeds the threshold. The claim rests on a Student's t interval around the mean of the prompts' ratios, widened by the
scatter of launches: 3 % on either side of a ratio, the middle of what was seen on working machines, averaged over the launches.
If the drafting was chosen from several by the same measurements, the error chance is multiplied by their number (Bonferroni).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from autospec.cells import Aim
from autospec.drafting import OFF, Drafting
from autospec.formats import counted
from autospec.measure.energy import compare_energy
from autospec.measure.launch_scatter import ASSUMED_SD
from autospec.measure.log_ratios import LogRatio, of_pairs, prompt_medians
from autospec.measure.measurements import Pair, RequestShape
from autospec.measure.verdict import Rule, decide
from autospec.recommendations import ENERGY, WITHIN_REASONING, Recommendation, Status, Verdict
from autospec.tuning.cell import NOTHING_TO_DRAFT, CellRun, acceptance
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.request import TuneRequest
from autospec.tuning.resume import compared_json

__all__ = [
    "Cost",
    "conclude",
    "conditions_of",
    "likely_gain",
    "likely_of",
    "nothing_to_try",
    "seconds_to_proof",
]


@dataclass(slots=True)
class Cost:
    """What a tune has spent so far, shared by all its cells."""

    seconds: float = 0.0  # of the whole tune
    launches: int = 0
    launch_seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """As evidence."""
        return {
            "seconds": round(self.seconds, 1),
            "launches": self.launches,
            "launch_seconds": round(self.launch_seconds, 1),
        }


def conclude(
    cell: CellRun,
    proof: Sequence[Pair],
    search: Sequence[Pair],
    *,
    rule: Rule,
    arguments: Sequence[str],
    command: Sequence[str],
    cost: Cost,
) -> Recommendation:
    """The recommendation of a cell in its current state; without proof pairs, the search pairs give the figures.

    `arguments` are the server arguments for the winner's drafting in this build, `command` the whole recommended command.
    """
    decision = cell.decision
    # Rounds since the last look have no part in its interval, so none in the figures beside it.
    looked_rounds = max((at for at in rule.looks if at <= cell.rounds), default=0)
    looked = [p for p in proof if decision is None or p.off.round <= looked_rounds]
    pairs = looked or list(search)
    verdict = decision.verdict if decision is not None else Verdict.UNDECIDED
    final = cell.decided
    estimate = decision.estimate if decision is not None else None
    tried = cell.winner
    off_tps = statistics.geometric_mean([p.speeds_tps[0] for p in pairs]) if pairs else None
    drafting_tps = statistics.geometric_mean([p.speeds_tps[1] for p in pairs]) if pairs else None
    speedup: float | None
    if estimate is not None and cell.cell.aim is Aim.SPEED:
        speedup, interval = estimate.ratio, estimate.interval
    else:
        speedup, interval = (drafting_tps / off_tps if off_tps and drafting_tps else None), None
    return replace(
        nothing_to_try(cell, _reason(cell, len(search), len(proof), final=final), verdict),
        drafting=tried if verdict is Verdict.ENABLE else OFF,
        tried=tried,
        baseline_tps=off_tps,
        drafting_tps=drafting_tps,
        speedup=speedup,
        speedup_ci=interval,
        pairs=len(looked) if estimate is None else estimate.n,
        acceptance=acceptance(pairs),
        status=Status.PROVEN if final else Status.PROVISIONAL,
        evidence=_evidence(
            cell, pairs=pairs, rule=rule, arguments=arguments, command=command, cost=cost, proven=bool(looked)
        ),
    )


def conditions_of(request: TuneRequest, pairs: Sequence[Pair], served_temperature: float) -> dict[str, Any]:
    """Under which conditions the pairs of a proof were measured, as evidence, and the temperature that users sample with."""
    longest = max(p.off.prompt_tokens + p.off.predicted_tokens for p in pairs)
    shapes = [p.shape for p in pairs if p.shape is not None]
    # Of the drafted halves: those without drafting may be cut shorter.
    reasoning = statistics.fmean(p.drafted.within_reasoning for p in pairs)
    return {
        "temperature": request.temperature,
        "served_temperature": served_temperature,
        "samplers": "greedy" if request.temperature <= 0 else "the server's own",
        "max_tokens": request.definition.max_tokens,
        "slots": 1,  # requests at once
        "context_tokens": longest,
        "cached_tokens": 0,
        # Of the request that the figures are composed for.
        "answer_tokens": round(statistics.median(s.answer_tokens for s in shapes)) if shapes else None,
        "cached_share": round(shapes[0].cached_share, 3) if shapes else 0.0,
        # Only where the server keeps no prompt cache while it drafts.
        **({"drafted_cached_share": 0.0} if shapes and shapes[0].drafted_prompt_tokens else {}),
        # The share of answers that were cut while the model was still reasoning; only where there are such.
        **({WITHIN_REASONING: round(reasoning, 3)} if reasoning else {}),
    }


def nothing_to_try(cell: CellRun, why: str, verdict: Verdict = Verdict.UNDECIDED) -> Recommendation:
    """The recommendation if no drafting could be tried: off, and `why` in one sentence.

    `verdict` is `DISABLE` if no drafting can ever be used with this model and build.
    """
    if cell.nothing_to_draft:
        why, verdict = NOTHING_TO_DRAFT, Verdict.DISABLE
    return Recommendation(
        model=cell.cell.model.name,
        model_path=cell.cell.model.path,
        backend=cell.cell.build.backend,
        backend_build=cell.cell.build.version,
        prompt_type=cell.prompt_type,
        verdict=verdict,
        drafting=OFF,
        tried=OFF,
        baseline_tps=None,
        drafting_tps=None,
        speedup=None,
        speedup_ci=None,
        pairs=0,
        acceptance=None,
        reason=why,
        status=Status.PROVISIONAL,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        aim=cell.cell.aim,
    )


def _reason(cell: CellRun, search_pairs: int, proof_pairs: int, *, final: bool) -> str:
    if cell.decision is None:
        if proof_pairs:
            # If everything was predicted, there are no search pairs.
            pairs = counted(proof_pairs, "pair")
            return f"The proof has only started ({pairs}, no complete round yet); run tune again to continue."
        if not search_pairs:
            return "Nothing has been measured for this prompt type yet; run tune again to continue."
        return (
            f"Only searched so far ({counted(search_pairs, 'pair')}), not proven; run tune again to continue."
        )
    reason = cell.decision.reason[0].upper() + cell.decision.reason[1:]
    if final:
        return f"{reason}."
    return f"{reason}; the budget ended after {counted(cell.rounds, 'round')} of the proof; run tune again to continue."


def _evidence(
    cell: CellRun,
    *,
    pairs: Sequence[Pair],
    rule: Rule,
    arguments: Sequence[str],
    command: Sequence[str],
    cost: Cost,
    proven: bool,
) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "cell": cell.cell.key,
        "study": cell.study.name,
        "settings": list(cell.cell.settings),
        "args": list(arguments),
        "command": list(command),
        "threshold": rule.threshold,
        "error_rate": rule.error_rate,
        "rounds": cell.rounds,
        "trials": len(cell.trial_values),
        "runners_up": _runners_up(cell),
        "also_proved": _also_proved(cell),
        "cost": cost.to_json(),
    }
    if not pairs:
        return evidence
    ratios = prompt_medians(of_pairs(pairs))
    # An answer that came in one part has no time of token generation.
    timed = [p for p in pairs if p.off.predicted_ms > 0 and p.drafted.predicted_ms > 0]
    decode = [p.decode_log_ratio for p in timed]
    decided = None if cell.decision is None or cell.cell.aim is Aim.SPEED else cell.decision.estimate
    energy = compare_energy(pairs, decided)
    return (
        evidence
        | ({} if energy is None else {ENERGY: energy.to_json()})
        | {
            "phase": "prove" if proven else "search",
            "decode_baseline_tps": _mean_tps([p.off.decode_tps for p in timed]),
            "decode_drafting_tps": _mean_tps([p.drafted.decode_tps for p in timed]),
            "decode_speedup": round(math.exp(statistics.fmean(decode)), 4) if decode else None,
            # Of the request as it was measured: short, with nothing of its prompt in the cache.
            "measured_speedup": round(math.exp(statistics.fmean(p.measured_log_ratio for p in pairs)), 4),
            "request": _request(pairs),
            "prompt_ms_off": round(statistics.median(p.off.prompt_ms for p in pairs), 2),
            "prompt_ms_drafting": round(statistics.median(p.drafted.prompt_ms for p in pairs), 2),
            "prompts": len(ratios),
            "prompts_faster": sum(r > 0 for r in ratios),
            "prompt_log_ratio_min": round(min(ratios), 4),
            "prompt_log_ratio_max": round(max(ratios), 4),
            "drafted_tokens": sum(p.drafted.drafted or 0 for p in pairs),
            "accepted_tokens": sum(p.drafted.accepted or 0 for p in pairs),
            "predicted_tokens": sum(p.drafted.predicted_tokens for p in pairs),
            # The lossless check: how many pairs gave the same text with drafting as without.
            "same_text": sum(p.same_text for p in pairs),
            "compared_texts": len(pairs),
        }
    )


def _also_proved(cell: CellRun) -> list[dict[str, Any]]:
    if cell.other is not None:
        return [cell.other.to_json()]
    return [compared_json(cell.stands)] if cell.contests and cell.stands is not None else []


def _mean_tps(speeds: Sequence[float]) -> float | None:
    return round(statistics.geometric_mean(speeds), 2) if speeds else None


def _request(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """The typical request that the verdict is for."""
    shapes = [p.shape for p in pairs if p.shape is not None]
    if not shapes:
        return None
    whole = [s.drafted_prompt_tokens for s in shapes if s.drafted_prompt_tokens is not None]
    typical = RequestShape(
        prompt_tokens=statistics.median(s.prompt_tokens for s in shapes),
        answer_tokens=statistics.median(s.answer_tokens for s in shapes),
        cached_share=shapes[0].cached_share,
        source=shapes[0].source,
        drafted_prompt_tokens=statistics.median(whole) if whole else None,
    )
    return typical.to_json()


def _runners_up(cell: CellRun) -> list[dict[str, Any]]:
    proved = {cell.winner} if cell.other is None else {cell.winner, cell.other.drafting}
    others: list[tuple[Drafting, float]] = sorted(
        ((d, v) for d, v in cell.trial_values.items() if d not in proved), key=lambda item: -item[1]
    )
    return [{"drafting": d.to_json(), "ratio": round(v, 4)} for d, v in others[:3]]


def likely_of(
    cell: CellRun,
    proof: Sequence[Pair],
    search: Sequence[Pair],
    definition: StudyDefinition,
    *,
    pair_s: float,
    launch_s: float,
    failing: int = 0,
) -> dict[str, Any] | None:
    """The likely outcome of an unfinished proof, as evidence; ``None`` if the proof is over or nothing is likely.

    `proof` and `search` are the winner's pairs that count; those of the search had a part in choosing it, and are used if there
    is no proof. `pair_s` is the time that a pair takes to ask, and `launch_s` that of one launch; `failing` is the number of prompts
    that fail with the winner and not without.
    """
    if cell.winner.is_off or failing or (cell.decision is not None and cell.decision.final):
        return None
    if cell.cell.aim is Aim.ENERGY:
        return None  # what is likely is worked out of times
    threshold = definition.rule.threshold
    pairs = proof
    found = likely_gain(proof, threshold)
    if found is None and not proof:
        pairs = search
        found = likely_gain(search, threshold, chosen_from=max(1, len(cell.trial_values)))
    if found is None:
        return None
    each = min(definition.prompts_per_round, len(cell.prove_prompts))
    round_s = each * pair_s + 2.0 * launch_s  # a round launches each side once
    rule = definition.rule.shared() if cell.shares_rate else definition.rule
    seen = prompt_medians(of_pairs(pairs))
    total = len(cell.prove_prompts)

    def would_enable(rounds: int) -> bool:
        # Assumes that the remaining prompts are like those that were asked; each round has two new launches.
        projected = [
            LogRatio(
                str(k % total),
                f"off {k // each}",
                f"drafted {k // each}",
                seen[k % total % len(seen)],
                k % 2 == 0,
            )
            for k in range(rounds * each)
        ]
        decision = decide(projected, rounds, rule, complete=rounds * each >= total)
        return decision.verdict is Verdict.ENABLE

    rounds = cell.rounds if proof else 0
    return replace(found, about_s=seconds_to_proof(rule.looks, rounds, round_s, would_enable)).to_json()


LEAST_CHANCE = 0.95
# Fewer prompts do not represent their kind, and the t quantile becomes useless.
_LEAST_PROMPTS = 4


@dataclass(frozen=True, slots=True)
class Likely:
    """What is likely of one drafting: `speedup` with its interval, and the `chance` that the true gain exceeds the threshold.

    `about_s` is the time of measuring until a proof of this estimate; ``None`` if no look of the proof would enable it.
    """

    speedup: float
    interval: tuple[float, float]
    chance: float
    about_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "speedup": round(self.speedup, 4),
            "interval": [round(end, 4) for end in self.interval],
            # Never shown as certain.
            "chance": min(round(self.chance, 4), 0.9999),
            "about_s": None if self.about_s is None else round(self.about_s),
        }


def likely_gain(pairs: Sequence[Pair], threshold: float, *, chosen_from: int = 1) -> Likely | None:
    """Return what the counted pairs of one drafting in one cell make likely; ``None`` for no likely gain or too few prompts.

    Args:
        pairs: The counted pairs.
        threshold: Least gain for `enable`, as a fraction.
        chosen_from: Number of draftings from which these same pairs chose this one; 1 for pairs of the proof.
    """
    from scipy.stats import t  # noqa: PLC0415  (half a second that most commands need not spend)

    values = prompt_medians(of_pairs(pairs))
    if len(values) < _LEAST_PROMPTS:
        return None
    center = statistics.fmean(values)
    launches = sum(
        1 / len({half.launch_id for half in side})
        for side in ([p.off for p in pairs], [p.drafted for p in pairs])
    )
    variance = statistics.variance(values) / len(values) + ASSUMED_SD**2 * launches
    error, freedom = math.sqrt(variance), len(values) - 1
    missed = float(t.sf((center - math.log1p(threshold)) / error, freedom)) * chosen_from
    if 1.0 - missed < LEAST_CHANCE:
        return None
    half = float(t.isf((1.0 - LEAST_CHANCE) / chosen_from, freedom)) * error
    return Likely(math.exp(center), (math.exp(center - half), math.exp(center + half)), 1.0 - missed)


def seconds_to_proof(
    looks: Sequence[int], rounds: int, round_s: float, would_enable: Callable[[int], bool]
) -> float | None:
    """Return the seconds to the first look that would enable if its rounds showed what these show; ``None`` without one."""
    at = next((at for at in looks if at > rounds and would_enable(at)), None)
    return None if at is None else (at - rounds) * round_s
