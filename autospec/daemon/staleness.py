"""When a recommendation has become stale: its basis changed, or live traffic did. Pure.

A stale recommendation is still served, with a mark: it was proven once, and drafting off has no better evidence.

Drift in live traffic is found by McDonald's CUSUM of sequential ranks (D. McDonald, "A CUSUM procedure based on sequential
ranks", Naval Research Logistics 37, 1990), one chart for each direction. As long as nothing changes, the rank of each new
value among all before it is uniform and independent of the others, *whatever* the distribution of the values. So the
false-alarm rate needs no model of speeds and no estimate of their noise, and one limit holds on every machine. A library's
detector (river's ADWIN or PageHinkley) asks for a scale of the data or gives no rate; ruptures needs whole series.

Live requests are not exchangeable: they come in conversations whose speeds are alike, and a run of slow neighbours looks
like a change. So the values are medians of a few requests each, a change must be large enough to matter, and the limit grows
with the correlation that the chart has seen. A chart of correlated values climbs like one of independent values whose
variance is larger by the factor (1 + r)/(1 − r), where r is the correlation of neighbours in an AR(1) (R. Johnson and
M. Bagshaw, The effect of serial correlation on the performance of CUSUM tests, Technometrics 16, 1974). r is estimated from
the ranks *before* the climb, because a change also makes neighbours alike, with an allowance for their small number.

The stated rate holds for independent and skewed traffic and for an AR(1) of up to 0.8 between requests; `studies/bench/drift.py`
prints it and the detection delays. It does not hold if conversations of ten or more requests each have their own level, 7 %
or more apart: a chart of single requests sees those as changes.

Live traffic is also held against the figures of the proof (`gap_of`). The same chart then takes signs instead of ranks: whether a
block is below the least that the proof lets expect. A sign has a rank's mean and variance if half of the blocks are below, and
lighter tails, so the same limit raises no more false alarms. Only a shortfall counts: faster than proven is no reason to measure.
"""

from __future__ import annotations

import bisect
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from autospec.formats import counted
from autospec.measure.measurements import Sample
from autospec.recommendations import CONDITIONS, Recommendation, Status

__all__ = [
    "BLOCK",
    "FALSE_ALARMS_PER_1000",
    "GAP",
    "UNCACHED",
    "Drift",
    "Gap",
    "RankCusum",
    "SignCusum",
    "Stale",
    "drift_of",
    "first_change",
    "gap_of",
    "mark",
    "samples_of",
    "why_stale",
]

# Key of a basis, see `why_stale`: true of a build whose server has no prompt cache while it drafts, and of a proof that counts that.
UNCACHED = "drafts_uncached"
# Key of the evidence of a recommendation that is stale because of a gap: what `Gap.to_json` wrote.
GAP = "gap"


@dataclass(frozen=True, slots=True)
class Stale:
    """Why: `cause` is a key of `queue._STALE`, `reason` a clause like "the backend's build changed from b11434 to b11500".

    `evidence` is added to the recommendation's.
    """

    cause: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def why_stale(then: Mapping[str, Any], now: Mapping[str, Any]) -> Stale | None:
    """Compare a recommendation's basis (`autospec.tuning.resume.basis_of`) with the present one.

    The most serious change is named. A key that one of the two lacks (an older version wrote it) is no change.
    """
    if _differ(then, now, "hardware"):
        return Stale("hardware", f"the hardware changed from {then['hardware']} to {now['hardware']}")
    if _differ(then, now, "model"):
        return Stale("model", "the model file changed")
    if _differ(then, now, "settings"):
        return Stale("settings", f"the launch settings changed from {_words(then)} to {_words(now)}")
    if _differ(then, now, "build"):
        return Stale("build", f"the backend's build changed from {then['build']} to {now['build']}")
    if _differ(then, now, "build_fingerprint"):
        return Stale("build", f"the backend was rebuilt and still reports the version {now['build']}")
    if _differ(then, now, UNCACHED):
        # Its pairs still count: the next tune judges them again, and starts nothing over.
        reason = "the verdict assumed a prompt cache while drafting; this build has none"
        return Stale("judged", reason, {"renewing": True})
    if (drafts := _drafts_changed(then.get("drafts"), now.get("drafts"))) is not None:
        return Stale("drafts", drafts)
    if _system(then.get("os")) != _system(now.get("os")) and then.get("os") and now.get("os"):
        return Stale("os", f"the operating system changed from {then['os']} to {now['os']}")
    return None


