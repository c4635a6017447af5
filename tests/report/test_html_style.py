"""The page's colours: readable in light, in dark and on paper, by the contrast that WCAG 2.1 AA asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autospec.report import html
from autospec.report.html.figures import INK

CSS = (Path(html.__file__).parent / "page.css").read_text("utf-8")
THEMES = ("light", "dark", "print")
# Texts (4.5 : 1) and their grounds; marks of figures need 3 : 1.
TEXTS = ("ink", "muted", "link", "enable", "disable", "undecided")
GROUNDS = ("paper", "soft")
MARKS = tuple(role for role in INK if role.startswith("series"))


def variables(theme):
    """Name → colour in one theme."""
    blocks = re.findall(r"(?:@media ([^{]+)\{\s*)?:root \{([^}]*)\}", CSS)
    assert len(blocks) == 3
    found = {}
    for condition, body in blocks:
        if (
            not condition
            or ("dark" in condition and theme == "dark")
            or ("print" in condition and theme == "print")
        ):
            found |= dict(re.findall(r"--([\w-]+):\s*([^;]+);", body))

    def resolved(value):
        return resolved(found[value[6:-1]]) if value.startswith("var(--") else value

    return {name: resolved(value) for name, value in found.items()}


def contrast(one, other):
    """WCAG's contrast of two colours."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    """WCAG's relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_measure_is_wcags():
    """Black on white is 21 : 1, grey #777777 on white just fails."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_stand_out(theme):
    """Every text on every ground, and the numbers of every cell of a heat map."""
    colours = variables(theme)
    pairs = [(text, ground) for text in TEXTS for ground in GROUNDS]
    pairs += [("heat-low" if level < 5 else "heat-high", f"h{level}") for level in range(7)]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_marks_stand_out(theme):
    """Dots of launches, and the frame of the tried setting."""
    colours = variables(theme)
    assert {mark: c for mark in MARKS if (c := contrast(colours[mark], colours["paper"])) < 3.0} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_every_colour_of_a_figure_is_defined(theme):
    """A figure names its colours by these variables."""
    assert set(INK) <= set(variables(theme))


def test_levels_grow_in_one_direction():
    """A heat map is read by lightness, which every eye sees: darker with each level in light, lighter in dark."""
    light, dark = (
        [luminance(variables(theme)[f"h{level}"]) for level in range(7)] for theme in ("light", "dark")
    )
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)


def test_the_style_has_no_address():
    """Nothing is imported or loaded."""
    assert not re.search(r"@import|url\(|https?:", CSS)
    used = set(re.findall(r"var\(--([\w-]+)\)", CSS))
    assert used <= set(variables("light"))
