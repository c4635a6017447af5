"""A client for any OpenAI-compatible server, which streams answers and times their tokens by their arrival.

mlx_lm.server, llama-cpp-python's server, mlx-omni-server, LM Studio and others report no times, so the first token's time
is when its chunk arrives. llama.cpp's ``timings`` and the draft counts of LM Studio and vLLM are used if an answer has them.
Protocol: https://platform.openai.com/docs/api-reference/chat-streaming.

Server-sent events are cut at line feeds only. `httpx.Response.iter_lines` also cuts at U+2028 and similar characters,
which JSON may hold in a text (LM Studio sends them unescaped). And a library's decoder would hide the comments that keep
a connection alive, at which the time limit of the whole request is checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from autospec.backends.openai_http import (
    JsonClient,
    count_in,
    counts_in_timings,
    counts_in_usage,
    drafts_in,
    is_reasoning,
)
from autospec.backends.process import Ended
from autospec.backends.protocol import Completion, Request
from autospec.errors import NoAnswerError, RequestError

__all__ = ["DONE", "AnswerReader", "StreamedClient", "data_of", "streamed_body"]

# OpenAI's API sends this last.
DONE = "[DONE]"


def data_of(parts: Iterable[bytes]) -> Iterator[str]:
    """The data of each event in a body whose parts are cut anywhere; comments and other fields are left out.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html; these servers send each event's data as one
    line of JSON.
    """
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                yield value.removeprefix(b" ").decode(errors="replace")


_CHAT = "/v1/chat/completions"
# Statuses of a strict server for a field that it does not know.
_FIELD_REFUSED = frozenset({400, 422})


def streamed_body(request: Request, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON of one question, in fields that every OpenAI-compatible server knows.

    A greedy answer needs no seed, and mlx_lm.server does not batch a request that has one. The fields of `extra` replace others;
    the value ``None`` removes a field.
    """
    body: dict[str, Any] = {
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": max(0.0, request.temperature),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.temperature > 0:
        body["seed"] = request.seed
    if request.tools:
        body["tools"] = list(request.tools)
    for name, value in (extra or {}).items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    return body


# Parts of a chunk that tell of tokens and times. `metrics` is vLLM's, in the chunk of the usage, if it was started with
# --per-request-spec-decode-metrics (https://github.com/vllm-project/vllm/pull/48915).
_TELLING = ("usage", "stats", "timings", "metrics")
_LM_STUDIOS_NAMES = ("total_draft_tokens_count", "accepted_draft_tokens_count")


@dataclass(slots=True)
class _Call:
    """A tool call that arrives in pieces."""

    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class AnswerReader:
    """Builds an answer from its chunks. Pure: the times are given."""

    finish_reason: str = ""
    _reasoning: list[str] = field(default_factory=list)
    _content: list[str] = field(default_factory=list)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _told: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # the last of each of `_TELLING`
    _chunks: int = 0
    _first_ms: float | None = None
    _last_ms: float = 0.0

    def read(self, chunk: Mapping[str, Any], at_ms: float) -> None:
        """Take the decoded data of one chunk that came `at_ms` after sending the request.

        Raises:
            RequestError: The server reports an error in the middle of the answer.
            KeyError, TypeError, ValueError, AttributeError, IndexError: It is not a chunk of a chat completion.
        """
        if told := chunk.get("error"):
            raise RequestError(
                f"The server reported an error in its answer: {told.get('message') if isinstance(told, dict) else told}."
            )
        for name in _TELLING:
            if isinstance(told := chunk.get(name), Mapping) and told:
                self._told[name] = told
        for choice in chunk.get("choices") or ():
            if self._take(choice.get("delta") or {}):
                self._chunks += 1
                self._last_ms = at_ms
                if self._first_ms is None:
                    self._first_ms = at_ms
            self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)

    def answer(self, wall_ms: float) -> Completion:
        """The answer, whose end came `wall_ms` after sending the request.

        Its times are by our clock unless it carried llama.cpp's ``timings``. If the server told no usage, its tokens are the chunks that
        came (with drafting a chunk may hold several tokens), and prompt tokens are 0.
        """
        first_ms = wall_ms if self._first_ms is None else self._first_ms
        timings = counts_in_timings(self._told.get("timings"))
        usage = counts_in_usage(self._told.get("usage"))
        told = timings or usage
        # A server may tell the tokens of its answer alone.
        predicted = (
            told.predicted_tokens if told else count_in(self._told.get("usage", {}).get("completion_tokens"))
        )
        prompt_ms, predicted_ms = (timings.prompt_ms, timings.predicted_ms) if timings else (None, None)
        drafted, accepted = self._drafts()
        reasoning, rest = "".join(self._reasoning), "".join([*self._content, self._tool_text()])
        return Completion(
            text=reasoning + rest,
            prompt_tokens=told.prompt_tokens if told else 0,
            predicted_tokens=self._chunks if predicted is None else predicted,
            prompt_ms=first_ms if prompt_ms is None else prompt_ms,
            predicted_ms=max(0.0, self._last_ms - first_ms) if predicted_ms is None else predicted_ms,
            wall_ms=wall_ms,
            drafted=drafted,
            accepted=accepted,
            finish_reason=self.finish_reason,
            still_reasoning=is_reasoning(reasoning, rest),
        )

    def _take(self, delta: Mapping[str, Any]) -> bool:
        """Keep a delta's text; false if it holds nothing that was generated."""
        # The first name is DeepSeek's, the second mlx-lm's, LM Studio's and vLLM's newer one; some send both.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        content = delta.get("content") or ""
        calls = delta.get("tool_calls") or ()
        self._reasoning.append(reasoning)
        self._content.append(content)
        for piece in calls:
            # A piece without an index is a whole call (older mlx-lm, mlx-omni-server).
            call = self._calls.setdefault(int(piece.get("index", len(self._calls))), _Call())
            function = piece.get("function") or {}
            call.name += function.get("name") or ""
            call.arguments += function.get("arguments") or ""
        return bool(reasoning or content or calls)

    def _tool_text(self) -> str:
        """Tool calls as `openai_http` writes them, so that texts of the two clients can be compared."""
        calls = [[call.name, call.arguments] for _, call in sorted(self._calls.items())]
        return json.dumps(calls, ensure_ascii=False) if calls else ""

    def _drafts(self) -> tuple[int | None, int | None]:
        """Drafted and accepted: llama.cpp's names, LM Studio's, which moved from ``stats`` to ``usage``, or vLLM's."""
        by_vllm = self._told.get("metrics", {}).get("speculative_decoding")
        for told, names in (
            (self._told.get("timings"), ("draft_n", "draft_n_accepted")),
            (self._told.get("stats"), _LM_STUDIOS_NAMES),
            (self._told.get("usage"), _LM_STUDIOS_NAMES),
            (by_vllm, ("num_draft_tokens", "num_accepted_draft_tokens")),
        ):
            drafts = drafts_in(told, *names)
            if drafts[0] is not None:
                return drafts
        return None, None


