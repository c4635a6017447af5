"""A client's request: its body, parsed as far as the model and the prompt are needed, and the headers that pass on.

Hop-by-hop headers, and the headers that ``Connection`` names, belong to one connection only (RFC 9110 §7.6.1).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from typing import Any

import orjson
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, istr

from autospec.cells import PromptType
from autospec.proxy.errors import ProxyProblem, overloaded

__all__ = [
    "DRAFTING",
    "LIMIT",
    "PROMPT_TYPE",
    "WHY",
    "BodiesInFlight",
    "Classify",
    "ProxyRequest",
    "Refused",
    "RequestBody",
    "answers_of",
    "check_name",
    "embeds",
    "for_backend",
    "for_client",
    "forced_prompt_type",
    "generates",
    "has_images",
    "hears",
    "parse",
    "prompt_size",
    "read_body",
    "sets_drafting",
    "starts_model",
    "temperature_of",
    "wants_off",
]

PROMPT_TYPE = "x-autospec-prompt-type"
DRAFTING = "x-autospec-drafting"
LIMIT = "x-autospec-limit"  # of answers only
WHY = "x-autospec-why"  # likewise: why there is no drafting


def _names(*names: str) -> frozenset[istr]:
    """Names of headers, which `istr` makes comparable once and not with each search."""
    return frozenset(map(istr, names))


_HOP_BY_HOP = _names(
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)
# Under this name llama-server keeps an answer for a client that left, and writes it to its end. Its page sends it since summer 2026. The
# proxy would take such a server for idle: it would unload or replace it, or let a daemon measure beside it.
_CONVERSATION = "x-conversation-id"
# Host and Content-Length belong to the new request, the proxy has answered Expect, the last two are for the proxy.
_NOT_FOR_BACKEND = _HOP_BY_HOP | _names(
    "host", "content-length", "expect", _CONVERSATION, PROMPT_TYPE, DRAFTING
)
# They may hold the proxy's own key, which a backend must not see.
_WITHOUT_CREDENTIALS = _NOT_FOR_BACKEND | _names("authorization", "x-api-key")


def for_backend(headers: Iterable[tuple[str, str]], *, keep_credentials: bool) -> CIMultiDict[str]:
    """The headers of a client's request that the backend gets.

    Args:
        headers: Names and values in their order, repeated ones included.
        keep_credentials: False if they hold the proxy's own key.

    Raises:
        UnicodeEncodeError: A value is not UTF-8.
    """
    passed = _without(headers, _NOT_FOR_BACKEND if keep_credentials else _WITHOUT_CREDENTIALS)
    for value in passed.values():
        value.encode()
    return passed


def for_client(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The headers of a backend's answer that the client gets; Content-Length stays."""
    return _without(headers, _HOP_BY_HOP)


def _without(headers: Iterable[tuple[str, str]], dropped: frozenset[istr]) -> CIMultiDict[str]:
    # To search for each name to drop takes half the time of a look at each header.
    passed = CIMultiDict(headers)
    named = [word.strip() for line in passed.getall("Connection", ()) for word in line.split(",")]
    for name in dropped:
        passed.popall(name, None)
    for word in named:
        passed.popall(word, None)
    return passed


# The prompt type of a request's JSON body; None if it is not known.
Classify = Callable[[Mapping[str, Any]], PromptType | None]

# Longer names are refused: each is compared with every model's name on the event loop, and remembered.
_NAME_CHARACTERS = 512
# What a JSON parser passes over before the first character: a byte-order mark, and any number of blanks.
_BEFORE_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*")

