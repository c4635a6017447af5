"""An MLX model, and its draft, in a child process without `mlx_lm.server`.

It gives two things that the server does not: token ids, for prediction (`MlxTokens`), and the speeds that
`mlx_lm.stream_generate` reports, for `autospec bench` (`MlxInProcess.complete`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autospec.backends.openai_http import JsonClient
from autospec.backends.process import ServerProcess
from autospec.backends.protocol import Capabilities, Completion, Request, TokenAnswer
from autospec.backends.server import LaunchedServer, canary
from autospec.backends.token_http import TokenReader
from autospec.drafting import Drafting
from autospec.errors import RequestError, SpeculationInactiveError

__all__ = ["CANARY_TOKENS", "CHILD", "MlxInProcess"]

CHILD = ("-m", "autospec.backends.mlx.in_process_child")
_NAME = "mlx_lm"
# Two cycles of a draft that proposes two tokens; a CPU takes a second for each token.
CANARY_TOKENS = 6


class MlxTokens(TokenReader):
    """See `autospec.backends.protocol.Tokens`; also a `Scorer`, since it reads a whole answer in one evaluation."""

    def __init__(self, client: JsonClient) -> None:
        super().__init__(client, _NAME)

    def encode(self, request: Request) -> tuple[int, ...]:
        """The token ids of a chat request's prompt, as mlx_lm.server computes it."""
        return _ids(self.ask("/encode", _chat(request))[0])

    def generate(self, ids: Sequence[int], request: Request) -> TokenAnswer:
        """Answer the prompt `ids` with the sampling of `request`, without the prompt cache."""
        answer, wall_ms = self.ask("/generate", {"ids": list(ids), **_sampling(request)}, request.timeout_s)
        prompt_ms, predicted_ms = _times(answer)
        return TokenAnswer(
            ids=_ids(answer),
            ended=bool(answer.get("ended")),
            prompt_tokens=int(answer.get("prompt_tokens", 0)),
            prompt_ms=prompt_ms,
            predicted_ms=predicted_ms,
            wall_ms=wall_ms,
        )

    def batch_ms(self, ids: Sequence[int], extra: Sequence[int]) -> float:
        """Milliseconds to compute `extra` as one batch after `ids`, by the child's clock."""
        answer, _ = self.ask("/batch", {"ids": list(ids), "extra": list(extra)})
        return _number(answer, "ms")


class MlxInProcess(LaunchedServer):
    """One model, with or without a draft, in a child process; `command` generates the same in a terminal."""

    def __init__(
        self, process: ServerProcess, drafting: Drafting, port: int, *, command: tuple[str, ...]
    ) -> None:
        super().__init__(process, drafting, port)
        self.command = command
        self._client = JsonClient(self.base_url, _NAME, process.wait_ended, process.log_tail)
        self.tokens = MlxTokens(self._client)

    def complete(self, request: Request) -> Completion:
        """Ask `mlx_lm.stream_generate`, and take the times from its `prompt_tps` and `generation_tps`.

        Its clock of generation starts at the first token and counts that token, so `Completion.decode_tps` equals its
        ``generation_tps`` exactly.
        """
        body = _chat(request) | _sampling(request)
        if not self.drafting.is_off:
            body["num_draft_tokens"] = self.drafting.n_max
        answer, wall_ms = self._client.post("/generate", body, request.timeout_s)
        prompt_ms, predicted_ms = _times(answer)
        return Completion(
            text=str(answer.get("text", "")),
            prompt_tokens=int(answer.get("prompt_tokens", 0)),
            predicted_tokens=len(_ids(answer)),
            prompt_ms=prompt_ms,
            predicted_ms=predicted_ms,
            wall_ms=wall_ms,
            drafted=int(answer.get("drafted", 0)),
            accepted=int(answer.get("accepted", 0)),
            finish_reason="stop" if answer.get("ended") else "length",
        )

    def verify(self, abilities: Capabilities) -> None:
        """Check that the draft drafts; see `LaunchedServer`."""
        with self._first_request():
            done = self.complete(replace(canary(self.drafting), max_tokens=CANARY_TOKENS))
        if (not done.drafted) is not self.drafting.is_off:
            raise SpeculationInactiveError(
                f"{abilities.build.version} does not draft with {self.drafting.label} as asked.",
                "`autospec drafts --model NAME` lists the drafts that fit.",
            )


def _chat(request: Request) -> dict[str, Any]:
    return {"messages": list(request.messages)} | ({"tools": list(request.tools)} if request.tools else {})


def _sampling(request: Request) -> dict[str, Any]:
    return {"max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed}


def _times(answer: Any) -> tuple[float, float]:
    """Milliseconds for the prompt with the first token, and from there to the end."""
    prompt_s = _number(answer, "prompt_tokens") / _number(answer, "prompt_tps")
    return 1000.0 * prompt_s, 1000.0 * len(_ids(answer)) / _number(answer, "generation_tps")


def _ids(answer: Any) -> tuple[int, ...]:
    ids = answer.get("ids") if isinstance(answer, Mapping) else None
    if not isinstance(ids, list) or not ids:
        raise RequestError(f"{_NAME} returned no tokens.", "Ask another prompt.")
    return tuple(int(i) for i in ids)


def _number(answer: Any, key: str) -> float:
    value = answer.get(key) if isinstance(answer, Mapping) else None
    if not isinstance(value, int | float) or value <= 0:
        raise RequestError(f"{_NAME} reported no {key}.", "This mlx-lm cannot be used in process.")
    return float(value)
