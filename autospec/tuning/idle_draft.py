"""A draft that is loaded and not used is not `off`: how far it is from it, measured once for each draft.

Where drafting goes with the request, a client can turn it off by asking for no tokens (`num_draft_tokens: 0`). The draft
then still computes every prompt, keeps its memory, and has batching and the prompt cache turned off. Verdicts are against a
process without a draft, so this changes none; it is what a user pays who leaves the draft loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from autospec.backends.protocol import Completion, Idles, Server
from autospec.drafting import Drafting
from autospec.errors import BackendError
from autospec.measure.asking import Asking
from autospec.measure.statistics import signed_rank_estimate
from autospec.prompts.suite import Prompt
from autospec.tuning.budget import Budget
from autospec.tuning.cell_run import CellRun
from autospec.tuning.launches import Launches
from autospec.tuning.rig import Rig

__all__ = ["compare_idle_drafts", "idle_draft_figures", "idle_draft_of"]

# Under this name a study keeps the figures: draft's path → `idle_draft_figures`.
_NOTE = "idle_draft"
# So many pairs are the least that give an interval at this level (1 in 2⁵ for each end).
_PAIRS = 5
_LEVEL = 0.05
# Of the whole budget; at least one pair is measured.
_SHARE = 0.08


def compare_idle_drafts(cells: Sequence[CellRun], rig: Rig, asking: Asking, *, afresh: bool) -> None:
    """Measure the draft of every winner, loaded and not used, against off, and note it in the cells' studies.

    Args:
        cells: Of one main model; any cell's prompts will do.
        rig: The tools.
        asking: How prompts are asked.
        afresh: False if what an earlier run measured still counts.
    """
    known: dict[str, Any] = {}
    for cell in () if afresh else cells:
        known |= cell.study.noted(_NOTE) or {}
    winners = {c.winner.draft: c.winner for c in cells if c.winner.draft is not None and not c.decided}
    prompts = [p for turn in zip_longest(*(c.tune_prompts for c in cells)) for p in turn if p is not None]
    # The first winner is proven first: its launch is the one that should be left running.
    for draft, winner in reversed(winners.items()):
        if draft in known:
            continue
        name = Path(draft).name
        try:
            figures = idle_draft_figures(rig.launches, asking, winner, prompts, rig.budget)
        except BackendError as error:
            rig.progress.tell(f"{name}, loaded and not used, could not be compared with off: {error.message}")
            continue
        if figures is not None:
            known[draft] = figures
            rig.progress.tell(
                f"{name}, loaded and not used: {100 * (figures['ratio'] - 1):+.1f} % against off, which has no draft."
            )
    if known:
        for cell in cells:
            cell.study.note(_NOTE, known)


def idle_draft_of(cell: CellRun) -> dict[str, Any] | None:
    """What is known of the winner's draft, loaded and not used."""
    known: dict[str, Any] = cell.study.noted(_NOTE) or {}
    return known.get(cell.winner.draft or "")


def idle_draft_figures(
    launches: Launches, asking: Asking, drafting: Drafting, prompts: Sequence[Prompt], budget: Budget
) -> dict[str, Any] | None:
    """Compare a launch whose draft is loaded and not used with off, prompt by prompt.

    Args:
        launches: Where servers come from.
        asking: How prompts are asked.
        drafting: Whose launch is asked without drafting.
        prompts: The first ones are asked, each of both.
        budget: Of the tune; a small part of it is spent here.

    Returns:
        JSON values: ``ratio`` (speed of whole requests, idle draft ÷ off), ``interval`` (90 %, ``None`` for too few
        pairs), ``prompt_ratio`` and ``decode_ratio`` (the same for prompt and generation), ``pairs``, and ``same_text``.
        ``None`` where the servers cannot be asked so.

    Raises:
        BackendError: A launch or a request failed.
    """
    if not prompts or not isinstance(launches.drafted(drafting), Idles):
        return None
    until_s = budget.spent_s + _SHARE * budget.total_s
    chosen = [prompts[i % len(prompts)] for i in range(_PAIRS)]
    # Where only one launch fits, all first halves run before all second ones.
    batches = [[p] for p in chosen] if launches.resident == 2 else [chosen]
    found: list[tuple[Completion, Completion]] = []
    for number, batch in enumerate(batches):
        if number and budget.spent_s > until_s:
            break
        sides = (True, False) if number % 2 == 0 else (False, True)  # the draft's launch runs already
        halves = {}
        for idle in sides:
            server = _server(launches, drafting, idle=idle)
            halves[idle] = [server.complete(asking.request(prompt)) for prompt in batch]
        found += zip(halves[False], halves[True], strict=True)
    estimate = signed_rank_estimate([math.log(off.wall_ms / idle.wall_ms) for off, idle in found], _LEVEL)
    ends = [round(v, 4) for v in estimate.interval] if math.isfinite(estimate.low) else None
    return {
        "ratio": round(estimate.ratio, 4),
        "interval": ends,
        "prompt_ratio": _ratio([(off.prompt_ms, idle.prompt_ms) for off, idle in found]),
        "decode_ratio": _ratio([(off.predicted_ms, idle.predicted_ms) for off, idle in found]),
        "pairs": len(found),
        "same_text": sum(off.text == idle.text for off, idle in found),
    }


def _server(launches: Launches, drafting: Drafting, *, idle: bool) -> Server:
    if not idle:
        return launches.off()
    server = launches.drafted(drafting)
    assert isinstance(server, Idles)
    return server.idle()


def _ratio(times: Sequence[tuple[float, float]]) -> float | None:
    """Speed of the second ÷ the first, over all together."""
    off_ms, idle_ms = (sum(column) for column in zip(*times, strict=True))
    return round(off_ms / idle_ms, 4) if off_ms > 0 and idle_ms > 0 else None
