"""Asking a llama.cpp server over HTTP: one chat completion with its timings, and the few reads around it.

The API is llama-server's OpenAI-compatible one (tools/server/README.md of llama.cpp), unchanged in what is used
here from b4372 to b11434: `timings` stands in every answer, with ``draft_n`` where something was drafted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from autospec.backends.process import Ended
from autospec.backends.protocol import Completion, Request
from autospec.errors import RequestError, ServerDiedError

__all__ = ["GREEDY", "ChatClient", "read_completion", "request_body"]

# A loopback connection is made at once or not at all; the margin is for a machine under full load.
_CONNECT_TIMEOUT_S = 10.0
# Reading the slots is queued behind the batch that is being computed.
_STATUS_TIMEOUT_S = 30.0
# /health is answered by a thread of its own; short, so that a server's end is seen though somebody else has its port.
_HEALTH_TIMEOUT_S = 2.0
# The connection breaks a moment before the process can be seen to have ended.
_DEATH_SETTLE_S = 3.0
_LAST_LINES = 3
_SHOWN_CHARACTERS = 200

# Greedy must be greedy: a model's metadata or the user's server arguments may set penalties, which are applied at
# temperature 0 as well, and drafting changes which tokens they see first.
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
    """The JSON of one question: nothing cached, nothing left to a default that matters."""
    sampling = GREEDY if request.temperature <= 0 else {"temperature": request.temperature}
    body: dict[str, Any] = {
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "stream": False,
        "cache_prompt": False,
        "id_slot": 0,  # n-gram pools belong to a slot in some modes: always the same one
        **sampling,
    }
    if request.tools:
        body["tools"] = list(request.tools)
    if request.ignore_eos:
        body["ignore_eos"] = True
    return body


def read_completion(answer: Any, wall_ms: float, *, tells_drafts: bool) -> Completion:
    """The measurement in an answer.

    Args:
        answer: The decoded JSON.
        wall_ms: From sending the request to the end of the answer.
        tells_drafts: False for builds that draft without saying how much.

    Raises:
        RequestError: A part that every llama.cpp server sends is missing or of the wrong kind.
    """
    try:
        choice = answer["choices"][0]
        timings = answer["timings"]
        return Completion(
            text=_text(choice["message"]),
            prompt_tokens=int(timings["prompt_n"]),
            predicted_tokens=int(timings["predicted_n"]),
            prompt_ms=float(timings["prompt_ms"]),
            predicted_ms=float(timings["predicted_ms"]),
            wall_ms=wall_ms,
            drafted=int(timings.get("draft_n") or 0) if tells_drafts else None,
            accepted=int(timings.get("draft_n_accepted") or 0) if tells_drafts else None,
            finish_reason=str(choice.get("finish_reason") or ""),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RequestError(
            f"The server's answer cannot be read: {missing}.", "Is this a llama.cpp server?"
        ) from error


def _text(message: Mapping[str, Any]) -> str:
    """Everything that was generated. Tool calls without their ids, which are random."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    parts = [
        message.get("reasoning_content") or "",
        message.get("content") or "",
        json.dumps([[c.get("name"), c.get("arguments")] for c in calls], ensure_ascii=False) if calls else "",
    ]
    return "".join(parts)


