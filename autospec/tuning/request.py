"""What a tune is asked for: from names, as users type them, to a `TuneRequest`, its drafts and its search space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.catalog.candidates import Candidate, candidates
from autospec.catalog.model import Model, context_of, names_context
from autospec.catalog.scan import Catalog, scan
from autospec.cells import Aim, Hardware, PromptType
from autospec.drafting import Engine
from autospec.errors import UsageError
from autospec.hardware.gpu import model_memory_bytes, shared_limit_bytes
from autospec.measure.verdict import METHOD
from autospec.prompts.suite import Suite, load_suite
from autospec.settings import Settings, is_temperature, parse_duration
from autospec.store.compatibility import DraftFile
from autospec.tuning.definition import StudyDefinition, load_definition
from autospec.tuning.space import Arm, Space

__all__ = [
    "TuneRequest",
    "draft_file",
    "judged_drafts",
    "prepare",
    "space_for",
    "temperature_of",
    "why_nothing",
]


# A fingerprint has a few bytes of some tensors only, and an interrupted download may have the right metadata and size. So
# 128 samples from all over each file are read, too: they find a hole of one hundredth of the file.
_SAMPLES = 128
_SAMPLE_BYTES = 64 * 1024


def draft_file(draft: Model) -> DraftFile:
    """The draft's file: its identity changes with its contents, and not with its name or folder.

    For missing files only the fingerprint counts.
    """
    digest = hashlib.sha256(draft.fingerprint.encode())
    changed_at = 0.0
    for path in dict.fromkeys((draft.path, *draft.files)):
        with suppress(OSError), path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"\n{size}\n".encode())
            step = max(size // _SAMPLES, _SAMPLE_BYTES)
            for offset in range(0, size, step):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
            changed_at = max(changed_at, path.stat().st_mtime)
    return DraftFile(digest.hexdigest()[:12], changed_at, draft.name, draft.fingerprint)


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What is to be tuned.

    Attributes:
        model: The main model.
        models: The catalogue, to find drafts in.
        definition: The study definition.
        suite: The prompts.
        storage: SQLAlchemy URL.
        drafts: Draft models that the user named; if any, no others are tried.
        prompt_types: Prompt types; empty for all of the suite.
        args: The user's launch settings as server arguments.
        model_args: Those of them that the config gives this model alone.
        temperature: 0 is greedy.
        context_tokens: Context of measured launches if `args` set none; no export contains it.
        budget_s: Overrides the definition's.
        again: Measure again what is already proven; an interrupted re-measurement continues.
        forget_answers: Delete recorded answers when the tune ends.
        mix: Prompt type → weight, for the overall answer; empty for the traffic's mix, or equal weights.
        study_storage: Address of Optuna's gRPC proxy for the studies; empty keeps them in `storage`.
        aim: What the proof compares; the search compares times with either aim.
    """

    model: Model
    models: tuple[Model, ...]
    definition: StudyDefinition
    suite: Suite
    storage: str
    drafts: tuple[Model, ...] = ()
    prompt_types: tuple[PromptType, ...] = ()
    args: tuple[str, ...] = ()
    model_args: tuple[str, ...] = ()
    temperature: float = 0.0
    context_tokens: int = 4096
    budget_s: float | None = None
    again: bool = False
    forget_answers: bool = False
    mix: Mapping[PromptType, float] = field(default_factory=dict)
    study_storage: str = ""
    aim: Aim = Aim.SPEED

    @property
    def protocol(self) -> str:
        """Twelve hex digits of everything that must be equal for measurements to be pooled."""
        parts = [self.suite.digest, self.definition.max_tokens, self.temperature]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def rule_digest(self) -> str:
        """Twelve hex digits of everything besides the measurements that a proven verdict rests on."""
        parts = [METHOD, self.definition.prompts_per_round, asdict(self.definition.rule)]
        if self.model.format == "mlx":
            # Earlier proofs took the same part of a prompt for cached with and without drafting.
            parts.append("prompt cache of each side")
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def settings(self) -> LaunchSettings:
        """The user's launch settings plus a context: without one, servers fit it to memory, and differently with a draft."""
        if self.model.format == "mlx" or names_context(self.args):
            return LaunchSettings(args=self.args)
        longest = self.model.context_length or self.context_tokens
        return LaunchSettings(args=(*self.args, "-c", str(min(self.context_tokens, longest))))

    def context(self) -> int:
        """Tokens of context that memory estimates use: the servers' context, if it is set."""
        return context_of(self.settings().args, self.model.context_length, self.context_tokens)


def judged_drafts(request: TuneRequest, hardware: Hardware) -> list[Candidate]:
    """Every draft that a tune would consider, including those that do not fit."""
    return candidates(
        request.model,
        () if request.drafts else request.models,
        memory_bytes=model_memory_bytes(hardware),
        gpu_limit_bytes=shared_limit_bytes(hardware),
        context_tokens=request.context(),
        extra=request.drafts,
    )


