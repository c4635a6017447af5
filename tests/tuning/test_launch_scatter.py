"""Two baseline launches, compared while both run: on simulated servers with known speeds, and on real ones."""

from __future__ import annotations

import itertools
import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from autospec.backends.llama_cpp.server import LlamaServer
from autospec.backends.protocol import Completion, LaunchSettings, Request
from autospec.cells import Build
from autospec.drafting import OFF
from autospec.errors import ServerDiedError
from autospec.store.database import open_store
from autospec.tuning.launch_scatter import LaunchComparing, compare_launches, known_scatter, short_request
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_paired_runner import CALM, Watch

BUILD = Build("simulated", "b1", "f" * 8)


@dataclass
class LuckyServer(SimulatedServer):
    """A launch that is faster than others for all of its requests; it notes what it was asked."""

    faster: float = 0.0

    def complete(self, request: Request) -> Completion:
        """The simulated answer, in its own time."""
        assert request.ignore_eos
        answer = super().complete(request)
        factor = math.exp(-self.faster)
        return replace(answer, predicted_ms=factor * answer.predicted_ms, wall_ms=factor * answer.wall_ms)


def lucky(backend: SimulatedBackend, name: str, faster: float) -> LuckyServer:
    """One launch of off."""
    return LuckyServer(backend, name, OFF, faster=faster)


def simulated(noise: float = 0.01) -> SimulatedBackend:
    """A backend for launches that are made by hand."""
    return SimulatedBackend(lambda _d, _t: 1.0, noise=noise)


@pytest.fixture
def store(tmp_path: Path):
    """An empty database."""
    opened = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    yield opened
    opened.close()


def comparing(store, **changes):
    """The hook of a tune with a calm machine and all the time in the world."""
    told: list[str] = []
    given = {
        "model": "main",
        "max_tokens": 128,
        "left_s": lambda: math.inf,
        "watch": Watch(),
        "tell": told.append,
    }
    return LaunchComparing(store, "here", BUILD, **{**given, **changes}), told


def test_a_faster_launch_is_found_by_abba_pairs():
    """Old, new, new, old, …, after one request of each that is not timed; 21 tokens where a usual answer has 128."""
    backend = simulated()
    found = compare_launches(lucky(backend, "old", 0.0), lucky(backend, "new", 0.05), max_tokens=128)
    assert found is not None
    assert (found.old, found.new, found.pairs) == ("old", "new", 8)
    assert found.difference == pytest.approx(0.05, abs=0.015)
    assert 0.001 < found.error < 0.01
    asked = [name for name, _, _ in backend.asked]
    assert asked == ["old", "new"] + ["old", "new", "new", "old"] * 4


def test_noise_is_answered_by_more_pairs_up_to_six_usual_requests():
    """Sixteen pairs of 21 tokens where answers have 128; twelve of 16 tokens where they have 64."""
    for max_tokens, pairs in ((128, 16), (64, 12)):
        backend = simulated(noise=0.1)
        found = compare_launches(
            lucky(backend, "old", 0.0), lucky(backend, "new", 0.0), max_tokens=max_tokens
        )
        assert found is not None
        assert found.pairs == pairs
        assert len(backend.asked) == 2 + 2 * pairs


def test_where_time_is_short_nothing_is_compared(store):
    """A request of 0.42 s, sixteen of them, in five per cent of what is left: 134 s must be left."""
    for left_s, count in ((130.0, 0), (140.0, 1)):
        backend = simulated(noise=1e-6)
        hook, _ = comparing(store, left_s=lambda left_s=left_s: left_s)
        hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))
        assert len(store.launch_comparisons("here", BUILD)) == count


@pytest.mark.parametrize(
    "state",
    [
        replace(CALM, other_load=2.0),
        replace(CALM, steal=1.0),
        replace(CALM, gpu_other_load=0.5),
        replace(CALM, on_battery=True),
        replace(CALM, changed="the machine slept, or its clock was set"),
    ],
)
def test_a_machine_that_is_busy_or_on_battery_gives_no_comparison(store, state):
    """What a neighbour does to one launch would be taken for its luck."""
    backend = simulated()
    hook, _ = comparing(store, watch=Watch(state))
    hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))
    assert store.launch_comparisons("here", BUILD) == []
    hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))
    assert len(store.launch_comparisons("here", BUILD)) == 1


