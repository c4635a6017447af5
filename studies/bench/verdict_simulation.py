"""False enables, power and cost of the verdict, by simulation with realistic noise.

Run: ``python -m studies.bench.verdict_simulation [--repeats 1000] [--table errors|power|hard|turns|kinds|two|energy]``

Every repeat is one proof: 16 prompts, of which each round asks eight in turn, one pair each, on two new launches; `decide` (the
code of ``autospec tune``) looks after rounds 1, 2, 4, 8, 16, 24. The noise of `Machine`:

* each request has a normal factor (the column's noise, standard deviation);
* every launch, of off and of drafting, has its own factor for all of its requests (the column's launch scatter);
* drift: the machine slows down by up to 10 % over the proof and wanders by a random walk;
* stalls: 2 % of all requests take 1.2 to 3 times as long;
* regimes, if the row says so: the machine is 10 % slower or 6 % faster for 10 to 40 seconds, a request takes 5 seconds;
* by turns, if the row says so: all requests of one side, then all of the other, the order alternating by round.

Prompts differ: the gain of a prompt is normal around the true gain, shifted so that these prompts' mean is the stated gain
(tables `errors`, `power`, `hard`, `turns`), or drawn from a kind of prompts with the stated mean (`kinds`). Predictions, if a row has
them, cover all 16 prompts: the truth times 1.2 with 5 % of noise, or unrelated to it.

With the aim energy (table `energy`) a pair's ratio is `autospec.measure.energy.energy_ratios` of what a GPU's counter shows: it is
renewed every 0.1 s, so that a reading lacks up to 0.1 s at the end of a request and has up to 0.1 s of idle power (a fifth of off's) at
its begin; 3 % of all readings are missing. Power has the noise and the launch scatter that times have in the other tables. The time of
a request is shortened by the stated factor, whatever that does to its energy.

Costs are requests (two per pair, one per prompt that is recorded and not asked) and launches (two per round).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware.state import MachineState
from autospec.measure.energy import energy_ratios
from autospec.measure.launch_scatter import LaunchScatter
from autospec.measure.log_ratios import LogRatio
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.measure.verdict import DEFAULT_RULE, Decision, Rule, decide
from autospec.recommendations import Verdict
from autospec.tuning.proof import of_round

Floats = npt.NDArray[np.float64]
Truth = Callable[[np.random.Generator], Floats]
Foresight = Callable[[np.random.Generator, Floats], Floats | None]

PER_ROUND = 8
STALL_RATE = 0.02
SCATTERS = (0.0, 0.003, 0.01, 0.02, 0.03)
NOISES = (0.01, 0.03, 0.05)
UNKNOWN = LaunchScatter()
# Log-ratio of most prompts, mean addition of the others, and their share.
SKEWED = (
    (0.0, 0.5, 0.5),
    (-0.03, 0.5, 0.3),
    (-0.05, 0.5, 0.1),
    (-0.15, 0.3, 0.5),
    (0.05, -0.35, 0.15),
    (0.08, -0.3, 0.25),
)


def nothing(_rng: np.random.Generator, _truth: Floats) -> None:
    """No prediction."""


def off_by_a_fifth(rng: np.random.Generator, truth: Floats) -> Floats:
    """Predicted gains a fifth too large, with 5 % of noise."""
    return 1.2 * truth + rng.normal(0.0, 0.05, truth.size)


def unrelated(rng: np.random.Generator, truth: Floats) -> Floats:
    """Predictions as wide as the truth, unrelated to it, that promise 20 %."""
    return math.log(1.2) + rng.normal(0.0, max(0.02, float(truth.std())), truth.size)


@dataclass(frozen=True, slots=True)
class Machine:
    """The noise of a machine.

    `noise` is the standard deviation of the log of a request's time, `launch_sd` that of a launch's own factor, of which autospec
    knows `known`; `drafted_sd` that of a launch with drafting, if it differs. `foresight` makes the predictions.
    """

    noise: float = 0.03
    launch_sd: float = 0.0
    known: LaunchScatter = UNKNOWN
    by_turns: bool = False
    regimes: bool = False
    request_s: float = 5.0
    foresight: Foresight = nothing
    drafted_sd: float | None = None


@dataclass(slots=True)
class Clock:
    """The machine's own speed over time: drift, wander, regimes."""

    rng: np.random.Generator
    machine: Machine
    total: int
    heat: float = 0.0
    wander: float = 0.0
    step: int = 0
    level: float = 0.0
    until_s: float = field(default=0.0)

    def slowness(self) -> float:
        """Log of the next request's slow-down."""
        self.step += 1
        self.wander += self.rng.normal(0.0, 0.002)
        if self.machine.regimes and self.step * self.machine.request_s >= self.until_s:
            self.level = float(self.rng.choice((0.0, 0.10, -0.06)))
            self.until_s = self.step * self.machine.request_s + self.rng.uniform(10.0, 40.0)
        return self.heat * self.step / self.total + self.wander + self.level


