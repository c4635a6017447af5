"""Why a recommendation is what it is: figures from the stored measurements, and sentences made of them. Pure.

What speculation costs and yields follows from counts. Every pass of the main model yields the proposals that it
accepts and one token of its own, so that ``passes = generated - accepted``. With `tokens per pass` T, proposals per
pass d and the cost of a pass C in tokens' time without drafting, generation is T ÷ C times as fast, T = 1 + a·d for
the acceptance a, and the break-even acceptance at this d is (C - 1) ÷ d. It treats C as fixed by d, which it is as far
as verifying costs the same whatever is accepted.

What prediction knew, for `explain`: acceptance by position, cost curve, break-even, expected against measured. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from autospec.catalog.model import Model
from autospec.drafting import Drafting
from autospec.formats import bounded, likely_words, percent, ruled_out_because
from autospec.measure.measurements import Measurement, Pair
from autospec.recommendations import LIKELY, Recommendation, Verdict
from autospec.report.studies import TrialSummary

__all__ = ["Explanation", "explain", "forecast_sentences", "machine_sentences"]


# Places of a draft and sizes of a batch that are worth a number in a sentence.
_PLACES = (1, 2, 4, 8, 16, 24)
# A share of its bytes by which twice the tokens cost more: above it, verifying is no longer bound by reading weights.
_NEARLY_FREE = 0.10


def forecast_sentences(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What was predicted of the drafting that was tried, and of those that were never launched.

    Args:
        r: The recommendation; its evidence holds what `autospec.tuning.forecast` wrote.
        figures: Gets the entry ``prediction``, as it stands in the evidence.
    """
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return []
    figures["prediction"] = dict(prediction)
    lines = []
    if "expected" in prediction:
        lines += [_expected(r, prediction), *_by_position(prediction), *_curve(prediction)]
    lines += [*map(_checked, prediction.get("checks", ()))]
    lines += [*map(_ruled_out, prediction.get("ruled_out", ()))]
    return lines


def machine_sentences(
    r: Recommendation, figures: dict[str, Any], model: Model | None, fast_tps: float
) -> list[str]:
    """The founding record's reasons in this machine's numbers: bandwidth, experts, how fast it was already.

    Args:
        r: The recommendation.
        figures: What is known already; gets ``bandwidth_bytes_per_s``.
        model: The main model's metadata; ``None`` where it is not here.
        fast_tps: Tokens per second above which a main model leaves little to gain.
    """
    lines = []
    prediction = figures.get("prediction", {})
    token_ms = figures.get("ms_per_token_off") or prediction.get("token_ms")
    if model is not None and token_ms:
        speed = model.bytes_per_token / (token_ms / 1000.0)
        figures["bandwidth_bytes_per_s"] = round(speed)
        kind = (
            f"a mixture of experts that reads {model.active_experts} of {model.experts} experts for a token"
            if model.is_moe
            else "a dense model that reads all its weights for every token"
        )
        lines.append(
            f"It is {kind}: {model.bytes_per_token / 1e9:.2f} GB in {token_ms:.1f} ms, which is {speed / 1e9:.1f} GB/s."
            + (
                " Tokens verified together read more experts, which makes proposals dearer than in a dense model."
                if model.is_moe
                else ""
            )
        )
    elif r.evidence.get("about"):
        lines.append(f"The model: {r.evidence['about']}.")
    if r.baseline_tps and r.baseline_tps > fast_tps and r.verdict != "enable":
        lines.append(
            f"At {r.baseline_tps:.0f} tok/s a token takes {1000 / r.baseline_tps:.0f} ms without drafting: proposing and"
            " verifying must be paid out of that. Drafting tends to help models that are slower."
        )
    return lines


def _expected(r: Recommendation, prediction: Mapping[str, Any]) -> str:
    low, high = prediction["interval"]
    text = f"Predicted on the tune prompts: {percent(prediction['expected'])} ({percent(low)} to {percent(high)})"
    if r.speedup is not None:
        text += f"; measured on the others: {percent(r.speedup)}"
    return f"{text}."


def _by_position(prediction: Mapping[str, Any]) -> list[str]:
    places: Sequence[float] = prediction.get("acceptance_by_position") or ()
    if not places:
        return []
    shown = ", ".join(f"{k}: {places[k - 1]:.0%}" for k in _PLACES if k <= len(places))
    return [f"Cycles in which the proposal at each place was accepted: {shown}."]


