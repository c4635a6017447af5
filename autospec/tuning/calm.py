"""Wait for other programs to leave the machine alone, and know when that is of no use."""

from __future__ import annotations

import time
from collections.abc import Callable

from autospec.hardware.state import MachineState, StateWatch
from autospec.measure.asking import busy

__all__ = ["Calm", "patience_s"]

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


class Calm:
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
