"""ngram-cache, as ``common/ngram-cache.cpp`` and its use in ``common/speculative.cpp`` of llama.cpp b11434 define it.

No static and no dynamic cache: the context's alone, which is what a server without lookup files has. The source keeps its
counts in ``std::unordered_map``; where two tokens were seen equally often, the one that comes first there is drafted, and
that is GNU libstdc++'s order here (on macOS, libc++ has another).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autospec.predict.pool import Pool
from autospec.predict.recording import Ids

__all__ = ["NgramCache"]

_NGRAM_MIN, _NGRAM_MAX = 1, 4  # LLAMA_NGRAM_MIN, LLAMA_NGRAM_MAX
_SHORTEST_INPUT = 2  # LLAMA_NGRAM_STATIC
_MIN_SAMPLE_SIZE = (2, 2, 1, 1)  # draft_min_sample_size_lax, by n-gram size
_MIN_PERCENT = (66, 50, 50, 50)  # draft_min_percent_lax
_BUCKETS = 13  # of a std::unordered_map that holds at most so many


@dataclass(slots=True)
class NgramCache(Pool):
    """Counts what followed every 1- to 4-gram, and drafts what mostly did.

    It is never emptied, and takes in tokens of a request only beyond the longest text it has seen: a second request is
    drafted from the first one's text.
    """

    n_max: int
    _seen: int = 0
    _followers: dict[Ids, dict[int, int]] = field(default_factory=dict)

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        text = tokens[: length + 1]
        if self._seen < len(text):
            self._update(text[self._seen :])
            self._seen = len(text)
        if len(text) < _SHORTEST_INPUT:
            return ()
        window = list(text[-_NGRAM_MAX:])
        drafted: list[int] = []
        while len(drafted) < self.n_max and (token := self._next(window)) is not None:
            drafted.append(token)
            window.append(token)
        return drafted

    def _update(self, new: Ids) -> None:
        # The source counts within what is new, so that no n-gram reaches back over its beginning.
        for size in range(_NGRAM_MIN, _NGRAM_MAX + 1):
            for i in range(size, len(new)):
                followers = self._followers.setdefault(new[i - size : i], {})
                if new[i] in followers:
                    followers[new[i]] += 1
                else:
                    self._followers[new[i - size : i]] = _inserted(followers, new[i])

    def _next(self, window: Sequence[int]) -> int | None:
        """The longest n-gram that was seen often and clearly enough says what follows."""
        for size in range(min(_NGRAM_MAX, len(window)), 0, -1):
            followers = self._followers.get(tuple(window[-size:]))
            if not followers:
                continue
            token = max(followers, key=lambda t: followers[t])
            total = sum(followers.values())
            if (
                total >= _MIN_SAMPLE_SIZE[size - 1]
                and 100 * followers[token] >= _MIN_PERCENT[size - 1] * total
            ):
                return token
        return None


def _inserted(followers: dict[int, int], token: int) -> dict[int, int]:
    """With a new token where std::unordered_map's iteration comes to it: first of its bucket, or first of all."""
    order = list(followers)
    at = next((k for k, t in enumerate(order) if t % _BUCKETS == token % _BUCKETS), 0)
    order.insert(at, token)
    return {t: followers.get(t, 1) for t in order}
