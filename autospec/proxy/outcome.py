"""What became of one request, as numbers, and the sample in it. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.live import Sample
from autospec.proxy.tail import Counts

__all__ = ["Outcome", "sample_of"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One forwarded request after its end.

    Attributes:
        at: Seconds since the epoch when it ended.
        path: Without the query.
        model: Catalogue name.
        backend: Backend name.
        build: The build's own name.
        prompt_type: By header or classifier.
        drafting: What was in force.
        status: What the backend answered; 0 if it broke before that.
        complete: True if the answer came to its end; false if the server died or the client went away.
        waited_ms: For a server: queue, launch, switch.
        first_byte_ms: From sending the request to the backend until the answer's first byte.
        total_ms: From sending the request to the backend until the end.
        streamed: True for server-sent events: then time to first byte and time of generation are apart.
        counts: What the answer says of itself.
    """

    at: float
    path: str
    model: str
    backend: str
    build: str
    prompt_type: PromptType | None
    drafting: Drafting
    status: int = 0
    complete: bool = False
    waited_ms: float = 0.0
    first_byte_ms: float = 0.0
    total_ms: float = 0.0
    streamed: bool = False
    counts: Counts | None = None


def sample_of(outcome: Outcome) -> Sample | None:
    """What the store keeps of a request, or ``None`` where it tells nothing about speed.

    Where the server has no clock, ours is read, and only for streams: the first byte of any other answer is its last.
    """
    counts = outcome.counts
    if counts is None or not outcome.complete or outcome.status != 200 or counts.predicted_tokens < 1:
        return None
    prompt_ms, predicted_ms = counts.prompt_ms, counts.predicted_ms
    if prompt_ms is None or predicted_ms is None:
        if not outcome.streamed:
            return None
        prompt_ms, predicted_ms = outcome.first_byte_ms, outcome.total_ms - outcome.first_byte_ms
    off = outcome.drafting == OFF
    return Sample(
        at=outcome.at,
        model=outcome.model,
        backend=outcome.backend,
        build=outcome.build,
        prompt_type=outcome.prompt_type,
        prompt_tokens=counts.prompt_tokens,
        predicted_tokens=counts.predicted_tokens,
        prompt_ms=prompt_ms,
        predicted_ms=predicted_ms,
        drafting=outcome.drafting,
        drafted=0 if off else counts.drafted,
        accepted=0 if off else counts.accepted,
    )
