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
"""

from __future__ import annotations

import bisect
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autospec.measure.measurements import Sample
from autospec.recommendations import Recommendation, Status

__all__ = [
    "BLOCK",
    "FALSE_ALARMS_PER_1000",
    "BasisChange",
    "Drift",
    "RankCusum",
    "Stale",
    "drift_of",
    "first_change",
    "mark",
    "why_stale",
]


@dataclass(frozen=True, slots=True)
class Stale:
    """Why: `cause` is a key of `queue._STALE`, `reason` a clause like "the backend's build changed from b11434 to b11500"."""

    cause: str
    reason: str


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
# Shorter answers give no speed: the first token takes half of their time.
_MIN_TOKENS = 8
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
    """A chart for both directions."""

    def __init__(self) -> None:
        self._sorted: list[float] = []
        # Running sums of squared scores and of products of neighbours; each prefix gives an estimate.
        self._last = 0.0
        self._squares, self._products = [0.0], [0.0]
        self._up = self._down = 0.0
        self._up_since = self._down_since = 0

    def add(self, value: float) -> int | None:
        """Take the next value; returns the index of the first value since the change at an alarm, else ``None``."""
        # Ties get the mid-rank, which only makes the chart calmer.
        low = bisect.bisect_left(self._sorted, value)
        high = bisect.bisect_right(self._sorted, value)
        self._sorted[low:low] = [value]
        n = len(self._sorted)
        if n <= _WARM_UP:
            self._up_since = self._down_since = n
            return None
        rank = (low + high) / 2.0 + 1.0
        # A rank is uniform on 1…n: mean (n + 1)/2, variance (n² − 1)/12.
        score = (rank - (n + 1) / 2.0) / math.sqrt((n * n - 1) / 12.0)
        self._squares.append(self._squares[-1] + score * score)
        self._products.append(self._products[-1] + score * self._last)
        self._last = score
        self._up, self._up_since = _climb(self._up, score, self._up_since, n)
        self._down, self._down_since = _climb(self._down, -score, self._down_since, n)
        for height, since in ((self._up, self._up_since), (self._down, self._down_since)):
            if height >= _LIMIT and height >= _LIMIT * self._inflation(since - _WARM_UP):
                return since
        return None

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


def _climb(height: float, score: float, since: int, n: int) -> tuple[float, int]:
    risen = height + score - _REFERENCE
    return (risen, since) if risen > 0 else (0.0, n)


def first_change(
    values: Sequence[float], *, matters: Callable[[float, float], bool] | None = None
) -> BasisChange | None:
    """The first change of a series in order of time that the chart sees and that matters; ``None`` if there is none.

    After an alarm that does not matter the chart returns to zero and keeps its values, so a change that had just begun
    or was hidden by many calm values raises it again. `matters` compares two medians; by default 5 % apart.
    """
    matters = matters or (lambda before, after: abs(after - before) > _MATTERS * abs(before))
    chart = RankCusum()
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
    told = [s for s in samples if s.predicted_tokens >= _MIN_TOKENS and s.predicted_ms > 0][-_NEWEST:]
    speeds = [1000.0 * s.predicted_tokens / s.predicted_ms for s in told]
    acceptances = [s.accepted / s.drafted for s in told if s.drafted and s.accepted is not None]
    for what, values in (("speed", speeds), ("acceptance", acceptances)):
        if (change := first_change(_blocks(values))) is not None:
            return Drift(what, change.before, change.after, BLOCK * (change.seen_at + 1))
    return None


def _blocks(values: Sequence[float]) -> list[float]:
    whole = len(values) - len(values) % BLOCK
    return [statistics.median(values[i : i + BLOCK]) for i in range(0, whole, BLOCK)]
