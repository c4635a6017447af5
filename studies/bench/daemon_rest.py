"""The daemon's cost at rest: memory, wake-ups and processor time, measured from outside, one table.

    python studies/bench/daemon_rest.py [--window 300] [--with-work]

It starts its own daemon in a temporary home, waits until it rests, and measures it over the window. By default there is no
model and so no work. With --with-work there is work, but the config's hours do not allow it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from autospec.errors import NothingKnownError
from autospec.service.control import ask_status

# Start, survey, and the garbage of both.
_SETTLE_S = 20.0


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--window", type=float, default=300.0, help="seconds to look")
    parser.add_argument("--with-work", action="store_true", help="with models, outside of the allowed hours")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autospec-rest-") as folder:
        home = Path(folder)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOSPEC_", "NOTIFY_"))}
        env |= {"AUTOSPEC_HOME": str(home), "HOME": str(home)}
        if asked.with_work:
            _give_work(home)
        command = [sys.executable, "-m", "autospec", "daemon", "--no-proxy", "--quiet"]
        daemon = subprocess.Popen(command, env=env)
        try:
            _wait_for_rest(home / "state")
            return _measure(psutil.Process(daemon.pid), asked.window, home / "state")
        finally:
            daemon.terminate()
            daemon.wait(30)


def _give_work(home: Path) -> None:
    from tests.lab import Lab, lab_folder  # noqa: PLC0415 - not needed without --with-work

    (home / "models").mkdir()
    for name in ("smollm2", "tiny"):
        source = Lab(lab_folder()).path(name)
        (home / "models" / source.name).symlink_to(source)
    now = datetime.now().astimezone()
    hours = f"{now + timedelta(hours=3):%H:%M}-{now + timedelta(hours=4):%H:%M}"
    (home / "config.toml").write_text(f'model_dirs = ["models"]\ndaemon_hours = "{hours}"\n', "utf-8")


def _wait_for_rest(state_dir: Path) -> None:
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        try:
            if ask_status(state_dir)["state"] == "resting":
                time.sleep(_SETTLE_S)
                return
        except NothingKnownError:
            pass
        time.sleep(0.5)
    raise SystemExit("the daemon did not come to rest within two minutes")


def _measure(process: psutil.Process, window_s: float, state_dir: Path) -> int:
    status = ask_status(state_dir)
    first_switches, first_times, began = process.num_ctx_switches(), process.cpu_times(), time.monotonic()
    time.sleep(window_s)
    switches, times, took_s = process.num_ctx_switches(), process.cpu_times(), time.monotonic() - began
    memory = process.memory_full_info()
    cpu_s = max(0.0, times.user + times.system - first_times.user - first_times.system)
    waits = switches.voluntary - first_switches.voluntary
    print(
        f"\nThe daemon at rest over {took_s:.0f} s, because {status['why']}; Python {sys.version.split()[0]}.\n"
    )
    print("| figure | value |\n|---|---|")
    print(f"| resident memory | {memory.rss / 2**20:.1f} MiB |")
    print(f"| of its own (USS) | {memory.uss / 2**20:.1f} MiB |")
    print(f"| threads | {process.num_threads()} |")
    print(f"| wake-ups (voluntary context switches) | {waits} ({3600 * waits / took_s:.0f} an hour) |")
    print(f"| processor time | {cpu_s:.2f} s ({3600 * cpu_s / took_s:.1f} s an hour) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
