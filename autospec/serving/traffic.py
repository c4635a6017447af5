"""Recent traffic: tokens and requests per model and prompt type, decaying with time, and which models are in use.

A count halves with every half-life. A decayed sum W of tokens corresponds to a steady ``W · ln 2 / half_life`` tokens per
second, the rate that would keep W constant; that rate is the forecast. It starts low and grows with use, which is the safe
side for a plan that pays for launches in advance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from autospec.cells import PromptType
from autospec.serving.dispatch import Limit, RouteRequest

__all__ = ["Demand", "PromptLengths", "Traffic"]

# A short break does not clear the counts, and the morning's work does not decide for the evening.
_HALF_LIFE_S: Final = 1200.0
# An unanswered request will have at least one token.
_LEAST_TOKENS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Count:
    """Decayed counts at one moment."""

    tokens: float
    requests: float
    at_s: float

    def at(self, now_s: float, half_life_s: float) -> _Count:
        """The counts at a later moment; a clock that steps back changes nothing."""
        now_s = max(now_s, self.at_s)
        left = 0.5 ** ((now_s - self.at_s) / half_life_s)
        return _Count(self.tokens * left, self.requests * left, now_s)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Decayed counts by model and prompt type. Immutable."""

    half_life_s: float = _HALF_LIFE_S
    counts: Mapping[tuple[str, PromptType], _Count] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not self.half_life_s > 0.0:
            raise ValueError("a half-life must be above 0")

    def arrived(self, model: str, prompt_type: PromptType, now_s: float) -> Traffic:
        """Add a request that is not answered yet."""
        return self._add(model, prompt_type, _LEAST_TOKENS, 1.0, now_s)

    def answered(self, model: str, prompt_type: PromptType, tokens: float, now_s: float) -> Traffic:
        """Add the tokens of a request that was counted by `arrived`."""
        return self._add(model, prompt_type, max(tokens - _LEAST_TOKENS, 0.0), 0.0, now_s)

    def tokens_per_s(self, model: str, now_s: float) -> dict[PromptType, float]:
        """Expected generated tokens per second of a model, by prompt type; without types that were never seen."""
        rate = math.log(2.0) / self.half_life_s
        return {kind: count.tokens * rate for kind, count in self._of(model, now_s).items()}

    def to_json(self, now_s: float) -> dict[str, Any]:
        """The ``traffic`` of the status document."""
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


# After a request without drafting, a server without it is kept this long, so that two clients with different headers do not
# make the proxy switch servers for each request.
_OFF_HELD_S: Final = 600.0
# Requests beyond a limit count in plans once they have come for this long, so that a burst starts no server. Two bursts with
# a pause of more than `_BEYOND_PAUSE_S` between them are two beginnings.
_BEYOND_STEADY_S: Final = 60.0
_BEYOND_PAUSE_S: Final = 600.0
# Assumed speed of requests whose tokens were not reported; only proportions between prompt types matter.
_USUAL_TPS: Final = 20.0


