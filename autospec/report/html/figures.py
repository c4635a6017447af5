"""The page's figures, drawn with Matplotlib, as SVG for the inside of the page. Every one is also a table on the page.

Matplotlib writes colours as fixed values. Figures are therefore drawn in the stand-in colours of `INK`, one for each role, which
become `var(--role)` here. Texts stay texts, so that a page can be searched and zoomed. Ids get a prefix, because a page has
several figures.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from autospec.measure.measurements import Pair, Phase
from autospec.recommendations import Verdict
from autospec.report.html.findings import Look

__all__ = [
    "INK",
    "CostPoint",
    "Forecast",
    "Gain",
    "cost_figure",
    "forecast_figure",
    "gain_figure",
    "inline_svg",
    "launch_names",
    "plain_text",
    "proof_figure",
]


# Names of the CSS variables of the page's style.
_ROLES = ("ink", "muted", "grid", "paper", "enable", "disable", "undecided")
# Launches are told apart by colour and by shape.
SERIES: Final = tuple(f"series{i}" for i in range(6))
INK: Final[Mapping[str, str]] = MappingProxyType(
    {role: f"#0102{place:02x}" for place, role in enumerate((*_ROLES, *SERIES), start=1)}
)
_STYLE: Final[Mapping[str, object]] = MappingProxyType(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "autospec",
        "text.parse_math": False,  # a model's name may contain $
        "axes.unicode_minus": True,
        "font.size": 10.0,
        "text.color": INK["ink"],
        "axes.edgecolor": INK["muted"],
        "axes.labelcolor": INK["ink"],
        "xtick.color": INK["muted"],
        "ytick.color": INK["muted"],
        "xtick.labelcolor": INK["ink"],
        "ytick.labelcolor": INK["ink"],
        "grid.color": INK["grid"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
    }
)
_XLINK = "{http://www.w3.org/1999/xlink}href"
_BY_COLOUR = {colour: f"var(--{role})" for role, colour in INK.items()}
_COLOUR = re.compile("|".join(_BY_COLOUR))
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_FRAGMENT = re.compile(r"url\(#")
# What XML cannot hold, and what no file name should do to a page.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the page's style, whatever the user's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def plain_text(text: str) -> str:
    """The text with a question mark in place of control characters and lone surrogates, which names of files may have."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as one `<svg>` element.

    Args:
        figure: Drawn within `styled`, in colours of `INK`.
        name: Prefix of its ids; unique on the page.
        title: Its text alternative, one line.
        description: What it shows, for people who do not see it.
    """
    written = io.StringIO()
    # Matplotlib's own title and date would be metadata with addresses in it.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with styled(), warnings.catch_warnings():
        # The browser has glyphs that Matplotlib's font lacks, for a name in Japanese for instance.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(written, format="svg", metadata=nothing)
    root = ET.fromstring(written.getvalue())  # noqa: S314 - Matplotlib wrote it a moment ago
    _tidy(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-text",
        "focusable": "false",
    }
    for tag, part, text in (("desc", "text", description), ("title", "title", title)):
        element = ET.Element(tag, {"id": f"{name}-{part}"})
        element.text = plain_text(text)
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")


def _tidy(root: ET.Element, name: str) -> None:
    """Drop namespaces, metadata, styles for the whole document, clips, and ids that nothing refers to."""
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("metadata", "style", "clipPath")]:
            parent.remove(child)
    elements = list(root.iter())
    for element in elements:
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.attrib.pop("clip-path", None)
        if (target := element.attrib.pop(_XLINK, None)) is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for key, value in element.attrib.items():
            if key in ("d", "transform", "x", "y", "points", "style"):
                value = _LONG_NUMBER.sub(r"\1", value)  # noqa: PLW2901
            element.set(key, _FRAGMENT.sub(f"url(#{name}-", _COLOUR.sub(_variable, value)))
    used = {element.get("href", "").removeprefix(f"#{name}-") for element in elements}
    for element in elements:
        if (own := element.attrib.pop("id", None)) in used and own:
            element.set("id", f"{name}-{own}")


def _variable(match: re.Match[str]) -> str:
    return _BY_COLOUR[match[0]]


_WIDTH_IN = 7.4
# Shapes that stay different in black and white.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_VERDICT_SHAPES = {Verdict.ENABLE: "^", Verdict.DISABLE: "v", Verdict.UNDECIDED: "D"}
# Nothing beyond is drawn: an interval of few pairs may have any end. The table beside a figure has the numbers.
_FAR_BELOW, _FAR_ABOVE = 0.2, 8.0
# An interval's end is drawn up to this factor from its ratio at least; beyond, it may end in an arrow.
_REACH = 2.2
_MOST_TICKS = 6
_TICKS_WIDE = (0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_TICKS_FEW = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_STEPS_PERCENT = (1, 2, 5, 10, 20, 25, 50)
_LONGEST_LABEL = 40
_OFF_LINE: dict[str, Any] = {"color": INK["muted"], "linewidth": 1.2}
_THRESHOLD_LINE: dict[str, Any] = {"color": INK["ink"], "linewidth": 1.2, "linestyle": "--"}


@dataclass(frozen=True, slots=True)
class Gain:
    """One row of the gains: a speed ratio with its interval, and the gain that an `enable` has to exceed, as a fraction.

    `sure` is False for what is not proven on this machine.
    """

    label: str
    verdict: Verdict
    ratio: float | None
    interval: tuple[float, float] | None
    threshold: float
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted and measured speed ratio of one prompt type, each with an interval where one is known.

    `place` chooses shape and colour, so that a prompt type looks the same in the figures of its model.
    """

    label: str
    predicted: float
    measured: float
    predicted_interval: tuple[float, float] | None = None
    measured_interval: tuple[float, float] | None = None
    place: int = 0