def mark(recommendation: Recommendation, stale: Stale) -> Recommendation:
    """The recommendation with the status stale and the reason; its verdict and figures stay."""
    evidence = {name: value for name, value in recommendation.evidence.items() if name != "renewing"} | {
        "stale_reason": stale.reason,
        "stale_cause": stale.cause,
        **stale.evidence,
    }
    return replace(recommendation, status=Status.STALE, evidence=evidence)


def _differ(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    return then.get(name) is not None and now.get(name) is not None and then[name] != now[name]


def _words(basis: Mapping[str, Any]) -> str:
    return " ".join(map(str, basis["settings"])) or "none"


def _drafts_changed(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str | None:
    if then is None or now is None:  # the user named the drafts
        return None
    appeared = sorted({now[d] for d in set(now) - set(then)})
    vanished = sorted({then[d] for d in set(then) - set(now)})
    if not appeared and not vanished:
        return None
    clauses = []
    if appeared:
        clauses.append(f"{_some(appeared)} now {'fits' if len(appeared) == 1 else 'fit'} as a draft")
    if vanished:
        clauses.append(
            f"{_some(vanished)} no longer {'fits' if len(vanished) == 1 else 'fit'} or {'was' if len(vanished) == 1 else 'were'} removed"
        )
    return " and ".join(clauses)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _system(name: Any) -> tuple[str, ...]:
    """Name and first two version numbers: patches of ``linux 6.1.0-45-amd64`` change no scheduler or driver."""
    found = re.match(r"(\w+)\D*(\d+)?(?:\.(\d+))?", str(name or ""))
    return tuple(part or "" for part in found.groups()) if found else ()


# Requests in a block. Its median is one value, so one long document or one cold cache does not move the chart.
BLOCK = 4
# The first blocks only fill the ranks: a rank among three says nothing.
_WARM_UP = 8
# Ignored drift and limit of the chart, in standard deviations of a rank, set by simulation (studies/bench/drift.py).
_REFERENCE = 0.35
_LIMIT = 9.0
# Standard errors added to the estimated correlation, also set by simulation.
_ALLOWANCE = 0.5
# An AR(1) above this wanders for so long that the chart cannot see a change in it.
_CORRELATION_AT_MOST = 0.875
# A smaller change is not worth a new proof: the verdict's threshold is 2 %, its usual interval about 3 %.
_MATTERS = 0.05
# For requests of one model and prompt type, correlated as above; both directions, speed and acceptance together.
FALSE_ALARMS_PER_1000 = 0.2
_NEWEST = 4000


@dataclass(frozen=True, slots=True)
class BasisChange:
    """A change in a series: index of its first value, index of the alarm, medians before and after."""

    at: int
    seen_at: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A change in live traffic of one model, prompt type and drafting."""

    what: str  # ``speed`` or ``acceptance``
    before: float  # tokens per second, or accepted ÷ drafted
    after: float
    requests: int  # until the alarm

    @property
    def reason(self) -> str:
        """A clause: "live speed fell from 52.1 to 44.0 tok/s over 96 requests"."""
        verb = "fell" if self.after < self.before else "rose"
        if self.what == "speed":
            return f"live speed {verb} from {self.before:.1f} to {self.after:.1f} tok/s over {self.requests} requests"
        return (
            f"live acceptance {verb} from {self.before:.0%} to {self.after:.0%} over {self.requests} requests"
        )


class RankCusum:
    """A chart for both directions.

    Each value is scored by its rank among those before it. `SignCusum` scores it otherwise.
    """

    def __init__(self) -> None:
        self._sorted: list[float] = []
        # Running sums of squared scores and of products of neighbours; each prefix gives an estimate.
        self._last = 0.0
        self._squares, self._products = [0.0], [0.0]
        self._up = self._down = 0.0
        self._up_since = self._down_since = 0

    def add(self, value: float) -> int | None:
        """Take the next value; returns the index of the first value since the change at an alarm, else ``None``."""
        low = bisect.bisect_left(self._sorted, value)
        high = bisect.bisect_right(self._sorted, value)
        self._sorted[low:low] = [value]
        n = len(self._sorted)
        if n <= _WARM_UP:
            self._up_since = self._down_since = n
            return None
        # Ties get the mid-rank, which only makes the chart calmer.
        score = self._score(value, (low + high) / 2.0 + 1.0, n)
        self._squares.append(self._squares[-1] + score * score)
        self._products.append(self._products[-1] + score * self._last)
        self._last = score
        self._up, self._up_since = _climb(self._up, score, self._up_since, n)
        self._down, self._down_since = _climb(self._down, -score, self._down_since, n)
        for height, since in ((self._up, self._up_since), (self._down, self._down_since)):
            if height >= _LIMIT and height >= _LIMIT * self._inflation(since - _WARM_UP):
                return since
        return None

    def _score(self, _value: float, rank: float, n: int) -> float:
        """A score of mean 0 and variance 1: a rank is uniform on 1…n, with mean (n + 1)/2 and variance (n² − 1)/12."""
        return (rank - (n + 1) / 2.0) / math.sqrt((n * n - 1) / 12.0)

    def fall_back(self) -> None:
        """Set the chart to zero and keep its values: the coming ranks are as independent as before."""
        self._up = self._down = 0.0
        self._up_since = self._down_since = len(self._sorted)

    def _inflation(self, count: int) -> float:
        """By how much correlation inflates the chart's climbs, from the first `count` scores; at least 1."""
        # Under independence the squares average 1, which few scores estimate badly.
        squares = max(self._squares[count], 0.5 * count)
        estimate = self._products[count] / squares if count > 1 else 0.0
        allowed = estimate + _ALLOWANCE / math.sqrt(count + 1)
        r = min(_CORRELATION_AT_MOST, max(0.0, allowed))
        return (1.0 + r) / (1.0 - r)


class SignCusum(RankCusum):
    """The same chart of values that are above or below a `reference`, whatever came before."""

    def __init__(self, reference: float) -> None:
        super().__init__()
        self._reference = reference

    def _score(self, value: float, _rank: float, _n: int) -> float:
        return -1.0 if value < self._reference else 1.0


def _climb(height: float, score: float, since: int, n: int) -> tuple[float, int]:
    risen = height + score - _REFERENCE
    return (risen, since) if risen > 0 else (0.0, n)


def first_change(
    values: Sequence[float],
    *,
    matters: Callable[[float, float], bool] | None = None,
    chart: RankCusum | None = None,
) -> BasisChange | None:
    """The first change of a series in order of time that the chart sees and that matters; ``None`` if there is none.

    After an alarm that does not matter the chart returns to zero and keeps its values, so a change that had just begun
    or was hidden by many calm values raises it again. `matters` compares two medians; by default 5 % apart.
    """
    matters = matters or (lambda before, after: abs(after - before) > _MATTERS * abs(before))
    chart = chart or RankCusum()
    for index, value in enumerate(values):
        at = chart.add(value)
        if at is None:
            continue
        before, after = statistics.median(values[:at]), statistics.median(values[at : index + 1])
        if matters(before, after):
            return BasisChange(at, index, before, after)
        chart.fall_back()
    return None


def drift_of(samples: Iterable[Sample]) -> Drift | None:
    """How the live speed or acceptance of one model, prompt type and drafting has changed; ``None`` if it has not.

    Args:
        samples: In order of time, none older than the recommendation.
    """
    told = _telling(samples)
    for what in ("speed", "acceptance"):
        if (change := first_change(_blocks(_values(what, told)))) is not None:
            return Drift(what, change.before, change.after, BLOCK * (change.seen_at + 1))
    return None


def _telling(samples: Iterable[Sample]) -> list[Sample]:
    """The newest requests that give a speed."""
    return [s for s in samples if s.tps is not None][-_NEWEST:]


def _values(what: str, samples: Sequence[Sample]) -> list[float]:
    """Generation speed in tokens per second, or accepted ÷ drafted tokens, of each request that tells it."""
    if what == "speed":
        return [s.tps for s in samples if s.tps is not None]
    return [s.accepted / s.drafted for s in samples if s.drafted and s.accepted is not None]


def _blocks(values: Sequence[float]) -> list[float]:
    whole = len(values) - len(values) % BLOCK
    return [statistics.median(values[i : i + BLOCK]) for i in range(0, whole, BLOCK)]


def samples_of(recommendation: Recommendation, samples: Iterable[Sample]) -> list[Sample]:
    """The requests that a recommendation was used for, none older than it."""
    since = _seconds(recommendation.created_at)
    return [
        s
        for s in samples
        if s.at >= since
        and s.model == recommendation.model
        and s.backend == recommendation.backend
        and s.prompt_type is recommendation.prompt_type
        and s.drafting == recommendation.drafting
    ]


def _seconds(created_at: str) -> float:
    try:
        return datetime.fromisoformat(created_at).timestamp()
    except ValueError:
        return 0.0


# Up to this length of prompt and answer together, attention takes a few percent of a token's time at most, so that requests
# can be compared with shorter ones. Longer ones are under another condition than the proof's, unless that was as long.
_SAME_CONTEXT_TOKENS = 1024
# A condition is named if it is that of at least this share of the requests.
_WORTH_NAMING = 0.1


@dataclass(frozen=True, slots=True)
class Gap:
    """Live traffic falls short of its proof.

    Attributes:
        what: ``speed`` or ``acceptance``.
        proven: Tokens per second of generation, or accepted ÷ drafted, in the proof.
        live: The same, median of the live requests.
        requests: Number of them.
        conditions: Clauses on what differs from the proof, the most frequent first; empty if requests under the proof's own
            conditions fall short, too.
        compared: How many requests were under the proof's conditions.
        compared_live: Their median; ``None`` if there were none.
        baseline: Tokens per second of generation without drafting in the proof, if `what` is ``speed``.
        known: True if the cell was measured again because of this gap, and the new proof has it too.
    """

    what: str
    proven: float
    live: float
    requests: int
    conditions: tuple[str, ...] = ()
    compared: int = 0
    compared_live: float | None = None
    baseline: float | None = None
    known: bool = False

    @property
    def reason(self) -> str:
        """A clause: "live acceptance is 35 %, and 61 % in the proof, over 240 requests"."""
        what = "generation speed" if self.what == "speed" else "acceptance"
        live, proven = self._words(self.live), self._words(self.proven)
        slower = (
            f" ({self._words(self.baseline)} without drafting)"
            if self.baseline is not None and self.live < self.baseline
            else ""
        )
        return f"live {what} is {live} over {self.requests} requests, and was {proven} in the proof{slower}"

    @property
    def sentence(self) -> str:
        """The gap and what explains it, for people."""
        said = f"{self.reason[0].upper()}{self.reason[1:]}"
        if self.known:
            return f"{said}. It was measured again because of that, and the proof is the same: the traffic differs from the suite."
        if not self.conditions:
            return f"{said}. The conditions of the requests do not explain that."
        alone = (
            "no request was under the proof's conditions"
            if self.compared_live is None
            else f"{counted(self.compared, 'request')} under the proof's conditions: {self._words(self.compared_live)}"
        )
        return f"{said}. The conditions of the requests differ: {', '.join(self.conditions)}; {alone}."

    def _words(self, value: float) -> str:
        return f"{value:.1f} tok/s" if self.what == "speed" else f"{value:.0%}"

    def to_json(self) -> dict[str, Any]:
        """As evidence, and for `autospec explain --json`."""
        return {
            "what": self.what,
            "proven": round(self.proven, 4),
            "live": round(self.live, 4),
            "requests": self.requests,
            "conditions": list(self.conditions),
            "baseline": self.baseline,
            "compared": self.compared,
            "compared_live": None if self.compared_live is None else round(self.compared_live, 4),
            "known": self.known,
        }


def gap_of(
    recommendation: Recommendation, samples: Iterable[Sample], earlier: Iterable[Recommendation] = ()
) -> Gap | None:
    """How far the live requests fall short of the proof of their drafting; ``None`` if they do not.

    Generation speed and acceptance are compared, which do not depend on the length of a prompt or of an answer, apart from the
    depth of the context. A shortfall counts if it is more than 5 % and outside of the proof's own interval.

    Args:
        recommendation: With an enabled drafting; else there is nothing to compare.
        samples: The requests that it was used for (`samples_of`), in order of time.
        earlier: Former recommendations of the cell.
    """
    if recommendation.drafting.is_off:
        return None
    told = _telling(samples)
    for what, proven in _proven(recommendation).items():
        least = proven * (1.0 - _slack(recommendation))
        same = [s for s in told if not _differences(s, recommendation, what)]
        found = _shortfall(same, what, least)
        conditions: tuple[str, ...] = ()
        if found is None and (found := _shortfall(told, what, least)) is not None:
            conditions = _named(told, recommendation, what)
        if found is not None:
            live, requests = found
            alike = _values(what, same)
            median = statistics.median(alike) if alike else None
            baseline = (
                _figure(recommendation.evidence.get("decode_baseline_tps")) if what == "speed" else None
            )
            gap = Gap(what, proven, live, requests, conditions, len(same), median, baseline)
            return replace(gap, known=not conditions and _is_known(gap, recommendation, earlier))
    return None


def _proven(recommendation: Recommendation) -> dict[str, float]:
    """What the proof lets expect of live requests."""
    figures = {
        "speed": _figure(recommendation.evidence.get("decode_drafting_tps")),
        "acceptance": recommendation.acceptance,
    }
    return {what: figure for what, figure in figures.items() if figure}


def _figure(told: Any) -> float | None:
    """A number in the evidence; ``None`` for anything else, which imported records may hold."""
    return float(told) if isinstance(told, int | float) else None


def _slack(recommendation: Recommendation) -> float:
    """The share of a figure by which live requests may be below it: what matters, or the proof's own uncertainty."""
    speedup, interval = recommendation.speedup, recommendation.speedup_ci
    unsure = 1.0 - interval[0] / speedup if speedup and interval is not None else 0.0
    return min(max(_MATTERS, unsure), 1.0)


def _shortfall(samples: Sequence[Sample], what: str, least: float) -> tuple[float, int] | None:
    """The live median since the values are too low, and the number of requests; ``None`` if they are not."""
    values = _blocks(_values(what, samples))
    change = first_change(values, matters=lambda _, after: after < least, chart=SignCusum(least))
    return None if change is None else (change.after, BLOCK * (change.seen_at + 1))


def _differences(sample: Sample, recommendation: Recommendation, what: str) -> list[str]:
    """In what a request's conditions differ from the proof's, as clauses without their number."""
    proof = recommendation.evidence.get(CONDITIONS)
    proof = proof if isinstance(proof, dict) else {}
    temperature = _figure(proof.get("temperature")) or 0.0
    longest = max(int(_figure(proof.get("context_tokens")) or 0), _SAME_CONTEXT_TOKENS)
    if sample.concurrent is None or sample.temperature is None or sample.cached_tokens is None:
        return ["of unknown conditions"]
    found = []
    if sample.temperature > temperature:
        found.append(f"at a temperature above {temperature:g}")
    if sample.cached_tokens + sample.prompt_tokens + sample.predicted_tokens > longest:
        found.append(f"of more than {longest} tokens")
    # The others take time, and change no text.
    if sample.concurrent > 1 and what == "speed":
        found.append("beside other requests")
    return found


def _named(samples: Sequence[Sample], recommendation: Recommendation, what: str) -> tuple[str, ...]:
    """The differences that are frequent, with their share of the requests."""
    counts = Counter(clause for s in samples for clause in _differences(s, recommendation, what))
    shares = [(clause, count / len(samples)) for clause, count in counts.most_common()]
    return tuple(f"{share:.0%} {clause}" for clause, share in shares if share >= _WORTH_NAMING)


def _is_known(gap: Gap, recommendation: Recommendation, earlier: Iterable[Recommendation]) -> bool:
    """True if the same drafting was measured again because of a gap as large as this one."""
    # The suite is not the traffic: another proof with it would be the same, and so would the gap.
    for former in earlier:
        then = former.evidence.get(GAP)
        if (
            isinstance(then, dict)
            and then.get("what") == gap.what
            and former.drafting == recommendation.drafting
            and former.created_at < recommendation.created_at
            and gap.live >= (_figure(then.get("live")) or math.inf) * (1.0 - _MATTERS)
        ):
            return True
    return False
