"""The cells of one tune: which there are, which of them need no measuring, and from when measurements count."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autospec.backends.protocol import Capabilities
from autospec.cells import Cell, Hardware, PromptType
from autospec.errors import BusyError, SuiteError
from autospec.measure.shape import CACHED_SHARE, Shapes, of_traffic
from autospec.prompts.suite import Half
from autospec.recommendations import Status
from autospec.store.database import Store
from autospec.store.locks import CellLocks
from autospec.tuning import standing
from autospec.tuning.cell_run import CellRun
from autospec.tuning.choice import recall_choice
from autospec.tuning.idle_draft import forget_idle_drafts
from autospec.tuning.optuna_study import CellStudy, open_storage
from autospec.tuning.renewal import EPOCH, RENEWAL, renewal_of, to_begin
from autospec.tuning.request import TuneRequest
from autospec.tuning.space import Space

__all__ = ["Opening"]

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
                    shapes=self._shapes(cell, prompt_type),
                )
            )
        if not cells:
            raise BusyError(
                "Another autospec is measuring these cells, from another machine like this one.",
                "Wait for it; its results are kept in the same database.",
            )
        if request.again:
            self._begin_again(cells)
        for run in cells:
            recall_choice(run, space)
        return cells

    def _shapes(self, cell: Cell, prompt_type: PromptType) -> Shapes:
        """The requests that people make of this cell: as live traffic shows them, or else as the suite states them."""
        since = time.time() - _TRAFFIC_S
        samples = self.store.samples(since=since, model=cell.model.name, prompt_type=prompt_type)
        prompts = self.request.suite.prompts
        return Shapes(
            cached_share=CACHED_SHARE[prompt_type],
            max_tokens={p.id: p.max_tokens for p in prompts if p.prompt_type is prompt_type},
            traffic=of_traffic(samples),
        )

    def to_measure(self, cells: Sequence[CellRun]) -> list[CellRun]:
        """Those that are not proven; under `--again`, those that it has not proven yet."""
        done = self._proven(cells) & (self._renewed if self.request.again else {c.cell.key for c in cells})
        for cell in cells:
            if cell.cell.key in done:
                self.tell(
                    f"{cell.prompt_type}: measured afresh already; the interrupted rest goes on."
                    if self.request.again
                    else f"{cell.prompt_type}: proven before; --again measures afresh."
                )
        return [c for c in cells if c.cell.key not in done]

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
            if afresh:
                cell.study.note(RENEWAL, noted)
                standing.renew(self.store, self.hardware, cell.cell)
        return epochs

    def _begin_again(self, cells: Sequence[CellRun]) -> None:
        """Forget what was found of the cells that `--again` begins with, not of those that it goes on with."""
        stored = {
            s.cell_key: s.recommendation
            for s in self.store.recommendations(cell_keys=[c.cell.key for c in cells])
        }
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

    def _proven(self, cells: Sequence[CellRun]) -> set[str]:
        """Keys of the cells whose newest recommendation was proven under the same protocol and rule."""
        return {
            s.cell_key
            for s in self.store.recommendations(cell_keys=[c.cell.key for c in cells])
            if s.recommendation.status is Status.PROVEN
            and s.recommendation.evidence.get("protocol") == self.request.protocol
            and s.recommendation.evidence.get("rule") == self.request.rule_digest
        }
