"""The stored recommendations of one main model, as far as they apply to this machine and its server. Pure.

`autospec recommend` shows everything that is known for this machine. The proxy acts without asking, so it is stricter: a
recommendation whose cell differs in any way (another file, build or server arguments) is stale, and only the statuses in
the setting ``serve_statuses`` enable drafting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from autospec.catalog.model import Model, without_context
from autospec.cells import Aim, Build, Cell, Hardware, PromptType
from autospec.drafting import OFF, Drafting
from autospec.recommendations import (
    LIKELY,
    LIMITS,
    NO_LIMITS,
    Limits,
    Recommendation,
    Status,
    StoredRecommendation,
    Verdict,
)
from autospec.report.selection import same_machine
from autospec.serving.dispatch import OFF_BECAUSE, Limit, WhyOff

__all__ = [
    "FAILED_LAUNCH",
    "AdviceKey",
    "ModelAdvice",
    "beyond",
    "is_likely",
    "known_of",
    "limits_by_type",
    "marked_stale",
    "without_drafting",
]

# Key in a recommendation's evidence: its drafting did not start, with the build that failed.
FAILED_LAUNCH: Final = "failed_launch"
_TRUST: Final = {Status.IMPORTED: 0, Status.STALE: 1}


@dataclass(frozen=True, slots=True)
class AdviceKey:
    """Where a model is served, and to which end: this machine, the backend's build, the user's server arguments, and the aim."""

    hardware: Hardware
    build: Build
    args: tuple[str, ...] = ()
    aim: Aim = Aim.SPEED


@dataclass(frozen=True, slots=True)
class ModelAdvice:
    """The recommendations of one model on one backend, at most one for each prompt type."""

    recommendations: tuple[Recommendation, ...] = ()  # as applied: off or stale if they do not fit
    stored: tuple[StoredRecommendation, ...] = ()  # those behind them, in the same order
    notes: tuple[str, ...] = ()  # a sentence for each drafting that is not used, or used with a reservation
    # Of the applied recommendations, by prompt type; of off there are none.
    limits: Mapping[PromptType | None, Limits] = field(default_factory=lambda: MappingProxyType({}))
    # Why requests of a prompt type get no drafting; of types with one there is none.
    why_off: Mapping[PromptType | None, WhyOff] = field(default_factory=lambda: OFF_BECAUSE[WhyOff.NOT_TUNED])
    switched_off: str = ""  # since when a person has switched drafting off for the model; empty if nobody has

    @property
    def draftings(self) -> tuple[Drafting, ...]:
        """Every drafting that is recommended for some prompt type, each once, without off."""
        return tuple(dict.fromkeys(r.drafting for r in self.recommendations if not r.drafting.is_off))

    def likely(self, drafting: Drafting) -> frozenset[PromptType | None]:
        """The prompt types for which a drafting is likely and not proven; usually none."""
        return frozenset(
            r.prompt_type for r in self.recommendations if r.drafting == drafting and is_likely(r)
        )

    def drafting_for(self, prompt_type: PromptType | None) -> Drafting:
        """The drafting that is recommended for a prompt type; off without a recommendation."""
        known = {r.prompt_type: r.drafting for r in self.recommendations}
        return known.get(prompt_type, known.get(None, OFF))

    @property
    def has_limits(self) -> bool:
        """True if a request of some prompt type can be beyond a limit."""
        return any(limits is not NO_LIMITS for limits in self.limits.values())

    def limits_for(self, prompt_type: PromptType | None) -> Limits:
        """The limits of the drafting that is recommended for a prompt type."""
        return self.limits.get(prompt_type, self.limits.get(None, NO_LIMITS))

    def naming(self, drafting: Drafting) -> list[StoredRecommendation]:
        """The stored recommendations that recommend a drafting."""
        pairs = zip(self.recommendations, self.stored, strict=True)
        return [stored for applied, stored in pairs if applied.drafting == drafting]


def known_of(
    model: Model,
    place: AdviceKey,
    stored: Iterable[StoredRecommendation],
    trust: frozenset[Status],
    *,
    likely: bool = False,
    exists: Callable[[str], bool] = lambda path: Path(path).exists(),
) -> ModelAdvice:
    """The recommendations for one model; `trust` are the statuses that enable drafting, `likely` is the setting ``trust``."""
    best: dict[PromptType | None, tuple[tuple[bool, int, str], StoredRecommendation]] = {}
    for entry in stored:
        found = entry.recommendation
        if found.aim is not place.aim:
            continue  # a drafting that saves time may take more energy, and the other way round
        if found.backend != place.build.backend or not same_machine(entry.hardware, place.hardware):
            continue
        exact = _is_cell(entry, model, place)
        if not (exact or found.model == model.name or found.model_path == str(model.path)):
            continue
        rank = (exact, _TRUST.get(found.status, 2), found.created_at)
        rival = best.get(found.prompt_type)
        if rival is None or rank >= rival[0]:
            best[found.prompt_type] = (rank, entry)
    applied, notes = [], []
    why: dict[PromptType | None, WhyOff | None] = {}
    for (exact, *_), entry in best.values():
        if likely and exact and (drafted := _with_likely(entry.recommendation)) is not None:
            entry = replace(entry, recommendation=drafted)  # noqa: PLW2901 - `best` keeps the stored one
        recommendation, off, note = _applied(entry, place, trust, exact=exact, exists=exists)
        applied.append(recommendation)
        why[recommendation.prompt_type] = off
        notes += [note] if note else []
    limits = MappingProxyType(limits_by_type(applied))
    stored_here = tuple(entry for _, entry in best.values())
    return ModelAdvice(tuple(applied), stored_here, tuple(notes), limits, _by_type(why))


def _by_type(why: Mapping[PromptType | None, WhyOff | None]) -> Mapping[PromptType | None, WhyOff]:
    """Why each prompt type gets no drafting; `why` is that of each recommendation, ``None`` for one that is served."""
    other = why.get(None, WhyOff.TYPE_NOT_MEASURED if why else WhyOff.NOT_TUNED)
    found = {kind: why.get(kind, other) for kind in (*PromptType, None)}
    return MappingProxyType({kind: off for kind, off in found.items() if off is not None})


def without_drafting(advice: ModelAdvice, since: str) -> ModelAdvice:
    """The recommendations of a model whose drafting a person has switched off: all of them are served as off."""
    applied = tuple(replace(found, drafting=OFF) for found in advice.recommendations)
    note = f"Drafting was switched off for this model by hand on {since}. What was measured has not changed."
    why = OFF_BECAUSE[WhyOff.BY_HAND]
    return ModelAdvice(applied, advice.stored, (note,), why_off=why, switched_off=since)


def beyond(limits: Limits, *, at_once: int, prompt_tokens: float, temperature: float | None) -> Limit | None:
    """The first limit that a request is beyond; ``None`` if it is within all that are known.

    Args:
        limits: Of the drafting recommended for its prompt type.
        at_once: The model's requests at once, this one included.
        prompt_tokens: Length of its prompt, cached or not.
        temperature: ``None`` if it is unknown.
    """
    measured = (
        (Limit.CONCURRENT, at_once, limits.most_concurrent),
        (Limit.CONTEXT, prompt_tokens, limits.deepest_context),
        (Limit.TEMPERATURE, temperature, limits.highest_temperature),
    )
    for limit, value, highest in measured:
        if value is not None and highest is not None and value > highest:
            return limit
    return None


def limits_of(applied: Recommendation) -> Limits:
    """The limits of a recommendation, as applied; none for off, and none where an imported record's cannot be read."""
    told = applied.evidence.get(LIMITS)
    if applied.drafting.is_off or not isinstance(told, dict):
        return NO_LIMITS
    try:
        return Limits.from_json(told)
    except (ValueError, KeyError, TypeError, AttributeError):
        return NO_LIMITS