_GENERATING = frozenset(
    {
        *("/chat/completions", "/completions", "/completion", "/responses", "/messages", "/infill"),
        "/engines/copilot-codex/completions",  # of llama-cpp-python
    }
)
_EMBEDDING = frozenset({"/embeddings", "/embedding", "/rerank", "/reranking"})
_HEARING = "/audio/transcriptions"
# What else is worth the start of a model. The same list for all backends: llama-server's routes, and /extras of llama-cpp-python. The other
# routes tell of a server that runs, or change it (/slots/N, /v1/stream).
_STARTING = frozenset(
    {
        *("/tokenize", "/detokenize", "/apply-template", "/lora-adapters", "/tools"),
        *("/messages/count_tokens", "/chat/completions/input_tokens", "/responses/input_tokens"),
        *("/extras/tokenize", "/extras/tokenize/count", "/extras/detokenize"),
        *_GENERATING,
        *_EMBEDDING,
        _HEARING,
    }
)


class Refused(Exception):  # noqa: N818 - the request is at fault, not the proxy
    """The proxy answers the request with an error of its own."""

    def __init__(self, problem: ProxyProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class RequestBody:
    """What is kept of a body while its request is answered: not its document, which takes several times the memory."""

    content: bytes = b""  # forwarded unchanged
    is_object: bool = False  # it is a JSON object
    is_streamed: bool = False  # its client asked for server-sent events

    def content_with(self, fields: Mapping[str, Any]) -> bytes:
        """The body with some fields set; the client's own bytes if there are none.

        Raises:
            Refused: The fields cannot be set, because the body is not a JSON object. It may be one to the server (mlx_lm.server
                reads UTF-16, and ignores Content-Type), whose fields would then choose the model. A form with parts is none.
        """
        if not fields or not self.content or (not self.is_object and self.content.startswith(b"--")):
            return self.content
        if not self.is_object:
            message = "The server of this model takes JSON objects only: send one, in UTF-8."
            raise Refused(ProxyProblem(400, message, "invalid_json"))
        # Parsed again with `json`, which keeps integers beyond 64 bits.
        document = {**json.loads(self.content), **fields}
        return json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request's body, parsed."""

    content: bytes = b""
    document: dict[str, Any] | None = None  # its JSON object; integers beyond 64 bits are floats
    model: str = ""  # empty if it names none

    def body(self, path: str) -> RequestBody:
        """What is forwarded to this path."""
        document = self.document
        streamed = document is not None and document.get("stream") is True and generates(path)
        return RequestBody(self.content, document is not None, streamed)


def generates(path: str) -> bool:
    """True if a POST to this path generates text, so that drafting matters."""
    return path.removeprefix("/v1") in _GENERATING


def starts_model(path: str) -> bool:
    """True if a POST to this path needs a model, and so may start one."""
    return path.removeprefix("/v1") in _STARTING


def embeds(path: str) -> bool:
    """True if a POST to this path asks for embeddings, or for texts to be ranked."""
    return path.removeprefix("/v1") in _EMBEDDING


def hears(path: str) -> bool:
    """True if a POST to this path sends a sound in a form, for which a server needs a projector."""
    return path.removeprefix("/v1") == _HEARING


# Content parts with something else than text: OpenAI's chat, its responses, Anthropic's messages.
_MEDIA_PARTS = frozenset({"image_url", "input_audio", "video_url", "input_video", "input_image", "image"})


def has_images(document: Mapping[str, Any]) -> bool:
    """True if the prompt has an image, a sound or a video, for which a server needs a projector."""
    messages = document.get("messages") or document.get("input")
    if isinstance(messages, list):
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list) and any(map(_is_media, content)):
                return True
    prompts = document.get("prompt")
    # llama.cpp's own: {"prompt_string": …, "multimodal_data": […]}, alone or in a list.
    return any(
        isinstance(prompt, dict) and bool(prompt.get("multimodal_data"))
        for prompt in (prompts if isinstance(prompts, list) else [prompts])
    )


