"""Measures what pairs do not show: what context costs, and what a draft costs that is loaded and not used.

Context: batches are timed behind a recorded prompt already. Here they are timed behind a longer context too:
the difference is what a token costs more further on in an answer (`autospec.measure.measurements`). Models with a
sliding window are timed with a cache that keeps all of the text, and the part of their layers counts that goes on
growing. Models with a state are left out: no batch can be timed behind their text, though their attention grows too.

Idle drafts, each once: where each request carries its drafting, a client can turn drafting off by asking for
no draft tokens (`num_draft_tokens: 0`). The draft still processes every prompt, keeps its memory, and
batching and the prompt cache stay disabled. Verdicts compare with a process without a draft, so this changes
none of them; it is what a user pays for leaving the draft loaded.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autospec.backends.protocol import Completion, Cycle, Tokens
from autospec.backends.registry import Idles
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, RequestError, ServerDiedError
from autospec.measure.asking import Asking
from autospec.measure.log_ratios import signed_rank_estimate
from autospec.measure.measurements import DepthCosts, DepthRise
from autospec.predict.profile import Recording
from autospec.predict.recording import time_depth, typical_of
from autospec.prompts.suite import Prompt
from autospec.store.database import Store
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun, TuneContext, TuneStep
from autospec.tuning.launches import Launches
from autospec.tuning.resume import note_requests
from autospec.tuning.tasks import Task

__all__ = ["DepthTiming", "compare_idle_drafts", "forget_idle_drafts", "idle_draft_figures", "idle_draft_of"]

# The longer context has so many more tokens. With fewer than the least, noise would be larger than the rise.
_DEEPER_TOKENS = 512
_LEAST_DEEPER_TOKENS = 128
# Reading them may take this share of the search's time, for each model.
_READING_SHARE = 0.03
# In the store, beside the rise; alone and of this value where no rise could be timed.
_MORE = "more_tokens"
_REFUSED = 0


@dataclass(slots=True)
class DepthTiming:
    """What context adds to the passes of the models of one tune.

    Attributes:
        cells: Their requests get it.
        context: The tune's tools.
        stored: Name → what the store has under it.
        keep: Stores a value under a name.
        left_s: Seconds of the search that are left.
    """

    cells: Sequence[CellRun]
    context: TuneContext
    stored: Callable[[str], Mapping[str, Any] | None]
    keep: Callable[[str, dict[str, Any]], None]
    left_s: Callable[[], float]
    # By path of a draft; the empty path for the main model. With each the tokens by which the longer context was longer.
    _rises: dict[str, tuple[DepthRise, int]] = field(default_factory=dict)

    def known(self, draft: str, name: str) -> bool:
        """Whether the store has what a model's context costs. `draft` is its path, empty for the main model."""
        if (data := self.stored(_under(name))) is None:
            return False
        try:
            self._rises[draft] = DepthRise.from_json(data), int(data[_MORE])
        except (KeyError, TypeError, ValueError):
            return False  # of another version
        return True

    def time(
        self,
        draft: str,
        name: str,
        recordings: Sequence[Recording],
        near_ms: Mapping[int, float],
        read_ms: float,
        *,
        grows: Callable[[int, int], float] = lambda _near, _far: 1.0,
    ) -> Callable[[Tokens], None] | None:
        """How to time a model's batches behind a longer context; ``None`` if it would take too long, is known, or was given up.

        Args:
            draft: Its path, empty for the main model.
            name: Its name in the store.
            recordings: Their text makes the context; batches are timed behind the typical one.
            near_ms: Tokens in a batch → milliseconds behind the typical recording's prompt.
            read_ms: Milliseconds in which the model reads one token of a prompt.
            grows: The part of the timed cache that grows between two contexts of a server in use.
        """
        if draft in self._rises or (self.stored(_under(name)) or {}).get(_MORE) == _REFUSED:
            return None
        affordable = _READING_SHARE * self.left_s() * 1000.0 / read_ms if read_ms > 0.0 else _DEEPER_TOKENS
        tokens = int(min(affordable, _DEEPER_TOKENS))
        if self.known(draft, name) or len(near_ms) < 2 or tokens < _LEAST_DEEPER_TOKENS:
            return None

        def work(asked: Tokens) -> None:
            try:
                rise = time_depth(asked, recordings, near_ms, tokens)
            except RequestError:
                return  # the servers' context is too short for it: the answers in use are short, too
            near = len(typical_of(recordings).prompt_ids)
            part = grows(near, near + tokens)
            rise = DepthRise(part * rise.pass_ms, part * rise.token_ms)
            self._rises[draft] = rise, tokens
            self.keep(_under(name), {**rise.to_json(), _MORE: tokens})

        return work

    def give_up(self, draft: str, name: str) -> None:
        """Note that a launch for it did not time it, if so: no later tune launches for it."""
        if draft not in self._rises:
            self.keep(_under(name), {_MORE: _REFUSED})

    def note(self, recordings: Sequence[Recording]) -> None:
        """Give it to the requests of the cells; what an earlier tune gave them stays.

        Of a proof that was looked at, nothing changes: it stays for the requests that it began with.
        """
        if "" not in self._rises:
            return
        main, _ = self._rises[""]
        verifies = self.context.launches.cycle is Cycle.LLAMA_CPP
        rises = {
            path: main.with_draft(rise, verifies=verifies) if path else main
            for path, (rise, _) in self._rises.items()
        }
        reach = len(typical_of(recordings).prompt_ids) + min(more for _, more in self._rises.values())
        ids = {path: self.context.space.draft_id(path) for path in rises if path}
        timed = DepthCosts(statistics.median(r.token_ms for r in recordings), reach, rises, ids)
        for cell in self.cells:
            earlier = cell.shapes.depth
            proved = {d.draft for d in (cell.winner, cell.runner_up)} if cell.history.looks else set()
            if earlier is None and proved:
                continue
            new = {path: rise for path, rise in rises.items() if path not in proved}
            depth = timed
            if earlier is not None:
                rises_of_both = {**new, **earlier.rises}
                depth = replace(earlier, rises=rises_of_both, identities={**ids, **earlier.identities})
            cell.shapes = replace(cell.shapes, depth=depth)
            cell.history = note_requests(cell.study, cell.history, cell.shapes)
            self.context.pairing.stand_for(cell.cell.key, cell.shapes)


