"""The space of draftings: what may be tried, and how Optuna's parameters become a drafting.

An *arm* is a mode, with its draft model if it has one, and the draft-free modes beside it. Optuna chooses the arm and then only that arm's own parameters, so a
trial never has a p-min for an n-gram mode. All drafts of a mode share its parameters: a good n_max for one draft is a good
guess for another. Optuna proposes no modes beside a draft model: such draftings come from the best ones of single modes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import PurePath
from typing import Any, Protocol

from autospec.drafting import OFF, Drafting, Engine, Mode
from autospec.store.compatibility import DraftFile, DraftFiles
from autospec.tuning.definition import SpaceDefinition

__all__ = ["Arm", "Space"]

_P_MIN_STEP = 0.05
_OFF_ARM = "off"
# N-gram sizes that are predicted: denser where a step matters more.
_NGRAM_N = (3, 4, 6, 8, 12, 16, 24)
_NGRAM_M = (8, 12, 16, 24, 32, 48)
_MOD_N_MAX = (*_NGRAM_M, 64)
# n_min drops shorter drafts. A draft model's draft is shorter than n_max only if a p-min ends it, and n_min 1 drops nothing:
# such draftings equal those with n_min 0. Few combinations are worth a place in the grid.
_N_MIN = (2, 4, 8)
_N_MIN_N_MAX = (4, 8, 12, 16, 24, 32)
_N_MIN_P_MIN = (0.2, 0.4, 0.6, 0.8)
# ngram-mod drafts until its table has no next token. Its n_min is searched as a share of n_max, in quarters.
_MOD_SHARE_STEP = 0.25
_MOD_SHARES = (0.5, 0.75)
_MOD_N_MIN_N_MAX = (16, 32)
# Leaders of each kind of arm, in the order in which they are tried. They include llama.cpp's own defaults (b11434):
# n_max 3; n 12 and m 48; match 24, n_max 64 and n_min 48.
_MODEL_LEADERS = ((8, 0.5), (16, 0.3), (4, 0.0), (2, 0.0), (16, 0.6), (3, 0.0))
# n_max and n_min of drafts whose depth the server adapts between them. 12 and 3 are recommended in llama.cpp #27210.
_ADAPTED_LEADERS = ((12, 3), (8, 1))
_ADAPTED_FLOORS = (1, 4)
# n_max where a server that changes all numbers begins.
_TUNED_LEADERS = (4, 8)
_MAP_LEADERS = ((6, 24), (4, 16), (12, 48))
_MOD_LEADERS = ((16, 32, 0), (8, 16, 0), (24, 64, 48))


class _Chooser(Protocol):
    """The part of `optuna.Trial` that the space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float: ...


@dataclass(frozen=True, slots=True)
class Arm:
    """A mode, the draft model if it has one, and the draft-free modes beside it."""

    mode: Mode
    draft: str | None = None  # path of the draft model
    n_max_limit: int = 0  # most tokens that the draft can propose in a cycle; 0 for no limit
    takes_p_min: bool = True
    only: tuple[int, float | None] | None = None  # n_max and p_min, if the backend drafts with no others
    file: DraftFile | None = None  # the draft's identity, if known
    beside: tuple[Mode, ...] = ()
    engine: Engine | None = None  # what the server itself adapts

    @property
    def parameter(self) -> str:
        """The first part of the names of its parameters in Optuna: an n_max that is a ceiling is another one."""
        return f"{self.mode}-{self.engine}" if self.engine else str(self.mode)

    def drafts_as(self, drafting: Drafting) -> bool:
        """True for a drafting of this arm, whatever is beside it."""
        return (self.mode, self.draft, self.engine) == (drafting.mode, drafting.draft, drafting.engine)

    @property
    def follows_acceptance(self) -> bool:
        """True if the server adapts the depth between n_min and n_max."""
        return self.engine in (Engine.MTP_ADAPTIVE, Engine.ADAPTIVE)

    @property
    def label(self) -> str:
        """The value of the arm parameter: readable, and unique among a study's arms by the draft's identity."""
        return _label(self)


