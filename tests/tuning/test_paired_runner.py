"""Pairs on a disturbed machine are measured again, waited for, or compensated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autospec.backends.protocol import LaunchSettings
from autospec.cells import PromptType
from autospec.drafting import OFF, Drafting, Mode
from autospec.hardware.state import MachineState
from autospec.measure.asking import Asking
from autospec.measure.disturbances import disturbance
from autospec.measure.measurements import Pair, Phase
from autospec.prompts.suite import Half, Prompt
from autospec.store.database import open_store
from autospec.tuning.budget import Budget
from autospec.tuning.launches import Launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.tasks import Task
from tests.store.test_database import MEASUREMENT
from tests.tuning.simulated import SimulatedBackend

CALM = MachineState(
    window_s=5.0, cores=4, other_load=0.02, steal=0.0, on_battery=False, battery_percent=80.0, low_power=False,
    thermal="nominal", memory_available_bytes=1 << 34, swap_in_bytes=0,
)  # fmt: skip
DRAFTING = Drafting(Mode.NGRAM_SIMPLE, ngram_n=4, ngram_m=8, min_hits=1)
TASKS = [
    Task.of("cell", Prompt(f"p{n}", PromptType.QA, ({"role": "user", "content": str(n)},), 16, Half.PROVE))
    for n in range(3)
]


class Watch:
    """A watch that reads from a script; calm once the script is over."""

    def __init__(self, *states: MachineState) -> None:
        self.script = list(states)

    def start(self) -> None:
        """Nothing to begin."""

    def finish(self) -> MachineState:
        """The script's next state."""
        return self.script.pop(0) if self.script else CALM


def pairing(
    tmp_path: Path, watch: Watch, slept: list[float], *, resident: int = 2, per_request: bool = False
) -> tuple[PairedRunner, SimulatedBackend]:
    """A pairing on simulated servers with a scripted machine."""
    backend = SimulatedBackend(lambda _d, _t: 1.2, per_request=per_request)
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=resident)
    asking = Asking("protocol", 16, 0.0, watch)
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    return PairedRunner(launches, asking, store, since={}, sleep=slept.append), backend


def with_states(off: MachineState, drafted: MachineState) -> Pair:
    """A pair whose halves were measured under these states, off first."""
    return Pair(
        off=replace(MEASUREMENT, position=0, machine=off.to_json()),
        drafted=replace(MEASUREMENT, position=1, machine=drafted.to_json()),
    )


@pytest.mark.parametrize(
    ("off", "drafted", "words"),
    [
        (CALM, CALM, ""),
        (replace(CALM, other_load=1.0), replace(CALM, other_load=1.05), ""),
        (CALM, replace(CALM, other_load=1.0), "load of other processes changed"),
        (CALM, replace(CALM, steal=0.9), "load of other processes changed"),
        (CALM, replace(CALM, on_battery=True), "on battery"),
        (CALM, replace(CALM, thermal="throttled"), "Heat"),
        (replace(CALM, changed="the machine went on battery"), CALM, "on battery"),
        (CALM, replace(CALM, swap_in_bytes=1 << 30), "swap"),
    ],
)
def test_pair_counts_as_disturbed_if_the_machine_changed(off, drafted, words):
    """A steady load is paired out; what changed within the pair is named."""
    reason = disturbance(with_states(off, drafted))
    assert words in reason
    assert bool(reason) is bool(words)


def test_disturbed_pair_is_measured_again_on_a_fresh_launch(tmp_path):
    """A load disturbs one half of the second of three pairs; another launch gives a clean pair."""
    slept: list[float] = []
    busy = replace(CALM, other_load=2.0)
    pairs, backend = pairing(tmp_path, Watch(CALM, CALM, CALM, busy), slept)
    measured = list(pairs.block(TASKS, DRAFTING, Phase.PROVE, 1, repeats=1))
    assert sorted(m.task.prompt_id for m in measured) == ["p0", "p1", "p2"]
    assert all(not m.disturbed for m in measured)
    assert backend.launched.count(DRAFTING) == 2
    assert len(pairs.known("cell", DRAFTING, Phase.PROVE)) == 3