@dataclass(frozen=True, slots=True)
class Played:
    """The end of a proof; `gave_way` is the round after which it would give way to a runner-up, or 0."""

    decision: Decision
    rounds: int
    requests: int
    gave_way: int


def normal(rng: np.random.Generator, gain: float, spread: float, count: int = 16) -> Floats:
    """True log-ratios of prompts of a kind, around the same gain."""
    return math.log1p(gain) + rng.normal(0.0, spread, count)


def centred(rng: np.random.Generator, gain: float, spread: float, count: int = 16) -> Floats:
    """The same, shifted so that these prompts' mean is the gain."""
    truth = normal(rng, gain, spread, count)
    return truth + math.log1p(gain) - truth.mean()


def skewed(rng: np.random.Generator, base: float, scale: float, part: float) -> Floats:
    """True log-ratios of prompts of a kind: nearly equal for most, much more or less for some."""
    gains = math.copysign(1.0, scale) * rng.exponential(abs(scale), 16) * (rng.random(16) < part)
    return np.asarray(base + gains + rng.normal(0.0, 0.01, 16))


def one_proof(
    rng: np.random.Generator,
    truth: Floats,
    machine: Machine,
    rule: Rule = DEFAULT_RULE,
    *,
    faster: float | None = None,
) -> Played:
    """Play one proof; of energy, if `faster` says how much faster the drafting is."""
    gave_way = 0
    prompts = range(truth.size)
    foreseen = machine.foresight(rng, truth)
    predicted = {} if foreseen is None else {str(p): float(foreseen[p]) for p in prompts}
    clock = Clock(rng, machine, rule.looks[-1] * PER_ROUND * 2, heat=rng.uniform(0.0, 0.10))
    values: list[LogRatio] = []
    for round_ in range(1, rule.looks[-1] + 1):
        asked_now = of_round(prompts, round_, PER_ROUND)
        if faster is None:
            values += one_round(clock, asked_now, truth, round_=round_, first_turn=len(values))
        else:
            values += energy_ratios(metered_round(clock, asked_now, truth, round_=round_, faster=faster))
        if round_ in rule.looks:
            asked = {v.prompt for v in values}
            complete = len(asked) == truth.size
            decision = decide(
                values, round_, rule, complete=complete, predicted=predicted, scatter=machine.known
            )
            gave_way = gave_way or round_ * rule.gives_way(decision)
            if decision.final:
                # `autospec.tuning.proof` records prompts only if there seems to be a gain.
                promising = decision.mean > math.log1p(rule.threshold)
                recorded = 0 if foreseen is None or not promising else truth.size - len(asked)
                return Played(decision, round_, 2 * len(values) + recorded, gave_way)
    raise AssertionError("the last look is final")


def one_round(
    clock: Clock, asked: Sequence[int], truth: Floats, *, round_: int, first_turn: int
) -> Iterator[LogRatio]:
    """The pairs of one round, on two new launches."""
    rng, machine = clock.rng, clock.machine
    drafted_sd = machine.launch_sd if machine.drafted_sd is None else machine.drafted_sd
    luck = rng.normal(0.0, (machine.launch_sd, drafted_sd))

    def log_time(prompt: int, side: int) -> float:
        stall = math.log(rng.uniform(1.2, 3.0)) if rng.random() < STALL_RATE else 0.0
        gain = truth[prompt] if side else 0.0
        return float(clock.slowness() + rng.normal(0.0, machine.noise) + stall + luck[side] - gain)

    if machine.by_turns:
        order = (0, 1) if round_ % 2 else (1, 0)
        times = {side: [log_time(p, side) for p in asked] for side in order}
        for k, p in enumerate(asked):
            yield LogRatio(
                str(p), f"off {round_}", f"drafted {round_}", times[0][k] - times[1][k], order[0] == 0
            )
        return
    for turn, p in enumerate(asked, start=first_turn):
        order = (0, 1) if turn % 2 else (1, 0)
        halves = {side: log_time(p, side) for side in order}
        yield LogRatio(str(p), f"off {round_}", f"drafted {round_}", halves[0] - halves[1], order[0] == 0)


