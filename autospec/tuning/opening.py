"""The cells of one tune: which there are, which of them need no measuring, and from when measurements count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autospec.backends.cycle import Cycle
from autospec.backends.protocol import Capabilities
from autospec.cells import Cell, Hardware, PromptType
from autospec.errors import BusyError, SuiteError
from autospec.measure.shape import CACHED_SHARE, Shapes, of_traffic
from autospec.prompts.suite import Half
from autospec.recommendations import Recommendation, Status
from autospec.store.database import Store
from autospec.store.locks import CellLocks
from autospec.tuning import standing
from autospec.tuning.basis import DRAFT_ID
from autospec.tuning.cell_run import CellRun
from autospec.tuning.choice import recall_choice
from autospec.tuning.draft_identity import draft_file
from autospec.tuning.idle_draft import forget_idle_drafts
from autospec.tuning.optuna_study import OPENED, SEARCHED, CellStudy, open_storage
from autospec.tuning.renewal import EPOCH, RENEWAL, renewal_of, to_begin
from autospec.tuning.request import TuneRequest
from autospec.tuning.space import Space

__all__ = ["REQUESTS", "Opening"]

REQUESTS = "requests"
"""Name of a cell's requests (`Shapes`) among the notes of its study, and in the evidence."""

# Live requests of so many days tell what requests look like.
_TRAFFIC_S = 30 * 86400.0


@dataclass(slots=True)
class Opening:
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
                standing.renew(self.store, self.hardware, cell.cell)
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