def _curve(prediction: Mapping[str, Any]) -> list[str]:
    verify: Sequence[float] = prediction.get("verify_ms") or ()
    token_ms = prediction.get("token_ms")
    if len(verify) < 2 or not token_ms:
        return []
    shown = ", ".join(f"{k}: {verify[k]:.1f} ms" for k in (0, *_PLACES) if k < len(verify))
    both = " in both models" if prediction.get("step_ms") else ""
    text = f"A token alone takes {token_ms:.1f} ms; verifying so many proposals{both}: {shown}"
    if step := prediction.get("step_ms"):
        text += f"; the draft takes {step:.1f} ms for each"
    rise = verify[1] / verify[0] - 1.0 if verify[0] else 0.0
    bound = (
        "One more token in a batch is nearly free here, as in a model that waits for its weights."
        if rise < _NEARLY_FREE
        else f"The first proposal alone adds {rise:.0%} to a pass: computing counts here, not only reading weights."
    )
    even = prediction.get("break_even")
    lines = [f"{text}.", bound]
    if refused := prediction.get("not_corrected"):
        lines.append(str(refused))
    if even is not None and even <= 1:
        lines.append(f"With {len(verify) - 1} proposals a pass, it breaks even at {even:.0%} accepted.")
    elif even is not None:
        lines.append(f"With {len(verify) - 1} proposals a pass, it could not pay if all were accepted.")
    return lines


def _checked(check: Mapping[str, Any]) -> str:
    drafting = Drafting.understood(dict(check["drafting"]))
    label = "an unknown mode" if drafting is None else drafting.label
    text = f"Launched {label}: predicted {check['predicted']:.2f}×, measured {check['measured']:.2f}×"
    return f"{text}." if check["agrees"] else f"{text}; prediction was not trusted for it after that."


def _ruled_out(found: Mapping[str, Any]) -> str:
    name = PurePath(str(found["arm"])).name
    best_case = f"best case {percent(found['best_case'])} ({found['prompt_type']})"
    return f"Never launched: {name}; {best_case}, {ruled_out_because(found)}."


# The founding record's rule of thumb: above this, a main model leaves little to gain.
_FAST_TPS = 30.0
_RUNNERS_UP = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """What can be said.

    Attributes:
        recommendation: Of what.
        figures: Everything measured, JSON values; a figure that cannot be derived is missing.
        sentences: The same in words, most important first.
    """

    recommendation: Recommendation
    figures: dict[str, Any]
    sentences: tuple[str, ...]


def explain(
    recommendation: Recommendation,
    pairs: Sequence[Pair] = (),
    trials: Sequence[TrialSummary] = (),
    *,
    model: Model | None = None,
) -> Explanation:
    """Put everything that is known about one recommendation into words.

    Args:
        recommendation: Of what.
        pairs: The proof's pairs of the drafting that it is about; empty for records.
        trials: The study's trials, or none.
        model: The main model's metadata; ``None`` where its files are not here.
    """
    r = recommendation
    figures: dict[str, Any] = {}
    sentences = [*_overall(r)]
    sentences += _request(r, figures)
    if pairs:
        sentences += _from_pairs(pairs, figures)
    sentences += _recorded_runs(r)
    sentences += forecast_sentences(r, figures)
    sentences += _launch_scatter(r, figures)
    sentences += _idle_draft(r, figures)
    sentences += machine_sentences(r, figures, model, _FAST_TPS)
    sentences += _runners_up(r, trials, figures)
    return Explanation(r, figures, tuple(sentences))


def _overall(r: Recommendation) -> list[str]:
    kind = "any kind of prompt" if r.prompt_type is None else f"{r.prompt_type} prompts"
    lines = [
        f"{r.verdict.capitalize()}: {r.model} on {r.backend} {r.backend_build}, {kind}. {_sentence(r.reason)}"
    ]
    if r.verdict is Verdict.UNDECIDED:
        lines.append("Undecided runs as off: a wrong drafting would cost more than a missed one.")
    if likely := likely_words(r):
        chance = r.evidence[LIKELY].get("chance")
        known = (
            f": the chance that it gains enough is {chance:.1%}" if isinstance(chance, int | float) else ""
        )
        lines.append(f"{r.tried.label} is {likely}{known}.")
    # The reason of a record's verdict has its speeds already.
    if r.baseline_tps and r.drafting_tps and r.speedup and "unpaired" not in r.evidence:
        text = (
            f"Off gives {r.baseline_tps:.1f} tok/s, {r.tried.label} gives {r.drafting_tps:.1f} tok/s:"
            f" {percent(r.speedup)}"
        )
        if interval := bounded(r.speedup_ci):
            text += f" ({percent(interval[0])} to {percent(interval[1])})"
        lines.append(f"{text}{f', from {r.pairs} pairs' if r.pairs else ''}.")
    if r.acceptance is not None:
        lines.append(f"The main model accepted {r.acceptance:.0%} of the tokens proposed.")
    return lines


