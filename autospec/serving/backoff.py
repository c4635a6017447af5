"""Failed launches of servers: when to try again, and when to give a drafting up.

The wait is a time stamp and not a sleep: plans and the status page read it, and new recommendations end it. Libraries that
repeat a call (tenacity, stamina) do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from autospec.drafting import Drafting
from autospec.errors import AutospecError, LaunchError

__all__ = ["Backoff"]

# The first restart after a crash is immediate, the next ones wait 1, 2, 4 … seconds.
_BACKOFF_S: Final = 1.0
_MOST_BACKOFF_S: Final = 60.0
# Pause after a temporary failure to start (memory, a port in use).
_ASIDE_S: Final = 60.0
# After this many failures in a row a drafting is not tried for `_ROW_S`.
_CHANCES: Final = 3
# A failure that is older does not belong to the row.
_ROW_S: Final = 3600.0
# A server that has run this long clears the failures before it.
_PROVED_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Setback:
    """Consecutive failures of one drafting of one model."""

    times: int
    strikes: int  # those that speak against the drafting
    sentence: str  # the last error
    at_s: float
    not_before_s: float
    given_up: bool = False
    requests: frozenset[int] = frozenset()  # that were on the server when it ended


class Backoff:
    """The failures of all models and draftings.

    Only a launch that would fail again gives a drafting up for good. Everything else may have another cause: a request that
    no launch survives, or the memory that another program takes. So a failure without drafting clears the draftings of the
    model; a second death by the same request, and a server that was killed, are no strikes against its drafting.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Drafting], _Setback] = {}

    def failed(self, model: str, drafting: Drafting, error: LaunchError, now_s: float) -> _Setback:
        """A server did not become ready. Off is never given up: there is nothing to fall back to."""
        before = self._row(model, drafting, now_s)
        times = 1 if before is None else before.times + 1
        strikes = 1 if before is None else before.strikes + 1
        wait_s = _backoff_s(times) if drafting.is_off else _ASIDE_S
        given_up = error.permanent and not drafting.is_off
        setback = _Setback(times, strikes, error.message, now_s, now_s + wait_s, given_up)
        return self._add(model, drafting, setback)

    def crashed(
        self,
        model: str,
        drafting: Drafting,
        error: AutospecError,
        now_s: float,
        *,
        requests: frozenset[int] = frozenset(),
        killed: bool = False,
    ) -> _Setback:
        """A server that was ready ended by itself.

        Args:
            model: Its model.
            drafting: Its drafting.
            error: How it ended.
            now_s: The time.
            requests: Numbers of the requests that it was answering.
            killed: True if a SIGKILL ended it, which always comes from elsewhere: the kernel was short of memory, or a user.
        """
        before = self._row(model, drafting, now_s)
        times = 1 if before is None else before.times + 1
        strikes = 0 if before is None else before.strikes
        if not killed and not (before is not None and before.requests & requests):
            strikes += 1
        setback = _Setback(times, strikes, error.message, now_s, now_s + _backoff_s(times), requests=requests)
        return self._add(model, drafting, setback)

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

    def _row(self, model: str, drafting: Drafting, now_s: float) -> _Setback | None:
        """The failures before this one, unless they are too old."""
        before = self._known.get((model, drafting))
        return before if before is not None and now_s - before.at_s < _ROW_S else None

    def _add(self, model: str, drafting: Drafting, setback: _Setback) -> _Setback:
        if drafting.is_off:
            self._clear_draftings(model, setback.at_s + _ASIDE_S)
        elif setback.strikes >= _CHANCES:
            setback = replace(setback, not_before_s=setback.at_s + _ROW_S)
        self._known[(model, drafting)] = setback
        return setback

    def _clear_draftings(self, model: str, until_s: float) -> None:
        """The model failed without drafting, too: its draftings get all their chances back, at `until_s` at the latest."""
        for (name, drafting), setback in list(self._known.items()):
            if name == model and not drafting.is_off and not setback.given_up:
                not_before_s = min(setback.not_before_s, until_s)
                self._known[(name, drafting)] = replace(setback, strikes=0, not_before_s=not_before_s)


def _backoff_s(times: int) -> float:
    return 0.0 if times == 1 else min(_BACKOFF_S * 2.0 ** (times - 2), _MOST_BACKOFF_S)
