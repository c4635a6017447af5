"""`explain`: the reasons in figures and words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autospec.drafting import Drafting, Mode
from autospec.measure.measurements import Pair
from autospec.recommendations import Verdict
from autospec.report.explanation import explain
from autospec.report.records import find_record, read_record, recommendations_of
from autospec.report.studies import TrialSummary
from tests.catalog.making import make_model
from tests.report.samples import DRAFTING, measurement, recommendation


def pair(prompt="p1", **drafted):
    """A pair whose drafted half is changed by keywords."""
    return Pair(
        measurement(with_drafting=False, prompt=prompt),
        measurement(with_drafting=True, prompt=prompt, **drafted),
    )


def said(explanation):
    """All sentences as one text."""
    return " ".join(explanation.sentences)


def test_costs_follow_from_the_counts():
    """100 tokens, 60 accepted of 80: 40 passes of 2.5 tokens, 150 ms each, which is 1.5 tokens without drafting."""
    figures = explain(recommendation(), [pair()]).figures
    assert figures["ms_per_token_off"] == pytest.approx(100)
    assert figures["ms_per_token_drafting"] == pytest.approx(60)
    assert figures["tokens_per_pass"] == pytest.approx(2.5)
    assert figures["proposals_per_pass"] == pytest.approx(2.0)
    assert figures["pass_cost_tokens"] == pytest.approx(1.5)
    assert figures["break_even_acceptance"] == pytest.approx(0.25)


def test_the_break_even_is_where_the_speeds_meet():
    """At the break-even acceptance tokens per pass equal the cost of a pass."""
    figures = explain(recommendation(), [pair()]).figures
    tokens = 1 + figures["break_even_acceptance"] * figures["proposals_per_pass"]
    assert tokens == pytest.approx(figures["pass_cost_tokens"], rel=1e-3)


def test_a_pass_too_dear_cannot_pay():
    """If even full acceptance would not pay, that is said instead of a number above 100 %."""
    text = said(explain(recommendation(Verdict.DISABLE), [pair(predicted_ms=30000.0, wall_ms=30300.0)]))
    assert "slower even if every proposal were accepted" in text


def test_prompt_processing_and_texts_are_compared():
    """What the draft adds to the prompt, and whether the text stayed the same."""
    text = said(explain(recommendation(), [pair(), pair("p2", text_digest="other")]))
    assert "200 ms without drafting and 300 ms with it" in text
    assert "1 of 2 answers differed" in text
    assert "a greedy choice" in text


def test_sampled_answers_are_not_called_greedy():
    """With a temperature they may differ without any rounding."""
    sampled = recommendation(evidence={"conditions": {"temperature": 0.8, "max_tokens": 64}})
    text = said(explain(sampled, [pair(text_digest="other")]))
    assert "1 of 1 answers differed with and without drafting: they were sampled" in text
    assert "greedy" not in text


@pytest.mark.parametrize(
    ("chance", "words"), [(0.987, "is 98.7%."), (0.9994, "is 99.9%."), (0.9999, "is above 99.9%.")]
)
def test_what_is_likely_is_never_told_as_certain(chance, words):
    """The evidence has four digits, the sentence three."""
    likely = {"speedup": 1.72, "interval": [1.5, 1.9], "chance": chance, "about_s": 240}
    undecided = recommendation(Verdict.UNDECIDED, evidence={"likely": likely})
    assert f"the chance that its gain exceeds the threshold {words}" in said(explain(undecided))


def test_the_spread_names_the_best_and_the_worst_prompt():
    """One prompt gains and another loses."""
    text = said(explain(recommendation(), [pair(), pair("p2", wall_ms=20400.0)]))
    assert "1 of 2 prompts were faster with drafting, from -50.0 % (p2) to +61.9 % (p1)" in text


def test_a_backend_that_tells_no_counts_gets_no_cost():
    """Nothing is derived from counts that are not there."""
    figures = explain(recommendation(acceptance=None), [pair(drafted=None, accepted=None)]).figures
    assert "break_even_acceptance" not in figures
    assert "ms_per_token_off" in figures


def test_runners_up_and_failures_come_from_the_trials():
    """The next best is named; what could not be used says why; the winner is not its own runner-up."""
    other = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
    broken = Drafting(Mode.MTP, n_max=2)
    trials = [
        TrialSummary(0, "complete", DRAFTING, 1.3, ""),
        TrialSummary(1, "complete", other, 1.1, ""),
        TrialSummary(2, "fail", broken, None, "no MTP layers"),
    ]
    explanation = explain(recommendation(), [], trials)
    assert [r["ratio"] for r in explanation.figures["runners_up"]] == [1.1]
    assert "ngram-simple ngram_n=6 ngram_m=24 min_hits=1 +10.0 %" in said(explanation)
    assert "mtp n_max=2 could not be used: no MTP layers." in said(explanation)


def test_what_was_proved_before_is_no_runner_up():
    """It won the search and was slower on fresh prompts: said with what the proof showed, not with the search's figure."""
    first = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
    shown = {
        "drafting": first.to_json(),
        "speedup": 0.9,
        "speedup_ci": [0.8, 0.95],
        "verdict": "disable",
        "rounds": 1,
    }
    trials = [TrialSummary(0, "complete", DRAFTING, 1.3, ""), TrialSummary(1, "complete", first, 1.5, "")]
    explanation = explain(recommendation(evidence={"also_proved": [shown]}), [], trials)
    assert (
        f"Also in the proof, on the same prompts: {first.label}, -10.0 % (-20.0 % to -5.0 %), disable."
        in said(explanation)
    )
    assert explanation.figures["runners_up"] == []


