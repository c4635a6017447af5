"""Launches to a good choice, and its quality, on simulated machines whose truth is known.

``python -m studies.bench.search [--repeats 50] [--machine dense] [--noise 0.03]``

For each machine (cost curves of a dense memory-bound model, a mixture of experts, a CPU, and a machine with an expensive second
token of a batch) and each quality of the draft: the launches of the main model until the choice is within 2 % of the exhaustive
grid's best, for autospec (record, predict, launch), plain TPE and random search over the same space (paired on the same tune
prompts), and TPE on unpaired speeds of one prompt with three repeats, like llama-optimus 0.1.9 (its `core.py`: multivariate TPE,
45 trials, mean of ``-r 3``; it tunes other flags). The others count until their best-so-far is that good, which they could not
know; autospec until its search ends. Then autospec's whole tune with proof: verdicts, regret (1 - speed of what it configures ÷
the best, on the prove prompts), enables of a drafting that is not faster, launches in all.

Each repeat draws new text, acceptance and noise: 3 % noise with 2 % stalls, 1 % scatter of launches, drift. There are two draft
models: one as stated, and one with a chance 0.25 lower.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna

from autospec.backends.protocol import LaunchSettings, Request
from autospec.cells import Hardware, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.prompts.suite import Half, Prompt, Suite
from autospec.recommendations import Recommendation, Verdict
from autospec.tuning.definition import StudyDefinition, load_definition
from autospec.tuning.request import TuneRequest
from autospec.tuning.run import Tuning
from autospec.tuning.space import Arm, Space
from tests.catalog.making import make_model
from tests.predict.machine import Costs, Machine, MachineServer

HERE = Hardware(id="paper", chip="Paper", memory_bytes=64 << 30, cores=8, os="linux")
GOOD = 0.98
# The exhaustive grid: denser ones find nothing that is better by a per cent.
N_MAX = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24)
P_MIN = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CAP = 45
TOKENS = 96


@dataclass(frozen=True)
class Scenario:
    """A machine with costs in ms before noise, and the better draft's chance for each token."""

    name: str
    costs: Costs
    acceptance: float


CURVES: dict[str, Costs] = {
    "dense": Costs(lambda k: 50.0 + 0.4 * (k - 1), lambda k: 5.0 + 0.1 * (k - 1), 1.0, 0.1),
    "moe": Costs(lambda k: 12.0 + 4.0 * (k - 1) ** 0.8, lambda k: 2.5 + 0.1 * (k - 1), 0.5, 0.05),
    "cpu": Costs(lambda k: 70.0 + 14.0 * (k - 1), lambda k: 6.0 + 1.0 * (k - 1), 8.0, 0.6),
    "kink": Costs(
        lambda k: 40.0 if k == 1 else 75.0 + 0.8 * (k - 2), lambda k: 4.0 + 0.1 * (k - 1), 1.0, 0.1
    ),
}
ACCEPTANCES = (0.9, 0.7, 0.4)


@dataclass
class Silent:
    """No output."""

    def step(self, step: object) -> None:
        """Nothing."""

    def standing(self, standings: object) -> None:
        """Nothing."""

    def tell(self, text: str) -> None:
        """Nothing."""


@dataclass
class Results:
    """The results of one scenario's repeats."""

    launches: dict[str, list[int]] = field(default_factory=dict)
    reached: dict[str, list[bool]] = field(default_factory=dict)
    regrets: list[float] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    false_enables: int = 0
    all_launches: list[int] = field(default_factory=list)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--machine", action="append", choices=list(CURVES), default=[])
    parser.add_argument("--noise", type=float, default=0.03)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = args.machine or list(CURVES)
    found: dict[str, Results] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        for name in names:
            for acceptance in ACCEPTANCES:
                noisy = replace(CURVES[name], noise=args.noise, stalls=0.02, luck=0.01, drift=0.01)
                scenario = Scenario(f"{name} {acceptance:.1f}", noisy, acceptance)
                found[scenario.name] = _repeat(scenario, args.repeats, Path(folder))
                print(f"… {scenario.name}: {time.monotonic() - begun:.0f} s", flush=True)
    _print(found, args.repeats)


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - thousands of small transactions


