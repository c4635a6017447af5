"""Verdicts, recommendations and the limits of a drafting as values, and the JSON document of recommendations (`SCHEMA`)."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from autospec.cells import Aim, Hardware, PromptType
from autospec.drafting import OFF, Drafting

__all__ = [
    "BUILD_NOT_RECORDED",
    "CONDITIONS",
    "ENERGY",
    "FAILING",
    "LIKELY",
    "LIMITS",
    "MODEL_SETTINGS",
    "NO_LIMITS",
    "OVERALL_MIX",
    "SCHEMA",
    "SCHEMA_VERSION",
    "THRESHOLD",
    "USER_SETTINGS",
    "WITHIN_REASONING",
    "LimitCheck",
    "LimitVerdict",
    "Limits",
    "Recommendation",
    "Status",
    "StoredRecommendation",
    "Verdict",
    "document",
]

SCHEMA_VERSION = 1

# The least gain of an `enable`, as a fraction, unless a study says otherwise.
THRESHOLD: Final = 0.02

# The build of a record that names none.
BUILD_NOT_RECORDED = "not recorded"

# Keys of the evidence: the user's launch settings, those of them that the config gives this model alone, what is likely before
# the proof is finished (`autospec.tuning.build_recommendation`), where a proven drafting was checked besides (`Limits`), which prompts
# fail (`autospec.tuning.resume`), under which conditions it was proven, and the energy per token where it is known
# (`autospec.measure.energy`).
USER_SETTINGS = "user_settings"
MODEL_SETTINGS = "model_settings"
LIKELY = "likely"
LIMITS = "limits"
FAILING = "failing"
CONDITIONS = "conditions"
# Of the conditions: the share of answers that were cut while the model was reasoning; only where there are such.
WITHIN_REASONING = "within_reasoning"
ENERGY = "energy"
# The mix of prompt types that an overall answer is for (`autospec.tuning.overall`); other recommendations lack it.
OVERALL_MIX = "mix"


class Verdict(StrEnum):
    """What the evidence shows. `UNDECIDED` configures as off."""

    ENABLE = "enable"
    DISABLE = "disable"
    UNDECIDED = "undecided"


class Status(StrEnum):
    """How far a recommendation can be trusted.

    `PROVEN` rests on paired measurements of a proof on this machine; `PROVISIONAL` on a search without a proof; `STALE` was
    proven for another build or file; `IMPORTED` comes from another record.
    """

    PROVEN = "proven"
    PROVISIONAL = "provisional"
    STALE = "stale"
    IMPORTED = "imported"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A verdict with its drafting and evidence.

    Attributes:
        model: Catalogue name of the main model.
        model_path: Its path when it was tuned; empty for imported records.
        backend: Backend name.
        backend_build: The build's own name.
        prompt_type: The kind of prompt; ``None`` for a record that covers any kind.
        verdict: enable, disable or undecided.
        drafting: What to run: the proven drafting, or off unless the verdict is enable.
        tried: The best drafting tried, to which the figures belong; off if none could be tried.
        baseline_tps: Tokens per second of whole requests without drafting (geometric mean over pairs).
        drafting_tps: The same with `tried`.
        speedup: drafting ÷ off, paired; below 1 is slower. ``None`` without pairs.
        speedup_ci: Interval of `speedup` at the study's error rate.
        pairs: Number of paired measurements that the figures are of: those of the last look, if the budget ended after it.
        acceptance: accepted ÷ drafted tokens, 0…1.
        reason: One sentence.
        status: See `Status`.
        aim: What the verdict compared. Speeds are reported with either aim; of energy the verdict's figures are `ENERGY` in the evidence.
        created_at: ISO 8601, UTC.
        evidence: More figures (decode speed, prompts, identical texts, seconds spent …), JSON values only.
    """

    model: str
    model_path: str
    backend: str
    backend_build: str
    prompt_type: PromptType | None
    verdict: Verdict
    drafting: Drafting
    tried: Drafting
    baseline_tps: float | None
    drafting_tps: float | None
    speedup: float | None
    speedup_ci: tuple[float, float] | None
    pairs: int
    acceptance: float | None
    reason: str
    status: Status
    created_at: str
    evidence: dict[str, Any] = field(default_factory=dict)
    aim: Aim = Aim.SPEED

    @property
    def fails(self) -> bool:
        """Whether a prompt fails with `tried` that is answered without it."""
        told = self.evidence.get(FAILING)
        return isinstance(told, Mapping) and bool(told.get("drafted"))

    def __post_init__(self) -> None:
        if self.verdict is not Verdict.ENABLE and self.drafting != OFF:
            raise ValueError(f"a verdict of {self.verdict} configures as off")

    @property
    def is_overall(self) -> bool:
        """True for the answer for a mix of prompt types: one drafting for one server."""
        return self.prompt_type is None and OVERALL_MIX in self.evidence

    @property
    def gain(self) -> float | None:
        """What the aim compares, off ÷ drafting: times, or joules; ``None`` if it is unknown. Above 1 the drafting is better."""
        if self.aim is Aim.SPEED:
            return self.speedup
        energy = self.evidence.get(ENERGY)
        ratio = energy.get("ratio") if isinstance(energy, dict) else None
        return 1.0 / ratio if isinstance(ratio, int | float) and ratio > 0.0 else None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``recommendations`` in the document; numbers that are not finite become null."""
        return {
            "model": self.model,
            "model_path": self.model_path,
            "backend": self.backend,
            "backend_build": self.backend_build,
            "prompt_type": None if self.prompt_type is None else str(self.prompt_type),
            "verdict": str(self.verdict),
            "drafting": self.drafting.to_json(),
            "tried": self.tried.to_json(),
            "baseline_tps": _number(self.baseline_tps),
            "drafting_tps": _number(self.drafting_tps),
            "speedup": _number(self.speedup, 4),
            "speedup_ci": None if self.speedup_ci is None else [_number(v, 4) for v in self.speedup_ci],
            "pairs": self.pairs,
            "acceptance": _number(self.acceptance, 4),
            "reason": self.reason,
            "status": str(self.status),
            "aim": str(self.aim),
            "created_at": self.created_at,
            "evidence": self.evidence,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recommendation:
        """Read what `to_json` wrote.

        Raises:
            ValueError: A value is out of range or a name is unknown.
            TypeError: A value has the wrong type.
            KeyError: A required field is missing.
        """
        evidence = data.get("evidence", {})
        for name, kind in _TYPES.items():
            if not isinstance(data[name], kind):
                raise TypeError(f"{name} has the wrong type")
        if not isinstance(evidence, dict):
            raise TypeError("evidence has the wrong type")
        # A plan divides by them.
        if any(not (data[name] is None or data[name] > 0.0) for name in ("baseline_tps", "speedup")):
            raise ValueError("speeds and ratios must be above 0")
        Limits.from_json(
            evidence.get(LIMITS)
        )  # readers take it from the evidence, without a check of their own
        drafting = Drafting.from_json(data["drafting"])
        interval = data["speedup_ci"]
        return cls(
            model=data["model"],
            model_path=data["model_path"],
            backend=data["backend"],
            backend_build=data["backend_build"],
            prompt_type=None if data["prompt_type"] is None else PromptType(data["prompt_type"]),
            verdict=Verdict(data["verdict"]),
            drafting=drafting,
            tried=Drafting.from_json(data["tried"]) if "tried" in data else drafting,
            baseline_tps=data["baseline_tps"],
            drafting_tps=data["drafting_tps"],
            speedup=data["speedup"],
            speedup_ci=None if interval is None else _interval(*interval),
            pairs=data["pairs"],
            acceptance=data["acceptance"],
            reason=data["reason"],
            status=Status(data["status"]),
            created_at=data["created_at"],
            evidence=evidence,
            aim=Aim(data.get("aim", Aim.SPEED)),  # rows from before there were aims
        )


# Types of the fields that are taken from JSON as they are.
_TYPES: Final[dict[str, Any]] = {
    **dict.fromkeys(("model", "model_path", "backend", "backend_build", "reason", "created_at"), str),
    **dict.fromkeys(("baseline_tps", "drafting_tps", "speedup", "acceptance"), int | float | None),
    "pairs": int,
}


# How earlier versions, which had no field for it, noted a check that the budget cut short.
_OUT_OF_TIME = "The budget ended"


class LimitVerdict(StrEnum):
    """What a check shows: the interval of the ratio is above 1, below 1, or includes 1 (or nothing was measured)."""

    FASTER = "faster"
    SLOWER = "slower"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """A proven drafting, compared with off under one other condition.

    Attributes:
        at: Requests at once, cached tokens, temperature, or the turn of a chat.
        ratio: drafting ÷ off of the speed, or with the aim energy of the tokens per joule; ``None`` if nothing was measured.
        interval: Of `ratio`, at the study's confidence; ``None`` if nothing was measured.
        pairs: Number of paired measurements.
        verdict: See `LimitVerdict`.
        note: Why nothing was measured, or what was found besides; often empty.
        answer_tokens: Length of the usual answer; ``None`` if nothing was measured, or by an earlier version.
        out_of_time: Whether the budget ended before the check was complete, or a server gave no answer: the next tune measures it again.
    """

    at: float
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    pairs: int = 0
    verdict: LimitVerdict = LimitVerdict.OPEN
    note: str = ""
    answer_tokens: int | None = None
    out_of_time: bool = False

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "at": int(self.at) if self.at == int(self.at) and self.at >= 1 else self.at,
            "ratio": _number(self.ratio, 4),
            "interval": None if self.interval is None else [_number(v, 4) for v in self.interval],
            "pairs": self.pairs,
            "verdict": str(self.verdict),
            "note": self.note,
            "answer_tokens": self.answer_tokens,
            "out_of_time": self.out_of_time,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; a missing key is what nothing measured leaves.

        Raises:
            TypeError: A value has the wrong type.
        """
        for name in ("at", "ratio", "pairs", "answer_tokens"):
            _check_number(name, data.get(name))
        if not isinstance(data.get("note", ""), str):
            raise TypeError("note has the wrong type")
        interval = data.get("interval")
        verdict = data.get("verdict")
        note = data.get("note", "")
        return cls(
            at=data.get("at") or 0,
            ratio=data.get("ratio"),
            interval=None if interval is None else _interval(*interval),
            pairs=data.get("pairs", 0),
            verdict=LimitVerdict(verdict) if verdict in set(LimitVerdict) else LimitVerdict.OPEN,
            note=note,
            answer_tokens=data.get("answer_tokens"),
            out_of_time=data.get("out_of_time", _OUT_OF_TIME in note),
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a proven drafting holds: it is faster than off, or a loss of more than 2 % is ruled out (`autospec.tuning.limits`).

    Attributes:
        concurrent: Checks at several requests at once.
        context: Checks behind cached tokens.
        temperature: Checks at other temperatures than the proof's.
        second_turn: Checks in the second turn of a chat.
        most_concurrent: Most requests at once; ``None`` if no number was measured. 1 is what the proof itself shows.
        deepest_context: Most tokens of context; ``None`` if no depth was measured.
        highest_temperature: Highest temperature; ``None`` if no other than the proof's was measured.
    """

    concurrent: tuple[LimitCheck, ...] = ()
    context: tuple[LimitCheck, ...] = ()
    temperature: tuple[LimitCheck, ...] = ()
    second_turn: tuple[LimitCheck, ...] = ()
    most_concurrent: int | None = None
    deepest_context: int | None = None
    highest_temperature: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "concurrent": [c.to_json() for c in self.concurrent],
            "context": [c.to_json() for c in self.context],
            "temperature": [c.to_json() for c in self.temperature],
            "second_turn": [c.to_json() for c in self.second_turn],
            "most_concurrent": self.most_concurrent,
            "deepest_context": self.deepest_context,
            "highest_temperature": self.highest_temperature,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self:
        """Read the evidence's `LIMITS`; a missing key, or ``None`` for all of them, is no limit.

        Raises:
            TypeError: A value has the wrong type.
            AttributeError: Likewise.
        """
        data = data or {}
        for name in ("most_concurrent", "deepest_context", "highest_temperature"):
            _check_number(name, data.get(name))

        def checks(key: str) -> tuple[LimitCheck, ...]:
            return tuple(LimitCheck.from_json(c) for c in data.get(key) or ())

        return cls(
            concurrent=checks("concurrent"),
            context=checks("context"),
            temperature=checks("temperature"),
            second_turn=checks("second_turn"),
            most_concurrent=data.get("most_concurrent"),
            deepest_context=data.get("deepest_context"),
            highest_temperature=data.get("highest_temperature"),
        )


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class StoredRecommendation:
    """A recommendation with its machine and its `Cell.key`, or an importer's own stable key."""

    cell_key: str
    hardware: Hardware
    recommendation: Recommendation

    def to_json(self) -> dict[str, Any]:
        """The form in exports, and in the file of what the hook was told."""
        return {
            "cell_key": self.cell_key,
            "hardware": self.hardware.to_json(),
            "recommendation": self.recommendation.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[Any, Any]) -> Self:
        """Read what `to_json` wrote, or a row of the database."""
        return cls(
            data["cell_key"],
            Hardware.from_json(data["hardware"]),
            Recommendation.from_json(data["recommendation"]),
        )


def document(
    hardware: Hardware,
    recommendations: Iterable[Recommendation],
    overall: Iterable[Recommendation] | None = None,
) -> dict[str, Any]:
    """Build the document of `recommend --json`, `tune --json` and the proxy's endpoint.

    `overall` are the answers for all prompt types together; the proxy tells them, and serves each type by itself.
    """
    found: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "hardware": hardware.to_json(),
        "recommendations": [r.to_json() for r in recommendations],
    }
    if overall is not None:
        found["overall"] = [r.to_json() for r in overall]
    return found


