"""Runs `autospec.daemon.survey` as a child and watches the files whose change calls for another one."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["FileWatch", "SurveyRun"]


class SurveyRun:
    """One survey under way: never waits, the loop's selector says when it has spoken.

    Args:
        asked: What it reads: ``found`` and ``efforts``.
        config: The file of ``--config``.
        selector: The loop's.

    Raises:
        OSError: No process can be started.
    """

    def __init__(
        self, asked: Mapping[str, Any], config: Path | None, selector: selectors.BaseSelector
    ) -> None:
        command = [sys.executable, "-m", "autospec.daemon.survey"]
        if config is not None:
            command += ["--config", str(config)]
        self._selector = selector
        self._answer = b""
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        # A pipe holds 64 KiB and the child reads at once: a thousand cells' efforts are no more than twice that.
        with suppress(OSError):
            self._child.stdin.write(json.dumps(asked).encode())
            self._child.stdin.close()
        self._out = self._child.stdout
        os.set_blocking(self._out.fileno(), False)
        self.result: dict[str, Any] | None = None
        selector.register(self._out, selectors.EVENT_READ, self._read)

    def stop(self) -> None:
        """End it; its result is lost."""
        if self.result is None:
            self._child.kill()
            self._finish()

    def _read(self) -> None:
        part = self._out.read(65536)
        if part is None:
            return
        self._answer += part
        if not part:
            self._finish()

    def _finish(self) -> None:
        with suppress(KeyError):
            self._selector.unregister(self._out)
        self._out.close()
        code = self._child.wait()
        try:
            self.result = json.loads(self._answer)
        except ValueError:
            self.result = {"error": f"The survey ended with {code} and said nothing."}


class FileWatch:
    """Says whether any of some files and folders changed: by number, size and time of change, one stat(2) each."""

    def __init__(self) -> None:
        self._paths: tuple[str, ...] = ()
        self._seen: dict[str, tuple[int, ...]] = {}

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these instead, from now on."""
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> list[str]:
        """Those that changed since the last call, appeared or went away."""
        now, before = self._look(), self._seen
        self._seen = now
        return [path for path in self._paths if now.get(path) != before.get(path)]

    def _look(self) -> dict[str, tuple[int, ...]]:
        seen: dict[str, tuple[int, ...]] = {}
        for path in self._paths:
            with suppress(OSError):
                status = os.stat(path)  # noqa: PTH116 - hundreds of them a minute, without objects
                seen[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return seen
