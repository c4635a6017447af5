"""What an answer stands between: the connection that it comes on, and the reader that it is handed to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Line", "Sink"]

# Takes a part of a body; false if the next reader in line lags behind.
Sink = Callable[[bytes], bool]


class Line(Protocol):
    """The connection that an answer comes on."""

    def pause(self) -> None:
        """Take nothing more from the server."""

    def resume(self) -> None:
        """Go on taking."""

    def give_back(self) -> None:
        """Whole answer, nothing open: for the next request."""

    def drop(self) -> None:
        """Close at once, whatever is still on its way."""
