"""How close the search comes to the grid's best, in how many launches and minutes, with known, wrong or unknown costs.

``python -m studies.bench.search_regret [--repeats 2] [--seed 0] [--study quick] [--machine middling] [--costs refused] [--proofs]``

Simulated machines whose truth is known: memory-bound, middling (the times of an f32 model of 90 layers on two cores) and
compute-bound. Two drafts: a good, middling or hopeless one, and one with half its chance for each token. Three prompt types: code
with some repetition, chat without, editing that mostly copies. Costs: as timed; 20 to 60 per cent off, drawn per repeat for batches
and for the draft; or prediction is impossible.

Each search is that of `autospec tune` with the study's own budget, on the machine's clock. The output is how much of the grid's
best (every drafting that prediction considers, and off) its choice reaches for each type on other prompts: median, minimum and the
number of cells below 0.95; beside it plain TPE with the same number of trials, which asks every prompt in each. With `--proofs`
the whole tune is played, without the checks of limits: then its recommendations count, and its launches and minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import optuna

from autospec.backends.protocol import LaunchSettings, Request
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.predict.prediction import replay_drafts
from autospec.predict.profile import AnswerProfile
from autospec.prompts.suite import Half, Prompt, Suite
from autospec.store.database import open_store
from autospec.tuning import run as run_module
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun
from autospec.tuning.definition import StudyDefinition, load_definition
from autospec.tuning.request import TuneRequest
from autospec.tuning.run import Tuning
from autospec.tuning.search import Search
from autospec.tuning.space import Arm, Space
from autospec.tuning.winners import choose_winners
from studies.bench.search import HERE, Silent
from tests.catalog.making import make_model
from tests.predict.machine import Costs, Machine, MachineServer, Text

TYPES = (PromptType.CODING, PromptType.CHAT, PromptType.EDITING)
# Each type's addition to a draft's chance, and the share of its text copied from before.
MOODS = {PromptType.CODING: (0.04, 0.6), PromptType.CHAT: (0.0, 0.05), PromptType.EDITING: (-0.04, 2.0)}
TOKENS = 128
LAUNCH_MS = 3000.0
_ENOUGH = 0.95  # of the grid's best
DRAFTS = {"good": 0.88, "middling": 0.65, "hopeless": 0.15}
COSTS = ("timed", "wrong", "refused")
_MIDDLING = ((1, 2, 3, 5, 9, 13, 65), (51.5, 65.0, 72.0, 83.0, 106.0, 127.0, 400.0))
CURVES: dict[str, tuple[Callable[[int], float], float]] = {
    "memory-bound": (lambda k: 50.0 + 0.5 * (k - 1), 4.0),
    "middling": (lambda k: float(np.interp(k, *_MIDDLING)), 9.4),
    "compute-bound": (lambda k: 50.0 + 35.0 * (k - 1), 8.0),
}
NGRAMS = (Mode.NGRAM_SIMPLE, Mode.NGRAM_MOD, Mode.NGRAM_MAP_K)


class Enough(Exception):  # noqa: N818 - no error: the search is over, and the proof is not what is looked at
    """The search has chosen."""


class Paper(Machine):
    """A simulated machine with texts of three types and launches that take time."""

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> MachineServer:
        """Launch in three seconds."""
        self.spent_ms += LAUNCH_MS
        return super().launch(model_path, drafting, settings)

    def _make(self, words: str, n: int, draft: str) -> Text:
        self.repeats = MOODS[_type_of(words)][1]
        return super()._make(words, n, draft)


@dataclass(frozen=True)
class Case:
    """One line of the table, before its repeats."""

    machine: str
    draft: str
    costs: str


@dataclass
class Found:
    """The results of a line's repeats: shares of the best for each type, launches with drafting, minutes."""

    reached: list[float] = field(default_factory=list)
    by_tpe: list[float] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)


