"""What a tune keeps for the next one: what is kept, what is measured again, and what is served meanwhile."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autospec.backends.protocol import Capabilities, Cycle
from autospec.catalog.candidates import Candidate
from autospec.cells import Cell, Hardware, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import BusyError, StoreError, SuiteError
from autospec.hardware.identity import host_digest
from autospec.measure.measurements import CACHED_SHARE, Shapes, of_traffic
from autospec.prompts.suite import Half
from autospec.recommendations import USER_SETTINGS, Recommendation, Status, Verdict
from autospec.store.database import Store
from autospec.store.locks import CellLocks
from autospec.tuning.cell import CellRun
from autospec.tuning.forecast import Forecast
from autospec.tuning.idle_draft import forget_idle_drafts
from autospec.tuning.request import TuneRequest, draft_file
from autospec.tuning.space import Space
from autospec.tuning.study import OPENED, RUNNER_UP, SEARCHED, WINNER, CellStudy, open_storage

__all__ = [
    "EPOCH",
    "REQUESTS",
    "Remeasurement",
    "TuneSession",
    "basis_digest",
    "basis_of",
    "confirms",
    "drafts_of",
    "last_look",
    "mark_remeasuring",
    "note_choice",
    "note_look",
    "prediction_of",
    "save_recommendation",
    "to_restart",
    "with_basis",
]

# Names of notes in a cell's study. `EPOCH` and `REQUESTS` are also keys of a proof's evidence.
EPOCH = "epoch"  # measurements before this moment (seconds since 1970) do not count
REQUESTS = "requests"  # the cell's requests, as `Shapes`
_RENEWAL = "renewal"  # the epoch that `--again` set
_PREDICTION = "prediction"
_RUNNER_UP_PREDICTION = "prediction_of_runner_up"
# Key of the evidence: the identity of the draft of `tried`.
_DRAFT_ID = "draft_id"
# Live requests of the last 30 days show the usual requests.
_TRAFFIC_S = 30 * 86400.0


# What is kept: the search's choice, the looks of the proof, and what a verdict rests on.


def note_choice(cells: Sequence[CellRun], forecast: Forecast | None) -> None:
    """Note winner and runner-up of searched cells, and the predictions for both."""
    ruled_out = forecast.rule_out(cells) if forecast is not None else []
    for cell in cells:
        if forecast is not None:
            for name, drafting in ((_PREDICTION, cell.winner), (_RUNNER_UP_PREDICTION, cell.runner_up)):
                cell.study.note(name, forecast.figures(cell, drafting) | {"ruled_out": ruled_out})
        cell.study.note_searched()
        cell.study.note_drafting(RUNNER_UP, cell.runner_up)
        cell.study.note_drafting(WINNER, cell.winner)  # last: if it is there, all of them are


def _recall_choice(cell: CellRun, space: Space) -> None:
    """Take over an earlier tune's choice, unless its draft is gone or was not named this time."""
    epoch = float(cell.study.noted(EPOCH) or 0.0)
    winner = cell.study.noted_drafting(WINNER, epoch)
    if winner is None or not (winner.is_off or space.arm_of(winner) is not None):
        return
    cell.winner, cell.searched = winner, True
    runner_up = cell.study.noted_drafting(RUNNER_UP, epoch) or OFF
    cell.shares_rate = not (Drafting.understood(cell.study.noted(RUNNER_UP)) or OFF).is_off
    if space.arm_of(runner_up) not in (None, space.arm_of(winner)):
        cell.runner_up = runner_up
    cell.trial_values = {
        t.drafting: t.value for t in cell.study.tried() if t.value is not None and not t.drafting.is_off
    }


def note_look(cell: CellRun) -> None:
    """Note that the proof was looked at after its current rounds: no later tune may enable at this look."""
    with suppress(StoreError):  # if the studies' machine no longer answers, the proof continues
        cell.study.note(_look_name(cell), [cell.study.noted(EPOCH), cell.rounds])


