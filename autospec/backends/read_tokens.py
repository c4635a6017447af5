"""What every child is asked that reads a model's token probabilities: a whole answer, or a continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autospec.backends.json_http import JsonClient
from autospec.backends.protocol import Proposal
from autospec.errors import RequestError

__all__ = ["READ_TIMEOUT_S", "TokenReader"]

# Reading an answer of some hundred tokens with a large model; a CPU takes seconds for a token.
READ_TIMEOUT_S = 600.0


class TokenReader:
    """A model that is read in token ids; the reading half of `autospec.predict.profile.Scorer`.

    Args:
        client: The child's API.
        name: What to call it in sentences.
    """

    def __init__(self, client: JsonClient, name: str) -> None:
        self._client = client
        self._name = name

    def score(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Proposal]:
        """What the model would say at each token of an answer, the answer's own tokens before it, in one evaluation.

        Args:
            prompt_ids: At least one token.
            answer_ids: The answer, as the main model gave it.

        Returns:
            One proposal for each token of the answer, in order.

        Raises:
            RequestError: It does not fit the context, or the child refuses.
            ServerDiedError: The child ended.
        """
        body = {"prompt_ids": list(prompt_ids), "answer_ids": list(answer_ids)}
        return self._proposals("/score", body) if answer_ids else []

    def propose(self, ids: Sequence[int], count: int) -> list[Proposal]:
        """Go on greedily after `ids` for at most `count` tokens, as `protocol.Tokens.propose`; stops after an end of text.

        Raises:
            RequestError, ServerDiedError: As `score`.
        """
        return self._proposals("/propose", {"ids": list(ids), "count": count})

    def ask(
        self, path: str, body: Mapping[str, Any], timeout_s: float = READ_TIMEOUT_S
    ) -> tuple[Mapping[str, Any], float]:
        """The decoded answer of a route, and its milliseconds.

        Raises:
            RequestError, ServerDiedError: As `score`.
        """
        answer, wall_ms = self._client.post(path, body, timeout_s)
        if not isinstance(answer, Mapping):
            raise RequestError(f"{self._name} answered {path} with something that is no object.")
        return answer, wall_ms

    def _proposals(self, path: str, body: Mapping[str, Any]) -> list[Proposal]:
        answer, _ = self.ask(path, body)
        try:
            return [Proposal(int(token), float(p)) for token, p in answer["proposals"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"What {self._name} proposed cannot be read: {error!r}.") from error
