"""Python's own start-up hook: put this folder on PYTHONPATH, and every autospec below sees another machine.

``AUTOSPEC_TEST_CALM``: nobody else uses the processor. Tests share theirs with whatever runs beside them, and a tune
that waits for a neighbour would wait for the test that waits for it.

``AUTOSPEC_TEST_CHIP``, ``AUTOSPEC_TEST_HOST``: a machine with this chip and of this name, so that one machine can play
several.
"""

from __future__ import annotations

import os
import sys

CALM, CHIP, HOST = "AUTOSPEC_TEST_CALM", "AUTOSPEC_TEST_CHIP", "AUTOSPEC_TEST_HOST"
# Servers and guards need nothing of it and should start at once.
PROGRAMS = {"autospec", "autospec.daemon.work_finder", "tests.daemon.quiet_daemon"}


def be_calm() -> None:
    """Take the load of others for nothing wherever a measurement looks at it."""
    from dataclasses import replace

    from autospec.hardware import state

    finish = state.StateWatch.finish
    state.StateWatch.finish = lambda self: replace(finish(self), other_load=0.0, steal=0.0)  # type: ignore[method-assign]


def play(chip: str, host: str) -> None:
    """Be a machine with this chip and this name."""
    from dataclasses import replace

    import autospec.hardware
    from autospec.hardware import identity
    from autospec.hardware import identity as hosts

    real = identity.identify()
    machine = replace(real, chip=chip, id=f"{chip}-{real.id}")
    autospec.hardware.identify = identity.identify = lambda: machine  # type: ignore[assignment]
    hosts.host_digest = lambda: host  # type: ignore[assignment]


if PROGRAMS & set(sys.orig_argv):
    if os.environ.get(CALM):
        be_calm()
    if os.environ.get(CHIP):
        play(os.environ[CHIP], os.environ.get(HOST, "host"))
