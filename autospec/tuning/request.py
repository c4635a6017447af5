"""What a tune is asked for, and what this build and these drafts make of it. Pure, but for the models' metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from autospec.backends.protocol import Capabilities, LaunchSettings
from autospec.catalog.candidates import Candidate, candidates
from autospec.catalog.context import context_of, names_context
from autospec.catalog.model import Model
from autospec.cells import Hardware, PromptType
from autospec.measure.verdict import METHOD
from autospec.prompts.suite import Suite
from autospec.tuning.definition import StudyDefinition
from autospec.tuning.draft_identity import draft_file
from autospec.tuning.space import Arm, Space

__all__ = ["TuneRequest", "judged_drafts", "space_for", "why_nothing"]


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What is to be tuned.

    Attributes:
        model: The main model.
        models: The catalogue, to find drafts in.
        drafts: Draft models that the user named; if any, no others are tried.
        prompt_types: Which; empty for all that the suite has.
        definition: The study definition.
        suite: The prompts.
        args: The user's launch settings as server arguments.
        temperature: 0 is greedy.
        context_tokens: Context of measured launches where `args` name none; no export contains it.
        storage: SQLAlchemy URL.
        study_storage: Address of Optuna's gRPC proxy for the studies; empty keeps them in `storage`.
        budget_s: Instead of the definition's.
        again: Measure afresh what is proven already; where that was begun and interrupted, go on with it.
        forget_answers: Keep no recorded answers when the tune ends.
    """

    model: Model
    models: tuple[Model, ...]
    definition: StudyDefinition
    suite: Suite
    storage: str
    drafts: tuple[Model, ...] = ()
    prompt_types: tuple[PromptType, ...] = ()
    args: tuple[str, ...] = ()
    temperature: float = 0.0
    context_tokens: int = 4096
    budget_s: float | None = None
    again: bool = False
    forget_answers: bool = False
    study_storage: str = ""

    @property
    def protocol(self) -> str:
        """Twelve hex digits of all that must be equal for measurements to be pooled."""
        parts = [self.suite.digest, self.definition.max_tokens, self.temperature]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def rule_digest(self) -> str:
        """Twelve hex digits of what a proven verdict rests on besides the measurements."""
        parts = [METHOD, self.definition.prompts_per_round, asdict(self.definition.rule)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def settings(self) -> LaunchSettings:
        """The user's launch settings with what measuring adds, the context: servers fit it to memory else, and differently with a draft.

        MLX has no such setting: its caches grow with the text.
        """
        if self.model.format == "mlx" or names_context(self.args):
            return LaunchSettings(args=self.args)
        longest = self.model.context_length or self.context_tokens
        return LaunchSettings(args=(*self.args, "-c", str(min(self.context_tokens, longest))))

    def context(self) -> int:
        """Tokens of context that memory estimates count with: what the servers are given, where they are given one."""
        return context_of(self.settings().args, self.model.context_length, self.context_tokens)


def judged_drafts(request: TuneRequest, hardware: Hardware) -> list[Candidate]:
    """Every draft that a tune would consider, those that do not fit among them."""
    return candidates(
        request.model,
        () if request.drafts else request.models,
        memory_bytes=hardware.memory_bytes,
        context_tokens=request.context(),
        extra=request.drafts,
    )


def space_for(definition: StudyDefinition, capabilities: Capabilities, fitting: Sequence[Candidate]) -> Space:
    """The arms that this build and these drafts allow, in the definition's order of modes."""
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
    return Space(tuple(arms), definition.space)


def why_nothing(model: Model, capabilities: Capabilities, fitting: Sequence[Candidate]) -> str:
    """The sentence for a model for which nothing can be tried with this build."""
    build = f"{capabilities.build.backend} {capabilities.build.version}"
    if not fitting:
        return f"No draft model fits {model.name} and {build} offers none of the study's draft-free modes."
    return f"{build} offers none of the study's modes."
