"""Which backends there are, and which one to use. A new backend is one line in `_BACKENDS`, and one in `_FORMATS`
where it does not run every model.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from autospec.backends.attached.backend import Attached
from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.python import LlamaCppPython
from autospec.backends.llama_cpp.server import LlamaServer, find_llama_server
from autospec.backends.mlx.backend import Mlx
from autospec.backends.protocol import Backend, Capabilities
from autospec.catalog.model import Format, Model
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
    "mlx": lambda settings: Mlx(settings.state_dir),
    "llama-cpp-python": lambda settings: LlamaCppPython(settings.state_dir),
    "attached": lambda settings: Attached(settings.attached_url, remote=settings.attached_remote),
}
# What a backend runs; one that is not named here takes any model, or brings its own.
_FORMATS: dict[str, Format] = {
    "llama-server": "gguf",
    "embedded": "gguf",
    "llama-cpp-python": "gguf",
    "mlx": "mlx",
}
_FORMAT_NAMES: dict[Format, str] = {"gguf": "a GGUF file", "mlx": "an MLX folder"}


def backend_for(name: str | None, settings: BackendSettings, model: Model | None = None) -> Backend:
    """The backend of that name; without one, what runs the model.

    An MLX folder is run by `mlx`; a GGUF file by `llama-server` where it is found, else by `embedded`.

    Args:
        name: A backend's name, or ``None`` or empty for automatic.
        settings: Where the program is and where records go.
        model: The main model.

    Raises:
        UsageError: No backend has that name, or it does not run such a model.
        BackendMissingError: The config names a llama-server that is not there.
    """
    if name:
        if name not in _BACKENDS:
            raise UsageError(f"There is no backend {name}.", f"Choose one of {', '.join(_BACKENDS)}.")
        if model is not None:
            _check_format(name, model)
        return _BACKENDS[name](settings)
    if model is not None and model.format == "mlx":
        return _BACKENDS["mlx"](settings)
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


def _check_format(name: str, model: Model) -> None:
    runs = _FORMATS.get(name, model.format)
    if runs != model.format:
        fitting = [other for other in _BACKENDS if _FORMATS.get(other) == model.format]
        raise UsageError(
            f"{model.name} is {_FORMAT_NAMES[model.format]}, and the backend {name} runs {_FORMAT_NAMES[runs]}.",
            f"Choose --backend {' or '.join(fitting)}, or leave it out (and backend out of the config).",
        )


def _binary(settings: BackendSettings) -> Path | None:
    return Path(settings.llama_server) if settings.llama_server else None
