"""Conditions and limits, in the explanation and under the table."""

from __future__ import annotations

from dataclasses import replace

from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.formats import caution_words, conditions_words, reasoning_words
from autospec.recommendations import CONDITIONS, LIMITS, OVERALL_MIX, WITHIN_REASONING
from autospec.report.explanation import explain
from autospec.report.tables import recommendation_table
from tests.report.samples import recommendation
from tests.report.test_tables import shown

EVIDENCE = {
    CONDITIONS: {
        "temperature": 0.0, "samplers": "greedy", "max_tokens": 64, "slots": 1, "context_tokens": 300,
        "cached_tokens": 0, "answer_tokens": 300, "cached_share": 0.0,
    },
    LIMITS: {
        "concurrent": [
            {"at": 2, "ratio": 1.31, "interval": [1.12, 1.5], "pairs": 8, "verdict": "faster", "note": ""},
            {"at": 4, "ratio": 0.82, "interval": [0.7, 0.9], "pairs": 8, "verdict": "slower", "note": ""},
        ],
        "context": [{"at": 8192, "ratio": None, "interval": None, "pairs": 0, "verdict": "open", "note": "No memory."}],
        "most_concurrent": 2,
    },
}  # fmt: skip
WORDS = "greedy, 64 tokens, one request at a time, nothing cached; computed for 300-token answers"


def test_conditions_are_one_line():
    """What was measured, and for which answer it is composed."""
    assert conditions_words(recommendation(evidence=EVIDENCE)) == WORDS
    assert conditions_words(recommendation(evidence={})) == ""


def test_answers_within_the_models_thinking_are_told_with_what_helps():
    """In the conditions, and in the explanation with the arguments of the backend."""
    conditions = {**EVIDENCE[CONDITIONS], WITHIN_REASONING: 0.75}
    r = recommendation(evidence={CONDITIONS: conditions})
    words = "nothing cached, 75% of the answers cut while the model was thinking; computed for"
    assert words in conditions_words(r)
    told = {
        b: " ".join(explain(replace(r, backend=b)).sentences) for b in ("llama-server", "mlx", "attached")
    }
    assert all("`--max-tokens 1024`" in text and "answers for coding" in text for text in told.values())
    assert "`-- --reasoning-budget 0`" in told["llama-server"]
    assert "--chat-template-args" in told["mlx"]
    assert "start the server that way" in told["attached"]
    assert reasoning_words([recommendation(evidence=EVIDENCE), recommendation(evidence={})]) == ""
    damaged = recommendation(evidence={CONDITIONS: {**conditions, WITHIN_REASONING: "most"}})
    assert conditions_words(damaged) == WORDS


def test_the_table_tells_both_below():
    """Conditions once, limits for each prompt type."""
    text = shown(recommendation_table([recommendation(evidence=EVIDENCE)]), width=200)
    assert f"measured: {WORDS}" in text
    assert "2 requests at once: +31.0 % (faster); 4 requests at once: -18.0 % (slower)" in text
    assert "8192 tokens of context: not measured" in text


def test_the_explanation_tells_the_limit_and_why_something_is_missing():
    """Figures for programs, sentences for people."""
    explained = explain(recommendation(evidence=EVIDENCE))
    assert explained.figures[LIMITS]["most_concurrent"] == 2
    assert explained.figures[CONDITIONS]["max_tokens"] == 64
    assert f"Measured: {WORDS}." in explained.sentences
    assert "It holds up to 2 requests at once." in explained.sentences
    assert "No memory." in explained.sentences


def test_evidence_of_earlier_versions_tells_neither():
    """There is nothing to say."""
    explained = explain(recommendation(evidence={}))
    assert not {LIMITS, CONDITIONS} & explained.figures.keys()


def test_a_caution_names_the_conditions_and_where_it_was_not_faster():
    """A person who copies the flags of a server sees for which requests they are."""
    assert caution_words(recommendation(evidence=EVIDENCE)) == (
        "Measured: greedy, 64 tokens, one request at a time, nothing cached. "
        "Slower: 4 requests at once: -18.0 %. "
        "Not shown to be faster: 8192 tokens of context: not measured."
    )
    assert caution_words(replace(recommendation(evidence=EVIDENCE), drafting=OFF)) == ""


def test_the_temperature_of_clients_is_named_where_it_was_not_checked():
    """The budget ended before chat was checked at 0.8, llama-server's default: an enable must not hide that."""
    conditions = {**EVIDENCE[CONDITIONS], "temperature": 0.0, "served_temperature": 0.8}
    greedy = recommendation(evidence={CONDITIONS: conditions})
    words = "temperature 0.8, at which clients sample: not checked"
    assert caution_words(greedy).endswith(f"Not shown to be faster: {words}.")
    assert words in shown(recommendation_table([greedy]), width=200)
    assert any(words in sentence for sentence in explain(greedy).sentences)
    asked_so = recommendation(evidence={CONDITIONS: {**conditions, "served_temperature": 0.0}})
    at = {"at": 0.8, "ratio": 1.4, "interval": [1.2, 1.6], "pairs": 8, "verdict": "faster", "note": ""}
    checked = recommendation(evidence={**EVIDENCE, CONDITIONS: conditions, LIMITS: {"temperature": [at]}})
    for quiet in (asked_so, checked, replace(greedy, drafting=OFF)):
        assert words not in caution_words(quiet)


def test_an_overall_answer_has_the_limits_of_the_types_with_its_drafting():
    """It is measured over all types together; the limits are checked in each type."""
    coding = replace(recommendation(evidence=EVIDENCE), prompt_type=PromptType.CODING)
    chat = replace(coding, prompt_type=PromptType.CHAT, drafting=OFF)
    overall = replace(recommendation(evidence={OVERALL_MIX: {}}), prompt_type=None)
    assert overall.is_overall
    words = caution_words(overall, [overall, coding, chat])
    assert "coding, 4 requests at once: -18.0 %" in words
    assert "chat" not in words
    assert caution_words(overall) == ""