def _is_media(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    inner = part.get("content")
    # A tool of Anthropic's API answers with content parts of its own.
    return part.get("type") in _MEDIA_PARTS or (isinstance(inner, list) and any(map(_is_media, inner)))


# The proxy holds at most this many bodies of the largest size, or more smaller ones.
_LARGEST_BODIES = 4
# As much as one more is for small bodies only, of at most this part of the largest size (1 MiB of 64): a chat passes while large
# bodies stall, or wait for a model that loads.
_KEPT_FOR_SMALL = 1
_SMALL_PART = 64
# A client that vanished in the middle of its body would hold its share until TCP notices, which takes hours.
_BODY_SILENCE_S = 60.0


class BodiesInFlight:
    """Counts the bytes of the bodies that the proxy holds: each from its first byte until its request is answered."""

    def __init__(self, limit_bytes: int) -> None:
        """Bound each body by `limit_bytes`, and all together by four times as much, with small ones by five times."""
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, part_bytes: int, body_bytes: int, *, whole_bytes: int | None) -> None:
        """Count a part that has arrived, of a body that is `body_bytes` long with it, and `whole_bytes` in the end if that is known.

        Raises:
            Refused: The body is too large, or all bodies together would be.
        """
        self.check(part_bytes, body_bytes, whole_bytes=whole_bytes)
        self.held_bytes += part_bytes

    def check(self, part_bytes: int, body_bytes: int, *, whole_bytes: int | None) -> None:
        """As `take`, without counting the part."""
        if body_bytes > self.limit_bytes:
            raise Refused(_too_large(self.limit_bytes))
        is_small = whole_bytes is not None and whole_bytes * _SMALL_PART <= self.limit_bytes
        most = _LARGEST_BODIES + (_KEPT_FOR_SMALL if is_small else 0)
        if self.held_bytes + part_bytes > most * self.limit_bytes:
            total = f"{most * self.limit_bytes / 2**20:g} MiB"
            message = (
                f"This request and those in progress are larger than {total} together. "
                "Try again in a moment, or raise the setting request_limit_mib."
            )
            raise Refused(overloaded(message))

    def give_back(self, body_bytes: int) -> None:
        """Count a body no longer."""
        self.held_bytes -= body_bytes


async def read_body(request: web.BaseRequest, bodies: BodiesInFlight) -> bytes:
    """Read the whole body; the caller gives its length back to `bodies` when the request is answered.

    Raises:
        Refused: It is longer than the limit, or too long beside the other bodies; nothing is read if Content-Length already
            says so. Or no more of it comes.
    """
    length = request.content_length
    if length is not None:
        bodies.check(length, length, whole_bytes=length)
    # aiohttp's router does the same; its low-level server leaves it to the handler. HTTP/1.0 may expect nothing (RFC 9110 §10.1.1).
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts: list[bytes] = []
    size = 0
    try:
        while part := await _next_part(request):
            bodies.take(len(part), size + len(part), whole_bytes=length)
            size += len(part)
            parts.append(part)
    except BaseException:
        bodies.give_back(size)
        raise
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _next_part(request: web.BaseRequest) -> bytes:
    """What has come of a body, empty at its end; aiohttp itself waits for ever."""
    content = request.content
    if (part := content.read_nowait()) or content.at_eof():
        return part  # most bodies are here whole and need no timer
    try:
        async with asyncio.timeout(_BODY_SILENCE_S):
            return await content.readany()
    except TimeoutError:
        message = f"The rest of the body did not come within {_BODY_SILENCE_S:g} s. Send the request again."
        raise Refused(ProxyProblem(408, message, "body_timeout")) from None


def parse(content: bytes, headers: Mapping[str, str]) -> ProxyRequest:
    """Find the model and the prompt in a body.

    A form of parts may have a field `model`. Any other body that is not a JSON object (an array, an empty body) passes without a
    model. Invalid JSON and compressed bodies are refused, because they do not say which model they are for.

    Raises:
        Refused: The body is compressed, or its JSON is invalid, nested too deeply, or its model is no string or too long.
    """
    if content and not _is_plain(headers):
        message = "The proxy does not read compressed requests. Send the request without Content-Encoding."
        raise Refused(ProxyProblem(415, message, "unsupported_encoding"))
    content_type = headers.get("Content-Type", "")
    if not _looks_like_json(content, content_type):
        in_form = _model_in_form(content, content_type)
        check_name(in_form)
        return ProxyRequest(content, model=in_form)
    try:
        document = _loads(content)
    except RecursionError:
        raise Refused(_malformed("it is nested too deeply")) from None
    except UnicodeDecodeError:
        raise Refused(_malformed("it is not UTF-8")) from None
    except json.JSONDecodeError as error:
        raise Refused(_malformed(f"{error.msg} at character {error.pos}")) from None
    except ValueError:  # an integer with thousands of digits
        raise Refused(_malformed("a value cannot be read")) from None
    if not isinstance(document, dict):
        return ProxyRequest(content)
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        message = f"`model` must be a string, not {_kind(model)}."
        raise Refused(ProxyProblem(400, message, "invalid_type", "model"))
    check_name(model or "")
    return ProxyRequest(content, document, model or "")


