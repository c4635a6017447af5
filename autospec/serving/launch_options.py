"""The launches that are possible for a model, with estimates of their memory and start time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from autospec.catalog.model import Model, context_of, loads_projector
from autospec.cells import Hardware, options_in, values_of
from autospec.drafting import OFF, Drafting
from autospec.hardware.gpu import shared_limit_bytes
from autospec.serving.advice import ModelAdvice
from autospec.serving.backoff import Backoff
from autospec.serving.model_registry import Engine, ModelRegistry
from autospec.serving.plan_inputs import LaunchEstimate, MemoryEstimate
from autospec.serving.server_pool import ServerPool
from autospec.settings import Settings

__all__ = [
    "LaunchOptions",
    "default_temperature",
    "footprint",
    "launch_seconds",
    "maps_files",
    "memory_limit_bytes",
]

_GIB: Final = 1024**3
# The rest is for the system, other programs, and what servers allocate beyond the estimate.
_MEMORY_SHARE: Final = 0.75
# If the memory size is unknown: estimates are clipped to the limit, so one server runs at a time.
_UNKNOWN_MEMORY_BYTES: Final = 8 * _GIB
# Compute buffers, the program and its libraries: 100 to 400 MB for llama-server with default batch sizes.
_BUFFERS_BYTES: Final = 256 * 1024**2
# For launches without a measured time: 0.9 GB took 1.6 to 2.2 s from a warm cache, a cold disk reads 1 GB/s.
_START_S: Final = 1.5
_BYTES_PER_S: Final = 1e9


def memory_limit_bytes(settings: Settings, hardware: Hardware) -> int:
    """Memory limit for all servers together: the user's, or a share of the machine's memory that a Mac's GPU may use."""
    own_bytes = settings.memory_limit * _GIB
    share_bytes = hardware.memory_bytes * _MEMORY_SHARE
    if gpu_bytes := shared_limit_bytes(hardware):
        share_bytes = min(share_bytes, gpu_bytes)
    return int(own_bytes or share_bytes or _UNKNOWN_MEMORY_BYTES)


def footprint(
    model: Model,
    draft: Model | None,
    tokens: int,
    *,
    maps_weights: bool,
    limit_bytes: int,
    more_bytes: int = 0,
) -> MemoryEstimate:
    """Estimate the memory of one server; `more_bytes` is what it loads besides both models (projector, adapters).

    With `maps_weights` (memory-mapped, on the CPU) servers of the same file share its weights. Accelerators differ in what they
    do with a mapped file, so there each server counts in full. The estimate never exceeds the limit: a server fits its
    context to the free memory, so a model that fills the memory can still run alone. Such a model shares nothing in the
    estimate, so that no second server fits beside it.
    """
    models = [model] if draft is None else [model, draft]
    own = (
        _BUFFERS_BYTES + more_bytes + sum(m.kv_bytes(min(tokens, m.context_length or tokens)) for m in models)
    )
    weights = {str(m.path): m.size_bytes for m in models}
    if not maps_weights:
        return MemoryEstimate(min(own + sum(weights.values()), limit_bytes))
    room = limit_bytes - sum(weights.values())
    return MemoryEstimate(min(own, room), weights) if room > 0 else MemoryEstimate(limit_bytes)


def maps_files(args: Sequence[str]) -> bool:
    """True if llama.cpp memory-maps the weights with these arguments of the user; it does by default."""
    mapped = True
    for flag, values in options_in(args):
        if flag in ("--mmap", "--no-mmap"):
            mapped = flag == "--mmap"
        elif flag in ("-dio", "--direct-io"):
            mapped = False
        elif flag in ("-lm", "--load-mode") and values:
            mapped = values[0] == "auto" or "mmap" in values[0]
    return mapped


def _bytes_of(files: Iterable[Path]) -> int:
    """Size of the files that exist."""
    size = 0
    for file in files:
        with suppress(OSError):
            size += file.stat().st_size
    return size


def launch_seconds(model: Model, draft: Model | None) -> float:
    """Estimate the time from start to ready."""
    size = model.size_bytes + (0 if draft is None else draft.size_bytes)
    return _START_S + size / _BYTES_PER_S


