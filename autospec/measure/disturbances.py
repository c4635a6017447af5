"""Decide which pairs were disturbed, and which causes belong to the drafting itself.

A passing cause spoils a pair, and the pair is measured again. A cause that returns whenever the drafting (or off) runs belongs
to it: a draft model that makes memory short, or heats the processor, does so for its users too. Leaving out such pairs would
favour the drafting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from autospec.hardware.state import (
    COOLED,
    HEATED,
    Limits,
    MachineState,
    disturbed,
    heat_changed,
    tolerated_cores,
)
from autospec.measure.measurements import Measurement, Pair, pair_up

__all__ = [
    "LIMITS",
    "Cause",
    "busy",
    "cause_of",
    "disturbance",
    "lasting",
    "left_out",
    "left_out_sentence",
    "swaps",
]

LIMITS = Limits()
# Number of halves of one side that must show a cause before it belongs to that side: as often as one pair is measured.
_LASTS_FROM = 3


class Cause(StrEnum):
    """What spoils a pair. Values are evidence keys that users read."""

    HEAT_OFF = "more heat without drafting"
    HEAT_DRAFTED = "more heat with drafting"
    SWAP_OFF = "swapping without drafting"
    SWAP_DRAFTED = "swapping with drafting"
    SWAP_BOTH = "swapping"
    LOAD = "load of other processes"
    GPU_LOAD = "load of other processes on the GPU"
    CHANGE = "power or heat changed"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Why a pair should be measured again; `sentence` is for users."""

    cause: Cause
    sentence: str


def cause_of(pair: Pair, lasting: frozenset[Cause] = frozenset()) -> Disturbance | None:
    """Return what disturbed a pair; ``None`` if nothing did. Causes in `lasting` disturb nothing.

    A steady influence (a video that plays all the time, a processor that heat always slows) slows both halves and keeps
    their ratio. A change between or within the halves does not.
    """
    off, drafted = (MachineState.from_json(half.machine) for half in (pair.off, pair.drafted))
    first, second = (off, drafted) if pair.off.position == 0 else (drafted, off)
    for heat in _heat(off, drafted):
        if heat.cause not in lasting:
            return heat
    first_level, second_level = (
        _without_rates(state, heat=_warmer(off, drafted) != 0) for state in (first, second)
    )
    reason = disturbed(first_level) or disturbed(second_level, first_level)
    if reason:
        return Disturbance(Cause.CHANGE, reason)
    swapping = _swapping(off, drafted)
    if swapping is not None and not _swaps(swapping.cause) <= lasting:
        return swapping
    slack = sum(LIMITS.slack_core_s / max(state.window_s, 1e-3) for state in (first, second))
    difference = abs(first.other_load + first.steal - second.other_load - second.steal)
    if difference > _load_limit(first) + slack:
        return Disturbance(
            Cause.LOAD, f"The load of other processes changed by {difference:.1f} cores within the pair."
        )
    gpu = abs((first.gpu_other_load or 0.0) - (second.gpu_other_load or 0.0))
    if gpu > LIMITS.gpu_load and None not in (first.gpu_other_load, second.gpu_other_load):
        return Disturbance(
            Cause.GPU_LOAD,
            f"The load of other processes on the GPU changed by {100 * gpu:.0f} % within the pair.",
        )
    return None


def disturbance(pair: Pair, lasting: frozenset[Cause] = frozenset()) -> str:
    """Say why a pair should be measured again; empty if nothing disturbed it. See `cause_of`."""
    found = cause_of(pair, lasting)
    return "" if found is None else found.sentence


def lasting(rows: Iterable[Measurement]) -> frozenset[Cause]:
    """Return the causes that came with one side of a comparison so often that they belong to it.

    `rows` are all halves of one drafting's comparison with off in one cell, repeated ones included, so that a resumed tune counts
    the same pairs.
    """
    # Off and drafting alternate: heat is compared between neighbours in time.
    swaps: Counter[bool] = Counter()
    heat: Counter[Cause] = Counter()
    before: dict[tuple[int, str], Measurement] = {}
    for row in sorted(rows, key=lambda m: m.started_at):
        if MachineState.from_json(row.machine).swap_in_bytes > LIMITS.swap_in_bytes:
            swaps[row.drafting.is_off] += 1
        key = (row.round, row.prompt_id)
        other = before.pop(key, None)
        if other is None or other.drafting.is_off == row.drafting.is_off:
            before[key] = row
            continue
        off, drafted = (other, row) if other.drafting.is_off else (row, other)
        found = _heat(MachineState.from_json(off.machine), MachineState.from_json(drafted.machine))
        heat.update({disturbance.cause for disturbance in found})
    found_causes = set()
    for against, in_favour, counts in (
        (Cause.SWAP_DRAFTED, Cause.SWAP_OFF, (swaps[False], swaps[True])),
        (Cause.HEAT_DRAFTED, Cause.HEAT_OFF, (heat[Cause.HEAT_DRAFTED], heat[Cause.HEAT_OFF])),
    ):
        # If a cause that slows off counts, one that slows the drafting counts too. Otherwise the comparison is biased.
        if max(counts) >= _LASTS_FROM:
            found_causes.add(against)
        if counts[1] >= _LASTS_FROM:
            found_causes.add(in_favour)
    return frozenset(found_causes)


