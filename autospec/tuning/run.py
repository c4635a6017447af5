"""`autospec tune`: from a main model to recommendations. Puts the parts together and keeps what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import psutil

from autospec.backends.optional import OnDevices
from autospec.backends.placement import Weights, Where, room_bytes, weights_of
from autospec.backends.protocol import Backend, LaunchSettings
from autospec.catalog.candidates import Candidate, undraftable
from autospec.cells import Hardware
from autospec.drafting import OFF
from autospec.errors import AutospecError, StoreError, UnsupportedError
from autospec.hardware.gpu import Device, devices_here
from autospec.hardware.machine_lock import machine_lock
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.measurements import Phase
from autospec.recommendations import LIKELY, Recommendation, Status, Verdict
from autospec.store.database import Store, open_store
from autospec.store.locks import CellLocks
from autospec.tuning import resume
from autospec.tuning.budget import Budget
from autospec.tuning.build_recommendation import Cost, conclude, likely_of, nothing_to_try
from autospec.tuning.cell import CellRun, Progress
from autospec.tuning.context import TuneContext
from autospec.tuning.forecast import Forecast
from autospec.tuning.idle_draft import compare_idle_drafts, idle_draft_of
from autospec.tuning.launch_scatter import LaunchComparing, known_scatter
from autospec.tuning.launches import Launches, resident_launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.profiling import Profiler
from autospec.tuning.proof import Proof
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.request import TuneRequest, judged_drafts, space_for, why_nothing
from autospec.tuning.resume import (
    EPOCH,
    REQUESTS,
    TuneSession,
    drafts_of,
    note_choice,
    prediction_of,
    resting_on,
)
from autospec.tuning.search import Search
from autospec.tuning.space import Space
from autospec.tuning.study import OPENED
from autospec.tuning.winners import choose_winners

__all__ = ["Tuning"]


@dataclass(slots=True)
class Tuning:
    """One tune. `run` does it all; what is known is stored at every step and again when it ends, however it ends.

    Attributes:
        request: What is to be tuned.
        backend: Starts the servers.
        hardware: This machine.
        progress: Who watches.
    """

    request: TuneRequest
    backend: Backend
    hardware: Hardware
    progress: Progress
    _cost: Cost = field(default_factory=Cost)
    _wanted: list[str] = field(default_factory=list)
    _drafts: dict[str, str] | None = None
    _epochs: dict[str, float] = field(default_factory=dict)

    def run(self) -> list[Recommendation]:
        """Search, prove, store.

        Returns:
            The recommendation of every cell asked for, in the order of `PromptType`; also of those that were
            proven before.

        Raises:
            BusyError: Another tune holds the machine, or other machines hold all of its cells.
            AutospecError: The server does not even start without drafting, or the database cannot be used.
            KeyboardInterrupt: Passed on after everything known has been stored.
        """
        with machine_lock(f"tune {self.request.model.name}"), ExitStack() as stack:
            store = open_store(self.request.storage, self.progress.tell)
            stack.callback(store.close)
            locks = stack.enter_context(CellLocks(self.request.storage))
            self._run(TuneSession(self.request, self.hardware, store, locks, self.progress.tell))
        return self.known()

    def known(self) -> list[Recommendation]:
        """What the store says of the cells that `run` was asked for; for whoever interrupted it."""
        store = open_store(self.request.storage)
        try:
            stored = {s.cell_key: s.recommendation for s in store.recommendations(cell_keys=self._wanted)}
        finally:
            store.close()
        return [stored[key] for key in self._wanted if key in stored]

    def _run(self, opening: TuneSession) -> None:
        budget = Budget(self.request.budget_s or self.request.definition.budget_s)
        capabilities = self.backend.capabilities()
        fitting = self._fitting()
        self._drafts = drafts_of(fitting, named=bool(self.request.drafts))
        space = space_for(self.request.definition, capabilities, fitting)
        cells = opening.cells(capabilities, space)
        self._wanted = [c.cell.key for c in cells]
        open_cells = opening.to_measure(cells)
        refusal = self._refusal(space) if open_cells else ""
        if open_cells and (refusal or not space.arms):
            why = refusal or why_nothing(self.request.model, capabilities, fitting)
            verdict = Verdict.DISABLE if refusal else Verdict.UNDECIDED
            for cell in open_cells:
                self._save(opening.store, nothing_to_try(cell, why, verdict), cell)
        elif open_cells:
            self._tune(opening, open_cells, space, budget, fitting)

    def _refusal(self, space: Space) -> str:
        """Why no drafting can be used with this model at all, found out before anything starts; empty where one can.

        Raises:
            UnsupportedError: The user's own settings cannot be used.
        """
        model, settings = self.request.model, self.request.settings()
        self.backend.command(str(model.path), OFF, settings)
        if why := undraftable(model):
            return f"{model.name} {why}."
        for drafting in space.leaders():
            try:
                self.backend.command(str(model.path), drafting, settings)
            except UnsupportedError as error:
                why = error.message
            else:
                return ""
        return why

    def _tune(
        self,
        opening: TuneSession,
        cells: list[CellRun],
        space: Space,
        budget: Budget,
        fitting: Sequence[Candidate],
    ) -> None:
        request, store = self.request, opening.store
        settings = request.settings()
        build = self.backend.capabilities().build
        # Launches of another model, or of this one with other settings, may differ more or less.
        compared = " ".join((request.model.name, *request.args))
        comparing = LaunchComparing(
            store,
            self.hardware.id,
            build,
            model=compared,
            max_tokens=request.definition.max_tokens,
            left_s=lambda: budget.left_s,
            tell=self.progress.tell,
        )
        with Launches(
            self.backend,
            str(request.model.path),
            settings,
            resident=self._resident(fitting),
            on_renewed=comparing,
            tell=self.progress.tell,
        ) as launches:
            watch = StateWatch(lambda: launches.pids)
            asking = Asking(request.protocol, request.definition.max_tokens, request.temperature, watch)
            self._epochs = opening.begin(cells)
            pairing = PairedRunner(
                launches,
                asking,
                store,
                since=self._epochs,
                tell=self.progress.tell,
                budget_s=budget.total_s,
                shapes={c.cell.key: c.shapes for c in cells},
            )
            context = TuneContext(request.definition, space, launches, pairing, budget, self.progress)

            def keep(cell: CellRun) -> None:
                self._cost.seconds = budget.spent_s
                self._cost.launches = launches.count
                self._cost.launch_seconds = launches.seconds
                self._save(store, self._conclusion(cell, pairing, settings), cell)

            with self._keeping(cells, keep, store):
                # Without off there is nothing to compare with: its failure ends the tune before any trial.
                launches.off()
                unsearched = [c for c in cells if not c.searched]
                if unsearched:
                    self._search(unsearched, context, asking, store)
                cells = [c for c in cells if not self._settle(store, c)]
                if not cells:
                    return
                per_request = self.backend.capabilities().drafting_per_request
                if per_request:
                    compare_idle_drafts(cells, context, asking, store)
                Proof(
                    # What was proven stays while there was no time to try the drafts that it was opened for.
                    [c for c in cells if c.searched or c.stands is None],
                    context,
                    keep,
                    predictions=self._predictions(context, asking, store),
                    scatter=lambda: known_scatter(store, self.hardware.id, build, compared),
                ).run()
                if per_request and (turned := [c for c in cells if c.enabled and c.winner == c.runner_up]):
                    # It was not known before that their runners-up would be used.
                    compare_idle_drafts(turned, context, asking, store)
                    for cell in turned:
                        keep(cell)

    @contextmanager
    def _keeping(
        self, cells: Sequence[CellRun], keep: Callable[[CellRun], None], store: Store
    ) -> Iterator[None]:
        """However the tune ends, what is known of every cell is stored, whatever becomes of the others'.

        Raises:
            AutospecError: The first thing that could not be stored, where the tune itself ended well.
        """
        failed: list[AutospecError] = []

        def attempt(step: Callable[[], None]) -> None:
            try:
                step()
            except AutospecError as error:
                failed.append(error)

        try:
            yield
        finally:
            _guess_winners(cells)
            for cell in cells:
                if not cell.decided:
                    attempt(partial(keep, cell))
                if self.request.forget_answers:
                    attempt(partial(store.forget_surveys, cell.cell.key))
        if failed:
            raise failed[0]

    def _save(self, store: Store, recommendation: Recommendation, cell: CellRun) -> None:
        rested = resting_on(
            recommendation,
            cell.cell,
            self._drafts,
            draft_id=cell.study.draft_id(recommendation.tried),
            user_settings=self.request.args,
        )
        resume.save(store, rested, self.hardware, cell.cell, cell.stands)
        if cell.opened_for and recommendation.status is Status.PROVEN:
            cell.study.note(OPENED, None)

    def _settle(self, store: Store, cell: CellRun) -> bool:
        """Whether the search for further drafts has found what was proven before: no second proof of the same pairs."""
        if not cell.searched or cell.stands is None or not resume.settles(cell.winner, cell.stands):
            return False
        proof, cell.stands = cell.stands, None
        self._save(store, proof, cell)
        stays = "drafting" if proof.tried.is_off else proof.tried.label
        self.progress.tell(
            f"{cell.prompt_type}: {' and '.join(cell.opened_for)} did not beat {stays}; what was proven stays."
        )
        return True

    def _search(self, cells: Sequence[CellRun], context: TuneContext, asking: Asking, store: Store) -> None:
        forecast = None
        if self.request.definition.predict and (predictor := Profiler(cells, context, asking, store).run()):
            threshold = self.request.definition.rule.threshold
            forecast = Forecast(predictor, context.space, threshold, self.progress.tell)
        search = Search(cells, context, forecast)
        search.run()
        choose_winners(cells, context.space, context.definition.rule.threshold, forecast)
        for cell in cells:
            # Without time for a single trial nothing was chosen: the next tune searches.
            untried = cell.news - {d.draft for d in cell.trial_values}
            cell.searched = not (search.out_of_time and (cell.winner.is_off or untried))
        note_choice([c for c in cells if c.searched], forecast)

    def _predictions(self, context: TuneContext, asking: Asking, store: Store) -> ProofPredictions | None:
        return ProofPredictions(context, asking, store) if self.request.definition.predict else None

    def _conclusion(self, cell: CellRun, pairing: PairedRunner, settings: LaunchSettings) -> Recommendation:
        if cell.searched and cell.winner.is_off:
            failed = [t.reason for t in cell.study.tried() if t.value is None and t.reason]
            why = f" The last one said: {failed[-1]}" if failed else ""
            return nothing_to_try(cell, f"No drafting could be measured.{why}")
        model_path = str(self.request.model.path)
        try:
            command = self.backend.command(model_path, cell.winner, settings)
            arguments = self.backend.drafting_args(model_path, cell.winner, settings)
        except UnsupportedError:
            command = arguments = ()
        proof, search = (pairing.known(cell.cell.key, cell.winner, p) for p in (Phase.PROVE, Phase.SEARCH))
        recommendation = conclude(
            cell,
            proof,
            search,
            rule=self.request.definition.rule,
            arguments=arguments,
            command=command,
            cost=self._cost,
        )
        marks: dict[str, object] = {"protocol": self.request.protocol, "rule": self.request.rule_digest}
        marks[REQUESTS] = cell.shapes.to_json()
        if cell.decision is not None:
            marks |= cell.decision.to_json()
        if left_out := pairing.left_out(cell.cell.key, cell.winner, Phase.PROVE):
            marks["left_out"] = left_out
        if cell.cell.key in self._epochs:
            marks[EPOCH] = self._epochs[cell.cell.key]
        launch_s = self._cost.launch_seconds / max(1, self._cost.launches)
        if likely := likely_of(cell, proof, search, self.request.definition, launch_s):
            marks[LIKELY] = likely
        try:
            noted = {"prediction": prediction_of(cell), "idle_draft": idle_draft_of(cell)}
            marks |= {name: note for name, note in noted.items() if note is not None}
        except StoreError as error:
            # The studies may be on another machine, which went away. The proof is in the database here, and goes on.
            self.progress.tell(f"{cell.prompt_type}: kept without what its study notes. {error.message}")
        return replace(recommendation, evidence={**recommendation.evidence, **marks})

    def _fitting(self) -> list[Candidate]:
        judged = judged_drafts(self.request, self.hardware)
        for candidate in judged:
            if self.request.drafts and not candidate.fits:
                self.progress.tell(f"Left out: {candidate.reason}")
        return [c for c in judged if c.fits]

    def _resident(self, fitting: Sequence[Candidate]) -> int:
        model, context = self.request.model, self.request.context()
        off = model.size_bytes + model.kv_bytes(context)
        drafts = [c.model.size_bytes + c.model.kv_bytes(context) for c in fitting if not c.own_layers]
        available = psutil.virtual_memory().available
        backend, hardware = self.backend, self.hardware
        devices = backend.devices() if isinstance(backend, OnDevices) else None
        if devices is None:
            devices = devices_here(hardware)
        weights = weights_of(self.request.args, model.layers)
        count = resident_launches(
            available_bytes=available,
            off_bytes=off,
            drafted_bytes=off + max(drafts, default=0),
            devices=devices,
            weights=weights,
        )
        if count == 1:
            self.progress.tell(_why_by_turns(devices, weights))
        return count


def _why_by_turns(devices: Sequence[Device] | None, weights: Weights) -> str:
    if weights.where is Where.MEMORY or (devices is not None and not devices):
        return "Off and drafting do not fit into memory side by side: they are launched by turns."
    room = None if devices is None else room_bytes(devices, weights)
    if room is None:
        return "How much memory the GPU has for two servers is not known: off and drafting are launched by turns."
    if weights.where is Where.BOTH:
        return (
            "Whether off and drafting fit side by side is not sure, as a part of the model is on the GPU: "
            "they are launched by turns."
        )
    return (
        "Off and drafting do not fit on the GPU side by side, where two servers have "
        f"{room / 1024**3:.1f} GiB: they are launched by turns."
    )


def _guess_winners(cells: Sequence[CellRun]) -> None:
    # Interrupted in the search: the best so far stands in the table, provisionally, and is not noted as winner.
    for cell in cells:
        if cell.winner.is_off and cell.best is not None:
            cell.winner = cell.best[0]
