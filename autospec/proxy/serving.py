"""Starting one server for users, and refusing one that would give wrong text."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from autospec.backends.protocol import LaunchSettings, Server
from autospec.catalog.model import Model
from autospec.drafting import OFF
from autospec.errors import LaunchError
from autospec.proxy.needs import Launchable
from autospec.proxy.offers import Engine

__all__ = ["serve"]

# mlx_lm.server 0.32.2 gives wrong text when it takes up the cache of a drafted request: a token may be
# missing there (see `_cache_matches_key` of `autospec.backends.mlx_child`).
_NO_CACHE: Final = ("--prompt-cache-size", "0")


# A start that takes so many times what was expected hangs; users wait, and off may start where a drafting does not. A
# spinning disk is ten times slower than the one that estimates are made with.
_PATIENCE: Final = 20.0
_LEAST_TIMEOUT_S: Final = 120.0
_MOST_TIMEOUT_S: Final = 600.0


def serve(engine: Engine, model: Model, entry: Launchable, args: tuple[str, ...]) -> Server:
    """Start a server for users; blocks until it is ready. Its answers carry the name that clients ask for.

    Raises:
        BackendError: As `Backend.launch`.
        LaunchError: Also where the backend would give wrong text, see `_NO_CACHE`.
    """
    # What is pinned for measuring has no cache: the way out where a backend serves with one that it must not have.
    timeout_s = min(max(_PATIENCE * entry.launch_s, _LEAST_TIMEOUT_S), _MOST_TIMEOUT_S)
    for serving in (True, False):
        settings = LaunchSettings(args, timeout_s, serving=serving, served_as=model.name)
        server = engine.backend.launch(str(model.path), entry.drafting, settings)
        if _text_is_right(engine, server):
            return server
        server.stop()
    raise LaunchError(
        f"{engine.backend.name} is not served with its prompt cache: with drafting, its text may be wrong.",
        "Leave prompt-cache settings out of server_args.",
        permanent=True,
    )


def _text_is_right(engine: Engine, server: Server) -> bool:
    """True if nothing is cached, or if no request can draft, whatever draft model the client names."""
    if not engine.capabilities.drafting_per_request or _NO_CACHE in pairwise(server.command):
        return True
    return server.drafting.is_off and "draft_model" in engine.request_fields(OFF)
