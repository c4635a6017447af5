"""Score a draft model through llama-cpp-python in a child process: a whole recorded answer in one evaluation.

`token_http.HttpTokens.propose` needs one request for each miss. Here the draft gets the recorded tokens at once
(*teacher forcing*) and its logits are read at each of them. Needs the extra ``llama-cpp``.

The child is ``python -m autospec.backends.llama_cpp.scorer --model FILE --n-ctx N …``. It is a process of its own because a failed
assertion in llama.cpp ends the process, as does an instruction that this processor does not have (a package compiled for another
one).
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autospec.backends.openai_http import JsonClient
from autospec.backends.process import HOST, ServerProcess
from autospec.backends.protocol import LaunchSettings
from autospec.backends.server import ChildServer, start_child
from autospec.backends.token_http import CANDIDATES, TokenReader, reading_routes, serve
from autospec.errors import BackendMissingError, install_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LlamaCppScorer", "most_likely"]

_CHILD = ("-m", "autospec.backends.llama_cpp.scorer")
_NAME = "llama-cpp-python"
# A draft of some gigabytes from a slow disk.
_READY_TIMEOUT_S = 300.0
# A whole batch of the child, then single tokens: other kernels compute them.
_TRIED = 64


class LlamaCppScorer(ChildServer):
    """A draft model in a child process. Made by `launch`; use it as a context manager, or `stop` it."""

    def __init__(self, process: ServerProcess, port: int) -> None:
        super().__init__(process, port)
        self._client = JsonClient(self.base_url, _NAME, process.wait_ended, process.log_tail)
        self._reader = TokenReader(self._client, _NAME)
        self.score = self._reader.score
        self.propose = self._reader.propose

    @classmethod
    def launch(cls, model_path: str, *, n_ctx: int, state_dir: Path) -> LlamaCppScorer:
        """Load a GGUF and evaluate a few tokens: some builds load and then die at their first matrix multiplication.

        Raises:
            BackendMissingError: llama-cpp-python is not installed.
            LaunchError: It cannot load the model, or does not run here.
        """
        if importlib.util.find_spec("llama_cpp") is None:
            raise BackendMissingError(f"{_NAME} is not installed.", install_line("llama-cpp"))
        command = (sys.executable, *_CHILD, "--model", model_path, "--n-ctx", str(n_ctx))
        return start_child(
            cls,
            lambda port: (*command, "--host", HOST, "--port", str(port)),
            cls._try,
            settings=LaunchSettings(ready_timeout_s=_READY_TIMEOUT_S),
            state_dir=state_dir,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _try(self) -> None:
        with self._first_request():
            self.score([0], [0] * _TRIED)
            self.propose([0], 2)


# Logits of a vocabulary of 150 000 take 0.6 MB for each token of a batch.
_BATCH = 64
_SEQUENCE = 0


def most_likely(logits: npt.NDArray[np.float32]) -> tuple[int, float]:
    """The most likely token and its probability among the ten most likely; `logits` has shape (vocabulary,)."""
    import numpy as np  # noqa: PLC0415 - the proxy loads this module and needs no NumPy

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
        import numpy as np  # noqa: PLC0415

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