def _repeat(scenario: Scenario, repeats: int, folder: Path) -> Results:
    results = Results()
    for seed in range(repeats):
        case = _Case(scenario, seed, folder)
        grid = [d for d in case.space.grid() if d.n_max in N_MAX and d.p_min in P_MIN]
        best, best_known = (
            max([1.0, *(case.truth(d, half) for d in grid)]) for half in (Half.PROVE, Half.TUNE)
        )

        def good(drafting: Drafting, case: _Case = case, best: float = best_known) -> bool:
            return case.truth(drafting, Half.TUNE) >= GOOD * best

        for name, count in case.others(good).items():
            results.launches.setdefault(name, []).append(count or CAP + 1)
            results.reached.setdefault(name, []).append(count is not None)
        recommendation, searched, launched = case.tune()
        results.launches.setdefault("autospec", []).append(searched)
        tried = recommendation.tried
        results.reached.setdefault("autospec", []).append(
            good(tried) or (best_known < 1.0 + 1.0 - GOOD and recommendation.verdict is not Verdict.ENABLE)
        )
        configured = case.truth(recommendation.drafting, Half.PROVE)
        results.regrets.append(max(0.0, 1.0 - configured / best))
        results.verdicts.append(recommendation.verdict)
        results.false_enables += recommendation.verdict is Verdict.ENABLE and configured <= 1.0
        results.all_launches.append(launched)
    return results


class _Case:
    """One repeat: a machine with its texts, and the searches on it."""

    def __init__(self, scenario: Scenario, seed: int, folder: Path) -> None:
        self._scenario = scenario
        self._seed = seed
        main_model = make_model(name="main", path=folder / "main.gguf")
        size = {
            "bytes_per_token": main_model.bytes_per_token // 8,
            "size_bytes": main_model.size_bytes // 8,
        }
        self._drafts = tuple(
            make_model(name=name, path=folder / f"{name}.gguf", fingerprint=name, **size)
            for name in ("good", "bad")
        )
        for model in (main_model, *self._drafts):
            model.path.touch()
        self.definition: StudyDefinition = replace(load_definition("default"), trials=CAP, budget_s=1e6)
        prompts = [
            Prompt(
                f"{half}-{n}", PromptType.CODING, ({"role": "user", "content": f"{half} {n}"},), TOKENS, half
            )
            for half, count in ((Half.TUNE, 4), (Half.PROVE, 8))
            for n in range(count)
        ]
        self._request = TuneRequest(
            model=main_model,
            models=(main_model, *self._drafts),
            definition=self.definition,
            suite=Suite("paper", tuple(prompts), f"{seed:012}"),
            storage=f"sqlite:///{folder}/{scenario.name.replace(' ', '-')}-{seed}.db",
        )
        arms = tuple(Arm(Mode.DRAFT_MODEL, str(m.path)) for m in self._drafts)
        self.space = Space(arms, self.definition.space)
        self._known: dict[tuple[Drafting, Half], float] = {}
        self._exact = self.machine()

    def machine(self) -> Machine:
        """A new machine with the same texts."""
        bad = str(self._drafts[1].path)
        return Machine(
            acceptance=lambda _: self._scenario.acceptance,
            worse={bad: 0.25},
            costs=self._scenario.costs,
            main_path=str(self._request.model.path),
            seed=self._seed,
        )

    def truth(self, drafting: Drafting, half: Half) -> float:
        """Speed ratio to off without noise, geometric mean over the half's prompts."""
        if drafting.is_off:
            return 1.0
        if (drafting, half) not in self._known:
            machine = self._exact
            logs = []
            for prompt in self._request.suite.of(PromptType.CODING, half):
                words = json.dumps(list(prompt.messages))
                times = []
                for d in (OFF, drafting):
                    server = MachineServer(machine, "exact", d, 1.0)
                    prompt_ms, generate_ms, _, _ = server.exact(
                        machine.text(words, TOKENS, d.draft or ""), TOKENS
                    )
                    times.append(prompt_ms + generate_ms)
                logs.append(math.log(times[0] / times[1]))
            self._known[drafting, half] = math.exp(statistics.fmean(logs))
        return self._known[drafting, half]

    def tune(self) -> tuple[Recommendation, int, int]:
        """One whole tune: its recommendation, launches of its search, and launches in all."""
        machine = self.machine()
        [recommendation] = Tuning(self._request, machine, HERE, Silent()).run()
        searched = 1 + int(recommendation.evidence.get("trials", 0))
        return recommendation, searched, 1 + len(machine.main_launches())

    def others(self, good: Callable[[Drafting], bool]) -> dict[str, int | None]:
        """Launches until each other search's best-so-far is good; ``None`` if it never is."""
        prompts = self._request.suite.of(PromptType.CODING, Half.TUNE)
        tpe = optuna.samplers.TPESampler(seed=self._seed, multivariate=True, group=True)
        unpaired = optuna.samplers.TPESampler(seed=self._seed, multivariate=True, group=True)
        random = optuna.samplers.RandomSampler(seed=self._seed)
        return {
            "TPE": self._sample(tpe, good, lambda m, d: _paired(m, d, prompts)),
            "random": self._sample(random, good, lambda m, d: _paired(m, d, prompts)),
            "as llama-optimus": self._sample(unpaired, good, lambda m, d: _speed(m, d, prompts[0])),
        }

    def _sample(
        self,
        sampler: optuna.samplers.BaseSampler,
        good: Callable[[Drafting], bool],
        measure: Callable[[Machine, Drafting], float],
    ) -> int | None:
        machine = self.machine()
        study = optuna.create_study(direction="maximize", sampler=sampler)
        best, value = OFF, measure(machine, OFF)
        if good(best):
            return 1
        for count in range(2, CAP + 2):
            trial = study.ask()
            drafting = self.space.suggest(trial)
            told = measure(machine, drafting)
            study.tell(trial, told)
            if told > value:
                best, value = drafting, told
                if good(best):
                    return count
        return None


