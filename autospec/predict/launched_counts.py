"""What a draft that could not be read would do with other settings, from the counts and times of its launches.

Where no answer can be replayed, each launch still shows how many tokens were drafted and accepted and how long that took. A
model of few numbers explains them:

* the draft is right with the chance a, the same at every token of a prompt type;
* its confidence p is calibrated: among tokens with confidence p, the part p is right. So p has the distribution
  Beta(a·c, (1-a)·c), and c says how well the draft knows its misses (small c: nearly always). A draft may be bolder or more timid
  than that: what it tells is off by a constant in log-odds;
* after a miss its confidence is as often that of a hit as that of a miss;
* a pass costs what `autospec.predict.costs` says, with costs that no batch has timed.

Then a cycle with n_max and p_min has closed forms (see `Cycles`). a, c, that constant and the costs are fitted to all launches of the draft.
What the model leaves unexplained at one setting is expected near it too (a Gaussian process: Rasmussen and Williams, *Gaussian
Processes for Machine Learning*, ch. 2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from autospec.drafting import Drafting, Mode
from autospec.measure.measurements import Measurement, Pair, token_ms_of
from autospec.predict.costs import CostCurve, Observation, first_guess, refit

__all__ = ["Cycles", "DraftNumbers", "Foreseen", "Launch", "cycles", "foresee", "foresee_copies"]

Floats = npt.NDArray[np.float64]

# The values of a and c that are considered.
_CHANCES = np.concatenate([np.linspace(0.02, 0.9, 45), np.linspace(0.91, 0.99, 9)])
_SURENESS = np.geomspace(0.5, 8.0, 9)
_TIMIDITY = np.linspace(-1.0, 2.0, 7)
# The draft's confidence differs between a hit and a miss by 1/(c + 1): typically a third. The prior's spread is that of ln c.
_USUAL_C, _C_SPREAD, _TIMIDITY_SPREAD = 1.8, 0.5, 0.8
# Texts are not alike at all tokens: relative error of a cycle's mean counts beside that of few cycles.
_UNEVEN = 0.07
# Of the residuals: how far the model may be off, and over what distances of ln n_max and of p-min that changes.
_MODEL_ERROR, _OVER_LOG_N, _OVER_P = 0.15, 0.7, 0.25
# Part of it that is common to the prompt types.
_COMMON = 0.5
# The same of the sizes of draft-free modes, as logarithms, and how alike two modes with the same sizes are.
_SIZES_ERROR, _OVER_SIZE, _MODES_ALIKE = 0.2, 0.9, 0.7
_PAIR_NOISE, _LAUNCH_NOISE = 0.06, 0.02
# A stalled answer is further off, and counts no more than this.
_MOST_RESIDUAL = 0.3


@dataclass(frozen=True, slots=True)
class Launch:
    """One launched drafting: its pairs by cell key."""

    drafting: Drafting
    pairs: Mapping[str, Sequence[Pair]]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Expected ln(speed ÷ off) and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True, slots=True)
class DraftNumbers:
    """The numbers of D drafts; all have the shape (D,).

    Attributes:
        chance: a, the chance that a token is right.
        sureness: c.
        timidity: What p-min seems higher to the draft, in log-odds.
    """

    chance: Floats
    sureness: Floats
    timidity: Floats


@dataclass(frozen=True, slots=True)
class Cycles:
    """Expected cycles with D settings.

    Attributes:
        lengths: Shape (D, K + 1): the part of the cycles that proposes k tokens.
        accepted: Shape (D,): accepted tokens of a cycle.
        steps: Shape (D,): tokens that the draft computes one by one in a cycle.
    """

    lengths: Floats
    accepted: Floats
    steps: Floats

    @property
    def drafted(self) -> Floats:
        """Shape (D,): proposed tokens of a cycle."""
        return np.asarray(self.lengths @ np.arange(self.lengths.shape[1]))


def cycles(draft: DraftNumbers, n_max: Floats, p_min: Floats, longest: int) -> Cycles:
    """The cycles of D settings; all arrays have the shape (D,).

    With h and m the chances that the next token is confident enough and right, or wrong, and g the chance that one after a miss is
    confident enough, a cycle proposes at least k tokens with the chance h^k + m·(h^k - g^k)/(h - g).
    """
    chance = draft.chance
    right, wrong = chance * draft.sureness, (1.0 - chance) * draft.sureness
    least = special.expit(special.logit(p_min) + draft.timidity)
    h = chance * special.betaincc(right + 1.0, wrong, least)
    m = (1.0 - chance) * special.betaincc(right, wrong + 1.0, least)
    g = (h / chance + m / (1.0 - chance)) / 2.0
    g = np.where(np.abs(h - g) < 1e-6, g + 1e-5, g)
    k = np.arange(longest + 2)
    on_path = h[:, None] ** k
    reached = on_path + (m / (h - g))[:, None] * (on_path - g[:, None] ** k)
    within = k <= n_max[:, None]
    at_least = np.where(within, np.clip(reached, 0.0, 1.0), 0.0)
    return Cycles(
        lengths=np.asarray(at_least[:, :-1] - at_least[:, 1:]),
        accepted=np.asarray(np.where(within, on_path, 0.0)[:, 1:].sum(axis=1)),
        # The token that p-min refuses is computed, too.
        steps=np.asarray(np.where(k < n_max[:, None], at_least, 0.0).sum(axis=1)),
    )


def _considered() -> DraftNumbers:
    """All combinations of the values that are considered."""
    return DraftNumbers(*(x.ravel() for x in np.meshgrid(_CHANCES, _SURENESS, _TIMIDITY, indexing="ij")))


@lru_cache(maxsize=256)  # every launch of a search fits the counts of all launches before it, too
def _considered_counts(n_max: int, p_min: float, longest: int) -> tuple[Floats, Floats]:
    """Accepted and proposed tokens of a cycle with each of those combinations."""
    draft = _considered()
    size = draft.chance.size
    model = cycles(draft, np.full(size, float(n_max)), np.full(size, p_min), longest)
    return model.accepted, model.drafted


def foresee_copies(
    launches: Sequence[Launch], draftings: Sequence[Drafting]
) -> dict[str, dict[Drafting, Foreseen]]:
    """As `foresee`, for draft-free modes: they are as fast as in their launches, more so the nearer the sizes are.

    All draft-free modes together: they copy the same text.
    """
    known = [(x.drafting, {k: own for k, own in x.pairs.items() if own}) for x in launches]
    points = [(d, key) for d, by_cell in known for key in by_cell]
    if not points:
        return {}
    off = _usual_off(known)
    measured = np.array([_measured(off, key, by_cell[key]) for _, by_cell in known for key in by_cell])
    levels = {
        key: statistics.fmean(v for (_, k), v in zip(points, measured, strict=True) if k == key)
        for key in {k for _, k in points}
    }
    field = _Field(
        points,
        measured - np.array([levels[key] for _, key in points]),
        np.array([len(by_cell[key]) for _, by_cell in known for key in by_cell]),
        _SIZES_ERROR,
        _sizes,
    )
    return {
        key: field.around(np.full(len(draftings), level), draftings, key) for key, level in levels.items()
    }


def foresee(
    launches: Sequence[Launch], draftings: Sequence[Drafting], *, step_share: float
) -> dict[str, dict[Drafting, Foreseen]]:
    """Expected ln(speed ÷ off) of draftings of one draft, for each cell that its launches measured.

    Args:
        launches: All launches with this draft, without other modes beside it.
        draftings: What to foresee; may contain what was launched.
        step_share: A first guess of the time of a draft's token ÷ one of the main model.

    Returns:
        Cell key → drafting → logarithm. Empty if the launches do not tell what they drafted and accepted.
    """
    known = [
        (launch.drafting, {k: own for k, ps in launch.pairs.items() if (own := [p for p in ps if _tells(p)])})
        for launch in launches
    ]
    known = [(d, by_cell) for d, by_cell in known if by_cell]
    if not known or not draftings:
        return {}
    return _Fit(known, step_share).foresee(draftings)


_Known = Sequence[tuple[Drafting, Mapping[str, Sequence[Pair]]]]


class _Fit:
    """The model fitted to the launches of one draft."""

    def __init__(self, known: _Known, step_share: float) -> None:
        self._known = known
        self._longest = max(32, *(d.n_max or 1 for d, _ in known))
        self._off = _usual_off(known)
        self._keys = sorted({key for _, by_cell in known for key in by_cell})
        self._draft, self._chances = self._fit_counts()
        self._costs = self._fit_costs(step_share)

    def foresee(self, draftings: Sequence[Drafting]) -> dict[str, dict[Drafting, Foreseen]]:
        """See `foresee`."""
        points = [(d, key) for d, by_cell in self._known for key in by_cell]
        launched = [d for d, _ in self._known]
        own = {key: dict(zip(launched, self._modelled(launched, key), strict=True)) for key in self._keys}
        measured = [_measured(self._off, key, by_cell[key]) for _, by_cell in self._known for key in by_cell]
        left = np.array([m - own[key][d] for m, (d, key) in zip(measured, points, strict=True)])
        pairs = np.array([len(by_cell[key]) for _, by_cell in self._known for key in by_cell])
        field = _Field(points, left, pairs, _MODEL_ERROR, _settings)
        return {key: field.around(self._modelled(draftings, key), draftings, key) for key in self._keys}

    def _fit_counts(self) -> tuple[tuple[float, float], dict[str, float]]:
        """Sureness c and the constant of the draft, and a for each cell: the most likely values."""
        draft = _considered()
        shape = (_CHANCES.size, _SURENESS.size * _TIMIDITY.size)
        penalties = {key: np.zeros(shape) for key in self._keys}
        for drafting, by_cell in self._known:
            accepted, drafted = _considered_counts(drafting.n_max or 1, drafting.p_min or 0.0, self._longest)
            for key, pairs in by_cell.items():
                number = sum(map(_cycles_of, pairs))
                for told, expected in (
                    (sum(p.drafted.accepted or 0 for p in pairs), accepted),
                    (sum(p.drafted.drafted or 0 for p in pairs), drafted),
                ):
                    # A cycle's count is about as scattered as it is large.
                    error = (expected + 0.3) * math.sqrt(1.0 / number + _UNEVEN**2)
                    penalties[key] += (((told / number - expected) / error) ** 2).reshape(shape)
        of_draft = draft.sureness.reshape(shape)[0], draft.timidity.reshape(shape)[0]
        prior = (np.log(of_draft[0] / _USUAL_C) / _C_SPREAD) ** 2 + (of_draft[1] / _TIMIDITY_SPREAD) ** 2
        best = int(np.argmin(sum(p.min(axis=0) for p in penalties.values()) + prior))
        chances = {key: float(_CHANCES[np.argmin(p[:, best])]) for key, p in penalties.items()}
        return (float(of_draft[0][best]), float(of_draft[1][best])), chances

    def _fit_costs(self, step_share: float) -> CostCurve:
        plain_ms = statistics.median(token_ms_of(off) for off in self._off.values())
        guess = first_guess(plain_ms, {}, {}, step_share * plain_ms, self._longest)
        observations = []
        for drafting, by_cell in self._known:
            for key, pairs in by_cell.items():
                model = self._cycles([drafting], key)
                for pair in pairs:
                    number = _cycles_of(pair)
                    observations.append(
                        Observation(
                            verified=number * model.lengths[0],
                            steps=number * float(self._steps(model)[0]),
                            scale=token_ms_of(self._off[key, pair.off.prompt_id]) / plain_ms,
                            predicted_ms=pair.drafted.predicted_ms,
                            launch=pair.drafted.launch_id,
                        )
                    )
        return refit(guess, observations)

    def _cycles(self, draftings: Sequence[Drafting], key: str) -> Cycles:
        size = len(draftings)
        return cycles(
            DraftNumbers(*(np.full(size, value) for value in (self._chances[key], *self._draft))),
            np.array([d.n_max or 1 for d in draftings], dtype=np.float64),
            np.array([d.p_min or 0.0 for d in draftings]),
            self._longest,
        )

    @staticmethod
    def _steps(model: Cycles) -> Floats:
        """Draft steps of a cycle; the batch in which a draft computes the verified tokens takes about one more."""
        return model.steps + 1.0

    def _modelled(self, draftings: Sequence[Drafting], key: str) -> Floats:
        """ln(speed ÷ off) by the model alone, mean over the prompts that were asked in a cell."""
        model = self._cycles(draftings, key)
        cycle_ms = self._costs.features(model.lengths, self._steps(model)).sum(axis=1)
        by_plain = cycle_ms / (1.0 + model.accepted) / self._costs.plain_ms  # time of a token ÷ that of off
        pairs = {p.off.prompt_id: p for _, by_cell in self._known for p in by_cell.get(key, ())}
        return np.asarray(np.mean([self._at(p, key, by_plain) for p in pairs.values()], axis=0))

    def _at(self, pair: Pair, key: str, by_plain: Floats) -> Floats:
        """`_with` for D values: the time of a request rises in proportion to that of its drafted tokens."""
        one, two = (math.exp(-self._with(pair, key, x)) for x in (1.0, 2.0))
        return np.asarray(-np.log(one + (two - one) * (by_plain - 1.0)))

    def _with(self, pair: Pair, key: str, by_plain: float) -> float:
        """ln(speed ÷ off) of a pair's request, if drafted tokens took so many times as long as those of off."""
        off, drafted = self._off[key, pair.off.prompt_id], pair.drafted
        predicted_ms = by_plain * token_ms_of(off) * (drafted.predicted_tokens - 1)
        wall_ms = drafted.wall_ms - drafted.predicted_ms + predicted_ms
        return replace(
            pair, off=off, drafted=replace(drafted, predicted_ms=predicted_ms, wall_ms=wall_ms)
        ).log_ratio