def test_a_server_that_dies_ends_the_comparison_and_not_the_tune(store, caplog):
    """The proof asks the new launch next and handles its death."""
    backend = simulated()

    def die(server: SimulatedServer, _text: str) -> None:
        if server.launch_id == "new":
            raise ServerDiedError("The server died.")

    backend.before_answer = die
    hook, told = comparing(store)
    with caplog.at_level(logging.INFO, "autospec"):
        hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))
    assert "could not be compared: The server died." in caplog.text
    assert (store.launch_comparisons("here", BUILD), told) == ([], [])


def test_pairs_that_scatter_widely_are_no_comparison(store):
    """One such comparison would raise the resolution of all: half of every pair is twice as fast as the other."""
    backend = simulated(noise=0.5)
    hook, _ = comparing(store)
    hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))
    assert len(backend.asked) == 34
    assert store.launch_comparisons("here", BUILD) == []


def test_an_answer_without_time_is_no_comparison(store):
    """A server that tells no times has no speed."""
    backend = simulated()

    class Timeless(LuckyServer):
        def complete(self, request: Request) -> Completion:
            """An answer that took no time."""
            return replace(super().complete(request), predicted_ms=0.0)

    hook, _ = comparing(store)
    hook(Timeless(backend, "old", OFF), lucky(backend, "new", 0.0))
    assert store.launch_comparisons("here", BUILD) == []


def test_ctrl_c_passes_through(store):
    """It ends the tune, as it does anywhere."""
    backend = simulated()

    def interrupt(_server: SimulatedServer, _text: str) -> None:
        raise KeyboardInterrupt

    backend.before_answer = interrupt
    hook, _ = comparing(store)
    with pytest.raises(KeyboardInterrupt):
        hook(lucky(backend, "old", 0.0), lucky(backend, "new", 0.0))


def renew(hook, backend, luck, *, first=0):
    """A tune's renewals: each launch is compared with the one before."""
    servers = [lucky(backend, f"l{k}", value) for k, value in enumerate(luck, start=first)]
    for old, new in itertools.pairwise(servers):
        hook(old, new)


def test_a_tune_says_once_when_it_is_known(store):
    """Nine comparisons in a row are six degrees of freedom; the launches scatter by 2 %."""
    backend, random = simulated(noise=0.005), np.random.default_rng(4)
    hook, told = comparing(store)
    luck = list(random.normal(0.0, 0.02, 13))
    renew(hook, backend, luck[:9])
    assert told == []
    renew(hook, backend, luck[8:], first=8)
    known = known_scatter(store, "here", BUILD)
    assert known.comparisons == 12
    assert 0.01 < known.sd < 0.04
    assert len(told) == 1
    assert told[0].startswith("simulated: launches differ by")
    assert "(9 comparisons)" in told[0]


def test_once_enough_is_known_a_tune_compares_once(store):
    """A change would be noticed; the rest of the time belongs to the proof."""
    backend = simulated(noise=0.005)
    hook, _ = comparing(store)
    renew(hook, backend, [0.0] * 40)
    known = store.launch_comparisons("here", BUILD)
    # n² ÷ (1.5 n − 0.5) reaches 16 with 24 in a row.
    assert len(known) == 24
    next_tune, told = comparing(store)
    renew(next_tune, backend, [0.0] * 5)
    assert len(store.launch_comparisons("here", BUILD)) == 25
    assert told == []


@pytest.mark.slow
def test_two_real_launches_are_compared(llama_server_binary, lab_models, tmp_path):
    """Both answer the short request to its full length; beside other tests the difference may be anything."""
    backend = LlamaServer(llama_server_binary, tmp_path)
    settings = LaunchSettings(args=("-c", "512", "-t", "1"))
    with ExitStack() as running:
        old = backend.launch(str(lab_models.tiny), OFF, settings)
        running.callback(old.stop)
        new = backend.launch(str(lab_models.tiny), OFF, settings)
        running.callback(new.stop)
        found = compare_launches(old, new, max_tokens=64, most_error=math.inf)
        assert old.complete(short_request(16)).predicted_tokens == 16
    assert found is not None
    assert (found.old, found.new) == (old.launch_id, new.launch_id)
    assert 8 <= found.pairs <= 12
    assert math.isfinite(found.difference)
    assert found.error > 0.0
