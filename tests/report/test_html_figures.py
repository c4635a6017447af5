"""The figures: drawn for whatever was measured, and as SVG that a page can take in."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from autospec.recommendations import Verdict
from autospec.report.html.figures import (
    INK,
    CostPoint,
    Forecast,
    Gain,
    cost_figure,
    forecast_figure,
    gain_figure,
    inline_svg,
    launch_names,
    proof_figure,
)
from tests.report.html_samples import looks, pairs

NAMES = ("plain", "$\\frac{1$", "<b>&\"'", "\x00\x1b[31m", "日本語 😀", "\ud800", "x" * 300)


def read(svg):
    """The element."""
    return ET.fromstring(svg)  # noqa: S314 - it was drawn here


def drawn(figure, name="f1"):
    """The figure's element, read back."""
    return read(inline_svg(figure, name=name, title="A <title>", description="What & why"))


def texts(root):
    """What is written in the figure."""
    return ["".join(t.itertext()) for t in root.iter("text")]


FIGURES = {
    "gains": lambda: gain_figure([Gain("coding", Verdict.ENABLE, 1.3, (1.2, 1.4), 0.02), Gain("qa", Verdict.DISABLE, 0.8, None, 0.02)]),
    "forecasts": lambda: forecast_figure([Forecast("coding", 1.3, 1.2, (1.1, 1.5), (1.1, 1.3))]),
    "costs": lambda: cost_figure([1.0, 1.2, 1.5, 1.9], [CostPoint("coding", 2.5, 2.4, 1.7), CostPoint("qa", 1.0, 1.1, 1.2)]),
    "proof": lambda: proof_figure(pairs(), looks(), 0.02),
    "search": lambda: proof_figure(pairs(1, 2), (), 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_can_take_it_in(name):
    """No address, no style or metadata for the whole page, no fixed colour, and an alternative text."""
    text = inline_svg(FIGURES[name](), name="f1", title="A <title>", description="What & why")
    assert not re.search(r"https?:|<style|<metadata|<script|xmlns|clip-path", text)
    assert "var(--ink)" in text
    assert not re.search("|".join(INK.values()), text)
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= {"#000000"}
    root = read(text)
    assert [child.tag for child in root[:2]] == ["title", "desc"]
    assert [child.text for child in root[:2]] == ["A <title>", "What & why"]


@pytest.mark.parametrize("name", FIGURES)
def test_ids_are_the_figures_own(name):
    """Two figures of one page share no id, and every reference has its target."""
    one, other = drawn(FIGURES[name](), "f1"), drawn(FIGURES[name](), "f2")
    ids = [{e.get("id") for e in root.iter() if e.get("id")} for root in (one, other)]
    assert not ids[0] & ids[1]
    assert {e.get("href") for e in one.iter() if e.get("href")} <= {f"#{own}" for own in ids[0]}


def test_the_same_figure_is_the_same_text():
    """So that a report that is written again does not differ by chance."""
    one, other = (inline_svg(FIGURES["proof"](), name="f1", title="t", description="d") for _ in range(2))
    assert one == other


def test_the_users_own_style_of_matplotlib_changes_nothing():
    """People who draw with it have a matplotlibrc; it belongs to their figures."""
    usual = inline_svg(FIGURES["gains"](), name="f1", title="t", description="d")
    with mpl.rc_context(
        {"axes.grid": True, "font.size": 30, "figure.dpi": 40, "text.color": "red", "svg.fonttype": "path"}
    ):
        own = inline_svg(FIGURES["gains"](), name="f1", title="t", description="d")
        assert mpl.rcParams["font.size"] == 30
    assert own == usual


@pytest.mark.parametrize("label", NAMES)
def test_any_name_can_be_drawn(label):
    """Names are texts: no formula, no markup, no control character, and not longer than the figure allows."""
    figures = (
        gain_figure([Gain(label, Verdict.ENABLE, 1.3, (1.2, 1.4), 0.02)]),
        forecast_figure([Forecast(label, 1.3, 1.2)]),
        cost_figure([1.0, 1.2], [CostPoint(label, 1.0, 1.5, 1.2)]),
    )
    for figure in figures:
        [shown] = {t for t in texts(drawn(figure)) if t[:3] == label[:3]} or {"\N{REPLACEMENT CHARACTER}"}
        assert len(shown) <= 40


@pytest.mark.parametrize("ratio", [None, 0.05, 0.999, 1.0, 40.0])
@pytest.mark.parametrize("interval", [None, (1e-9, 1e9), (0.9, 1.1), (1.0, 1.0)])
def test_any_gain_can_be_drawn(ratio, interval):
    """Also what lies far outside, and what was not measured."""
    assert texts(drawn(gain_figure([Gain("coding", Verdict.UNDECIDED, ratio, interval, 0.02)])))


def test_gains_are_labelled_as_gains():
    """Off is called off, a loss has a minus sign."""
    shown = texts(
        drawn(
            gain_figure(
                [
                    Gain("a", Verdict.DISABLE, 0.85, (0.8, 0.9), 0.02),
                    Gain("b", Verdict.ENABLE, 1.2, None, 0.02),
                ]
            )
        )
    )
    assert "off" in shown
    assert "−10 %" in shown
    assert "+10 %" in shown


def test_each_gain_has_the_line_of_its_own_threshold():
    """Neighbours with the same threshold share one dashed line, which crosses no other row."""
    least = {"a": 0.05, "b": 0.02, "c": 0.02}
    [axes] = gain_figure([Gain(name, Verdict.ENABLE, 1.1, None, t) for name, t in least.items()]).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in dashed] == [
        ([1.05, 1.05], [-0.5, 0.5]),
        ([1.02, 1.02], [0.5, 2.5]),
    ]


def test_launches_differ_in_shape_and_colour():
    """Each launch's dots refer to a shape of their own, so that they differ in black and white as well."""
    root = drawn(proof_figure(pairs(rounds=3), (), 0.02))
    dots = [(e.get("href"), e.get("style")) for e in root.iter("use") if "series" in (e.get("style") or "")]
    assert len(dots) == 12
    assert len(set(dots)) == 3
    assert len({shape for shape, _ in dots}) == 3
    assert len({style for _, style in dots}) == 3


def test_launches_are_numbered_as_they_came():
    """From 1, by their first pair."""
    assert launch_names(pairs(rounds=2)) == {"drafted-1": 1, "drafted-2": 2}


def test_every_pair_is_a_dot():
    """However many there are, and where their values are the same."""
    same = [replace(p, drafted=replace(p.drafted, wall_ms=6300.0, predicted_ms=6000.0)) for p in pairs(2, 8)]
    root = drawn(proof_figure(same, (), 0.02))
    dots = [(e.get("x"), e.get("y")) for e in root.iter("use") if "series" in (e.get("style") or "")]
    assert len(dots) == len(set(dots)) == 16
