"""What a tune uses of earlier ones: new drafts reopen a proven cell, and a draft is identified by its contents."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from autospec.catalog.model import Model
from autospec.drafting import Drafting, Mode
from autospec.errors import LaunchError
from autospec.measure.measurements import Sample
from autospec.recommendations import NO_LIMITS, Status, Verdict
from autospec.store.database import open_store
from autospec.tuning.cell import CellRun
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.limit_checks import LimitChecks
from autospec.tuning.request import TuneRequest
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import TYPES, Silent, draft_of, nobody_else_is_at_work, request_with, suite, tune

pytestmark = pytest.mark.usefixtures("no_waits")

__all__ = ["nobody_else_is_at_work"]  # a fixture

CODING = TYPES[0]
SPEED = {"draft": 1.3, "fair": 1.15, "new": 1.6, "slow": 0.7}


def draft(main: Model, name: str) -> Model:
    """A draft that fits, with a file of its own."""
    made = draft_of(main, name)
    made.path.write_text(name)
    return made


@pytest.fixture
def request_(tmp_path: Path) -> TuneRequest:
    """A main model with one draft, one prompt type."""
    made = request_with(tmp_path, "draft", prompt_types=(CODING,))
    draft(made.model, "draft")
    return made


def backend() -> SimulatedBackend:
    """Each draft is as fast as its file's name says; n-grams do nothing."""

    def speed(drafting: Drafting, _text: str) -> float:
        return SPEED[Path(drafting.draft).stem] if drafting.draft else 0.99

    return SimulatedBackend(speed, modes=frozenset({Mode.OFF, Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE}))


def served(request: TuneRequest):
    """The cell's stored recommendation."""
    store = open_store(request.storage)
    (found,) = store.recommendations()
    store.close()
    return found.recommendation


def again(request: TuneRequest, progress: Silent | None = None) -> tuple[SimulatedBackend, object]:
    """One more tune, with its launches and its recommendation."""
    simulated = backend()
    result = tune(request, simulated, progress)
    return simulated, result[CODING]


def test_a_named_draft_opens_a_proven_cell(request_):
    """It is searched and proved, and the sentence says why."""
    _, first = again(request_)
    assert (first.status, Path(first.drafting.draft).stem) == (Status.PROVEN, "draft")
    new = draft(request_.model, "new")
    progress = Silent()
    _, second = again(replace(request_, drafts=(new,)), progress)
    assert f"{CODING}: already proven, but new was not among the drafts tried." in progress.told
    assert (second.verdict, second.status) == (Verdict.ENABLE, Status.PROVEN)
    assert Path(second.drafting.draft).stem == "new"
    assert second.speedup == pytest.approx(1.6, rel=0.02)


def test_a_draft_that_has_come_since_opens_a_proven_cell(request_):
    """It is found in the catalogue; a third tune has nothing to do."""
    again(request_)
    request = replace(request_, models=(*request_.models, draft(request_.model, "new")))
    _, second = again(request)
    assert Path(second.drafting.draft).stem == "new"
    progress = Silent()
    third, _ = again(request, progress)
    assert not third.launched
    assert f"{CODING}: already proven; use --again to measure it again." in progress.told


def test_a_cell_stays_closed_where_nothing_is_new(request_):
    """Even if the tried draft is named."""
    again(request_)
    for request in (request_, replace(request_, drafts=request_.models[1:])):
        simulated, _ = again(request)
        assert not simulated.launched


def test_the_same_winner_needs_no_second_proof(request_):
    """The new draft is slower in the search: the earlier proof stays, and no prompt of the proof is asked again."""
    _, first = again(request_)
    request = replace(request_, models=(*request_.models, draft(request_.model, "slow")))
    progress = Silent()
    simulated, second = again(request, progress)
    assert any(d.draft and "slow" in d.draft for d in simulated.launched)
    assert not any("prove" in text for _, _, text in simulated.asked)
    assert (second.drafting, second.pairs, second.created_at) == (
        first.drafting,
        first.pairs,
        first.created_at,
    )
    assert any("no gain over draft-model draft" in told and " with slow;" in told for told in progress.told)
    assert set(second.evidence["basis"]["drafts"].values()) == {"draft", "slow"}
    third, _ = again(request)
    assert not third.launched


def test_the_same_winner_where_drafting_goes_with_the_request(request_):
    """Nothing is left to prove, and no idle draft to compare."""
    for models in (request_.models, (*request_.models, draft(request_.model, "slow"))):
        simulated = backend()
        simulated.per_request = True
        result = tune(replace(request_, models=models), simulated)[CODING]
        assert (result.status, Path(result.drafting.draft).stem) == (Status.PROVEN, "draft")
    assert not any("prove" in text for _, _, text in simulated.asked)


