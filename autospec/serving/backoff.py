"""What went wrong with launches, and what follows: try again later, or never with this drafting.

The waiting is a date, not a sleep, because plans and people look at it while it lasts and new recommendations end it; that
is why no library that repeats a call (tenacity, stamina) is used for the two lines of arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from autospec.drafting import Drafting
from autospec.errors import AutospecError, LaunchError

__all__ = ["Backoff", "Setback"]

# A crash is mostly a fault of one moment: the first restart is immediate, the next ones wait 1, 2, 4 … seconds.
_BACKOFF_S: Final = 1.0
_MOST_BACKOFF_S: Final = 60.0
# A drafting that does not start for a passing reason (memory, a taken port) is left alone for so long.
_ASIDE_S: Final = 60.0
# After as many in a row a drafting is given up.
_CHANCES: Final = 3
# A launch that lives so long has earned a clean record.
_PROVED_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Setback:
    """What went wrong with one model's launches of one drafting.

    Attributes:
        times: In a row.
        sentence: What happened last.
        not_before_s: Until then it is not started.
        given_up: True if it is not started until new recommendations come.
    """

    times: int
    sentence: str
    not_before_s: float
    given_up: bool = False


class Backoff:
    """All setbacks, by model and drafting."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Drafting], Setback] = {}

    def failed(self, model: str, drafting: Drafting, error: LaunchError, now_s: float) -> Setback:
        """A launch did not get ready. Off is never given up: without it there is nothing."""
        permanent = error.permanent and not drafting.is_off
        wait_s = None if drafting.is_off else _ASIDE_S
        return self._add(model, drafting, error, now_s, wait_s=wait_s, give_up=permanent)

    def crashed(self, model: str, drafting: Drafting, error: AutospecError, now_s: float) -> Setback:
        """A launch that had been ready ended by itself."""
        return self._add(model, drafting, error, now_s, wait_s=None, give_up=False)

    def lives(self, model: str, drafting: Drafting, for_s: float) -> None:
        """A launch is ready, and has been for so long: after `_PROVED_S` the row of setbacks is over."""
        if for_s >= _PROVED_S:
            self._known.pop((model, drafting), None)

    def not_before_s(self, model: str, drafting: Drafting) -> float:
        """When a launch may be tried again; minus infinity where nothing is known against it."""
        setback = self._known.get((model, drafting))
        return float("-inf") if setback is None else setback.not_before_s

    def allows(self, model: str, drafting: Drafting, now_s: float) -> bool:
        """True if plans may count on this drafting: off always, others unless given up or set aside for now."""
        setback = self._known.get((model, drafting))
        return drafting.is_off or setback is None or not (setback.given_up or setback.not_before_s > now_s)

    def of(self, model: str, drafting: Drafting) -> Setback | None:
        """What is known against it."""
        return self._known.get((model, drafting))

    def forgive(self, model: str) -> None:
        """Forget what was given up for a model: something new is known of it."""
        self._known = {key: s for key, s in self._known.items() if key[0] != model}

    def to_json(self, now_s: float) -> list[dict[str, Any]]:
        """For `status`."""
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

    def _add(
        self,
        model: str,
        drafting: Drafting,
        error: AutospecError,
        now_s: float,
        *,
        wait_s: float | None,
        give_up: bool,
    ) -> Setback:
        before = self._known.get((model, drafting), Setback(0, "", now_s))
        times = before.times + 1
        if wait_s is None:
            wait_s = 0.0 if times == 1 else min(_BACKOFF_S * 2.0 ** (times - 2), _MOST_BACKOFF_S)
        gone = give_up or (times >= _CHANCES and not drafting.is_off)
        setback = replace(
            before, times=times, sentence=error.message, not_before_s=now_s + wait_s, given_up=gone
        )
        self._known[(model, drafting)] = setback
        return setback
