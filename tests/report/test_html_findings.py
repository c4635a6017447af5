"""What the page is made of: looks, acceptance over settings, and what the store has of a model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from autospec.backends.protocol import Cycle
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.profile import AnswerProfile, Recording
from autospec.recommendations import Verdict
from autospec.report.explanation import explain
from autospec.report.html.findings import gather, looks_of, of_replay, of_trials, threshold_of
from autospec.report.selection import Question, select
from autospec.report.studies import TrialSummary
from autospec.settings import load_settings
from autospec.store.database import open_store
from tests.report.samples import DRAFTING, ELSEWHERE, HERE, measurement, recommendation, stored

KEY = "aaaabbbbcccc"


def look(rounds, speedup=1.3, **changes):
    """A recommendation as a tune stores it at a look."""
    evidence = {
        "rounds": rounds,
        "phase": "prove",
        "protocol": "proto",
        "epoch": 1.0,
        **changes.pop("evidence", {}),
    }
    return recommendation(speedup=speedup, pairs=8 * rounds, evidence=evidence, **changes)


def profile(prompt="p1", tokens=9):
    """A draft that is right everywhere, and sure of it except at every third token."""
    p = np.where(np.arange(tokens) % 3 == 0, 0.5, 0.95)
    return AnswerProfile(prompt, np.ones(tokens, dtype=np.bool_), p)


def recording(prompt="p1", tokens=9):
    """The answer to it."""
    return Recording(
        prompt, (1, 2), tuple(range(tokens)), 64, ended=True, prompt_ms=1.0, predicted_ms=8.0, wall_ms=9.0
    )


class TestLooks:
    """How a verdict grew."""

    def test_each_look_once_in_order(self):
        """A row that was stored again at the same look counts once, the newest."""
        found = looks_of([look(1), look(2, 1.2), look(2, 1.25)], look(4))
        assert [(one.rounds, one.ratio) for one in found] == [(1, 1.3), (2, 1.25), (4, 1.3)]

    def test_the_end_of_a_budget_is_no_look(self):
        """The third round was asked and not looked at: the figures are those of the second look, which had 16 pairs."""
        found = looks_of([look(1), look(2, 1.2)], look(3, 1.2))
        assert [(one.rounds, one.pairs, one.ratio) for one in found] == [(1, 8, 1.3), (2, 16, 1.2)]

    def test_other_proofs_are_left_out(self):
        """Of the runner-up, of another suite, and from before `--again`; rows of the search are no looks."""
        others = [
            look(1, tried=replace(DRAFTING, n_max=2)),
            look(2, evidence={"protocol": "other"}),
            look(4, evidence={"epoch": 0.5}),
            look(8, evidence={"phase": "search"}),
        ]
        assert [one.rounds for one in looks_of(others, look(16))] == [16]

    def test_a_record_has_none(self):
        """Nothing was looked at."""
        assert looks_of([], recommendation(evidence={})) == ()

    def test_an_unbounded_interval_is_none(self):
        """It could not be drawn."""
        [one] = looks_of([], look(1, speedup_ci=(0.0, float("inf"))))
        assert one.interval is None


class TestAcceptance:
    """Accepted tokens over draft-max and p-min."""

    def test_it_replays_the_recorded_answer(self):
        """Nine tokens, always right: with draft-max 3 a cycle yields four; a p-min above 0.5 ends a draft at every third."""
        found = of_replay(DRAFTING, {"p1": recording().to_json()}, [profile().to_json()])
        assert found is not None
        assert found.answers == 1
        assert found.chosen == (8, 0.6)
        at = {
            (n, p): cell
            for p, row in zip(found.p_min, found.cells, strict=True)
            for n, cell in zip(found.n_max, row, strict=True)
        }
        # Eight tokens after the first: cycles of 4 and 4.
        assert at[3, 0.0].per_cycle == pytest.approx(3.0)
        assert at[3, 0.0].rate == pytest.approx(1.0)
        # Tokens 1 and 2 are sure, 3 is not and comes from the main model: three cycles with two accepted tokens each.
        assert at[3, 0.6].per_cycle == pytest.approx(2.0)

    def test_mlx_has_no_p_min(self):
        """One row, and its own cycle."""
        tried = Drafting(Mode.DRAFT_MODEL, draft="/models/draft", n_max=2)
        found = of_replay(tried, {"p1": recording().to_json()}, [profile().to_json()], cycle=Cycle.MLX_LM)
        assert found is not None
        assert found.p_min == (0.0,)

    @pytest.mark.parametrize("damaged", [{}, {"prompt_id": "p1"}, {**profile().to_json(), "hits": 7}])
    def test_what_cannot_be_read_is_left_out(self, damaged):
        """Another version's profile, or one whose answer is forgotten, makes no map."""
        assert of_replay(DRAFTING, {"p1": recording().to_json()}, [damaged]) is None
        assert of_replay(DRAFTING, {}, [profile().to_json()]) is None

    @pytest.mark.parametrize("tried", [OFF, Drafting(Mode.NGRAM_SIMPLE, ngram_n=3, ngram_m=8, min_hits=1)])
    def test_other_modes_have_no_map(self, tried):
        """They have neither draft-max nor p-min."""
        assert of_replay(tried, {"p1": recording().to_json()}, [profile().to_json()]) is None

    def test_measured_trials_stand_in(self):
        """Where answers were forgotten, of this draft only; what was not tried stays empty."""
        trials = [
            TrialSummary(0, "complete", DRAFTING, 1.3, "", {"acceptance": 0.6}),
            TrialSummary(1, "complete", replace(DRAFTING, n_max=4, p_min=0.0), 1.2, "", {"acceptance": 0.5}),
            TrialSummary(
                2, "complete", replace(DRAFTING, draft="/models/other.gguf"), 1.2, "", {"acceptance": 0.9}
            ),
            TrialSummary(3, "fail", None, None, "it broke"),
        ]
        found = of_trials(DRAFTING, trials)
        assert found is not None
        assert (found.n_max, found.p_min, found.answers) == ((4, 8), (0.0, 0.6), 0)
        assert [[cell.rate for cell in row] for row in found.cells] == [[0.5, None], [None, 0.6]]
        assert of_trials(DRAFTING, trials[2:]) is None


