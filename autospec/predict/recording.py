"""What prediction works on: the token ids of the main model's own answers, with the times that they took.

The text that is accepted is the main model's own, whatever drafts: from one recording of it every drafting's cycles
follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

__all__ = ["Ids", "Recording"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """One answer of the main model with drafting off.

    Attributes:
        prompt_id: The suite's id.
        prompt_ids: Token ids of the whole prompt, chat template and first token included.
        answer_ids: Token ids generated, in order; where the answer ended by itself, its last one ends it.
        max_tokens: Most tokens that the request allowed.
        ended: True if the answer ended by itself.
        prompt_ms: Time to process the prompt, by the server's clock.
        predicted_ms: Time to generate all but the first token, by the server's clock.
        wall_ms: The whole request, by our clock.
    """

    prompt_id: str
    prompt_ids: Ids
    answer_ids: Ids
    max_tokens: int
    ended: bool
    prompt_ms: float
    predicted_ms: float
    wall_ms: float

    @property
    def token_ms(self) -> float:
        """Milliseconds for each generated token after the first; the first comes with the prompt.

        Raises:
            ValueError: The answer has fewer than two tokens.
        """
        if len(self.answer_ids) < 2:
            raise ValueError(f"{self.prompt_id} has an answer of {len(self.answer_ids)} tokens")
        return self.predicted_ms / (len(self.answer_ids) - 1)

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {
            "prompt_id": self.prompt_id,
            "prompt_ids": list(self.prompt_ids),
            "answer_ids": list(self.answer_ids),
            "max_tokens": self.max_tokens,
            "ended": self.ended,
            "prompt_ms": self.prompt_ms,
            "predicted_ms": self.predicted_ms,
            "wall_ms": self.wall_ms,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; fields that a later version added are ignored.

        Raises:
            KeyError: A field is missing.
        """
        known = {f.name: data[f.name] for f in fields(cls)}
        return cls(**{**known, **{k: tuple(data[k]) for k in ("prompt_ids", "answer_ids")}})
