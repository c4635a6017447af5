"""prompt-lookup, as llama-cpp-python 0.3.36 defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autospec.predict.pool import Pool
from autospec.predict.recording import Ids

__all__ = ["PromptLookup"]


@dataclass(slots=True)
class PromptLookup(Pool):
    """llama-cpp-python's ``LlamaPromptLookupDecoding``: as `NgramSimple`, but the earliest match of the longest n-gram.

    Source: llama_cpp/llama_speculative.py of 0.3.36, ``find_candidate_pred_tokens``: n-gram sizes from the largest
    down to one, the first window that matches and is followed by anything.
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
