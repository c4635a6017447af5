"""The dashboard at ``/autospec/``: three files that hold no data, with the headers that keep a page's scripts to its own.

The page reads the same documents as every other client, with the key if there is one, and it loads nothing from elsewhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from aiohttp import web

__all__ = ["PAGE_PATHS", "page"]

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
