"""Server-sent events as OpenAI-compatible servers send them. Pure.

Lines are cut at line feeds only. `httpx.Response.iter_lines` also cuts at U+2028 and its like, which JSON may hold in
the middle of a text (LM Studio sends them bare); and a library's decoder would hide the comments that keep a
connection alive, on which the time limit of the whole request is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["DONE", "data_of"]

# What OpenAI's API sends last.
DONE = "[DONE]"


def data_of(parts: Iterable[bytes]) -> Iterator[str]:
    """The data of each event, as its line ends; comments and other fields are left out.

    Args:
        parts: The body as it comes, cut anywhere.

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
