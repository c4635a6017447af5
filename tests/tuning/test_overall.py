"""The overall answer: one drafting for all prompt types, chosen from made-up cells, and found by a simulated tune."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import UsageError
from autospec.measure.log_ratios import of_mix
from autospec.measure.measurements import DepthCosts, DepthRise, Pair, Sample, Shapes
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.store.database import open_store
from autospec.tuning import overall_proof
from autospec.tuning.build_recommendation import Cost
from autospec.tuning.overall import Known, Mix, choose, mix_of, parse_mix
from autospec.tuning.overall_answer import earlier_looks, looks_json, noted_looks, to_recommendation
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.request import draft_file
from autospec.tuning.run import Tuning
from tests.report.samples import DRAFTING, measurement, recommendation
from tests.tuning.simulated import SimulatedBackend
from tests.tuning.test_run import (  # noqa: F401 - the fixtures are used by name
    MACHINE,
    Silent,
    nobody_else_is_at_work,
    pays_for_coding,
    request_,
)

pytestmark = pytest.mark.usefixtures("no_waits")

CODING, WRITING, CHAT = PromptType.CODING, PromptType.WRITING, PromptType.CHAT
NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)


def pairs(
    kind: PromptType, ratio: float, *, prompts: int = 8, rounds: int = 1, drafting: Drafting = DRAFTING
) -> list[Pair]:
    """Pairs of a drafting: each prompt in each round, every prompt 1 % faster or slower than the ratio."""
    found = []
    for round_, n in itertools.product(range(1, rounds + 1), range(prompts)):
        wall_ms = 10_000.0 / (ratio * math.exp(0.01 * (-1) ** n))
        both = {"prompt": f"{kind}-{n}", "round": round_, "compared": drafting}
        turn = (n + round_) % 2
        off_times, times = (
            {"wall_ms": wall, "prompt_ms": 0.02 * wall, "predicted_ms": 0.98 * wall}
            for wall in (10_000.0, wall_ms)
        )
        off = measurement(
            with_drafting=False, **both, **off_times, launch_id=f"{kind} off {round_}", position=turn
        )
        on = measurement(
            with_drafting=True, **both, drafting=drafting, **times, launch_id=f"{kind} on {round_}", position=1 - turn
        )  # fmt: skip
        found.append(Pair(off, on))
    return found


def known(
    kind: PromptType,
    own: Drafting,
    verdict: Verdict = Verdict.ENABLE,
    measured: Mapping[Drafting, float] = {},
    *,
    predicted: Mapping[Drafting, float] = {},
    rounds: int = 1,
    answer_tokens: float = 100.0,
    tps: float = 10.0,
) -> Known:
    """A cell that proved `own` with this verdict; `measured` are the ratios of the draftings with pairs."""
    r = recommendation(
        verdict,
        prompt_type=kind,
        drafting=own if verdict is Verdict.ENABLE else OFF,
        tried=own,
        baseline_tps=tps,
        evidence={"request": {"answer_tokens": answer_tokens}, "cell": f"cell of {kind}"},
    )
    found = {d: pairs(kind, ratio, rounds=rounds, drafting=d) for d, ratio in measured.items()}
    return Known(r, found, predicted, prompts=8)


def equal(*kinds: PromptType) -> Mix:
    """Equal shares."""
    return mix_of(kinds, ())


def test_one_drafting_that_is_best_for_all_is_enabled():
    """Each type's own proof enables it, so nothing is lost against one drafting for each type."""
    cells = {k: known(k, DRAFTING, measured={DRAFTING: 1.5}) for k in (CODING, WRITING)}
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.tried, answer.final) == (Verdict.ENABLE, DRAFTING, True)
    r = to_recommendation(answer, DEFAULT_RULE, args=["--flag"])
    assert r.drafting == DRAFTING
    assert r.speedup == pytest.approx(1.5, rel=0.01)
    assert r.evidence["loses"] == pytest.approx(0.0, abs=1e-3)
    assert (r.evidence["slows"], r.evidence["lacks"]) == ([], [])
    assert r.prompt_type is None
    assert r.is_overall
    assert Recommendation.from_json(r.to_json()).is_overall


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_drafting_with_which_a_prompt_fails_is_neither_enabled_nor_measured(rounds):
    """Whatever its pairs say; with none of one type, too."""
    cells = {k: known(k, DRAFTING, measured={DRAFTING: 3.0}) for k in (CODING, WRITING)}
    writing = replace(cells[WRITING], failing={DRAFTING: frozenset({"writing-3"}), OFF: frozenset()})
    if not rounds:
        writing = replace(writing, pairs={})
    answer = choose({**cells, WRITING: writing}, equal(CODING, WRITING))
    assert (answer.verdict, answer.final, answer.next) == (Verdict.UNDECIDED, True, OFF)
    assert answer.reason == "1 prompt fails with drafting only"
    assert to_recommendation(answer, DEFAULT_RULE).drafting == OFF


