"""What is tuned next and why: order, worth, and what is not tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.daemon.queue import KnownCell, order
from autospec.daemon.work import Effort, Later, LaterReason, Tunable, WorkItem, effort_key
from autospec.recommendations import Status, Verdict
from autospec.tuning.resume import basis_digest
from tests.report.samples import recommendation

NOW = 1_800_000_000.0
TYPES = (PromptType.CODING, PromptType.CHAT)
BIG = Tunable(
    "big", "big", "llama-server", "f-big", {"model": "f-big", "drafts": {}}, 1, 2, NOW - 90 * 86400, 8 << 30
)
NEW = replace(BIG, name="new", path="new", fingerprint="f-new", basis={"model": "f-new"}, found_at=NOW)
HEAVY_USE = {("big", PromptType.CODING): 3600.0, ("big", PromptType.CHAT): 400.0}


def queue(models=(BIG,), known=None, used=HEAVY_USE, efforts=None, now=NOW, *, asked=None):
    """The order of these."""
    return order(models, TYPES, known or {}, used, efforts or {}, step_s=600.0, now=now, asked=asked or {})


def key(prompt_type: PromptType, model: Tunable = BIG) -> str:
    """The cell's key."""
    return effort_key(model.name, model.backend, prompt_type)


def test_what_is_used_more_comes_first():
    """Nine times the use, the same ignorance."""
    found = queue()
    assert [i.prompt_type for i in found.items] == [PromptType.CODING, PromptType.CHAT]
    assert "it is used 60 min a day" in found.items[0].why


def test_the_proven_is_left_alone():
    """It is nothing to measure, however much it is used."""
    found = queue(known={key(PromptType.CODING): KnownCell(recommendation())})
    assert [i.prompt_type for i in found.items] == [PromptType.CHAT]
    assert found.later[key(PromptType.CODING)] == Later(LaterReason.PROVEN, "proven")


def test_a_stale_one_is_measured_afresh_and_says_why_it_is_stale():
    """Its cell's pairs do not count any more; once begun, measuring goes on instead of beginning again."""
    stale = recommendation(status=Status.STALE, evidence={"stale_reason": "small fits now as a draft"})
    (first, _) = queue(known={key(PromptType.CODING): KnownCell(stale)}).items
    assert first.again
    assert "stale: small fits now as a draft" in first.why
    begun = replace(stale, evidence={**stale.evidence, "renewing": True})
    assert not queue(known={key(PromptType.CODING): KnownCell(begun)}).items[0].again


def test_borrowed_recommendations_are_proven_first():
    """They are served and nobody tried them here, however little the model is used."""
    lent = KnownCell(recommendation(status=Status.PROVISIONAL), borrowed=True)
    found = queue((BIG, NEW), known={key(PromptType.CHAT, NEW): lent})
    assert (found.items[0].model, found.items[0].prompt_type) == ("new", PromptType.CHAT)
    assert "another machine" in found.items[0].why


def test_a_new_model_is_taken_to_be_used_for_a_month():
    """Afterwards it waits until somebody uses it."""
    assert queue((NEW,), used={}).items
    later = queue((NEW,), used={}, now=NOW + 31 * 86400)
    assert not later.items
    assert "the model has not been used" in later.later[key(PromptType.CODING, NEW)].words


def test_one_short_request_is_not_the_measure_of_a_new_models_use():
    """A second of use does not take it off the list; days in which nothing more came do, little by little."""
    one = {("new", PromptType.CODING): 0.1}
    (first, *_) = queue((NEW,), used=one).items
    assert first.why.endswith("it is hardly used, and the model is new here")
    tomorrow = queue((NEW,), used=one, now=NOW + 86400).items[0]
    assert tomorrow.use_s_per_day == pytest.approx(first.use_s_per_day / 2, rel=0.01)
    assert not queue((NEW,), used=one, now=NOW + 31 * 86400).items


def test_what_saves_less_than_it_takes_is_not_measured():
    """Ten seconds of use a day will never pay for ten minutes of measuring."""
    found = queue(used={("big", PromptType.CODING): 10.0})
    assert not found.items
    assert "not worth measuring" in found.later[key(PromptType.CODING)].words


def test_a_cell_with_nothing_to_try_waits_for_a_draft():
    """No draft fits and the build has no draft-free mode."""
    found = queue((replace(BIG, drafts=0, modes=0),))
    assert not found.items
    assert "no draft model fits" in found.later[key(PromptType.CODING)].words


