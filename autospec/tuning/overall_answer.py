"""The overall answer as it is stored: what the store knows of each prompt type, and the answer as a recommendation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.measurements import Pair, Phase, Shapes
from autospec.measure.verdict import DEFAULT_RULE, Rule
from autospec.recommendations import (
    CONDITIONS,
    LIMITS,
    OVERALL_MIX,
    USER_SETTINGS,
    Recommendation,
    Status,
    StoredRecommendation,
    Verdict,
)
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.store.database import Store
from autospec.tuning.cell import acceptance
from autospec.tuning.overall import Known, Overall, choose, mix_of, own_ratio
from autospec.tuning.resume import DRAFT_ID, EPOCH, REQUESTS, cached_as_now, failing_of
from autospec.tuning.tasks import StoredPairs

__all__ = [
    "earlier_looks",
    "for_mix",
    "known_types",
    "looks_json",
    "noted_looks",
    "requests_of",
    "rule_of",
    "to_recommendation",
    "wanted_pairs",
]

# Key of an overall answer's evidence: the drafting whose pairs the next tune of its prompt types asks, or null.
_NEXT = "next"


def known_types(
    store: Store, found: Iterable[StoredRecommendation], prompts: Mapping[PromptType, int]
) -> dict[PromptType, Known]:
    """The figures of each type, from its recommendation and the pairs of its proofs.

    Args:
        store: The database.
        found: The recommendations of one model's cells with the same build, machine and settings.
        prompts: Type → number of prompts that a whole proof asks, where it is known.
    """
    found = list(found)
    noted = [told for s in found if (told := requests_of(s.recommendation.evidence, store)) is not None]
    # They are of one build: what one of them says of its prompt cache holds for those that an earlier version proved.
    usual = Shapes(drafts_uncached=True) if any(shapes.drafts_uncached for shapes in noted) else None
    return {
        s.recommendation.prompt_type: Known(
            recommendation=s.recommendation,
            pairs=_pairs(store, s.cell_key, s.recommendation.evidence, usual),
            predicted=_predicted(s.recommendation),
            prompts=prompts.get(s.recommendation.prompt_type),
            failing=failing_of(s.recommendation, store.drafts),
        )
        for s in found
        if s.recommendation.prompt_type is not None
    }


def requests_of(evidence: Mapping[str, Any], store: Store) -> Shapes | None:
    """The requests that a verdict is for, for the drafts of today; ``None`` if it does not say."""
    told = evidence.get(REQUESTS)
    return Shapes.from_json(told).followed(store.drafts.identities) if told else None


def _pairs(
    store: Store, cell_key: str, evidence: Mapping[str, Any], usual: Shapes | None
) -> dict[Drafting, list[Pair]]:
    protocol, shapes = evidence.get("protocol"), requests_of(evidence, store)
    if not protocol or shapes is None:
        return {}
    since_s = float(evidence.get(EPOCH) or 0.0)
    if usual is not None:
        shapes = cached_as_now(shapes, usual)
    stored = StoredPairs(store, protocol, {cell_key: since_s}, {cell_key: shapes})
    rows = store.measurements(cell_key, protocol=protocol, phase=Phase.PROVE, since=since_s)
    found = {d: stored.known(cell_key, d, Phase.PROVE) for d in dict.fromkeys(m.compared for m in rows)}
    return {drafting: pairs for drafting, pairs in found.items() if pairs}


def _predicted(r: Recommendation) -> dict[Drafting, float]:
    prediction = r.evidence.get("prediction")
    if not isinstance(prediction, Mapping):
        return {}
    found = {
        drafting: float(entry["expected"])
        for entry in prediction.get("candidates") or ()
        if (drafting := Drafting.understood(entry["drafting"])) is not None
    }
    if prediction.get("expected") and prediction.get("trusted") and not r.tried.is_off:
        found[r.tried] = float(prediction["expected"])
    return found


def noted_looks(answers: Iterable[Recommendation], known: Mapping[PromptType, Known]) -> list[dict[str, Any]]:
    """The looks of stored answers that did not enable a drafting, without those whose types were measured from the start since."""
    found = []
    for r in answers:
        mixed = [e["prompt_type"] for e in r.evidence.get("types", ())]
        for entry in ({"types": mixed, **e} for e in r.evidence.get("looks") or ()):
            own = _looked_at(entry, known)
            if not own or entry["since"] >= _since_s(own):
                found.append(entry)
    return found


def earlier_looks(
    noted: Iterable[Mapping[str, Any]], known: Mapping[PromptType, Known], drafts: DraftFiles
) -> dict[Drafting, int]:
    """Drafting, with its draft's path of today → rounds of the latest noted look at pairs of `known`."""
    looks: dict[Drafting, int] = {}
    for entry in noted:
        if _looked_at(entry, known):
            for drafting in _today(entry, drafts):
                looks[drafting] = max(int(entry["rounds"]), looks.get(drafting, 0))
    return looks