@lru_cache(maxsize=1024)  # asked for each drafting of the grid
def _label(arm: Arm) -> str:
    own = str(arm.mode)
    if arm.draft is not None:
        known_by = arm.draft if arm.file is None else arm.file.identity
        digest = hashlib.sha256(known_by.encode()).hexdigest()[:4]
        own = f"{arm.mode} {PurePath(arm.draft).name.removesuffix('.gguf')} #{digest}"
    own += f" {arm.engine}" if arm.engine else ""
    return " + ".join([own, *arm.beside])


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that one study may try: the arms of single modes, in the order of their first trials, and the ranges.

    `combines` is True if a launch can draft with the mode of one arm and the draft-free modes of others beside it.
    """

    arms: tuple[Arm, ...]
    definition: SpaceDefinition
    combines: bool = False

    @property
    def drafts(self) -> DraftFiles:
        """The draft files of the arms."""
        arms = [(a.draft, a.file) for a in self.arms]
        return DraftFiles({draft: file for draft, file in arms if draft is not None and file is not None})

    def draft_id(self, draft: str) -> str:
        """The identity of a draft; its path if that is not known."""
        file = self.drafts.by_path.get(draft)
        return draft if file is None else file.identity

    @property
    def arm_parameter(self) -> str:
        """Name of the categorical parameter.

        It contains a hash of its choices: Optuna refuses a parameter whose choices change, which happens if a draft model is
        downloaded between two runs of one study.
        """
        digest = hashlib.sha256("\n".join(self._labels()).encode()).hexdigest()[:6]
        return f"arm-{digest}"

    def suggest(self, trial: _Chooser) -> Drafting:
        """Ask Optuna for a drafting."""
        label = trial.suggest_categorical(self.arm_parameter, self._labels())
        if label == _OFF_ARM:
            return OFF
        arm = next(a for a in self.arms if a.label == label)
        d = self.definition
        mode = arm.mode
        match mode:
            case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
                return Drafting(
                    mode,
                    ngram_n=trial.suggest_int(f"{mode}.ngram_n", *d.ngram_n, log=True),
                    ngram_m=trial.suggest_int(f"{mode}.ngram_m", *d.ngram_m, log=True),
                    min_hits=1,
                )
            case Mode.NGRAM_MOD:
                # This mode's n-max is what an n-gram map calls m, with the same range.
                n = trial.suggest_int(f"{mode}.ngram_n", *d.ngram_n, log=True)
                most = trial.suggest_int(f"{mode}.n_max", *d.ngram_m, log=True)
                share = trial.suggest_float(f"{mode}.n_min_share", 0.0, 1.0, step=_MOD_SHARE_STEP)
                return Drafting(mode, ngram_n=n, n_max=most, n_min=round(share * most))
            case Mode.PROMPT_LOOKUP:
                return Drafting(
                    mode,
                    n_max=trial.suggest_int(f"{mode}.n_max", *d.n_max, log=True),
                    ngram_n=trial.suggest_int(f"{mode}.ngram_n", 1, 4),
                )
            case _:
                name = arm.parameter
                n_max = trial.suggest_int(f"{name}.n_max", *d.n_max, log=True)
                if arm.follows_acceptance:
                    return self._adapted(arm, n_max, trial.suggest_int(f"{name}.n_min", *_ADAPTED_FLOORS))
                if arm.engine is Engine.AUTOTUNE:
                    return self._adapted(arm, n_max, 0)
                p_min = (
                    round(trial.suggest_float(f"{name}.p_min", *d.p_min, step=_P_MIN_STEP), 2)
                    if arm.takes_p_min
                    else None
                )
                # Without a p-min every draft has n_max tokens, and n_min has nothing to drop.
                n_min = trial.suggest_int(f"{name}.n_min", 0, max(_N_MIN)) if p_min else 0
                return self._with_model(arm, n_max, p_min, n_min)

    def parameters(self, drafting: Drafting) -> dict[str, Any]:
        """Optuna's parameters for a drafting of this space: the reverse of `suggest`; none with modes beside a draft model.

        Raises:
            ValueError: The drafting has no arm here.
        """
        if drafting.is_off:
            return {self.arm_parameter: _OFF_ARM}
        arm = self.arm_of(drafting)
        if arm is None:
            raise ValueError(f"{drafting.label} is not in this space")
        if drafting.beside:
            return {}
        searched = {"n_max", "p_min", "ngram_n", "ngram_m"} & set(drafting.parameters())
        if arm.engine in (Engine.MTP_ADAPTIVE, Engine.ADAPTIVE, Engine.AUTOTUNE):
            searched.discard("p_min")
        if drafting.p_min or arm.follows_acceptance:
            searched.add("n_min")
        numbers: dict[str, Any] = {
            f"{arm.parameter}.{k}": v for k, v in drafting.parameters().items() if k in searched
        }
        if drafting.mode is Mode.NGRAM_MOD:
            share = (drafting.n_min or 0) / (drafting.n_max or 1)
            numbers[f"{drafting.mode}.n_min_share"] = _MOD_SHARE_STEP * round(share / _MOD_SHARE_STEP)
        return {self.arm_parameter: arm.label, **numbers}

    def leaders(self) -> list[Drafting]:
        """Draftings to try before the sampler knows anything: each arm once, then variations of the first drafts.

        They cover what is known to work in practice: few tokens without a p-min, more of them with one.
        """
        turns = zip_longest(*map(self._arm_leaders, self.arms))
        return list(dict.fromkeys(d for turn in turns for d in turn if d is not None))

    def grid(self) -> list[Drafting]:
        """Every drafting that is predicted: all n_max with p_min in steps; n_min and n-gram sizes from the lists above."""
        predicted = [arm for arm in self.arms if arm.engine is None]
        return list(dict.fromkeys(d for arm in predicted for d in self._arm_grid(arm)))

    def _arm_grid(self, arm: Arm) -> list[Drafting]:
        d = self.definition
        matches = [n for n in _NGRAM_N if d.ngram_n[0] <= n <= d.ngram_n[1]]
        sizes = [(n, m) for n in matches for m in _NGRAM_M if d.ngram_m[0] <= m <= d.ngram_m[1]]
        counts = range(d.n_max[0], min(d.n_max[1], arm.n_max_limit or d.n_max[1]) + 1)
        match arm.mode:
            case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
                return [Drafting(arm.mode, ngram_n=n, ngram_m=m, min_hits=1) for n, m in sizes]
            case Mode.NGRAM_MOD:
                return self._mod_grid(matches)
            case Mode.PROMPT_LOOKUP:
                return [Drafting(arm.mode, n_max=k, ngram_n=n) for k in counts for n in range(1, 5)]
            case _:
                steps = round((d.p_min[1] - d.p_min[0]) / _P_MIN_STEP) if arm.takes_p_min else 0
                levels = [round(d.p_min[0] + _P_MIN_STEP * k, 2) for k in range(steps + 1)]
                plain = [
                    self._with_model(arm, k, p if arm.takes_p_min else None) for k in counts for p in levels
                ]
                return plain + [
                    self._with_model(arm, k, p, least)
                    for k in _N_MIN_N_MAX
                    if k in counts
                    for p in _N_MIN_P_MIN
                    if arm.takes_p_min and p in levels
                    for least in _N_MIN
                    if least <= k
                ]

    def _mod_grid(self, matches: Sequence[int]) -> list[Drafting]:
        low, high = self.definition.ngram_m
        lengths = [m for m in _MOD_N_MAX if low <= m <= high]
        shares = {
            m: (0.0, *(_MOD_SHARES if m in (*_MOD_N_MIN_N_MAX, *lengths[-1:]) else ())) for m in lengths
        }
        return [
            Drafting(Mode.NGRAM_MOD, ngram_n=n, n_max=m, n_min=round(share * m))
            for n in matches
            for m in lengths
            for share in shares[m]
        ]

    def arm_of(self, drafting: Drafting) -> Arm | None:
        """The arm of a drafting; ``None`` for off, and for what this space cannot try."""
        arm = next((a for a in self.arms if a.drafts_as(drafting)), None)
        beside = tuple(d.mode for d in drafting.beside)
        if arm is None or not beside:
            return arm
        return (
            replace(arm, beside=beside)
            if self.combines and {a.mode for a in self.arms}.issuperset(beside)
            else None
        )

    def _labels(self) -> list[str]:
        return [_OFF_ARM, *(a.label for a in self.arms)]

    def _arm_leaders(self, arm: Arm) -> list[Drafting]:
        d = self.definition
        match arm.mode:
            case Mode.NGRAM_SIMPLE | Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
                sizes = [(_within(n, d.ngram_n), _within(m, d.ngram_m)) for n, m in _MAP_LEADERS]
                return [Drafting(arm.mode, ngram_n=n, ngram_m=m, min_hits=1) for n, m in sizes]
            case Mode.NGRAM_MOD:
                lengths = [(n, _within(m, d.ngram_m), least, m) for n, m, least in _MOD_LEADERS]
                return [
                    Drafting(
                        arm.mode, ngram_n=_within(n, d.ngram_n), n_max=most, n_min=round(most * least / m)
                    )
                    for n, most, least, m in lengths
                ]
            case Mode.PROMPT_LOOKUP:
                return [Drafting(arm.mode, n_max=_within(10, d.n_max), ngram_n=2)]
            case _ if arm.follows_acceptance:
                return [self._adapted(arm, _within(k, d.n_max), least) for k, least in _ADAPTED_LEADERS]
            case _ if arm.engine is Engine.AUTOTUNE:
                return [self._adapted(arm, _within(k, d.n_max), 0) for k in _TUNED_LEADERS]
            case _:
                low, high = d.p_min
                return [
                    self._with_model(
                        arm, _within(k, d.n_max), min(max(p, low), high) if arm.takes_p_min else None
                    )
                    for k, p in _MODEL_LEADERS
                ]

    @staticmethod
    def _with_model(arm: Arm, n_max: int, p_min: float | None, n_min: int = 0) -> Drafting:
        if arm.only is not None:
            n_max, p_min = arm.only
            return Drafting(arm.mode, draft=arm.draft, n_max=n_max, n_min=0, p_min=p_min, engine=arm.engine)
        limited = min(n_max, arm.n_max_limit) if arm.n_max_limit else n_max
        least = min(n_min, limited)
        return Drafting(
            arm.mode,
            draft=arm.draft,
            n_max=limited,
            n_min=least if least > 1 and p_min else 0,
            p_min=p_min,
            engine=arm.engine,
        )

    @staticmethod
    def _adapted(arm: Arm, n_max: int, n_min: int) -> Drafting:
        """A drafting whose numbers the server changes: no p-min ends a draft before it does."""
        limited = min(n_max, arm.n_max_limit) if arm.n_max_limit else n_max
        least = min(n_min, limited)
        return Drafting(arm.mode, draft=arm.draft, n_max=limited, n_min=least, p_min=0.0, engine=arm.engine)


def _within(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
