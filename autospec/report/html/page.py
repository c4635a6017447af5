"""From findings to the page: figures, tables and words for the template `page.html.j2`, which escapes every text."""

from __future__ import annotations

import datetime as dt
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import autospec
from autospec.cells import Aim
from autospec.drafting import Drafting
from autospec.errors import AutospecError
from autospec.formats import (
    age,
    bounded,
    conditions_words,
    counted,
    disabled_so_far,
    gibibytes,
    likely_words,
    limits_words,
    listed,
    percent,
    plain_speed,
)
from autospec.measure.measurements import Pair
from autospec.recommendations import LimitVerdict, Recommendation, Status, Verdict
from autospec.report.explanation import Explanation
from autospec.report.html import GENERATOR
from autospec.report.html.figures import (
    CostPoint,
    Forecast,
    Gain,
    cost_figure,
    forecast_figure,
    gain_figure,
    inline_svg,
    launch_names,
    plain_text,
    proof_figure,
)
from autospec.report.html.findings import (
    AcceptanceMap,
    Findings,
    ModelFindings,
    RecordFindings,
    TypeFindings,
    threshold_of,
)
from autospec.report.server_config import drafting_args, to_run

__all__ = ["MOST_BYTES", "page"]

MOST_BYTES: Final = 2_000_000
"""A larger page leaves out the tables of pairs first, then the figures of single prompt types."""

_FOLDER = Path(__file__).parent
_HEAT_LEVELS = 7
_SYMBOLS = {Verdict.ENABLE: "▲", Verdict.DISABLE: "▼", Verdict.UNDECIDED: "◆"}


@dataclass(frozen=True, slots=True)
class _Figure:
    """A drawn figure: `svg` is safe markup, `note` says below it how to read it."""

    svg: Markup
    caption: str
    note: str

    @classmethod
    def of(cls, figure: Figure, name: str, title: str, *, description: str, note: str) -> _Figure:
        """Place a figure of `autospec.report.html.figures`."""
        svg = inline_svg(figure, name=name, title=title, description=description)
        return cls(Markup(svg), title, note)  # noqa: S704 - Matplotlib escapes its texts


def page(findings: Findings, now: dt.datetime | None = None) -> str:
    """The whole page."""
    moment = now or dt.datetime.now(dt.UTC)
    models = [_model(m, f"m{place}", moment) for place, m in enumerate(findings.models, start=1)]
    record = None if findings.record is None else _record(findings.record)
    text = ""
    for with_pairs, with_figures in ((True, True), (False, True), (False, False)):
        text = _environment().get_template("page.html.j2").render(
            findings=findings,
            memory=gibibytes(findings.hardware.memory_bytes),
            models=models,
            record=record,
            now=moment.strftime("%d %B %Y, %H:%M UTC"),
            generator=f"{GENERATOR} {autospec.__version__}",
            with_pairs=with_pairs,
            with_figures=with_figures,
            style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        )  # fmt: skip
        text = _without_home(plain_text(text))
        if len(text.encode()) < MOST_BYTES:
            break
    return text


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"gain": _gain, "speed": plain_speed, "share": _share}
    return environment


def _without_home(text: str) -> str:
    """The page may be shown to others: paths below the home folder begin with ``~``."""
    home = str(Path.home())
    return text.replace(f"{escape(home)}/", "~/") if len(home) > 1 else text


def _gain(ratio: float | None) -> str:
    return "–" if ratio is None else percent(ratio).replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


# One model.


def _model(m: ModelFindings, name: str, now: dt.datetime) -> dict[str, Any]:
    types = [_type(t, f"{name}-t{place}", now) for place, t in enumerate(m.types, start=1)]
    rows = [*types, *([] if m.overall is None else [_row(m.overall.recommendation, now)])]
    gains = _gains(m)
    return {
        "id": name,
        "name": m.model,
        "subject": f"on {m.backend} {', '.join(m.builds)}",
        "machine": m.hardware.id,
        "short": list(_in_short(m)),
        "run": "" if m.overall is None else to_run(m.overall.recommendation).command,
        "overall": None if m.overall is None else m.overall.sentences,
        "rows": rows,
        "gains": _gain_plot(gains, name, f"Speed with drafting against off: {m.model}"),
        "threshold": _least(g.threshold for g in gains),
        "forecasts": _forecasts(m, name),
        "costs": list(_costs(m, name)),
        "conditions": _conditions(m),
        "types": types,
    }