def _looked_at(entry: Mapping[str, Any], known: Mapping[PromptType, Known]) -> dict[PromptType, Known]:
    """The types that a look was at, if they have pairs of its protocol today; earlier versions did not note it."""
    own = {kind: figures for kind, figures in known.items() if kind in entry["types"]}
    told = {figures.recommendation.evidence.get("protocol") for figures in own.values()}
    return own if entry.get("protocol") in (None, *told) else {}


def looks_json(
    looked: Mapping[Drafting, int],
    noted: Iterable[Mapping[str, Any]],
    answer: Overall,
    *,
    drafts: DraftFiles,
    protocol: str,
) -> list[dict[str, Any]]:
    """What `noted_looks` reads: the earlier looks, and those of `looked` that are later."""
    own = [str(kind) for kind in answer.known]
    kept: list[dict[str, Any]] = []
    before: dict[Drafting, int] = {}
    identities: dict[Drafting, str] = {}
    for entry in noted:
        draftings = _today(entry, drafts) if entry.get("protocol") in (None, protocol) else []
        for drafting in draftings:
            before[drafting] = max(int(entry["rounds"]), before.get(drafting, 0))
            identities[drafting] = entry.get("draft_id") or identities.get(drafting, "")
        later = draftings and all(looked.get(d, 0) > int(entry["rounds"]) for d in draftings)
        if not (later and set(entry["types"]) == set(own)):
            kept.append(dict(entry))
    return kept + [
        {
            "drafting": drafting.to_json(),
            "draft_id": drafts.identity(drafting) or identities.get(drafting) or None,
            "rounds": rounds,
            "since": _since_s(answer.known),
            "protocol": protocol,
            "types": own,
        }
        for drafting, rounds in looked.items()
        if rounds > before.get(drafting, 0)
    ]


def _today(entry: Mapping[str, Any], drafts: DraftFiles) -> list[Drafting]:
    """The drafting of a noted look with its draft's path of today; none if the draft was replaced."""
    drafting, identity = Drafting.understood(entry["drafting"]), str(entry.get("draft_id") or "")
    if drafting is None:
        return []
    if drafting.draft is not None and not identity and drafting.draft not in drafts.by_path:
        # An earlier version noted the path alone. If the draft was moved since, it may be any of these.
        return [drafting, *(dataclasses.replace(drafting, draft=path) for path in drafts.by_path)]
    today = drafts.today(drafting, identity, math.inf)
    return [] if today is None else [today]


def _since_s(known: Mapping[PromptType, Known]) -> float:
    """When the newest of the types' measurements began to count, in seconds since the epoch."""
    return max((float(k.recommendation.evidence.get(EPOCH) or 0.0) for k in known.values()), default=0.0)


def rule_of(found: Iterable[Recommendation]) -> Rule:
    """The rule that the cells' verdicts used, as far as their evidence tells it."""
    told = [r.evidence for r in found if "threshold" in r.evidence and "error_rate" in r.evidence]
    if not told:
        return DEFAULT_RULE
    return dataclasses.replace(
        DEFAULT_RULE,
        threshold=max(float(e["threshold"]) for e in told),
        error_rate=min(float(e["error_rate"]) for e in told),
    )


