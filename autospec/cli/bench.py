"""`autospec bench`: one prompt with and without drafting, as the tables of the reference benchmark."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from autospec.cli.options import complete_model, model_option, server_args, server_options
from autospec.cli.shell import Shell, command_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from autospec.backends.protocol import Capabilities, Request
    from autospec.catalog.model import Model
    from autospec.catalog.scan import Catalog
    from autospec.cells import Hardware
    from autospec.drafting import Drafting, Mode
    from autospec.measure.bench import Run, RunGroup

__all__ = ["command"]


@click.command()
@model_option()
@click.option(
    "-d",
    "--draft",
    default="",
    metavar="D",
    help="Draft model. [default: the best one that fits]",
    shell_complete=complete_model,
)
@click.option(
    "--n-max",
    type=click.IntRange(min=1),
    multiple=True,
    default=(8, 4),
    show_default=True,
    help="Maximum number of draft tokens per cycle; may be repeated.",
)
@click.option(
    "--p-min",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Minimum probability of a draft token, if the backend has it.",
)
@click.option(
    "--drafting",
    "texts",
    multiple=True,
    metavar="DRAFTING",
    help="A drafting, written as in autospec's tables, e.g. draft-model+ngram-simple; may be repeated. Its own n_max overrides --n-max.",
)
@click.option("--prompt", metavar="TEXT", help="The prompt. [default: that of the reference benchmark]")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Maximum number of tokens of each answer.",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Runs with each configuration."
)
@server_options
@server_args
@command_options
def command(
    shell: Shell,
    *,
    model: str,
    draft: str,
    n_max: tuple[int, ...],
    p_min: float,
    texts: tuple[str, ...],
    prompt: str | None,
    max_tokens: int,
    runs: int,
    backend: str | None,
    url: str | None,
    args: tuple[str, ...],
) -> None:
    """Measure one prompt with and without drafting, and print a Markdown report.

    \b
      autospec bench --model qwen3-coder-30b
      autospec bench -m qwen3-coder-30b -d qwen3-0.6b --n-max 8 --n-max 4 -- -ngl 99 -c 32768
      autospec bench -m qwen3-coder-30b --runs 5 > record.md
      autospec bench -m qwen3-coder-30b --drafting draft-model --drafting "draft-model + ngram-mod 24/64"
      autospec bench -m qwen3-coder-30b --url http://127.0.0.1:8080
    """  # noqa: D301 - click needs the backspace itself
    import datetime as dt

    from autospec.backends.attached.backend import Attached
    from autospec.backends.protocol import LaunchSettings, Request
    from autospec.backends.registry import backend_for
    from autospec.catalog.scan import scan
    from autospec.drafting import OFF, Drafting, Mode
    from autospec.errors import UsageError
    from autospec.hardware import identify
    from autospec.hardware.awake import kept_awake
    from autospec.hardware.processes import machine_lock
    from autospec.measure.bench import group_runs, measure_runs

    question = _question(prompt)
    shell.choose_server(backend, url)
    settings, here = shell.settings, identify()
    catalog = scan(settings)
    main = catalog.find(model)
    context = catalog.own.context_tokens(main, settings)
    # A mistake is reported before looking for backends.
    named = _named_draft(catalog, main, draft) if draft else None
    server = backend_for(settings.backend or None, settings, main)
    abilities = server.capabilities()
    launch = LaunchSettings(args=catalog.own.args(main, settings, args))
    best = partial(_best_draft, catalog, main, context) if named is None else lambda _mode=None: named
    draftings, notes = [OFF], abilities.notes
    if isinstance(server, Attached) and abilities.measures_only:
        if texts:
            raise UsageError(
                "A server of this kind cannot change its drafting while it runs.", "Leave --drafting out."
            )
        server = server.as_it_runs()
        if fitting := best():
            notes = (*notes, _how_to_compare(fitting, n_max[0], p_min))
    elif texts:
        draftings += _read(texts, n_max, p_min, abilities, partial(_draft_of, catalog, main, best))
        for drafting in draftings:
            server.command(str(main.path), drafting, launch)  # raises if the build cannot draft so
    elif Mode.DRAFT_MODEL not in abilities.modes:
        # llama-cpp-python drafts only from the text; matching two tokens is its own default.
        draftings += [Drafting(Mode.PROMPT_LOOKUP, n_max=n, ngram_n=2) for n in dict.fromkeys(n_max)]
    else:
        draftings += _draftings(best() or _no_draft(main), n_max, p_min, abilities)
        notes = ()
    request = Request(messages=({"role": "user", "content": question},), max_tokens=max_tokens)

    def tell(number: int, drafting: Drafting) -> None:
        shell.say(f"run {number + 1} of {runs}: {drafting.label}")

    with machine_lock(f"bench {main.name}"), kept_awake():
        measured = measure_runs(server, str(main.path), draftings, request, launch, runs=runs, on_start=tell)
    groups = group_runs(
        measured,
        backend=server.name,
        build=abilities.build.version,
        model=main.name,
        model_file=main.path.name,
    )
    # In the order of the request; they ran in another one.
    groups.sort(key=lambda g: draftings.index(g.drafting))
    today = dt.datetime.now().astimezone().date().isoformat()
    if shell.json:
        shell.emit(_document(groups, measured, main, here, request=request, today=today))
        return
    from autospec.report.records import benchmark_markdown

    shell.out(
        benchmark_markdown(
            groups,
            title="Speculative Decoding Benchmark",
            date=today,
            hardware=f"{here.chip}, {round(here.memory_bytes / 2**30)} GB",
            prompt=question,
            max_tokens=max_tokens,
            methodology=(*_methodology(groups, measured, abilities, main, runs), *notes),
        )
    )


def _question(prompt: str | None) -> str:
    """The prompt to measure; raises UsageError for an empty one."""
    from autospec.errors import UsageError
    from autospec.measure.bench import REFERENCE_PROMPT

    if prompt is None:
        return REFERENCE_PROMPT
    if not prompt.strip():
        raise UsageError(
            "The prompt is empty.", "Leave --prompt out for the prompt of the reference benchmark."
        )
    return prompt


def _no_draft(main: Model) -> NoReturn:
    from autospec.errors import ModelChoiceError

    raise ModelChoiceError(
        f"No draft model on this disk fits {main.name}.",
        f"`autospec drafts --model {main.name}` shows why. Name one with --draft.",
    )


def _draft_of(
    catalog: Catalog, main: Model, best: Callable[[Mode], Model | None], mode: Mode, name: str
) -> str | None:
    """The path of the draft that a text names, else of that of `--draft` or the best one (`best`)."""
    from autospec.drafting import Mode

    if mode is Mode.MTP and not name:
        return None
    model = _named_draft(catalog, main, name) if name else best(mode)
    return str((model or _no_draft(main)).path)


def _best_draft(catalog: Catalog, main: Model, context_tokens: int, mode: Mode | None = None) -> Model | None:
    """The best draft model that fits; for another `mode`, the best head of that kind."""
    from autospec.catalog.candidates import candidates_here
    from autospec.drafting import Mode

    found = candidates_here(main, catalog.models, context_tokens)
    return next((c.model for c in found if c.fits and c.mode is (mode or Mode.DRAFT_MODEL)), None)


def _named_draft(catalog: Catalog, main: Model, wanted: str) -> Model:
    from autospec.catalog.candidates import format_mismatch
    from autospec.errors import ModelChoiceError

    named = catalog.find(wanted)
    if why := format_mismatch(main, named):
        raise ModelChoiceError(
            f"{named.name} {why}.", f"`autospec drafts --model {main.name}` lists the models that fit."
        )
    return named


def _draftings(draft: Model, n_max: tuple[int, ...], p_min: float, abilities: Capabilities) -> list[Drafting]:
    from autospec.drafting import Drafting, Mode

    mode = Mode(draft.draft_kind) if draft.draft_kind else Mode.DRAFT_MODEL
    path = None if mode is Mode.MTP else str(draft.path)
    if abilities.only is not None:
        return [Drafting(mode, draft=path, n_max=abilities.only[0], n_min=0, p_min=abilities.only[1])]
    least = (0, p_min) if abilities.takes_p_min else (None, None)
    return [Drafting(mode, draft=path, n_max=n, n_min=least[0], p_min=least[1]) for n in dict.fromkeys(n_max)]


def _read(
    texts: tuple[str, ...],
    n_max: tuple[int, ...],
    p_min: float,
    abilities: Capabilities,
    draft_of: Callable[[Mode, str], str | None],
) -> list[Drafting]:
    """The draftings that the user named, each once; one without an n_max of its own is read with each `n_max`."""
    from autospec.drafting import read_drafting

    if abilities.only is not None:
        n_max, p_min = (abilities.only[0],), abilities.only[1] or 0.0
    least = {"n_min": 0, "p_min": p_min} if abilities.takes_p_min else {}
    found = [
        read_drafting(text, draft=draft_of, model_defaults={"n_max": n, **least})
        for text in texts
        for n in n_max
    ]
    return list(dict.fromkeys(found))


def _how_to_compare(draft: Model, n_max: int, p_min: float) -> str:
    """How to start the user's server with drafting, if its drafting is fixed then."""
    from autospec.drafting import Drafting, Mode
    from autospec.report.server_config import newest_args

    drafting = Drafting(Mode.DRAFT_MODEL, draft=str(draft.path), n_max=n_max, n_min=0, p_min=p_min)
    return f"To start a current llama-server with drafting, add `{shlex.join(newest_args(drafting))}`."