def check_name(model: str) -> None:
    """Raise `Refused` for a name that is too long to be looked for."""
    if len(model) > _NAME_CHARACTERS:
        message = f"No model has a name of more than {_NAME_CHARACTERS} characters."
        raise Refused(ProxyProblem(404, message, "model_not_found", "model"))


def forced_prompt_type(headers: Mapping[str, str]) -> PromptType | None:
    """The prompt type in the client's header; ``None`` without the header.

    Raises:
        Refused: The header names no prompt type.
    """
    text = headers.get(PROMPT_TYPE)
    if text is None:
        return None
    try:
        return PromptType(text.strip().lower())
    except ValueError:
        message = f"{PROMPT_TYPE} must be one of {', '.join(PromptType)}, not {text[:100]!r}."
        raise Refused(ProxyProblem(400, message, "invalid_header", PROMPT_TYPE)) from None


def wants_off(headers: Mapping[str, str]) -> bool:
    """True if the client's header asks for no drafting.

    Raises:
        Refused: The header has another value than ``off``: clients cannot choose a drafting that was not measured.
    """
    text = headers.get(DRAFTING)
    if text is None:
        return False
    if text.strip().lower() == "off":
        return True
    message = f"{DRAFTING} on a request can only be `off`. All other drafting comes from the recommendations."
    raise Refused(ProxyProblem(400, message, "invalid_header", DRAFTING))


# The fields of a request that become its prompt, of all APIs that `autospec.prompts.request_text` reads.
_PROMPT_FIELDS = (
    *("messages", "prompt", "input", "system", "instructions", "tools", "functions"),
    *("input_prefix", "input_suffix", "input_extra", "suffix"),
)
# Images, sounds and files: their bytes are no text.
_NOT_TEXT = frozenset(
    {"audio", "file_data", "image", "image_url", "input_audio", "multimodal_data", "source", "video_url"}
)
# Deeper values are no prompt of any API; tool schemas are the deepest.
_DEPTH = 24


def prompt_size(document: Mapping[str, Any]) -> tuple[int, int]:
    """The bytes of a prompt's text in UTF-8, and the number of its tokens that are given as ids."""
    return _size({name: document[name] for name in _PROMPT_FIELDS if name in document}, _DEPTH)


def _size(value: Any, depth: int) -> tuple[int, int]:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass")), 0
    if depth == 0:
        return 0, 0
    text_bytes = ids = 0
    if isinstance(value, dict):
        parts = [v for key, v in value.items() if key not in _NOT_TEXT]
    elif isinstance(value, list):
        # llama-server takes ids and texts in one list. Counting 30 000 ids so takes less time than parsing them did.
        ids, parts = list(map(type, value)).count(int), value
        if ids:
            parts = [part for part in value if type(part) is not int] if ids < len(value) else []
    else:
        return 0, 0
    for part in parts:
        part_bytes, part_ids = _size(part, depth - 1)
        text_bytes += part_bytes
        ids += part_ids
    return text_bytes, ids


def temperature_of(document: Mapping[str, Any]) -> float | None:
    """The temperature that a request asks for, 0 for greedy; ``None`` for the server's default."""
    if document.get("top_k") == 1:
        return 0.0
    asked = document.get("temperature")
    if not isinstance(asked, int | float) or isinstance(asked, bool):
        return None
    try:
        return float(asked) if math.isfinite(asked) else None
    except OverflowError:  # an integer with hundreds of digits
        return None


