"""Which recommendations answer a question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.cells import Hardware, PromptType
from autospec.errors import ModelChoiceError, NothingKnownError, UsageError
from autospec.recommendations import Status, Verdict
from autospec.report.selection import Question, borrowed, match_model, same_machine, select
from tests.report.samples import ELSEWHERE, HERE, recommendation, stored


def imported(**changes):
    """A recommendation that came from elsewhere."""
    return recommendation(status=Status.IMPORTED, **changes)


@pytest.mark.parametrize(
    "text", ["Main-7B-Q4_K_M", "main 7b", "MAIN_7B.q4", "main-7b-q4-k-m.gguf", "/models/Main-7B-Q4_K_M.gguf"]
)
def test_a_model_answers_to_its_name_a_part_of_it_and_its_path(text):
    """Case and separators do not count, and a path is as good as a name."""
    known = [
        stored(recommendation()),
        stored(recommendation(model="Other-1B", model_path="/models/Other-1B.gguf")),
    ]
    assert [s.recommendation.model for s in match_model(known, text)] == ["Main-7B-Q4_K_M"]


def test_an_exact_name_is_not_ambiguous():
    """`qwen-4b` finds Qwen-4B beside Qwen-4B-Instruct."""
    known = [stored(recommendation(model=m, model_path="")) for m in ("Qwen-4B", "Qwen-4B-Instruct")]
    assert [s.recommendation.model for s in match_model(known, "qwen_4b")] == ["Qwen-4B"]


def test_an_ambiguous_part_lists_what_it_could_be():
    """The error names every model that answers."""
    known = [stored(recommendation(model=m, model_path="")) for m in ("Qwen-4B", "Qwen-8B")]
    with pytest.raises(ModelChoiceError, match="could be any of 2 models:\n  Qwen-4B\n  Qwen-8B"):
        match_model(known, "qwen")


def test_an_imported_model_answers_to_its_file_name():
    """A record names the model one way and its file another; both find it."""
    known = [
        stored(
            imported(
                model="Coder-30B", model_path="", evidence={"model_file": "Coder-30B-Instruct-Q6_K.gguf"}
            )
        )
    ]
    assert match_model(known, "coder-30b-instruct")


def test_an_exact_name_answers_with_every_record_that_has_it():
    """One record has it for its model, another for its file: nobody could name one of them more exactly."""
    known = [
        stored(recommendation(model="Coder-30B", model_path="/models/Coder-30B-Instruct.gguf")),
        stored(recommendation(model="Coder-30B-Instruct", model_path="")),
        stored(recommendation(model="coder-30b-instruct-2", model_path="")),
    ]
    found = match_model(known, "Coder-30B-Instruct")
    assert [s.recommendation.model for s in found] == ["Coder-30B", "Coder-30B-Instruct"]


def test_this_machine_goes_before_others():
    """What was measured here hides what others measured."""
    known = [stored(recommendation()), stored(imported(verdict=Verdict.DISABLE), ELSEWHERE)]
    found = select(known, HERE, Question(model="main"))
    assert found.hardware == HERE
    assert [s.hardware for s in found.stored] == [HERE]
    assert not found.foreign


def test_a_name_that_is_plain_here_stays_so_after_an_import():
    """An imported model with a similar name makes no local name ambiguous."""
    known = [stored(recommendation()), stored(imported(model="Main-7B", model_path=""), ELSEWHERE)]
    assert select(known, HERE, Question(model="main-7b")).recommendations[0].model == "Main-7B-Q4_K_M"


def test_other_machines_answer_for_a_model_unknown_here():
    """They are labelled, and the document is about their machine."""
    known = [stored(recommendation()), stored(imported(model="Coder-30B", model_path=""), ELSEWHERE)]
    found = select(known, HERE, Question(model="coder"))
    assert found.foreign
    assert found.document()["hardware"]["id"] == ELSEWHERE.id


def test_other_machines_stay_silent_where_something_is_known_here():
    """Without a name only this machine's are shown."""
    known = [stored(recommendation()), stored(imported(model="Coder-30B"), ELSEWHERE)]
    assert [r.model for r in select(known, HERE, Question()).recommendations] == ["Main-7B-Q4_K_M"]


