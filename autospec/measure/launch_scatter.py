"""How much launches of one server differ on this machine."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LaunchScatter"]


@dataclass(frozen=True, slots=True)
class LaunchScatter:
    """Scatter of launches of one side.

    Attributes:
        sd: Standard deviation of ln(speed) between launches.
        freedom: Degrees of freedom that it is known with; 0 where nothing was measured.
    """

    sd: float = 0.0
    freedom: int = 0
