"""What the proxy sees of live traffic: numbers only, never a prompt. A pure value."""

from __future__ import annotations

from dataclasses import dataclass, field

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request, as the store keeps it: numbers only, no text.

    Attributes:
        at: Seconds since the epoch when the answer ended.
        model: Catalogue name.
        backend: Backend name.
        build: The build's own name.
        prompt_type: What the classifier or the header said.
        drafting: What was in force.
        prompt_tokens: Processed for this request.
        predicted_tokens: Generated.
        prompt_ms: By the server's clock, or by ours where it does not tell.
        predicted_ms: Likewise.
        drafted: ``None`` where the server does not tell.
        accepted: ``None`` where the server does not tell.
    """

    at: float
    model: str
    backend: str
    build: str
    prompt_type: PromptType | None
    prompt_tokens: int
    predicted_tokens: int
    prompt_ms: float
    predicted_ms: float
    drafting: Drafting = field(default=OFF)
    drafted: int | None = None
    accepted: int | None = None
