"""What to tune next: a pure function from what is known to an ordered list of steps, each with its reason.

A step's value is *use × expected gain × uncertainty*: the seconds a day that better knowledge is expected to save. A step is
worth its time if it saves more than it costs before its answer is outdated. Recommendations borrowed from another
machine come first: they are served already and were never measured here. Pairs that only the overall answer lacks come after
all cells: the proxy serves each prompt type by itself.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from types import MappingProxyType

from autospec.cells import PromptType
from autospec.daemon.work import Effort, Later, LaterReason, Tunable, WorkItem, effort_key
from autospec.formats import duration
from autospec.measure.measurements import Sample
from autospec.recommendations import OVERALL_MIX, THRESHOLD, Recommendation, Status
from autospec.tuning.overall_answer import wanted_pairs
from autospec.tuning.resume import basis_digest

__all__ = [
    "PRIOR_SD",
    "KnownCell",
    "Queue",
    "expected_gain",
    "order",
    "shares",
    "spread",
    "uncertainty",
    "uses",
]


# Before any measurement ln(speed ratio) of the best drafting is around 0: draft models pay on one machine and cost on
# another. In the reference benchmark and in the lab two thirds lie within ±0.3.
PRIOR_SD = 0.3
# A search without a proof narrows that. The best of several noisy trials is biased upwards.
_SEARCHED_SD = 0.15
_MIN_SD = 0.01

# How likely the old answer is wrong now, by what changed. These are judgements, not measurements: another file or machine is
# a new question, a new build mostly changes little, drift is evidence of a change, a rule that was wrong flattered drafting, and
# traffic that falls short of a proof may only be unlike the suite.
_STALE = {
    "model": 1.0,
    "hardware": 1.0,
    "drift": 0.8,
    "judged": 0.8,
    "traffic": 0.5,
    "settings": 0.7,
    "drafts": 0.6,
    "build": 0.4,
    "os": 0.2,
}
# Imported figures come from another machine.
_IMPORTED = 0.9
# A search result is never certain, however clear it looks.
_PROVISIONAL_AT_LEAST = 0.2


def spread(recommendation: Recommendation) -> tuple[float, float]:
    """Mean and standard deviation of ln(speed ratio) of the best drafting, as far as it is known."""
    if not recommendation.speedup or recommendation.speedup <= 0:
        return 0.0, PRIOR_SD
    mean = math.log(recommendation.speedup)
    if recommendation.speedup_ci is None or min(recommendation.speedup_ci) <= 0:
        return mean, _SEARCHED_SD
    low, high = (math.log(v) for v in recommendation.speedup_ci)
    error_rate = float(recommendation.evidence.get("error_rate", 0.01))
    z = NormalDist().inv_cdf(1.0 - min(0.4, error_rate) / 2.0)
    return mean, max(_MIN_SD, (high - low) / (2.0 * z))


def expected_gain(mean: float, sd: float) -> float:
    """Expected share of time (0…1) that drafting saves if it is used only where it pays.

    For x = ln(speed ratio), drafting saves 1 − exp(−x) of the time and is used only if x > 0. For normal x with mean m and
    standard deviation s, E[max(0, 1 − exp(−x))] = Φ(m/s) − exp(s²/2 − m) Φ(m/s − s), by completing the square.
    """
    normal = NormalDist()
    return max(0.0, normal.cdf(mean / sd) - math.exp(sd * sd / 2.0 - mean) * normal.cdf(mean / sd - sd))


def uncertainty(recommendation: Recommendation | None) -> float:
    """How little is known: 1 if nothing is known, 0 for a proof that still holds."""
    if recommendation is None:
        return 1.0
    match recommendation.status:
        case Status.PROVEN:
            return 0.0
        case Status.IMPORTED:
            return _IMPORTED
        case Status.STALE:
            return _STALE.get(str(recommendation.evidence.get("stale_cause", "")), 1.0)
        case Status.PROVISIONAL:
            if recommendation.speedup is None:
                return 1.0
            mean, sd = spread(recommendation)
            threshold = math.log1p(float(recommendation.evidence.get("threshold", THRESHOLD)))
            pays = 1.0 - NormalDist(mean, sd).cdf(threshold)
            return max(_PROVISIONAL_AT_LEAST, 2.0 * min(pays, 1.0 - pays))


# (model, prompt type) → recent seconds of answering a day; the prompt type is ``None`` if it is unknown.
Uses = Mapping[tuple[str, PromptType | None], float]
# Use of a week ago counts half.
_HALF_LIFE_S = 7 * 86400.0
# A prompt type that was never seen may still come: it counts as this many seconds a day.
_SMOOTHING_S_PER_DAY = 60.0


def uses(samples: Iterable[Sample], now: float) -> Uses:
    """How much each model is used for each prompt type.

    A constant use of s seconds a day gives s: the sum of s exp(−λt) over all past days is s/λ.

    Args:
        samples: Answered requests. A time in the future (a clock was set back) counts as now.
        now: Seconds since the epoch.
    """
    decay_per_s = math.log(2.0) / _HALF_LIFE_S
    totals: dict[tuple[str, PromptType | None], float] = defaultdict(float)
    for sample in samples:
        age_s = max(0.0, now - sample.at)
        seconds = (sample.prompt_ms + sample.predicted_ms) / 1000.0
        totals[sample.model, sample.prompt_type] += seconds * math.exp(-decay_per_s * age_s)
    return {key: total * decay_per_s * 86400.0 for key, total in totals.items()}


def shares(used: Uses, types: Sequence[PromptType]) -> Mapping[PromptType, float]:
    """How traffic spreads over the kinds of prompt, for models of which nothing is known; they sum to 1."""
    seconds = dict.fromkeys(types, _SMOOTHING_S_PER_DAY)
    for (_, prompt_type), seconds_per_day in used.items():
        if prompt_type in seconds:
            seconds[prompt_type] += seconds_per_day
    whole = sum(seconds.values())
    return {t: s / whole for t, s in seconds.items()}


# How long a recommendation holds, until the next build, model file or draft: some months.
_HORIZON_DAYS = 90.0
# A new model without traffic counts as used half an hour a day, for a month. Once it has traffic, this assumption weighs
# as much as one day of it, because one short request does not show a model's use.
_NEW_USE_S_PER_DAY = 1800.0
_NEW_FOR_S = 30 * 86400.0
# Share of that for a small model that drafts for a larger one here.
_DRAFT_USE = 0.25
# Each further step without a proof is worth less; after this many the cell waits until something changes.
_MAX_STEPS = 4
_STEP_DECAY = 0.5
# Half of the proposals are often accepted: a model of which no estimate is known stands there.
_USUAL_ACCEPTANCE = 0.5
# Pause after failures: 10, 20, 40 … minutes, at most a day.
_BACKOFF_S = 600.0
_BACKOFF_MAX_S = 86400.0
# More doublings change nothing, and after a thousand a float overflows.
_BACKOFF_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class KnownCell:
    """What is stored for a model, backend and prompt type: the newest recommendation, and whether it is borrowed."""

    recommendation: Recommendation
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """The steps worth their time, best first, and why each other cell (`effort_key`) is not among them.

    `next_at` is when the first failed cell may be tried again, in seconds since the epoch; ``None`` if none waits.
    """

    items: tuple[WorkItem, ...]
    later: Mapping[str, Later]
    next_at: float | None = None


def order(
    models: Sequence[Tunable],
    types: Sequence[PromptType],
    known: Mapping[str, KnownCell],
    used: Uses,
    efforts: Mapping[str, Effort],
    *,
    step_s: float,
    now: float,
    asked: Mapping[str, Collection[str]] = MappingProxyType({}),
    answers: Mapping[str, Recommendation] = MappingProxyType({}),
) -> Queue:
    """Order everything that could be tuned.

    Args:
        models: The main models here.
        types: The prompt types that the suite can measure.
        known: `effort_key` → what is stored.
        used: From live traffic.
        efforts: `effort_key` → what was spent without a proof.
        step_s: Longest time of one step.
        now: Seconds since the epoch.
        asked: Models that a person wants measured next → `effort_key` of their cells that have had a step since. The other cells
            of such a model come first, whatever they are worth, unless they are proven or there is nothing to try.
        answers: `effort_key` without a prompt type → the stored overall answer, where its basis is the present one.
    """
    items: list[tuple[tuple[bool, bool, bool, float, float], WorkItem]] = []
    later: dict[str, Later] = {}
    waits: list[float] = []
    spread_over = shares(used, types)

    def consider(model: Tunable, item: WorkItem, found: KnownCell | None) -> None:
        """Take a step for which nothing was spent yet into the list, or note why not."""
        key, effort = item.key, efforts.get(item.key, Effort())
        wanted = model.name in asked and key not in asked[model.name]
        if effort.basis != item.basis or wanted:
            effort = Effort()
        if (closed := _closed(model, found, effort)) is not None:
            later[key] = closed
            return
        if (until := _not_before(effort, now)) is not None:
            failed = f"its last {effort.failures} steps failed ({effort.last})"
            later[key] = Later(LaterReason.FAILED, f"{failed}; autospec will try again later")
            waits.append(until)
            return
        item = replace(item, uncertainty=item.uncertainty * _STEP_DECAY**effort.steps)
        if wanted:
            item = replace(item, why=f"it was asked for; {item.why}")
        elif item.value_s_per_day * _HORIZON_DAYS < item.cost_s:
            later[key] = Later(LaterReason.NOT_WORTH, _not_worth(item))
            return
        borrowed = not wanted and found is not None and found.borrowed
        for_all = item.prompt_type is None
        items.append(((not wanted, for_all, not borrowed, -item.value_s_per_day, _promise(model)), item))

    for model in models:
        usual = _usual(model, types, known)
        uses_of = {t: _use(model, t, used, spread_over, now) for t in types}
        for prompt_type in types:
            found = known.get(effort_key(model.name, model.backend, prompt_type))
            item = _item(model, prompt_type, found, use=uses_of[prompt_type], usual=usual, step_s=step_s)
            consider(model, item, found)
        answer = answers.get(effort_key(model.name, model.backend, None))
        if (for_all := _overall_item(model, known, answer, uses_of, step_s)) is not None:
            consider(model, for_all, None)
    # Asked for, then cells before overall answers, then borrowed, then by value; among equal values, as of models that are new,
    # by the estimate. The sort is stable: the rest stays in the catalogue's order.
    items.sort(key=lambda entry: entry[0])
    return Queue(tuple(item for _, item in items), later, min(waits, default=None))


def _promise(model: Tunable) -> float:
    """The acceptance that its drafts would need, by the estimate; what is unknown counts as a draft of which nothing is known."""
    return _USUAL_ACCEPTANCE if model.break_even is None else model.break_even


def _usual(model: Tunable, types: Sequence[PromptType], known: Mapping[str, KnownCell]) -> float:
    """Median ln(speed ratio) of the model's prompt types with a speedup: the best guess for the others; 0 without any."""
    means = [
        spread(found.recommendation)[0]
        for t in types
        if (found := known.get(effort_key(model.name, model.backend, t))) and found.recommendation.speedup
    ]
    return statistics.median(means) if means else 0.0