def test_prompts_that_fail_without_drafting_are_not_waited_for():
    """A drafting with the seven others was asked every prompt that users can ask."""
    cell = replace(known(CODING, DRAFTING), pairs={DRAFTING: pairs(CODING, 1.5, prompts=7)})
    assert not cell.measured(DRAFTING)
    assert not cell.complete(DRAFTING)
    cell = replace(cell, failing={OFF: frozenset({"coding-7"})})
    assert cell.measured(DRAFTING)
    assert cell.complete(DRAFTING)


def test_a_prompt_that_off_answered_once_does_not_stand_for_another():
    """The proof has eight; seven others were asked, and one that off cannot answer any more."""
    cell = Known(
        recommendation(),
        {DRAFTING: pairs(CODING, 1.5, prompts=7)},
        prompts=8,
        failing={OFF: frozenset({"coding-0"})},
    )
    assert not cell.complete(DRAFTING)
    assert replace(cell, pairs={DRAFTING: pairs(CODING, 1.5)}).complete(DRAFTING)


def test_types_that_disagree_are_judged_by_all_pairs_together():
    """The gain is that of the time of the mix: 2 ÷ (1 ÷ 1.8 + 1 ÷ 1.1), and not the mean of the ratios."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.8}),
        WRITING: known(WRITING, NGRAM, measured={DRAFTING: 1.1, NGRAM: 1.2}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.tried) == (Verdict.ENABLE, DRAFTING)
    expected = 2.0 / (1 / 1.8 + 1 / 1.1)
    assert answer.ratio == pytest.approx(expected, rel=0.002)
    assert answer.decision is not None
    assert answer.decision.estimate is not None
    assert answer.decision.estimate.ratio == pytest.approx(expected, rel=0.002)
    r = to_recommendation(answer, DEFAULT_RULE)
    # With one drafting for each type writing would have the n-gram mode.
    best = 2.0 / (1 / 1.8 + 1 / 1.2)
    assert r.evidence["one_per_type"] == pytest.approx(best, rel=0.002)
    assert r.evidence["loses"] == pytest.approx(1.0 - expected / best, abs=0.002)
    assert r.pairs == 16


def test_a_type_that_is_slowed_is_named():
    """Writing loses 30 %, coding gains so much that the mix is faster all the same."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 4.0}, rounds=2),
        WRITING: known(WRITING, DRAFTING, Verdict.DISABLE, measured={DRAFTING: 0.7}, rounds=2),
    }
    r = to_recommendation(choose(cells, equal(CODING, WRITING)), DEFAULT_RULE)
    assert r.verdict is Verdict.ENABLE
    assert r.evidence["slows"] == ["writing"]
    assert r.evidence["one_per_type"] == pytest.approx(2.0 / (1 / 4.0 + 1.0), rel=0.01)


def test_off_where_it_takes_more_than_it_gives():
    """+30 % and −30 % of equal times is a loss: 2 ÷ (1 ÷ 1.3 + 1 ÷ 0.7) is 0.91."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.3}),
        WRITING: known(WRITING, DRAFTING, Verdict.DISABLE, measured={DRAFTING: 0.7}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.final) == (Verdict.DISABLE, True)
    r = to_recommendation(answer, DEFAULT_RULE)
    assert (r.drafting, r.tried, r.status) == (OFF, DRAFTING, Status.PROVEN)
    # Off, and coding could have had its drafting.
    assert r.evidence["loses"] == pytest.approx(1.0 - (1 / 1.3 + 1.0) / 2.0, abs=0.01)


def test_predictions_enable_nothing():
    """A type without pairs is named, and its prediction counts for the choice alone."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.8}),
        WRITING: known(WRITING, NGRAM, measured={NGRAM: 1.2}, predicted={DRAFTING: 1.5}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.tried, answer.final) == (Verdict.UNDECIDED, DRAFTING, False)
    assert (answer.lacks, answer.next) == ((WRITING,), DRAFTING)
    r = to_recommendation(answer, DEFAULT_RULE)
    assert (r.drafting, r.speedup, r.status) == (OFF, None, Status.PROVISIONAL)
    assert "writing" in r.reason
    assert {t["prompt_type"]: t["source"] for t in r.evidence["types"]} == {
        "coding": "proof",
        "writing": "prediction",
    }


