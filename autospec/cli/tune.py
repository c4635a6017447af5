"""`autospec tune`: the main job."""

from __future__ import annotations

from typing import Any

import click

from autospec.cells import PromptType
from autospec.cli.shell import Shell, command_options

__all__ = ["command"]


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "-m", "--model", required=True, metavar="M", help="Main model: a path, a name or a part of one."
)
@click.option(
    "--backend",
    metavar="B",
    help="The kind of server, as doctor lists them; chosen by what the model is and what is installed if left out.",
)
@click.option(
    "--url", metavar="URL", help="Address of a server that runs already; implies --backend attached."
)
@click.option(
    "-t",
    "--prompt-type",
    "prompt_types",
    multiple=True,
    type=click.Choice([str(t) for t in PromptType]),
    help="Only this kind of prompt; may be given several times. Default: all.",
)
@click.option(
    "-d",
    "--draft",
    "drafts",
    multiple=True,
    metavar="D",
    help="Try only this draft model (path or name); may be given several times.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="How long it may take, e.g. 20m; what was begun ends within a minute more, or 5 %. Default: the study's.",
)
@click.option("--study", metavar="NAME|FILE", help="quick, default, thorough, or a TOML file of your own.")
@click.option("--suite", metavar="FILE", help="Your own prompts (JSONL).")
@click.option("--again", is_flag=True, help="Measure again what is proven already.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER ARGS…]")
@command_options
def command(shell: Shell, /, model: str, **options: Any) -> int | None:
    """Find out by measuring where drafting pays, and write recommendations.

    Searches over draft models, draft-max, p-min and the draft-free modes on one half of the prompts, then proves the
    best on the other half, paired with drafting off. Ctrl-C keeps what is known; run it again to go on. What follows
    -- is given to every server, e.g. -- -ngl 99 -c 32768 --jinja.

    \b
    Examples:
      autospec tune --model qwen3-coder-30b
      autospec tune --model qwen3-coder-30b --prompt-type coding --budget 20m
      autospec tune --model ~/models/big.gguf --draft ~/models/small.gguf -- -ngl 99 -fa on
    """  # noqa: D301 - click needs the backspace itself
    shell.override(
        backend=options["backend"] or ("attached" if options["url"] else None),
        attached_url=options["url"],
        study=options["study"],
        suite=options["suite"],
        budget=options["budget"],
    )
    from autospec.backends.registry import backend_for
    from autospec.cli.tune_display import TuneDisplay, interruptible
    from autospec.errors import UnsupportedError
    from autospec.hardware import identify
    from autospec.recommendations import document
    from autospec.report.tables import recommendation_table
    from autospec.tuning.prepare import prepare
    from autospec.tuning.run import Tuning

    request = prepare(
        shell.settings,
        model,
        drafts=options["drafts"],
        prompt_types=[PromptType(t) for t in options["prompt_types"]],
        args=options["args"],
        again=options["again"],
        warn=shell.warn,
    )
    hardware = identify()
    backend = backend_for(shell.settings.backend or None, shell.settings, request.model)
    if (abilities := backend.capabilities()).measures_only:
        raise UnsupportedError(
            f"Nothing about drafting can be set in a request to {abilities.build.version}, so there is nothing to tune.",
            "Tune with --backend llama-server or mlx and start your server with the flags that `autospec recommend "
            "--format args` prints; `autospec bench --url` measures it as it runs.",
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
    if shell.json:
        shell.emit(document(hardware, recommendations))
    elif recommendations:
        shell.out(recommendation_table(recommendations))
    if interrupted:
        shell.warn("Interrupted. What was measured is kept; run the same command again to go on.")
        return 130
    return None