def _closed(model: Tunable, found: KnownCell | None, effort: Effort) -> Later | None:
    """Why nothing is measured until something changes; ``None`` if there is something to measure."""
    if found is not None and not found.borrowed and found.recommendation.status is Status.PROVEN:
        return Later(LaterReason.PROVEN, "proven")
    if not model.drafts and not model.modes:
        words = "no draft model fits, and this build has none of the study's n-gram modes"
        return Later(LaterReason.NOTHING_TO_TRY, words)
    if effort.steps >= _MAX_STEPS:
        words = f"measured {effort.steps} times without a clear answer; it waits until something changes"
        return Later(LaterReason.NO_CLEAR_ANSWER, words)
    return None


def _not_before(effort: Effort, now: float) -> float | None:
    # A failure in the future is from before the clock was set back. How long ago it was is unknown, and a pause that counts from
    # now would start again at each survey.
    if not effort.failures or effort.last_at > now:
        return None
    until = effort.last_at + min(
        _BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(effort.failures - 1, _BACKOFF_DOUBLINGS)
    )
    return until if now < until else None


def _item(
    model: Tunable,
    prompt_type: PromptType,
    found: KnownCell | None,
    *,
    use: tuple[float, str],
    usual: float,
    step_s: float,
) -> WorkItem:
    use_s_per_day, use_why = use
    stored = found.recommendation if found is not None else None
    measured_here = None if found is None or found.borrowed else stored
    expected = spread(stored) if stored is not None and stored.speedup else (usual, PRIOR_SD)
    return WorkItem(
        model=model.name,
        model_path=model.path,
        prompt_type=prompt_type,
        backend=model.backend,
        basis=basis_digest(model.basis),
        use_s_per_day=use_s_per_day,
        gain=expected_gain(*expected),
        uncertainty=uncertainty(measured_here),
        cost_s=step_s,
        memory_bytes=model.memory_bytes,
        why=f"{_state(found)}; {use_why}",
        # A tune that has started to re-measure records that: starting it over would discard its pairs.
        again=measured_here is not None
        and measured_here.status is Status.STALE
        and not measured_here.evidence.get("renewing"),
    )


