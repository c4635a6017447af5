"""Two servers on one GPU: whether they fit, what --fit takes from one, and what the draft alone takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.backends.placement import Placement, Weights, Where
from autospec.backends.protocol import LaunchSettings
from autospec.cells import Hardware
from autospec.drafting import OFF, Drafting
from autospec.hardware.gpu import Device
from autospec.measure.asking import Asking
from autospec.measure.measurements import Phase
from autospec.store.database import open_store
from autospec.tuning.launches import Launches, resident_launches
from autospec.tuning.paired_runner import PairedRunner
from autospec.tuning.run import Tuning
from tests.catalog.making import make_model
from tests.tuning.simulated import SimulatedBackend, SimulatedServer
from tests.tuning.test_paired_runner import DRAFTING, TASKS, Watch
from tests.tuning.test_run import Silent

GIB = 1024**3
FULL = Placement(33, 33, (("CPU_Mapped", 1000.0), ("CUDA0", 8000.0)))
SQUEEZED = Placement(20, 33, (("CPU_Mapped", 4000.0), ("CUDA0", 5000.0)))
CARD = Device("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB)
MAC = Device("MTL0", "Apple M2 Pro", 21 * GIB, 21 * GIB, unified=True)


@dataclass
class PlacedServer(SimulatedServer):
    """A server that reports where its main model is."""

    placement: Placement | None = FULL


class OnCard(SimulatedBackend):
    """A backend whose launches share a card: `place` says what a launch gets, by its drafting and its neighbours."""

    def __init__(self, place) -> None:
        super().__init__(lambda _d, _t: 1.5)
        self.place = place
        self.placements: dict[str, Placement | None] = {}

    def launch(self, model_path: str, drafting: Drafting, settings: LaunchSettings) -> PlacedServer:
        """Start a server in its place."""
        placement = self.place(drafting, len(self.running))
        server = super().launch(model_path, drafting, settings)
        self.placements[server.launch_id] = placement
        return PlacedServer(self, server.launch_id, drafting, placement=placement)


def measured(tmp_path: Path, backend: OnCard) -> tuple[Launches, list, list[str]]:
    """Three pairs of one block, the launches that they were measured on, and the sentences told."""
    told: list[str] = []
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2, tell=told.append)
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    pairing = PairedRunner(
        launches, Asking("protocol", 16, 0.0, Watch()), store, since={}, sleep=lambda _: None
    )
    pairs = [m.pair for m in pairing.block(TASKS, DRAFTING, Phase.PROVE, 1)]
    return launches, pairs, told


@pytest.mark.parametrize("squeezed", ["drafted", "off"])
def test_a_neighbour_that_takes_layers_is_no_neighbour_any_more(tmp_path, squeezed):
    """The second launch gets the rest of the card; both are then launched alone, and no pair has two placements."""

    def place(drafting: Drafting, running: int) -> Placement:
        return SQUEEZED if running else FULL

    backend = OnCard(place)
    launches, pairs, told = measured(tmp_path, backend)
    if squeezed == "off":  # the draft's launch is there first
        launches.resident = 2
        launches.close()
        launches.drafted(DRAFTING)
        assert launches.off().placement == FULL
    assert launches.resident == 1
    assert next(s for s in told if "side by side" in s) == (
        "The main model is placed differently when two servers run side by side: without drafting 33 of 33 layers, 7.8 of 8.8 GiB of "
        f"weights on the GPU, with {DRAFTING.label} 20 of 33 layers, 4.9 of 8.8 GiB of weights on the GPU. "
        "The servers with and without drafting run by turns from now on."
    )
    assert len(pairs) == 3
    for pair in pairs:
        assert backend.placements[pair.off.launch_id] == FULL
        assert backend.placements[pair.drafted.launch_id] == FULL
    assert not any("cost of drafting" in sentence for sentence in told)
    launches.close()


def test_layers_lost_to_the_draft_itself_count_and_are_said_once(tmp_path):
    """By turns the main model still has fewer layers on the GPU with drafting: users have that, too."""
    backend = OnCard(lambda drafting, running: FULL if drafting.is_off and not running else SQUEEZED)
    launches, pairs, told = measured(tmp_path, backend)
    assert launches.resident == 1
    assert len(told) == 2, "both are said as soon as they are known"
    launches.off()
    launches.drafted(DRAFTING)
    assert len(pairs) == 3
    assert {backend.placements[p.drafted.launch_id] for p in pairs} == {SQUEEZED}
    assert {backend.placements[p.off.launch_id] for p in pairs} == {FULL}
    costs = [sentence for sentence in told if "displaces" in sentence]
    assert costs == [
        (
            f"{DRAFTING.label}: the draft displaces a part of the main model even if no other server runs: 20 of 33 layers, "
            "4.9 of 8.8 GiB of weights on the GPU, without drafting 33 of 33 layers, 7.8 of 8.8 GiB of weights on the "
            "GPU. This is a cost of drafting, and the measurement includes it."
        )
    ]
    launches.close()


@pytest.mark.parametrize("placement", [FULL, SQUEEZED, None])
def test_the_same_place_stays_side_by_side(tmp_path, placement):
    """Also where both have a part of the model elsewhere, as the user asked, and where no log tells."""
    backend = OnCard(lambda _drafting, _running: placement)
    launches, pairs, told = measured(tmp_path, backend)
    assert (launches.resident, len(pairs), told) == (2, 3, [])
    assert backend.launched == [OFF, DRAFTING]
    launches.close()


def test_a_draft_is_timed_where_it_will_run():
    """Beside off it would lose its layers, look several times as slow, and never be launched."""
    backend = OnCard(lambda _drafting, running: SQUEEZED if running else FULL)
    told: list[str] = []
    with Launches(backend, "/main.gguf", LaunchSettings(), resident=2, tell=told.append) as launches:
        launches.off()
        with launches.alone("/draft.gguf") as server:
            assert server.placement == FULL
            assert len(backend.running) == 1
        assert launches.resident == 1
    assert told == [
        (
            "A model that is timed alone does not fit on the GPU beside the server without drafting. "
            "The servers with and without drafting run by turns from now on."
        )
    ]


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (("-ngl", "20"), SQUEEZED),  # 20 of 33, as asked
        (("-ngl", "0"), Placement(0, 33, (("CPU_Mapped", 9000.0),))),
        (("-dev", "none"), Placement(0, 33, (("CPU_Mapped", 9000.0),))),
        # A build of 2025 leaves a draft on the processor unless it is told otherwise.
        ((), Placement(0, 33, (("CPU_Mapped", 9000.0),))),
    ],
)
def test_layers_that_off_has_not_displaced_leave_two_servers_side_by_side(args, place):
    """A draft that is where the user wants it, or goes there by itself, has lost nothing to its neighbour."""
    backend = OnCard(lambda _drafting, _running: place)
    told: list[str] = []
    with Launches(backend, "/main.gguf", LaunchSettings(args), resident=2, tell=told.append) as launches:
        launches.off()
        with launches.alone("/draft.gguf") as server:
            assert server.placement == place
        launches.off()
        launches.drafted(DRAFTING)
        assert len(backend.running) == launches.resident == 2
    assert told == []


@pytest.mark.parametrize(
    ("memory_gib", "devices", "where", "expected"),
    [
        (64, (), Where.DEVICE, 2),
        (16, (), Where.DEVICE, 1),
        # 18 GiB of weights, a card of 24: two servers would fit into the system's 64 GiB, and do not fit on the card.
        (64, (CARD,), Where.DEVICE, 1),
        (64, (CARD, replace(CARD, name="CUDA1")), Where.DEVICE, 2),
        # Two that fit on the cards do not need the system's memory as well, unless a part of them stays there.
        (8, (CARD, replace(CARD, name="CUDA1")), Where.DEVICE, 2),
        (8, (CARD, replace(CARD, name="CUDA1")), Where.BOTH, 1),
        (64, (CARD,), Where.MEMORY, 2),
        (16, (CARD,), Where.MEMORY, 1),
        (64, None, Where.DEVICE, 1),
        (64, None, Where.MEMORY, 2),
        (96, (MAC,), Where.DEVICE, 1),
        (96, (replace(MAC, free_bytes=60 * GIB),), Where.DEVICE, 2),
        # What other programs have of a Mac's memory is not told by Metal.
        (40, (replace(MAC, free_bytes=60 * GIB),), Where.DEVICE, 1),
    ],
)
def test_two_launches_need_room_where_the_weights_go(memory_gib, devices, where, expected):
    """Off takes 18 GiB, drafting 19."""
    count = resident_launches(
        available_bytes=memory_gib * GIB,
        off_bytes=18 * GIB,
        drafted_bytes=19 * GIB,
        devices=devices,
        weights=Weights(where),
    )
    assert count == expected


def test_the_margin_of_fit_stays_free():
    """Two servers of 10.5 GiB fit into 23 GiB by their weights, and not beside what servers and --fit keep."""
    room = {"available_bytes": 64 * GIB, "devices": (CARD,)}
    assert resident_launches(off_bytes=10 * GIB, drafted_bytes=10 * GIB, **room) == 2
    assert resident_launches(off_bytes=10 * GIB, drafted_bytes=int(10.6 * GIB), **room) == 1


def test_swapping_side_by_side_is_measured_again_by_turns(tmp_path):
    """Users have no such neighbour; swapping that remains by turns counts."""
    from tests.tuning.test_paired_runner import CALM

    swapping = replace(CALM, swap_in_bytes=1 << 30)
    told: list[str] = []
    backend = SimulatedBackend(lambda _d, _t: 0.5)
    launches = Launches(backend, "/main.gguf", LaunchSettings(), resident=2, tell=told.append)
    store = open_store(f"sqlite:///{tmp_path / 'autospec.db'}")
    # Whichever half comes first: the drafted one swaps, at each of the three attempts.
    watch = Watch()
    asked = backend.asked
    watch.finish = lambda: CALM if asked[-1][1].is_off else swapping  # type: ignore[method-assign]
    pairing = PairedRunner(
        launches, Asking("protocol", 16, 0.0, watch), store, since={}, sleep=lambda _: None
    )
    measured = list(pairing.block(TASKS[:1], DRAFTING, Phase.PROVE, 1, repeats=2))
    assert told[0].startswith("Memory is short for two servers side by side.")
    assert launches.resident == 1
    assert [m.disturbed for m in measured] == [""]
    (known,) = pairing.known("cell", DRAFTING, Phase.PROVE)
    assert known.log_ratio < 0
    # And from now on nothing is measured three times for it.
    before = len(asked)
    list(pairing.block(TASKS[1:], DRAFTING, Phase.PROVE, 1, repeats=2))
    assert len(asked) - before == 4
    assert len(pairing.known("cell", DRAFTING, Phase.PROVE)) == 3
    assert pairing.left_out("cell", DRAFTING, Phase.PROVE) == {}
    launches.close()


@pytest.mark.parametrize(
    "case",
    [
        ((), "NVIDIA GeForce RTX 4090", (), 2, ""),  # a build for the processor, on a machine with a card
        ((CARD,), "NVIDIA GeForce RTX 4090", (), 2, ""),
        (
            (replace(CARD, free_bytes=3 * GIB),),
            "NVIDIA GeForce RTX 4090",
            (),
            1,
            "do not fit into the 2.0 GiB of GPU memory together",
        ),
        ((replace(CARD, free_bytes=3 * GIB),), "NVIDIA GeForce RTX 4090", ("-ngl", "0"), 2, ""),
        (
            (replace(CARD, free_bytes=3 * GIB),),
            "NVIDIA GeForce RTX 4090",
            ("-ngl", "4"),
            1,
            "it is uncertain",
        ),
        (None, "NVIDIA GeForce RTX 4090", (), 1, "is unknown"),
        (None, "", (), 2, ""),
    ],
)
def test_a_tune_asks_the_backend_for_its_devices(tmp_path, monkeypatch, case):
    """And says why launches take turns; two models of 1.2 GiB, much system memory."""
    devices, gpu, args, count, words = case
    monkeypatch.setattr("autospec.hardware.gpu.driver_devices", lambda: ())
    monkeypatch.setattr("autospec.tuning.run.available_memory_bytes", lambda: 64 * GIB)
    backend = SimulatedBackend(lambda _d, _t: 1.0)
    backend.devices = lambda: devices  # type: ignore[attr-defined]
    model = make_model(name="main", path=tmp_path / "main.gguf", size_bytes=int(1.2 * GIB))
    request = SimpleNamespace(model=model, args=args, context=lambda: 4096)
    told = Silent()
    machine = Hardware("id", "chip", 64 * GIB, 8, "linux 6.8", gpu)
    tuning = Tuning(request, backend, machine, told)  # type: ignore[arg-type]
    assert tuning._resident([]) == count
    assert len(told.told) == (1 if words else 0)
    assert words in "".join(told.told)
