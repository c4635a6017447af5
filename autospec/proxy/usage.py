"""Token counts from the end of an answer, and the outcome of a request as a sample for the store.

llama.cpp appends ``timings`` to every answer, streamed or not (``result_timings::to_json``, tools/server/server-task.cpp), so
no event is parsed on its way: the last bytes hold everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import orjson

from autospec.backends.openai_http import TokenCounts, counts_in_timings, counts_in_usage
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting
from autospec.measure.measurements import Sample
from autospec.serving.dispatch import Limit

__all__ = [
    "RequestOutcome",
    "TokenCounts",
    "UsageReader",
    "label_of",
    "read_counts",
    "sample_of",
    "saw_the_end",
]

# The last event of /v1/responses repeats the whole answer, but the counts come after it.
_KEPT_BYTES = 16 * 1024
# What came before is dropped after so many small parts, or after a large one: not with every token.
_SMALL_BYTES = 4096
_MOST_PARTS = 256

_TIMINGS = b'"timings":'
_USAGE = b'"usage":'
_OBJECT = re.compile(rb"\s*(?=\{)")
_FLAT = re.compile(rb"\{[^{}]*\}")
_DECODER = json.JSONDecoder()
# The ends of streams: OpenAI, Anthropic, Responses API, llama.cpp, an error.
_ENDS = re.compile(
    rb'data: ?\[DONE\]|"message_stop"|"response\.(?:completed|incomplete|failed)"|"stop":\s*true|"error":\s*[{"]'
)


class UsageReader:
    """Keeps the last bytes of a stream.

    Attributes:
        parts: What is kept, and some of what came before it.
    """

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def feed(self, part: bytes) -> None:
        """Keep a part that passes."""
        self.parts.append(part)
        if len(part) > _SMALL_BYTES or len(self.parts) > _MOST_PARTS:
            self._trim()

    def _trim(self) -> None:
        """Drop what came before the last 16 KiB."""
        self.parts[:] = [self.content()]

    def content(self) -> bytes:
        """The last 16 KiB, or the whole stream if it is shorter."""
        return b"".join(self.parts)[-_KEPT_BYTES:]


def read_counts(tail: bytes) -> TokenCounts | None:
    """The counts at the end of an answer, whatever its bytes; ``None`` if there are none.

    Generated text cannot be mistaken for a field, because JSON escapes its quotation marks.
    """
    # The last ones alone: a stream may have timings in every event.
    if (counts := counts_in_timings(next(_last_objects(_TIMINGS, tail), None))) is not None:
        return counts
    usage: dict[str, Any] = {}
    for earlier in _last_objects(_USAGE, tail):
        # Anthropic's streams tell the prompt's tokens at their beginning only; what comes later wins.
        usage = {name: value for name, value in earlier.items() if value is not None} | usage
    return counts_in_usage(usage)


def saw_the_end(tail: bytes) -> bool:
    """True if a stream is marked as complete; for servers that end it by closing the connection."""
    return _ENDS.search(tail) is not None


def _last_objects(name: bytes, tail: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects behind a name, the last one first: searched for from the end, near which they are."""
    end = len(tail)
    while (end := tail.rfind(name, 0, end)) >= 0:
        if (before := _OBJECT.match(tail, end + len(name))) is None:
            continue
        if (value := _decoded(tail, before.end())) is not None:
            yield value


def _decoded(tail: bytes, start: int) -> dict[str, Any] | None:
    """The JSON object that begins there; ``None`` if it is cut off, or nested thousands deep."""
    with suppress(orjson.JSONDecodeError):
        # Usually it holds no other. A brace in a string ends the match too soon, inside of the string, so nothing wrong is read.
        if (flat := _FLAT.match(tail, start)) is not None:
            return cast("dict[str, Any]", orjson.loads(flat[0]))
    try:
        value, _ = _DECODER.raw_decode(tail[start:].decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value)


@lru_cache(256)
def label_of(drafting: Drafting) -> str:
    """The label of a drafting, which every request needs several times."""
    return drafting.label


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
    client_gone: bool = False  # the client disconnected
    retried: bool = False  # the server died before it answered, and another one was asked
    is_probe: bool = False  # health checks, pages and dashboards: no use of the model
    waited_ms: float = 0.0  # for a server: queue, launch, switch
    first_byte_ms: float = 0.0  # since the request was sent to the backend
    total_ms: float = 0.0  # likewise
    streamed: bool = False  # server-sent events
    counts: TokenCounts | None = None
    limit: Limit | None = None  # that the request is beyond
    concurrent: int = 1  # most answers that the model wrote at once, those to this request included
    temperature: float | None = None  # None if it generates nothing
    keeps_cache: bool = True  # False if the server has no prompt cache because a draft is loaded
    sets_drafting: bool = False  # its fields may have changed the drafting


def sample_of(outcome: RequestOutcome) -> Sample | None:
    """The sample of a request; ``None`` if it says nothing about the speed of its drafting.

    If the server reports no times, the proxy's clock is used, for streams only: other answers arrive all at once.
    """
    counts = outcome.counts
    if counts is None or not outcome.complete or outcome.status != 200 or counts.predicted_tokens < 1:
        return None
    if outcome.sets_drafting and outcome.drafting != OFF:
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
        # Without its draft the server would have a cache: what it computes does not tell what requests without drafting cost.
        cached_tokens=None if off and not outcome.keeps_cache else counts.cached_tokens,
        concurrent=outcome.concurrent,
        temperature=outcome.temperature,
    )
