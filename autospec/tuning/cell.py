"""The cells of one tune: which there are, the state of each while it is tuned, and what is reported of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from autospec.backends.protocol import Capabilities, Cycle
from autospec.cells import Cell, Hardware, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import (
    BackendError,
    BusyError,
    StoreError,
    SuiteError,
)
from autospec.formats import counted
from autospec.measure.asking import Asking
from autospec.measure.measurements import AS_MEASURED, CACHED_SHARE, TRAFFIC_S, Pair, Shapes, of_traffic
from autospec.measure.verdict import Decision
from autospec.prompts.suite import Half, Prompt
from autospec.recommendations import Limits, Recommendation, Status, Verdict
from autospec.store.database import CellLocks, Store
from autospec.tuning.budget import Budget
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.request import TuneRequest, draft_file
from autospec.tuning.resume import (
    DRAFT_ID,
    CellHistory,
    note_begin,
    note_failing,
    note_look,
    note_rival,
    renewing,
    to_restart,
)
from autospec.tuning.space import Space
from autospec.tuning.study import WINNER, CellStudy, open_storage

__all__ = [
    "NOTHING_TO_DRAFT",
    "CellProgress",
    "CellRun",
    "Progress",
    "TuneContext",
    "TuneSession",
    "TuneStep",
    "acceptance",
    "mean_log_ratio",
]

# Why a cell's drafting is off whose model ends every answer at once.
NOTHING_TO_DRAFT = "Every answer is one token long: there is nothing to draft."


@dataclass(frozen=True, slots=True)
class CellProgress:
    """The state of one prompt type.

    Attributes:
        prompt_type: The prompt type.
        best: Best drafting found so far, or off.
        ratio: Its speed ratio to off; ``None`` before any pair.
        pairs: Number of pairs that the ratio rests on.
        word: ``searching``, ``proving``, ``enable``, ``disable`` or ``undecided``.
    """

    prompt_type: PromptType
    best: Drafting
    ratio: float | None
    pairs: int
    word: str


@dataclass(frozen=True, slots=True)
class TuneStep:
    """The step that a tune is at.

    Attributes:
        phase: ``start`` (the first launch, without drafting), ``record`` (answers without drafting), ``read`` (those answers, with
            a draft alone), ``launch``, ``search``, ``idle`` (a loaded draft that does not draft), ``prove``, ``limits`` or
            ``overall`` (pairs that the answer for all prompt types together lacks).
        drafting: The drafting that is measured; off in the first three phases.
        number: Number of the trial, round, draft or check.
        of: The highest number that is possible.
        done: Pairs or answers of this step that are done.
        todo: Pairs or answers of this step in all.
        left_s: Budget that is left, in seconds; negative where it is exceeded.
        ends_in_s: Seconds until the tune is expected to end; ``None`` where only the budget is known.
    """

    phase: str
    drafting: Drafting
    number: int
    of: int
    done: int
    todo: int
    left_s: float
    ends_in_s: float | None = None


class Progress:
    """Receives what a tune reports. This one drops it."""

    def step(self, step: TuneStep) -> None:
        """A step began or moved on."""

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """The state of every prompt type."""

    def tell(self, text: str) -> None:
        """One sentence worth keeping: a trial's result, a refusal, a verdict."""


