"""Explains a recommendation: figures from the stored measurements, and sentences made of them. Pure.

The cost and yield of speculation follow from counts. Every pass of the main model yields the accepted proposals and one
token of its own, so ``passes = generated - accepted``. With T tokens per pass, d proposals per pass and a pass that costs as
much time as C tokens without drafting, generation is T ÷ C times as fast. T = 1 + a·d for the acceptance a, so the break-even
acceptance at this d is (C - 1) ÷ d. This takes C as fixed by d, which holds if verifying costs the same whatever is accepted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from autospec.catalog.model import Model
from autospec.cells import Aim
from autospec.drafting import Drafting
from autospec.formats import (
    bounded,
    build_words,
    conditions_words,
    counted,
    disabled_so_far,
    likely_words,
    limits_words,
    percent,
    reasoning_words,
    ruled_out_because,
)
from autospec.measure.log_ratios import by_prompt, of_pairs
from autospec.measure.measurements import Measurement, Pair
from autospec.predict.costs import break_even_of
from autospec.recommendations import CONDITIONS, ENERGY, LIKELY, LIMITS, Limits, Recommendation, Verdict
from autospec.report.studies import TrialSummary

__all__ = ["Explanation", "explain", "explain_overall"]

# Rule of thumb of the reference benchmark: a faster main model leaves little to gain.
_FAST_TPS = 30.0
_RUNNERS_UP = 3
_NEARLY_CERTAIN = 0.9995


@dataclass(frozen=True, slots=True)
class Explanation:
    """What can be said about a recommendation.

    Attributes:
        recommendation: The recommendation.
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
        recommendation: The recommendation.
        pairs: The proof's pairs of its drafting; empty for records.
        trials: The study's trials.
        model: The main model's metadata; ``None`` if its files are not on this machine.
    """
    r = recommendation
    figures: dict[str, Any] = {}
    sentences = _overall(r)
    sentences += _request(r, figures)
    sentences += _conditions(r, figures)
    sentences += _limits(r, figures)
    if pairs:
        off, drafted = [p.off for p in pairs], [p.drafted for p in pairs]
        sentences += _generation(off, drafted, figures)
        sentences += _prompt_processing(off, drafted, figures)
        sentences += _spread(pairs, figures)
        sentences += _lossless(r, pairs, figures)
    sentences += _energy(r, figures)
    sentences += _recorded_runs(r)
    sentences += _forecast(r, figures)
    sentences += _launch_scatter(r, figures)
    sentences += _idle_draft(r, figures)
    sentences += _machine(r, figures, model)
    sentences += _runners_up(r, trials, figures)
    return Explanation(r, figures, tuple(sentences))


def _overall(r: Recommendation) -> list[str]:
    kind = "any prompt" if r.prompt_type is None else f"{r.prompt_type} prompts"
    so_far = " so far" if disabled_so_far(r) else ""
    lines = [
        f"{r.verdict.capitalize()}{so_far}: {r.model} on {build_words(r)}, {kind}. {_sentence(r.reason)}"
    ]
    if r.verdict is Verdict.UNDECIDED:
        lines.append(
            "While the verdict is undecided, drafting stays off: a wrong enable costs more than a missed gain."
        )
    if likely := likely_words(r):
        chance = r.evidence[LIKELY].get("chance")
        known = ""
        if isinstance(chance, int | float):
            # Rounded it would be certain.
            words = f"{chance:.1%}" if chance < _NEARLY_CERTAIN else "above 99.9%"
            known = f"; the chance that its gain exceeds the threshold is {words}"
        lines.append(f"{r.tried.label} is {likely}{known}.")
    # The reason of a record's verdict already contains the speeds.
    if r.baseline_tps and r.drafting_tps and r.speedup and "unpaired" not in r.evidence:
        text = (
            f"Without drafting {r.baseline_tps:.1f} tok/s, with {r.tried.label} {r.drafting_tps:.1f} tok/s:"
            f" {percent(r.speedup)}"
        )
        if interval := bounded(r.speedup_ci):
            text += f" ({percent(interval[0])} to {percent(interval[1])})"
        lines.append(f"{text}{f', from {r.pairs} pairs' if r.pairs else ''}.")
    if r.acceptance is not None:
        lines.append(f"The main model accepted {r.acceptance:.0%} of the proposed tokens.")
    return lines


_SOURCES = {
    "traffic": "like the proxy's traffic",
    "suite": "as the suite defines them",
    "measured": "as measured",
}


def _request(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """The request that the speeds are of, and the gain of other requests."""
    request, measured, generation = (
        r.evidence.get(key) for key in ("request", "measured_speedup", "decode_speedup")
    )
    if not isinstance(request, dict) or not measured or not generation or not r.speedup:
        return []
    figures |= {"request": request, "measured_speedup": measured, "decode_speedup": generation}
    cached = request["cached_share"]
    of_prompt = f" ({cached:.0%} of the prompt is assumed to be cached)" if cached else ""
    if whole := request.get("drafted_prompt_tokens"):
        assumed = f"{cached:.0%} of the prompt is assumed to be cached; " if cached else ""
        of_prompt = (
            f" ({assumed}with drafting, the server has no prompt cache and processes {whole:.0f} tokens)"
        )
    lines = [
        (
            f"The gain of {percent(r.speedup)} is for requests with {request['prompt_tokens']:.0f} prompt tokens to"
            f" process{of_prompt} and {request['answer_tokens']:.0f} answer tokens, {_SOURCES[request['source']]}."
            f" Token generation alone: {percent(generation)}. The short measured requests, with nothing cached:"
            f" {percent(measured)}."
        )
    ]
    requests, conditions = r.evidence.get("requests"), r.evidence.get(CONDITIONS)
    if isinstance(requests, dict) and not requests.get("depth") and isinstance(conditions, dict):
        longest = conditions.get("max_tokens")
        if isinstance(longest, int | float) and request["answer_tokens"] > longest:
            lines.append(
                "What the context of a longer answer costs was not timed. It may gain less than this: a cycle of drafting reads"
                " more of the context than a token does."
            )
    ratios = (r.speedup, measured, generation)
    if min(ratios) < 1.0 < max(ratios):
        lines.append("Whether drafting is faster depends on the lengths of the prompt and the answer.")
    return lines


def _conditions(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What the measured requests were like."""
    if not (words := conditions_words(r)):
        return []
    figures[CONDITIONS] = r.evidence[CONDITIONS]
    return [f"Measured: {words}.", *filter(None, [reasoning_words([r])])]


