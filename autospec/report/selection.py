"""Which stored recommendations answer a question, and which of them changed. Pure and light, because `recommend` must answer at once.

* Of one main model, backend and prompt type the newest counts, whatever build and launch settings it was made with.
  `autospec studies list` shows all.
* Recommendations measured on this machine come before imported ones.
* The overall answer of a model and backend, the one drafting for all prompt types, comes with the types' own, unless one type is
  asked for. It is stale if a recommendation that it rests on is stale or was measured again since.
* Other machines answer only if this one cannot (a model is asked for by name and nothing is known of it here, or nothing was
  ever tuned here), or if they are asked for.

More measurements with the same answer are no change: the event stream and the user's hook stay quiet then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

from autospec.catalog.resolve import ambiguous, answering
from autospec.cells import Aim, Hardware, PromptType
from autospec.errors import NothingKnownError, UsageError
from autospec.hardware.identity import most_alike
from autospec.recommendations import Recommendation, Status, StoredRecommendation, document

__all__ = [
    "ChangeKind",
    "Question",
    "Selection",
    "borrowed",
    "changes",
    "changes_document",
    "match_model",
    "newest",
    "same_machine",
    "select",
]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for; an empty field asks for all.

    Attributes:
        model: Name, unambiguous part of one, or path of the main model.
        prompt_type: Only this prompt type; recommendations for any prompt answer too.
        backend: Only this backend.
        hardware_id: Only the machine whose id begins like this, instead of this one.
        all_hardware: Every machine.
        aim: Recommendations of this aim; those of the other one never answer.
    """

    model: str = ""
    prompt_type: PromptType | None = None
    backend: str = ""
    hardware_id: str = ""
    all_hardware: bool = False
    aim: Aim = Aim.SPEED


@dataclass(frozen=True, slots=True)
class Selection:
    """The answer.

    Attributes:
        hardware: The machine of the recommendations; this one if there are several.
        stored: The recommendations, sorted by model, backend and prompt type; at least one.
        foreign: True if other machines answer although they were not asked for.
        overall: The answers for all prompt types together, at most one for each model and backend; ``None`` if the caller did
            not ask for them.
    """

    hardware: Hardware
    stored: tuple[StoredRecommendation, ...]
    foreign: bool = False
    overall: tuple[Recommendation, ...] | None = None

    @property
    def recommendations(self) -> list[Recommendation]:
        """The recommendations; those of another machine than `hardware` name it in their evidence."""
        return [
            s.recommendation
            if s.hardware.id == self.hardware.id
            else replace(
                s.recommendation,
                evidence={**s.recommendation.evidence, "hardware": s.hardware.to_json()},
            )
            for s in self.stored
        ]

    @property
    def foreign_note(self) -> str:
        """One sentence if other machines answer although they were not asked for; else empty."""
        machines = sorted({s.hardware.id for s in self.stored})
        text = f"no results of this machine match; these come from {', '.join(machines)}."
        return text if self.foreign else ""

    def document(self) -> dict[str, Any]:
        """The document of the JSON contract."""
        return document(self.hardware, self.recommendations, self.overall)

    @property
    def for_one_server(self) -> list[Recommendation]:
        """The overall answers, and the recommendations of models and backends that have none."""
        together = self.overall or ()
        answered = {(r.model, r.backend) for r in together}
        return [*together, *(r for r in self.recommendations if (r.model, r.backend) not in answered)]