def to_recommendation(
    answer: Overall, rule: Rule, *, args: Sequence[str] = (), command: Sequence[str] = ()
) -> Recommendation:
    """The answer as a recommendation for any prompt type; some type must be known.

    `args` are the server arguments of `tried` in this build, `command` the whole command.
    """
    like = next(iter(answer.known.values())).recommendation
    enabled = answer.verdict is Verdict.ENABLE
    estimate = None if answer.decision is None else answer.decision.estimate
    pairs = [p for known in answer.known.values() for p in known.pairs.get(answer.tried, ())]
    baseline_tps = _baseline_tps(answer)
    speedup = None if estimate is None else estimate.ratio
    interval = None if estimate is None else estimate.interval
    status = Status.PROVEN if answer.final else Status.PROVISIONAL
    kept: tuple[str, ...] = ("settings", USER_SETTINGS, "basis")
    decided = {} if answer.decision is None else answer.decision.to_json()
    if len(answer.mix.shares) == 1:  # the answer is that type's own
        baseline_tps, speedup, interval = like.baseline_tps, like.speedup, like.speedup_ci
        status, kept = like.status, (*kept, *decided, CONDITIONS, LIMITS)
    served = answer.ratio if enabled else 1.0
    slows = [
        str(kind)
        for kind in answer.mix.shares
        if (found := answer.ratio_of(kind, answer.tried)) is not None and found[0] < 1.0
    ]
    evidence: dict[str, Any] = {
        OVERALL_MIX: answer.mix.to_json(),
        "types": [_type_json(answer, kind) for kind in answer.mix.shares],
        "expected": round(answer.ratio, 4),
        "one_per_type": round(answer.by_type, 4),
        "loses": round(max(0.0, 1.0 - served / answer.by_type), 4),
        "slows": slows,
        "lacks": [str(kind) for kind in answer.lacks],
        "candidates": [
            {
                "drafting": c.drafting.to_json(),
                "ratio": round(c.ratio, 4),
                "lacks": [str(kind) for kind in c.lacking],
                "verdict": str(Verdict.UNDECIDED if c.decision is None else c.decision.verdict),
            }
            for c in answer.candidates
        ],
        _NEXT: None if answer.next.is_off else answer.next.to_json(),
        "args": list(args),
        "command": list(command),
        "threshold": rule.threshold,
        "error_rate": rule.error_rate,
        "rounds": answer.rounds,
    }
    evidence |= decided | {name: like.evidence[name] for name in kept if name in like.evidence}
    return Recommendation(
        model=like.model,
        model_path=like.model_path,
        backend=like.backend,
        backend_build=like.backend_build,
        prompt_type=None,
        verdict=answer.verdict,
        drafting=answer.tried if enabled else OFF,
        tried=answer.tried,
        baseline_tps=baseline_tps,
        drafting_tps=None if baseline_tps is None or speedup is None else baseline_tps * speedup,
        speedup=speedup,
        speedup_ci=interval,
        pairs=len(pairs),
        acceptance=acceptance(pairs),
        reason=f"{answer.reason[0].upper()}{answer.reason[1:]}.",
        status=status,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        evidence=evidence,
    )


def wanted_pairs(answer: Recommendation) -> tuple[Drafting, float] | None:
    """The drafting whose pairs a tune of all prompt types of a stored answer would ask; ``None`` if it would ask nothing.

    With it comes the expected speed of the mix ÷ that with what the answer enables.
    """
    evidence = answer.evidence
    expected = {
        drafting: float(c["ratio"])
        for c in evidence.get("candidates") or ()
        if (drafting := Drafting.understood(c["drafting"])) is not None
    }
    if _NEXT in evidence:
        told = evidence[_NEXT]
        wanted = OFF if told is None else Drafting.understood(told)
    else:  # written by an earlier version
        pays = expected.get(answer.tried, 1.0) > 1.0 + DEFAULT_RULE.worth_proving
        wanted = answer.tried if evidence.get("lacks") and pays else OFF
    if wanted not in expected:
        return None
    return wanted, expected[wanted] / expected.get(answer.drafting, 1.0)


def _type_json(answer: Overall, kind: PromptType) -> dict[str, Any]:
    found, known = answer.ratio_of(kind, answer.tried), answer.known.get(kind)
    own = None if known is None else own_ratio(known)
    return {
        "prompt_type": str(kind),
        "share": round(answer.mix.shares[kind], 4),
        "time_share": round(answer.time_shares[kind], 4),
        "ratio": None if found is None else round(found[0], 4),
        "source": None if found is None else found[1],
        "pairs": 0 if known is None else len(known.pairs.get(answer.tried, ())),
        "prompts": None if known is None else known.prompts,
        "cell": None if known is None else known.recommendation.evidence.get("cell"),
        "created_at": None if known is None else known.recommendation.created_at,
        "own": None
        if known is None or own is None
        else {"drafting": known.recommendation.drafting.to_json(), "ratio": round(own[0], 4)},
    }


