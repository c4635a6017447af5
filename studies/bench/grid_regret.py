"""The recommended drafting compared with an exhaustive grid, on a real server.

Run after ``autospec tune``:
``python -m studies.bench.grid_regret --model M --draft D --prompt-type coding [--prompts 4] [--max-tokens 64]``

Every drafting of the grid (n_max × p_min of the draft model, and n-gram modes at three sizes) and the recommended one is launched
once and measured on the prove prompts, paired with off, in one run. The output is the grid, and for each prompt type the
recommendation's speed relative to the best of the grid (goal: at least 0.95), with off as 1. The best of a noisy grid is
partly luck, so the true ratio is better than the printed one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from autospec.backends.protocol import LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.catalog.scan import scan
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.errors import BackendError
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.settings import load_settings
from autospec.store.reader import read_recommendations
from studies.bench.real_grid import bench_parser

N_MAX = (1, 2, 4, 8, 16)
P_MIN = (0.0, 0.5, 0.8)
NGRAM = ((4, 16), (8, 32), (12, 48))


def main() -> None:
    """Print grid and regret."""
    parser = bench_parser(__doc__, max_tokens=64)
    parser.add_argument("--prompt-type", action="append", default=[], choices=[str(t) for t in PromptType])
    parser.add_argument("--prompts", type=int, default=4)
    args = parser.parse_args()

    settings = load_settings()
    catalog = scan(settings)
    model = catalog.find(args.model)
    drafts = [str(catalog.find(d).path) for d in args.draft]
    backend = backend_for(args.backend or None, settings)
    suite = load_suite()
    types = [PromptType(t) for t in args.prompt_type] or list(suite.types())
    recommended = {
        s.recommendation.prompt_type: s.recommendation
        for s in read_recommendations(settings.storage)
        if s.recommendation.model == model.name and s.recommendation.backend == backend.name
    }
    grid = list(dict.fromkeys([*_grid(drafts), *(r.drafting for r in recommended.values())]))
    modes = backend.capabilities().modes
    launch = LaunchSettings(args=("-c", str(settings.context_tokens)))
    print("| drafting | " + " | ".join(types) + " |")
    print("|---" * (1 + len(types)) + "|")
    off = backend.launch(str(model.path), OFF, launch)
    results: dict[PromptType, dict[Drafting, float]] = {t: {OFF: 1.0} for t in types}
    try:
        for drafting in grid:
            if drafting.is_off or drafting.mode not in modes:
                continue
            try:
                server = backend.launch(str(model.path), drafting, launch)
            except BackendError as error:
                print(f"| {drafting.label} | {error.message} |")
                continue
            try:
                for prompt_type in types:
                    prompts = suite.of(prompt_type, Half.PROVE)[: args.prompts]
                    results[prompt_type][drafting] = _ratio(off, server, prompts, args.max_tokens)
            finally:
                server.stop()
            cells = " | ".join(f"{results[t][drafting]:.3f}" for t in types)
            print(f"| {drafting.label} | {cells} |", flush=True)
    finally:
        off.stop()
    print(
        "\n| prompt type | recommended | its ratio | best of the grid | its ratio | reached |\n|---|---|---|---|---|---|"
    )
    for prompt_type in types:
        if prompt_type not in recommended:
            continue
        found = results[prompt_type]
        chosen = recommended[prompt_type].drafting
        best = max(found, key=lambda d: found[d])
        print(
            f"| {prompt_type} | {chosen.label} | {found[chosen]:.3f} | {best.label} | {found[best]:.3f} "
            f"| {found[chosen] / found[best]:.3f} |"
        )


def _grid(drafts: list[str]) -> Iterator[Drafting]:
    for draft in drafts:
        for n_max in N_MAX:
            for p_min in P_MIN:
                yield Drafting(Mode.DRAFT_MODEL, draft=draft, n_max=n_max, n_min=0, p_min=p_min)
    for n, m in NGRAM:
        yield Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=m, min_hits=1)
        yield Drafting(Mode.NGRAM_MOD, ngram_n=n, n_max=m, n_min=0)
    # llama.cpp's own defaults (b11434).
    yield Drafting(Mode.NGRAM_MOD, ngram_n=24, n_max=64, n_min=48)


def _ratio(off: Server, server: Server, prompts: tuple[Prompt, ...], max_tokens: int) -> float:
    logs = []
    for k, prompt in enumerate(prompts):
        request = Request(
            messages=prompt.messages, max_tokens=min(max_tokens, prompt.max_tokens), tools=prompt.tools
        )
        order = (off, server) if k % 2 == 0 else (server, off)
        speeds = {s.launch_id: s.complete(request).request_tps for s in order}
        logs.append(math.log(speeds[server.launch_id] / speeds[off.launch_id]))
    return math.exp(statistics.fmean(logs))


if __name__ == "__main__":
    main()
