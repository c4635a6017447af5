"""Pairs of a proof as a machine with known noise would give them: what simulations of the verdict stand on. Pure.

`play` gives every pair of a whole proof at once, tagged with prompt, round, both launches and order; a simulation looks at those
of the first rounds (`Played.rows`). What the noise of `Machine` and the course of a proof (`Course`) are made of:

* Each round has new launches of both sides. A launch is faster or slower by its own factor, for all of its requests.
* Each request is off by a normal factor, the more the fewer tokens it has; 2 % of them stall and take 1.2 to 3 times as long.
* The machine slows down by up to 10 % over the proof, evenly (heat).
* Regimes: the machine runs 10 % slower or 6 % faster by turns, for 10 to 40 seconds each (`Regimes.TWO`), or its speed wanders
  around its mean with a standard deviation of 7 % and a memory of 25 seconds (`Regimes.WANDERING`). A request that is longer
  than a regime sees the mean of several.
* Side by side, the halves of a pair follow each other and the order alternates from pair to pair. By turns, a round has
  stretches: half of its prompts with one order, the others with the other one (off, drafting | drafting, off), where one launch
  serves the end of a stretch and the beginning of the next. The prompts of other types are asked in between.
* Texts that diverge: of a part of the prompts the drafted answer has another length, the same one in every round, as greedy
  answers have. Speeds of whole requests then differ without any gain; `Played.composed` compares them at one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from autospec.tuning.proof import of_round

__all__ = ["Course", "Machine", "Played", "Regimes", "Side", "centred", "normal", "play", "skewed"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# A request that stalls takes between so many times as long.
_STALL = (1.2, 3.0)
# Speeds of the two regimes, and how long one lasts, in seconds.
_REGIME_SPEEDS = (0.90, 1.06)
_REGIME_S = (10.0, 40.0)
# Of a machine whose speed wanders: standard deviation of ln(speed), memory in seconds, and steps that it is played in.
_WANDER_SD = 0.07
_WANDER_S = 25.0
_STEP_S = 2.5
# One side of a stretch lasts so many seconds at most.
_STRETCH_S = 540.0
# The shorter one of two answers that diverge has such a part of the other one's tokens.
_SHORTER = (0.3, 0.9)


class Regimes(Enum):
    """How the machine's speed changes within minutes."""

    NONE = auto()
    TWO = auto()
    WANDERING = auto()


@dataclass(frozen=True, slots=True)
class Machine:
    """What the noise is like.

    Attributes:
        noise: Standard deviation of the log of a full request's time.
        launch_sd: Of a launch's own factor.
        drafted_launch_sd: Of a launch with drafting; ``None`` is the same.
        stall_rate: Part of the requests that stall.
        drift: Largest slowing down over the proof; each proof has one between 0 and this.
        regimes: How its speed changes within minutes.
    """

    noise: float = 0.03
    launch_sd: float = 0.01
    drafted_launch_sd: float | None = None
    stall_rate: float = 0.02
    drift: float = 0.10
    regimes: Regimes = Regimes.NONE


@dataclass(frozen=True, slots=True)
class Course:
    """How a proof goes.

    Attributes:
        rounds: At most.
        per_round: Prompts of a round.
        by_turns: One side after the other, in stretches, instead of pair by pair.
        request_s: What a request takes, on average.
        launch_s: What a launch takes.
        types: Prompt types that are proved in the same rounds, this one included.
        diverging: Part of the prompts whose drafted answer has another length.
        prompt_share: Part of a full request's time that is prompt processing, above 0 and below 1.
    """

    rounds: int = 24
    per_round: int = 8
    by_turns: bool = False
    request_s: float = 5.0
    launch_s: float = 10.0
    types: int = 1
    diverging: float = 0.0
    prompt_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Side:
    """One half of every pair.

    Attributes:
        launch: Number of the launch that answered, from 0.
        prompt_s: Time of the prompt.
        generation_s: Time of the answer.
        tokens: Length of the answer, as a part of a full one.
    """

    launch: Ints
    prompt_s: Floats
    generation_s: Floats
    tokens: Floats