def select(
    stored: Sequence[StoredRecommendation],
    here: Hardware,
    question: Question,
    overall: Sequence[StoredRecommendation] | None = None,
) -> Selection:
    """The recommendations that answer a question.

    Raises:
        NothingKnownError: Nothing answers.
        ModelChoiceError: The model's name could mean several.
        UsageError: The hardware id could mean several machines.
    """
    of_aims, stored = stored, [s for s in stored if s.recommendation.aim is question.aim]
    overall = overall and [s for s in overall if s.recommendation.aim is question.aim]
    local = [s for s in stored if same_machine(s.hardware, here)]
    foreign = False
    if question.all_hardware:
        asked = list(stored)
    elif question.hardware_id:
        asked = _of_machine(stored, question.hardware_id)
    else:
        # Local models first: an import must not make a unique local name ambiguous.
        asked = local
        if not _answers(local, question) and (question.model or not local):
            asked, foreign = _lent([s for s in stored if s not in local], here, question), True
    found = newest(_answers(asked, question))
    if not found:
        raise _nothing(question, stored, local, others=len(of_aims) - len(stored))
    machines = {s.hardware.id: s.hardware for s in found}
    if all(same_machine(m, here) for m in machines.values()) or len(machines) > 1:
        hardware = here
    else:
        hardware = next(iter(machines.values()))
    together = None
    if overall is not None:
        # Another machine's answer is shown if that machine is asked for.
        asked_for = not foreign and question.prompt_type is None
        together = tuple(_overall(overall, found)) if asked_for else ()
    return Selection(hardware, tuple(sorted(found, key=_order)), foreign, together)


def _overall(
    answers: Sequence[StoredRecommendation], found: Sequence[StoredRecommendation]
) -> list[Recommendation]:
    """The newest overall answer of each machine, model and backend that was found, as it stands today."""
    groups: dict[tuple[str, str, str], list[StoredRecommendation]] = {}
    for s in found:
        groups.setdefault(_group(s), []).append(s)
    newest_of = {
        _group(s): s.recommendation for s in sorted(answers, key=lambda s: s.recommendation.created_at)
    }
    return [
        _as_it_stands(newest_of[group], own) for group, own in sorted(groups.items()) if group in newest_of
    ]


def _group(s: StoredRecommendation) -> tuple[str, str, str]:
    return s.hardware.id, s.recommendation.model, s.recommendation.backend


def _as_it_stands(answer: Recommendation, found: Sequence[StoredRecommendation]) -> Recommendation:
    """The answer, stale if what it rests on is no longer what is recommended for a prompt type."""
    entries = {entry["prompt_type"]: entry for entry in answer.evidence.get("types", ())}
    why = ""
    for s in found:
        kind, r = str(s.recommendation.prompt_type), s.recommendation
        entry = entries.get(kind)
        if entry is None:
            continue  # not in the mix
        if (entry.get("cell"), entry.get("created_at")) != (r.evidence.get("cell"), r.created_at):
            why = f"{kind} was measured again since"
        elif r.status is Status.STALE:
            why = str(r.evidence.get("stale_reason") or f"{kind} is stale")
        if why:
            evidence = {**answer.evidence, "stale_reason": why}
            return replace(answer, status=Status.STALE, evidence=evidence)
    return answer


def same_machine(stored: Hardware, here: Hardware) -> bool:
    """True if a result stored for one machine is valid for the other.

    A record may lack details of its machine. Its id is then shorter, without the digest, and it is valid for every
    machine whose id begins like that.
    """
    return here.id == stored.id or here.id.startswith(f"{stored.id}-")


def borrowed(
    stored: Iterable[StoredRecommendation], here: Hardware, model: str, backend: str, prompt_type: PromptType
) -> StoredRecommendation | None:
    """The most similar machine's recommendation for a cell that is unknown here, as shown here; or ``None``."""
    others = [
        s
        for s in stored
        if not same_machine(s.hardware, here)
        and (s.recommendation.model, s.recommendation.backend) == (model, backend)
        and s.recommendation.prompt_type is prompt_type
    ]
    lent = newest(_lent(others, here, Question()))
    return lent[0] if lent else None


def match_model(stored: Iterable[StoredRecommendation], text: str) -> list[StoredRecommendation]:
    """The recommendations whose main model matches a name, a part of one or a path; empty if none does.

    If several have exactly this name, as their model's or their file's, all are returned.

    Raises:
        ModelChoiceError: Several different models match, none of them exactly.
    """
    candidates = list(stored)
    path = Path(text).expanduser()
    same_path = [s for s in candidates if s.recommendation.model_path and _same_path(s, path)]
    if same_path:
        return same_path
    if "/" in text and path.suffix == ".gguf":
        text = path.stem
    found = answering(candidates, text, _names)
    models = sorted({s.recommendation.model for s in found}, key=str.casefold)
    if len(models) > 1 and not any(text in _names(s) for s in found):
        raise ambiguous(text, models)
    return found


