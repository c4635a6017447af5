"""How alike machines are, how idle, and which very one this is."""

from __future__ import annotations

import os
from pathlib import Path

from autospec.cells import Hardware
from autospec.hardware.identity import host_digest, likeness, most_alike, parse_platform_uuid
from autospec.hardware.readings import parse_hid_idle, parse_mutter_idle, terminal_idle_s

ULTRA = Hardware(
    "apple-m2-ultra-64g-1", "Apple M2 Ultra", 64 << 30, 24, "macos 15.2", "Apple M2 Ultra 60-core GPU"
)
MAX = Hardware("apple-m2-max-32g-1", "Apple M2 Max", 32 << 30, 12, "macos 15.1", "Apple M2 Max 38-core GPU")
XEON = Hardware("xeon-64g-1", "Intel(R) Xeon(R) 8370C", 64 << 30, 24, "linux 6.1", "")


def test_a_sibling_is_more_alike_than_a_stranger_of_the_same_size():
    """The chip and its GPU decide, not the gigabytes."""
    assert likeness(ULTRA, MAX) > likeness(ULTRA, XEON)
    assert most_alike(ULTRA, [XEON, MAX]) == MAX


def test_the_same_kind_of_machine_is_wholly_alike():
    """And nothing is more alike than that."""
    assert likeness(ULTRA, ULTRA) == 1.0
    assert 0.0 <= likeness(XEON, MAX) < 1.0


def test_without_another_machine_none_is_alike():
    """No figures to lend."""
    assert most_alike(ULTRA, []) is None


def test_idle_times_are_read_from_what_the_systems_print():
    """Nanoseconds on macOS, milliseconds from GNOME; anything else is unknown."""
    assert parse_hid_idle('    |   "HIDIdleTime" = 2500000000\n') == 2.5
    assert parse_mutter_idle("(uint64 1500,)\n") == 1.5
    assert parse_hid_idle("") is None
    assert parse_mutter_idle("Error: no such name") is None


def test_a_terminal_is_as_idle_as_its_last_reading(tmp_path: Path):
    """The most recent one counts; a clock set back gives no negative time; none is unknown."""
    for name, read_at in (("a", 100.0), ("b", 160.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (read_at, 0))
    terminals = [tmp_path / "a", tmp_path / "b", tmp_path / "closed"]
    assert terminal_idle_s(terminals, 200.0) == 40.0
    assert terminal_idle_s(terminals, 50.0) == 0.0
    assert terminal_idle_s([], 200.0) is None


def test_the_host_is_the_same_at_every_look_and_shows_no_id():
    """Twelve hex digits of a salted hash."""
    assert host_digest() == host_digest()
    assert len(host_digest()) == 12
    assert parse_platform_uuid('  "IOPlatformUUID" = "0A1B-22"') == "0A1B-22"