def space_for(
    definition: StudyDefinition,
    capabilities: Capabilities,
    fitting: Sequence[Candidate],
    temperature: float = 0.0,
) -> Space:
    """The arms that this build and these drafts allow, in the definition's order of modes, and what the build adapts itself.

    An engine is tried with the first draft of each mode only: it changes how a draft is used, not which draft is good.
    """
    arms: list[Arm] = []
    for mode in definition.space.modes:
        if mode not in capabilities.modes:
            continue
        if mode.draft_free:
            arms.append(Arm(mode))
            continue
        named = [c for c in fitting if c.mode is mode][: definition.space.drafts]
        arms += [
            Arm(
                mode,
                c.draft,
                c.n_max,
                takes_p_min=c.takes_p_min and capabilities.takes_p_min,
                only=capabilities.only,
                file=None if c.draft is None else draft_file(c.model),
            )
            for c in named
        ]
    first_of = {arm.mode: arm for arm in reversed(arms)}
    arms += [
        replace(first_of[mode], engine=engine)
        for mode, engine in sorted(capabilities.engines)
        if mode in first_of and (engine is not Engine.PROBABILISTIC or temperature > 0)
    ]
    return Space(tuple(arms), definition.space, combines=capabilities.combines)


def why_nothing(model: Model, capabilities: Capabilities, fitting: Sequence[Candidate]) -> str:
    """Why nothing can be tried for this model with this build."""
    build = f"{capabilities.build.backend} {capabilities.build.version}"
    if not fitting:
        return f"No draft model fits {model.name} and {build} offers none of the study's n-gram modes."
    return f"{build} offers none of the study's modes."


def prepare(
    settings: Settings,
    model: str,
    *,
    drafts: Sequence[str] = (),
    prompt_types: Sequence[PromptType] = (),
    args: Sequence[str] = (),
    again: bool = False,
    max_tokens: int | None = None,
    slots: int | None = None,
    depth: int | None = None,
    mix: Mapping[PromptType, float] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> TuneRequest:
    """Find the models and read study and suite.

    Args:
        settings: Source of study, suite, budget, the user's launch settings and storage.
        model: A path, a catalogue name, or an unambiguous part of one.
        drafts: Likewise; if any, no other draft models are tried.
        prompt_types: Prompt types; empty for all of the suite.
        args: Server arguments besides those of the settings.
        again: Measure again what is already proven.
        max_tokens: Longest answer, instead of the study's.
        slots: Check what is proven at up to this many requests at once.
        depth: Check what is proven behind up to this many tokens of context.
        mix: Prompt type → weight, for the overall answer; the traffic's mix or equal weights if left out.
        warn: Told each warning of the catalogue.

    Raises:
        UsageError: A name that matches no model or several, a draft that is the main model, or a malformed study, suite or
            duration; or settings of the model that its server does not have.
        ModelFileError: A requested file cannot be read.
    """
    # Cheap mistakes first: reading every model's metadata may take seconds on a cold cache.
    definition = _changed(load_definition(settings.study), max_tokens, slots, depth)
    temperature = temperature_of(settings, definition)
    suite = load_suite(Path(settings.suite) if settings.suite else None)
    budget_s = parse_duration(settings.budget) if settings.budget else None
    catalog = scan(settings, beside=[model, *drafts])
    try:
        main, chosen = catalog.find(model), tuple(catalog.find(d) for d in drafts)
    except UsageError:
        # A model that is not found may be one that could not be read.
        _tell(catalog, warn)
        raise
    _tell(catalog, warn)
    for draft in chosen:
        if draft.fingerprint == main.fingerprint:
            raise UsageError(
                f"{draft.name} is the main model itself and cannot draft for it.",
                f"`autospec drafts --model {main.name}` lists the models that can.",
            )
    return TuneRequest(
        model=main,
        models=catalog.models,
        definition=definition,
        suite=suite,
        storage=settings.storage,
        study_storage=settings.study_storage,
        drafts=chosen,
        prompt_types=tuple(prompt_types),
        args=catalog.own.args(main, settings, args),
        model_args=catalog.own.own_args(main),
        temperature=temperature,
        context_tokens=catalog.own.context_tokens(main, settings),
        budget_s=budget_s,
        again=again,
        mix=mix or {},
        forget_answers=settings.forget_answers,
        aim=Aim(settings.aim),
    )


def _changed(
    definition: StudyDefinition, max_tokens: int | None, slots: int | None, depth: int | None
) -> StudyDefinition:
    """The definition with what the command line names; a number of slots or a depth asks for the checks."""
    for name, value in (("--max-tokens", max_tokens), ("--slots", slots), ("--depth", depth)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    if max_tokens is not None:
        definition = replace(definition, max_tokens=max_tokens)
    if slots is None and depth is None:
        return definition
    limits = definition.limits
    slots, depth = slots or limits.slots, depth or limits.depth
    limits = replace(limits, check=True, slots=slots, depth=depth, only_temperature=False)
    return replace(definition, limits=limits)


def temperature_of(settings: Settings, definition: StudyDefinition) -> float:
    """Of measured requests: the flag's or the environment's, else the study's, else the config's.

    Raises:
        UsageError: It is no temperature.
    """
    named = settings.sources.get("temperature") in ("flag", "environment")
    value = settings.temperature if named or definition.temperature is None else definition.temperature
    if not is_temperature(value):
        raise UsageError(f"The temperature must be a number from 0 to 2, not {value:g}.", "0 is greedy.")
    return value


def _tell(catalog: Catalog, warn: Callable[[str], None]) -> None:
    for warning in catalog.warnings:
        warn(warning)
