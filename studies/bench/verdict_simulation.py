"""False enables, power and cost of the verdict, by simulation with realistic noise.

Run: ``python studies/bench/verdict_simulation.py [--repeats 2000]``

Every repeat plays one proof: 8 prompts, a round is one pair per prompt (off and drafting, order alternating),
and `decide_log_ratios` — the code that ``autospec tune`` runs — looks after rounds 1, 2, 4, 8, 16, 24. Noise:

* each measurement is off by a normal factor (the column's noise, standard deviation);
* drift: the machine slows down by up to 10 % over the proof and wanders by a random walk (heat); the two
  halves of a pair lie a step apart, so a little of it gets into the ratio;
* stalls: 2 % of all requests take 1.2 to 3 times as long (a backup, an indexer);
* a launch has its own small luck (0.3 %: where its memory came to lie), the same for all its requests;
* prompts differ: the gain of a prompt is normal around the true gain, with the given spread.

The second table plays cells with two draftings, each at half of the error rate (`Rule.shared`): the runner-up is proved
where the winner of the search gives way (`Rule.gives_way`), and the winner's proof goes on where that is not enabled.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide_log_ratios
from autospec.recommendations import Verdict

PROMPTS = 8
STALL_RATE = 0.02
LAUNCH_SD = 0.003
NOISES = (0.01, 0.03, 0.05)


def one_proof(
    rng: np.random.Generator, gain: float, noise: float, spread: float, rule: Rule = DEFAULT_RULE
) -> tuple[Decision, int, int]:
    """Play one proof; returns the last look, rounds (each is a launch), and after how many it would give way, or 0."""
    gave_way = 0
    truth = math.log1p(gain) + rng.normal(0.0, spread, PROMPTS)
    heat = rng.uniform(0.0, 0.10)
    wander = 0.0
    by_prompt: list[list[float]] = [[] for _ in range(PROMPTS)]
    total = DEFAULT_RULE.looks[-1] * PROMPTS * 2
    step = 0
    for round_ in range(1, DEFAULT_RULE.looks[-1] + 1):
        launch = rng.normal(0.0, LAUNCH_SD)
        for p in range(PROMPTS):
            halves = {}
            order = (0, 1) if (p + round_) % 2 else (1, 0)
            for side in order:
                wander += rng.normal(0.0, 0.002)
                slow = heat * step / total + wander
                stall = rng.uniform(1.2, 3.0) if rng.random() < STALL_RATE else 1.0
                log_time = slow + rng.normal(0.0, noise) + math.log(stall)
                if side == 1:
                    log_time -= truth[p] + launch
                halves[side] = log_time
                step += 1
            by_prompt[p].append(halves[0] - halves[1])
        if round_ in DEFAULT_RULE.looks:
            decision = decide_log_ratios(by_prompt, round_, rule)
            gave_way = gave_way or round_ * rule.gives_way(decision)
            if decision.final:
                return decision, round_, gave_way
    raise AssertionError("the last look is final")


def two_draftings(
    rng: np.random.Generator, gains: tuple[float, float], noise: float, spread: float
) -> tuple[tuple[bool, bool], int]:
    """Play a cell with a runner-up; returns which of the two is enabled, and rounds."""
    rule = DEFAULT_RULE.shared()
    first, rounds, gave_way = one_proof(rng, gains[0], noise, spread, rule)
    if not gave_way:
        return (first.verdict is Verdict.ENABLE, False), rounds
    second, more, _ = one_proof(rng, gains[1], noise, spread, rule)
    if second.verdict is Verdict.ENABLE:
        return (False, True), gave_way + more
    return (first.verdict is Verdict.ENABLE, False), rounds + more


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=20261123)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    half_width = 1.96 * math.sqrt(0.25 / args.repeats)
    print(f"{args.repeats} proofs a cell; a rate of 50 % is known to ±{100 * half_width:.1f} points\n")
    print(
        "| prompts' spread | true gain | noise | enable | undecided | disable | pairs, mean | launches, mean |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for spread in (0.0, 0.05):
        for gain in (-0.05, 0.0, 0.02, 0.03, 0.05, 0.10):
            for noise in NOISES:
                decisions, rounds, _ = zip(
                    *(one_proof(rng, gain, noise, spread) for _ in range(args.repeats)), strict=True
                )
                share = {v: 100.0 * sum(d.verdict is v for d in decisions) / args.repeats for v in Verdict}
                print(
                    f"| {spread:.0%} | {gain:+.0%} | {noise:.0%} | {share[Verdict.ENABLE]:.2f} % "
                    f"| {share[Verdict.UNDECIDED]:.1f} % | {share[Verdict.DISABLE]:.1f} % "
                    f"| {PROMPTS * np.mean(rounds):.0f} | {np.mean(rounds):.1f} |",
                    flush=True,
                )
    print("\n| prompts' spread | true gains | noise | enable first | second | either | launches, mean |")
    print("|---|---|---|---|---|---|---|")
    for spread in (0.0, 0.05):
        for gains in ((0.0, 0.0), (0.02, 0.02), (-0.05, 0.02), (-0.05, 0.05), (-0.05, 0.10), (0.05, 0.05)):
            for noise in NOISES:
                played, rounds = zip(
                    *(two_draftings(rng, gains, noise, spread) for _ in range(args.repeats)), strict=True
                )
                enabled = [100.0 * sum(which[i] for which in played) / args.repeats for i in (0, 1)]
                print(
                    f"| {spread:.0%} | {gains[0]:+.0%}, {gains[1]:+.0%} | {noise:.0%} "
                    f"| {enabled[0]:.2f} % | {enabled[1]:.2f} % | {sum(enabled):.2f} % | {np.mean(rounds):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
