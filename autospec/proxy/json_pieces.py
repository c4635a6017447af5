"""Parsing a long JSON object without holding everybody up. Pure.

`json.loads` keeps the interpreter's lock until it is done, in whatever thread it runs: 4.5 MB of chat with escapes took
28 ms here, in which no stream's token would move. Parsed message by message, in a thread, the lock is free in between.
"""

from __future__ import annotations

import json
import re
import time
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]
from typing import Any

__all__ = ["loads_in_pieces"]

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
