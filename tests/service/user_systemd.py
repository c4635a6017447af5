"""A real systemd user instance in namespaces of its own, so that a container without systemd has one to test on.

It needs root (for the namespaces and a control group), util-linux' `unshare`, and systemd's programs; nothing outside of the
namespaces sees it, and everything in them ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEMD = Path("/usr/lib/systemd/systemd")
_CGROUPS = Path("/sys/fs/cgroup")
# $1: the home folder; then control groups up to "--", then the program to run.
_SET_UP = """
set -e
home=$1; shift
while [ "$1" != -- ]; do mkdir "$1/inner"; echo $$ > "$1/inner/cgroup.procs"; shift; done
shift
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "/run/user/$UID"
export XDG_RUNTIME_DIR="/run/user/$UID" HOME="$home" XDG_CONFIG_HOME="$home/.config"
unset DBUS_SESSION_BUS_ADDRESS
"$SYSTEMD" --user >"$home/systemd.log" 2>&1 &
for _ in $(seq 100); do systemctl --user show --property=Version >/dev/null 2>&1 && break; sleep 0.1; done
"$@"
"""


def run_under_systemd(
    argv: Sequence[str], home: Path, *, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a program that has a systemd user instance; the test is skipped, with the reason, where that cannot be."""
    for program in ("unshare", "systemctl", "bash", "mount"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    if not SYSTEMD.is_file():
        pytest.skip("systemd is not installed")
    if os.geteuid() != 0:
        pytest.skip("namespaces for a systemd of its own need root")
    with _control_groups() as groups:
        return subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--mount-proc"),
                *("bash", "-c", _SET_UP, "bash", str(home), *map(str, groups), "--", *argv),
            ],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={
                **os.environ,
                "SYSTEMD": str(SYSTEMD),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )


@contextmanager
def _control_groups() -> Iterator[list[Path]]:
    """A control group for it in each hierarchy that systemd uses: one on version 2, two where both are mounted."""
    mounted = [_CGROUPS / name for name in ("systemd", "unified") if (_CGROUPS / name).is_dir()] or [_CGROUPS]
    groups = [root / f"autospec-test-{os.getpid()}" for root in mounted]
    try:
        for group in groups:
            group.mkdir()
            if not (group / "cgroup.procs").exists():
                pytest.skip(f"no control groups are mounted at {group.parent}")
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        yield groups
    finally:
        for group in groups:
            folders = [Path(folder) for folder, _, _ in os.walk(group, topdown=False)]
            for folder in folders:
                folder.rmdir()
