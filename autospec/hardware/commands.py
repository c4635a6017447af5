"""Small system programs, asked for one answer."""

from __future__ import annotations

import os

__all__ = ["output_of"]


def output_of(*command: str, timeout_s: float = 5.0) -> str:
    """What a program prints on stdout; empty if it is not here, fails or takes too long."""
    import subprocess  # noqa: PLC0415 - Linux mostly needs no program, and `recommend` should not wait for this

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")