@dataclass(frozen=True, slots=True)
class Played:
    """All pairs of one proof, in the order in which they were completed.

    Attributes:
        prompt: Number of the prompt.
        round: From 1.
        off_first: True where off answered first.
        off: Halves without drafting.
        drafted: Halves with it.
        prompt_share: Part of a full request's time that is prompt processing.
    """

    prompt: Ints
    round: Ints
    off_first: Flags
    off: Side
    drafted: Side
    prompt_share: float

    @property
    def whole(self) -> Floats:
        """ln(drafting ÷ off) of tokens per second of whole requests, whatever their lengths."""

        def speed(side: Side) -> Floats:
            return side.tokens / (side.prompt_s + side.generation_s)

        return np.asarray(np.log(speed(self.drafted) / speed(self.off)))

    @property
    def composed(self) -> Floats:
        """ln(drafting ÷ off) of a full request put together from its parts: prompt, and tokens at the speed of the answer."""

        def full_s(side: Side) -> Floats:
            return side.prompt_s + side.generation_s / side.tokens

        return np.asarray(np.log(full_s(self.off) / full_s(self.drafted)))

    def rows(
        self, rounds: int | None = None, *, whole: bool = False
    ) -> Iterator[tuple[str, str, str, float, bool]]:
        """(prompt, launch of off, launch with drafting, ln(drafting ÷ off), off first) of each pair of the first rounds.

        Args:
            rounds: So many; ``None`` is all.
            whole: Take `whole` and not `composed`.
        """
        values = self.whole if whole else self.composed
        for k in np.flatnonzero(self.round <= (self.round.max() if rounds is None else rounds)):
            yield (
                str(self.prompt[k]),
                f"off {self.off.launch[k]}",
                f"drafted {self.drafted.launch[k]}",
                float(values[k]),
                bool(self.off_first[k]),
            )


def normal(rng: np.random.Generator, gain: float, spread: float, count: int = 16) -> Floats:
    """True log-ratios of prompts of a kind: around the same gain."""
    return np.asarray(math.log1p(gain) + rng.normal(0.0, spread, count))


def centred(rng: np.random.Generator, gain: float, spread: float, count: int = 16) -> Floats:
    """The same, moved so that these prompts' own mean is the gain."""
    truth = normal(rng, gain, spread, count)
    return np.asarray(truth + math.log1p(gain) - truth.mean())


def skewed(rng: np.random.Generator, base: float, scale: float, part: float, count: int = 16) -> Floats:
    """True log-ratios of prompts of a kind: `base` for most, for a `part` of them an exponential amount more or less.

    The mean log-ratio of the kind is ``base + scale * part``.
    """
    more = math.copysign(1.0, scale) * rng.exponential(abs(scale), count) * (rng.random(count) < part)
    return np.asarray(base + more + rng.normal(0.0, 0.01, count))


