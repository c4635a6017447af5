"""Predictions in the proof: when prompts are recorded for them, and what they spare."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest

from autospec.backends.protocol import Completion, Request
from autospec.measure.log_ratios import of_pairs
from autospec.measure.measurements import Phase
from autospec.recommendations import Verdict
from autospec.tuning import proof_predictions
from autospec.tuning.profiling import RECORDING
from autospec.tuning.proof import Proof
from autospec.tuning.proof_predictions import ProofPredictions
from tests.tuning.proofs import lab, ngram


class Foretold:
    """Predictions that are exact; counts how often they were asked to predict."""

    def __init__(self, gains):
        self.gains = gains
        self.predicted = 0
        self.kept = 0

    def known(self, _cell):
        """Nothing before the first prediction."""
        return self.gains if self.predicted else {}

    def missing(self, cell, pairs):
        """Those that were not asked."""
        return [p for p in cell.prove_prompts if p.id not in {pair.off.prompt_id for pair in pairs}]

    def keep_answers(self, _cell, _pairs):
        """They are counted."""
        self.kept += 1

    def predict(self, _cell, _pairs):
        """All of them."""
        self.predicted += 1
        return self.gains


def gain_of(text: str) -> float:
    """Prompts gain 15 to 30 %, by their number."""
    return 1.15 + 0.01 * int(text.rsplit(maxsplit=1)[-1].strip('"}]'))


def proved(tmp_path, monkeypatch, predictions, **how):
    """Prove one cell of sixteen prompts; returns it and the lab."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, text: gain_of(text), **how)
    Proof(made.cells, made.context, lambda _: None, predictions=predictions).run()
    return made.cells[0], made


def exact():
    """Predictions of the sixteen prompts of `lab`."""
    return {f"a-prove-{n}": math.log(1.15 + 0.01 * n) for n in range(16)}


def test_a_clear_gain_is_proven_on_half_of_the_prompts(tmp_path, monkeypatch):
    """Eight prompts are asked and eight are predicted: one round on two launches, where it takes two without."""
    cell, made = proved(tmp_path, monkeypatch, foretold := Foretold(exact()))
    assert (cell.decision.verdict, cell.rounds, foretold.predicted) == (Verdict.ENABLE, 1, 1)
    assert (cell.decision.prompts, cell.decision.recorded) == (8, 16)
    assert made.known(cell) == 8


def test_without_predictions_all_prompts_are_asked(tmp_path, monkeypatch):
    """The same cell, where nothing can be predicted."""
    for number, predictions in enumerate((None, Foretold({}))):
        cell, _ = proved(tmp_path / str(number), monkeypatch, predictions)
        assert (cell.decision.verdict, cell.rounds, cell.decision.recorded) == (Verdict.ENABLE, 2, 0)


def test_a_large_gain_is_proven_on_half_of_the_prompts_and_nothing_is_recorded(tmp_path, monkeypatch):
    """At +50 to +65 % the other half could not undo it."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, text: gain_of(text) + 0.35)
    foretold = Foretold(exact())
    Proof(made.cells, made.context, lambda _: None, predictions=foretold).run()
    cell = made.cells[0]
    assert (cell.decision.verdict, cell.rounds, foretold.predicted) == (Verdict.ENABLE, 1, 0)


def test_a_loss_is_not_predicted(tmp_path, monkeypatch):
    """Where the mean does not exceed the threshold, nothing is recorded for it."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, _t: 0.7)
    foretold = Foretold(exact())
    Proof(made.cells, made.context, lambda _: None, predictions=foretold).run()
    assert (made.cells[0].decision.verdict, foretold.predicted) == (Verdict.DISABLE, 0)


def test_nothing_is_recorded_when_the_budget_has_no_time_for_it(tmp_path, monkeypatch):
    """The round's last request took a minute: now even the minute in which begun work may end is too short for eight more."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, text: gain_of(text), budget_s=90.0)
    foretold = Foretold(exact())
    numbers = itertools.count(1)
    made.backend.before_answer = lambda server, _text: server.backend.clock.pass_by(
        60.0 if next(numbers) == 16 else 0.8
    )
    Proof(made.cells, made.context, lambda _: None, predictions=foretold).run()
    assert (foretold.predicted, foretold.kept) == (0, 1)
    assert made.cells[0].decision.verdict is Verdict.UNDECIDED
    assert made.context.budget.spent_s <= 90.0 + 60.0


@pytest.mark.parametrize(("budget_s", "asked"), [(200.0, 0), (1000.0, 1)])
def test_a_type_that_was_not_asked_yet_comes_before_predictions(tmp_path, monkeypatch, budget_s, asked):
    """Predicting takes 15 s. Where that leaves too little for a large gain's proof, the proof gets the time."""
    gains = {"a": gain_of, "b": lambda _: 2.5, "c": lambda _: 3.0}
    made = lab(
        tmp_path,
        monkeypatch,
        prove=16,
        cells=(("c", ngram(4), 3.0), ("a", ngram(4), 1.2), ("b", ngram(6), 2.5)),
        speedup=lambda _d, text: gains[text.split('"content": "')[1][0]](text),
        budget_s=budget_s,
    )
    made.backend.before_answer = lambda server, _text: server.backend.clock.pass_by(0.8)
    foretold = Foretold(exact())
    predict = foretold.predict

    def slow(*asked):
        made.backend.clock.pass_by(15.0)
        return predict(*asked)

    foretold.predict = slow
    Proof(made.cells, made.context, lambda _: None, predictions=foretold).run()
    c, _, b = made.cells
    assert (c.decision.verdict, b.decision.verdict) == (Verdict.ENABLE, Verdict.ENABLE)
    assert foretold.predicted == asked


