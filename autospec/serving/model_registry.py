"""The models that clients may request, their names, the backend of each, and which have their drafting switched off."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from autospec.backends.protocol import Backend, Capabilities, DraftsPerRequest
from autospec.catalog.model import Format, Model, Role
from autospec.catalog.resolve import OwnSettings, answering, choose
from autospec.catalog.scan import scan
from autospec.drafting import Drafting
from autospec.errors import AutospecError, UnknownModelError
from autospec.files import replace_file
from autospec.settings import Settings

__all__ = [
    "EMBEDDINGS_HINT",
    "DraftingSwitches",
    "Engine",
    "ModelRegistry",
    "engines_of",
    "read_registry",
    "switches_path",
]

_log = logging.getLogger(__name__)
# Cached names of clients; more than this is a client that guesses names.
_MOST_REMEMBERED: Final = 1024
EMBEDDINGS_HINT: Final = "Run an embedding model with a llama-server of your own (--embeddings, or --reranking), and give your client its address."
# Backend for a format that the chosen backend cannot read; empty for the chosen backend itself.
_BY_FORMAT: Final[dict[Format, str]] = {"gguf": "", "mlx": "mlx"}


@dataclass(frozen=True, slots=True)
class Engine:
    """A backend and the capabilities of its build."""

    backend: Backend
    capabilities: Capabilities

    @property
    def per_request(self) -> bool:
        """True if the drafting is chosen per request, by fields of its JSON."""
        # In this order: on Python 3.11 the isinstance costs 60 µs, and this is called for every request.
        return self.capabilities.drafting_per_request and isinstance(self.backend, DraftsPerRequest)

    def request_fields(self, drafting: Drafting) -> Mapping[str, Any]:
        """The JSON fields that select a drafting; empty if the launch selects it."""
        if self.capabilities.drafting_per_request and isinstance(self.backend, DraftsPerRequest):
            return self.backend.request_fields(drafting)
        return {}


class ModelRegistry:
    """The catalogue as clients see it.

    Every complete language model is offered, including small ones that also serve as draft models. Draft heads are not:
    they cannot answer alone. Nor are models of a format without an engine; `refused` says why, by format. `own` is what the
    config says of single models, and `sizes` has the bytes of the files that servers load besides models. `silent` are folders that
    did not answer the scan. `others` are files that are no language models, see `Catalog`.
    """

    def __init__(
        self,
        models: tuple[Model, ...],
        engines: Mapping[Format, Engine],
        refused: Mapping[Format, str] = MappingProxyType({}),
        own: OwnSettings | None = None,
        sizes: Mapping[Path, int] = MappingProxyType({}),
        *,
        silent: Sequence[Path] = (),
        others: Mapping[str, Role] = MappingProxyType({}),
    ) -> None:
        self.catalog = models
        self.silent = silent
        self.others = others
        self.own = own or OwnSettings()
        self.sizes = sizes
        # Of several files with one name only the first is offered.
        whole = {m.name: m for m in reversed(models) if m.head is None and m.format in engines}
        self.models = tuple(m for m in models if whole.get(m.name) is m)
        formats = {m.format for m in models}
        self.engines = engines
        self._reasons = refused
        # Only for formats of which there are models.
        self.refused = tuple(sentence for kind, sentence in refused.items() if kind in formats)
        self._meant: dict[str, Model] = {}
        self._named = whole

    def named(self, name: str) -> Model:
        """The offered model with exactly this name."""
        return self._named[name]

    def has(self, name: str) -> bool:
        """True if a model is offered under exactly this name."""
        return name in self._named

    def engine(self, model: Model) -> Engine:
        """The engine that serves an offered model."""
        return self.engines[model.format]

    def still_has(self, kind: Format, engine: Engine) -> bool:
        """True if the engine of a format is of the same backend as before, of whatever build."""
        found = self.engines.get(kind)
        return found is not None and found.backend.name == engine.backend.name

    def with_engines(self, engines: Mapping[Format, Engine]) -> ModelRegistry:
        """The same models with some other engines."""
        if not engines:
            return self
        refused = {kind: why for kind, why in self._reasons.items() if kind not in engines}
        return self._with(engines={**self.engines, **engines}, refused=refused)

    def keeping(self, before: ModelRegistry) -> ModelRegistry:
        """The same with the models that an earlier scan found in folders that do not answer now."""
        kept = [m for m in before.catalog if any(m.path.is_relative_to(folder) for folder in self.silent)]
        if not kept:
            return self
        sections = {m.fingerprint: s for m in kept if (s := before.own.of(m)) is not None}
        own = replace(
            self.own,
            sections={**sections, **self.own.sections},
            projectors={**before.own.projectors, **self.own.projectors},
        )
        models = sorted((*self.catalog, *kept), key=lambda m: (m.name.casefold(), str(m.path)))
        return self._with(models=tuple(models), own=own, sizes={**before.sizes, **self.sizes})

    def _with(self, **changes: Any) -> ModelRegistry:
        now = {"models": self.catalog, "engines": self.engines, "refused": self._reasons, "own": self.own}
        more = {"sizes": self.sizes, "silent": self.silent, "others": self.others}
        return ModelRegistry(**{**now, **more, **changes})

    def find(self, name: str) -> Model:
        """Find the model with a client's name for it, or with the path of an offered model; other paths are refused.

        Raises:
            UnknownModelError: No model has the name; holds the names that exist.
            ModelChoiceError: Several models match the name.
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
                "The request names no model.",
                f"The models here are: {', '.join(names) or 'none'}.",
                known=names,
            )
        try:
            return choose(self.models, name)
        except UnknownModelError:
            embedding = [other for other, role in self.others.items() if role == "embedding"]
            for found in answering(embedding, name, lambda other: (other,)):
                raise UnknownModelError(
                    f"{found} makes embeddings or ranks texts. The proxy serves models that write text.",
                    EMBEDDINGS_HINT,
                ) from None
            raise