def _from_pairs(pairs: Sequence[Pair], figures: dict[str, Any]) -> list[str]:
    off, drafted = [p.off for p in pairs], [p.drafted for p in pairs]
    return [
        *_generation(off, drafted, figures),
        *_prompt_processing(off, drafted, figures),
        *_spread(pairs, figures),
        *_lossless(pairs, figures),
    ]


_SOURCES = {
    "traffic": "as the proxy has seen them",
    "suite": "as the suite states them",
    "measured": "as they were measured",
}


def _request(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """The request that the speeds are of, and what another one would get."""
    request, measured, generation = (
        r.evidence.get(key) for key in ("request", "measured_speedup", "decode_speedup")
    )
    if not isinstance(request, dict) or not measured or not generation or not r.speedup:
        return []
    figures |= {"request": request, "measured_speedup": measured, "decode_speedup": generation}
    cached = request["cached_share"]
    of_prompt = f" ({cached:.0%} of the prompt is taken to be cached)" if cached else ""
    lines = [
        (
            f"These are speeds of requests with {request['prompt_tokens']:.0f} prompt tokens to compute{of_prompt} and"
            f" {request['answer_tokens']:.0f} tokens of answer, {_SOURCES[request['source']]}: {percent(r.speedup)}."
            f" Generation alone: {percent(generation)}. The short requests that were measured, with nothing cached:"
            f" {percent(measured)}."
        )
    ]
    ratios = (r.speedup, measured, generation)
    if min(ratios) < 1.0 < max(ratios):
        lines.append(
            "Whether drafting is faster depends on the request: on how long its answer is, and its prompt."
        )
    return lines


def _generation(
    off: Sequence[Measurement], drafted: Sequence[Measurement], figures: dict[str, Any]
) -> list[str]:
    tokens = sum(m.predicted_tokens for m in drafted)
    off_tokens = sum(m.predicted_tokens for m in off)
    if not tokens or not off_tokens:
        return []
    off_ms = sum(m.predicted_ms for m in off) / off_tokens
    drafted_ms = sum(m.predicted_ms for m in drafted) / tokens
    figures |= {"ms_per_token_off": round(off_ms, 3), "ms_per_token_drafting": round(drafted_ms, 3)}
    lines = [f"Generating a token took {off_ms:.1f} ms without drafting and {drafted_ms:.1f} ms with it."]
    proposed = sum(m.drafted or 0 for m in drafted)
    accepted = sum(m.accepted or 0 for m in drafted)
    passes = tokens - accepted
    if not proposed or passes <= 0 or off_ms <= 0:
        return lines
    per_pass, proposals = tokens / passes, proposed / passes
    cost = sum(m.predicted_ms for m in drafted) / passes / off_ms
    break_even = (cost - 1.0) / proposals
    figures |= {
        "acceptance": round(accepted / proposed, 4),
        "tokens_per_pass": round(per_pass, 3),
        "proposals_per_pass": round(proposals, 3),
        "pass_cost_tokens": round(cost, 3),
        "break_even_acceptance": round(break_even, 4),
    }
    lines.append(
        f"A pass of the main model verified {proposals:.1f} proposals and yielded {per_pass:.2f} tokens instead of 1,"
        f" and cost with its proposals as much time as {cost:.2f} tokens without drafting."
    )
    if break_even > 1:
        lines.append("At that cost it would be slower even if every proposal were accepted.")
    elif break_even > 0:
        lines.append(
            f"It breaks even at about {break_even:.0%} accepted with as many proposals; {accepted / proposed:.0%} were."
        )
    return lines


def _prompt_processing(
    off: Sequence[Measurement], drafted: Sequence[Measurement], figures: dict[str, Any]
) -> list[str]:
    without = statistics.fmean(m.prompt_ms for m in off)
    with_ = statistics.fmean(m.prompt_ms for m in drafted)
    if without <= 0:
        return []
    figures |= {"prompt_ms_off": round(without, 2), "prompt_ms_drafting": round(with_, 2)}
    tokens = statistics.fmean(m.prompt_tokens for m in off)
    return [
        (
            f"Processing a prompt ({tokens:.0f} tokens on average) took {without:.0f} ms without drafting and"
            f" {with_:.0f} ms with it ({percent(with_ / without)} of time); both are in the speeds above."
        )
    ]


def _spread(pairs: Sequence[Pair], figures: dict[str, Any]) -> list[str]:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.drafted.prompt_id].append(pair.log_ratio)
    medians = {p: math.exp(statistics.median(v)) for p, v in by_prompt.items()}
    figures["prompts"] = {p: round(v, 4) for p, v in medians.items()}
    if len(medians) < 2:
        return []
    worst, best = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    faster = sum(v > 1 for v in medians.values())
    return [
        (
            f"{faster} of {len(medians)} prompts were faster with drafting, from {percent(medians[worst])} ({worst})"
            f" to {percent(medians[best])} ({best})."
        )
    ]


