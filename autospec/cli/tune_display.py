"""What a person sees of a tune: a live table on a terminal, a line per event elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autospec.cli.shell import Shell
from autospec.tuning.progress import Standing, Step

__all__ = ["TuneDisplay", "interruptible"]

# Where nobody sees the table move, a line now and then says that it goes on.
_LINE_EVERY_S = 30.0
# Before an interruption that was swallowed is raised again: longer than any finalizer runs.
_AGAIN_S = 0.05


class TuneDisplay:
    """Shows a tune's progress on stderr. A context manager: the live table lives within.

    Args:
        shell: Where to; silent with -q.
        model: Name of the main model, for the title.
        clock: Seconds, to tell how long it takes.
    """

    def __init__(self, shell: Shell, model: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._shell = shell
        self._model = model
        self._console = shell.console
        self._standings: tuple[Standing, ...] = ()
        self._step: Step | None = None
        self._clock = clock
        self._begun = clock()
        self._lined_at = float("-inf")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            # Rendered afresh at each refresh: the clock goes on where nothing is told for a while.
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: Step) -> None:
        """Show what is being done."""
        changed = self._step is None or (self._step.phase, self._step.number, self._step.drafting) != (
            step.phase,
            step.number,
            step.drafting,
        )
        self._step = step
        if self._live is not None:
            return
        now = self._clock()
        if changed or now - self._lined_at >= _LINE_EVERY_S:
            self._lined_at = now
            self._shell.say(_sentence(step))

    def standing(self, standings: tuple[Standing, ...]) -> None:
        """Show where every prompt type stands."""
        known = {s.prompt_type: s for s in self._standings} | {s.prompt_type: s for s in standings}
        self._standings = tuple(known.values())

    def tell(self, text: str) -> None:
        """Print one sentence that stays."""
        self._shell.say(f"{_clock(self._clock() - self._begun)}  {text}")

    def _render(self) -> Group:
        line = _sentence(self._step) if self._step else "nothing is launched with drafting yet …"
        elapsed = _clock(self._clock() - self._begun)
        words = Text(f"{elapsed}  {line}"), Text("Ctrl-C keeps what is known.", style="dim")
        if not self._standings:
            return Group(Text(f"autospec tune: {self._model}", style="bold"), *words)
        table = Table(title=f"autospec tune: {self._model}", title_justify="left")
        for heading in ("prompt type", "", "best so far", "speed", "pairs"):
            table.add_column(heading)
        for s in self._standings:
            ratio = "" if s.ratio is None else f"{s.ratio:.2f}×"
            table.add_row(
                str(s.prompt_type), s.word, s.best.label if s.ratio else "", ratio, str(s.pairs or "")
            )
        return Group(table, *words)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a polite kill (SIGTERM, a closed terminal) end like Ctrl-C: with what is known kept.

    A signal that arrives while Python runs a weak reference's callback or a finalizer (SQLAlchemy and Optuna have
    many) raises in there, where exceptions are printed and forgotten. Such a one is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def unraisable(unraised: sys.UnraisableHookArgs) -> None:
        if isinstance(unraised.exc_value, KeyboardInterrupt):
            # From a thread, a moment later: from here it would be raised in here. A real signal, since the main
            # thread may be waiting in a system call by then.
            again = signal.pthread_kill, (threading.main_thread().ident or 0, signal.SIGTERM)
            threading.Timer(_AGAIN_S, *again).start()
        else:
            hook(unraised)

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(step: Step) -> str:
    left = _clock(step.left_s)
    match step.phase:
        case "launch":
            return (
                f"trial {step.number} of {step.of}: launching {step.drafting.label} ({left} left to search)"
            )
        case "search":
            what = f"trial {step.number} of {step.of}"
            return f"{what}: {step.drafting.label}, pair {step.done} of {step.todo} ({left} left to search)"
        case _:
            what = f"proof round {step.number} of at most {step.of}"
            return f"{what}: {step.drafting.label}, pair {step.done} of {step.todo} ({left} left)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
