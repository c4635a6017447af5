"""The proof: new measurements of each cell's winner on prompts that had no part in choosing it.

Rounds continue until every cell is decided or the budget is spent. Each round asks other prompts of a cell, and no prompt
is asked again before all have been: other prompts tell more than the same ones again. Both servers are new in every round of
a cell, except that the first keeps the search's off. Cells in the same round share off, and cells with the same winner share
both servers. If the budget does not suffice for all cells, it goes first to those whose decision is near and whose gain is
large, and only to cells that it can decide. If the winner is slower on these prompts, or is not enabled, the runner-up is
proved, with its own share of the error rate; likewise if the winner is enabled, and the runner-up, or a draft-free drafting, is
expected to be clearly faster on these prompts.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from autospec.cells import Aim
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, RequestError
from autospec.formats import counted
from autospec.measure.disturbances import left_out_sentence
from autospec.measure.energy import energy_ratios
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import LogRatio, of_pairs, prompt_medians
from autospec.measure.measurements import Pair, Phase
from autospec.measure.verdict import Decision, Rule, decide, refused
from autospec.predict.predictor import predictable
from autospec.recommendations import Recommendation, Verdict
from autospec.tuning.budget import rounds_to_decide, worth
from autospec.tuning.cell import CellRun, TuneContext, TuneStep
from autospec.tuning.forecast import WORTH_A_RIVAL
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.tasks import Task

__all__ = ["Proof", "of_round", "scatter_of"]

_T = TypeVar("_T")

# A disturbed pair is measured again at most so often; then the round continues without it.
_REPEATS = 2
# Assumptions before the proof, without predictions: the standard deviation of the log ratio between prompts of one type, and
# the gain.
_USUAL_SPREAD = 0.15
_USUAL_GAIN = math.log(1.1)
# Prompts that differ by more than this (standard deviation of the log ratio) are worth a prediction.
_LARGE_SPREAD = 0.08
# Reading an answer with a draft takes about this part of the request that recorded it (seen: 2.5 s of 4.6 s, F32 main model).
_READING = 0.5
# Fewer pairs do not show the spread.
_FEW_PAIRS = 4
# With the aim energy, a proof in which fewer of the pairs have a reading ends without a verdict: more rounds would not have it either,
# and the few may be of one kind.
_LEAST_READ = 0.75


def of_round(prompts: Sequence[_T], round_: int, per_round: int) -> Sequence[_T]:
    """The prompts that a round asks (`round_` counts from 1): always as many, and all of them before one is asked again.

    Each round takes them from all over the file, as long and short prompts may be in separate parts of it.
    """
    turns = math.ceil(len(prompts) / per_round)
    in_turns = [prompt for turn in range(turns) for prompt in prompts[turn::turns]]
    size = min(per_round, len(prompts))
    begin = (round_ - 1) * size
    return [in_turns[k % len(prompts)] for k in range(begin, begin + size)]


@dataclass(frozen=True, slots=True)
class _CellPlan:
    """The expected time of one cell's proof."""

    cell: CellRun
    todo: tuple[Task, ...]  # tasks that its next round has to measure
    round_s: float  # a whole round without its launches
    rounds: int  # rounds that are still needed
    log_gain: float  # ln(drafting ÷ off) as known so far
    record_s: float = 0.0  # to record the prompts that will not be asked

    @property
    def worth(self) -> float:
        """See `budget.worth`; a round that needs no measuring comes first."""
        return worth(self.log_gain, self.rounds * self.round_s + self.record_s if self.todo else 0.0)


