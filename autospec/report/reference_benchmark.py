"""The reference benchmark as Markdown: results table, raw runs, command lines, methodology."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from autospec.drafting import Drafting
from autospec.formats import log_percent
from autospec.measure.bench import RunGroup, compare_runs, pooled_noise
from autospec.measure.verdict import DEFAULT_RULE

__all__ = ["benchmark_markdown", "results_table"]

_BACKEND_HEADINGS = {
    "llama-server": "GGUF Backend (llama-server)",
    "embedded": "GGUF Backend (embedded llama.cpp server)",
    "mlx": "MLX Backend",
    "llama-cpp-python": "GGUF Backend (llama-cpp-python)",
    "attached": "Attached Server",
}
# An interval wider than a factor of ten says nothing.
_TOO_WIDE = math.log(10)


def benchmark_markdown(
    runs: Sequence[RunGroup],
    *,
    title: str,
    date: str,
    hardware: str,
    prompt: str,
    max_tokens: int,
    methodology: Sequence[str] = (),
) -> str:
    """The whole document, without a final newline. `methodology` are sentences; `date` is an ISO 8601 day."""
    drafts = dict.fromkeys(_draft_name(g.drafting) for g in runs if not g.drafting.is_off)
    by_backend: dict[str, list[RunGroup]] = {}
    for group in runs:
        by_backend.setdefault(group.backend, []).append(group)
    facts = (
        f"**Date:** {date}",
        f"**Hardware:** {hardware}",
        f'**Prompt:** "{prompt}"',
        f"**Max Tokens:** {max_tokens}",
        f"**Draft Model:** {', '.join(drafts) or 'none'}",
    )
    blocks = [f"# {title}", "\n".join(facts), "## Results"]
    for backend, groups in by_backend.items():
        blocks += [f"### {_heading(backend)}", results_table(groups)]
        if all(g.request_tps for g in groups):
            whole = [replace(g, runs_tps=g.request_tps) for g in groups]
            blocks += ["Whole requests, prompt processing included:", results_table(whole)]
    blocks += ["## Conclusion", _conclusion(runs), "## Raw Data"]
    for backend, groups in by_backend.items():
        blocks.append(f"### {_heading(backend)}")
        blocks += ["\n".join(_raw(g, _draftings(groups))) for g in groups]
    if methodology:
        blocks += ["## Methodology", "\n".join(f"- {sentence}" for sentence in methodology)]
    return "\n\n".join(blocks)


def results_table(groups: Sequence[RunGroup]) -> str:
    """A row for each model, a column for each drafting; a single drafting gets a column for the difference.

    Without any drafting there is one column: a running server, measured as it is.
    """
    draftings = _draftings(groups)
    if not draftings:
        rows = [f"| {g.model} | {_speed(g)} |" for g in groups]
        return "\n".join(["| Model | As It Runs |", "|-------|------------|", *rows])
    cells = {(g.model, g.drafting): g for g in groups}
    models = list(dict.fromkeys(g.model for g in groups))
    off = next(g.drafting for g in groups if g.drafting.is_off)
    if len(draftings) == 1:
        lines = [
            "| Model | Without Draft | With Draft | Difference |",
            "|-------|--------------|------------|------------|",
        ]
        for model in models:
            without, with_ = cells[model, off], cells[model, draftings[0]]
            lines.append(f"| {model} | {_speed(without)} | {_speed(with_)} | {_difference(with_, without)} |")
        return "\n".join(lines)
    names = [f"With {_column(d, draftings)}" for d in draftings]
    lines = [
        f"| Model | Without Draft | {' | '.join(names)} |",
        f"|-------|--------------|{'|'.join('-' * (len(n) + 2) for n in names)}|",
    ]
    for model in models:
        row = [cells.get((model, d)) for d in (off, *draftings)]
        fastest = max((g for g in row if g is not None), key=lambda g: g.mean_tps)
        texts = []
        for group in row:
            if group is None:
                texts.append("–")
                continue
            speed = f"**{_speed(group)}**" if group is fastest else _speed(group)
            assert row[0] is not None
            texts.append(speed if group.drafting.is_off else f"{speed} ({_difference(group, row[0])})")
        lines.append(f"| {model} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _conclusion(groups: Sequence[RunGroup]) -> str:
    if not _draftings(groups):
        return "Nothing was compared: this server's drafting is fixed when it starts."
    noise = pooled_noise(g.runs_tps for g in groups)
    lines = []
    for group in groups:
        if group.drafting.is_off:
            continue
        off = next(
            g for g in groups if g.drafting.is_off and (g.model, g.backend) == (group.model, group.backend)
        )
        c = compare_runs(off.runs_tps, group.runs_tps, pooled=noise, level=DEFAULT_RULE.error_rate)
        text = f"- {group.model} with {group.drafting.label}: {_gain(c.center)}"
        if c.interval is None:
            lines.append(f"{text}; no run was repeated, so the noise is unknown.")
            continue
        if c.high - c.low > _TOO_WIDE:
            lines.append(f"{text}; the runs are too few or vary too much for a conclusion.")
            continue
        if c.low > 0:
            word = "drafting is faster"
        elif c.high < 0:
            word = "drafting is slower"
        else:
            word = "no difference that these runs can show"
        lines.append(f"{text} ({_gain(c.low)} to {_gain(c.high)}): {word}.")
    lines += ["", "This holds for one prompt only; `autospec tune` measures prompt types, in pairs."]
    return "\n".join(lines)


def _raw(group: RunGroup, draftings: Sequence[Drafting]) -> list[str]:
    if not draftings:
        draft = "as it runs"
    elif group.drafting.is_off:
        draft = "no draft"
    elif len(draftings) == 1:
        draft = f"with draft {_draft_name(group.drafting)}"
    elif _told_by_n_max(draftings):
        draft = f"draft_n={group.drafting.n_max}"
    else:
        draft = group.drafting.label
    lines = [f"**{group.model} ({draft}):**"]
    if group.command:
        lines += ["```", _wrapped(group.command), "```"]
    for number, speed in enumerate(group.runs_tps, start=1):
        remark = f" ({group.remarks[number - 1]})" if group.remarks else ""
        lines.append(f"- Run {number}: {speed:.1f} tok/s{remark}")
    if len(group.runs_tps) > 1:
        lines.append(f"- **Average: {_speed(group)}**")
    return lines


def _wrapped(command: Sequence[str]) -> str:
    """The command with a line for the common arguments, and one for each flag of a model or drafting."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word in ("-m", "--model", "-md", "--model-draft", "--spec-type", "--draft-max"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines if line)