def _limits(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """Where the proven drafting was checked besides, and up to where it holds."""
    limits = Limits.from_json(r.evidence.get(LIMITS))
    if not (checks := limits_words(r)):
        return []
    if r.evidence.get(LIMITS):
        figures[LIMITS] = limits.to_json()
    lines = [f"Checked besides the proof: {'; '.join(checks)}."]
    shown = [
        f"up to {counted(limits.most_concurrent, 'request')} at once" if limits.most_concurrent else "",
        f"up to {limits.deepest_context} tokens of context" if limits.deepest_context else "",
        "" if limits.highest_temperature is None else f"up to temperature {limits.highest_temperature:g}",
    ]
    if told := [words for words in shown if words]:
        lines.append(f"It holds {', '.join(told)}.")
    every = (*limits.concurrent, *limits.context, *limits.temperature, *limits.second_turn)
    return [*lines, *dict.fromkeys(_sentence(check.note) for check in every if check.note)]


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
        f"Each cycle verified {proposals:.1f} proposals and yielded {per_pass:.2f} tokens instead of 1."
        f" A cycle took as much time as {cost:.2f} tokens without drafting."
    )
    if break_even > 1:
        lines.append("At that cost drafting would be slower even if every proposal were accepted.")
    elif break_even > 0:
        lines.append(
            f"With this many proposals drafting breaks even at an acceptance rate of about {break_even:.0%};"
            f" {accepted / proposed:.0%} were accepted."
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
            f"Prompt processing ({tokens:.0f} tokens on average) took {without:.0f} ms without drafting and"
            f" {with_:.0f} ms with it ({percent(with_ / without)} time); the speeds above include it."
        )
    ]


def _spread(pairs: Sequence[Pair], figures: dict[str, Any]) -> list[str]:
    values = by_prompt(of_pairs(pairs))
    medians = {prompt: math.exp(statistics.median(own)) for prompt, own in values.items()}
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


