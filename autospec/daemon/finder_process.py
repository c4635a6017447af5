"""Runs `autospec.daemon.work_finder` as a child process, keeps its last answer, and decides when to run it again."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from autospec.daemon.work import Clock, Memory, WorkItem
from autospec.errors import AutospecError
from autospec.formats import duration
from autospec.settings import Settings, load_settings

__all__ = ["FileWatch", "Outlook", "SurveyRun"]


# After its answer, or after it was killed.
_ENDS_WITHIN_S = 1.0


class SurveyRun:
    """A running survey. It never blocks: the selector reports its output. Raises OSError if it cannot start."""

    def __init__(
        self, asked: Mapping[str, Any], config: Path | None, selector: selectors.BaseSelector
    ) -> None:
        command = [sys.executable, "-m", "autospec.daemon.work_finder"]
        if config is not None:
            command += ["--config", str(config)]
        self._selector = selector
        self._answer = b""
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        # A pipe holds 64 KiB and the child reads at once; the efforts of a thousand cells are at most twice that.
        with suppress(OSError):
            self._child.stdin.write(json.dumps(asked).encode())
            self._child.stdin.close()
        self._out = self._child.stdout
        os.set_blocking(self._out.fileno(), False)
        self.result: dict[str, Any] | None = None
        selector.register(self._out, selectors.EVENT_READ, self._read)

    @property
    def runs(self) -> bool:
        """True until the process is gone: one that waits for a disk ends some time after `stop`, or never."""
        return self._child.poll() is None

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
        try:
            self._child.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
        code = self._child.returncode
        try:
            answer = json.loads(self._answer)
        except (ValueError, RecursionError):
            answer = None
        none = {"error": f"The search for work ended with exit code {code} and no output."}
        self.result = answer if isinstance(answer, dict) else none


_States = dict[str, tuple[int, ...]]


class FileWatch:
    """Reports changed files and folders by inode, size and modification time, one stat(2) each.

    Args:
        limit_s: For all of them together. They are asked in a thread: a network folder that does not answer must not hold up the
            daemon. Until it answers, nothing counts as changed.
    """

    def __init__(self, limit_s: float = 5.0) -> None:
        self._limit_s = limit_s
        self._paths: tuple[str, ...] = ()
        self._seen: _States = {}
        self._asking: threading.Thread | None = None
        self._late: tuple[tuple[str, ...], _States] | None = (
            None  # of which paths, and their states once they answer
        )

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these paths instead.

        Of those that were watched before, the state at the last call of `changed` stays: a survey reads them after that, and a
        file that appears while it runs may have come too late for it.
        """
        known, before = set(self._paths), self._seen
        self._paths = tuple(paths)
        new = {path: state for path, state in (self._look() or {}).items() if path not in known}
        self._seen = new | {path: before[path] for path in self._paths if path in before}

    def changed(self) -> list[str]:
        """The paths that changed, appeared or disappeared since the last call."""
        now, before = self._look(), self._seen
        if now is None:
            return []
        self._seen = now
        return [path for path in self._paths if now.get(path) != before.get(path)]

    def _look(self) -> _States | None:
        """The state of each path; ``None`` if one of them does not answer."""
        if self._asking is not None and self._asking.is_alive():
            return None
        late, self._late = self._late, None
        if late is not None and late[0] == self._paths:
            return late[1]  # a slow folder; what has changed since is told by the next look
        seen: _States = {}
        self._asking = threading.Thread(target=_ask, args=(self._paths, seen), daemon=True)
        try:
            self._asking.start()
        except RuntimeError:  # the system has no more threads
            self._asking = None
            return None
        self._asking.join(self._limit_s)
        if not self._asking.is_alive():
            return seen
        self._late = self._paths, seen
        return None


