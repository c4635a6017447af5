"""What a child answers that reads a model's token probabilities, whatever library computes them. Client: `read_tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autospec.backends.json_child import Route

__all__ = ["reading_routes"]

# (token, its probability among the ten likeliest), as `Proposal`.
Told = tuple[int, float]


def reading_routes(
    evaluate: Callable[[Sequence[int], int], Iterable[Told]], ends: Callable[[int], bool]
) -> dict[str, Route]:
    """``/score`` and ``/propose`` over one model.

    Args:
        evaluate: The most likely token after ``ids[first]`` and each later one of ``ids``.
        ends: Whether a token ends a text.
    """

    def score(asked: dict[str, Any]) -> dict[str, Any]:
        """What the model would say at each token of an answer, the answer's own tokens before it."""
        prompt, answer = asked["prompt_ids"], asked["answer_ids"]
        return {"proposals": list(evaluate([*prompt, *answer[:-1]], len(prompt) - 1))}

    def propose(asked: dict[str, Any]) -> dict[str, Any]:
        """A greedy continuation."""
        ids = list(asked["ids"])
        proposals: list[Told] = []
        while len(proposals) < asked["count"]:
            proposals += evaluate(ids, len(ids) - 1)
            ids.append(proposals[-1][0])
            if ends(ids[-1]):
                break
        return {"proposals": proposals}

    return {"/score": score, "/propose": propose}
