"""How alike two machines are, and the digest that identifies this one."""

from __future__ import annotations

from autospec.cells import Hardware
from autospec.hardware.identity import host_digest, likeness, most_alike, parse_platform_uuid

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


def test_the_host_is_the_same_at_every_look_and_shows_no_id():
    """Twelve hex digits of a salted hash."""
    assert host_digest() == host_digest()
    assert len(host_digest()) == 12
    assert parse_platform_uuid('  "IOPlatformUUID" = "0A1B-22"') == "0A1B-22"
