"""Clients for a server's JSON API over HTTP: `JsonClient`, the base of all, and `ChatClient` for llama.cpp's server.

Each failure becomes one of two errors: the server's process ended, or the request failed.

llama-server's API is OpenAI-compatible (tools/server/README.md of llama.cpp): chat completions with their timings, /health and /slots.
The parts used here did not change from b4372 to b11434: every answer has `timings`, with ``draft_n`` if something was drafted.

`TokenCounts` is what any server's answer says of its tokens. A part that is not what it should be is unknown, never an error: the
answer itself is good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from autospec.backends.process import Ended
from autospec.backends.protocol import Completion, Request, Slots
from autospec.errors import LateAnswerError, NoAnswerError, RequestError, ServerDiedError

__all__ = [
    "GREEDY",
    "STATUS_TIMEOUT_S",
    "ChatClient",
    "JsonClient",
    "TokenCounts",
    "count_in",
    "counts_in_timings",
    "counts_in_usage",
    "drafts_in",
    "is_reasoning",
    "read_completion",
    "request_body",
]

# A loopback connection is made at once or not at all; this allows for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# A server reads its state only after the batch that it computes.
STATUS_TIMEOUT_S = 30.0
# The connection breaks a moment before the process's end is visible.
_DEATH_SETTLE_S = 3.0
_LAST_LINES = 3
_SHOWN_CHARACTERS = 200
# Too many requests, a bad gateway, unavailable, a late gateway: refused for now, whatever the request says.
_NOT_NOW = frozenset({429, 502, 503, 504})
# PostgreSQL's INTEGER holds no more. No request has so many tokens, and none takes so many milliseconds (24 days).
_MOST = 2**31 - 1


class JsonClient:
    """One server's API.

    Args:
        base_url: ``http://127.0.0.1:PORT``.
        name: The server's name in error messages.
        ended: Waits some seconds for the server's process to end and says how it ended, or ``None``.
        log_tail: The last lines of its log.
        headers: Sent with every request, e.g. an API key.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        ended: Callable[[float], Ended | str | None],
        log_tail: Callable[[int], tuple[str, ...]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._ended = ended
        self._log_tail = log_tail
        self._http = httpx.Client(
            base_url=base_url,
            headers=dict(headers or {}),
            trust_env=False,  # no proxy between autospec and its own child
            # Plain HTTP on the loopback needs no certificates, and reading them takes time.
            verify=not base_url.startswith("http:"),
            # A server may close a kept connection just when a request is sent on it.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> tuple[Any, float]:
        """Post JSON to a path.

        Returns:
            The decoded answer, and the milliseconds from sending the request to the end of the answer.

        Raises:
            ServerDiedError: The process ended.
            LateAnswerError: Timed out.
            NoAnswerError: No connection, or refused for now.
            RequestError: Refused, or an answer that is not JSON.
        """
        begun_ns = time.perf_counter_ns()
        with self._streamed(path, body, timeout_s) as (answer, parts):
            content = b"".join(parts)
        wall_ms = (time.perf_counter_ns() - begun_ns) / 1e6
        return self._decode(answer.status_code, content), wall_ms

    def get(self, path: str, timeout_s: float = STATUS_TIMEOUT_S) -> Any:
        """Read a path, decoded; ``None`` if that fails."""
        try:
            answer = self._http.get(path, timeout=timeout_s)
            return answer.json() if answer.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValueError):
            return None

    def answers(self, path: str, timeout_s: float = STATUS_TIMEOUT_S) -> bool:
        """True if the server answers there, with any status."""
        try:
            self._http.get(path, timeout=timeout_s)
        except httpx.HTTPError:
            return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def _streamed(
        self, path: str, body: Mapping[str, Any], timeout_s: float
    ) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
        """Post, and yield the answer's head and its parts as they arrive."""
        self._check_alive()
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        headers = {"content-type": "application/json"}
        deadline = time.monotonic() + timeout_s
        content = json.dumps(body).encode()
        with (
            self._told(f"did not answer within {timeout_s:g} s"),
            self._http.stream("POST", path, content=content, headers=headers, timeout=timeout) as answer,
        ):
            yield answer, _before(deadline, answer)

    @contextmanager
    def _told(self, late: str) -> Iterator[None]:
        """Turn httpx's errors into ours."""
        try:
            yield
        except httpx.TimeoutException as error:
            kind = LateAnswerError if isinstance(error, httpx.ReadTimeout) else NoAnswerError
            raise kind(f"{self._name} {late}.", "Ask for fewer tokens, or allow more time.") from error
        except httpx.HTTPError as error:
            # An attached server that is down has no process that could be seen to end.
            fault = NoAnswerError if isinstance(error, httpx.TransportError) else RequestError
            raise self._broken(f"The connection to {self._name} broke: {error}.", fault) from error

    def _broken(self, sentence: str, kind: type[RequestError] = RequestError) -> RequestError:
        """The error for an answer that ended too early: the server's death, or else this sentence."""
        if (ended := self._ended(_DEATH_SETTLE_S)) is not None:
            return self._died(ended)
        return kind(sentence, "Try again; the server's log may say why.")

    def _check_alive(self) -> None:
        if (ended := self._ended(0.0)) is not None:
            raise self._died(ended)

    def _decode(self, status: int, content: bytes) -> Any:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if status != httpx.codes.OK:
            said = _refusal(answer) or content.decode(errors="replace")
            told = f"{self._name} refused the request with status {status}: {said[:_SHOWN_CHARACTERS]}."
            if status in _NOT_NOW:
                raise NoAnswerError(told, "Try again when the server is ready and has nothing else to do.")
            raise RequestError(told)
        if answer is None:
            start = content.decode(errors="replace")[:_SHOWN_CHARACTERS]
            raise RequestError(f"{self._name} answered with something that is not JSON: {start!r}.")
        return answer

    def _died(self, ended: Ended | str) -> ServerDiedError:
        lines = " | ".join(self._log_tail(_LAST_LINES))
        log = f"; its log ends: {lines}" if lines else "."
        return ServerDiedError(f"{self._name} {ended} during a request{log}")


def count_in(told: Any) -> int | None:
    """A count in a server's JSON; ``None`` if it is not a whole number from 0 to 2^31 - 1."""
    return int(told) if _is_sensible(told) and told == int(told) else None


def _milliseconds_in(told: Any) -> float | None:
    """A time in a server's JSON; ``None`` if it is not a number from 0 to 2^31 - 1."""
    return float(told) if _is_sensible(told) else None


def _is_sensible(told: Any) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told <= _MOST


def _refusal(answer: Any) -> str:
    """The message in an error's JSON: OpenAI's form, or a bare text."""
    told = answer.get("error") if isinstance(answer, dict) else None
    message = told.get("message") if isinstance(told, dict) else told
    return str(message or "")


def _before(deadline: float, answer: httpx.Response) -> Iterator[bytes]:
    """The answer's parts; httpx's own limit is per read, ours is for the whole request."""
    for part in answer.iter_bytes():
        yield part
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the answer came too slowly", request=answer.request)


# A thread of its own answers /health. Short, so that a server's end is seen even if another program has its port.
_HEALTH_TIMEOUT_S = 2.0

# Greedy must be greedy: a model's metadata or the user's server arguments may set penalties, which also apply at
# temperature 0, and drafting changes which tokens they see first.
GREEDY = {
    "temperature": 0.0,
    "top_k": 1,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
}


def request_body(request: Request) -> dict[str, Any]:
    """The JSON of one request, with every default that matters set."""
    sampling = GREEDY if request.temperature <= 0 else {"temperature": request.temperature}
    body: dict[str, Any] = {
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "stream": False,
        "cache_prompt": request.cached,
        # N-gram pools belong to a slot in some modes: the same one unless the request says otherwise.
        "id_slot": request.slot,
        **sampling,
    }
    if request.tools:
        body["tools"] = list(request.tools)
    if request.ignore_eos:
        body["ignore_eos"] = True
    return body


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Counts and times of an answer, by the server's clock; ``None`` if the answer lacks them."""

    prompt_tokens: int  # without cached ones, if the server reports them
    predicted_tokens: int
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    drafted: int | None = None
    accepted: int | None = None
    cached_tokens: int | None = None  # of the prompt

    @property
    def whole_prompt_tokens(self) -> int | None:
        """All tokens of the prompt; ``None`` if it is unknown how many were cached."""
        return None if self.cached_tokens is None else self.prompt_tokens + self.cached_tokens


def counts_in_timings(timings: Any) -> TokenCounts | None:
    """Read llama.cpp's ``timings``; ``None`` if a count or a time is missing. Draft counts may be missing, or null (mlx-vlm)."""
    if not isinstance(timings, dict):
        return None
    prompt_tokens, predicted_tokens = count_in(timings.get("prompt_n")), count_in(timings.get("predicted_n"))
    prompt_ms = _milliseconds_in(timings.get("prompt_ms"))
    predicted_ms = _milliseconds_in(timings.get("predicted_ms"))
    if prompt_tokens is None or predicted_tokens is None or prompt_ms is None or predicted_ms is None:
        return None
    drafted, accepted = drafts_in(timings, "draft_n", "draft_n_accepted")
    cached_tokens = count_in(timings.get("cache_n"))
    return TokenCounts(
        prompt_tokens, predicted_tokens, prompt_ms, predicted_ms, drafted, accepted, cached_tokens
    )


def counts_in_usage(usage: Any) -> TokenCounts | None:
    """Read ``usage``, with OpenAI's or Anthropic's names; ``None`` if a count is missing."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens = _first_count(usage, "prompt_tokens", "input_tokens")
    predicted_tokens = _first_count(usage, "completion_tokens", "output_tokens")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    told = details.get("cached_tokens") if isinstance(details, dict) else None
    cached_tokens = count_in(told or 0) if isinstance(details, dict) else None
    if prompt_tokens is None or predicted_tokens is None or cached_tokens is None:
        return None
    cached_tokens = min(cached_tokens, prompt_tokens)
    # Without details it is unknown how much of the prompt was cached.
    return TokenCounts(
        prompt_tokens - cached_tokens,
        predicted_tokens,
        cached_tokens=None if told is None else cached_tokens,
    )


def drafts_in(told: Any, drafted: str, accepted: str) -> tuple[int | None, int | None]:
    """Read drafted and accepted tokens under these names. More accepted than drafted are no counts."""
    if not isinstance(told, dict):
        return None, None
    drafted_tokens, accepted_tokens = count_in(told.get(drafted)), count_in(told.get(accepted))
    if drafted_tokens is None or (accepted_tokens or 0) > drafted_tokens:
        return None, None
    return drafted_tokens, accepted_tokens


def _first_count(found: Mapping[str, Any], *names: str) -> int | None:
    counts = (count_in(found.get(name)) for name in names)
    return next((count for count in counts if count is not None), None)


def read_completion(answer: Any, wall_ms: float, *, tells_drafts: bool) -> Completion:
    """Read an answer's decoded JSON; `wall_ms` is from sending the request to the end of the answer.

    Raises:
        RequestError: A part that every llama.cpp server sends is missing or of the wrong kind.
    """
    try:
        choice = answer["choices"][0]
        reasoning, rest = _texts(choice["message"])
        text = reasoning + rest
        finish_reason = str(choice.get("finish_reason") or "")
        counts = counts_in_timings(answer["timings"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(f"no {error}" if isinstance(error, KeyError) else str(error)) from error
    if counts is None or counts.prompt_ms is None or counts.predicted_ms is None:
        raise _unreadable("its timings lack a count or a time")
    return Completion(
        text=text,
        prompt_tokens=counts.prompt_tokens,
        predicted_tokens=counts.predicted_tokens,
        prompt_ms=counts.prompt_ms,
        predicted_ms=counts.predicted_ms,
        wall_ms=wall_ms,
        drafted=(counts.drafted or 0) if tells_drafts else None,
        accepted=(counts.accepted or 0) if tells_drafts else None,
        finish_reason=finish_reason,
        still_reasoning=is_reasoning(reasoning, rest),
    )


# How models mark their reasoning, where the server leaves it in the answer: begin and end.
_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel|>analysis", "<|channel|>final"))


def is_reasoning(reasoning: str, rest: str) -> bool:
    """Whether an answer has not come beyond its reasoning; `rest` is what the server does not call so."""
    begun = rest.lstrip()
    return bool(reasoning and not begun) or any(
        begun.startswith(begin) and end not in begun for begin, end in _MARKS
    )


def _unreadable(what: str) -> RequestError:
    return RequestError(
        f"The server's answer cannot be read: {what}.", "The server may not be a llama.cpp server."
    )


def _texts(message: Mapping[str, Any]) -> tuple[str, str]:
    """All generated text: the reasoning, and the rest. Tool calls are without their ids, which are random."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    told = (
        json.dumps([[c.get("name"), c.get("arguments")] for c in calls], ensure_ascii=False) if calls else ""
    )
    reasoning, content = (message.get(name) or "" for name in ("reasoning_content", "content"))
    return reasoning, content + told


