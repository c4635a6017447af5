"""Tables of recommendations, studies and trials for people; in a narrow terminal recommendations are a list.

Verdicts are words, so that no meaning is in a colour alone.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autospec.cells import Aim
from autospec.formats import (
    age,
    bounded,
    build_words,
    conditions_words,
    counted,
    likely_words,
    limits_words,
    percent,
    plain_speed,
)
from autospec.recommendations import Recommendation, Status, StoredRecommendation, Verdict

if TYPE_CHECKING:
    from autospec.report.studies import StudySummary

__all__ = ["RatioBars", "recommendation_table", "studies_table", "trials_table"]

_STYLES = {Verdict.ENABLE: "green", Verdict.DISABLE: "red", Verdict.UNDECIDED: "yellow"}
# On a narrower terminal the status has no column of its own.
_ROOMY_COLUMNS = 100
# On a narrower one there is no table.
_LEAST_COLUMNS = 78
# With this width, the bar of a ratio has a column of its own; else it stands below the interval.
_BAR_COLUMNS = 132
_BAR_WIDTH = 23
_BAR_WIDTH_BELOW = 13
# Where the output cannot have these.
_ASCII = str.maketrans({"→": ">", "–": "-", "…": "~"})
# The longest status; an age may take two lines.
_STATUS_COLUMNS = len(Status.PROVISIONAL)


def recommendation_table(recommendations: Iterable[Recommendation], now: dt.datetime | None = None) -> Group:
    """A table for each main model and backend, a row for each prompt type, and the reasons below."""
    moment = now or dt.datetime.now(dt.UTC)
    groups: dict[tuple[str, str], list[Recommendation]] = {}
    for r in recommendations:
        machine = r.evidence.get("hardware")
        where = f", machine {machine['id']}" if isinstance(machine, dict) and "id" in machine else ""
        groups.setdefault((r.model, f" on {build_words(r)}{where}"), []).append(r)
    parts: list[RenderableType] = []
    for (model, where), shown in groups.items():
        parts += [
            Text.assemble((model, "bold"), where, ", tok/s"),
            _Recommended(shown, moment),
            *(Padding(t, (0, 1)) for t in _aims(shown)),
            *(Padding(t, (0, 1)) for t in (*_reasons(shown), *_conditions(shown))),
            Text(),
        ]
    return Group(*parts[:-1])


class _Recommended:
    """The rows of one main model and backend."""

    # On a narrow terminal two pairs of columns share one each, and on a very narrow one each row is a few lines. A gain has a bar,
    # but not on a terminal that can only write lines (``TERM=dumb``): a screen reader would spell it out.

    def __init__(self, shown: Sequence[Recommendation], now: dt.datetime) -> None:
        self._shown = shown
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        beside = width >= _BAR_COLUMNS
        bars = None
        if not console.is_dumb_terminal:
            bar_width = _BAR_WIDTH if beside or width < _LEAST_COLUMNS else _BAR_WIDTH_BELOW
            bars = RatioBars.of(self._shown, width=bar_width, ascii_only=ascii_only)
        if width < _LEAST_COLUMNS:
            yield from self._listed(bars, ascii_only=ascii_only)
        elif width < _ROOMY_COLUMNS:
            yield self._narrow(bars, ascii_only=ascii_only)
        else:
            yield self._roomy(bars, beside=beside, ascii_only=ascii_only)
        if bars is not None:
            yield Padding(Text(bars.legend, style="dim"), (0, 1))

    def _roomy(self, bars: RatioBars | None, *, beside: bool, ascii_only: bool) -> Table:
        table = _table("prompts", "verdict", wide="best tried")
        own = ["ratio"] if bars is not None and beside else []
        below = None if own else bars
        headings = ["off → with", "gain", *own, "pairs", "accepted"]
        for heading in headings:
            heading = _plain(heading, ascii_only=ascii_only)  # noqa: PLW2901
            table.add_column(heading, justify="left" if heading in own else "right", no_wrap=True)
        table.add_column("status", width=_STATUS_COLUMNS)
        for r in self._shown:
            table.add_row(
                _kind(r),
                _verdict(r),
                *_measured(r, below, ascii_only=ascii_only),
                *([bars.bar(r)] if own and bars is not None else []),
                _plain(_pairs(r), ascii_only=ascii_only),
                _plain(_accepted(r), ascii_only=ascii_only),
                _status(r, self._now),
            )
        return table

    def _narrow(self, bars: RatioBars | None, *, ascii_only: bool) -> Table:
        table = _table("prompts")
        table.show_edge = False
        table.add_column("verdict", width=_STATUS_COLUMNS)
        table.add_column("best tried", overflow="fold", min_width=12)
        for heading in ("off → with", "gain", "pairs,\naccepted"):
            table.add_column(_plain(heading, ascii_only=ascii_only), justify="right", no_wrap=True)
        for r in self._shown:
            table.add_row(
                _kind(r),
                f"{_verdict(r)}\n{_status(r, self._now)}",
                *_measured(r, bars, ascii_only=ascii_only),
                _plain(f"{_pairs(r)}\n{_accepted(r)}", ascii_only=ascii_only),
            )
        return table

    def _listed(self, bars: RatioBars | None, *, ascii_only: bool) -> Iterator[RenderableType]:
        for r in self._shown:
            status = _status(r, self._now).replace("\n", ", ")
            lines = [] if r.tried.is_off else [escape(r.tried.label)]
            if r.speedup is not None:
                gain, _, interval = _plain(_gain(r), ascii_only=ascii_only).partition("\n")
                lines.append(f"{_plain(_speeds(r), ascii_only=ascii_only)} tok/s, {gain}")
                lines += [f"interval {interval} %"] if interval else []
                accepted = "" if r.acceptance is None else f", {_accepted(r)} accepted"
                lines.append(f"{counted(r.pairs, 'pair')}{accepted}")
            if bars is not None and (bar := bars.bar(r)):
                lines.append(bar)
            yield Text.from_markup(f"{_kind(r)}: {_verdict(r).replace(chr(10), ', ')}, {status}")
            yield from (Padding(Text.from_markup(line), (0, 0, 0, 2)) for line in lines)


def _plain(text: str, *, ascii_only: bool) -> str:
    """The text of a cell that holds no name, as the output can have it."""
    return text.translate(_ASCII) if ascii_only else text


def _verdict(r: Recommendation) -> str:
    likely = "\n[green]likely[/]" if likely_words(r) else ""
    return f"[{_STYLES[r.verdict]}]{r.verdict}[/]{likely}"


def _measured(r: Recommendation, bars: RatioBars | None, *, ascii_only: bool) -> tuple[str, str, str]:
    """The best tried, the speeds, and the gain with its bar below, if it has one."""
    tried = _plain("–", ascii_only=ascii_only) if r.tried.is_off else escape(r.tried.label)
    bar = "" if bars is None else bars.bar(r)
    gain = _plain(_gain(r), ascii_only=ascii_only)
    return tried, _plain(_speeds(r), ascii_only=ascii_only), f"{gain}\n{bar}" if bar else gain


def _speeds(r: Recommendation) -> str:
    return f"{plain_speed(r.baseline_tps)} → {plain_speed(r.drafting_tps)}"


def _accepted(r: Recommendation) -> str:
    return "–" if r.acceptance is None else f"{r.acceptance:.0%}"


def _reasons(shown: Sequence[Recommendation]) -> list[Text]:
    """One sentence for each reason; prompt types with the same reason share it."""
    kinds: dict[str, list[str]] = {}
    for r in shown:
        kinds.setdefault(_sentence(r), []).append(_kind(r))
    return [Text.assemble((", ".join(names), "dim"), sentence) for sentence, names in kinds.items()]


def _aims(shown: Sequence[Recommendation]) -> list[Text]:
    """What the verdicts are about, where that is not the speed in the table."""
    if all(r.aim is Aim.SPEED for r in shown):
        return []
    return [
        Text.assemble(
            ("aim", "dim"),
            ": energy; the verdicts compare joules, not the speeds and gains above",
        )
    ]


def _conditions(shown: Sequence[Recommendation]) -> list[Text]:
    """How it was measured, once for all prompt types that agree, and what the checks of limits found."""
    told: dict[str, list[str]] = {}
    for r in shown:
        if words := conditions_words(r):
            told.setdefault(words, []).append(_kind(r))
    lines = [
        Text.assemble(
            ("measured" if len(told) == 1 else f"measured ({', '.join(kinds)})", "dim"), f": {words}"
        )
        for words, kinds in told.items()
    ]
    lines += [
        Text.assemble((f"{_kind(r)}, checked", "dim"), f": {'; '.join(checks)}")
        for r in shown
        if (checks := limits_words(r))
    ]
    return lines


def studies_table(
    studies: Sequence[StudySummary],
    alone: Iterable[StoredRecommendation],
    by_cell: Mapping[str, StoredRecommendation],
) -> Table:
    """One row for each study, then one for each recommendation without a study."""
    table = _table("prompts", "trials", wide="best tried", first="model")
    table.add_column("result", no_wrap=True)
    table.add_column("cell", no_wrap=True)
    for study in studies:
        cell, best = study.cell, study.best
        stored = by_cell.get(study.cell_key)
        table.add_row(
            _subject(
                str(cell.get("model", study.name)),
                f"{cell.get('backend', '')} {cell.get('build', '')}",
                str(cell.get("hardware", "")),
            ),
            _with_aim(str(cell.get("prompt_type", "")), str(cell.get("aim", Aim.SPEED))),
            "\n".join(f"{n} {state}" for state, n in study.states.items()) or "none",
            "–"
            if best is None or best.drafting is None
            else f"{escape(best.drafting.label)} {percent(best.value or 0.0)}",
            "not finished" if stored is None else _result(stored.recommendation),
            study.cell_key,
        )
    for stored in alone:
        r = stored.recommendation
        table.add_row(
            _subject(r.model, build_words(r), stored.hardware.id),
            _with_aim(_kind(r), r.aim),
            "–",
            f"{escape(r.tried.label)} {percent(r.speedup)}" if r.speedup else "–",
            _result(r),
            stored.cell_key,
        )
    return table


def trials_table(study: StudySummary) -> Table:
    """One row for each trial, in order."""
    table = _table("trial", wide="drafting")
    for heading in ("state", "gain", "tok/s off → with", "pairs", "accepted"):
        table.add_column(heading, no_wrap=True)
    table.add_column("reason")
    for t in study.trials:
        speeds = [plain_speed(t.attributes.get(k)) for k in ("baseline_tps", "drafting_tps")]
        acceptance = t.attributes.get("acceptance")
        table.add_row(
            str(t.number),
            "–" if t.drafting is None else escape(t.drafting.label),
            t.state,
            "–" if t.value is None else percent(t.value),
            " → ".join(speeds),
            str(t.attributes.get("pairs", "–")),
            "–" if acceptance is None else f"{acceptance:.0%}",
            escape(t.reason),
        )
    return table


def _table(*narrow: str, wide: str = "", first: str = "") -> Table:
    """A table whose narrow columns never wrap, so the wide ones shrink."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    if first:
        table.add_column(first, overflow="fold")
    for heading in narrow:
        table.add_column(heading, no_wrap=True)
    if wide:
        table.add_column(wide, overflow="fold", min_width=12)
    return table