def _under(name: str) -> str:
    return f"{name}/depth"


# The store keeps the figures for all prompt types under this name (`Cell.launch_key`), and each study keeps those that its
# cell got: identity of the draft → `idle_draft_figures` and the time of the measurement.
_NOTE = "idle_draft"
# Five pairs are the least that give an interval at this level (1 in 2⁵ for each end).
_PAIRS = 5
_LEVEL = 0.05
# Share of the whole budget; at least one pair is measured.
_IDLE_SHARE = 0.08


def compare_idle_drafts(cells: Sequence[CellRun], context: TuneContext) -> None:
    """Compare the idle draft of every winner with off, and note the result in the cells' studies.

    The cells are of one main model. A daemon tunes the prompt types one after another: what an earlier tune measured of a
    draft is used.
    """
    asking, store = context.asking, context.store
    key = cells[0].cell.launch_key
    known = store.surveys(key, asking.protocol, _NOTE)
    _tell(cells, known)
    owners = {c.winner.draft: c for c in cells if c.winner.draft is not None}
    failing = {c.cell.key: context.pairing.failing(c.cell.key, OFF) for c in cells}
    answered = ([p for p in c.tune_prompts if p.id not in failing[c.cell.key]] for c in cells)
    prompts = [p for turn in zip_longest(*answered) for p in turn if p is not None]
    for draft, cell in owners.items():
        identity = cell.study.draft_id(cell.winner)
        if identity in known:
            continue
        name = Path(draft).name
        one_pair = [Task.of(cell.cell.key, prompt) for prompt in prompts[:1]]
        if not context.budget.allows(context.pairing.expected_s(one_pair, cell.winner)):
            context.progress.tell(
                f"The cost of keeping {name} loaded but unused was not measured: no time is left for it."
            )
            continue
        context.progress.step(TuneStep("idle", cell.winner, 1, 1, 0, 1, context.budget.until_end_s))
        try:
            figures = idle_draft_figures(context.launches, asking, cell.winner, prompts, context.budget)
        except BackendError as error:
            context.progress.tell(
                f"The cost of keeping {name} loaded but unused could not be measured: {error.message}"
            )
            continue
        if figures is not None:
            known[identity] = {**figures, "measured_at": time.time()}
            store.add_survey(key, asking.protocol, _NOTE, identity, known[identity])
            _tell(cells, known)
            change = 100 * (figures["ratio"] - 1)
            faster = "faster" if change > 0 else "slower"
            context.progress.tell(
                f"With {name} loaded but unused, requests are {abs(change):.1f} % {faster} than without a draft model."
            )


def forget_idle_drafts(cell: CellRun, store: Store, protocol: str) -> None:
    """Have drafts compared again, because the cell is measured again.

    Does nothing if another cell that is measured again had them compared since this cell got its figures.
    """
    told = (cell.study.noted(_NOTE) or {}).items()
    known = store.surveys(cell.cell.launch_key, protocol, _NOTE)
    if any(known.get(identity) == figures for identity, figures in told):
        store.forget_surveys(cell.cell.launch_key)