def _in_short(m: ModelFindings) -> Iterator[str]:
    """Which types pay, and how to run it: the first thing that a reader looks for."""
    answers = [t.recommendation for t in m.types]
    here = [r for r in answers if r.status is not Status.IMPORTED]
    if any(r.aim is Aim.ENERGY for r in answers):
        yield "The aim is energy: verdicts compare tokens per joule; the tables and figures show speed."
    yield from _verdicts(here, m.model)
    if imported := [f"{_kind(r)} ({r.verdict})" for r in answers if r.status is Status.IMPORTED]:
        yield f"Imported, not measured here: {listed(imported)}."
    slower = [
        f"{_kind(t.recommendation)} at {words}"
        for t in m.types
        for words in limits_words(t.recommendation, {LimitVerdict.SLOWER})
    ]
    if slower:
        yield f"Beware: {'; '.join(slower)}. `autospec proxy` turns drafting off there where it can."
    if stale := [_kind(r) for r in answers if r.status is Status.STALE]:
        yield f"Measured under other conditions than today's: {listed(stale)}."
    if any(r.verdict is Verdict.ENABLE for r in here):
        yield "`autospec proxy` gives each request the drafting of its prompt type."
    if m.overall is not None:
        yield to_run(m.overall.recommendation).words


def _verdicts(here: Sequence[Recommendation], model: str) -> Iterator[str]:
    """Which prompt types gain, lose and are open, of those that were measured here."""
    by_verdict = {verdict: [r for r in here if r.verdict is verdict] for verdict in Verdict}
    if pays := by_verdict[Verdict.ENABLE]:
        yield f"Drafting pays for {listed([f'{_kind(r)} ({_gain(r.gain)})' for r in pays])}."
    else:
        yield "Drafting is enabled for no prompt type here."
    disabled = by_verdict[Verdict.DISABLE]
    if lost := [_kind(r) for r in disabled if not disabled_so_far(r)]:
        yield f"It does not pay for {listed(lost)}: there it stays off."
    if lost_so_far := [_kind(r) for r in disabled if disabled_so_far(r)]:
        yield f"So far it does not pay for {listed(lost_so_far)}. `autospec tune --model {model}` goes on measuring."
    if still_open := by_verdict[Verdict.UNDECIDED]:
        told = [_kind(r) + (f" ({words})" if (words := likely_words(r)) else "") for r in still_open]
        yield (
            f"Undecided, and therefore off: {listed(told)}. `autospec tune --model {model}` goes on measuring."
        )


def _kind(r: Recommendation) -> str:
    if r.is_overall:
        return "all together"
    return "any prompt" if r.prompt_type is None else str(r.prompt_type)


def _row(r: Recommendation, now: dt.datetime) -> dict[str, Any]:
    """A row of the table of verdicts."""
    unpaired = r.evidence.get("unpaired")
    pairs = str(r.pairs)
    if not r.pairs and isinstance(unpaired, Mapping):
        pairs = f"none ({unpaired.get('off')} and {unpaired.get('drafting')} runs)"
    return {
        "kind": _kind(r),
        "verdict": str(r.verdict),
        "symbol": _SYMBOLS[r.verdict],
        "likely": likely_words(r),
        "tried": "–" if r.tried.is_off else r.tried.label,
        "off_tps": plain_speed(r.baseline_tps),
        "drafting_tps": plain_speed(r.drafting_tps),
        "gain": _gain(r.speedup),
        "interval": _interval(r.speedup_ci),
        "pairs": pairs,
        "acceptance": _share(r.acceptance),
        "status": str(r.status),
        "age": age(r.created_at, now),
        "stale": str(r.evidence.get("stale_reason") or "") if r.status is Status.STALE else "",
    }


def _gains(m: ModelFindings) -> list[Gain]:
    answers = [t.recommendation for t in m.types]
    answers += [] if m.overall is None else [m.overall.recommendation]
    return [_gain_of(r, _kind(r)) for r in answers]


def _least(thresholds: Iterable[float]) -> str:
    """What an enable has to exceed, in words: studies may differ."""
    return " or ".join(f"+{100 * t:g} %" for t in sorted(set(thresholds)))


