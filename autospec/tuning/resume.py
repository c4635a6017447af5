"""What a recommendation rests on besides its measurements, kept with it so that one can see when it has gone stale.

Measuring afresh (`tune --again`): which cells begin anew, and which go on with what was begun and interrupted.

Each cell's study notes the epoch, before which no measurement counts, and whether it was set by a renewal; a proof carries
the epoch that it rests on. A renewal is open while any of its cells has no such proof: `--again` goes on with it, however
often it is interrupted, and begins afresh once all are done. Neither clocks nor the order of writes decide: what an
interruption stores is no proof, and a proof of another epoch is none of this renewal.

The choice that a search ends with, as each cell's study notes it: whoever goes on with the cell recalls it.

The cells of one tune: which there are, which of them need no measuring, and from when measurements count.

What goes on being served while a cell is measured afresh.
"""

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
    "DRAFT_ID",
    "EPOCH",
    "RENEWAL",
    "REQUESTS",
    "Renewal",
    "TuneSession",
    "basis_digest",
    "basis_of",
    "drafts_of",
    "last_look",
    "note_choice",
    "note_look",
    "prediction_of",
    "recall_choice",
    "renew",
    "renewal_of",
    "resting_on",
    "save",
    "settles",
    "to_begin",
]


# In the evidence: which file the draft of `tried` is.
DRAFT_ID = "draft_id"


def drafts_of(fitting: Iterable[Candidate], *, named: bool) -> dict[str, str] | None:
    """The set of fitting drafts: what each is, by mode and fingerprint, and its name.

    Args:
        fitting: The candidates that fit.
        named: True if the user named the drafts to try: then the set is their choice, and ``None`` stands for it.
    """
    return None if named else {f"{c.mode}:{c.model.fingerprint}": c.model.name for c in fitting}