# What servers sample with if neither the request nor the launch says it.
_SERVER_TEMPERATURE: Final = {"mlx": 0.0}
_LLAMA_CPP_TEMPERATURE: Final = 0.8
_TEMPERATURE_FLAGS: Final = frozenset({"--temp", "--temperature"})


@lru_cache(64)
def default_temperature(backend: str, args: tuple[str, ...], own: float | None = None) -> float:
    """The temperature of requests that name none: of the user's server arguments, else the model's `own`, else the server's."""
    with suppress(ValueError, IndexError):
        return float(values_of(args, _TEMPERATURE_FLAGS)[-1])
    if own is not None:
        return own
    return _SERVER_TEMPERATURE.get(backend, _LLAMA_CPP_TEMPERATURE)


def draft_of(drafting: Drafting, models: Sequence[Model]) -> Model | None:
    """The catalogue entry of a drafting's draft model; ``None`` if it has none or it is not in the catalogue."""
    return next((m for m in models if str(m.path) == drafting.draft), None) if drafting.draft else None


_NOTHING = ModelAdvice()


class LaunchOptions:
    """Combines the models, their recommendations (`known`, by model name) and the failures of earlier launches."""

    def __init__(
        self,
        settings: Settings,
        hardware: Hardware,
        registry: ModelRegistry,
        pool: ServerPool,
        backoff: Backoff,
    ) -> None:
        self.registry = registry
        self.known: Mapping[str, ModelAdvice] = {}
        self._settings = settings
        self.limit_bytes = memory_limit_bytes(settings, hardware)
        self._on_cpu = not hardware.gpu
        self._pool = pool
        self._backoff = backoff

    def of(self, name: str) -> ModelAdvice:
        """The recommendations for a model."""
        return self.known.get(name, _NOTHING)

    def temperature(self, name: str) -> float:
        """The temperature of requests to a model that name none."""
        model, engine = self.served(name)
        return default_temperature(engine.capabilities.build.backend, self.args(model), model.temperature)

    def served(self, name: str) -> tuple[Model, Engine]:
        """An offered model and the engine that serves it."""
        model = self.registry.named(name)
        return model, self.registry.engine(model)

    def identity(self, name: str, drafting: Drafting) -> tuple[object, ...]:
        """What a server is started from: the build, and the files of its models. It is replaced when that changes."""
        model, engine = self.served(name)
        draft = draft_of(drafting, self.registry.catalog)
        return (
            engine.capabilities.build,
            str(model.path),
            model.ref.fingerprint,  # its adapters are part of it
            draft.fingerprint if draft else "",
            self.projector(model),
        )

    def args(self, model: Model) -> tuple[str, ...]:
        """The user's server arguments for a model."""
        return self.registry.own.args(model, self._settings)

    def projector(self, model: Model) -> Path | None:
        """The projector beside a model that its servers load although the user's arguments do not name it."""
        return self.registry.own.projector(model, self._settings)

    def takes_images(self, name: str) -> bool:
        """True if a server of the model loads a projector, where its build can load one with its drafting."""
        model = self.registry.named(name)
        return self.projector(model) is not None or loads_projector(self.args(model))

    def possible(self, model: Model, now_s: float) -> tuple[LaunchEstimate, ...]:
        """Off, and every recommended drafting that may be launched now."""
        found = [d for d in self.of(model.name).draftings if self._backoff.allows(model.name, d, now_s)]
        return tuple(self.estimate(model.name, drafting) for drafting in (OFF, *found))

    def estimate(self, name: str, drafting: Drafting) -> LaunchEstimate:
        """Memory and start time of one launch."""
        model, draft = self.registry.named(name), draft_of(drafting, self.registry.catalog)
        own = model.context_length
        section, projector = self.registry.own.of(model), self.projector(model)
        extra = [adapter.path for adapter in section.lora] if section else []
        extra += [Path(section.mmproj)] if section and section.mmproj else []
        memory = footprint(
            model,
            draft,
            context_of(self.args(model), own, own or self._settings.context_tokens),
            # MLX copies the weights.
            maps_weights=self._on_cpu and model.format == "gguf" and maps_files(self.args(model)),
            limit_bytes=self.limit_bytes,
            more_bytes=_bytes_of([*extra, projector] if projector else extra),
        )
        took_s = self._pool.took_s(name, drafting)
        return LaunchEstimate(drafting, memory, launch_seconds(model, draft) if took_s is None else took_s)
