"""The models that clients may ask for: what is in the catalogue, under which names, and which backend serves each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from autospec.backends.protocol import Backend, Capabilities, DraftsPerRequest
from autospec.catalog.model import Format, Model
from autospec.catalog.resolve import choose
from autospec.catalog.scan import scan
from autospec.drafting import Drafting
from autospec.errors import AutospecError, UnknownModelError
from autospec.settings import Settings

__all__ = ["Engine", "ModelRegistry", "engines_of", "read_registry"]

# Names that clients used and what they meant; more than this is somebody trying names.
_MOST_REMEMBERED: Final = 1024
# The backend that can read a format, where the user's choice of backend cannot.
_BY_FORMAT: Final[dict[Format, str]] = {"gguf": "", "mlx": "mlx"}


@dataclass(frozen=True, slots=True)
class Engine:
    """A backend that is there.

    Attributes:
        backend: It.
        capabilities: Of its build.
    """

    backend: Backend
    capabilities: Capabilities

    @property
    def per_request(self) -> bool:
        """True if drafting goes with the request, and the backend says how."""
        # In this order: on Python 3.11 the second costs 60 µs, and every request asks.
        return self.capabilities.drafting_per_request and isinstance(self.backend, DraftsPerRequest)

    def request_fields(self, drafting: Drafting) -> Mapping[str, Any]:
        """The fields of a request's JSON that put a drafting in force; none where the launch does."""
        if self.capabilities.drafting_per_request and isinstance(self.backend, DraftsPerRequest):
            return self.backend.request_fields(drafting)
        return {}


class ModelRegistry:
    """The catalogue as clients see it.

    Every whole language model is offered under its own name, small ones that also serve as drafts among them; draft heads
    are not, because they cannot answer by themselves.

    Args:
        models: The catalogue's.
        engines: What serves each format; a format without one is not offered.
        refused: Why, by format.

    Attributes:
        catalog: All models, drafts among them.
        models: Those that are offered, in the catalogue's order.
        refused: One sentence for each format of which there are models that are not offered.
    """

    def __init__(
        self,
        models: tuple[Model, ...],
        engines: Mapping[Format, Engine],
        refused: Mapping[Format, str] = MappingProxyType({}),
    ) -> None:
        self.catalog = models
        # Of several files with one name the first is offered; the others would answer to it by chance.
        whole = {m.name: m for m in reversed(models) if m.head is None and m.format in engines}
        self.models = tuple(m for m in models if whole.get(m.name) is m)
        formats = {m.format for m in models}
        self.refused = tuple(sentence for kind, sentence in refused.items() if kind in formats)
        self._engines = engines
        self._meant: dict[str, Model] = {}
        self._named = whole

    def named(self, name: str) -> Model:
        """The model that is offered under exactly this name."""
        return self._named[name]

    def has(self, name: str) -> bool:
        """Whether a model is offered under exactly this name."""
        return name in self._named

    def engine(self, model: Model) -> Engine:
        """What serves a model that is offered."""
        return self._engines[model.format]

    def find(self, name: str) -> Model:
        """The model that a client means.

        A path is accepted where it is an offered model's: clients must not make the proxy open other files.

        Raises:
            UnknownModelError: None answers; carries the names that exist.
            ModelChoiceError: Several do.
        """
        known = self._meant.get(name)
        if known is not None:
            return known
        by_path = next((m for m in self.models if name == str(m.path)), None)
        model = by_path or self._choose(name)
        if len(self._meant) < _MOST_REMEMBERED:
            self._meant[name] = model
        return model

    def _choose(self, name: str) -> Model:
        names = tuple(m.name for m in self.models)
        if not name.strip():
            raise UnknownModelError(
                "The request names no model.", f"There are: {', '.join(names) or 'none'}.", known=names
            )
        return choose(self.models, name)


def engines_of(
    settings: Settings, backend_for: Callable[[str | None, Settings], Backend]
) -> tuple[dict[Format, Engine], dict[Format, str]]:
    """The backend for each format, probed; blocks. The user's choice of backend serves GGUF files, unless it is MLX's.

    Args:
        settings: Names the backend and its program.
        backend_for: As in `autospec.backends.registry`.

    Returns:
        The engines, and a sentence for each format that has none.

    Raises:
        AutospecError: The backend that the user chose cannot be used.
    """
    engines: dict[Format, Engine] = {}
    refused: dict[Format, str] = {}
    for kind, own in _BY_FORMAT.items():
        name = own or ("" if settings.backend in _BY_FORMAT.values() else settings.backend)
        try:
            backend = backend_for(name or None, settings)
            engines[kind] = Engine(backend, backend.capabilities())
        except AutospecError as error:
            if name and name == settings.backend:
                raise
            refused[kind] = f"{kind.upper()} models are not served: {error}"
    return engines, refused


def read_registry(
    settings: Settings, engines: Mapping[Format, Engine], refused: Mapping[Format, str]
) -> ModelRegistry:
    """Scan the disk; blocks."""
    return ModelRegistry(scan(settings).models, engines, refused)
