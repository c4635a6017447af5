"""The search: one launch measures a drafting for every prompt type at once.

Predictions come first: the search launches what is expected to beat everything so far, and drafts whose costs are too
uncertain to rule them out. For draftings without a trusted prediction, one cell leads each trial, in turn: its Optuna study
proposes a drafting, and all cells measure it. The space's leaders are the first such trials. A draft that was so slow that
no other setting of it can win is not launched again. Several modes together are launched if the prediction expects a gain;
or, where there is no prediction, if each of them gains alone in a cell. The search ends when nothing is worth a launch, when
the trials or its share of the budget are spent, when the proofs need the rest of the time, or when nothing has improved in any
cell for a while.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import BackendError, RequestError
from autospec.measure.measurements import Pair, Phase
from autospec.tuning.cell import CellRun, TuneContext, TuneStep, mean_log_ratio
from autospec.tuning.forecast import MOST_TOGETHER, Forecast, LaunchedForecast
from autospec.tuning.paired_runner import Measured
from autospec.tuning.pruning import Reach, gives_up
from autospec.tuning.space import Arm
from autospec.tuning.study import PROMPTS, Ask, fails_with_any_setting
from autospec.tuning.tasks import Task
from autospec.tuning.winners import proof_comes_first, trial_attributes, trial_values

__all__ = ["Search"]

# A smaller improvement is not progress: a few prompts cannot show it.
_PROGRESS = 0.01
# A cell whose best drafting reaches only this ratio to off leaves the search: nothing that the sampler tries nearby makes
# up for that, and the proof on other prompts will confirm it.
_HOPELESS = 0.80
# A drafting this close to a cell's best may be better than it.
_NEAR = 0.97
# Below this number of trials, more trials are worth more than more prompts in each.
_ENOUGH_TRIALS = 8
# Launches of a leading arm that is not predicted, before what they told chooses the next one.
_TO_JUDGE = 2


@dataclass(frozen=True, slots=True)
class _TrialOutcome:
    pairs: list[Pair]
    gave_up: str
    calm: list[Pair]  # the undisturbed ones, which correct predictions


class Search:
    """The ask/tell loop over all cells of one tune that are not searched yet, within the definition's share of the budget.

    `out_of_time` is True if the search ended because that share was spent; each cell notes the arms that were left untried.
    """

    def __init__(
        self,
        cells: Sequence[CellRun],
        context: TuneContext,
        forecast: Forecast | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cells = [c for c in cells if not c.nothing_to_draft]
        self._context = context
        self._forecast = forecast
        self._definition = context.definition
        self._space = context.space
        self._progress = context.progress
        self._now = now
        self._known: set[Drafting] = set()
        self._dead_arms: set[str] = set()
        self._reach = Reach(context.definition.rule.threshold)
        self._pairs: dict[str, dict[Drafting, list[Pair]]] = {}  # by cell key
        self._from_launches = LaunchedForecast(context.space, self._pairs)
        self._idle = 0
        self.out_of_time = False
        self._trial_s: list[float] = []
        # Tune prompts of each type in every trial; set once the first ones have been timed.
        self._prompts: int | None = None

    def run(self) -> None:
        """Search until done. Every trial is in the studies when this returns or raises."""
        done = self._recall()
        untried = {a for a in self._space.arms if any(a.label in cell.untried for cell in self._cells)}
        for cell in self._cells:
            cell.untried = frozenset()
        leaders = [d for d in self._space.leaders() if d not in self._known]
        if untried:
            # Each gets its trial, also where a tune without it has used them up since.
            done = min(done, max(0, self._definition.trials - len(untried)))
            self._idle = min(self._idle, self._definition.patience - len(untried))
            leaders.sort(key=lambda d: self._space.arm_of(d) not in untried)
        if news := {draft for cell in self._cells for draft in cell.news}:
            # Trials from before these drafts use up neither their trials nor their patience.
            done, self._idle = sum(d.draft in news for d in self._known), 0
            leaders.sort(key=lambda d: d.draft not in news)
        while self._cells and done < self._definition.trials and self._idle < self._definition.patience:
            active = [c for c in self._cells if not self._ended(c)]
            if not active or self._proof_comes_first():
                break
            if not self._time_for_another():
                self.out_of_time = True
                self._note_untried(active)
                break
            drafting = self._choose(active, active[done % len(active)], leaders)
            if drafting is None:
                break
            self._known.add(drafting)
            if self._is_dead(drafting):
                continue
            done += 1
            begun = self._now()
            self._try(drafting, active, done)
            self._trial_s.append(self._now() - begun)
        self._try_together(done)
        self._confirm()
        for cell in self._cells:
            cell.searched = True

    def _proof_comes_first(self) -> bool:
        trial_s = max(self._trial_s[-3:], default=0.0)
        if not proof_comes_first(self._cells, self._context, self._forecast, trial_s):
            return False
        self._progress.tell(
            "Large gains are expected and the time is short, so the proofs begin now; no more settings are tried."
        )
        return True

    def _note_untried(self, active: Sequence[CellRun]) -> None:
        """Name what trials would have searched next: a head, for example, that cannot be predicted. The next tune tries it."""
        tried = {self._space.arm_of(d) for d in self._known}
        untried = [a.label for a in self._space.arms if a not in tried and self._is_open(a, active)]
        for cell in active:
            cell.untried = frozenset(untried)
        if untried:
            self._progress.tell(
                f"No time was left to try {', '.join(untried)}. Run the tune again to try them, or start it with a longer "
                "--budget or fewer prompt types (-t)."
            )

    def _choose(self, active: Sequence[CellRun], leader: CellRun, leaders: list[Drafting]) -> Drafting | None:
        """The next drafting to launch; ``None`` if none is worth it."""
        if self._forecast is not None:
            promising = self._forecast.next(active, self._known)
            if promising is not None:
                return promising
        open_arms = {a for a in self._space.arms if self._is_open(a, active)}
        leading = {self._space.arm_of(cell.best[0]) for cell in active if cell.best}
        # Each arm once, and those that lead once more, which shows what they cost; then what the launches promise.
        drafting = (
            self._leader(leaders, open_arms, active, 1)
            or self._leader(leaders, open_arms & leading, active, _TO_JUDGE)
            or self._from_launches.next(active, self._known, open_arms.__contains__)
            or self._leader(leaders, open_arms, active, self._definition.trials)
        )
        if drafting is not None:
            return drafting
        together = self._together(active)
        if together is not None or not open_arms:
            return together
        return leader.study.propose(
            self._known,
            lambda d: self._space.arm_of(d) in open_arms and not self._from_launches.too_slow(d, active),
        )

    def _leader(
        self, leaders: Sequence[Drafting], arms: Collection[Arm], active: Sequence[CellRun], most: int
    ) -> Drafting | None:
        """The first leader of these arms that is not known to be slow, of arms with fewer than `most` launches."""
        launched = [self._space.arm_of(d) for d in self._known]
        for drafting in leaders:
            arm = self._space.arm_of(drafting)
            if drafting in self._known or arm not in arms or launched.count(arm) >= most:
                continue
            if not self._from_launches.too_slow(drafting, active):
                return drafting
        return None

    def _try_together(self, done: int) -> None:
        """Once the trials or the patience are spent: several modes together, as long as time allows."""
        active = [c for c in self._cells if not self._ended(c)]
        while self._time_for_another() and (drafting := self._together(active)) is not None:
            self._known.add(drafting)
            done += 1
            begun = self._now()
            self._try(drafting, active, done)
            self._trial_s.append(self._now() - begun)

    def _together(self, active: Sequence[CellRun]) -> Drafting | None:
        """The best drafting with a model and the best draft-free one of a cell together, without a trusted prediction for it.

        Each gains alone there: it was launched, or is draft-free and predicted. Those that gain most come first.
        """
        if not self._space.combines or sum(bool(d.beside) for d in self._known) >= MOST_TOGETHER:
            return None
        found: dict[Drafting, float] = {}
        for cell in active:
            alone = {d: v for d, v in cell.trial_values.items() if v > 1.0 + _PROGRESS and not d.beside}
            models = {d: v for d, v in alone.items() if not d.mode.draft_free}
            free = {d: v for d, v in alone.items() if d.mode.draft_free}
            free |= self._forecast.draft_free(cell) if self._forecast is not None else {}
            free = {d: v for d, v in free.items() if v > 1.0 + _PROGRESS and d.mode is not Mode.PROMPT_LOOKUP}
            if models and free:
                model, beside = _best_of(models), _best_of(free)
                found[replace(model, beside=(beside,))] = models[model] * free[beside]
        wanted = [
            d
            for d in found
            if d not in self._known
            and not self._is_dead(d)
            and not (self._forecast is not None and self._forecast.trusts(d))
        ]
        return max(wanted, key=lambda d: (found[d], d.key)) if wanted else None

    def _is_open(self, arm: Arm, active: Sequence[CellRun]) -> bool:
        """Whether an arm is searched by trials: some cell has no trusted prediction of it, and no launch has ruled it out."""
        if arm.label in self._dead_arms:
            return False
        if not self._reach.may_win(arm, active):
            return False
        if self._forecast is None:
            return True
        samples = [d for d in self._space.leaders() if self._space.arm_of(d) == arm][:1]
        return not all(self._covers(cell, d) for d in samples for cell in active)

    def _covers(self, cell: CellRun, drafting: Drafting) -> bool:
        """Whether a cell has a trusted prediction of a drafting; without recorded answers it has none, whatever others have."""
        forecast = self._forecast
        return (
            forecast is not None
            and forecast.trusts(drafting)
            and forecast.predicted(cell, drafting) is not None
        )

    def _recall(self) -> int:
        """Take in the trials of earlier runs, with their patience; returns how many they are."""
        trials: dict[Drafting, list[tuple[CellRun, float]]] = {}
        for cell in self._cells:
            for t in cell.study.tried():
                if t.drafting.is_off:
                    cell.off_recorded = True
                    continue
                results = trials.setdefault(t.drafting, [])
                if t.value is not None:
                    results.append((cell, t.value))
                if t.value is not None or t.permanent:
                    self._known.add(t.drafting)
                if t.permanent:
                    self._bury(t.drafting)
        for drafting, results in trials.items():
            if results:
                pairing = self._context.pairing
                keys = [cell.cell.key for cell, _ in results]
                known = {key: pairing.known(key, drafting, Phase.SEARCH) for key in keys}
                self._take(drafting, results, known)
                self._reach.weigh(
                    self._space.arm_of(drafting), drafting, [cell for cell, _ in results], known
                )
                if self._forecast is not None:
                    self._forecast.observe(drafting, known)
        # Trials can be compared only on the same prompts, even if this run has more time.
        noted = [int(n) for c in self._cells if (n := c.study.noted(PROMPTS)) is not None]
        self._prompts = min(noted, default=None)
        return len(trials)

    def _take(
        self,
        drafting: Drafting,
        results: Sequence[tuple[CellRun, float]],
        pairs: Mapping[str, Sequence[Pair]],
    ) -> None:
        """Take in one trial's values, and see whether any cell improved."""
        self._idle += 1
        for cell, ratio in results:
            before = max(1.0, cell.best[1]) if cell.best else 1.0
            cell.trial_values[drafting] = ratio
            own = self._pairs.setdefault(cell.cell.key, {})
            own[drafting] = list({p.off.prompt_id: p for p in pairs.get(cell.cell.key, ())}.values())
            cell.trial_values.update(trial_values(own))
            if cell.trial_values[drafting] > before * (1.0 + _PROGRESS):
                self._idle = 0

    def _confirm(self) -> None:
        """Ask the best draftings the prompts that they were not asked, as long as time allows.

        If many draftings were asked one prompt each, the luckiest looks best.
        """
        failed: set[Drafting] = set()
        while self._time_for_another():
            leaders = [
                (cell, d) for cell in self._cells if (d := self._unsure_leader(cell, failed)) is not None
            ]
            if not leaders:
                return
            wanted = [d for _, d in leaders]
            drafting = max(wanted, key=lambda d: (wanted.count(d), d.key))
            begun = self._now()
            near = [c for c in self._cells if drafting in self._near(c) and self._unasked(c, drafting)]
            if not self._ask_rest(drafting, near):
                failed.add(drafting)
            self._trial_s.append(self._now() - begun)

    def _near(self, cell: CellRun) -> list[Drafting]:
        """The best drafting of a cell, and those that may be as good on more prompts; best first.

        The best one may only have been lucky on one prompt, and then those that are compared with it there look worse than they
        are: so their own mean counts, too.
        """
        least = _NEAR * cell.best[1] if cell.best else math.inf
        alone = trial_values(self._pairs.get(cell.cell.key, {}), compared=False)
        hopes = {d: max(v, alone.get(d, 0.0)) for d, v in cell.trial_values.items()}
        return sorted((d for d, v in hopes.items() if v >= least), key=lambda d: -hopes[d])

    def _unsure_leader(self, cell: CellRun, failed: set[Drafting]) -> Drafting | None:
        return next((d for d in self._near(cell) if d not in failed and self._unasked(cell, d)), None)

    def _unasked(self, cell: CellRun, drafting: Drafting) -> list[Task]:
        """Tune prompts that a drafting was not asked; empty if it has a trusted prediction, which covers them all."""
        if self._covers(cell, drafting):
            return []
        asked = {p.off.prompt_id for p in self._pairs.get(cell.cell.key, {}).get(drafting, ())}
        wanted = [Task.of(cell.cell.key, p) for p in cell.tune_prompts[: self._definition.prompts]]
        failure = self._context.pairing.failure
        return [t for t in wanted if t.prompt_id not in asked and not failure(t, drafting)] if asked else []

    def _ask_rest(self, drafting: Drafting, cells: Sequence[CellRun]) -> bool:
        """One more launch of a drafting for these cells; False if it cannot be measured."""
        tasks = [task for cell in cells for task in self._unasked(cell, drafting)]
        found: dict[str, list[Pair]] = {c.cell.key: list(self._pairs[c.cell.key][drafting]) for c in cells}
        try:
            block = self._context.pairing.block(
                tasks,
                drafting,
                Phase.SEARCH,
                0,
                on_done=lambda done: self._step("search", drafting, len(self._known), done, len(tasks)),
            )
            for measured in block:
                if measured.pair is not None and not measured.disturbed:
                    found[measured.task.cell_key].append(measured.pair)
        except BackendError as error:
            self._progress.tell(f"{drafting.label}: cannot be used. {error.message}")
            return False
        words = []
        for cell in cells:
            pairs = found[cell.cell.key]
            more = len(pairs) > len(self._pairs[cell.cell.key][drafting])
            self._pairs[cell.cell.key][drafting] = pairs
            cell.trial_values.update(trial_values(self._pairs[cell.cell.key]))
            if more:
                ratio, attributes = math.exp(mean_log_ratio(pairs)), trial_attributes(pairs)
                cell.study.record(drafting, ratio, attributes, self._predicted(cell, drafting))
            words.append(f"{cell.prompt_type} {cell.trial_values[drafting]:.2f}×")
        self._progress.tell(f"{drafting.label}, on more prompts: {', '.join(words)}")
        self._progress.standing(tuple(c.standing() for c in self._cells))
        return not any(self._unasked(cell, drafting) for cell in cells)

    def _time_for_another(self) -> bool:
        left = self._context.budget.part_left_s(self._definition.search_share)
        # A trial that would end far beyond the share does not start; the first one always does.
        return left > 0 and (not self._trial_s or left > 0.5 * max(self._trial_s[-3:]))

    def _ended(self, cell: CellRun) -> bool:
        """Whether no more is tried for a cell: off fails for too many of its prompts, or everything is far too slow."""
        if self._context.pairing.gave_up(cell.cell.key, OFF):
            return True
        best = cell.best
        tries = len(cell.trial_values)
        return best is not None and tries >= 5 and best[1] < _HOPELESS and not cell.news

    def _try(self, drafting: Drafting, cells: Sequence[CellRun], number: int) -> None:
        asks = {cell.cell.key: cell.study.start(drafting, self._predicted(cell, drafting)) for cell in cells}
        try:
            outcomes = self._measure(drafting, cells, asks, number)
        except BackendError as error:
            hopeless_arm = fails_with_any_setting(error)
            for cell in cells:
                permanent = cell.study.is_permanent(drafting, error)
                asks[cell.cell.key].fail(error.message, permanent=permanent)
            if hopeless_arm:
                self._bury(drafting)
            self._progress.tell(f"{drafting.label}: cannot be used. {error.message}")
            return
        for key in asks.keys() - outcomes.keys():
            asks[key].fail("None of its prompts could be answered.", permanent=False)
        cells = [cell for cell in cells if cell.cell.key in outcomes]
        ratios = {key: math.exp(mean_log_ratio(o.pairs)) for key, o in outcomes.items()}
        pairs = {key: o.pairs for key, o in outcomes.items()}
        self._take(drafting, [(cell, ratios[cell.cell.key]) for cell in cells], pairs)
        if self._forecast is not None:
            self._forecast.observe(drafting, {key: o.calm for key, o in outcomes.items()})
        arm = self._space.arm_of(drafting)
        ruled_out = self._reach.weigh(arm, drafting, cells, pairs)
        # Where its predictions are trusted, they choose what else is launched.
        if arm is not None and ruled_out and not (self._forecast and self._forecast.trusts(drafting)):
            self._progress.tell(
                f"{arm.label}: it is too slow for any other setting to win; no other setting is tried."
            )
        words = []
        for cell in cells:
            outcome, ratio = outcomes[cell.cell.key], ratios[cell.cell.key]
            self._record_off(cell, outcome.pairs)
            attributes = trial_attributes(outcome.pairs)
            if outcome.gave_up:
                asks[cell.cell.key].give_up(ratio, outcome.gave_up, attributes)
            else:
                asks[cell.cell.key].complete(ratio, attributes)
            words.append(f"{cell.prompt_type} {ratio:.2f}×")
        self._progress.tell(f"{drafting.label}: {', '.join(words)}")
        self._progress.standing(tuple(c.standing() for c in self._cells))

    def _measure(
        self, drafting: Drafting, cells: Sequence[CellRun], asks: dict[str, Ask], number: int
    ) -> dict[str, _TrialOutcome]:
        """One trial's outcome by cell key, without the cells whose prompts all failed; raises `BackendError` where that is all."""
        pairs: dict[str, dict[str, Measured]] = {c.cell.key: {} for c in cells}
        gave_up: dict[str, str] = {}
        go_on = False
        self._step("launch", drafting, number, 0, len(cells))
        while True:
            staying = [c for c in cells if c.cell.key not in gave_up]
            tasks = self._next_tasks(staying, pairs)
            if not tasks:
                break
            before = sum(map(len, pairs.values()))
            show = partial(self._search_step, drafting, number, before, before + len(tasks))
            block = self._context.pairing.block(tasks, drafting, Phase.SEARCH, 0, go_on=go_on, on_done=show)
            for measured in block:
                key = measured.task.cell_key
                pairs[key][measured.task.prompt_id] = measured
                if so_far := _pairs_of(pairs[key]):
                    asks[key].report(math.exp(mean_log_ratio(so_far)), len(so_far))
            go_on = True
            timed = [key for key, own in pairs.items() if _pairs_of(own)]
            if self._prompts is None and timed:
                took_s = statistics.fmean(self._context.pairing.took_s(key, drafting) for key in timed)
                self._prompts = self._affordable_prompts(took_s)
                for cell in self._cells:
                    cell.study.note(PROMPTS, self._prompts)
            for cell in staying:
                reason = gives_up(cell, _pairs_of(pairs[cell.cell.key]))
                if reason:
                    gave_up[cell.cell.key] = reason
        if not any(map(_pairs_of, pairs.values())):
            raise RequestError(next(m.disturbed for own in pairs.values() for m in own.values()))
        self._repeat_disturbed(drafting, pairs, gave_up)
        return {
            key: _TrialOutcome(
                _pairs_of(found),
                gave_up.get(key, ""),
                _pairs_of({name: m for name, m in found.items() if not m.disturbed}),
            )
            for key, found in pairs.items()
            if _pairs_of(found)
        }

    def _next_tasks(self, cells: Sequence[CellRun], pairs: dict[str, dict[str, Measured]]) -> list[Task]:
        """The next prompt of every cell; all that are left if each block costs launches."""
        at_once = (
            1 if self._context.launches.resident == 2 or self._prompts is None else self._definition.prompts
        )
        left: dict[str, list[Task]] = {}
        for cell in cells:
            found = pairs[cell.cell.key]
            # Another prompt takes the place of one that fails.
            most = min(at_once, (self._prompts or 1) - len(_pairs_of(found)))
            unasked = [Task.of(cell.cell.key, p) for p in cell.tune_prompts if p.id not in found]
            left[cell.cell.key] = unasked[:most]
        return [own[turn] for turn in range(at_once) for own in left.values() if turn < len(own)]

    def _affordable_prompts(self, pair_s: float) -> int:
        """How many tune prompts of each type leave time for enough trials, if all take as long as the first ones."""
        trials = min(_ENOUGH_TRIALS, self._definition.trials)
        left = self._context.budget.part_left_s(self._definition.search_share)
        each = pair_s * len(self._cells) * trials
        affordable = int(left / each) if each > 0 else self._definition.prompts
        # If all prompts are predicted, a trial only corrects the costs.
        most = self._definition.prompts if self._forecast is None else min(2, self._definition.prompts)
        return max(1, min(affordable, most))

    def _predicted(self, cell: CellRun, drafting: Drafting) -> dict[str, float] | None:
        prediction = self._forecast.predicted(cell, drafting) if self._forecast is not None else None
        if prediction is None:
            return None
        ends = {"ratio": prediction.ratio, "low": prediction.low, "high": prediction.high}
        return {k: round(v, 4) for k, v in ends.items()}

    @staticmethod
    def _record_off(cell: CellRun, pairs: Sequence[Pair]) -> None:
        # Off is a trial, too: its ratio to itself is 1, its speed is that of the first pairs.
        if not cell.off_recorded and pairs:
            tps = round(statistics.geometric_mean([p.off.request_tps for p in pairs]), 3)
            cell.study.record(OFF, 1.0, {"pairs": len(pairs), "baseline_tps": tps})
            cell.off_recorded = True

    def _repeat_disturbed(
        self, drafting: Drafting, pairs: dict[str, dict[str, Measured]], gave_up: dict[str, str]
    ) -> None:
        """Measure disturbed pairs again, on one new launch, in cells that have not given up."""
        again = [
            m.task
            for key, found in pairs.items()
            if key not in gave_up
            for m in found.values()
            if m.pair is not None and m.disturbed
        ]
        if again:
            for measured in self._context.pairing.block(again, drafting, Phase.SEARCH, 0):
                if measured.pair is not None:  # else the disturbed one is better than none
                    pairs[measured.task.cell_key][measured.task.prompt_id] = measured

    def _is_dead(self, drafting: Drafting) -> bool:
        arm = self._space.arm_of(drafting)
        return arm is not None and arm.label in self._dead_arms

    def _bury(self, drafting: Drafting) -> None:
        # The mode in this build, or the draft model, failed permanently: other parameters would fail, too.
        arm = self._space.arm_of(drafting)
        if arm is not None:
            self._dead_arms.add(arm.label)
            if self._forecast is not None:
                self._forecast.drop(arm.label)

    def _search_step(self, drafting: Drafting, number: int, before: int, todo: int, done: int) -> None:
        self._step("search", drafting, number, before + done, todo)

    def _step(self, phase: str, drafting: Drafting, number: int, done: int, todo: int) -> None:
        left_s = self._context.budget.until_end_s
        self._progress.step(TuneStep(phase, drafting, number, self._definition.trials, done, todo, left_s))


def _pairs_of(found: Mapping[str, Measured]) -> list[Pair]:
    return [m.pair for m in found.values() if m.pair is not None]


def _best_of(values: Mapping[Drafting, float]) -> Drafting:
    return max(values, key=lambda d: (values[d], d.key))