def _draftings(groups: Sequence[RunGroup]) -> list[Drafting]:
    return list(dict.fromkeys(g.drafting for g in groups if not g.drafting.is_off))


def _column(drafting: Drafting, draftings: Sequence[Drafting]) -> str:
    """What distinguishes this drafting from the others: ``Draft (n=8)`` if that is n_max."""
    if len(draftings) <= 1:
        return "Draft"
    return f"Draft (n={drafting.n_max})" if _told_by_n_max(draftings) else f"Draft ({drafting.label})"


def _told_by_n_max(draftings: Sequence[Drafting]) -> bool:
    numbers = {d.n_max for d in draftings}
    return None not in numbers and len(numbers) == len(draftings) and not any(d.beside for d in draftings)


def _draft_name(drafting: Drafting) -> str:
    return PurePath(drafting.draft).name.removesuffix(".gguf") if drafting.draft else str(drafting.mode)


def _heading(backend: str) -> str:
    return _BACKEND_HEADINGS.get(backend, f"{backend} Backend")


def _speed(group: RunGroup) -> str:
    return f"{group.mean_tps:.1f} tok/s"


def _difference(group: RunGroup, off: RunGroup) -> str:
    # Whole percents are enough for large differences.
    percent = 100.0 * (group.mean_tps / off.mean_tps - 1.0)
    return f"{percent:+.0f}%" if abs(percent) >= 10 else f"{percent:+.1f}%"


def _gain(log_ratio: float) -> str:
    """A gain as the reference benchmark writes it, without a space."""
    return log_percent(log_ratio).replace(" ", "")
