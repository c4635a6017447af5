"""New recommendations as they are made: ``GET /autospec/v1/events``. Asks for one number, reads all only when it is another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from autospec.errors import StoreError
from autospec.recommendations import Recommendation
from autospec.store.reader import newest_recommendation, read_recommendations

__all__ = ["recommendation_events"]

# A recommendation is the work of minutes; nobody misses it for two seconds. Nothing is polled while nobody listens.
_POLL_S = 2.0
# Comments keep the connection from being taken for dead; proxies between cut after 30 to 60 s.
_COMMENT_S = 15.0


async def recommendation_events(
    storage: str, closing: asyncio.Event, *, poll_s: float = _POLL_S
) -> AsyncIterator[bytes]:
    """Server-sent events until the proxy closes: at once what is known, then every change.

    Args:
        storage: The database's URL.
        closing: Set when the proxy ends.
        poll_s: How often to look.
    """
    known: dict[str, dict[str, Any]] = {}
    newest = -1
    silent_s = 0.0
    while True:
        try:
            number = await asyncio.to_thread(newest_recommendation, storage)
            if number != newest:
                stored = await asyncio.to_thread(read_recommendations, storage)
                now = {s.cell_key: s.recommendation.to_json() for s in stored}
                changed = [_short(r) for key, r in now.items() if known.get(key) != r]
                yield _event("recommendations", {"schema": 1, "changed": changed})
                known, newest, silent_s = now, number, 0.0
        except StoreError as error:
            yield _event("error", {"message": str(error)})
        if silent_s >= _COMMENT_S:
            yield b": nothing new\n\n"
            silent_s = 0.0
        try:
            await asyncio.wait_for(closing.wait(), poll_s)
        except TimeoutError:
            silent_s += poll_s
        else:
            return


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _short(document: dict[str, Any]) -> dict[str, Any]:
    """Without the evidence: who wants it asks for the recommendations."""
    return {key: value for key, value in document.items() if key in _SHORT}


_SHORT = frozenset(Recommendation.__dataclass_fields__) - {"evidence", "model_path"}
