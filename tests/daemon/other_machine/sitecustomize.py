"""Python's own start-up hook: a machine that plays another one. Tests put this folder on PYTHONPATH.

Replaced is only what tells machines apart (chip and host), and the load of others: machines that share a processor in
a test would wait for each other. Everything that ``autospec`` starts inherits it.
"""

from __future__ import annotations

import os
import sys

CHIP = "AUTOSPEC_TEST_CHIP"
HOST = "AUTOSPEC_TEST_HOST"
# Servers and guards need nothing of it and should start at once.
PROGRAMS = {"autospec", "autospec.daemon.survey", "tests.daemon.quiet_daemon"}


def play(chip: str, host: str) -> None:
    """Be a machine with this chip and this name."""
    from dataclasses import replace

    import autospec.hardware
    from autospec.hardware import host as hosts
    from autospec.hardware import identity, state

    real = identity.identify()
    machine = replace(real, chip=chip, id=f"{chip}-{real.id}")
    autospec.hardware.identify = identity.identify = lambda: machine  # type: ignore[assignment]
    hosts.host_digest = lambda: host  # type: ignore[assignment]
    finish = state.StateWatch.finish
    state.StateWatch.finish = lambda self: replace(finish(self), other_load=0.0, steal=0.0)  # type: ignore[method-assign]


if os.environ.get(CHIP) and PROGRAMS & set(sys.orig_argv):
    play(os.environ[CHIP], os.environ.get(HOST, "host"))