def test_a_fast_model_that_gains_nothing_is_told_so():
    """The founding record's rule of thumb, with the figures of this model."""
    assert "Without drafting a token takes only 12 ms (80 tok/s)" in said(
        explain(recommendation(Verdict.DISABLE, baseline_tps=80.0))
    )
    assert "At 15 tok/s" not in said(explain(recommendation(Verdict.DISABLE)))


def test_the_model_is_described_by_what_it_reads():
    """Bytes per token over milliseconds per token: the bandwidth that was reached, dense or with experts."""
    dense = make_model(bytes_per_token=4_000_000_000)
    explained = explain(recommendation(), [pair()], model=dense)
    assert "a dense model that reads all its weights for every token: 4.00 GB in 100.0 ms" in said(explained)
    assert explained.figures["bandwidth_bytes_per_s"] == 40_000_000_000
    experts = make_model(experts=128, active_experts=8)
    assert "8 of 128 experts" in said(explain(recommendation(), [pair()], model=experts))
    assert "experts" not in said(explain(recommendation(), model=experts))


PREDICTION = {
    "expected": 1.28,
    "interval": [1.15, 1.4],
    "acceptance_by_position": [0.9, 0.8, 0.7, 0.6],
    "token_ms": 100.0,
    "verify_ms": [100.0, 104.0, 108.0, 112.0, 116.0],
    "step_ms": 8.0,
    "break_even": 0.36,
    "checks": [{"drafting": DRAFTING.to_json(), "predicted": 1.3, "measured": 1.1, "agrees": False}],
    "ruled_out": [
        {
            "arm": "draft-model bad",
            "prompt_type": "coding",
            "best_case": 0.96,
            "acceptance": 0.41,
            "break_even": 0.58,
        }
    ],
}


def test_prediction_is_told_beside_what_was_measured():
    """Expected and measured, acceptance by position, the cost curve, and what was never launched."""
    explained = explain(recommendation(evidence={"prediction": PREDICTION}), [pair()])
    text = said(explained)
    for words in (
        "Predicted from the search prompts: +28.0 % (+15.0 % to +40.0 %); measured on the proof prompts: +30.6 %.",
        "position: 1: 90%, 2: 80%, 4: 60%.",
        "0 proposals 100.0 ms, 1 proposal 104.0 ms, 2 proposals 108.0 ms, 4 proposals 116.0 ms. The draft model takes 8.0 ms per proposal.",
        "nearly free",
        "breaks even at an acceptance rate of 36%",
        "predicted 1.30×, measured 1.10×; after that its predictions were not used",
        "Never launched: draft-model bad; best case -4.0 % (coding), acceptance 0.41, break-even 0.58.",
    ):
        assert words in text
    assert explained.figures["prediction"]["token_ms"] == 100.0