@dataclass(frozen=True, slots=True)
class Proved:
    """The state of one drafting's proof: its last look, and the number of complete rounds."""

    drafting: Drafting
    decision: Decision
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As evidence."""
        estimate = self.decision.estimate
        return {
            "drafting": self.drafting.to_json(),
            "speedup": None if estimate is None else round(estimate.ratio, 4),
            "speedup_ci": None if estimate is None else [_finite(end) for end in estimate.interval],
            "verdict": str(self.decision.verdict),
            "rounds": self.rounds,
        }


@dataclass(slots=True)
class CellRun:
    """The state of one cell in one tune. The only mutable object that search and proof share."""

    cell: Cell
    study: CellStudy
    tune_prompts: tuple[Prompt, ...]
    prove_prompts: tuple[Prompt, ...]  # none of them is a tune prompt
    winner: Drafting = (
        OFF  # the drafting to prove; off before the search has chosen, and where nothing could be tried
    )
    runner_up: Drafting = OFF  # the best of another arm, proved if the winner fails; off if there is none
    shares_rate: bool = (
        False  # True if the error rate is for two draftings, even where one of them can no longer be proved
    )
    searched: bool = False
    decision: Decision | None = None  # the last look of the proof
    rounds: int = 0  # complete rounds of proof
    pending: bool = False  # True if the last look does not decide, because the other drafting is proved next
    other: Proved | None = None  # the drafting that was proved before the winner
    trial_values: dict[Drafting, float] = field(default_factory=dict)  # speed ratios to off
    off_recorded: bool = False  # True once the study has its trial of off
    nothing_to_draft: bool = False  # True if every recorded answer ended with its first token
    shapes: Shapes = AS_MEASURED  # the requests that the measured answers stand for
    news: frozenset[str] = frozenset()  # paths of drafts that no search of this cell could try yet
    untried: frozenset[str] = frozenset()  # labels of the arms that the search had no time to try
    opened_for: tuple[str, ...] = ()  # names of the drafts and arms for which a proven cell is measured again
    stands: Recommendation | None = (
        None  # that proof, while it holds: it is served until there is a better one
    )
    history: CellHistory = field(default_factory=CellHistory)
    limits: Limits | None = None  # how far the winner holds; ``None`` before that is checked

    @property
    def prompt_type(self) -> PromptType:
        """The cell's prompt type."""
        return self.cell.prompt_type

    @property
    def best(self) -> tuple[Drafting, float] | None:
        """The best drafting of the search and its speed ratio."""
        if not self.trial_values:
            return None
        drafting = max(self.trial_values, key=lambda d: self.trial_values[d])
        return drafting, self.trial_values[drafting]

    @property
    def decided(self) -> bool:
        """True if the proof is over."""
        return self.decision is not None and self.decision.final and not self.pending

    @property
    def enabled(self) -> bool:
        """True if the last look enables the winner."""
        return self.decision is not None and self.decision.verdict is Verdict.ENABLE

    @property
    def prediction(self) -> Any:
        """The prediction for the drafting that the proof is for, as JSON values; ``None`` if there is none."""
        return self.history.predictions[self.winner == self.runner_up]

    @property
    def contests(self) -> bool:
        """True if the winner is a rival whose proof an earlier tune began: it is proved beside the proof that stands."""
        return self.stands is not None and self.winner == self.history.rival

    def note_rival(self, rival: Drafting, *, over: bool) -> None:
        """Note what is proved beside the enabled winner, see `resume.note_rival`."""
        self.history = note_rival(self.study, self.history, rival, over=over)

    def note_look(self, pairs: Sequence[Pair], *, enabled: bool) -> None:
        """Note that these pairs were looked at after the current rounds, see `resume.note_look`."""
        self.history = note_look(self.study, self.history, self.winner, self.rounds, pairs, enabled=enabled)

    def note_failing(self, drafting: Drafting, reasons: Mapping[str, str]) -> None:
        """Note why prompts fail with a drafting that off answers, by prompt id."""
        self.history = note_failing(self.study, self.history, drafting, reasons)

    def recall(self, history: CellHistory, space: Space) -> None:
        """Take over an earlier tune's choice, unless its draft is gone or was not named this time.

        What context costs a draft is known under its path of today.
        """
        requests = history.requests
        if requests is not None:
            requests = requests.followed(space.drafts.identities)
        rival = history.rival
        if rival is not None and space.arm_of(rival) is None:
            rival = None
        self.history = history = replace(history, requests=requests, rival=rival)
        winner, runner_up = history.winner, history.runner_up
        if winner is None or not (winner.is_off or space.arm_of(winner) is not None):
            return
        self.winner, self.searched, self.shares_rate = winner, True, history.shares_rate
        served = history.served
        self.nothing_to_draft = winner.is_off and served is not None and served.reason == NOTHING_TO_DRAFT
        if space.arm_of(runner_up) not in (None, space.arm_of(winner)):
            self.runner_up = runner_up
        self.trial_values = dict(history.tried)

    def reopen(self, error: BackendError) -> None:
        """Have the next tune search again: the winner was predicted without a trial, and its first launch failed."""
        permanent = self.study.is_permanent(self.winner, error)
        with suppress(StoreError):
            self.study.start(self.winner, None).fail(error.message, permanent=permanent)
            self.study.note(WINNER, None)
        self.searched = False

    def turn_to(self, drafting: Drafting, *, decision: Decision | None = None, rounds: int = 0) -> None:
        """Continue with the proof of another drafting; the state of this one's is kept in `other`."""
        self.other = None if self.decision is None else Proved(self.winner, self.decision, self.rounds)
        self.winner, self.decision, self.rounds, self.pending = drafting, decision, rounds, False
        self.limits = None

    def has_another(self, refused: Drafting) -> bool:
        """Whether the runner-up may be enabled instead of this drafting: its proof has not ended."""
        other = self.other
        ended = other is not None and other.drafting == self.runner_up and other.decision.final
        return self.runner_up not in (OFF, refused) and not ended

    def reopened(self, fallen: Recommendation) -> Recommendation:
        """A proof that no longer enables its drafting: left to the next tune if another drafting of the cell may be enabled."""
        also = fallen.evidence.get("also_proved", ())
        if not (self.has_another(fallen.tried) or any(p.get("verdict") == Verdict.ENABLE for p in also)):
            return fallen
        reason = f"{fallen.reason.rstrip('.')}; run tune again to continue."
        return replace(fallen, status=Status.PROVISIONAL, reason=reason)

    def standing(self) -> CellProgress:
        """The cell's state, to be reported."""
        if self.decision is not None and self.decision.estimate is not None:
            word = str(self.decision.verdict) if self.decided else "proving"
            estimate = self.decision.estimate
            return CellProgress(self.prompt_type, self.winner, estimate.ratio, estimate.n, word)
        if self.searched:
            word = str(self.decision.verdict) if self.decision is not None and self.decided else "proving"
            return CellProgress(self.prompt_type, self.winner, self.trial_values.get(self.winner), 0, word)
        drafting, ratio = self.best or (OFF, None)
        return CellProgress(self.prompt_type, drafting, ratio, 0, "searching")


