"""The last three lines of a tune agree with its table."""

from __future__ import annotations

import pytest

from autospec.cells import Aim, PromptType
from autospec.drafting import OFF
from autospec.measure.verdict import Rule
from autospec.recommendations import OVERALL_MIX, Status, Verdict
from autospec.report.tune_summary import StudyRest, tune_summary
from tests.report.samples import recommendation

CODING, CHAT, QA, MATH, RAG, WRITING = (
    PromptType.CODING,
    PromptType.CHAT,
    PromptType.QA,
    PromptType.MATH,
    PromptType.RAG,
    PromptType.WRITING,
)
MEASURED = {
    "trials": 3,
    "rounds": 1,
    "predicted_tokens": 1000,
    "compared_texts": 10,
    "decode_baseline_tps": 10.0,
    "decode_drafting_tps": 20.0,
    "prompt_ms_off": 500.0,
    "prompt_ms_drafting": 500.0,
}
# 15 s for the answers of a pair, 1 s for its prompts.
PAIR_S = 16.0


def proven(kind, verdict=Verdict.ENABLE, **changes):
    """A finished prompt type."""
    evidence = {"args": ["--x"], "trials": 3, "limits": {}} | changes.pop("evidence", {})
    return recommendation(verdict, prompt_type=kind, evidence=evidence, **changes)


def unfinished(kind, **evidence):
    """One whose proof has begun."""
    return recommendation(
        Verdict.UNDECIDED, prompt_type=kind, status=Status.PROVISIONAL, evidence={**MEASURED, **evidence}
    )


def together(verdict=Verdict.ENABLE, **evidence):
    """The overall answer."""
    base = recommendation(verdict, prompt_type=None)
    return recommendation(
        verdict, prompt_type=None, speedup=1.2, evidence={**base.evidence, OVERALL_MIX: {}, **evidence}
    )


def rest(*, checks_limits=False, budget_s=3600.0):
    """Of a study with four pairs a round, and four rounds."""
    return StudyRest(Rule(looks=(1, 2, 4)), 4, budget_s, checks_limits=checks_limits)


def test_what_pays_is_run_and_the_rest_is_named():
    """Each prompt type is in the line once, with its verdict."""
    types = [
        proven(CODING),
        proven(CHAT, speedup=1.1),
        proven(QA, Verdict.DISABLE),
        proven(MATH, Verdict.UNDECIDED),
    ]
    what, how, still_open = tune_summary(types, together(), rest())
    assert what == (
        "What to run: drafting for coding (+30.6 %) and chat (+10.0 %); no drafting for qa and math (undecided)."
    )
    assert how.startswith(
        "How: `autospec proxy` does this for each request. One server for all prompt types: "
    )
    assert "Run: /opt/llama-server --model /models/Main-7B-Q4_K_M.gguf" in how
    assert still_open == "Still open: nothing."
    assert not any("\n" in line for line in (what, how, still_open))


def test_answers_within_the_models_thinking_are_open():
    """Also where drafting does not pay: the answer behind the thinking may gain."""
    cut = {"conditions": {"within_reasoning": 0.5}}
    types = [proven(CODING), proven(RAG, Verdict.DISABLE, evidence=cut), proven(QA, evidence=cut)]
    *_, still_open = tune_summary(types, together(), rest())
    assert still_open.startswith(
        "Still open: nothing. Measured answers for rag and qa ended while the model was still thinking"
    )
    assert "`--max-tokens 1024`" in still_open


def test_nothing_pays():
    """The answer is to do nothing, and how to do that."""
    types = [proven(kind, Verdict.DISABLE) for kind in PromptType]
    what, how, still_open = tune_summary(types, together(Verdict.DISABLE), rest())
    assert what == "What to run: no drafting, for coding, editing, extraction and 9 more."
    assert how.startswith("How: start your server as before, without drafting flags. One server for all")
    assert "`autospec proxy`" not in how
    assert still_open == "Still open: nothing."


def test_an_unfinished_proof_says_how_long_it_may_take():
    """The rounds that are left, at the pace of its own pairs, with the launches: it may be over sooner."""
    _, _, still_open = tune_summary([proven(CODING), unfinished(QA)], None, rest())
    minutes = round(1.3 * 3 * 4 * PAIR_S / 60)
    assert (
        still_open
        == f"Still open: the proof for qa: up to about {minutes} min. Run the same command again to continue."
    )


def test_a_proof_that_a_larger_study_began_is_not_continued_by_the_same_command():
    """It said so for ever: this study has no look left."""
    _, _, still_open = tune_summary([proven(CODING), unfinished(QA, rounds=8)], None, rest())
    assert still_open == (
        "Still open: A study with more rounds began the proof for qa. Run that study again, or use --again."
    )