@dataclass(frozen=True, slots=True)
class CostPoint:
    """What an average cycle of one prompt type proposed, yielded and took, in tokens without drafting; `place` as above."""

    label: str
    proposals: float
    tokens: float
    cost: float
    place: int = 0


@contextmanager
def _drawn(height_in: float, rows: Sequence[float] = (1.0,)) -> Iterator[tuple[Figure, list[Axes]]]:
    with styled():
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=list(rows))
        yield figure, [row[0] for row in axes]


def gain_figure(gains: Sequence[Gain]) -> Figure:
    """A row for each prompt type: the ratio as a marker, its interval as a bar, off and the row's threshold as lines."""
    with _drawn(1.0 + 0.3 * len(gains)) as (figure, [axes]):
        known = [(g.ratio, g.interval) for g in gains if g.ratio]
        low, high = _range([1.0, *(1.0 + g.threshold for g in gains), *_near(known)])
        axes.axvline(1.0, **_OFF_LINE)
        for threshold, own in groupby(range(len(gains)), lambda row: gains[row].threshold):
            rows = list(own)
            axes.plot([1.0 + threshold] * 2, [rows[0] - 0.5, rows[-1] + 0.5], **_THRESHOLD_LINE)
        for row, gain in enumerate(gains):
            if gain.ratio is None:
                axes.text(1.0, row, "  not measured", va="center", color=INK["muted"])
                continue
            colour = INK[str(gain.verdict)]
            if gain.interval is not None:
                ends = [min(max(end, low), high) for end in gain.interval]
                axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
                for end, told, arrow in zip(ends, gain.interval, ("<", ">"), strict=True):
                    if end != told:
                        axes.plot([end], [row], marker=arrow, color=colour, markersize=6)
            axes.plot(
                [min(max(gain.ratio, low), high)],
                [row],
                marker=_VERDICT_SHAPES[gain.verdict],
                markersize=9,
                color=colour,
                markerfacecolor=colour if gain.sure else INK["paper"],
                markeredgewidth=1.6,
            )
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.set_yticks(range(len(gains)), [_short(g.label) for g in gains])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _ratio_axis(axes, "x", low, high)
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("change of speed against off")
        return figure


