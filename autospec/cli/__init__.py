"""The command line: a table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import autospec
from autospec.cli.shell import Shell, close_output, exit_code_of
from autospec.errors import did_you_mean

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "cli", "main"]

# Name → module and the line in `--help`, so that listing the commands imports none. In a module, the function of its own name's command
# is `command`, that of another one `NAME_command`.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "doctor": ("autospec.cli.doctor", "Check what is here, what is missing, and how to fix it."),
    "models": ("autospec.cli.models", "List the main models on this disk."),
    "drafts": ("autospec.cli.models", "Show which draft models fit a main model, and why others do not."),
    "estimate": ("autospec.cli.estimate", "Estimate what would make drafting faster, without measuring it."),
    "tune": ("autospec.cli.tune", "Measure where speculative decoding pays."),
    "recommend": ("autospec.cli.recommend", "Print the recommended configuration."),
    "explain": ("autospec.cli.report", "Explain a recommendation in words and numbers."),
    "report": ("autospec.cli.report", "Write what is known as one HTML page with figures."),
    "bench": ("autospec.cli.bench", "Compare one model with and without drafting on one prompt."),
    "studies": ("autospec.cli.studies", "List, show, import, export and look at studies."),
    "proxy": ("autospec.cli.proxy", "Serve your models, with the best drafting for each request."),
    "service": ("autospec.cli.daemon", "Run the daemon as a service (launchd, systemd)."),
    "daemon": ("autospec.cli.daemon", "Tune the models that you use while the machine is idle."),
    "config": ("autospec.cli.config", "Show and check the settings."),
    "completion": ("autospec.cli.config", "Print the script that completes commands in your shell."),
}


class _Commands(click.Group):
    """A group that imports a command when it runs, and exits with the codes of `autospec.errors`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = getattr(module, f"{cmd_name}_command", module.command)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {name}. {did_you_mean(name, COMMANDS)}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        # The names come from the table: click would import every command for its line of help.
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(n, help=line) for n, (_, line) in COMMANDS.items() if n.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
        except Exception as error:  # noqa: BLE001 - the outermost edge; exit_code_of reports each
            code = exit_code_of(error)
        sys.exit(_for_supervisor(close_output() or code))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(autospec.__version__, prog_name="autospec", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Find out on this machine whether speculative decoding pays.

    \b
      autospec doctor                  check this machine, and list what is missing
      autospec tune --model qwen3      measure, and write recommendations
      autospec recommend               show what to run, and why

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing known yet, 4 another autospec is
    running, 130 interrupted.
    """  # noqa: D301 - click needs the backspace itself
    if context.invoked_subcommand is None:
        from autospec.cli.first_steps import first_steps

        first_steps(Shell())


def _for_supervisor(code: int) -> int:
    """The exit code; launchd must not restart an agent with a wrong setting."""
    if not code or "XPC_SERVICE_NAME" not in os.environ:
        return code
    from autospec.service.managers import exit_code_for

    return exit_code_for(code, os.environ, os.getppid())


def main() -> NoReturn:
    """The program `autospec`."""
    cli.main(prog_name="autospec")
    raise AssertionError  # cli.main always exits
