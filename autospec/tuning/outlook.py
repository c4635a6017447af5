"""What is likely of a cell whose proof is not finished, and how long the proof would take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autospec.measure.likely import likely_gain, seconds_to_proof
from autospec.measure.log_ratios import LogRatio, of_pairs, prompt_medians
from autospec.measure.measurements import Pair
from autospec.measure.verdict import decide
from autospec.recommendations import Verdict
from autospec.tuning.cell_run import CellRun
from autospec.tuning.definition import StudyDefinition

__all__ = ["likely_of"]


def likely_of(
    cell: CellRun, proof: Sequence[Pair], search: Sequence[Pair], definition: StudyDefinition, launch_s: float
) -> dict[str, Any] | None:
    """What is likely, for the evidence; ``None`` where the proof is over or nothing is likely.

    Args:
        cell: The cell with its winner and last look.
        proof: Proof pairs of the winner that count.
        search: Its search pairs; they speak where there is no proof, and had a part in choosing it.
        definition: Rule and rounds.
        launch_s: What one launch takes.
    """
    if cell.winner.is_off or (cell.decision is not None and cell.decision.final):
        return None
    threshold = definition.rule.threshold
    pairs = proof
    found = likely_gain(proof, threshold)
    if found is None and not proof:
        pairs = search
        found = likely_gain(search, threshold, chosen_from=max(1, len(cell.trial_values)))
    if found is None:
        return None
    each = min(definition.prompts_per_round, len(cell.prove_prompts))
    pair_s = statistics.fmean(p.off.wall_ms + p.drafted.wall_ms for p in pairs) / 1000.0
    # A launch of each side in a round.
    round_s = each * pair_s + 2.0 * launch_s
    rule = definition.rule.shared() if cell.shares_rate else definition.rule
    seen = prompt_medians(of_pairs(pairs, lambda pair: pair.log_ratio))
    total = len(cell.prove_prompts)

    def would_enable(rounds: int) -> bool:
        # As if the prompts to come were like those that were asked, each round on two new launches.
        projected = [
            LogRatio(
                str(k % total),
                f"off {k // each}",
                f"drafted {k // each}",
                seen[k % total % len(seen)],
                k % 2 == 0,
            )
            for k in range(rounds * each)
        ]
        decision = decide(projected, rounds, rule, complete=rounds * each >= total)
        return decision.verdict is Verdict.ENABLE

    rounds = cell.rounds if proof else 0
    return replace(found, about_s=seconds_to_proof(rule.looks, rounds, round_s, would_enable)).to_json()
