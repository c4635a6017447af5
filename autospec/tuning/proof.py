"""The proof: fresh measurements of each cell's winner on prompts that had no part in choosing it.

Rounds go on until every cell is decided or the budget is spent. A round asks some prompts of each cell, the next round others, and
none is asked again before all have been: for the same time, other prompts tell more than the same ones again. One launch serves all cells
with the same winner. Where that is slower on these prompts, or not to be enabled, the search's runner-up is proved, at its own
share of the error rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError
from autospec.measure.disturbances import left_out_sentence
from autospec.measure.measurements import Phase
from autospec.measure.verdict import Decision, Rule, decide
from autospec.recommendations import Verdict
from autospec.tuning.cell_run import CellRun
from autospec.tuning.pairing import Task
from autospec.tuning.progress import Step
from autospec.tuning.rig import Rig

__all__ = ["Proof", "of_round"]

_T = TypeVar("_T")

# A pair during which the machine changed is measured again so often before the round goes on without it.
_REPEATS = 2
# A round under way may exceed the budget by so much, since what it measured counts only once it is complete.
_OVERDRAFT = 1.2


def of_round(prompts: Sequence[_T], round_: int, per_round: int) -> Sequence[_T]:
    """The prompts that a round asks: as many each time, all of them before one is asked again.

    Each round takes them from all over the file, where long and short ones may stand apart.

    Args:
        prompts: All of a cell's.
        round_: From 1.
        per_round: Prompts to ask at most.
    """
    turns = math.ceil(len(prompts) / per_round)
    in_turns = [prompt for turn in range(turns) for prompt in prompts[turn::turns]]
    size = min(per_round, len(prompts))
    begin = (round_ - 1) * size
    return [in_turns[k % len(prompts)] for k in range(begin, begin + size)]


class Proof:
    """Sequential proof of the winners.

    Args:
        cells: Cells with a winner.
        rig: The tools.
        on_look: Told a cell whenever its decision is new: whoever is told writes it down.
    """

    def __init__(self, cells: Sequence[CellRun], rig: Rig, on_look: Callable[[CellRun], None]) -> None:
        self._cells = [c for c in cells if not c.winner.is_off]
        self._rig = rig
        self._on_look = on_look
        # Cell key and drafting.
        self._failed: set[tuple[str, Drafting]] = set()
        self._round_s: dict[str, float] = {}

    def run(self) -> None:
        """Prove until every cell is decided, the last look is done, or the budget is spent."""
        self._prove(self._cells)
        turned = [c for c in self._cells if self._turns_to_runner_up(c)]
        self._prove(turned)
        # Where that is no better, what gave way is to be ruled out, or comes to be enabled yet: it has its own share.
        self._prove([c for c in turned if self._turns_back(c)])

    def _prove(self, all_cells: Sequence[CellRun]) -> None:
        """Rounds of the draftings that the cells' proofs are for now."""
        for round_ in range(1, self._rig.definition.rule.looks[-1] + 1):
            for drafting in dict.fromkeys(c.winner for c in all_cells):
                cells = [c for c in all_cells if c.winner == drafting and self._wants(c, round_)]
                if cells and self._time_for(drafting):
                    self._round(drafting, cells, round_)

    def _wants(self, cell: CellRun, round_: int) -> bool:
        return cell.rounds == round_ - 1 and not (cell.decided or cell.pending or self._has_failed(cell))

    def _has_failed(self, cell: CellRun) -> bool:
        return (cell.cell.key, cell.winner) in self._failed

    def _rule(self, cell: CellRun) -> Rule:
        rule = self._rig.definition.rule
        return rule.shared() if cell.shares_rate else rule

    def _turns_to_runner_up(self, cell: CellRun) -> bool:
        """Whether the runner-up is proved now; without time for it, the cell stays open for another run."""
        never_looked_at = cell.decision is None and self._has_failed(cell) and not cell.runner_up.is_off
        # A first round of it is taken to last as long as another's.
        expected = self._round_s.get(cell.runner_up.key, max(self._round_s.values(), default=0.0))
        if not (cell.pending or never_looked_at) or self._rig.budget.left_s <= 0.5 * expected:
            return False
        why = cell.decision.reason if cell.decision is not None else "its proof broke off"
        self._rig.progress.tell(
            f"{cell.prompt_type}: {cell.winner.label}: {why}. Proving {cell.runner_up.label} instead."
        )
        cell.turn_to(cell.runner_up)
        return True

    def _turns_back(self, cell: CellRun) -> bool:
        """Whether the proof of what gave way goes on: the runner-up is not enabled, and slower."""
        first, second = cell.other, cell.decision
        if second is not None and second.verdict is Verdict.ENABLE:
            return False
        ended = self._has_failed(cell) or (second is not None and second.final)
        if first is None or _mean(second) >= _mean(first.decision):
            if second is not None and second.final:
                self._end(cell, second)
            return False
        if second is None and ended:
            cell.runner_up = OFF  # there is none that works
        cell.turn_to(first.drafting, decision=first.decision, rounds=first.rounds)
        if ended and first.decision.final:
            self._end(cell, first.decision)
            return False
        cell.pending = not ended
        self._on_look(cell)
        return ended

    def _time_for(self, drafting: Drafting) -> bool:
        # A round that would end far beyond the budget is not begun. The first one is: without it the search
        # would have been for nothing.
        left = self._rig.budget.left_s
        expected = self._round_s.get(drafting.key)
        return expected is None or left > 0.5 * expected

    def _round(self, drafting: Drafting, cells: Sequence[CellRun], round_: int) -> None:
        begun = self._rig.budget.spent_s
        # Cell by cell, the most promising first: where the budget ends in the middle of a round, the cells before
        # are complete.
        ordered = sorted(cells, key=lambda c: -c.trial_values.get(drafting, 0.0))
        per_round = self._rig.definition.prompts_per_round
        tasks = [
            Task.of(c.cell.key, prompt)
            for c in ordered
            for prompt in of_round(c.prove_prompts, round_, per_round)
        ]
        open_tasks = Counter(task.cell_key for task in tasks)
        by_key = {c.cell.key: c for c in cells}
        self._step(drafting, round_, 0, len(tasks))
        try:
            block = self._rig.pairing.block(tasks, drafting, Phase.PROVE, round_, repeats=_REPEATS)
            for done, measured in enumerate(block, start=1):
                self._step(drafting, round_, done, len(tasks))
                open_tasks[measured.task.cell_key] -= 1
                if open_tasks[measured.task.cell_key] == 0:
                    cell = by_key[measured.task.cell_key]
                    cell.rounds = round_
                    self._tell_left_out(cell, round_)
                    self._look(cell)
                if self._rig.budget.spent_s > _OVERDRAFT * self._rig.budget.total_s:
                    block.close()
                    break
        except BackendError as error:
            self._failed |= {(c.cell.key, drafting) for c in cells}
            self._rig.progress.tell(f"{drafting.label}: the proof broke off. {error.message}")
            return
        self._round_s[drafting.key] = self._rig.budget.spent_s - begun

    def _step(self, drafting: Drafting, round_: int, done: int, todo: int) -> None:
        last = self._rig.definition.rule.looks[-1]
        self._rig.progress.step(Step("prove", drafting, round_, last, done, todo, self._rig.budget.left_s))

    def _tell_left_out(self, cell: CellRun, round_: int) -> None:
        left_out = self._rig.pairing.left_out(cell.cell.key, cell.winner, Phase.PROVE, round_)
        if sentence := left_out_sentence(left_out):
            self._rig.progress.tell(f"{cell.prompt_type}, round {round_}: {sentence}")

    def _look(self, cell: CellRun) -> None:
        rule = self._rule(cell)
        if cell.rounds not in rule.looks:
            # Between looks nothing may be concluded, or the error rate would not hold.
            return
        # What an earlier run measured in later rounds belongs to later looks: each has its own share of the error rate.
        known = self._rig.pairing.known(cell.cell.key, cell.winner, Phase.PROVE)
        # And another study may have asked other prompts in a round.
        per_round = self._rig.definition.prompts_per_round
        asked = {
            (round_, prompt.id)
            for round_ in range(1, cell.rounds + 1)
            for prompt in of_round(cell.prove_prompts, round_, per_round)
        }
        pairs = [p for p in known if (p.off.round, p.off.prompt_id) in asked]
        complete = cell.rounds * per_round >= len(cell.prove_prompts)
        decision = decide(pairs, cell.rounds, rule, complete=complete)
        cell.decision = decision
        first = cell.other is None and not cell.runner_up.is_off and cell.winner != cell.runner_up
        second = cell.winner == cell.runner_up
        cell.pending = (first and rule.gives_way(decision)) or (
            second and decision.final and decision.verdict is not Verdict.ENABLE
        )
        if cell.decided:
            self._end(cell, decision)
        else:
            self._on_look(cell)
        self._rig.progress.standing(tuple(c.standing() for c in self._cells))

    def _end(self, cell: CellRun, decision: Decision) -> None:
        cell.pending = False
        self._on_look(cell)
        self._rig.progress.tell(f"{cell.prompt_type}: {decision.verdict}: {decision.reason}")


def _mean(decision: Decision | None) -> float:
    return -math.inf if decision is None or decision.estimate is None else decision.mean
