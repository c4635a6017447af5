"""The launches that are possible for a model, with estimates of their memory and start time, and the wait after a failed one.

The wait is a time stamp and not a sleep: plans and the status page read it, and new recommendations end it. Libraries that
repeat a call (tenacity, stamina) do not fit.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from autospec.backends.placement import Where, room_bytes, weights_of
from autospec.backends.protocol import Backend
from autospec.backends.registry import OnDevices
from autospec.catalog.model import USUAL_TEMPERATURE, Model, context_of, loads_projector, temperature_of
from autospec.cells import Hardware, options_in
from autospec.drafting import OFF, Drafting
from autospec.errors import AutospecError, LaunchError
from autospec.hardware.gpu import cards, shared_limit_bytes
from autospec.serving.advice import ModelAdvice
from autospec.serving.model_registry import Engine, ModelRegistry
from autospec.serving.plan_inputs import LaunchEstimate, MemoryEstimate
from autospec.serving.server_pool import ServerPool
from autospec.settings import Settings

__all__ = [
    "Backoff",
    "LaunchOptions",
    "default_temperature",
    "footprint",
    "launch_seconds",
    "maps_files",
    "memory_limit_bytes",
    "repacks",
]

_GIB: Final = 1024**3
# The rest is for the system, other programs, and what servers allocate beyond the estimate.
_MEMORY_SHARE: Final = 0.75
# If the memory size is unknown: estimates are clipped to the limit, so one server runs at a time.
_UNKNOWN_MEMORY_BYTES: Final = 8 * _GIB
# `-ngl 99` and more mean all layers, as people write it. Whether fewer are all of them differs by model.
_ALL_LAYERS: Final = 99
_EMBEDDING_FLAGS: Final = frozenset({"--embedding", "--embeddings", "--rerank", "--reranking"})
# Compute buffers, the program and its libraries: 100 to 400 MB for llama-server with default batch sizes.
_BUFFERS_BYTES: Final = 256 * 1024**2
# For launches without a measured time: 0.9 GB took 1.6 to 2.2 s from a warm cache, a cold disk reads 1 GB/s.
_START_S: Final = 1.5
_BYTES_PER_S: Final = 1e9


def memory_limit_bytes(settings: Settings, hardware: Hardware, backend: Backend | None = None) -> int:
    """Memory limit for all servers together: the user's, or else that of the place where they keep their models.

    That is the graphics cards if they have memory of their own and `backend` uses them, or else a share of the machine's memory,
    which a Mac's GPU may limit.
    """
    if settings.memory_limit:
        return int(settings.memory_limit * _GIB)
    if (cards_bytes := _cards_bytes(settings, hardware)) and not _on_processor(backend):
        return cards_bytes
    share_bytes = hardware.memory_bytes * _MEMORY_SHARE
    if gpu_bytes := shared_limit_bytes(hardware):
        share_bytes = min(share_bytes, gpu_bytes)
    return int(share_bytes or _UNKNOWN_MEMORY_BYTES)


def _cards_bytes(settings: Settings, hardware: Hardware) -> int:
    """What servers may take on the cards together; 0 without one, or if the user keeps a part of the weights elsewhere."""
    # If servers need more than the cards have, --fit moves layers of the later one to the processor, without an error.
    weights = weights_of(settings.server_args, _ALL_LAYERS - 1)
    if weights.where is not Where.DEVICE:
        return 0
    empty = [replace(card, free_bytes=card.total_bytes) for card in cards(hardware)]
    return room_bytes(empty, weights) or 0


def _on_processor(backend: Backend | None) -> bool:
    """Whether a build finds no card: one without GPU code, or one whose driver does not fit."""
    return isinstance(backend, OnDevices) and backend.devices() == ()


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


# llama.cpp rearranges weights of these types for the processor, in memory of each server's own (ggml/src/ggml-cpu/repack.cpp). Seen with
# b11434: 74 MB more than another server's 34 for a file of 78 MB in Q4_0. Builds differ in the list: a type too many costs no more than
# a second server.
_REPACKED: Final = ("Q2_K", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
_REPACKED_ON_ARM: Final = (*_REPACKED, "Q8_0")


def repacks(quantization: str, args: Sequence[str], machine: str) -> bool:
    """True if llama.cpp may copy weights that it computes with on the processor, instead of mapping them.

    Args:
        quantization: Of the model file, ``Q4_K_M`` for example.
        args: The user's arguments.
        machine: `platform.machine`.
    """
    on = True
    for flag, _ in options_in(args):
        if flag in ("--repack", "-nr", "--no-repack"):
            on = flag == "--repack"
    is_arm = machine.lower() in ("arm64", "aarch64")
    return on and quantization.startswith(_REPACKED_ON_ARM if is_arm else _REPACKED)


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


def launch_seconds(model: Model, draft: Model | None) -> float:
    """Estimate the time from start to ready."""
    size = model.size_bytes + (0 if draft is None else draft.size_bytes)
    return _START_S + size / _BYTES_PER_S


# What servers sample with if neither the request nor the launch says it.
_SERVER_TEMPERATURE: Final = {"mlx": 0.0}


@lru_cache(64)
def default_temperature(backend: str, args: tuple[str, ...], own: float | None = None) -> float:
    """The temperature of requests that name none: of the user's server arguments, else the model's `own`, else the server's."""
    named = temperature_of(args)
    if named is not None:
        return named
    if own is not None:
        return own
    return _SERVER_TEMPERATURE.get(backend, USUAL_TEMPERATURE)


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
        self._hardware = hardware
        self.limit_bytes = self.read_limit()
        self._on_cpu = not hardware.gpu
        self._pool = pool
        self._backoff = backoff

    def read_limit(self) -> int:
        """The memory limit with the builds that are there now; blocks, as one may be asked for its cards."""
        of_gguf = self.registry.engines.get("gguf")
        return memory_limit_bytes(self._settings, self._hardware, of_gguf.backend if of_gguf else None)

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

    def embeds(self, name: str) -> bool:
        """True if the user's arguments let the servers of the model make embeddings, or if the server is not autospec's."""
        model, engine = self.served(name)
        return engine.backend.name == "attached" or any(
            flag in _EMBEDDING_FLAGS for flag, _ in options_in(self.args(model))
        )

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
        extra += [projector] if projector else []
        args = self.args(model)
        copied = any(repacks(m.quantization, args, platform.machine()) for m in (model, draft) if m)
        memory = footprint(
            model,
            draft,
            context_of(args, own, own or self._settings.context_tokens),
            # MLX copies the weights.
            maps_weights=self._on_cpu and model.format == "gguf" and maps_files(args) and not copied,
            limit_bytes=self.limit_bytes,
            # Looked up: this runs on the event loop, and the disk of a file may hang.
            more_bytes=sum(self.registry.sizes.get(file, 0) for file in extra),
        )
        took_s, cold_s = self._pool.took_s(name, drafting), launch_seconds(model, draft)
        return LaunchEstimate(drafting, memory, cold_s if took_s is None else took_s, cold_s)


