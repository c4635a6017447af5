"""The three lines at the end of a tune: what to run, how to run it, and what is still open. Pure.

They say what the table above them says: a prompt type is named with drafting exactly if its verdict is enable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autospec.cells import Aim
from autospec.formats import cautions_of, duration, listed, percent, reasoning_words
from autospec.measure.verdict import Rule
from autospec.recommendations import LIKELY, LIMITS, Recommendation, Status, Verdict
from autospec.report.server_config import what_to_run

__all__ = ["StudyRest", "tune_summary"]

# Prompt types named in one clause; the others are counted.
_NAMED = 3
# A pair takes longer than its requests: launches, and repeated requests.
_LAUNCHES = 1.3


@dataclass(frozen=True, slots=True)
class StudyRest:
    """What the study says about the time that an unfinished proof may still take.

    Attributes:
        rule: When the proof is looked at.
        pairs_per_round: Pairs of one prompt type in a round.
        budget_s: Longest time of one tune.
        checks_limits: Whether what is proven is checked for its limits.
    """

    rule: Rule
    pairs_per_round: int
    budget_s: float
    checks_limits: bool = False


def tune_summary(
    recommendations: Sequence[Recommendation],
    overall: Recommendation | None,
    rest: StudyRest,
    *,
    interrupted: bool = False,
) -> tuple[str, str, str]:
    """What to run, how to run it, and what is open, one line each.

    Args:
        recommendations: Of the tune's prompt types; at least one.
        overall: The answer for all prompt types together; ``None`` if the tune did not come so far.
        rest: Of the study.
        interrupted: Whether the user ended the tune.
    """
    enabled = [r for r in recommendations if r.verdict is Verdict.ENABLE]
    return (
        f"What to run: {_what(recommendations, enabled)}. {cautions_of(enabled)}".rstrip(),
        f"How: {_how(recommendations[0], overall, drafts=bool(enabled))}",
        f"Still open: {_open(recommendations, overall, rest, interrupted=interrupted)} {reasoning_words(recommendations)}".rstrip(),
    )


def _what(recommendations: Sequence[Recommendation], enabled: Sequence[Recommendation]) -> str:
    slower = [r for r in recommendations if r.verdict is Verdict.DISABLE]
    undecided = [r for r in recommendations if r.verdict is Verdict.UNDECIDED]
    off = []
    if slower:
        off.append(_names(slower))
    if undecided:
        off.append(f"{_names(undecided)} (undecided)")
    if not enabled:
        return f"no drafting, for {' and '.join(off)}"
    gains = [f"{_kind(r)}{_gain(r)}" for r in enabled]
    text = f"drafting for {listed(gains, _NAMED)}"
    return f"{text}; no drafting for {' and '.join(off)}" if off else text


def _how(one: Recommendation, overall: Recommendation | None, *, drafts: bool) -> str:
    energy = one.aim is Aim.ENERGY
    first = 'with the setting aim = "energy", ' if energy else ""
    proxy = (
        f"{first}`autospec proxy` does this for each request."
        if drafts
        else "start your server as before, without drafting flags."
    )
    if overall is not None:
        return f"{proxy} {what_to_run(overall)}"
    if not drafts:
        return proxy
    aim = " --aim energy" if energy else ""
    return f"{proxy} The flags for one prompt type: `autospec recommend --model {one.model}{aim} --format args -t TYPE`."


def _open(
    recommendations: Sequence[Recommendation],
    overall: Recommendation | None,
    rest: StudyRest,
    *,
    interrupted: bool,
) -> str:
    unfinished = [r for r in recommendations if _goes_on(r) and not _is_of_larger_study(r, rest)]
    elsewhere = [r for r in recommendations if _goes_on(r) and _is_of_larger_study(r, rest)]
    impossible = [r for r in recommendations if _nothing_tried(r)]
    unchecked = [
        r
        for r in recommendations
        if rest.checks_limits and r.verdict is Verdict.ENABLE and LIMITS not in r.evidence
    ]
    parts = []
    if unfinished:
        parts.append(f"the proof for {_names(unfinished)}")
    if unchecked:
        parts.append(f"the limits of {_names(unchecked)}")
    if (
        not parts
        and overall is not None
        and overall.verdict is Verdict.UNDECIDED
        and overall.evidence.get("lacks")
    ):
        parts.append("one drafting for all prompt types")
    if not (parts or elsewhere or impossible):
        return (
            "nothing; the tune was interrupted, but its results are complete." if interrupted else "nothing."
        )
    sentences = []
    if parts:
        time = _time_words(unfinished, recommendations, rest, exact=bool(unfinished) and not unchecked)
        sentences.append(f"{' and '.join(parts)}: {time}.")
    if interrupted:
        sentences.append("The tune was interrupted.")
    if parts:
        sentences.append("Run the same command again to continue.")
    if elsewhere:
        sentences.append(
            f"A study with more rounds began the proof for {_names(elsewhere)}. Run that study again, or use --again."
        )
    if impossible:
        name = impossible[0].model
        sentences.append(
            f"Nothing could be tried for {_names(impossible)}; `autospec drafts --model {name}` lists the drafts and why they do not fit."
        )
    return " ".join(sentences)


def _time_words(
    unfinished: Sequence[Recommendation],
    recommendations: Sequence[Recommendation],
    rest: StudyRest,
    *,
    exact: bool,
) -> str:
    """About how long it takes; the longest time of a run where nothing better is known (`exact` is False), or it takes longer."""
    known_s = _seconds(unfinished, recommendations, rest) if exact else None
    if known_s is None or known_s > rest.budget_s:
        return f"another run of at most {duration(rest.budget_s)}"
    about = "about" if all(_likely_s(r) is not None for r in unfinished) else "up to about"
    return f"{about} {duration(max(60.0, known_s))}"


def _goes_on(r: Recommendation) -> bool:
    """Whether the same tune would measure more of it: its proof is not over."""
    return r.status is Status.PROVISIONAL and "trials" in r.evidence


def _is_of_larger_study(r: Recommendation, rest: StudyRest) -> bool:
    """Whether a proof has more rounds than this study, which has no look left then."""
    return int(r.evidence.get("rounds") or 0) > rest.rule.looks[-1]


def _nothing_tried(r: Recommendation) -> bool:
    """Whether nothing could be measured at all."""
    return r.verdict is Verdict.UNDECIDED and r.status is Status.PROVISIONAL and "trials" not in r.evidence


def _seconds(
    unfinished: Sequence[Recommendation], recommendations: Sequence[Recommendation], rest: StudyRest
) -> float | None:
    """Time until the proofs are over: until the expected end where something is likely, else until the last round."""
    # ``None`` if no pair was measured from which a time could follow.
    pairs_s = {id(r): s for r in recommendations if (s := _pair_s(r)) is not None}
    usual_s = max(pairs_s.values(), default=None)
    total_s = 0.0
    for r in unfinished:
        likely_s = _likely_s(r)
        pair_s = pairs_s.get(id(r), usual_s)
        if likely_s is not None:
            total_s += likely_s
        elif pair_s is not None:
            rounds = max(1, rest.rule.looks[-1] - int(r.evidence.get("rounds") or 0))
            total_s += _LAUNCHES * rounds * rest.pairs_per_round * pair_s
        else:
            return None
    return total_s


def _likely_s(r: Recommendation) -> float | None:
    likely = r.evidence.get(LIKELY)
    about_s = likely.get("about_s") if isinstance(likely, dict) else None
    return float(about_s) if isinstance(about_s, int | float) else None


def _pair_s(r: Recommendation) -> float | None:
    """Time of both requests of one of its measured pairs."""
    e = r.evidence
    figures = [
        e.get(k) for k in ("predicted_tokens", "compared_texts", "decode_baseline_tps", "decode_drafting_tps")
    ]
    if not all(isinstance(f, int | float) and f > 0 for f in figures):
        return None
    tokens, pairs, off_tps, drafting_tps = (float(f) for f in figures if f is not None)
    prompts_s = (float(e.get("prompt_ms_off") or 0.0) + float(e.get("prompt_ms_drafting") or 0.0)) / 1000.0
    return tokens / pairs * (1.0 / off_tps + 1.0 / drafting_tps) + prompts_s


def _names(recommendations: Sequence[Recommendation]) -> str:
    return listed([_kind(r) for r in recommendations], _NAMED)


def _gain(r: Recommendation) -> str:
    """What is gained, in brackets; empty if it is unknown."""
    if r.gain is None:
        return ""
    return f" ({percent(r.gain)}{' tokens per joule' if r.aim is Aim.ENERGY else ''})"


def _kind(r: Recommendation) -> str:
    return "any prompt" if r.prompt_type is None else str(r.prompt_type)