# The bounds of `Limits`, and the checks behind each.
_BOUNDS: Final = {
    "most_concurrent": "concurrent",
    "deepest_context": "context",
    "highest_temperature": "temperature",
}


def limits_by_type(applied: Sequence[Recommendation]) -> dict[PromptType | None, Limits]:
    """The limits of one model's recommendations. A bound that a type lacks is the lowest one of its drafting's other types.

    A tune may end between the checks of two types. Where a drafting was slower for one of them, it is not trusted for the other.
    """
    own = {r.prompt_type: limits_of(r) for r in applied}
    found = {}
    for r in applied:
        limits = own[r.prompt_type]
        others = [own[o.prompt_type] for o in applied if o.drafting == r.drafting and not r.drafting.is_off]
        for bound, checks in _BOUNDS.items():
            known = [other for other in others if getattr(other, bound) is not None]
            if known and getattr(limits, bound) is None:
                lowest = min(known, key=lambda other: getattr(other, bound))
                limits = replace(limits, **{name: getattr(lowest, name) for name in (bound, checks)})
        found[r.prompt_type] = limits
    return found


def marked_stale(entry: StoredRecommendation, build: Build, why: str) -> Recommendation:
    """A recommendation whose drafting failed to start with a build; it becomes stale, unless it was only likely."""
    found = entry.recommendation
    mark = {"build": build.version, "fingerprint": build.fingerprint, "error": why}
    if found.drafting.is_off:
        # It was only likely: its verdict is off already, and the mark keeps this build from trying again.
        return replace(found, evidence={**found.evidence, FAILED_LAUNCH: mark})
    return replace(
        found,
        status=Status.STALE,
        reason=f"{found.drafting.label} no longer starts: {why}",
        evidence={**found.evidence, FAILED_LAUNCH: mark},
    )


