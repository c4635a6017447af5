"""Which models are asked for, how, and for how long that holds: what plans take from requests."""

from __future__ import annotations

from typing import Final

from autospec.cells import PromptType
from autospec.proxy.traffic import Traffic

__all__ = ["Demand"]

# Whoever asks for no drafting asks again: a launch without it is kept for so long, lest two clients with different
# wishes switch a server to and fro.
_OFF_HELD_S: Final = 600.0
# Tokens per second that a lease is taken to have generated where nobody told: only proportions between types matter.
_USUAL_TPS: Final = 20.0


class Demand:
    """The models that are awake: asked for, and not unused for so long that they were unloaded.

    Attributes:
        traffic: Tokens by model and prompt type.
        requests: Requests that came, all together.
        last_s: When the last one came; ``None`` before the first.
    """

    def __init__(self) -> None:
        self.traffic = Traffic()
        self.requests = 0
        self.last_s: float | None = None
        self._asked_s: dict[str, float] = {}
        self._off_asked_s: dict[str, float] = {}

    def asked(self, model: str, now_s: float, *, drafting_off: bool) -> None:
        """A request came."""
        self.requests += 1
        self.last_s = now_s
        self._asked_s[model] = now_s
        if drafting_off:
            self._off_asked_s[model] = now_s

    def arrived(self, model: str, prompt_type: PromptType | None, now_s: float) -> None:
        """It is known what kind of prompt it has; before its answer, so that plans count with it."""
        if prompt_type is not None:
            self.traffic = self.traffic.arrived(model, prompt_type, now_s)

    def answered(
        self, model: str, prompt_type: PromptType | None, tokens: float | None, held_s: float, now_s: float
    ) -> None:
        """A request is done.

        Args:
            model: Whose.
            prompt_type: Its kind.
            tokens: Generated; ``None`` where nobody told: then the time it took stands for them.
            held_s: How long it held its server.
            now_s: When.
        """
        if model not in self._asked_s:
            return  # it left the disk meanwhile
        self._asked_s[model] = now_s
        if prompt_type is not None:
            told = held_s * _USUAL_TPS if tokens is None else tokens
            self.traffic = self.traffic.answered(model, prompt_type, told, now_s)

    @property
    def awake(self) -> tuple[str, ...]:
        """Models that are awake, in the order in which they were first asked for."""
        return tuple(self._asked_s)

    def latest(self) -> str:
        """The model that was asked for last; empty if none is awake."""
        return max(self._asked_s, key=lambda model: self._asked_s[model], default="")

    def unused_s(self, model: str, now_s: float) -> float:
        """How long nobody has asked for a model or got an answer from it."""
        return now_s - self._asked_s[model]

    def wants_off(self, model: str, now_s: float) -> bool:
        """True if somebody asked for no drafting of late."""
        asked_s = self._off_asked_s.get(model)
        return asked_s is not None and now_s - asked_s < _OFF_HELD_S

    def sleep(self, model: str) -> None:
        """Nobody wants it any more."""
        self._asked_s.pop(model, None)
        self._off_asked_s.pop(model, None)
