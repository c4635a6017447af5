"""What is proven on this machine, in a few words: for the list of models and for the first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autospec.recommendations import Status, StoredRecommendation, Verdict

if TYPE_CHECKING:
    from autospec.cli.shell import Shell

__all__ = ["known_here", "proven_words"]

# Prompt types named in a clause; the others are counted.
_TYPES = 3


def known_here(shell: Shell) -> list[StoredRecommendation]:
    """The newest recommendations of this machine; empty, with a warning, if the database cannot be read."""
    from autospec.errors import StoreError
    from autospec.hardware import identify
    from autospec.report.selection import newest, same_machine
    from autospec.store.reader import read_recommendations

    try:
        stored = read_recommendations(shell.settings.storage, shell.warn)
    except StoreError as error:
        shell.warn(str(error))
        return []
    here, aim = identify(), shell.aim_for(None)
    return newest(s for s in stored if s.recommendation.aim is aim and same_machine(s.hardware, here))


def proven_words(known: Sequence[StoredRecommendation], model: str) -> str:
    """What is proven of a model: ``proven: drafting pays for coding, not for chat``; empty if nothing is."""
    own = [s.recommendation for s in known if s.recommendation.model == model]
    proven = [r for r in own if r.status is Status.PROVEN and r.prompt_type is not None]
    pays = [str(r.prompt_type) for r in proven if r.verdict is Verdict.ENABLE]
    others = [str(r.prompt_type) for r in proven if r.verdict is not Verdict.ENABLE]
    if not proven:
        return ""
    clauses = [f"drafting pays for {_few(pays)}"] if pays else []
    if others:
        clauses.append(f"not for {_few(others)}" if pays else f"drafting pays for none of {_few(others)}")
    return f"proven: {', '.join(clauses)}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _TYPES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_TYPES])} and {more} more"
