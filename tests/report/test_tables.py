"""Tables for people."""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import replace

import pytest
from rich.console import Console

from autospec.cells import Aim, PromptType
from autospec.drafting import OFF
from autospec.formats import age, likely_words, percent
from autospec.recommendations import BUILD_NOT_RECORDED, Status, Verdict
from autospec.report.studies import StudySummary, TrialSummary
from autospec.report.tables import recommendation_table, studies_table, trials_table
from tests.report.samples import DRAFTING, ELSEWHERE, recommendation, stored

NOW = dt.datetime(2026, 11, 23, 10, tzinfo=dt.UTC)


def shown(renderable, width=120):
    """What stands on a terminal of that width."""
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(renderable)
    text = console.export_text()
    console.file.close()
    return text


def test_a_row_says_what_to_run_and_what_was_measured():
    """Verdict, drafting, both speeds, gain with interval, pairs, acceptance, age and reason."""
    text = shown(recommendation_table([recommendation()], NOW))
    for words in (
        "Main-7B-Q4_K_M on llama-server b11434", "coding", "enable", "n_max=8", "14.7 → 19.2", "+30.6 %",
        "+25.0 … +36.0", "12", "61%", "proven", "3 days ago", "drafting is +30.6 %",
    ):  # fmt: skip
        assert words in text


def test_a_disabled_row_says_run_off():
    """The gain is of the best drafting tried; the sentence says that off is to be run."""
    text = shown(recommendation_table([recommendation(Verdict.DISABLE)], NOW))
    assert "-18.4 %" in text
    assert "coding, drafting off: the best found is slower" in text


def test_a_stale_row_says_why():
    """A stale recommendation is served all the same; the table says what changed."""
    changed = "the backend's build changed from b1 to b2"
    r = recommendation(Verdict.DISABLE, status=Status.STALE, evidence={"stale_reason": changed})
    assert f"drafting off: the best found is slower; stale, because {changed}" in shown(
        recommendation_table([r], NOW)
    )


LIKELY = {"speedup": 1.72, "interval": [1.55, 1.91], "chance": 0.999, "about_s": 240}


@pytest.mark.parametrize(
    ("likely", "words"),
    [
        (LIKELY, "likely, +72 %, about 4 more minutes would prove it"),
        ({**LIKELY, "about_s": 20}, "likely, +72 %, about 1 more minute would prove it"),
        ({**LIKELY, "about_s": None}, "likely, +72 %, not proven"),
        ({}, ""),
        (None, ""),
        ("soon", ""),
    ],
)
def test_what_is_likely_in_words(likely, words):
    """With the time that a proof would take; values of another version say nothing."""
    r = recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, evidence={"likely": likely})
    assert likely_words(r) == words


def test_a_likely_answer_stands_in_the_row_and_below():
    """The verdict stays undecided and the advice off."""
    r = recommendation(
        Verdict.UNDECIDED,
        status=Status.PROVISIONAL,
        reason="Only searched so far.",
        evidence={"likely": LIKELY},
    )
    text = " ".join(shown(recommendation_table([r])).split())
    assert "undecided" in text
    assert "drafting off: likely, +72 %, about 4 more minutes would prove it; Only searched so far." in text
    assert "likely" not in shown(recommendation_table([replace(r, evidence={})]))


def test_what_is_proven_is_not_called_likely():
    """Also where its evidence says that it was, once."""
    assert likely_words(recommendation(evidence={"likely": LIKELY})) == ""


def test_what_fails_with_drafting_only_is_not_called_likely():
    """No time of measuring would prove it; an earlier version noted it all the same."""
    evidence = {"likely": LIKELY, "failing": {"off": [], "drafted": ["p3"]}}
    r = recommendation(Verdict.UNDECIDED, status=Status.PROVISIONAL, evidence=evidence)
    assert likely_words(r) == ""


def test_what_is_unknown_is_a_dash():
    """Nothing paired, no acceptance, nothing tried."""
    nothing = recommendation(
        Verdict.UNDECIDED, tried=OFF, baseline_tps=None, drafting_tps=None, speedup=None, speedup_ci=None,
        pairs=0, acceptance=None,
    )  # fmt: skip
    assert "– → –" in shown(recommendation_table([nothing], NOW))


def test_an_imported_row_names_its_machine():
    """Whose machine it was stands in the heading."""
    r = recommendation(status=Status.IMPORTED, evidence={"hardware": ELSEWHERE.to_json()})
    assert f"on llama-server b11434, machine {ELSEWHERE.id}, tok/s" in shown(recommendation_table([r], NOW))
    r = replace(r, backend_build=BUILD_NOT_RECORDED)
    heading = f"on llama-server (build not recorded), machine {ELSEWHERE.id}, tok/s"
    assert heading in shown(recommendation_table([r], NOW))


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_a_terminal(width):
    """Nothing is cut in a narrow terminal, with the longest words that a row can have."""
    r = recommendation(
        Verdict.UNDECIDED, prompt_type=PromptType.SUMMARIZATION, status=Status.PROVISIONAL,
        baseline_tps=114.7, drafting_tps=119.2,
    )  # fmt: skip
    text = shown(recommendation_table([r], NOW), width)
    for words in (
        "summarization",
        "undecided",
        "provisional",
        "114.7 → 119.2",
        "-18.4 %",
        "-21.0 … -16.0",
        "61%",
    ):
        assert words in text
    assert "+0.79" not in text
    assert max(map(len, text.splitlines())) <= width


