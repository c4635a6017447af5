"""Server-sent events pass whole: so that an error event can follow cleanly when the server dies in mid-event. Pure."""

from __future__ import annotations

__all__ = ["WholeEvents"]

# An event this long is passed on in parts: what is held back is memory.
_HELD_BYTES = 256 * 1024
_BLANK_LINES = (b"\n\n", b"\r\n\r\n")


class WholeEvents:
    """Holds back the beginning of an event until the rest is there. The bytes are not changed.

    Servers write an event at once, so that mostly nothing is held back at all.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, part: bytes) -> bytes:
        """Take what came, give what may pass."""
        if self._held:
            part = self._held + part
            self._held = b""
        if part.endswith(_BLANK_LINES):
            return part
        end = max(part.rfind(blank) + len(blank) if blank in part else 0 for blank in _BLANK_LINES)
        if len(part) - end > _HELD_BYTES:
            return part
        self._held = part[end:]
        return part[:end]

    def rest(self) -> bytes:
        """What is still held back when the stream has ended in good order."""
        held, self._held = self._held, b""
        return held