# The first restart after a crash is immediate, the next ones wait 1, 2, 4 … seconds.
_BACKOFF_S: Final = 1.0
_MOST_BACKOFF_S: Final = 60.0
# Pause after a temporary failure to start (memory, a port in use).
_ASIDE_S: Final = 60.0
# After this many failures in a row a drafting is not tried for `_ROW_S`.
_CHANCES: Final = 3
# A failure that is older does not belong to the row.
_ROW_S: Final = 3600.0
# A server that has run this long clears the failures before it.
_PROVED_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Setback:
    """Consecutive failures of one drafting of one model."""

    times: int
    strikes: int  # those that speak against the drafting
    sentence: str  # the last error
    at_s: float
    not_before_s: float
    given_up: bool = False
    requests: frozenset[int] = frozenset()  # that were on the server when it ended


class Backoff:
    """The failures of all models and draftings.

    Only a launch that would fail again gives a drafting up for good. Everything else may have another cause: a request that
    no launch survives, or the memory that another program takes. So a failure without drafting clears the draftings of the
    model; a second death by the same request, and a server that was killed, are no strikes against its drafting.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Drafting], _Setback] = {}

    def failed(self, model: str, drafting: Drafting, error: LaunchError, now_s: float) -> _Setback:
        """A server did not become ready. Off is never given up: there is nothing to fall back to."""
        before = self._row(model, drafting, now_s)
        times = 1 if before is None else before.times + 1
        strikes = 1 if before is None else before.strikes + 1
        wait_s = _backoff_s(times) if drafting.is_off else _ASIDE_S
        given_up = error.permanent and not drafting.is_off
        setback = _Setback(times, strikes, error.message, now_s, now_s + wait_s, given_up)
        return self._add(model, drafting, setback)

    def crashed(
        self,
        model: str,
        drafting: Drafting,
        error: AutospecError,
        now_s: float,
        *,
        requests: frozenset[int] = frozenset(),
        killed: bool = False,
    ) -> _Setback:
        """A server that was ready ended by itself.

        Args:
            model: Its model.
            drafting: Its drafting.
            error: How it ended.
            now_s: The time.
            requests: Numbers of the requests that it was answering.
            killed: True if a SIGKILL ended it, which always comes from elsewhere: the kernel was short of memory, or a user.
        """
        before = self._row(model, drafting, now_s)
        times = 1 if before is None else before.times + 1
        strikes = 0 if before is None else before.strikes
        if not killed and not (before is not None and before.requests & requests):
            strikes += 1
        setback = _Setback(times, strikes, error.message, now_s, now_s + _backoff_s(times), requests=requests)
        return self._add(model, drafting, setback)

    def lives(self, model: str, drafting: Drafting, for_s: float) -> None:
        """A server has been ready for `for_s`; after `_PROVED_S` its failures are forgotten."""
        if for_s >= _PROVED_S:
            self._known.pop((model, drafting), None)

    def not_before_s(self, model: str, drafting: Drafting) -> float:
        """When a launch may be tried again; minus infinity if none failed."""
        setback = self._known.get((model, drafting))
        return float("-inf") if setback is None else setback.not_before_s

    def allows(self, model: str, drafting: Drafting, now_s: float) -> bool:
        """True if a plan may use this drafting: it is off, or neither given up nor paused."""
        setback = self._known.get((model, drafting))
        return drafting.is_off or setback is None or not (setback.given_up or setback.not_before_s > now_s)

    def forgive(self, model: str) -> None:
        """Forget all failures of a model, because there is new information about it."""
        self._known = {key: s for key, s in self._known.items() if key[0] != model}

    def to_json(self, now_s: float) -> list[dict[str, Any]]:
        """The ``setbacks`` of the status document."""
        return [
            {
                "model": model,
                "drafting": drafting.to_json(),
                "times": setback.times,
                "error": setback.sentence,
                "given_up": setback.given_up,
                "again_in_s": None if setback.given_up else round(max(0.0, setback.not_before_s - now_s), 1),
            }
            for (model, drafting), setback in self._known.items()
        ]

    def _row(self, model: str, drafting: Drafting, now_s: float) -> _Setback | None:
        """The failures before this one, unless they are too old."""
        before = self._known.get((model, drafting))
        return before if before is not None and now_s - before.at_s < _ROW_S else None

    def _add(self, model: str, drafting: Drafting, setback: _Setback) -> _Setback:
        if drafting.is_off:
            self._clear_draftings(model, setback.at_s + _ASIDE_S)
        elif setback.strikes >= _CHANCES:
            setback = replace(setback, not_before_s=setback.at_s + _ROW_S)
        self._known[(model, drafting)] = setback
        return setback

    def _clear_draftings(self, model: str, until_s: float) -> None:
        """The model failed without drafting, too: its draftings get all their chances back, at `until_s` at the latest."""
        for (name, drafting), setback in list(self._known.items()):
            if name == model and not drafting.is_off and not setback.given_up:
                not_before_s = min(setback.not_before_s, until_s)
                self._known[(name, drafting)] = replace(setback, strikes=0, not_before_s=not_before_s)


def _backoff_s(times: int) -> float:
    # A row is as long as its failures come: 2.0 ** 1024 is no number any more.
    return 0.0 if times == 1 else min(_BACKOFF_S * 2.0 ** min(times - 2, 30), _MOST_BACKOFF_S)