def test_pair_that_stays_disturbed_is_handed_out_with_the_reason_and_not_known(tmp_path):
    """After all repeats the pair is told as disturbed, and the store does not count it."""
    busy = replace(CALM, other_load=2.0)
    # Off, drafted under load, one calm look while settling: the same at every attempt.
    pairs, _ = pairing(tmp_path, Watch(*[CALM, busy, CALM] * 3), [])
    (measured,) = pairs.block(TASKS[:1], DRAFTING, Phase.PROVE, 1, repeats=0)
    assert "changed by 2.0 cores" in measured.disturbed
    assert pairs.known("cell", DRAFTING, Phase.PROVE) == []


@pytest.mark.parametrize("resident", [1, 2])
@pytest.mark.parametrize("disturbed", ["2", "12"])
def test_a_disturbed_pair_is_handed_out_where_the_budget_ends(tmp_path, resident, disturbed):
    """A pair takes more than is left after the first pass, and less than with the grace, which ends after one repeat.

    Pairs that the budget refused to repeat were not handed out, so their round was never complete.
    """
    backend = SimulatedBackend(lambda _d, _t: 1.2, launch_s=0.0)

    class Battery(Watch):
        def finish(self) -> MachineState:
            _, side, text = backend.asked[-1]
            return replace(
                CALM, on_battery=not side.is_off and any(f'"{number}"' in text for number in disturbed)
            )

    def spent_s() -> float:
        return 0.0 if len(backend.asked) < 6 else 999.9 if len(backend.asked) < 8 else 2000.0

    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=resident)
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    asking = Asking("protocol", 16, 0.0, Battery())
    runner = PairedRunner(launches, asking, store, since={}, clock=backend.clock)
    block = runner.block(TASKS, DRAFTING, Phase.PROVE, 1, repeats=1, budget=Budget(1000.0, spent_s))
    measured = list(block)
    assert sorted(m.task.prompt_id for m in measured) == ["p0", "p1", "p2"]
    assert {m.task.prompt_id[1:] for m in measured if m.disturbed} == set(disturbed)
    assert len(backend.asked) == 8
    launches.close()
    store.close()


def test_waits_for_other_programs_and_gives_up_after_a_minute(tmp_path):
    """After a half under load the next request waits while the load lasts, a second at a time, sixty at most."""
    slept: list[float] = []
    busy = replace(CALM, other_load=2.0)
    pairs, _ = pairing(tmp_path, Watch(busy, busy, busy, CALM), slept)
    list(pairs.block(TASKS[:1], DRAFTING, Phase.PROVE, 1))
    assert slept == [1.0, 1.0, 1.0]
    slept.clear()
    pairs, _ = pairing(tmp_path / "other", Watch(*[busy] * 61), slept)
    list(pairs.block(TASKS[:1], DRAFTING, Phase.PROVE, 1))
    assert sum(slept) == 60.0


def test_time_is_planned_by_what_was_asked_and_not_by_what_is_continued_on_paper(tmp_path):
    """Off is cut after some hundred tokens of 1000; its pairs count as if all had been generated."""
    long = [replace(task, prompt=replace(task.prompt, max_tokens=1000)) for task in TASKS]
    backend = SimulatedBackend(lambda _d, _t: 1.2, launch_s=0.0)
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2)
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")

    def runner() -> PairedRunner:
        return PairedRunner(
            launches, Asking("protocol", 1000, 0.0, Watch()), store, since={}, clock=backend.clock
        )

    asked = runner()
    begun = backend.clock.now
    found = [m.pair for m in asked.block(long, DRAFTING, Phase.PROVE, 1)]
    each_s = (backend.clock.now - begun) / len(long)
    assert sum(p.off.wall_ms + p.drafted.wall_ms for p in found) / 3000.0 > 1.2 * each_s
    assert asked.took_s("cell", DRAFTING) == pytest.approx(each_s)
    assert asked.took_s("cell", OFF) == 0.0
    # A later tune, which has asked nothing yet.
    later = runner()
    later.note_stored("cell", DRAFTING)
    assert later.pair_s(long[0], DRAFTING) == pytest.approx(each_s)
    launches.close()


def test_a_types_only_prompt_is_asked_in_both_orders(tmp_path):
    """Two types of one prompt each: the order alternated over both, so each was asked in one order only, and no verdict was final."""
    runner, _ = pairing(tmp_path, Watch(), [])
    orders: dict[Task, set[int]] = {}
    for round_ in (1, 2):
        for measured in runner.block(TASKS[:2], DRAFTING, Phase.PROVE, round_):
            orders.setdefault(measured.task, set()).add(measured.pair.off.position)
    assert list(orders.values()) == [{0, 1}, {0, 1}]