def _subject(model: str, build: str, machine: str) -> str:
    return f"{escape(model)}\n[dim]{escape(build.strip())}\n{escape(machine)}[/dim]"


def _with_aim(prompts: str, aim: str) -> str:
    return prompts if aim == Aim.SPEED else f"{prompts}\n[dim]{escape(aim)}[/dim]"


def _kind(r: Recommendation) -> str:
    if r.is_overall:
        return "overall"
    return "any" if r.prompt_type is None else str(r.prompt_type)


def _sentence(r: Recommendation) -> str:
    likely = f"{words}; " if (words := likely_words(r)) else ""
    words = f": {r.reason}" if r.verdict is Verdict.ENABLE else f", drafting off: {likely}{r.reason}"
    why = r.evidence.get("stale_reason") if r.status is Status.STALE else None
    return f"{words}; stale, because {why}" if why else words


def _gain(r: Recommendation) -> str:
    if r.speedup is None:
        return "–"
    interval = bounded(r.speedup_ci)
    if interval is None:
        return percent(r.speedup)
    low, high = (percent(v).removesuffix(" %") for v in interval)
    return f"{percent(r.speedup)}\n[dim]{low} … {high}[/dim]"


def _pairs(r: Recommendation) -> str:
    unpaired = r.evidence.get("unpaired")
    if not r.pairs and isinstance(unpaired, dict):
        return f"0\n[dim]{unpaired.get('off')}+{unpaired.get('drafting')}[/dim]"
    return str(r.pairs)


