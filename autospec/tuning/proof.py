"""The proof: fresh measurements of each cell's winner on prompts that had no part in choosing it.

Rounds go on until every cell is decided or the budget is spent. One launch serves all cells with the same winner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from autospec.drafting import Drafting
from autospec.errors import BackendError
from autospec.measure.measurements import Phase
from autospec.measure.verdict import decide
from autospec.tuning.cell_run import CellRun
from autospec.tuning.pairing import Task
from autospec.tuning.progress import Step
from autospec.tuning.rig import Rig

__all__ = ["Proof"]

# A pair during which the machine changed is measured again so often before the round goes on without it.
_REPEATS = 2
# A round under way may exceed the budget by so much, since what it measured counts only once it is complete.
_OVERDRAFT = 1.2


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
        self._failed: set[str] = set()
        self._round_s: dict[str, float] = {}

    def run(self) -> None:
        """Prove until every cell is decided, the last look is done, or the budget is spent."""
        rule = self._rig.definition.rule
        for round_ in range(1, rule.looks[-1] + 1):
            for drafting in dict.fromkeys(c.winner for c in self._cells):
                cells = [
                    c
                    for c in self._cells
                    if c.winner == drafting and not c.decided and c.cell.key not in self._failed
                ]
                if cells and self._time_for(drafting):
                    self._round(drafting, cells, round_)

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
        tasks = [Task.of(c.cell.key, prompt) for c in ordered for prompt in c.prove_prompts]
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
                    self._look(cell)
                if self._rig.budget.spent_s > _OVERDRAFT * self._rig.budget.total_s:
                    block.close()
                    break
        except BackendError as error:
            self._failed |= {c.cell.key for c in cells}
            self._rig.progress.tell(f"{drafting.label}: the proof broke off. {error.message}")
            return
        self._round_s[drafting.key] = self._rig.budget.spent_s - begun

    def _step(self, drafting: Drafting, round_: int, done: int, todo: int) -> None:
        last = self._rig.definition.rule.looks[-1]
        self._rig.progress.step(Step("prove", drafting, round_, last, done, todo, self._rig.budget.left_s))

    def _look(self, cell: CellRun) -> None:
        rule = self._rig.definition.rule
        if cell.rounds not in rule.looks:
            # Between looks nothing may be concluded, or the error rate would not hold.
            return
        # What an earlier run measured in later rounds belongs to later looks: each has its own share of the error rate.
        known = self._rig.pairing.known(cell.cell.key, cell.winner, Phase.PROVE)
        pairs = [p for p in known if p.off.round <= cell.rounds]
        decision = decide(pairs, cell.rounds, rule)
        cell.decision = decision
        self._on_look(cell)
        self._rig.progress.standing(tuple(c.standing() for c in self._cells))
        if decision.final:
            self._rig.progress.tell(f"{cell.prompt_type}: {decision.verdict}: {decision.reason}")
