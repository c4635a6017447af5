"""New recommendations as they are made: ``GET /autospec/v1/events``. Looks at the database's files, reads it only when they change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from autospec.errors import StoreError
from autospec.recommendations import Recommendation
from autospec.store.reader import read_recommendations

__all__ = ["recommendation_events"]

# A recommendation is the work of minutes; nobody misses it for two seconds. Nothing is polled while nobody listens.
_POLL_S = 2.0
# Other databases cannot be looked at from outside.
_POLL_REMOTE_S = 10.0
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
    files = _files(storage)
    interval_s = poll_s if files else _POLL_REMOTE_S
    known: dict[str, dict[str, Any]] = {}
    seen: object = None
    silent_s = 0.0
    first = True
    while True:
        state = await asyncio.to_thread(_state, files)
        if first or not files or state != seen:
            seen = state
            try:
                now = {
                    s.cell_key: s.recommendation.to_json()
                    for s in await asyncio.to_thread(read_recommendations, storage)
                }
            except StoreError as error:
                yield _event("error", {"message": str(error)})
                now = known
            changed = [r for key, r in now.items() if known.get(key) != r]
            if changed or first:
                yield _event("recommendations", {"schema": 1, "changed": [_short(r) for r in changed]})
                silent_s = 0.0
            known, first = now, False
        if silent_s >= _COMMENT_S:
            yield b": nothing new\n\n"
            silent_s = 0.0
        try:
            await asyncio.wait_for(closing.wait(), interval_s)
        except TimeoutError:
            silent_s += interval_s
        else:
            return


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _short(document: dict[str, Any]) -> dict[str, Any]:
    """Without the evidence: who wants it asks for the recommendations."""
    return {key: value for key, value in document.items() if key in _SHORT}


_SHORT = frozenset(Recommendation.__dataclass_fields__) - {"evidence", "model_path"}


def _files(storage: str) -> tuple[Path, ...]:
    if not storage.startswith("sqlite:///") or "?" in storage:
        return ()
    path = Path(unquote(storage.removeprefix("sqlite:///")))
    return path, path.with_name(path.name + "-wal")


def _state(files: tuple[Path, ...]) -> object:
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_mtime_ns, stat.st_size))
    return found