def is_likely(applied: Recommendation) -> bool:
    """True if a recommendation, as the proxy applies it, uses a drafting that is likely and not proven."""
    return LIKELY in applied.evidence and not applied.drafting.is_off


def _with_likely(found: Recommendation) -> Recommendation | None:
    """The recommendation with its likely drafting enabled; ``None`` if no drafting is likely."""
    likely = found.evidence.get(LIKELY)
    if not isinstance(likely, dict) or found.verdict is not Verdict.UNDECIDED or found.tried.is_off:
        return None
    if found.fails:
        return None  # an earlier version called it likely all the same
    speedup = likely.get("speedup")
    if found.status is not Status.PROVISIONAL or not isinstance(speedup, int | float) or speedup <= 1.0:
        return None
    return replace(found, verdict=Verdict.ENABLE, drafting=found.tried, speedup=float(speedup))


def _applied(
    entry: StoredRecommendation,
    place: AdviceKey,
    trust: frozenset[Status],
    *,
    exact: bool,
    exists: Callable[[str], bool],
) -> tuple[Recommendation, WhyOff | None, str]:
    """The recommendation as it applies here, why it is off if it is, and a sentence if that changes what it says."""
    found = entry.recommendation
    if not exact and found.status in (Status.PROVEN, Status.PROVISIONAL):
        # The figures are from another file, build or arguments.
        found = replace(found, status=Status.STALE)
    if found.drafting.is_off:
        return found, WhyOff.DISABLE if found.verdict is Verdict.DISABLE else WhyOff.UNDECIDED, ""
    off = replace(found, drafting=OFF)
    what = f"{found.drafting.label} for {found.prompt_type or 'any'} prompts"
    mark = found.evidence.get(FAILED_LAUNCH)
    if isinstance(mark, dict) and _same_build(mark, place.build):
        sentence = f"{what} is off: the server did not start with it ({mark.get('error')})."
        return off, WhyOff.FAILED_LAUNCH, sentence
    if found.drafting.draft is not None and not exists(found.drafting.draft):
        sentence = f"{what} is off: the draft model {found.drafting.draft} does not exist."
        return off, WhyOff.DRAFT_MISSING, sentence
    if is_likely(found):
        sentence = f"{what} is likely but not proven; it is used because the setting `trust` is `likely`."
        return found, None, sentence
    if found.status not in trust:
        sentence = (
            f"{what} is off: its status is {found.status}, which the setting serve_statuses does not allow."
        )
        return off, WhyOff.STATUS, sentence
    if found.status is Status.STALE:
        sentence = f"{what} is used although it is stale: {_why_stale(entry, place, exact=exact)}."
        return found, None, sentence
    return found, None, ""


def _why_stale(entry: StoredRecommendation, place: AdviceKey, *, exact: bool) -> str:
    found = entry.recommendation
    if exact or found.status is Status.STALE:
        return found.reason.rstrip(".")
    if found.backend_build != place.build.version:
        return f"it was proven with {found.backend_build}, and this is {place.build.version}"
    settings = found.evidence.get("settings")
    if isinstance(settings, list) and without_context(settings) != without_context(place.args):
        return f"it was proven with the server arguments {' '.join(settings)}"
    return "it was proven with another file of the model or of its adapters"


def _is_cell(entry: StoredRecommendation, model: Model, place: AdviceKey) -> bool:
    """True if the recommendation is for this file, build, machine and arguments, apart from the context length."""
    # A measurement sets its own context length (`TuneRequest.settings`).
    found = entry.recommendation
    settings: Any = found.evidence.get("settings")
    if found.prompt_type is None or not isinstance(settings, list):
        return False
    if without_context(settings) != without_context(place.args):
        return False
    # The name is not part of the key.
    cell = Cell(model.ref, found.prompt_type, place.build, place.hardware, tuple(settings), place.aim)
    return cell.key == entry.cell_key


def _same_build(mark: dict[str, Any], build: Build) -> bool:
    return mark.get("build") == build.version and mark.get("fingerprint") == build.fingerprint