# More answers to one request are counted as this many: servers refuse them.
_MOST_ANSWERS = 256


def answers_of(document: Mapping[str, Any]) -> int:
    """How many answers a request asks for, which a server writes at once: of several prompts, or several of each."""
    prompts, asked = document.get("prompt"), document.get("n_cmpl", document.get("n"))
    # llama-server takes a list with ids for one prompt, also if texts are among them.
    several = len(prompts) if isinstance(prompts, list) and int not in map(type, prompts) else 1
    of_each = asked if type(asked) is int else 1
    return min(max(several, 1) * max(of_each, 1), _MOST_ANSWERS)


def sets_drafting(document: Mapping[str, Any]) -> bool:
    """True if a request changes the drafting by fields of llama-server: builds of 2025 obey ``speculative.n_max`` and others."""
    return any(name.startswith("speculative.") for name in document)


def _loads(content: bytes) -> Any:
    """As `json.loads`, in less time.

    Both hold the interpreter's lock while they parse, so that no stream moves. 2 MB of chat take 3 ms with orjson and 14 ms
    with `json`; a parser that gave the lock up between messages took 14 ms, and still held up the event loop for 9 ms. 200 KB:
    0.3, 0.6 and 1 ms. A 20 MB image in one string is the exception: 55 ms with orjson, 29 ms with `json`.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # NaN, lone surrogates, UTF-16, huge numbers: `json` accepts them. For invalid JSON it gives the error's text.
        return json.loads(content)


def _is_plain(headers: Mapping[str, str]) -> bool:
    """False if any Content-Encoding line names a coding."""
    # The length first: most names have another one.
    codings = [
        value for name, value in headers.items() if len(name) == 16 and name.lower() == "content-encoding"
    ]
    return all(word.strip().lower() in ("", "identity") for value in codings for word in value.split(","))


def _looks_like_json(content: bytes, content_type: str) -> bool:
    before = _BEFORE_JSON.match(content)
    start = before.end() if before else 0
    if start == len(content):
        return False
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return False
    # curl declares JSON as a form by default, and llama-server reads it as JSON.
    return kind.endswith("json") or content.startswith(b"{", start)


# The headers of a part are a few short lines, and a form has a handful of parts.
_PART_HEADERS_BYTES = 4096
_MOST_PARTS = 64


def _model_in_form(content: bytes, content_type: str) -> str:
    """The field `model` of a form (RFC 7578), wherever it stands: some clients send the file first. Empty if there is none."""
    form = Message()
    form["Content-Type"] = content_type
    boundary = form.get_boundary()
    if form.get_content_type() != "multipart/form-data" or not boundary:
        return ""
    delimiter = b"--" + boundary.encode(errors="replace")
    at = content.find(delimiter)
    for _ in range(_MOST_PARTS):
        begin = at + len(delimiter)
        if at < 0 or content.startswith(b"--", begin):
            break
        end = content.find(b"\r\n\r\n", begin, begin + _PART_HEADERS_BYTES)
        # The line break before a delimiter belongs to it, also that of an empty value.
        at = content.find(b"\r\n" + delimiter, end + 2)
        if end < 0 or at < 0:
            break
        part = BytesParser().parsebytes(content[begin:end].partition(b"\r\n")[2], headersonly=True)
        if part.get_param("name", header="Content-Disposition") == "model" and part.get_filename() is None:
            return content[end + 4 : at].decode(errors="replace").strip()
        at += 2
    return ""


def _malformed(reason: str) -> ProxyProblem:
    return ProxyProblem(400, f"The body is not valid JSON: {reason}.", "invalid_json")


def _too_large(limit_bytes: int) -> ProxyProblem:
    size = f"{limit_bytes / 2**20:g} MiB"
    message = f"The request is larger than {size}. To allow more, raise the setting request_limit_mib."
    return ProxyProblem(413, message, "request_too_large")


def _kind(value: Any) -> str:
    return {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}.get(
        type(value), "null"
    )
