"""After the proof: does a drafting also win where it may fail? What is checked, and which limits follow. Pure.

A proof asks one request at a time, short, with nothing in the prompt cache, usually greedy. Off and the proven drafting are
compared under other conditions: several requests at once, behind thousands of cached tokens, at a sampling temperature, in the
second turn of a chat. `autospec.tuning.limit_checks` measures them.

The interval of a ratio is that of a proof with a single look (`autospec.measure.verdict.decide`), launches' scatter included.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from autospec.catalog.model import USUAL_TEMPERATURE, Model, context_of, names_context, temperature_of
from autospec.cells import options_in, values_of
from autospec.formats import counted
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import LogRatio, of_pairs
from autospec.measure.measurements import LEAST_REQUESTS, Pair, Sample
from autospec.measure.verdict import DEFAULT_RULE, Rule, decide
from autospec.recommendations import LimitCheck, Limits, LimitVerdict
from autospec.tuning.definition import LimitsDefinition
from autospec.tuning.launches import Memory

__all__ = [
    "SPARE_TOKENS",
    "Condition",
    "Kind",
    "Plan",
    "check_of",
    "checks_in",
    "drafts_alone",
    "holds",
    "is_known",
    "limits_of",
    "plan",
    "served_temperature",
    "times_of",
    "unknown_conditions",
]

# This share of the traffic's requests is not above its temperature.
_MOST_REQUESTS = 0.9
_HOTTEST = 2.0
_AT_ONCE = (2, 4)
_DEPTHS = (8192, 32768)
# Besides the longest prompt and its answer: chat template, the second question, and the error of the text's length.
SPARE_TOKENS = 512
_PARALLEL = frozenset({"-np", "--parallel"})


class Kind(StrEnum):
    """In which respect a check differs from the proof; the keys of the evidence."""

    CONCURRENT = "concurrent"
    CONTEXT = "context"
    TEMPERATURE = "temperature"
    SECOND_TURN = "second_turn"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a check compares under: so many requests at once, cached tokens, the temperature, or the turn."""

    kind: Kind
    at: float

    @property
    def words(self) -> str:
        """As part of a sentence."""
        match self.kind:
            case Kind.CONCURRENT:
                return f"at {self.at:g} requests at once"
            case Kind.CONTEXT:
                return f"behind {self.at:g} tokens of context"
            case Kind.TEMPERATURE:
                return f"at temperature {self.at:g}"
            case Kind.SECOND_TURN:
                return "in the second turn of a chat"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is checked for one drafting, in this order; `refused` has the reasons of what cannot be.

    `args` are the arguments of a launch with the context that the checks need, `resident` how many launches fit at once.
    """

    conditions: tuple[Condition, ...]
    refused: Mapping[Condition, str]
    args: tuple[str, ...]
    resident: int


def plan(
    wanted: LimitsDefinition,
    model: Model,
    draft: Model | None,
    memory: Memory,
    *,
    args: Sequence[str],
    temperature: float,
    context_tokens: int,
    served: float = USUAL_TEMPERATURE,
) -> Plan:
    """Plan the checks: one of each kind first, so that a short budget shows something of each.

    `temperature` and `context_tokens` are the proof's; `served` is the users', see `served_temperature`.
    """
    conditions = _wanted_conditions(wanted, temperature, served)
    at_once = [int(c.at) for c in conditions if c.kind is Kind.CONCURRENT]
    depths = [int(c.at) for c in conditions if c.kind is Kind.CONTEXT]
    one = context_tokens + SPARE_TOKENS
    is_mlx = model.format == "mlx"
    # MLX's servers take neither a number of slots nor a context.
    words = list(args) if is_mlx else _with_slots(args, wanted.slots)
    own_context = is_mlx or names_context(args)

    def total(depth: int) -> int:
        """The context of a launch: its own slots share it, a number of slots that is named divides it."""
        if own_context:
            return context_of(args, model.context_length, depth + one)
        parts = _named_slots(words)
        return parts * (depth + one) if parts else max(depth + one, max(at_once, default=1) * one)

    def resident(depth: int) -> int:
        off_bytes = model.size_bytes + model.kv_bytes(total(depth))
        draft_bytes = 0 if draft is None else draft.size_bytes + draft.kv_bytes(total(depth))
        return memory.launches(off_bytes, off_bytes + draft_bytes)

    refused: dict[Condition, str] = {}
    deepest = 0
    for depth in depths:
        if model.context_length and depth + one > model.context_length:
            why = (
                f"The model was trained with {model.context_length} tokens of context: no room for a request of up to "
                f"{one} tokens behind {depth}."
            )
        elif not resident(depth):
            why = f"There is not enough memory for a context of {total(depth)} tokens."
        else:
            deepest = depth
            continue
        refused[Condition(Kind.CONTEXT, depth)] = why
    if not own_context:
        words += ["-c", str(total(deepest))]
    possible = tuple(c for c in conditions if c not in refused)
    return Plan(possible, refused, tuple(words), max(1, resident(deepest)))


def _wanted_conditions(wanted: LimitsDefinition, temperature: float, served: float) -> list[Condition]:
    """What is checked where nothing hinders it; the arguments are those of `plan`."""
    at_once = [n for n in _AT_ONCE if n <= (wanted.slots or n)]
    if wanted.slots and wanted.slots > 1 and wanted.slots not in at_once:
        at_once.append(wanted.slots)
    depths = [d for d in _DEPTHS if d < (wanted.depth or d + 1)] + ([wanted.depth] if wanted.depth else [])
    several = [Condition(Kind.CONCURRENT, n) for n in at_once]
    deep = [Condition(Kind.CONTEXT, d) for d in depths]
    sampled = [Condition(Kind.TEMPERATURE, served)] if served > temperature else []
    if wanted.only_temperature:
        return sampled
    first = [*several[:1], *deep[:1], *sampled, Condition(Kind.SECOND_TURN, 2)]
    return [*first, *several[1:], *deep[1:]]


def served_temperature(
    samples: Iterable[Sample], args: Sequence[str], model: Model, *, proven: float = 0.0
) -> float:
    """The temperature that users sample with: what nine of ten requests of the traffic do not exceed, in tenths.

    Without enough traffic, or if that is no more than the proof's (`proven`): `--temp` of the user's arguments, else what the
    model's file names, else the servers' default where the proof was greedy.
    """
    known = sorted(s.temperature for s in samples if s.temperature is not None)
    if len(known) >= LEAST_REQUESTS:
        usual = min(
            _HOTTEST, math.ceil(10.0 * known[math.ceil(_MOST_REQUESTS * len(known)) - 1] - 1e-6) / 10.0
        )
        if usual > proven:
            return usual
    for named in (temperature_of(args), model.temperature):
        if named is not None and proven < named <= _HOTTEST:
            return named
    return USUAL_TEMPERATURE if proven <= 0.0 else proven


def unknown_conditions(
    wanted: LimitsDefinition, known: Limits, *, temperature: float, served: float
) -> list[Condition]:
    """What is wanted and not known yet; the arguments are those of `plan`."""
    conditions = _wanted_conditions(wanted, temperature, served)
    return [c for c in conditions if not is_known(c, known, wanted)]


def is_known(condition: Condition, known: Limits, wanted: LimitsDefinition) -> bool:
    """Whether an earlier tune's checks answer a condition, or say why it cannot be checked."""
    checks = checks_in(known)
    if condition.kind is Kind.TEMPERATURE and any(
        c.kind is Kind.TEMPERATURE and c.at >= condition.at and holds(check) for c, check in checks.items()
    ):
        return True
    check = checks.get(condition)
    if check is None or check.out_of_time:
        return False
    if condition.kind is Kind.SECOND_TURN and check.verdict is LimitVerdict.SLOWER and check.ratio is None:
        return False  # requests failed with drafting only, and an earlier version enabled it all the same
    if _is_measured(check):
        return True
    # It could not be checked with the user's own slots and context; with a number that the user names it may be.
    named = {Kind.CONCURRENT: wanted.slots, Kind.CONTEXT: wanted.depth}
    return named.get(condition.kind) is None