@dataclass(frozen=True, slots=True)
class TuneSession:
    """The cells of one tune: which there are, which need measuring, and since when measurements count.

    Cells that are locked stay locked while `locks` is open; `tell` gets what is left out, and why.
    """

    request: TuneRequest
    hardware: Hardware
    store: Store
    locks: CellLocks
    tell: Callable[[str], None]

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
            build, hardware = capabilities.build, self.hardware
            cell = Cell(request.model.ref, prompt_type, build, hardware, settings, request.aim)
            if not self.locks.take(cell.key):
                self.tell(f"{prompt_type}: another machine is measuring this prompt type.")
                continue
            study = CellStudy(cell, storage, request.definition, space, request.protocol)
            tune_prompts = tune[: request.definition.prompts]
            cells.append(CellRun(cell, study, tune_prompts, prove, shapes=self._shapes(cell, capabilities)))
        if not cells:
            raise BusyError(
                "An autospec on another machine of the same kind is measuring these prompt types.",
                "Wait for it to finish; its results are kept in the same database.",
            )
        self.store.drafts = space.drafts
        histories = self._histories(cells)
        for run in cells:
            run.recall(histories[run.cell.key], space)
            run.news = run.history.news(space.drafts.by_path, named=bool(request.drafts))
            run.untried = run.history.untried & {a.label for a in space.arms}
            if run.news or run.untried:
                run.searched = False
        return cells

    def _histories(self, cells: Sequence[CellRun]) -> dict[str, CellHistory]:
        """Cell key → history; cells that `--again` measures from the start begin again."""
        found = self.store.recommendations(cell_keys=[c.cell.key for c in cells])
        served = {s.cell_key: s.recommendation for s in found}
        histories = {
            c.cell.key: CellHistory.read(c.study, served.get(c.cell.key), self.request) for c in cells
        }
        if self.request.again:
            restarted = to_restart({key: history.remeasurement() for key, history in histories.items()})
            # An unfinished one has no look left for a study with fewer rounds.
            last = self.request.definition.rule.looks[-1]
            restarted |= {key for key, history in histories.items() if history.latest_look() > last}
            for cell in cells:
                if cell.cell.key in restarted:
                    cell.study.begin_again()
                    histories[cell.cell.key] = histories[cell.cell.key].begun_again()
        return histories

    def to_measure(self, cells: Sequence[CellRun]) -> list[CellRun]:
        """The cells without a proof, or with a draft or an arm that no search tried; with `--again`, the unfinished ones."""
        return [c for c in cells if (self._reopens(c) if c.history.proven else self._has_looks(c))]

    def _has_looks(self, cell: CellRun) -> bool:
        """Whether this study may still decide a cell; tells why not. No study enables before the latest look that was taken."""
        study, looked = self.request.definition, cell.history.latest_look()
        if not cell.searched or looked <= study.rule.looks[-1]:
            return True
        self.tell(
            f"{cell.prompt_type}: an earlier study looked at {counted(looked, 'round')} of this proof, and {study.name} ends after "
            f"{study.rule.looks[-1]}. Run that study, or use --again to measure it again."
        )
        return False

    def _reopens(self, cell: CellRun) -> bool:
        """Whether a proven cell is measured again; tells the reason either way."""
        history, drafts = cell.history, self.store.drafts
        if self.request.again:
            finished = history.remeasurement().finished
            if finished:
                self.tell(
                    f"{cell.prompt_type}: already measured again before the interruption; the other prompt types continue."
                )
            return not finished
        names = history.opens_for(cell.news, cell.untried, drafts)
        why = history.why_open(names, cell.news, cell.untried, drafts)
        if not why and (proof := history.served) is not None and self._contests(cell, proof):
            why = f"the proof of {cell.winner.label} beside it is not finished"
        if not why:
            self.tell(f"{cell.prompt_type}: already proven; use --again to measure it again.")
            return False
        if names:
            cell.opened_for = names
            proof = history.served
            cell.stands = proof if proof is not None and self._draft_is_there(proof) else None
        self.tell(f"{cell.prompt_type}: already proven, but {why}.")
        return True

    def _contests(self, cell: CellRun, proof: Recommendation) -> bool:
        """Whether the proof of the rival goes on, beside the one that stands; a tune was interrupted in it, or its budget ended."""
        history, rival = cell.history, cell.history.rival
        enabled = proof.verdict is Verdict.ENABLE and self._draft_is_there(proof)
        if rival is None or history.rival_over or rival == proof.tried or not enabled:
            return False
        # What the search predicted of another drafting is none of its evidence.
        named = history.predictions[1] if rival == history.runner_up else None
        cell.history = replace(history, predictions=(named, None))
        cell.winner, cell.runner_up, cell.stands = rival, OFF, proof
        return True

    def _draft_is_there(self, proof: Recommendation) -> bool:
        """Whether the draft of a proven drafting is still there, and the same file."""
        draft = proof.drafting.draft
        if draft is None:
            return True
        models = (*self.request.drafts, *self.request.models)
        model = next((m for m in models if str(m.path) == draft), None)
        return model is not None and proof.evidence.get(DRAFT_ID) in (None, draft_file(model).identity)

    def begin(self, cells: Sequence[CellRun]) -> None:
        """Note since when measurements count; `--again` moves that.

        Every change of a restart is stored before the first measurement, so that the next tune continues after a kill.
        """
        now_s = time.time()
        for cell in cells:
            restarts, served = cell.history.restarts, cell.history.served
            if restarts:
                self.store.forget_surveys(cell.cell.key)
            cell.history = note_begin(cell.study, cell.history, now_s, cell.shapes, cell.opened_for)
            cell.shapes = cell.history.requests or cell.shapes
            if restarts and (marked := renewing(served)):
                self.store.save_recommendation(marked, self.hardware, cell.cell)

    def _shapes(self, cell: Cell, capabilities: Capabilities) -> Shapes:
        """The usual requests of this cell: from live traffic, else from the suite."""
        since = time.time() - TRAFFIC_S
        samples = self.store.samples(since=since, model=cell.model.name, prompt_type=cell.prompt_type)
        prompts = self.request.suite.prompts
        uncached, cached_share = capabilities.drafts_uncached, CACHED_SHARE[cell.prompt_type]
        return Shapes(
            cached_share=cached_share,
            max_tokens={p.id: p.max_tokens for p in prompts if p.prompt_type is cell.prompt_type},
            traffic=of_traffic(samples, cached_share if uncached else None),
            first_cycle_in_prompt=capabilities.cycle is Cycle.MLX_LM or not capabilities.tells_drafts,
            drafts_uncached=uncached,
        )


def _finite(number: float) -> float | None:
    return round(number, 4) if math.isfinite(number) else None


def mean_log_ratio(pairs: Sequence[Pair]) -> float:
    """Mean of ln(drafting ÷ off); NaN without pairs."""
    return statistics.fmean(p.log_ratio for p in pairs) if pairs else math.nan


def acceptance(pairs: Sequence[Pair]) -> float | None:
    """Accepted ÷ drafted tokens of all pairs; ``None`` if nothing was drafted or the backend does not report it."""
    drafted = sum(p.drafted.drafted or 0 for p in pairs)
    accepted = sum(p.drafted.accepted or 0 for p in pairs)
    return accepted / drafted if drafted else None


@dataclass(frozen=True, slots=True)
class TuneContext:
    """The tools that the phases of one tune share."""

    definition: StudyDefinition
    space: Space
    launches: Launches
    pairing: PairedRunner
    budget: Budget
    progress: Progress
    asking: Asking
    store: Store
    computing: tuple[str, ...] = ()  # parts of the machine that compute, whose energy every reading must have
