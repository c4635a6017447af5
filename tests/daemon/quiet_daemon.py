"""`autospec daemon` as it is, on a machine that is taken to be idle: tests share theirs with whatever runs beside them.

``python -m tests.daemon.quiet_daemon [OPTIONS OF autospec daemon]``: only the readings of other programs' load and of
somebody's typing are replaced, here and in the tunes that it starts; and tests may set the clock, and say how many cores other
programs use.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autospec.cli import cli
from autospec.daemon.policy import Signals
from autospec.daemon.probes import ClientActivity, Probes
from autospec.daemon.work import Clock
from tests.daemon.hooked import calm

_read = Probes.read


def _quiet(
    self: Probes, traffic: ClientActivity, spent_today_s: float, *, measuring: bool = False
) -> Signals:
    signals = _read(self, traffic, spent_today_s, measuring=measuring)
    # A file in the home says how busy the others are.
    load = 0.0
    with suppress(OSError, ValueError):
        load = float(Path(os.environ["AUTOSPEC_HOME"], "others-use").read_text("ascii"))
    return replace(signals, other_load=load, user_idle_s=None)


_wall = Clock.wall


def _set(self: Clock) -> float:
    """The time as a test has set it: a file in the home holds by how many seconds it was moved."""
    moved = Path(os.environ["AUTOSPEC_HOME"], "clock-moved-by")
    return _wall(self) + (float(moved.read_text("ascii")) if moved.exists() else 0.0)


Clock.wall = _set  # type: ignore[method-assign]
Probes.read = _quiet  # type: ignore[method-assign]

if __name__ == "__main__":
    os.environ |= calm(os.environ)
    cli.main(["daemon", *sys.argv[1:]], prog_name="autospec")
