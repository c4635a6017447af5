"""A proof on simulated servers and a simulated clock: minutes of measuring in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.cells import Aim, PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.measure import asking as asking_module
from autospec.measure.asking import Asking
from autospec.measure.measurements import Phase
from autospec.prompts.suite import Half, Prompt
from autospec.store.database import open_store
from autospec.tuning.budget import Budget
from autospec.tuning.cell import CellRun, TuneContext
from autospec.tuning.definition import load_definition
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.proof import Proof
from autospec.tuning.tasks import Task
from tests.tuning.simulated import OFF_TPS, SimulatedBackend, SimulatedServer
from tests.tuning.test_paired_runner import Watch
from tests.tuning.test_run import Silent

# So that a request with drafting off takes one second for each of these.
TOKENS_PER_S = round(OFF_TPS)


def ngram(n: int) -> Drafting:
    """A drafting that differs by this number."""
    return Drafting(Mode.NGRAM_SIMPLE, ngram_n=n, ngram_m=8, min_hits=1)


def prompts(cell: str, count: int, request_s: float, half: Half = Half.PROVE) -> tuple[Prompt, ...]:
    """Prompts of one cell whose answers take `request_s` without drafting."""
    tokens = round(request_s * TOKENS_PER_S)
    return tuple(
        Prompt(f"{cell}-{half}-{n}", PromptType.QA, ({"role": "user", "content": f"{cell} {half} {n}"},), tokens, half)
        for n in range(count)
    )  # fmt: skip


@dataclass
class Lab:
    """Everything that a proof works with."""

    context: TuneContext
    backend: SimulatedBackend
    watcher: Silent
    cells: list[CellRun]
    kept: list[str] = field(default_factory=list)

    def prove(self) -> list[CellRun]:
        """Run the proof; returns the cells that are decided."""
        Proof(self.cells, self.context, lambda cell: self.kept.append(cell.cell.key)).run()
        return [cell for cell in self.cells if cell.decided]

    def known(self, cell: CellRun) -> int:
        """Pairs of its proof that the store counts."""
        return len(self.context.pairing.known(cell.cell.key, cell.winner, Phase.PROVE))


def lab(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    resident: int = 2,
    budget_s: float = 1e6,
    spent_s: float = 0.0,
    cells: Sequence[tuple[str, Drafting, float]] = (("a", ngram(4), 1.5),),
    speedup: Callable[[Drafting, str], float] = lambda _d, _t: 1.5,
    request_s: float = 1.0,
    prove: int = 8,
    launch_s: float = 20.0,
    noise: float = 0.005,
    watch: Watch | None = None,
    on_renewed: Callable[[SimulatedServer, SimulatedServer], None] = lambda _old, _new: None,
) -> Lab:
    """A lab whose cells are searched: each drafting has been measured on one prompt of each of its cells.

    `cells` are name, winner and the ratio that the search found; the proof starts `spent_s` into the budget; a request takes
    `request_s` without drafting, with this noise; `prove` is the number of each cell's prove prompts.
    """
    backend = SimulatedBackend(speedup, noise=noise, launch_s=launch_s)
    clock = backend.clock
    monkeypatch.setattr(asking_module, "time", clock)
    # Minutes shall pass: the answers of these tests are long, and none is cut.
    monkeypatch.setattr(asking_module, "enough_tokens", lambda _token_ms: 10_000_000)
    definition = load_definition("quick")
    watcher = Silent()
    budget = Budget(budget_s, clock)
    launches = Launches(
        backend, "/main.gguf", LaunchSettings(), resident=resident, clock=clock, on_renewed=on_renewed
    )
    asking = Asking("protocol", 10_000_000, 0.0, watch or Watch())
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    pairing = PairedRunner(
        launches,
        asking,
        store,
        since={},
        tell=watcher.told.append,
        sleep=clock.pass_by,
        clock=clock,
    )
    given = replace(definition, budget_s=budget_s)
    context = TuneContext(given, None, launches, pairing, budget, watcher, asking, store)
    runs = [
        CellRun(
            SimpleNamespace(key=name, prompt_type=name, aim=Aim.SPEED),
            SimpleNamespace(noted=lambda _: None, note=lambda _key, _value: None),
            prompts(name, 1, request_s, Half.TUNE),
            prompts(name, prove, request_s),
            winner=winner,
            trial_values={winner: ratio},
            searched=True,
        )
        for name, winner, ratio in cells
    ]
    for winner in dict.fromkeys(cell.winner for cell in runs):
        tasks = [Task.of(c.cell.key, c.tune_prompts[0]) for c in runs if c.winner == winner]
        list(pairing.block(tasks, winner, Phase.SEARCH, 0))
    clock.pass_by(max(0.0, spent_s - budget.spent_s))
    return Lab(context, backend, watcher, runs)


def sides(backend: SimulatedBackend) -> list[tuple[str, bool]]:
    """The launches of the proof's requests, and whether each is off; repeated ones count once."""
    found: list[tuple[str, bool]] = []
    for launch, drafting, text in backend.asked:
        if str(Half.PROVE) in text and found[-1:] != [(launch, drafting == OFF)]:
            found.append((launch, drafting == OFF))
    return found