def idle_draft_of(cell: CellRun) -> dict[str, Any] | None:
    """The figures of the winner's draft; ``None`` if there are none."""
    if cell.winner.draft is None:
        return None
    known: dict[str, Any] = cell.study.noted(_NOTE) or {}
    return known.get(cell.study.draft_id(cell.winner))


def idle_draft_figures(
    launches: Launches, asking: Asking, drafting: Drafting, prompts: Sequence[Prompt], budget: Budget
) -> dict[str, Any] | None:
    """Compare a launch whose draft is loaded and not used with off, prompt by prompt, within 8 % of the budget.

    Returns:
        JSON values: ``ratio`` (speed of whole requests, idle draft ÷ off), ``interval`` (90 %, ``None`` for too few
        pairs), ``prompt_ratio`` and ``decode_ratio`` (the same for prompt processing and token generation), ``pairs``, and
        ``same_text``. ``None`` if the server cannot run without using its draft.
    """
    if not prompts or not isinstance(launches.drafted(drafting), Idles):
        return None
    until_s = budget.spent_s + _IDLE_SHARE * budget.total_s
    chosen = [prompts[i % len(prompts)] for i in range(_PAIRS)]
    pairs = _side_by_side if launches.resident == 2 else _by_turns
    found = list(pairs(_Sides(launches, asking, drafting), chosen, budget, until_s))
    estimate = signed_rank_estimate([math.log(off.wall_ms / idle.wall_ms) for off, idle in found], _LEVEL)
    ends = [round(v, 4) for v in estimate.interval] if math.isfinite(estimate.low) else None
    return {
        "ratio": round(estimate.ratio, 4),
        "interval": ends,
        "prompt_ratio": _ratio([(off.prompt_ms, idle.prompt_ms) for off, idle in found]),
        "decode_ratio": _ratio([(off.predicted_ms, idle.predicted_ms) for off, idle in found]),
        "pairs": len(found),
        "same_text": sum(off.text == idle.text for off, idle in found),
    }


@dataclass(frozen=True, slots=True)
class _Sides:
    launches: Launches
    asking: Asking
    drafting: Drafting

    def ask(self, prompt: Prompt, *, idle: bool) -> Completion:
        """Ask the launch whose draft is idle, or off; a server that dies is dropped."""
        server = self.launches.drafted(self.drafting) if idle else self.launches.off()
        try:
            asked = server.idle() if idle and isinstance(server, Idles) else server
            self.asking.wake(server.launch_id, asked.complete)
            answer = asked.complete(self.asking.request(prompt))
        except ServerDiedError:
            self.launches.drop(server)
            raise
        self.asking.worked(server.launch_id)
        return answer


def _side_by_side(
    sides: _Sides, prompts: Sequence[Prompt], budget: Budget, until_s: float
) -> Iterator[tuple[Completion, Completion]]:
    """Off and idle, pair by pair, as long as another one fits into the time."""
    begun_s = budget.spent_s
    for number, prompt in enumerate(prompts):
        if number and budget.spent_s + (budget.spent_s - begun_s) / number > until_s:
            return
        order = (True, False) if number % 2 == 0 else (False, True)  # the draft's launch runs already
        halves = {idle: sides.ask(prompt, idle=idle) for idle in order}
        yield halves[False], halves[True]


def _by_turns(
    sides: _Sides, prompts: Sequence[Prompt], budget: Budget, until_s: float
) -> Iterator[tuple[Completion, Completion]]:
    """Off and idle where only one launch fits: first all idle requests, then as many of off, which take as long."""
    idle: list[Completion] = []
    begun_s = budget.spent_s
    for count, prompt in enumerate(prompts, start=1):
        idle.append(sides.ask(prompt, idle=True))
        one_s = (budget.spent_s - begun_s) / count
        # Another idle request would be followed by count + 1 of off.
        if budget.spent_s + (count + 2) * one_s > until_s:
            break
    off = [sides.ask(prompt, idle=False) for prompt, _ in zip(prompts, idle, strict=False)]
    yield from zip(off, idle, strict=True)


def _tell(cells: Sequence[CellRun], known: dict[str, Any]) -> None:
    for cell in cells:
        cell.study.note(_NOTE, known)


def _ratio(times: Sequence[tuple[float, float]]) -> float | None:
    """Speed of the second ÷ the first, over all together."""
    off_ms, idle_ms = (sum(column) for column in zip(*times, strict=True))
    return round(off_ms / idle_ms, 4) if off_ms > 0 and idle_ms > 0 else None
