"""The user's limits, and the memory and time that a launch is assumed to need."""

from __future__ import annotations

import dataclasses

import pytest

from autospec.errors import SettingsError
from autospec.recommendations import Status
from autospec.serving.config import ProxyConfig
from autospec.serving.launch_options import footprint, launch_seconds
from autospec.serving.plan_inputs import MemoryEstimate
from autospec.settings import load_settings
from tests.serving.scene import ALPHA, HERE, MIB, model

GIB = 1024**3
DRAFT = dataclasses.replace(model("draft"), size_bytes=10 * MIB)


def test_defaults():
    """Three quarters of the memory, a quarter of an hour, and what was proven here or for another build."""
    config = ProxyConfig.of(load_settings(), HERE)
    assert config == ProxyConfig(
        memory_bytes=12 * GIB,
        idle_s=900.0,
        queue_limit=256,
        deadline_s=300.0,
        trust=frozenset({Status.PROVEN, Status.STALE}),
    )


def test_what_the_user_set():
    """Gigabytes, durations, words; an accelerator's launches share no weights."""
    settings = load_settings(
        overrides={
            "memory_limit": 2.5,
            "idle_unload": "",
            "queue_limit": 3,
            "queue_deadline": "10s",
            "serve_statuses": ["proven"],
            "trust": "likely",
            "server_args": ["-ngl", "99"],
        }
    )
    config = ProxyConfig.of(settings, dataclasses.replace(HERE, gpu="Test GPU"))
    assert (config.memory_bytes, config.idle_s, config.queue_limit, config.deadline_s) == (
        2.5 * GIB,
        None,
        3,
        10.0,
    )
    assert (config.trust, config.args, config.maps_weights) == ({Status.PROVEN}, ("-ngl", "99"), False)
    assert config.likely


@pytest.mark.parametrize("wrong", [{"serve_statuses": ["good"]}, {"queue_deadline": ""}])
def test_settings_that_cannot_be_meant(wrong):
    """They are told when the proxy starts."""
    with pytest.raises(SettingsError):
        ProxyConfig.of(load_settings(overrides=wrong), HERE)


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