def last_look(cell: CellRun) -> int:
    """Rounds of the last look at the winner's proof in this epoch; 0 for none."""
    with suppress(StoreError):
        epoch, rounds = cell.study.noted(_look_name(cell)) or (None, 0)
        return int(rounds) if epoch == cell.study.noted(EPOCH) else 0
    return 0


def _look_name(cell: CellRun) -> str:
    return f"look {hashlib.sha256(cell.winner.key.encode()).hexdigest()[:8]}"


def prediction_of(cell: CellRun) -> Any:
    """The prediction for the drafting that the cell's proof is for, as JSON values; ``None`` if there is none."""
    return cell.study.noted(_RUNNER_UP_PREDICTION if cell.winner == cell.runner_up else _PREDICTION)


def drafts_of(fitting: Iterable[Candidate], *, named: bool) -> dict[str, str] | None:
    """The set of fitting drafts: mode and fingerprint → name; ``None`` if the user named the drafts to try."""
    return None if named else {f"{c.mode}:{c.model.fingerprint}": c.model.name for c in fitting}


def basis_of(cell: Cell, drafts: Mapping[str, str] | None) -> dict[str, Any]:
    """Everything besides the measurements that a verdict of this cell rests on, as JSON values; `drafts` as from `drafts_of`."""
    return {
        "host": host_digest(),
        "hardware": cell.hardware.id,
        "os": cell.hardware.os,
        "model": cell.model.fingerprint,
        "build": cell.build.version,
        "build_fingerprint": cell.build.fingerprint,
        "settings": list(cell.settings),
        "drafts": None if drafts is None else dict(drafts),
    }


