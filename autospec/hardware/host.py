"""Which very machine this is, as opposed to which kind (`identify`): it tells a changed machine from another one."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import uuid
from pathlib import Path

from autospec.hardware.commands import output_of

__all__ = ["host_digest", "parse_platform_uuid"]

# machine-id(5) asks that the id itself is never shown: only a hash of it, made with a name of one's own, is.
_SALT = b"autospec host"


@functools.cache
def host_digest() -> str:
    """Twelve hex digits that stay when memory, system or disk of this machine change.

    Linux: /etc/machine-id. macOS: IOPlatformUUID. Elsewhere, and where neither is there: the network card's address.
    """
    found = (
        parse_platform_uuid(output_of("ioreg", "-rd1", "-c", "IOPlatformExpertDevice"))
        if sys.platform == "darwin"
        else _machine_id()
    )
    return hashlib.sha256(_SALT + (found or f"{uuid.getnode():012x}").encode()).hexdigest()[:12]


def parse_platform_uuid(text: str) -> str:
    """The UUID in what ``ioreg -rd1 -c IOPlatformExpertDevice`` prints; empty where it has none."""
    found = re.search(r'"IOPlatformUUID" = "([0-9A-F-]+)"', text)
    return found[1] if found else ""


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            if text := Path(path).read_text("ascii").strip():
                return text
        except (OSError, UnicodeDecodeError):
            continue
    return ""