def _overall_item(
    model: Tunable,
    known: Mapping[str, KnownCell],
    answer: Recommendation | None,
    uses_of: Mapping[PromptType, tuple[float, str]],
    step_s: float,
) -> WorkItem | None:
    """The step that asks what only the overall answer lacks; ``None`` if a tune of the types of its mix would ask nothing."""
    # Each of them must be proven here. One that is not is measured by itself first: a tune of it would spend its time on the
    # type's own proof.
    if answer is None or (wanted := wanted_pairs(answer)) is None:
        return None
    drafting, faster = wanted
    kinds = tuple(kind for kind in uses_of if kind in answer.evidence[OVERALL_MIX]["shares"])
    found = [known.get(effort_key(model.name, model.backend, kind)) for kind in kinds]
    proven = [k for k in found if k and not k.borrowed and k.recommendation.status is Status.PROVEN]
    if len(proven) < len(answer.evidence[OVERALL_MIX]["shares"]):
        return None
    use_s_per_day = math.fsum(uses_of[kind][0] for kind in kinds)
    return WorkItem(
        model=model.name,
        model_path=model.path,
        prompt_type=None,
        backend=model.backend,
        # Another drafting is another question.
        basis=basis_digest({**model.basis, "overall": drafting.key}),
        use_s_per_day=use_s_per_day,
        gain=expected_gain(math.log(faster), _SEARCHED_SD),
        uncertainty=1.0,
        cost_s=step_s,
        memory_bytes=model.memory_bytes,
        why=(
            f"each prompt type is proven, but {drafting.label} was not measured enough to be the one drafting for all;"
            f" the model's use is taken to be {duration(use_s_per_day)} a day"
        ),
        types=kinds,
    )


