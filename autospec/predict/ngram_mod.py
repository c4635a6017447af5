"""ngram-mod, as ``common/ngram-mod.cpp`` and its use in ``common/speculative.cpp`` of llama.cpp b11434 define it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from autospec.predict.pool import Pool
from autospec.predict.recording import Ids

__all__ = ["NgramMod"]

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


# Draftings with other limits look the same n-grams up.
@lru_cache(maxsize=1 << 17)
def _mod_hash(tokens: Ids) -> int:
    value = 0
    for token in tokens:
        value = (value * _MOD_FACTOR + token) & 0xFFFFFFFFFFFFFFFF
    return value % _MOD_ENTRIES
