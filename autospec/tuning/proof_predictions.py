"""Predicts the winner's gain on every prompt of the proof, whether it was asked or not.

The proof's verdict uses these predictions as a control variate (`autospec.measure.log_ratios`). An answer that the proof has
measured without drafting already is a recording: its text is turned into tokens. A prompt that was not asked costs one
request without drafting: half of a pair, and no launch.

The same answers show whether the runner-up is faster than the winner on more prompts than the search had.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from autospec.backends.registry import EncodesText
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError
from autospec.measure.measurements import Measurement, Pair
from autospec.predict.profile import Recording
from autospec.prompts.suite import Prompt
from autospec.tuning.cell import CellRun, TuneContext
from autospec.tuning.profiling import RECORDING, Profiler

__all__ = ["ProofPredictions"]

# The text's tokens are those of the answer if their number agrees to within one: the end token has no text.
_MOST_LOST = 1


class ProofPredictions:
    """Predicts the proof's prompts of each cell, once for each winner."""

    def __init__(self, context: TuneContext) -> None:
        self._context = context
        self._asking = context.asking
        self._store = context.store
        self._found: dict[tuple[str, Drafting], dict[str, float]] = {}
        # Cell key → the store's recordings, read once until a `Profiler` adds some.
        self._recorded: dict[str, set[str]] = {}

    def known(self, cell: CellRun) -> dict[str, float]:
        """Prompt id → predicted ln(drafting ÷ off), as far as it was predicted before; asks nothing."""
        return self._found.get((cell.cell.key, cell.winner), {})

    def missing(self, cell: CellRun, pairs: Sequence[Pair]) -> list[Prompt]:
        """Prompts of a cell's proof whose answers are neither recorded nor measured; each costs a request."""
        recorded = self._recorded_of(cell) | {p.off.prompt_id for p in pairs if self._has_text(p.off)}
        return [p for p in cell.prove_prompts if p.id not in recorded]

    def predict(self, cell: CellRun, pairs: Sequence[Pair]) -> dict[str, float]:
        """Record what is missing, read it with the winner's draft, and replay it.

        Prompt id → predicted ln(drafting ÷ off); empty if nothing can be predicted.
        """
        place = (cell.cell.key, cell.winner)
        if place not in self._found:
            self.keep_answers(cell, pairs)
            drafts = [cell.winner.draft] if cell.winner.draft is not None else []
            predictor = Profiler(
                [cell],
                self._context,
                prompts=lambda c: c.prove_prompts,
                drafts=drafts,
                hurried=False,
            ).run()
            self._recorded.pop(cell.cell.key, None)
            found = {} if predictor is None else predictor.log_ratios(*place)
            # All or none: every prompt must be asked or predicted.
            wanted = {p.id for p in cell.prove_prompts} - self._context.pairing.failing(cell.cell.key, OFF)
            self._found[place] = found if found.keys() >= wanted else {}
        return self._found[place]

    def ahead(self, cell: CellRun, pairs_of: Callable[[Drafting], Sequence[Pair]]) -> float | None:
        """Expected ln(runner-up ÷ winner), mean over all prompts whose answers are recorded; ``None`` if it is unknown.

        Nothing is recorded for it, but a draft that has not read these answers reads them. `pairs_of` returns a drafting's counted
        pairs, which correct its costs.

        Raises:
            BackendError: A server failed.
        """
        key, both = cell.cell.key, (cell.winner, cell.runner_up)
        self.keep_answers(cell, pairs_of(cell.winner))
        recorded = self._recorded_of(cell)
        prompts = [p for p in (*cell.tune_prompts, *cell.prove_prompts) if p.id in recorded]
        if not prompts:
            return None
        predictor = Profiler(
            [cell],
            self._context,
            prompts=lambda _: prompts,
            drafts={d.draft for d in both if d.draft is not None},
            hurried=False,
        ).run()
        self._recorded.pop(key, None)
        if predictor is None:
            return None
        for drafting in both:
            predictor.observe(drafting, pairs_of(drafting))
        if not all(map(predictor.trusts, both)):
            return None
        winner, runner_up = (predictor.log_ratios(key, d) for d in both)
        common = winner.keys() & runner_up.keys()
        return statistics.fmean(runner_up[p] - winner[p] for p in common) if common else None

    def _recorded_of(self, cell: CellRun) -> set[str]:
        """Prompts whose answers are recorded."""
        key = cell.cell.key
        if key not in self._recorded:
            self._recorded[key] = set(self._store.surveys(key, self._asking.protocol, RECORDING))
        return self._recorded[key]

    def _has_text(self, half: Measurement) -> bool:
        return self._asking.longest_answer(half.prompt_id) is not None

    def keep_answers(self, cell: CellRun, pairs: Sequence[Pair]) -> None:
        """Keep measured answers as recordings, if their text can be turned into their tokens."""
        newest = {p.off.prompt_id: p.off for p in pairs if self._has_text(p.off)}
        tokens = self._context.launches.off().tokens
        if not isinstance(tokens, EncodesText):
            return
        recorded = self._recorded_of(cell)
        for prompt in cell.prove_prompts:
            half = newest.get(prompt.id)
            text = self._asking.longest_answer(prompt.id)
            if half is None or text is None or prompt.id in recorded:
                continue
            request = self._asking.request(prompt)
            try:
                ids = tokens.encode_text(text)
                prompt_ids = tokens.encode(request)
            except BackendError:
                continue  # a request of its own records it later
            if not 0 <= half.predicted_tokens - len(ids) <= _MOST_LOST:
                continue
            recording = Recording(
                prompt_id=prompt.id,
                prompt_ids=prompt_ids,
                answer_ids=ids,
                max_tokens=request.max_tokens,
                ended=half.finish_reason != "length",
                prompt_ms=half.prompt_ms,
                predicted_ms=half.predicted_ms,
                wall_ms=half.wall_ms,
            )
            self._store.add_survey(
                cell.cell.key, self._asking.protocol, RECORDING, prompt.id, recording.to_json()
            )
            recorded.add(prompt.id)
