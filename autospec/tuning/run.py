"""`autospec tune`: from a main model to recommendations. Runs the phases in turn, and stores every result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from autospec.backends.placement import Weights, Where, room_bytes, weights_of
from autospec.backends.protocol import Backend, LaunchSettings
from autospec.backends.registry import OnDevices
from autospec.catalog.candidates import Candidate, undraftable
from autospec.cells import Aim, Build, Hardware
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError, StoreError, UnsupportedError
from autospec.hardware.awake import kept_awake
from autospec.hardware.energy import energy_refusal
from autospec.hardware.gpu import Device, devices_here
from autospec.hardware.identity import ROSETTA, ROSETTA_HINT, is_translated
from autospec.hardware.processes import machine_lock
from autospec.hardware.readings import available_memory_bytes
from autospec.hardware.state import StateWatch
from autospec.measure.asking import Asking
from autospec.measure.measurements import Phase
from autospec.measure.verdict import decide, refused
from autospec.recommendations import (
    CONDITIONS,
    FAILING,
    LIKELY,
    LIMITS,
    NO_LIMITS,
    Limits,
    Recommendation,
    Status,
    Verdict,
)
from autospec.store.database import CellLocks, Store, open_store
from autospec.tuning.budget import Budget
from autospec.tuning.build_recommendation import Cost, conclude, conditions_of, likely_of, nothing_to_try
from autospec.tuning.calibration import compare_idle_drafts, forget_idle_drafts, idle_draft_of
from autospec.tuning.cell import CellRun, Progress, TuneContext, TuneSession, TuneStep
from autospec.tuning.forecast import Forecast
from autospec.tuning.launch_scatter import LaunchComparing, known_scatter
from autospec.tuning.launches import Launches, Memory, resident_launches
from autospec.tuning.limit_checks import LimitChecks, Subject
from autospec.tuning.limits import served_temperature, unknown_conditions
from autospec.tuning.overall_proof import TRAFFIC_S, OverallProof
from autospec.tuning.paired_runner import Failing, PairedRunner
from autospec.tuning.profiling import Profiler
from autospec.tuning.proof import Proof, scatter_of
from autospec.tuning.proof_predictions import ProofPredictions
from autospec.tuning.request import TuneRequest, judged_drafts, space_for, why_nothing
from autospec.tuning.resume import (
    EPOCH,
    FAILED_BEFORE,
    REQUESTS,
    drafts_of,
    failing_json,
    failing_of,
    note_choice,
    save_recommendation,
    with_basis,
    with_failing,
)
from autospec.tuning.search import Search
from autospec.tuning.space import Space
from autospec.tuning.study import OPENED
from autospec.tuning.winners import choose_winners

__all__ = ["Tuning"]

# End of the reason why a drafting is not enabled whose proof was clean.
_IN_SECOND_TURN = ", in the second turn of a chat"


@dataclass(slots=True)
class Tuning:
    """One tune: `run` searches and proves; results are stored at every step and at the end, even after an interruption.

    Attributes:
        request: What is to be tuned.
        backend: Launches the servers.
        hardware: This machine.
        progress: Receives what the tune reports.
    """

    request: TuneRequest
    backend: Backend
    hardware: Hardware
    progress: Progress
    _cost: Cost = field(default_factory=Cost)
    _wanted: list[str] = field(default_factory=list)
    _drafts: dict[str, str] | None = None
    _launch_key: str = ""
    _computing: tuple[str, ...] = ()  # parts of the machine; found only with the aim energy
    _failing: Failing = field(default_factory=dict)
    _served: float = 0.0  # the temperature that users sample with
    _launch_s: float = 0.0  # mean seconds of this tune's launches

    def run(self) -> list[Recommendation]:
        """Search, prove, store.

        Returns:
            The recommendations of all requested cells, in the order of `PromptType`, including those that were proven before.

        Raises:
            BusyError: Another tune holds the machine, or other machines hold all of its cells.
            AutospecError: The server does not start even without drafting, or the database cannot be used.
            KeyboardInterrupt: Raised again after everything known has been stored.
        """
        with machine_lock(f"tune {self.request.model.name}"), kept_awake(), ExitStack() as stack:
            store = open_store(self.request.storage, self.progress.tell)
            stack.callback(store.close)
            locks = stack.enter_context(CellLocks(self.request.storage))
            self._run(TuneSession(self.request, self.hardware, store, locks, self.progress.tell))
        return self.known()

    def known(self) -> list[Recommendation]:
        """The stored recommendations of the requested cells; also after an interrupted `run`."""
        with closing(open_store(self.request.storage)) as store:
            stored = {s.cell_key: s.recommendation for s in store.recommendations(cell_keys=self._wanted)}
        return [stored[key] for key in self._wanted if key in stored]

    def overall(self) -> Recommendation | None:
        """The stored answer for all prompt types together; ``None`` if this tune did not come so far."""
        if not self._launch_key:
            return None
        with closing(open_store(self.request.storage)) as store:
            found = store.overall_answers([self._launch_key])
        return found[0].recommendation if found else None

    def _run(self, session: TuneSession) -> None:
        limits = self.request.definition.limits
        budget = Budget(
            self.request.budget_s or self.request.definition.budget_s,
            kept=limits.share if limits.check else 0.0,
        )
        if is_translated():
            self.progress.tell(f"{ROSETTA} {ROSETTA_HINT}")
        capabilities = self.backend.capabilities()
        self._refuse_without_energy()
        fitting = self._fitting()
        self._drafts = drafts_of(fitting, named=bool(self.request.drafts))
        space = space_for(self.request.definition, capabilities, fitting, self.request.temperature)
        self._served = self._served_temperature(session.store, capabilities.build)
        cells = session.cells(capabilities, space)
        self._wanted = [c.cell.key for c in cells]
        self._failing |= {
            (c.cell.key, drafting): dict(reasons)
            for c in cells
            for drafting, reasons in c.history.failing.items()
        }
        open_cells = session.to_measure(cells)
        refusal = self._refusal(space) if open_cells else ""
        if open_cells and (refusal or not space.arms):
            why = refusal or why_nothing(self.request.model, capabilities, fitting)
            verdict = Verdict.DISABLE if refusal else Verdict.UNDECIDED
            for cell in open_cells:
                self._save(session.store, nothing_to_try(cell, why, verdict), cell)
        elif open_cells:
            self._tune(session, open_cells, space, budget, fitting)
        if limits.check:
            proven = [c for c in cells if c.history.proven and c not in open_cells]
            self._check_proven(proven, session, space, budget)
        self._launch_key = cells[0].cell.launch_key
        if self.request.aim is Aim.ENERGY:
            return  # an answer for all prompt types together adds times
        OverallProof(
            session,
            cells,
            self.backend,
            budget,
            resident=lambda: self._resident(fitting),
            step=self.progress.step,
            failing=self._failing,
            launch_s=self._usual_launch_s(cells),
        ).run()

    def _refuse_without_energy(self) -> None:
        """Raise if the aim is energy and what computes does not tell it; nothing has been measured yet."""
        if self.request.aim is not Aim.ENERGY:
            return
        memory = self._memory()
        on_device = memory.devices is None or bool(memory.devices)
        parts = {Where.DEVICE: ("gpu",), Where.MEMORY: ("cpu",), Where.BOTH: ("cpu", "gpu")}
        self._computing = parts[memory.weights.where if on_device else Where.MEMORY]
        if refusal := energy_refusal(self._computing):
            raise UnsupportedError(*refusal)

    def _check_proven(
        self, cells: Sequence[CellRun], session: TuneSession, space: Space, budget: Budget
    ) -> None:
        """Check cells that an earlier tune enabled: what it had no time to check, or was not asked to."""
        store, proofs = session.store, {c.cell.key: c.history.served for c in cells}
        unchecked = []
        for cell in cells:
            proof = proofs[cell.cell.key]
            if proof is None or proof.verdict is not Verdict.ENABLE:
                continue
            known = Limits.from_json(proof.evidence.get(LIMITS))
            wanted, proven = self.request.definition.limits, self.request.temperature
            if unknown_conditions(wanted, known, temperature=proven, served=self._served):
                cell.winner, cell.shapes = proof.drafting, cell.history.requests or cell.shapes
                cell.limits = known
                unchecked.append(cell)
        if not unchecked:
            return

        def keep(cell: CellRun) -> None:
            proof = proofs[cell.cell.key]
            if proof is None or cell.limits is None:
                return
            checked = replace(proof, evidence={**proof.evidence, LIMITS: cell.limits.to_json()})
            failing = {cell.winner: pairing.all_failing(cell.cell.key).get(cell.winner, frozenset())}
            checked = with_failing(checked, failing, store.drafts, where=_IN_SECOND_TURN)
            if checked.verdict is not proof.verdict:
                checked = cell.reopened(checked)
            store.save_recommendation(checked, self.hardware, cell.cell)

        request = self.request
        with Launches(
            self.backend,
            str(request.model.path),
            request.settings(),
            resident=1,
            usual_s=self._usual_launch_s(unchecked),
        ) as launches:
            asking = Asking(
                request.protocol, request.definition.max_tokens, request.temperature, StateWatch()
            )
            since = {c.cell.key: c.history.epoch_s or 0.0 for c in unchecked}
            shapes = {c.cell.key: c.shapes for c in unchecked}
            failing: Failing = {
                (key, OFF): dict.fromkeys(failing_of(proof)[OFF], FAILED_BEFORE)
                for key, proof in proofs.items()
                if proof is not None
            }
            pairing = PairedRunner(
                launches,
                asking,
                store,
                since=since,
                shapes=shapes,
                failing=failing,
                on_failing=_notes_of(unchecked),
            )
            for cell in unchecked:
                pairing.note_stored(cell.cell.key, cell.winner)
            context = TuneContext(
                request.definition, space, launches, pairing, budget, self.progress, asking, store
            )
            self._check_limits(unchecked, context, keep)

    def _usual_launch_s(self, cells: Sequence[CellRun]) -> float:
        """Expected seconds of a launch: the mean of this tune's, else of those that the cells' results took; 0 if none tells."""
        if self._launch_s:
            return self._launch_s
        costs = [c.history.served.evidence.get("cost") or {} for c in cells if c.history.served is not None]
        took_s = [cost["launch_seconds"] / cost["launches"] for cost in costs if cost.get("launches")]
        return statistics.median(took_s) if took_s else 0.0

    def _refusal(self, space: Space) -> str:
        """Why no drafting can be used with this model at all, found out before any launch; empty if one can."""
        model, settings = self.request.model, self.request.settings()
        self.backend.command(
            str(model.path), OFF, settings
        )  # raises if the user's own settings cannot be used
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
        session: TuneSession,
        cells: list[CellRun],
        space: Space,
        budget: Budget,
        fitting: Sequence[Candidate],
    ) -> None:
        request, store = self.request, session.store
        settings = request.settings()
        capabilities = self.backend.capabilities()
        build = capabilities.build
        comparing = LaunchComparing(
            store,
            self.hardware.id,
            build,
            model=self._compared,
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
            for cell in cells:
                if cell.history.restarts:
                    forget_idle_drafts(cell, store, request.protocol)
            session.begin(cells)
            pairing = PairedRunner(
                launches,
                asking,
                store,
                since={c.cell.key: c.history.epoch_s or 0.0 for c in cells},
                tell=self.progress.tell,
                budget_s=budget.total_s,
                shapes={c.cell.key: c.shapes for c in cells},
                failing=self._failing,
                on_failing=_notes_of(cells),
            )
            context = TuneContext(
                request.definition,
                space,
                launches,
                pairing,
                budget,
                self.progress,
                asking,
                store,
                self._computing,
            )

            def keep(cell: CellRun) -> None:
                self._cost.seconds = budget.spent_s
                self._cost.launches = launches.count
                self._cost.launch_seconds = launches.seconds
                self._launch_s = launches.launch_s
                self._save(store, self._conclusion(cell, pairing, settings, launches.launch_s), cell)

            with self._keeping(cells, keep, store):
                # Without a baseline there is nothing to compare with: its failure ends the tune before any trial.
                self.progress.standing(tuple(c.standing() for c in cells))
                self.progress.step(TuneStep("start", OFF, 1, 1, 0, 1, budget.until_end_s))
                launches.off()
                unsearched = [c for c in cells if not c.searched]
                if unsearched:
                    self._search(unsearched, context)
                cells = [c for c in cells if not self._settle(store, c)]
                if not cells:
                    return
                if capabilities.drafting_per_request:
                    compare_idle_drafts(cells, context)
                proof = Proof(
                    # A proof stays if there was no time to try the drafts for which its cell is measured again.
                    [c for c in cells if c.searched or c.stands is None],
                    context,
                    keep,
                    predictions=ProofPredictions(context) if request.definition.predict else None,
                    scatter=lambda: known_scatter(store, self.hardware.id, build, self._compared),
                )
                self._prove_and_check(proof, cells, context, keep)

    def _prove_and_check(
        self, proof: Proof, cells: Sequence[CellRun], context: TuneContext, keep: Callable[[CellRun], None]
    ) -> None:
        """Prove the winners, check what is enabled, and prove further in the time that the checks did not need."""
        store = context.store
        per_request = self.backend.capabilities().drafting_per_request
        proof.run()
        proof.contest(partial(_stored_proof, store))
        checked: set[str] = set()
        goes_on = True
        while goes_on:
            left = [c for c in cells if c.cell.key not in checked]
            while left:
                turned = [c for c in left if c.enabled and c.winner == c.runner_up]
                if per_request and turned:
                    # Only the proof has shown that their runners-up are used.
                    compare_idle_drafts(turned, context)
                    for cell in turned:
                        keep(cell)
                enabled = [c for c in left if c.decided and c.enabled and _is_served(store, c)]
                checked.update(c.cell.key for c in enabled)
                # Where a second turn fails, the cell's other drafting may be enabled, and is checked likewise.
                left = self._check_limits(enabled, context, keep)
                proof.prove_runners_up(left)
            goes_on = proof.go_on()

    def _served_temperature(self, store: Store, build: Build) -> float:
        request = self.request
        since_s = time.time() - TRAFFIC_S
        samples = store.samples(since=since_s, model=request.model.name, backend=build.backend)
        return served_temperature(samples, request.args, request.model, proven=request.temperature)

    def _check_limits(
        self, cells: Sequence[CellRun], context: TuneContext, keep: Callable[[CellRun], None]
    ) -> list[CellRun]:
        """Check what was proven where it may fail, if the study says so; returns the cells that turn to their other drafting."""
        if not cells or not self.request.definition.limits.check:
            return []
        turning: list[CellRun] = []
        context.launches.close()  # the checks need the memory
        by_key = {cell.cell.key: cell for cell in cells}

        def keep_limits(subject: Subject, limits: Limits, failing: Mapping[str, str]) -> None:
            cell = by_key[subject.key]
            cell.limits = limits
            for prompt_id, why in failing.items():
                context.pairing.note_failing(subject.key, subject.drafting, prompt_id, why)
            if failing:
                cell.decision = refused(cell.decision or decide((), 0), len(failing), _IN_SECOND_TURN)
                self.progress.tell(f"{cell.prompt_type}: {cell.decision.verdict}: {cell.decision.reason}")
                if self._turns(cell):
                    turning.append(cell)
            keep(cell)

        known = {c.cell.key: context.pairing.known(c.cell.key, c.winner, Phase.PROVE) for c in cells}
        failing = {c.cell.key: context.pairing.failing(c.cell.key, OFF) for c in cells}
        build = self.backend.capabilities().build
        models = {str(m.path): m for m in (*self.request.models, *self.request.drafts)}
        LimitChecks(
            backend=self.backend,
            model=self.request.model,
            draft_of=lambda drafting: models.get(drafting.draft or ""),
            wanted=self.request.definition.limits,
            args=self.request.args,
            memory=self._memory,
            asking=context.asking,
            rule=self.request.definition.rule,
            scatter=lambda: scatter_of(
                known_scatter(context.store, self.hardware.id, build, self._compared), self.request.aim
            ),
            budget=context.budget.whole,
            pace=context.pairing.pace,
            launch_s=context.launches.launch_s,
            keep=keep_limits,
            progress=self.progress,
            served=self._served,
            aim=self.request.aim,
            computing=self._computing,
        ).run(
            [
                Subject.of(
                    str(c.prompt_type),
                    c.cell.key,
                    c.winner,
                    [p for p in c.prove_prompts if p.id not in failing[c.cell.key]],
                    known[c.cell.key],
                    shapes=c.shapes,
                    known=c.limits or NO_LIMITS,
                )
                for c in cells
            ]
        )
        return turning

    def _turns(self, cell: CellRun) -> bool:
        """Whether a cell whose winner is refused turns to its other drafting: it is enabled, or is proved next."""
        other = cell.other
        if other is not None and other.decision.verdict is Verdict.ENABLE:
            cell.turn_to(other.drafting, decision=other.decision, rounds=other.rounds)
            self.progress.tell(f"{cell.prompt_type}: {other.drafting.label} is enabled instead.")
            return True
        # A proof that stands is served meanwhile.
        cell.pending = cell.stands is None and cell.has_another(cell.winner)
        return cell.pending

    @contextmanager
    def _keeping(
        self, cells: Sequence[CellRun], keep: Callable[[CellRun], None], store: Store
    ) -> Iterator[None]:
        """Store the result of every cell at the end, even if the tune fails or another cell cannot be stored."""
        failed: list[AutospecError] = []

        def attempt(step: Callable[[], None]) -> None:
            try:
                step()
            except AutospecError as error:
                failed.append(error)

        try:
            yield
        finally:
            for cell in cells:
                if cell.winner.is_off and cell.best is not None:
                    # After an interrupted search the best so far is recommended provisionally, but not noted as winner.
                    cell.winner = cell.best[0]
                if not cell.decided:
                    attempt(partial(keep, cell))
                if self.request.forget_answers:
                    attempt(partial(store.forget_surveys, cell.cell.key))
        if failed:
            raise failed[0]

    def _save(self, store: Store, recommendation: Recommendation, cell: CellRun) -> None:
        based = with_basis(
            recommendation,
            cell.cell,
            self._drafts,
            draft_id=cell.study.draft_id(recommendation.tried),
            user_settings=self.request.args,
            model_settings=self.request.model_args,
        )
        save_recommendation(store, based, self.hardware, cell.cell, cell.stands)
        if cell.opened_for and recommendation.status is Status.PROVEN:
            cell.study.note(OPENED, None)

    def _settle(self, store: Store, cell: CellRun) -> bool:
        """Whether the search for further drafts found the proven drafting again, which needs no second proof of the same pairs."""
        proof = cell.stands
        if not cell.searched or proof is None or not (cell.winner.is_off or cell.winner == proof.tried):
            return False
        key = cell.cell.key
        failing = {
            d: frozenset(found) for (own, d), found in self._failing.items() if own == key and not d.is_off
        }
        before, proof = proof, with_failing(proof, failing, store.drafts)
        if proof.verdict is not before.verdict and not cell.winner.is_off:
            return False  # prompts were found to fail with it: the runner-up may be proved
        cell.stands = None
        self._save(store, proof, cell)
        stays = "off" if proof.tried.is_off else proof.tried.label
        self.progress.tell(
            f"{cell.prompt_type}: no gain over {stays} with {' and '.join(cell.opened_for)}; the earlier proof stays."
        )
        return True

    def _search(self, cells: Sequence[CellRun], context: TuneContext) -> None:
        forecast = None
        threshold = context.definition.rule.threshold
        if context.definition.predict and (predictor := Profiler(cells, context).run()):
            forecast = Forecast(predictor, context.space, threshold, self.progress.tell)
        search = Search(cells, context, forecast)
        search.run()
        choose_winners(cells, context.space, threshold, forecast)
        for cell in cells:
            if cell.trial_values and not cell.winner.is_off and cell.winner not in cell.trial_values:
                self.progress.tell(
                    f"{cell.prompt_type}: {cell.winner.label} is expected to be faster than what was tried, and is measured by its proof."
                )
            # Without time for a single trial, or without answers, nothing was chosen: the next tune searches again.
            untried = cell.news - {d.draft for d in cell.trial_values}
            unanswered = context.pairing.gave_up(cell.cell.key, OFF) and cell.winner.is_off
            cell.searched = not (unanswered or (search.out_of_time and (cell.winner.is_off or untried)))
        searched = [c for c in cells if c.searched]
        ruled_out = {"ruled_out": forecast.rule_out(searched)} if forecast is not None else {}
        # One server may run any of these for all prompt types.
        candidates = {d for c in searched for d in (c.winner, c.runner_up) if not d.is_off}
        if forecast is not None and (best := forecast.best_for_all(searched)) is not None:
            candidates.add(best)
        for cell in searched:
            winner, runner_up = cell.winner, cell.runner_up
            predictions: tuple[Any, Any] = (None, None)
            if forecast is not None:
                figures = (forecast.figures(cell, winner), forecast.figures(cell, runner_up))
                more = ruled_out | {"candidates": forecast.expectations(cell, candidates)}
                predictions = (figures[0] | more, figures[1] | more)
            # An arm that this tune lacks (its draft is on a disk that is not there, or was not named) stays untried.
            elsewhere = cell.history.untried - {a.label for a in context.space.arms}
            cell.history = note_choice(
                cell.study, cell.history, winner, runner_up, predictions, untried=cell.untried | elsewhere
            )

    def _conclusion(
        self, cell: CellRun, pairing: PairedRunner, settings: LaunchSettings, launch_s: float
    ) -> Recommendation:
        if cell.winner.is_off and (cell.searched or pairing.gave_up(cell.cell.key, OFF)):
            failed = [t.reason for t in cell.study.tried() if t.value is None and t.reason]
            why = f" The last failure: {failed[-1]}" if failed else ""
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
        marks: dict[str, object] = {
            "protocol": self.request.protocol,
            "rule": self.request.rule_digest,
            REQUESTS: cell.shapes.to_json(),
            EPOCH: cell.history.epoch_s,
        }
        if cell.decision is not None:
            marks |= cell.decision.to_json()
        if proof:
            marks[CONDITIONS] = conditions_of(self.request, proof, self._served)
        failing = pairing.all_failing(cell.cell.key)
        failing[OFF] = failing.get(OFF, frozenset()) & {p.id for p in cell.prove_prompts}
        likely = likely_of(
            cell,
            proof,
            search,
            self.request.definition,
            pair_s=pairing.took_s(cell.cell.key, cell.winner),
            launch_s=launch_s,
            failing=len(failing.get(cell.winner, ())),
        )
        optional = {
            FAILING: failing_json(cell.winner, failing, cell.study.draft_id),
            "left_out": pairing.left_out(cell.cell.key, cell.winner, Phase.PROVE) or None,
            LIKELY: likely or None,
            "prediction": cell.prediction,
            LIMITS: None if cell.limits is None else cell.limits.to_json(),
        }
        marks |= {key: value for key, value in optional.items() if value is not None}
        try:
            if (idle := idle_draft_of(cell)) is not None:
                marks["idle_draft"] = idle
        except StoreError as error:
            # The studies' machine may no longer answer. The proof is in the local database, and continues.
            self.progress.tell(
                f"{cell.prompt_type}: the result is stored, but without what its loaded draft costs while it does not draft. {error.message}"
            )
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
        memory = self._memory()
        count = resident_launches(
            available_bytes=memory.available_bytes,
            off_bytes=off,
            drafted_bytes=off + max(drafts, default=0),
            devices=memory.devices,
            weights=memory.weights,
        )
        if count == 1:
            self.progress.tell(_why_by_turns(memory.devices, memory.weights))
        return count

    def _memory(self) -> Memory:
        """What launches may use now."""
        available = available_memory_bytes()
        backend, hardware = self.backend, self.hardware
        devices = backend.devices() if isinstance(backend, OnDevices) else None
        if devices is None:
            devices = devices_here(hardware)
        return Memory(available, devices, weights_of(self.request.args, self.request.model.layers))

    @property
    def _compared(self) -> str:
        """Whose launches are compared: those of another model, or with other settings, may differ more or less."""
        return " ".join((self.request.model.name, *self.request.args))


def _stored_proof(store: Store, cell: CellRun) -> Recommendation | None:
    found = store.recommendations(cell_keys=[cell.cell.key])
    return found[0].recommendation if found else None


def _is_served(store: Store, cell: CellRun) -> bool:
    """Whether the winner is what users get: the proof that stood while the cell was measured for further drafts may gain more."""
    found = None if cell.stands is None else _stored_proof(store, cell)
    return found is None or found.tried == cell.winner


def _notes_of(cells: Sequence[CellRun]) -> Callable[[str, Drafting, Mapping[str, str]], None]:
    """Notes prompts that fail with drafting only in the cells' studies."""
    by_key = {cell.cell.key: cell for cell in cells}
    return lambda key, drafting, reasons: by_key[key].note_failing(drafting, reasons)


def _why_by_turns(devices: Sequence[Device] | None, weights: Weights) -> str:
    by_turns = "they run by turns."
    if weights.where is Where.MEMORY or (devices is not None and not devices):
        return f"Servers with and without drafting do not fit into memory together; {by_turns}"
    room = None if devices is None else room_bytes(devices, weights)
    if room is None:
        return f"The GPU memory available for two servers is unknown; {by_turns}"
    if weights.where is Where.BOTH:
        return (
            "A part of the model is on the GPU, so it is uncertain whether servers with and without drafting fit together; "
            f"{by_turns}"
        )
    return f"Servers with and without drafting do not fit into the {room / 1024**3:.1f} GiB of GPU memory together; {by_turns}"
