"""What a tune keeps: the served recommendation, the cells to restart, and the basis of a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.cells import Build, Cell, ModelRef, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import Pair, RequestShape, Shapes
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.compatibility import ANY_DRAFTS, DraftFile, DraftFiles
from autospec.store.database import Store, open_store
from autospec.tuning.cell import CellRun
from autospec.tuning.overall_proof import OverallProof
from autospec.tuning.resume import (
    CellHistory,
    Remeasurement,
    basis_digest,
    basis_of,
    failing_json,
    failing_of,
    note_begin,
    note_choice,
    note_failing,
    note_look,
    renewing,
    save_recommendation,
    to_restart,
    with_basis,
    with_failing,
)
from autospec.tuning.space import Arm, Space
from autospec.tuning.study import CellStudy, open_storage
from tests.report.samples import HERE, measurement, recommendation
from tests.tuning.test_run import request_with

CELL = Cell(
    ModelRef("main", "/m/main.gguf", "f1"), PromptType.CODING, Build("llama-server", "b1", "p1"), HERE
)
PAIRS = (Pair(*(measurement(with_drafting=d) for d in (False, True))),)
OPEN = Remeasurement(100.0)
DONE = Remeasurement(100.0, finished=True, holds=True)


@pytest.fixture
def store(tmp_path: Path):
    """An empty database."""
    opened = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    yield opened
    opened.close()


def save(store: Store, new: Recommendation):
    """Store a new conclusion of the cell."""
    save_recommendation(store, new, HERE, CELL)


def served(store: Store):
    """The cell's stored recommendation."""
    (found,) = store.recommendations(cell_keys=[CELL.key])
    return found.recommendation


class TestWhatIsServed:
    """While a cell is measured again."""

    def test_a_stale_recommendation_stays_until_there_is_a_proof(self, store: Store):
        """A new search knows less than the earlier proof; the mark shows that it has started."""
        save(store, recommendation(status=Status.STALE))
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL))
        assert (served(store).status, served(store).verdict) == (Status.STALE, Verdict.ENABLE)
        assert served(store).evidence["renewing"]
        save(store, recommendation(Verdict.DISABLE))
        assert (served(store).status, served(store).verdict) == (Status.PROVEN, Verdict.DISABLE)

    def test_only_a_stale_recommendation_is_marked(self):
        """Before the first measurement, as a kill -9 leaves no time at the end."""
        assert renewing(None) is None
        assert renewing(recommendation(Verdict.DISABLE)) is None
        marked = renewing(recommendation(status=Status.STALE))
        assert marked.status is Status.STALE
        assert marked.evidence["renewing"]
        assert renewing(marked) is None

    def test_the_next_recommendation_replaces_a_provisional_one(self, store: Store):
        """Without a proof, the newest counts."""
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=1))
        save(store, recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, pairs=2))
        assert served(store).pairs == 2


NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
PROMPTS = {"off": ["p1"], "drafted": []}
WITH_DRAFT = Drafting(Mode.DRAFT_MODEL, draft="/m/a.gguf", n_max=4, n_min=0, p_min=0.0)


def failing(
    tried: Drafting, told: dict, verdict: Verdict = Verdict.ENABLE, status: Status = Status.PROVEN, **evidence
) -> Recommendation:
    """A recommendation with these failing prompts in its evidence."""
    return recommendation(
        verdict,
        tried=tried,
        drafting=tried if verdict is Verdict.ENABLE else OFF,
        status=status,
        evidence={"failing": told, **evidence},
    )


