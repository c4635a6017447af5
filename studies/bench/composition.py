"""Times of long requests computed from short measurements, compared with the same requests measured whole.

Run: ``python -m studies.bench.composition --model M [--draft D] [--prompt-type coding]… [--prompts 3]``

Each prompt gets a short answer, like in `autospec tune`, with drafting off and with one drafting, pair by pair. The time of a long
answer is computed from these (`autospec.measure.measurements`), and then the same servers give the long answer. One line per
prompt: computed ÷ measured time for off and drafting, and the two ratios. The goal is 3 %. What a longer context costs is timed
as in a tune; the column "flat" leaves it out. Two causes of an error are told apart: a token costs more in a longer answer, and a
draft is right less often, or more, further on.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

from autospec.backends.protocol import Backend, Completion, LaunchSettings, Request, Server, Tokens
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.measurements import DepthCosts, DepthRise, Measurement, Phase, RequestShape, token_ms_of
from autospec.predict.profile import Recording
from autospec.predict.recording import record, time_batches, time_depth, typical_of
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.settings import load_settings
from studies.bench.real_grid import bench_parser

LAUNCH = LaunchSettings(args=("-c", "4096"))
_LARGEST = 17
_MORE_TOKENS = 512


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__, max_tokens=64)
    parser.add_argument("--prompt-type", action="append", default=[], choices=[str(t) for t in PromptType])
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--long", type=int, default=300, help="tokens of the long answer")
    parser.add_argument("--n-max", type=int, default=8)
    args = parser.parse_args()
    backend = backend_for(args.backend or None, load_settings())
    drafting = (
        Drafting(Mode.DRAFT_MODEL, draft=args.draft[0], n_max=args.n_max, n_min=0, p_min=0.0)
        if args.draft
        else Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
    )
    suite = load_suite()
    types = [PromptType(t) for t in args.prompt_type] or [PromptType.CODING, PromptType.CHAT]
    prompts = [p for t in types for p in suite.of(t, Half.PROVE)[: args.prompts]]
    print(
        "| prompt | tokens | off, ÷ measured | drafting | ratio put together | flat | measured | generation alone"
        " | ms a token, off: short, long | tokens a cycle: short, long |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    errors: list[tuple[float, float]] = []
    off = backend.launch(args.model, OFF, LAUNCH)
    try:
        depth = _depth(backend, off, drafting.draft, prompts, args.max_tokens)
        drafted = backend.launch(args.model, drafting, LAUNCH)
        try:
            for number, prompt in enumerate(prompts):
                order = (off, drafted) if number % 2 == 0 else (drafted, off)
                short = {s.launch_id: _ask(s, prompt, args.max_tokens) for s in order}
                long = {s.launch_id: _ask(s, prompt, args.long) for s in order}
                errors.append(_line(prompt, short, long, (off, drafted), depth))
        finally:
            drafted.stop()
    finally:
        off.stop()
    for name, found in zip(("with what context costs", "flat"), zip(*errors, strict=True), strict=True):
        print(
            f"\nerror of the ratio {name}, median of its size: {100 * statistics.median(map(abs, found)):.1f} %,"
        )
        print(f"mean with its sign: {100 * statistics.fmean(found):+.1f} %")


def _depth(
    backend: Backend, off: Server, draft: str | None, prompts: list[Prompt], max_tokens: int
) -> DepthCosts | None:
    """What context adds to the passes, timed as a tune does; ``None`` if the server cannot be asked in tokens."""
    if off.tokens is None:
        return None
    requests = [Request(messages=p.messages, tools=p.tools, max_tokens=max_tokens) for p in prompts]
    recordings = [record(off.tokens, p.id, r) for p, r in zip(prompts, requests, strict=True)]
    main = rise = _rise(off.tokens, recordings)
    rises = {"": main}
    if draft is not None:
        alone = backend.launch(draft, OFF, LAUNCH)
        try:
            if alone.tokens is not None:
                rise = main.with_draft(_rise(alone.tokens, recordings), verifies=True)
                rises[draft] = rise
        finally:
            alone.stop()
    plain_ms = statistics.median(r.token_ms for r in recordings)
    per_mille = [1000.0 * value / plain_ms for value in (main.pass_ms, rise.pass_ms, rise.token_ms)]
    print(
        "Each 1000 tokens of context add, in times of one token: {:.2f} to a token, {:.2f} to a cycle,"
        " {:.2f} to each proposal.\n".format(*per_mille)
    )
    reach = len(typical_of(recordings).prompt_ids) + _MORE_TOKENS
    return DepthCosts(plain_ms, reach, rises)


def _rise(tokens: Tokens, recordings: list[Recording]) -> DepthRise:
    near_ms = time_batches(tokens, typical_of(recordings), _LARGEST)
    return time_depth(tokens, recordings, near_ms, _MORE_TOKENS)


def _ask(server: Server, prompt: Prompt, tokens: int) -> Measurement:
    request = Request(
        messages=prompt.messages, tools=prompt.tools, max_tokens=tokens, timeout_s=900.0, ignore_eos=True
    )
    return _measurement(server, prompt, server.complete(request))


def _measurement(server: Server, prompt: Prompt, answer: Completion) -> Measurement:
    return Measurement(
        cell_key="bench", protocol="bench", phase=Phase.BENCH, round=1, drafting=server.drafting,
        compared=server.drafting, prompt_id=prompt.id, launch_id=server.launch_id, position=0, started_at=0.0,
        prompt_tokens=answer.prompt_tokens, predicted_tokens=answer.predicted_tokens, prompt_ms=answer.prompt_ms,
        predicted_ms=answer.predicted_ms, wall_ms=answer.wall_ms, drafted=answer.drafted,
        accepted=answer.accepted, text_digest="", finish_reason="length",
    )  # fmt: skip


def _tokens_a_cycle(half: Measurement) -> float:
    """Generated tokens for each pass of the main model; the accepted ones are all but one of a cycle."""
    return half.predicted_tokens / max(1, half.predicted_tokens - (half.accepted or 0))


def _line(
    prompt: Prompt,
    short: dict[str, Measurement],
    long: dict[str, Measurement],
    servers: tuple[Server, Server],
    depth: DepthCosts | None,
) -> tuple[float, float]:
    """Print one prompt; return the errors of its ratio in logs, with `depth` and without. `servers`: off, the drafting."""
    off, drafted = servers
    shape = RequestShape(
        long[off.launch_id].prompt_tokens,
        long[off.launch_id].predicted_tokens,
        source="measured",
        depth=depth,
    )

    def times(of: RequestShape, found: dict[str, Measurement]) -> tuple[float, float]:
        put, by_drafting = (of.request_ms(found[s.launch_id], found[off.launch_id]) for s in servers)
        return put, by_drafting

    (put_ms, put_drafted_ms), real_ms = times(shape, short), times(shape, long)
    flat_ms = times(replace(shape, depth=None), short)
    of_parts, flat, measured = put_ms / put_drafted_ms, flat_ms[0] / flat_ms[1], real_ms[0] / real_ms[1]
    generation = token_ms_of(long[off.launch_id]) / token_ms_of(long[drafted.launch_id])
    off_ms = [token_ms_of(found[off.launch_id]) for found in (short, long)]
    cycle = [_tokens_a_cycle(found[drafted.launch_id]) for found in (short, long)]
    print(
        f"| {prompt.id} | {shape.answer_tokens:.0f} | {put_ms / real_ms[0]:.3f} | {put_drafted_ms / real_ms[1]:.3f}"
        f" | {of_parts:.3f} | {flat:.3f} | {measured:.3f} | {generation:.3f} |"
        f" {off_ms[0]:.1f}, {off_ms[1]:.1f} | {cycle[0]:.2f}, {cycle[1]:.2f} |",
        flush=True,
    )
    return math.log(of_parts / measured), math.log(flat / measured)


if __name__ == "__main__":
    main()
