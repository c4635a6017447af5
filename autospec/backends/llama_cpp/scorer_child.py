"""A GGUF read by llama-cpp-python: ``python -m autospec.backends.llama_cpp.scorer_child --model FILE --n-ctx N …``.

It is a process of its own because a failed assertion in llama.cpp ends the process, as does an instruction that this
processor does not have (a package compiled for another one). `scorer` is the client.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autospec.backends.token_http import CANDIDATES, reading_routes, serve

__all__ = ["main", "most_likely"]

# Logits of a vocabulary of 150 000 take 0.6 MB for each token of a batch.
_BATCH = 64
_SEQUENCE = 0


def most_likely(logits: npt.NDArray[np.float32]) -> tuple[int, float]:
    """The most likely token and its probability among the ten most likely; `logits` has shape (vocabulary,)."""
    count = min(CANDIDATES, logits.size)
    best = np.argpartition(logits, -count)[-count:]
    token = int(best[np.argmax(logits[best])])
    weights = np.exp(logits[best].astype(np.float64) - float(logits[token]))
    return token, float(1.0 / weights.sum())


class LogitsReader:
    """Reads token probabilities of one model, and keeps the cache of the last text.

    `api` is the module ``llama_cpp``; `llama` is its ``Llama``, with batches of `_BATCH` tokens.
    """

    def __init__(self, api: Any, llama: Any) -> None:
        self._api = api
        self._llama = llama
        self._n_ctx = int(self._llama.n_ctx())
        self._n_vocab = int(self._llama.n_vocab())
        self._batch: Any = api.llama_batch_init(_BATCH, 0, 1)
        self._ids: list[int] = []

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        vocabulary = self._api.llama_model_get_vocab(self._llama.model)
        return bool(self._api.llama_vocab_is_eog(vocabulary, token))

    def evaluate(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, float]]:
        """The most likely token after `ids[first]` and each later one, with its probability among the ten most likely.

        Raises:
            ValueError: It does not fit the context.
            RuntimeError: llama.cpp refuses the batch.
        """
        if len(ids) > self._n_ctx:
            raise ValueError(f"{len(ids)} tokens do not fit the context of {self._n_ctx}")
        done = self._keep(min(_common(self._ids, ids), first))
        for start in range(done, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            self._fill(part, start, first)
            status = self._api.llama_decode(self._llama.ctx, self._batch)
            if status:
                self._keep(0)
                raise RuntimeError(f"llama.cpp could not compute {len(part)} tokens: status {status}")
            self._ids += part
            for i in range(max(0, first - start), len(part)):
                row = self._api.llama_get_logits_ith(self._llama.ctx, i)
                yield most_likely(np.ctypeslib.as_array(row, shape=(self._n_vocab,)))

    def _fill(self, part: Sequence[int], start: int, first: int) -> None:
        batch = self._batch
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = _SEQUENCE
            batch.logits[i] = start + i >= first

    def _keep(self, count: int) -> int:
        """Forget all but the first `count` tokens, or all if the model's state cannot be cut; how many are left."""
        memory = self._api.llama_get_memory(self._llama.ctx)
        if not (count and self._api.llama_memory_seq_rm(memory, _SEQUENCE, count, -1)):
            self._api.llama_memory_clear(memory, True)
            count = 0
        del self._ids[count:]
        return count


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main(arguments: list[str]) -> int:
    """Load, and answer until killed."""
    options = _parser().parse_args(arguments)
    import llama_cpp  # noqa: PLC0415 - this process exists so that this import may fail without harm

    try:
        llama = llama_cpp.Llama(
            options.model, n_ctx=options.n_ctx, n_batch=_BATCH, n_gpu_layers=_gpu_layers(), verbose=False
        )
    except ValueError:
        # In llama.cpp's words, which `failures.classify` knows.
        print(f"failed to load model, '{options.model}'", file=sys.stderr)  # noqa: T201 - the log
        return 1
    reader = LogitsReader(llama_cpp, llama)
    serve(options.host, options.port, reading_routes(reader.evaluate, reader.ends))
    return 0


def _gpu_layers() -> int:
    """All on a Mac's GPU, which shares the memory; else none: the servers that are measured need the GPU's memory."""
    return -1 if sys.platform == "darwin" and platform.machine() == "arm64" else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--n-ctx", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
