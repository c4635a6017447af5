"""`autospec config` and `autospec completion`: the settings, their sources, the config file; the completion script of a shell.

The scripts are click's: they call autospec at each Tab, so that no script has to be renewed after an upgrade.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from autospec.settings import Key, ModelSettings, Settings

__all__ = ["SHELLS", "command", "completion_command"]


@click.group()
def command() -> None:
    """Show and check the settings.

    \b
      autospec config path
      autospec config show
      autospec config show --template > config.toml
      autospec config check
    """  # noqa: D301 - click needs the backspace itself


@command.command()
@command_options
def path(shell: Shell) -> None:
    """Print the path of the config file, whether it exists or not."""
    from autospec.settings import locate_config

    file = locate_config(shell.config)
    if shell.json:
        shell.emit({"schema": 1, "path": str(file), "exists": file.is_file()})
    shell.out(str(file))


@command.command()
@click.option("--template", is_flag=True, help="Print a config file with every setting, commented out.")
@command_options
def show(shell: Shell, *, template: bool) -> None:
    """Print every setting with its value and source."""
    from autospec.settings import KEYS

    if template:
        text = "\n".join(_template_lines(KEYS))
        if shell.json:
            shell.emit({"schema": 1, "template": text})
        shell.out(text)
        return
    settings = shell.settings
    if shell.json:
        document = {
            key.name: {
                "value": _json(_value(settings, key)),
                "source": settings.sources[key.name],
                "variable": key.variable,
                "about": key.doc,
            }
            for key in KEYS
        }
        models = {section.name: _section(section) for section in settings.models}
        shell.emit({"schema": 1, "settings": document, "models": models})
    _warn_of_sections(shell)
    if shell.json:
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value", "from"):
        table.add_column(heading, overflow="fold")
    for key in KEYS:
        source = settings.sources[key.name]
        table.add_row(
            key.name, _shown(_value(settings, key)), key.variable if source == "environment" else source
        )
    for section in settings.models:
        for name, value in _section(section).items():
            table.add_row(_shown(f'models."{section.name}".{name}'), _shown(value), "file")
    shell.out(table)


@command.command()
@command_options
def check(shell: Shell) -> None:
    """Check config file and environment; exit with 2 and the reason if they are wrong.

    The study and the suite that they name are read, too. The database is not opened, and no server is started.
    """
    file = shell.settings.config_file
    _check_what_is_named(shell.settings)
    _warn_of_sections(shell)
    if shell.json:
        shell.emit({"schema": 1, "ok": True, "path": str(file), "exists": file.is_file()})
    shell.out(f"ok: {file}" if file.is_file() else f"ok: there is no {file}, the defaults apply")


def _check_what_is_named(settings: Settings) -> None:
    """Check what only other rooms know, or the disk. Only what is set: the check of the defaults would import much."""
    if settings.backend:
        from autospec.backends.registry import refuse_unknown

        refuse_unknown(settings.backend)
    if settings.sources["storage"] in ("environment", "file"):
        from autospec.store.database import read_url

        read_url(settings.storage)
    if settings.sources["study"] != "default":
        from autospec.tuning.definition import load_definition

        load_definition(settings.study)
    if settings.suite:
        from pathlib import Path

        from autospec.prompts.suite import load_suite

        load_suite(Path(settings.suite))


def _warn_of_sections(shell: Shell) -> None:
    """Warn of sections that apply to no model; the disk is searched only if there are sections."""
    if not shell.settings.models:
        return
    from autospec.catalog.scan import scan

    for note in scan(shell.settings).own.notes:
        shell.warn(note)


def _section(section: ModelSettings) -> dict[str, Any]:
    """The keys that a section sets."""
    values = {
        "server_args": list(section.server_args),
        "context_tokens": section.context_tokens,
        "mmproj": section.mmproj,
        "lora": [{"path": str(adapter.path), "scale": adapter.scale} for adapter in section.lora],
        "aliases": list(section.aliases),
    }
    return {key: value for key, value in values.items() if value or (key == "mmproj" and value is not None)}


def _value(settings: Settings, key: Key) -> object:
    # A secret setting has a second attribute for showing it.
    return getattr(settings, f"{key.name}_shown", None) or getattr(settings, key.name)


def _json(value: object) -> object:
    match value:
        case tuple():
            return [_json(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


def _shown(value: object) -> str:
    import shlex

    from rich.markup import escape

    match value:
        case tuple() | list():
            return escape(shlex.join(map(_item, value))) or "-"
        case bool():
            return "true" if value else "false"
        case None | "":
            return "-"
        case _:
            return escape(str(value))


def _item(value: object) -> str:
    """A value of a list; an adapter as llama-server writes it."""
    match value:
        case {"path": path, "scale": scale}:
            return str(path) if scale == 1.0 else f"{path}:{scale:g}"
        case _:
            return str(value)


def _template_lines(keys: tuple[Key, ...]) -> list[str]:
    """A TOML file with every setting of the config file, commented out, with its default or an example."""
    from autospec.settings import MODEL_KEYS

    examples = {
        "state_dir": '"~/autospec/state"',
        "cache_dir": '"~/autospec/cache"',
        "log_dir": '"~/autospec/logs"',
        "model_dirs": '["~/models"]',
        "storage": '"postgresql+psycopg://me@hub/autospec"',
        "server_args": '["-ngl", "99", "-c", "32768"]',
        "budget": '"20m"',
        "llama_server": '"/opt/llama.cpp/llama-server"',
        "backend": '"llama-server"',
        "suite": '"my-prompts.jsonl"',
        "study_storage": '"grpc://hub:13000"',
        "serve_statuses": '["proven", "stale"]',
        "on_change": '"~/bin/reload-my-servers --quiet"',
    }
    lines = ["# autospec's settings. Remove the # before a line to set it.", ""]
    for key in keys:
        if key.in_file:
            # JSON of a text, a number, a flag or a list is valid TOML.
            default = list(key.default) if isinstance(key.default, tuple) else key.default
            value = examples.get(key.name) or json.dumps(default)
            lines += [f"# {key.doc} ({key.variable})", f"#{key.name} = {value}", ""]
    lines += [
        "# Settings of one model. The name is a model's name, a part of it, or a path; `autospec models` lists the names.",
        '#[models."qwen3-8b-q4_k_m"]',
        "",
    ]
    of_models = {
        "server_args": '["--override-tensor", "exps=CPU"]',
        "context_tokens": "32768",
        "mmproj": '"~/models/mmproj-F16.gguf"',
        "lora": '["~/loras/style.gguf", {path = "~/loras/tone.gguf", scale = 0.5}]',
        "aliases": '["fast", "my-coder"]',
    }
    for name, about in MODEL_KEYS.items():
        lines += [f"# {about}", f"#{name} = {of_models[name]}", ""]
    return lines[:-1]


SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "autospec"
_VARIABLE = "_AUTOSPEC_COMPLETE"


@click.command()
@click.argument("shell_name", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@command_options
def completion_command(shell: Shell, *, shell_name: str) -> None:
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