def _methodology(
    groups: list[RunGroup], measured: list[Run], abilities: Capabilities, main: Model, runs: int
) -> tuple[str, ...]:
    build = abilities.build
    p_min = [g.drafting.p_min for g in groups if g.drafting.p_min is not None]
    clock = "the server's clock"
    if groups[0].backend == "mlx":
        clock = "the clock of `mlx_lm.stream_generate` (`generation_tps`)"
    kind = f"MoE, {main.active_experts} of {main.experts} experts active" if main.is_moe else "dense"
    sentences = [
        f"**Backend:** {build.backend} {build.version}",
        f"**Main Model:** {main.name} ({main.architecture}, {kind}, {main.quantization})",
        f"Token generation speeds use {clock}; whole requests use autospec's clock.",
        _how_runs_went(abilities, runs),
    ]
    if groups[0].backend == "mlx":
        sentences.append(
            "That clock starts with the first token, and with drafting the first cycle yields up to n more tokens: for "
            "short answers compare whole requests."
        )
    if p_min:
        sentences.append(
            f"The draft model stops proposing when a token's probability is below {p_min[0]:g} (p-min); draft-min is 0."
        )
    off_texts = {r.completion.text for r in measured if r.drafting.is_off}
    drafted = [r for r in measured if not r.drafting.is_off]
    same = sum(r.completion.text in off_texts for r in drafted)
    if drafted:
        sentences.append(
            f"{same} of {len(drafted)} answers with drafting were the same text as without drafting."
        )
    if disturbed := sum(bool(r.disturbance) for r in measured):
        sentences.append(
            f"Other programs disturbed {disturbed} of {len(measured)} runs; measure again on an idle machine."
        )
    return tuple(sentences)


