"""Records: benchmarks that somebody wrote down as TOML, and the verdicts that their numbers support.

A record contains raw runs and nothing derived. Its runs are not paired and use one prompt, so it can argue against drafting
(`disable`) or leave it open (`undecided`); `enable` requires measurements on the machine itself.

`benchmark_markdown` writes such runs as the founding record has them: results table, raw runs, command lines, methodology.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import StudyFileError, did_you_mean
from autospec.files import studies_dir
from autospec.formats import log_percent
from autospec.measure.bench import Comparison, Noise, RunGroup, compare_runs, pooled_noise
from autospec.measure.verdict import DEFAULT_RULE
from autospec.recommendations import (
    BUILD_NOT_RECORDED,
    Recommendation,
    Status,
    StoredRecommendation,
    Verdict,
)

__all__ = [
    "Record",
    "benchmark_markdown",
    "find_record",
    "read_record",
    "recommendations_of",
    "results_table",
    "shipped_records",
]

_TOP = {"kind": str, "name": str, "title": str, "date": dt.date, "notes": list, "hardware": dict, "request": dict,
        "group": list}  # fmt: skip
_HARDWARE = {"id": str, "chip": str, "memory_bytes": int, "cores": int, "os": str, "gpu": str}
_REQUEST = {"prompt": str, "prompt_type": str, "max_tokens": int}
_GROUP = {"backend": str, "build": str, "model": str, "model_file": str, "about": str, "drafting": dict,
          "runs_tps": list, "command": list}  # fmt: skip
_OPTIONAL = frozenset({"title", "notes", "cores", "os", "gpu", "build", "model_file", "about", "command"})
_TYPE_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "a table", dt.date: "a date"}


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded benchmark of one prompt on one machine.

    Attributes:
        name: Importing another record of the same name replaces this one's results.
        title: A heading.
        date: The day of the benchmark.
        hardware: The machine.
        prompt: The prompt.
        prompt_type: The type of the prompt.
        max_tokens: Most tokens generated.
        groups: The runs, one group for each drafting of each model and backend.
        notes: Sentences on the method.
    """

    name: str
    title: str
    date: dt.date
    hardware: Hardware
    prompt: str
    prompt_type: PromptType
    max_tokens: int
    groups: tuple[RunGroup, ...]
    notes: tuple[str, ...] = ()


def shipped_records() -> dict[str, Path]:
    """The records shipped with autospec, by name."""
    return {p.stem: p for p in sorted(studies_dir().glob("*.toml")) if _says_record(p)}


