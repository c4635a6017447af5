"""What the user settled for the proxy's servers, and where it gets what it knows."""

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
# The rest is the system's, the user's other programs' and what a server allocates beyond the estimate.
_MEMORY_SHARE: Final = 0.75
# A machine that does not tell its memory: enough for one launch at a time, by the clipping of footprints.
_UNKNOWN_MEMORY_BYTES: Final = 8 * _GIB


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The limits within which servers are run.

    Attributes:
        memory_bytes: Of all launches together.
        idle_s: A model unused for so long is unloaded; ``None`` never.
        queue_limit: Most requests that wait.
        deadline_s: Longest that one waits.
        args: The user's server arguments.
        trust: Statuses whose drafting is put to work.
        likely: True to put to work, too, what is likely while its proof is not finished.
        context_tokens: Of models that do not tell theirs.
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
        """The config in the settings.

        Raises:
            SettingsError: ``serve_statuses`` names an unknown status, or there is no deadline.
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
    """Where knowledge comes from; each blocks and is called in a thread.

    Attributes:
        hardware: This machine.
        registry: Scans the disk.
        newest: A number that is another once there are new recommendations.
        recommendations: The newest recommendation of every cell.
        save: Keeps a recommendation under its cell's key.
        machine_is_free: Awaited before each launch, on the event loop: a daemon that measures lets go of its servers
            first. Waits for a bounded time. ``None`` where there is no daemon.
    """

    hardware: Hardware
    registry: Callable[[], ModelRegistry]
    newest: Callable[[], int]
    recommendations: Callable[[], Sequence[StoredRecommendation]]
    save: Callable[[Recommendation, Hardware, str], None]
    machine_is_free: Callable[[], Awaitable[object]] | None = None