def test_an_unknown_type_counts_as_unchanged():
    """Neither measured nor predicted: no gain is assumed, and no loss."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.5}),
        WRITING: known(WRITING, NGRAM, Verdict.DISABLE, measured={NGRAM: 0.9}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert answer.ratio == pytest.approx(2.0 / (1 / 1.5 + 1.0), rel=0.002)
    assert answer.ratio_of(WRITING, DRAFTING) is None
    assert (answer.verdict, answer.lacks) == (Verdict.UNDECIDED, (WRITING,))


def test_a_type_of_the_traffic_that_was_never_tuned_keeps_it_undecided():
    """It is named as one that lacks measurements."""
    cells = {CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.5})}
    answer = choose(cells, mix_of(cells, (), {CODING: 1.0, CHAT: 1.0}))
    assert (answer.verdict, answer.lacks) == (Verdict.UNDECIDED, (CHAT,))
    assert answer.time_shares == pytest.approx({CODING: 0.5, CHAT: 0.5})


def test_weights_change_the_answer():
    """Three requests of coding for one of writing pay; one for three do not."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.5}),
        WRITING: known(WRITING, DRAFTING, Verdict.DISABLE, measured={DRAFTING: 0.75}),
    }
    verdicts = [
        choose(cells, mix_of(cells, (), {CODING: coding, WRITING: writing})).verdict
        for coding, writing in ((9.0, 1.0), (1.0, 3.0))
    ]
    assert verdicts == [Verdict.ENABLE, Verdict.DISABLE]


def test_long_answers_weigh_more():
    """Weights are shares of requests: a request of a type with answers three times as long takes three times the time."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.5}, answer_tokens=300.0),
        WRITING: known(WRITING, DRAFTING, measured={DRAFTING: 1.5}, answer_tokens=100.0),
    }
    assert choose(cells, equal(CODING, WRITING)).time_shares == pytest.approx({CODING: 0.75, WRITING: 0.25})


def test_no_type_gains():
    """All proofs say that drafting does not pay: so does the answer, whatever was not measured."""
    cells = {
        CODING: known(CODING, DRAFTING, Verdict.DISABLE, measured={DRAFTING: 0.9}),
        WRITING: known(WRITING, NGRAM, Verdict.DISABLE, measured={NGRAM: 0.95}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.final, answer.next) == (Verdict.DISABLE, True, OFF)


def test_a_proven_drafting_is_served_until_a_better_one_is_measured():
    """The better one is what should be measured next."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 2.0, NGRAM: 1.4}),
        WRITING: known(WRITING, NGRAM, measured={NGRAM: 1.4}, predicted={DRAFTING: 1.9}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.tried, answer.next) == (Verdict.ENABLE, NGRAM, DRAFTING)


@pytest.mark.parametrize(
    ("predicted", "pursued"),
    [(1.40, DRAFTING), (1.414, DRAFTING), (1.46, DRAFTING), (1.48, NGRAM), (1.80, NGRAM)],
)
def test_a_drafting_with_pairs_is_measured_first_unless_another_gains_visibly_more(predicted, pursued):
    """Of a drafting with pairs for two of three types, 5 % more would have to be expected to be left for one with none."""
    measured = {kind: known(kind, DRAFTING, measured={DRAFTING: 1.4}) for kind in (CODING, CHAT)}
    cells = measured | {WRITING: known(WRITING, NGRAM, Verdict.DISABLE, predicted={DRAFTING: 1.4})}
    cells = {kind: replace(k, predicted={**k.predicted, NGRAM: predicted}) for kind, k in cells.items()}
    answer = choose(cells, equal(CODING, CHAT, WRITING))
    assert (answer.next, answer.tried, answer.verdict) == (pursued, pursued, Verdict.UNDECIDED)
    assert answer.lacks == ((WRITING,) if pursued == DRAFTING else (CODING, WRITING, CHAT))


