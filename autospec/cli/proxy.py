"""`autospec proxy`: the server that editors, chat clients and agents are pointed at."""

from __future__ import annotations

import click

from autospec.cli.shell import Shell, command_options

__all__ = ["command"]


@click.command()
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Where to listen; 127.0.0.1, this machine only, unless set. Any other address needs a key, see below.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="8686 unless set; 0 takes a free one and says which."
)
@click.option(
    "-m",
    "--model",
    default="",
    metavar="M",
    help="Answers requests that name no model. A name of `autospec models`; an unambiguous part of it will do.",
)
@click.option(
    "--backend",
    metavar="B",
    help="The kind of server: llama-server, embedded, mlx …; if left out, what `autospec doctor` finds.",
)
@click.option(
    "--log-prompts", is_flag=True, help="With -v: write prompts into the log. Never done otherwise."
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVER ARGS…]")
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
    """Serve your models under one address, each request with the drafting that is best for it.

    Point any OpenAI or Anthropic client at the address that it prints, and ask for a model by its name. The server for it is
    started when the model is first asked for, so that the first answer takes some seconds longer, and stopped when nobody
    has used it for a while. How it is started is what `autospec tune` found out; a model that was never tuned runs
    without drafting. New findings take effect while the proxy runs. Answers are the server's own, byte for byte.

    \b
    Start it:
      autospec models                                    what can be served
      autospec proxy
      autospec proxy --model qwen3-coder-30b             clients need not name a model
      autospec proxy -- -ngl 99 -c 32768 --jinja         what follows -- is given to every server
      AUTOSPEC_PROXY_API_KEY=secret autospec proxy --host 0.0.0.0

    \b
    Use it:
      curl http://127.0.0.1:8686/v1/models
      curl -N http://127.0.0.1:8686/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "qwen3-coder-30b", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
      OPENAI_BASE_URL=http://127.0.0.1:8686/v1 OPENAI_API_KEY=none your-client
      ANTHROPIC_BASE_URL=http://127.0.0.1:8686 ANTHROPIC_API_KEY=none claude

    \b
    See what it does:
      curl http://127.0.0.1:8686/autospec/v1/status      servers, memory, who waits
      curl http://127.0.0.1:8686/autospec/v1/plan        which servers are kept, and why
      curl http://127.0.0.1:8686/autospec/metrics        for Prometheus

    \b
    The headers of a request may decide, and those of its answer tell:
      x-autospec-drafting: off                           this one without drafting
      x-autospec-prompt-type: coding                     the kind of prompt, where the guess is wrong

    Ctrl-C lets answers in flight end; a second one does not wait.
    """  # noqa: D301 - click needs the backspace itself
    # The address is settled before anything heavy is imported.
    shell.override(proxy_host=host, backend=backend, server_args=args or None)
    settings = shell.settings

    from autospec.proxy.serve import rules_for, run, run_on_best_loop

    if model and settings.backend != "attached":
        # A wrong name would be found out by the first client that names no model, long after whoever typed it has gone.
        from autospec.catalog.scan import scan

        scan(settings, beside=[model]).find(model)

    rules = rules_for(settings, default_model=model, log_prompts=log_prompts)

    def ready(base_url: str) -> None:
        if shell.json:
            shell.emit({"schema": 1, "base_url": base_url, "openai_base_url": f"{base_url}/v1"})
        shell.out(f"Serving on {base_url} (OpenAI clients: {base_url}/v1). Ctrl-C ends it.")

    def ending(in_flight: int) -> None:
        if in_flight:
            answers = "1 answer is" if in_flight == 1 else f"{in_flight} answers are"
            shell.say(f"{answers} in flight and may end; Ctrl-C again does not wait.")

    run_on_best_loop(
        run(
            settings,
            rules,
            port=settings.proxy_port if port is None else port,
            ready=ready,
            ending=ending,
        )
    )
