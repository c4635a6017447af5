"""Percent, sizes, durations and ages as people read them, and clauses that several rooms print."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from autospec.cells import Aim
from autospec.recommendations import (
    BUILD_NOT_RECORDED,
    CONDITIONS,
    LIKELY,
    LIMITS,
    WITHIN_REASONING,
    LimitCheck,
    Limits,
    LimitVerdict,
    Recommendation,
    Status,
    Verdict,
)

__all__ = [
    "age",
    "bounded",
    "build_words",
    "caution_words",
    "cautions_of",
    "checked_words",
    "conditions_words",
    "counted",
    "disabled_so_far",
    "duration",
    "gibibytes",
    "gigabytes",
    "likely_words",
    "limits_words",
    "listed",
    "log_percent",
    "percent",
    "plain_speed",
    "reasoning_words",
    "ruled_out_because",
]


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 round``, ``2 rounds``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def build_words(r: Recommendation) -> str:
    """The backend and its build: ``llama-server b11434``."""
    if r.backend_build == BUILD_NOT_RECORDED:
        return f"{r.backend} (build {BUILD_NOT_RECORDED})"
    return f"{r.backend} {r.backend_build}"


def percent(ratio: float) -> str:
    """A speed ratio as a gain: 0.84 is ``-16.0 %``."""
    return f"{100.0 * (ratio - 1.0):+.1f} %" if math.isfinite(ratio) else "unbounded"


def log_percent(log_ratio: float) -> str:
    """The logarithm of a speed ratio as a gain, like `percent`."""
    return f"{100.0 * math.expm1(log_ratio):+.1f} %"


def gigabytes(size_bytes: float) -> str:
    """A size in decimal units: ``4.7 GB``, ``638 MB``."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.1f} MB"