def checks_in(limits: Limits) -> dict[Condition, LimitCheck]:
    """The checks behind the limits."""
    by_kind = {
        Kind.CONCURRENT: limits.concurrent,
        Kind.CONTEXT: limits.context,
        Kind.TEMPERATURE: limits.temperature,
        Kind.SECOND_TURN: limits.second_turn,
    }
    return {Condition(kind, check.at): check for kind, checks in by_kind.items() for check in checks}


def _with_slots(args: Sequence[str], slots: int | None) -> list[str]:
    """The user's arguments, with the number of slots that the checks are asked for."""
    kept = [(flag, *values) for flag, values in options_in(args) if slots is None or flag not in _PARALLEL]
    named = [] if slots is None else ["--parallel", str(slots)]
    return [*(word for option in kept for word in option), *named]


def _named_slots(args: Sequence[str]) -> int:
    """How many slots the arguments name; 0 leaves the number to the server."""
    named = values_of(args, _PARALLEL)
    return int(named[-1]) if named and named[-1].isdigit() else 0


def times_of(pairs: Sequence[Pair]) -> list[LogRatio]:
    """What the aim speed compares; the aim energy compares `autospec.measure.energy.energy_ratios`."""
    return of_pairs(pairs)


def check_of(
    condition: Condition,
    pairs: Sequence[Pair],
    rule: Rule,
    scatter: LaunchScatter,
    note: str = "",
    *,
    compared: Callable[[Sequence[Pair]], list[LogRatio]] = times_of,
) -> LimitCheck:
    """The result of one check: the proof's interval for a single look at the study's confidence, compared with 1.

    `compared` is what the aim compares; pairs that it leaves out do not count.
    """
    values = compared(pairs)
    if pairs and not values:
        note = f"{note} None of {counted(len(pairs), 'pair')} has a valid reading of energy.".lstrip()
    if not values:
        return LimitCheck(condition.at, note=note)
    one_look = replace(rule, looks=(1,), threshold=0.0)
    estimate = decide(values, 1, one_look, scatter=scatter).estimate
    assert estimate is not None  # there are pairs
    verdict = LimitVerdict.OPEN
    if estimate.low > 0.0:
        verdict = LimitVerdict.FASTER
    elif estimate.high < 0.0:
        verdict = LimitVerdict.SLOWER
    together = condition.at if condition.kind is Kind.CONCURRENT else 1
    answers = [h.predicted_tokens / together for pair in pairs for h in (pair.off, pair.drafted)]
    return LimitCheck(
        condition.at,
        estimate.ratio,
        estimate.interval,
        len(values),
        verdict,
        note,
        answer_tokens=round(statistics.median(answers)),
    )