def left_out(rows: Iterable[Measurement], lasts: frozenset[Cause]) -> dict[str, int]:
    """Count the pairs of one comparison that do not count, by cause; `lasts` are the lasting causes of all its halves."""
    causes = Counter(str(d.cause) for pair in pair_up(rows) if (d := cause_of(pair, lasts)) is not None)
    return dict(causes.most_common())


def left_out_sentence(counts: Mapping[str, int]) -> str:
    """Describe the result of `left_out`; empty if every pair counts."""
    total = sum(counts.values())
    if not total:
        return ""
    reasons = ", ".join(f"{cause} ({count})" for cause, count in counts.items())
    return f"{total} {'pair does' if total == 1 else 'pairs do'} not count: {reasons}."


def swaps(pair: Pair) -> bool:
    """Return True if memory was short during either half of a pair."""
    states = (MachineState.from_json(half.machine) for half in (pair.off, pair.drafted))
    return any(state.swap_in_bytes > LIMITS.swap_in_bytes for state in states)


def _load_limit(state: MachineState) -> float:
    """Cores that other processes may use."""
    return tolerated_cores(state.cores, on_metal=state.on_metal, limits=LIMITS)


def busy(state: MachineState) -> bool:
    """Return True if other programs, or the hypervisor, use too much of the processor or the GPU for a measurement."""
    slack = LIMITS.slack_core_s / max(state.window_s, 1e-3)
    if (state.gpu_other_load or 0.0) > LIMITS.gpu_load:
        return True
    return state.other_load + state.steal > _load_limit(state) + slack


def _without_rates(state: MachineState, *, heat: bool) -> MachineState:
    """The state reduced to power and heat levels; the caller compares the rates between halves, and the levels if `heat`."""
    counted = state.throttles is not None
    return replace(
        state,
        other_load=0.0,
        steal=0.0,
        swap_in_bytes=0,
        gpu_other_load=None,
        thermal="unknown" if counted or heat else state.thermal,
        throttles=None,
        changed="" if heat and state.changed in (HEATED, COOLED) else state.changed,
    )


def _warmer(off: MachineState, drafted: MachineState) -> int:
    """Above 0 if the half without drafting was the hotter one, where a system tells a level of heat and no count; else below 0."""
    if (off.throttles, drafted.throttles) != (None, None) or "unknown" in (off.thermal, drafted.thermal):
        return 0
    # By the level at the half's end; where that is the same, by what it was before.
    ranks = [
        (state.thermal == "throttled", (state.changed == COOLED) - (state.changed == HEATED))
        for state in (off, drafted)
    ]
    return (ranks[0] > ranks[1]) - (ranks[0] < ranks[1])


def _heat(off: MachineState, drafted: MachineState) -> list[Disturbance]:
    """More heat in one half than in the other: of the processor by its count, or its level, of a GPU by its state at the half's end."""
    found = []
    if heat_changed(off, drafted):
        hotter_off = (off.throttles or 0) / off.window_s > (drafted.throttles or 0) / drafted.window_s
        word = "without" if hotter_off else "with"
        found.append(
            Disturbance(
                Cause.HEAT_OFF if hotter_off else Cause.HEAT_DRAFTED,
                f"Heat slowed the processor more often {word} drafting "
                f"({off.throttles} times in {off.window_s:.0f} s without, {drafted.throttles} in {drafted.window_s:.0f} s with it).",
            )
        )
    if warmer := _warmer(off, drafted):
        cause, word = (Cause.HEAT_OFF, "without") if warmer > 0 else (Cause.HEAT_DRAFTED, "with")
        found.append(Disturbance(cause, f"Heat slowed the processor more {word} drafting."))
    if None not in (off.gpu_heat, drafted.gpu_heat) and off.gpu_heat != drafted.gpu_heat:
        cause, word = (Cause.HEAT_OFF, "without") if off.gpu_heat else (Cause.HEAT_DRAFTED, "with")
        found.append(Disturbance(cause, f"Heat slowed the GPU {word} drafting only."))
    return found


def _swapping(off: MachineState, drafted: MachineState) -> Disturbance | None:
    sides = [state.swap_in_bytes > LIMITS.swap_in_bytes for state in (off, drafted)]
    if not any(sides):
        return None
    cause = Cause.SWAP_BOTH if all(sides) else Cause.SWAP_OFF if sides[0] else Cause.SWAP_DRAFTED
    where = {
        Cause.SWAP_BOTH: "",
        Cause.SWAP_OFF: " without drafting",
        Cause.SWAP_DRAFTED: " with drafting",
    }[cause]
    most = max(off.swap_in_bytes, drafted.swap_in_bytes) / 1024**2
    return Disturbance(cause, f"{most:.0f} MiB were read back from swap{where}: memory is short.")


def _swaps(cause: Cause) -> frozenset[Cause]:
    """The sides that must be known to swap before such a pair counts."""
    return frozenset({Cause.SWAP_OFF, Cause.SWAP_DRAFTED} if cause is Cause.SWAP_BOTH else {cause})