def play(rng: np.random.Generator, truth: Floats, machine: Machine, course: Course) -> Played:
    """One whole proof.

    Args:
        rng: Where chance comes from.
        truth: True ln(drafting ÷ off) of each prompt, for prompt and answer alike.
        machine: The noise.
        course: How the proof goes.
    """
    plan = _plan(truth.size, course)
    count = plan.prompt.size
    drafted_sd = machine.launch_sd if machine.drafted_launch_sd is None else machine.drafted_launch_sd
    luck = (
        rng.normal(0.0, machine.launch_sd, plan.off_launch.max() + 1)[plan.off_launch],
        rng.normal(0.0, drafted_sd, plan.drafted_launch.max() + 1)[plan.drafted_launch],
    )
    lengths = _lengths(rng, truth.size, course)
    # Both halves of all pairs, off first: one history of the machine lies under them all.
    slowness = _slowness(
        rng, np.concatenate([plan.off_at, plan.drafted_at]), machine, course.request_s
    ).reshape(2, count)
    sides = []
    for side in (0, 1):
        tokens = lengths[side][plan.prompt]
        stalls = np.where(rng.random(count) < machine.stall_rate, np.log(rng.uniform(*_STALL, count)), 0.0)
        gain = truth[plan.prompt] if side else 0.0
        factor = np.exp(slowness[side] + stalls - luck[side] - gain)
        # Noise of a part falls with the root of its length, so that the log of a full request's time has the stated one.
        share = course.prompt_share
        parts = [
            length * np.exp(rng.normal(0.0, machine.noise / np.sqrt(length), count))
            for length in (np.full(count, share), (1.0 - share) * tokens)
        ]
        prompt_s, generation_s = (course.request_s * factor * part for part in parts)
        launch = plan.drafted_launch if side else plan.off_launch
        sides.append(Side(launch, prompt_s, generation_s, tokens))
    return Played(plan.prompt, plan.round, plan.off_first, sides[0], sides[1], course.prompt_share)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which pairs there are, and when their halves are asked, in seconds since the proof began."""

    prompt: Ints
    round: Ints
    off_first: Flags
    off_launch: Ints
    drafted_launch: Ints
    off_at: Floats
    drafted_at: Floats


@lru_cache(maxsize=64)
def _plan(prompts: int, course: Course) -> _Plan:
    rows: list[tuple[int, int, bool, int, int, float, float]] = []
    now_s = 0.0
    off = drafted = -1
    for round_ in range(1, course.rounds + 1):
        asked = of_round(range(prompts), round_, course.per_round)
        off, drafted = off + 1, drafted + 1
        now_s += course.launch_s * (1 if course.by_turns else 2)
        if not course.by_turns:
            for p in asked:
                off_first = len(rows) % 2 == 0
                halves = (now_s, now_s + course.request_s)
                rows.append((p, round_, off_first, off, drafted, *(halves if off_first else halves[::-1])))
                now_s += 2.0 * course.request_s
            now_s += 2.0 * course.request_s * len(asked) * (course.types - 1)
            continue
        for number, stretch in enumerate(_stretches(asked, course)):
            off_first = number % 2 == 0
            if number and off_first:
                drafted += 1
            elif number:
                off += 1
            side_s = min(_STRETCH_S, course.request_s * len(stretch) * course.types)
            side_s = max(side_s, course.request_s * len(stretch))
            second_s = now_s + side_s + course.launch_s
            for k, p in enumerate(stretch):
                halves = (now_s + k * course.request_s, second_s + k * course.request_s)
                rows.append((p, round_, off_first, off, drafted, *(halves if off_first else halves[::-1])))
            now_s = second_s + side_s
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return _Plan(*columns)


def _stretches(asked: Sequence[int], course: Course) -> Iterator[Sequence[int]]:
    """Half of a round's prompts, then the others; in several stretches where one would be too long."""
    most = max(1, int(_STRETCH_S / course.request_s))
    for half in (asked[::2], asked[1::2]):
        for begin in range(0, len(half), most):
            yield half[begin : begin + most]


def _lengths(rng: np.random.Generator, prompts: int, course: Course) -> tuple[Floats, Floats]:
    """Of every prompt, the tokens of its answer without and with drafting, as parts of a full one."""
    shorter = np.where(rng.random(prompts) < course.diverging, rng.uniform(*_SHORTER, prompts), 1.0)
    off_shorter = rng.random(prompts) < 0.5
    return np.where(off_shorter, shorter, 1.0), np.where(off_shorter, 1.0, shorter)


def _slowness(rng: np.random.Generator, at: Floats, machine: Machine, request_s: float) -> Floats:
    """Log slowness of the machine during requests that begin at these seconds: heat, and the mean of its regimes."""
    end_s = float(at.max()) + request_s
    slowness = np.asarray(rng.uniform(0.0, machine.drift) * at / end_s)
    if machine.regimes is Regimes.NONE:
        return slowness
    edges, levels = (_two if machine.regimes is Regimes.TWO else _wandering)(rng, end_s)
    # The integral of the levels is a broken line: its difference over a request is the request's own mean.
    integral = np.concatenate([[0.0], np.cumsum(levels * np.diff(edges))])
    ends = np.interp(at + request_s, edges, integral)
    return np.asarray(slowness + (ends - np.interp(at, edges, integral)) / request_s)


def _two(rng: np.random.Generator, end_s: float) -> tuple[Floats, Floats]:
    """Times at which the regime changes, and the log slowness between them."""
    lengths = rng.uniform(*_REGIME_S, int(end_s / _REGIME_S[0]) + 2)
    edges = np.concatenate([[0.0], np.cumsum(lengths)]) - rng.uniform(0.0, lengths[0])
    levels = -np.log(np.resize(rng.permutation(_REGIME_SPEEDS), lengths.size))
    return edges, levels


def _wandering(rng: np.random.Generator, end_s: float) -> tuple[Floats, Floats]:
    """The same in small steps, as an autoregressive process of the first order."""
    steps = int(end_s / _STEP_S) + 2
    kept = math.exp(-_STEP_S / _WANDER_S)
    shocks = rng.normal(0.0, _WANDER_SD * math.sqrt(1.0 - kept**2), steps)
    shocks[0] /= math.sqrt(1.0 - kept**2)
    edges = np.arange(steps + 1, dtype=float) * _STEP_S
    return edges, np.asarray(lfilter([1.0], [1.0, -kept], shocks))
