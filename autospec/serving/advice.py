"""What the stored recommendations say of one main model here: which of them speak, and which of those are acted upon. Pure.

As `autospec recommend` does, only this machine's count, and of one prompt type the most trusted and newest. Beyond that a
proxy, which acts without being asked, looks closer: a recommendation whose cell is not exactly this one (another file,
build or server arguments) counts as stale, and only statuses that the user trusts put a drafting to work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from autospec.catalog.model import Model, without_context
from autospec.cells import Build, Cell, Hardware, ModelRef, PromptType
from autospec.drafting import OFF, Drafting
from autospec.errors import SettingsError
from autospec.recommendations import LIKELY, Recommendation, Status, StoredRecommendation, Verdict
from autospec.report.selection import same_machine

__all__ = ["FAILED_LAUNCH", "AdviceKey", "ModelAdvice", "is_likely", "known_of", "marked_stale", "trusted"]

# The mark in a recommendation's evidence that its drafting did not start, with the build that refused it.
FAILED_LAUNCH: Final = "failed_launch"
_TRUST: Final = {Status.IMPORTED: 0, Status.STALE: 1}


@dataclass(frozen=True, slots=True)
class AdviceKey:
    """Where a model is served.

    Attributes:
        hardware: This machine.
        build: The backend's.
        args: The user's server arguments.
    """

    hardware: Hardware
    build: Build
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelAdvice:
    """What is known of one model on one backend.

    Attributes:
        recommendations: As they are acted upon, at most one for each prompt type: a drafting that is not to be put to work
            is off there, a status that no longer holds is stale.
        stored: What they were made from, in the same order.
        notes: One sentence for each drafting that is not put to work, or only with a mark.
    """

    recommendations: tuple[Recommendation, ...] = ()
    stored: tuple[StoredRecommendation, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def draftings(self) -> tuple[Drafting, ...]:
        """What is recommended for some prompt type, off left out, each once."""
        return tuple(dict.fromkeys(r.drafting for r in self.recommendations if not r.drafting.is_off))

    def likely(self, drafting: Drafting) -> frozenset[PromptType | None]:
        """The prompt types for which a drafting is likely and not proven; mostly none."""
        return frozenset(
            r.prompt_type for r in self.recommendations if r.drafting == drafting and is_likely(r)
        )

    def naming(self, drafting: Drafting) -> list[StoredRecommendation]:
        """The stored recommendations that a drafting comes from."""
        pairs = zip(self.recommendations, self.stored, strict=True)
        return [stored for acted, stored in pairs if acted.drafting == drafting]


def trusted(words: Sequence[str]) -> frozenset[Status]:
    """The statuses in the setting ``serve_statuses``.

    Raises:
        SettingsError: A word is no status.
    """
    for word in words:
        if word not in set(Status):
            raise SettingsError(
                f"serve_statuses has an unknown status {word!r}.", f"Choose from {', '.join(Status)}."
            )
    return frozenset(Status(word) for word in words)


def known_of(
    model: Model,
    place: AdviceKey,
    stored: Iterable[StoredRecommendation],
    trust: frozenset[Status],
    *,
    likely: bool = False,
    exists: Callable[[str], bool] = lambda path: Path(path).exists(),
) -> ModelAdvice:
    """What is known of one model, and what to make of it.

    Args:
        model: The main model.
        place: Where it is served.
        stored: Everything known, the newest of each cell.
        trust: Statuses whose drafting is put to work.
        likely: True to put to work, too, what is likely while its proof is not finished (the setting ``trust``).
        exists: Whether a draft model's file is there.
    """
    best: dict[PromptType | None, tuple[tuple[bool, int, str], StoredRecommendation]] = {}
    for entry in stored:
        found = entry.recommendation
        if found.backend != place.build.backend or not same_machine(entry.hardware, place.hardware):
            continue
        exact = _is_cell(entry, model, place)
        if not (exact or found.model == model.name or found.model_path == str(model.path)):
            continue
        rank = (exact, _TRUST.get(found.status, 2), found.created_at)
        rival = best.get(found.prompt_type)
        if rival is None or rank >= rival[0]:
            best[found.prompt_type] = (rank, entry)
    acted, notes = [], []
    for (exact, *_), entry in best.values():
        acted_upon = entry
        if likely and exact and (drafted := _with_likely(entry.recommendation)) is not None:
            acted_upon = replace(entry, recommendation=drafted)
        recommendation, note = _acted_upon(acted_upon, place, trust, exact=exact, exists=exists)
        acted.append(recommendation)
        notes += [note] if note else []
    return ModelAdvice(tuple(acted), tuple(entry for _, entry in best.values()), tuple(notes))


def marked_stale(entry: StoredRecommendation, build: Build, why: str) -> Recommendation:
    """A recommendation whose drafting did not start: stale, with the reason, and with the mark that holds for this build.

    One whose drafting was only likely keeps its status and gets the mark.
    """
    found = entry.recommendation
    mark = {"build": build.version, "fingerprint": build.fingerprint, "error": why}
    if found.drafting.is_off:
        # It was only likely: the verdict was off and stays so, and nobody tries again with this build.
        return replace(found, evidence={**found.evidence, FAILED_LAUNCH: mark})
    return replace(
        found,
        status=Status.STALE,
        reason=f"{found.drafting.label} does not run any more: {why}",
        evidence={**found.evidence, FAILED_LAUNCH: mark},
    )


def is_likely(acted: Recommendation) -> bool:
    """True if a recommendation, as it is acted upon, drafts with what is likely and not proven."""
    return LIKELY in acted.evidence and not acted.drafting.is_off


def _with_likely(found: Recommendation) -> Recommendation | None:
    """The recommendation with its likely drafting put to work; ``None`` where nothing is likely."""
    told = found.evidence.get(LIKELY)
    if not isinstance(told, dict) or found.verdict is not Verdict.UNDECIDED or found.tried.is_off:
        return None
    speedup = told.get("speedup")
    if found.status is not Status.PROVISIONAL or not isinstance(speedup, int | float) or speedup <= 1.0:
        return None
    return replace(found, verdict=Verdict.ENABLE, drafting=found.tried, speedup=float(speedup))


def _acted_upon(
    entry: StoredRecommendation,
    place: AdviceKey,
    trust: frozenset[Status],
    *,
    exact: bool,
    exists: Callable[[str], bool],
) -> tuple[Recommendation, str]:
    """The recommendation with the drafting and the status that hold here, and a sentence where they are others."""
    found = entry.recommendation
    if not exact and found.status in (Status.PROVEN, Status.PROVISIONAL):
        # The cell was another: a file, a build or arguments that the figures do not speak for.
        found = replace(found, status=Status.STALE)
    if found.drafting.is_off:
        return found, ""
    what = f"{found.drafting.label} for {found.prompt_type or 'any'} prompts"
    mark = found.evidence.get(FAILED_LAUNCH)
    if isinstance(mark, dict) and _same_build(mark, place.build):
        return replace(found, drafting=OFF), f"{what} is off: it did not start ({mark.get('error')})."
    if found.drafting.draft is not None and not exists(found.drafting.draft):
        return replace(found, drafting=OFF), f"{what} is off: the draft {found.drafting.draft} is not there."
    if is_likely(found):
        return found, f"{what} is likely and not proven; it is served because `trust` is likely."
    if found.status not in trust:
        return replace(found, drafting=OFF), f"{what} is off: it is {found.status} (see serve_statuses)."
    if found.status is Status.STALE:
        return found, f"{what} is served although it is stale: {_why_stale(entry, place, exact=exact)}."
    return found, ""


def _why_stale(entry: StoredRecommendation, place: AdviceKey, *, exact: bool) -> str:
    found = entry.recommendation
    if exact or found.status is Status.STALE:
        return found.reason.rstrip(".")
    if found.backend_build != place.build.version:
        return f"it was proven with {found.backend_build}, and this is {place.build.version}"
    settings = found.evidence.get("settings")
    if isinstance(settings, list) and without_context(settings) != without_context(place.args):
        return f"it was proven with the server arguments {' '.join(settings)}"
    return "the model's file is another than the one it was proven with"


def _is_cell(entry: StoredRecommendation, model: Model, place: AdviceKey) -> bool:
    """True if the recommendation was made for this very file, build, machine and arguments, the context left aside.

    The context is the measuring's own (`TuneRequest.settings`); the rest of the arguments makes another cell.
    """
    found = entry.recommendation
    settings: Any = found.evidence.get("settings")
    if found.prompt_type is None or not isinstance(settings, list):
        return False
    if without_context(settings) != without_context(place.args):
        return False
    # The name is no part of the key.
    ref = ModelRef(model.name, str(model.path), model.fingerprint)
    cell = Cell(ref, found.prompt_type, place.build, place.hardware, tuple(settings))
    return cell.key == entry.cell_key


def _same_build(mark: dict[str, Any], build: Build) -> bool:
    return mark.get("build") == build.version and mark.get("fingerprint") == build.fingerprint
