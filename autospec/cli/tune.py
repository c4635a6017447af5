"""`autospec tune`: measures and writes recommendations. `autospec.cli.tune_display` shows the progress."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from autospec.cells import Aim, PromptType
from autospec.cli.options import complete_model, model_option, server_args, server_options
from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from autospec.recommendations import Recommendation
    from autospec.tuning.request import TuneRequest

__all__ = ["command", "interruptible"]


# Pause before a swallowed interruption is sent again: longer than any finalizer runs.
_AGAIN_S = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end a tune like Ctrl-C, with its results kept; not SIGHUP under nohup.

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

    heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, interrupt) for s in heeded}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command()
@model_option(required=False)
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
@click.option(
    "--study",
    metavar="NAME|FILE",
    help="quick, default, thorough, or your own TOML file. [default: the setting study]",
)
@click.option("--suite", metavar="FILE", help="Your own prompts (JSONL).")
@click.option(
    "--temperature",
    type=float,
    metavar="T",
    help="Sampling temperature; 0 is greedy. [default: the setting temperature]",
)
@click.option("--max-tokens", type=int, metavar="N", help="Longest measured answer. [default: the study's]")
@click.option(
    "--slots",
    type=int,
    metavar="N",
    help="After the proof, check the winner at 2, 4 … up to N requests at once. Also turns on the check of --depth. "
    "[default: the server's slots; with --study quick no check]",
)
@click.option(
    "--depth",
    type=int,
    metavar="N",
    help="After the proof, check the winner with up to N tokens of cached context. Also turns on the check of --slots. "
    "[default: 32768; with --study quick no check]",
)
@click.option(
    "--mix",
    metavar="MIX",
    help="Weights of prompt types for the overall answer, e.g. coding=3,chat=1. [default: the traffic's, else equal]",
)
@click.option(
    "--aim",
    type=click.Choice([str(a) for a in Aim]),
    help="What drafting must improve: speed, or energy (only if you may read the machine's energy counters). [default: the setting aim]",
)
@click.option("--again", is_flag=True, help="Measure again even if the result is proven.")
@server_args
@command_options
def command(shell: Shell, /, model: str, **options: Any) -> int | None:
    """Measure where speculative decoding pays, and write recommendations.

    Searches over draft models, draft-max, p-min and the n-gram modes on one half of the prompts, then proves the best
    on the other half, in pairs with and without drafting. Ctrl-C keeps the results; run the command again to continue.
    Without --model, a terminal shows the models with numbers to choose from.
    Arguments after -- go to every server, e.g. -- -ngl 99 -c 32768 --jinja.

    \b
    Examples:
      autospec tune --model qwen3-coder-30b
      autospec tune --model qwen3-coder-30b --prompt-type coding --budget 20m
      autospec tune --model ~/models/big.gguf --draft ~/models/small.gguf -- -ngl 99 -fa on
    """  # noqa: D301 - click needs the backspace itself
    shell.choose_server(options["backend"], options["url"])
    shell.override(**{name: options[name] for name in ("study", "suite", "budget", "temperature", "aim")})
    from dataclasses import replace

    from autospec.backends.binaries import first_look
    from autospec.backends.registry import backend_for
    from autospec.cli.models import choose_model
    from autospec.cli.tune_display import TuneDisplay, phases_of
    from autospec.errors import UnsupportedError
    from autospec.hardware import identify
    from autospec.hardware.energy import aim_in_force
    from autospec.recommendations import document
    from autospec.tuning.overall import parse_mix, refuse_mix
    from autospec.tuning.request import prepare
    from autospec.tuning.run import Tuning

    mix = None if options["mix"] is None else parse_mix(options["mix"])
    request = prepare(
        shell.settings,
        model or choose_model(shell),
        drafts=options["drafts"],
        prompt_types=[PromptType(t) for t in options["prompt_types"]],
        args=options["args"],
        again=options["again"],
        **{name: options[name] for name in ("max_tokens", "slots", "depth")},
        mix=mix,
        warn=shell.warn,
    )
    hardware = identify()
    # Where the machine cannot pursue what a person types, the tune refuses it.
    if shell.settings.sources.get("aim") != "flag":
        aim, note = aim_in_force(request.aim, hardware)
        request = replace(request, aim=aim)
        if note:
            shell.warn(note)
    if request.mix:
        refuse_mix(request.aim)
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
    definition = request.definition
    budget_s = request.budget_s or definition.budget_s
    display = TuneDisplay(
        shell,
        request.model.name,
        phases=phases_of(definition),
        limits_s=budget_s * definition.limits.share if definition.limits.check else 0.0,
    )
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
        _show(shell, request, recommendations, together, interrupted=interrupted)
    if interrupted:
        shell.warn("Interrupted. The results are kept; run the same command again to continue.")
        return 130
    return None


def _show(
    shell: Shell,
    request: TuneRequest,
    recommendations: Sequence[Recommendation],
    together: Sequence[Recommendation],
    *,
    interrupted: bool,
) -> None:
    """The table, and three lines that say what to do with it."""
    from autospec.report.server_config import to_run
    from autospec.report.tables import recommendation_table
    from autospec.report.tune_summary import StudyRest, tune_summary

    shell.out(recommendation_table([*recommendations, *together]))
    definition = request.definition
    rest = StudyRest(
        definition.rule,
        definition.prompts_per_round,
        request.budget_s or definition.budget_s,
        checks_limits=definition.limits.check,
    )
    overall = together[0] if together else None
    what, how, still_open = tune_summary(recommendations, overall, rest, interrupted=interrupted)
    shell.out("")
    shell.prose(what)
    command = "" if overall is None else to_run(overall).command
    shell.prose(how.removesuffix(command).rstrip(), command)
    shell.prose(still_open)
