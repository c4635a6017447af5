"""The draft-free modes, simulated: they are functions of the tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autospec.drafting import Drafting, Mode
from autospec.predict.ngram_cache import NgramCache
from autospec.predict.ngram_map import NgramMap, NgramSimple
from autospec.predict.ngram_mod import NgramMod
from autospec.predict.pool import Pool
from autospec.predict.prompt_lookup import PromptLookup
from autospec.predict.recording import Recording
from autospec.predict.replay import Counts

__all__ = ["SIMULATED", "pool_of", "replay_tokens"]

SIMULATED = frozenset(
    {
        Mode.NGRAM_SIMPLE,
        Mode.NGRAM_MAP_K,
        Mode.NGRAM_MAP_K4V,
        Mode.NGRAM_MOD,
        Mode.NGRAM_CACHE,
        Mode.PROMPT_LOOKUP,
    }
)


def pool_of(drafting: Drafting) -> Pool:
    """A fresh pool, as a fresh launch has it.

    Raises:
        ValueError: The mode is not draft-free, or is not simulated.
    """
    d = drafting
    match d.mode:
        case Mode.NGRAM_SIMPLE:
            return NgramSimple(d.ngram_n or 1, d.ngram_m or 1)
        case Mode.NGRAM_MAP_K | Mode.NGRAM_MAP_K4V:
            return NgramMap(d.ngram_n or 1, d.ngram_m or 1, d.min_hits or 1, d.mode is Mode.NGRAM_MAP_K)
        case Mode.NGRAM_MOD:
            return NgramMod(d.ngram_n or 1, d.n_max or 1, d.n_min or 0)
        case Mode.NGRAM_CACHE:
            return NgramCache(d.n_max or 1)
        case Mode.PROMPT_LOOKUP:
            return PromptLookup(d.ngram_n or 1, d.n_max or 1)
        case _:
            raise ValueError(f"{d.mode} is not simulated")


def replay_tokens(pool: Pool, recording: Recording, *, uncut: bool = False) -> Counts:
    """One request on a pool, which remembers it: the counts of one drafting (D = 1).

    Args:
        pool: What it has seen so far.
        recording: The answer.
        uncut: True where the main model's cache cannot be cut; see `replay`.
    """
    tokens = (*recording.prompt_ids, *recording.answer_ids)
    begins, n = len(recording.prompt_ids), len(recording.answer_ids)
    pool.begin(recording.prompt_ids)
    lengths: list[int] = []
    taken: list[int] = []
    again: list[int] = []
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
        partly = uncut and accepted < len(draft)
        if draft:
            # The server tells a pool of the second pass alone, in which everything is accepted.
            pool.accept(accepted + partly)
        lengths.append(len(draft))
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
        np.zeros(1, dtype=np.int64),
        np.array([sum(lengths)]),
        np.array([sum(taken)]),
        by_position,
        again=np.array([len(again)]) if uncut else None,
    )