def holds(check: LimitCheck, most_lost: float = DEFAULT_RULE.threshold) -> bool:
    """Whether a drafting may be used under a check's condition.

    It may where it is faster. Where that is open, it must seem faster, and a loss above `most_lost` must be ruled out.
    """
    if check.verdict is not LimitVerdict.OPEN or check.ratio is None or check.interval is None:
        return check.verdict is LimitVerdict.FASTER
    return check.ratio > 1.0 and check.interval[0] >= 1.0 - most_lost


def limits_of(
    checks: Mapping[Condition, LimitCheck],
    *,
    context_tokens: int,
    temperature: float,
    one_at_a_time: bool = False,
    most_lost: float = DEFAULT_RULE.threshold,
) -> Limits:
    """The limits that the checks show.

    Args:
        checks: The checks of one cell.
        context_tokens: The longest request of the proof: what it shows without any check.
        temperature: Likewise, the proof's.
        one_at_a_time: Whether some slot does not draft although the first one does.
        most_lost: See `holds`.
    """
    by_kind = {
        kind: tuple(sorted((v for k, v in checks.items() if k.kind is kind), key=lambda c: c.at))
        for kind in Kind
    }
    most = 1 if one_at_a_time else _shown(by_kind[Kind.CONCURRENT], 1, most_lost)
    deepest = _shown(by_kind[Kind.CONTEXT], context_tokens, most_lost)
    return Limits(
        concurrent=by_kind[Kind.CONCURRENT],
        context=by_kind[Kind.CONTEXT],
        temperature=by_kind[Kind.TEMPERATURE],
        second_turn=by_kind[Kind.SECOND_TURN],
        most_concurrent=None if most is None else int(most),
        deepest_context=None if deepest is None else int(deepest),
        highest_temperature=_shown(by_kind[Kind.TEMPERATURE], temperature, most_lost),
    )


def drafts_alone(limits: Limits) -> bool:
    """Whether the limit of one request at a time comes from a slot that does not draft, and not from a measurement."""
    return limits.most_concurrent == 1 and not any(_is_measured(check) for check in limits.concurrent)


def _is_measured(check: LimitCheck) -> bool:
    return check.pairs > 0 or check.verdict is not LimitVerdict.OPEN


def _shown(checks: Iterable[LimitCheck], own: float, most_lost: float) -> float | None:
    """The greatest value up to which every measured check holds; at least the proof's own. ``None`` if none was measured.

    Between two values the greater one decides, because what is between them may be like it.
    """
    measured = [check for check in checks if _is_measured(check)]
    if not measured:
        return None
    for check in measured:
        if not holds(check, most_lost):
            break
        own = max(own, check.at)
    return own