def _ask(paths: Iterable[str], seen: _States) -> None:
    for path in paths:
        with suppress(OSError, ValueError):  # no path at all, as of a name with a zero byte
            status = os.stat(path)  # noqa: PTH116 - hundreds of them a minute, without objects
            seen[path] = (status.st_ino, status.st_size, status.st_mtime_ns)


# For changes that the file watch misses: an upgrade in place, a folder that is a link.
_EVERY_S = 6 * 3600.0
# New traffic changes use and may show drift.
_AFTER_TRAFFIC_S = 1800.0
# After a failed survey: a full disk, an unreachable database.
_AGAIN_S = 300.0
# It takes a second, and a hook of the user's up to half a minute.
_LIMIT_S = 600.0


class Outlook:
    """The answer of the last survey, and when to run the next one.

    Attributes:
        items: Steps worth their time, best first.
        later: Cell → why it is not among them, in words.
        later_reasons: Cell → the same as a `LaterReason`.
        gaps: One sentence for each proof of which live traffic falls short for a known reason.
        notes: One sentence for each missing backend and each database row that was not understood.
        trouble: Why the last survey failed; empty if it did not.
        asked: Models that a person wants measured next → keys of their cells that have had a step since.
    """

    def __init__(
        self,
        memory: Memory,
        clock: Clock,
        config: Path | None,
        selector: selectors.BaseSelector,
        event: Callable[[str], None],
    ) -> None:
        self.items: list[WorkItem] = []
        self.later: dict[str, str] = {}
        self.later_reasons: dict[str, str] = {}
        self.gaps: list[str] = []
        self.notes: list[str] = []
        self.trouble = ""
        self.asked: dict[str, set[str]] = {}
        self._again = False  # somebody asked while a survey ran
        self._surveying: frozenset[str] = frozenset()  # what was asked for when the running survey began
        self._surveyed: frozenset[str] = frozenset()  # of those, what `items` knows of
        self._memory, self._clock, self._config = memory, clock, config
        self._selector, self._event = selector, event
        self._files = FileWatch()
        self._survey: SurveyRun | None = None
        self._began_s = 0.0
        self._hung: SurveyRun | None = None  # the last one that was ended for its time
        self._looked_s = 0.0
        self._look_at_s = clock.monotonic()
        self._next_at: float | None = None
        self._traffic = False
        self._told_change = False

    @property
    def waits(self) -> bool:
        """True if a cell that failed will be tried again."""
        return self._next_at is not None

    @property
    def looking(self) -> bool:
        """True while a survey runs."""
        return self._survey is not None

    def traffic_came(self) -> None:
        """A request was served: use has changed."""
        self._traffic = True

    def expire(self) -> None:
        """A step has ended: the items may not be worth measuring any more."""
        self.items, self._surveyed = [], frozenset()
        self._look_at_s = self._clock.monotonic()

    def ask_for(self, model: str) -> None:
        """A person wants this model measured next: survey again, also after the one that runs."""
        self.asked[model] = set()
        self._again = self.looking
        self.expire()

    def had_its_step(self, item: WorkItem) -> None:
        """A cell was measured, or its step failed."""
        self.asked.get(item.model, set()).add(item.key)

    def settle(self) -> None:
        """Forget each model that was asked for once all of its cells have had a step, or none can be measured."""
        left = {item.model for item in self.items if item.key not in self.asked.get(item.model, ())}
        for model in sorted((self._surveyed & self.asked.keys()) - left):
            del self.asked[model]
            why = next((words for key, words in self.later.items() if key.startswith(f"{model}|")), "")
            self._event(
                f"Nothing is left to measure of {model}, which was asked for{': ' if why else ''}{why}."
            )

    def next_in_s(self) -> float:
        """Seconds until a failed cell may be tried again."""
        return 1e9 if self._next_at is None else max(1.0, self._next_at - self._clock.wall())

    def due(self, *, files: bool = True) -> bool:
        """True if it is time for a survey. Without `files`, the next call tells what has changed there meanwhile."""
        now_s = self._clock.monotonic()
        if files and (changed := self._files.changed()):
            if not self._told_change:
                more = f", and {len(changed) - 1} more" if changed[1:] else ""
                self._event(f"{changed[0]} changed{more}.")
            # Files that are being copied or installed change all the time.
            self._told_change = True
            # Stays due until a survey ran: the daemon may have to wait.
            self._look_at_s = now_s
        after_traffic = self._traffic and now_s - self._looked_s > _AFTER_TRAFFIC_S
        waited = self._next_at is not None and self._clock.wall() >= self._next_at
        return now_s >= self._look_at_s or after_traffic or waited

    def look(self) -> None:
        """Start a survey."""
        self._traffic = self._told_change = False
        if self._hung is not None and self._hung.runs:
            self._failed(self.trouble)  # another one would hang as well, and each takes memory
            return
        self._began_s = self._clock.monotonic()
        try:
            self._surveying = frozenset(self.asked)
            asked = {model: sorted(done) for model, done in self.asked.items()}
            self._survey = SurveyRun({**self._memory.to_json(), "asked": asked}, self._config, self._selector)
        except OSError as error:
            self._failed(f"The search for work could not be started: {error.strerror or error}.")

    def take(self) -> Settings | None:
        """Take over a finished survey; returns the settings as they are now, ``None`` if it runs or they are wrong."""
        if self._survey is None:
            return None
        if self._survey.result is None:
            if self._clock.monotonic() - self._began_s > _LIMIT_S:
                self._give_up(self._survey)
            return None
        result, self._survey = self._survey.result, None
        if sentence := result.get("error"):
            self._failed(str(sentence))
        else:
            self._known(result)
        if self._again:
            self._again = False
            self.expire()
        try:
            return load_settings(self._config)
        except AutospecError as error:
            self._event(f"The settings stay unchanged: {error.message}")
            return None

    def close(self) -> None:
        """End a running survey."""
        if self._survey is not None:
            self._survey.stop()
            self._survey = None

    def _known(self, result: dict[str, Any]) -> None:
        try:
            items = [WorkItem.from_json(item) for item in result["items"]]
            later, fingerprints = dict(result["later"]), [str(f) for f in result["fingerprints"]]
            watch = [str(path) for path in result["watch"]]
            reasons, next_at = dict(result.get("later_reasons", {})), result.get("next_at")
            next_at = None if next_at is None else float(next_at)
            notes, gaps, marked = ([*map(str, result.get(name, ()))] for name in ("notes", "gaps", "marked"))
        except (KeyError, TypeError, ValueError, AttributeError):
            # After an upgrade this daemon is still of the old version, and the program that it started of the new one.
            self._failed(
                "The answer of the search for work is not understood. Restart the daemon if autospec was upgraded."
            )
            return
        self.trouble, self._surveyed = "", self._surveying
        self.items, self.later, self.later_reasons = items, later, reasons
        self.notes, self.gaps, self._next_at = notes, gaps, next_at
        self._looked_s = self._clock.monotonic()
        self._look_at_s = self._looked_s + _EVERY_S
        self._files.watch(watch)
        for sentence in marked:
            self._event(f"Stale: {sentence}")
        self._memory.see(fingerprints, self._clock.wall())
        self._memory.forget_done([*self.later, *(item.key for item in self.items)])
        self._memory.save()

    def _give_up(self, survey: SurveyRun) -> None:
        survey.stop()
        self._hung, self._survey = survey, None
        self._failed(
            f"The search for work did not end within {duration(_LIMIT_S)}; a disk or a network folder may not answer."
        )

    def _failed(self, sentence: str) -> None:
        if sentence != self.trouble:
            self._event(f"The search for work failed: {sentence}")
        self.trouble, self.items, self._next_at = sentence, [], None
        self._surveyed = frozenset()
        self._look_at_s = self._clock.monotonic() + _AGAIN_S
