"""The proxy as a child: started, and restarted after a crash.

The proxy goes on serving if the daemon crashes; the next daemon finds it by its record. Only a daemon that ends on purpose
stops it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from autospec.backends.process import open_private_log
from autospec.backends.records import ProcessRef
from autospec.daemon.work import Clock
from autospec.files import replace_file
from autospec.formats import duration
from autospec.service.definition import STOP_WITHIN_S

__all__ = ["ProxyChild", "proxy_command"]

# After this long a proxy counts as healthy: its next crash is the first of a new row.
_WELL_S = 60.0
_PAUSE_S, _PAUSE_AT_MOST_S = 1.0, 60.0
# Crashes of a row that are told; later ones would hide every other event.
_TOLD_CRASHES = 3
# A larger log becomes ``proxy.log.1``, so the two together hold at most twice this, and what was printed between two looks.
_LOG_BYTES = 8 * 1024 * 1024
# Wrong usage: a restart does not help until the configuration changes.
_USAGE_EXIT = 2


def proxy_command(config: Path | None) -> tuple[str, ...]:
    """The command line of the proxy; `config` is the file given by ``--config``."""
    return (
        *(sys.executable, "-m", "autospec", "proxy"),
        *(("--config", str(config)) if config is not None else ()),
    )


class ProxyChild:
    """Keeps one proxy running.

    Args:
        command: Its command line.
        state_dir: The folder of its record.
        log: Its output is appended to this file, which is kept short.
        clock: For pauses between restarts.

    Attributes:
        crashes: How often in a row it ended by itself.
        last_end: How it last ended, in words.
    """

    def __init__(self, command: Sequence[str], state_dir: Path, log: Path, clock: Clock) -> None:
        self.crashes = 0
        self.last_end = ""
        self._news = ""
        self._command = tuple(command)
        self._record = state_dir / "daemon-proxy.json"
        self._log = log
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._adopted: ProcessRef | None = self._read_record()
        if self._adopted is not None:
            self._news = f"The proxy that an earlier daemon started goes on (process {self._adopted.pid})."
        self._started_s = clock.monotonic()
        self._next_s = self._started_s

    @property
    def pid(self) -> int | None:
        """Process id of the running proxy; ``None`` if none runs."""
        if self._child is not None:
            return self._child.pid if self._child.poll() is None else None
        return self._adopted.pid if self._adopted is not None and self._adopted.find() else None

    def keep(self) -> float | None:
        """Start it if it does not run and its pause is over; returns the rest of the pause in seconds, ``None`` if none."""
        self._bound_log()
        if self.pid is not None:
            return None
        if self._child is not None or self._adopted is not None:
            self._note_end()
        wait_s = self._next_s - self._clock.monotonic()
        if wait_s > 0:
            return wait_s
        self._start()
        return None

    def news(self) -> str:
        """One sentence if something happened to it since the last call, else empty."""
        said, self._news = self._news, ""
        return said

    def stop(self) -> None:
        """End it after it has finished its current answers."""
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                _, alive = psutil.wait_procs([process], timeout=STOP_WITHIN_S)
                for left in alive:
                    left.kill()
        if self._child is not None:
            self._child.wait()
        self._record.unlink(missing_ok=True)

    def _bound_log(self) -> None:
        """Move a long log's content to ``….1``. The proxy keeps the file open, so the file is emptied and not renamed."""
        with suppress(OSError):
            if self._log.stat().st_size > _LOG_BYTES:
                older = self._log.with_name(f"{self._log.name}.1")
                with open_private_log(older) as copy, self._log.open("rb") as log:
                    copy.truncate(0)
                    shutil.copyfileobj(log, copy)
                os.truncate(self._log, 0)

    def _start(self) -> None:
        with suppress(OSError):
            self._log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_private_log(self._log) as output:
                self._child = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C and the end of the daemon's group must not end it
                )
        except OSError as error:
            self.crashes += 1
            self.last_end = f"it could not be started: {error.strerror or error}"
            self._news = f"The proxy could not be started: {error.strerror or error}."
            self._next_s = self._clock.monotonic() + self._pause_s()
            return
        self._started_s = self._clock.monotonic()
        with suppress(OSError):  # then a crash of the daemon costs the proxy its restart, and no more
            replace_file(self._record, json.dumps(asdict(ProcessRef.of(self._child.pid))), durable=False)

    def _note_end(self) -> None:
        code = self._child.returncode if self._child is not None else None
        lived_s = self._clock.monotonic() - self._started_s
        self.crashes = 1 if lived_s > _WELL_S else self.crashes + 1
        self.last_end = _how(code)
        if self.crashes <= _TOLD_CRASHES:
            how = self.last_end.removeprefix("it ")
            self._news = f"The proxy {how} after {duration(lived_s)}; it will be started again."
        self._next_s = self._clock.monotonic() + (
            _PAUSE_AT_MOST_S if code == _USAGE_EXIT else self._pause_s()
        )
        self._child = self._adopted = None

    def _pause_s(self) -> float:
        return float(min(_PAUSE_AT_MOST_S, _PAUSE_S * 2.0 ** (self.crashes - 1)))

    def _read_record(self) -> ProcessRef | None:
        try:
            ref = ProcessRef.from_json(json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return ref if ref.find() is not None else None


def _how(code: int | None) -> str:
    """How a process ended, whose exit code is ``None`` if it was not our child."""
    if code is None:
        return "it ended"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"it was ended by signal {-code}"