def _paired(machine: Machine, drafting: Drafting, prompts: Sequence[Prompt]) -> float:
    if drafting.is_off:
        return 1.0
    logs = []
    off, server = (machine.launch(machine.main_path, d, LaunchSettings()) for d in (OFF, drafting))
    for prompt in prompts:
        request = Request(messages=prompt.messages, max_tokens=prompt.max_tokens)
        logs.append(math.log(server.complete(request).request_tps / off.complete(request).request_tps))
    return math.exp(statistics.fmean(logs))


def _speed(machine: Machine, drafting: Drafting, prompt: Prompt) -> float:
    server = machine.launch(machine.main_path, drafting, LaunchSettings())
    request = Request(messages=prompt.messages, max_tokens=prompt.max_tokens)
    return statistics.fmean(server.complete(request).decode_tps for _ in range(3))


def _print(found: dict[str, Results], repeats: int) -> None:
    ways = ("autospec", "TPE", "random", "as llama-optimus")
    print(f"\nLaunches until the choice is within {100 * (1 - GOOD):.0f} % of the best, {repeats} repeats:")
    print("median (90th percentile), part of the repeats that got there within the cap of", CAP)
    print("| machine, acceptance | " + " | ".join(ways) + " |\n|---" + "|---" * len(ways) + "|")
    for name, results in found.items():
        cells = []
        for way in ways:
            counts = results.launches[way]
            got = 100 * statistics.fmean(results.reached[way])
            cells.append(f"{np.median(counts):.0f} ({np.percentile(counts, 90):.0f}), {got:.0f} %")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(
        "\n| machine, acceptance | enable / disable / undecided | false enables | regret mean | 95th | launches in all |"
    )
    print("|---|---|---|---|---|---|")
    for name, results in found.items():
        counts = [results.verdicts.count(v) for v in (Verdict.ENABLE, Verdict.DISABLE, Verdict.UNDECIDED)]
        print(
            f"| {name} | {counts[0]} / {counts[1]} / {counts[2]} | {results.false_enables} "
            f"| {100 * statistics.fmean(results.regrets):.1f} % | {100 * np.percentile(results.regrets, 95):.1f} % "
            f"| {np.median(results.all_launches):.0f} |"
        )
    launches = {way: sum(sum(r.launches[way]) for r in found.values()) for way in ways}
    others = ", ".join(f"{launches['autospec'] / launches[w]:.2f} of {w}'s" for w in ways[1:])
    print(
        f"\nautospec's launches over all: {others}; false enables {sum(r.false_enables for r in found.values())}."
    )


if __name__ == "__main__":
    main()