def _lossless(r: Recommendation, pairs: Sequence[Pair], figures: dict[str, Any]) -> list[str]:
    same = sum(p.same_text for p in pairs)
    figures |= {"pairs": len(pairs), "same_text": same}
    if same == len(pairs):
        return [f"All {same} answers were identical with and without drafting."]
    told = r.evidence.get(CONDITIONS)
    sampled = isinstance(told, Mapping) and told.get("temperature", 0.0) > 0
    why = (
        "they were sampled, and drafting may draw its random numbers in another order."
        if sampled
        else "verifying in batches rounds differently, which can change a greedy choice between nearly equal tokens."
    )
    return [f"{len(pairs) - same} of {len(pairs)} answers differed with and without drafting: {why}"]


_ENERGY_OF = {"cpu": "the processor", "gpu": "the GPU"}


def _energy(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """Joules per token without and with drafting, where the machine tells them."""
    energy = r.evidence.get(ENERGY)
    if not isinstance(energy, Mapping):
        return []
    figures[ENERGY] = dict(energy)
    of = " and ".join(_ENERGY_OF.get(part, part) for part in energy["parts"])
    return [
        (
            f"A token took {energy['off_j_per_token']:.3g} J without drafting and {energy['drafting_j_per_token']:.3g} J with it:"
            f" {percent(energy['ratio'])}{_between(energy['interval'])} energy, from {counted(energy['pairs'], 'pair')}."
            f" These are joules of {of}, with idle power, for the short measured requests."
        ),
        *(
            ["The aim is energy: the verdict compares these joules, and not the speeds."]
            if r.aim is Aim.ENERGY
            else []
        ),
    ]


def _idle_draft(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """The cost of a loaded but unused draft model, if drafting can be set per request."""
    idle = r.evidence.get("idle_draft")
    if not isinstance(idle, dict):
        return []
    figures["idle_draft"] = idle
    between = _between(idle["interval"])
    return [
        (
            f"Keeping the draft model loaded but unused changes the speed of whole requests by"
            f" {percent(idle['ratio'])}{between} compared with no draft model, from {counted(idle['pairs'], 'pair')}."
            " Every verdict compares with no draft model."
        )
    ]


def _launch_scatter(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """How much launches of one server differ, according to the verdict."""
    scatter = r.evidence.get("launch_scatter")
    if not isinstance(scatter, dict) or "sd" not in scatter:
        return []
    figures["launch_scatter"] = scatter
    by = f"{100 * scatter['sd']:.1f} %"
    if scatter.get("assumed"):
        return [
            (
                f"The verdict assumes that launches of this server differ by {by}: too few have been compared on this"
                " machine. Each tune compares some."
            )
        ]
    return [
        (
            f"Launches of this server without drafting differ by {by} (standard deviation, {scatter['freedom']:.0f} degrees of"
            " freedom), measured on this machine; the verdict allows for it."
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
        how = (
            "with an unknown mode"
            if drafting is None
            else "without drafting"
            if drafting.is_off
            else f"with {drafting.label}"
        )
        lines.append(f"Recorded {how}: {speeds} tok/s{gain}.")
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
        lines.append(f"Also in the proof, on the same prompts: {drafting.label}{gain}, {p['verdict']}.")
    if others:
        best = "; ".join(f"{d.label} {percent(v)}" for d, v in list(others.items())[:_RUNNERS_UP])
        lines.append(
            f"The search tried {len(ranked)} configurations on other prompts. The next best: {best}."
        )
    lines += [f"{label} could not be used: {_sentence(reason)}" for label, reason in failed.items()]
    return lines


def _between(interval: tuple[float, float] | None) -> str:
    ends = bounded(interval)
    return f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


# Positions of a draft, and batch sizes, that a sentence shows.
_PLACES = (1, 2, 4, 8, 16, 24)
# If a second token in a batch costs less than this share more, reading weights limits the speed.
_NEARLY_FREE = 0.10


def _forecast(r: Recommendation, figures: dict[str, Any]) -> list[str]:
    """What was predicted for the measured drafting and for those never launched; adds ``prediction`` to `figures`."""
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return []
    figures["prediction"] = dict(prediction)
    lines = []
    if "expected" in prediction:
        lines += [_expected(r, prediction), *_by_position(prediction), *_curve(prediction)]
        if r.tried.beside:
            others = " and ".join(d.mode for d in r.tried.beside)
            lines.append(
                f"In each pass {others} may propose first; {r.tried.mode} is asked where it has no proposal."
            )
    lines += [*map(_checked, prediction.get("checks", ()))]
    lines += [*map(_ruled_out, prediction.get("ruled_out", ()))]
    return lines


def _machine(r: Recommendation, figures: dict[str, Any], model: Model | None) -> list[str]:
    """What the bandwidth, the experts and the speed without drafting say; adds ``bandwidth_bytes_per_s`` to `figures`."""
    lines = []
    prediction = figures.get("prediction", {})
    token_ms = figures.get("ms_per_token_off") or prediction.get("token_ms")
    if model is not None and token_ms:
        speed = model.bytes_per_token / (token_ms / 1000.0)
        figures["bandwidth_bytes_per_s"] = round(speed)
        kind = (
            f"a mixture of experts that reads {model.active_experts} of {model.experts} experts per token"
            if model.is_moe
            else "a dense model that reads all its weights for every token"
        )
        lines.append(
            f"{model.name} is {kind}: {model.bytes_per_token / 1e9:.2f} GB in {token_ms:.1f} ms, or {speed / 1e9:.1f} GB/s."
            + (
                " Tokens that are verified together read more experts, so proposals cost more than in a dense model."
                if model.is_moe
                else ""
            )
        )
    elif r.evidence.get("about"):
        lines.append(f"The model: {r.evidence['about']}.")
    if r.baseline_tps and r.baseline_tps > _FAST_TPS and r.verdict != "enable":
        lines.append(
            f"Without drafting a token takes only {1000 / r.baseline_tps:.0f} ms ({r.baseline_tps:.0f} tok/s), which leaves"
            " little time for proposing and verifying. Drafting tends to help slower models."
        )
    return lines


def _expected(r: Recommendation, prediction: Mapping[str, Any]) -> str:
    low, high = prediction["interval"]
    text = f"Predicted from the search prompts: {percent(prediction['expected'])} ({percent(low)} to {percent(high)})"
    if r.speedup is not None:
        text += f"; measured on the proof prompts: {percent(r.speedup)}"
    return f"{text}."


def _by_position(prediction: Mapping[str, Any]) -> list[str]:
    places: Sequence[float] = prediction.get("acceptance_by_position") or ()
    if not places:
        return []
    shown = ", ".join(f"{k}: {places[k - 1]:.0%}" for k in _PLACES if k <= len(places))
    return [f"Share of cycles that accepted the proposal at each position: {shown}."]


def _curve(prediction: Mapping[str, Any]) -> list[str]:
    verify: Sequence[float] = prediction.get("verify_ms") or ()
    token_ms = prediction.get("token_ms")
    if len(verify) < 2 or not token_ms:
        return []
    shown = ", ".join(
        f"{counted(k, 'proposal')} {verify[k]:.1f} ms" for k in (0, *_PLACES) if k < len(verify)
    )
    both = " in both models" if prediction.get("step_ms") else ""
    text = f"One token alone takes {token_ms:.1f} ms. Time to verify several proposals at once{both}: {shown}"
    if step := prediction.get("step_ms"):
        text += f". The draft model takes {step:.1f} ms per proposal"
    rise = verify[1] / verify[0] - 1.0 if verify[0] else 0.0
    bound = (
        "One more token in a batch is nearly free here: reading the weights limits the speed."
        if rise < _NEARLY_FREE
        else f"The first proposal adds {rise:.0%} to the time of a batch: computing limits the speed here, not only reading the weights."
    )
    even = prediction.get("break_even")
    lines = [f"{text}.", bound]
    if refused := prediction.get("not_corrected"):
        lines.append(str(refused))
    if even is not None and even <= 1:
        lines.append(
            f"With {len(verify) - 1} proposals per cycle drafting breaks even at an acceptance rate of {even:.0%}."
        )
    elif even is not None:
        lines.append(
            f"With {len(verify) - 1} proposals per cycle drafting cannot break even: it would not pay even if all were accepted."
        )
    return [*lines, _another_draft(token_ms, verify, prediction.get("step_ms"))]


# What another draft may cost for each proposal, in tokens of the main model: nothing, or as much as a usual draft model.
_OTHER_DRAFTS = ((0.0, "an n-gram mode"), (1 / 12, "a draft model that costs a twelfth of the main model"))


def _another_draft(token_ms: float, verify: Sequence[float], step_ms: float | None) -> str:
    """What acceptance another draft would need, by the measured times of the main model's batches."""
    # With a draft model, verifying includes its own pass over the same tokens, which takes at least as long as a step.
    n = len(verify) - 1
    main = max(verify[n] - (step_ms or 0.0), token_ms) / token_ms
    needs = [(what, break_even_of(main + (n + 1) * share, n)) for share, what in _OTHER_DRAFTS]
    words = ", and ".join(
        f"{what} needs {even:.0%} of them accepted to break even" if even < 1 else f"{what} cannot break even"
        for what, even in needs
    )
    return f"With {n} proposals per cycle and these times, {words}."


def _checked(check: Mapping[str, Any]) -> str:
    drafting = Drafting.understood(dict(check["drafting"]))
    label = "an unknown mode" if drafting is None else drafting.label
    text = f"Launched {label}: predicted {check['predicted']:.2f}×, measured {check['measured']:.2f}×"
    return f"{text}." if check["agrees"] else f"{text}; after that its predictions were not used."


def _ruled_out(found: Mapping[str, Any]) -> str:
    name = PurePath(str(found["arm"])).name
    best_case = f"best case {percent(found['best_case'])} ({found['prompt_type']})"
    return f"Never launched: {name}; {best_case}, {ruled_out_because(found)}."


_MIXES = {
    "traffic": "the mix of the proxy's traffic",
    "equal": "equal numbers of requests of every prompt type",
    "asked": "the mix that was asked for",
}


def explain_overall(r: Recommendation) -> Explanation:
    """Explain an overall answer: its mix, each prompt type's part, and what one drafting for each type would gain."""
    e = r.evidence
    mix, types = e["mix"], e["types"]
    figures = {
        name: e[name] for name in ("mix", "types", "one_per_type", "loses", "slows", "lacks", "expected")
    }
    shares = ", ".join(f"{t['prompt_type']} {t['share']:.0%}" for t in types)
    of = f", {mix['requests']} requests" if mix["requests"] else ""
    lines = [
        (
            f"{r.verdict.capitalize()}: {r.model} on {build_words(r)}, one server for all prompt types."
            f" {_sentence(r.reason)}"
        ),
        f"The mix is {_MIXES[mix['source']]}{of}: {shares}.",
    ]
    if r.tried.is_off:
        return Explanation(r, figures, tuple(lines))
    lines.append(
        f"The best single drafting is {r.tried.label}; its gain on this mix of prompts is {percent(e['expected'])}."
    )
    parts = "; ".join(f"{t['prompt_type']} {_part(t)}" for t in types)
    lines.append(f"By prompt type: {parts}.")
    if e["slows"]:
        slower = "It slows down" if not r.drafting.is_off else "It would slow down"
        lines.append(f"{slower} {' and '.join(e['slows'])} prompts.")
    if e["one_per_type"] > 1.0:
        lines.append(
            f"One drafting for each prompt type, as `autospec proxy` serves them, gains {percent(e['one_per_type']).lstrip('+')} on this mix of prompts:"
            f" one server with {'this drafting' if not r.drafting.is_off else 'drafting off'} is {e['loses']:.1%} slower."
        )
    if e["lacks"]:
        lines.append(
            f"Too few pairs of it with {' and '.join(e['lacks'])} prompts: `autospec tune --model {r.model}` measures them."
        )
    others = [
        f"{d.label} {percent(c['ratio'])}"
        for c in e["candidates"]
        if (d := Drafting.understood(c["drafting"])) is not None and d != r.tried
    ]
    if others:
        lines.append(f"Other candidates, where unknown prompt types count as unchanged: {'; '.join(others)}.")
    return Explanation(r, figures, tuple(lines))


def _part(entry: Mapping[str, Any]) -> str:
    if entry["ratio"] is None:
        return "unknown"
    return percent(entry["ratio"]) + (" (predicted)" if entry["source"] == "prediction" else "")