def _baseline_tps(answer: Overall) -> float | None:
    """Tokens per second of the mix without drafting; ``None`` if the request of some type is unknown."""
    told = [
        (share * known.answer_tokens, known.recommendation.baseline_tps or 0.0)
        for kind, share in answer.mix.shares.items()
        if (known := answer.known.get(kind)) is not None
    ]
    if len(told) < len(answer.mix.shares) or not all(tokens > 0.0 < tps for tokens, tps in told):
        return None
    return math.fsum(tokens for tokens, _ in told) / math.fsum(tokens / tps for tokens, tps in told)


def for_mix(
    store: Store,
    stored: Iterable[StoredRecommendation],
    answers: Iterable[Recommendation],
    weights: Mapping[PromptType, float],
) -> list[Recommendation]:
    """Overall answers for a mix that the user asks for, from what is stored; nothing is measured.

    One server can only run what was measured with the same build, file and settings: of each model on a machine and backend, the
    newest such group counts, and types that it lacks are told as lacking.

    Args:
        store: The database.
        stored: The recommendations, of any models and backends.
        answers: Overall answers, of any launches: they know how many prompts a proof has, and which looks were taken.
        weights: Prompt type → weight.
    """
    groups: dict[tuple[str, str, str], dict[str, list[StoredRecommendation]]] = {}
    for s in stored:
        r = s.recommendation
        if r.prompt_type is not None:
            launches = groups.setdefault((r.model, r.backend, s.hardware.id), {})
            launches.setdefault(_launch_of(r), []).append(s)
    answers = list(answers)
    asked = {
        e["cell"]: int(e["prompts"])
        for r in answers
        for e in r.evidence.get("types", ())
        if e.get("cell") and e.get("prompts")
    }
    found = []
    for launches in groups.values():
        newest = {
            max(told): own
            for own in launches.values()
            if (told := [r.created_at for s in own if (r := s.recommendation).prompt_type in weights])
        }
        if not newest:
            continue
        own = newest[max(newest)]
        prompts = {
            kind: asked[cell]
            for s in own
            if (cell := s.recommendation.evidence.get("cell")) in asked
            and (kind := s.recommendation.prompt_type) is not None
        }
        store.drafts = _drafts_of(own)
        known = known_types(store, own, prompts)
        rule = rule_of(k.recommendation for k in known.values())
        cells = {s.recommendation.evidence.get("cell") for s in own} - {None}
        of_these = [r for r in answers if any(e.get("cell") in cells for e in r.evidence.get("types", ()))]
        looked = earlier_looks(noted_looks(of_these, known), known, store.drafts)
        answer = choose(known, mix_of(known, (), weights), rule, _scatter_of(known), looked=looked)
        if answer.known:
            found.append(to_recommendation(answer, rule, **_commands(answer)))
    return found


def _drafts_of(stored: Iterable[StoredRecommendation]) -> DraftFiles:
    """The drafts as the newest recommendations name them: the pairs of a moved draft count, those of a replaced one do not."""
    named: dict[str, str] = {}
    for r in sorted((s.recommendation for s in stored), key=lambda r: r.created_at):
        path, identity = r.tried.draft, r.evidence.get(DRAFT_ID)
        if path is not None and identity:
            named = {p: i for p, i in named.items() if i != identity} | {path: str(identity)}
    return DraftFiles({path: DraftFile(identity) for path, identity in named.items()})


def _launch_of(r: Recommendation) -> str:
    """What `Cell.launch_key` is made of, as far as a recommendation of a model, backend and machine tells it."""
    basis = r.evidence.get("basis")
    told = basis if isinstance(basis, Mapping) else {}
    parts = [
        told.get("model", r.model_path),
        told.get("build", r.backend_build),
        told.get("build_fingerprint"),
        told.get("settings", r.evidence.get("settings")),
    ]
    return json.dumps(parts, sort_keys=True)


def _scatter_of(known: Mapping[PromptType, Known]) -> LaunchScatter:
    """The scatter of launches that the newest verdict knew."""
    newest = sorted(known.values(), key=lambda k: k.recommendation.created_at)
    told = [e for k in newest if isinstance(e := k.recommendation.evidence.get("launch_scatter"), Mapping)]
    if not told:
        return LaunchScatter()
    return LaunchScatter(*(told[-1][name] for name in ("sd", "freedom", "resolution", "comparisons")))


def _commands(answer: Overall) -> dict[str, Sequence[str]]:
    """The server arguments of the answer's drafting, as some prompt type's recommendation has them."""
    for known in answer.known.values():
        r = known.recommendation
        if r.tried == answer.tried and r.evidence.get("args"):
            return {"args": r.evidence["args"], "command": r.evidence.get("command", ())}
    return {}
