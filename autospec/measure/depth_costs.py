"""What context costs: a token takes longer the more tokens stand before it.

Every pass of a model reads the keys and values of all tokens before it. A measured answer is short, and the answer that users
ask for ends further from the prompt's beginning, where each pass takes longer. A pass that verifies proposals reads them for
each of its tokens, and a draft reads its own. So a longer answer changes the ratio of drafting to off, and both are corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

__all__ = ["DepthCosts", "DepthRise", "rise_of"]


@dataclass(frozen=True, slots=True)
class DepthRise:
    """Milliseconds that each token of context adds.

    Attributes:
        pass_ms: To a pass over one token.
        token_ms: To the same pass, for each further token in its batch.
    """

    pass_ms: float
    token_ms: float

    def with_draft(self, draft: DepthRise, *, verifies: bool) -> DepthRise:
        """Return what a drafting cycle adds: `token_ms` is for each proposed token, its draft step included.

        Args:
            draft: The draft model's own rise.
            verifies: True if the draft computes the verified tokens too, as in llama.cpp.
        """
        again = draft if verifies else DepthRise(0.0, 0.0)
        return DepthRise(self.pass_ms + again.pass_ms, self.token_ms + again.token_ms + draft.pass_ms)

    def to_json(self) -> dict[str, float]:
        """For the store."""
        return {"pass_ms": self.pass_ms, "token_ms": self.token_ms}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(float(data["pass_ms"]), float(data["token_ms"]))


@dataclass(frozen=True, slots=True)
class DepthCosts:
    """What context adds to the passes of one main model, alone and with each draft.

    Attributes:
        plain_ms: Milliseconds of one token without drafting at the time when this was timed. Times at other moments are
            in proportion.
        reach_tokens: The longest context that was timed. Beyond it nothing is added.
        rises: Path of a draft → rise of its cycles; the empty path for off and the draft-free modes.
    """

    plain_ms: float
    reach_tokens: int
    rises: Mapping[str, DepthRise]

    def moved(self, draft: str | None, *, from_tokens: float, to_tokens: float, plain_ms: float) -> DepthRise:
        """Return what moving passes to another context adds to each pass, and to each proposal in it.

        Args:
            draft: Path of the draft model, if one proposes.
            from_tokens: Mean context in which the passes were measured.
            to_tokens: Mean context in which they are wanted.
            plain_ms: Milliseconds of one token without drafting, measured beside them.
        """
        rise = self.rises.get(draft or "", self.rises[""])
        tokens = min(to_tokens, max(from_tokens, float(self.reach_tokens))) - from_tokens
        factor = tokens * (plain_ms / self.plain_ms if self.plain_ms > 0.0 else 1.0)
        return DepthRise(factor * rise.pass_ms, factor * rise.token_ms)

    def to_json(self) -> dict[str, Any]:
        """The form in the evidence."""
        return {
            "plain_ms": self.plain_ms,
            "reach_tokens": self.reach_tokens,
            "rises": {path: rise.to_json() for path, rise in self.rises.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        rises = {str(path): DepthRise.from_json(rise) for path, rise in data["rises"].items()}
        return cls(float(data["plain_ms"]), int(data["reach_tokens"]), rises)


def rise_of(near_ms: Mapping[int, float], far_ms: Mapping[int, float], more_tokens: int) -> DepthRise:
    """Return the rise between two contexts, a line through the batches by least squares of relative errors.

    Args:
        near_ms: Tokens in a batch → milliseconds behind the shorter context.
        far_ms: The same behind the longer one; at least one size in common.
        more_tokens: By how many tokens it is longer.

    Returns:
        The rise; no part of it is below 0, because a longer context cannot make a pass faster.
    """
    sizes = sorted(near_ms.keys() & far_ms.keys())
    added = np.array([(far_ms[s] - near_ms[s]) / more_tokens for s in sizes])
    weights = np.array([1.0 / near_ms[s] for s in sizes])
    further = np.array(sizes, dtype=np.float64) - 1.0
    flat = float(np.average(added, weights=weights**2))
    if len(sizes) < 2:
        return DepthRise(max(0.0, flat), 0.0)
    token_ms, pass_ms = np.polyfit(further, added, 1, w=weights)
    if token_ms < 0.0:
        return DepthRise(max(0.0, flat), 0.0)
    if pass_ms < 0.0:
        # A line through the origin.
        slope = float(np.sum(weights**2 * further * added) / np.sum(weights**2 * further**2))
        return DepthRise(0.0, max(0.0, slope))
    return DepthRise(float(pass_ms), float(token_ms))