def test_what_is_measured_next_is_among_the_candidates():
    """Five others are predicted to gain a little more, and only what is among the candidates keeps its looks."""
    others = {replace(NGRAM, ngram_n=n): 1.41 for n in range(8, 13)}
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.4}, predicted=others),
        WRITING: known(WRITING, DRAFTING, Verdict.UNDECIDED, predicted={DRAFTING: 1.4, **others}),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert answer.next == DRAFTING
    assert [c.drafting for c in answer.candidates] == [*sorted(others, key=lambda d: d.key), DRAFTING]


def test_of_draftings_that_lack_as_many_types_the_one_with_the_greatest_gain_is_measured_first():
    """Each has pairs for one of the two types, however long their requests are."""
    for coding_tokens in (50.0, 400.0):
        cells = {
            CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.4}, predicted={NGRAM: 1.4}, answer_tokens=coding_tokens),
            WRITING: known(WRITING, NGRAM, measured={NGRAM: 1.4}, predicted={DRAFTING: 1.43}),
        }  # fmt: skip
        assert choose(cells, equal(CODING, WRITING)).next == DRAFTING


@pytest.mark.parametrize(("predicted", "pursued"), [(1.32, OFF), (1.36, OFF), (1.38, NGRAM)])
def test_what_is_enabled_is_left_only_for_a_visible_gain(predicted, pursued):
    """The pairs of all types enable the drafting, although writing's own proof is for none."""
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.3}),
        WRITING: known(WRITING, NGRAM, Verdict.DISABLE, measured={DRAFTING: 1.3}),
    }
    cells = {kind: replace(k, predicted={NGRAM: predicted}) for kind, k in cells.items()}
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.tried, answer.next) == (Verdict.ENABLE, DRAFTING, pursued)


def test_a_visible_gain_over_what_is_enabled_is_not_hidden_by_a_smaller_one():
    """Enabled +30 %; +35 % lacks fewer pairs than +40 %, but only the latter is more than 5 % above what is enabled."""
    third = replace(NGRAM, ngram_n=12)
    cells = {
        CODING: known(CODING, DRAFTING, measured={DRAFTING: 1.3, third: 1.35}, predicted={NGRAM: 1.4}),
        WRITING: known(
            WRITING, NGRAM, Verdict.DISABLE, measured={DRAFTING: 1.3}, predicted={third: 1.35, NGRAM: 1.4}
        ),
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.tried, answer.next) == (DRAFTING, NGRAM)


def test_draftings_that_could_be_chosen_share_the_error_rate():
    """Of two that are measured everywhere, each has half; a look that was taken before enables nothing."""
    cells = {
        kind: known(kind, DRAFTING, Verdict.UNDECIDED, measured={DRAFTING: 1.3, NGRAM: 1.2}, rounds=2)
        for kind in (CODING, WRITING)
    }
    alone = {kind: replace(k, pairs={DRAFTING: k.pairs[DRAFTING]}) for kind, k in cells.items()}
    both, one = (choose(c, equal(CODING, WRITING)).decision for c in (cells, alone))
    assert both is not None
    assert one is not None
    assert both.estimate is not None
    assert one.estimate is not None
    assert both.estimate.interval[0] < one.estimate.interval[0]
    assert one.verdict is Verdict.ENABLE
    again = choose(alone, equal(CODING, WRITING), looked={DRAFTING: 2})
    assert (again.verdict, again.final) == (Verdict.UNDECIDED, False)


def measured(protocol: str = "p", epoch: float = 0.0, *kinds: PromptType) -> dict[PromptType, Known]:
    """Types with two rounds of one drafting, measured under this protocol since this moment."""
    cells = {
        k: known(k, DRAFTING, Verdict.UNDECIDED, measured={DRAFTING: 1.3}, rounds=2)
        for k in kinds or (CODING, WRITING)
    }
    told = {"protocol": protocol, "epoch": epoch}
    return {
        k: replace(own, recommendation=replace(own.recommendation, evidence={**own.recommendation.evidence, **told}))
        for k, own in cells.items()
    }  # fmt: skip


def with_looks(
    cells: Mapping[PromptType, Known], rounds: int, drafts: DraftFiles, *, protocol: str = "p", before: Sequence[Recommendation] = ()
) -> Recommendation:  # fmt: skip
    """The stored answer of a tune that looked at the drafting after these rounds; 0 for no look."""
    answer = choose(cells, equal(*cells))
    noted = noted_looks(before, cells)
    looked = earlier_looks(noted, cells, drafts) | ({DRAFTING: rounds} if rounds else {})
    r = to_recommendation(answer, DEFAULT_RULE)
    looks = looks_json(looked, noted, answer, drafts=drafts, protocol=protocol)
    return replace(r, evidence={**r.evidence, "looks": looks})