class TestPromptsThatFail:
    """What stays served gets to know them, and is not served if they fail with it."""

    def test_the_draftings_of_the_evidence(self):
        """The tried one, the others, and off; a draft that was moved is known, and what another version wrote is left out."""
        others = [
            {"drafting": WITH_DRAFT.to_json(), "draft_id": "i1", "prompts": ["p2"]},
            {"drafting": {"mode": "of a newer version"}, "draft_id": None, "prompts": ["p3"]},
        ]
        r = failing(NGRAM, {"off": ["p1"], "drafted": ["p4"], "others": others})
        moved = DraftFiles({"/new/a.gguf": DraftFile("i1")})
        for drafts, path in ((ANY_DRAFTS, "/m/a.gguf"), (moved, "/new/a.gguf")):
            today = replace(WITH_DRAFT, draft=path)
            assert failing_of(r, drafts) == {OFF: {"p1"}, NGRAM: {"p4"}, today: {"p2"}}
        assert failing_of(recommendation()) == {OFF: frozenset()}
        told = failing_json(NGRAM, failing_of(r), lambda d: "i1" if d == WITH_DRAFT else "")
        assert told == {"off": ["p1"], "drafted": ["p4"], "others": others[:1]}
        assert failing_json(NGRAM, {OFF: frozenset()}, lambda _: "") is None

    def test_a_drafting_with_which_one_fails_is_no_longer_enabled(self):
        """Nothing changes where nothing is new."""
        r = failing(NGRAM, PROMPTS)
        assert with_failing(r, {OFF: frozenset({"p1"}), WITH_DRAFT: frozenset()}) is r
        other = with_failing(r, {WITH_DRAFT: frozenset({"p2"})})
        assert (other.verdict, failing_of(other)[WITH_DRAFT]) == (Verdict.ENABLE, {"p2"})
        own = with_failing(other, {NGRAM: frozenset({"p3"})})
        assert (own.verdict, own.drafting, own.tried) == (Verdict.UNDECIDED, OFF, NGRAM)
        assert own.reason == "1 prompt fails with drafting only."
        assert failing_of(own) == {OFF: {"p1"}, NGRAM: {"p3"}, WITH_DRAFT: {"p2"}}

    def test_a_proof_that_stands_takes_them_over(self, store: Store):
        """The new drafting failed: the answer for all types reads it here."""
        stands = failing(NGRAM, PROMPTS)
        new = failing(WITH_DRAFT, {"off": ["p5"], "drafted": ["p2"]}, Verdict.UNDECIDED)
        save_recommendation(store, new, HERE, CELL, stands)
        assert (served(store).verdict, served(store).drafting) == (Verdict.ENABLE, NGRAM)
        assert failing_of(served(store)) == {OFF: {"p1", "p5"}, WITH_DRAFT: {"p2"}}

    def test_a_proof_that_stands_falls_where_they_fail_with_it(self, store: Store):
        """The new drafting gains less, but works."""
        others = [{"drafting": NGRAM.to_json(), "draft_id": None, "prompts": ["p2"]}]
        new = replace(failing(WITH_DRAFT, PROMPTS | {"others": others}), speedup=1.1)
        save_recommendation(store, new, HERE, CELL, failing(NGRAM, PROMPTS))
        assert (served(store).verdict, served(store).drafting) == (Verdict.ENABLE, WITH_DRAFT)

    def test_an_unfinished_proof_of_the_same_drafting_takes_the_place_of_one_that_falls(self, store: Store):
        """Otherwise the next tune would find it proven, and its runner-up would never be proved."""
        save(store, failing(NGRAM, PROMPTS))
        save(store, failing(NGRAM, {"off": [], "drafted": ["p2"]}, Verdict.UNDECIDED, Status.PROVISIONAL))
        assert (served(store).verdict, served(store).status) == (Verdict.UNDECIDED, Status.PROVISIONAL)

    @pytest.mark.parametrize(
        ("runner_up", "also", "status"),
        [
            (OFF, (), Status.PROVEN),
            (NGRAM, (), Status.PROVEN),
            (WITH_DRAFT, (), Status.PROVISIONAL),
            (NGRAM, ({"verdict": "disable"},), Status.PROVEN),
            (NGRAM, ({"verdict": "enable"},), Status.PROVISIONAL),
        ],
    )
    def test_a_proof_that_falls_in_the_step_for_all_types(self, store: Store, runner_up, also, status):
        """It is left to the next tune where another drafting of the cell may be enabled."""
        save(store, failing(NGRAM, PROMPTS, also_proved=list(also)))
        session = SimpleNamespace(
            request=SimpleNamespace(definition=SimpleNamespace(rule=None)), store=store, hardware=HERE
        )
        cell = CellRun(CELL, SimpleNamespace(), (), (), winner=NGRAM, runner_up=runner_up)
        step = OverallProof(session, [cell], None, None, resident=lambda: 2, step=print, failing={})
        step._keep_failing(SimpleNamespace(all_failing=lambda _: {NGRAM: frozenset({"p2"})}))
        assert (served(store).verdict, served(store).status) == (Verdict.UNDECIDED, status)
        assert served(store).reason.endswith("run tune again to continue.") is (status is Status.PROVISIONAL)

    @pytest.mark.parametrize(("epoch", "off"), [(7.0, {"p1", "p5"}), (9.0, {"p1"})])
    def test_an_unfinished_proof_leaves_them_with_what_is_served(self, store: Store, epoch: float, off: set):
        """Those of off belong to the pairs of their epoch."""
        save(store, failing(NGRAM, PROMPTS, status=Status.STALE, epoch=7.0))
        told = {"off": ["p5"], "drafted": ["p2"]}
        save(store, failing(WITH_DRAFT, told, Verdict.UNDECIDED, Status.PROVISIONAL, epoch=epoch))
        assert (served(store).status, served(store).drafting) == (Status.STALE, NGRAM)
        assert served(store).evidence["renewing"]
        assert failing_of(served(store)) == {OFF: off, WITH_DRAFT: {"p2"}}


