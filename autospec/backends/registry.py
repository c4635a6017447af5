"""The list of backends, which one to use, and optional abilities that callers check with isinstance.

A new backend is one line in `_BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from autospec.backends.attached.backend import Attached
from autospec.backends.llama_cpp.embedded import Embedded
from autospec.backends.llama_cpp.python import LlamaCppPython
from autospec.backends.llama_cpp.scorer import LlamaCppScorer
from autospec.backends.llama_cpp.server import LlamaServer, find_llama_server
from autospec.backends.mlx.backend import Mlx
from autospec.backends.placement import Placement
from autospec.backends.protocol import Backend, Capabilities, LaunchSettings, Server
from autospec.catalog.model import Format, Model
from autospec.drafting import Drafting
from autospec.errors import AutospecError, BackendMissingError, UsageError
from autospec.hardware.gpu import Device
from autospec.settings import Settings

__all__ = [
    "DraftsAlone",
    "EncodesText",
    "Idles",
    "InProcess",
    "OnDevices",
    "Placed",
    "Scores",
    "available",
    "backend_for",
    "refuse_unknown",
]


# The model format that a backend runs (``None``: any, or its own), and what makes it. `available` keeps the order.
_BACKENDS: dict[str, tuple[Format | None, Callable[[Settings], Backend]]] = {
    "llama-server": ("gguf", lambda settings: LlamaServer(_binary(settings), settings.state_dir)),
    "embedded": ("gguf", lambda settings: Embedded(settings.state_dir)),
    "mlx": ("mlx", lambda settings: Mlx(settings.state_dir)),
    "llama-cpp-python": ("gguf", lambda settings: LlamaCppPython(settings.state_dir)),
    "attached": (None, lambda settings: Attached(settings.attached_url, remote=settings.attached_remote)),
}
_FORMAT_NAMES: dict[Format, str] = {"gguf": "a GGUF file", "mlx": "an MLX folder"}


def backend_for(name: str | None, settings: Settings, model: Model | None = None) -> Backend:
    """The backend of that name, or one that runs the model.

    `mlx` runs an MLX folder. `llama-server` runs a GGUF file; if it is not installed, `embedded` does.

    Raises:
        UsageError: No backend has that name, or it does not run such a model.
        BackendMissingError: The config names a llama-server that does not exist.
    """
    if name:
        refuse_unknown(name)
        if model is not None:
            _check_format(name, model)
        return _make(name, settings)
    if model is not None and model.format == "mlx":
        return _make("mlx", settings)
    try:
        find_llama_server(_binary(settings))
    except BackendMissingError:
        if settings.llama_server:  # the user chose it, so no other backend replaces it
            raise
        return _make("embedded", settings)
    return _make("llama-server", settings)


def refuse_unknown(name: str) -> None:
    """Raise UsageError if no backend has that name."""
    if name not in _BACKENDS:
        raise UsageError(f"There is no backend {name}.", f"Choose one of {', '.join(_BACKENDS)}.")


def available(settings: Settings) -> Iterator[tuple[str, Capabilities | AutospecError]]:
    """Each backend with what it offers, or the error that says why it cannot be used and what to do."""
    for name in _BACKENDS:
        try:
            yield name, _make(name, settings).capabilities()
        except AutospecError as error:
            yield name, error


def _make(name: str, settings: Settings) -> Backend:
    _, make = _BACKENDS[name]
    return make(settings)


def _check_format(name: str, model: Model) -> None:
    runs, _ = _BACKENDS[name]
    if runs is not None and runs != model.format:
        fitting = [other for other, (form, _) in _BACKENDS.items() if form == model.format]
        raise UsageError(
            f"{model.name} is {_FORMAT_NAMES[model.format]}, and the backend {name} runs {_FORMAT_NAMES[runs]}.",
            f"Choose --backend {' or '.join(fitting)}, or remove --backend (and backend from the config).",
        )


def _binary(settings: Settings) -> Path | None:
    return Path(settings.llama_server) if settings.llama_server else None


@runtime_checkable
class InProcess(Protocol):
    """A backend that can run models without its HTTP server, by its library's functions in a child process."""

    def in_process(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> Server:
        """Load a model and its draft in a child process that can be asked in token ids.

        Raises:
            UnsupportedError, LaunchError, SpeculationInactiveError: As `Backend.launch`.
        """


@runtime_checkable
class DraftsAlone(Protocol):
    """A backend that can launch a draft model alone, with as much of the main model's settings as it gets beside it."""

    def settings_of_draft(self, settings: LaunchSettings) -> LaunchSettings:
        """Those of a launch's settings that also apply to its draft model."""


@runtime_checkable
class EncodesText(Protocol):
    """A model in token ids that can also tokenize the text of an answer."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, without a first token.

        Raises:
            RequestError, ServerDiedError: As `Server.complete`.
        """


@runtime_checkable
class Idles(Protocol):
    """A server that can answer without drafting while its draft stays loaded, which differs from the baseline."""

    def idle(self) -> Server:
        """A view on the same process that drafts nothing."""


@runtime_checkable
class Scores(Protocol):
    """A backend whose draft models a scorer can read: a whole answer in one evaluation."""

    def scorer(self, model_path: str, n_ctx: int) -> LlamaCppScorer:
        """Load a draft for reading in a child process; `n_ctx` is the most tokens of a prompt with its answer.

        Raises:
            BackendMissingError: The scorer's library is not installed.
            LaunchError: It cannot load the model, or does not run here.
        """


@runtime_checkable
class OnDevices(Protocol):
    """A backend that lists the accelerators that it computes on."""

    def devices(self) -> tuple[Device, ...] | None:
        """All devices now, empty if it computes on the CPU; ``None`` if it cannot list them."""


@runtime_checkable
class Placed(Protocol):
    """A server whose log shows the main model's place."""

    @property
    def placement(self) -> Placement | None:
        """The place; ``None`` if the log does not show it."""
