"""Which drafting each cell proves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from autospec.drafting import OFF, Drafting, Mode
from autospec.tuning.definition import load_definition
from autospec.tuning.space import Arm, Space
from autospec.tuning.winners import choose_winners

SPACE = Space((Arm(Mode.DRAFT_MODEL, "/d.gguf"), Arm(Mode.NGRAM_SIMPLE)), load_definition("quick").space)
FOUR, SIXTEEN = (Drafting(Mode.DRAFT_MODEL, draft="/d.gguf", n_max=n, n_min=0, p_min=0.0) for n in (4, 16))
NGRAM = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)


def cell(**values: float) -> SimpleNamespace:
    """A searched cell; trials by name."""
    names = {"four": FOUR, "sixteen": SIXTEEN, "ngram": NGRAM}
    trials = {names[k]: v for k, v in values.items()}
    return SimpleNamespace(trial_values=trials, winner=OFF, runner_up=OFF, shares_rate=False)


class Foreseen:
    """A forecast that expects these ratios everywhere."""

    def __init__(self, **values: float) -> None:
        self._values = cell(**values).trial_values

    def trusts(self, drafting: Drafting) -> bool:
        """All of them."""
        return drafting in self._values

    def rival(self, _cell: object, _winner: Drafting) -> Drafting | None:
        """Prompts do not differ."""
        return None

    def cautious(self, _cell: object, drafting: Drafting) -> float:
        """The same in every cell."""
        return self._values[drafting]

    def best(self, _cell: object) -> tuple[Drafting, float]:
        """The same in every cell."""
        return max(self._values.items(), key=lambda item: item[1])


def test_cells_share_what_is_nearly_as_good():
    """Half a per cent behind in one cell, and best in the other: one launch serves both."""
    cells = [cell(four=1.500, sixteen=1.495), cell(four=1.2, sixteen=1.3)]
    choose_winners(cells, SPACE, 0.02)
    assert [c.winner for c in cells] == [SIXTEEN, SIXTEEN]


def test_a_mode_that_adds_nearly_nothing_is_left_out():
    """Half a per cent more with an n-gram mode beside the draft: one mode less is simpler; with 3 % more it stays."""
    both = replace(FOUR, beside=(Drafting(Mode.NGRAM_MOD, n_max=12, n_min=0, ngram_n=16),))
    for ratio, chosen in ((1.507, FOUR), (1.545, both)):
        [own] = cells = [cell(four=1.500)]
        own.trial_values[both] = ratio
        choose_winners(cells, SPACE, 0.02)
        assert own.winner == chosen


def test_no_cell_gives_up_more_than_a_per_cent_for_the_others():
    """The grid's best is 1.85 for chat and another for coding: each cell keeps its own."""
    cells = [cell(four=1.4, ngram=2.6), cell(four=1.85, ngram=1.3), cell(four=1.45, ngram=1.3)]
    choose_winners(cells, SPACE, 0.02)
    assert [c.winner for c in cells] == [NGRAM, FOUR, FOUR]


def test_what_was_measured_far_behind_is_not_shared_whatever_is_expected():
    """Expected to be equal, and measured 12 % behind in the first cell: that cell keeps its best."""
    cells = [cell(four=1.70, sixteen=1.50), cell(four=1.4, sixteen=1.6)]
    choose_winners(cells, SPACE, 0.02, Foreseen(four=1.600, sixteen=1.595))
    assert cells[0].winner == FOUR
    again = [cell(four=1.70, sixteen=1.50), cell(four=1.4, sixteen=1.6)]
    choose_winners(again, SPACE, 0.02, Foreseen(four=1.595, sixteen=1.600))
    # What is expected to be best is the winner: a few prompts of a trial do not outweigh all the recorded ones.
    assert again[0].winner == SIXTEEN


@pytest.mark.parametrize(("ngram", "runner_up"), [(1.10, NGRAM), (1.01, OFF), (0.9, OFF)])
def test_a_runner_up_is_of_another_arm_and_has_shown_a_gain(ngram, runner_up):
    """The same draft with other numbers is none; what its own launch showed to be slower is none."""
    [own] = cells = [cell(four=1.5, sixteen=1.4, ngram=ngram)]
    choose_winners(cells, SPACE, 0.02)
    assert (own.winner, own.runner_up) == (FOUR, runner_up)
    assert own.shares_rate is (runner_up is NGRAM)


def test_a_runner_up_that_is_only_expected_to_gain_is_none():
    """Expected at 1.2, measured at 0.9."""
    [own] = cells = [cell(four=1.5, ngram=0.9)]
    choose_winners(cells, SPACE, 0.02, Foreseen(four=1.5, ngram=1.2))
    assert own.runner_up == OFF


@pytest.mark.parametrize(
    ("expected", "over", "winner"), [(1.28, True, FOUR), (1.12, True, NGRAM), (1.28, False, NGRAM)]
)
def test_what_no_trial_had_time_for_wins_where_it_is_expected_to_be_clearly_faster(expected, over, winner):
    """A real tune had time for one trial: an n-gram mode, +6 % for coding. The draft, expected at +28 %, was never proved."""
    [own] = cells = [cell(ngram=1.10)]
    choose_winners(cells, SPACE, 0.02, Foreseen(ngram=1.08, four=expected), over=over)
    assert own.winner == winner
    assert own.runner_up == (NGRAM if winner == FOUR else OFF)