@pytest.fixture
def store():
    """A database with one cell: a proof of two prompts, a look before it, and what prediction recorded."""
    with closing(open_store(load_settings().storage)) as opened:
        for rounds, speedup in ((1, 1.4), (2, 1.3)):
            opened.save_recommendation(look(rounds, speedup, evidence={"draft_id": "digest"}), HERE, KEY)
        for prompt in ("p1", "p2"):
            for half in (False, True):
                opened.add_measurement(measurement(with_drafting=half, prompt=prompt))
        opened.add_survey(KEY, "proto", "recording", "p1", recording().to_json())
        opened.add_survey(KEY, "proto", "profile", "digest/p1", profile().to_json())
        opened.add_survey(KEY, "proto", "profile", "otherdraft/p1", profile().to_json())
        yield opened


def gathered(store, *known, **question):
    """What the page would show of these."""
    selection = select([*store.recommendations(), *known], HERE, Question(**question))
    return gather(store, selection, {}, lambda s, found: explain(s.recommendation, found.pairs, found.trials))


def test_everything_stored_of_a_cell_is_found(store):
    """Pairs, looks, and the map of the recommended draft alone."""
    [model] = gathered(store)
    [one] = model.types
    assert (model.model, model.builds) == ("Main-7B-Q4_K_M", ("b11434",))
    assert len(one.pairs) == 2
    assert [found.rounds for found in one.looks] == [1, 2]
    assert one.accepted is not None
    assert one.accepted.answers == 1
    assert one.explanation.figures["pairs"] == 2


def test_a_cell_without_measurements_is_shown_too(store):
    """An imported row, or a record: words alone."""
    other = stored(recommendation(prompt_type=PromptType.CHAT, evidence={}), HERE, "i-1")
    [model] = gathered(store, other)
    chat = next(t for t in model.types if t.recommendation.prompt_type is PromptType.CHAT)
    assert (chat.pairs, chat.looks, chat.accepted) == ((), (), None)


def test_backends_and_machines_are_apart(store):
    """One part of the page for each, in the order of `recommend`."""
    others = (
        stored(recommendation(backend="mlx"), HERE, "x1"),
        stored(recommendation(verdict=Verdict.DISABLE), ELSEWHERE, "x2"),
    )
    found = gathered(store, *others, all_hardware=True)
    assert [(m.hardware.id, m.backend) for m in found] == [
        (ELSEWHERE.id, "llama-server"),
        (HERE.id, "llama-server"),
        (HERE.id, "mlx"),
    ]


def test_the_threshold_is_the_studys():
    """Or the usual one, where evidence does not tell it."""
    assert threshold_of({"threshold": 0.05}) == 0.05
    assert threshold_of({}) == 0.02
