"""A tune's progress on stderr.

On a terminal a few lines and a table are drawn again twice a second. Everywhere else (a pipe, a CI log, ``TERM=dumb``) each
event is one plain line. No meaning is in a colour or a symbol alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autospec.cli.shell import Shell
from autospec.tuning.cell import CellProgress, Progress, TuneStep
from autospec.tuning.definition import StudyDefinition

__all__ = ["TuneDisplay", "phases_of"]

# Without a live table, a line at least this often shows progress.
_LINE_EVERY_S = 30.0
# Widest bar, and the narrowest that may share its line with words.
_BAR_WIDTH = 40
_BAR_LEAST = 12
# Lines of the table besides its rows, its columns besides their texts, and the least of a drafting's name.
_FRAME = 4
_LINES_AND_PADDING = 16
_NAME_LEAST = 11
# On a narrower terminal a prompt type has one line instead of a row.
_TABLE_COLUMNS = 60
# Largest share shown before the end.
_MOST_DONE = 0.99

_RECORD, _READ, _SEARCH, _PROOF, _LIMITS, _OVERALL = _NAMES = (
    "recording",
    "reading drafts",
    "search",
    "proof",
    "limits",
    "overall answer",
)
# The phase that a step belongs to; a step of no phase comes before all of them.
_PHASES = {
    "record": _RECORD,
    "read": _READ,
    "launch": _SEARCH,
    "search": _SEARCH,
    "idle": _PROOF,
    "prove": _PROOF,
    "limits": _LIMITS,
    "overall": _OVERALL,
}
# What a prompt type waits for while answers are recorded and read.
_EARLY = {"record": "recording", "read": "reading"}
# Steps after which no time is kept for the checks of limits.
_LATE = frozenset({"limits", "overall"})


def phases_of(definition: StudyDefinition) -> tuple[str, ...]:
    """The phases of a tune by this definition, in their order."""
    left_out = set() if definition.predict else {_RECORD, _READ}
    if not definition.limits.check:
        left_out.add(_LIMITS)
    return tuple(name for name in _NAMES if name not in left_out)


class TuneDisplay(Progress):
    """Shows a tune's progress. A context manager: the live table exists inside it.

    Args:
        shell: Where to.
        model: The main model's name.
        phases: The phases that the tune may have, see `phases_of`.
        limits_s: Time that the budget keeps for the checks of limits.
        clock: Monotonic seconds.
        now: The time of day.
    """

    def __init__(
        self,
        shell: Shell,
        model: str,
        *,
        phases: Sequence[str] = _NAMES,
        limits_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._shell = shell
        self._model = model
        self._phases = tuple(phases)
        self._limits_s = limits_s
        self._console = shell.console
        self._standings: tuple[CellProgress, ...] = ()
        self._step: TuneStep | None = None
        self._clock = clock
        self._now = now
        self._begun = self._stepped = clock()
        self._lined_at = float("-inf")
        self._at = -1  # the phase; before the first one -1
        self._most = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_interactive and not self._console.quiet:
            # Rendered at each refresh, so the clock also moves between events.
            self._live = Live(
                get_renderable=lambda: self, console=self._console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: TuneStep) -> None:
        """Show the current step."""
        before, at = self._step, self._at
        if before is not None:
            self._share(before)  # where its bar ended
        self._step, self._stepped = step, self._clock()
        if (phase := _PHASES.get(step.phase)) in self._phases:
            # The proof may record and read more answers, and is still the proof.
            self._at = max(at, self._phases.index(phase))
        if self._live is not None:
            return
        if self._at > at:
            self._shell.say(f"{self._phase_words()}.")
        changed = before is None or (before.phase, before.number, before.drafting) != (
            step.phase,
            step.number,
            step.drafting,
        )
        now = self._clock()
        if changed or now - self._lined_at >= _LINE_EVERY_S:
            self._lined_at = now
            self._shell.say(f"{_sentence(step)} ({100 * self._share(step):.0f} %, {self._left(step)})")

    def standing(self, standings: tuple[CellProgress, ...]) -> None:
        """Show the progress of every prompt type."""
        known = {s.prompt_type: s for s in self._standings} | {s.prompt_type: s for s in standings}
        self._standings = tuple(known.values())

    def tell(self, text: str) -> None:
        """Print one sentence that stays."""
        self._shell.say(f"{_clock(self._clock() - self._begun)}  {text}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        head = self._head(width, ascii_only=ascii_only)
        yield from head
        room = console.height - sum(len(text.wrap(console, width)) for text in head) - 1
        if self._standings and width >= _TABLE_COLUMNS:
            shown, more = self._fitting(room - _FRAME)
            yield self._table(shown, width, ascii_only=ascii_only)
        else:
            shown, more = self._fitting(room)
            for s in shown:
                words = self._line(s, ascii_only=ascii_only)
                yield Text(words, no_wrap=True, overflow=_cut(ascii_only=ascii_only))
        if more:
            yield Text(f"and {more} more, for which this terminal has too few lines")

    def _head(self, width: int, *, ascii_only: bool) -> list[Text]:
        """The lines above the table."""
        title = Text(f"autospec tune: {self._model}", "bold", no_wrap=True)
        title.truncate(width, overflow=_cut(ascii_only=ascii_only))
        lines = [title]
        elapsed = _clock(self._clock() - self._begun)
        if self._step is None:
            lines.append(Text(f"{elapsed}  getting ready"))
        else:
            lines += self._bar(self._step, width, ascii_only=ascii_only)
            if self._at >= 0:
                lines.append(Text(self._phase_words()))
            lines.append(Text(f"{elapsed}  {_sentence(self._step)}"))
        return [*lines, Text("Ctrl-C stops and keeps the results.", style="dim")]

    def _fitting(self, rows: int) -> tuple[list[CellProgress], int]:
        """The prompt types that have room, and how many have none; those that are not decided come first then."""
        if len(self._standings) <= rows:
            return list(self._standings), 0
        ordered = sorted(self._standings, key=lambda s: s.word not in ("searching", "proving"))
        shown = ordered[: max(0, rows - 1)]
        return shown, len(ordered) - len(shown)

    def _table(self, shown: Sequence[CellProgress], width: int, *, ascii_only: bool) -> Table:
        words = [self._word(s) for s in shown]
        types = [str(s.prompt_type) for s in shown]
        columns = {"prompt type": types, "state": words, "speed": [], "pairs": []}
        least = {heading: max(map(len, (heading, *cells))) for heading, cells in columns.items()}
        # rich would cut figures before it has cut the long names.
        room = max(_NAME_LEAST, width - sum(least.values()) - _LINES_AND_PADDING)
        table = Table()
        for heading in ("prompt type", "state"):
            table.add_column(heading, no_wrap=True, min_width=least[heading])
        table.add_column("best so far", no_wrap=True, max_width=room, overflow=_cut(ascii_only=ascii_only))
        for heading in ("speed", "pairs"):
            table.add_column(heading, no_wrap=True, justify="right", min_width=least[heading])
        for s, kind, word in zip(shown, types, words, strict=True):
            label = Text(s.best.label if s.ratio else "")
            table.add_row(kind, word, label, _times(s, ascii_only=ascii_only), str(s.pairs or ""))
        return table

    def _line(self, s: CellProgress, *, ascii_only: bool) -> str:
        ratio = _times(s, ascii_only=ascii_only)
        pairs = f", {s.pairs} pairs" if s.pairs else ""
        return f"{s.prompt_type}: {self._word(s)}{f' {ratio}' if ratio else ''}{pairs}"

    def _word(self, s: CellProgress) -> str:
        phase = "" if self._step is None else self._step.phase
        return _EARLY.get(phase, s.word) if s.word == "searching" else s.word

    def _bar(self, step: TuneStep, width: int, *, ascii_only: bool) -> list[Text]:
        """The bar and its words; on two lines where one is too narrow."""
        share = self._share(step)
        words = f"{100 * share:.0f} %, {self._left(step)}"
        if (left_s := self._left_s(step)) > 0.0:
            words += f", until {self._now() + timedelta(seconds=left_s):%H:%M}"
        beside = min(_BAR_WIDTH, width - len(words) - 1)
        cells = beside if beside >= _BAR_LEAST else min(_BAR_WIDTH, width)
        done = round(share * cells)
        full, empty = "#." if ascii_only else "█░"
        bar = full * done + empty * (cells - done)
        return [Text(f"{bar} {words}")] if beside >= _BAR_LEAST else [Text(bar), Text(words)]

    def _phase_words(self) -> str:
        later = ", ".join(self._phases[self._at + 1 :])
        which = f"Phase {self._at + 1} of {len(self._phases)}: {self._phases[self._at]}"
        return f"{which}; then {later}" if later else which

    def _kept_s(self, step: TuneStep) -> float:
        """The time kept for the checks of limits, as long as they may still come."""
        return 0.0 if step.phase in _LATE else self._limits_s

    def _left_s(self, step: TuneStep) -> float:
        """Seconds until the tune is expected to end, or until its budget does."""
        ends_in_s = step.left_s if step.ends_in_s is None else step.ends_in_s
        return ends_in_s + self._kept_s(step) - (self._clock() - self._stepped)

    def _share(self, step: TuneStep) -> float:
        """Share of the whole tune's time that has passed; never less than before."""
        elapsed_s = self._clock() - self._begun
        share = min(_MOST_DONE, elapsed_s / max(1e-9, elapsed_s + max(0.0, self._left_s(step))))
        self._most = max(self._most, share)
        return self._most

    def _left(self, step: TuneStep) -> str:
        left_s = self._left_s(step)
        over_s = (self._clock() - self._stepped) - step.left_s - self._kept_s(step)
        if over_s > 0.0:
            return f"{_clock(over_s)} over the budget, finishing the current step"
        if left_s <= 0.0:
            return "longer than expected"
        kept_s = self._kept_s(step)
        if step.ends_in_s is None or not kept_s:
            return f"{'at most' if step.ends_in_s is None else 'about'} {_minutes(left_s)} left"
        if left_s <= kept_s:  # the proof takes longer than expected
            return f"at most {_minutes(left_s)} left"
        return f"about {_minutes(left_s - kept_s)} left, and at most {_minutes(kept_s)} for limits"


