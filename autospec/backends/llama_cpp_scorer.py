"""Scoring drafts in this process, through llama-cpp-python: a whole recorded answer in one batched evaluation.

What `token_http.HttpTokens.propose` finds in one request for each miss, a *teacher-forced* pass finds at once: the draft
is given the recorded tokens, and its logits are read at each of them. Needs the extra ``autospec[llama-cpp]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from autospec.backends.protocol import Proposal
from autospec.errors import BackendMissingError, ModelFileError, RequestError

__all__ = ["LlamaCppScorer", "most_likely"]

# What llama.cpp compares with p-min is among ten tokens; see `Proposal`.
_CANDIDATES = 10
# Logits of a vocabulary of 150 000 take 0.6 MB for each token of a batch.
_BATCH = 64
_SEQUENCE = 0


def most_likely(logits: npt.NDArray[np.float32]) -> Proposal:
    """The most likely token and its probability among the ten most likely.

    Args:
        logits: Shape (vocabulary,).
    """
    count = min(_CANDIDATES, logits.size)
    best = np.argpartition(logits, -count)[-count:]
    token = int(best[np.argmax(logits[best])])
    weights = np.exp(logits[best].astype(np.float64) - float(logits[token]))
    return Proposal(token, float(1.0 / weights.sum()))


class LlamaCppScorer:
    """A draft model loaded into this process. Use as a context manager, or `close` it.

    Args:
        model_path: A GGUF.
        n_ctx: Most tokens of a prompt with its answer.
        n_threads: For batches and single tokens; ``None`` leaves it to the library.
        n_gpu_layers: -1 for all.

    Raises:
        BackendMissingError: llama-cpp-python is not installed.
        ModelFileError: The model cannot be loaded.
    """

    def __init__(
        self, model_path: str, *, n_ctx: int, n_threads: int | None = None, n_gpu_layers: int = 0
    ) -> None:
        try:
            import llama_cpp  # noqa: PLC0415 - an extra; loading it takes a second
        except ImportError as error:
            raise BackendMissingError(
                "llama-cpp-python is not installed.", "pip install 'autospec[llama-cpp]'"
            ) from error
        self._api: Any = llama_cpp
        try:
            self._llama: Any = llama_cpp.Llama(
                model_path,
                n_ctx=n_ctx,
                n_batch=_BATCH,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                n_gpu_layers=n_gpu_layers,
                verbose=False,
            )
        except ValueError as error:
            raise ModelFileError(f"{model_path} cannot be loaded: {error}.") from error
        self._n_ctx = int(self._llama.n_ctx())
        self._n_vocab = int(self._llama.n_vocab())
        self._batch: Any = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._ids: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
            self._batch = None
            self._llama.close()

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Proposal]:
        """What the draft would propose at each token of a recorded answer, the recorded text before it.

        Args:
            prompt_ids: At least one token.
            answer_ids: The answer, as the main model gave it.

        Returns:
            One proposal for each token of the answer, in order.

        Raises:
            RequestError: It does not fit the context, or llama.cpp refuses the batch.
        """
        if not answer_ids:
            return []
        ids = [*prompt_ids, *answer_ids[:-1]]
        return list(self._evaluate(ids, first=len(prompt_ids) - 1))

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """Go on greedily after `ids` for `count` tokens, as `protocol.Tokens.propose`; stops after an end of text.

        Raises:
            RequestError: It does not fit the context, or llama.cpp refuses the batch.
        """
        text = list(ids)
        proposals: list[Proposal] = []
        while len(proposals) < count:
            proposals += self._evaluate(text, first=len(text) - 1)
            text.append(proposals[-1].token)
            if self._ends(proposals[-1].token):
                break
        return proposals

    def _ends(self, token: int) -> bool:
        vocabulary = self._api.llama_model_get_vocab(self._llama.model)
        return bool(self._api.llama_vocab_is_eog(vocabulary, token))

    def _evaluate(self, ids: list[int], first: int) -> Iterator[Proposal]:
        """Proposals after `ids[first]` and each later token; what is computed already is not computed again."""
        if len(ids) > self._n_ctx:
            raise RequestError(
                f"{len(ids)} tokens do not fit the scorer's context of {self._n_ctx}.",
                "Give it a longer one, or score a shorter answer.",
            )
        done = self._keep(min(_common(self._ids, ids), first))
        for start in range(done, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            self._fill(part, start, first)
            status = self._api.llama_decode(self._llama.ctx, self._batch)
            if status:
                self._keep(0)
                raise RequestError(f"llama.cpp could not compute {len(part)} tokens: status {status}.")
            self._ids += part
            for i in range(max(0, first - start), len(part)):
                row = self._api.llama_get_logits_ith(self._llama.ctx, i)
                yield most_likely(np.ctypeslib.as_array(row, shape=(self._n_vocab,)))

    def _fill(self, part: list[int], start: int, first: int) -> None:
        batch = self._batch
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = _SEQUENCE
            batch.logits[i] = start + i >= first

    def _keep(self, count: int) -> int:
        """Forget all but the first `count` tokens; all, where a model's state cannot be cut. How many are left."""
        memory = self._api.llama_get_memory(self._llama.ctx)
        if not (count and self._api.llama_memory_seq_rm(memory, _SEQUENCE, count, -1)):
            self._api.llama_memory_clear(memory, True)
            count = 0
        del self._ids[count:]
        return count


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
