"""The proxy's configuration, and the functions through which it reads and writes everything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from autospec.cells import Hardware
from autospec.errors import SettingsError
from autospec.recommendations import Recommendation, Status, StoredRecommendation
from autospec.serving.advice import trusted
from autospec.serving.model_registry import ModelRegistry
from autospec.settings import Settings, parse_duration

__all__ = ["ProxyConfig", "ProxyDependencies"]

_GIB: Final = 1024**3
# The rest is for the system, other programs, and what servers allocate beyond the estimate.
_MEMORY_SHARE: Final = 0.75
# If the memory size is unknown: estimates are clipped to the limit, so one server runs at a time.
_UNKNOWN_MEMORY_BYTES: Final = 8 * _GIB


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The settings that concern servers, parsed.

    Attributes:
        memory_bytes: Limit for all servers together.
        idle_s: A model that is unused for this long is unloaded; ``None`` never.
        queue_limit: Maximum number of waiting requests.
        deadline_s: Maximum time that a request waits.
        args: The user's server arguments.
        trust: Statuses whose drafting is used.
        likely: True to use also a drafting that is likely but not proven yet.
        context_tokens: Context length of models that do not state theirs.
        maps_weights: See `autospec.serving.launch_options.footprint`.
    """

    memory_bytes: int
    idle_s: float | None = 900.0
    queue_limit: int = 256
    deadline_s: float = 300.0
    args: tuple[str, ...] = ()
    trust: frozenset[Status] = frozenset({Status.PROVEN, Status.STALE})
    likely: bool = False
    context_tokens: int = 4096
    maps_weights: bool = True

    @classmethod
    def of(cls, settings: Settings, hardware: Hardware) -> ProxyConfig:
        """Derive the configuration from the settings and the machine.

        Raises:
            SettingsError: ``serve_statuses`` has an unknown status, or ``queue_deadline`` is empty.
        """
        if not settings.queue_deadline:
            raise SettingsError("queue_deadline must not be empty.", "Set e.g. 5m.")
        limit = settings.memory_limit * _GIB
        if limit <= 0:
            limit = hardware.memory_bytes * _MEMORY_SHARE or _UNKNOWN_MEMORY_BYTES
        return cls(
            memory_bytes=int(limit),
            idle_s=parse_duration(settings.idle_unload) if settings.idle_unload else None,
            queue_limit=settings.queue_limit,
            deadline_s=parse_duration(settings.queue_deadline),
            args=settings.server_args,
            trust=trusted(settings.serve_statuses),
            likely=settings.trust == "likely",
            context_tokens=settings.context_tokens,
            maps_weights=not hardware.gpu,
        )


@dataclass(frozen=True, slots=True)
class ProxyDependencies:
    """What the supervisor reads and writes. The functions block and are called in a thread.

    Attributes:
        hardware: This machine.
        registry: Scans the disk for models.
        newest: Returns a number that changes when there are new recommendations.
        recommendations: Returns the newest recommendation of every cell.
        save: Stores a recommendation under its cell's key.
        machine_is_free: Awaited on the event loop before each launch, for a bounded time: a daemon that is measuring stops
            its servers first. ``None`` without a daemon.
    """

    hardware: Hardware
    registry: Callable[[], ModelRegistry]
    newest: Callable[[], int]
    recommendations: Callable[[], Sequence[StoredRecommendation]]
    save: Callable[[Recommendation, Hardware, str], None]
    machine_is_free: Callable[[], Awaitable[object]] | None = None
