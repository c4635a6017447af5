"""A client for a server's JSON API over HTTP, the base of all clients of servers.

Each failure becomes one of two errors: the server's process ended, or the request failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from autospec.backends.process import Ended
from autospec.errors import LateAnswerError, NoAnswerError, RequestError, ServerDiedError

__all__ = ["STATUS_TIMEOUT_S", "JsonClient", "count_in", "milliseconds_in"]

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


def milliseconds_in(told: Any) -> float | None:
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