def test_a_slower_named_draft_does_not_replace_what_is_proven(request_):
    """Only the named draft is tried; the faster one's proof stays, with the drafting that it was compared with."""
    _, first = again(request_)
    request = replace(request_, drafts=(draft(request_.model, "slow"),))
    _, second = again(request)
    assert (second.drafting, second.speedup) == (first.drafting, first.speedup)
    assert second.evidence["also_proved"][-1]["verdict"] in ("disable", "undecided")
    simulated, _ = again(request)
    assert not simulated.launched


@pytest.mark.process
def test_the_limits_of_a_drafting_that_is_not_served_are_not_measured(request_, monkeypatch):
    """The new draft is enabled and gains less, so that the proof stays; the next tune checks what is missing of that."""
    _, first = again(request_)
    checked: list[Drafting] = []
    monkeypatch.setattr(LimitChecks, "run", lambda _, subjects: checked.extend(s.drafting for s in subjects))
    definition = replace(request_.definition, limits=LimitsDefinition(check=True))
    request = replace(request_, definition=definition)
    _, second = again(replace(request, drafts=(draft(request_.model, "fair"),)))
    assert second.drafting == first.drafting
    assert second.evidence["also_proved"][-1]["verdict"] == "enable"
    assert not checked
    again(request)
    assert checked == [first.drafting]
    again(replace(request, drafts=(draft(request_.model, "new"),)))
    assert [Path(d.draft).stem for d in checked[1:]] == ["new"]


@pytest.mark.process
def test_the_proof_that_stands_is_served_where_the_second_turn_of_a_better_draft_fails(request_, monkeypatch):
    """Also where a runner-up is left to be proved: what is proven comes first."""
    _, first = again(request_)

    def check(self: LimitChecks, subjects) -> None:
        for subject in subjects:
            self.keep(subject, NO_LIMITS, {"p1": "broken"})

    monkeypatch.setattr(LimitChecks, "run", check)
    monkeypatch.setattr(CellRun, "has_another", lambda *_: True)
    definition = replace(request_.definition, limits=LimitsDefinition(check=True))
    _, second = again(replace(request_, definition=definition, drafts=(draft(request_.model, "new"),)))
    assert (second.drafting, second.status) == (first.drafting, Status.PROVEN)
    assert second.evidence["also_proved"][-1]["verdict"] == "undecided"


def test_what_was_proven_is_served_while_the_cell_is_measured_again(request_):
    """An interruption in the new search leaves the proof, and the next tune continues with the new draft."""
    _, first = again(request_)
    request = replace(request_, drafts=(draft(request_.model, "new"),))
    simulated = backend()

    def interrupt(server, _text):
        if server.drafting.draft and "new" in server.drafting.draft:
            raise KeyboardInterrupt

    simulated.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(request, simulated)
    assert served(request).drafting == first.drafting
    assert served(request).status is Status.PROVEN
    _, second = again(request)
    assert Path(second.drafting.draft).stem == "new"


def test_an_interrupted_proof_of_a_new_draft_goes_on(request_):
    """The search has finished with the new draft; the cell stays open until that is proved."""
    again(request_)
    request = replace(request_, drafts=(draft(request_.model, "new"),))
    simulated = backend()

    def interrupt(server, text):
        if server.drafting.draft and "prove" in text:
            raise KeyboardInterrupt

    simulated.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(request, simulated)
    progress = Silent()
    _, second = again(request, progress)
    assert f"{CODING}: already proven, but new was not among the drafts tried." in progress.told
    assert Path(second.drafting.draft).stem == "new"


def test_a_proof_from_before_searches_noted_their_drafts_tells_by_its_basis(request_):
    """Databases of older versions: by mode and fingerprint."""
    again(request_)
    forget_notes(request_, "searched_drafts")
    closed, _ = again(request_)
    assert not closed.launched
    _, second = again(replace(request_, models=(*request_.models, draft(request_.model, "new"))))
    assert Path(second.drafting.draft).stem == "new"


def forget_notes(request: TuneRequest, name: str) -> None:
    """Take away what older versions did not keep with a study."""
    engine = sa.create_engine(request.storage)
    with engine.begin() as connection:
        connection.execute(
            sa.text("DELETE FROM study_user_attributes WHERE key LIKE :key"), {"key": f"{name}%"}
        )
    engine.dispose()


