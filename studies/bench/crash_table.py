"""The kills of `crash_safety` and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.bench.crash_phases import PHASES, Phase

__all__ = ["Kill", "broken", "table"]


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9 and the checks after it; counts are over the whole home so far.

    `aimed` and `hit` are the intended phase and the one in the database; `ended_s` is the time until the last process had ended;
    `failed` has exit codes other than 0 of earlier starts; `finished` counts earlier starts that reached their recommendation.
    """

    aimed: str
    hit: str
    written: bool
    servers: int
    measurements: int
    lost: int
    orphans: int
    ended_s: float
    torn: int
    unsound: bool
    twice: int
    failed: tuple[str, ...]
    finished: int


def broken(kills: Sequence[dict[str, Any]]) -> bool:
    """True if anything was lost, left over, torn or done twice, or a start failed."""
    return any(k[name] for k in kills for name in ("lost", "orphans", "torn", "unsound", "twice", "failed"))


def table(
    kills: Sequence[dict[str, Any]],
    final: Sequence[dict[str, Any]],
    lengths_s: dict[str, float],
    patience_s: float,
) -> str:
    """Two Markdown tables: the phases that were hit, and the checks; `patience_s` is the time limit for processes to end."""
    hits, aims = Counter(k["hit"] for k in kills), Counter(k["aimed"] for k in kills)
    lines = [
        "| phase of the tune | its length | kills aimed at it | kills that hit it |",
        "|---|---|---|---|",
    ]
    for phase in PHASES:
        length = f"{lengths_s[phase]:.1f} s" if phase in lengths_s else "–"
        lines.append(f"| {phase} | {length} | {aims[phase]} | {hits[phase]} |")
    written = sum(k["written"] for k in kills if k["hit"] == Phase.WRITING)
    ends = sorted(k["ended_s"] for k in kills) or [0.0]
    figures = {
        "kill -9 in the middle of a tune": len(kills),
        "of them with servers running": sum(k["servers"] > 0 for k in kills),
        "at the writing: before, after the recommendation was stored": f"{hits[Phase.WRITING] - written}, {written}",
        "tunes that came to their end between kills and started over": sum(k["finished"] for k in kills),
        "starts that ended with an error": sum(len(k["failed"]) for k in kills),
        "finished measurements in the database": max((k["measurements"] for k in kills), default=0),
        "finished measurements lost": max((k["lost"] for k in kills), default=0),
        f"orphan processes after {patience_s:.0f} s": sum(k["orphans"] for k in kills),
        "until the last process had ended": f"median {ends[len(ends) // 2]:.2f} s, longest {ends[-1]:.2f} s",
        "torn recommendations": max((k["torn"] for k in kills), default=0),
        "databases not sound": sum(k["unsound"] for k in kills),
        "trials done twice": max((k["twice"] for k in kills), default=0),
        "the last, undisturbed tune ended with": "; ".join(
            f"{r['verdict']}, {r['status']}, {r['pairs']} pairs" for r in final
        )
        or "nothing",
    }
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in figures.items()]
    lines += [f"\nA start ended with {words}" for k in kills for words in k["failed"]]
    return "\n".join(lines) + "\n"
