"""Run the user's hook (setting ``on_change``) with what changed on its stdin.

It is run as it is written, without a shell, in a session of its own, and never waited for beyond its time: a hook that hangs
is ended with all that it started. What it says is kept in parts for the log; how it ends is reported and nothing is raised,
because a broken hook must not stop the daemon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

__all__ = ["HOOK_TIMEOUT_S", "HookOutcome", "run_hook"]

# Enough to restart a server or send a message; what takes longer belongs into the background (`… &` in a script).
HOOK_TIMEOUT_S: Final = 30.0
_TAIL_BYTES: Final = 4096
# They are the daemon's: a hook that had them could speak to systemd in its name.
_NOT_PASSED_ON: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class HookOutcome:
    """How a hook ended.

    Attributes:
        ok: True if it ended with 0.
        sentence: What to log.
        said: The end of what it printed.
        seconds: How long it took.
    """

    ok: bool
    sentence: str
    said: str = ""
    seconds: float = 0.0


def run_hook(
    command: Sequence[str],
    document: Mapping[str, Any],
    *,
    timeout_s: float = HOOK_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
) -> HookOutcome:
    """Run it to its end. Blocking: an event loop calls it in a thread.

    Args:
        command: The words of ``on_change``; at least one.
        document: `autospec.report.changes.changes_document`.
        timeout_s: After so long it is ended.
        environ: Its environment; the process's own by default.
    """
    environ = os.environ if environ is None else environ
    began = time.monotonic()
    # A file and not a pipe: what a hook leaves running in the background would hold a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            hook = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: value for name, value in environ.items() if name not in _NOT_PASSED_ON},
            )
        except OSError as error:
            return HookOutcome(ok=False, sentence=f"The hook {command[0]} cannot be run: {error.strerror}.")
        with hook:
            try:
                hook.communicate(json.dumps(document, allow_nan=False).encode(), timeout=timeout_s)
                how = _how(hook.returncode)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(hook.pid, signal.SIGKILL)
                hook.wait()
                how = f"was ended after {timeout_s:g} s"
        seconds = time.monotonic() - began
        return HookOutcome(
            ok=hook.returncode == 0,
            sentence=f"The hook {command[0]} {how}.",
            said=_tail(output),
            seconds=seconds,
        )


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"


def _tail(output: BinaryIO) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    return output.read().decode("utf-8", "replace").strip()
