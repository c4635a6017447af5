"""Errors in the format of the client's SDK: OpenAI's, or Anthropic's on ``/v1/messages``.

The formats: https://platform.openai.com/docs/guides/error-codes and https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from aiohttp import web

from autospec.errors import (
    AutospecError,
    LaunchError,
    ModelChoiceError,
    NothingKnownError,
    OverloadedError,
    UnknownModelError,
    UsageError,
)

__all__ = [
    "ProxyProblem",
    "Shape",
    "error_event",
    "event",
    "overloaded",
    "problem_of",
    "problem_response",
    "shape_of",
]

# SDKs wait this long before they retry; the queue moves within seconds.
_RETRY_AFTER_S = 2
# Most model names in an error.
_NAMES_SHOWN = 20
_MESSAGE_CHARACTERS = 2000

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class Shape(StrEnum):
    """The SDK whose error format a client reads."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class ProxyProblem:
    """An error that the proxy answers a request with."""

    status: int
    message: str  # what is wrong, and what to do
    code: str  # OpenAI's machine-readable code, e.g. model_not_found
    param: str | None = None  # the wrong field of the request
    retry_after_s: int = 0  # for Retry-After; 0 omits the header


def overloaded(message: str) -> ProxyProblem:
    """The problem of a request that may succeed in a moment."""
    return ProxyProblem(503, message, "overloaded", retry_after_s=_RETRY_AFTER_S)


def shape_of(path: str) -> Shape:
    """The format that clients of a path read; `path` has no query."""
    return Shape.ANTHROPIC if path.startswith(("/v1/messages", "/messages")) else Shape.OPENAI


def problem_of(error: AutospecError) -> ProxyProblem:
    """The problem that a client gets for an error of autospec."""
    message = str(error)
    match error:
        case UnknownModelError():
            if error.known:
                shown = ", ".join(error.known[:_NAMES_SHOWN])
                more = len(error.known) - _NAMES_SHOWN
                listed = f"{shown} and {more} more" if more > 0 else shown
                message = f"{error.message} The models here are: {listed}."
            return ProxyProblem(404, message, "model_not_found", "model")
        case ModelChoiceError():
            return ProxyProblem(400, message, "model_ambiguous", "model")
        case OverloadedError():
            return overloaded(message)
        case NothingKnownError():
            return ProxyProblem(404, message, "nothing_known")
        case UsageError():
            return ProxyProblem(400, message, "invalid_request")
        case LaunchError():
            return ProxyProblem(502, message, "launch_failed", retry_after_s=math.ceil(error.retry_after_s))
        case _:
            return ProxyProblem(502, message, "backend_failed")


def _body(problem: ProxyProblem, shape: Shape) -> bytes:
    """The JSON of an error response."""
    # The message may contain a model name from the client: with a lone surrogate, or very long.
    shown = problem.message
    if len(shown) > _MESSAGE_CHARACTERS:
        shown = shown[:_MESSAGE_CHARACTERS] + "…"
    document = _document(replace(problem, message=shown), shape)
    return json.dumps(document, ensure_ascii=False).encode(errors="replace")


def problem_response(problem: ProxyProblem, shape: Shape) -> web.Response:
    """The response for a problem."""
    headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s else None
    return web.Response(
        body=_body(problem, shape), status=problem.status, content_type="application/json", headers=headers
    )


def event(problem: ProxyProblem, shape: Shape) -> bytes:
    """The server-sent event that ends a broken stream; SDKs raise it as an error."""
    return _event(_body(problem, shape), shape)


def error_event(answer: bytes, shape: Shape) -> bytes | None:
    """A backend's JSON error as an event; ``None`` if the answer is none."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or "error" not in document:
        return None
    return _event(json.dumps(document).encode(), shape)


def _event(data: bytes, shape: Shape) -> bytes:
    name = b"event: error\n" if shape is Shape.ANTHROPIC else b""
    return name + b"data: " + data + b"\n\n"


def _document(problem: ProxyProblem, shape: Shape) -> dict[str, Any]:
    if shape is Shape.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(problem.status) or (
            "invalid_request_error" if problem.status < 500 else "api_error"
        )
        return {"type": "error", "error": {"type": kind, "message": problem.message}}
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}