HERE = DraftFiles({str(DRAFTING.draft): DraftFile("same")})
MOVED = replace(DRAFTING, draft="/moved/draft.gguf")


def test_looks_at_all_types_follow_a_draft_that_is_moved():
    """They had its path alone, so every look could be taken twice. What earlier versions noted is still read."""
    cells = measured()
    noted = noted_looks([with_looks(cells, 2, HERE)], cells)
    there = DraftFiles({"/moved/draft.gguf": DraftFile("same")})
    replaced = DraftFiles({str(DRAFTING.draft): DraftFile("another")})
    assert earlier_looks(noted, cells, HERE) == {DRAFTING: 2}
    assert earlier_looks(noted, cells, there) == {MOVED: 2}
    assert earlier_looks(noted, cells, replaced) == {}
    old = [{k: v for k, v in e.items() if k not in ("draft_id", "protocol")} for e in noted]
    assert earlier_looks(old, cells, HERE) == earlier_looks(old, cells, replaced) == {DRAFTING: 2}
    assert earlier_looks(old, cells, there) == {DRAFTING: 2, MOVED: 2}


def test_looks_outlive_a_tune_of_another_protocol_or_without_the_draft():
    """The newest answer held those of its own tune alone, and only of its five best draftings."""
    cells, gone = measured(), DraftFiles({})
    first = with_looks(cells, 2, HERE)
    other = measured("q", 9.0)
    second = with_looks(other, 4, HERE, protocol="q", before=[first])
    assert earlier_looks(noted_looks([second], other), other, HERE) == {DRAFTING: 4}
    third = with_looks(cells, 0, gone, before=[second])
    assert earlier_looks(noted_looks([third], cells), cells, HERE) == {DRAFTING: 2}
    fourth = with_looks(cells, 4, HERE, before=[third])
    assert sorted(e["rounds"] for e in fourth.evidence["looks"]) == [4, 4], "one of each protocol"


def test_looks_are_gone_when_one_of_their_types_is_measured_from_the_start():
    """A type that was not in the mix is none of them: it took the looks away."""
    first = with_looks(measured(), 2, HERE)
    later = measured() | measured("p", 9.0, CHAT)
    assert earlier_looks(noted_looks([first], later), later, HERE) == {DRAFTING: 2}
    again = measured() | measured("p", 9.0, WRITING)
    assert noted_looks([first], again) == []


def test_a_part_of_a_round_belongs_to_the_next_look():
    """An interruption spent the look of its round on these pairs, and the answer took two more rounds."""
    cells = {k: known(k, DRAFTING, Verdict.UNDECIDED, measured={DRAFTING: 1.3}, rounds=2) for k in (CODING, WRITING)}  # fmt: skip
    first = {k: [p for p in own.pairs[DRAFTING] if p.off.round == 1] for k, own in cells.items()}
    second = [p for p in cells[CODING].pairs[DRAFTING] if p.off.round == 2]
    for part, look in ((5, 1), (7, 2)):
        interrupted = {
            CODING: replace(cells[CODING], pairs={DRAFTING: [*first[CODING], *second[:part]]}),
            WRITING: cells[WRITING],
        }
        [candidate] = choose(interrupted, equal(CODING, WRITING)).candidates
        assert (candidate.look, candidate.rounds) == (look, look)


def test_a_mix_is_read_and_refused():
    """Weights above 0, each type once."""
    assert parse_mix("coding=3, chat=1") == {CODING: 3.0, CHAT: 1.0}
    for text in ("poems=1", "coding", "coding=0", "coding=nan", "coding=1,coding=2", ""):
        with pytest.raises(UsageError):
            parse_mix(text)


