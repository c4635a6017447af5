"""Which headers pass and which end at the proxy. Pure.

RFC 9110 §7.6.1: hop-by-hop fields, and those that Connection names, speak of one connection only.

Parsing a long JSON object without holding everybody up. Pure.

`json.loads` keeps the interpreter's lock until it is done, in whatever thread it runs: 4.5 MB of chat with escapes took
28 ms here, in which no stream's token would move. Parsed message by message, in a thread, the lock is free in between.

A request's body: read within a limit, parsed once, and only as far as the model and the prompt are needed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from autospec.cells import PromptType
from autospec.proxy.errors import ProxyProblem

__all__ = [
    "DRAFTING",
    "PROMPT_TYPE",
    "Classify",
    "ProxyRequest",
    "Refused",
    "for_backend",
    "for_client",
    "forced_prompt_type",
    "generates",
    "loads_in_pieces",
    "parse",
    "read_body",
    "wants_off",
]


PROMPT_TYPE = "x-autospec-prompt-type"
DRAFTING = "x-autospec-drafting"

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Host and length are of the new request; Expect was answered by the proxy; ours are for us.
_NOT_FOR_BACKEND = _HOP_BY_HOP | {"host", "content-length", "expect", PROMPT_TYPE, DRAFTING}
# The proxy's own key is nobody else's business.
_CREDENTIALS = frozenset({"authorization", "x-api-key"})


def for_backend(headers: Iterable[tuple[str, str]], *, keep_credentials: bool) -> CIMultiDict[str]:
    """The headers of a client's request as the backend gets them.

    Args:
        headers: In their order, repeated ones included.
        keep_credentials: False if the key in them is the proxy's.

    Raises:
        UnicodeEncodeError: One holds bytes that are no UTF-8.
    """
    dropped = _NOT_FOR_BACKEND if keep_credentials else _NOT_FOR_BACKEND | _CREDENTIALS
    passed = _without(headers, dropped)
    for value in passed.values():
        value.encode()
    return passed


def for_client(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The headers of a backend's answer as the client gets them; its length stays."""
    return _without(headers, _HOP_BY_HOP)


def _without(headers: Iterable[tuple[str, str]], dropped: frozenset[str]) -> CIMultiDict[str]:
    pairs = [(name, value, name.lower()) for name, value in headers]
    named = {
        word.strip().lower()
        for _, value, lower in pairs
        if lower == "connection"
        for word in value.split(",")
    }
    return CIMultiDict(
        (name, value) for name, value, lower in pairs if lower not in dropped and lower not in named
    )


_DECODE = JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")
# About a millisecond of parsing.
_PIECE_CHARACTERS = 128 * 1024


def loads_in_pieces(content: bytes) -> Any:
    """What `json.loads` returns, with the interpreter's lock given up between the pieces.

    Args:
        content: A JSON text.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
    """
    text = content.decode(json.detect_encoding(content), "surrogatepass")
    try:
        return _Pieces(text).object()
    except (ValueError, IndexError, StopIteration):
        return json.loads(text)  # not an object, or damaged: its own result or sentence