def interrupted_in_the_proof(request: TuneRequest, answers: int = 8) -> None:
    """A tune that ends after a few answers of the proof."""
    simulated = backend()
    proved: list[str] = []

    def interrupt(_server, text):
        if "prove" in text:
            proved.append(text)
            if len(proved) > answers:
                raise KeyboardInterrupt

    simulated.before_answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(request, simulated)


def of_draft(simulated: SimulatedBackend) -> list[str]:
    """What its launches with a draft were asked."""
    return [text for _, drafting, text in simulated.asked if drafting.draft]


def test_a_draft_that_was_replaced_does_not_pool_with_the_old_file(request_):
    """Same path, same metadata, other contents: search and proof start again with it."""
    interrupted_in_the_proof(request_)
    file = request_.models[1].path
    file.write_text("another download of the same draft")
    simulated, result = again(request_)
    assert result.pairs == 8
    assert {text for text in of_draft(simulated) if "tune" in text}
    assert len({text for text in of_draft(simulated) if "prove" in text}) == 8
    assert all(m.started_at >= file.stat().st_mtime for m in pairs_with_draft(request_, request_.models[1]))


def pairs_with_draft(request: TuneRequest, model: Model):
    """Stored measurements that count for the draft as it is now."""
    from autospec.store.compatibility import DraftFiles
    from autospec.tuning.request import draft_file

    store = open_store(request.storage)
    store.drafts = DraftFiles({str(model.path): draft_file(model)})
    (found,) = store.recommendations()
    rows = [m for m in store.measurements(found.cell_key) if m.compared.draft is not None]
    store.close()
    return rows


def test_a_draft_that_was_replaced_opens_a_proven_cell(request_):
    """The proof was of another file: the new one is searched and proved, also where it turns out slower."""
    _, first = again(request_)
    request_.models[1].path.write_text("a repaired download")
    SPEED["draft"], speed = 0.8, SPEED["draft"]
    try:
        progress = Silent()
        simulated, second = again(request_, progress)
    finally:
        SPEED["draft"] = speed
    assert f"{CODING}: already proven, but draft was replaced by another file." in progress.told
    assert of_draft(simulated)
    assert (second.status, second.verdict) == (Status.PROVEN, Verdict.DISABLE)
    assert second.evidence.get("draft_id") != first.evidence["draft_id"]
    closed, _ = again(request_)
    assert not closed.launched


def test_a_draft_that_vanishes_in_a_tune_is_tried_when_it_is_back(request_):
    """A disk that was unplugged: the draft counted as tried, and as one that fails in any launch, also with `--again`."""
    file = request_.models[1].path
    simulated = backend()

    def launch(drafting: Drafting) -> None:
        if drafting.draft:
            file.unlink(missing_ok=True)
            raise LaunchError("The draft could not be loaded: it is missing.", "", permanent=True)

    simulated.before_launch = launch
    first = tune(request_, simulated)[CODING]
    assert first.drafting.is_off
    file.write_text("draft")
    _, second = again(request_)
    assert (second.verdict, Path(second.drafting.draft).stem) == (Verdict.ENABLE, "draft")


def test_a_draft_that_is_moved_keeps_its_trials_and_pairs(request_, tmp_path):
    """The proof continues under the new path."""
    interrupted_in_the_proof(request_)
    main, old = request_.models
    (tmp_path / "elsewhere").mkdir()
    moved = replace(old, path=Path(shutil.move(old.path, tmp_path / "elsewhere" / old.path.name)))
    simulated, result = again(replace(request_, models=(main, moved)))
    assert not [text for text in of_draft(simulated) if "tune" in text]
    assert len([text for text in of_draft(simulated) if "prove" in text]) == 4
    assert (result.drafting.draft, result.pairs) == (str(moved.path), 8)


def test_a_proven_draft_that_is_moved_is_served_from_its_new_place(request_, tmp_path):
    """From the stored pairs: only the launch without drafting is needed."""
    _, first = again(request_)
    main, old = request_.models
    (tmp_path / "elsewhere").mkdir()
    moved = replace(old, path=Path(shutil.move(old.path, tmp_path / "elsewhere" / old.path.name)))
    simulated, second = again(replace(request_, models=(main, moved)))
    assert not simulated.asked
    assert second.drafting == replace(first.drafting, draft=str(moved.path))
    assert (second.status, second.pairs, second.speedup) == (Status.PROVEN, first.pairs, first.speedup)


