"""What is to be measured, and in which stretches where only one launch fits into memory. Pure.

What the store knows of a tune's pairs: which count, and which halves an interruption has left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from autospec.drafting import Drafting
from autospec.measure.asking import disturbance
from autospec.measure.disturbances import lasting, left_out
from autospec.measure.measurements import Measurement, Pair, Phase, Shapes, pair_up
from autospec.prompts.suite import Prompt
from autospec.store.database import Store

__all__ = ["MOST_S", "STRETCH_S", "StoredPairs", "Task", "cells_of", "next_stretch"]


# Where launches take turns, one side of a stretch is planned to last so long, and ends after so long at the latest: a pair's
# halves are no further apart than one stretch's side and a launch, and the machine changes little meanwhile.
STRETCH_S = 540.0
MOST_S = 600.0


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to be measured for one cell. Two tasks are equal if cell and prompt id are."""

    cell_key: str
    prompt_id: str
    prompt: Prompt = field(compare=False, repr=False)

    @classmethod
    def of(cls, cell_key: str, prompt: Prompt) -> Self:
        """The task for a prompt of the suite."""
        return cls(cell_key, prompt.id, prompt)


def cells_of(tasks: Iterable[Task]) -> set[str]:
    """The cells that they are of."""
    return {task.cell_key for task in tasks}


def next_stretch(
    left: Sequence[Task],
    begun: Collection[str],
    sides_s: Callable[[Task], tuple[float, float]],
    budget_s: float = math.inf,
    *,
    both_orders: bool,
    whole_cells: bool = True,
) -> list[Task]:
    """The tasks of the next stretch; none where not one fits.

    Args:
        left: What is to be measured yet; tasks of one cell follow each other.
        begun: Cells of which the stretch before has measured a part: they go on, in the other order.
        sides_s: What a task takes on either side, as expected. A request that takes longer than a stretch has one of its own.
        budget_s: Time for this stretch and for the one that finishes its cells.
        both_orders: Measure half of each cell's tasks in this stretch, so that the next one has the other half.
        whole_cells: Whether all tasks of a cell must fit into the budget, or only those of this stretch.
    """
    tasks = [task for task in left if task.cell_key in begun]
    first_half = both_orders and not tasks
    if not tasks:
        tasks = _every_other(left) if both_orders else list(left)
    of_cell = Counter(task.cell_key for task in left)
    here = Counter(task.cell_key for task in tasks)
    count, took_s, pairs_s = 0, (0.0, 0.0), 0.0
    for task in tasks:
        first_s, second_s = sides_s(task)
        took_s = took_s[0] + first_s, took_s[1] + second_s
        parts = of_cell[task.cell_key] / here[task.cell_key] if whole_cells else 1.0
        pairs_s += parts * (first_s + second_s)
        if pairs_s > budget_s or (count and max(took_s) > STRETCH_S):
            break
        count += 1
    if first_half and count < len(tasks):
        # A part of a cell's half would leave more of it to the next stretch than that has time for.
        whole = count
        while whole and tasks[whole - 1].cell_key == tasks[count].cell_key:
            whole -= 1
        count = whole or count
    return tasks[:count]


def _every_other(tasks: Sequence[Task]) -> list[Task]:
    """Half of every cell's tasks, cell by cell."""
    by_cell: dict[str, list[Task]] = {}
    for task in tasks:
        by_cell.setdefault(task.cell_key, []).append(task)
    return [task for own in by_cell.values() for task in own[::2]]


@dataclass(frozen=True, slots=True)
class StoredPairs:
    """The pairs of one protocol.

    Attributes:
        store: Where they are.
        protocol: As `Measurement.protocol`.
        since: Cell key → stored halves older than this (seconds since the epoch) do not count.
        shapes: Cell key → the requests that its pairs stand for.
    """

    store: Store
    protocol: str
    since: Mapping[str, float]
    shapes: Mapping[str, Shapes]

    def known(self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None) -> list[Pair]:
        """Clean pairs of one round or of all."""
        rows = self.rows(cell_key, drafting, phase)
        lasts = lasting(rows)
        of_round = [m for m in rows if round_ is None or m.round == round_]
        return [pair for pair in pair_up(of_round, self.shapes) if not disturbance(pair, lasts)]

    def left_out(
        self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None
    ) -> dict[str, int]:
        """How many pairs do not count, of one round or of all, by cause."""
        rows = self.rows(cell_key, drafting, phase)
        return left_out([m for m in rows if round_ is None or m.round == round_], lasting(rows))

    def found(self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int) -> dict[Task, Pair]:
        """The tasks that have a clean pair; of several, the newest."""
        known = {key: self.known(key, drafting, phase, round_) for key in cells_of(tasks)}
        pairs = {(key, pair.off.prompt_id): pair for key, own in known.items() for pair in own}
        places = ((task, (task.cell_key, task.prompt_id)) for task in tasks)
        return {task: pairs[place] for task, place in places if place in pairs}

    def halves(
        self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int, oldest: float
    ) -> dict[tuple[Task, bool], Measurement]:
        """Halves without their other one, no older than `oldest`: by task, and whether it is the one without drafting."""
        found: dict[tuple[Task, bool], Measurement] = {}
        stored = {key: self.rows(key, drafting, phase) for key in cells_of(tasks)}
        for task in tasks:
            rows = [
                m
                for m in stored[task.cell_key]
                if m.round == round_ and m.prompt_id == task.prompt_id and m.started_at >= oldest
            ]
            if len({m.drafting.is_off for m in rows}) == 1:
                found[task, rows[-1].drafting.is_off] = rows[-1]
        return found

    def rows(self, cell_key: str, drafting: Drafting, phase: Phase) -> list[Measurement]:
        """All halves of one drafting's comparison with off, oldest first."""
        rows = self.store.measurements(
            cell_key, protocol=self.protocol, phase=phase, since=self.since.get(cell_key, 0.0)
        )
        return [m for m in rows if m.compared == drafting]
