"""Time per token without drafting from answers of several lengths: does a short answer tell what a whole one tells?

Run: ``python -m studies.bench.short_answers --model M [--tokens 16]… [--whole 64] [--prompts 6] [--repeats 3]``

`autospec tune` cuts the answers of a slow model without drafting (`enough_tokens` in `autospec.measure.measurements`). One server
answers each prompt at each length, in an order that turns from prompt to prompt. One line per length: its time per token ÷ that of
whole answers to the same prompt a moment away, and the standard deviation of that ratio. A mean above 1 would favour drafting.
"""

from __future__ import annotations

import math
import statistics

from autospec.backends.protocol import LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.drafting import OFF
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.settings import load_settings
from studies.bench.real_grid import bench_parser


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__, max_tokens=64)
    parser.add_argument("--tokens", type=int, action="append", default=[], help="a shorter length")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    backend = backend_for(args.backend or None, load_settings())
    suite = load_suite()
    prompts = [p for t in suite.types() for p in suite.of(t, Half.PROVE)[:1]][: args.prompts]
    lengths = [*(args.tokens or [16, 24, 32]), args.max_tokens]
    log_ratios: dict[int, list[float]] = {length: [] for length in lengths[:-1]}
    times_ms: dict[int, list[float]] = {length: [] for length in lengths}
    server = backend.launch(args.model, OFF, LaunchSettings(args=("-c", "4096")))
    try:
        for turn in range(args.repeats * len(prompts)):
            start = turn % len(lengths)
            order = [*lengths[start:], *lengths[:start]]
            prompt = prompts[turn % len(prompts)]
            token_ms = {length: _token_ms(server, prompt, length) for length in order}
            for length, found in token_ms.items():
                times_ms[length].append(found)
                if length in log_ratios:
                    log_ratios[length].append(math.log(found / token_ms[lengths[-1]]))
    finally:
        server.stop()
    print(
        "| tokens | ms per token, median | ÷ whole answers | standard deviation | answers |\n|---|---|---|---|---|"
    )
    for length in lengths:
        found = log_ratios.get(length, [0.0])
        spread = f"{100 * statistics.stdev(found):.1f} %" if len(found) > 1 else "–"
        ratio = math.exp(statistics.fmean(found))
        print(
            f"| {length} | {statistics.median(times_ms[length]):.1f} | {ratio:.4f} | {spread} | {len(times_ms[length])} |"
        )


def _token_ms(server: Server, prompt: Prompt, tokens: int) -> float:
    request = Request(
        messages=prompt.messages, tools=prompt.tools, max_tokens=tokens, timeout_s=900.0, ignore_eos=True
    )
    answer = server.complete(request)
    return answer.predicted_ms / (answer.predicted_tokens - 1)


if __name__ == "__main__":
    main()
