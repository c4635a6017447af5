"""Waits for other programs before something is timed again."""

from __future__ import annotations

import time
from collections.abc import Callable

from autospec.hardware.state import MachineState, StateWatch, others_words
from autospec.measure.disturbances import busy

__all__ = ["LoadGuard", "patience_s"]


# If other programs used the machine during a measurement: look at the load once a second, and continue when they have
# finished or after this time. llama.cpp's threads wait for the slowest one at every layer: one core that is taken can make
# a request on a small machine thirty times slower. Waiting is cheaper than measuring that.
_WINDOW_S = 1.0
_LIMIT_S = 60.0
# Share of the budget: two waits without success must not use up a short budget.
_SHARE = 0.1


def patience_s(budget_s: float) -> float:
    """How long one wait may last in a tune with this budget."""
    return min(_LIMIT_S, _SHARE * budget_s)


class LoadGuard:
    """Waits for other programs to finish, once: a load that outlasts the wait is steady and affects both halves of a pair."""

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
        """Wait if the machine was busy in `state`; True if what was timed is worth timing again.

        So it is if the load has ended, or if the machine slept meanwhile or its power changed.
        """
        if not busy(state):
            self._steady = False
            return bool(state.changed)
        return (not self._steady and self._wait()) or bool(state.changed)

    def _wait(self) -> bool:
        waited_s = 0.0
        while waited_s < self._limit_s:
            self._watch.start()
            self._sleep(_WINDOW_S)
            state = self._watch.finish()
            if not busy(state):
                return True
            if not waited_s:
                self._tell(f"Waiting for other programs, which use {others_words(state)}.")
            waited_s += _WINDOW_S
        self._steady = True
        self._tell(
            "The background load has not stopped; measuring continues. Paired requests cancel a steady load."
        )
        return False