# Of the meter: watts of off, of these without work, seconds between two renewals, share of readings that are missing.
_OFF_W, _IDLE_W, _TICK_S, _MISSING = 200.0, 40.0, 0.1, 0.03


def metered_round(
    clock: Clock, asked: Sequence[int], truth: Floats, *, round_: int, faster: float
) -> list[Pair]:
    """The pairs of one round on two new launches, with what a GPU's counter shows of each half."""
    rng, machine = clock.rng, clock.machine
    luck = rng.normal(0.0, machine.launch_sd, 2)

    def half(prompt: int, side: int, position: int) -> Measurement:
        stall = math.log(rng.uniform(1.2, 3.0)) if rng.random() < STALL_RATE else 0.0
        window_s = machine.request_s / (faster if side else 1.0) * math.exp(stall)
        gain = (
            truth[prompt] - math.log(faster) if side else 0.0
        )  # of watts: those of energy, less the shorter time
        power_w = _OFF_W * math.exp(clock.slowness() + rng.normal(0.0, machine.noise) + luck[side] - gain)
        before_s, after_s = rng.uniform(0.0, _TICK_S, 2)
        joules = power_w * (window_s - after_s) + _IDLE_W * before_s
        told = None if rng.random() < _MISSING else joules
        state = MachineState(window_s=window_s, cores=16, gpu_energy_j=told)
        return Measurement(
            cell_key="cell", protocol="protocol", phase=Phase.PROVE, round=round_,
            drafting=_DRAFTING if side else OFF, compared=_DRAFTING, prompt_id=str(prompt),
            launch_id=f"{'drafted' if side else 'off'} {round_}", position=position, started_at=0.0,
            prompt_tokens=20, predicted_tokens=64, prompt_ms=1.0, predicted_ms=1.0, wall_ms=1.0,
            drafted=None, accepted=None, text_digest="", machine=state.to_json(),
        )  # fmt: skip

    pairs = []
    for turn, prompt in enumerate(asked, start=round_ * len(asked)):
        order = (0, 1) if turn % 2 else (1, 0)
        halves = {side: half(prompt, side, position) for position, side in enumerate(order)}
        pairs.append(Pair(halves[0], halves[1]))
    return pairs


_DRAFTING = Drafting(Mode.DRAFT_MODEL, draft="draft.gguf", n_max=8)


def two_draftings(
    rng: np.random.Generator, gains: tuple[float, float], machine: Machine, spread: float
) -> tuple[tuple[bool, bool], int]:
    """Play a cell with a runner-up; return which of the two is enabled, and rounds."""
    rule = DEFAULT_RULE.shared()
    first = one_proof(rng, centred(rng, gains[0], spread), machine, rule)
    if not first.gave_way:
        return (first.decision.verdict is Verdict.ENABLE, False), first.rounds
    second = one_proof(rng, centred(rng, gains[1], spread), machine, rule)
    if second.decision.verdict is Verdict.ENABLE:
        return (False, True), first.gave_way + second.rounds
    return (first.decision.verdict is Verdict.ENABLE, False), first.rounds + second.rounds


def row(played: Sequence[Played]) -> str:
    """Rates and costs as the end of a table's row."""
    share = {v: 100.0 * sum(p.decision.verdict is v for p in played) / len(played) for v in Verdict}
    return (
        f"| {share[Verdict.ENABLE]:.2f} % | {share[Verdict.UNDECIDED]:.1f} % | {share[Verdict.DISABLE]:.1f} % "
        f"| {np.mean([p.requests for p in played]):.0f} | {np.mean([2 * p.rounds for p in played]):.1f} |"
    )


