"""`autospec tune`: measures and writes recommendations. It shows a live table on a terminal, else a line per event."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import click
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autospec.cells import PromptType
from autospec.cli.shell import Shell, command_options, complete_model, model_option, server_options

if TYPE_CHECKING:
    # Not at run time: it imports Optuna and SQLAlchemy, which `--help` and Tab need not wait for.
    from autospec.tuning.cell import CellProgress, TuneStep

__all__ = ["TuneDisplay", "command", "interruptible"]


# Without a live table, a line at least this often shows progress.
_LINE_EVERY_S = 30.0
# Widest bar; on a narrow terminal it takes a third.
_BAR_WIDTH = 40
# Largest share shown before the end.
_MOST_DONE = 0.99
# Pause before a swallowed interruption is sent again: longer than any finalizer runs.
_AGAIN_S = 0.05


class TuneDisplay:
    """Shows a tune's progress on stderr. A context manager: the live table exists inside it."""

    def __init__(
        self,
        shell: Shell,
        model: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._shell = shell
        self._model = model
        self._console = shell.console
        self._standings: tuple[CellProgress, ...] = ()
        self._step: TuneStep | None = None
        self._clock = clock
        self._now = now
        self._begun = self._stepped = clock()
        self._lined_at = float("-inf")
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            # Rendered at each refresh, so the clock also moves between events.
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

    def step(self, step: TuneStep) -> None:
        """Show the current step."""
        changed = self._step is None or (self._step.phase, self._step.number, self._step.drafting) != (
            step.phase,
            step.number,
            step.drafting,
        )
        self._step, self._stepped = step, self._clock()
        if self._live is not None:
            return
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

    def _render(self) -> Group:
        line = _sentence(self._step) if self._step else "launching the model without drafting"
        elapsed = _clock(self._clock() - self._begun)
        words = Text(f"{elapsed}  {line}"), Text("Ctrl-C stops and keeps the results.", style="dim")
        bar = () if self._step is None else (self._bar(self._step),)
        if not self._standings:
            return Group(Text(f"autospec tune: {self._model}", style="bold"), *bar, *words)
        table = Table(title=f"autospec tune: {self._model}", title_justify="left")
        for heading in ("prompt type", "", "best so far", "speed", "pairs"):
            table.add_column(heading)
        for s in self._standings:
            ratio = "" if s.ratio is None else f"{s.ratio:.2f}×"
            table.add_row(
                str(s.prompt_type), s.word, s.best.label if s.ratio else "", ratio, str(s.pairs or "")
            )
        return Group(table, *bar, *words)

    def _bar(self, step: TuneStep) -> Table:
        share = self._share(step)
        left = self._left(step)
        if (left_s := self._left_s(step)) > 0.0:
            left += f", until {self._now() + timedelta(seconds=left_s):%H:%M}"
        line = Table.grid(padding=(0, 1))
        width = max(1, min(_BAR_WIDTH, self._console.width // 3))
        line.add_column(width=width)
        line.add_column()
        line.add_row(ProgressBar(total=1.0, completed=share, width=width), f"{100 * share:.0f} %, {left}")
        return line

    def _left_s(self, step: TuneStep) -> float:
        """Seconds until the tune is expected to end, or until its budget does."""
        ends_in_s = step.left_s if step.ends_in_s is None else step.ends_in_s
        return ends_in_s - (self._clock() - self._stepped)

    def _share(self, step: TuneStep) -> float:
        """Share of the whole tune's time that has passed."""
        elapsed_s = self._clock() - self._begun
        return min(_MOST_DONE, elapsed_s / max(1e-9, elapsed_s + max(0.0, self._left_s(step))))

    def _left(self, step: TuneStep) -> str:
        left_s = self._left_s(step)
        over_s = (self._clock() - self._stepped) - step.left_s
        if over_s > 0.0:
            return f"{_clock(over_s)} over the budget, finishing the current step"
        if left_s <= 0.0:
            return "longer than expected"
        about = "at most" if step.ends_in_s is None else "about"
        return f"{about} {_minutes(left_s)} left"


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end a tune like Ctrl-C, with its results kept.

    A signal that arrives while Python runs a finalizer or the callback of a weak reference (SQLAlchemy and Optuna have many)
    raises in there, where exceptions are printed and ignored. Such a signal is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def unraisable(unraised: sys.UnraisableHookArgs) -> None:
        if isinstance(unraised.exc_value, KeyboardInterrupt):
            # From a thread and a moment later, because here it would be swallowed again. It is a real signal, because
            # the main thread may be blocked in a system call.
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


def _sentence(step: TuneStep) -> str:
    match step.phase:
        case "record":
            return f"recording answers without drafting: {step.done} of {step.todo}"
        case "read":
            return f"reading the answers with draft {step.number} of {step.of}"
        case "launch":
            return f"trial {step.number} of at most {step.of}: launching {step.drafting.label}"
        case "limits":
            what = f"check {step.number} of {step.of} of its limits"
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


@click.command(context_settings={"ignore_unknown_options": False})
@model_option()
@server_options
@click.option(
    "-t",
    "--prompt-type",
    "prompt_types",
    multiple=True,
    type=click.Choice([str(t) for t in PromptType]),
    help="Only this prompt type; may be repeated. [default: all]",
)
@click.option(
    "-d",
    "--draft",
    "drafts",
    multiple=True,
    metavar="D",
    shell_complete=complete_model,
    help="Try only this draft model (path or name); may be repeated.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Time limit, e.g. 20m; the current step may take a minute or 5 % longer. [default: the study's]",
)
@click.option("--study", metavar="NAME|FILE", help="quick, default, thorough, or your own TOML file.")
@click.option("--suite", metavar="FILE", help="Your own prompts (JSONL).")
@click.option("--temperature", type=float, metavar="T", help="Sampling temperature; 0 is greedy.")
@click.option("--max-tokens", type=int, metavar="N", help="Longest measured answer. [default: the study's]")
@click.option(
    "--slots",
    type=int,
    metavar="N",
    help="After the proof, check the winner at 2, 4 … up to N requests at once. [default: the server's slots]",
)
@click.option(
    "--depth",
    type=int,
    metavar="N",
    help="After the proof, check the winner behind up to N tokens of cached context. [default: 32768]",
)
@click.option(
    "--mix",
    metavar="MIX",
    help="Weights of prompt types for the overall answer, e.g. coding=3,chat=1. [default: the traffic's, else equal]",
)
@click.option("--again", is_flag=True, help="Measure again even if the result is proven.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER ARGS…]")
@command_options
def command(shell: Shell, /, model: str, **options: Any) -> int | None:
    """Measure where speculative decoding pays, and write recommendations.

    Searches over draft models, draft-max, p-min and the n-gram modes on one half of the prompts, then proves the best
    on the other half, in pairs with and without drafting. Ctrl-C keeps the results; run the command again to continue.
    Arguments after -- go to every server, e.g. -- -ngl 99 -c 32768 --jinja.

    \b
    Examples:
      autospec tune --model qwen3-coder-30b
      autospec tune --model qwen3-coder-30b --prompt-type coding --budget 20m
      autospec tune --model ~/models/big.gguf --draft ~/models/small.gguf -- -ngl 99 -fa on
    """  # noqa: D301 - click needs the backspace itself
    shell.choose_server(options["backend"], options["url"])
    shell.override(**{name: options[name] for name in ("study", "suite", "budget", "temperature")})
    from autospec.backends.binaries import first_look
    from autospec.backends.registry import backend_for
    from autospec.errors import UnsupportedError
    from autospec.hardware import identify
    from autospec.recommendations import document
    from autospec.report.tables import recommendation_table
    from autospec.tuning.overall import parse_mix
    from autospec.tuning.request import prepare
    from autospec.tuning.run import Tuning

    request = prepare(
        shell.settings,
        model,
        drafts=options["drafts"],
        prompt_types=[PromptType(t) for t in options["prompt_types"]],
        args=options["args"],
        again=options["again"],
        **{name: options[name] for name in ("max_tokens", "slots", "depth")},
        mix=parse_mix(options["mix"]) if options["mix"] else None,
        warn=shell.warn,
    )
    hardware = identify()
    backend = backend_for(shell.settings.backend or None, shell.settings, request.model)
    if backend.name == "llama-server" and (
        note := first_look(shell.settings.llama_server, shell.settings.state_dir)
    ):
        shell.say(note)
    if (abilities := backend.capabilities()).measures_only:
        raise UnsupportedError(
            f"A request to {abilities.build.version} cannot change its drafting, so there is nothing to tune.",
            "Tune with --backend llama-server or mlx and start your server with the flags that `autospec recommend "
            "--format args` prints. `autospec bench --url` measures the server as it is.",
        )
    display = TuneDisplay(shell, request.model.name)
    interrupted = False
    with interruptible(), display:
        tuning = Tuning(request, backend, hardware, display)
        try:
            recommendations = tuning.run()
        except KeyboardInterrupt:
            interrupted = True
            recommendations = tuning.known()
    overall = tuning.overall()
    together = [] if overall is None else [overall]
    if shell.json:
        shell.emit(document(hardware, recommendations, together))
    elif recommendations:
        shell.out(recommendation_table([*recommendations, *together]))
    if interrupted:
        shell.warn("Interrupted. The results are kept; run the same command again to continue.")
        return 130
    if overall is not None:
        from autospec.report.server_config import what_to_run

        shell.out(what_to_run(overall, recommendations))
    return None