def _lossless(pairs: Sequence[Pair], figures: dict[str, Any]) -> list[str]:
    same = sum(p.same_text for p in pairs)
    figures |= {"pairs": len(pairs), "same_text": same}
    if same == len(pairs):
        return [f"All {same} answers were the same text with and without drafting."]
    return [
        (
            f"{len(pairs) - same} of {len(pairs)} answers were not the same text with and without drafting:"
            " verifying in batches rounds differently, and greedy choices between near-equals can flip."
        )
    ]


def _idle_draft(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What a draft costs that is loaded and not used, where drafting goes with the request."""
    idle = r.evidence.get("idle_draft")
    if not isinstance(idle, dict):
        return []
    figures["idle_draft"] = idle
    between = _between(idle["interval"])
    pairs = f"{idle['pairs']} pair{'s' if idle['pairs'] != 1 else ''}"
    return [
        (
            f"With the draft loaded and no token drafted, whole requests ran at {percent(idle['ratio'])}{between}"
            f" against a process without a draft, from {pairs}: off means without a draft, and every verdict is against"
            " that."
        )
    ]


def _launch_scatter(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What the verdict took launches of one server to differ by."""
    counted = r.evidence.get("launch_scatter")
    if not isinstance(counted, dict) or "sd" not in counted:
        return []
    figures["launch_scatter"] = counted
    by = f"{100 * counted['sd']:.1f} %"
    if counted.get("assumed"):
        return [
            (
                f"The verdict takes launches of this server to differ by {by}: too few have been compared on this"
                " machine to know it, and each tune compares some."
            )
        ]
    return [
        (
            f"The verdict takes launches of this server to differ by {by} (standard deviation), as comparisons of"
            f" launches on this machine say; {counted['freedom']:.0f} degrees of freedom."
        )
    ]


def _recorded_runs(r: Recommendation) -> list[str]:
    runs = r.evidence.get("runs")
    if not isinstance(runs, list):
        return []
    lines = []
    for run in runs:
        speeds = ", ".join(f"{v:.1f}" for v in run["runs_tps"])
        gain = f" ({percent(run['speedup'])})" if "speedup" in run else ""
        drafting = Drafting.understood(run["drafting"])
        label = "an unknown mode" if drafting is None else drafting.label
        lines.append(f"Recorded with {label}: {speeds} tok/s{gain}.")
    return [*lines, *map(_sentence, r.evidence.get("notes", ()))]


def _runners_up(r: Recommendation, trials: Sequence[TrialSummary], figures: dict[str, Any]) -> list[str]:
    ranked = sorted(
        (t for t in trials if t.value is not None and t.drafting is not None and not t.drafting.is_off),
        key=lambda t: -(t.value or 0.0),
    )
    also = [(d, p) for p in r.evidence.get("also_proved", ()) if (d := Drafting.understood(p["drafting"]))]
    proved = {r.tried, *(d for d, _ in also)}
    others: dict[Drafting, float] = {}
    for t in ranked:
        assert t.drafting is not None
        assert t.value is not None
        if t.drafting not in proved:
            others.setdefault(t.drafting, t.value)
    failed: dict[str, str] = {
        t.drafting.label: t.reason
        for t in trials
        if t.state == "fail" and t.reason and t.drafting is not None
    }
    if not trials:
        return []
    figures["searched"] = len(ranked)
    figures["runners_up"] = [
        {"drafting": d.to_json(), "ratio": round(v, 4)} for d, v in list(others.items())[:_RUNNERS_UP]
    ]
    lines = []
    for drafting, p in also:
        gain = "" if p["speedup"] is None else f", {percent(p['speedup'])}{_between(p['speedup_ci'])}"
        lines.append(f"Proved as well, on the same prompts: {drafting.label}{gain}, {p['verdict']}.")
    if others:
        best = "; ".join(f"{d.label} {percent(v)}" for d, v in list(others.items())[:_RUNNERS_UP])
        lines.append(
            f"The search tried {len(ranked)} draftings on other prompts. Next after this one: {best}."
        )
    lines += [f"{label} could not be used: {_sentence(reason)}" for label, reason in failed.items()]
    return lines


def _between(interval: tuple[float, float] | None) -> str:
    ends = bounded(interval)
    return f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