def forecast_figure(forecasts: Sequence[Forecast]) -> Figure:
    """Predicted speed ratio to the right, measured one upwards; on the diagonal they agree."""
    with _drawn(4.3) as (figure, [axes]):
        known = [(f.predicted, f.predicted_interval) for f in forecasts]
        known += [(f.measured, f.measured_interval) for f in forecasts]
        low, high = _range([1.0, *_near(known)])
        axes.plot([low, high], [low, high], color=INK["muted"], linewidth=1.2)
        axes.text(high, high, "as predicted ", ha="right", va="bottom", color=INK["muted"])
        for f in forecasts:
            colour, shape = _look_of(f.place)
            for x, y, interval, across in (
                (f.predicted, f.measured, f.predicted_interval, True),
                (f.predicted, f.measured, f.measured_interval, False),
            ):
                if interval is not None:
                    ends = [min(max(end, low), high) for end in interval]
                    line = (ends, [y, y]) if across else ([x, x], ends)
                    axes.plot(*line, color=colour, linewidth=1.2, alpha=0.8)
            axes.plot([f.predicted], [f.measured], linestyle="none", marker=shape, color=colour, markersize=7,
                      label=_short(f.label))  # fmt: skip
        for axis in ("x", "y"):
            _ratio_axis(axes, axis, low, high)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("predicted from the search prompts")
        axes.set_ylabel("measured on the proof prompts")
        figure.legend(loc="outside right upper", fontsize=9)
        return figure


def cost_figure(cost_tokens: Sequence[float], points: Sequence[CostPoint]) -> Figure:
    """What a cycle costs over the number of its proposals, the line that it would need, and what cycles yielded.

    Args:
        cost_tokens: At k: time to propose and verify k tokens, in tokens without drafting.
        points: Average cycles; proposals may be a fraction.
    """
    with _drawn(4.3) as (figure, [axes]):
        widest = max([len(cost_tokens) - 1, *(math.ceil(p.proposals) for p in points)])
        # Beyond the curve only the break-even line would be seen.
        highest = 1.15 * max([*cost_tokens, *(max(p.tokens, p.cost) for p in points), 2.0])
        axes.plot(range(widest + 1), [k + 1 for k in range(widest + 1)], color=INK["muted"], linestyle="--",
                  linewidth=1.4, label="break-even, all accepted")  # fmt: skip
        axes.plot(range(len(cost_tokens)), list(cost_tokens), color=INK["ink"], linewidth=1.8,
                  label="cost of a cycle")  # fmt: skip
        for p in points:
            colour, shape = _look_of(p.place)
            axes.plot([p.proposals, p.proposals], [p.cost, p.tokens], color=colour, linewidth=1.4)
            axes.plot([p.proposals], [p.cost], marker="_", color=colour, markersize=11, markeredgewidth=2)
            axes.plot([p.proposals], [p.tokens], marker=shape, linestyle="none", color=colour, markersize=7,
                      label=_short(p.label))  # fmt: skip
        axes.set_xlim(-0.3, widest + 0.8)
        axes.set_ylim(0.0, highest)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("proposals that a cycle verifies")
        axes.set_ylabel("tokens; costs in tokens without drafting")
        figure.legend(loc="outside right upper", fontsize=9)
        return figure


def proof_figure(pairs: Sequence[Pair], looks: Sequence[Look], threshold: float) -> Figure:
    """Above: every pair as a dot, by round, launches by shape and colour. Below: the interval at each look."""
    rows = (2.2, 1.3) if looks else (1.0,)
    with _drawn(4.4 if looks else 2.9, rows) as (figure, axes):
        launches = launch_names(pairs)
        ratios = [math.exp(p.log_ratio) for p in pairs]
        low, high = _range([1.0, 1.0 + threshold, *ratios])
        _reference_lines(axes[0].axhline, threshold)
        dots: dict[int, list[tuple[float, float]]] = {}
        sizes = Counter(p.off.round for p in pairs)
        drawn: Counter[int] = Counter()
        for pair, ratio in zip(pairs, ratios, strict=True):
            round_ = pair.off.round
            # Spread within the round, so that dots do not cover each other.
            x = round_ + 0.7 * ((drawn[round_] + 0.5) / sizes[round_] - 0.5)
            drawn[round_] += 1
            own = dots.setdefault(launches[pair.drafted.launch_id] - 1, [])
            own.append((x, min(max(ratio, low), high)))
        for launch, own in dots.items():
            colour, shape = _look_of(launch)
            xs, ys = zip(*own, strict=True)
            axes[0].plot(xs, ys, marker=shape, markersize=5, color=colour, linestyle="none")
        _ratio_axis(axes[0], "y", low, high)
        axes[0].set_ylabel("each pair")
        if looks:
            _look_panel(axes[1], looks, threshold)
        rounds = [*sizes, *(look.rounds for look in looks)]
        axes[-1].set_xlim(min(rounds) - 0.7, max(rounds) + 0.7)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        proven = any(p.off.phase is Phase.PROVE for p in pairs) or looks
        axes[-1].set_xlabel("round of the proof" if proven else "round of the search")
        for each in axes:
            each.grid(axis="y", linewidth=0.6)
            each.set_axisbelow(True)
        return figure