class TestWhatIsMeasuredAgain:
    """By `--again`."""

    @pytest.mark.parametrize(
        ("cells", "restarted"),
        [
            pytest.param({"a": Remeasurement(), "b": Remeasurement()}, {"a", "b"}, id="none-started"),
            pytest.param({"a": DONE, "b": DONE}, {"a", "b"}, id="all-finished"),
            pytest.param({"a": DONE, "b": OPEN}, set(), id="one-unfinished"),
            pytest.param({"a": OPEN, "b": OPEN}, set(), id="all-unfinished"),
            pytest.param({"a": OPEN, "b": Remeasurement()}, {"b"}, id="another-prompt-type-joins"),
            pytest.param({"a": Remeasurement(200.0), "b": DONE}, {"b"}, id="killed-between-two-cells"),
            pytest.param(
                {"a": OPEN, "b": Remeasurement(100.0, finished=True)}, {"b"}, id="proof-became-stale"
            ),
            pytest.param(
                {"a": OPEN, "b": Remeasurement(200.0, finished=True, holds=True)},
                set(),
                id="younger-one-counts",
            ),
        ],
    )
    def test_cells_to_restart(self, cells, restarted):
        """The others continue, or are finished."""
        assert to_restart(cells) == restarted


DRAFTED = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
OTHER = Drafting(Mode.NGRAM_SIMPLE, ngram_n=8, ngram_m=8, min_hits=1)
RENEWED = CellHistory(epoch_s=100.0, renewal_s=100.0)


def proof(status: Status = Status.PROVEN, **evidence):
    """A recommendation with this evidence."""
    return replace(recommendation(status=status), evidence=evidence)


