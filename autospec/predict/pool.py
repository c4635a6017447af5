"""What a draft-free mode remembers between cycles, and between requests."""

from __future__ import annotations

from collections.abc import Sequence

from autospec.predict.recording import Ids

__all__ = ["Pool"]


class Pool:
    """One pool of one launch.

    It is given the whole recorded text and how much of it the server has computed: ``tokens[length]`` is the token that was
    sampled last, what stands behind it is not looked at.
    """

    __slots__ = ()

    def begin(self, tokens: Ids) -> None:
        """A request begins; `tokens` is its prompt. Most pools take no notice."""

    def draft(self, tokens: Ids, length: int) -> Sequence[int]:
        """Propose the tokens after ``tokens[length]``; `length` tokens have been computed."""
        raise NotImplementedError

    def accept(self, accepted: int) -> None:
        """How many tokens of the last, non-empty draft were taken. Most pools take no notice."""