def _use(
    model: Tunable,
    prompt_type: PromptType,
    used: Uses,
    spread_over: Mapping[PromptType, float],
    now: float,
) -> tuple[float, str]:
    seconds = used.get((model.name, prompt_type), 0.0)
    # Traffic of an unknown type is distributed like the rest.
    seconds += used.get((model.name, None), 0.0) * spread_over[prompt_type]
    age_s = now - model.found_at
    expected = 0.0
    if age_s < _NEW_FOR_S:
        part = _DRAFT_USE if model.is_draft else 1.0
        expected = _NEW_USE_S_PER_DAY * part * spread_over[prompt_type]
    if all(name != model.name for name, _ in used):
        new = "the model is new here and is assumed to be used a little"
        return expected, new if expected else "the model has not been used since it was found"
    expected /= 1.0 + max(0.0, age_s) / 86400.0
    new = ", and the model is new here" if expected > seconds else ""
    how_much = "it is hardly used" if seconds < 1 else f"it is used {duration(seconds)} a day"
    return seconds + expected, f"{how_much}{new}"


def _state(found: KnownCell | None) -> str:
    if found is None:
        return "nothing is known about it"
    recommendation = found.recommendation
    if found.borrowed:
        return "its recommendation comes from another machine and is unproven here"
    match recommendation.status:
        case Status.STALE:
            return f"its recommendation is stale: {recommendation.evidence.get('stale_reason', 'it is outdated')}"
        case Status.IMPORTED:
            return "its recommendation was imported and is unproven here"
        case _:
            return "its recommendation is provisional"


def _not_worth(item: WorkItem) -> str:
    saved_s = item.value_s_per_day * _HORIZON_DAYS
    saved = "almost nothing" if saved_s < 1 else f"about {duration(saved_s)}"
    return (
        f"not worth measuring: {item.why}; it would save {saved} in {_HORIZON_DAYS:.0f} days"
        f" and cost {duration(item.cost_s)}"
    )