def basis_of(cell: Cell, drafts: Mapping[str, str] | None) -> dict[str, Any]:
    """All that a verdict of this cell rests on, as JSON values."""
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
    """Twelve hex digits that differ whenever two bases do; names of drafts do not count."""
    drafts = basis.get("drafts")
    plain = {**basis, "drafts": None if drafts is None else sorted(drafts)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def resting_on(
    recommendation: Recommendation,
    cell: Cell,
    drafts: Mapping[str, str] | None,
    *,
    draft_id: str = "",
    user_settings: Sequence[str] | None = None,
) -> Recommendation:
    """The recommendation with its basis among the evidence.

    Args:
        recommendation: It.
        cell: Of which.
        drafts: The fitting drafts, as `drafts_of` has them.
        draft_id: Identity of the draft of the drafting that was tried; empty where it has none.
        user_settings: The user's own launch settings; the cell's hold what measuring adds, too.
    """
    evidence = {**recommendation.evidence, "basis": basis_of(cell, drafts)}
    if draft_id:
        evidence[DRAFT_ID] = draft_id
    if user_settings is not None:
        evidence[USER_SETTINGS] = list(user_settings)
    return replace(recommendation, evidence=evidence)


# Names of the notes in a study; `EPOCH` is also that of the mark in a proof's evidence.
EPOCH = "epoch"
RENEWAL = "renewal"


@dataclass(frozen=True, slots=True)
class Renewal:
    """How far a cell is in being measured afresh.

    Attributes:
        begun_s: Its epoch, seconds since 1970; ``None`` where nobody has begun.
        finished: True if it came to its end: a proof, or nothing that could be measured.
        holds: False if it has to be measured once more although it is finished: the proof went stale.
    """

    begun_s: float | None = None
    finished: bool = False
    holds: bool = False


def renewal_of(study: CellStudy, stored: Recommendation | None, *, proven: bool) -> Renewal:
    """Read it from what was noted and stored.

    Args:
        study: The cell's.
        stored: What is served for it.
        proven: True if that holds under today's protocol and rule.
    """
    epoch = study.noted(EPOCH)
    # An epoch that was noted by a tune without `--again`, or just before a kill, is no renewal's.
    if epoch is None or study.noted(RENEWAL) != epoch:
        return Renewal()
    winner = Drafting.understood(study.noted(WINNER))
    if winner is not None and winner.is_off:
        return Renewal(epoch, finished=True, holds=True)
    finished = (
        stored is not None
        and stored.status in (Status.PROVEN, Status.STALE)
        and stored.evidence.get(EPOCH) == epoch
    )
    return Renewal(epoch, finished=finished, holds=finished and proven)


def to_begin(renewals: Mapping[str, Renewal]) -> set[str]:
    """Keys of the cells that are to begin anew; the others go on, or are done.

    Args:
        renewals: Of every cell that was asked for, by its key.
    """
    unfinished = [r.begun_s for r in renewals.values() if r.begun_s is not None and not r.finished]
    if not unfinished:
        return set(renewals)
    # Whoever is done since before the open renewal began is done with another one: a kill came between the cells.
    oldest = min(unfinished)
    return {
        key
        for key, r in renewals.items()
        if r.begun_s is None or r.begun_s < oldest or (r.finished and not r.holds)
    }


# Names of the notes of what was predicted of the two.
_PREDICTION = "prediction"
_OF_RUNNER_UP = "prediction_of_runner_up"


def note_choice(cells: Sequence[CellRun], forecast: Forecast | None) -> None:
    """Note winner and runner-up of searched cells, and what was predicted of them."""
    ruled_out = forecast.rule_out(cells) if forecast is not None else []
    for cell in cells:
        if forecast is not None:
            for name, drafting in ((_PREDICTION, cell.winner), (_OF_RUNNER_UP, cell.runner_up)):
                cell.study.note(name, forecast.figures(cell, drafting) | {"ruled_out": ruled_out})
        cell.study.note_searched()
        cell.study.note_drafting(RUNNER_UP, cell.runner_up)
        cell.study.note_drafting(WINNER, cell.winner)  # last: with it, all of them are there


def recall_choice(cell: CellRun, space: Space) -> None:
    """What an earlier tune chose goes on to be known; a draft that is gone, or was not named this time, is no winner."""
    begun = float(cell.study.noted(EPOCH) or 0.0)
    winner = cell.study.noted_drafting(WINNER, begun)
    if winner is None or not (winner.is_off or space.arm_of(winner) is not None):
        return
    cell.winner, cell.searched = winner, True
    runner_up = cell.study.noted_drafting(RUNNER_UP, begun) or OFF
    cell.shares_rate = not (Drafting.understood(cell.study.noted(RUNNER_UP)) or OFF).is_off
    if space.arm_of(runner_up) not in (None, space.arm_of(winner)):
        cell.runner_up = runner_up
    cell.trial_values = {
        t.drafting: t.value for t in cell.study.tried() if t.value is not None and not t.drafting.is_off
    }


def note_look(cell: CellRun) -> None:
    """Note that the proof was looked at after so many rounds: no tune that goes on may enable at this look again."""
    with suppress(StoreError):  # the studies may be on another machine, which went away; the proof goes on
        cell.study.note(_look_of(cell), [cell.study.noted(EPOCH), cell.rounds])


def last_look(cell: CellRun) -> int:
    """Rounds of the last look that was taken at the winner's proof since it began; 0 for none."""
    with suppress(StoreError):
        epoch, rounds = cell.study.noted(_look_of(cell)) or (None, 0)
        return int(rounds) if epoch == cell.study.noted(EPOCH) else 0
    return 0


def _look_of(cell: CellRun) -> str:
    return f"look {hashlib.sha256(cell.winner.key.encode()).hexdigest()[:8]}"


def prediction_of(cell: CellRun) -> Any:
    """What was predicted of the drafting that the cell's proof is for now, as JSON values; ``None`` for nothing.

    Raises:
        StoreError: The studies cannot be reached.
    """
    return cell.study.noted(_OF_RUNNER_UP if cell.winner == cell.runner_up else _PREDICTION)


REQUESTS = "requests"
"""Name of a cell's requests (`Shapes`) among the notes of its study, and in the evidence."""

# Live requests of so many days tell what requests look like.
_TRAFFIC_S = 30 * 86400.0


@dataclass(slots=True)
class TuneSession:
    """What a tune begins with, and what it begins anew.

    Attributes:
        request: What is to be tuned.
        hardware: This machine.
        store: Where measurements and recommendations are.
        locks: Cells that are taken stay taken while these are open.
        tell: Told what is left alone, and why.
    """

    request: TuneRequest
    hardware: Hardware
    store: Store
    locks: CellLocks
    tell: Callable[[str], None]
    _afresh: set[str] = field(default_factory=set)
    _renewed: set[str] = field(default_factory=set)

    def cells(self, capabilities: Capabilities, space: Space) -> list[CellRun]:
        """The cells asked for that no other machine is tuning, each with its study and with what it has found.

        Raises:
            SuiteError: The suite lacks prompts of a type.
            BusyError: Other machines have all of them.
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
                    f"The suite {request.suite.name} has no prompts of type {prompt_type} to search and prove with.",
                    f"It has {', '.join(request.suite.types())}.",
                )
            cell = Cell(request.model.ref, prompt_type, capabilities.build, self.hardware, settings)
            if not self.locks.take(cell.key):
                self.tell(f"{prompt_type}: another machine is tuning this cell.")
                continue
            study = CellStudy(cell, storage, request.definition, space, request.protocol)
            cells.append(
                CellRun(
                    cell,
                    study,
                    tune[: request.definition.prompts],
                    prove,
                    shapes=self._shapes(cell, prompt_type, capabilities),
                )
            )
        if not cells:
            raise BusyError(
                "Another autospec is measuring these cells, from another machine like this one.",
                "Wait for it; its results are kept in the same database.",
            )
        self.store.drafts = space.drafts
        if request.again:
            self._begin_again(cells)
        stored = self._stored(cells)
        for run in cells:
            recall_choice(run, space)
            run.news = self._news(run, space, stored.get(run.cell.key))
            if run.news and run.searched:
                run.searched = False
        return cells

    def _shapes(self, cell: Cell, prompt_type: PromptType, capabilities: Capabilities) -> Shapes:
        """The requests that people make of this cell: as live traffic shows them, or else as the suite states them."""
        since = time.time() - _TRAFFIC_S
        samples = self.store.samples(since=since, model=cell.model.name, prompt_type=prompt_type)
        prompts = self.request.suite.prompts
        return Shapes(
            cached_share=CACHED_SHARE[prompt_type],
            max_tokens={p.id: p.max_tokens for p in prompts if p.prompt_type is prompt_type},
            traffic=of_traffic(samples),
            first_cycle_in_prompt=capabilities.cycle is Cycle.MLX_LM or not capabilities.tells_drafts,
        )

    def to_measure(self, cells: Sequence[CellRun]) -> list[CellRun]:
        """Those that are not proven, or proven without a draft that is among today's; under `--again`, the rest of it."""
        if self.request.again:
            done = self._proven(cells) & self._renewed
            for cell in cells:
                if cell.cell.key in done:
                    self.tell(f"{cell.prompt_type}: measured afresh already; the interrupted rest goes on.")
            return [c for c in cells if c.cell.key not in done]
        proven, stored = self._proven(cells), self._stored(cells)
        return [c for c in cells if c.cell.key not in proven or self._opens(c, stored[c.cell.key])]

    def _opens(self, cell: CellRun, proof: Recommendation) -> bool:
        """Whether a proven cell is measured all the same; says why, or why not."""
        noted = cell.study.noted(OPENED) or ()
        names = {self._name(draft) for draft in cell.news}.union(noted)
        if names:
            cell.opened_for = tuple(sorted(names))
            cell.stands = proof if self._holds(proof) else None
            replaced = {self._name(draft) for draft in cell.news & cell.study.drafts_tried()}
            reasons = [f"{name} was replaced by another file" for name in sorted(replaced)]
            if new := sorted(names - replaced):
                were = "was" if len(new) == 1 else "were"
                reasons.insert(0, f"{' and '.join(new)} {were} not among the drafts tried")
            self.tell(f"{cell.prompt_type}: proven before, but {', and '.join(reasons)}.")
            return True
        moved = self.store.drafts.today(proof.drafting, str(proof.evidence.get(DRAFT_ID) or ""), math.inf)
        if moved not in (None, proof.drafting):
            self.tell(f"{cell.prompt_type}: proven before, and its draft is {moved.draft} now.")
            return True
        self.tell(f"{cell.prompt_type}: proven before; --again measures afresh.")
        return False

    def begin(self, cells: Sequence[CellRun]) -> dict[str, float]:
        """Cell key → measurements before this moment do not count; it moves when the user asks to measure again.

        All that beginning again means is stored before the first measurement, so that whoever is killed after it goes on.
        """
        now = time.time()
        epochs = {}
        for cell in cells:
            afresh = cell.cell.key in self._afresh
            if afresh:
                self.store.forget_surveys(cell.cell.key)
                forget_idle_drafts(cell, self.store, self.request.protocol)
            noted = None if afresh else cell.study.noted(EPOCH)
            if noted is None:
                noted = now
                cell.study.note(EPOCH, noted)
            epochs[cell.cell.key] = float(noted)
            # A proof that goes on is for the request that it began with, whatever the traffic has become since.
            requests = None if afresh else cell.study.noted(REQUESTS)
            if requests is None:
                cell.study.note(REQUESTS, cell.shapes.to_json())
            else:
                cell.shapes = Shapes.from_json(requests)
            if cell.opened_for:
                cell.study.note(OPENED, list(cell.opened_for))
            if afresh:
                cell.study.note(RENEWAL, noted)
                renew(self.store, self.hardware, cell.cell)
        return epochs

    def _begin_again(self, cells: Sequence[CellRun]) -> None:
        """Forget what was found of the cells that `--again` begins with, not of those that it goes on with."""
        stored = self._stored(cells)
        proven = self._proven(cells)
        renewals = {
            c.cell.key: renewal_of(c.study, stored.get(c.cell.key), proven=c.cell.key in proven)
            for c in cells
        }
        self._afresh = to_begin(renewals)
        self._renewed = {key for key, r in renewals.items() if r.finished} - self._afresh
        for cell in cells:
            if cell.cell.key in self._afresh:
                cell.study.begin_again()

    def _news(self, cell: CellRun, space: Space, stored: Recommendation | None) -> frozenset[str]:
        """Paths of the drafts of this tune that no search of the cell could try yet."""
        drafts = space.drafts.by_path
        searched = cell.study.noted(SEARCHED)
        if searched is not None:
            return frozenset(path for path, file in drafts.items() if file.identity not in searched)
        # Older searches did not note their drafts; the proof's basis has those that fitted, unless the user named some.
        basis = (stored.evidence.get("basis") if stored is not None else None) or {}
        fitted = basis.get("drafts")
        if fitted is not None:
            known = {key.partition(":")[2] for key in fitted}
            return frozenset(path for path, file in drafts.items() if file.fingerprint not in known)
        if basis and self.request.drafts:
            return frozenset(drafts.keys() - cell.study.drafts_tried())
        return frozenset()

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
        identity = proof.evidence.get(DRAFT_ID)
        return model is not None and identity in (None, draft_file(model).identity)

    def _stored(self, cells: Sequence[CellRun]) -> dict[str, Recommendation]:
        """Cell key → what is served for it."""
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


def save(
    store: Store,
    recommendation: Recommendation,
    hardware: Hardware,
    cell: Cell,
    stands: Recommendation | None = None,
) -> None:
    """Keep a cell's recommendation; a proven one gives way to a proof, and to nothing less.

    While a cell is measured afresh the search knows less than the proof that was there, also of one that has gone stale
    since, so that it stays.

    Args:
        store: Where to.
        recommendation: What is concluded now.
        hardware: This machine.
        cell: The cell.
        stands: A proof that holds, of a cell that is measured again for further drafts only: it gives way to a better one.
    """
    if stands is not None and recommendation.status is Status.PROVEN and not _better(recommendation, stands):
        store.save_recommendation(_with_comparison(stands, recommendation), hardware, cell)
        return
    if recommendation.status is not Status.PROVEN:
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and stored[0].recommendation.status in (Status.PROVEN, Status.STALE):
            renew(store, hardware, cell)
            return
    store.save_recommendation(recommendation, hardware, cell)


def settles(winner: Drafting, stands: Recommendation | None) -> bool:
    """Whether a search for further drafts has found nothing that is to be proved: what stands was found once more.

    Args:
        winner: What the search ended with; off where nothing could be measured.
        stands: The proof that holds; ``None`` where there is none.
    """
    return stands is not None and (winner.is_off or winner == stands.tried)


def _better(new: Recommendation, old: Recommendation) -> bool:
    if old.verdict is not Verdict.ENABLE:
        return True
    return new.verdict is Verdict.ENABLE and (new.speedup or 0.0) > (old.speedup or 0.0)


def _with_comparison(old: Recommendation, new: Recommendation) -> Recommendation:
    """What stands, with what it was compared with, and resting on the drafts of today."""
    figures = new.to_json()
    compared = {
        "drafting": figures["tried"],
        **{name: figures[name] for name in ("speedup", "speedup_ci", "verdict")},
        "rounds": new.evidence.get("rounds"),
    }
    known = [p for p in old.evidence.get("also_proved", ()) if p.get("drafting") != compared["drafting"]]
    basis = new.evidence.get("basis", old.evidence.get("basis"))
    return replace(old, evidence={**old.evidence, "also_proved": [*known, compared], "basis": basis})


def renew(store: Store, hardware: Hardware, cell: Cell) -> None:
    """Mark a stale recommendation as being measured afresh: the next tune goes on instead of beginning again.

    To be called as soon as the measuring begins, as a kill lets nothing be said at the end.
    """
    stored = store.recommendations(cell_keys=[cell.key])
    if not stored:
        return
    old = stored[0].recommendation
    if old.status is Status.STALE and not old.evidence.get("renewing"):
        renewing = replace(old, evidence={**old.evidence, "renewing": True})
        store.save_recommendation(renewing, hardware, cell)