class TestHistory:
    """What a tune knows of a cell when it begins."""

    @pytest.fixture
    def request_(self, tmp_path: Path):
        """A tune with an empty database."""
        return request_with(tmp_path)

    @pytest.fixture
    def study(self, request_):
        """An empty study of two draft-free modes."""
        space = Space((Arm(Mode.NGRAM_SIMPLE),), request_.definition.space)
        return CellStudy(CELL, open_storage(request_.storage), request_.definition, space, request_.protocol)

    def test_a_later_tune_reads_what_an_earlier_one_noted(self, study, request_):
        """The value that a tune works with is the one that the next tune reads."""
        empty = CellHistory.read(study, None, request_)
        assert empty == CellHistory(rule=request_.rule_digest)
        begun = note_begin(study, empty, 7.0, Shapes(cached_share=0.5), ("new",))
        chosen = note_choice(study, begun, DRAFTED, OTHER, ({"expected": 1.2}, None))
        looked = note_look(study, chosen, DRAFTED, 2, PAIRS, enabled=True)
        read = CellHistory.read(study, None, request_)
        assert not read.spent(DRAFTED, 2, PAIRS)
        assert (read.epoch_s, read.requests, read.opened_for) == (7.0, Shapes(cached_share=0.5), {"new"})
        assert (read.winner, read.runner_up, read.shares_rate) == (DRAFTED, OTHER, True)
        assert (read.predictions, read.looks) == (looked.predictions, looked.looks)
        assert (read.last_look(DRAFTED), read.last_look(OTHER), read.searched) == (2, 0, frozenset())

    def test_looks_follow_a_draft_that_is_moved(self, request_):
        """They were looked for under the new path, so every look was taken again, at the full error rate."""
        here, there = (
            Drafting(Mode.DRAFT_MODEL, draft=path, n_max=4, n_min=0, p_min=0.0)
            for path in ("/a/d.gguf", "/b/d.gguf")
        )

        def study(path):
            arm = Arm(Mode.DRAFT_MODEL, path, file=DraftFile(identity="same"))
            space = Space((arm,), request_.definition.space)
            return CellStudy(
                CELL, open_storage(request_.storage), request_.definition, space, request_.protocol
            )

        before = study("/a/d.gguf")
        begun = note_begin(before, CellHistory.read(before, None, request_), 7.0, Shapes(), ())
        note_look(before, begun, here, 2, PAIRS)
        later = CellHistory.read(study("/b/d.gguf"), None, request_)
        assert later.last_look(there) == 2
        assert later.spent(there, 2, PAIRS)

    def test_what_the_next_tune_knows_after_a_restart(self, study, request_):
        """The epoch moves; choice, predictions and looks of the earlier epoch no longer count."""
        begun = note_begin(study, CellHistory(), 7.0, Shapes(cached_share=0.5), ())
        chosen = note_choice(study, begun, DRAFTED, OTHER, ({"expected": 1.2}, None))
        note_look(study, chosen, DRAFTED, 2, PAIRS)
        read = CellHistory.read(study, None, request_)
        study.begin_again()
        again = note_begin(study, read.begun_again(), 8.0, Shapes(), ())
        known = CellHistory.read(study, None, request_)
        assert (known.epoch_s, known.renewal_s, known.requests) == (8.0, 8.0, Shapes())
        assert known == replace(again, restarts=False)

    def test_a_look_that_an_earlier_version_noted_is_spent(self, study, request_):
        """It notes epoch and rounds alone: by which rule it looked, and at which pairs, is not known."""
        begun = note_begin(study, CellHistory(rule="old"), 7.0, Shapes(), ())
        note_look(study, begun, DRAFTED, 2, PAIRS)
        assert not CellHistory.read(study, None, request_).spent(DRAFTED, 2, PAIRS)
        [name] = [name for name in study.notes() if name.startswith("look ")]
        assert study.notes()[name] == [7.0, 2], "earlier versions read it so"
        study.note(name, [7.0, 4])
        later = CellHistory.read(study, None, request_)
        assert (later.last_look(DRAFTED), later.spent(DRAFTED, 4, PAIRS)) == (4, True)
        assert not later.spent(DRAFTED, 8, PAIRS)

    def test_a_proof_stays_for_the_requests_that_it_began_with(self, study):
        """The traffic has changed since; epoch and requests of the first tune stay."""
        first = note_begin(study, CellHistory(), 7.0, Shapes(cached_share=0.5), ())
        assert note_begin(study, first, 8.0, Shapes(cached_share=0.9), ()) == first

    @pytest.mark.parametrize("renewal_s", [None, 900.0])
    def test_an_epoch_in_the_future_begins_now(self, study, request_, renewal_s):
        """A clock that was ahead noted it: nothing that is measured until then would count. Looks and failing prompts stay."""
        wrong = note_begin(study, replace(CellHistory(), restarts=renewal_s is not None), 900.0, Shapes(), ())
        chosen = note_choice(study, wrong, DRAFTED, OTHER, (None, None))
        looked = note_look(study, chosen, DRAFTED, 2, PAIRS)
        note_failing(study, looked, OTHER, {"p1": "status 500"})
        noted = CellHistory.read(study, None, request_)
        assert (noted.epoch_s, noted.renewal_s) == (900.0, renewal_s)
        note_begin(study, noted, 8.0, Shapes(), ())
        read = CellHistory.read(study, None, request_)
        assert (read.epoch_s, read.renewal_s) == (8.0, None if renewal_s is None else 8.0)
        assert (read.looks, read.failing) == (noted.looks, noted.failing)
        assert (read.last_look(DRAFTED), read.failing) == (2, {OTHER: {"p1": "status 500"}})
        assert read.remeasurement() == replace(noted.remeasurement(), epoch_s=read.renewal_s)

    def test_what_the_prompt_cache_does_counts_as_it_is_now(self, study, request_):
        """A proof that began with an earlier version: it took the drafted server's prompt for cached."""
        note_begin(study, CellHistory(), 7.0, Shapes(cached_share=0.5), ())
        noted = CellHistory.read(study, None, request_)
        begun = note_begin(study, noted, 8.0, Shapes(cached_share=0.9, drafts_uncached=True), ())
        assert begun.requests == Shapes(cached_share=0.5, drafts_uncached=True)
        assert CellHistory.read(study, None, request_).requests == begun.requests

    @pytest.mark.parametrize("today", [None, RequestShape(900.0, 50.0, drafted_prompt_tokens=3000.0)])
    def test_noted_traffic_does_not_tell_what_drafting_computes(self, study, today):
        """Such traffic gives drafting the cached prompt of drafting off: today's, or the suite, takes its place."""
        old, new = Shapes(traffic=RequestShape(400.0, 70.0)), Shapes(traffic=today, drafts_uncached=True)
        noted = note_begin(study, CellHistory(), 7.0, old, ())
        begun = note_begin(study, noted, 8.0, new, ())
        assert begun.requests == new
        later = replace(new, traffic=RequestShape(500.0, 60.0, drafted_prompt_tokens=2000.0))
        assert note_begin(study, begun, 9.0, later, ()).requests == new, "it counts from then on"

    def test_only_a_proof_of_the_current_protocol_and_rule_holds(self, study, request_):
        """Another rule or suite, or a stale one: it is measured again."""
        current = {"protocol": request_.protocol, "rule": request_.rule_digest}
        proven = [
            CellHistory.read(study, served, request_).proven
            for served in (
                proof(**current),
                proof(**current | {"rule": "another"}),
                proof(**current | {"protocol": "another"}),
                proof(Status.STALE, **current),
            )
        ]
        assert proven == [True, False, False, False]

    @pytest.mark.parametrize(
        ("history", "state"),
        [
            pytest.param(CellHistory(), Remeasurement(), id="never-tuned"),
            pytest.param(CellHistory(epoch_s=100.0), Remeasurement(), id="tuned-without-again"),
            pytest.param(replace(RENEWED, renewal_s=90.0), Remeasurement(), id="killed-before-the-renewal"),
            pytest.param(RENEWED, OPEN, id="interrupted"),
            pytest.param(replace(RENEWED, winner=OFF), DONE, id="nothing-works"),
            pytest.param(replace(RENEWED, served=proof(epoch=90.0), proven=True), OPEN, id="earlier-proof"),
            pytest.param(replace(RENEWED, served=proof(epoch=100.0), proven=True), DONE, id="proven"),
            pytest.param(
                replace(RENEWED, served=proof(Status.STALE, epoch=100.0)),
                Remeasurement(100.0, finished=True),
                id="proof-became-stale",
            ),
        ],
    )
    def test_the_state_of_a_remeasurement(self, history: CellHistory, state: Remeasurement):
        """From what is stored alone."""
        assert history.remeasurement() == state


def test_the_basis_identifies_drafts_by_their_files():
    """Another name of the same file is the same basis; another file is another."""
    known = basis_of(CELL, {"draft-model:d1": "small"})
    assert with_basis(recommendation(), CELL, {"draft-model:d1": "small"}).evidence["basis"] == known
    assert basis_digest(known) == basis_digest(basis_of(CELL, {"draft-model:d1": "renamed"}))
    assert basis_digest(known) != basis_digest(basis_of(CELL, {"draft-model:d2": "small"}))
    other = replace(CELL, build=Build("llama-server", "b2", "p2"))
    assert basis_digest(known) != basis_digest(basis_of(other, {"draft-model:d1": "small"}))