class Demand:
    """The models in use: requested, and not yet unloaded because of disuse."""

    def __init__(self) -> None:
        self._traffic = Traffic()
        self._arrived: list[tuple[RouteRequest, float]] = []  # not yet in `_traffic`
        self.beyond: dict[Limit, Traffic] = {}  # the part of `traffic` that is beyond a limit
        self.beyond_requests: dict[str, dict[Limit, int]] = {}  # by model, since the start
        self.requests = 0
        self.last_s: float | None = None
        self._latest = ""
        self._asked_s: dict[str, float] = {}
        self._off_asked_s: dict[str, float] = {}
        self._beyond_s: dict[str, tuple[float, float]] = {}  # model → first and last request beyond a limit

    def asked(self, model: str, now_s: float, *, drafting_off: bool) -> None:
        """Count a request."""
        self.requests += 1
        self.last_s = now_s
        self._latest = model
        self._asked_s[model] = now_s
        if drafting_off:
            self.needs_off(model, now_s)

    def needs_off(self, model: str, now_s: float) -> None:
        """Note that a request can be answered by a server without drafting only."""
        self._off_asked_s[model] = now_s

    def arrived(self, request: RouteRequest, now_s: float) -> None:
        """Add a request to the traffic before its answer, so that plans include it; its prompt need not be read yet."""
        self._arrived.append((request, now_s))

    @property
    def traffic(self) -> Traffic:
        """The traffic so far."""
        for request, at_s in self._arrived:
            if (prompt_type := request.facts.prompt_type) is not None:
                self._traffic = self._traffic.arrived(request.model, prompt_type, at_s)
        self._arrived.clear()
        return self._traffic

    def went_beyond(self, model: str, limit: Limit, now_s: float) -> None:
        """Count a request beyond a limit."""
        counts = self.beyond_requests.setdefault(model, {})
        counts[limit] = counts.get(limit, 0) + 1
        first_s, last_s = self._beyond_s.get(model, (now_s, now_s))
        began_again = now_s - last_s > _BEYOND_PAUSE_S and last_s - first_s < _BEYOND_STEADY_S
        self._beyond_s[model] = (now_s if began_again else first_s, now_s)

    def beyond_per_s(self, model: str, now_s: float) -> dict[tuple[PromptType, Limit], float]:
        """Expected tokens per second beyond each limit; nothing before such requests have come for a while."""
        first_s, last_s = self._beyond_s.get(model, (now_s, now_s))
        if last_s - first_s < _BEYOND_STEADY_S:
            return {}
        return {
            (kind, limit): tokens
            for limit, traffic in self.beyond.items()
            for kind, tokens in traffic.tokens_per_s(model, now_s).items()
        }

    def answered(
        self,
        model: str,
        prompt_type: PromptType | None,
        tokens: float | None,
        held_s: float,
        now_s: float,
        *,
        limit: Limit | None = None,
    ) -> None:
        """Add an answer; without reported `tokens` the time `held_s` on the server replaces them."""
        if model not in self._asked_s:
            return  # its file was removed meanwhile
        self._asked_s[model] = now_s
        if prompt_type is not None:
            generated = held_s * _USUAL_TPS if tokens is None else tokens
            self._traffic = self.traffic.answered(model, prompt_type, generated, now_s)
            if limit is not None:
                beyond = self.beyond.get(limit, Traffic())
                self.beyond[limit] = beyond.arrived(model, prompt_type, now_s).answered(
                    model, prompt_type, generated, now_s
                )

    @property
    def awake(self) -> tuple[str, ...]:
        """The models in use, in the order of their first request."""
        return tuple(self._asked_s)

    def latest(self) -> str:
        """The model of the last request, also if it was unloaded since; empty before the first request."""
        return self._latest

    def unused_s(self, model: str, now_s: float) -> float:
        """Time since the last request or answer of a model."""
        return now_s - self._asked_s[model]

    def wants_off(self, model: str, now_s: float) -> bool:
        """True if a recent request asked for no drafting."""
        asked_s = self._off_asked_s.get(model)
        return asked_s is not None and now_s - asked_s < _OFF_HELD_S

    def forget_off(self, model: str) -> None:
        """Keep no server for the requests without drafting: it does not start."""
        self._off_asked_s.pop(model, None)

    def sleep(self, model: str) -> None:
        """Remove a model that is no longer in use; what its traffic was like stays known."""
        self._asked_s.pop(model, None)
        self._off_asked_s.pop(model, None)


# English text and code have 3 to 4.5 bytes per token with current vocabularies.
_BYTES_PER_TOKEN: Final = 3.5
# The figure above counts as this many tokens of live prompts: short prompts are mostly template.
_ASSUMED_TOKENS: Final = 1000


class PromptLengths:
    """Estimates the tokens of a prompt from its bytes; learns each model's bytes per token from answered requests."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # model → bytes, tokens

    def estimate(self, model: str, request: RouteRequest) -> float:
        """Tokens of a request's prompt, cached or not."""
        text_bytes, tokens = self._of(model)
        return request.facts.text_bytes * tokens / text_bytes + request.facts.token_ids

    def learn(self, model: str, request: RouteRequest, prompt_tokens: int) -> None:
        """Take the number of tokens that a server reported for a whole prompt."""
        prompt = request.facts
        if prompt.text_bytes > 0 and prompt_tokens > prompt.token_ids:
            text_bytes, tokens = self._of(model)
            self._seen[model] = (
                text_bytes + prompt.text_bytes,
                tokens + prompt_tokens - prompt.token_ids,
            )

    def _of(self, model: str) -> tuple[float, float]:
        return self._seen.get(model, (_BYTES_PER_TOKEN * _ASSUMED_TOKENS, float(_ASSUMED_TOKENS)))