@pytest.mark.parametrize(("age_s", "asked"), [(3600.0, 4), (-3600.0, 8)])
def test_rows_without_an_identity_count_where_the_file_is_older(request_, age_s, asked):
    """Rows of earlier versions: a file that was written after them may be another."""
    interrupted_in_the_proof(request_)
    engine = sa.create_engine(request_.storage)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE autospec_measurements SET draft_id = NULL"))
        connection.execute(
            sa.text("UPDATE trial_user_attributes SET value_json = '\"\"' WHERE key = 'draft_id'")
        )
    engine.dispose()
    forget_notes(request_, "winner_draft_id")
    forget_notes(request_, "searched_drafts")
    at_s = time.time() - age_s
    os.utime(request_.models[1].path, (at_s, at_s))
    simulated, _ = again(request_)
    assert len([text for text in of_draft(simulated) if "prove" in text]) == asked


def test_another_method_evaluates_a_proof_again_without_measuring(request_, monkeypatch):
    """It takes its look at the same pairs: the proof keeps its verdict. A third tune finds it proven."""
    _, first = again(request_)
    assert (first.verdict, first.status) == (Verdict.ENABLE, Status.PROVEN)
    monkeypatch.setattr("autospec.tuning.request.METHOD", 1000)
    simulated, second = again(request_)
    assert (second.verdict, second.status, second.pairs) == (Verdict.ENABLE, Status.PROVEN, first.pairs)
    assert second.evidence["rule"] != first.evidence["rule"]
    assert not [text for text in of_draft(simulated) if "prove" in text]
    progress = Silent()
    again(request_, progress)
    assert f"{CODING}: already proven; use --again to measure it again." in progress.told


@pytest.mark.parametrize("args", [(), ("-ngl", "99"), ("-c", "512")])
def test_the_users_settings_are_kept_apart_from_the_cells(request_, args):
    """Measuring adds a context if the user sets none; the cell's key has it, an export must not."""
    _, result = again(replace(request_, args=args))
    added = () if "-c" in args else ("-c", "4096")
    assert result.evidence["user_settings"] == list(args)
    assert result.evidence["settings"] == [*args, *added]


def test_a_gain_is_likely_before_it_is_proven(request_, monkeypatch):
    """Interrupted after ten of sixteen pairs, at a gain too small to be proven on eight: off, with the likely gain."""
    monkeypatch.setitem(SPEED, "draft", 1.1)
    with_sixteen = replace(request_, suite=suite(prove=16))
    interrupted_in_the_proof(with_sixteen, answers=20)
    found = served(with_sixteen)
    assert (found.verdict, found.drafting.is_off, found.status) == (
        Verdict.UNDECIDED,
        True,
        Status.PROVISIONAL,
    )
    assert Path(found.tried.draft).stem == "draft"
    likely = found.evidence["likely"]
    assert likely["speedup"] == pytest.approx(1.1, rel=0.02)
    assert likely["interval"][0] > 1.02
    assert 0.95 <= likely["chance"] < 1.0
    # The look after the second round would enable; a round is eight pairs.
    assert likely["about_s"] > 0
    _, proven = again(with_sixteen)
    assert proven.status is Status.PROVEN
    assert "likely" not in proven.evidence


def test_no_gain_is_not_likely(request_, monkeypatch):
    """If drafting changes nothing, the evidence has no likely gain."""
    monkeypatch.setitem(SPEED, "draft", 1.0)
    interrupted_in_the_proof(request_, answers=12)
    assert "likely" not in served(request_).evidence


def test_a_continued_tune_leaves_out_what_a_newer_version_wrote(request_):
    """Halves, trials and a choice with a mode unknown to this version are measured again, and the user is told."""
    interrupted_in_the_proof(request_)
    engine = sa.create_engine(request_.storage)
    newer = "replace({0}, 'draft-model', 'draft-mtp-adaptive')"
    with engine.begin() as connection:
        for table, columns in (
            ("autospec_measurements", ("drafting", "compared")),
            ("trial_user_attributes", ("value_json",)),
            ("study_user_attributes", ("value_json",)),
        ):
            changes = ", ".join(f"{column} = {newer.format(column)}" for column in columns)
            connection.exec_driver_sql(f"UPDATE {table} SET {changes}")  # noqa: S608
    engine.dispose()
    progress = Silent()
    _, result = again(request_, progress)
    assert (result.status, Path(result.drafting.draft).stem, result.pairs) == (Status.PROVEN, "draft", 8)
    assert any("does not understand" in told and "measurements" in told for told in progress.told)


def with_looks(request: TuneRequest, *looks: int, **changes) -> TuneRequest:
    """The same with these looks, and nothing given up before the last one."""
    definition = request.definition
    rule = replace(definition.rule, looks=looks, worth_proving=0.0, **changes)
    return replace(request, definition=replace(definition, rule=rule))


