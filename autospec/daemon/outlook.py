"""What the daemon knows of what there is to measure, and when it has to look again."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autospec.daemon.clock import Clock
from autospec.daemon.memory import Memory
from autospec.daemon.surveying import FileWatch, SurveyRun
from autospec.daemon.work import WorkItem
from autospec.errors import AutospecError
from autospec.settings import Settings, load_settings

__all__ = ["Outlook"]

# Nothing else may have told of a change: an upgrade in place, a folder that is a link.
_EVERY_S = 6 * 3600.0
# New traffic changes use and may show drift; answers are many and recommendations few.
_AFTER_TRAFFIC_S = 1800.0
# A survey that failed: a full disk, a database that is away.
_AGAIN_S = 300.0


class Outlook:
    """The last survey's answer, and the next one.

    Args:
        memory: Tells a survey what was spent in vain; told which models there are.
        clock: Time.
        config: The file of ``--config``.
        selector: The loop's.
        event: Told what was seen, one sentence each.

    Attributes:
        items: Steps worth their time, best first.
        later: Cell → why it is not among them, in words.
        later_reasons: Cell → the same as a `LaterReason`.
        notes: What kept models out, and what was not understood in the database.
        trouble: Why the last survey failed; empty if it did not.
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
        self.notes: list[str] = []
        self.trouble = ""
        self._memory, self._clock, self._config = memory, clock, config
        self._selector, self._event = selector, event
        self._files = FileWatch()
        self._survey: SurveyRun | None = None
        self._looked_s = 0.0
        self._look_at_s = clock.monotonic()
        self._next_at: float | None = None
        self._traffic = False

    @property
    def looking(self) -> bool:
        """True while a survey runs."""
        return self._survey is not None

    def traffic_came(self) -> None:
        """Somebody was served: use has changed."""
        self._traffic = True

    def expire(self) -> None:
        """A step has ended: what was worth measuring may be so no more."""
        self.items = []
        self._look_at_s = self._clock.monotonic()

    def next_in_s(self) -> float:
        """Seconds until a cell that only waits may be tried."""
        return 1e9 if self._next_at is None else max(1.0, self._next_at - self._clock.wall())

    def due(self) -> bool:
        """True if it is time to look again."""
        now_s = self._clock.monotonic()
        if changed := self._files.changed():
            more = f", and {len(changed) - 1} more" if changed[1:] else ""
            self._event(f"{changed[0]} changed{more}.")
            # Stays due until a survey was taken: the daemon may have to wait with it.
            self._look_at_s = now_s
        after_traffic = self._traffic and now_s - self._looked_s > _AFTER_TRAFFIC_S
        waited = self._next_at is not None and self._clock.wall() >= self._next_at
        return now_s >= self._look_at_s or after_traffic or waited

    def look(self) -> None:
        """Start a survey."""
        asked = {
            "found": self._memory.found,
            "efforts": {key: effort.to_json() for key, effort in self._memory.efforts.items()},
        }
        self._traffic = False
        try:
            self._survey = SurveyRun(asked, self._config, self._selector)
        except OSError as error:
            self._failed(f"No survey can be started: {error.strerror or error}.")

    def take(self) -> Settings | None:
        """Take over the answer of a survey that has ended.

        Returns:
            The settings as they are now, or ``None`` where no survey has ended or the config file is wrong.
        """
        if self._survey is None or self._survey.result is None:
            return None
        result, self._survey = self._survey.result, None
        if sentence := result.get("error"):
            self._failed(str(sentence))
        else:
            self._known(result)
        try:
            return load_settings(self._config)
        except AutospecError as error:
            self._event(f"The settings stay as they were: {error.message}")
            return None

    def close(self) -> None:
        """End a survey that runs."""
        if self._survey is not None:
            self._survey.stop()
            self._survey = None

    def _known(self, result: dict[str, Any]) -> None:
        self.trouble = ""
        self.items = [WorkItem.from_json(item) for item in result["items"]]
        self.later, self.later_reasons = result["later"], result["later_reasons"]
        self.notes, self._next_at = result["notes"], result["next_at"]
        self._looked_s = self._clock.monotonic()
        self._look_at_s = self._looked_s + _EVERY_S
        self._files.watch(result["watch"])
        for sentence in result["marked"]:
            self._event(f"Stale: {sentence}")
        self._memory.see(result["fingerprints"], self._clock.wall())
        self._memory.forget_done([*self.later, *(item.key for item in self.items)])
        self._memory.save()

    def _failed(self, sentence: str) -> None:
        if sentence != self.trouble:
            self._event(f"The survey failed: {sentence}")
        self.trouble, self.items, self._next_at = sentence, [], None
        self._look_at_s = self._clock.monotonic() + _AGAIN_S