class Proof:
    """Sequential proof of the winners.

    Args:
        cells: Cells with a winner.
        context: The tools.
        on_look: Stores a cell whenever its decision is new.
        predictions: Predicts the proof's prompts; ``None`` if the study uses no predictions.
        scatter: Returns how much launches on this machine differ, as far as it was measured.
    """

    def __init__(
        self,
        cells: Sequence[CellRun],
        context: TuneContext,
        on_look: Callable[[CellRun], None],
        *,
        predictions: ProofPredictions | None = None,
        scatter: Callable[[], LaunchScatter] = LaunchScatter,
    ) -> None:
        self._predictions = predictions
        self._scatter = scatter
        self._cells = [c for c in cells if not c.winner.is_off]
        self._proving: Sequence[CellRun] = self._cells
        self._context = context
        self._on_look = on_look
        # Cell key and drafting.
        self._failed: set[tuple[str, Drafting]] = set()
        self._spread: dict[tuple[str, Drafting], float] = {}
        # Cell key → the runner-up that the search named, and the search's predictions.
        self._named: dict[str, tuple[Drafting, tuple[Any, Any]]] = {}
        # Whether a round was completed: a budget shorter than one round measures a part of it.
        self._completed = False
        # When the proof is expected to end, on the budget's clock.
        self._ends_at_s = 0.0

    def run(self) -> None:
        """Prove until every cell is decided, the last look is done, or the budget is spent."""
        for cell in self._cells:
            self._context.pairing.note_stored(cell.cell.key, cell.winner)
            if self._context.pairing.gave_up(cell.cell.key, cell.winner):  # in the search
                self._stop(cell, cell.winner)
        self._prove(self._cells)
        self.prove_runners_up(self._cells)

    def prove_runners_up(self, cells: Sequence[CellRun]) -> None:
        """Prove the runner-up of each of these cells whose winner gives way to it, as far as there is time."""
        turned = [c for c in cells if self._turns_to_runner_up(c)]
        self._prove(turned)
        # If the runner-up is no better, the first drafting's proof continues, with its own share of the error rate.
        self._prove([c for c in turned if self._turns_back(c)])

    def go_on(self) -> bool:
        """Prove what is open in the time that was kept for the checks and that they did not need; whether that was measured further."""
        self._context = replace(self._context, budget=self._context.budget.whole)
        left = [c for c in self._cells if self._wants(c)]
        rounds = [c.rounds for c in left]
        self._prove(left)
        return rounds != [c.rounds for c in left]

    def contest(self, stored: Callable[[CellRun], Recommendation | None]) -> None:
        """Prove the rival of each enabled winner: the runner-up or a draft-free drafting, if it is expected to be clearly faster.

        The search chose the winner by a few prompts; the answers of the proof are many more. The runner-up has its own share of the error
        rate, used or not. `stored` returns a cell's proof, which is served until a better one is stored.
        """
        rivals = [c for c in self._cells if self._turns_to_rival(c)]
        for cell in rivals:
            cell.stands = stored(cell)
        self._prove(rivals)
        for cell in rivals:
            self._end_contest(cell, stored)
        for cell in self._cells:
            if cell.contests:  # `run` has gone on with an earlier tune's
                self._note_rival(cell)

    def expected_s(self) -> float:
        """Expected seconds until the winners are decided, as far as the time of requests is known."""
        return self._expected_s([self._plan(c) for c in self._cells if self._wants(c)])

    def _prove(self, cells: Sequence[CellRun]) -> None:
        """Rounds of the cells' current winners, as long as one fits into the budget."""
        self._proving = cells
        while plans := self._plans(cells):
            self._expect(plans)
            chosen = self._affordable(plans)
            if chosen and self._round(chosen, whole_cells=True):
                continue
            first = plans[0]
            one_pair_s = self._context.pairing.expected_s(first.todo[:1], first.cell.winner)
            if not self._completed and self._context.budget.allows(one_pair_s):
                self._round([first], whole_cells=False)
            return

    def _plans(self, cells: Sequence[CellRun]) -> list[_CellPlan]:
        """The plans of the cells that are to be measured, best first. A drafting known to fail gets no further request."""
        plans = [self._plan(c) for c in cells if self._wants(c)]
        for plan in plans:
            if plan.todo and self._fails(plan.cell):
                self._refuse(plan.cell)
        return sorted((p for p in plans if self._wants(p.cell)), key=lambda plan: plan.worth, reverse=True)

    def _expect(self, plans: Sequence[_CellPlan]) -> None:
        """Note when all of these are expected to be decided, at the latest the end of the budget."""
        budget = self._context.budget
        self._ends_at_s = min(budget.total_s, budget.spent_s + self._expected_s(plans))

    def _plan(self, cell: CellRun) -> _CellPlan:
        """The expected time of the rest of a cell's proof."""
        rule, per_round = self._rule(cell), self._context.definition.prompts_per_round
        tasks = self._tasks(cell, cell.rounds + 1)
        todo = self._context.pairing.missing(tasks, cell.winner, Phase.PROVE, cell.rounds + 1)
        log_gain = self._log_gain(cell)
        predicted = (cell.prediction or {}).get("prompts_spread", _USUAL_SPREAD)
        spread = self._spread.get((cell.cell.key, cell.winner), predicted)
        rounds = rounds_to_decide(log_gain, spread, rule, done=cell.rounds, per_round=len(tasks))
        round_s = sum(self._context.pairing.pair_s(task, cell.winner) for task in tasks)
        # Only a large gain is enabled before all prompts were asked, or predicted if that takes less than a round.
        unasked = math.ceil(len(cell.prove_prompts) / per_round) - cell.rounds if log_gain > 0.0 else 0
        if log_gain > rule.large_gain:
            large = rounds_to_decide(
                log_gain, spread, rule, done=cell.rounds, per_round=len(tasks), above=rule.large_gain
            )
            unasked = min(unasked, large)
        record_s = 0.0
        if self._predicts(cell) and rounds < unasked:
            left = len(cell.prove_prompts) - (cell.rounds + rounds) * per_round
            request_s = self._context.pairing.pace.request_s(cell.cell.key, OFF)
            predicting_s = self._predicting_s(cell, left, request_s)
            if predicting_s <= self._context.pairing.expected_s(tasks, cell.winner):
                record_s, unasked = predicting_s, 0
        return _CellPlan(cell, tuple(todo), round_s, max(rounds, unasked), log_gain, record_s)

    def _affordable(self, plans: Sequence[_CellPlan]) -> list[_CellPlan]:
        """The cells of the next round: those that share the best one's launches, as many as the budget can decide."""
        if not plans[0].todo:
            return [plans[0]]  # an earlier tune has measured it
        if self._context.budget.allows(self._expected_s(plans)):
            # There is time for all: cells in the same round share off even if their winners differ.
            plans = sorted(plans, key=lambda plan: plan.cell.rounds)
        for first in plans:
            chosen: list[_CellPlan] = []
            for plan in plans:
                shares = (plan.cell.winner, plan.cell.rounds) == (first.cell.winner, first.cell.rounds)
                if shares and self._context.budget.allows(self._expected_s([*chosen, plan])):
                    chosen.append(plan)
            if chosen:
                return chosen
        # It can decide none: the best cell gets as many whole rounds as fit.
        for plan in plans:
            if self._context.budget.allows(self._context.pairing.expected_s(plan.todo, plan.cell.winner)):
                return [plan]
        return []

    def _expected_s(self, plans: Sequence[_CellPlan]) -> float:
        """Seconds until all of these are decided; those with one winner share the launches of a round."""
        by_winner: dict[Drafting, list[_CellPlan]] = {}
        for plan in plans:
            by_winner.setdefault(plan.cell.winner, []).append(plan)
        seconds = sum(plan.record_s for plan in plans)
        for drafting, own in by_winner.items():
            todo = [task for plan in own for task in plan.todo]
            seconds += self._context.pairing.expected_s(todo, drafting)
            for more in range(1, max(plan.rounds for plan in own)):
                pairs_s = sum(plan.round_s for plan in own if plan.rounds > more)
                seconds += pairs_s + self._context.pairing.launching_s(pairs_s)
        return seconds

    def _tasks(self, cell: CellRun, round_: int) -> list[Task]:
        prompts = of_round(cell.prove_prompts, round_, self._context.definition.prompts_per_round)
        return [Task.of(cell.cell.key, prompt) for prompt in prompts]

    def _log_gain(self, cell: CellRun) -> float:
        """The known gain of a cell: from its proof, else its prediction, else its search."""
        if cell.decision is not None and cell.decision.estimate is not None:
            return cell.decision.mean
        # A prediction rests on all recorded answers, a trial perhaps only on one.
        predicted = cell.prediction or {}
        ratio = predicted.get("cautious") or predicted.get("expected") or cell.trial_values.get(cell.winner)
        return math.log(ratio) if ratio else _USUAL_GAIN

    def _wants(self, cell: CellRun) -> bool:
        ended = cell.decided or cell.pending or self._has_failed(cell)
        return cell.rounds < self._rule(cell).looks[-1] and not ended

    def _has_failed(self, cell: CellRun) -> bool:
        gave_up = self._context.pairing.gave_up(cell.cell.key, cell.winner)
        return gave_up or (cell.cell.key, cell.winner) in self._failed

    def _fails(self, cell: CellRun) -> int:
        """Number of prompts that fail with the winner and not without, or that off answered once and was late with since."""
        return len(self._context.pairing.failing(cell.cell.key, cell.winner))

    def _rule(self, cell: CellRun) -> Rule:
        rule = self._context.definition.rule
        return rule.shared() if cell.shares_rate else rule

    def _turns_to_runner_up(self, cell: CellRun) -> bool:
        """Whether the runner-up is proved now; without time for it, the cell stays open for the next tune."""
        never_looked_at = cell.decision is None and self._has_failed(cell) and not cell.runner_up.is_off
        if not (cell.pending or never_looked_at) or self._context.pairing.gave_up(cell.cell.key, OFF):
            return False
        todo = self._context.pairing.missing(self._tasks(cell, 1), cell.runner_up, Phase.PROVE, 1)
        if not self._context.budget.allows(self._context.pairing.expected_s(todo, cell.runner_up)):
            return False
        why = cell.decision.reason if cell.decision is not None else "its proof could not be measured"
        self._context.progress.tell(
            f"{cell.prompt_type}: {cell.winner.label}: {why}. Proving {cell.runner_up.label} instead."
        )
        cell.turn_to(cell.runner_up)
        return True

    def _turns_back(self, cell: CellRun) -> bool:
        """Whether the first drafting's proof continues: the runner-up is not enabled, and slower."""
        first, second = cell.other, cell.decision
        if second is not None and second.verdict is Verdict.ENABLE:
            return False
        ended = self._has_failed(cell) or (second is not None and second.final)
        if first is None or (second is not None and _mean(second) >= _mean(first.decision)):
            if second is not None and second.final:
                self._end(cell, second)
            return False
        if second is None and ended:
            cell.runner_up = OFF  # it does not work
        cell.turn_to(first.drafting, decision=first.decision, rounds=first.rounds)
        if ended and first.decision.final:
            self._end(cell, first.decision)
            return False
        cell.pending = not ended
        self._on_look(cell)
        return ended

    def _turns_to_rival(self, cell: CellRun) -> bool:
        """Whether the cell turns to another drafting, although the winner is enabled: it is expected to be clearly faster."""
        if not (cell.decided and cell.enabled and cell.stands is None and cell.other is None):
            return False
        noted = cell.history.rival
        found = (
            self._named_rival(cell) or self._free_rival(cell)
            if noted is None
            else self._earlier_rival(cell, noted)
        )
        if found is None:
            return False
        ahead, rival = found
        winner, decision, rounds = cell.winner, cell.decision, cell.rounds
        self._named[cell.cell.key] = cell.runner_up, cell.history.predictions
        if rival != cell.runner_up:  # what the search predicted is another drafting's
            figures, _ = cell.history.predictions
            cell.history = replace(cell.history, predictions=(figures, None))
        cell.runner_up = rival
        cell.turn_to(rival)
        if not self._context.budget.allows(self._expected_s([self._plan(cell)])):
            cell.turn_to(winner, decision=decision, rounds=rounds)
            self._name_again(cell)
            return False
        why = (
            "an earlier tune has begun its proof"
            if noted is not None
            else (
                f"it is expected to be {100 * math.expm1(ahead):.0f} % faster than {winner.label} on the prompts of the proof"
            )
        )
        self._context.progress.tell(f"{cell.prompt_type}: {rival.label} is proved, too: {why}.")
        cell.note_rival(rival, over=False)
        return True

    def _earlier_rival(self, cell: CellRun, rival: Drafting) -> tuple[float, Drafting] | None:
        """The rival of an earlier tune, whose winner is enabled again by the stored pairs. No other takes its place."""
        pairing, key = self._context.pairing, cell.cell.key
        if rival == cell.winner or pairing.gave_up(key, rival) or pairing.failing(key, rival):
            return None
        return 0.0, rival

    def _name_again(self, cell: CellRun) -> None:
        """Give a cell the runner-up of its search again, whose proof is still possible."""
        cell.runner_up, predictions = self._named[cell.cell.key]
        cell.history = replace(cell.history, predictions=predictions)

    def _named_rival(self, cell: CellRun) -> tuple[float, Drafting] | None:
        """The runner-up that the search named, and how far it is expected to be ahead as a log, if that is worth a proof."""
        pairing, budget = self._context.pairing, self._context.budget
        key, rival, predictions = cell.cell.key, cell.runner_up, self._predictions
        named = not rival.is_off and cell.winner != rival
        if predictions is None or not (named and predictable(rival) and self._predicts(cell)):
            return None
        if pairing.gave_up(key, rival) or pairing.failing(key, rival):
            return None
        round_s = pairing.expected_s(self._tasks(cell, 1), rival)
        request_s = pairing.pace.request_s(key, OFF)
        reading_s = self._reading_s(cell, rival, request_s)
        if not predictions.known(cell):  # the winner's draft has not read these answers either
            reading_s += self._reading_s(cell, cell.winner, request_s)
        if not budget.allows(reading_s + round_s):
            return None
        try:
            ahead = predictions.ahead(cell)
        except BackendError as error:
            self._context.progress.tell(f"{cell.prompt_type}: {rival.label} is not proved. {error.message}")
            return None
        return None if ahead is None or ahead < WORTH_A_RIVAL else (ahead, rival)

    def _free_rival(self, cell: CellRun) -> tuple[float, Drafting] | None:
        """The same of the draft-free drafting of another mode that was expected to be fastest on the search's answers.

        The search saw few of a type's prompts, which differ most in how much they copy. Nothing is asked or read for it. The proof's answers
        say whether it is proved, and had no part in choosing it. It is tested only after the winner is enabled, so the error rate is not
        shared (fixed-sequence testing: Maurer, Hothorn and Lehmacher, 1995).
        """
        pairing, space, key = self._context.pairing, self._context.space, cell.cell.key
        predictions = self._predictions
        # By turns, a launch of off would be needed to read the answers of its pairs.
        if predictions is None or cell.cell.aim is not Aim.SPEED or self._context.launches.resident < 2:
            return None
        if not self._context.budget.allows(pairing.expected_s(self._tasks(cell, 1), cell.winner)):
            return None
        own = space.arm_of(cell.winner)
        free = [d for d in space.grid() if d.mode.draft_free and predictable(d) and space.arm_of(d) != own]
        try:
            found = predictions.free_rival(cell, free)
        except BackendError:
            return None  # the next request to this server says why
        if found is None or pairing.gave_up(key, found[1]) or pairing.failing(key, found[1]):
            return None
        return found

    def _end_contest(self, cell: CellRun, stored: Callable[[CellRun], Recommendation | None]) -> None:
        """Continue with the drafting that is served: the first one, unless a better proof of the other was stored."""
        first, second = cell.other, cell.decision
        if cell.pending and second is not None:
            self._end(cell, second)
        self._note_rival(cell)
        served = stored(cell)
        if first is not None and (served is None or served.drafting != cell.winner):
            cell.turn_to(first.drafting, decision=first.decision, rounds=first.rounds)
            self._name_again(cell)
        cell.stands = None

    def _note_rival(self, cell: CellRun) -> None:
        """Note whether the proof of the rival, the cell's winner now, has ended."""
        over = cell.decided or self._has_failed(cell)
        cell.note_rival(cell.winner, over=over)
        if not over:
            self._context.progress.tell(
                f"{cell.prompt_type}: the proof of {cell.winner.label} is not finished; the next tune goes on with it."
            )

    def _round(self, plans: Sequence[_CellPlan], *, whole_cells: bool) -> bool:
        """One round of cells with the same winner, best first. Returns whether it found anything new."""
        moved = False
        drafting, round_ = plans[0].cell.winner, plans[0].cell.rounds + 1
        tasks = [task for plan in plans for task in self._tasks(plan.cell, round_)]
        open_tasks = Counter(task.cell_key for task in tasks)
        by_key = {plan.cell.cell.key: plan.cell for plan in plans}
        todo = {task for plan in plans for task in plan.todo}
        self._step(drafting, round_, 0, len(tasks))
        try:
            block = self._context.pairing.block(
                tasks,
                drafting,
                Phase.PROVE,
                round_,
                repeats=_REPEATS,
                budget=self._context.budget,
                whole_cells=whole_cells,
                on_done=lambda done: self._step(drafting, round_, done, len(tasks)),
            )
            for measured in block:
                moved = moved or measured.task in todo
                open_tasks[measured.task.cell_key] -= 1
                if open_tasks[measured.task.cell_key] == 0:
                    cell = by_key[measured.task.cell_key]
                    if self._context.pairing.gave_up(cell.cell.key, drafting):
                        self._stop(cell, drafting)
                        moved = True
                        continue
                    cell.rounds = round_
                    self._completed = moved = True
                    self._tell_left_out(cell, round_)
                    self._look(cell)
        except BackendError as error:
            self._give_up(by_key.values(), drafting, error)
            self._context.progress.tell(f"{drafting.label}: the proof could not be measured. {error.message}")
            return True
        return moved

    def _stop(self, cell: CellRun, drafting: Drafting) -> None:
        """Give a cell up in which too many prompts fail; those that fail with drafting only are a result."""
        if not self._context.pairing.gave_up(cell.cell.key, OFF):
            self._refuse(cell)
            return
        why = self._context.pairing.failure(self._tasks(cell, 1)[0], drafting)
        self._give_up([cell], drafting, RequestError(why))

    def _give_up(self, cells: Iterable[CellRun], drafting: Drafting, error: BackendError) -> None:
        for cell in cells:
            self._failed.add((cell.cell.key, drafting))
            # A runner-up that fails says nothing of the winner, which goes on. A winner that was tried has worked once.
            if not (drafting in cell.trial_values or cell.rounds or cell.other or cell.contests):
                cell.reopen(error)

    def _refuse(self, cell: CellRun) -> None:
        """End the proof of a drafting with which prompts fail that off answers: no pair would enable it."""
        decision = refused(cell.decision or decide((), 0), self._fails(cell))
        self._take(cell, decision, gives_way=True)

    def _step(self, drafting: Drafting, round_: int, done: int, todo: int) -> None:
        last = self._context.definition.rule.looks[-1]
        budget = self._context.budget
        ends_in_s = self._ends_at_s - budget.spent_s
        self._context.progress.step(
            TuneStep("prove", drafting, round_, last, done, todo, budget.until_end_s, ends_in_s)
        )

    def _tell_left_out(self, cell: CellRun, round_: int) -> None:
        left_out = self._context.pairing.left_out(cell.cell.key, cell.winner, Phase.PROVE, round_)
        if sentence := left_out_sentence(left_out):
            self._context.progress.tell(f"{cell.prompt_type}, round {round_}: {sentence}")

    def _look(self, cell: CellRun) -> None:
        rule = self._rule(cell)
        seen = cell.history.last_look(cell.winner)
        if cell.rounds not in rule.looks or cell.rounds < seen:
            # A conclusion between looks would break the error rate.
            if cell.rounds >= rule.looks[-1]:
                reason = f"an earlier study looked at {counted(seen, 'round')} of its proof, and this one ends after {cell.rounds}"
                self._take(cell, replace(decide((), 0), final=True, reason=reason), gives_way=True)
            return
        # Later rounds of an earlier tune belong to later looks, each with its own share of the error rate; and another study
        # may have asked other prompts in a round.
        known = self._context.pairing.known(cell.cell.key, cell.winner, Phase.PROVE)
        per_round = self._context.definition.prompts_per_round
        asked = {
            (round_, prompt.id)
            for round_ in range(1, cell.rounds + 1)
            for prompt in of_round(cell.prove_prompts, round_, per_round)
        }
        pairs = [p for p in known if (p.off.round, p.off.prompt_id) in asked]
        # Not rounds × prompts: a prompt whose pair was left out in every round counts as not asked. One that this server cannot
        # answer without drafting either is none of a user's.
        pairing = self._context.pairing
        fails_without = pairing.failing(cell.cell.key, OFF)
        fails_drafted = self._fails(cell)
        wanted = {prompt.id for prompt in cell.prove_prompts} - fails_without
        complete = {p.off.prompt_id for p in pairs} >= wanted
        aim = cell.cell.aim
        values = energy_ratios(pairs, self._context.computing) if aim is Aim.ENERGY else of_pairs(pairs)
        # Nor does one without any reading of energy count as asked.
        complete = complete and {v.prompt for v in values} >= wanted
        if len(values) >= _FEW_PAIRS:
            self._spread[cell.cell.key, cell.winner] = statistics.stdev(v.value for v in values)
        # A drafting that is not enabled anyway needs no predictions.
        predicted = {} if fails_drafted else self._predicted(cell, pairs, values, complete=complete)
        decision = decide(
            values,
            cell.rounds,
            rule,
            complete=complete,
            predicted=predicted,
            scatter=scatter_of(self._scatter(), aim),
            aim=aim,
        )
        if len(values) < _LEAST_READ * len(pairs):
            decision = _unread(decision, len(values), len(pairs))
        decision = refused(decision, fails_drafted)
        spent = cell.history.spent(cell.winner, cell.rounds, pairs)
        if spent and decision.verdict is Verdict.ENABLE:
            # An earlier tune spent this look's share of the error rate. New pairs count at the next look.
            last = cell.rounds >= rule.looks[-1]
            reason = f"{decision.reason}, but an earlier tune already took this look"
            decision = replace(decision, verdict=Verdict.UNDECIDED, final=last, reason=reason)
        if not spent:
            cell.note_look(pairs, enabled=decision.verdict is Verdict.ENABLE)
        self._take(cell, decision, gives_way=rule.gives_way(decision))

    def _take(self, cell: CellRun, decision: Decision, *, gives_way: bool) -> None:
        """Take in a decision: the cell is over, continues, or waits for the proof of its other drafting."""
        cell.decision = decision
        first = cell.other is None and not cell.runner_up.is_off and cell.winner != cell.runner_up
        second = cell.winner == cell.runner_up
        cell.pending = (first and gives_way) or (
            second and decision.final and decision.verdict is not Verdict.ENABLE
        )
        if cell.decided:
            self._end(cell, decision)
        else:
            self._on_look(cell)
        self._context.progress.standing(tuple(c.standing() for c in self._cells))

    def _predicted(
        self, cell: CellRun, pairs: Sequence[Pair], values: Sequence[LogRatio], *, complete: bool
    ) -> Mapping[str, float]:
        """Predictions for the proof's prompts; missing ones are recorded if that spares a round and there is time."""
        predictions = self._predictions
        if predictions is None or not self._predicts(cell):
            return {}
        if known := predictions.known(cell):
            return known
        medians = prompt_medians(values)
        rule = self._rule(cell)
        if len(medians) < 2 or statistics.fmean(medians) <= math.log1p(rule.threshold):
            return {}
        # Predict if only unasked prompts are missing, or if the spread between prompts hides the gain.
        scatter = self._scatter()
        so_far = decide(values, cell.rounds, rule, complete=complete, scatter=scatter)
        if so_far.final:
            return {}
        would_be = so_far if complete else decide(values, cell.rounds, rule, scatter=scatter)
        if would_be.verdict is not Verdict.ENABLE and statistics.stdev(medians) < _LARGE_SPREAD:
            return {}
        # A later tune can use the answers of this one only if they are kept now.
        if self._context.launches.resident == 2:
            with suppress(BackendError):
                predictions.keep_answers(cell, pairs)
        # The answers without drafting were cut, and are recorded whole.
        whole_s = statistics.fmean(pair.off.wall_ms for pair in pairs) / 1000.0
        predicting_s = self._predicting_s(cell, len(predictions.missing(cell, pairs)), whole_s)
        next_round = self._tasks(cell, cell.rounds + 1)
        # If the next round takes no longer than predicting, it tells more.
        if predicting_s > self._context.pairing.expected_s(next_round, cell.winner):
            return {}
        first = self._more_worth(cell, worth(statistics.fmean(medians), predicting_s))
        # A large gain is one step from its verdict.
        finishes = not first and statistics.fmean(medians) > rule.large_gain
        if not self._context.budget.allows(predicting_s + self._expected_s(first), to_finish=finishes):
            return {}
        try:
            return predictions.predict(cell, pairs)
        except BackendError as error:
            self._context.progress.tell(
                f"{cell.prompt_type}: its proof continues without predictions. {error.message}"
            )
            return {}

    def _more_worth(self, cell: CellRun, than: float) -> list[_CellPlan]:
        """Plans of the other cells that had fewer rounds, are worth more, and can be decided in the rest of the budget."""
        others = [c for c in self._proving if c.rounds < cell.rounds and self._wants(c)]
        chosen: list[_CellPlan] = []
        for plan in sorted(map(self._plan, others), key=lambda plan: plan.worth, reverse=True):
            fits = self._context.budget.allows(self._expected_s([*chosen, plan]))
            if plan.todo and plan.worth > than and fits:
                chosen.append(plan)
        return chosen

    def _predicts(self, cell: CellRun) -> bool:
        """Whether the winner's gain on the proof's prompts can be predicted. Predictions are of times, not of energy."""
        return self._predictions is not None and cell.cell.aim is Aim.SPEED and predictable(cell.winner)

    def _predicting_s(self, cell: CellRun, missing: int, request_s: float) -> float:
        """Expected seconds to record `missing` prompts, and to read all answers with the winner's draft."""
        return missing * request_s + self._reading_s(cell, cell.winner, request_s)

    def _reading_s(self, cell: CellRun, drafting: Drafting, request_s: float) -> float:
        """Expected seconds to read all answers with a drafting's draft."""
        return 0.0 if drafting.draft is None else _READING * len(cell.prove_prompts) * request_s

    def _end(self, cell: CellRun, decision: Decision) -> None:
        cell.pending = False
        self._on_look(cell)
        self._context.progress.tell(f"{cell.prompt_type}: {decision.verdict}: {decision.reason}")


def _mean(decision: Decision | None) -> float:
    return -math.inf if decision is None or decision.estimate is None else decision.mean


def scatter_of(times: LaunchScatter, aim: Aim) -> LaunchScatter:
    """How much launches differ in what is compared. Of energy that was not measured: it is assumed, and at least that of times."""
    return times if aim is Aim.SPEED else LaunchScatter(sd=times.counted_sd)


def _unread(decision: Decision, read: int, pairs: int) -> Decision:
    """The decision where too few pairs have a reading of energy."""
    reason = (
        f"only {read} of {counted(pairs, 'pair')} have a valid reading of energy: requests take less than half a second, other "
        "programs worked beside them, or the counter was not reported"
    )
    return replace(decision, verdict=Verdict.UNDECIDED, final=True, reason=reason)
