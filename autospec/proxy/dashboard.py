"""The dashboard at ``/autospec/``: its files, which hold no data, and the live figures that it shows.

The page reads the same documents as every other client, with the key if there is one, and it loads nothing
from elsewhere. The headers keep its scripts to its own. The live figures are speed and acceptance of the last
answers by model, prompt type and drafting, in memory since the proxy's start: ``autospec.proxy.metrics``
counts for ever and the store keeps samples.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web

from autospec.cells import PromptType
from autospec.drafting import Drafting
from autospec.measure.measurements import Sample

__all__ = ["PAGE_PATHS", "LiveFigures", "page"]

_FOLDER: Final = Path(__file__).with_name("web")
_INDEX: Final = "/autospec/"
_FILES: Final = MappingProxyType(
    {
        _INDEX: ("index.html", "text/html"),
        "/autospec/web/dashboard.css": ("dashboard.css", "text/css"),
        "/autospec/web/dashboard.js": ("dashboard.js", "text/javascript"),
        "/autospec/web/icon.svg": ("icon.svg", "image/svg+xml"),
    }
)
# A browser asks for them without a key: there is no way to give it one before the page is there.
PAGE_PATHS: Final = frozenset({*_FILES, "/autospec"})
_HEADERS: Final = MappingProxyType(
    {
        # No inline script or style, no frame around the page, no form that sends anything anywhere.
        "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",  # an upgrade replaces all of them at once
    }
)


def page(path: str) -> web.Response | None:
    """The answer to a GET of one of the page's files; ``None`` for every other path."""
    if path == _INDEX.rstrip("/"):
        # Relative, because another proxy in front may add a prefix.
        return web.Response(status=302, headers={"Location": "autospec/"})
    if path not in _FILES:
        return None
    name, kind = _FILES[path]
    return web.Response(body=_content(name), content_type=kind, charset="utf-8", headers=dict(_HEADERS))


@cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


# The last answers of one kind: enough for a steady median, few enough to follow a change.
_KEPT: Final = 50
# Ten models with every prompt type and two draftings; the kinds that were used least recently are forgotten.
_MOST_KINDS: Final = 240
_SHOWN: Final = 30

_Kind = tuple[str, PromptType | None, Drafting]


class LiveFigures:
    """The last samples of each kind of request."""

    def __init__(self) -> None:
        self._samples: OrderedDict[_Kind, deque[Sample]] = OrderedDict()
        self._answers: dict[_Kind, int] = {}

    def add(self, sample: Sample) -> None:
        """Take an answer."""
        kind = (sample.model, sample.prompt_type, sample.drafting)
        self._samples.setdefault(kind, deque(maxlen=_KEPT)).append(sample)
        self._samples.move_to_end(kind)
        self._answers[kind] = self._answers.get(kind, 0) + 1
        if len(self._samples) > _MOST_KINDS:
            oldest, _ = self._samples.popitem(last=False)
            del self._answers[oldest]

    def to_json(self) -> dict[str, Any]:
        """The document of ``GET /autospec/v1/live``, the latest kind first."""
        return {
            "schema": 1,
            "kept": _KEPT,
            "live": [
                _row(kind, tuple(samples), self._answers[kind])
                for kind, samples in reversed(self._samples.items())
            ],
        }


def _row(kind: _Kind, samples: tuple[Sample, ...], answers: int) -> dict[str, Any]:
    model, prompt_type, drafting = kind
    speeds = [s.tps for s in samples if s.tps is not None]
    drafted = sum(s.drafted or 0 for s in samples)
    accepted = sum(s.accepted or 0 for s in samples)
    return {
        "model": model,
        "prompt_type": None if prompt_type is None else str(prompt_type),
        "drafting": drafting.to_json(),
        "label": drafting.label,
        "answers": answers,
        "latest_at": samples[-1].at,
        "generation_tps": round(statistics.median(speeds), 2) if speeds else None,
        "acceptance": round(accepted / drafted, 4) if drafted else None,
        "recent_tps": [round(speed, 1) for speed in speeds[-_SHOWN:]],
    }
