"""One step: a tune of one cell in a child process, which can be stopped within a second."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autospec.backends.process import ServerProcess
from autospec.daemon.work import WorkItem
from autospec.errors import BusyError

__all__ = ["TuneOutcome", "TuneProcess", "tune_command"]

# On SIGTERM a tune stores its results in one short transaction. The rest of the second is for killing what is left
# and for the kernel to free the memory.
_PREEMPT_GRACE_S = 0.4
# After this only processes that hang in a system call are left.
_KILLED_WAIT_S = 5.0


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

    def preempt(self, grace_s: float = _PREEMPT_GRACE_S) -> None:
        """Stop it and free its memory within a second. The pair in progress is lost, the study is kept.

        The tune first gets SIGTERM, so that it can store its results. After the grace period it and its servers are killed,
        without the seconds that a server may take to end by itself.
        """
        for tune in self._children(recursive=False):
            with suppress(psutil.Error):
                tune.send_signal(signal.SIGTERM)
        self._process.wait_ended(grace_s)
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