def _cut(*, ascii_only: bool) -> Literal["crop", "ellipsis"]:
    """How a name that is too long ends."""
    return "crop" if ascii_only else "ellipsis"


def _times(s: CellProgress, *, ascii_only: bool) -> str:
    return "" if s.ratio is None else f"{s.ratio:.2f}{'x' if ascii_only else '×'}"


def _sentence(step: TuneStep) -> str:
    match step.phase:
        case "start":
            return "launching the model without drafting"
        case "record":
            return f"recording answers without drafting: {step.done} of {step.todo}"
        case "read":
            return f"reading the answers with draft {step.number} of {step.of}"
        case "launch":
            return f"trial {step.number} of at most {step.of}: launching {step.drafting.label}"
        case "idle":
            return "measuring what a loaded draft costs while it does not draft"
        case "limits":
            what = f"limit check {step.number} of {step.of}"
            return f"{what}: {step.drafting.label}, prompt type {step.done + 1} of {step.todo}"
        case "overall":
            what = f"all prompt types together, round {step.number}"
        case "search":
            what = f"trial {step.number} of at most {step.of}"
        case _:
            what = f"proof round {step.number} of at most {step.of}"
    return f"{what}: {step.drafting.label}, pair {step.done} of {step.todo}"


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if minutes < 1:
        return "1 min"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
