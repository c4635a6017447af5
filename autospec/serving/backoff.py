"""Failed launches of servers: when to try again, and when to give a drafting up.

The wait is a time stamp and not a sleep: plans and the status page read it, and new recommendations end it. Libraries that
repeat a call (tenacity, stamina) do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from autospec.drafting import Drafting
from autospec.errors import AutospecError, LaunchError

__all__ = ["Backoff"]

# The first restart after a crash is immediate, the next ones wait 1, 2, 4 … seconds.
_BACKOFF_S: Final = 1.0
_MOST_BACKOFF_S: Final = 60.0
# Pause after a temporary failure to start (memory, a port in use).
_ASIDE_S: Final = 60.0
# After this many failures in a row a drafting is given up.
_CHANCES: Final = 3
# A server that has run this long clears the failures before it.
_PROVED_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Setback:
    """Consecutive failures of one drafting of one model; `sentence` is the last error."""

    times: int
    sentence: str
    not_before_s: float
    given_up: bool = False


class Backoff:
    """The failures of all models and draftings."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Drafting], _Setback] = {}

    def failed(self, model: str, drafting: Drafting, error: LaunchError, now_s: float) -> _Setback:
        """A server did not become ready. Off is never given up: there is nothing to fall back to."""
        permanent = error.permanent and not drafting.is_off
        wait_s = None if drafting.is_off else _ASIDE_S
        return self._add(model, drafting, error, now_s, wait_s=wait_s, give_up=permanent)

    def crashed(self, model: str, drafting: Drafting, error: AutospecError, now_s: float) -> _Setback:
        """A server that was ready ended by itself."""
        return self._add(model, drafting, error, now_s, wait_s=None, give_up=False)

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

    def _add(
        self,
        model: str,
        drafting: Drafting,
        error: AutospecError,
        now_s: float,
        *,
        wait_s: float | None,
        give_up: bool,
    ) -> _Setback:
        before = self._known.get((model, drafting))
        times = 1 if before is None else before.times + 1
        if wait_s is None:
            wait_s = 0.0 if times == 1 else min(_BACKOFF_S * 2.0 ** (times - 2), _MOST_BACKOFF_S)
        given_up = give_up or (times >= _CHANCES and not drafting.is_off)
        setback = _Setback(times, error.message, now_s + wait_s, given_up)
        self._known[(model, drafting)] = setback
        return setback
