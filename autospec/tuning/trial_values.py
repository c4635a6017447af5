"""What the trials of one cell say together: they ask few prompts, not all the same ones, and off is disturbed at times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from autospec.drafting import Drafting
from autospec.measure.measurements import Pair
from autospec.tuning.cell_run import acceptance, geometric_mean

__all__ = ["trial_attributes", "trial_values"]

# Off is timed with every trial. Where it took so much longer for a prompt than it mostly does, something else was at work: what
# disturbs only ever adds time, and would make that one drafting look fast.
_STALLED = 1.3
_ENOUGH_TIMES = 3


def trial_values(pairs: Mapping[Drafting, Sequence[Pair]], *, compared: bool = True) -> dict[Drafting, float]:
    """Speed ratio of every drafting to off, comparable with each other.

    Prompts of one type differ more than draftings do. A drafting that was asked fewer prompts than the one that was asked most
    is held against that one on the prompts that both were asked.

    Args:
        pairs: Of one cell: drafting → its pairs, at most one of each prompt.
        compared: False for each one's own mean over the prompts that it was asked.
    """
    known = {d: _log_ratios(own, _usual_tps(pairs)) for d, own in pairs.items() if own}
    if not known:
        return {}
    base = max(known, key=lambda d: (len(known[d]), statistics.fmean(known[d].values()), d.key))
    level = statistics.fmean(known[base].values())
    values = {}
    for drafting, own in known.items():
        common = [own[p] - known[base][p] for p in own.keys() & known[base].keys()]
        log_ratio = (
            level + statistics.fmean(common) if compared and common else statistics.fmean(own.values())
        )
        values[drafting] = math.exp(log_ratio)
    return values


def trial_attributes(pairs: Sequence[Pair]) -> dict[str, object]:
    """What a trial of a study keeps besides its value."""
    rate = acceptance(pairs)
    return {
        "pairs": len(pairs),
        "baseline_tps": round(geometric_mean([p.off.request_tps for p in pairs]), 3),
        "drafting_tps": round(geometric_mean([p.drafted.request_tps for p in pairs]), 3),
        "acceptance": None if rate is None else round(rate, 4),
        "same_text": sum(p.same_text for p in pairs),
        "launch_id": pairs[-1].drafted.launch_id if pairs else None,
    }


def _usual_tps(pairs: Mapping[Drafting, Sequence[Pair]]) -> dict[str, float]:
    """Prompt → speed of off that is usual there, where it was timed often enough to say."""
    times: dict[str, list[float]] = {}
    for own in pairs.values():
        for pair in own:
            times.setdefault(pair.off.prompt_id, []).append(pair.off.request_tps)
    return {p: statistics.median(t) for p, t in times.items() if len(t) >= _ENOUGH_TIMES}


def _log_ratios(pairs: Sequence[Pair], usual_tps: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        usual, tps = usual_tps.get(pair.off.prompt_id), pair.off.request_tps
        stalled = usual is not None and tps * _STALLED < usual
        found[pair.off.prompt_id] = pair.log_ratio + (math.log(tps / usual) if stalled and usual else 0.0)
    return found
