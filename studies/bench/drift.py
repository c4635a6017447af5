"""False alarms and delay of the drift detector on simulated traffic, one table.

    python studies/bench/drift.py [--requests 200000] [--seed 1]

Each row is a kind of traffic. False alarms are per 1000 requests of one model and prompt type without a change, speed and
acceptance charts together; "heard" counts alarms of the chart alone, before the condition that a change must be 5 %. The delay is
in requests from a change of the given size, after 200 requests without one; "missed" is the share of runs without an alarm
within 1000 requests. The last two rows are outside the stated rate: every conversation has its own speed.

The second table is for traffic that is held against its proof: false alarms where the live median is the proof's and where it is
the least that the proof lets expect (5 % less), and the delay from the first request where it is 15 % below the proof's.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator

from autospec.daemon.staleness import BLOCK, FALSE_ALARMS_PER_1000, SignCusum, first_change

Noise = Callable[[random.Random], Iterator[float]]
_RUN = 1000
_BEFORE = 200
_DELAY_RUNS = 100


def independent(sd: float) -> Noise:
    """Log speeds with normal noise."""

    def noise(rng: random.Random) -> Iterator[float]:
        while True:
            yield rng.gauss(0.0, sd)

    return noise


def skewed(sd: float) -> Noise:
    """Mostly steady; one request in ten is much slower because of another program."""

    def noise(rng: random.Random) -> Iterator[float]:
        while True:
            yield rng.gauss(0.0, sd) - (rng.expovariate(1 / (5 * sd)) if rng.random() < 0.1 else 0.0)

    return noise


def conversations(sd: float, correlation: float) -> Noise:
    """Neighbouring requests are correlated: an AR(1) process with the same spread."""

    def noise(rng: random.Random) -> Iterator[float]:
        value = rng.gauss(0.0, sd)
        while True:
            yield value
            value = correlation * value + rng.gauss(0.0, sd * math.sqrt(1 - correlation**2))

    return noise


def levels(sd: float, share: float, length: int) -> Noise:
    """Every conversation has its own level, with `share` of the variance; `length` is the mean number of requests."""

    def noise(rng: random.Random) -> Iterator[float]:
        while True:
            level = rng.gauss(0.0, sd * math.sqrt(share))
            while True:
                yield level + rng.gauss(0.0, sd * math.sqrt(1 - share))
                if rng.random() < 1 / length:
                    break

    return noise


def blocks(
    noise: Iterator[float], requests: int, changed_from: int = 1 << 60, change: float = 0.0
) -> list[float]:
    """Speeds in the detector's blocks."""
    speeds = [
        50.0 * math.exp(next(noise)) * (1.0 + change if n >= changed_from else 1.0) for n in range(requests)
    ]
    return [statistics.median(speeds[i : i + BLOCK]) for i in range(0, requests - BLOCK + 1, BLOCK)]


def false_alarms(noise: Noise, requests: int, rng: random.Random) -> tuple[float, float]:
    """Alarms per 1000 requests without a change: of the chart alone, and after the 5 % condition."""
    heard = mattered = 0
    runs = max(1, requests // _RUN)
    for _ in range(runs):
        # A run begins with a new recommendation, and so does the chart.
        values = blocks(noise(rng), _RUN)
        heard += first_change(values, matters=lambda *_: True) is not None
        mattered += first_change(values) is not None
    # Two charts, speed and acceptance.
    return 2000.0 * heard / (runs * _RUN), 2000.0 * mattered / (runs * _RUN)


def delays(noise: Noise, change: float, rng: random.Random) -> tuple[float, float, float]:
    """Median and 90 % quantile of the delay in requests, and the share of missed changes."""
    found = []
    for _ in range(_DELAY_RUNS):
        values = blocks(noise(rng), _BEFORE + _RUN, _BEFORE, change)
        seen = first_change(values)
        # An earlier alarm is a false one and is counted elsewhere.
        found.append(
            BLOCK * (seen.seen_at + 1) - _BEFORE if seen and seen.seen_at * BLOCK >= _BEFORE else math.inf
        )
    found.sort()
    missed = sum(math.isinf(d) for d in found) / len(found)
    return found[len(found) // 2], found[int(0.9 * len(found))], missed


# Median of the simulated speeds, and the least that a proof of it lets expect.
_PROVEN_TPS = 50.0
_LEAST_TPS = 0.95 * _PROVEN_TPS


def shortfalls(noise: Noise, level: float, runs: int, rng: random.Random) -> tuple[float, float]:
    """Alarms per 1000 requests at this level of the proof's speed, two charts together, and the median delay in requests."""
    found = []
    for _ in range(runs):
        values = blocks(noise(rng), _RUN, 0, level - 1.0)
        seen = first_change(values, matters=lambda _, after: after < _LEAST_TPS, chart=SignCusum(_LEAST_TPS))
        found.append(math.inf if seen is None else BLOCK * (seen.seen_at + 1))
    return 2.0 * sum(delay < math.inf for delay in found) / runs, statistics.median(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200_000, help="without a change, for each row")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rows: list[tuple[str, Noise]] = [
        ("independent, sd 3 %", independent(0.03)),
        ("independent, sd 10 %", independent(0.10)),
        ("one in ten slow, sd 5 %", skewed(0.05)),
        ("conversations, sd 5 %, r 0.3", conversations(0.05, 0.3)),
        ("conversations, sd 10 %, r 0.6", conversations(0.10, 0.6)),
        ("conversations, sd 10 %, r 0.8", conversations(0.10, 0.8)),
        ("levels for 10 requests, sd 10 %, half of it", levels(0.10, 0.5, 10)),
        ("levels for 20 requests, sd 10 %, half of it", levels(0.10, 0.5, 20)),
    ]
    stated = "independent, skewed or AR(1) up to r 0.8"
    print(f"False alarms stated: {FALSE_ALARMS_PER_1000} per 1000 requests, {stated}. Seed {asked.seed}.\n")
    print(
        "| traffic | heard /1000 | false alarms /1000 | −10 %: median delay | 90 % | missed | −5 %: median | missed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, noise in rows:
        rng = random.Random(asked.seed)
        heard, mattered = false_alarms(noise, asked.requests, rng)
        median, late, missed = delays(noise, -0.10, rng)
        small, _, small_missed = delays(noise, -0.05, rng)
        print(
            f"| {name} | {heard:.2f} | {mattered:.2f} | {median:.0f} | {late:.0f} | {missed:.0%} |"
            f" {small:.0f} | {small_missed:.0%} |"
        )
    print(
        "\n| traffic held against its proof | as proven /1000 | the least expected /1000 | −15 %: median delay |"
    )
    print("|---|---|---|---|")
    for name, noise in rows:
        rng = random.Random(asked.seed)
        runs = max(1, asked.requests // _RUN)
        rates = [shortfalls(noise, level, runs, rng)[0] for level in (1.0, 0.95)]
        delay = shortfalls(noise, 0.85, _DELAY_RUNS, rng)[1]
        print(f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | {delay:.0f} |")


if __name__ == "__main__":
    main()