def _gain_of(r: Recommendation, label: str) -> Gain:
    ratio = None if r.tried.is_off else r.speedup
    sure = r.status is Status.PROVEN
    return Gain(label, r.verdict, ratio, _finite(r.speedup_ci), threshold_of(r.evidence), sure=sure)


def _finite(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval with ends that can be drawn: an unbounded end lies far out."""
    if interval is None:
        return None
    low, high = interval
    return (low if low > 0.0 else 1e-9), (high if math.isfinite(high) else 1e9)


def _gain_plot(gains: Sequence[Gain], name: str, title: str) -> _Figure:
    told = [
        f"{g.label}: {_gain(g.ratio)}, {g.verdict}" if g.ratio is not None else f"{g.label}: not measured"
        for g in gains
    ]
    note = (
        f"Solid line: off. Dashed line: the {_least(g.threshold for g in gains)} that an enable must exceed with its whole interval."
        " ▲ enable, ▼ disable, ◆ undecided; hollow: not proven on this machine as it is today."
    )
    return _Figure.of(
        gain_figure(gains), f"{name}-gains", title, description=f"{'; '.join(told)}.", note=note
    )


def _forecasts(m: ModelFindings, name: str) -> dict[str, Any] | None:
    """The predicted and measured gains of the types that have both."""
    found = [f for place, t in enumerate(m.types) if (f := _forecast(t.recommendation, place)) is not None]
    if not found:
        return None
    title = "Predicted against measured"
    told = "; ".join(
        f"{f.label}: predicted {_gain(f.predicted)}, measured {_gain(f.measured)}" for f in found
    )
    note = "Bars: the interval of each side. A prediction chooses what is launched; it never enables."
    rows = [
        {
            "kind": f.label,
            "predicted": _gain(f.predicted),
            "predicted_interval": _interval(f.predicted_interval),
            "measured": _gain(f.measured),
            "measured_interval": _interval(f.measured_interval),
        }
        for f in found
    ]
    drawn = _Figure.of(forecast_figure(found), f"{name}-forecasts", title, description=f"{told}.", note=note)
    return {"figure": drawn, "rows": rows}


def _interval(ends: tuple[float, float] | None) -> str:
    ends = bounded(ends)
    return "–" if ends is None else f"{_gain(ends[0])} to {_gain(ends[1])}"


def _forecast(r: Recommendation, place: int) -> Forecast | None:
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping) or r.speedup is None or r.tried.is_off:
        return None
    expected = _numbers([prediction.get("expected")])
    if not expected or expected[0] <= 0.0:
        return None
    ends = _numbers(prediction.get("interval"))
    interval = (ends[0], ends[1]) if len(ends) == 2 else None
    return Forecast(_kind(r), expected[0], r.speedup, interval, _finite(r.speedup_ci), place)


def _costs(m: ModelFindings, name: str) -> Iterator[dict[str, Any]]:
    """A figure for each draft, or kind of draft-free mode, whose costs are known."""
    groups: dict[tuple[str, ...], list[TypeFindings]] = {}
    places = {id(t): place for place, t in enumerate(m.types)}
    for t in m.types:
        if _curve(t.recommendation):
            d = t.recommendation.tried
            modes = (str(part.mode) for part in d.beside)
            groups.setdefault((str(d.mode), d.draft or "", *modes), []).append(t)
    for place, ((mode, draft, *beside), own) in enumerate(groups.items(), start=1):
        curve = max((_curve(t.recommendation) for t in own), key=len)
        points = [p for t in own if (p := _cost_point(t.explanation, places[id(t)])) is not None]
        subject = " + ".join([f"{mode} {PurePath(draft).name}".strip(), *beside])
        title = f"What verifying costs: {subject}"
        told = ", ".join(
            f"{k} proposals: {cost:.2f}" for k, cost in enumerate(curve) if k in (0, 1, 2, 4, 8, 16)
        )
        paid = "".join(
            f"; {p.label}: {p.proposals:.1f} proposals, {p.tokens:.2f} tokens for the time of {p.cost:.2f}"
            for p in points
        )
        note = (
            "Drafting pays where a cycle yields more tokens than off would in the same time: where a marker lies above the bar of its colour."
            " Above the dashed line drafting could not pay even if every proposal were accepted."
        )
        yield {
            "figure": _Figure.of(
                cost_figure(curve, points),
                f"{name}-cost{place}",
                title,
                description=f"Time of a cycle in tokens without drafting, {told}{paid}.",
                note=note,
            ),
            "curve": [f"{cost:.2f}" for cost in curve],
            "points": points,
        }


def _curve(r: Recommendation) -> list[float]:
    """At k: the time to propose and verify k tokens, in tokens without drafting; empty if it is not known."""
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return []
    verify = _numbers(prediction.get("verify_ms"))
    times = _numbers([prediction.get("token_ms"), prediction.get("step_ms") or 0.0])
    if len(verify) < 2 or not times or times[0] <= 0.0:
        return []
    token_ms, step_ms = times
    return [(v + k * step_ms) / token_ms for k, v in enumerate(verify)]


def _numbers(values: object) -> list[float]:
    """A list of finite numbers as evidence has it; empty if it is anything else, as in a damaged import."""
    if not isinstance(values, list | tuple):
        return []
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return numbers if len(numbers) == len(values) else []


def _cost_point(explained: Explanation, place: int) -> CostPoint | None:
    figures = explained.figures
    names = ("proposals_per_pass", "tokens_per_pass", "pass_cost_tokens")
    if not all(isinstance(figures.get(name), int | float) for name in names):
        return None
    proposals, tokens, cost = (float(figures[name]) for name in names)
    return CostPoint(_kind(explained.recommendation), proposals, tokens, cost, place)


def _conditions(m: ModelFindings) -> list[dict[str, Any]]:
    """How it was measured, once for all types that agree, with the checks of each type."""
    told: dict[str, list[str]] = {}
    for t in m.types:
        if words := conditions_words(t.recommendation):
            told.setdefault(words, []).append(_kind(t.recommendation))
    rows = [{"kind": listed(kinds), "words": f"Measured {words}."} for words, kinds in told.items()]
    return rows + [
        {"kind": _kind(t.recommendation), "words": f"Checked: {'; '.join(checks)}."}
        for t in m.types
        if (checks := limits_words(t.recommendation))
    ]


# One prompt type.


def _type(t: TypeFindings, name: str, now: dt.datetime) -> dict[str, Any]:
    r = t.recommendation
    threshold = threshold_of(r.evidence)
    return {
        **_row(r, now),
        "id": name,
        "sentences": t.explanation.sentences,
        "heat": None if t.accepted is None else _heat(t.accepted, alone=not r.tried.beside),
        "proof": _proof(t, name, threshold) if t.pairs else None,
        "looks": [
            {
                "rounds": look.rounds,
                "pairs": look.pairs,
                "gain": _gain(look.ratio),
                "interval": _interval(look.interval),
                "verdict": str(look.verdict),
            }
            for look in t.looks
        ],
        "pair_rows": _pair_rows(t.pairs),
        "flags": _flags(r),
        "command": _command(r),
    }


def _flags(r: Recommendation) -> str:
    """What the server needs for this prompt type; empty for off, and where the flags were not recorded."""
    try:
        return shlex.join(drafting_args(r))
    except AutospecError:
        return ""


def _command(r: Recommendation) -> str:
    """The launch that was measured, with what measuring adds."""
    command = r.evidence.get("command")
    return shlex.join(map(str, command)) if isinstance(command, list) else ""


def _proof(t: TypeFindings, name: str, threshold: float) -> _Figure:
    kind, launches = _kind(t.recommendation), len(launch_names(t.pairs))
    faster = sum(p.log_ratio > 0.0 for p in t.pairs)
    of_launches = "one launch" if launches == 1 else f"{launches} launches"
    told = f"{faster} of {counted(len(t.pairs), 'pair')} from {of_launches} were faster"
    looks = "".join(
        f"; after {counted(look.rounds, 'round')} {_gain(look.ratio)} ({_interval(look.interval)}), {look.verdict}"
        for look in t.looks
    )
    title = f"Every pair{', and how the verdict developed' if t.looks else ''}: {kind}"
    note = "Each dot is one prompt, asked with and without drafting. Dots of one launch share a shape and a colour."
    drawn = proof_figure(t.pairs, t.looks, threshold)
    return _Figure.of(drawn, f"{name}-proof", title, description=f"{told}{looks}.", note=note)


def _pair_rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    launches = launch_names(pairs)
    rows = []
    for p in pairs:
        off_tps, drafted_tps = p.speeds_tps
        rows.append(
            {
                "round": p.off.round,
                "prompt": p.off.prompt_id,
                "launch": launches[p.drafted.launch_id],
                "first": "off" if p.off.position == 0 else "drafting",
                "off_tps": plain_speed(off_tps),
                "drafted_tps": plain_speed(drafted_tps),
                "gain": _gain(math.exp(p.log_ratio)),
                "accepted": "–"
                if p.drafted.drafted is None
                else f"{p.drafted.accepted or 0} of {p.drafted.drafted}",
                "same": "same" if p.same_text else "differs",
            }
        )
    return rows


def _heat(found: AcceptanceMap, *, alone: bool) -> dict[str, Any]:
    """The table of accepted tokens; a cell's level is its colour, its number says the same."""
    # `alone` is False if n-gram modes draft beside the draft model: the table is of the draft model without them.
    largest = found.largest or 1.0
    replayed = found.answers > 0
    rows = []
    for p, cells in zip(found.p_min, found.cells, strict=True):
        shown = []
        for n, cell in zip(found.n_max, cells, strict=True):
            value = cell.per_cycle if replayed else cell.rate
            level = 0 if value is None else min(_HEAT_LEVELS - 1, int(_HEAT_LEVELS * value / largest))
            text = "–" if value is None else f"{value:.1f}" if replayed else _share(value)
            shown.append(
                {
                    "text": text,
                    "rate": _share(cell.rate) if replayed and cell.rate is not None else "",
                    "level": level,
                    "chosen": (n, p) == found.chosen,
                }
            )
        rows.append({"p_min": f"{p:g}", "cells": shown})
    caption = (
        f"Accepted tokens per cycle, and below it the share of proposals that was accepted:"
        f" {counted(found.answers, 'recorded answer')}, replayed for each setting."
        if replayed
        else "Share of proposals that was accepted in the trials that were measured. No recorded answers are stored."
    )
    if not alone:
        caption += " The draft model without the modes beside it."
    return {"columns": found.n_max, "rows": rows, "caption": caption}


# The founding record.


def _record(found: RecordFindings) -> dict[str, Any]:
    record = found.record
    gains, tables = [], []
    for answer in found.answers:
        r = answer.recommendation
        runs = [(Drafting.understood(run["drafting"]), run) for run in r.evidence["runs"]]
        rows = []
        for drafting, run in runs:
            label = "unknown" if drafting is None else "off" if drafting.is_off else drafting.label
            interval = run.get("speedup_ci")
            ends = None if interval is None else (float(interval[0]), float(interval[1]))
            rows.append(
                {
                    "drafting": label,
                    "mean_tps": plain_speed(sum(run["runs_tps"]) / len(run["runs_tps"])),
                    "gain": _gain(run.get("speedup")) if "speedup" in run else "",
                    "interval": _interval(ends) if "speedup" in run else "",
                    "runs": ", ".join(f"{v:.1f}" for v in run["runs_tps"]),
                    "command": " ".join(run.get("command", ())),
                }
            )
            if "speedup" in run and drafting is not None:
                # The verdict is about the best drafting; what is slower is not paid for either.
                label = f"{r.model}, {r.backend}" + (f", n={drafting.n_max}" if len(runs) > 2 else "")
                least = threshold_of(r.evidence)
                gains.append(Gain(label, r.verdict, float(run["speedup"]), ends, least, sure=False))
        title = f"{r.model} on {r.backend}"
        tables.append({"title": title, "rows": rows, "sentences": answer.sentences[:1], "verdict": str(r.verdict),
                       "symbol": _SYMBOLS[r.verdict]})  # fmt: skip
    return {
        "title": record.title,
        "date": record.date.strftime("%d %B %Y"),
        "chip": f"{record.hardware.chip}, {record.hardware.memory_bytes // 2**30} GB",
        "prompt": record.prompt,
        "max_tokens": record.max_tokens,
        "notes": record.notes,
        "tables": tables,
        "gains": _gain_plot(gains, "record", f"The founding record: {record.hardware.chip}"),
    }