def _how_runs_went(abilities: Capabilities, runs: int) -> str:
    if abilities.build.backend == "mlx":
        where = "each in its own process (`mlx_lm.stream_generate`, no server), one process at a time"
    elif abilities.measures_only or abilities.drafting_per_request:
        where = "one request after another to the same server"
    else:
        where = "each on a newly launched server (a repeated prompt would be cached), one server at a time"
    return (
        f"{runs} runs of each configuration, {where}, in an order that reverses from run to run; a short different prompt "
        "first as a warm-up; temperature 0."
    )


def _document(
    groups: list[RunGroup], measured: list[Run], main: Model, here: Hardware, *, request: Request, today: str
) -> dict[str, Any]:
    from autospec.measure.bench import compare_runs, pooled_noise
    from autospec.measure.verdict import DEFAULT_RULE

    off = groups[0]
    off_texts = {r.completion.text for r in measured if r.drafting.is_off}
    noise = pooled_noise(g.runs_tps for g in groups)

    def result(group: RunGroup) -> dict[str, Any]:
        runs = [r for r in measured if r.drafting == group.drafting]
        data: dict[str, Any] = {
            "drafting": group.drafting.to_json(),
            "mean_tps": round(group.mean_tps, 3),
            "command": list(group.command),
            "runs": [
                {
                    "tps": round(r.completion.decode_tps, 3),
                    "request_tps": round(r.completion.request_tps, 3),
                    "tokens": r.completion.predicted_tokens,
                    "prompt_ms": round(r.completion.prompt_ms, 2),
                    "drafted": r.completion.drafted,
                    "accepted": r.completion.accepted,
                    "same_text": r.completion.text in off_texts,
                    "disturbed": r.disturbance,
                    "launch_id": r.launch_id,
                }
                for r in runs
            ],
        }
        if group is not off:
            c = compare_runs(off.runs_tps, group.runs_tps, pooled=noise, level=DEFAULT_RULE.error_rate)
            data["speedup"] = round(c.ratio, 4)
            data["speedup_ci"] = None if c.interval is None else [round(v, 4) for v in c.interval]
        return data

    return {
        "schema": 1,
        "date": today,
        "hardware": here.to_json(),
        "model": main.name,
        "model_path": str(main.path),
        "backend": off.backend,
        "backend_build": off.build,
        "prompt": request.messages[0]["content"],
        "max_tokens": request.max_tokens,
        "results": [result(group) for group in groups],
    }