class ChatClient:
    """One server's API.

    Attributes:
        tells_drafts: False for builds that draft without saying how much.
        erases_slot: True for builds that draft only for requests that may use the prompt cache (``can_speculate``
            in the servers of 2025: ``ctx_dft && n_max > 0 && cache_prompt``). There the slot is emptied before
            each request instead, so that nothing is in the cache; it takes ``--slot-save-path`` at the launch.

    Args:
        base_url: ``http://127.0.0.1:PORT``.
        name: What to call the server in sentences.
        ended: Waits some seconds for the server's process to end and says how, or ``None``.
        log_tail: The last lines of its log.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        ended: Callable[[float], Ended | None],
        log_tail: Callable[[int], tuple[str, ...]],
    ) -> None:
        self.tells_drafts = True
        self.erases_slot = False
        self._name = name
        self._ended = ended
        self._log_tail = log_tail
        self._http = httpx.Client(
            base_url=base_url,
            trust_env=False,  # a proxy must never stand between autospec and its own child
            verify=False,  # noqa: S501 - plain HTTP on the loopback; saves reading the certificates
            # A kept connection may be closed by the server just as a request goes out on it.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def complete(self, request: Request, extra: Mapping[str, Any] | None = None) -> Completion:
        """Ask and wait for the whole answer.

        Args:
            request: The question.
            extra: Further fields of the body.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that makes no sense.
        """
        cached = {"cache_prompt": True} if self.erases_slot else {}
        body = {**request_body(request), **cached, **(extra or {})}
        if self.erases_slot:
            self._check_alive()
            self._erase_slot()
        answer, wall_ms = self.post("/v1/chat/completions", body, request.timeout_s)
        return read_completion(answer, wall_ms, tells_drafts=self.tells_drafts)

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> tuple[Any, float]:
        """Ask anything of the server's API.

        Args:
            path: From the server's root.
            body: Sent as JSON.
            timeout_s: The whole request may take this long.

        Returns:
            The decoded answer, and the milliseconds from sending the request to its end.

        Raises:
            ServerDiedError: The process ended.
            RequestError: Refused, timed out, cut off, or an answer that is not JSON.
        """
        content = json.dumps(body).encode()
        self._check_alive()
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        begun_ns = time.perf_counter_ns()
        try:
            status, answer = self._post(path, content, timeout, timeout_s)
        except httpx.TimeoutException as error:
            raise RequestError(
                f"{self._name} did not answer within {timeout_s:g} s.",
                "Ask for fewer tokens, or allow more time.",
            ) from error
        except httpx.HTTPError as error:
            if (ended := self._ended(_DEATH_SETTLE_S)) is not None:
                raise self._died(ended) from error
            raise RequestError(f"The connection to {self._name} broke: {error}.", "Try again.") from error
        wall_ms = (time.perf_counter_ns() - begun_ns) / 1e6
        return self._decode(status, answer), wall_ms

    def ready(self) -> str:
        """``ready``, ``loading`` while the model is read, or ``absent`` while nobody listens."""
        try:
            status = self._http.get("/health", timeout=_HEALTH_TIMEOUT_S).status_code
        except httpx.HTTPError:
            return "absent"
        return "ready" if status == httpx.codes.OK else "loading"

    def speculative(self) -> bool | None:
        """Whether the slots say that they speculate; ``None`` where the build does not tell."""
        try:
            answer = self._http.get("/slots", timeout=_STATUS_TIMEOUT_S)
            slots = answer.json() if answer.status_code == httpx.codes.OK else []
        except (httpx.HTTPError, ValueError):
            return None
        told = [s.get("speculative") for s in slots if isinstance(s, dict)] if isinstance(slots, list) else []
        told = [value for value in told if isinstance(value, bool)]
        return any(told) if told else None

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def _erase_slot(self) -> None:
        try:
            answer = self._http.post("/slots/0", params={"action": "erase"}, timeout=_STATUS_TIMEOUT_S)
        except httpx.HTTPError as error:
            if (ended := self._ended(_DEATH_SETTLE_S)) is not None:
                raise self._died(ended) from error
            raise RequestError(
                f"The slot of {self._name} could not be emptied: {error}.", "Try again."
            ) from error
        self._decode(answer.status_code, answer.content)

    def _check_alive(self) -> None:
        if (ended := self._ended(0.0)) is not None:
            raise self._died(ended)

    def _post(self, path: str, body: bytes, timeout: httpx.Timeout, timeout_s: float) -> tuple[int, bytes]:
        """The status and the whole answer; httpx's own limit is per read, ours is on the whole."""
        deadline = time.monotonic() + timeout_s
        headers = {"content-type": "application/json"}
        with self._http.stream("POST", path, content=body, headers=headers, timeout=timeout) as answer:
            parts = []
            for part in answer.iter_bytes():
                parts.append(part)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer came too slowly", request=answer.request)
            return answer.status_code, b"".join(parts)

    def _decode(self, status: int, content: bytes) -> Any:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if status != httpx.codes.OK:
            told = answer.get("error") if isinstance(answer, dict) else None
            message = told.get("message") if isinstance(told, dict) else told
            said = str(message or content.decode(errors="replace"))[:_SHOWN_CHARACTERS]
            raise RequestError(f"{self._name} refused the request with status {status}: {said}.")
        if answer is None:
            start = content.decode(errors="replace")[:_SHOWN_CHARACTERS]
            raise RequestError(f"{self._name} answered with something that is not JSON: {start!r}.")
        return answer

    def _died(self, ended: Ended) -> ServerDiedError:
        lines = " | ".join(self._log_tail(_LAST_LINES))
        return ServerDiedError(f"{self._name} {ended} while it was asked; its log ends: {lines}")
