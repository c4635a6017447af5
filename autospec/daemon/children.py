"""The daemon's children: the proxy, which is restarted after a crash, and a tune, which can be stopped within a second.

The proxy goes on serving if the daemon crashes; the next daemon finds it by its record. A daemon that ends on purpose stops
it; where a service is stopped whose daemon had crashed, `end_left_proxy` does.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from autospec.backends.process import ServerProcess, open_private_log
from autospec.daemon.work import Clock, WorkItem
from autospec.errors import BusyError
from autospec.files import replace_file
from autospec.formats import duration
from autospec.hardware.processes import ProcessRef
from autospec.service.control import daemon_listens
from autospec.service.managers import STOP_WITHIN_S

__all__ = ["ProxyChild", "TuneOutcome", "TuneProcess", "end_left_proxy", "proxy_command", "tune_command"]

# After this long a proxy counts as healthy: its next crash is the first of a new row.
_WELL_S = 60.0
_PAUSE_S, _PAUSE_AT_MOST_S = 1.0, 60.0
# More doublings change nothing, and after a thousand a float overflows.
_DOUBLINGS = 10
# Crashes of a row that are told; later ones would hide every other event.
_TOLD_CRASHES = 3
# A larger log becomes ``proxy.log.1``, so the two together hold at most twice this, and what was printed between two looks.
_LOG_BYTES = 8 * 1024 * 1024
# Wrong usage: a restart does not help until the configuration changes.
_USAGE_EXIT = 2
# After this only processes that hang in a system call are left.
_KILLED_WAIT_S = 5.0


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
        self._stop_by_s: float | None = None
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

    def ask_to_stop(self) -> None:
        """Let it finish its current answers and end; `stop` waits for that. A second signal would cut them."""
        if self._stop_by_s is None:
            self._stop_by_s = self._clock.monotonic() + STOP_WITHIN_S
            if (pid := self.pid) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it after it has finished its current answers, `STOP_WITHIN_S` after it was asked to at the latest."""
        self.ask_to_stop()
        assert self._stop_by_s is not None
        with suppress(psutil.Error):
            if (pid := self.pid) is not None:
                left_s = max(0.0, self._stop_by_s - self._clock.monotonic())
                _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=left_s)
                for left in alive:
                    left.kill()
                psutil.wait_procs(alive, timeout=_KILLED_WAIT_S)
        if self._child is not None:
            self._child.poll()
        with suppress(OSError):  # a record that stays names no living process
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
        return float(min(_PAUSE_AT_MOST_S, _PAUSE_S * 2.0 ** min(self.crashes - 1, _DOUBLINGS)))

    def _read_record(self) -> ProcessRef | None:
        try:
            ref = ProcessRef.from_json(json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return ref if ref.find() is not None else None


def end_left_proxy(state_dir: Path) -> int | None:
    """End the proxy that a crashed daemon left, where no daemon will come to take it over.

    Returns:
        Its process id; ``None`` if there is none, or if a daemon runs that keeps it.
    """
    if daemon_listens(state_dir):
        return None
    proxy = ProxyChild((), state_dir, Path(os.devnull), Clock())
    pid = proxy.pid
    proxy.stop()
    return pid


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


# On SIGTERM a tune stores its results in one short transaction. The rest of the second is for killing what is left
# and for the kernel to free the memory.
_PREEMPT_GRACE_S = 0.4


@dataclass(frozen=True, slots=True)
class TuneOutcome:
    """How a step ended; `busy` means that another autospec held the machine or the cell, `words` is the error."""

    ok: bool
    busy: bool = False
    words: str = ""


def tune_command(item: WorkItem, config: Path | None) -> tuple[str, ...]:
    """The command line of a step; `config` is the file given by ``--config``."""
    types = item.types or (item.prompt_type,)
    return (
        *(sys.executable, "-m", "autospec", "tune", "--json", "--quiet"),
        *("--model", item.model_path, *(word for kind in types for word in ("--prompt-type", str(kind)))),
        *("--backend", item.backend, "--budget", f"{item.cost_s:.0f}s"),
        *(("--again",) if item.again else ()),
        *(("--config", str(config)) if config is not None else ()),
    )


class TuneProcess:
    """A running step. Its guard ends it if the daemon dies. Raises OSError or LaunchError if it cannot start."""

    def __init__(self, item: WorkItem, state_dir: Path, command: Sequence[str]) -> None:
        self.item = item
        self._process = ServerProcess.start(command, state_dir)

    def outcome(self) -> TuneOutcome | None:
        """How it ended; ``None`` while it runs."""
        ended = self._process.poll()
        if ended is None:
            return None
        tail = self._process.log_tail(400)
        self._process.stop()
        if ended.code == 0:
            return TuneOutcome(ok=True)
        said = [line.removeprefix("autospec: ") for line in tail if line.startswith("autospec")]
        words = said[-1] if said else f"it {ended}"
        return TuneOutcome(ok=False, busy=ended.code == BusyError.exit_code, words=words)

    def preempt(self) -> None:
        """Stop it and free its memory within a second. The pair in progress is lost, the study is kept.

        The tune first gets SIGTERM, so that it can store its results. After the grace period it and its servers are killed,
        without the seconds that a server may take to end by itself.
        """
        for tune in self._children(recursive=False):
            with suppress(psutil.Error):
                tune.send_signal(signal.SIGTERM)
        self._process.wait_ended(_PREEMPT_GRACE_S)
        # The tune first: it must not record the end of its servers as a failure of the drafting.
        left = [*self._children(recursive=False), *self._children(recursive=True)]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_KILLED_WAIT_S)
        self._process.stop()

    def _children(self, *, recursive: bool) -> list[psutil.Process]:
        """Children of the guard: the tune itself, or with everything that it started."""
        found: list[psutil.Process] = []
        for pid in self._process.pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.ppid() == os.getpid():
                    found += process.children(recursive=recursive)
        return found
