"""Score a draft model through llama-cpp-python in a child process: a whole recorded answer in one evaluation.

`token_http.HttpTokens.propose` needs one request for each miss. Here the draft gets the recorded tokens at once
(*teacher forcing*) and its logits are read at each of them. Needs the extra ``llama-cpp``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Self

from autospec.backends.json_http import JsonClient
from autospec.backends.process import HOST, ServerProcess
from autospec.backends.server import ChildServer, start_child
from autospec.backends.token_http import TokenReader
from autospec.errors import BackendMissingError, install_line

__all__ = ["LlamaCppScorer"]

_CHILD = ("-m", "autospec.backends.llama_cpp.scorer_child")
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
            ready_timeout_s=_READY_TIMEOUT_S,
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