def looked_at_eight_rounds(request: TuneRequest) -> None:
    """A tune of a study with 16 rounds that ends in round 9, undecided."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPEED, "draft", 1.02)
        patch.setattr("autospec.measure.verdict._hopeless", lambda *_: False)
        interrupted_in_the_proof(with_looks(request, 1, 2, 4, 8, 16), answers=8 * 16 + 2)
    assert (served(request).status, served(request).evidence["rounds"]) == (Status.PROVISIONAL, 8)


def test_a_study_with_fewer_looks_than_were_taken_measures_nothing_and_says_so(request_):
    """It launched a server each time, looked at nothing, and told the user to run it again."""
    looked_at_eight_rounds(request_)
    before, small, progress = served(request_), with_looks(request_, 1, 2, 4), Silent()
    simulated, after = again(small, progress)
    assert not simulated.launched
    assert after == before
    [told] = [t for t in progress.told if "looked at" in t]
    assert told == (
        f"{CODING}: an earlier study looked at 8 rounds of this proof, and quick ends after 4. Run that study, or use --again to "
        "measure it again."
    )
    _, whole = again(with_looks(request_, 1, 2, 4, 8, 16))
    assert whole.status is Status.PROVEN


def test_what_a_larger_study_has_enabled_is_served_and_not_checked_by_a_smaller_one(request_, monkeypatch):
    """Its limits belong to that proof."""
    looked_at_eight_rounds(request_)
    store = open_store(request_.storage)
    [stored] = store.recommendations()
    r = stored.recommendation
    enabled = replace(r, verdict=Verdict.ENABLE, status=Status.PROVEN, drafting=r.tried)
    store.save_recommendation(enabled, stored.hardware, stored.cell_key)
    store.close()
    checked: list[object] = []
    monkeypatch.setattr(LimitChecks, "run", lambda _, subjects: checked.extend(subjects))
    small = with_looks(request_, 1, 2, 4)
    definition = replace(small.definition, limits=LimitsDefinition(check=True))
    simulated, after = again(replace(small, definition=definition))
    assert (simulated.launched, checked) == ([], [])
    assert after == enabled


def test_again_with_a_study_of_fewer_looks_measures_from_the_start(request_):
    """A re-measurement by a larger study was interrupted: continuing it would leave this one without a look."""
    looked_at_eight_rounds(replace(request_, again=True))
    simulated, result = again(replace(with_looks(request_, 1, 2, 4), again=True))
    assert [text for text in of_draft(simulated) if "prove" in text]
    assert (result.status, result.verdict) == (Status.PROVEN, Verdict.ENABLE)


def live_requests() -> list[Sample]:
    """Thirty of them, with long answers."""
    one = Sample(
        at=time.time(),
        model="main",
        backend="simulated",
        build="b1",
        prompt_type=CODING,
        prompt_tokens=40,
        predicted_tokens=500,
        prompt_ms=1.0,
        predicted_ms=1.0,
    )
    return [one] * 30


def test_a_proof_that_goes_on_is_for_the_request_that_it_began_with(request_):
    """Live requests between two tunes do not change a started proof; `--again` uses them."""
    store = open_store(request_.storage)
    begun = tune(replace(request_, budget_s=1e-6), backend())[CODING]
    store.add_samples(live_requests())
    gone_on = tune(request_, backend())[CODING]
    again = tune(replace(request_, again=True), backend())[CODING]
    store.close()
    assert (begun.status, gone_on.status) == (Status.PROVISIONAL, Status.PROVEN)
    assert gone_on.evidence["requests"] == begun.evidence["requests"]
    assert gone_on.evidence["request"]["source"] == "suite"
    assert again.evidence["requests"]["traffic"]["answer_tokens"] == 500
    assert again.evidence["request"]["source"] == "traffic"


@pytest.mark.process
def test_a_clock_that_was_ahead_blocks_no_cell(request_, monkeypatch):
    """The first tune ran a year ahead and ended in its search; what the next one measures is older than its begin."""
    simulated = backend()

    def interrupt(_server, text):
        if "prove" in text:
            raise KeyboardInterrupt

    simulated.before_answer = interrupt
    with monkeypatch.context() as patch:
        now = time.time
        patch.setattr("autospec.tuning.cell.time", SimpleNamespace(time=lambda: now() + 365 * 86400.0))
        with pytest.raises(KeyboardInterrupt):
            tune(request_, simulated)
    _, second = again(request_)
    assert (second.verdict, second.status) == (Verdict.ENABLE, Status.PROVEN)
