"""The log of the daemon's proxy: private, and bounded."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from autospec.daemon import children
from autospec.daemon.children import ProxyChild
from autospec.daemon.work import Clock

WRITES = (sys.executable, "-u", "-c", "import time\nwhile True: print('x' * 99); time.sleep(0.005)")


@pytest.mark.process
def test_a_long_log_is_moved_while_the_proxy_writes_on(tmp_path: Path, monkeypatch):
    """Proxy review 26: it was appended to for ever; with `--log-prompts` it holds prompts, and everybody could read it."""
    monkeypatch.setattr(children, "_LOG_BYTES", 2000)
    log, older = tmp_path / "proxy.log", tmp_path / "proxy.log.1"
    proxy = ProxyChild(WRITES, tmp_path, log, Clock())
    umask = os.umask(0o022)
    try:
        proxy.keep()
        for _ in range(3):
            deadline = time.monotonic() + 20
            while log.stat().st_size <= 2000 and time.monotonic() < deadline:
                time.sleep(0.01)
            before = log.stat().st_size
            proxy.keep()
            assert older.stat().st_size >= before > 2000
            assert older.read_bytes().startswith(b"x" * 99)
            assert not log.read_bytes().startswith(b"\0")
        assert {path.stat().st_mode & 0o777 for path in (log, older)} == {0o600}
    finally:
        os.umask(umask)
        proxy.stop()
