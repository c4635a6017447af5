"""How often the overall answer enables falsely, and how often rightly, on simulated machines.

Every prompt type is proven by itself first, as a tune does it: its rounds end when its own verdict is final, which is when its
pairs happen to look good or bad. Then the pairs of all types are judged together, with more rounds where that needs them.
The true gain of the mix is stated; each type has another one.

    python -m studies.bench.overall_simulation
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np

from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure.log_ratios import of_pairs
from autospec.measure.measurements import Measurement, Pair, Phase
from autospec.measure.verdict import DEFAULT_RULE, decide
from autospec.recommendations import Recommendation, Status, Verdict
from autospec.tuning.overall import Known, choose, mix_of
from autospec.tuning.proof import of_round

_DRAFTING = Drafting(Mode.NGRAM_SIMPLE, ngram_n=6, ngram_m=24, min_hits=1)
_TYPES = (PromptType.CODING, PromptType.CHAT, PromptType.WRITING, PromptType.QA)
# Prompts of a type, those of a round, and the rule of the study `quick`.
_PROMPTS, _PER_ROUND = 16, 8
_RULE = replace(DEFAULT_RULE, looks=(1, 2, 4, 8))
# Standard deviations of ln(speed): between prompts of a type, between requests, between launches.
_PROMPT_SD, _NOISE = 0.10, 0.02


class _Type:
    """One prompt type: its prompts have true gains around the type's, and its pairs are drawn round by round."""

    def __init__(
        self, kind: PromptType, log_gain: float, launch_sd: float, random: np.random.Generator
    ) -> None:
        self._random = random
        self._launch_sd = launch_sd
        own = random.normal(0.0, _PROMPT_SD, _PROMPTS)
        self._gains = log_gain + own - own.mean()
        self.kind = kind
        self.pairs: list[Pair] = []
        self.rounds = 0
        self.enabled = False

    def ask(self) -> None:
        """One more round, on new launches."""
        self.rounds += 1
        luck = self._random.normal(0.0, self._launch_sd, 2)
        for turn, n in enumerate(of_round(range(_PROMPTS), self.rounds, _PER_ROUND)):
            noise = self._random.normal(0.0, _NOISE, 2) + luck
            walls = 1000.0 * np.exp(noise - np.array([0.0, self._gains[n]]))
            halves = [self._half(n, side, float(walls[side]), (turn + side) % 2) for side in (0, 1)]
            self.pairs.append(Pair(*halves))

    def prove(self) -> None:
        """The type's own proof."""
        while self.rounds < _RULE.looks[-1]:
            self.ask()
            if self.rounds not in _RULE.looks:
                continue
            values = of_pairs(self.pairs)
            decision = decide(values, self.rounds, _RULE, complete=self.rounds > 1)
            if decision.final:
                self.enabled = decision.verdict is Verdict.ENABLE
                return

    def known(self) -> Known:
        """As a tune knows it."""
        verdict = Verdict.ENABLE if self.enabled else Verdict.UNDECIDED
        r = Recommendation(
            "m", "", "b", "1", self.kind, verdict, _DRAFTING if self.enabled else OFF, _DRAFTING, 10.0, None, None,
            None, len(self.pairs), None, "-", Status.PROVEN, "", {"request": {"answer_tokens": 100.0}},
        )  # fmt: skip
        return Known(r, {_DRAFTING: self.pairs}, prompts=_PROMPTS)

    def _half(self, prompt: int, side: int, wall_ms: float, position: int) -> Measurement:
        return Measurement(
            cell_key=str(self.kind), protocol="", phase=Phase.PROVE, round=self.rounds,
            drafting=_DRAFTING if side else OFF, compared=_DRAFTING, prompt_id=f"{self.kind} {prompt}",
            launch_id=f"{self.kind} {side} {self.rounds}", position=position, started_at=0.0, prompt_tokens=10,
            predicted_tokens=100, prompt_ms=0.0, predicted_ms=wall_ms, wall_ms=wall_ms, drafted=None, accepted=None,
            text_digest="",
        )  # fmt: skip


def enabled(gains: list[float], launch_sd: float, random: np.random.Generator) -> bool:
    """Whether one simulated tune enables the drafting for all types together; `gains` are true speed ratios by type."""
    types = [_Type(k, math.log(g), launch_sd, random) for k, g in zip(_TYPES, gains, strict=False)]
    for each in types:
        each.prove()
    looked: dict[Drafting, int] = {}
    while True:
        known = {each.kind: each.known() for each in types}
        answer = choose(known, mix_of(known, ()), _RULE, looked=looked)
        [candidate] = answer.candidates
        if answer.verdict is Verdict.ENABLE:
            return True
        looked[_DRAFTING] = max(candidate.look, looked.get(_DRAFTING, 0))
        fewest = min(each.rounds for each in types)
        if answer.final or answer.next.is_off or fewest >= _RULE.looks[-1]:
            return False
        for each in types:
            if each.rounds == fewest:
                each.ask()


def at(mix: float, others: list[float]) -> list[float]:
    """Ratios of the types, such that the mix of equal times has the ratio `mix`: the first one is set by the others."""
    count = len(others) + 1
    return [1.0 / (count / mix - math.fsum(1.0 / r for r in others)), *others]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tunes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    print(f"{options.tunes} tunes a row; requests {_NOISE:.0%}, prompts {_PROMPT_SD:.0%}")
    for mix in (1.0, 1.02, 1.05, 1.10):
        for others in ([mix], [0.8], [1.0, 0.9, 0.8]):
            for launch_sd in (0.0, 0.01, 0.03):
                gains = at(mix, others)
                count = sum(enabled(gains, launch_sd, random) for _ in range(options.tunes))
                ratios = ", ".join(f"{g:.2f}" for g in gains)
                print(
                    f"mix {mix:.2f}, types {ratios}, launches {launch_sd:.0%}: enabled {100 * count / options.tunes:.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
