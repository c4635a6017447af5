"""Measures pairs: the same prompts without and with drafting, interleaved, each half stored as soon as it is done."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from autospec.backends.protocol import Server
from autospec.drafting import OFF, Drafting
from autospec.errors import (
    AutospecError,
    BackendError,
    LateAnswerError,
    LaunchError,
    NoAnswerError,
    RequestError,
    ServerDiedError,
)
from autospec.hardware.state import MachineState
from autospec.measure.asking import Asking, OffLength, measure
from autospec.measure.disturbances import disturbance, lasting, swaps
from autospec.measure.measurements import MAX_PAIR_GAP_S, Measurement, Pair, Phase, Shapes, paired
from autospec.store.database import Store
from autospec.tuning.budget import Budget, Pace
from autospec.tuning.launches import Launches
from autospec.tuning.load_guard import LoadGuard, patience_s
from autospec.tuning.tasks import MOST_S, STRETCH_S, StoredPairs, Task, cells_of, next_stretch

__all__ = ["MOST_FAILING", "Failing", "Measured", "PairedRunner"]

_TOO_FAR_APART = f"The halves of a pair must not be more than {MAX_PAIR_GAP_S / 60:.0f} minutes apart."
# A server that dies once may have been killed because another program took the memory; one that dies twice on the same
# prompt will die again.
_DEATHS_ALLOWED = 1
# With more failing prompts than this, a server is not asked the rest of a prompt type.
MOST_FAILING = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A task with its pair, measured now or from the store; ``None`` where a server cannot answer the prompt.

    `disturbed` says why it should not count, empty for a clean pair.
    """

    task: Task
    pair: Pair | None
    disturbed: str


@dataclass(frozen=True, slots=True)
class _Block:
    """The arguments of one call of `PairedRunner.block`."""

    drafting: Drafting
    phase: Phase
    round: int
    budget: Budget | None
    whole_cells: bool
    on_half: Callable[
        [int], None
    ]  # gets the number of halves of the stretch so far, where launches take turns
    again: bool = False  # True for disturbed pairs that are measured again: their cells have started


# Cell key and side → why it could not answer a prompt, by prompt id.
Failing: TypeAlias = dict[tuple[str, Drafting], dict[str, str]]
# Task, and whether it is the half without drafting.
_Halves: TypeAlias = dict[tuple[Task, bool], Measurement]