def _status(r: Recommendation, now: dt.datetime) -> str:
    text = str(r.status) if r.status is Status.PROVEN else f"[yellow]{r.status}[/]"
    return f"{text}\n[dim]{age(r.created_at, now)}[/dim]"


def _result(r: Recommendation) -> str:
    # Two lines, which leaves more room for the model's name.
    return f"[{_STYLES[r.verdict]}]{r.verdict}[/],\n{r.status}"


# On either side of the mark.
_LEAST_CELLS = 2
# So that a difference of nothing does not look large.
_LEAST_STEP = 0.005
# What lies beyond a third or the threefold of the threshold is cut off, and marked so.
_FARTHEST = math.log(3.0)

_BLOCK_SIGNS = {"empty": "·", "interval": "▒", "measured": "█", "mark": "│"}
_ASCII_SIGNS = {"empty": ".", "interval": "-", "measured": "#", "mark": "|"}


@dataclass(frozen=True, slots=True)
class RatioBars:
    """Speed ratios with their intervals as bars of characters, beside a mark for the threshold; the bars of one table.

    A value below the threshold is always left of the mark and one above it right, however coarse the cells are. The bars share
    their scale, in equal steps of the ratio's logarithm. Each row is drawn around the threshold of its own study.

    Attributes:
        left: Cells for ratios below the threshold.
        right: Cells for the others.
        step: Width of a cell, as the logarithm of a ratio.
        ascii_only: Whether the output cannot have block characters.
        thresholds: Least gains of the rows, as fractions.
    """

    left: int
    right: int
    step: float
    ascii_only: bool
    thresholds: frozenset[float]

    @classmethod
    def of(
        cls, recommendations: Iterable[Recommendation], *, width: int, ascii_only: bool
    ) -> RatioBars | None:
        """The bars for these rows, `width` characters wide; ``None`` if none of them has a ratio and its study's threshold."""
        drawn = [(own, r) for r in recommendations if (own := _values(r)) is not None]
        if not drawn:
            return None
        values = [value for own, _ in drawn for value in own]
        thresholds = frozenset(t for _, r in drawn if (t := _threshold(r)) is not None)
        below, above = max(0.0, -min(values)), max(0.0, *values)
        cells = width - 1
        share = below / (below + above) if below + above > 0.0 else 0.5
        left = min(max(_LEAST_CELLS, round(cells * share)), cells - _LEAST_CELLS)
        right = cells - left
        step = max(below / left, above / right, _LEAST_STEP)
        return cls(left, right, step, ascii_only, thresholds)

    def bar(self, r: Recommendation) -> str:
        """The row's bar; empty if it has no ratio or no threshold."""
        values = _values(r)
        if values is None:
            return ""
        signs = self._signs
        cells = [signs["empty"]] * self.left + [signs["mark"]] + [signs["empty"]] * self.right
        low, middle, high = (self._place(value) for value in values)
        for place in range(low, high + 1):
            if place != self.left:
                cells[place] = signs["interval"]
        cells[middle] = signs["measured"]
        if _cut(r, 0):
            cells[0] = "<"
        if _cut(r, 1):
            cells[-1] = ">"
        return "".join(cells)

    @property
    def legend(self) -> str:
        """What the signs mean, as one line."""
        signs = self._signs
        least = " or ".join(f"+{100.0 * t:g} %" for t in sorted(self.thresholds))
        return f"gain: {signs['measured']} measured, {signs['interval']} interval, {signs['mark']} {least}, the threshold to enable"

    @property
    def _signs(self) -> dict[str, str]:
        return _ASCII_SIGNS if self.ascii_only else _BLOCK_SIGNS

    def _place(self, value: float) -> int:
        """The cell of a value; the mark is at `left`."""
        cells = math.floor(abs(value) / self.step * (1.0 - 1e-9))
        if value < 0.0:
            return self.left - 1 - min(cells, self.left - 1)
        return self.left + 1 + min(cells, self.right - 1)