LONGEST = recommendation(
    Verdict.UNDECIDED, prompt_type=PromptType.SUMMARIZATION, status=Status.PROVISIONAL,
    baseline_tps=114.7, drafting_tps=119.2, evidence={"threshold": 0.02},
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 77])
def test_a_very_narrow_terminal_has_a_list(width):
    """Nothing is cut, and no line breaks within a figure."""
    text = shown(recommendation_table([LONGEST], NOW), width)
    lines = [line.strip() for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= width
    assert "summarization: undecided, provisional, 3 days ago" in " ".join(lines)
    assert any("114.7 → 119.2 tok/s, -18.4 %" in line for line in lines)
    assert any("-21.0 … -16.0" in line for line in lines)
    assert "12 pairs, 61% accepted" in lines
    assert sum(line.count("█") for line in lines) == 2  # the bar and its legend


@pytest.mark.parametrize("width", [80, 100, 132, 160])
def test_the_ratio_has_a_bar_beside_its_figures(width):
    """In a column of its own, or below the interval; the threshold is marked and told."""
    text = shown(recommendation_table([recommendation(evidence={"threshold": 0.02}), LONGEST], NOW), width)
    bars = [word for word in text.split() if "│" in word and "█" in word]
    assert len(bars) == 2
    assert len(set(map(len, bars))) == 1
    gain, loss = (bar.split("│") for bar in bars)
    assert "█" in gain[1]
    assert "█" in loss[0]
    assert "│ +2 %, the threshold to enable" in text
    # All bars begin in the same column.
    assert len({line.index(bar) for bar in bars for line in text.splitlines() if bar in line}) == 1


def test_without_a_threshold_there_is_no_bar_and_no_legend():
    """Imported records have none."""
    text = shown(recommendation_table([recommendation()], NOW), 160)
    assert "│" not in text
    assert "gain:" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_an_output_without_block_characters(width):
    """LANG=C: signs of ASCII alone, and names stay as they are."""
    stream = Ascii()
    r = recommendation(model="Main", evidence={"threshold": 0.02})
    Console(file=stream, width=width).print(
        recommendation_table([r, replace(r, tried=OFF, speedup=None)], NOW)
    )
    text = stream.getvalue()
    assert text.isascii()
    assert "14.7 > 19.2" in text
    assert "|" in text
    assert "#" in text


class Ascii(io.StringIO):
    """A stream of an old terminal."""

    encoding = "ascii"


def test_a_terminal_that_only_writes_lines_has_no_bar():
    """TERM=dumb, as screen readers use it: signs would be spelt out, and the figures say the same."""
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, _environ={"TERM": "dumb"})
    console.print(recommendation_table([recommendation(evidence={"threshold": 0.02})], NOW))
    assert "+30.6 %" in stream.getvalue()
    assert "█" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_kinds_with_the_same_reason_share_a_sentence():
    """An interrupted tune of twelve kinds does not say twelve times that nothing is measured yet."""
    kinds = (PromptType.CODING, PromptType.QA, PromptType.MATH)
    rows = [recommendation(Verdict.DISABLE, prompt_type=k) for k in kinds]
    text = shown(recommendation_table(rows, NOW))
    assert "coding, qa, math, drafting off: the best found is slower" in text
    assert text.count("drafting off") == 1


def test_markup_in_names_is_text():
    """A model called [red] is shown so."""
    assert "a[/x]b" in shown(recommendation_table([recommendation(model="a[/x]b")], NOW))


def test_studies_and_lonely_recommendations_are_listed():
    """A study shows its trials by state and its best; an import without a study has a row as well."""
    trials = (TrialSummary(0, "complete", DRAFTING, 1.2, ""), TrialSummary(1, "fail", DRAFTING, None, "no"))
    study = StudySummary("s", {"key": "k1", "model": "Main", "prompt_type": "coding"}, trials)
    text = shown(studies_table([study], [stored(recommendation(model="Lone"), key="k2")], {}), 140)
    for words in ("Main", "1 complete", "1 fail", "+20.0 %", "not finished", "Lone", "k2"):
        assert words in text


def test_studies_of_another_aim_are_marked():
    """Both a study and a lonely recommendation."""
    cell = {"key": "k1", "model": "Main", "prompt_type": "coding", "aim": "energy"}
    lone = stored(recommendation(model="Lone", aim=Aim.ENERGY), key="k2")
    assert shown(studies_table([StudySummary("s", cell, ())], [lone], {}), 140).count("energy") == 2


def test_trials_show_their_reasons():
    """A failed trial says why."""
    trials = (
        TrialSummary(0, "complete", DRAFTING, 1.2, "", {"pairs": 4, "acceptance": 0.5, "baseline_tps": 10.0}),
        TrialSummary(1, "fail", None, None, "the draft is bad"),
    )
    text = shown(trials_table(StudySummary("s", {}, trials)), 140)
    for words in ("+20.0 %", "10.0 → –", "50%", "the draft is bad"):
        assert words in text


@pytest.mark.parametrize(
    ("created", "words"),
    [
        ("2026-11-23T09:59:30+00:00", "just now"),
        ("2026-11-23T09:00:00+00:00", "1 hour ago"),
        ("2026-11-20T10:00:00", "3 days ago"),
        ("2025-12-13T00:00:00+00:00", "11 months ago"),
        ("some day", "some day"),
    ],
)
def test_ages_are_in_the_largest_unit(created, words):
    """A time without a zone is UTC; what is no time is shown as it is."""
    assert age(created, NOW) == words


def test_a_ratio_is_a_gain_in_percent():
    """An interval that is not bounded says so."""
    assert (percent(0.84), percent(float("inf"))) == ("-16.0 %", "unbounded")