def test_the_traffic_is_the_mix_from_30_requests_on():
    """Below, all tuned types have equal shares; a type with fewer than one request in a hundred does not count."""

    def asked(count: int, kind: PromptType | None) -> list[Sample]:
        return [Sample(0.0, "m", "b", "1", kind, 10, 10, 1.0, 1.0)] * count

    few = mix_of((CODING, WRITING), asked(29, CHAT))
    assert (few.source, few.shares) == ("equal", {CODING: 0.5, WRITING: 0.5})
    many = mix_of(
        (CODING, WRITING), [*asked(150, CHAT), *asked(50, CODING), *asked(1, WRITING), *asked(9, None)]
    )
    assert (many.source, many.requests) == ("traffic", 201)
    assert many.shares == pytest.approx({CODING: 0.25, CHAT: 0.75})


def test_a_value_of_the_mix_has_prompts_of_every_type():
    """As many values as the type with the fewest prompts has, and launches that rounds share count as one."""
    by_type = {"a": pairs(CODING, 1.5, prompts=8, rounds=2), "b": pairs(WRITING, 1.0, prompts=4, rounds=3)}
    values, rounds = of_mix(by_type, {"a": 0.5, "b": 0.5})
    assert rounds == 2
    assert len(values) == 8
    assert {v.prompt for v in values} == {f"writing-{n}" for n in range(4)}
    assert {v.off_launch for v in values} == {"off 0", "off 1"}
    assert {v.off_first for v in values} == {True, False}
    for v in values:
        assert v.value == pytest.approx(math.log(2.0 / (1 / 1.5 + 1.0)), abs=0.02)
    one = [replace(p, off=replace(p.off, launch_id="the same")) for p in by_type["a"]]
    values, _ = of_mix(by_type | {"a": one}, {"a": 0.5, "b": 0.5})
    assert len({v.off_launch for v in values}) == 1


def gains_little(drafting: Drafting, text: str) -> float:
    """The draft model gains much for coding and a little for writing, n-grams gain more for writing."""
    if drafting.mode is Mode.DRAFT_MODEL:
        return 1.6 if "coding" in text else 1.15
    return 1.05 if "coding" in text else 1.4


def test_a_tune_measures_what_the_answer_lacks(request_):  # noqa: F811
    """The best single drafting is asked the prompts of the type that another one won, and is then enabled for both."""
    backend, progress = SimulatedBackend(gains_little), Silent()
    tuning = Tuning(request_, backend, MACHINE, progress)
    own = {r.prompt_type: r for r in tuning.run()}
    assert [own[t].drafting.mode for t in (CODING, WRITING)] == [Mode.DRAFT_MODEL, Mode.NGRAM_SIMPLE]
    assert any(s.phase == "overall" for s in progress.steps)
    answer = tuning.overall()
    assert answer is not None
    assert (answer.verdict, answer.drafting) == (Verdict.ENABLE, own[CODING].drafting)
    assert answer.speedup == pytest.approx(2.0 / (1 / 1.6 + 1 / 1.15), rel=0.03)
    assert answer.evidence["loses"] > 0.05
    assert answer.evidence["args"] == list(backend.drafting_args("", answer.drafting, request_.settings()))
    # The next tune finds everything in the store.
    again = SimulatedBackend(gains_little)
    Tuning(request_, again, MACHINE, Silent()).run()
    assert again.launched == []


def test_a_type_without_a_result_of_this_protocol_is_not_measured(request_, monkeypatch):  # noqa: F811
    """Its proof of another protocol does not count, and its own had no time: its pairs would not count. It was a KeyError."""
    known_types = overall_proof.known_types

    def without(*args):
        return {kind: own for kind, own in known_types(*args).items() if kind is not WRITING}

    monkeypatch.setattr(overall_proof, "known_types", without)
    progress = Silent()
    both = replace(request_, mix={CODING: 1.0, WRITING: 1.0})
    tuning = Tuning(both, SimulatedBackend(gains_little), MACHINE, progress)
    tuning.run()
    assert not any(step.phase == "overall" for step in progress.steps)
    assert tuning.overall() is not None