def _now_ms() -> float:
    return time.perf_counter_ns() / 1e6


class StreamedClient(JsonClient):
    """One server's OpenAI-compatible API.

    Arguments are those of `JsonClient`, besides the chat route `path`.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        ended: Callable[[float], Ended | str | None],
        log_tail: Callable[[int], tuple[str, ...]],
        headers: Mapping[str, str] | None = None,
        *,
        path: str = _CHAT,
    ) -> None:
        super().__init__(base_url, name, ended, log_tail, headers)
        self._path = path
        self._asks_usage = True

    def complete(self, request: Request, extra: Mapping[str, Any] | None = None) -> Completion:
        """Ask and wait for the whole answer; `extra` as for `streamed_body`.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """
        body = streamed_body(request, extra)
        if not self._asks_usage:
            del body["stream_options"]
        begun_ms = _now_ms()
        with self._streamed(self._path, body, request.timeout_s) as (answer, parts):
            if answer.status_code == httpx.codes.OK:
                return self._read(parts, begun_ms, answer.headers.get("content-type", ""))
            content = b"".join(parts)
        if self._asks_usage and answer.status_code in _FIELD_REFUSED and b"stream_options" in content:
            self._asks_usage = False
            return self.complete(request, extra)
        self._decode(answer.status_code, content)
        raise RequestError(f"{self._name} answered with status {answer.status_code}.")

    def _read(self, parts: Iterator[bytes], begun_ms: float, kind: str) -> Completion:
        if "text/event-stream" not in kind:
            start = next(parts, b"").decode(errors="replace")[:200]
            raise RequestError(
                f"{self._name} does not stream; it answered: {start!r}.",
                "autospec needs OpenAI-compatible streaming to time the first token.",
            )
        reader = AnswerReader()
        try:
            for data in data_of(parts):
                if data == DONE and reader.finish_reason:
                    return reader.answer(_now_ms() - begun_ms)
                if data == DONE:
                    raise self._broken(f"{self._name} ended its answer too early.")
                reader.read(json.loads(data), _now_ms() - begun_ms)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                f"The answer of {self._name} cannot be read: {error!r}.",
                "The server may not be OpenAI-compatible.",
            ) from error
        # A server that dies closes its socket. For a stream without a length that looks like its end, also if nobody sees it die.
        raise self._broken(f"{self._name} ended its answer too early.", NoAnswerError)
