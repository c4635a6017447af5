"""False enables, power and cost of the verdict, by simulation with realistic noise.

Run: ``python studies/bench/verdict_simulation.py [--repeats 2000]``

Every repeat plays one proof: 16 prompts of which a round asks eight by turns, one pair each (off and drafting, order
alternating), and `decide_log_ratios` — the code that ``autospec tune`` runs — looks after rounds 1, 2, 4, 8, 16, 24. Noise:

* each measurement is off by a normal factor (the column's noise, standard deviation);
* drift: the machine slows down by up to 10 % over the proof and wanders by a random walk (heat); the two
  halves of a pair lie a step apart, so a little of it gets into the ratio;
* stalls: 2 % of all requests take 1.2 to 3 times as long (a backup, an indexer);
* a launch has its own small luck (0.3 %: where its memory came to lie), the same for all its requests;
* the launch of off has such luck too, once for a whole proof;
* prompts differ: the gain of a prompt is normal around the true gain, with the given spread. In the first table the sixteen
  have exactly the stated mean, so that it shows what noise does.

The second table shows what the choice of prompts does: the stated gain is that of their kind, the geometric mean over all that
could be asked, and the sixteen are drawn from it: normal, or a part of them gaining (n-grams) or losing an exponential amount
and the others a fixed one.

The third table plays cells with two draftings, each at half of the error rate (`Rule.shared`): the runner-up is proved
where the winner of the search gives way (`Rule.gives_way`), and the winner's proof goes on where that is not enabled.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide_log_ratios
from autospec.recommendations import Verdict
from autospec.tuning.proof import of_round

PROMPTS = 16
PER_ROUND = 8
STALL_RATE = 0.02
LAUNCH_SD = 0.003
NOISES = (0.01, 0.03, 0.05)
SPREADS = (0.0, 0.05, 0.2)
# Log-ratio of most prompts, mean log-ratio that the others have on top, and their part of all.
SKEWED = (
    (0.0, 0.5, 0.5),
    (-0.03, 0.5, 0.3),
    (-0.05, 0.5, 0.1),
    (-0.15, 0.3, 0.5),
    (0.05, -0.35, 0.15),
    (0.08, -0.3, 0.25),
)


def normal(rng: np.random.Generator, gain: float, spread: float) -> npt.NDArray[np.float64]:
    """True log-ratios of prompts of a kind: around the same gain."""
    return math.log1p(gain) + rng.normal(0.0, spread, PROMPTS)


def centred(rng: np.random.Generator, gain: float, spread: float) -> npt.NDArray[np.float64]:
    """The same, moved so that these prompts' own mean is the gain."""
    truth = normal(rng, gain, spread)
    truth += math.log1p(gain) - truth.mean()
    return truth


def skewed(rng: np.random.Generator, base: float, scale: float, part: float) -> npt.NDArray[np.float64]:
    """True log-ratios of prompts of a kind: nearly the same for most, much more or less for some."""
    gains = math.copysign(1.0, scale) * rng.exponential(abs(scale), PROMPTS) * (rng.random(PROMPTS) < part)
    log_ratios: npt.NDArray[np.float64] = base + gains + rng.normal(0.0, 0.01, PROMPTS)
    return log_ratios


def one_proof(
    rng: np.random.Generator, truth: npt.NDArray[np.float64], noise: float, rule: Rule = DEFAULT_RULE
) -> tuple[Decision, int, int]:
    """Play one proof; returns the last look, rounds (each is a launch), and after how many it would give way, or 0."""
    gave_way = 0
    heat = rng.uniform(0.0, 0.10)
    off_luck = rng.normal(0.0, LAUNCH_SD)
    wander = 0.0
    by_prompt: list[list[float]] = [[] for _ in range(PROMPTS)]
    total = DEFAULT_RULE.looks[-1] * PER_ROUND * 2
    step = 0
    for round_ in range(1, DEFAULT_RULE.looks[-1] + 1):
        launch = rng.normal(0.0, LAUNCH_SD)
        for turn, p in enumerate(of_round(range(PROMPTS), round_, PER_ROUND)):
            halves = {}
            order = (0, 1) if (turn + round_) % 2 else (1, 0)
            for side in order:
                wander += rng.normal(0.0, 0.002)
                slow = heat * step / total + wander
                stall = rng.uniform(1.2, 3.0) if rng.random() < STALL_RATE else 1.0
                log_time = slow + rng.normal(0.0, noise) + math.log(stall)
                if side == 1:
                    log_time -= truth[p] + launch - off_luck
                halves[side] = log_time
                step += 1
            by_prompt[p].append(halves[0] - halves[1])
        if round_ in DEFAULT_RULE.looks:
            decision = decide_log_ratios(by_prompt, round_, rule, complete=all(by_prompt))
            gave_way = gave_way or round_ * rule.gives_way(decision)
            if decision.final:
                return decision, round_, gave_way
    raise AssertionError("the last look is final")


