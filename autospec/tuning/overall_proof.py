"""The last step of a tune: the overall answer is chosen, the pairs that it lacks are asked, and it is stored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autospec.backends.protocol import Backend
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import BackendError, UnsupportedError
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.measurements import TRAFFIC_S, Phase
from autospec.prompts.suite import Half, Prompt
from autospec.recommendations import (
    Verdict,
)
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun, TuneSession, TuneStep
from autospec.tuning.launch_scatter import known_scatter
from autospec.tuning.launches import Launches
from autospec.tuning.overall import Known, Overall, choose, mix_of, names_of
from autospec.tuning.overall_answer import (
    earlier_looks,
    known_types,
    looks_json,
    noted_looks,
    requests_of,
    to_recommendation,
)
from autospec.tuning.paired_runner import MOST_FAILING, Failing, PairedRunner
from autospec.tuning.proof import of_round
from autospec.tuning.resume import EPOCH, FAILED_BEFORE, with_failing
from autospec.tuning.tasks import Task

__all__ = ["TRAFFIC_S", "OverallProof"]

# A disturbed pair is measured again at most so often, as in the cells' proofs.
_REPEATS = 2


class OverallProof:
    """Finds the overall answer at the end of a tune, asks the pairs that it lacks, and stores it.

    Args:
        session: The tune.
        cells: Its cells: only they can be asked.
        backend: Launches the servers.
        budget: Its budget; what is left of it may be spent.
        resident: How many launches fit into memory; asked only before one is made.
        step: Shown what is measured.
        failing: The prompts that the tune has found to fail.
        launch_s: Expected seconds of a launch.
    """

    def __init__(
        self,
        session: TuneSession,
        cells: Sequence[CellRun],
        backend: Backend,
        budget: Budget,
        *,
        resident: Callable[[], int],
        step: Callable[[TuneStep], None],
        failing: Failing,
        launch_s: float = 0.0,
    ) -> None:
        self._session = session
        self._cells = {c.prompt_type: c for c in cells}
        self._cell = cells[0].cell
        self._backend = backend
        self._budget = budget
        self._resident = resident
        self._step = step
        self._failing = failing
        self._launch_s = launch_s
        self._rule = session.request.definition.rule
        # Draftings and rounds of a type that were asked here, even if some pairs did not count.
        self._asked: set[tuple[Drafting, PromptType, int]] = set()
        # Looks of earlier tunes as they are stored, and the rounds of the last look that did not enable a drafting.
        self._noted: list[dict[str, Any]] = []
        self._looked: dict[Drafting, int] | None = None
        self._kept: dict[Drafting, int] = {}  # those of `_looked` that are stored

    def run(self) -> None:
        """Choose, measure what is missing while the budget lasts, and store the answer."""
        answer = self._choose()
        if not answer.known:
            return
        if self._can_measure(answer):
            with self._pairing() as pairing:
                try:
                    while self._can_measure(answer):
                        self._keep_looks(answer)
                        if not self._measure(answer, pairing):
                            break
                        answer = self._choose()
                finally:
                    self._keep_failing(pairing)
            answer = self._choose()  # what fails counts even where there is no pair
        self._save(answer)

    def _keep_looks(self, answer: Overall) -> None:
        """Store the answer if it has new looks: if the tune is killed while it measures on, no later tune may take them again."""
        if self._looked != self._kept:
            self._kept = dict(self._looked or {})
            self._save(answer)

    def _keep_failing(self, pairing: PairedRunner) -> None:
        """Keep the prompts that were found to fail with the types' own recommendations: other mixes are answered from them."""
        store, cells = self._session.store, {c.cell.key: c for c in self._cells.values()}
        for stored in store.recommendations(cell_keys=list(cells)):
            cell = cells[stored.cell_key]
            failing = pairing.all_failing(stored.cell_key)
            failing[OFF] = failing.get(OFF, frozenset()) & {p.id for p in cell.prove_prompts}
            new = with_failing(stored.recommendation, failing, store.drafts)
            if new.verdict is not stored.recommendation.verdict:
                new = cell.reopened(new)
            if new is not stored.recommendation:
                store.save_recommendation(new, self._session.hardware, cell.cell)

    def _choose(self) -> Overall:
        request, store = self._session.request, self._session.store
        keys = [self._key(kind) for kind in PromptType]
        found = [
            s
            for s in store.recommendations(cell_keys=keys)
            if s.recommendation.evidence.get("protocol") in (None, request.protocol)
        ]
        prompts = {
            kind: len(own) for kind in request.suite.types() if (own := request.suite.of(kind, Half.PROVE))
        }
        known = known_types(store, found, prompts)
        for kind, figures in known.items():
            for prompt_id in figures.failing.get(OFF, ()):  # it is not asked again
                self._failing.setdefault((self._key(kind), OFF), {}).setdefault(prompt_id, FAILED_BEFORE)
        known = {kind: self._with_failing(kind, figures) for kind, figures in known.items()}
        samples = store.samples(
            since=time.time() - TRAFFIC_S, model=request.model.name, backend=self._cell.build.backend
        )
        mix = mix_of(known, samples, request.mix)
        compared = " ".join((request.model.name, *request.args))
        scatter = known_scatter(store, self._session.hardware.id, self._cell.build, compared)
        if self._looked is None:
            earlier = store.overall_answers([self._cell.launch_key])
            self._noted = noted_looks((s.recommendation for s in earlier), known)
            self._looked = earlier_looks(self._noted, known, store.drafts)
            self._kept = dict(self._looked)
        answer = choose(known, mix, self._rule, scatter, looked=self._looked)
        for c in answer.candidates:
            if c.decision is not None and c.decision.verdict is not Verdict.ENABLE:
                self._looked[c.drafting] = max(c.look, self._looked.get(c.drafting, 0))
        return answer

    def _with_failing(self, kind: PromptType, known: Known) -> Known:
        """With what this tune has found to fail, too."""
        found = dict(known.failing)
        prove = {p.id for p in self._cells[kind].prove_prompts} if kind in self._cells else set[str]()
        for (key, side), reasons in self._failing.items():
            if key == self._key(kind):
                ids = reasons.keys() & prove if side.is_off else reasons.keys()
                found[side] = found.get(side, frozenset()) | ids
        return dataclasses.replace(known, failing=found)

    def _key(self, kind: PromptType) -> str:
        return dataclasses.replace(self._cell, prompt_type=kind).key

    def _can_measure(self, answer: Overall) -> bool:
        """Whether this tune may ask every type that lacks pairs of the drafting that is to be measured."""
        if answer.next.is_off:
            return False
        done = self._rounds(answer)
        target = min(done.values()) + 1
        asked = [kind for kind, rounds in done.items() if rounds < target]
        # A type that was proven under another protocol, and whose proof had no time now, is in the mix without a result: pairs of it would
        # not count.
        return target <= self._rule.looks[-1] and all(k in answer.known and self._answers(k) for k in asked)

    def _answers(self, kind: PromptType) -> bool:
        """Whether a type can be asked here: off does not fail for too many of its prompts."""
        return kind in self._cells and len(self._failing.get((self._key(kind), OFF), ())) <= MOST_FAILING

    def _rounds(self, answer: Overall) -> dict[PromptType, int]:
        """The complete rounds that each type of the mix has of the drafting that is to be measured."""
        return {kind: self._rounds_of(answer, kind) for kind in answer.mix.shares}

    def _rounds_of(self, answer: Overall, kind: PromptType) -> int:
        known = answer.known.get(kind)
        pairs = () if known is None else known.pairs.get(answer.next, ())
        seen = {(p.off.round, p.off.prompt_id) for p in pairs}
        if kind not in self._cells:
            return len({round_ for round_, _ in seen})
        fails = frozenset[str]() if known is None else known.failing.get(OFF, frozenset())
        done = 0
        while done < self._rule.looks[-1]:
            wanted = {(done + 1, p.id) for p in self._prompts(kind, done + 1) if p.id not in fails}
            if not (wanted <= seen or (answer.next, kind, done + 1) in self._asked):
                break
            done += 1
        return done

    def _prompts(self, kind: PromptType, round_: int) -> Sequence[Prompt]:
        per_round = self._session.request.definition.prompts_per_round
        return of_round(self._cells[kind].prove_prompts, round_, per_round)

    def _measure(self, answer: Overall, pairing: PairedRunner) -> bool:
        """One round of the types that have the fewest. Returns whether it found anything new."""
        drafting, done = answer.next, self._rounds(answer)
        round_ = min(done.values()) + 1
        # The types that take most of the time come first, if the budget is not enough for all.
        kinds = sorted((k for k in done if done[k] < round_), key=lambda k: -answer.time_shares[k])
        tasks = []
        for kind in kinds:
            key = self._cells[kind].cell.key
            pairing.note_stored(key, drafting)
            pairing.note_stored(key, answer.known[kind].recommendation.tried)
            tasks.append([Task.of(key, prompt) for prompt in self._prompts(kind, round_)])
        first = pairing.missing(tasks[0], drafting, Phase.PROVE, round_)
        if not self._budget.allows(pairing.expected_s(first, drafting)):
            return False
        self._session.tell(
            f"All prompt types together: measuring {drafting.label} for {names_of(kinds)} prompts."
        )
        everything = [task for own in tasks for task in own]
        moved, last = False, self._rule.looks[-1]
        try:
            block = pairing.block(
                everything,
                drafting,
                Phase.PROVE,
                round_,
                repeats=_REPEATS,
                budget=self._budget,
                on_done=lambda done: self._step(
                    TuneStep(
                        "overall", drafting, round_, last, done, len(everything), self._budget.until_end_s
                    )
                ),
            )
            for measured in block:
                moved = moved or not measured.disturbed
        except BackendError as error:
            self._session.tell(
                f"{drafting.label}: it could not be measured for all prompt types. {error.message}"
            )
            return False
        self._asked |= {(drafting, kind, round_) for kind in kinds}
        return moved

    @contextmanager
    def _pairing(self) -> Iterator[PairedRunner]:
        """Servers of their own, on which the pairs are measured."""
        request, store = self._session.request, self._session.store
        found = store.recommendations(cell_keys=[c.cell.key for c in self._cells.values()])
        evidence = {s.cell_key: s.recommendation.evidence for s in found}
        shapes = {key: requests_of(told, store) for key, told in evidence.items()}
        with Launches(
            self._backend,
            str(request.model.path),
            request.settings(),
            resident=self._resident(),
            tell=self._session.tell,
            usual_s=self._launch_s,
        ) as launches:
            watch = StateWatch(lambda: launches.pids)
            yield PairedRunner(
                launches,
                Asking(request.protocol, request.definition.max_tokens, request.temperature, watch),
                store,
                since={key: float(e.get(EPOCH) or 0.0) for key, e in evidence.items()},
                tell=self._session.tell,
                budget_s=self._budget.total_s,
                shapes={key: own for key, own in shapes.items() if own is not None},
                failing=self._failing,
                on_failing=self._note_failing,
            )

    def _note_failing(self, key: str, drafting: Drafting, reasons: Mapping[str, str]) -> None:
        next(c for c in self._cells.values() if c.cell.key == key).note_failing(drafting, reasons)

    def _save(self, answer: Overall) -> None:
        request = self._session.request
        args: Sequence[str] = ()
        command: Sequence[str] = ()
        try:
            command = self._backend.command(str(request.model.path), answer.tried, request.settings())
            args = self._backend.drafting_args(str(request.model.path), answer.tried, request.settings())
        except UnsupportedError:
            pass  # the model has no drafting at all
        r = to_recommendation(answer, self._rule, args=args, command=command)
        drafts = self._session.store.drafts
        looks = looks_json(self._looked or {}, self._noted, answer, drafts=drafts, protocol=request.protocol)
        r = dataclasses.replace(r, evidence={**r.evidence, "study": request.definition.name, "looks": looks})
        self._session.store.save_overall(r, self._session.hardware, self._cell.launch_key)