class PairedRunner:
    """Measures pairs on a set of launches and stores every half at once, so an interruption costs at most one request.

    Args:
        launches: The servers.
        asking: How prompts are asked.
        store: The database.
        since: Cell key → stored halves older than this (seconds since the epoch) do not count.
        tell: Told when measuring waits for the machine.
        sleep: Waits for a number of seconds; tests inject their own.
        budget_s: Of the whole tune: waits are short if it is.
        shapes: Cell key → the requests that its pairs stand for; as they are measured if left out.
        failing: What this tune and earlier ones have found to fail so far; grows.
        on_failing: Keeps why prompts fail with a drafting that off answers, whenever that is new: cell key, drafting, and the reasons by
            prompt id.
        clock: Seconds since the epoch.
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
        shapes: Mapping[str, Shapes] | None = None,
        failing: Failing | None = None,
        on_failing: Callable[[str, Drafting, Mapping[str, str]], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._launches = launches
        self._asking = asking
        self._store = store
        self._shapes = dict(shapes or {})
        self._stored = StoredPairs(store, asking.protocol, since, self._shapes)
        self._tell = tell
        self._clock = clock
        self.pace = Pace()
        # Public: others who time something on these launches wait for other programs with it, too.
        self.calm = LoadGuard(asking.watch, tell, sleep, patience_s(budget_s))
        # Number of pairs measured so far: the order of the halves alternates over all of them (ABBA), also across blocks.
        self._turn = 0
        # Cell and drafting → round that the proof has measured on the current launches; ``None`` before the proof.
        self._rounds: dict[tuple[str, Drafting], int] | None = None
        self._renewal_s = 0.0
        self.off_length = OffLength(asking)  # public: others plan with it
        self._failing: Failing = {} if failing is None else failing
        # The sides that answered their last request in time: what is late there is the prompt's fault.
        self._answering: set[Drafting] = set()
        self._off_answered = False  # elsewhere, where nothing was stored as a measurement
        self._on_failing = on_failing
        # Of draftings only what off is known to answer.
        self._known_failing: Failing = {place: dict(reasons) for place, reasons in self._failing.items()}

    def stand_for(self, cell_key: str, shapes: Shapes) -> None:
        """Let the pairs of a cell stand for these requests from now on, those in the store too."""
        self._shapes[cell_key] = shapes

    def known(self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None) -> list[Pair]:
        """Clean pairs in the store, of one round or of all."""
        return self._stored.known(cell_key, drafting, phase, round_)

    def left_out(
        self, cell_key: str, drafting: Drafting, phase: Phase, round_: int | None = None
    ) -> dict[str, int]:
        """Number of stored pairs that do not count, of one round or of all, by cause."""
        return self._stored.left_out(cell_key, drafting, phase, round_)

    def missing(self, tasks: Sequence[Task], drafting: Drafting, phase: Phase, round_: int) -> list[Task]:
        """The tasks that have no clean pair in the store, and may get one."""
        found = self._stored.found(tasks, drafting, phase, round_)
        return [t for t in tasks if t not in found and not self.failure(t, drafting)]

    def failing(self, cell_key: str, side: Drafting) -> frozenset[str]:
        """Ids of the prompts that one side could not answer, as far as this tune knows; with drafting, those that off answers."""
        return frozenset(self._failing.get((cell_key, side), ()))

    def all_failing(self, cell_key: str) -> dict[Drafting, frozenset[str]]:
        """Ids of the prompts of a cell that each side could not answer, as `failing` without those that off was not asked yet."""
        known = {place: own for place, own in self._known_failing.items() if not place[1].is_off}
        known |= {place: own for place, own in self._failing.items() if place[1].is_off}
        return {side: frozenset(reasons) for (key, side), reasons in known.items() if key == cell_key}

    def note_failing(self, cell_key: str, drafting: Drafting, prompt_id: str, why: str) -> None:
        """Note a prompt that fails with a drafting and not without, found out elsewhere."""
        self._failing.setdefault((cell_key, drafting), {})[prompt_id] = why
        self._keep_failing(cell_key)

    def note_late(self, cell_key: str, prompt_id: str, why: str) -> None:
        """Note a prompt that off did not answer in time elsewhere, although it had just answered others: it is not asked again.

        A prompt whose pairs are stored stays: of pairs, the answers without drafting are cut, and may be in time.
        """
        self._off_answered = True
        stored = self._store.measurements(
            cell_key, protocol=self._asking.protocol, since=self._stored.since.get(cell_key, 0.0)
        )
        if not any(m.drafting.is_off and m.prompt_id == prompt_id for m in stored):
            self._failing.setdefault((cell_key, OFF), {}).setdefault(prompt_id, why)

    def gave_up(self, cell_key: str, drafting: Drafting) -> bool:
        """Whether so many prompts of a cell fail, on either side, that the rest is not asked."""
        return any(len(self.failing(cell_key, side)) > MOST_FAILING for side in (OFF, drafting))

    def failure(self, task: Task, drafting: Drafting) -> str:
        """Why a task cannot be measured, as this tune has found out; empty if it may be."""
        for side in (OFF, drafting):
            reasons = self._failing.get((task.cell_key, side), {})
            if task.prompt_id in reasons:
                return reasons[task.prompt_id]
            if len(reasons) > MOST_FAILING:
                return next(reversed(reasons.values()))
        return ""

    def expected_s(self, tasks: Sequence[Task], drafting: Drafting) -> float:
        """Expected seconds of a block of these tasks, with its launches; 0 for no tasks."""
        pairs_s = sum(self.pair_s(task, drafting) for task in tasks)
        return pairs_s + self.launching_s(pairs_s) if tasks else 0.0

    def pair_s(self, task: Task, drafting: Drafting) -> float:
        """Expected seconds of one pair."""
        return self.pace.pair_s(task.cell_key, drafting, task.prompt.size_bytes)

    def launching_s(self, pairs_s: float) -> float:
        """Expected seconds of the launches of a proof round whose pairs take `pairs_s`."""
        if self._launches.resident == 2:
            return self._launches.launch_s + max(self._launches.launch_s, self._renewal_s)
        stretches = 2 * max(1, math.ceil(pairs_s / (4.0 * STRETCH_S)))
        return (stretches + 1) * self._launches.launch_s

    def block(
        self,
        tasks: Sequence[Task],
        drafting: Drafting,
        phase: Phase,
        round_: int,
        *,
        repeats: int = 0,
        go_on: bool = False,
        budget: Budget | None = None,
        whole_cells: bool = True,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> Generator[Measured, None, None]:
        """Measure each task, or find it in the store; yields as pairs complete, and without a pair what cannot be measured.

        If two launches run side by side, the halves of a pair follow each other and their order alternates between pairs
        (ABBA). If only one fits, see `_by_turns`. In the proof both launches are new for each round of a cell. Cells in the same
        round share them; with different winners they share off.

        Args:
            tasks: In the order in which they are asked; those of one cell follow each other.
            drafting: Compared with off.
            phase: Search or proof.
            round_: Exposure number; pairs of other rounds are other pairs.
            repeats: How often disturbed pairs are measured again, on a new launch each time.
            go_on: True to use a running launch of this drafting; for prompts that it has not seen.
            budget: Work that does not fit into it does not start; a cell that has started may use its grace.
            whole_cells: False to start a cell even if only a part of it fits.
            on_done: Gets the number of pairs done, whenever it grows; two halves count as one where launches take turns.

        Raises:
            BackendError: A launch failed, or the server with drafting died twice.
            AutospecError: The server without drafting did, or answers nothing.
        """
        yielded = shown = 0

        def show(done: int) -> None:
            nonlocal shown
            if done > shown:
                shown = done
                on_done(done)

        block = _Block(
            drafting, phase, round_, budget, whole_cells, lambda halves: show(yielded + halves // 2)
        )
        for measured in self._block(tasks, block, repeats, go_on=go_on):
            yielded += 1
            show(yielded)
            yield measured

    def _block(
        self, tasks: Sequence[Task], block: _Block, repeats: int, *, go_on: bool
    ) -> Iterator[Measured]:
        drafting = block.drafting
        found = self._stored.found(tasks, drafting, block.phase, block.round)
        yield from (Measured(task, found[task], "") for task in tasks if task in found)
        unknown = [task for task in tasks if task not in found]
        failing = {task: why for task in unknown if (why := self.failure(task, drafting))}
        yield from (Measured(task, None, why) for task, why in failing.items())
        open_tasks = [task for task in unknown if task not in failing]
        if open_tasks:
            if not go_on:
                self._launches.expire()
            self._renew(open_tasks, block)
            if block.phase is Phase.PROVE and len(open_tasks) % 2 == 0:
                # Rounds with an even number of pairs would ask each type's only prompt in the same order for ever.
                self._turn += 1
            yield from self._with_repeats(open_tasks, block, repeats)

    def _with_repeats(self, tasks: Sequence[Task], block: _Block, repeats: int) -> Iterator[Measured]:
        """Measure the tasks, and measure disturbed pairs again, each time on a new launch."""
        oldest = self._clock() - MAX_PAIR_GAP_S
        stored = self._stored.halves(tasks, block.drafting, block.phase, block.round, oldest)
        halves = {
            (task, off): half
            for (task, off), half in stored.items()
            if not self.off_length.is_lost(task.prompt, half)
        }
        open_tasks = list(tasks)
        earlier: list[Measured] = []  # the disturbed pairs that are measured again
        too_far = 0
        for again in range(repeats, -1, -1):
            disturbed: list[Measured] = []
            reached: set[Task] = set()
            short = False
            measure_all = self._side_by_side if self._launches.resident == 2 else self._by_turns
            for measured in measure_all(open_tasks, block, halves):
                reached.add(measured.task)
                if measured.pair is None:
                    yield measured
                    continue
                short = short or bool(measured.disturbed and swaps(measured.pair))
                if again and measured.disturbed and measured.disturbed != _TOO_FAR_APART:
                    disturbed.append(measured)
                    continue
                too_far += measured.disturbed == _TOO_FAR_APART
                yield measured
            if short:
                # Users run one server: a neighbour that takes its memory must not be part of the measurement.
                self._launches.by_turns("Memory is short for two servers side by side.")
            # Every pair is handed out, or the round would never be complete.
            yield from (measured for measured in earlier if measured.task not in reached)
            open_tasks, earlier = [measured.task for measured in disturbed], disturbed
            if not open_tasks:
                break
            if block.budget is not None:
                expected_s = self.expected_s(open_tasks, block.drafting)
                if not block.budget.allows(expected_s, to_finish=True):
                    yield from disturbed
                    break
            self._launches.expire()
            halves, block = {}, replace(block, again=True)
        if repeats and too_far:
            pairs = "1 pair does" if too_far == 1 else f"{too_far} pairs do"
            self._tell(f"{block.drafting.label}: {pairs} not count. {_TOO_FAR_APART}")

    def _renew(self, tasks: Sequence[Task], block: _Block) -> None:
        """Launch new servers for the proof, if the running ones have measured one of these cells in another round."""
        if block.phase is not Phase.PROVE:
            return
        rounds = {(key, block.drafting): block.round for key in cells_of(tasks)}
        before = self._rounds
        used = before is not None and any(before.get(place, block.round) != block.round for place in rounds)
        begun = self._clock()
        try:
            # The search used its drafted launch to choose the drafting; off had no part in the choice and can stay.
            if before is None or used:
                self._launches.renew(off=used)
        except BackendError as error:
            raise _off_does_not_start(error) from error
        if used:
            self._renewal_s = self._clock() - begun
        self._rounds = rounds if used else (before or {}) | rounds

    def note_stored(self, cell_key: str, drafting: Drafting) -> None:
        """Learn the time of requests from earlier tunes' measurements, if this tune has measured none with this drafting."""
        if self.pace.knows(cell_key, drafting):
            return
        for half in self._stored_halves(cell_key, drafting):
            self.pace.note(cell_key, half.drafting, half.wall_ms / 1000.0)

    def took_s(self, cell_key: str, drafting: Drafting) -> float:
        """Mean seconds that a pair took to ask; 0 before the first. An answer that `paired` continues on paper took less than that says."""
        sides: dict[bool, list[float]] = {}
        for half in self._stored_halves(cell_key, drafting):
            sides.setdefault(half.drafting.is_off, []).append(half.wall_ms / 1000.0)
        return sum(map(statistics.fmean, sides.values()))

    def _stored_halves(self, cell_key: str, drafting: Drafting) -> list[Measurement]:
        """All halves of the search and of the proof, as they were asked."""
        return [
            half
            for phase in (Phase.SEARCH, Phase.PROVE)
            for half in self._stored.rows(cell_key, drafting, phase)
        ]

    def _next_order(self, drafting: Drafting) -> tuple[Drafting, Drafting]:
        self._turn += 1
        return (OFF, drafting) if self._turn % 2 else (drafting, OFF)

    def _side_by_side(self, tasks: Sequence[Task], block: _Block, halves: _Halves) -> Iterator[Measured]:
        begun: set[str] = set()
        for number, task in enumerate(tasks):
            if self._launches.resident == 1:  # two did not fit after all
                yield from self._by_turns(tasks[number:], block, halves)
                return
            if block.budget is not None and not self._allows(task, tasks, begun, block):
                continue
            begun.add(task.cell_key)
            filled = all(self._fill(halves, task, side, block) for side in self._next_order(block.drafting))
            self._ask_off_too([task], block, halves)
            yield self._measured(task, halves) if filled else self._failed(task, block)

    def _allows(self, task: Task, tasks: Sequence[Task], begun: set[str], block: _Block) -> bool:
        """Whether the budget leaves time for a task, or for its whole cell if that has not started."""
        assert block.budget is not None
        if not block.whole_cells or task.cell_key in begun or block.again:
            return block.budget.allows(self.pair_s(task, block.drafting), to_finish=block.whole_cells)
        own = [t for t in tasks if t.cell_key == task.cell_key]
        return block.budget.allows(sum(self.pair_s(t, block.drafting) for t in own))

    def _by_turns(self, tasks: Sequence[Task], block: _Block, halves: _Halves) -> Iterator[Measured]:
        """Stretches of some minutes: first one side of all pairs, then the other; the next stretch starts with that other side."""
        # So a launch serves the end of one stretch and the start of the next, with other prompts, and there is one launch more
        # than stretches. In the proof each cell is asked in two stretches, half of its prompts in either order.
        left, begun = list(tasks), set[str]()
        while left:
            chosen = self._stretch(left, begun, block)
            if not chosen:
                return
            sides = self._next_order(block.drafting)
            done = self._one_side(chosen, sides[0], block, halves, STRETCH_S)
            done = self._one_side(done, sides[1], block, halves, MOST_S, others=len(done))
            self._ask_off_too(chosen, block, halves)
            for task in done:
                yield self._measured(task, halves)
            left = [task for task in left if task not in set(done)]
            failed = [task for task in left if self.failure(task, block.drafting)]
            for task in failed:
                yield self._failed(task, block)
            left = [task for task in left if task not in set(failed)]
            begun = (begun | cells_of(chosen)) & cells_of(left)

    def _stretch(self, left: Sequence[Task], begun: set[str], block: _Block) -> list[Task]:
        """The tasks of the next stretch; empty if the budget does not allow one."""
        budget_s = math.inf
        if block.budget is not None:
            goes_on = (bool(begun) or block.again) and block.whole_cells
            grace_s = block.budget.grace_s if goes_on else 0.0
            budget_s = block.budget.until_end_s + grace_s - (2 if begun else 3) * self._launches.launch_s
        return next_stretch(
            left,
            begun,
            lambda task: (
                self.pace.request_s(task.cell_key, OFF, task.prompt.size_bytes),
                self.pace.request_s(task.cell_key, block.drafting, task.prompt.size_bytes),
            ),
            budget_s,
            both_orders=block.phase is Phase.PROVE,
            whole_cells=block.whole_cells,
        )

    def _one_side(
        self,
        tasks: Sequence[Task],
        side: Drafting,
        block: _Block,
        halves: _Halves,
        limit_s: float,
        *,
        others: int = 0,
    ) -> list[Task]:
        """Ask one side of a stretch within its time limit; returns the tasks that have this half. `others` are the other side's."""
        done: list[Task] = []
        begun: float | None = None
        for task in tasks:
            if (task, side.is_off) not in halves:
                if begun is None:
                    self._server(side)  # its launch is not part of the stretch
                    begun = self._clock()  # no limit: a request longer than the limit would never be measured
                else:
                    now, other = self._clock(), halves.get((task, not side.is_off))
                    if other is not None and now - other.started_at > MAX_PAIR_GAP_S:
                        del halves[task, not side.is_off]  # too old to be completed: both are measured later
                        continue
                    next_s = self.pace.request_s(task.cell_key, side, task.prompt.size_bytes)
                    if now - begun + next_s > limit_s:
                        break
                if not self._fill(halves, task, side, block):
                    continue
            done.append(task)
            block.on_half(others + len(done))
        return done

    def _fill(self, halves: _Halves, task: Task, side: Drafting, block: _Block) -> bool:
        """Measure a half that is missing; False if its server does not answer the prompt, or others of its type."""
        if (task, side.is_off) in halves:
            return True
        return not self.failure(task, block.drafting) and self._ask(halves, task, side, block)

    def _ask_off_too(self, tasks: Sequence[Task], block: _Block, halves: _Halves) -> None:
        """Ask off the prompts that failed with drafting first: those that fail on both sides are no fault of the drafting."""
        for task in tasks:
            if (task, True) not in halves and task.prompt_id in self.failing(task.cell_key, block.drafting):
                self._ask(halves, task, OFF, block)
        for key in cells_of(tasks):
            self._keep_failing(key)

    def _keep_failing(self, cell_key: str) -> None:
        """Keep what is new of the prompts that fail with drafting only; off has been asked all of them."""
        for (key, side), reasons in self._failing.items():
            place = key, side
            if key == cell_key and not side.is_off and self._known_failing.get(place, {}) != reasons:
                self._known_failing[place] = dict(reasons)
                self._on_failing(key, side, reasons)

    def _ask(self, halves: _Halves, task: Task, side: Drafting, block: _Block) -> bool:
        """Measure a half; False if its server does not answer the prompt."""
        position = int((task, not side.is_off) in halves)
        try:
            halves[task, side.is_off] = self._half(task, side, block, position)
            self._answering.add(side)
        except ServerDiedError:
            raise
        except RequestError as error:
            if isinstance(error, NoAnswerError):
                # If the next one is late, too, the server answers nothing any more.
                late = isinstance(error, LateAnswerError) and side in self._answering
                self._answering.discard(side)
                if not late and side.is_off:
                    raise _off_failed(task, error) from error
                if not late:
                    raise
            self._leave_out(task, side, error)
            return False
        return True

    def _leave_out(self, task: Task, side: Drafting, error: RequestError) -> None:
        """Note a prompt that a server answers with an error; it has not died, so the other prompts are asked."""
        reasons = self._failing.setdefault((task.cell_key, side), {})
        reasons[task.prompt_id] = error.message
        fails = "fails without drafting" if side.is_off else f"fails with {side.label}"
        told = f"The prompt {task.prompt_id} is left out, because it {fails}: {error}"
        if side.is_off:
            for (key, other), own in self._failing.items():
                if key != task.cell_key or other.is_off or self._answered_once(task, other, error):
                    continue
                if own.pop(task.prompt_id, None) is not None:
                    told = f"The prompt {task.prompt_id} fails without drafting, too: {error}"
        self._tell(told)
        failures = sum(len(found) for (_, drafting), found in self._failing.items() if drafting.is_off)
        if side.is_off and failures > MOST_FAILING and not self._answered_before(task):
            raise _off_failed(task, error) from error
        if len(reasons) == MOST_FAILING + 1:
            kind, others = task.prompt.prompt_type, "" if side.is_off else f" with {side.label}"
            self._tell(
                f"{kind}: no more of its prompts are asked{others}, because {len(reasons)} of them failed."
            )

    def _answered_once(self, task: Task, drafting: Drafting, error: RequestError) -> bool:
        """Whether off, late now, once answered a prompt that fails with a drafting: that it is slow excuses no failure."""
        known = self._known_failing.get((task.cell_key, drafting), {})
        return isinstance(error, LateAnswerError) and task.prompt_id in known

    def _answered_before(self, task: Task) -> bool:
        """Whether off has answered any prompt, in this tune or an earlier one."""
        if self._off_answered:
            return True
        keys, protocol = {*self._stored.since, task.cell_key}, self._asking.protocol
        return any(
            m.drafting.is_off for key in keys for m in self._store.measurements(key, protocol=protocol)
        )

    def _failed(self, task: Task, block: _Block) -> Measured:
        return Measured(task, None, self.failure(task, block.drafting))

    def _measured(self, task: Task, halves: _Halves) -> Measured:
        pair = paired(halves[task, True], halves[task, False], self._shapes.get(task.cell_key))
        far = abs(pair.off.started_at - pair.drafted.started_at) > MAX_PAIR_GAP_S
        reason = _TOO_FAR_APART if far else disturbance(pair)
        if reason and not far:
            # A disturbance that returns with every repeat belongs to the drafting itself: the pair counts.
            lasts = lasting(self._stored.rows(task.cell_key, pair.drafted.compared, pair.drafted.phase))
            reason = disturbance(pair, lasts)
        return Measured(task, pair, reason)

    def _half(self, task: Task, side: Drafting, block: _Block, position: int) -> Measurement:
        deaths, late = 0, False
        most_tokens = self.off_length.of(task.prompt, paired=position > 0) if side.is_off else None
        while True:
            server = self._server(side)
            begun = self._clock()
            try:
                measurement = measure(
                    self._asking,
                    server,
                    task.prompt,
                    cell_key=task.cell_key,
                    phase=block.phase,
                    round_=block.round,
                    compared=block.drafting,
                    position=position,
                    most_tokens=most_tokens,
                )
            except RequestError as error:
                if isinstance(error, ServerDiedError):
                    self._launches.drop(server)
                    deaths += 1
                    if deaths <= _DEATHS_ALLOWED:
                        continue
                if isinstance(error, LateAnswerError) and not late:
                    late = True
                    # If other programs used the machine, and have finished, it is asked once more.
                    if self.calm.after(self._asking.watch.finish()):
                        self._launches.drop(server)
                        continue
                if side.is_off and isinstance(error, ServerDiedError):
                    raise _off_failed(task, error) from error
                raise
            if side.is_off:
                self.off_length.note(measurement)
            self._store.add_measurement(measurement)
            self.pace.note(task.cell_key, side, self._clock() - begun, task.prompt.size_bytes)
            self.calm.after(MachineState.from_json(measurement.machine))
            return measurement

    def _server(self, side: Drafting) -> Server:
        if not side.is_off:
            return self._launches.drafted(side)
        try:
            try:
                return self._launches.off()
            except LaunchError as error:
                if error.permanent:
                    raise
                return self._launches.off()  # the memory of the previous server may be free only now
        except BackendError as error:
            raise _off_does_not_start(error) from error


def _off_does_not_start(error: BackendError) -> AutospecError:
    # Not a BackendError: no drafting is to blame.
    return AutospecError(
        f"The server without drafting did not start again: {error.message}",
        error.hint or "All measurements so far are kept; run tune again to continue.",
    )


def _off_failed(task: Task, error: RequestError) -> AutospecError:
    # Not a BackendError: no drafting is to blame, and without a baseline there is nothing to compare with.
    return AutospecError(
        f"The prompt {task.prompt_id} failed without drafting: {error.message}",
        error.hint or "All measurements so far are kept; correct the server settings and run tune again.",
    )
