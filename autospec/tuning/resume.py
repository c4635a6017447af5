"""What a tune keeps for the next one: the history of a cell, what is measured again, and what is served meanwhile."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from autospec.catalog.candidates import Candidate
from autospec.cells import Aim, Cell, Hardware
from autospec.drafting import OFF, Drafting
from autospec.errors import StoreError
from autospec.hardware.identity import host_digest
from autospec.measure.measurements import Pair, Shapes
from autospec.measure.verdict import failing_words
from autospec.recommendations import (
    FAILING,
    MODEL_SETTINGS,
    USER_SETTINGS,
    Recommendation,
    Status,
    Verdict,
)
from autospec.store.compatibility import ANY_DRAFTS, DraftFile, DraftFiles
from autospec.store.database import Store
from autospec.tuning.request import TuneRequest
from autospec.tuning.study import OPENED, RIVAL, RUNNER_UP, SEARCHED, UNTRIED, WINNER, CellStudy

__all__ = [
    "DRAFT_ID",
    "EPOCH",
    "FAILED_BEFORE",
    "REQUESTS",
    "CellHistory",
    "Remeasurement",
    "basis_digest",
    "basis_of",
    "cached_as_now",
    "compared_json",
    "drafts_of",
    "failing_json",
    "failing_of",
    "note_begin",
    "note_choice",
    "note_failing",
    "note_look",
    "note_requests",
    "note_rival",
    "renewing",
    "save_recommendation",
    "to_restart",
    "with_basis",
    "with_failing",
]

# Names of notes in a cell's study. `EPOCH` and `REQUESTS` are also keys of a proof's evidence.
EPOCH = "epoch"  # measurements before this moment (seconds since 1970) do not count
REQUESTS = "requests"  # the cell's requests, as `Shapes`
_RENEWAL = "renewal"  # the epoch that `--again` set
_PREDICTION = "prediction"
_RUNNER_UP_PREDICTION = "prediction_of_runner_up"
_RIVAL_OVER = "rival_over"  # whether the rival's proof has ended
_LOOK = "look "  # and a digest of the drafting → epoch, and rounds of the last look
# And the same digest → `Look`. A note of its own, because earlier versions read the other.
_LOOKED = "looked "
# And the same digest → epoch, the drafting, and why prompts fail with it that off answers, by prompt id.
_FAILS = "fails "
FAILED_BEFORE = "It failed in an earlier tune."
_LONGEST_REASON = 300
DRAFT_ID = "draft_id"  # key of the evidence: the identity of the draft of `tried`


@dataclass(frozen=True, slots=True)
class Remeasurement:
    """The state of one cell's re-measurement by `--again`."""

    epoch_s: float | None = None  # None if the cell has none
    finished: bool = False  # it ended, with a proof or because nothing could be measured
    holds: bool = False  # False if a finished one must be repeated, because its proof has become stale


