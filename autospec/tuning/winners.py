"""What the search found: comparable trial values, and from them each cell's winner and runner-up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import Pair
from autospec.measure.verdict import Rule
from autospec.tuning.cell import CellRun, TuneContext, acceptance
from autospec.tuning.forecast import Forecast
from autospec.tuning.proof import Proof
from autospec.tuning.space import Space
from autospec.tuning.tasks import Task

__all__ = ["choose_winners", "proof_comes_first", "trial_attributes", "trial_values"]


# One drafting for several prompt types saves launches in the proof and in use; this is worth 1 % of speed.
_CONSOLIDATION = 0.01
# A drafting that a cell's own trials show to be further behind than this is not shared with that cell, whatever its
# prediction: trials and predictions both err, and both must agree that nearly nothing is lost.
_MEASURED_BEHIND = 0.05
# A predicted gain is clear if it is so many times (as a log) the gain that outweighs prompts that were not asked.
_CLEAR = 1.5
# Proofs take so many times as long as expected before the first round: a type needs a second round, or predictions. Four tunes of three
# types took 1.5 to 1.8 times as long.
_PROOFS_TAKE = 1.8
# The search goes on where an untried drafting is expected to be faster than the winner by more than this.
_EXPECTED_BEHIND = 0.05


def choose_winners(
    cells: Sequence[CellRun],
    space: Space,
    threshold: float,
    forecast: Forecast | None = None,
    *,
    over: bool = True,
) -> None:
    """Set each cell's winner (its best drafting, or one nearly as good that more cells can share) and its runner-up.

    The choice is greedy: it takes the drafting that is within 1 % of the best for most of the remaining cells, and was not
    measured to be more than 5 % behind there; of those, one with fewer modes. A cell in which nothing was launched gets
    the drafting with the best expectation, of all such cells; its proof is then its only launch. So it is if the search ended
    before a drafting was launched that is clearly expected to be faster than the tried ones. A forecast values tried
    draftings over all recorded prompts, which are more than the trials asked, and names the runner-up that may be faster on
    others. `threshold` is the least gain that may be enabled, as a fraction. `over` is False while the search may still launch more.
    """
    expected = _expected_best([c for c in cells if not c.trial_values], forecast)
    values = {id(c): _values(c, forecast, expected) for c in cells}
    if over:
        values = {id(c): values[id(c)] | _left_untried(c, forecast, values[id(c)]) for c in cells}
    left = [c for c in cells if values[id(c)]]
    while left:
        good = {id(c): _good(values[id(c)], c.trial_values) for c in left}
        draftings = {d for found in good.values() for d in found}

        def rank(drafting: Drafting, good: dict[int, set[Drafting]] = good) -> tuple[int, int, float, str]:
            sharers = [c for c in left if drafting in good[id(c)]]
            value = statistics.geometric_mean([values[id(c)][drafting] for c in sharers])
            return len(sharers), -len(drafting.beside), value, drafting.key

        chosen = max(draftings, key=rank)
        for cell in [c for c in left if chosen in good[id(c)]]:
            cell.winner = chosen
            rival = None if forecast is None else forecast.rival(cell, chosen)
            tried = _runner_up(chosen, values[id(cell)], cell.trial_values, space, threshold)
            cell.runner_up = rival or tried
            cell.shares_rate = not cell.runner_up.is_off
            left.remove(cell)


def proof_comes_first(
    cells: Sequence[CellRun], context: TuneContext, forecast: Forecast | None, trial_s: float
) -> bool:
    """Whether another trial would take the time for the proofs, of winners whose gain is large and clear by now.

    A trial corrects the predicted costs, and may find a better drafting. Where the budget is short and no better one is expected,
    a verdict for one more prompt type is worth more. Without any trial the winners are the predicted ones; then there must be
    time to prove them all. `trial_s` is what a trial takes; 0 if none has shown it.
    """
    rule = context.definition.rule
    if forecast is None or not all(map(forecast.trusts, context.space.leaders())):
        return False
    forecast.put_together(cells)
    chosen = [replace(c) for c in cells]
    choose_winners(chosen, context.space, rule.threshold, forecast, over=False)
    for cell in chosen:
        if not _is_clear(cell, forecast, rule):
            return False
        cell.history = replace(cell.history, predictions=(forecast.figures(cell, cell.winner), None))
        cell.runner_up = OFF  # it would be proved only if the winner fails
    left_s = context.budget.until_end_s
    proof_s = _PROOFS_TAKE * Proof(chosen, context, lambda _: None).expected_s()
    first = [Task.of(c.cell.key, c.tune_prompts[0]) for c in cells]
    trial_s = trial_s or context.pairing.expected_s(first, chosen[0].winner)
    tried = any(c.trial_values for c in cells)
    return left_s < proof_s + trial_s and (tried or proof_s <= left_s)


def _is_clear(cell: CellRun, forecast: Forecast, rule: Rule) -> bool:
    """Whether a cell's winner is expected to gain much, and no other drafting much more."""
    cautious, best = None if cell.winner.is_off else forecast.cautious(cell, cell.winner), forecast.best(cell)
    if cautious is None or best is None:
        return False
    return cautious >= (1.0 - _EXPECTED_BEHIND) * best[1] and math.log(cautious) > _CLEAR * rule.large_gain


