"""What the daemon looks at before and while it measures. Pure values; unknown is a value of its own everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Heat", "Power", "Signals"]


class Power(StrEnum):
    """Where the energy comes from."""

    MAINS = "mains"
    BATTERY = "battery"
    UNKNOWN = "unknown"


class Heat(StrEnum):
    """Whether heat holds the processor back."""

    NOMINAL = "nominal"
    THROTTLED = "throttled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Signals:
    """The machine at one moment. ``None`` is unknown.

    Attributes:
        minute_of_day: Local time, 0…1439.
        spent_today_s: What was measured today.
        in_flight: Requests that the proxy is answering; ``None`` while no proxy is connected.
        since_request_s: Seconds since the last request at the proxy ended; ``None`` if none did since the start.
        held_by: Who else measures on this machine, in words; empty if nobody.
        power: See `Power`.
        low_power: True if the user chose to save power.
        heat: See `Heat`.
        user_idle_s: Seconds since somebody typed or moved the mouse.
        other_load: Cores that other programs keep busy; servers of the proxy and of a measurement are not counted.
        cores: Logical cores.
        memory_available_bytes: What can be had without swapping.
    """

    minute_of_day: int
    spent_today_s: float
    in_flight: int | None = None
    since_request_s: float | None = None
    held_by: str = ""
    power: Power = Power.UNKNOWN
    low_power: bool | None = None
    heat: Heat = Heat.UNKNOWN
    user_idle_s: float | None = None
    other_load: float | None = None
    cores: int = 1
    memory_available_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)
