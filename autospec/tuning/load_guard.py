"""What two launches side by side do to each other's place on the GPU, and what a draft does by itself.

Wait for other programs to leave the machine alone, and know when that is of no use.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from autospec.backends.optional import Placed
from autospec.backends.placement import Placement
from autospec.backends.protocol import Server
from autospec.drafting import Drafting
from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.asking import busy

__all__ = ["LoadGuard", "Neighbours", "patience_s", "placement_of"]


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


# After something was timed beside other programs: look at the load once a second, and go on when they are
# done or after this time. llama.cpp's threads wait for the slowest at every layer, so that one foreign core can make
# a request of a small machine thirty times slower; waiting is cheaper than measuring that.
_WINDOW_S = 1.0
_LIMIT_S = 60.0
# Of the budget: two waits that both end in vain must not be what a short one is spent on.
_SHARE = 0.1


def patience_s(budget_s: float) -> float:
    """How long one wait may last in a run of so many seconds."""
    return min(_LIMIT_S, _SHARE * budget_s)


class LoadGuard:
    """Waits for a calm machine, once: a load that outlasts the wait is steady, and is there in both halves of a pair.

    Args:
        watch: Watches the machine.
        tell: Told when measuring waits.
        sleep: Waits so many seconds; tests inject their own.
        limit_s: How long one wait may last.
    """

    def __init__(
        self,
        watch: StateWatch,
        tell: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        limit_s: float = _LIMIT_S,
    ) -> None:
        self._limit_s = limit_s
        self._watch = watch
        self._tell = tell
        self._sleep = sleep
        self._steady = False

    def after(self, state: MachineState) -> bool:
        """Wait if the machine was busy; true if what was timed is worth timing again, as it would be calm now.

        Args:
            state: How the machine was while something was timed.
        """
        if not busy(state):
            self._steady = False
            return False
        return not self._steady and self._wait()

    def _wait(self) -> bool:
        waited_s = 0.0
        while waited_s < self._limit_s:
            self._watch.start()
            self._sleep(_WINDOW_S)
            state = self._watch.finish()
            if not busy(state):
                return True
            if not waited_s:
                load = state.other_load + state.steal
                self._tell(f"Waiting for other programs, which use {load:.1f} of {state.cores} cores.")
            waited_s += _WINDOW_S
        self._steady = True
        self._tell("The other programs go on: measuring beside them, in pairs, as long as they do.")
        return False