def gibibytes(size_bytes: float) -> str:
    """Memory in binary units: ``15.5 GiB``."""
    return f"{size_bytes / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """A duration in one unit: ``2.5 s``, ``90 s``, ``12 min``, ``3.5 h``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval, or ``None`` if an end is unbounded, which JSON stores as null."""
    ends: tuple[float | None, ...] = interval or (None,)
    return None if any(end is None or not math.isfinite(end) for end in ends) else interval


def plain_speed(tps: float | None) -> str:
    """Tokens per second with one digit after the point, or a dash."""
    return "–" if tps is None or not math.isfinite(tps) else f"{tps:.1f}"


def likely_words(r: Recommendation) -> str:
    """What is likely before the proof has finished: ``likely, +72 %, about 4 more minutes would prove it``; or nothing."""
    likely = r.evidence.get(LIKELY)
    if r.verdict is not Verdict.UNDECIDED or r.fails or not isinstance(likely, dict):
        return ""
    speedup = likely.get("speedup")
    if not isinstance(speedup, int | float):
        return ""
    gain = f"likely, {100.0 * (speedup - 1.0):+.0f} %"
    about_s = likely.get("about_s")
    if not isinstance(about_s, int | float):
        return f"{gain}, not proven"
    minutes = max(1, round(about_s / 60.0))
    return f"{gain}, about {minutes} more minute{'' if minutes == 1 else 's'} would prove it"


def disabled_so_far(r: Recommendation) -> bool:
    """Whether a tune may still find what pays: the winner does not, and its runner-up was not proved yet.

    Where no drafting can ever be used, the `disable` rests on no proof that could go on.
    """
    return r.verdict is Verdict.DISABLE and r.status is Status.PROVISIONAL and not r.tried.is_off


def conditions_words(r: Recommendation) -> str:
    """Under which conditions it was measured: ``greedy, 64 tokens, one request at a time, nothing cached; …``; or nothing."""
    told = r.evidence.get(CONDITIONS)
    if not isinstance(told, dict):
        return ""
    temperature, share = told.get("temperature", 0.0), told.get("cached_share") or 0.0
    if not all(isinstance(number, int | float) for number in (temperature, share)):
        return ""  # a damaged import
    sampling = "greedy" if temperature <= 0 else f"temperature {temperature:g}"
    at_once = told.get("slots", 1)
    several = "one request at a time" if at_once == 1 else f"{at_once} requests at once"
    cached = told.get("cached_tokens", 0)
    words = (
        f"{sampling}, {told.get('max_tokens', '?')} tokens, {several}, "
        f"{f'{cached} tokens' if cached else 'nothing'} cached"
    )
    if r.aim is Aim.ENERGY:
        words += ", judged by energy, not by speed"
    if reasoning := _reasoning_share(r):
        words += f", {reasoning:.0%} of the answers cut while the model was thinking"
    answer = told.get("answer_tokens")
    if answer is None:
        return words
    of_prompt = f" with {share:.0%} of the prompt cached" if share else ""
    if "drafted_cached_share" in told:
        # Live traffic tells the computed tokens of each side, and no share.
        of_prompt = of_prompt or " with as much of the prompt cached as in live traffic"
        of_prompt = f"{of_prompt} without drafting and none with it"
    return f"{words}; computed for {answer}-token answers{of_prompt}"


def _reasoning_share(r: Recommendation) -> float:
    """The share of measured answers that were cut while the model was thinking; 0 if none is known to be."""
    conditions = r.evidence.get(CONDITIONS)
    share = conditions.get(WITHIN_REASONING) if isinstance(conditions, dict) else None
    return float(share) if isinstance(share, int | float) else 0.0


# By backend: what keeps a model from thinking, in the words of `autospec tune`.
_NO_THINKING = {
    "llama-server": "`-- --reasoning-budget 0`",
    "embedded": "`-- --reasoning-budget 0`",
    "mlx": """`-- --chat-template-args '{"enable_thinking": false}'`""",
}


def reasoning_words(found: Iterable[Recommendation]) -> str:
    """What to do where measured answers were cut within the model's thinking; empty if none were."""
    cut = [r for r in found if _reasoning_share(r)]
    if not cut:
        return ""
    kinds = listed(
        list(dict.fromkeys("any prompt" if r.prompt_type is None else str(r.prompt_type) for r in cut))
    )
    arguments = _NO_THINKING.get(cut[0].backend)
    without = f"tune with {arguments}" if arguments else "start the server that way before the tune"
    return (
        f"Measured answers for {kinds} ended while the model was still thinking, so the verdict is about their thinking only. "
        f"To measure the answer itself, tune with `--max-tokens 1024`, as far as the suite's prompts allow "
        f"(`--suite FILE` takes your own). If you serve without thinking, {without}."
    )


def limits_words(
    r: Recommendation, verdicts: Collection[LimitVerdict] = frozenset(LimitVerdict)
) -> tuple[str, ...]:
    """One clause for each check of where a proven drafting may fail: ``4 requests at once: -18.0 % (slower)``.

    `verdicts` are those of the checks that are wanted; a temperature that clients use, and that was not checked, is open.
    """
    limits = Limits.from_json(r.evidence.get(LIMITS))
    missing = _unchecked_temperature(r, limits) if LimitVerdict.OPEN in verdicts else None
    checks = (
        *((f"{c.at:g} requests at once", c) for c in limits.concurrent),
        *((f"{c.at:g} tokens of context", c) for c in limits.context),
        *((f"temperature {c.at:g}", c) for c in limits.temperature),
        *(("second turn of a chat", c) for c in limits.second_turn),
    )
    told = tuple(
        f"{where}: {checked_words(check, r.aim)}" for where, check in checks if check.verdict in verdicts
    )
    return (
        told if missing is None else (*told, f"temperature {missing:g}, at which clients sample: not checked")
    )


def _unchecked_temperature(r: Recommendation, limits: Limits) -> float | None:
    """The temperature at which clients sample, if drafting is on, was proven below it, and was not checked there."""
    conditions = r.evidence.get(CONDITIONS)
    if r.drafting.is_off or r.is_overall or limits.temperature or not isinstance(conditions, dict):
        return None
    proven, served = conditions.get("temperature", 0.0), conditions.get("served_temperature")
    known = isinstance(proven, int | float) and isinstance(served, int | float)
    return served if known and served > proven else None


