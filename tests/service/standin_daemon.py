"""A daemon of a few lines: says that it is ready, feeds the watchdog, and has a proxy that ignores SIGTERM.

Worse than the real one in that it forgets to end its proxy.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from autospec.service.control import notifier_from

_PROXY = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    """``standin_daemon.py FOLDER``: a file ``broken`` there is a wrong setting."""
    folder = Path(sys.argv[1])
    if (folder / "broken").exists():
        sys.exit(2)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    proxy = subprocess.Popen([sys.executable, "-c", _PROXY], start_new_session=True)
    (folder / "proxy.pid").write_text(str(proxy.pid))
    notifier = notifier_from()
    notifier.ready()
    while not stop.wait((notifier.alive_every_s or 60) / 2):
        notifier.alive()
    notifier.stopping()


if __name__ == "__main__":
    main()
