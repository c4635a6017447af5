"""Prediction at work in the search: which drafting to launch next, which never, and when to stop believing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from autospec.drafting import Drafting
from autospec.formats import ruled_out_because
from autospec.measure.measurements import Pair
from autospec.predict.prediction import Prediction, less_luck
from autospec.predict.predictor import Check, Predictor
from autospec.tuning.cell import CellRun
from autospec.tuning.space import Space

__all__ = ["Forecast"]

# What is expected to be better by less than this is not launched: a few prompts can't tell it apart.
_WORTH = math.log(1.01)
# A draft whose costs were wrong is launched with another n_max, by this factor at least: two such launches tell what a
# verified token costs from what a cycle costs.
_OTHER_N_MAX = 2.0
# A trial's own deviation from prediction counts as if so many more prompts had shown none.
_SHRINK = 2.0


class Forecast:
    """What prediction says of one tune's cells.

    Args:
        predictor: Recordings, profiles, costs.
        space: What may be tried.
        threshold: Least gain that may be enabled, as a fraction.
        tell: Told what prediction rules out, and where it fails.
    """

    def __init__(
        self, predictor: Predictor, space: Space, threshold: float, tell: Callable[[str], None]
    ) -> None:
        self._predictor = predictor
        self._space = space
        self._threshold = math.log1p(threshold)
        self._tell = tell
        self._grid = [d for d in space.grid() if predictor.covers(d)]
        self._found: dict[str, dict[Drafting, Prediction]] = {}
        self._tried: dict[tuple[str, Drafting], float] = {}
        # Label of an arm → most tokens in a cycle of its draftings that were launched.
        self._launched: dict[str, set[int]] = {}
        # Arms whose costs were wrong.
        self._unsure: set[str] = set()
        self.checks: list[Check] = []

    def trusts(self, drafting: Drafting) -> bool:
        """Whether prediction speaks for a drafting, so that launching it needs a reason."""
        return self._predictor.trusts(drafting)

    def predicted(self, cell: CellRun, drafting: Drafting) -> Prediction | None:
        """What is expected of one drafting now; ``None`` where nothing can be said."""
        known = self._predictions(cell).get(drafting)
        return known or self._predictor.predict(cell.cell.key, [drafting]).get(drafting)

    def expected(self, cell: CellRun, drafting: Drafting) -> float | None:
        """Speed ratio expected of a drafting with what its own launch showed; ``None`` where nothing can be said."""
        deviation = self._tried.get((cell.cell.key, drafting))
        if deviation is None:
            prediction = self.predicted(cell, drafting)
            return None if prediction is None else prediction.ratio
        # What its own launch showed is a deviation from its own prediction, not from one drawn towards other types'.
        own = self._predictor.predict(cell.cell.key, [drafting])[drafting]
        return own.ratio * math.exp(deviation)

    def cautious(self, cell: CellRun, drafting: Drafting) -> float | None:
        """The same, less the luck of few prompts: to choose between draftings whose gains differ from prompt to prompt."""
        expected, prediction = self.expected(cell, drafting), self.predicted(cell, drafting)
        if expected is None or prediction is None:
            return expected
        return less_luck(expected, prediction.prompts_error)

    def next(self, cells: Sequence[CellRun], known: set[Drafting], dead_arms: set[str]) -> Drafting | None:
        """The drafting whose launch promises most; ``None`` where none is worth one.

        First whatever is expected to beat what was tried (or off) by most, over all cells. Where nothing is, the
        draft that was never launched and whose optimistic end still clears the threshold: one launch measures its
        costs, and the next prediction is surer. A draft whose costs were wrong gets a second such launch, with another
        n_max.

        Args:
            cells: That take part.
            known: Draftings that were tried.
            dead_arms: Labels of arms that can't work.
        """
        open_ = [
            d
            for d in self._grid
            if d not in known
            and self._alive(d, dead_arms)
            and self.trusts(d)
            and not self._predictor.hopeless(d)
        ]
        bars = {cell.cell.key: self._bar(cell) for cell in cells}
        near = {cell.cell.key: self._foreseen_of_tried(cell) for cell in cells}
        best: tuple[float, Drafting] | None = None
        for drafting in open_:
            label = self._arm(drafting)
            gains = [
                math.log(p.ratio) - max(bars[c.cell.key], near[c.cell.key].get(label, -math.inf))
                for c in cells
                if (p := self._predictions(c).get(drafting)) is not None
            ]
            if max(gains, default=0.0) <= _WORTH:
                continue
            total = sum(max(0.0, g) for g in gains)
            if best is None or total > best[0]:
                best = total, drafting
        if best is not None:
            return best[1]
        for drafting in open_:
            if not self._would_teach(drafting):
                continue
            ends = [
                math.log(p.high) - max(bars[c.cell.key], self._threshold)
                for c in cells
                if (p := self._predictions(c).get(drafting)) is not None
            ]
            if max(ends, default=0.0) > 0 and (best is None or max(ends) > best[0]):
                best = max(ends), drafting
        return best[1] if best is not None else None

    def observe(self, drafting: Drafting, pairs: Mapping[str, Sequence[Pair]]) -> None:
        """Take in one launch's pairs, by cell key: costs are corrected, and what disagrees is said."""
        label = self._arm(drafting)
        self._launched.setdefault(label, set()).add(_longest(drafting))
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
                f"{drafting.label}: measured {check.measured:.2f}×, predicted {check.predicted:.2f}×. It accepts what was"
                " predicted: its costs are corrected, and counted as less sure."
            )
        elif not check.agrees:
            self._tell(
                f"{drafting.label}: measured {check.measured:.2f}×, predicted {check.predicted:.2f}×. Prediction is not"
                " trusted for it any more; its draftings are tried instead."
            )
        if check.refused:
            self._tell(f"{drafting.label}: {check.refused}")
        for key, own in pairs.items():
            if key in before and own:
                deviation = self._predictor.deviation(key, drafting, own)
                self._tried[key, drafting] = deviation * len(own) / (len(own) + _SHRINK)

    def rule_out(self, cells: Sequence[CellRun]) -> list[dict[str, object]]:
        """The drafts and modes that were never launched because even their best case does not pay, and why.

        Returns:
            One JSON object for each, said as a sentence to whoever watches.
        """
        found: list[dict[str, object]] = []
        for arm in self._space.arms:
            label = arm.label
            own = [d for d in self._grid if self._arm(d) == label and self.trusts(d)]
            if label in self._launched or not own:
                continue
            cases = [(p, c) for c in cells for d in own if (p := self._predictions(c).get(d)) is not None]
            if not cases:
                continue
            best, cell = max(cases, key=lambda case: math.log(case[0].high) - self._least(case[1]))
            if math.log(best.high) > self._least(cell) and not self._predictor.hopeless(best.drafting):
                continue  # the search's time was over before it could be launched
            costs = self._predictor.costs(best.drafting)
            n_max = min(_longest(best.drafting), costs.verify_ms.size - 1)
            even = costs.break_even(n_max)
            # Generation alone may pay: then it is the prompt, which the draft computes too, that takes the gain away.
            dear = best.acceptance > even and math.log(best.high) <= self._threshold
            by_prompt = dear and best.drafting.draft is not None
            why = {
                "arm": label,
                "drafting": best.drafting.to_json(),
                "prompt_type": str(cell.prompt_type),
                "best_case": round(best.high, 4),
                "expected": round(best.ratio, 4),
                "acceptance": None if math.isnan(best.acceptance) else round(best.acceptance, 3),
                "break_even": round(even, 3),
                "by_prompt": by_prompt,
            }
            found.append(why)
            self._tell(
                f"{label} is not launched: best case {100 * (best.high - 1):+.0f} % ({cell.prompt_type}):"
                f" {ruled_out_because(why)}."
            )
        return found

    def best(self, cell: CellRun) -> Drafting | None:
        """The drafting expected to be fastest in a cell, of all that prediction covers."""
        candidates = [d for d in self._grid if self.trusts(d)]
        valued = [(v, d) for d in candidates if (v := self.expected(cell, d)) is not None]
        return max(valued, key=lambda item: item[0])[1] if valued else None

    def figures(self, cell: CellRun, drafting: Drafting) -> dict[str, object]:
        """For the evidence: what was predicted of a drafting, and the costs it rests on."""
        prediction = self.predicted(cell, drafting)
        if prediction is None:
            return {}
        costs = self._predictor.costs(drafting)
        places = self._predictor.acceptance_by_position(cell.cell.key, drafting)
        widest = min(costs.verify_ms.size - 1, _longest(drafting))
        return {
            "expected": round(prediction.ratio, 4),
            "cautious": round(self.cautious(cell, drafting) or prediction.ratio, 4),
            "interval": [round(prediction.low, 4), round(prediction.high, 4)],
            "acceptance": None if math.isnan(prediction.acceptance) else round(prediction.acceptance, 4),
            "acceptance_by_position": [round(a, 4) for a in places],
            "tokens_per_cycle": round(prediction.tokens_per_cycle, 3),
            "token_ms": round(costs.plain_ms, 3),
            "main_ms": [round(float(v), 3) for v in costs.main_ms[: widest + 1]],
            "verify_ms": [round(float(v), 3) for v in costs.verify_ms[: widest + 1]],
            "step_ms": round(costs.step_ms, 3),
            "break_even": round(costs.break_even(widest), 4),
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
        own = _longest(drafting)
        return self._arm(drafting) in self._unsure and all(
            max(own, other) >= _OTHER_N_MAX * min(own, other) for other in launched
        )

    def _bar(self, cell: CellRun) -> float:
        """Logarithm of what a launch has to beat in a cell: off, or the best that was tried, as it is known now."""
        values = [self.expected(cell, d) or v if self.trusts(d) else v for d, v in cell.trial_values.items()]
        return math.log(max([1.0, *values]))

    def _foreseen_of_tried(self, cell: CellRun) -> dict[str, float]:
        """Label of an arm → logarithm of the most that is predicted of its tried draftings, their own launches left out.

        What a launch showed of one drafting is in part luck. Held against that, the next one like it would look better, and
        be launched, and then the next.
        """
        found: dict[str, float] = {}
        for drafting in cell.trial_values:
            prediction = self.predicted(cell, drafting) if self.trusts(drafting) else None
            if prediction is not None:
                label = self._arm(drafting)
                found[label] = max(found.get(label, -math.inf), math.log(prediction.ratio))
        return found

    def _least(self, cell: CellRun) -> float:
        """Logarithm of what a drafting must be able to reach to be worth any launch in a cell."""
        return max(self._bar(cell), self._threshold)

    def _predictions(self, cell: CellRun) -> dict[Drafting, Prediction]:
        if not self._found:
            self._found = self._predictor.compare(self._grid)
        return self._found.get(cell.cell.key, {})

    def _arm(self, drafting: Drafting) -> str:
        arm = self._space.arm_of(drafting)
        return arm.label if arm is not None else ""

    def _alive(self, drafting: Drafting, dead_arms: set[str]) -> bool:
        return self._arm(drafting) not in dead_arms


def _longest(drafting: Drafting) -> int:
    """Most tokens that it proposes in a cycle."""
    return drafting.n_max or drafting.ngram_m or 1