def test_with_all_hardware_each_foreign_entry_names_its_machine():
    """The document is about this machine, and the entry of the other says so in its evidence."""
    known = [stored(recommendation()), stored(imported(), ELSEWHERE)]
    document = select(known, HERE, Question(all_hardware=True)).document()
    assert document["hardware"]["id"] == HERE.id
    machines = [r["evidence"].get("hardware", {}).get("id") for r in document["recommendations"]]
    assert sorted(machines, key=str) == sorted([None, ELSEWHERE.id], key=str)


def test_a_machine_is_chosen_by_the_beginning_of_its_id():
    """`--hardware other` finds it; it was asked for, and so it is not foreign."""
    found = select([stored(imported(), ELSEWHERE)], HERE, Question(hardware_id="other"))
    assert found.hardware == ELSEWHERE
    assert not found.foreign


def test_an_ambiguous_machine_is_wrong_usage():
    """Two machines whose ids begin alike are listed."""
    twin = replace(ELSEWHERE, id="other-chip-32g-000000")
    with pytest.raises(UsageError, match="2 machines"):
        select([stored(imported(), ELSEWHERE), stored(imported(), twin)], HERE, Question(hardware_id="other"))


def test_a_record_without_a_digest_speaks_for_the_machine_whose_id_begins_so():
    """The founding record does not know the GPU's cores; on such a Mac it counts as its own."""
    record = Hardware("apple-m2-ultra-64g", "Apple M2 Ultra", 64 * 2**30)
    assert same_machine(record, Hardware("apple-m2-ultra-64g-1a2b3c", "Apple M2 Ultra", 64 * 2**30))
    assert not same_machine(record, Hardware("apple-m2-ultra-640g-1a2b3c", "Apple M2 Ultra", 640 * 2**30))
    assert not same_machine(record, HERE)


def test_the_newest_of_a_model_and_prompt_type_counts():
    """A tune on a newer build replaces the older build's answer."""
    old = recommendation(backend_build="b1", created_at="2026-01-01T00:00:00+00:00")
    new = recommendation(Verdict.DISABLE, backend_build="b2")
    found = select([stored(new, key="k2"), stored(old, key="k1")], HERE, Question())
    assert [r.backend_build for r in found.recommendations] == ["b2"]


def test_measured_goes_before_imported_even_if_older():
    """An import of this machine's kind never hides what was measured on it."""
    later = imported(verdict=Verdict.DISABLE, created_at="2027-01-01T00:00:00+00:00")
    found = select([stored(recommendation(), key="k1"), stored(later, key="i-k1")], HERE, Question())
    assert [r.status for r in found.recommendations] == [Status.PROVEN]


def test_a_record_for_any_kind_of_prompt_answers_for_each():
    """`prompt_type` null covers the type that is asked for."""
    found = select([stored(recommendation(prompt_type=None))], HERE, Question(prompt_type=PromptType.MATH))
    assert len(found.stored) == 1


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question(), "tune --model MODEL"),
        (Question(model="none"), "tune --model none"),
        (Question(prompt_type=PromptType.MATH), "--prompt-type math"),
        (Question(backend="mlx"), "--backend mlx"),
        (Question(hardware_id="nowhere"), "Known machines: "),
    ],
)
def test_nothing_known_says_how_to_find_out(question, words):
    """The hint is the command that would answer the question."""
    known = [] if question == Question() else [stored(recommendation())]
    with pytest.raises(NothingKnownError) as raised:
        select(known, HERE, question)
    assert words in raised.value.hint


def test_of_other_machines_the_most_alike_answers_and_provisionally():
    """What is proven there is unproven here; a stranger of the same size stays silent."""
    sibling = replace(HERE, id=HERE.id + "-sibling", memory_bytes=HERE.memory_bytes * 2)
    lent = recommendation(model="Coder-30B")
    found = select(
        [stored(lent, ELSEWHERE, key="a"), stored(lent, sibling, key="b")], HERE, Question(model="coder")
    )
    assert found.foreign
    assert [s.hardware for s in found.stored] == [sibling]
    assert [r.status for r in found.recommendations] == [Status.PROVISIONAL]
    assert borrowed([stored(lent, sibling)], HERE, "Coder-30B", lent.backend, lent.prompt_type) is not None
    assert borrowed([stored(lent, HERE)], HERE, "Coder-30B", lent.backend, lent.prompt_type) is None