class _Pieces:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breath = _PIECE_CHARACTERS

    def object(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self._take("{")
        if not self._is("}"):
            while True:
                self._take('"')
                key, self._at = scanstring(self._text, self._at, True)
                self._take(":")
                result[key] = self._value()
                if not self._is(","):
                    break
            self._take("}")
        if _SPACE.fullmatch(self._text, self._at) is None:
            raise ValueError("more after the object")
        return result

    def _value(self) -> Any:
        if not self._is("["):
            return self._piece()
        items: list[Any] = []
        if not self._is("]"):
            items.append(self._piece())
            while self._is(","):
                items.append(self._piece())
            self._take("]")
        return items

    def _piece(self) -> Any:
        self._skip()
        value, self._at = _DECODE(self._text, self._at)
        if self._at > self._breath:
            self._breath = self._at + _PIECE_CHARACTERS
            time.sleep(0)  # lets the event loop's thread have the lock
        return value

    def _is(self, sign: str) -> bool:
        self._skip()
        if self._text[self._at] != sign:
            return False
        self._at += 1
        return True

    def _take(self, sign: str) -> None:
        if not self._is(sign):
            raise ValueError(f"{sign} expected")

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()


# What a path and the parsed body say about the kind of prompt; None where nothing is generated.
Classify = Callable[[str, Mapping[str, Any]], PromptType | None]

# A longer body is parsed in a thread: this much takes about a millisecond.
_PARSED_AT_ONCE_BYTES = 128 * 1024

_GENERATING = frozenset(
    {"/chat/completions", "/completions", "/completion", "/responses", "/messages", "/infill"}
)


class Refused(Exception):  # noqa: N818 - not an error of ours: the request cannot be meant
    """The request is answered with a problem."""

    def __init__(self, problem: ProxyProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request's body.

    Attributes:
        content: Its bytes, to be forwarded untouched.
        document: The JSON object in it, or ``None`` where it is none.
        model: The model it names, or empty.
    """

    content: bytes = b""
    document: dict[str, Any] | None = None
    model: str = ""


def generates(path: str) -> bool:
    """True if a POST to this path generates text, so that drafting matters."""
    return path.removeprefix("/v1") in _GENERATING


async def read_body(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        Refused: It is longer than the limit, told before it is read where it says its length.
    """
    told = request.content_length
    if told is not None and told > limit_bytes:
        raise Refused(_too_large(limit_bytes))
    if request.headers.get("Expect", "").lower() == "100-continue":
        # As aiohttp's own router does; a low-level server leaves it to the handler.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts: list[bytes] = []
    size = 0
    while part := await request.content.readany():
        size += len(part)
        if size > limit_bytes:
            raise Refused(_too_large(limit_bytes))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def parse(content: bytes, headers: Mapping[str, str]) -> ProxyRequest:
    """Find the model and the prompt.

    What is no JSON object (a form, an array, nothing) is passed on without a model. JSON that is damaged is
    refused: nobody could tell which server it is for.

    Raises:
        Refused: Damaged JSON, nested too deeply, compressed, or a model that is no text.
    """
    if not _looks_like_json(content, headers.get("Content-Type", "")):
        return ProxyRequest(content)
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        message = "A compressed request cannot be read here. Send it without Content-Encoding."
        raise Refused(ProxyProblem(415, message, "unsupported_encoding"))
    try:
        if len(content) <= _PARSED_AT_ONCE_BYTES:
            document = json.loads(content)
        else:
            document = await asyncio.to_thread(loads_in_pieces, content)
    except RecursionError:
        raise Refused(_malformed("it is nested too deeply")) from None
    except UnicodeDecodeError:
        raise Refused(_malformed("it is not UTF-8")) from None
    except json.JSONDecodeError as error:
        raise Refused(_malformed(f"{error.msg} at character {error.pos}")) from None
    except ValueError:  # a number of thousands of digits
        raise Refused(_malformed("a value cannot be read")) from None
    if not isinstance(document, dict):
        return ProxyRequest(content)
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        message = f"`model` must be a string, not {_kind(model)}."
        raise Refused(ProxyProblem(400, message, "invalid_type", "model"))
    return ProxyRequest(content, document, model or "")


def forced_prompt_type(headers: Mapping[str, str]) -> PromptType | None:
    """The prompt type that the client's header asks for.

    Raises:
        Refused: There is no such type.
    """
    text = headers.get(PROMPT_TYPE)
    if text is None:
        return None
    try:
        return PromptType(text.strip().lower())
    except ValueError:
        message = f"{PROMPT_TYPE} is one of {', '.join(PromptType)}, not {text[:100]!r}."
        raise Refused(ProxyProblem(400, message, "invalid_header", PROMPT_TYPE)) from None


def wants_off(headers: Mapping[str, str]) -> bool:
    """True if the client's header asks for no drafting.

    Raises:
        Refused: It asks for anything else, which would be another launch than the evidence supports.
    """
    text = headers.get(DRAFTING)
    if text is None:
        return False
    if text.strip().lower() == "off":
        return True
    message = (
        f"{DRAFTING} on a request can only be `off`; any other drafting follows from the recommendations."
    )
    raise Refused(ProxyProblem(400, message, "invalid_header", DRAFTING))


def _looks_like_json(content: bytes, content_type: str) -> bool:
    start = content[:64].lstrip()
    if not start:
        return False
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return False
    # curl says it sends a form, and llama-server reads it as JSON all the same.
    return kind.endswith("json") or start[:1] == b"{"


def _malformed(reason: str) -> ProxyProblem:
    return ProxyProblem(400, f"The body is not valid JSON: {reason}.", "invalid_json")


def _too_large(limit_bytes: int) -> ProxyProblem:
    size = f"{limit_bytes / 2**20:g} MiB"
    message = f"The request is larger than {size}. The setting request_limit_mib allows more."
    return ProxyProblem(413, message, "request_too_large")


def _kind(value: Any) -> str:
    return {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}.get(
        type(value), "null"
    )
