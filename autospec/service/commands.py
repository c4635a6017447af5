"""Runs the supervisors' programs. The only place of this room that starts anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final

from autospec.service.protocol import KILL_AFTER_S, Outcome

__all__ = ["run_command"]

# `systemctl stop` waits for the daemon's end, which the unit limits to the grace.
_TIMEOUT_S: Final = KILL_AFTER_S + 30.0
_MISSING: Final = 127
_GIVEN_UP: Final = 124


def run_command(argv: Sequence[str]) -> Outcome:
    """Run a program to its end and keep what it prints, in English. The codes of what cannot be run are the shell's."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
        )
    except subprocess.TimeoutExpired:
        return Outcome(_GIVEN_UP, err=f"{argv[0]} did not end within {_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Outcome(_MISSING, err=f"{argv[0]}: {error.strerror}")
    return Outcome(done.returncode, done.stdout, done.stderr)