class ChatClient(JsonClient):
    """One server's API; arguments are those of `JsonClient`.

    Attributes:
        tells_drafts: False for builds that do not report drafted tokens.
        erases_slot: True for builds that draft only for requests that may use the prompt cache (``can_speculate``
            in the servers of 2025: ``ctx_dft && n_max > 0 && cache_prompt``). There the slot is emptied before
            each request instead, so that nothing is in the cache. The launch needs ``--slot-save-path`` for that.
    """

    tells_drafts = True
    erases_slot = False

    def complete(self, request: Request, extra: Mapping[str, Any] | None = None) -> Completion:
        """Ask and wait for the whole answer; `extra` holds further fields of the body.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """
        cached = {"cache_prompt": True} if self.erases_slot else {}
        body = {**request_body(request), **cached, **(extra or {})}
        if self.erases_slot and not request.cached:
            self._check_alive()
            self._erase_slot(request.slot, body.get("model"))
        answer, wall_ms = self.post("/v1/chat/completions", body, request.timeout_s)
        return read_completion(answer, wall_ms, tells_drafts=self.tells_drafts)

    def ready(self) -> str:
        """``ready``, ``loading`` while the model is read, or ``absent`` if it does not listen."""
        try:
            status = self._http.get("/health", timeout=_HEALTH_TIMEOUT_S).status_code
        except httpx.HTTPError:
            return "absent"
        return "ready" if status == httpx.codes.OK else "loading"

    def speculative(self) -> dict[int, bool | None]:
        """The server's slots by number: True if one reports that it speculates, ``None`` if the build does not report that."""
        return {
            number: told if isinstance(told := s.get("speculative"), bool) else None
            for s in self._listed_slots()
            if isinstance(number := s.get("id"), int)
        }

    def slots(self) -> Slots:
        """How many slots the server has, the context of one, and which of them say that they do not draft.

        Raises:
            RequestError: It tells neither in /props nor in /slots.
        """
        props, told = self.get("/props"), self._listed_slots()
        count = count_in(props.get("total_slots")) if isinstance(props, dict) else None
        count = count or len(told)
        if not count:
            raise RequestError("The server does not report its slots.")
        contexts = [n for s in told if (n := count_in(s.get("n_ctx")))]
        silent = tuple(
            s["id"] for s in told if s.get("speculative") is False and isinstance(s.get("id"), int)
        )
        return Slots(count, min(contexts, default=None), silent)

    def _listed_slots(self) -> list[dict[str, Any]]:
        slots = self.get("/slots")
        return [s for s in slots if isinstance(s, dict)] if isinstance(slots, list) else []

    def _erase_slot(self, slot: int, model: str | None) -> None:
        # A router finds the slot's server by the model in the body.
        body = {"model": model} if model else {}
        with self._told("did not empty its slot in time"):
            answer = self._http.post(
                f"/slots/{slot}", params={"action": "erase"}, json=body, timeout=STATUS_TIMEOUT_S
            )
        self._decode(answer.status_code, answer.content)