def engines_of(
    settings: Settings, backend_for: Callable[[str | None, Settings], Backend]
) -> tuple[dict[Format, Engine], dict[Format, str]]:
    """Probe the backend for each format; blocks. The chosen backend serves GGUF files, unless it is MLX.

    Returns:
        The engines, and a sentence for each format without one.

    Raises:
        AutospecError: The chosen backend cannot be used.
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
    """Scan the disk for models; blocks."""
    catalog = scan(settings)
    for folder in catalog.silent:
        _log.warning("%s does not answer; what an earlier scan found in it stays.", folder)
    return ModelRegistry(
        catalog.models,
        engines,
        refused,
        catalog.own,
        _sizes(catalog.own),
        silent=catalog.silent,
        others=catalog.others,
    )


def _sizes(own: OwnSettings) -> dict[Path, int]:
    """Bytes of the adapters and projectors that exist."""
    files = {projector for beside in own.projectors.values() for projector in beside}
    for section in own.sections.values():
        files |= {adapter.path for adapter in section.lora}
        files |= {Path(section.mmproj)} if section.mmproj else set()
    sizes = {}
    for file in files:
        with suppress(OSError):
            sizes[file] = file.stat().st_size
    return sizes


_SCHEMA: Final = 1
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def switches_path(state_dir: Path) -> Path:
    """The file."""
    return state_dir / "drafting-off.json"


class DraftingSwitches:
    """The models whose drafting a person has switched off for the proxy, in one JSON file; its methods block.

    It survives a restart of the proxy, and another proxy of the same state folder follows it. It is no setting: the config file
    is its owner's, and nothing writes into it. What was measured and recommended does not change.

    Attributes:
        since: Catalogue name of a model whose drafting is switched off → since when (ISO 8601, UTC).
    """

    def __init__(self, path: Path) -> None:
        self.since: Mapping[str, str] = _NONE
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._unread = ""  # why the file could not be read; empty if it could

    def read(self) -> Mapping[str, str]:
        """Read the file if it has changed. One that is missing, damaged or of a newer version switches nothing off.

        One that cannot be read now (too many open files) leaves everything as it was, and is read at the next call.
        """
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                self.since = self._understood(self._path.read_bytes())
                self._seen = seen
            self._unread = ""
        except (FileNotFoundError, NotADirectoryError):
            self.since, self._seen, self._unread = _NONE, None, ""
        except OSError as error:
            why = error.strerror or str(error)
            if why != self._unread:  # once, not at every poll
                _log.warning("%s cannot be read, so nothing is switched by it now: %s", self._path, why)
            self._unread = why
        return self.since

    def switch(self, model: str, *, off: bool, now: datetime) -> None:
        """Switch drafting off for a model, or on again; a model that is off already keeps its time.

        Raises:
            AutospecError: The file cannot be read or written; nothing has changed.
        """
        since = dict(self.read())
        if self._unread:  # what it says of other models would be lost
            raise AutospecError(f"{self._path} cannot be read: {self._unread}.", "Check the state folder.")
        if off:
            since.setdefault(model, now.isoformat(timespec="seconds"))
        else:
            since.pop(model, None)
        text = json.dumps({"schema": _SCHEMA, "models": since}, indent=1, ensure_ascii=False)
        try:
            replace_file(self._path, text + "\n")
        except OSError as error:
            raise AutospecError(
                f"{self._path} cannot be written: {error.strerror or error}.", "Check the state folder."
            ) from error
        self.read()

    def _understood(self, content: bytes) -> Mapping[str, str]:
        try:
            return _parsed(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.warning("%s is ignored, so no drafting is switched off by it: %r", self._path, error)
            return _NONE


def _parsed(text: bytes) -> Mapping[str, str]:
    data = json.loads(text)
    if data["schema"] != _SCHEMA:
        raise ValueError(f"schema {data['schema']!r}")
    return MappingProxyType({str(name): str(since) for name, since in data["models"].items()})
