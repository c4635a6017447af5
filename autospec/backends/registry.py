"""Which backends there are, and which one to use. A new backend is one line in `_BACKENDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from autospec.backends.attached import Attached
from autospec.backends.embedded import Embedded
from autospec.backends.llama_cpp_python import LlamaCppPython
from autospec.backends.llama_server import LlamaServer, find_llama_server
from autospec.backends.protocol import Backend, Capabilities
from autospec.errors import AutospecError, BackendMissingError, UsageError

__all__ = ["BackendSettings", "available", "backend_for"]


class BackendSettings(Protocol):
    """The settings that backends read; `autospec.settings.Settings` has them."""

    @property
    def state_dir(self) -> Path:
        """Where launches are recorded."""

    @property
    def llama_server(self) -> str:
        """The llama-server to run; empty takes the one on PATH."""

    @property
    def attached_url(self) -> str:
        """The address of a server that somebody else runs."""

    @property
    def attached_remote(self) -> bool:
        """Whether that may be on another machine."""


# In the order in which they are tried where none is asked for.
_BACKENDS: dict[str, Callable[[BackendSettings], Backend]] = {
    "llama-server": lambda settings: LlamaServer(_binary(settings), settings.state_dir),
    "embedded": lambda settings: Embedded(settings.state_dir),
    "llama-cpp-python": lambda settings: LlamaCppPython(settings.state_dir),
    "attached": lambda settings: Attached(settings.attached_url, remote=settings.attached_remote),
}


def backend_for(name: str | None, settings: BackendSettings) -> Backend:
    """The backend of that name; without one, `llama-server` where it is found, else `embedded`.

    Args:
        name: A backend's name, or ``None`` or empty for automatic.
        settings: Where the program is and where records go.

    Raises:
        UsageError: No backend has that name.
        BackendMissingError: The config names a llama-server that is not there.
    """
    if name:
        if name not in _BACKENDS:
            raise UsageError(f"There is no backend {name}.", f"Choose one of {', '.join(_BACKENDS)}.")
        return _BACKENDS[name](settings)
    try:
        find_llama_server(_binary(settings))
    except BackendMissingError:
        if settings.llama_server:  # set on purpose: another backend in its place would surprise
            raise
        return _BACKENDS["embedded"](settings)
    return _BACKENDS["llama-server"](settings)


def available(settings: BackendSettings) -> Iterator[tuple[str, Capabilities | AutospecError]]:
    """Each backend with what it offers, or the error that says why it cannot be used and what to do."""
    for name, make in _BACKENDS.items():
        try:
            yield name, make(settings).capabilities()
        except AutospecError as error:
            yield name, error


def _binary(settings: BackendSettings) -> Path | None:
    return Path(settings.llama_server) if settings.llama_server else None
