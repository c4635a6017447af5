"""What the store knows of a tune's pairs: which count, and which halves an interruption has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autospec.drafting import Drafting
from autospec.measure.asking import disturbance
from autospec.measure.disturbances import lasting, left_out
from autospec.measure.measurements import Measurement, Pair, Phase, pair_up
from autospec.measure.shape import Shapes
from autospec.store.database import Store
from autospec.tuning.tasks import Task, cells_of

__all__ = ["StoredPairs"]


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