@dataclass(frozen=True, slots=True)
class _Field:
    """What a model left unexplained at settings of cells, and so expects near them.

    Attributes:
        points: The settings, with the cells' keys.
        residuals: Shape (P,): logarithms.
        pairs: Shape (P,): measured pairs behind each.
        error: Standard deviation of what the model leaves unexplained.
        place: Draftings → their coordinates, of which one unit makes a difference; shape (D, C).
    """

    points: Sequence[tuple[Drafting, str]]
    residuals: Floats
    pairs: npt.NDArray[np.int64]
    error: float
    place: Callable[[Sequence[Drafting]], Floats]

    def around(self, means: Floats, draftings: Sequence[Drafting], key: str) -> dict[Drafting, Foreseen]:
        """Draftings with these expectations of the model, corrected by what was measured near them."""
        noise = np.diag(_PAIR_NOISE**2 / self.pairs + _LAUNCH_NOISE**2)
        precision = np.linalg.inv(self._alike(self.points) + noise)
        near = self._alike([(d, key) for d in draftings])
        corrected = means + near @ precision @ np.clip(self.residuals, -_MOST_RESIDUAL, _MOST_RESIDUAL)
        left = self.error**2 - np.einsum("ij,jk,ik->i", near, precision, near)
        errors = np.sqrt(np.maximum(0.0, left))
        return {d: Foreseen(float(m), float(e)) for d, m, e in zip(draftings, corrected, errors, strict=True)}

    def _alike(self, these: Sequence[tuple[Drafting, str]]) -> Floats:
        """Covariance of what is unexplained here and at the known points."""
        here, there = (self.place([d for d, _ in points]) for points in (these, self.points))
        apart = ((here[:, None, :] - there[None, :, :]) ** 2).sum(axis=2)
        same = np.array([[1.0 if a == b else _COMMON for _, b in self.points] for _, a in these])
        return np.asarray(self.error**2 * same * np.exp(-apart / 2.0))


