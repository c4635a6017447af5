"""autospec: find out on this machine whether speculative decoding pays.

Public API besides the command line: `tune` measures and stores recommendations, `recommend` reads them. Heavy imports happen
inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import AutospecError
from autospec.recommendations import Recommendation, Status, Verdict

__all__ = [
    "OFF",
    "AutospecError",
    "Drafting",
    "Hardware",
    "Mode",
    "PromptType",
    "Recommendation",
    "Status",
    "Verdict",
    "recommend",
    "tune",
]

__version__ = "0.1.0"


def tune(
    model: str,
    *,
    backend: str | None = None,
    drafts: Sequence[str] = (),
    prompt_types: Sequence[PromptType] = (),
    study: str | None = None,
    suite: str | None = None,
    budget: str | None = None,
    args: Sequence[str] = (),
    again: bool = False,
    config: Path | None = None,
) -> list[Recommendation]:
    """Measure where drafting pays, like ``autospec tune`` with these options and the settings of the config.

    Args:
        model: A path, a catalogue name, or an unambiguous part of one.
        backend: ``llama-server``, ``embedded`` or ``mlx``; by default what fits the model and is installed.
        drafts: Try only these draft models.
        prompt_types: Only these prompt types; by default all in the suite.
        study: ``quick``, ``default``, ``thorough``, or a TOML file.
        suite: Your own prompts (JSONL).
        budget: Time limit, e.g. ``20m``.
        args: Launch settings for every server.
        again: Measure again what is already proven.
        config: Config file instead of the default one.

    Returns:
        One recommendation per prompt type; they are stored as well.

    Raises:
        AutospecError: One sentence says what is wrong; see `autospec.errors` for the classes.
        KeyboardInterrupt: Passed on after the results so far are stored.
    """
    from dataclasses import replace

    from autospec.backends.registry import backend_for
    from autospec.hardware import identify
    from autospec.hardware.energy import aim_in_force
    from autospec.settings import load_settings
    from autospec.tuning.cell import Progress
    from autospec.tuning.request import prepare
    from autospec.tuning.run import Tuning

    flags = {"backend": backend, "study": study, "suite": suite, "budget": budget}
    settings = load_settings(config, overrides=flags)
    hardware = identify()
    request = prepare(settings, model, drafts=drafts, prompt_types=prompt_types, args=args, again=again)
    aim, _ = aim_in_force(settings.aim, hardware)
    backend_ = backend_for(settings.backend or None, settings, request.model)
    return Tuning(replace(request, aim=aim), backend_, hardware, Progress()).run()


def recommend(
    model: str = "", prompt_type: PromptType | None = None, *, config: Path | None = None
) -> list[Recommendation]:
    """Return stored recommendations with the aim of the config, like ``autospec recommend``.

    Args:
        model: Name, unambiguous part of one, or path; empty for all.
        prompt_type: Only this prompt type.
        config: Config file instead of the default one.

    Raises:
        NothingKnownError: Nothing has been tuned for this model and type.
        AutospecError: The store cannot be read, or the name is ambiguous.
    """
    from autospec.hardware import identify
    from autospec.hardware.energy import aim_in_force
    from autospec.report.selection import Question, select
    from autospec.settings import load_settings
    from autospec.store.reader import read_recommendations

    settings, here = load_settings(config), identify()
    aim, _ = aim_in_force(settings.aim, here)
    question = Question(model=settings.named_by(model), prompt_type=prompt_type, aim=aim)
    chosen = select(read_recommendations(settings.storage), here, question)
    return [s.recommendation for s in chosen.stored]
