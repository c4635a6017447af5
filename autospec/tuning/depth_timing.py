"""Times what context adds to the passes of the main model and of each draft, and gives it to the requests of the cells.

Batches are timed behind a recorded prompt already. Here they are timed behind a longer context too: the difference is what a
token costs more further on in an answer (`autospec.measure.depth_costs`). A sliding window or a state costs the same at any
depth, so models with one are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autospec.backends.protocol import Cycle, Tokens
from autospec.errors import RequestError
from autospec.measure.depth_costs import DepthCosts, DepthRise
from autospec.predict.profile import Recording
from autospec.predict.recording import time_depth, typical_of
from autospec.tuning.cell import CellRun, TuneContext
from autospec.tuning.resume import note_requests

__all__ = ["DepthTiming"]

# The longer context has so many more tokens. With fewer than the least, noise would be larger than the rise.
_DEEPER_TOKENS = 512
_LEAST_DEEPER_TOKENS = 128
# Reading them may take this share of the search's time, for each model.
_SHARE = 0.03
# In the store, beside the rise.
_MORE = "more_tokens"


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
    ) -> Callable[[Tokens], None] | None:
        """How to time a model's batches behind a longer context; ``None`` if it would take too long, or is known.

        Args:
            draft: Its path, empty for the main model.
            name: Its name in the store.
            recordings: Their text makes the context; batches are timed behind the typical one.
            near_ms: Tokens in a batch → milliseconds behind the typical recording's prompt.
            read_ms: Milliseconds in which the model reads one token of a prompt.
        """
        affordable = _SHARE * self.left_s() * 1000.0 / read_ms if read_ms > 0.0 else _DEEPER_TOKENS
        tokens = int(min(affordable, _DEEPER_TOKENS))
        if len(near_ms) < 2 or tokens < _LEAST_DEEPER_TOKENS or self.known(draft, name):
            return None

        def work(asked: Tokens) -> None:
            try:
                rise = time_depth(asked, recordings, near_ms, tokens)
            except RequestError:
                return  # the servers' context is too short for it: the answers in use are short, too
            self._rises[draft] = rise, tokens
            self.keep(_under(name), {**rise.to_json(), _MORE: tokens})

        return work

    def note(self, recordings: Sequence[Recording]) -> None:
        """Give it to the requests of the cells; what an earlier tune gave them stays."""
        if "" not in self._rises:
            return
        main, _ = self._rises[""]
        verifies = self.context.launches.cycle is Cycle.LLAMA_CPP
        rises = {
            path: main.with_draft(rise, verifies=verifies) if path else main
            for path, (rise, _) in self._rises.items()
        }
        reach = len(typical_of(recordings).prompt_ids) + min(more for _, more in self._rises.values())
        timed = DepthCosts(statistics.median(r.token_ms for r in recordings), reach, rises)
        for cell in self.cells:
            earlier = cell.shapes.depth
            depth = timed if earlier is None else replace(earlier, rises={**rises, **earlier.rises})
            cell.shapes = replace(cell.shapes, depth=depth)
            cell.history = note_requests(cell.study, cell.history, cell.shapes)
            self.context.pairing.stand_for(cell.cell.key, cell.shapes)


def _under(name: str) -> str:
    return f"{name}/depth"
