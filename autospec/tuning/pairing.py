"""Measure pairs: off and drafting on the same prompts, interleaved, each stored as soon as it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from autospec.backends.protocol import Server
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError, RequestError, ServerDiedError
from autospec.hardware.state import MachineState
from autospec.measure.asking import Asking, disturbance, measure
from autospec.measure.disturbances import lasting, left_out, swaps
from autospec.measure.measurements import MAX_PAIR_GAP_S, Measurement, Pair, Phase, pair_up
from autospec.prompts.suite import Prompt
from autospec.store.database import Store
from autospec.tuning.calm import Calm, patience_s
from autospec.tuning.launches import Launches

__all__ = ["Measured", "Pairing", "Task"]

# A server that dies once may have been killed for memory by something else; one that dies twice on the same
# prompt will do so again.
_DEATHS_ALLOWED = 1


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


@dataclass(frozen=True, slots=True)
class _Half:
    task: Task
    side: Drafting
    compared: Drafting
    phase: Phase
    round: int
    position: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A task with its pair.

    Attributes:
        task: What was asked.
        pair: The pair, measured now or found in the store.
        disturbed: Why it should not count; empty for a clean pair.
    """

    task: Task
    pair: Pair
    disturbed: str


class Pairing:
    """Measures pairs on a set of launches and keeps every half in the store.

    Args:
        launches: Where servers come from.
        asking: How prompts are asked.
        store: Where every half goes at once, so that an interruption costs one request at most.
        since: Cell key → stored halves older than this (seconds since the epoch) do not count.
        tell: Told when measuring waits for the machine.
        sleep: Waits so many seconds; tests inject their own.
        budget_s: Of the whole run: a wait for the machine is short where this is.

    Attributes:
        calm: Waits for other programs; whoever times something on these launches asks it.
    """

    def __init__(
        self,
        launches: Launches,
        asking: Asking,
        store: Store,
        *,
        since: Mapping[str, float],
        tell: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
        budget_s: float = math.inf,
    ) -> None:
        self._launches = launches
        self._asking = asking
        self._store = store
        self._since = since
        self.calm = Calm(asking.watch, tell, sleep, patience_s(budget_s))
        # Pairs measured so far: the order of the halves alternates over them all (ABBA), across blocks too.
        self._turn = 0

    def known(self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None) -> list[Pair]:
        """Clean pairs already in the store, of one round or of all."""
        rows = self._rows(cell_key, drafting, phase, None)
        lasts = lasting(rows)
        of_round = [m for m in rows if round_ is None or m.round == round_]
        return [pair for pair in pair_up(of_round) if not disturbance(pair, lasts)]

    def left_out(
        self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None
    ) -> dict[str, int]:
        """How many stored pairs do not count, of one round or of all, by cause."""
        rows = self._rows(cell_key, drafting, phase, None)
        return left_out([m for m in rows if round_ is None or m.round == round_], lasting(rows))

    def block(
        self,
        tasks: Sequence[Task],
        drafting: Drafting,
        phase: Phase,
        round_: int,
        *,
        repeats: int = 0,
        go_on: bool = False,
    ) -> Generator[Measured, None, None]:
        """Measure each task, or find it in the store; yields as pairs complete.

        Where two launches live side by side, the halves of a pair follow each other and the order alternates from
        pair to pair (ABBA). Where only one fits, all first halves run before all second halves, and the order
        alternates from block to block.

        Args:
            tasks: In the order in which they are asked.
            drafting: Compared with off.
            phase: Search or proof.
            round_: Exposure number; pairs of other rounds are other pairs.
            repeats: How often disturbed pairs are measured again, on a fresh launch each time.
            go_on: True to use a launch of this drafting that runs already; for prompts that it has not seen.

        Raises:
            BackendError: A launch failed, or the server with drafting died or refused twice.
            AutospecError: The server without drafting did.
        """
        open_tasks: list[Task] = []
        known = {key: self.known(key, drafting, phase, round_) for key in _cells_of(tasks)}
        for task in tasks:
            found = [p for p in known[task.cell_key] if p.off.prompt_id == task.prompt_id]
            if found:
                yield Measured(task, found[-1], "")
            else:
                open_tasks.append(task)
        for attempt in range(repeats + 1):
            if not open_tasks:
                return
            if attempt or not go_on:
                self._launches.expire()
            disturbed, short = [], False
            single = self._single_halves(open_tasks, drafting, phase, round_) if attempt == 0 else {}
            for measured in self._measure_all(open_tasks, drafting, phase, round_, single):
                short = short or bool(measured.disturbed and swaps(measured.pair))
                if measured.disturbed and attempt < repeats:
                    disturbed.append(measured.task)
                else:
                    yield measured
            if short:
                # What one of two neighbours does to the other's memory is nothing that a user has.
                self._launches.by_turns("Memory is short for two servers side by side.")
            open_tasks = disturbed

    def _measure_all(
        self,
        tasks: Sequence[Task],
        drafting: Drafting,
        phase: Phase,
        round_: int,
        single: dict[tuple[Task, bool], Measurement],
    ) -> Iterator[Measured]:
        left = list(tasks)
        while left:
            # Read anew for every batch: a launch may have found that two do not fit side by side.
            size = 1 if self._launches.resident == 2 else len(left)
            batch, left = left[:size], left[size:]
            off_first = self._turn % 2 == 0
            self._turn += 1
            halves: dict[bool, list[Measurement]] = {}
            for position, is_off in enumerate((off_first, not off_first)):
                halves[is_off] = [
                    single.get((task, is_off))
                    or self._half(_Half(task, OFF if is_off else drafting, drafting, phase, round_, position))
                    for task in batch
                ]
            for task, off, drafted in zip(batch, halves[True], halves[False], strict=True):
                pair = Pair(off=off, drafted=drafted)
                reason = disturbance(pair)
                if reason:
                    # What comes back with every repeat belongs to what is measured, and counts.
                    reason = disturbance(pair, lasting(self._rows(task.cell_key, drafting, phase, None)))
                yield Measured(task, pair, reason)

    def _half(self, half: _Half) -> Measurement:
        deaths = 0
        while True:
            server = self._server(half.side)
            try:
                measurement = measure(
                    self._asking,
                    server,
                    half.task.prompt,
                    cell_key=half.task.cell_key,
                    phase=half.phase,
                    round_=half.round,
                    compared=half.compared,
                    position=half.position,
                )
            except ServerDiedError as error:
                self._launches.drop(server)
                deaths += 1
                if deaths <= _DEATHS_ALLOWED:
                    continue
                if half.side.is_off:
                    raise _off_failed(half, error) from error
                raise
            except RequestError as error:
                if half.side.is_off:
                    raise _off_failed(half, error) from error
                raise
            self._store.add_measurement(measurement)
            self.calm.after(MachineState.from_json(measurement.machine))
            return measurement

    def _server(self, side: Drafting) -> Server:
        return self._launches.off() if side.is_off else self._launches.drafted(side)

    def _single_halves(
        self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int
    ) -> dict[tuple[Task, bool], Measurement]:
        """Halves that were finished before an interruption, recent enough to be completed to pairs."""
        oldest = time.time() - MAX_PAIR_GAP_S
        found: dict[tuple[Task, bool], Measurement] = {}
        stored = {key: self._rows(key, drafting, phase, round_) for key in _cells_of(tasks)}
        for task in tasks:
            rows = [
                m for m in stored[task.cell_key] if m.prompt_id == task.prompt_id and m.started_at >= oldest
            ]
            if len({m.drafting.is_off for m in rows}) == 1:
                found[task, rows[-1].drafting.is_off] = rows[-1]
        return found

    def _rows(self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None) -> list[Measurement]:
        rows = self._store.measurements(
            cell_key, protocol=self._asking.protocol, phase=phase, since=self._since.get(cell_key, 0.0)
        )
        return [m for m in rows if m.compared == drafting and (round_ is None or m.round == round_)]


def _cells_of(tasks: Sequence[Task]) -> set[str]:
    return {task.cell_key for task in tasks}


def _off_failed(half: _Half, error: RequestError) -> AutospecError:
    # Not a BackendError: no drafting is to blame, and without off there is nothing to compare with.
    return AutospecError(
        f"Without any drafting, the prompt {half.task.prompt_id} failed: {error.message}",
        error.hint or "What was measured so far is kept; mend the server settings and run tune again.",
    )