def _threshold(r: Recommendation) -> float | None:
    """The least gain that enables; ``None`` if the record does not say it."""
    found = r.evidence.get("threshold")
    return float(found) if isinstance(found, int | float) and found > -1.0 else None


def _ratios(r: Recommendation) -> tuple[float, float, float] | None:
    """Low end, ratio and high end, as logarithms above the threshold; the ends are the ratio's own if they are unknown."""
    threshold = _threshold(r)
    if threshold is None or not r.speedup or not math.isfinite(r.speedup) or r.speedup < 0.0:
        return None
    low, high = bounded(r.speedup_ci) or (r.speedup, r.speedup)
    # A recorded interval may leave out its own ratio.
    low, high = min(low, r.speedup), max(high, r.speedup)
    if low <= 0.0:
        low = math.exp(-2.0 * _FARTHEST)
    least = math.log1p(threshold)
    return math.log(low) - least, math.log(r.speedup) - least, math.log(high) - least


def _values(r: Recommendation) -> tuple[float, float, float] | None:
    """The ratios, none farther from the threshold than a bar shows."""
    found = _ratios(r)
    if found is None:
        return None
    low, middle, high = (min(max(v, -_FARTHEST), _FARTHEST) for v in found)
    return low, middle, high


def _cut(r: Recommendation, end: int) -> bool:
    """Whether the low (0) or the high end (1) lies beyond what a bar shows."""
    found = _ratios(r)
    return found is not None and (found[0] < -_FARTHEST if end == 0 else found[2] > _FARTHEST)