def _answers(stored: Sequence[StoredRecommendation], question: Question) -> list[StoredRecommendation]:
    found = [
        s
        for s in stored
        if question.prompt_type in (None, s.recommendation.prompt_type)
        or s.recommendation.prompt_type is None
    ]
    if question.backend:
        found = [s for s in found if s.recommendation.backend == question.backend]
    return match_model(found, question.model) if question.model else found


def _lent(
    stored: Sequence[StoredRecommendation], here: Hardware, question: Question
) -> list[StoredRecommendation]:
    """The answers of the most similar machine, which are provisional here unless they were imported."""
    found = _answers(stored, question)
    nearest = most_alike(here, [s.hardware for s in found])
    return [
        s
        if s.recommendation.status is Status.IMPORTED
        else replace(s, recommendation=replace(s.recommendation, status=Status.PROVISIONAL))
        for s in found
        if s.hardware == nearest
    ]


def _of_machine(stored: Sequence[StoredRecommendation], text: str) -> list[StoredRecommendation]:
    found = [s for s in stored if s.hardware.id == text] or [
        s for s in stored if s.hardware.id.startswith(text.lower())
    ]
    machines = sorted({s.hardware.id for s in found})
    if len(machines) > 1:
        raise UsageError(
            f"{text!r} matches {len(machines)} machines: {', '.join(machines)}.", "Give more of the id."
        )
    return found


def newest(stored: Iterable[StoredRecommendation]) -> list[StoredRecommendation]:
    """The recommendation that counts of each machine, model, backend, prompt type and aim."""
    best: dict[tuple[str, ...], StoredRecommendation] = {}
    for s in stored:
        r = s.recommendation
        key = (s.hardware.id, r.model, r.backend, str(r.prompt_type), str(r.aim))
        rival = best.get(key)
        if rival is None or _weight(r) >= _weight(rival.recommendation):
            best[key] = s
    return list(best.values())


def _weight(r: Recommendation) -> tuple[int, str]:
    trust = {Status.IMPORTED: 0, Status.STALE: 1}.get(r.status, 2)
    return trust, r.created_at


def _order(s: StoredRecommendation) -> tuple[str, str, str, int]:
    r = s.recommendation
    types = list(PromptType)
    place = -1 if r.prompt_type is None else types.index(r.prompt_type)
    return s.hardware.id, r.model, r.backend, place


def _nothing(
    question: Question,
    stored: Sequence[StoredRecommendation],
    local: Sequence[StoredRecommendation],
    *,
    others: int,
) -> NothingKnownError:
    wanted = question.model or "MODEL"
    subject = f"about {question.model}" if question.model else "yet"
    kind = f" for {question.prompt_type} prompts" if question.prompt_type else ""
    backend = f" on {question.backend}" if question.backend else ""
    aim = f" with the aim {question.aim}" if others or question.aim is not Aim.SPEED else ""
    message = f"Nothing is known {subject}{kind}{backend}{aim}."
    if question.hardware_id:
        machines = sorted({s.hardware.id for s in stored})
        return NothingKnownError(
            f"There are no results of a machine {question.hardware_id}.",
            f"Known machines: {', '.join(machines) or 'none'}.",
        )
    known = sorted({s.recommendation.model for s in (local or stored)})
    also = f" Known models: {', '.join(known)}." if known and question.model else ""
    backend_option = f" --backend {question.backend}" if question.backend else ""
    type_option = f" --prompt-type {question.prompt_type}" if question.prompt_type else ""
    if aim:
        type_option += f" --aim {question.aim}"
    return NothingKnownError(
        message, f"Measure it with `autospec tune --model {wanted}{backend_option}{type_option}`.{also}"
    )


