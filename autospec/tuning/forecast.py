"""How the search uses expectations: which drafting to launch next, which never, and when predictions are not trusted.

`Forecast` is for what can be predicted. Modes beside a draft model are too many to predict all: the draftings
of single modes that are expected to be best are put together. `LaunchedForecast` is for what cannot be
predicted: it judges by what the launches so far have told.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from scipy import special

from autospec.drafting import Drafting, Mode
from autospec.formats import ruled_out_because
from autospec.measure.measurements import Pair
from autospec.predict.launched_counts import Foreseen, Launch, foresee, foresee_copies
from autospec.predict.prediction import Prediction, less_luck
from autospec.predict.predictor import Check, Predictor
from autospec.tuning.cell import CellRun
from autospec.tuning.space import Arm, Space

__all__ = ["MOST_TOGETHER", "WORTH_A_RIVAL", "Forecast", "LaunchedForecast", "chance_above"]

# A drafting with a smaller expected advantage is not launched: a few prompts cannot show the difference.
_WORTH = math.log(1.01)
# A draft whose costs were wrong is launched again with an n_max that differs by at least this factor: two such launches
# separate the cost of a verified token from the cost of a cycle.
_OTHER_N_MAX = 2.0
# Launches of draftings with several modes. Beside a draft model an n-gram mode that proposes only behind a long match may be
# better than the one that is best alone.
MOST_TOGETHER = 3
_LONG_MATCH = 12
# A trial's deviation from its prediction is averaged with this number of prompts without a deviation.
_SHRINK = 2.0
# A drafting is a rival of the winner if, with at least this chance, it is this much faster on other prompts.
_RIVAL_CHANCE = 0.1
# As a log: another drafting is proved if it is expected to be faster than the winner by more than this.
WORTH_A_RIVAL = math.log(1.05)


class Forecast:
    """Predictions for the cells of one tune; `threshold` is the least gain that may be enabled, as a fraction."""

    def __init__(
        self, predictor: Predictor, space: Space, threshold: float, tell: Callable[[str], None]
    ) -> None:
        self._predictor = predictor
        self._space = space
        self._threshold = math.log1p(threshold)
        self._tell = tell
        self._grid = [d for d in space.grid() if predictor.covers(d)]
        self._together: list[Drafting] = []
        self._found: dict[str, dict[Drafting, Prediction]] = {}
        self._tried: dict[tuple[str, Drafting], float] = {}
        # Label of an arm → most tokens in a cycle of its draftings that were launched.
        self._launched: dict[str, set[int]] = {}
        # Arms whose costs were wrong.
        self._unsure: set[str] = set()
        self._dead: set[str] = set()
        self.checks: list[Check] = []

    def trusts(self, drafting: Drafting) -> bool:
        """Whether a drafting's prediction is trusted, so that it is launched for a reason only."""
        return self._predictor.trusts(drafting)

    def predicted(self, cell: CellRun, drafting: Drafting) -> Prediction | None:
        """The current prediction for one drafting; ``None`` if there is none."""
        known = self._predictions(cell).get(drafting)
        return known or self._predictor.predict(cell.cell.key, [drafting]).get(drafting)

    def expected(self, cell: CellRun, drafting: Drafting) -> float | None:
        """Expected speed ratio of a drafting, corrected by its own launch; ``None`` if there is no prediction."""
        deviation = self._tried.get((cell.cell.key, drafting))
        if deviation is None:
            prediction = self.predicted(cell, drafting)
            return None if prediction is None else prediction.ratio
        # The deviation is from the cell's own prediction, not from the one that is shrunk towards other prompt types.
        own = self._predictor.predict(cell.cell.key, [drafting])[drafting]
        return own.ratio * math.exp(deviation)

    def cautious(self, cell: CellRun, drafting: Drafting) -> float | None:
        """As `expected`, less the luck of few prompts: to choose between draftings whose gains differ between prompts."""
        expected, prediction = self.expected(cell, drafting), self.predicted(cell, drafting)
        if expected is None or prediction is None:
            return expected
        return less_luck(expected, prediction.prompts_error)

    def next(self, cells: Sequence[CellRun], known: set[Drafting]) -> Drafting | None:
        """The drafting whose launch promises most; ``None`` if none is worth one.

        First the drafting that is expected to beat the tried ones (and off) by most, summed over cells; it may have several
        modes. If there is none: the draft that was never launched and that would beat them if its costs were as low as they may
        be, as one launch measures its costs. A draft whose costs were wrong gets a second such launch,
        with another n_max.
        """
        single = self._open(self._grid, known)
        together: list[Drafting] = []
        if sum(bool(d.beside) for d in known) < MOST_TOGETHER:
            self.put_together(cells)
            together = self._open(self._together, known)
        return self._most_promising([*single, *together], cells) or self._most_instructive(single, cells)

    def drop(self, label: str) -> None:
        """Expect nothing more of an arm: it cannot be launched."""
        self._dead.add(label)

    def _is_alive(self, drafting: Drafting) -> bool:
        return self._dead.isdisjoint({self._arm(drafting), *map(self._arm, drafting.parts)})

    def _open(self, draftings: Sequence[Drafting], known: set[Drafting]) -> list[Drafting]:
        """Those that may be launched, and have not been."""
        return [
            d
            for d in draftings
            if d not in known and self._is_alive(d) and self.trusts(d) and not self._predictor.hopeless(d)
        ]

    def _most_promising(self, draftings: Sequence[Drafting], cells: Sequence[CellRun]) -> Drafting | None:
        """The drafting that is expected to beat the tried ones (and off) by most, summed over cells."""
        known = [(self._predictions(c), self._bar(c), self._foreseen_of_tried(c)) for c in cells]
        best: tuple[float, Drafting] | None = None
        for drafting in draftings:
            label = self._arm(drafting)
            gains = [
                math.log(p.ratio) - max(bar, near.get(label, -math.inf))
                for predictions, bar, near in known
                if (p := predictions.get(drafting)) is not None
            ]
            if max(gains, default=0.0) <= _WORTH:
                continue
            total = sum(max(0.0, g) for g in gains)
            if best is None or total > best[0]:
                best = total, drafting
        return best[1] if best is not None else None

    def _most_instructive(self, draftings: Sequence[Drafting], cells: Sequence[CellRun]) -> Drafting | None:
        """The drafting whose launch measures unknown costs, and whose optimistic end by them is highest above the threshold."""
        known = [(self._predictions(c), max(self._bar(c), self._threshold)) for c in cells]
        best: tuple[float, Drafting] | None = None
        for drafting in draftings:
            if not self._would_teach(drafting):
                continue
            ends = [
                math.log(p.high_by_costs) - least
                for predictions, least in known
                if (p := predictions.get(drafting)) is not None
            ]
            if max(ends, default=0.0) > 0 and (best is None or max(ends) > best[0]):
                best = max(ends), drafting
        return best[1] if best is not None else None

    def put_together(self, cells: Sequence[CellRun]) -> None:
        """Add the best draftings of single modes, of each cell, together: a draft model with one n-gram mode beside it."""
        if not self._space.combines:
            return
        found: list[Drafting] = []
        for cell in cells:
            values = {
                d: v
                for d in self._open(self._grid, set())
                if self._drafts(cell, d) and (v := self.expected(cell, d)) is not None
            }
            models = _best_few([d for d in values if not d.mode.draft_free], values, _half_as_long)
            free = [d for d in values if d.mode.draft_free and d.mode is not Mode.PROMPT_LOOKUP]
            beside = [
                d
                for mode in dict.fromkeys(d.mode for d in free)
                for d in _best_few([d for d in free if d.mode is mode], values, _matches_more)
            ]
            found += [replace(m, beside=(d,)) for m in models for d in beside]
        new = [d for d in dict.fromkeys(found) if d not in self._together and self._predictor.covers(d)]
        if new:
            self._together += new
            self._found.clear()

    def _drafts(self, cell: CellRun, drafting: Drafting) -> bool:
        """Whether a drafting proposes anything in a cell's recorded answers."""
        prediction = self._predictions(cell).get(drafting)
        return prediction is not None and prediction.drafted > 0

    def observe(self, drafting: Drafting, pairs: Mapping[str, Sequence[Pair]]) -> None:
        """Take in the pairs of one launch, by cell key: correct the costs, and report where the prediction was wrong."""
        # Modes beside a draft model have no costs of their own.
        label = self._arm(replace(drafting, beside=()))
        self._launched.setdefault(label, set()).add(drafting.longest)
        before = {
            key: p[drafting] for key in pairs if drafting in (p := self._predictor.predict(key, [drafting]))
        }
        everything = [pair for own in pairs.values() for pair in own]
        check = self._predictor.observe(drafting, everything)
        self._found.clear()
        if check is None:
            return
        self.checks.append(check)
        if check.costs_alone:
            self._unsure.add(label)
            self._tell(
                f"{drafting.label}: measured {check.measured:.2f}×, predicted {check.predicted:.2f}×. Its acceptance rate is as"
                " predicted, so its costs are corrected and treated as less certain."
            )
        elif not check.agrees:
            self._tell(
                f"{drafting.label}: measured {check.measured:.2f}×, predicted {check.predicted:.2f}×. Its predictions are no"
                " longer trusted; its settings are measured instead."
            )
        if check.refused:
            self._tell(f"{drafting.label}: {check.refused}")
        deviations = self._predictor.deviations(drafting, pairs)
        for key, own in pairs.items():
            if key in before and own:
                self._tried[key, drafting] = deviations[key] * len(own) / (len(own) + _SHRINK)

    def rule_out(self, cells: Sequence[CellRun]) -> list[dict[str, object]]:
        """The drafts and modes that were never launched because even their best case does not pay, and why, as JSON objects."""
        found: list[dict[str, object]] = []
        bars = {cell.cell.key: self._bar(cell) for cell in cells}
        least = {key: max(bar, self._threshold) for key, bar in bars.items()}  # what is worth a launch
        by_arm: dict[str, list[Drafting]] = {}
        for drafting in self._grid:
            by_arm.setdefault(self._arm(drafting), []).append(drafting)
        for arm in self._space.arms:
            label = arm.label
            own = [d for d in by_arm.get(label, ()) if self.trusts(d)]
            if label in self._launched or not own:
                continue
            cases = [
                (math.log(p.high) - least[key], p, cell)
                for cell, key in ((cell, cell.cell.key) for cell in cells)
                for d in own
                if (p := self._predictions(cell).get(d)) is not None
            ]
            if not cases:
                continue
            above, best, cell = max(cases, key=lambda case: case[0])
            if above > 0.0 and not self._predictor.hopeless(best.drafting):
                continue  # the search ended before it could be launched, or it was not expected to win
            costs = self._predictor.costs(best.drafting)
            n_max = min(best.drafting.longest, costs.verify_ms.size - 1)
            even = costs.break_even(n_max)
            # Generation alone may pay: then prompt processing, which the draft does too, takes the gain away.
            generation_pays = best.acceptance > even and math.log(best.high) <= self._threshold
            by_prompt = generation_pays and best.drafting.draft is not None
            why = {
                "arm": label,
                "drafting": best.drafting.to_json(),
                "prompt_type": str(cell.prompt_type),
                "best_case": round(best.high, 4),
                "expected": round(best.ratio, 4),
                "acceptance": None if math.isnan(best.acceptance) else round(best.acceptance, 3),
                "break_even": round(even, 3),
                "by_prompt": by_prompt,
                "beaten": self._threshold < math.log(best.high) <= bars[cell.cell.key],
            }
            found.append(why)
            self._tell(
                f"{label} is not launched: best case {100 * (best.high - 1):+.0f} % ({cell.prompt_type}):"
                f" {ruled_out_because(why)}."
            )
        return found

    def best(self, cell: CellRun) -> tuple[Drafting, float] | None:
        """The drafting that is cautiously expected to be fastest in a cell, and its ratio: of all that are trusted and can be launched.

        One that is hopeless counts where all are.
        """
        every = [d for d in (*self._grid, *self._together) if self.trusts(d) and self._is_alive(d)]
        candidates = self._open(every, set()) or every
        valued = [(d, v) for d in candidates if (v := self.cautious(cell, d)) is not None]
        return max(valued, key=lambda item: item[1], default=None)

    def rival(self, cell: CellRun, winner: Drafting) -> Drafting | None:
        """The drafting of another arm that may be clearly faster than the winner on other prompts; ``None`` without one.

        How much the difference between the two varies over the recorded prompts tells how wrong their mean may be (Student's t).
        """
        own = self._expected_logs(cell, winner)
        best: dict[str, tuple[float, Drafting]] = {}
        for drafting in self._open([*self._grid, *self._together], set()):
            arm, value = self._arm(drafting), self.expected(cell, drafting)
            if arm == self._arm(winner) or value is None or math.log(value) <= self._threshold:
                continue
            if arm not in best or value > best[arm][0]:
                best[arm] = value, drafting
        likeliest: tuple[float, Drafting] | None = None
        for _, drafting in best.values():
            logs = self._expected_logs(cell, drafting)
            chance = chance_above(WORTH_A_RIVAL, [logs[p] - own[p] for p in own.keys() & logs.keys()])
            if chance >= _RIVAL_CHANCE and (likeliest is None or chance > likeliest[0]):
                likeliest = chance, drafting
        return None if likeliest is None else likeliest[1]

    def _expected_logs(self, cell: CellRun, drafting: Drafting) -> dict[str, float]:
        """Prompt id → expected ln(drafting ÷ off), corrected by the drafting's own launch."""
        deviation = self._tried.get((cell.cell.key, drafting), 0.0)
        logs = self._predictor.log_ratios(cell.cell.key, drafting)
        return {prompt: log + deviation for prompt, log in logs.items()}

    def draft_free(self, cell: CellRun) -> dict[Drafting, float]:
        """The cautiously expected speed ratio of each draft-free drafting with a trusted prediction that drafts in a cell."""
        open_ = self._open(self._grid, set())
        free = [d for d in open_ if d.mode.draft_free and self._drafts(cell, d)]
        return {d: v for d in free if (v := self.cautious(cell, d)) is not None}

    def best_for_all(self, cells: Sequence[CellRun]) -> Drafting | None:
        """The drafting with a trusted prediction that is expected to be fastest if all cells have it, in equal parts of time."""
        best: tuple[float, str, Drafting] | None = None
        for drafting in filter(self.trusts, self._grid):
            ratios = [v for cell in cells if (v := self.expected(cell, drafting)) is not None]
            if ratios and len(ratios) == len(cells):
                ranked = statistics.harmonic_mean(ratios), drafting.key, drafting
                best = max(best, ranked) if best is not None else ranked
        return best[2] if best is not None else None

    def expectations(self, cell: CellRun, draftings: Iterable[Drafting]) -> list[dict[str, object]]:
        """What is expected of these draftings in a cell, as JSON objects; without those whose prediction is not trusted."""
        return [
            {"drafting": drafting.to_json(), "expected": round(expected, 4)}
            for drafting in sorted(draftings, key=lambda d: d.key)
            if self.trusts(drafting) and (expected := self.expected(cell, drafting)) is not None
        ]

    def figures(self, cell: CellRun, drafting: Drafting) -> dict[str, object]:
        """The prediction for a drafting and the costs it rests on, as evidence."""
        prediction = self.predicted(cell, drafting)
        if prediction is None:
            return {}
        costs = self._predictor.costs(drafting)
        places = self._predictor.acceptance_by_position(cell.cell.key, drafting)
        widest = min(costs.verify_ms.size - 1, drafting.longest)
        return {
            "expected": round(prediction.ratio, 4),
            "cautious": round(self.cautious(cell, drafting) or prediction.ratio, 4),
            "interval": [round(prediction.low, 4), round(prediction.high, 4)],
            "acceptance": None if math.isnan(prediction.acceptance) else round(prediction.acceptance, 4),
            "acceptance_by_position": [round(a, 4) for a in places],
            "tokens_per_cycle": round(prediction.tokens_per_cycle, 3),
            "prompts_spread": round(prediction.prompts_error * math.sqrt(prediction.answers), 4),
            "token_ms": round(costs.plain_ms, 3),
            "main_ms": [round(float(v), 3) for v in costs.main_ms[: widest + 1]],
            "verify_ms": [round(float(v), 3) for v in costs.verify_ms[: widest + 1]],
            "step_ms": round(costs.step_ms, 3),
            # With several modes a proposal has no single price.
            "break_even": None if drafting.beside else round(costs.break_even(widest), 4),
            "corrected_by": costs.observations,
            **({"not_corrected": costs.refused} if costs.refused else {}),
            "trusted": self.trusts(drafting),
            "checks": [
                {
                    "drafting": c.drafting.to_json(),
                    "predicted": round(c.predicted, 4),
                    "measured": round(c.measured, 4),
                    "agrees": c.agrees,
                }
                for c in self.checks
            ],
        }

    def _would_teach(self, drafting: Drafting) -> bool:
        """Whether a launch measures costs that no launch has measured yet."""
        launched = self._launched.get(self._arm(drafting))
        if launched is None:
            return True
        own = drafting.longest
        return self._arm(drafting) in self._unsure and all(
            max(own, other) >= _OTHER_N_MAX * min(own, other) for other in launched
        )

    def _bar(self, cell: CellRun) -> float:
        """Logarithm of the ratio that a launch has to beat in a cell: that of off, or of the best tried drafting."""
        values = [self.expected(cell, d) or v if self.trusts(d) else v for d, v in cell.trial_values.items()]
        return math.log(max([1.0, *values]))

    def _foreseen_of_tried(self, cell: CellRun) -> dict[str, float]:
        """Label of an arm → logarithm of the best prediction for its tried draftings, without their own launches.

        The result of one launch is in part luck. Compared with an unlucky one, every similar drafting would look better and be
        launched in turn.
        """
        found: dict[str, float] = {}
        for drafting in cell.trial_values:
            prediction = self.predicted(cell, drafting) if self.trusts(drafting) else None
            if prediction is not None:
                label = self._arm(drafting)
                found[label] = max(found.get(label, -math.inf), math.log(prediction.ratio))
        return found

    def _predictions(self, cell: CellRun) -> dict[Drafting, Prediction]:
        if not self._found:
            self._found = self._predictor.compare([*self._grid, *self._together])
        return self._found.get(cell.cell.key, {})

    def _arm(self, drafting: Drafting) -> str:
        arm = self._space.arm_of(drafting)
        return arm.label if arm is not None else ""