def launch_names(pairs: Iterable[Pair]) -> dict[str, int]:
    """Launches with drafting, numbered from 1 in the order of their first pair."""
    found: dict[str, int] = {}
    for pair in pairs:
        found.setdefault(pair.drafted.launch_id, len(found) + 1)
    return found


def _look_of(place: int) -> tuple[str, str]:
    """Colour and shape of the launch or prompt type at this place: thirty differ before they come again."""
    return INK[SERIES[place % len(SERIES)]], _SHAPES[place % len(_SHAPES)]


def _look_panel(axes: Axes, looks: Sequence[Look], threshold: float) -> None:
    low, high = _range([1.0, 1.0 + threshold, *_near((look.ratio, look.interval) for look in looks)])
    _reference_lines(axes.axhline, threshold)
    axes.plot(
        [look.rounds for look in looks], [look.ratio for look in looks], color=INK["grid"], linewidth=1.2
    )
    for look in looks:
        colour = INK[str(look.verdict)]
        if look.interval is not None:
            clipped = [min(max(end, low), high) for end in look.interval]
            axes.plot([look.rounds, look.rounds], clipped, color=colour, linewidth=2.2)
        axes.plot(
            [look.rounds], [look.ratio], marker=_VERDICT_SHAPES[look.verdict], color=colour, markersize=8
        )
    _ratio_axis(axes, "y", low, high, most=4)
    axes.set_ylabel("each look")


def _reference_lines(line: Callable[..., Any], threshold: float) -> None:
    """Off as a full line, the threshold as a dashed one; `line` is `axvline` or `axhline`."""
    line(1.0, **_OFF_LINE)
    line(1.0 + threshold, **_THRESHOLD_LINE)


def _near(known: Iterable[tuple[float, tuple[float, float] | None]]) -> Iterator[float]:
    """Ratios, and the ends of their intervals as far as they are worth the room: those of few pairs may lie anywhere."""
    for ratio, interval in known:
        yield ratio
        for end in interval or ():
            yield min(max(end, ratio / _REACH), ratio * _REACH)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Both ends of a logarithmic axis around these ratios, within what is drawn at all."""
    logs = [math.log(min(max(v, _FAR_BELOW), _FAR_ABOVE)) for v in values]
    low, high = min(logs), max(logs)
    edge = max(0.02, 0.06 * (high - low))
    return math.exp(low - edge), math.exp(high + edge)


def _ratio_axis(axes: Axes, axis: str, low: float, high: float, most: int = _MOST_TICKS) -> None:
    """A logarithmic axis of speed ratios, labelled as gains at so many places at most."""
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    (axes.set_xlim if axis == "x" else axes.set_ylim)(low, high)
    ticks = _ticks(low, high, most)
    of_axis = axes.xaxis if axis == "x" else axes.yaxis
    of_axis.set_major_locator(FixedLocator(ticks))
    of_axis.set_major_formatter(FixedFormatter([_percent(t) for t in ticks]))
    of_axis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round ratios within a range, `most` at most, with 1 among them if it lies within."""
    for step in _STEPS_PERCENT:
        first, last = math.ceil(100.0 * low / step), math.floor(100.0 * high / step)
        # On a logarithmic axis equal steps crowd at its upper end.
        if last - first + 1 <= most and high < 3.2 * low:
            return [k * step / 100.0 for k in range(first, last + 1)]
    within = [t for t in _TICKS_WIDE if low <= t <= high]
    return within if len(within) <= most + 2 else [t for t in within if t in _TICKS_FEW]


def _percent(ratio: float) -> str:
    gain = round(100.0 * (ratio - 1.0))
    return "off" if gain == 0 else f"{gain:+d} %".replace("-", "−")


def _short(label: str) -> str:
    text = plain_text(label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