def test_a_likely_gain_has_an_estimate_of_its_own():
    """About, and not up to about: it is when the proof would be over if the rest is like what was seen."""
    likely = {"likely": {"speedup": 1.7, "interval": [1.5, 1.9], "chance": 0.99, "about_s": 600}}
    what, _, still_open = tune_summary([unfinished(CODING, **likely)], None, rest())
    assert what == "What to run: no drafting, for coding (undecided)."
    assert "the proof for coding: about 10 min." in still_open
    _, _, mixed = tune_summary([unfinished(CODING, **likely), unfinished(QA)], None, rest())
    assert "the proof for coding and qa: up to about 14 min." in mixed


def test_no_estimate_is_longer_than_a_tune():
    """The same command ends at its budget; a type without any pair takes the others' pace, or the whole budget."""
    _, _, still_open = tune_summary([unfinished(QA)], None, rest(budget_s=180.0))
    assert "the proof for qa: another run of at most 3 min." in still_open
    nothing = recommendation(
        Verdict.UNDECIDED,
        prompt_type=QA,
        status=Status.PROVISIONAL,
        tried=OFF,
        speedup=None,
        evidence={"trials": 0},
    )
    _, _, still_open = tune_summary([nothing], None, rest(budget_s=900.0))
    assert "the proof for qa: another run of at most 15 min" in still_open
    _, _, still_open = tune_summary([nothing, unfinished(CODING)], None, rest())
    assert f"up to about {round(1.3 * 7 * 4 * PAIR_S / 60)} min" in still_open


def test_what_is_decided_is_not_open():
    """Undecided after the last round: measuring goes on with nothing."""
    _, _, still_open = tune_summary([proven(QA, Verdict.UNDECIDED)], None, rest())
    assert still_open == "Still open: nothing."


def test_limits_that_were_not_checked_are_open():
    """Only if the study checks them, and only of what is enabled."""
    unchecked = proven(CODING)
    unchecked.evidence.pop("limits")
    types = [unchecked, proven(QA, Verdict.DISABLE)]
    assert tune_summary(types, None, rest())[2] == "Still open: nothing."
    _, _, still_open = tune_summary(types, None, rest(checks_limits=True))
    assert "Still open: the limits of coding: another run of at most 60 min." in still_open


def test_nothing_to_try_needs_a_draft_and_no_more_time():
    """The same command would find nothing either."""
    nothing = recommendation(
        Verdict.UNDECIDED, prompt_type=QA, status=Status.PROVISIONAL, tried=OFF, speedup=None, evidence={}
    )
    what, how, still_open = tune_summary([nothing], None, rest())
    assert what == "What to run: no drafting, for qa (undecided)."
    assert "without drafting flags" in how
    assert "Nothing could be tried for qa; `autospec drafts --model Main-7B-Q4_K_M`" in still_open
    assert "same command" not in still_open


@pytest.mark.parametrize("types", [[unfinished(QA)], [proven(CODING)]])
def test_an_interruption_is_told(types):
    """As the exit code 130 tells it."""
    assert "he tune was interrupted" in tune_summary(types, None, rest(), interrupted=True)[2]


def test_without_an_overall_answer_the_flags_are_a_command_away():
    """An interrupted tune has none yet."""
    _, how, _ = tune_summary([proven(CODING)], None, rest(), interrupted=True)
    assert "`autospec recommend --model Main-7B-Q4_K_M --format args -t TYPE`" in how


def test_an_answer_for_all_that_lacks_pairs_is_open():
    """Its types are all decided."""
    lacks = together(Verdict.UNDECIDED, lacks=["qa"])
    _, _, still_open = tune_summary([proven(CODING), proven(QA, Verdict.DISABLE)], lacks, rest())
    assert "one drafting for all prompt types" in still_open


def test_figures_of_another_version_give_no_time():
    """Evidence is what some version wrote."""
    odd = unfinished(QA, predicted_tokens=None, rounds=None, likely={"about_s": "soon"})
    _, _, still_open = tune_summary([odd], None, rest(budget_s=1800.0))
    assert "at most 30 min" in still_open


def test_a_gain_of_energy_is_told_as_such_and_how_to_use_it():
    """The proxy and `recommend` go by the setting, which may be another aim than this tune's."""
    frugal = proven(CODING, aim=Aim.ENERGY, speedup=0.95, evidence={"energy": {"ratio": 0.8}})
    what, how, _ = tune_summary([frugal], None, rest())
    assert "drafting for coding (+25.0 % tokens per joule)" in what
    assert how.startswith('How: with the setting aim = "energy", `autospec proxy`')
    assert "--aim energy --format args" in how
    assert "aim" not in tune_summary([proven(CODING)], None, rest())[1]
