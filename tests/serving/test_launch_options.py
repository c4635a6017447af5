"""The memory that the plan assumes for a launch: weights are shared only where servers do share them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autospec.catalog.resolve import OwnSettings
from autospec.catalog.scan import Catalog
from autospec.drafting import OFF
from autospec.serving import model_registry
from autospec.serving.launch_options import Backoff, LaunchOptions, footprint, maps_files, repacks
from autospec.serving.plan_inputs import MemoryEstimate
from autospec.serving.server_pool import ServerPool
from autospec.settings import Adapter, ModelSettings, load_settings
from tests.serving.scene import ALPHA, BETA, HERE, MIB, Scene

GIB = 1024**3
LIMIT = 64 * GIB


@given(
    size=st.integers(1, 200).map(lambda gib: gib * GIB),
    draft_size=st.integers(0, 40).map(lambda gib: gib * GIB),
    kv_bytes=st.integers(0, MIB),
)
def test_no_second_server_fits_beside_one_that_fills_the_limit(size, draft_size, kv_bytes):
    """Proxy review 3: two servers of a model of 70 GiB counted as 64 GiB together."""
    main = dataclasses.replace(ALPHA, size_bytes=size, kv_bytes_per_token=kv_bytes)
    draft = dataclasses.replace(main, path=main.path / "draft", size_bytes=draft_size) if draft_size else None
    off = footprint(main, None, 4096, maps_weights=True, limit_bytes=LIMIT)
    drafted = footprint(main, draft, 4096, maps_weights=True, limit_bytes=LIMIT)
    for estimate in (off, drafted):
        alone = MemoryEstimate.total_bytes([estimate])
        assert alone <= LIMIT
        if alone == LIMIT:
            assert MemoryEstimate.total_bytes([off, estimate]) > LIMIT


@pytest.mark.parametrize(
    ("args", "mapped"),
    [
        ((), True),
        (("--mlock",), True),
        (("--no-mmap",), False),
        (("--no-mmap", "--mmap"), True),
        (("-dio",), False),
        (("--load-mode", "none"), False),
        (("--load-mode=dio",), False),
        (("-lm", "mmap+mlock"), True),
        (("-lm", "auto"), True),
    ],
)
def test_arguments_that_copy_the_weights(args, mapped):
    """Proxy review 13: with --no-mmap each server has a copy of the weights, and the plan took them as shared."""
    assert maps_files(args) is mapped
    scene = Scene(settings=load_settings(overrides={"memory_limit": 64.0, "server_args": list(args)}))
    pool = ServerPool(lambda: None, lambda: 0.0)
    options = LaunchOptions(scene.settings, HERE, scene._scan_models(), pool, Backoff())
    assert bool(options.estimate(ALPHA.name, OFF).footprint.shared_bytes) is mapped


@pytest.mark.parametrize(
    ("quantization", "args", "machine", "copied"),
    [
        ("Q4_K_M", (), "x86_64", True),
        ("Q4_0", (), "aarch64", True),
        ("Q4_0", ("--no-repack",), "x86_64", False),
        ("Q4_0", ("-nr", "--repack"), "x86_64", True),
        ("Q4_1", (), "x86_64", False),
        ("Q8_0", (), "x86_64", False),
        ("Q8_0", (), "arm64", True),
        ("F16", (), "arm64", False),
        ("", (), "x86_64", False),
    ],
)
def test_weights_that_are_copied_for_the_processor(quantization, args, machine, copied):
    """Proxy review 13: two servers of a Q4_K model took twice its memory, and the plan took it as shared."""
    assert repacks(quantization, args, machine) is copied


def test_copied_weights_are_not_shared():
    """Each server of such a model counts in full."""
    copied = dataclasses.replace(ALPHA, quantization="Q4_K_M")
    scene = Scene(settings=load_settings(overrides={"memory_limit": 64.0}), models=(copied,))
    options = LaunchOptions(
        scene.settings, HERE, scene._scan_models(), ServerPool(lambda: None, lambda: 0.0), Backoff()
    )
    assert not options.estimate(ALPHA.name, OFF).footprint.shared_bytes


def test_what_is_loaded_besides_models_is_measured_with_the_scan(tmp_path, monkeypatch):
    """The plan asked the disk every second, on the event loop: one dead network disk stopped all streams."""
    files = [tmp_path / name for name in ("style.gguf", "named.gguf", "beside.gguf", "gone.gguf")]
    for number, file in enumerate(files[:-1]):
        file.write_bytes(b"x" * 10**number)
    sections = [
        ModelSettings(ALPHA.name, lora=(Adapter(files[0]), Adapter(files[3])), mmproj=str(files[1])),
        ModelSettings(BETA.name),
    ]
    own = OwnSettings(
        dict(zip((ALPHA.fingerprint, BETA.fingerprint), sections, strict=True)), {BETA.path: (files[2],)}
    )
    scene = Scene()
    monkeypatch.setattr(model_registry, "scan", lambda _: Catalog((ALPHA, BETA), own=own))
    registry = model_registry.read_registry(scene.settings, scene._scan_models().engines, {})
    plain = scene._scan_models()
    for file in files[:-1]:
        file.unlink()  # whoever asks the disk now finds nothing
    pool, backoff = ServerPool(lambda: None, lambda: 0.0), Backoff()
    for found in (registry, registry.with_engines(registry.engines)):
        more = {
            name: LaunchOptions(scene.settings, HERE, found, pool, backoff)
            .estimate(name, OFF)
            .footprint.own_bytes
            - LaunchOptions(scene.settings, HERE, plain, pool, backoff)
            .estimate(name, OFF)
            .footprint.own_bytes
            for name in (ALPHA.name, BETA.name)
        }
        assert more == {ALPHA.name: 11, BETA.name: 100}


def test_a_warm_start_says_nothing_of_a_cold_one():
    """From the system's cache a model of 40 GB is there in seconds; the limit of the next start came from that."""
    scene = Scene(settings=load_settings(overrides={"memory_limit": 64.0}))
    pool = ServerPool(lambda: None, lambda: 0.0)
    options = LaunchOptions(scene.settings, HERE, scene._scan_models(), pool, Backoff())
    cold_s = options.estimate(ALPHA.name, OFF).launch_s
    pool.took_s = lambda *_: 0.01
    warm = options.estimate(ALPHA.name, OFF)
    assert (warm.launch_s, warm.cold_s) == (0.01, cold_s)
