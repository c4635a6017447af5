"""The prompts to measure, the order in which they are measured where launches take turns, and the pairs that the store has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from autospec.drafting import Drafting
from autospec.measure.disturbances import disturbance, lasting, left_out
from autospec.measure.measurements import Measurement, Pair, Phase, Shapes, pair_up
from autospec.prompts.suite import Prompt
from autospec.store.database import Store

__all__ = ["MOST_S", "STRETCH_S", "StoredPairs", "Task", "cells_of", "next_stretch"]


# Where launches take turns, one side of a stretch is planned for 540 s and ends after 600 s at the latest: the halves of a
# pair are at most one side and one launch apart, and the machine changes little in that time.
STRETCH_S = 540.0
MOST_S = 600.0


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to measure for one cell. Two tasks are equal if cell and prompt id are."""

    cell_key: str
    prompt_id: str
    prompt: Prompt = field(compare=False, repr=False)

    @classmethod
    def of(cls, cell_key: str, prompt: Prompt) -> Self:
        """The task for a prompt of the suite."""
        return cls(cell_key, prompt.id, prompt)


def cells_of(tasks: Iterable[Task]) -> set[str]:
    """Keys of the cells of these tasks."""
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
    """The tasks of the next stretch; empty if none fits. Tasks of one cell follow each other.

    Args:
        left: The tasks that are left.
        begun: Cells that the previous stretch measured in part: they continue, in the other order.
        sides_s: Expected seconds of a task on either side. A request that takes longer than a stretch gets one of its own.
        budget_s: Time for this stretch and for the one that finishes its cells.
        both_orders: Measure half of each cell's tasks in this stretch, and the other half in the next one.
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
        # Stop at the end of a cell: a partly measured cell would leave more to the next stretch than it has time for.
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
    """The pairs of one protocol."""

    store: Store
    protocol: str
    since: Mapping[str, float]  # cell key → older stored halves (seconds since the epoch) do not count
    shapes: Mapping[str, Shapes]  # cell key → the requests that its pairs stand for

    def known(self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None) -> list[Pair]:
        """Clean pairs of one round or of all."""
        rows = self.rows(cell_key, drafting, phase)
        lasts = lasting(rows)
        of_round = [m for m in rows if round_ is None or m.round == round_]
        return [pair for pair in pair_up(of_round, self.shapes) if not disturbance(pair, lasts)]

    def left_out(
        self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None
    ) -> dict[str, int]:
        """Number of pairs that do not count, of one round or of all, by cause."""
        rows = self.rows(cell_key, drafting, phase)
        return left_out([m for m in rows if round_ is None or m.round == round_], lasting(rows))

    def found(self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int) -> dict[Task, Pair]:
        """The tasks that have a clean pair, each with the newest one."""
        known = {key: self.known(key, drafting, phase, round_) for key in cells_of(tasks)}
        pairs = {(key, pair.off.prompt_id): pair for key, own in known.items() for pair in own}
        places = ((task, (task.cell_key, task.prompt_id)) for task in tasks)
        return {task: pairs[place] for task, place in places if place in pairs}

    def halves(
        self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int, oldest: float
    ) -> dict[tuple[Task, bool], Measurement]:
        """Halves without a partner, no older than `oldest` (seconds since the epoch), by task and whether drafting is off."""
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