def main() -> None:
    """Print a table for each study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first repeat; the next ones count on")
    parser.add_argument("--study", action="append", default=[])
    parser.add_argument("--machine", action="append", choices=list(CURVES), default=[])
    parser.add_argument("--draft", action="append", choices=list(DRAFTS), default=[])
    parser.add_argument("--costs", action="append", choices=COSTS, default=[])
    parser.add_argument("--proofs", action="store_true", help="play whole tunes")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    cases = [
        Case(m, d, c)
        for m in args.machine or CURVES
        for d in args.draft or DRAFTS
        for c in args.costs or COSTS
    ]
    for study in args.study or ["quick", "default"]:
        print(
            f"\n{study}: part of the grid's best over {len(TYPES)} types and repeats: median (minimum, cells below {_ENOUGH})"
        )
        print(
            "| machine | drafts | costs | autospec | launches | minutes | plain TPE |\n|---|---|---|---|---|---|---|"
        )
        everything = Found()
        for case in cases:
            found = Found()
            for seed in range(args.seed, args.seed + args.repeats):
                _repeat(case, load_definition(study), seed, found, proofs=args.proofs)
            print(f"| {case.machine} | {case.draft} | {case.costs} | {_line(found)} |", flush=True)
            for name in ("reached", "by_tpe", "launches", "minutes"):
                getattr(everything, name).extend(getattr(found, name))
        print(f"| all | | | {_line(everything)} |", flush=True)


def _line(found: Found) -> str:
    own, tpe = [
        f"{statistics.median(v):.3f} ({min(v):.3f}, {sum(x < _ENOUGH for x in v)} of {len(v)})"
        for v in (found.reached, found.by_tpe)
    ]
    return f"{own} | {statistics.median(found.launches):.0f} | {statistics.median(found.minutes):.1f} | {tpe}"


def _repeat(case: Case, definition: StudyDefinition, seed: int, found: Found, *, proofs: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paper = _Tune(case, definition, seed, Path(folder))
        best = paper.best()
        chosen, launches, minutes = paper.tune() if proofs else paper.search()
        found.reached += [_part(paper, t, d, best[t]) for t, d in chosen.items()]
        found.launches.append(launches)
        found.minutes.append(minutes)
        found.by_tpe += [_part(paper, t, d, best[t]) for t, d in paper.tpe().items()]


def _part(paper: _Tune, prompt_type: PromptType, drafting: Drafting, best: float) -> float:
    # Without a gain the proof leaves drafting off.
    return min(1.0, max(1.0, paper.truth(prompt_type, drafting)) / best)


class _Tune:
    """One machine, its texts, and the searches on it."""

    def __init__(self, case: Case, definition: StudyDefinition, seed: int, folder: Path) -> None:
        self._case, self._seed = case, seed
        model = make_model(name="main", path=folder / "main.gguf")
        size = {"bytes_per_token": model.bytes_per_token // 8, "size_bytes": model.size_bytes // 8}
        drafts = [
            make_model(name=n, path=folder / f"{n}.gguf", fingerprint=n, **size) for n in ("one", "other")
        ]
        for each in (model, *drafts):
            each.path.touch()
        self.definition = definition
        self._drafts = [str(d.path) for d in drafts]
        suite = Suite("paper", tuple(_prompts()), f"{seed:012}")
        self._request = TuneRequest(
            model=model,
            models=(model, *drafts),
            definition=definition,
            suite=suite,
            storage=f"sqlite:///{folder / 'paper.db'}",
        )
        arms = [Arm(Mode.DRAFT_MODEL, d) for d in self._drafts]
        self.space = Space(
            (*arms, *(Arm(m) for m in NGRAMS if m in definition.space.modes)), definition.space
        )
        self._logs: dict[tuple[PromptType, Drafting], float] = {}
        self._exact = self.machine()

    def machine(self) -> Paper:
        """A new machine with the same texts."""
        chance = DRAFTS[self._case.draft]
        batch, step = CURVES[self._case.machine]
        quiet = {"noise": 0.03, "stalls": 0.02, "luck": 0.01, "drift": 0.01}
        timed = served = Costs(batch, lambda k: step * (1.0 + 0.03 * (k - 1)), **quiet)
        if self._case.costs == "wrong":
            rng = np.random.default_rng(self._seed)
            more, of_draft = (float(rng.uniform(1.2, 1.6)) ** float(rng.choice([-1, 1])) for _ in range(2))
            timed = Costs(
                lambda k: batch(1) + more * (batch(k) - batch(1)),
                lambda k: of_draft * served.draft(k),
                **quiet,
            )
        return Paper(
            acceptance=lambda words: chance + MOODS[_type_of(words)][0],
            worse={self._drafts[1]: 0.5 * chance},
            costs=timed,
            served=served,
            main_path=str(self._request.model.path),
            modes=frozenset({Mode.OFF, Mode.DRAFT_MODEL, *NGRAMS}),
            tells_tokens=self._case.costs != "refused",
            seed=self._seed,
        )

    def truth(self, prompt_type: PromptType, drafting: Drafting) -> float:
        """Speed ratio to off without noise, geometric mean over the proof's prompts."""
        if drafting.is_off:
            return 1.0
        if (prompt_type, drafting) not in self._logs:
            self._learn(prompt_type, [drafting])
        return math.exp(self._logs[prompt_type, drafting])

    def best(self) -> dict[PromptType, float]:
        """The best of the grid for each type; off counts as one."""
        grid = self.space.grid()
        groups: dict[tuple[Mode, str | None], list[Drafting]] = {}
        for d in grid:
            groups.setdefault((d.mode, d.draft), []).append(d)
        for prompt_type in TYPES:
            for group in groups.values():
                self._learn(prompt_type, group)
        return {t: max(1.0, *(self.truth(t, d) for d in grid)) for t in TYPES}

    def _learn(self, prompt_type: PromptType, group: Sequence[Drafting]) -> None:
        """True ratios of draftings of one arm."""
        costs = self._exact.served or self._exact.costs
        verify = np.array([costs.main(k + 1) for k in range(80)])
        with_draft = verify + np.array([costs.draft(k + 1) for k in range(80)])
        logs = []
        servers = {d: MachineServer(self._exact, "exact", d, 1.0) for d in group if d.draft is None}
        for prompt in self._request.suite.of(prompt_type, Half.PROVE):
            words = json.dumps(list(prompt.messages))
            draft = group[0].draft or ""
            text = self._exact.text(words, TOKENS, draft)
            off_ms = sum(MachineServer(self._exact, "exact", OFF, 1.0).exact(text, TOKENS)[:2])
            if draft:
                misses = {int(k): text.after_miss[k] for k in np.flatnonzero(~text.hits)}
                counts = replay_drafts(AnswerProfile("", text.hits, text.p, misses), group, TOKENS)
                width = counts.verified.shape[1]
                cycles = counts.verified @ with_draft[:width] + counts.steps * costs.draft(1)
                prompt_ms = (costs.prompt_ms + costs.draft_prompt_ms) * len(text.prompt_ids)
                taken = cycles + prompt_ms
            else:
                taken = np.array([sum(servers[d].exact(text, TOKENS)[:2]) for d in group])
            logs.append(np.log(off_ms / taken))
        for drafting, log in zip(group, np.mean(logs, axis=0), strict=True):
            self._logs[prompt_type, drafting] = float(log)

    def search(self) -> tuple[dict[PromptType, Drafting], int, float]:
        """Autospec's choice for each type, launches with drafting, and minutes by the machine's clock."""
        machine = self.machine()
        chosen: dict[PromptType, Drafting] = {}

        def choose(cells: Sequence[CellRun], *args: object) -> None:
            choose_winners(cells, *args)  # type: ignore[arg-type]
            chosen.update({c.prompt_type: c.winner for c in cells})
            raise Enough

        def clock() -> float:
            return machine.spent_ms / 1000.0

        with _by_clock(clock, choose), suppress(Enough):
            Tuning(self._request, machine, HERE, Silent()).run()
        return chosen, len(machine.main_launches()), clock() / 60.0

    def tune(self) -> tuple[dict[PromptType, Drafting], int, float]:
        """Autospec's recommendation for each type, launches with drafting, and minutes by the machine's clock."""
        machine = self.machine()
        unchecked = replace(self.definition, limits=replace(self.definition.limits, check=False))

        def clock() -> float:
            return machine.spent_ms / 1000.0

        with _by_clock(clock, choose_winners):
            Tuning(replace(self._request, definition=unchecked), machine, HERE, Silent()).run()
        store = open_store(self._request.storage)
        served = [s.recommendation for s in store.recommendations()]
        store.close()
        chosen = {r.prompt_type: r.drafting for r in served if r.prompt_type is not None}
        return chosen, len(machine.main_launches()), clock() / 60.0

    def tpe(self) -> Mapping[PromptType, Drafting]:
        """Plain TPE's choice for each type: the same number of trials, every prompt in each, the best measured one."""
        machine = self.machine()
        sampler = optuna.samplers.TPESampler(seed=self._seed, multivariate=True, group=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        best: dict[PromptType, tuple[float, Drafting]] = dict.fromkeys(TYPES, (0.0, OFF))
        for _ in range(self.definition.trials):
            trial = study.ask()
            drafting = self.space.suggest(trial)
            off, server = (machine.launch(machine.main_path, d, LaunchSettings()) for d in (OFF, drafting))
            logs = {
                t: statistics.fmean(
                    math.log(server.complete(_request(p)).request_tps / off.complete(_request(p)).request_tps)
                    for p in self._request.suite.of(t, Half.TUNE)
                )
                for t in TYPES
            }
            study.tell(trial, statistics.fmean(logs.values()))
            best = {t: max(best[t], (logs[t], drafting), key=lambda b: b[0]) for t in TYPES}
        return {t: d for t, (_, d) in best.items()}


@contextmanager
def _by_clock(clock: Callable[[], float], choose: Callable[..., None]) -> Iterator[None]:
    """A tune that ends with its choice, on a simulated clock and an undisturbed machine."""
    with (
        mock.patch.object(run_module, "Budget", partial(Budget, clock=clock)),
        mock.patch.object(run_module, "Search", partial(Search, now=clock)),
        mock.patch.object(run_module, "choose_winners", choose),
        mock.patch.object(run_module, "machine_lock", nullcontext),
        mock.patch("autospec.measure.disturbances.disturbance", return_value=""),
        mock.patch("autospec.tuning.paired_runner.disturbance", return_value=""),
        mock.patch("autospec.tuning.load_guard.busy", return_value=False),
    ):
        yield


def _prompts() -> Iterator[Prompt]:
    for prompt_type in TYPES:
        for half, count in ((Half.TUNE, 4), (Half.PROVE, 8)):
            for n in range(count):
                words = f"{prompt_type} {half} {n}"
                yield Prompt(
                    words.replace(" ", "-"), prompt_type, ({"role": "user", "content": words},), TOKENS, half
                )


def _type_of(words: str) -> PromptType:
    # The canary, the first request of every launch, has no type.
    return next((t for t in TYPES if t in words), PromptType.CHAT)


def _request(prompt: Prompt) -> Request:
    return Request(messages=prompt.messages, max_tokens=TOKENS)


if __name__ == "__main__":
    main()