@dataclass(frozen=True, slots=True)
class Look:
    """The last look at a drafting's proof: after how many rounds, at which pairs, and by which rules (`TuneRequest.rule_digest`).

    `enabled`: the rules by which it enabled the drafting.
    """

    rounds: int
    pairs: str
    rules: tuple[str, ...]
    enabled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CellHistory:
    """What is stored of one cell. A tune reads it once; what the tune notes itself is part of the next value.

    Attributes:
        served: The recommendation that was served when the tune began.
        proven: Whether that is a proof under the current protocol and rule.
        epoch_s: Measurements before this moment (seconds since 1970) do not count; ``None`` before the first tune.
        renewal_s: The epoch that `--again` set.
        restarts: Whether this tune measures the cell from the start.
        requests: The requests that the cell's proof is for.
        winner: The search's choice, with its draft's current path; ``None`` without one.
        runner_up: Likewise; off if there is none.
        shares_rate: Whether the search chose a runner-up, even one that can no longer be proved.
        rival: The drafting that is proved beside the enabled winner; ``None`` without one. No other takes its place: each would be one
            more chance of a wrong enable.
        rival_over: Whether its proof has ended.
        predictions: The predictions for the winner and for the runner-up, as JSON values.
        tried: Drafting → speed ratio to off of its trial.
        drafts_tried: Paths of the drafts of all trials ever made.
        searched: Identities of the drafts that searches could try; ``None`` if they did not note them.
        untried: Labels of the arms that the search had no time to try, and that could not be predicted.
        opened_for: Names of the drafts and arms for which the proven cell is measured again.
        looks: Digest of a drafting → the last look at its proof in this epoch; of an earlier version's, only the rounds are known.
        failing: Drafting → why prompts fail with it that off answers, by prompt id; of this epoch.
        rule: The digest of this tune's rule.
        drafts: Path of a draft → its identity: looks follow a draft that is moved, or that another machine has elsewhere.
    """

    served: Recommendation | None = None
    proven: bool = False
    epoch_s: float | None = None
    renewal_s: float | None = None
    restarts: bool = False
    requests: Shapes | None = None
    winner: Drafting | None = None
    runner_up: Drafting = OFF
    shares_rate: bool = False
    rival: Drafting | None = None
    rival_over: bool = False
    predictions: tuple[Any, Any] = (None, None)
    tried: Mapping[Drafting, float] = field(default_factory=lambda: MappingProxyType({}))
    drafts_tried: frozenset[str] = frozenset()
    searched: frozenset[str] | None = None
    untried: frozenset[str] = frozenset()
    opened_for: frozenset[str] = frozenset()
    looks: Mapping[str, Look] = field(default_factory=lambda: MappingProxyType({}))
    failing: Mapping[Drafting, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    rule: str = ""
    drafts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def read(cls, study: CellStudy, served: Recommendation | None, request: TuneRequest) -> Self:
        """Read the notes and trials of a cell's study.

        Raises:
            StoreError: The studies cannot be read.
        """
        notes = study.notes()
        epoch_s = notes.get(EPOCH)
        chosen_at = float(epoch_s or 0.0)
        requests, searched = notes.get(REQUESTS), notes.get(SEARCHED)
        winner = study.drafting_in(notes, WINNER, chosen_at)
        # Predictions are for the choice: without it they are those of an earlier search.
        predictions = (notes.get(_PREDICTION), notes.get(_RUNNER_UP_PREDICTION))
        return cls(
            served=served,
            proven=served is not None and _is_proven(served, request),
            epoch_s=epoch_s,
            renewal_s=notes.get(_RENEWAL),
            requests=None if requests is None else Shapes.from_json(requests),
            winner=winner,
            runner_up=study.drafting_in(notes, RUNNER_UP, chosen_at) or OFF,
            shares_rate=not (Drafting.understood(notes.get(RUNNER_UP)) or OFF).is_off,
            rival=None if winner is None else study.drafting_in(notes, RIVAL, chosen_at),
            rival_over=bool(notes.get(_RIVAL_OVER)),
            predictions=(None, None) if winner is None else predictions,
            tried={
                t.drafting: t.value for t in study.tried() if t.value is not None and not t.drafting.is_off
            },
            drafts_tried=frozenset(study.drafts_tried()),
            searched=None if searched is None else frozenset(searched),
            untried=frozenset(notes.get(UNTRIED) or ()),
            opened_for=frozenset(notes.get(OPENED) or ()),
            looks=_looks(notes, epoch_s),
            failing=_failing(study, notes, served, request.protocol),
            rule=request.rule_digest,
            drafts=study.draft_ids,
        )

    def begun_again(self) -> CellHistory:
        """The history after `CellStudy.begin_again`, whose notes and measurements no longer count."""
        return CellHistory(
            served=self.served,
            proven=self.proven,
            restarts=True,
            drafts_tried=self.drafts_tried,
            rule=self.rule,
            drafts=self.drafts,
        )

    def digest(self, drafting: Drafting) -> str:
        """Names a drafting in the study's notes, wherever its draft is."""
        path = drafting.draft
        known = drafting if path is None else replace(drafting, draft=self.drafts.get(path, path))
        return hashlib.sha256(known.key.encode()).hexdigest()[:8]

    def last_look(self, drafting: Drafting) -> int:
        """Rounds of the last look at a drafting's proof in this epoch; 0 for none."""
        look = self.looks.get(self.digest(drafting))
        return 0 if look is None else look.rounds

    def latest_look(self) -> int:
        """Rounds of the latest look at any drafting of the search's choice, or at the one that is served; 0 for none."""
        draftings = {
            self.winner,
            self.runner_up,
            self.rival,
            None if self.served is None else self.served.tried,
        }
        return max((self.last_look(d) for d in draftings if d is not None), default=0)

    def spent(self, drafting: Drafting, rounds: int, pairs: Sequence[Pair]) -> bool:
        """Whether the error rate of a look at these pairs is spent.

        Another rule's look at the same pairs is no second look: each rule has an error rate of its own. Nor is a look at the pairs that
        have enabled the drafting: its recommendation may be stale, or a kill may have kept it from being stored.
        """
        look = self.looks.get(self.digest(drafting))
        if look is None or rounds > look.rounds:
            return False
        same = (rounds, _pairs_digest(pairs)) == (look.rounds, look.pairs)
        return not same or (self.rule in look.rules and self.rule not in look.enabled)

    def remeasurement(self) -> Remeasurement:
        """The state of the re-measurement by `--again`.

        Neither clocks nor the order of writes decide: an interruption stores no proof, and a proof of another epoch belongs to
        another re-measurement.
        """
        # A tune without `--again` notes an epoch, too, and so does one that is killed before it notes the renewal.
        if self.epoch_s is None or self.renewal_s != self.epoch_s:
            return Remeasurement()
        if self.winner is not None and self.winner.is_off:
            return Remeasurement(self.epoch_s, finished=True, holds=True)
        finished = (
            self.served is not None
            and self.served.status in (Status.PROVEN, Status.STALE)
            and self.served.evidence.get(EPOCH) == self.epoch_s
        )
        return Remeasurement(self.epoch_s, finished=finished, holds=finished and self.proven)

    def news(self, drafts: Mapping[str, DraftFile], *, named: bool) -> frozenset[str]:
        """Paths of those drafts that no search of the cell could try yet; `named` if the user chose the drafts."""
        if self.searched is not None:
            return frozenset(path for path, file in drafts.items() if file.identity not in self.searched)
        # Searches of earlier versions did not note their drafts; the proof's basis has those that fitted, unless the user
        # named some.
        basis = (self.served.evidence.get("basis") if self.served is not None else None) or {}
        fitted = basis.get("drafts")
        if fitted is not None:
            known = {key.partition(":")[2] for key in fitted}
            return frozenset(path for path, file in drafts.items() if file.fingerprint not in known)
        return frozenset(drafts.keys() - self.drafts_tried) if basis and named else frozenset()

    def opens_for(self, news: Iterable[str], untried: Iterable[str], drafts: DraftFiles) -> tuple[str, ...]:
        """Names of what a proven cell is measured again for: new drafts, untried arms, and those of an interrupted tune."""
        return tuple(sorted({_name(draft, drafts) for draft in news} | {*untried} | self.opened_for))

    def why_open(
        self, names: Iterable[str], news: Iterable[str], untried: Iterable[str], drafts: DraftFiles
    ) -> str:
        """Why the proven cell is measured again (`names` as from `opens_for`); empty if it is not."""
        replaced = {_name(draft, drafts) for draft in news if draft in self.drafts_tried}
        reasons = [f"{name} was replaced by another file" for name in sorted(replaced)]
        if left := sorted(untried):
            reasons.insert(0, f"there was no time to try {' and '.join(left)}")
        if new := sorted(set(names) - replaced - {*left}):
            were = "was" if len(new) == 1 else "were"
            reasons.insert(0, f"{' and '.join(new)} {were} not among the drafts tried")
        if not reasons and self.served is not None:
            proof = self.served
            today = drafts.today(proof.drafting, str(proof.evidence.get(DRAFT_ID) or ""), math.inf)
            if today not in (None, proof.drafting):
                return f"its draft model is now {today.draft}"
        return ", and ".join(reasons)


def _name(draft: str, drafts: DraftFiles) -> str:
    file = drafts.by_path.get(draft)
    return Path(draft).name if file is None else file.name


def _is_proven(served: Recommendation, request: TuneRequest) -> bool:
    return (
        served.status is Status.PROVEN
        and served.evidence.get("protocol") == request.protocol
        and served.evidence.get("rule") == request.rule_digest
    )


def _pairs_digest(pairs: Sequence[Pair]) -> str:
    """Twelve hex digits of what was measured, however it is composed and judged."""
    told = sorted((p.off.round, p.off.prompt_id, p.off.launch_id, p.drafted.launch_id) for p in pairs)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def _looks(notes: Mapping[str, Any], epoch_s: float | None) -> dict[str, Look]:
    found = {}
    for name, note in notes.items():
        if not name.startswith(_LOOK) or not note or note[0] != epoch_s:
            continue
        digest, rounds = name.removeprefix(_LOOK), int(note[1])
        epoch, looked_rounds, pairs, rules, *enabled = notes.get(_LOOKED + digest) or (None, 0, "", ())
        # A kill between the two notes, or an earlier version since, leaves one of another look.
        same = (epoch, looked_rounds) == (epoch_s, rounds)
        found[digest] = (
            Look(rounds, pairs, tuple(rules), *map(tuple, enabled)) if same else Look(rounds, "", ())
        )
    return found


def _failing(
    study: CellStudy, notes: Mapping[str, Any], served: Recommendation | None, protocol: str
) -> dict[Drafting, Mapping[str, str]]:
    """The prompts that fail with drafting only, as earlier tunes of this epoch have found out."""
    epoch_s = notes.get(EPOCH)
    found: dict[Drafting, Mapping[str, str]] = {}
    for name, note in notes.items():
        if name.startswith(_FAILS) and note and note["epoch"] == epoch_s:
            drafting = study.drafting_in(note, "drafting", float(epoch_s or 0.0))
            if drafting is not None:
                found[drafting] = {**found.get(drafting, {}), **note["prompts"]}
    # The first version that found them noted them in the evidence only.
    evidence = {} if served is None else served.evidence
    if served is not None and (evidence.get("protocol"), evidence.get(EPOCH)) == (protocol, epoch_s):
        for drafting, ids in failing_of(served, study.drafts).items():
            if not drafting.is_off:
                found.setdefault(drafting, dict.fromkeys(sorted(ids), FAILED_BEFORE))
    return found


def to_restart(states: Mapping[str, Remeasurement]) -> set[str]:
    """Keys of the cells that `--again` measures from the start; the others continue, or are finished.

    While any cell is unfinished, `--again` continues with that re-measurement, however often it is interrupted; once all
    are finished, it starts another one for all of them.
    """
    unfinished = [s.epoch_s for s in states.values() if s.epoch_s is not None and not s.finished]
    if not unfinished:
        return set(states)
    # Cells whose epoch is older than this re-measurement belong to an earlier one: a kill came between the cells.
    oldest_s = min(unfinished)
    return {
        key
        for key, s in states.items()
        if s.epoch_s is None or s.epoch_s < oldest_s or (s.finished and not s.holds)
    }


# What a tune notes in a cell's study: its begin, the search's choice, the looks of the proof. Each returns the new history.


def note_begin(
    study: CellStudy, history: CellHistory, now_s: float, usual: Shapes, opened_for: Sequence[str]
) -> CellHistory:
    """Note an epoch and the requests of the proof, unless an earlier tune's still count.

    An epoch in the future was noted by a clock that was ahead, and would leave out all that is measured until then: it begins now.
    A proof stays for the requests that it began with, even if the traffic (`usual`) has changed since. What the server's prompt
    cache does counts as it is now: earlier versions did not note it.
    """
    noted = history.requests
    requests = usual if noted is None else cached_as_now(noted, usual)
    begins = history.epoch_s is None or history.epoch_s > now_s
    again = history.remeasurement()
    renews = history.restarts or (begins and again.epoch_s is not None and not again.finished)
    begun = replace(
        history,
        epoch_s=now_s if begins else history.epoch_s,
        requests=requests,
        renewal_s=now_s if renews else history.renewal_s,
    )
    if begins:
        for digest, look in history.looks.items():
            _keep_look(study, begun, digest, look)
        for drafting, reasons in history.failing.items():
            begun = note_failing(study, begun, drafting, reasons)
        study.note(EPOCH, now_s)
    if requests != noted:
        study.note(REQUESTS, requests.to_json())
    if opened_for:
        study.note(OPENED, list(opened_for))
    if renews:
        study.note(_RENEWAL, now_s)
    return begun


def cached_as_now(noted: Shapes, usual: Shapes) -> Shapes:
    """The noted requests of a proof with what the prompt cache does to the usual ones."""
    traffic = noted.traffic
    # How much of its prompts drafting would compute was not noted, so today's traffic, or the suite, stands for it.
    if traffic is not None and usual.drafts_uncached is (traffic.drafted_prompt_tokens is None):
        traffic = usual.traffic
    return replace(noted, traffic=traffic, drafts_uncached=usual.drafts_uncached)


def note_requests(study: CellStudy, history: CellHistory, requests: Shapes) -> CellHistory:
    """Note what else became known of the requests of the proof: what a longer context costs."""
    if history.requests == requests:
        return history
    study.note(REQUESTS, requests.to_json())
    return replace(history, requests=requests)


def note_choice(
    study: CellStudy,
    history: CellHistory,
    winner: Drafting,
    runner_up: Drafting,
    predictions: tuple[Any, Any],
    *,
    untried: Iterable[str] = (),
) -> CellHistory:
    """Note winner and runner-up of a searched cell, the predictions for both (``None`` for none), and the untried arms."""
    for name, figures in zip((_PREDICTION, _RUNNER_UP_PREDICTION), predictions, strict=True):
        study.note(name, figures)
    study.note_searched(history.searched or ())
    study.note(UNTRIED, sorted(untried))
    study.note(RIVAL, None)  # it was another winner's
    study.note_drafting(RUNNER_UP, runner_up)
    study.note_drafting(WINNER, winner)  # last: if it is there, all of them are
    return replace(
        history,
        winner=winner,
        runner_up=runner_up,
        shares_rate=not runner_up.is_off,
        rival=None,
        predictions=predictions,
        untried=frozenset(untried),
    )


def note_rival(study: CellStudy, history: CellHistory, rival: Drafting, *, over: bool) -> CellHistory:
    """Note the drafting that is proved beside the enabled winner, and whether its proof has ended: if not, the next tune goes on with it."""
    with suppress(StoreError):  # if the studies' machine no longer answers, the proof continues
        study.note(_RIVAL_OVER, over)
        if history.rival != rival:
            study.note_drafting(RIVAL, rival)
    return replace(history, rival=rival, rival_over=over)


def note_look(
    study: CellStudy,
    history: CellHistory,
    drafting: Drafting,
    rounds: int,
    pairs: Sequence[Pair],
    *,
    enabled: bool = False,
) -> CellHistory:
    """Note a look at a drafting's proof after these rounds: by this rule, no later tune may enable at it unless this one did."""
    digest, rule = history.digest(drafting), (history.rule,)
    look = Look(rounds, _pairs_digest(pairs), rule, rule if enabled else ())
    before = history.looks.get(digest)
    if before is not None and (before.rounds, before.pairs) == (look.rounds, look.pairs):
        earlier = tuple(r for r in before.enabled if r != history.rule)
        look = replace(
            look,
            rules=tuple(dict.fromkeys((*before.rules, history.rule))),
            enabled=(*earlier, *look.enabled),
        )
    _keep_look(study, history, digest, look)
    return replace(history, looks={**history.looks, digest: look})


def _keep_look(study: CellStudy, history: CellHistory, digest: str, look: Look) -> None:
    with suppress(StoreError):  # if the studies' machine no longer answers, the proof continues
        seen = [history.epoch_s, look.rounds, look.pairs, list(look.rules), list(look.enabled)]
        study.note(_LOOKED + digest, seen)
        study.note(_LOOK + digest, [history.epoch_s, look.rounds])


def note_failing(
    study: CellStudy, history: CellHistory, drafting: Drafting, reasons: Mapping[str, str]
) -> CellHistory:
    """Note why prompts fail with a drafting that off answers, by prompt id: no tune of this epoch enables it."""
    reasons = {prompt_id: why[:_LONGEST_REASON] for prompt_id, why in reasons.items()}
    note = {
        "epoch": history.epoch_s,
        "drafting": drafting.to_json(),
        "drafting_draft_id": study.draft_id(drafting) or None,
        "prompts": reasons,
    }
    with suppress(StoreError):  # if the studies' machine no longer answers, the tune itself knows it
        study.note(_FAILS + history.digest(drafting), note)
    return replace(history, failing={**history.failing, drafting: reasons})


# Prompts that fail, as the evidence has them.


def failing_of(r: Recommendation, drafts: DraftFiles = ANY_DRAFTS) -> dict[Drafting, frozenset[str]]:
    """Ids of the prompts that fail with a drafting and not without, by drafting with its draft's path of today.

    Those of off are the prompts of the proof that fail without drafting.
    """
    noted = r.evidence.get(FAILING)
    told = noted if isinstance(noted, Mapping) else {}
    found = {OFF: frozenset(told.get("off", ()))}
    sides = [
        (r.tried, r.evidence.get(DRAFT_ID), told.get("drafted", ())),
        *(
            (Drafting.understood(entry.get("drafting")), entry.get("draft_id"), entry.get("prompts", ()))
            for entry in told.get("others", ())
        ),
    ]
    for drafting, identity, ids in sides:
        today = None if drafting is None else drafts.today(drafting, str(identity or ""), math.inf)
        if ids and today is not None and not today.is_off:
            found[today] = found.get(today, frozenset()) | frozenset(ids)
    return found


def failing_json(
    tried: Drafting, failing: Mapping[Drafting, frozenset[str]], identity: Callable[[Drafting], str]
) -> dict[str, Any] | None:
    """What `failing_of` reads; ``None`` if no prompt fails. `identity` returns that of a drafting's draft."""
    others = [
        {"drafting": drafting.to_json(), "draft_id": identity(drafting) or None, "prompts": sorted(ids)}
        for drafting, ids in sorted(failing.items(), key=lambda item: item[0].key)
        if ids and drafting not in (OFF, tried)
    ]
    drafted = () if tried.is_off else failing.get(tried, ())
    told: dict[str, Any] = {"off": sorted(failing.get(OFF, ())), "drafted": sorted(drafted)}
    if not (others or any(told.values())):
        return None
    return told | ({"others": others} if others else {})


def with_failing(
    r: Recommendation,
    found: Mapping[Drafting, frozenset[str]],
    drafts: DraftFiles = ANY_DRAFTS,
    *,
    where: str = "",
) -> Recommendation:
    """The recommendation with more failing prompts, as from `failing_of`; itself if all are known.

    A drafting with which one fails is not enabled any more; `where` is the end of the reason.
    """
    known = failing_of(r, drafts)
    merged = known | {d: known.get(d, frozenset()) | ids for d, ids in found.items() if ids}
    if merged != known:
        told = failing_json(_tried_today(r, drafts), merged, drafts.identity)
        r = replace(r, evidence={**r.evidence, FAILING: told})
    fails = len(merged.get(_tried_today(r, drafts), ()))
    if fails and r.verdict is Verdict.ENABLE:
        r = replace(r, verdict=Verdict.UNDECIDED, drafting=OFF, reason=f"{failing_words(fails, where)}.")
    return r


def _tried_today(r: Recommendation, drafts: DraftFiles) -> Drafting:
    return drafts.today(r.tried, str(r.evidence.get(DRAFT_ID) or ""), math.inf) or r.tried


# What a verdict rests on.


def drafts_of(fitting: Iterable[Candidate], *, named: bool) -> dict[str, str] | None:
    """The set of fitting drafts: mode and fingerprint → name; ``None`` if the user named the drafts to try."""
    return None if named else {f"{c.mode}:{c.model.fingerprint}": c.model.name for c in fitting}


def basis_of(cell: Cell, drafts: Mapping[str, str] | None) -> dict[str, Any]:
    """Everything besides the measurements that a verdict of this cell rests on, as JSON values; `drafts` as from `drafts_of`."""
    # The key is missing with the aim speed, so that bases from before there were aims stay equal.
    aim = {} if cell.aim is Aim.SPEED else {"aim": str(cell.aim)}
    return aim | {
        "host": host_digest(),
        "hardware": cell.hardware.id,
        "os": cell.hardware.os,
        "model": cell.model.fingerprint,
        "build": cell.build.version,
        "build_fingerprint": cell.build.fingerprint,
        "settings": list(cell.settings),
        "drafts": None if drafts is None else dict(drafts),
    }


def basis_digest(basis: Mapping[str, Any]) -> str:
    """Twelve hex digits that differ if two bases do; names of drafts do not count."""
    drafts = basis.get("drafts")
    plain = {**basis, "drafts": None if drafts is None else sorted(drafts)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def with_basis(
    recommendation: Recommendation,
    cell: Cell,
    drafts: Mapping[str, str] | None,
    *,
    draft_id: str = "",
    user_settings: Sequence[str] | None = None,
    model_settings: Sequence[str] = (),
) -> Recommendation:
    """The recommendation with its basis in the evidence.

    `draft_id` identifies the tried drafting's draft. `user_settings` are the user's own launch settings; the cell's settings
    include those that measuring adds. `model_settings` are those of them that the config gives this model alone.
    """
    evidence = {**recommendation.evidence, "basis": basis_of(cell, drafts)}
    if draft_id:
        evidence[DRAFT_ID] = draft_id
    if user_settings is not None:
        evidence[USER_SETTINGS] = list(user_settings)
    if model_settings:
        evidence[MODEL_SETTINGS] = list(model_settings)
    return replace(recommendation, evidence=evidence)


# What is served meanwhile.


def save_recommendation(
    store: Store,
    recommendation: Recommendation,
    hardware: Hardware,
    cell: Cell,
    stands: Recommendation | None = None,
) -> None:
    """Store a cell's recommendation, but keep serving a proven one, even a stale one, until there is a new proof.

    `stands` is a proof that holds, of a cell that is measured again for further drafts only: only a better proof replaces it.
    What is kept gets the prompts that were found to fail.
    """
    new: Recommendation | None = recommendation
    found = failing_of(recommendation, store.drafts)
    if recommendation.status is Status.PROVEN:
        if stands is not None:
            stands = with_failing(stands, found, store.drafts)
            new = (
                recommendation
                if _better(recommendation, stands)
                else _with_comparison(stands, recommendation)
            )
    else:
        # Not `CellHistory.served`: the daemon may have marked it as stale since.
        stored = store.recommendations(cell_keys=[cell.key])
        if stored and stored[0].recommendation.status in (Status.PROVEN, Status.STALE):
            kept = stored[0].recommendation
            if any(
                kept.evidence.get(name) != recommendation.evidence.get(name) for name in ("protocol", EPOCH)
            ):
                found.pop(OFF)  # other pairs: what off cannot answer now is no part of that proof
            new = with_failing(renewing(kept) or kept, found, store.drafts)
            if new.verdict is not kept.verdict and recommendation.tried == _tried_today(kept, store.drafts):
                new = recommendation  # it holds no more: the next tune goes on with the runner-up
            new = None if new is kept else new
    if new is not None:
        store.save_recommendation(new, hardware, cell)


def renewing(served: Recommendation | None) -> Recommendation | None:
    """A stale recommendation marked as being measured again; ``None`` if there is nothing to mark.

    Store it as soon as measuring starts, because a kill leaves no time at the end: the next tune then continues instead of
    starting over.
    """
    if served is None or served.status is not Status.STALE or served.evidence.get("renewing"):
        return None
    return replace(served, evidence={**served.evidence, "renewing": True})


def _better(new: Recommendation, old: Recommendation) -> bool:
    if old.verdict is not Verdict.ENABLE:
        return True
    return new.verdict is Verdict.ENABLE and (new.gain or 0.0) > (old.gain or 0.0)


def compared_json(r: Recommendation) -> dict[str, Any]:
    """A proof as the evidence of the one that it was compared with."""
    figures = r.to_json()
    return {
        "drafting": figures["tried"],
        **{name: figures[name] for name in ("speedup", "speedup_ci", "verdict")},
        "rounds": r.evidence.get("rounds"),
    }


def _with_comparison(old: Recommendation, new: Recommendation) -> Recommendation:
    """The proof that stays, with the drafting it was compared with, resting on the current drafts."""
    compared = compared_json(new)
    known = [p for p in old.evidence.get("also_proved", ()) if p.get("drafting") != compared["drafting"]]
    basis = new.evidence.get("basis", old.evidence.get("basis"))
    return replace(old, evidence={**old.evidence, "also_proved": [*known, compared], "basis": basis})
