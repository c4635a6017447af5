"""autospec: find out on this machine whether speculative decoding pays.

The public API, besides the command line: `tune` measures and writes recommendations, `recommend` reads them, and the
value types say what they mean. Everything heavy is imported when a function is called.
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
    """Find out by measuring where drafting pays; the same as ``autospec tune``.

    Args:
        model: A path, a catalogue name, or an unambiguous part of one.
        backend: ``llama-server``, ``embedded`` or ``mlx``; chosen by what the model is and what is installed if left out.
        drafts: Try only these draft models.
        prompt_types: Which; none for all that the suite has.
        study: ``quick``, ``default``, ``thorough``, or a TOML file.
        suite: Your own prompts (JSONL).
        budget: How long it may take, e.g. ``20m``.
        args: Launch settings given to every server.
        again: Measure afresh what is proven already.
        config: Config file instead of the default one.

    Returns:
        One recommendation per prompt type; they are stored as well.

    Raises:
        AutospecError: What is wrong, as one sentence; see `autospec.errors` for the tree.
        KeyboardInterrupt: Passed on after what is known has been stored.
    """
    from autospec.backends.registry import backend_for
    from autospec.hardware import identify
    from autospec.settings import load_settings
    from autospec.tuning.cell import Unwatched
    from autospec.tuning.request import prepare
    from autospec.tuning.run import Tuning

    flags = {"backend": backend, "study": study, "suite": suite, "budget": budget}
    settings = load_settings(config, overrides=flags)
    request = prepare(settings, model, drafts=drafts, prompt_types=prompt_types, args=args, again=again)
    backend_ = backend_for(settings.backend or None, settings, request.model)
    return Tuning(request, backend_, identify(), Unwatched()).run()


def recommend(
    model: str = "", prompt_type: PromptType | None = None, *, config: Path | None = None
) -> list[Recommendation]:
    """What is recommended; the same as ``autospec recommend``.

    Args:
        model: Name, unambiguous part of one, or path; empty for all.
        prompt_type: Only this kind of prompt.
        config: Config file instead of the default one.

    Raises:
        NothingKnownError: Nothing has been tuned for what was asked.
        AutospecError: The store cannot be read, or the name is ambiguous.
    """
    from autospec.hardware import identify
    from autospec.report.selection import Question, select
    from autospec.settings import load_settings
    from autospec.store.reader import read_recommendations

    settings = load_settings(config)
    question = Question(model=model, prompt_type=prompt_type)
    chosen = select(read_recommendations(settings.storage), identify(), question)
    return [s.recommendation for s in chosen.stored]
