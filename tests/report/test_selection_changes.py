"""What counts as a change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import Drafting, Mode
from autospec.recommendations import Status, Verdict
from autospec.report.selection import ChangeKind, changes, changes_document
from tests.report.samples import DRAFTING, ELSEWHERE, HERE, recommendation, stored

ENABLED = recommendation()
LATER = "2026-11-21T10:00:00+00:00"


def kinds(old, new):
    """The kinds of change between recommendations of this machine."""
    return [c.kind for c in changes(map(stored, old), map(stored, new))]


def test_nothing_new_is_no_change():
    """Also nothing at all."""
    assert kinds([ENABLED], [ENABLED]) == []
    assert kinds([], []) == []


def test_more_pairs_with_the_same_answer_are_no_change():
    """Nobody has to act on a better interval."""
    assert kinds([ENABLED], [replace(ENABLED, pairs=40, speedup=1.31, created_at=LATER)]) == []


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (ENABLED, recommendation(Verdict.DISABLE), ChangeKind.DRAFTING),
        (ENABLED, recommendation(drafting=replace(DRAFTING, n_max=4)), ChangeKind.DRAFTING),
        (recommendation(Verdict.UNDECIDED), recommendation(Verdict.DISABLE), ChangeKind.VERDICT),
        (ENABLED, replace(ENABLED, status=Status.STALE), ChangeKind.STATUS),
    ],
)
def test_what_is_another_names_the_change(before, after, kind):
    """What to run before what is thought of it, and that before how fresh it is."""
    assert kinds([before], [after]) == [kind]


def test_new_and_gone():
    """A cell that was not there, and one that is no more."""
    writing = recommendation(Verdict.DISABLE, prompt_type=PromptType.WRITING)
    assert kinds([], [ENABLED]) == [ChangeKind.NEW]
    assert kinds([ENABLED, writing], [writing]) == [ChangeKind.GONE]


def test_of_one_cell_the_newest_counts():
    """An older one for another build is stored beside it and is no second answer."""
    newer = recommendation(Verdict.DISABLE, created_at=LATER, backend_build="b11500")
    assert kinds([ENABLED], [ENABLED, newer]) == [ChangeKind.DRAFTING]
    assert kinds([ENABLED, newer], [newer]) == []


def test_machines_are_told_apart():
    """The same model tuned elsewhere is new, and the change says where."""
    (change,) = changes([stored(ENABLED)], [stored(ENABLED), stored(ENABLED, ELSEWHERE)])
    assert (change.kind, change.hardware_id) == (ChangeKind.NEW, ELSEWHERE.id)


def test_the_sentence_tells_what_to_run_instead_of_what():
    """With the reason, in one sentence."""
    lookup = Drafting(Mode.NGRAM_MOD, ngram_n=16, n_max=32, n_min=0)
    (change,) = changes([stored(ENABLED)], [stored(recommendation(drafting=lookup, reason="It is faster."))])
    assert change.sentence == (
        "Main-7B-Q4_K_M, coding, llama-server: ngram-mod n_max=32 ngram_n=16 instead of "
        "draft-model draft n_max=8 p_min=0.6 (It is faster)."
    )


def test_the_document_has_both_recommendations_of_the_contract():
    """As `recommend --json` writes them."""
    after = recommendation(Verdict.DISABLE)
    found = changes([stored(ENABLED)], [stored(after)])
    document = changes_document(found, LATER)
    assert (document["schema"], document["event"], document["at"]) == (1, "recommendations", LATER)
    (entry,) = document["changes"]
    assert (entry["before"], entry["after"]) == (ENABLED.to_json(), after.to_json())
    assert (entry["kind"], entry["model"], entry["hardware_id"]) == ("drafting", after.model, HERE.id)