def test_a_steep_curve_is_called_so():
    """Where the first proposal already costs, the machine computes rather than waits."""
    steep = PREDICTION | {"verify_ms": [100.0, 150.0], "break_even": 1.2}
    text = said(explain(recommendation(evidence={"prediction": steep})))
    assert "The first proposal adds 50% to the time of a batch" in text
    assert "would not pay even if all were accepted" in text


def test_costs_that_launches_could_not_correct_are_said():
    """The sentence of the refit stands beside the curve that it left as it was."""
    why = "Launches would have the draft take 4.00 times as long as alone; the costs stay as they were timed."
    text = said(explain(recommendation(evidence={"prediction": PREDICTION | {"not_corrected": why}})))
    assert why in text
    assert "not_corrected" not in PREDICTION
    assert why not in said(explain(recommendation(evidence={"prediction": PREDICTION})))


def test_a_draft_that_reads_prompts_too_slowly_is_called_so():
    """Its acceptance is above break-even, and what rules it out is said."""
    ruled_out = PREDICTION["ruled_out"][0] | {"acceptance": 0.9, "by_prompt": True}
    text = said(explain(recommendation(evidence={"prediction": PREDICTION | {"ruled_out": [ruled_out]}})))
    assert "acceptance 0.90, break-even 0.58, and prompts are slower." in text


def test_a_draft_that_another_one_beats_is_called_so():
    """It would pay, so its break-even is no reason; acceptance 0.9 above 0.58 with "never launched" looked like a mistake."""
    ruled_out = PREDICTION["ruled_out"][0] | {"acceptance": 0.9, "best_case": 1.3, "beaten": True}
    text = said(explain(recommendation(evidence={"prediction": PREDICTION | {"ruled_out": [ruled_out]}})))
    assert (
        "best case +30.0 % (coding), acceptance 0.90, and another drafting is faster than its best case."
        in text
    )


@pytest.mark.parametrize(
    ("interval", "pairs", "words"),
    [
        ([0.88, 0.93], 5, "-10.0 % (-12.0 % to -7.0 %)"),
        (None, 1, "-10.0 % compared with no draft model, from 1 pair."),
    ],
)
def test_a_draft_that_is_loaded_and_not_used_is_told(interval, pairs, words):
    """With its interval where there are pairs enough for one."""
    idle = {"ratio": 0.9, "interval": interval, "pairs": pairs}
    explained = explain(recommendation(evidence={"idle_draft": idle}))
    assert words in said(explained)
    assert explained.figures["idle_draft"] == idle


def test_a_record_is_explained_by_its_runs():
    """Every recorded run and the notes of the founding record."""
    stored = recommendations_of(read_record(find_record("m2-ultra-2025-12-13")))
    text = said(explain(next(s.recommendation for s in stored if s.recommendation.backend == "llama-server")))
    assert "Recorded without drafting: 75.5 tok/s." in text
    assert "n_max=8 p_min=0.8: 59.0 tok/s (-21.9 %)." in text
    assert "MoE, 3B active" in text


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ({"sd": 0.03, "freedom": 2.25, "assumed": True}, "differ by 3.0 %: too few have been compared"),
        (
            {"sd": 0.0042, "freedom": 7.6, "assumed": False},
            "0.4 % (standard deviation, 8 degrees of freedom)",
        ),
    ],
)
def test_it_says_what_launches_are_taken_to_differ_by(counted, words):
    """The verdict's own figure: measured, or assumed."""
    r = recommendation()
    explanation = explain(replace(r, evidence={**r.evidence, "launch_scatter": counted}))
    assert words in said(explanation)
    assert explanation.figures["launch_scatter"] == counted


