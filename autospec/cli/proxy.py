"""`autospec proxy`: the server to which editors, chat clients and agents connect."""

from __future__ import annotations

from contextlib import suppress

import click

from autospec.cli.options import complete_model, server_args
from autospec.cli.shell import Shell, command_options

__all__ = ["command"]


@click.command()
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Address to listen on; any address except loopback needs proxy_api_key. [default: the setting proxy_host, 127.0.0.1]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; with 0 the proxy chooses a free port and prints it. [default: the setting proxy_port, 8686]",
)
@click.option(
    "-m",
    "--model",
    default="",
    metavar="M",
    shell_complete=complete_model,
    help="Model for requests that name none: a name from `autospec models`, or an unambiguous part of one.",
)
@click.option(
    "--backend",
    metavar="B",
    help="Backend; `autospec doctor` lists them. [default: an installed one that runs the model]",
)
@click.option("--log-prompts", is_flag=True, help="Write prompts into the log (with -v).")
@server_args
@command_options
def command(
    shell: Shell,
    *,
    host: str | None,
    port: int | None,
    model: str,
    backend: str | None,
    log_prompts: bool,
    args: tuple[str, ...],
) -> None:
    """Serve all your models at one address, each request with the best measured drafting.

    Point any OpenAI or Anthropic client at the printed address, and request a model by its name. The first request for a
    model starts its server, which takes some seconds; a server that is unused for a while is stopped. The recommendations of
    `autospec tune` decide how a server is started; a model without them runs without drafting. New recommendations take
    effect while the proxy runs. Answers pass through unchanged, byte for byte.

    \b
    Start it:
      autospec models                                    list the models
      autospec proxy
      autospec proxy --model qwen3-coder-30b             clients need not name a model
      autospec proxy -- -ngl 99 -c 32768 --jinja         arguments after -- go to every server
      AUTOSPEC_PROXY_API_KEY=secret autospec proxy --host 0.0.0.0

    \b
    Use it:
      curl http://127.0.0.1:8686/v1/models
      curl -N http://127.0.0.1:8686/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "qwen3-coder-30b", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
      OPENAI_BASE_URL=http://127.0.0.1:8686/v1 OPENAI_API_KEY=none your-client
      ANTHROPIC_BASE_URL=http://127.0.0.1:8686 ANTHROPIC_API_KEY=none claude

    \b
    Watch it:
      http://127.0.0.1:8686/autospec/                    a page for a browser
      curl http://127.0.0.1:8686/autospec/v1/status      servers, memory, waiting requests
      curl http://127.0.0.1:8686/autospec/v1/plan        which servers are kept, and why
      curl http://127.0.0.1:8686/autospec/metrics        for Prometheus

    \b
    Headers of a request, and of its answer:
      x-autospec-drafting: off                           answer this request without drafting
      x-autospec-prompt-type: coding                     set the prompt type, if the detected one is wrong

    Ctrl-C lets answers in progress finish; press it again to stop at once.
    """  # noqa: D301 - click needs the backspace itself
    shell.override(proxy_host=host, backend=backend, server_args=args or None)
    settings = shell.settings
    shell.warn_of_variables()

    from autospec.formats import counted
    from autospec.proxy.serve import rules_for, run, run_on_best_loop

    if model and settings.backend != "attached":
        # Report a wrong name now, and not to the first client that names no model.
        from autospec.catalog.scan import scan

        scan(settings, beside=[model]).find(model)

    rules = rules_for(settings, default_model=model, log_prompts=log_prompts)

    def ready(base_url: str) -> None:
        if shell.json:
            shell.emit({"schema": 1, "base_url": base_url, "openai_base_url": f"{base_url}/v1"})
        shell.out(f"Serving on {base_url} (OpenAI clients: {base_url}/v1). Press Ctrl-C to stop.")

    def ending(in_flight: int) -> None:
        if in_flight:
            answers = counted(in_flight, "answer")
            with suppress(OSError):  # the terminal is closed
                shell.say(f"Waiting for {answers} to finish. Press Ctrl-C again to stop at once.")

    run_on_best_loop(
        run(
            settings,
            rules,
            port=settings.proxy_port if port is None else port,
            ready=ready,
            ending=ending,
        )
    )