def _names(s: StoredRecommendation) -> tuple[str, ...]:
    file = s.recommendation.evidence.get("model_file") or s.recommendation.model_path
    return (s.recommendation.model, *([PurePath(str(file)).name.removesuffix(".gguf")] if file else []))


def _same_path(s: StoredRecommendation, path: Path) -> bool:
    return Path(s.recommendation.model_path) == path.absolute() or (
        path.exists() and Path(s.recommendation.model_path).resolve() == path.resolve()
    )


_CHANGES_SCHEMA = 1


class ChangeKind(StrEnum):
    """What changed; the first that applies."""

    NEW = "new"
    GONE = "gone"
    DRAFTING = "drafting"
    VERDICT = "verdict"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Change:
    """One cell's change: `before` is ``None`` for a new recommendation, `after` for one that is gone."""

    kind: ChangeKind
    hardware_id: str
    before: Recommendation | None
    after: Recommendation | None

    @property
    def subject(self) -> Recommendation:
        """The recommendation with model, prompt type and backend."""
        subject = self.after or self.before
        assert subject is not None
        return subject

    @property
    def sentence(self) -> str:
        """The change in words, e.g. for a notification."""
        r = self.subject
        what = f"{r.model}, {r.prompt_type or 'any prompt'}, {r.backend}"
        match self.kind:
            case ChangeKind.NEW:
                return f"{what}: {r.drafting.label} ({r.verdict}, {r.status})."
            case ChangeKind.GONE:
                return f"{what}: there is no recommendation any more."
            case _:
                assert self.before is not None
                pairs = {
                    ChangeKind.DRAFTING: (self.before.drafting.label, r.drafting.label),
                    ChangeKind.VERDICT: (self.before.verdict, r.verdict),
                    ChangeKind.STATUS: (self.before.status, r.status),
                }
                before, after = pairs[self.kind]
                return f"{what}: {after} instead of {before} ({r.reason.rstrip('.')})."

    def to_json(self) -> dict[str, Any]:
        """The change, with both recommendations as in `autospec recommend --json`."""
        r = self.subject
        return {
            "kind": str(self.kind),
            "model": r.model,
            "prompt_type": None if r.prompt_type is None else str(r.prompt_type),
            "backend": r.backend,
            "hardware_id": self.hardware_id,
            "sentence": self.sentence,
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
        }


def changes(old: Iterable[StoredRecommendation], new: Iterable[StoredRecommendation]) -> tuple[Change, ...]:
    """What changed, in the order of `new`; those that are gone come last.

    Of one machine, model, backend and prompt type, the recommendation counts that `recommend` would answer with.
    """
    before, after = _by_cell(old), _by_cell(new)
    found = []
    for cell, now in after.items():
        known = before.get(cell)
        kind = ChangeKind.NEW if known is None else _kind(known, now)
        if kind is not None:
            found.append(Change(kind, cell[0], known, now))
    found += [
        Change(ChangeKind.GONE, cell[0], known, None) for cell, known in before.items() if cell not in after
    ]
    return tuple(found)


def changes_document(found: Sequence[Change], at: str) -> dict[str, Any]:
    """What a hook reads and the event stream sends; `found` is not empty, `at` is ISO 8601, UTC."""
    return {
        "schema": _CHANGES_SCHEMA,
        "event": "recommendations",
        "at": at,
        "changes": [change.to_json() for change in found],
    }


def _by_cell(stored: Iterable[StoredRecommendation]) -> dict[tuple[str, ...], Recommendation]:
    return {
        (s.hardware.id, r.model, r.backend, str(r.prompt_type)): r
        for s in newest(stored)
        for r in (s.recommendation,)
    }


def _kind(before: Recommendation, after: Recommendation) -> ChangeKind | None:
    if before.drafting != after.drafting:
        return ChangeKind.DRAFTING
    if before.verdict != after.verdict:
        return ChangeKind.VERDICT
    return ChangeKind.STATUS if before.status != after.status else None