def basis_digest(basis: Mapping[str, Any]) -> str:
    """Twelve hex digits that differ if two bases do; names of drafts do not count."""
    drafts = basis.get("drafts")
    plain = {**basis, "drafts": None if drafts is None else sorted(drafts)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def with_basis(
    recommendation: Recommendation,
    cell: Cell,
    drafts: Mapping[str, str] | None,
    *,
    draft_id: str = "",
    user_settings: Sequence[str] | None = None,
) -> Recommendation:
    """The recommendation with its basis in the evidence.

    `draft_id` identifies the tried drafting's draft. `user_settings` are the user's own launch settings; the cell's settings
    include those that measuring adds.
    """
    evidence = {**recommendation.evidence, "basis": basis_of(cell, drafts)}
    if draft_id:
        evidence[_DRAFT_ID] = draft_id
    if user_settings is not None:
        evidence[USER_SETTINGS] = list(user_settings)
    return replace(recommendation, evidence=evidence)


# What is measured again.


@dataclass(frozen=True, slots=True)
class Remeasurement:
    """The state of one cell's re-measurement by `--again`."""

    epoch_s: float | None = None  # None if the cell has none
    finished: bool = False  # it ended, with a proof or because nothing could be measured
    holds: bool = False  # False if a finished one must be repeated, because its proof has become stale


def _remeasurement_of(study: CellStudy, stored: Recommendation | None, *, proven: bool) -> Remeasurement:
    """From the study's notes and the served recommendation; `proven` if that holds under the current protocol and rule.

    Neither clocks nor the order of writes decide: an interruption stores no proof, and a proof of another epoch belongs to
    another re-measurement.
    """
    epoch = study.noted(EPOCH)
    # A tune without `--again` notes an epoch, too, and so does one that is killed before it notes the renewal.
    if epoch is None or study.noted(_RENEWAL) != epoch:
        return Remeasurement()
    winner = Drafting.understood(study.noted(WINNER))
    if winner is not None and winner.is_off:
        return Remeasurement(epoch, finished=True, holds=True)
    finished = (
        stored is not None
        and stored.status in (Status.PROVEN, Status.STALE)
        and stored.evidence.get(EPOCH) == epoch
    )
    return Remeasurement(epoch, finished=finished, holds=finished and proven)


def to_restart(states: Mapping[str, Remeasurement]) -> set[str]:
    """Keys of the cells that `--again` measures from the start; the others continue, or are finished.

    While any cell is unfinished, `--again` continues with that re-measurement, however often it is interrupted; once all
    are finished, it starts another one for all of them.
    """
    unfinished = [s.epoch_s for s in states.values() if s.epoch_s is not None and not s.finished]
    if not unfinished:
        return set(states)
    # Cells whose epoch is older than this re-measurement belong to an earlier one: a kill came between the cells.
    oldest_s = min(unfinished)
    return {
        key
        for key, s in states.items()
        if s.epoch_s is None or s.epoch_s < oldest_s or (s.finished and not s.holds)
    }


@dataclass(slots=True)
class TuneSession:
    """The cells of one tune: which there are, which need measuring, and since when measurements count.

    Cells that are locked stay locked while `locks` is open; `tell` gets what is left out, and why.
    """

    request: TuneRequest
    hardware: Hardware
    store: Store
    locks: CellLocks
    tell: Callable[[str], None]
    _restarted: set[str] = field(
        default_factory=set
    )  # keys of the cells that `--again` measures from the start
    _finished: set[str] = field(default_factory=set)  # keys of those that it has finished already

    def cells(self, capabilities: Capabilities, space: Space) -> list[CellRun]:
        """The requested cells that no other machine is tuning, each with its study and its earlier results.

        Raises:
            SuiteError: The suite lacks prompts of a type.
            BusyError: Other machines have all of the cells.
            StoreError: The database cannot be used.
        """
        request = self.request
        types = request.prompt_types or request.suite.types()
        storage = open_storage(request.study_storage or request.storage)
        settings = request.settings().args
        cells = []
        for prompt_type in [t for t in PromptType if t in types]:
            tune, prove = (request.suite.of(prompt_type, half) for half in (Half.TUNE, Half.PROVE))
            if not tune or not prove:
                raise SuiteError(
                    f"The suite {request.suite.name} lacks prompts of type {prompt_type} to search or prove with.",
                    f"It has prompts of these types: {', '.join(request.suite.types())}.",
                )
            cell = Cell(request.model.ref, prompt_type, capabilities.build, self.hardware, settings)
            if not self.locks.take(cell.key):
                self.tell(f"{prompt_type}: another machine is measuring this prompt type.")
                continue
            study = CellStudy(cell, storage, request.definition, space, request.protocol)
            tune_prompts = tune[: request.definition.prompts]
            cells.append(CellRun(cell, study, tune_prompts, prove, shapes=self._shapes(cell, capabilities)))
        if not cells:
            raise BusyError(
                "Another autospec is measuring these cells, from another machine like this one.",
                "Wait for it to finish; its results are kept in the same database.",
            )
        self.store.drafts = space.drafts
        if request.again:
            self._restart(cells)
        stored = self._stored(cells)
        for run in cells:
            _recall_choice(run, space)
            run.news = self._news(run, space, stored.get(run.cell.key))
            if run.news:
                run.searched = False
        return cells

    def to_measure(self, cells: Sequence[CellRun]) -> list[CellRun]:
        """The cells without a proof, or with a current draft that the proof did not try; with `--again`, the unfinished ones."""
        if self.request.again:
            done = self._proven(cells) & self._finished
            for cell in cells:
                if cell.cell.key in done:
                    self.tell(f"{cell.prompt_type}: already measured again; the interrupted rest continues.")
            return [c for c in cells if c.cell.key not in done]
        proven, stored = self._proven(cells), self._stored(cells)
        return [c for c in cells if c.cell.key not in proven or self._reopens(c, stored[c.cell.key])]

    def begin(self, cells: Sequence[CellRun]) -> dict[str, float]:
        """Cell key → epoch: measurements before it do not count. `--again` moves it.

        Every change of a restart is stored before the first measurement, so that the next tune continues after a kill.
        """
        now = time.time()
        epochs = {}
        for cell in cells:
            restarts = cell.cell.key in self._restarted
            if restarts:
                self.store.forget_surveys(cell.cell.key)
                forget_idle_drafts(cell, self.store, self.request.protocol)
            epoch = None if restarts else cell.study.noted(EPOCH)
            if epoch is None:
                epoch = now
                cell.study.note(EPOCH, epoch)
            epochs[cell.cell.key] = float(epoch)
            # A proof stays for the requests that it began with, even if the traffic has changed since.
            requests = None if restarts else cell.study.noted(REQUESTS)
            if requests is None:
                cell.study.note(REQUESTS, cell.shapes.to_json())
            else:
                cell.shapes = Shapes.from_json(requests)
            if cell.opened_for:
                cell.study.note(OPENED, list(cell.opened_for))
            if restarts:
                cell.study.note(_RENEWAL, epoch)
                mark_remeasuring(self.store, self.hardware, cell.cell)
        return epochs

    def _shapes(self, cell: Cell, capabilities: Capabilities) -> Shapes:
        """The usual requests of this cell: from live traffic, else from the suite."""
        since = time.time() - _TRAFFIC_S
        samples = self.store.samples(since=since, model=cell.model.name, prompt_type=cell.prompt_type)
        prompts = self.request.suite.prompts
        return Shapes(
            cached_share=CACHED_SHARE[cell.prompt_type],
            max_tokens={p.id: p.max_tokens for p in prompts if p.prompt_type is cell.prompt_type},
            traffic=of_traffic(samples),
            first_cycle_in_prompt=capabilities.cycle is Cycle.MLX_LM or not capabilities.tells_drafts,
        )

    def _restart(self, cells: Sequence[CellRun]) -> None:
        """Forget the results of the cells that `--again` measures from the start."""
        stored, proven = self._stored(cells), self._proven(cells)
        states = {
            c.cell.key: _remeasurement_of(c.study, stored.get(c.cell.key), proven=c.cell.key in proven)
            for c in cells
        }
        self._restarted = to_restart(states)
        self._finished = {key for key, s in states.items() if s.finished} - self._restarted
        for cell in cells:
            if cell.cell.key in self._restarted:
                cell.study.begin_again()

    def _news(self, cell: CellRun, space: Space, stored: Recommendation | None) -> frozenset[str]:
        """Paths of the drafts of this tune that no search of the cell could try yet."""
        drafts = space.drafts.by_path
        searched = cell.study.noted(SEARCHED)
        if searched is not None:
            return frozenset(path for path, file in drafts.items() if file.identity not in searched)
        # Searches of earlier versions did not note their drafts; the proof's basis has those that fitted, unless the user
        # named some.
        basis = (stored.evidence.get("basis") if stored is not None else None) or {}
        fitted = basis.get("drafts")
        if fitted is not None:
            known = {key.partition(":")[2] for key in fitted}
            return frozenset(path for path, file in drafts.items() if file.fingerprint not in known)
        if basis and self.request.drafts:
            return frozenset(drafts.keys() - cell.study.drafts_tried())
        return frozenset()

    def _reopens(self, cell: CellRun, proof: Recommendation) -> bool:
        """Whether a proven cell is measured again; tells the reason either way."""
        names = {self._name(draft) for draft in cell.news}.union(cell.study.noted(OPENED) or ())
        if names:
            cell.opened_for = tuple(sorted(names))
            cell.stands = proof if self._holds(proof) else None
            replaced = {self._name(draft) for draft in cell.news & cell.study.drafts_tried()}
            reasons = [f"{name} was replaced by another file" for name in sorted(replaced)]
            if new := sorted(names - replaced):
                were = "was" if len(new) == 1 else "were"
                reasons.insert(0, f"{' and '.join(new)} {were} not among the drafts tried")
            self.tell(f"{cell.prompt_type}: already proven, but {', and '.join(reasons)}.")
            return True
        moved = self.store.drafts.today(proof.drafting, str(proof.evidence.get(_DRAFT_ID) or ""), math.inf)
        if moved not in (None, proof.drafting):
            self.tell(f"{cell.prompt_type}: already proven, but its draft model is now {moved.draft}.")
            return True
        self.tell(f"{cell.prompt_type}: already proven; use --again to measure it again.")
        return False

    def _name(self, draft: str) -> str:
        file = self.store.drafts.by_path.get(draft)
        return Path(draft).name if file is None else file.name

    def _holds(self, proof: Recommendation) -> bool:
        """Whether the draft of a proven drafting is still there, and the same file."""
        draft = proof.drafting.draft
        if draft is None:
            return True
        models = (*self.request.drafts, *self.request.models)
        model = next((m for m in models if str(m.path) == draft), None)
        identity = proof.evidence.get(_DRAFT_ID)
        return model is not None and identity in (None, draft_file(model).identity)

    def _stored(self, cells: Sequence[CellRun]) -> dict[str, Recommendation]:
        """Cell key → its served recommendation."""
        found = self.store.recommendations(cell_keys=[c.cell.key for c in cells])
        return {s.cell_key: s.recommendation for s in found}

    def _proven(self, cells: Sequence[CellRun]) -> set[str]:
        """Keys of the cells whose newest recommendation was proven under the same protocol and rule."""
        return {
            key
            for key, r in self._stored(cells).items()
            if r.status is Status.PROVEN
            and r.evidence.get("protocol") == self.request.protocol
            and r.evidence.get("rule") == self.request.rule_digest
        }


# What is served meanwhile.


def save_recommendation(
    store: Store,
    recommendation: Recommendation,
    hardware: Hardware,
    cell: Cell,
    stands: Recommendation | None = None,
) -> None:
    """Store a cell's recommendation, but keep serving a proven one, even a stale one, until there is a new proof.

    `stands` is a proof that holds, of a cell that is measured again for further drafts only: only a better proof replaces it.
    """
    proven = recommendation.status is Status.PROVEN
    if stands is not None and proven and not _better(recommendation, stands):
        store.save_recommendation(_with_comparison(stands, recommendation), hardware, cell)
        return
    if not proven:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and stored[0].recommendation.status in (Status.PROVEN, Status.STALE):
            mark_remeasuring(store, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)


def mark_remeasuring(store: Store, hardware: Hardware, cell: Cell) -> None:
    """Mark a stale recommendation as being measured again, so that the next tune continues instead of starting over.

    Call it as soon as measuring starts, because a kill leaves no time at the end.
    """
    stored = store.recommendations(cell_keys=[cell.key])
    if not stored:
        return
    old = stored[0].recommendation
    if old.status is Status.STALE and not old.evidence.get("renewing"):
        renewing = replace(old, evidence={**old.evidence, "renewing": True})
        store.save_recommendation(renewing, hardware, cell)


def confirms(winner: Drafting, stands: Recommendation | None) -> bool:
    """Whether a search for further drafts ended with what is proven already (or with nothing), so needs no proof."""
    return stands is not None and (winner.is_off or winner == stands.tried)


def _better(new: Recommendation, old: Recommendation) -> bool:
    if old.verdict is not Verdict.ENABLE:
        return True
    return new.verdict is Verdict.ENABLE and (new.speedup or 0.0) > (old.speedup or 0.0)


def _with_comparison(old: Recommendation, new: Recommendation) -> Recommendation:
    """The proof that stays, with the drafting it was compared with, resting on the current drafts."""
    figures = new.to_json()
    compared = {
        "drafting": figures["tried"],
        **{name: figures[name] for name in ("speedup", "speedup_ci", "verdict")},
        "rounds": new.evidence.get("rounds"),
    }
    known = [p for p in old.evidence.get("also_proved", ()) if p.get("drafting") != compared["drafting"]]
    basis = new.evidence.get("basis", old.evidence.get("basis"))
    return replace(old, evidence={**old.evidence, "also_proved": [*known, compared], "basis": basis})