def _interval(low: float | None, high: float | None) -> tuple[float, float]:
    # JSON has no infinity: an unbounded end is null.
    ends = 0.0 if low is None else low, math.inf if high is None else high
    if not all(isinstance(end, int | float) for end in ends):
        raise TypeError("the ends of an interval must be numbers")
    return ends


def _check_number(name: str, value: object) -> None:
    if not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
        raise TypeError(f"{name} has the wrong type")


def _number(value: float | None, digits: int = 2) -> float | None:
    if value is None or not abs(value) <= sys.float_info.max:  # also an integer beyond all floats
        return None
    return round(value, digits)


_NUMBER = {"type": ["number", "null"]}
_DRAFTING = {
    "type": "object",
    "required": ["mode"],
    "properties": {"mode": {"type": "string"}},
}

_RECOMMENDATION: dict[str, Any] = {
    "type": "object",
    "required": [
        "model", "model_path", "backend", "backend_build", "prompt_type", "verdict", "drafting",
        "baseline_tps", "drafting_tps", "speedup", "speedup_ci", "pairs", "acceptance", "reason",
        "status", "created_at",
    ],
    "properties": {
        "prompt_type": {"enum": [*[str(t) for t in PromptType], None]},
        "verdict": {"enum": [str(v) for v in Verdict]},
        "status": {"enum": [str(s) for s in Status]},
        "aim": {"enum": [str(a) for a in Aim]},
        "drafting": _DRAFTING,
        "tried": _DRAFTING,
        "baseline_tps": _NUMBER,
        "drafting_tps": _NUMBER,
        "speedup": _NUMBER,
        "speedup_ci": {
            "oneOf": [
                {"type": "null"},
                {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
            ]
        },
        "acceptance": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "pairs": {"type": "integer", "minimum": 0},
        "reason": {"type": "string", "minLength": 1},
        "created_at": {"type": "string"},
    },
}  # fmt: skip

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "autospec recommendations",
    "type": "object",
    "required": ["schema", "hardware", "recommendations"],
    "properties": {
        "schema": {"const": SCHEMA_VERSION},
        "hardware": {
            "type": "object",
            "required": ["id", "chip", "memory_bytes"],
            "properties": {
                "id": {"type": "string"},
                "chip": {"type": "string"},
                "memory_bytes": {"type": "integer", "minimum": 0},
            },
        },
        "recommendations": {"type": "array", "items": _RECOMMENDATION},
        # Answers for a mix of prompt types, with `prompt_type` null.
        "overall": {"type": "array", "items": _RECOMMENDATION},
    },
}  # fmt: skip
