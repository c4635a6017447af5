"""`autospec completion`: the completion script of a shell.

The scripts are click's: they call autospec at each Tab, so that no script has to be renewed after an upgrade.
"""

from __future__ import annotations

import click

from autospec.cli.shell import Shell, command_options

__all__ = ["SHELLS", "command"]

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "autospec"
_VARIABLE = "_AUTOSPEC_COMPLETE"


@click.command()
@click.argument("shell_name", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@command_options
def command(shell: Shell, *, shell_name: str) -> None:
    """Print the script with which bash, zsh or fish completes autospec's commands, options and model names.

    Model names are those of the last search (`autospec models`); Tab itself does not search the disk.

    \b
    bash 4.4 or newer, in ~/.bashrc:
      eval "$(autospec completion bash)"
    zsh, in ~/.zshrc after compinit:
      eval "$(autospec completion zsh)"
    fish, once:
      autospec completion fish > ~/.config/fish/completions/autospec.fish
    """  # noqa: D301 - click needs the backspace itself
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell_name)
    assert kind is not None, shell_name  # click has these three
    root = click.get_current_context().find_root().command
    script = kind(root, {}, _PROGRAM, _VARIABLE).source()
    if shell.json:
        shell.emit({"schema": 1, "shell": shell_name, "script": script})
    shell.out(script)