def _settings(draftings: Sequence[Drafting]) -> Floats:
    return np.array([(math.log(d.n_max or 1) / _OVER_LOG_N, (d.p_min or 0.0) / _OVER_P) for d in draftings])


def _sizes(draftings: Sequence[Drafting]) -> Floats:
    # Two modes with the same sizes are alike by `_MODES_ALIKE`.
    apart = math.sqrt(-math.log(_MODES_ALIKE))
    return np.array(
        [
            [math.log(d.ngram_n or 1) / _OVER_SIZE, math.log(d.longest) / _OVER_SIZE]
            + [apart * (d.mode is mode) for mode in Mode]
            for d in draftings
        ]
    )


def _measured(off: Mapping[tuple[str, str], Measurement], key: str, pairs: Sequence[Pair]) -> float:
    return statistics.fmean(replace(p, off=off[key, p.off.prompt_id]).log_ratio for p in pairs)


def _usual_off(known: _Known) -> dict[tuple[str, str], Measurement]:
    """Cell key and prompt id → of its answers without drafting, one of middling time: the quicker one of two."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    for _, by_cell in known:
        for key, pairs in by_cell.items():
            for p in pairs:
                found.setdefault((key, p.off.prompt_id), []).append(p.off)
    return {
        place: sorted(asked, key=lambda m: m.wall_ms)[(len(asked) - 1) // 2] for place, asked in found.items()
    }


def _tells(pair: Pair) -> bool:
    """Whether a pair has times of both halves and counts of the drafted one."""
    timed = not (math.isnan(token_ms_of(pair.off)) or math.isnan(token_ms_of(pair.drafted)))
    return timed and bool(pair.drafted.drafted) and pair.drafted.accepted is not None


def _cycles_of(pair: Pair) -> int:
    return max(1, pair.drafted.predicted_tokens - 1 - (pair.drafted.accepted or 0))