def test_without_time_the_answer_says_what_it_lacks(request_):  # noqa: F811
    """The proofs take the budget; the next tune, in which all types are proven, asks the rest."""
    tuning = Tuning(request_, SimulatedBackend(gains_little), MACHINE, Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.overall_proof.OverallProof._measure", lambda *_: False)
        tuning.run()
    answer = tuning.overall()
    assert answer is not None
    assert (answer.verdict, answer.drafting, answer.evidence["lacks"]) == (
        Verdict.UNDECIDED,
        OFF,
        ["writing"],
    )
    backend = SimulatedBackend(gains_little)
    later = Tuning(request_, backend, MACHINE, Silent())
    later.run()
    answer = later.overall()
    assert answer is not None
    assert answer.verdict is Verdict.ENABLE
    store = open_store(request_.storage)
    assert len(store.overall_answers()) == 1
    store.close()


@pytest.mark.process
def test_without_time_for_its_launches_none_is_begun(request_):  # noqa: F811
    """The launches of the proofs took three minutes each; earlier those of this step were expected to take no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cost, "to_json", lambda _: {"seconds": 600.0, "launches": 2, "launch_seconds": 360.0})
        patch.setattr("autospec.tuning.overall_proof.OverallProof._measure", lambda *_: False)
        Tuning(request_, SimulatedBackend(gains_little), MACHINE, Silent()).run()
    for budget_s, launched in ((300.0, False), (900.0, True)):
        backend = SimulatedBackend(gains_little)
        Tuning(replace(request_, budget_s=budget_s), backend, MACHINE, Silent()).run()
        assert bool(backend.launched) is launched


@pytest.mark.process
def test_the_pairs_that_it_asks_know_a_moved_draft(request_):  # noqa: F811
    """What context costs it was timed under another path."""
    tuning = Tuning(request_, SimulatedBackend(gains_little), MACHINE, Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.overall_proof.OverallProof._measure", lambda *_: False)
        tuning.run()
    path, identity = str(request_.models[1].path), draft_file(request_.models[1]).identity
    rises = {"": DepthRise(0.0, 0.0), "/old": DepthRise(0.0, 0.001)}
    shapes = Shapes(depth=DepthCosts(100.0, 1000, rises, {"/old": identity}))
    store = open_store(request_.storage)
    for stored in store.recommendations():
        r = stored.recommendation
        told = replace(r, evidence={**r.evidence, "requests": shapes.to_json()})
        store.save_recommendation(told, stored.hardware, stored.cell_key)
    store.close()
    asked = []

    def spy(*args, **more):
        asked.append(more["shapes"])
        return PairedRunner(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autospec.tuning.overall_proof.PairedRunner", spy)
        Tuning(request_, SimulatedBackend(gains_little), MACHINE, Silent()).run()
    assert asked
    assert {s.depth.rises[path] for shapes in asked for s in shapes.values()} == {rises["/old"]}


@pytest.mark.process
@pytest.mark.parametrize(("predicted", "first"), [(1.02, Mode.DRAFT_MODEL), (1.2, Mode.NGRAM_SIMPLE)])
def test_a_tune_first_asks_what_is_nearly_proven(request_, predicted, first):  # noqa: F811
    """The drafting that coding has proven, unless one without any pair is predicted to be faster by more than 5 %."""

    def without_time() -> Tuning:
        tuning = Tuning(request_, SimulatedBackend(gains_little), MACHINE, Silent())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("autospec.tuning.overall_proof.OverallProof._measure", lambda *_: False)
            tuning.run()
        return tuning

    answer = without_time().overall()
    assert answer is not None
    assert answer.tried.mode is Mode.DRAFT_MODEL
    never_tried = replace(NGRAM, ngram_n=20)
    store = open_store(request_.storage)
    for stored in store.recommendations():
        prediction = {
            "candidates": [
                {"drafting": never_tried.to_json(), "expected": predicted * answer.evidence["expected"]}
            ]
        }
        told = replace(
            stored.recommendation, evidence={**stored.recommendation.evidence, "prediction": prediction}
        )
        store.save_recommendation(told, stored.hardware, stored.cell_key)
    store.close()
    progress = Silent()
    Tuning(request_, SimulatedBackend(gains_little), MACHINE, progress).run()
    assert next(s.drafting.mode for s in progress.steps if s.phase == "overall") is first


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_answer_for_one_prompt_type_is_the_type_s_own(verdict):
    """With its verdict and figures; a drafting that is predicted to be better is not measured for it."""
    cells = {
        CODING: known(CODING, DRAFTING, verdict, measured={DRAFTING: 1.3}, predicted={NGRAM: 2.0}),
        WRITING: known(WRITING, NGRAM, measured={NGRAM: 1.2}),
    }
    answer = choose(cells, mix_of(cells, (), {CODING: 1.0}))
    own = cells[CODING].recommendation
    assert (answer.verdict, answer.tried, answer.next) == (verdict, DRAFTING, OFF)
    r = to_recommendation(answer, DEFAULT_RULE)
    assert r.is_overall
    figures = ("verdict", "drafting", "tried", "speedup", "speedup_ci", "baseline_tps", "status", "reason")
    assert {name: getattr(r, name) for name in figures} == {
        name: getattr(own, name) for name in figures if name != "reason"
    } | {"reason": f"{own.reason[0].upper()}{own.reason[1:]}."}
    assert r.evidence["loses"] == 0.0


def test_the_answer_for_one_type_that_has_no_drafting():
    """Nothing could be tried: off, with the type's own reason."""
    own = recommendation(Verdict.UNDECIDED, tried=OFF, speedup=None, speedup_ci=None, reason="No draft fits.")
    answer = choose({CODING: Known(own, prompts=8)}, equal(CODING))
    assert (answer.verdict, answer.tried, answer.lacks, answer.candidates) == (
        Verdict.UNDECIDED,
        OFF,
        (CODING,),
        (),
    )
    assert to_recommendation(answer, DEFAULT_RULE).reason == "No draft fits."


@pytest.mark.parametrize("verdict", [Verdict.ENABLE, Verdict.DISABLE])
def test_what_every_type_s_proof_says_is_not_measured_again(verdict):
    """Whatever another drafting is predicted to gain; where one proof is not finished, it is measured."""
    ratio = 1.3 if verdict is Verdict.ENABLE else 0.9
    cells = {
        kind: known(kind, DRAFTING, verdict, measured={DRAFTING: ratio}, predicted={NGRAM: 2.0})
        for kind in (CODING, WRITING)
    }
    answer = choose(cells, equal(CODING, WRITING))
    assert (answer.verdict, answer.next) == (verdict, OFF)
    unfinished = replace(cells[CODING].recommendation, status=Status.PROVISIONAL)
    cells[CODING] = replace(cells[CODING], recommendation=unfinished)
    assert choose(cells, equal(CODING, WRITING)).next == NGRAM


def test_a_type_that_was_not_asked_for_is_not_measured(request_):  # noqa: F811
    """`tune --prompt-type coding` asks no writing prompts; the answer is for what was tuned."""
    backend = SimulatedBackend(pays_for_coding)
    tuning = Tuning(replace(request_, prompt_types=(CODING,)), backend, MACHINE, Silent())
    [own] = tuning.run()
    answer = tuning.overall()
    assert answer is not None
    assert (answer.verdict, answer.drafting) == (own.verdict, own.drafting)
    assert (answer.speedup, answer.speedup_ci) == (own.speedup, own.speedup_ci)
    assert list(answer.evidence["mix"]["shares"]) == ["coding"]
    assert not [text for _, _, text in backend.asked if "writing" in text]


def test_a_tune_notes_its_looks_by_the_identity_of_the_draft(request_):  # noqa: F811
    """The gain of the mix is too small for the first look; each look is noted once, however often tunes follow."""
    file = request_.models[1].path
    file.write_text("a draft")
    for _ in range(2):
        tuning = Tuning(request_, SimulatedBackend(pays_for_coding), MACHINE, Silent())
        tuning.run()
        answer = tuning.overall()
        assert answer is not None
        [look] = [e for e in answer.evidence["looks"] if e["drafting"]["mode"] == "draft-model"]
        assert look["draft_id"] == draft_file(request_.models[1]).identity
        assert (look["protocol"], look["types"]) == (request_.protocol, ["coding", "writing"])


def test_looks_are_kept_where_the_tune_is_killed_while_it_measures_on(request_):  # noqa: F811
    """They were stored at its end alone: rounds between two looks would have been one more look."""

    def speed(drafting: Drafting, text: str) -> float:
        if drafting.mode is Mode.DRAFT_MODEL:
            return 1.5 if "coding" in text else (0.9 if "prove" in text else 1.3)
        return 1.2 if "coding" in text else 1.3

    progress = Silent()

    def interrupt(_server, _text):
        if any(step.phase == "overall" for step in progress.steps):
            raise KeyboardInterrupt

    tuning = Tuning(request_, SimulatedBackend(speed, before_answer=interrupt), MACHINE, progress)
    with pytest.raises(KeyboardInterrupt):
        tuning.run()
    store = open_store(request_.storage)
    [answer] = [s.recommendation for s in store.overall_answers()]
    store.close()
    [look] = answer.evidence["looks"]
    assert (look["drafting"]["mode"], look["rounds"]) == ("draft-model", 1)