_HEAD = (
    "enable | undecided | disable | requests, mean | launches, mean |\n|---|---|---|---|---|---|---|---|---|"
)


def errors(rng: np.random.Generator, repeats: int) -> None:
    """False enables, at no gain and at the threshold."""
    print(f"\n| true gain | launch scatter | noise | known | {_HEAD}")
    for gain in (0.0, 0.02):
        for launch_sd in SCATTERS:
            for noise in NOISES:
                for known in (UNKNOWN, LaunchScatter(max(launch_sd, 0.003), 12)):
                    machine = Machine(noise, launch_sd, known)
                    played = [
                        one_proof(rng, centred(rng, gain, 0.05), machine, DEFAULT_RULE)
                        for _ in range(repeats)
                    ]
                    word = "yes" if known.freedom else "no"
                    print(f"| {gain:+.0%} | {launch_sd:.1%} | {noise:.0%} | {word} {row(played)}", flush=True)


def power(rng: np.random.Generator, repeats: int) -> None:
    """Enables of true gains, false disables, and cost, without and with predictions."""
    print(f"\n| true gain | launch scatter | spread | predicted | {_HEAD}")
    for gain in (-0.30, 0.05, 0.10, 0.15, 0.30):
        for launch_sd in (0.0, 0.01, 0.02):
            for spread, foresight in (
                (0.05, nothing),
                (0.05, off_by_a_fifth),
                (0.2, nothing),
                (0.2, off_by_a_fifth),
                (0.2, unrelated),
            ):
                machine = Machine(0.03, launch_sd, foresight=foresight)
                played = [one_proof(rng, centred(rng, gain, spread), machine) for _ in range(repeats)]
                word = foresight.__name__.replace("_", " ")
                print(f"| {gain:+.0%} | {launch_sd:.1%} | {spread:.0%} | {word} {row(played)}", flush=True)


def hard(rng: np.random.Generator, repeats: int) -> None:
    """False enables in difficult conditions."""
    base = Machine(0.03, 0.02)
    cases = {
        "regimes, side by side": (16, replace(base, regimes=True)),
        "by turns": (16, replace(base, by_turns=True)),
        "by turns, regimes, 5 s a request": (16, replace(base, by_turns=True, regimes=True)),
        "by turns, regimes, 20 s a request": (
            16,
            replace(base, by_turns=True, regimes=True, request_s=20.0),
        ),
        "8 prompts": (8, base),
        "8 prompts by turns": (8, replace(base, by_turns=True)),
        "predictions off by a fifth": (16, replace(base, foresight=off_by_a_fifth)),
        "predictions unrelated": (16, replace(base, foresight=unrelated)),
        "texts that diverge (half of the pairs twice as noisy)": (16, replace(base, noise=0.045)),
        # As a quiet machine knows it: only launches of off are compared.
        "8 prompts, off known to differ by 0.3 %, drafting by 2 %": (
            8,
            Machine(0.01, 0.003, LaunchScatter(0.003, 12), drafted_sd=0.02),
        ),
    }
    print(f"\n| case | true gain | again | launch scatter | {_HEAD}")
    for words, (count, machine) in cases.items():
        for gain in (0.0, 0.02, 0.05):
            played = [one_proof(rng, centred(rng, gain, 0.05, count), machine) for _ in range(repeats)]
            print(f"| {words} | {gain:+.0%} | 1 | {machine.launch_sd:.0%} {row(played)}", flush=True)
    for launch_sd in (0.01, 0.02, 0.03):
        for gain in (0.0, 0.02):
            played = [_again(rng, gain, replace(base, launch_sd=launch_sd)) for _ in range(repeats)]
            print(f"| until it says enable | {gain:+.0%} | 3 | {launch_sd:.0%} {row(played)}", flush=True)


def turns(rng: np.random.Generator, repeats: int) -> None:
    """By turns, on a machine whose speed jumps: false enables and power, for launches that scatter more or less."""
    print(f"\n| true gain | launch scatter | request | {_HEAD.replace('|---', '', 1)}")
    for gain in (0.0, 0.02, 0.05, 0.10):
        for launch_sd in (0.0, 0.01, 0.02):
            for request_s in (5.0, 20.0):
                machine = Machine(0.03, launch_sd, by_turns=True, regimes=True, request_s=request_s)
                played = [one_proof(rng, centred(rng, gain, 0.05), machine) for _ in range(repeats)]
                print(f"| {gain:+.0%} | {launch_sd:.0%} | {request_s:g} s {row(played)}", flush=True)