def _good(values: Mapping[Drafting, float], measured: Mapping[Drafting, float]) -> set[Drafting]:
    """The best drafting of a cell, and those that are as good."""
    best = max(values, key=lambda d: (values[d], d.key))
    least = (1.0 - _MEASURED_BEHIND) * measured.get(best, 0.0)
    return {
        d
        for d, v in values.items()
        if d == best or (v >= (1.0 - _CONSOLIDATION) * values[best] and measured.get(d, 0.0) >= least)
    }


def _runner_up(
    winner: Drafting,
    values: Mapping[Drafting, float],
    measured: Mapping[Drafting, float],
    space: Space,
    threshold: float,
) -> Drafting:
    """The best tried drafting of another arm, if it is worth a proof; one of the winner's arm would fail for the same reason."""
    own = space.arm_of(winner)
    others = [
        (v, d.key, d)
        for d, v in values.items()
        if space.arm_of(d) != own and v > 1.0 + threshold and measured.get(d, 0.0) > 1.0
    ]
    return max(others)[2] if others else OFF


def _expected_best(cells: Sequence[CellRun], forecast: Forecast | None) -> set[Drafting]:
    """The drafting of each cell that is expected to be fastest there."""
    if forecast is None:
        return set()
    return {best[0] for c in cells if (best := forecast.best(c)) is not None}


def _values(
    cell: CellRun, forecast: Forecast | None, expected_best: Iterable[Drafting]
) -> dict[Drafting, float]:
    """The value of each drafting that may win in a cell: speed ratio to off, less the luck of few prompts.

    Without a trial these are the draftings that are expected to be best in one of the cells.
    """
    if forecast is None:
        return dict(cell.trial_values)
    if not cell.trial_values:
        return {d: v for d in expected_best if (v := forecast.cautious(cell, d)) is not None}
    values = {}
    for drafting, measured in cell.trial_values.items():
        expected = forecast.cautious(cell, drafting) if forecast.trusts(drafting) else None
        values[drafting] = measured if expected is None else expected
    return values


def _left_untried(
    cell: CellRun, forecast: Forecast | None, tried: Mapping[Drafting, float]
) -> dict[Drafting, float]:
    """The drafting that no trial had time for, if it is expected to be clearly faster than the tried ones with these values."""
    if forecast is None or not tried or (best := forecast.best(cell)) is None:
        return {}
    drafting, expected = best
    clear = drafting not in tried and (1.0 - _EXPECTED_BEHIND) * expected > max(tried.values())
    return {drafting: expected} if clear else {}


# The baseline is timed with every trial. Where it took 1.3 times longer than usual for a prompt, something disturbed it:
# a disturbance only ever adds time, and would make that one drafting look fast.
_STALLED = 1.3
_ENOUGH_TIMES = 3


def trial_values(pairs: Mapping[Drafting, Sequence[Pair]], *, compared: bool = True) -> dict[Drafting, float]:
    """Speed ratios of draftings to off that can be compared with each other; `pairs` has at most one pair of each prompt.

    Prompts of one type differ more than draftings do. A drafting that was asked fewer prompts is compared with the one
    that was asked most, on the prompts that both were asked. `compared` is False for each one's own mean over its prompts.
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
    """What a study keeps of a trial besides its value; there are pairs."""
    rate = acceptance(pairs)
    return {
        "pairs": len(pairs),
        "baseline_tps": round(statistics.geometric_mean([p.off.request_tps for p in pairs]), 3),
        "drafting_tps": round(statistics.geometric_mean([p.drafted.request_tps for p in pairs]), 3),
        "acceptance": None if rate is None else round(rate, 4),
        "same_text": sum(p.same_text for p in pairs),
        "launch_id": pairs[-1].drafted.launch_id,
    }


def _usual_tps(pairs: Mapping[Drafting, Sequence[Pair]]) -> dict[str, float]:
    """Prompt → usual speed without drafting of the pairs' request, where it was timed often enough to tell."""
    times: dict[str, list[float]] = {}
    for own in pairs.values():
        for pair in own:
            times.setdefault(pair.off.prompt_id, []).append(pair.speeds_tps[0])
    return {p: statistics.median(t) for p, t in times.items() if len(t) >= _ENOUGH_TIMES}


def _log_ratios(pairs: Sequence[Pair], usual_tps: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        usual, tps = usual_tps.get(pair.off.prompt_id), pair.speeds_tps[0]
        stalled = usual is not None and tps * _STALLED < usual
        found[pair.off.prompt_id] = pair.log_ratio + (math.log(tps / usual) if stalled and usual else 0.0)
    return found