def test_predictions_may_finish_a_proof_after_the_budget(tmp_path, monkeypatch):
    """A round took longer than expected: to predict the other prompts ends within the minute in which begun work may end."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, text: gain_of(text), budget_s=90.0)
    foretold = Foretold(exact())
    made.backend.before_answer = lambda server, _text: server.backend.clock.pass_by(0.8)
    Proof(made.cells, made.context, lambda _: None, predictions=foretold).run()
    assert (foretold.predicted, made.cells[0].decision.verdict) == (1, Verdict.ENABLE)
    assert made.context.budget.left_s < 8 * 1.8


class Words:
    """A model in token ids whose tokens are words."""

    def encode(self, request: Request) -> tuple[int, ...]:
        """Some ids."""
        return tuple(range(5 + len(str(request.messages)) % 3))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """One id a word."""
        return tuple(len(word) for word in text.split())


def test_measured_answers_are_recordings(tmp_path, monkeypatch):
    """The tokens of an answer come from its text; where their number is not the server's, the prompt is asked again."""
    made = lab(tmp_path, monkeypatch, prove=16)
    Proof(made.cells, made.context, lambda _: None).run()
    cell = made.cells[0]
    pairs = made.context.pairing.known(cell.cell.key, cell.winner, Phase.PROVE)
    asking = made.context.asking
    tokens = pairs[0].off.predicted_tokens
    asked = sorted({p.off.prompt_id for p in pairs})
    for prompt in asked:
        text = "not so many words" if prompt == asked[0] else "word " * tokens
        asking.note(prompt, Completion(text, 4, tokens, 1.0, 1.0, 2.0, 0, 0, "length"), off=True)
    seen = {}

    class Gathered:
        def __init__(self, cells, *_rest, prompts, drafts, hurried):
            seen.update(prompts=prompts(cells[0]), drafts=list(drafts), hurried=hurried)

        def run(self):
            return SimpleNamespace(log_ratios=lambda _key, _drafting: exact())

    monkeypatch.setattr(proof_predictions, "Profiler", Gathered)
    monkeypatch.setattr(
        type(made.context.launches), "off", lambda _self: SimpleNamespace(tokens=Words(), pids=frozenset())
    )
    store = made.context.store
    reads, read = [], store.surveys
    monkeypatch.setattr(store, "surveys", lambda *place: reads.append(place) or read(*place))
    predictions = ProofPredictions(made.context)
    assert len(predictions.missing(cell, pairs)) == len(cell.prove_prompts) - len(asked)
    predictions.keep_answers(cell, pairs)
    assert predictions.known(cell) == {}
    assert predictions.predict(cell, pairs) == predictions.known(cell) == exact()
    assert len(reads) == 1
    kept = store.surveys(cell.cell.key, asking.protocol, RECORDING)
    assert sorted(kept) == asked[1:]
    assert kept[asked[1]]["answer_ids"] == [4] * tokens
    assert seen == {"prompts": cell.prove_prompts, "drafts": [], "hurried": False}
    assert {p.id for p in predictions.missing(cell, pairs)} == {p.id for p in cell.prove_prompts} - set(asked)
    assert len(of_pairs(pairs)) == len(pairs)


def test_predictions_of_some_prompts_are_none(tmp_path, monkeypatch):
    """Nine of sixteen prompts are predicted: nothing covers those that are neither asked nor predicted."""
    made = lab(tmp_path, monkeypatch, prove=16)

    class Gathered:
        def __init__(self, *_rest, **_how):
            pass

        def run(self):
            some = dict(list(exact().items())[:9])
            return SimpleNamespace(log_ratios=lambda _key, _drafting: some)

    monkeypatch.setattr(proof_predictions, "Profiler", Gathered)
    predictions = ProofPredictions(made.context)
    assert predictions.predict(made.cells[0], []) == {}


def test_a_prompt_that_turns_out_to_fail_leaves_the_predictions_of_the_others(tmp_path, monkeypatch):
    """A small context, and a long prompt that round 1 did not ask: minutes of recording were thrown away."""
    made = lab(tmp_path, monkeypatch, prove=16, speedup=lambda _d, text: gain_of(text))
    [cell], predictions = made.cells, ProofPredictions(made.context)
    found = dict(list(exact().items())[:-1])

    class Predictor:
        def log_ratios(self, *_):
            return found

    profiled = []
    monkeypatch.setattr(
        proof_predictions, "Profiler", lambda *_, **__: profiled.append(1) or SimpleNamespace(run=Predictor)
    )
    failing = set()
    monkeypatch.setattr(made.context.pairing, "failing", lambda *_: failing)
    assert predictions.predict(cell, []) == {}
    failing.add("a-prove-15")
    assert predictions.known(cell) == found
    assert predictions.predict(cell, []) == found
    assert len(profiled) == 1


@pytest.mark.parametrize("can_be", [True, False])
def test_nothing_is_recorded_for_a_winner_that_cannot_be_predicted(tmp_path, monkeypatch, can_be):
    """An MTP head: its answers were recorded, and no replay could use them."""
    monkeypatch.setattr("autospec.tuning.proof.predictable", lambda _: can_be)
    cell, _ = proved(tmp_path, monkeypatch, foretold := Foretold(exact()))
    assert (foretold.predicted, cell.rounds) == ((1, 1) if can_be else (0, 2))
    assert cell.decision.verdict is Verdict.ENABLE