def two_draftings(
    rng: np.random.Generator, gains: tuple[float, float], noise: float, spread: float
) -> tuple[tuple[bool, bool], int]:
    """Play a cell with a runner-up; returns which of the two is enabled, and rounds."""
    rule = DEFAULT_RULE.shared()
    first, rounds, gave_way = one_proof(rng, centred(rng, gains[0], spread), noise, rule)
    if not gave_way:
        return (first.verdict is Verdict.ENABLE, False), rounds
    second, more, _ = one_proof(rng, centred(rng, gains[1], spread), noise, rule)
    if second.verdict is Verdict.ENABLE:
        return (False, True), gave_way + more
    return (first.verdict is Verdict.ENABLE, False), rounds + more


def _kinds() -> Iterator[tuple[str, float, Callable[[np.random.Generator], npt.NDArray[np.float64]]]]:
    """Kinds of prompts: in words, their mean gain, and how sixteen of them are drawn."""
    for spread in SPREADS[1:]:
        for gain in (-0.02, 0.0, 0.05):
            yield f"normal, spread {spread:.0%}", gain, partial(normal, gain=gain, spread=spread)
    for base, scale, part in SKEWED:
        words = f"{1 - part:.0%} at {math.expm1(base):+.0%}, others about {math.expm1(base + scale):+.0%}"
        yield words, math.expm1(base + scale * part), partial(skewed, base=base, scale=scale, part=part)


def _row(played: list[tuple[Decision, int, int]]) -> str:
    """Rates and costs as the end of a table's row."""
    share = {v: 100.0 * sum(d.verdict is v for d, _, _ in played) / len(played) for v in Verdict}
    rounds = float(np.mean([r for _, r, _ in played]))
    return (
        f"| {share[Verdict.ENABLE]:.2f} % | {share[Verdict.UNDECIDED]:.1f} % | {share[Verdict.DISABLE]:.1f} % "
        f"| {PER_ROUND * rounds:.0f} | {rounds:.1f} |"
    )


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
    head = "true gain | noise | enable | undecided | disable | pairs, mean | launches, mean |"
    print(f"| prompts' spread | {head}\n|---|---|---|---|---|---|---|---|")
    for spread in SPREADS:
        for gain in (-0.05, 0.0, 0.02, 0.03, 0.05, 0.10):
            for noise in NOISES:
                played = [one_proof(rng, centred(rng, gain, spread), noise) for _ in range(args.repeats)]
                print(f"| {spread:.0%} | {gain:+.0%} | {noise:.0%} {_row(played)}", flush=True)
    print(f"\n| kind of prompt | {head}\n|---|---|---|---|---|---|---|---|")
    for kind, mean, draw in _kinds():
        for noise in NOISES:
            played = [one_proof(rng, draw(rng), noise) for _ in range(args.repeats)]
            print(f"| {kind} | {mean:+.0%} | {noise:.0%} {_row(played)}", flush=True)
    print("\n| prompts' spread | true gains | noise | enable first | second | either | launches, mean |")
    print("|---|---|---|---|---|---|---|")
    for spread in SPREADS[:2]:
        for gains in ((0.0, 0.0), (0.02, 0.02), (-0.05, 0.02), (-0.05, 0.05), (-0.05, 0.10), (0.05, 0.05)):
            for noise in NOISES:
                which, rounds = zip(
                    *(two_draftings(rng, gains, noise, spread) for _ in range(args.repeats)), strict=True
                )
                rates = [100.0 * sum(enabled[i] for enabled in which) / args.repeats for i in (0, 1)]
                print(
                    f"| {spread:.0%} | {gains[0]:+.0%}, {gains[1]:+.0%} | {noise:.0%} "
                    f"| {rates[0]:.2f} % | {rates[1]:.2f} % | {sum(rates):.2f} % | {np.mean(rounds):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