def test_failures_are_tried_again_later_and_later():
    """Ten minutes after the first, twenty after the second; the queue says when."""
    failed = Effort(basis_digest(BIG.basis), failures=2, last_at=NOW, last="it died")
    found = queue(efforts={key(PromptType.CODING): failed})
    assert [i.prompt_type for i in found.items] == [PromptType.CHAT]
    assert found.next_at == NOW + 1200
    assert len(queue(efforts={key(PromptType.CODING): failed}, now=NOW + 1201).items) == 2


def test_a_row_of_failures_may_be_long():
    """A day at most, however many there were: 2.0 ** 1024 is no number any more."""
    failed = Effort(basis_digest(BIG.basis), failures=1100, last_at=NOW, last="it died")
    assert queue(efforts={key(PromptType.CODING): failed}).next_at == NOW + 86400


def test_a_clock_set_back_does_not_lengthen_the_pause():
    """The last failure lies in the future by the new clock. Each survey moved the pause ahead again, until that day came."""
    failed = {
        key(PromptType.CODING): Effort(
            basis_digest(BIG.basis), failures=1, last_at=NOW + 10**6, last="it died"
        )
    }
    for now in (NOW, NOW + 601, NOW + 1202):
        found = queue(efforts=failed, now=now)
        assert (len(found.items), found.next_at) == (2, None)
    again = {key(PromptType.CODING): replace(failed[key(PromptType.CODING)], failures=2, last_at=NOW)}
    assert queue(efforts=again, now=NOW + 1).next_at == NOW + 1200


def test_the_pause_after_thousands_of_failures_is_a_day():
    """A float overflows after 1024 doublings."""
    failed = Effort(basis_digest(BIG.basis), failures=5000, last_at=NOW, last="it died")
    assert queue(efforts={key(PromptType.CODING): failed}).next_at == NOW + 86400


def test_steps_without_an_answer_end_until_something_changes():
    """Four in vain are enough; another basis is another question."""
    in_vain = {key(PromptType.CODING): Effort(basis_digest(BIG.basis), steps=4)}
    assert "4 times without a clear answer" in queue(efforts=in_vain).later[key(PromptType.CODING)].words
    changed = replace(BIG, basis={"model": "other"})
    assert len(queue((changed,), efforts=in_vain).items) == 2


def test_each_step_without_an_answer_makes_the_cell_less_urgent():
    """Half as much with every step."""
    once = queue(efforts={key(PromptType.CODING): Effort(basis_digest(BIG.basis), steps=1)}).items[0]
    assert once.uncertainty == pytest.approx(0.5)


def test_a_provisional_gain_beats_one_of_which_nothing_is_known():
    """A search that showed +100 % is worth more than a guess, if not as uncertain."""
    promising = KnownCell(
        recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, speedup=2.0, speedup_ci=(0.9, 4.0))
    )
    even = {("big", PromptType.CODING): 900.0, ("big", PromptType.CHAT): 900.0}
    items = queue(known={key(PromptType.CHAT): promising}, used=even).items
    assert {i.prompt_type: i.gain > 0.3 for i in items} == {PromptType.CHAT: True, PromptType.CODING: True}


def test_items_travel_as_json():
    """What a survey prints is what the daemon reads."""
    (first, _) = queue().items
    assert WorkItem.from_json(first.to_json()) == first


def test_among_equals_the_estimate_orders():
    """Two new models are worth the same; the one whose draft needs less acceptance is first, the unknown one between."""
    hard = replace(NEW, name="hard", path="hard", break_even=0.9)
    easy = replace(NEW, name="easy", path="easy", break_even=0.2)
    unknown = replace(NEW, name="unknown", path="unknown")
    found = queue((hard, unknown, easy), used={})
    assert [i.model for i in found.items if i.prompt_type is PromptType.CODING] == ["easy", "unknown", "hard"]


def test_the_estimate_never_outweighs_use():
    """It orders within what use, gain and uncertainty say, and rules nothing out."""
    used = replace(BIG, break_even=1.5)
    idle = replace(NEW, break_even=0.1)
    found = queue((idle, used))
    assert found.items[0].model == "big"
    assert {i.model for i in found.items} == {"big", "new"}
    assert queue((used,)).items == queue((BIG,)).items