def test_a_recommendation_of_before_says_nothing_of_launches():
    """Its evidence has no such key."""
    explanation = explain(recommendation())
    assert "launches" not in said(explanation)
    assert "launch_scatter" not in explanation.figures


def test_the_request_that_the_speeds_are_of_is_told():
    """Three ratios of one cell: the request that people make, generation alone, and the short request that was measured."""
    request = {"prompt_tokens": 113.5, "answer_tokens": 384.0, "cached_share": 0.5, "source": "suite"}
    evidence = {"request": request, "measured_speedup": 0.95, "decode_speedup": 1.81}
    told = explain(recommendation(speedup=1.62, evidence=evidence))
    words = " ".join(told.sentences)
    assert (
        "The gain of +62.0 % is for requests with 114 prompt tokens to process (50% of the prompt is assumed to be cached) and 384 answer tokens"
        in words
    )
    assert "as the suite defines them. Token generation alone: +81.0 %." in words
    assert "nothing cached: -5.0 %." in words
    assert "depends on the lengths of the prompt and the answer" in words
    assert told.figures["request"] == request
    same_sign = explain(recommendation(speedup=1.62, evidence=evidence | {"measured_speedup": 1.3}))
    assert "depends on the lengths" not in " ".join(same_sign.sentences)


def test_a_prompt_that_is_computed_whole_with_drafting_is_told():
    """Where the server keeps no prompt cache while it drafts."""
    request = {
        "prompt_tokens": 400.0, "answer_tokens": 300.0, "cached_share": 0.8, "source": "suite",
        "drafted_prompt_tokens": 2000.0,
    }  # fmt: skip
    evidence = {"request": request, "measured_speedup": 1.2, "decode_speedup": 1.3}
    assert (
        "400 prompt tokens to process (80% of the prompt is assumed to be cached; with drafting, the server has no prompt cache and"
        " processes 2000 tokens) and 300 answer tokens"
    ) in said(explain(recommendation(speedup=0.9, evidence=evidence)))


@pytest.mark.parametrize("depth", [None, {"plain_ms": 50.0, "reach_tokens": 572, "rises": {}}])
def test_an_answer_whose_context_was_not_timed_is_told(depth):
    """A hybrid's layers read the whole text, and no batch of it can be timed behind one."""
    request = {"prompt_tokens": 113.5, "answer_tokens": 384.0, "cached_share": 0.5, "source": "suite"}
    evidence = {
        "request": request, "measured_speedup": 1.2, "decode_speedup": 1.8,
        "requests": {"depth": depth}, "conditions": {"max_tokens": 64},
    }  # fmt: skip
    words = "What the context of a longer answer costs was not timed."
    assert (words in said(explain(recommendation(speedup=1.6, evidence=evidence)))) is (depth is None)
    evidence["conditions"] = {"max_tokens": 384}
    assert words not in said(explain(recommendation(speedup=1.6, evidence=evidence)))


def test_energy_is_told_where_it_is_known():
    """Beside the speed, with what the joules are of."""
    known = {
        "parts": ["gpu"], "pairs": 12, "off_j_per_token": 2.034, "drafting_j_per_token": 1.5, "ratio": 0.7375,
        "interval": [0.7, 0.78],
    }  # fmt: skip
    explained = explain(recommendation(evidence={"energy": known}))
    assert explained.figures["energy"] == known
    assert (
        "A token took 2.03 J without drafting and 1.5 J with it: -26.2 % (-30.0 % to -22.0 %) energy, from 12 pairs."
        " These are joules of the GPU, with idle power, for the short measured requests."
    ) in explained.sentences
    both = known | {"parts": ["cpu", "gpu"], "interval": None}
    text = said(explain(recommendation(evidence={"energy": both})))
    assert (
        "1.5 J with it: -26.2 % energy, from 12 pairs. These are joules of the processor and the GPU" in text
    )
    assert "J without" not in said(explain(recommendation()))