def chance_above(bar: float, values: Sequence[float]) -> float:
    """The chance that the mean of the values' kind is above a bar; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    ahead, spread = statistics.fmean(values) - bar, statistics.stdev(values)
    if spread <= 0.0:
        return float(ahead > 0.0)
    return float(special.stdtr(len(values) - 1, ahead / (spread / math.sqrt(len(values)))))


def _best_few(
    draftings: Sequence[Drafting],
    values: Mapping[Drafting, float],
    differs: Callable[[Drafting, Drafting], bool],
) -> list[Drafting]:
    """The best drafting, and the best of those that differ from it in this way."""
    ranked = sorted(draftings, key=lambda d: (-values[d], d.key))
    return ranked[:1] + [d for d in ranked[1:] if differs(d, ranked[0])][:1]


def _half_as_long(drafting: Drafting, best: Drafting) -> bool:
    return 2 * drafting.longest <= best.longest


def _matches_more(drafting: Drafting, best: Drafting) -> bool:
    return (drafting.ngram_n or 0) >= _LONG_MATCH > (best.ngram_n or 0)


# A launch is worth it if the gains that are expected of it, summed over the prompt types, are larger.
_WORTH_A_LAUNCH = 0.01
# A drafting that is expected to be this many standard errors behind in every cell is not launched. With a draft the model of its
# cycles may be wrong, not only inexact.
_FAR, _FAR_WITH_DRAFT = 2.0, 4.0
# First guess of the time of a draft's token ÷ one of the main model.
_STEP_SHARE = 0.12

_Pairs = Mapping[str, Mapping[Drafting, Sequence[Pair]]]  # by cell key
_Foreseen = Mapping[str, Mapping[Drafting, Foreseen]]


class LaunchedForecast:
    """Expectations for the arms of a space that were launched and cannot be predicted.

    `pairs` has, by cell key and drafting, the pairs of all launches, at most one of each prompt; it grows while the search goes on.
    """

    def __init__(self, space: Space, pairs: _Pairs) -> None:
        self._space = space
        self._pairs = pairs
        self._grids: dict[str, list[Drafting]] = {}
        for drafting in space.grid():
            if not drafting.n_min:
                arm = space.arm_of(drafting)
                self._grids.setdefault("" if arm is None else arm.label, []).append(drafting)
        self._of: dict[int, dict[str, _Foreseen]] = {}

    def next(
        self, cells: Sequence[CellRun], known: set[Drafting], is_open: Callable[[Arm], bool]
    ) -> Drafting | None:
        """The drafting from whose launch most gain is expected (EI: Jones, Schonlau and Welch, 1998); ``None`` if that is little."""
        by_arm = self._all()
        bars = self._bars(cells, by_arm)
        best: tuple[float, str, Drafting] | None = None
        for arm in filter(is_open, self._space.arms):
            foreseen = by_arm.get(arm.label, {})
            for drafting in self._grids.get(arm.label, ()):
                if drafting in known:
                    continue
                own = [(bars[c.cell.key], foreseen.get(c.cell.key, {}).get(drafting)) for c in cells]
                gain = sum(_expected_gain(f, bar) for bar, f in own if f is not None)
                if gain > _WORTH_A_LAUNCH and (best is None or (gain, drafting.key) > best[:2]):
                    best = gain, drafting.key, drafting
        return None if best is None else best[2]

    def too_slow(self, drafting: Drafting, cells: Sequence[CellRun]) -> bool:
        """Whether a drafting is expected to be far behind the best in every cell."""
        by_arm = self._all()
        arm = self._space.arm_of(drafting)
        foreseen = by_arm.get("" if arm is None else arm.label, {})
        bars = self._bars(cells, by_arm)
        own = [(bars[c.cell.key], foreseen.get(c.cell.key, {}).get(drafting)) for c in cells]
        far = _FAR if drafting.mode.draft_free else _FAR_WITH_DRAFT
        return all(f is not None and f.mean + far * f.error < bar for bar, f in own)

    def _all(self) -> dict[str, _Foreseen]:
        """Label of an arm → expectations."""
        size = sum(len(own) for by_drafting in self._pairs.values() for own in by_drafting.values())
        if size not in self._of:
            self._of = {size: self._fit()}
        return self._of[size]

    def _fit(self) -> dict[str, _Foreseen]:
        launches: dict[str, list[Launch]] = {}
        tried = dict.fromkeys(d for own in self._pairs.values() for d in own)
        for drafting in tried:
            arm = self._space.arm_of(drafting)
            if arm is not None and not arm.beside and arm.engine is None:
                pairs = {key: own[drafting] for key, own in self._pairs.items() if own.get(drafting)}
                launches.setdefault(arm.label, []).append(Launch(drafting, pairs))
        found: dict[str, _Foreseen] = {}
        arms = [a for a in self._space.arms if a.label in launches]
        free = [a for a in arms if a.mode.draft_free]
        for arm in arms:
            own = launches[arm.label]
            grid = [*self._grids.get(arm.label, ()), *(x.drafting for x in own)]
            if arm in free:
                copies = [x for a in free for x in launches[a.label]]
                found[arm.label] = foresee_copies(copies, grid)
            else:
                found[arm.label] = foresee(own, grid, step_share=_STEP_SHARE)
        return found

    def _bars(self, cells: Sequence[CellRun], by_arm: Mapping[str, _Foreseen]) -> dict[str, float]:
        """Cell key → logarithm of the best tried drafting, or of off."""
        bars = {}
        for cell in cells:
            key = cell.cell.key
            best = 0.0
            for drafting, ratio in cell.trial_values.items():
                arm = self._space.arm_of(drafting)
                foreseen = by_arm.get("" if arm is None else arm.label, {}).get(key, {}).get(drafting)
                best = max(best, math.log(ratio) if foreseen is None else foreseen.mean)
            bars[key] = best
        return bars


def _expected_gain(foreseen: Foreseen, bar: float) -> float:
    """Expected excess over the bar, if the drafting's value is normal."""
    ahead = foreseen.mean - bar
    if foreseen.error <= 0.0:
        return max(0.0, ahead)
    z = ahead / foreseen.error
    density = math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    return ahead * float(special.ndtr(z)) + foreseen.error * density