def listed(words: Sequence[str], most: int | None = None) -> str:
    """A list in a sentence: ``a, b and c``; of more than ``most + 1`` words the first `most`: ``a, b and 3 more``."""
    if most is not None and len(words) > most + 1:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def caution_words(r: Recommendation, known: Iterable[Recommendation] = ()) -> str:
    """For which requests a drafting was measured, and where it was not faster; empty if drafting is off.

    Args:
        r: The recommendation that a server is started with.
        known: Recommendations of prompt types. An overall answer has the conditions and limits of those with its drafting.
    """
    if r.drafting.is_off:
        return ""
    if not r.is_overall:
        return _cautions([("", r)])
    same = [k for k in known if (k.model, k.backend, k.drafting) == (r.model, r.backend, r.drafting)]
    return cautions_of([k for k in same if not k.is_overall])


def cautions_of(of_types: Iterable[Recommendation]) -> str:
    """As `caution_words`, for several prompt types at once, each named where a check was not faster."""
    return _cautions([(f"{r.prompt_type}, ", r) for r in of_types if not r.drafting.is_off])


def _cautions(speakers: Sequence[tuple[str, Recommendation]]) -> str:
    # The second clause says for which answers the ratio is computed, and differs between prompt types.
    measured = dict.fromkeys(conditions_words(k).partition("; ")[0] for _, k in speakers)
    sentences = [f"Measured: {words}." for words in measured if words]
    energy = any(k.aim is Aim.ENERGY for _, k in speakers)  # all have the aim that is in force
    slower, faster = ("Takes more energy", "take less energy") if energy else ("Slower", "be faster")
    for verdict, begin in ((LimitVerdict.SLOWER, slower), (LimitVerdict.OPEN, f"Not shown to {faster}")):
        if checks := [f"{kind}{words}" for kind, k in speakers for words in limits_words(k, {verdict})]:
            without = (c.removesuffix(" (slower)").removesuffix(" (more energy)") for c in checks)
            sentences.append(f"{begin}: {'; '.join(without)}.")
    return " ".join(sentences)


def checked_words(check: LimitCheck, aim: Aim) -> str:
    """The result of one check, without its note."""
    if check.ratio is None:
        return "fails" if check.verdict is LimitVerdict.SLOWER else "not measured"
    if aim is Aim.ENERGY:
        found = {LimitVerdict.FASTER: "less energy", LimitVerdict.SLOWER: "more energy"}.get(
            check.verdict, "undecided"
        )
        return f"{percent(check.ratio)} tokens per joule ({found})"
    found = check.verdict if check.verdict is not LimitVerdict.OPEN else "undecided"
    return f"{percent(check.ratio)} ({found})"


def age(created_at: str, now: dt.datetime) -> str:
    """How long ago, in the largest unit that fits: ``3 days ago``.

    Args:
        created_at: ISO 8601; without a time zone it is UTC. A text that is no date is returned unchanged.
        now: The present.
    """
    try:
        then = dt.datetime.fromisoformat(created_at)
    except ValueError:
        return created_at
    then = then if then.tzinfo else then.replace(tzinfo=dt.UTC)
    seconds = (now - then).total_seconds()
    for unit, length_s in (
        ("year", 365 * 86400),
        ("month", 30 * 86400),
        ("day", 86400),
        ("hour", 3600),
        ("minute", 60),
    ):
        count = int(seconds // length_s)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def ruled_out_because(found: Mapping[str, Any]) -> str:
    """Why a drafting's best case was too slow to launch it, as clauses.

    Args:
        found: One object of `Forecast.rule_out`, from the tune or from a recommendation's evidence.
    """
    accepted, even = found["acceptance"], found["break_even"]
    share = "it proposes nothing" if accepted is None else f"acceptance {accepted:.2f}"
    if found.get("beaten"):  # earlier versions did not tell it
        return f"{share}, and another drafting is faster than its best case"
    needed = "no acceptance rate would pay" if even >= 1.0 else f"break-even {even:.2f}"
    # Evidence of earlier versions lacks it.
    prompt = ", and prompts are slower" if found.get("by_prompt") else ""
    return f"{share}, {needed}{prompt}"