def find_record(name_or_path: str) -> Path:
    """A file by its path, or a shipped record by its name.

    Raises:
        StudyFileError: Neither exists.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_records()
    if path.name == name_or_path and path.name.removesuffix(".toml") in shipped:
        return shipped[path.name.removesuffix(".toml")]
    if path.is_dir():
        raise StudyFileError(f"{name_or_path} is a folder.", "Name a file in it (TOML or JSON).")
    raise StudyFileError(
        f"There is no file and no shipped record {name_or_path}.",
        f"Shipped records: {', '.join(shipped) or 'none'}.",
    )


def read_record(path: Path) -> Record:
    """Read and check a record.

    Raises:
        StudyFileError: It cannot be read, or a key is unknown, missing or wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError(f"The record {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # of the text, of a number's digits, of nesting
        raise StudyFileError(f"The record {path} is not valid TOML: {error}.") from error
    where = str(path)
    if data.get("kind") != "record":
        raise StudyFileError(
            f'{where} is not a record: it lacks kind = "record".',
            "Use a study definition with `autospec tune --study FILE`.",
        )
    _check(data, _TOP, where, "")
    _check(data["hardware"], _HARDWARE, where, "hardware.")
    _check(data["request"], _REQUEST, where, "request.")
    request = data["request"]
    try:
        prompt_type = PromptType(request["prompt_type"])
    except ValueError:
        raise StudyFileError(
            f"{where}: request.prompt_type {request['prompt_type']!r} is not a prompt type.",
            f"Choose one of {', '.join(PromptType)}.",
        ) from None
    groups = tuple(_group(g, f"{where}: group {i}") for i, g in enumerate(data["group"], start=1))
    _check_groups(groups, where)
    return Record(
        name=data["name"],
        title=data.get("title", data["name"]),
        date=data["date"],
        hardware=Hardware.from_json(data["hardware"]),
        prompt=request["prompt"],
        prompt_type=prompt_type,
        max_tokens=request["max_tokens"],
        groups=groups,
        notes=tuple(map(str, data.get("notes", ()))),
    )


def recommendations_of(record: Record) -> list[StoredRecommendation]:
    """One recommendation for each model and backend of the record, about the best drafting tried.

    The statistics are those of `autospec.measure.bench`, at the error rate and threshold of `DEFAULT_RULE`.
    """
    noise = pooled_noise(g.runs_tps for g in record.groups)
    by_subject: dict[tuple[str, str, str], list[RunGroup]] = {}
    for group in record.groups:
        by_subject.setdefault((group.model, group.backend, group.build), []).append(group)
    return [_recommendation(record, groups, noise) for groups in by_subject.values()]


def _recommendation(record: Record, groups: Sequence[RunGroup], noise: Noise | None) -> StoredRecommendation:
    off = next(g for g in groups if g.drafting.is_off)
    compared = {
        g: compare_runs(off.runs_tps, g.runs_tps, pooled=noise, level=DEFAULT_RULE.error_rate)
        for g in groups
        if g is not off
    }
    best = max(compared, key=lambda g: compared[g].center)
    verdict, sentences = _judge(compared[best], best, off)
    sentences += [_gain(g, c) for g, c in compared.items() if g is not best]
    evidence = {
        "record": record.name,
        "hardware": record.hardware.to_json(),
        "unpaired": {"off": len(off.runs_tps), "drafting": len(best.runs_tps)},
        "max_tokens": record.max_tokens,
        "runs": [
            {
                "drafting": g.drafting.to_json(),
                "runs_tps": list(g.runs_tps),
                **({"command": list(g.command)} if g.command else {}),
                **(_ratio_json(compared[g]) if g in compared else {}),
            }
            for g in groups
        ],
        "noise": None if noise is None else {"sd": round(noise.sd, 5), "df": noise.df},
        "error_rate": DEFAULT_RULE.error_rate,
        "about": off.about,
        "model_file": off.model_file,
        "notes": list(record.notes),
    }
    recommendation = Recommendation(
        model=off.model,
        model_path="",
        backend=off.backend,
        backend_build=off.build or BUILD_NOT_RECORDED,
        prompt_type=record.prompt_type,
        verdict=verdict,
        drafting=OFF,
        tried=best.drafting,
        baseline_tps=off.mean_tps,
        drafting_tps=best.mean_tps,
        speedup=compared[best].ratio,
        speedup_ci=compared[best].interval,
        pairs=0,
        acceptance=None,
        reason=". ".join(sentences) + ".",
        status=Status.IMPORTED,
        created_at=dt.datetime.combine(record.date, dt.time(), dt.UTC).isoformat(),
        evidence=evidence,
    )
    identity = [record.name, record.hardware.id, off.model, off.backend, off.build, str(record.prompt_type)]
    key = "r-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    return StoredRecommendation(key, record.hardware, recommendation)


def _judge(c: Comparison, best: RunGroup, off: RunGroup) -> tuple[Verdict, list[str]]:
    """The verdict, and sentences without their full stops."""
    gain = f"{_gain(best, c)} ({best.mean_tps:.1f} instead of {off.mean_tps:.1f} tok/s)"
    needed = f"+{100 * DEFAULT_RULE.threshold:g} %"
    if c.interval is None:
        return Verdict.UNDECIDED, [gain, "No run was repeated, so the noise is unknown"]
    if c.single:
        assert c.noise is not None
        runs = "These are single runs" if c.off_runs == c.drafted_runs == 1 else "One side is a single run"
        basis = f"{runs}, and {round(100 * c.noise.sd, 1):g} % noise per run is assumed"
    else:
        equal = c.off_runs == c.drafted_runs
        runs = f"Each side has {c.off_runs}" if equal else f"The sides have {c.off_runs} and {c.drafted_runs}"
        basis = f"{runs} runs of one prompt, which show {log_percent(c.low)} to {log_percent(c.high)}"
    threshold = math.log1p(DEFAULT_RULE.threshold)
    if c.high < threshold:
        lost = "The loss is larger than the noise"
        below = f"That is below the {needed} that enabling requires"
        return Verdict.DISABLE, [gain, basis, lost if c.high < 0 and c.single else below]
    if c.low > threshold:
        promising = "That is promising, but one prompt does not represent its type: measure on this machine"
        return Verdict.UNDECIDED, [gain, basis, promising]
    return Verdict.UNDECIDED, [gain, basis, f"That is not enough evidence for a gain of {needed}"]


def _gain(group: RunGroup, c: Comparison) -> str:
    drafting = group.drafting
    name = drafting.label if drafting.n_max is None or drafting.beside else f"n_max {drafting.n_max}"
    size = f"{abs(100.0 * math.expm1(c.center)):.1f} %"
    return f"With {name} it is {size} {'slower' if c.center < 0 else 'faster'}"


def _ratio_json(c: Comparison) -> dict[str, Any]:
    return {
        "speedup": round(c.ratio, 4),
        "speedup_ci": None if c.interval is None else [round(v, 4) for v in c.interval],
    }


def _group(data: Any, where: str) -> RunGroup:
    if not isinstance(data, dict):
        raise StudyFileError(f"{where} must be a table.", "Write [[group]] above its keys.")
    _check(data, _GROUP, where, "")
    try:
        drafting = Drafting.from_json(data["drafting"])
    except (ValueError, KeyError, TypeError) as error:
        raise StudyFileError(f"{where}: drafting is invalid: {error}.") from error
    runs = data["runs_tps"]
    if not runs or not all(
        isinstance(r, int | float) and not isinstance(r, bool) and 0 < r < math.inf for r in runs
    ):
        raise StudyFileError(f"{where}: runs_tps must be speeds above 0, e.g. [75.5, 75.1], not {runs!r}.")
    command = data.get("command", [])
    if not all(isinstance(word, str) for word in command):
        raise StudyFileError(f"{where}: command must be a list of strings, not {command!r}.")
    return RunGroup(
        backend=data["backend"],
        build=data.get("build", ""),
        model=data["model"],
        drafting=drafting,
        runs_tps=tuple(map(float, runs)),
        command=tuple(command),
        about=data.get("about", ""),
        model_file=data.get("model_file", ""),
    )


def _check_groups(groups: Sequence[RunGroup], where: str) -> None:
    seen: dict[tuple[str, str, str], list[Drafting]] = {}
    for group in groups:
        draftings = seen.setdefault((group.model, group.backend, group.build), [])
        if group.drafting in draftings:
            raise StudyFileError(
                f"{where}: {group.model} on {group.backend} has two groups with the drafting {group.drafting.label}.",
                "Put all runs of a drafting into one group.",
            )
        draftings.append(group.drafting)
    for (model, backend, _build), draftings in seen.items():
        if OFF not in draftings:
            raise StudyFileError(f"{where}: {model} on {backend} has no runs without drafting.")
        if len(draftings) == 1:
            raise StudyFileError(f"{where}: {model} on {backend} has no runs with drafting.")
    if not seen:
        raise StudyFileError(f"{where}: [[group]] is missing.", "A record needs runs.")


def _check(data: Mapping[str, Any], keys: Mapping[str, type], where: str, prefix: str) -> None:
    for key in data:
        if key not in keys:
            raise StudyFileError(f"{where}: there is no key {prefix}{key}.", did_you_mean(key, keys))
    for key, kind in keys.items():
        if key not in data:
            if key not in _OPTIONAL:
                raise StudyFileError(f"{where}: {prefix}{key} is missing.")
            continue
        value = data[key]
        wrong = not isinstance(value, kind) or isinstance(value, (bool, dt.datetime))
        if wrong or (kind is int and value < 1):
            raise StudyFileError(f"{where}: {prefix}{key} must be {_TYPE_NAMES[kind]}, not {value!r}.")


def _says_record(path: Path) -> bool:
    return 'kind = "record"' in path.read_text(encoding="utf-8")


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
        text = f"- {group.model} with {group.drafting.label}: {_gain_of(c.center)}"
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
        lines.append(f"{text} ({_gain_of(c.low)} to {_gain_of(c.high)}): {word}.")
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


def _gain_of(log_ratio: float) -> str:
    """A gain as the reference benchmark writes it, without a space."""
    return log_percent(log_ratio).replace(" ", "")