def _again(rng: np.random.Generator, gain: float, machine: Machine) -> Played:
    """Up to three proofs of the same prompts, as with `--again`, until one enables."""
    truth = centred(rng, gain, 0.05)
    for _ in range(3):
        played = one_proof(rng, truth, machine)
        if played.decision.verdict is Verdict.ENABLE:
            break
    return played


def kinds(rng: np.random.Generator, repeats: int) -> None:
    """The effect of the choice of prompts: the stated gain is that of their kind."""
    print(f"\n| kind of prompt | mean gain | predicted | noise | {_HEAD}")
    for kind, mean, draw in _kinds():
        for foresight in (nothing, off_by_a_fifth, unrelated):
            played = [one_proof(rng, draw(rng), Machine(foresight=foresight)) for _ in range(repeats)]
            print(f"| {kind} | {mean:+.0%} | {foresight.__name__} | 3% {row(played)}", flush=True)


def _kinds() -> Iterator[tuple[str, float, Truth]]:
    for spread in (0.05, 0.2):
        for gain in (-0.02, 0.0, 0.05):
            yield f"normal, spread {spread:.0%}", gain, partial(normal, gain=gain, spread=spread)
    for base, scale, part in SKEWED:
        words = f"{1 - part:.0%} at {math.expm1(base):+.0%}, others about {math.expm1(base + scale):+.0%}"
        yield words, math.expm1(base + scale * part), partial(skewed, base=base, scale=scale, part=part)


def two(rng: np.random.Generator, repeats: int) -> None:
    """Cells with two draftings, each at half of the error rate."""
    print("\n| true gains | launch scatter | enable first | second | either | launches, mean |")
    print("|---|---|---|---|---|---|")
    for gains in ((0.0, 0.0), (0.02, 0.02), (-0.05, 0.02), (-0.05, 0.05), (-0.05, 0.10), (0.05, 0.05)):
        for launch_sd in (0.0, 0.02):
            machine = Machine(0.03, launch_sd)
            which, rounds = zip(
                *(two_draftings(rng, gains, machine, 0.05) for _ in range(repeats)), strict=True
            )
            rates = [100.0 * sum(enabled[i] for enabled in which) / repeats for i in (0, 1)]
            print(
                f"| {gains[0]:+.0%}, {gains[1]:+.0%} | {launch_sd:.0%} "
                f"| {rates[0]:.2f} % | {rates[1]:.2f} % | {sum(rates):.2f} % | {2 * np.mean(rounds):.1f} |",
                flush=True,
            )


def energy(rng: np.random.Generator, repeats: int) -> None:
    """Verdicts about energy: what the meter does to short requests, and a speed that says nothing about joules."""
    print(f"\n| true gain, tokens per joule | faster by | request | launch scatter | {_HEAD}")
    for gain in (0.0, 0.02, 0.10, 0.30):
        for faster in (1.0, 1.5, 2.5):
            for request_s in (1.5, 5.0):
                machine = Machine(0.03, 0.02, request_s=request_s)
                played = [
                    one_proof(rng, centred(rng, gain, 0.05), machine, faster=faster) for _ in range(repeats)
                ]
                print(f"| {gain:+.0%} | {faster:g} | {request_s:g} s | 2% {row(played)}", flush=True)


TABLES = {
    "errors": errors,
    "power": power,
    "hard": hard,
    "turns": turns,
    "kinds": kinds,
    "two": two,
    "energy": energy,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--table", action="append", choices=list(TABLES))
    args = parser.parse_args()
    half_width = 1.96 * math.sqrt(0.01 * 0.99 / args.repeats)
    print(f"{args.repeats} proofs a row; a rate of 1 % is known to ±{100 * half_width:.1f} points")
    for name in args.table or TABLES:
        TABLES[name](np.random.default_rng(args.seed), args.repeats)


if __name__ == "__main__":
    main()
