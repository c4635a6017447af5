"""How much launches of one server differ: one launch stays, the other one is repeated.

Run: ``python studies/bench/launch_scatter.py --model PATH [--backend mlx] [--launches 8] [--pairs 16] [--tokens 16]``

Both get the same short request in turns (stayed, new, new, stayed, …), so that heat, other load and slow phases of the machine
cancel within each pair. The output is:

* for every launch, how much faster it generates than the one that stayed, with its standard error;
* the standard deviation between launches without drift, with its upper 95 % limit and its resolution (its value if launches do
  not differ at all);
* the same requests without pairs: the standard deviation of the new launches' mean speeds, and that of the mean speeds of the
  *one* launch that stayed, block by block at the same times. If the two are alike, the machine changed and not the launches;
* the scatter of one pair.

MLX on a CPU takes seconds per token: use e.g. ``--tokens 4 --pairs 8``. No launch begins if the remaining time (`--minutes`) is
too short for it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

from autospec.backends.protocol import Backend, LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.drafting import OFF
from autospec.hardware.state import StateWatch
from autospec.measure.launch_scatter import LaunchComparison, LaunchScatter
from autospec.settings import load_settings
from autospec.tuning.launch_scatter import abba, short_request


@dataclass(frozen=True, slots=True)
class Block:
    """One new launch beside the one that stayed: means of ln(tokens per second), and cores that others used meanwhile."""

    comparison: LaunchComparison
    stayed: float
    new: float
    other_load: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a GGUF file, or an MLX folder with --backend mlx")
    parser.add_argument("--backend", default="")
    parser.add_argument("--launches", type=int, default=8, help="new launches, at least 2")
    parser.add_argument("--pairs", type=int, default=16, help="pairs for each launch, an even number")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of one request")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no launch that would take longer")
    args = parser.parse_args()
    if args.launches < 2 or args.pairs < 2 or args.pairs % 2 or args.tokens < 1:
        parser.error("needs at least 2 launches, an even number of pairs, and tokens")
    backend = backend_for(args.backend or None, load_settings())
    build = backend.capabilities().build
    print(f"{build.backend} {build.version}, {args.pairs} pairs of {args.tokens} tokens for each launch\n")
    print(
        "| launch | against the one that stayed | standard error | cores used by others |\n|---|---|---|---|"
    )
    blocks = measure(backend, args)
    if len(blocks) < 2:
        print("\nToo little time for two launches: give more --minutes, or fewer --pairs or --tokens.")
        return
    report(blocks)


def measure(backend: Backend, args: argparse.Namespace) -> list[Block]:
    """Launch and compare while there is time."""
    request = short_request(args.tokens)
    settings = LaunchSettings(args=() if backend.name == "mlx" else ("-c", "2048"))
    begun = time.monotonic()
    blocks: list[Block] = []
    stayed = backend.launch(args.model, OFF, settings)
    try:
        stayed.complete(request)
        while len(blocks) < args.launches:
            spent_s = time.monotonic() - begun
            if blocks and spent_s * (1.0 + 1.0 / len(blocks)) > 60.0 * args.minutes:
                break
            new = backend.launch(args.model, OFF, settings)
            try:
                blocks.append(one_block(stayed, new, request, args.pairs))
            finally:
                new.stop()
            c = blocks[-1].comparison
            print(
                f"| {len(blocks)} | {100 * c.difference:+.2f} % | {100 * c.error:.2f} % | {blocks[-1].other_load:.2f} |",
                flush=True,
            )
    finally:
        stayed.stop()
    return blocks


def one_block(stayed: Server, new: Server, request: Request, pairs: int) -> Block:
    """All pairs of one new launch."""
    watch = StateWatch(lambda: stayed.pids | new.pids)
    new.complete(request)  # the first request of a launch pays for what is loaded late
    watch.start()
    speeds = [
        (math.log(a.decode_tps), math.log(b.decode_tps))
        for _ in range(pairs // 2)
        for a, b in abba(stayed, new, request)
    ]
    state = watch.finish()
    comparison = LaunchComparison.of(
        [b - a for a, b in speeds], at=time.time(), old=stayed.launch_id, new=new.launch_id
    )
    olds, news = zip(*speeds, strict=True)
    return Block(comparison, statistics.fmean(olds), statistics.fmean(news), state.other_load)


def report(blocks: list[Block]) -> None:
    """Print the result of all blocks together."""
    scatter = LaunchScatter.of_control([b.comparison for b in blocks])
    seen = "" if scatter.sd > scatter.resolution else " (nothing seen)"
    # The error of a comparison, without its number of pairs.
    pair_sd = math.sqrt(
        statistics.fmean(b.comparison.error**2 * b.comparison.pairs * 3.0 / math.pi for b in blocks)
    )
    naive = [
        100 * statistics.stdev(values) for values in ([b.new for b in blocks], [b.stayed for b in blocks])
    ]
    print(f"\n| standard deviation over {len(blocks)} launches | |\n|---|---|")
    print(
        f"| between launches, freed of drift | {100 * scatter.sd:.2f} %{seen}, at most {100 * scatter.upper:.2f} % |"
    )
    print(f"| its resolution | {100 * scatter.resolution:.2f} % |")
    print(f"| mean speeds of the new launches, without pairs | {naive[0]:.2f} % |")
    print(f"| mean speeds of the launch that stayed, at the same times | {naive[1]:.2f} % |")
    print(f"| one pair of requests | {100 * pair_sd:.2f} % |")


if __name__ == "__main__":
    main()
