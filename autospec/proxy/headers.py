"""Which headers pass and which end at the proxy. Pure.

RFC 9110 §7.6.1: hop-by-hop fields, and those that Connection names, speak of one connection only.
"""

from __future__ import annotations

from collections.abc import Iterable

from multidict import CIMultiDict

__all__ = ["DRAFTING", "PROMPT_TYPE", "for_backend", "for_client"]

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
