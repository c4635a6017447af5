"""The user's limits, and the memory and time that a launch is assumed to need."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from autospec.drafting import OFF
from autospec.errors import SettingsError
from autospec.hardware import gpu
from autospec.hardware.gpu import Device
from autospec.recommendations import Status
from autospec.serving.launch_options import (
    Backoff,
    LaunchOptions,
    footprint,
    launch_seconds,
    memory_limit_bytes,
)
from autospec.serving.plan_inputs import MemoryEstimate
from autospec.serving.server_pool import ServerPool
from autospec.serving.supervisor import Supervisor
from autospec.settings import load_settings
from tests.hardware.fake_gpus import Card, FakeAmdSmi, FakeNvml
from tests.serving.scene import ALPHA, HERE, MIB, FakeBackend, Scene, model, until

GIB = 1024**3
DRAFT = dataclasses.replace(model("draft"), size_bytes=10 * MIB)


def test_memory_limit():
    """Three quarters of the memory if the user set nothing; 8 GiB where the memory is unknown."""
    unknown = dataclasses.replace(HERE, memory_bytes=0)
    assert memory_limit_bytes(load_settings(), HERE) == 12 * GIB
    assert memory_limit_bytes(load_settings(), unknown) == 8 * GIB
    assert memory_limit_bytes(load_settings(overrides={"memory_limit": 2.5}), HERE) == 2.5 * GIB


def test_a_macs_gpu_limits_its_servers(monkeypatch):
    """Of 16 GiB Metal gives two thirds to all servers together, which is less than three quarters."""
    monkeypatch.setattr("autospec.hardware.gpu.output_of", lambda *_: "0\n")
    mac = dataclasses.replace(HERE, os="macos 15.5", gpu="Apple M2 8-core GPU", memory_bytes=16 * GIB)
    assert memory_limit_bytes(load_settings(), mac) == 16 * GIB * 2 // 3
    assert memory_limit_bytes(load_settings(overrides={"memory_limit": 14}), mac) == 14 * GIB


@pytest.fixture
def two_cards(monkeypatch) -> None:
    """Two cards of 24 and 12 GiB."""
    nvml = FakeNvml(Card(), Card(name="NVIDIA GeForce RTX 3060", total=12 * GIB, free=2 * GIB))
    monkeypatch.setattr(gpu.nvidia, "library", lambda: nvml)
    monkeypatch.setattr(gpu.amd, "library", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


WITH_CARDS = dataclasses.replace(HERE, memory_bytes=64 * GIB, gpu="NVIDIA GeForce RTX 4090")


@pytest.mark.parametrize(
    ("args", "gib"),
    [
        ("", 34),  # less what --fit keeps free on each card
        ("-ngl 99", 34),
        ("-ngl 999 -fa on", 34),
        ("-ngl auto", 34),
        ("--device CUDA1", 11),
        ("-sm none -mg 0", 23),
        ("-ts 1,1", 22),
        # A part of the weights is elsewhere, or may be.
        ("-ngl 0", 48),
        ("-ngl 20", 48),
        ("-dev none", 48),
        ("--cpu-moe", 48),
        ("--n-cpu-moe 12 -ngl 99", 48),
        ("-ot exps=CPU", 48),
        ("--rpc 10.0.0.2:50052", 48),
    ],
)
def test_servers_get_the_memory_of_the_cards(two_cards, args, gib):
    """They got three quarters of the system's: --fit then put layers of the second server on the processor, without a word."""
    assert memory_limit_bytes(load_settings(overrides={"server_args": args.split()}), WITH_CARDS) == gib * GIB


def test_the_users_limit_goes_before_that_of_the_cards(two_cards):
    """A card's user may put experts into the system's memory in the section of one model only."""
    assert memory_limit_bytes(load_settings(overrides={"memory_limit": 40}), WITH_CARDS) == 40 * GIB


def test_cards_may_have_more_memory_than_the_system(two_cards):
    """The weights are not in the system's memory then."""
    small = dataclasses.replace(WITH_CARDS, memory_bytes=16 * GIB)
    assert memory_limit_bytes(load_settings(), small) == 34 * GIB


