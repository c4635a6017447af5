"""What was asked for lately: tokens and requests per model and prompt type, fading with time. A pure value.

A count fades by half every half-life. What is expected of the future is as much again as was seen of late: a sum W of
faded tokens stands for a steady ``W · ln 2 / half_life`` tokens per second, the rate at which a steady stream would
hold W where it is. Right after the first request the estimate is low and it grows with use, which is the careful side
for a plan that pays for launches in advance.

Which models are asked for, how, and for how long that holds: what plans take from requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from autospec.cells import PromptType

__all__ = ["HALF_LIFE_S", "Demand", "Traffic"]


# Long enough that a coffee break does not empty the mix, short enough that the morning's work does not rule the evening's.
HALF_LIFE_S: Final = 1200.0
# Of a request that is not answered yet nothing is known but that it will have a token or more.
_LEAST_TOKENS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Count:
    """Faded counts as they were at one moment."""

    tokens: float
    requests: float
    at_s: float

    def at(self, now_s: float, half_life_s: float) -> _Count:
        """The same, faded to a later moment; a clock that steps back fades nothing."""
        now_s = max(now_s, self.at_s)
        left = 0.5 ** ((now_s - self.at_s) / half_life_s)
        return _Count(self.tokens * left, self.requests * left, now_s)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Faded counts of every model and prompt type. Each change makes a new value.

    Attributes:
        half_life_s: After this time a count is worth half.
        counts: By model and prompt type.
    """

    half_life_s: float = HALF_LIFE_S
    counts: Mapping[tuple[str, PromptType], _Count] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not self.half_life_s > 0.0:
            raise ValueError("a half-life must be longer than nothing")

    def arrived(self, model: str, prompt_type: PromptType, now_s: float) -> Traffic:
        """One more request, not answered yet.

        Args:
            model: Catalogue name.
            prompt_type: The kind of prompt.
            now_s: By the caller's clock, which must not step back.
        """
        return self._add(model, prompt_type, _LEAST_TOKENS, 1.0, now_s)

    def answered(self, model: str, prompt_type: PromptType, tokens: float, now_s: float) -> Traffic:
        """A request that had arrived was answered with so many tokens; see `arrived`."""
        return self._add(model, prompt_type, max(tokens - _LEAST_TOKENS, 0.0), 0.0, now_s)

    def tokens_per_s(self, model: str, now_s: float) -> dict[PromptType, float]:
        """Generated tokens per second to be expected of a model, by prompt type; types never seen are left out."""
        rate = math.log(2.0) / self.half_life_s
        return {kind: count.tokens * rate for kind, count in self._of(model, now_s).items()}

    def requests(self, model: str, now_s: float) -> float:
        """Faded number of a model's requests."""
        return sum(count.requests for count in self._of(model, now_s).values())

    def forget(self, model: str) -> Traffic:
        """The same without one model, e.g. because it left the catalogue."""
        return replace(self, counts=MappingProxyType({k: v for k, v in self.counts.items() if k[0] != model}))

    def to_json(self, now_s: float) -> dict[str, Any]:
        """For `status`: by model and prompt type, rounded."""
        shown: dict[str, Any] = {}
        for (model, kind), count in sorted(self.counts.items()):
            faded = count.at(now_s, self.half_life_s)
            shown.setdefault(model, {})[str(kind)] = {
                "tokens": round(faded.tokens, 1),
                "requests": round(faded.requests, 2),
            }
        return {"half_life_s": self.half_life_s, "models": shown}

    def _of(self, model: str, now_s: float) -> dict[PromptType, _Count]:
        found = {kind: self.counts.get((model, kind)) for kind in PromptType}
        return {kind: c.at(now_s, self.half_life_s) for kind, c in found.items() if c is not None}

    def _add(
        self, model: str, prompt_type: PromptType, tokens: float, requests: float, now_s: float
    ) -> Traffic:
        key = (model, prompt_type)
        before = self.counts.get(key, _Count(0.0, 0.0, now_s)).at(now_s, self.half_life_s)
        after = _Count(before.tokens + tokens, before.requests + requests, before.at_s)
        return replace(self, counts=MappingProxyType({**self.counts, key: after}))


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
