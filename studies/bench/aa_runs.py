"""A/A runs: two launches of the same server without drafting, judged as if one were drafting.

Run: ``python studies/bench/aa_runs.py --model PATH [--proofs 6] [--prompt-type qa]… [--backend embedded] [--max-tokens 64]``

Both servers are launched for every round, like in `autospec tune`: differences between launches are noise too, and rounds must
average them on both sides. Every enable is a false one. The output is one line per proof (verdict, pairs, interval), and the
standard deviation of a pair's log-ratio: this machine's noise, comparable with the columns of verdict_simulation.py. Disturbed
pairs are included, so the figures are a worst case.
"""

from __future__ import annotations

import argparse
import math
import statistics
from contextlib import ExitStack
from pathlib import Path

from autospec.backends.protocol import Backend, LaunchSettings, Request, Server
from autospec.backends.registry import backend_for
from autospec.cells import PromptType
from autospec.drafting import OFF
from autospec.measure.log_ratios import LogRatio, by_prompt
from autospec.measure.verdict import DEFAULT_RULE, Decision, decide
from autospec.prompts.suite import Half, Prompt, load_suite
from autospec.settings import load_settings
from autospec.tuning.proof import of_round

PER_ROUND = 8


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--backend", default="")
    parser.add_argument("--proofs", type=int, default=6, help="one per prompt type, in their order")
    parser.add_argument("--prompt-type", action="append", default=[], choices=[str(t) for t in PromptType])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8, help="at most so many rounds per proof")
    args = parser.parse_args()

    backend = backend_for(args.backend or None, load_settings())
    suite = load_suite()
    print("| prompt type | verdict | ratio | interval | pairs | rounds |\n|---|---|---|---|---|---|")
    deviations: list[float] = []
    false_enables = 0
    types = [PromptType(t) for t in args.prompt_type] or list(suite.types())
    for prompt_type in types[: args.proofs]:
        prompts = suite.of(prompt_type, Half.PROVE)
        decision, values, rounds = one_proof(backend, str(args.model), prompts, args.max_tokens, args.rounds)
        assert decision.estimate is not None
        low, high = decision.estimate.interval
        false_enables += decision.verdict == "enable"
        deviations += [v - statistics.fmean(p) for p in by_prompt(values).values() for v in p if len(p) > 1]
        print(
            f"| {prompt_type} | {decision.verdict} | {decision.estimate.ratio:.4f} | {low:.4f} – {high:.4f} "
            f"| {decision.estimate.n} | {rounds} |",
            flush=True,
        )
    print(f"\nfalse enables: {false_enables} of {len(types[: args.proofs])}")
    if len(deviations) > 2:
        # Deviations from a prompt's mean of r rounds have (r - 1)/r of the variance: a slight underestimate.
        spread = statistics.pstdev(deviations)
        print(
            f"noise of a pair: {100 * spread:.2f} % (of one measurement: {100 * spread / math.sqrt(2):.2f} %)"
        )


def one_proof(
    backend: Backend, model: str, prompts: tuple[Prompt, ...], max_tokens: int, most_rounds: int
) -> tuple[Decision, list[LogRatio], int]:
    """One proof of off against off, with the rounds and looks of `autospec tune`."""
    settings = LaunchSettings(args=() if backend.name == "mlx" else ("-c", "4096"))
    values: list[LogRatio] = []
    with ExitStack() as running:
        first = _launch(backend, model, settings, running)
        for round_ in range(1, most_rounds + 1):
            if round_ > 1:
                # Start the new one while the old one runs, so that it gets other memory.
                before = running.pop_all()
                with before:
                    first = _launch(backend, model, settings, running)
            with ExitStack() as this_round:
                second = _launch(backend, model, settings, this_round)
                for k in of_round(range(len(prompts)), round_, PER_ROUND):
                    request = Request(messages=prompts[k].messages, max_tokens=max_tokens)
                    order = (first, second) if len(values) % 2 == 0 else (second, first)
                    speeds = {server.launch_id: server.complete(request).request_tps for server in order}
                    ratio = math.log(speeds[second.launch_id] / speeds[first.launch_id])
                    off_first = order[0] is first
                    values.append(
                        LogRatio(prompts[k].id, first.launch_id, second.launch_id, ratio, off_first=off_first)
                    )
            decision = decide(values, round_, complete=len(by_prompt(values)) == len(prompts))
            if (round_ in DEFAULT_RULE.looks and decision.final) or round_ == most_rounds:
                return decision, values, round_
    raise AssertionError("the last round returns")


def _launch(backend: Backend, model: str, settings: LaunchSettings, until: ExitStack) -> Server:
    """Launch a server that stops with the context."""
    server = backend.launch(model, OFF, settings)
    until.callback(server.stop)
    return server


if __name__ == "__main__":
    main()