CUDA0 = Device("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB, 24 * GIB)


@dataclasses.dataclass
class OnCards(FakeBackend):
    """A backend whose build finds these devices."""

    found: tuple[Device, ...] = ()

    def devices(self) -> tuple[Device, ...]:
        """What ``--list-devices`` prints."""
        return self.found


def test_a_build_for_the_processor_beside_cards_gets_the_share_of_the_memory(two_cards):
    """Its models are in the system's memory, whatever the driver lists."""
    assert memory_limit_bytes(load_settings(), WITH_CARDS, OnCards()) == 48 * GIB
    assert memory_limit_bytes(load_settings(), WITH_CARDS, OnCards(found=(CUDA0,))) == 34 * GIB


def test_graphics_in_the_processor_keep_the_share_of_the_memory(monkeypatch):
    """So does a GPU whose memory nobody tells."""
    apu = FakeAmdSmi(amdsmi_get_gpu_asic_info={"market_name": "AMD Radeon 780M Graphics"})
    monkeypatch.setattr(gpu.nvidia, "library", lambda: None)
    monkeypatch.setattr(gpu.amd, "library", lambda: apu)
    assert memory_limit_bytes(load_settings(), dataclasses.replace(HERE, gpu="AMD GPU 0x15bf")) == 12 * GIB
    assert memory_limit_bytes(load_settings(), dataclasses.replace(HERE, gpu="Intel GPU 0xe20b")) == 12 * GIB


def opened(**changes: object) -> Supervisor:
    """A supervisor with these settings."""
    scene = Scene(settings=load_settings(overrides=changes))

    async def scenario() -> Supervisor:
        async with scene.opened() as supervisor:
            return supervisor

    return asyncio.run(scenario())


def test_defaults():
    """A quarter of an hour, 256 requests and five minutes; what was proven here or for another build."""
    supervisor = opened()
    status = supervisor.status()
    assert (status["idle_unload_s"], status["memory"]["limit_bytes"]) == (900.0, 12 * GIB)
    assert (status["queue"]["limit"], status["queue"]["deadline_s"]) == (256, 300.0)
    assert supervisor._trust == {Status.PROVEN, Status.STALE}


def test_what_the_user_set():
    """Durations and words."""
    supervisor = opened(
        idle_unload="", queue_limit=3, queue_deadline="10s", serve_statuses=["proven"], memory_limit=2.5
    )
    status = supervisor.status()
    assert (status["idle_unload_s"], status["memory"]["limit_bytes"]) == (None, 2.5 * GIB)
    assert (status["queue"]["limit"], status["queue"]["deadline_s"]) == (3, 10.0)
    assert supervisor._trust == {Status.PROVEN}


@pytest.mark.parametrize("gpu", ["", "Test GPU"])
def test_weights_are_shared_without_an_accelerator_only(gpu):
    """What an accelerator does with a mapped file is not known."""
    scene, here = Scene(), dataclasses.replace(HERE, gpu=gpu)
    pool = ServerPool(lambda: None, lambda: 0.0)
    options = LaunchOptions(scene.settings, here, scene._scan_models(), pool, Backoff())
    assert bool(options.estimate(ALPHA.name, OFF).footprint.shared_bytes) is not bool(gpu)


@pytest.mark.parametrize("wrong", [{"serve_statuses": ["good"]}, {"queue_deadline": ""}])
def test_settings_that_cannot_be_meant(wrong):
    """They are told when the proxy starts."""
    with pytest.raises(SettingsError):
        opened(**wrong)


def test_mapped_weights_are_there_once():
    """Two launches of one file share them; their caches are their own."""
    cached = dataclasses.replace(ALPHA, kv_bytes_per_token=1024)
    off = footprint(cached, None, 1024, maps_weights=True, limit_bytes=GIB)
    drafted = footprint(cached, DRAFT, 1024, maps_weights=True, limit_bytes=GIB)
    assert off == MemoryEstimate(257 * MIB, {str(ALPHA.path): 100 * MIB})
    assert drafted == MemoryEstimate(257 * MIB, {str(ALPHA.path): 100 * MIB, str(DRAFT.path): 10 * MIB})
    assert MemoryEstimate.total_bytes([off, drafted]) == (2 * 257 + 110) * MIB


def test_copied_weights_count_for_each_launch():
    """What an accelerator does with a mapped file is not known."""
    assert footprint(ALPHA, DRAFT, 1024, maps_weights=False, limit_bytes=GIB) == MemoryEstimate(366 * MIB)


@pytest.mark.parametrize("maps_weights", [True, False])
@pytest.mark.parametrize("limit", [50 * MIB, 150 * MIB])
def test_no_launch_counts_for_more_than_the_limit(maps_weights, limit):
    """A server fits its context to what it finds, so that a large model can still run alone."""
    found = footprint(ALPHA, None, 1024, maps_weights=maps_weights, limit_bytes=limit)
    assert MemoryEstimate.total_bytes([found]) == limit


def test_launch_seconds():
    """Longer for larger files."""
    assert launch_seconds(ALPHA, None) < launch_seconds(ALPHA, DRAFT) < launch_seconds(model("x"), ALPHA)


def test_the_limit_follows_an_upgrade(two_cards):
    """A build without GPU code keeps its models in the system's memory, the next one on the cards."""

    async def scenario():
        scene = Scene(backend=OnCards(), hardware=WITH_CARDS, settings=load_settings())
        async with scene.opened() as supervisor:
            assert supervisor.status()["memory"]["limit_bytes"] == 48 * GIB
            scene.backend.build = dataclasses.replace(scene.backend.build, version="fake-2", fingerprint="b")
            scene.backend.found = (CUDA0,)
            scene.version += 1
            await supervisor.refresh()
            await until(lambda: supervisor.status()["memory"]["limit_bytes"] == 34 * GIB)
            assert supervisor.plan()["memory_limit_bytes"] == 34 * GIB

    asyncio.run(scenario())
