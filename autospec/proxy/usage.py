"""Token counts from the end of an answer, and the outcome of a request as a sample for the store.

llama.cpp appends ``timings`` to every answer, streamed or not (``result_timings::to_json``, tools/server/server-task.cpp), so
no event is parsed on its way: the last bytes hold everything.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import Sample

__all__ = ["RequestOutcome", "TokenCounts", "UsageReader", "read_counts", "sample_of", "saw_the_end"]

# The last event of /v1/responses repeats the whole answer, but the counts come after it.
_KEPT_BYTES = 16 * 1024

_TIMINGS = re.compile(rb'"timings":\s*(?=\{)')
_USAGE = re.compile(rb'"usage":\s*(?=\{)')
# The ends of streams: OpenAI, Anthropic, Responses API, llama.cpp, an error.
_ENDS = re.compile(
    rb'data: ?\[DONE\]|"message_stop"|"response\.(?:completed|incomplete|failed)"|"stop":\s*true|"error":\s*[{"]'
)


class UsageReader:
    """Keeps the last bytes of a stream; `feed` runs for every token and copies nothing."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._size = 0

    def feed(self, part: bytes) -> None:
        """Keep a part that passes."""
        self._parts.append(part)
        self._size += len(part)
        while self._size - len(self._parts[0]) >= _KEPT_BYTES:
            self._size -= len(self._parts.popleft())

    def content(self) -> bytes:
        """At least the last 16 KiB, or the whole stream if it is shorter."""
        return b"".join(self._parts)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Counts and times of an answer, by the server's clock; ``None`` if the answer lacks them."""

    prompt_tokens: int  # without cached ones, if the server reports them
    predicted_tokens: int
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    drafted: int | None = None
    accepted: int | None = None


def read_counts(tail: bytes) -> TokenCounts | None:
    """The counts at the end of an answer; ``None`` if there are none.

    Generated text cannot be mistaken for a field, because JSON escapes its quotation marks.
    """
    # The last ones first: a stream may have timings in every event.
    for found in _last_objects(_TIMINGS, tail):
        try:
            return TokenCounts(
                prompt_tokens=int(found["prompt_n"]),
                predicted_tokens=int(found["predicted_n"]),
                prompt_ms=float(found["prompt_ms"]),
                predicted_ms=float(found["predicted_ms"]),
                drafted=_count(found, "draft_n"),
                accepted=_count(found, "draft_n_accepted"),
            )
        except (KeyError, TypeError, ValueError):
            continue
    for found in _last_objects(_USAGE, tail):
        prompt = _first_count(found, ("prompt_tokens", "input_tokens"))
        predicted = _first_count(found, ("completion_tokens", "output_tokens"))
        if prompt is not None and predicted is not None:
            cached = (found.get("prompt_tokens_details") or found.get("input_tokens_details") or {}).get(
                "cached_tokens"
            )
            return TokenCounts(max(0, prompt - (cached or 0)), predicted)
    return None


def saw_the_end(tail: bytes) -> bool:
    """True if a stream is marked as complete; for servers that end it by closing the connection."""
    return _ENDS.search(tail) is not None


def _last_objects(before: re.Pattern[bytes], tail: bytes) -> Iterable[dict[str, Any]]:
    for match in reversed(list(before.finditer(tail))):
        text = tail[match.end() :].decode(errors="replace")
        try:
            value, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _count(found: dict[str, Any], name: str) -> int | None:
    return int(found[name]) if name in found else None


def _first_count(found: dict[str, Any], names: Iterable[str]) -> int | None:
    for name in names:
        if isinstance(value := found.get(name), int):
            return value
    return None


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """A forwarded request after its end."""

    at: float  # seconds since the epoch at its end
    path: str
    model: str
    backend: str
    build: str
    prompt_type: PromptType | None
    drafting: Drafting
    status: int = 0  # 0 if the backend broke the connection before it
    complete: bool = False  # false if the server died or the client disconnected
    waited_ms: float = 0.0  # for a server: queue, launch, switch
    first_byte_ms: float = 0.0  # since the request was sent to the backend
    total_ms: float = 0.0  # likewise
    streamed: bool = False  # server-sent events
    counts: TokenCounts | None = None


def sample_of(outcome: RequestOutcome) -> Sample | None:
    """The sample of a request; ``None`` if it says nothing about speed.

    If the server reports no times, the proxy's clock is used, for streams only: other answers arrive all at once.
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
