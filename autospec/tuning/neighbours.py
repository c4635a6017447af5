"""What two launches side by side do to each other's place on the GPU, and what a draft does by itself."""

from __future__ import annotations

from autospec.backends.optional import Placed
from autospec.backends.placement import Placement
from autospec.backends.protocol import Server
from autospec.drafting import Drafting

__all__ = ["Neighbours", "placement_of"]


def placement_of(server: Server) -> Placement | None:
    """Where a server put the main model; ``None`` where it does not tell."""
    return server.placement if isinstance(server, Placed) else None


class Neighbours:
    """Compares where launches have the main model.

    Side by side, a difference may be the neighbour's doing, and a pair of them would compare two places. By turns it is
    the draft itself that takes the memory: a real cost, which users have too.
    """

    def __init__(self) -> None:
        self._off: Placement | None = None
        self._told: set[Drafting] = set()

    def displaced(self, off: Server, drafted: Server) -> str:
        """Why two launches side by side must not be compared; empty where they may."""
        plain, other = placement_of(off), placement_of(drafted)
        if plain is None or other is None or plain.same_as(other):
            return ""
        return (
            f"Side by side the main model is placed differently: without drafting {plain}, "
            f"with {drafted.drafting.label} {other}."
        )

    def alone(self, server: Server) -> str:
        """Take note of a launch that has the machine to itself.

        Returns:
            What the draft displaces, in a sentence; empty where it displaces nothing, or where that was said before.
        """
        placed = placement_of(server)
        if server.drafting.is_off:
            self._off = placed or self._off
            return ""
        if placed is None or self._off is None or placed.same_as(self._off) or server.drafting in self._told:
            return ""
        self._told.add(server.drafting)
        return (
            f"{server.drafting.label}: the draft displaces a part of the main model, also by itself: {placed}, "
            f"without drafting {self._off}. That is a cost of drafting, and it counts."
        )
