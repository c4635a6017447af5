"""Predicts the winner's gain on every prompt of the proof, whether it was asked or not.

The proof's verdict uses these predictions as a control variate (`autospec.measure.log_ratios`). An answer that the proof has
measured without drafting already is a recording: its text is turned into tokens. A prompt that was not asked costs one
request without drafting: half of a pair, and no launch.

The same answers show whether the runner-up is faster than the winner on more prompts than the search had.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence

from autospec.backends.registry import EncodesText
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError
from autospec.hardware.state import MachineState
from autospec.measure.log_ratios import by_prompt, of_pairs
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.predict.predictor import Predictor
from autospec.predict.profile import Recording
from autospec.prompts.suite import Prompt
from autospec.tuning.cell import CellRun, TuneContext
from autospec.tuning.forecast import WORTH_A_RIVAL, chance_above
from autospec.tuning.profiling import RECORDING, Profiler, protocol_of

__all__ = ["ProofPredictions"]

# The text's tokens are those of the answer if their number agrees to within one: the end token has no text.
_MOST_LOST = 1
# A rival that the search did not name is worth a proof from this chance on that it is ahead.
_LIKELY = 0.75


class ProofPredictions:
    """Predicts the proof's prompts of each cell, once for each winner."""

    def __init__(self, context: TuneContext) -> None:
        self._context = context
        self._asking = context.asking
        self._store = context.store
        self._found: dict[tuple[str, Drafting], dict[str, float]] = {}
        # Cell key and protocol → the store's recordings, read once until a `Profiler` adds some.
        self._recorded: dict[tuple[str, str], set[str]] = {}

    def known(self, cell: CellRun) -> dict[str, float]:
        """Prompt id → predicted ln(drafting ÷ off), if it was predicted before; asks nothing.

        All or none: every prompt must be asked or predicted. One that turns out to fail without drafting needs no prediction.
        """
        found = self._found.get((cell.cell.key, cell.winner), {})
        wanted = {p.id for p in cell.prove_prompts} - self._context.pairing.failing(cell.cell.key, OFF)
        return found if found.keys() >= wanted else {}

    def missing(self, cell: CellRun, pairs: Sequence[Pair]) -> list[Prompt]:
        """Prompts of a cell's proof whose answers are neither recorded nor measured; each costs a request."""
        recorded = self._recorded_of(cell, pairs) | {p.off.prompt_id for p in pairs if self._has_text(p.off)}
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
            self._recorded.clear()
            self._found[place] = {} if predictor is None else predictor.log_ratios(*place)
        return self.known(cell)

    def ahead(self, cell: CellRun) -> float | None:
        """Expected ln(runner-up ÷ winner), mean over all prompts whose answers are recorded; ``None`` if it is unknown.

        Both must be `predictable`. Nothing is recorded for it, but a draft that has not read these answers reads them.

        Raises:
            BackendError: A server failed.
        """
        both = (cell.winner, cell.runner_up)
        predictor = self._of_recorded(cell, {d.draft for d in both if d.draft is not None}, both)
        if predictor is None or not all(map(predictor.trusts, both)):
            return None
        winner, runner_up = (predictor.log_ratios(cell.cell.key, d) for d in both)
        common = winner.keys() & runner_up.keys()
        return statistics.fmean(runner_up[p] - winner[p] for p in common) if common else None

    def free_rival(self, cell: CellRun, free: Sequence[Drafting]) -> tuple[float, Drafting] | None:
        """Expected ln(drafting ÷ winner) on the proof's prompts, of the one of `free` that is best on the search's; ``None`` if unlikely.

        The proof's prompts must not choose it, because they are to prove it. Its predictions are compared with the winner's measured pairs,
        prompt by prompt.

        Raises:
            BackendError: A server failed.
        """
        key = cell.cell.key
        tried = [d for d in cell.trial_values if d.mode.draft_free]
        predictor = self._of_recorded(cell, set(), tried)
        if predictor is None:
            return None
        searched = {prompt.id for prompt in cell.tune_prompts}
        logs = {d: predictor.log_ratios(key, d) for d in free if predictor.trusts(d)}
        on_search = {
            d: statistics.fmean(own)
            for d, found in logs.items()
            if (own := [log for prompt, log in found.items() if prompt in searched])
        }
        if not on_search:
            return None
        rival = max(on_search, key=lambda d: (on_search[d], d.key))
        pairs = self._context.pairing.known(key, cell.winner, Phase.PROVE)
        measured = by_prompt(of_pairs(pairs))
        ahead = [logs[rival][p] - statistics.median(own) for p, own in measured.items() if p in logs[rival]]
        return (statistics.fmean(ahead), rival) if chance_above(WORTH_A_RIVAL, ahead) >= _LIKELY else None

    def _of_recorded(
        self, cell: CellRun, drafts: Collection[str], observed: Iterable[Drafting]
    ) -> Predictor | None:
        """Predicts from all recorded answers of a cell, with costs that the pairs of `observed` have corrected."""
        pairs = self._pairs_of(cell, cell.winner)
        self.keep_answers(cell, pairs)
        recorded = self._recorded_of(cell, pairs)
        prompts = [p for p in (*cell.tune_prompts, *cell.prove_prompts) if p.id in recorded]
        if not prompts:
            return None
        predictor = Profiler(
            [cell], self._context, prompts=lambda _: prompts, drafts=drafts, hurried=False
        ).run()
        self._recorded.clear()
        if predictor is not None:
            for drafting in observed:
                predictor.observe(drafting, self._pairs_of(cell, drafting))
        return predictor

    def _pairs_of(self, cell: CellRun, drafting: Drafting) -> list[Pair]:
        """A drafting's counted pairs, which correct its costs."""
        known = self._context.pairing.known
        return [
            pair for phase in (Phase.SEARCH, Phase.PROVE) for pair in known(cell.cell.key, drafting, phase)
        ]

    def _recorded_of(self, cell: CellRun, pairs: Sequence[Pair]) -> set[str]:
        """Prompts whose answers are recorded, by a machine in the state of the newest pair."""
        newest = max((p.off for p in pairs), key=lambda off: off.started_at, default=None)
        return self._recorded_under(cell, self._asking.protocol if newest is None else self._protocol(newest))

    def _recorded_under(self, cell: CellRun, protocol: str) -> set[str]:
        place = (cell.cell.key, protocol)
        if place not in self._recorded:
            self._recorded[place] = set(self._store.surveys(*place, RECORDING))
        return self._recorded[place]

    def _protocol(self, half: Measurement) -> str:
        return protocol_of(self._asking.protocol, MachineState.from_json(half.machine))

    def _has_text(self, half: Measurement) -> bool:
        return self._asking.longest_answer(half.prompt_id) is not None

    def keep_answers(self, cell: CellRun, pairs: Sequence[Pair]) -> None:
        """Keep measured answers as recordings, if their text can be turned into their tokens."""
        newest = {p.off.prompt_id: p.off for p in pairs if self._has_text(p.off)}
        tokens = self._context.launches.off().tokens
        if not isinstance(tokens, EncodesText):
            return
        for prompt in cell.prove_prompts:
            half = newest.get(prompt.id)
            text = self._asking.longest_answer(prompt.id)
            if half is None or text is None:
                continue
            protocol = self._protocol(half)
            recorded = self._recorded_under(cell, protocol)
            if prompt.id in recorded:
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
            self._store.add_survey(cell.cell.key, protocol, RECORDING, prompt.id, recording.to_json())
            recorded.add(prompt.id)
